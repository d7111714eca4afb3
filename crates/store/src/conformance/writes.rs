//! Conditional batches, their limits, the fence, and two handles at once.

use super::{World, conflict, epoch, get, key, keys, put, text};
use crate::{Batch, BatchError, CommitError, Condition, Key, MAX_OPS, MAX_VALUE, Store};
use std::sync::Arc;

/// One condition that fails and nothing is done; the error names its key, the first of several.
pub(super) async fn batches_are_all_or_nothing(world: World) {
    let store = &*world.store;
    let a = put(store, "a", "1").await;
    put(store, "b", "1").await;
    let bad = [
        (Condition::Absent(key("a")), "a"),
        (Condition::Exists(key("c")), "c"),
        (Condition::RevisionIs(key("b"), a), "b"),
        (Condition::RevisionIs(key("c"), 0), "c"),
    ];
    for (condition, named) in bad {
        let batch = Batch::new(None)
            .require(Condition::RevisionIs(key("a"), a))
            .require(condition)
            .require(Condition::Absent(key("b")))
            .put(key("a"), "2", None)
            .put(key("c"), "2", None)
            .delete(key("b"));
        assert_eq!(store.commit(batch).await, conflict(named));
    }
    assert_eq!(store.revision().await, Ok(2));
    let good = Batch::new(None)
        .require(Condition::RevisionIs(key("a"), a))
        .require(Condition::Exists(key("b")))
        .require(Condition::Absent(key("c")))
        .put(key("a"), "2", None)
        .put(key("c"), "2", None)
        .delete_range(key("b"), key("c"));
    assert_eq!(store.commit(good).await.map(|done| done.revision), Ok(3));
    assert_eq!((get(store, "a").await.unwrap().revision, get(store, "c").await.unwrap().revision), (3, 3));
    assert_eq!(get(store, "b").await, None);
    let only_asks = Batch::new(None).require(Condition::Exists(key("a")));
    assert_eq!(store.commit(only_asks).await.map(|done| done.revision), Ok(3));
}

/// What the narrowest driver could not take, all refuse, with a name; what it can take, all take.
pub(super) async fn limits_are_refused_by_name(world: World) {
    let store = &*world.store;
    let many = |count: usize| (0..count).fold(Batch::new(None), |batch, n| batch.put(key(&format!("m/{n}")), "x", None));
    let refused = |error: BatchError| Err(CommitError::Invalid(error));
    assert_eq!(store.commit(many(MAX_OPS + 1)).await, refused(BatchError::TooManyOps(MAX_OPS + 1)));
    assert!(store.commit(many(MAX_OPS)).await.is_ok());
    let big = |len: usize| Batch::new(None).put(key("big"), vec![7; len], None);
    assert_eq!(store.commit(big(MAX_VALUE + 1)).await, refused(BatchError::ValueTooLarge { key: key("big"), len: MAX_VALUE + 1 }));
    assert!(store.commit(big(MAX_VALUE)).await.is_ok());
    assert_eq!(get(store, "big").await.unwrap().value.len(), MAX_VALUE);
    assert!(matches!(store.commit(Batch::new(None).put(Key::first(), "x", None)).await, Err(CommitError::Invalid(BatchError::BadKey(_)))));
    assert!(matches!(store.commit(Batch::new(None).delete(Key::last())).await, Err(CommitError::Invalid(BatchError::BadKey(_)))));
    let everything = Batch::new(None).delete_range(Key::first(), Key::last());
    assert_eq!(store.commit(everything).await, refused(BatchError::Control));
}

