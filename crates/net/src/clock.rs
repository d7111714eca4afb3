//! The clock, passed in: services ask a [`SharedClock`], tests bring a [`ManualClock`].
//!
//! This is wall time for certificates and records. Deadlines and timers use tokio's own monotonic clock, which tests pause.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};
use std::time::Duration;
use types::Time;

/// Says what time it is.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Time;
}

/// A clock that many own.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// The machine's clock, ready to be shared.
    pub fn shared() -> SharedClock {
        Arc::new(Self)
    }
}
impl Clock for SystemClock {
    fn now(&self) -> Time {
        std::time::SystemTime::now().into()
    }
}

/// A clock that stands still until it is moved; millisecond resolution. Clones share the hands.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    pub fn new(now: Time) -> Self {
        Self(Arc::new(AtomicI64::new(now.unix_millis())))
    }
    pub fn set(&self, now: Time) {
        self.0.store(now.unix_millis(), Ordering::SeqCst);
    }
    pub fn advance(&self, by: Duration) {
        let millis = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
    /// This clock, ready to be shared; the hands stay in the caller's reach.
    pub fn shared(&self) -> SharedClock {
        Arc::new(self.clone())
    }
}
impl Clock for ManualClock {
    fn now(&self) -> Time {
        Time::from_unix_millis(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = ManualClock::new(Time::from_unix(1000));
        let shared = clock.shared();
        assert_eq!(shared.now(), Time::from_unix(1000));
        clock.advance(Duration::from_millis(1500));
        assert_eq!(shared.now().unix_millis(), 1_001_500);
        clock.set(Time::EPOCH);
        assert_eq!(shared.now(), Time::EPOCH);
    }
}
