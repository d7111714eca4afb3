//! How often one source may do something: a bucket of attempts per source, refilled over time.
//!
//! Used where a stranger costs something: logins and invitations at the Proxy (guessing is stopped by the Auth Service's
//! lock-out per account; a password check is meant to be expensive), and refusals that are written to the audit log. An
//! attempt that did no harm is given back, so that a whole company behind one address never meets the limit. Sources are
//! IPv4 addresses and IPv6 /64 networks. The table is bounded: when it is full, full buckets are forgotten, which gives
//! nobody more attempts than he had.

use crate::listen::source as network;
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// Sources remembered at once.
const MAX_SOURCES: usize = 50_000;

/// Attempts of one source: `burst` at once, then `per_second`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate {
    pub burst: u32,
    pub per_second: f64,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Duration,
}

/// The buckets of one kind of attempt.
#[derive(Debug)]
pub struct Buckets {
    rate: Rate,
    sources: BTreeMap<IpAddr, Bucket>,
}

impl Buckets {
    /// Every source begins with a full bucket.
    pub fn new(rate: Rate) -> Self {
        Self { rate, sources: BTreeMap::new() }
    }

    /// Takes one attempt of that source at `now` (since any fixed moment); false when there is none left.
    pub fn take(&mut self, source: IpAddr, now: Duration) -> bool {
        let (full, rate) = (f64::from(self.rate.burst), self.rate.per_second);
        let level = |bucket: &Bucket| (bucket.left + now.saturating_sub(bucket.at).as_secs_f64() * rate).min(full);
        if self.sources.len() >= MAX_SOURCES {
            self.sources.retain(|_, bucket| level(bucket) < full);
        }
        let source = network(source);
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            return false;
        }
        let bucket = self.sources.entry(source).or_insert(Bucket { left: full, at: now });
        let left = level(bucket);
        *bucket = Bucket { left: if left >= 1.0 { left - 1.0 } else { left }, at: now };
        left >= 1.0
    }

    /// That source's attempt did no harm: it has it again.
    pub fn give_back(&mut self, source: IpAddr) {
        if let Some(bucket) = self.sources.get_mut(&network(source)) {
            bucket.left = (bucket.left + 1.0).min(f64::from(self.rate.burst));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_its_burst_and_then_its_rate_and_others_are_not_touched() {
        let mut buckets = Buckets::new(Rate { burst: 3, per_second: 0.5 });
        let (one, two) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let at = Duration::from_secs;
        let taken = (0..5).filter(|_| buckets.take(one, at(0))).count();
        assert_eq!(taken, 3);
        assert!(buckets.take(two, at(0)));
        assert!(!buckets.take(one, at(1)));
        assert!(buckets.take(one, at(2)));
        assert!(!buckets.take(one, at(2)));
    }

    #[test]
    fn an_attempt_that_is_given_back_can_be_taken_again_and_never_makes_more_than_a_burst() {
        let mut buckets = Buckets::new(Rate { burst: 2, per_second: 0.0 });
        let office = "192.0.2.1".parse().unwrap();
        for _ in 0..100 {
            assert!(buckets.take(office, Duration::ZERO));
            buckets.give_back(office);
        }
        buckets.give_back(office);
        let taken = (0..5).filter(|_| buckets.take(office, Duration::ZERO)).count();
        assert_eq!(taken, 2);
    }

    #[test]
    fn a_subscriber_of_ipv6_is_one_source() {
        let mut buckets = Buckets::new(Rate { burst: 1, per_second: 0.0 });
        assert!(buckets.take("2001:db8::1".parse().unwrap(), Duration::ZERO));
        assert!(!buckets.take("2001:db8::2:3".parse().unwrap(), Duration::ZERO));
        assert!(buckets.take("2001:db8:0:1::1".parse().unwrap(), Duration::ZERO));
        assert!(buckets.take("192.0.2.1".parse().unwrap(), Duration::ZERO));
        assert!(!buckets.take("::ffff:192.0.2.1".parse().unwrap(), Duration::ZERO));
    }
}
