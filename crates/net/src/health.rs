//! How each component of a process is, for `/readyz`: every service writes its own rows on one board.
//!
//! Honest means: a component is ready when a user could use it, not when its task was started.

use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;

/// One component's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    Starting,
    Ready,
    /// Works, and somebody should look at it; why, for people. No reason to take the process out of service.
    Attention(String),
    /// Works not, or not fully; why, for people.
    Degraded(String),
}

/// The components of one process. Cheap to clone; all clones are the same board.
#[derive(Clone, Debug)]
pub struct Board(Arc<watch::Sender<BTreeMap<&'static str, Health>>>);

impl Default for Board {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }
}

impl Board {
    /// States how a component is; the first call makes its row.
    pub fn set(&self, component: &'static str, health: Health) {
        self.0.send_if_modified(|rows| rows.insert(component, health.clone()) != Some(health));
    }
    /// Takes a component off the board: it is no part of this process any more.
    pub fn remove(&self, component: &str) {
        self.0.send_if_modified(|all| all.remove(component).is_some());
    }
    /// Every component, by name.
    pub fn snapshot(&self) -> Vec<(&'static str, Health)> {
        self.0.borrow().iter().map(|(name, health)| (*name, health.clone())).collect()
    }
    /// Whether there are components and all work.
    pub fn all_ready(&self) -> bool {
        let rows = self.0.borrow();
        !rows.is_empty() && rows.values().all(|health| matches!(health, Health::Ready | Health::Attention(_)))
    }
    /// Wakes at every change.
    pub fn changes(&self) -> watch::Receiver<BTreeMap<&'static str, Health>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_is_ready_only_when_every_row_is() {
        let board = Board::default();
        assert!(!board.all_ready());
        board.set("ssh", Health::Ready);
        board.clone().set("tunnel", Health::Starting);
        assert!(!board.all_ready());
        board.set("tunnel", Health::Ready);
        assert!(board.all_ready());
    }
}
