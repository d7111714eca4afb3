//! Get, put, delete, ranges, sizes.

use super::{World, conflict, delete_if, dir, get, key, keys, put, put_if, text};
use crate::{Batch, BatchError, CommitError, Condition, Key, StoreError, WatchError, scan};

/// Update of a missing key fails, a second create fails, a second delete fails; long keys and binary values.
pub(super) async fn crud(world: World) {
    let store = &*world.store;
    assert_eq!(store.revision().await, Ok(0));
    assert_eq!(put_if(store, Condition::Exists(key("a")), "a", "x").await, conflict("a"));
    assert_eq!(get(store, "a").await, None);

    let created = put_if(store, Condition::Absent(key("a")), "a", "one").await.unwrap().revision;
    assert_eq!(put_if(store, Condition::Absent(key("a")), "a", "two").await, conflict("a"));
    let item = get(store, "a").await.unwrap();
    assert_eq!((item.value.as_ref(), item.revision, item.expires), (b"one".as_ref(), created, None));

    let updated = put_if(store, Condition::Exists(key("a")), "a", "three").await.unwrap().revision;
    assert!(updated > created);
    assert_eq!(text(store, "a").await.as_deref(), Some("three"));
    assert_eq!(get(store, "a").await.unwrap().revision, updated);

    assert!(delete_if(store, Condition::Exists(key("a")), "a").await.unwrap().revision > updated);
    assert_eq!(delete_if(store, Condition::Exists(key("a")), "a").await, conflict("a"));
    let before = store.revision().await.unwrap();
    let nothing = store.commit(Batch::new(None).delete(key("a"))).await.unwrap();
    assert_eq!(nothing.revision, before, "deleting nothing changes nothing");

    let long = format!("long/{}", "0123456789abcdef".repeat(61).split_at(965).0);
    assert_eq!(long.len(), 970);
    let binary: Vec<u8> = (0..1024_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    put(store, &long, binary.clone()).await;
    assert_eq!(get(store, &long).await.unwrap().value, binary);
}

/// Prefix, sub-prefix, explicit ends, pages of two, an empty tail.
pub(super) async fn query_range(world: World) {
    let store = &*world.store;
    for name in ["r/a/1", "r/a/2", "r/a/3", "r/b/1", "r/b-x/1", "r", "q", "s"] {
        put(store, name, name.to_owned()).await;
    }
    assert_eq!(keys(store, &dir("r")).await, ["r/a/1", "r/a/2", "r/a/3", "r/b-x/1", "r/b/1"]);
    assert_eq!(keys(store, &dir("r/a")).await, ["r/a/1", "r/a/2", "r/a/3"]);
    assert_eq!(keys(store, &dir("r/c")).await, [""; 0]);
    let names = |items: Vec<crate::Item>| items.iter().map(|item| item.key.to_string()).collect::<Vec<_>>();
    assert_eq!(names(scan(store, &key("r/a/2"), &key("r/b-x/1")).await.unwrap()), ["r/a/2", "r/a/3"], "the end is exclusive");
    assert_eq!(names(scan(store, &key("s"), &key("q")).await.unwrap()), [""; 0], "a range backwards is empty");
    assert_eq!(scan(store, &Key::first(), &Key::last()).await.unwrap().len(), 8);

    let (mut from, mut seen) = (dir("r"), Vec::new());
    for round in 0.. {
        assert!(round < 10, "the pages do not end");
        let page = store.range(&from, &dir("r").prefix_end(), 2).await.unwrap();
        assert!(page.items.len() <= 2);
        assert_eq!(page.revision, 8);
        seen.extend(page.items);
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(names(seen), ["r/a/1", "r/a/2", "r/a/3", "r/b-x/1", "r/b/1"]);
    let tail = store.range(&key("t"), &Key::last(), 2).await.unwrap();
    assert_eq!((tail.items.len(), tail.next), (0, None));
}

/// Only the sub-prefix goes; nothing to delete is no error.
pub(super) async fn delete_range(world: World) {
    let store = &*world.store;
    for name in ["d/a/1", "d/a/2", "d/ab/1", "d/a", "d/b/1"] {
        put(store, name, "x").await;
    }
    let all_of = |prefix: &Key| Batch::new(None).delete_range(prefix.clone(), prefix.prefix_end());
    let done = store.commit(all_of(&dir("d/a"))).await.unwrap();
    assert_eq!(done.revision, 6, "one revision for the whole range");
    assert_eq!(keys(store, &dir("d")).await, ["d/a", "d/ab/1", "d/b/1"]);
    assert_eq!(store.commit(all_of(&dir("d/a"))).await.unwrap().revision, 6);
}

/// Many puts at one revision; where the old system collapsed duplicates, this one refuses them by name.
pub(super) async fn put_range(world: World) {
    let store = &*world.store;
    let batch = (0..100).fold(Batch::new(None), |batch, n| batch.put(key(&format!("p/{n:03}")), format!("{n}"), None));
    let revision = store.commit(batch).await.unwrap().revision;
    let items = scan(store, &dir("p"), &dir("p").prefix_end()).await.unwrap();
    assert_eq!(items.len(), 100);
    assert!(items.iter().all(|item| item.revision == revision));
    let twice = Batch::new(None).put(key("p/x"), "1", None).put(key("p/y"), "2", None).put(key("p/x"), "3", None);
    assert_eq!(store.commit(twice).await, Err(CommitError::Invalid(BatchError::DuplicateKey(key("p/x")))));
    assert_eq!(get(store, "p/y").await, None);
}

/// Missing, right, stale; a failed one leaves the value.
pub(super) async fn compare_and_swap(world: World) {
    let store = &*world.store;
    assert_eq!(put_if(store, Condition::RevisionIs(key("c"), 1), "c", "x").await, conflict("c"));
    let first = put(store, "c", "one").await;
    let second = put_if(store, Condition::RevisionIs(key("c"), first), "c", "two").await.unwrap().revision;
    assert_eq!(put_if(store, Condition::RevisionIs(key("c"), first), "c", "three").await, conflict("c"));
    assert_eq!(put_if(store, Condition::RevisionIs(key("c"), second + 1), "c", "three").await, conflict("c"));
    assert_eq!(text(store, "c").await.as_deref(), Some("two"));
    assert_eq!(delete_if(store, Condition::RevisionIs(key("c"), first), "c").await, conflict("c"));
    assert!(delete_if(store, Condition::RevisionIs(key("c"), second), "c").await.is_ok());
    // The same value written again has another revision: nobody mistakes it for what he read.
    put(store, "c", "two").await;
    assert_eq!(put_if(store, Condition::RevisionIs(key("c"), second), "c", "four").await, conflict("c"));
}

/// Twenty items of 64 KiB and two of 1 MiB come back complete.
pub(super) async fn fetch_limit(world: World) {
    let store = &*world.store;
    for n in 0..20_u8 {
        put(store, &format!("f/{n:02}"), vec![n; 64 << 10]).await;
    }
    for n in 20..22_u8 {
        put(store, &format!("f/{n:02}"), vec![n; 1 << 20]).await;
    }
    let items = scan(store, &dir("f"), &dir("f").prefix_end()).await.unwrap();
    assert_eq!(items.len(), 22);
    for (n, item) in (0_u8..).zip(items) {
        assert_eq!(item.value.len(), if n < 20 { 64 << 10 } else { 1 << 20 });
        assert!(item.value.iter().all(|byte| *byte == n));
    }
}

/// Whatever a newer release wrote into a value comes back byte for byte; so do an empty value and all 256 bytes.
pub(super) async fn bytes_are_kept_verbatim(world: World) {
    let all: Vec<u8> = (0..=255).collect();
    let odd = br#"{ "unknown" : {"b":1.0,"a":[1e2,"\u00e4"]}, "kind":"x" , "kind":"y"}  "#;
    for (name, value) in [("v/empty", b"".as_slice()), ("v/all", &all), ("v/odd", odd), ("v/zeros", &[0; 64])] {
        let revision = put(&*world.store, name, value.to_vec()).await;
        for store in [&world.store, &world.twin] {
            let item = get(&**store, name).await.unwrap();
            assert_eq!((item.value.as_ref(), item.revision), (value, revision));
        }
    }
}

/// After closing, every operation says so, and the other handle goes on.
pub(super) async fn closed_is_closed(world: World) {
    let store = &*world.store;
    put(store, "k", "v").await;
    store.close().await;
    store.close().await;
    assert_eq!(store.get(&key("k")).await, Err(StoreError::Closed));
    assert_eq!(store.range(&Key::first(), &Key::last(), 1).await, Err(StoreError::Closed));
    assert_eq!(store.commit(Batch::new(None).delete(key("k"))).await, Err(CommitError::Store(StoreError::Closed)));
    assert_eq!(store.revision().await, Err(StoreError::Closed));
    assert_eq!(store.expire_due().await, Err(StoreError::Closed));
    assert_eq!(store.watch(Vec::new(), None).await.err(), Some(WatchError::Store(StoreError::Closed)));
    let later = store.clock().now();
    assert_eq!(store.keep_alive(&key("k"), None, later, None).await, Err(CommitError::Store(StoreError::Closed)));
    assert_eq!(text(&*world.twin, "k").await.as_deref(), Some("v"));
    put(&*world.twin, "k", "w").await;
}
