//! Watches: order, resuming, ending.

use super::{World, deleted, dir, event, key, put, put_until, started, was_put};
use crate::{Batch, Clock as _, Event, Item, Key, WatchError, scan};
use std::collections::BTreeMap;
use std::time::Duration;

/// Init, put, delete, put with a lease, and delete when it expires.
pub(super) async fn events(world: World) {
    let store = &*world.store;
    put(store, "before", "x").await;
    let mut watch = store.watch(vec![], None).await.unwrap();
    assert_eq!(event(&mut watch).await, Event::Init { revision: 1 });
    put(store, "a", "1").await;
    assert_eq!(event(&mut watch).await, was_put("a", "1", 2, None));
    store.commit(Batch::new(None).delete(key("a"))).await.unwrap();
    assert_eq!(event(&mut watch).await, deleted("a", 3));
    let expires = world.clock.now().plus(Duration::from_secs(1));
    put_until(store, "b", "2", expires).await;
    assert_eq!(event(&mut watch).await, was_put("b", "2", 4, Some(expires)));
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(store.expire_due().await, Ok(1));
    assert_eq!(event(&mut watch).await, deleted("b", 5));
    assert_eq!(watch.resume_point(), 5);
}

/// Closing a handle ends its watches, also one that waits; the other handle's go on.
pub(super) async fn watchers_close(world: World) {
    let mut waiting = started(&*world.store, vec![], None).await;
    let mut unread = world.store.watch(vec![], None).await.unwrap();
    let mut other = started(&*world.twin, vec![], None).await;
    drop(started(&*world.store, vec![], None).await);
    let ended = async { tokio::time::timeout(Duration::from_secs(10), waiting.next()).await };
    let (ended, ()) = futures::future::join(ended, world.store.close()).await;
    assert!(matches!(ended, Ok(None)), "a waiting watch ends with its store");
    assert!(unread.next().await.is_none());
    put(&*world.twin, "k", "v").await;
    assert_eq!(event(&mut other).await, was_put("k", "v", 1, None));
}

/// A copy fed by a listing and a watch equals the store: also items that had expired before they came.
pub(super) async fn mirror(world: World) {
    let store = &*world.store;
    for n in 0..20 {
        put(store, &format!("m/{n:02}"), format!("{n}")).await;
    }
    let first = store.range(&dir("m"), &dir("m").prefix_end(), 5).await.unwrap();
    for n in (0..20).step_by(3) {
        put(store, &format!("m/{n:02}"), "changed").await;
        store.commit(Batch::new(None).delete(key(&format!("m/{:02}", n + 1)))).await.unwrap();
    }
    let past = world.clock.now().minus(Duration::from_secs(60));
    let born_dead = put_until(store, "m/dead", "x", past).await;
    assert_eq!(store.get(&key("m/dead")).await, Ok(None));
    store.expire_due().await.unwrap();

    let mut copy: BTreeMap<Key, Item> = BTreeMap::new();
    for item in scan(store, &dir("m"), &dir("m").prefix_end()).await.unwrap() {
        copy.insert(item.key.clone(), item);
    }
    let mut watch = started(store, vec![dir("m")], Some(first.revision)).await;
    let mut seen_dead = false;
    while watch.resume_point() < store.revision().await.unwrap() {
        match event(&mut watch).await {
            Event::Init { .. } => panic!("a second Init"),
            Event::Put(item) => {
                seen_dead |= item.revision == born_dead;
                copy.insert(item.key.clone(), item);
            }
            Event::Delete { key, .. } => drop(copy.remove(&key)),
        }
    }
    assert!(seen_dead);
    let now = scan(store, &dir("m"), &dir("m").prefix_end()).await.unwrap();
    assert_eq!(copy.into_values().collect::<Vec<_>>(), now);
}

/// From any revision held: exactly what came after it. From the future: refused.
pub(super) async fn resume(world: World) {
    let store = &*world.store;
    for n in 1..=20_u64 {
        assert_eq!(put(store, &format!("w/{}", n % 3), format!("{n}")).await, n);
    }
    for from in [0, 1, 7, 19, 20] {
        let mut watch = started(store, vec![], Some(from)).await;
        for n in from + 1..=20 {
            assert_eq!(event(&mut watch).await, was_put(&format!("w/{}", n % 3), format!("{n}"), n, None));
            assert_eq!(watch.resume_point(), n);
        }
    }
    assert_eq!(store.watch(vec![], Some(21)).await.err(), Some(WatchError::Ahead { current: 20 }));
    // A dropped wait loses nothing.
    let mut watch = started(store, vec![], Some(18)).await;
    for _ in 0..100 {
        let waited = futures::FutureExt::now_or_never(watch.next());
        if let Some(got) = waited {
            assert_eq!(got.unwrap().unwrap().revision(), 19);
            break;
        }
    }
    while watch.resume_point() < 20 {
        event(&mut watch).await;
    }
}

/// Events of one batch share a revision; the resume point does not pass it before the last of them was handed out.
pub(super) async fn resume_inside_a_batch(world: World) {
    let store = &*world.store;
    put(store, "x", "0").await;
    let batch = Batch::new(None).put(key("a/1"), "1", None).put(key("b/1"), "2", None).put(key("a/2"), "3", None).delete(key("x"));
    let revision = store.commit(batch).await.unwrap().revision;
    let mut watch = started(store, vec![dir("a")], Some(1)).await;
    assert_eq!(event(&mut watch).await, was_put("a/1", "1", revision, None));
    assert_eq!(watch.resume_point(), 1);
    let mut again = started(store, vec![dir("a")], Some(watch.resume_point())).await;
    assert_eq!(event(&mut again).await, was_put("a/1", "1", revision, None));
    for watch in [&mut watch, &mut again] {
        assert_eq!(event(watch).await, was_put("a/2", "3", revision, None));
        assert_eq!(watch.resume_point(), revision);
    }
}

/// Only what begins with a prefix; redundant prefixes do not double events.
pub(super) async fn prefixes(world: World) {
    let store = &*world.store;
    let mut watch = started(store, vec![dir("p/a"), dir("p/a/b"), dir("p/c"), dir("p/a")], None).await;
    for name in ["p/a", "p/a/1", "p/a/b/2", "p/ab/3", "p/b/4", "p/c/5", "q"] {
        put(store, name, "x").await;
    }
    for expected in ["p/a/1", "p/a/b/2", "p/c/5"] {
        assert_eq!(event(&mut watch).await.key(), Some(&key(expected)));
    }
}

/// What one handle writes, the other's watch sees, in order, also when both write.
pub(super) async fn twin_sees_all(world: World) {
    let mut watches = [started(&*world.store, vec![], Some(0)).await, started(&*world.twin, vec![], Some(0)).await];
    for n in 0..20 {
        let store = if n % 3 == 0 { &world.twin } else { &world.store };
        put(&**store, &format!("t/{n}"), "x").await;
    }
    for watch in &mut watches {
        for n in 0..20 {
            assert_eq!(event(watch).await, was_put(&format!("t/{n}"), "x", n + 1, None));
        }
    }
}
