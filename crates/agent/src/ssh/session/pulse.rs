//! When bytes of a session last moved: what silence and idleness are measured by.

use crate::ssh::handler::Granted;
use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// When bytes last moved, and whether some are just being handed on.
pub(super) struct Pulse {
    last: watch::Sender<Instant>,
    pub(super) busy: AtomicUsize,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { last: watch::Sender::new(Instant::now()), busy: AtomicUsize::new(0) }
    }
    pub(super) fn beat(&self) {
        self.last.send_replace(Instant::now());
    }
    /// Ends after so much silence from now on, with nothing on its way.
    pub(super) async fn quiet(&self, length: Duration) {
        let from = Instant::now();
        loop {
            let end = (*self.last.borrow()).max(from) + length;
            if Instant::now() >= end {
                if self.busy.load(SeqCst) == 0 {
                    return;
                }
                self.beat();
                continue;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// Ends when the roles' idle time has passed without a byte either way.
pub(super) async fn idle(granted: &Granted, pulse: &Pulse) {
    let Some(limit) = granted.permit.options.idle_timeout else { return std::future::pending().await };
    loop {
        let end = *pulse.last.borrow() + limit;
        if Instant::now() >= end {
            return;
        }
        tokio::time::sleep_until(end).await;
    }
}
