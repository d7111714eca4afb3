//! Leases: what expires is gone at once for readers, and a little later for watchers.

use super::{World, conflict, deleted, dir, event, get, key, keys, put, put_if, put_until, started, text, was_put};
use crate::{Batch, BatchError, CommitError, Condition, Key, Store};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// An item is gone when its time has come, by every way of looking; a permanent one stays.
pub(super) async fn expiration(world: World) {
    let store = &*world.store;
    let soon = world.clock_after(SECOND);
    put_until(store, "e/short", "x", soon).await;
    put(store, "e/long", "y").await;
    assert_eq!(get(store, "e/short").await.unwrap().expires, Some(soon));
    assert_eq!(store.expire_due().await, Ok(0));
    world.clock.advance(Duration::from_millis(999));
    assert!(get(store, "e/short").await.is_some());

    world.clock.advance(Duration::from_millis(1));
    for store in [&world.store, &world.twin] {
        assert_eq!(get(&**store, "e/short").await, None);
        assert_eq!(keys(&**store, &dir("e")).await, ["e/long"]);
    }
    assert_eq!(put_if(store, Condition::Exists(key("e/short")), "e/short", "z").await, conflict("e/short"));
    assert_eq!(put_if(store, Condition::RevisionIs(key("e/short"), 1), "e/short", "z").await, conflict("e/short"));
    assert!(put_if(store, Condition::Absent(key("e/short")), "e/short", "again").await.is_ok(), "an expired item is absent");
    assert_eq!(store.expire_due().await, Ok(0), "the new one has no expiry");

    for n in 0..30 {
        put_until(store, &format!("e/many/{n}"), "x", world.clock_after(SECOND)).await;
    }
    world.clock.advance(SECOND);
    let both = [store.expire_due().await.unwrap(), world.twin.expire_due().await.unwrap()];
    assert_eq!(both, [30, 0], "what expired is deleted once");
    assert_eq!(keys(store, &dir("e")).await, ["e/long", "e/short"]);
}

/// Moves the expiry, not the value; tells watchers; refuses what is gone or was changed.
pub(super) async fn keep_alive(world: World) {
    let store = &*world.store;
    let first = put_until(store, "k", "v", world.clock_after(SECOND)).await;
    let mut watch = started(store, vec![], None).await;
    let later = world.clock_after(10 * SECOND);
    let kept = store.keep_alive(&key("k"), Some(first), later, None).await.unwrap().revision;
    assert!(kept > first);
    assert_eq!(event(&mut watch).await, was_put("k", "v", kept, Some(later)));
    assert_eq!(store.keep_alive(&key("k"), Some(first), later, None).await, conflict("k"));
    world.clock.advance(5 * SECOND);
    assert_eq!(text(store, "k").await.as_deref(), Some("v"));
    assert_eq!(put_if(store, Condition::RevisionIs(key("k"), first), "k", "w").await, conflict("k"), "it counts as a change");

    let gone = Err(CommitError::NotFound { key: key("k") });
    world.clock.advance(5 * SECOND);
    assert_eq!(store.keep_alive(&key("k"), None, world.clock_after(SECOND), None).await, gone, "too late");
    put(store, "k", "v").await;
    store.commit(Batch::new(None).delete(key("k"))).await.unwrap();
    assert_eq!(store.keep_alive(&key("k"), None, world.clock_after(SECOND), None).await, gone);
    let control = store.keep_alive(&Key::control(), None, world.clock_after(SECOND), None).await;
    assert_eq!(control, Err(CommitError::Invalid(BatchError::Control)));

    let permanent = put(store, "k", "v").await;
    store.keep_alive(&key("k"), Some(permanent), world.clock_after(SECOND), None).await.unwrap();
    world.clock.advance(SECOND);
    assert_eq!(get(store, "k").await, None, "a lease can be put on what had none");
}

/// A lock is an absent key created with a lease: one owner at a time, released by its owner, lost by time.
pub(super) async fn locking(world: World) {
    async fn acquire(store: &dyn Store, name: &str, owner: &str, until: types::Time) -> Result<u64, CommitError> {
        let batch = Batch::new(None).require(Condition::Absent(key(name))).put(key(name), owner.to_owned(), Some(until));
        store.commit(batch).await.map(|done| done.revision)
    }
    async fn release(store: &dyn Store, name: &str, held: u64) -> Result<u64, CommitError> {
        let batch = Batch::new(None).require(Condition::RevisionIs(key(name), held)).delete(key(name));
        store.commit(batch).await.map(|done| done.revision)
    }
    let (one, two) = (&*world.store, &*world.twin);
    let taken = |name: &str| Err(CommitError::Conflict { key: key(name) });
    let until = world.clock_after(10 * SECOND);
    let held = acquire(one, "lock/a", "one", until).await.unwrap();
    assert_eq!(acquire(two, "lock/a", "two", until).await, taken("lock/a"));
    acquire(two, "lock/b", "two", until).await.expect("another name is another lock");
    release(one, "lock/a", held).await.unwrap();
    let second = acquire(two, "lock/a", "two", until).await.unwrap();
    assert_eq!(release(one, "lock/a", held).await, taken("lock/a"), "a former owner cannot release it");
    world.clock.advance(10 * SECOND);
    let third = acquire(one, "lock/a", "one", world.clock_after(10 * SECOND)).await.unwrap();
    assert_eq!(release(two, "lock/a", second).await, taken("lock/a"), "it was lost by time");
    release(one, "lock/a", third).await.unwrap();
}

/// The limit of a page counts live items only.
pub(super) async fn limit(world: World) {
    let store = &*world.store;
    let mut watch = started(store, vec![dir("l")], None).await;
    for n in 0..10 {
        put_until(store, &format!("l/{n}a"), "x", world.clock_after(SECOND)).await;
        put(store, &format!("l/{n}b"), "y").await;
    }
    world.clock.advance(2 * SECOND);
    let (mut from, mut seen, mut full) = (dir("l"), 0, false);
    loop {
        let page = store.range(&from, &dir("l").prefix_end(), 5).await.unwrap();
        assert!(page.items.iter().all(|item| item.value == "y"));
        seen += page.items.len();
        full |= page.items.len() == 5;
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(seen, 10);
    // A driver may cut its pages shorter; but ten live items behind ten dead ones must be able to fill one.
    for _ in 0..50 {
        full |= store.range(&dir("l"), &dir("l").prefix_end(), 5).await.unwrap().items.len() == 5;
    }
    assert!(full);
    for n in 0..10 {
        assert_eq!(event(&mut watch).await.key(), Some(&key(&format!("l/{n}a"))));
        assert_eq!(event(&mut watch).await.key(), Some(&key(&format!("l/{n}b"))));
    }
    let revision = store.revision().await.unwrap();
    assert_eq!(store.expire_due().await, Ok(10));
    assert_eq!(event(&mut watch).await, deleted("l/0a", revision + 1));
}

impl World {
    pub(super) fn clock_after(&self, length: Duration) -> types::Time {
        use crate::Clock as _;
        self.clock.now().plus(length)
    }
}
