//! How a service is told to end, in two stages: *drain* (take nothing new, let sessions run out), then *stop* (now).
//!
//! Every service's `run(shutdown)` gets one; `cli` turns signals into it. A child can be ended without its parent; a parent
//! ends its children.

use tokio_util::sync::CancellationToken;

/// The two-stage switch. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    stop: CancellationToken,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }
    /// Asks to take nothing new.
    pub fn drain(&self) {
        self.drain.cancel();
    }
    /// Asks to end at once; implies [`Shutdown::drain`].
    pub fn stop(&self) {
        self.drain.cancel();
        self.stop.cancel();
    }
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }
    /// Waits for the first stage. Safe to cancel.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }
    /// Waits for the second stage. Safe to cancel.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }
    /// A switch that this one also throws, but that does not throw this one.
    pub fn child(&self) -> Self {
        Self { drain: self.drain.child_token(), stop: self.stop.child_token() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stages_come_in_order_and_reach_children_only() {
        let parent = Shutdown::new();
        let (child, sibling) = (parent.child(), parent.child());
        child.stop();
        child.stopping().await;
        assert!(child.is_draining() && !parent.is_draining() && !sibling.is_draining());
        parent.drain();
        sibling.draining().await;
        assert!(!sibling.is_stopping());
        parent.stop();
        sibling.stopping().await;
    }
}