/// A writer that wakes up after it was fenced cannot write, by either handle, in any way; its successor can.
pub(super) async fn fencing(world: World) {
    let (store, zombie) = (&*world.store, &*world.twin);
    let control = |min: u64| format!(r#"{{"format":1,"epoch":9,"min_writer_epoch":{min},"unknown":[1]}}"#);
    let write = |by: u64| Batch::new(epoch(by)).put(key("f"), format!("by {by}"), None);
    zombie.commit(write(3)).await.expect("without a control record nobody is fenced");
    store.commit(Batch::new(epoch(3)).put(Key::control(), control(3), None)).await.unwrap();
    zombie.commit(write(3)).await.expect("its own epoch may write");
    // The change of guard itself is judged by the old record.
    store.commit(Batch::new(epoch(3)).put(Key::control(), control(4), None)).await.unwrap();
    let before = store.revision().await.unwrap();
    let fenced = Err(CommitError::Fenced { min: 4 });
    let later = store.clock().now().plus(std::time::Duration::from_secs(9));
    assert_eq!(zombie.commit(write(3)).await, fenced);
    assert_eq!(zombie.commit(Batch::new(epoch(0)).delete(key("f"))).await, fenced);
    assert_eq!(zombie.commit(Batch::new(epoch(3)).put(Key::control(), control(3), None)).await, fenced, "it cannot unfence itself");
    assert_eq!(zombie.keep_alive(&key("f"), None, later, epoch(3)).await, fenced);
    let also_wrong = Batch::new(epoch(3)).require(Condition::Absent(key("f")));
    assert_eq!(zombie.commit(also_wrong).await, fenced, "the fence is looked at before the conditions");
    assert_eq!(store.revision().await, Ok(before));
    zombie.commit(write(4)).await.expect("the new epoch may write");
    zombie.commit(write(5)).await.expect("a later one too");
    assert_eq!(text(store, "f").await.as_deref(), Some("by 5"));

    put(store, "control", "{\"min_writer_epoch\":\"soon\"}").await;
    assert!(matches!(zombie.commit(write(9)).await, Err(CommitError::Control(_))), "an unreadable record admits nobody");
}

/// Fifty rounds of everything at once on one key from two handles: only allowed errors, never a torn value.
pub(super) async fn concurrent_operations(world: World) {
    async fn swap(store: &dyn Store, at: &str, fill: u8) {
        let Some(item) = get(store, at).await else { return };
        whole(&item.value);
        let batch = Batch::new(None).require(Condition::RevisionIs(key(at), item.revision)).put(key(at), vec![fill; 8 << 10], None);
        allowed(store.commit(batch).await.map(drop));
    }
    fn allowed(result: Result<(), CommitError>) {
        assert!(matches!(result, Ok(()) | Err(CommitError::Conflict { .. })), "{result:?}");
    }
    fn whole(value: &[u8]) {
        assert!(value.len() == 8 << 10 && value.iter().all(|byte| Some(byte) == value.first()), "a torn value");
    }
    for round in 0..50_u8 {
        let one = async {
            put(&*world.store, "k", vec![round; 8 << 10]).await;
            swap(&*world.store, "k", 100 + round).await;
            get(&*world.store, "k").await.inspect(|item| whole(&item.value));
        };
        let two = async {
            let create = Batch::new(None).require(Condition::Absent(key("k"))).put(key("k"), vec![200; 8 << 10], None);
            allowed(world.twin.commit(create).await.map(drop));
            swap(&*world.twin, "k", 201).await;
            allowed(world.twin.commit(Batch::new(None).delete(key("k"))).await.map(drop));
        };
        let three = async {
            swap(&*world.twin, "k", 202).await;
            let delete = Batch::new(None).require(Condition::Exists(key("k"))).delete(key("k"));
            allowed(world.store.commit(delete).await.map(drop));
        };
        futures::join!(one, two, three);
        if let Some(item) = get(&*world.twin, "k").await {
            whole(&item.value);
        }
    }
    assert!(keys(&*world.store, &Key::first()).await.len() <= 1);
}

/// Eight tasks on two handles add to one number by compare-and-swap: no addition is lost or done twice.
pub(super) async fn counters_lose_nothing(world: World) {
    async fn add(store: Arc<dyn Store>, times: usize) -> usize {
        let mut done = 0;
        while done < times {
            let item = get(&*store, "n").await.unwrap();
            let next: u64 = std::str::from_utf8(&item.value).unwrap().parse::<u64>().unwrap() + 1;
            let batch = Batch::new(None).require(Condition::RevisionIs(key("n"), item.revision)).put(key("n"), next.to_string(), None);
            match store.commit(batch).await {
                Ok(_) => done += 1,
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        done
    }
    put(&*world.store, "n", "0").await;
    let adders = (0..8).map(|n| add(Arc::clone(if n % 2 == 0 { &world.store } else { &world.twin }), 10));
    futures::future::join_all(adders).await;
    assert_eq!(text(&*world.twin, "n").await.as_deref(), Some("80"));
    assert_eq!(world.store.revision().await, Ok(81));
}
