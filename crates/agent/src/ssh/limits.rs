//! How many connections each user has open here.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use types::UserName;

/// The count, per user. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Present(Arc<Mutex<BTreeMap<UserName, u32>>>);

/// One connection of a user, counted until dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    all: Present,
    user: UserName,
}

impl Present {
    /// Counts one more, unless the user has as many as he may.
    pub(crate) fn enter(&self, user: &UserName, most: Option<u32>) -> Option<Counted> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(user.clone()).or_default();
        if most.is_some_and(|most| *count >= most) {
            return None;
        }
        *count = count.saturating_add(1);
        Some(Counted { all: self.clone(), user: user.clone() })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.user) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                all.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_until_it_ends() {
        let (present, alice, bob) = (Present::default(), UserName::new("alice").unwrap(), UserName::new("bob").unwrap());
        let first = present.enter(&alice, Some(1)).unwrap();
        assert!(present.enter(&alice, Some(1)).is_none());
        assert!(present.enter(&bob, Some(1)).is_some());
        drop(first);
        assert!(present.enter(&alice, Some(1)).is_some());
    }
}
