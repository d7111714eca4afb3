//! Numbers of the SSH Service. All of them tell of loss: a healthy host shows zeros.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct Metrics {
    /// Audit events that found no place on the disk and none in memory, or could not be read back.
    events_lost: AtomicU64,
    /// Audit events that the Auth Service will never take; they lie in the spool.
    events_refused: AtomicU64,
}

impl Metrics {
    pub(crate) fn lost(&self) {
        self.events_lost.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn refused(&self) {
        self.events_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Every counter of this moment, by the name it has outside.
    pub fn samples(&self) -> [(&'static str, u64); 2] {
        [
            ("lockgate_agent_events_lost_total", self.events_lost.load(Ordering::Relaxed)),
            ("lockgate_agent_events_refused_total", self.events_refused.load(Ordering::Relaxed)),
        ]
    }
}
