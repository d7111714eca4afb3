//! Whose turn it is to take new work: this process's, or that of another which stands beside it on the same listeners (a live
//! restart). [`Switch`] belongs to the one place that decides; everything that may be done by one of the two at a time reads a [`Turn`].
//!
//! Work that was taken goes on whoever's turn it is. A process that shares with nobody has [`Turn::always`].

use tokio::sync::watch;

/// Says whose turn it is.
#[derive(Clone, Debug)]
pub struct Switch(watch::Sender<bool>);

/// Knows whose turn it is. Clones read the same switch.
#[derive(Clone, Debug)]
pub struct Turn(watch::Receiver<bool>);

impl Switch {
    pub fn new(ours: bool) -> Self {
        Self(watch::Sender::new(ours))
    }
    pub fn turn(&self) -> Turn {
        Turn(self.0.subscribe())
    }
    /// From now on it is ours, or it is not.
    pub fn set(&self, ours: bool) {
        self.0.send_if_modified(|now| std::mem::replace(now, ours) != ours);
    }
}

impl Turn {
    /// There is nobody else.
    pub fn always() -> Self {
        Switch::new(true).turn()
    }
    pub fn is_ours(&self) -> bool {
        *self.0.borrow()
    }
    /// Waits until it is ours. Safe to cancel.
    pub async fn ours(&self) {
        self.until(true).await;
    }
    /// Waits until it is not ours. Safe to cancel.
    pub async fn theirs(&self) {
        self.until(false).await;
    }

    async fn until(&self, ours: bool) {
        // Without its switch it stays as it is.
        if self.0.clone().wait_for(|now| *now == ours).await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_goes_back_and_forth() {
        let switch = Switch::new(false);
        let turn = switch.turn();
        let mut waiting = Box::pin(turn.ours());
        assert!(futures::poll!(&mut waiting).is_pending());
        switch.set(true);
        waiting.await;
        assert!(turn.is_ours());
        switch.set(false);
        turn.theirs().await;
        Turn::always().ours().await;
        assert!(futures::poll!(Box::pin(Turn::always().theirs())).is_pending());
    }
}
