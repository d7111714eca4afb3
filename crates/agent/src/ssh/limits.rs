//! How many connections each user has open here, and how often strangers are written to the audit log.

use net::rate::{Buckets, Rate};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::time::Instant;
use types::UserName;

/// Refused certificates that one source may write to the audit log.
const REFUSALS: Rate = Rate { burst: 20, per_second: 0.2 };

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

/// Which refusals of strangers are written down: whoever knocks often fills no log (attack table, row 24). Clones share it.
#[derive(Clone, Debug)]
pub struct Refusals(Arc<Mutex<Knocks>>);

#[derive(Debug)]
struct Knocks {
    begun: Instant,
    buckets: Buckets,
    unwritten: u64,
}

impl Default for Refusals {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Knocks { begun: Instant::now(), buckets: Buckets::new(REFUSALS), unwritten: 0 })))
    }
}

impl Refusals {
    /// `Some(n)`: write this one down, and that `n` of anybody's before it were not.
    pub(crate) fn admit(&self, source: Option<IpAddr>) -> Option<u64> {
        let mut knocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = knocks.begun.elapsed();
        if knocks.buckets.take(source.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), now) {
            return Some(std::mem::take(&mut knocks.unwritten));
        }
        knocks.unwritten = knocks.unwritten.saturating_add(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_source_is_not_written_down_for_is_counted_with_the_next() {
        let (refusals, one, two) = (Refusals::default(), "192.0.2.1".parse().ok(), "192.0.2.2".parse().ok());
        assert_eq!((0..50).filter(|_| refusals.admit(one).is_some()).count(), 20);
        assert_eq!((refusals.admit(two), refusals.admit(two), refusals.admit(None)), (Some(30), Some(0), Some(0)));
    }

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
