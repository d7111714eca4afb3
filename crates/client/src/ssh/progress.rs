//! Whether a connection still moves, and whose fault it is when it does not: what the watchdog of a session looks at.

use net::elastic::Moved;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// What moved on a connection, and how many of our own consumers it is waiting for.
#[derive(Debug)]
pub(super) struct Progress {
    moved: Moved,
    consumers_blocked: AtomicUsize,
}

impl Progress {
    pub(super) fn new(moved: Moved) -> Arc<Self> {
        Arc::new(Self { moved, consumers_blocked: AtomicUsize::new(0) })
    }
    pub(super) fn moved(&self) -> u64 {
        self.moved.bytes()
    }
    /// Whether the standstill, if there is one, is ours: a terminal that was paused, a full pipe.
    pub(super) fn is_ours(&self) -> bool {
        self.consumers_blocked.load(Ordering::Relaxed) > 0
    }
    /// Held while one of our consumers is being written to.
    pub(super) fn consuming(self: &Arc<Self>) -> Consuming {
        self.consumers_blocked.fetch_add(1, Ordering::Relaxed);
        Consuming(self.clone())
    }
}

/// See [`Progress::consuming`].
pub(super) struct Consuming(Arc<Progress>);
impl Drop for Consuming {
    fn drop(&mut self) {
        self.0.consumers_blocked.fetch_sub(1, Ordering::Relaxed);
    }
}
