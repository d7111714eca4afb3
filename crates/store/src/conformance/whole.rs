//! The store as a whole: read at one moment, and filled from nothing.

use super::{World, conflict, epoch, key, put, put_until, text};
use crate::control::{self, Restoring};
use crate::{Batch, CommitError, Condition, Item, Key, Load, LoadError, MAX_VALUE, Snapshot, StoreError, check_empty, scan};
use std::sync::Arc;
use std::time::Duration;
use types::ControlRecord;

async fn all(snapshot: &mut Snapshot) -> Vec<Item> {
    let mut items = Vec::new();
    while let Some(page) = snapshot.page().await.expect("a page") {
        assert!(!page.is_empty());
        items.extend(page);
    }
    assert_eq!(snapshot.page().await, Ok(None));
    items
}

/// What is written, deleted or expires behind the moment is not seen, however late the pages are read; two do not disturb each other.
pub(super) async fn snapshot_shows_one_moment(world: World) {
    let store = &*world.store;
    assert!(all(&mut store.snapshot().await.expect("a snapshot")).await.is_empty());
    for n in 0..40 {
        put(store, &format!("s/{n:02}"), format!("{n}")).await;
    }
    put_until(store, "s/soon", "x", world.clock_after(Duration::from_secs(5))).await;
    put_until(store, "s/gone", "x", world.clock_after(Duration::from_secs(1))).await;
    for n in 0..3 {
        put(store, &format!("s/large/{n}"), vec![n; MAX_VALUE]).await;
    }
    world.clock.advance(Duration::from_secs(2));
    let before = scan(store, &Key::first(), &Key::last()).await.expect("items");
    assert_eq!(before.len(), 44, "without the one that expired");

    let mut one = store.snapshot().await.expect("a snapshot");
    assert_eq!(one.revision(), store.revision().await.expect("a revision"));
    let mut two = world.twin.snapshot().await.expect("a snapshot by the other handle");
    for n in (0..40).step_by(2) {
        put(store, &format!("s/{n:02}"), "changed").await;
        store.commit(Batch::new(None).delete(key(&format!("s/{:02}", n + 1)))).await.expect("a delete");
        put(&*world.twin, &format!("s/{n:02}/new"), "new").await;
    }
    world.clock.advance(Duration::from_secs(10));
    store.expire_due().await.expect("expiry");
    let (seen, also) = (all(&mut one).await, all(&mut two).await);
    assert!(seen == before && also == before, "the moment moved");
    let after = all(&mut store.snapshot().await.expect("a snapshot")).await;
    assert_eq!(after, scan(store, &Key::first(), &Key::last()).await.expect("items"));
    drop(store.snapshot().await.expect("one that is never read"));
    assert!(put(store, "s/after", "x").await > 0, "writes go on");
}

/// A handle that is closed gives no snapshot, and one that is half read says so.
pub(super) async fn snapshot_ends_with_its_store(world: World) {
    put(&*world.store, "a", "1").await;
    let mut half = world.store.snapshot().await.expect("a snapshot");
    world.store.close().await;
    assert_eq!(world.store.snapshot().await.err(), Some(StoreError::Closed));
    // What had been read in advance may still come.
    while let Ok(Some(_)) = half.page().await {}
    assert_eq!(half.page().await, Ok(None));
}

fn record(epoch: u64) -> ControlRecord {
    let json = serde_json::json!({"format": 1, "cluster_id": "00000000-0000-0000-0000-000000000007", "epoch": epoch,
        "min_writer_epoch": epoch, "cluster_version": {"major": 1, "step": 0}, "windows": {}, "window_gen": 1});
    serde_json::from_value(json).expect("a record")
}

/// Fences at once, shows a cluster only at the end, keeps what expires, refuses what is not empty.
pub(super) async fn load_fills_an_empty_store(world: World) {
    let (store, twin) = (&world.store, &*world.twin);
    assert_eq!(check_empty(twin).await, Ok(false));
    let mut load = Load::begin(Arc::clone(store), 9, "backup x").await.expect("an empty store");
    let zombie = |epoch| Batch::new(epoch).put(key("zombie"), "x", None);
    assert_eq!(twin.commit(zombie(epoch(8))).await, Err(CommitError::Fenced { min: 9 }));
    let why = control::read(twin).await.expect_err("no record").to_string();
    assert!(why.contains("backup x") && why.contains("tctl backup restore"), "{why}");
    let soon = world.clock_after(Duration::from_secs(60));
    for n in 0..250_usize {
        load.add(key(&format!("l/{n:03}")), vec![7; n * 100].into(), (n % 10 == 0).then_some(soon)).await.expect("an item");
    }
    assert!(matches!(load.add(Key::control(), "{}".into(), None).await, Err(LoadError::Commit(_))));
    load.finish(&record(9)).await.expect("the end");
    assert_eq!(control::read(twin).await.expect("a record").expect("a record").record, record(9));
    let items = scan(twin, &key("l"), &key("m")).await.expect("items");
    assert_eq!(items.len(), 250);
    assert!(items.iter().enumerate().all(|(n, item)| item.value.len() == n * 100 && item.expires.is_some() == (n % 10 == 0)));
    assert_eq!(twin.commit(zombie(epoch(8))).await, Err(CommitError::Fenced { min: 9 }));
    assert!(twin.commit(zombie(epoch(9))).await.is_ok());
    assert_eq!(check_empty(twin).await, Err(LoadError::NotEmpty { key: Key::control() }));
    assert!(matches!(Load::begin(Arc::clone(store), 20, "again").await, Err(LoadError::NotEmpty { .. })));
}

/// One that broke off is begun again from nothing; the one before it can do nothing more; the fence never goes back.
pub(super) async fn load_that_broke_off_is_begun_again(world: World) {
    let (store, twin) = (&world.store, &world.twin);
    let mut first = Load::begin(Arc::clone(store), 30, "one").await.expect("an empty store");
    for n in 0..220 {
        first.add(key(&format!("a/{n:03}")), "first".into(), None).await.expect("an item");
    }
    assert_eq!(check_empty(&**twin).await, Ok(true));
    let mut second = Load::begin(Arc::clone(twin), 20, "two").await.expect("the rest of a load");
    assert_eq!(scan(&**store, &Key::first(), &Key::last()).await.expect("items").len(), 1, "only the note is left");
    let note = store.get(&Key::control()).await.expect("a note").expect("a note");
    assert_eq!(Restoring::parse(&note.value).map(|note| note.epoch()), Some(30));
    first.add(key("z"), "first".into(), None).await.expect("it waits for its batch");
    assert_eq!(first.settle().await, Err(LoadError::Overtaken));
    assert_eq!(first.finish(&record(30)).await, Err(LoadError::Overtaken));
    second.add(key("b"), "second".into(), None).await.expect("an item");
    second.finish(&record(30)).await.expect("the end");
    assert_eq!(text(&**store, "b").await.as_deref(), Some("second"));
    assert_eq!(text(&**store, "a/000").await, None);

    let batch = Batch::new(None).require(Condition::Absent(Key::control())).put(key("c"), "x", None);
    assert_eq!(store.commit(batch).await, conflict("control"));
}
