//! Presence: how often members report, and when one that stopped counts as offline.
//!
//! Figures are the field's: a keep-alive each minute, documents that the store removes after ten. Intervals are spread by a
//! factor made of a random number that the caller passes in, so that a fleet which started together does not beat together.

use std::time::Duration;
use types::Time;

/// Between two heartbeats, before jitter.
pub const HEARTBEAT: Duration = Duration::from_secs(60);
/// How long a heartbeat keeps a `node` or `member` document.
pub const LEASE: Duration = Duration::from_secs(600);
/// Silent for so long: shown as offline. Three heartbeats at their slowest, and some seconds for the road.
pub const OFFLINE_AFTER: Duration = Duration::from_secs(225);

/// A heartbeat's interval: 0.8 to 1.2 times the base, by a uniformly random `random`.
pub fn interval(base: Duration, random: u32) -> Duration {
    let unit = f64::from(random) / f64::from(u32::MAX);
    base.mul_f64(0.8 + 0.4 * unit)
}

/// The first heartbeat after a start or a reconnect: anywhere within one base interval, so that a Proxy's restart is not
/// followed by everybody at once.
pub fn first(base: Duration, random: u32) -> Duration {
    base.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Whether a member is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    Online,
    Offline,
}

impl Presence {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
        }
    }
}

/// By the time it was last heard of. A time in the future (clocks differ) is online.
pub fn presence(last_seen: Time, now: Time) -> Presence {
    if now.since(last_seen) > OFFLINE_AFTER { Presence::Offline } else { Presence::Online }
}

/// When a heartbeat received at `now` lapses.
pub fn lease_end(now: Time) -> Time {
    now.plus(LEASE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_spread_around_the_base() {
        assert_eq!(interval(HEARTBEAT, 0), Duration::from_secs(48));
        assert_eq!(interval(HEARTBEAT, u32::MAX), Duration::from_secs(72));
        assert!(3 * interval(HEARTBEAT, u32::MAX) < OFFLINE_AFTER);
        assert!(OFFLINE_AFTER < LEASE);
        assert_eq!(first(HEARTBEAT, u32::MAX), HEARTBEAT);
    }

    #[test]
    fn a_silent_member_goes_offline() {
        let at = |seconds| presence(Time::from_unix(1000), Time::from_unix(seconds));
        assert_eq!(at(1225), Presence::Online);
        assert_eq!(at(1226), Presence::Offline);
        assert_eq!(at(0), Presence::Online);
    }
}
