//! The clock by which items expire, given to a driver when it is built, so that tests of expiry do not wait.

use std::sync::atomic::{AtomicI64, Ordering};
use types::Time;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Time;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Clock for System {
    #[allow(clippy::disallowed_methods, reason = "this is the one place where the store reads the machine's clock")]
    fn now(&self) -> Time {
        Time::from(std::time::SystemTime::now())
    }
}

/// A clock that stands until it is moved. Millisecond resolution.
#[derive(Debug)]
pub struct Manual(AtomicI64);

impl Manual {
    pub fn at(time: Time) -> Self {
        Self(AtomicI64::new(time.unix_millis()))
    }

    pub fn advance(&self, by: std::time::Duration) {
        self.0.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    pub fn set(&self, time: Time) {
        self.0.store(time.unix_millis(), Ordering::SeqCst);
    }
}

impl Clock for Manual {
    fn now(&self) -> Time {
        Time::from_unix_millis(self.0.load(Ordering::SeqCst))
    }
}
