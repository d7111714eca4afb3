//! SQLite across processes and restarts: what was acknowledged is there, also after `kill -9`.

use crate::{clock, key};
use std::path::Path;
use std::time::Duration;
use store::{Batch, CommitError, Event, Key, Sqlite, Store, WatchError, WriterEpoch, scan, sqlite};

async fn put(store: &Sqlite, at: &str, value: &str) -> u64 {
    store.commit(Batch::new(None).put(key(at), value.to_owned(), None)).await.unwrap().revision
}
fn open(path: &Path) -> Sqlite {
    Sqlite::open(path, clock()).unwrap()
}

#[tokio::test]
async fn everything_is_there_after_reopening_and_watches_resume() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sqlite.db");
    let store = open(&path);
    for n in 1..=10 {
        put(&store, &format!("k/{}", n % 4), &n.to_string()).await;
    }
    let expires = store.clock().now().plus(Duration::from_secs(5));
    store.commit(Batch::new(None).put(key("lease"), "x", Some(expires)).delete(key("k/1"))).await.unwrap();
    let before = scan(&store, &Key::first(), &Key::last()).await.unwrap();
    store.close().await;
    assert!(!dir.path().join("sqlite.db-wal").exists(), "closing leaves one file");
    drop(store);

    let store = open(&path);
    assert_eq!(store.revision().await, Ok(11));
    assert_eq!(scan(&store, &Key::first(), &Key::last()).await.unwrap(), before);
    let mut watch = store.watch(vec![], Some(7)).await.unwrap();
    assert_eq!(watch.next().await, Some(Ok(Event::Init { revision: 7 })));
    for expected in [8, 9, 10, 11, 11] {
        assert_eq!(watch.next().await.unwrap().unwrap().revision(), expected);
    }
    assert_eq!(put(&store, "k/1", "new").await, 12);
    assert_eq!(watch.next().await.unwrap().unwrap().revision(), 12);
}

#[tokio::test]
async fn a_watcher_that_falls_behind_another_process_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sqlite.db");
    let options = sqlite::Options { history: 8, ..sqlite::Options::default() };
    let (store, other) = (open(&path), Sqlite::open_with(&path, clock(), options).unwrap());
    let mut watch = store.watch(vec![], None).await.unwrap();
    assert_eq!(watch.next().await, Some(Ok(Event::Init { revision: 0 })));
    for n in 0..50 {
        put(&other, "k", &n.to_string()).await;
    }
    let told = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap();
    assert!(matches!(told, Some(Err(WatchError::Lagged { .. }))), "{told:?}");
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn the_fence_holds_across_processes_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sqlite.db");
    let zombie = open(&path);
    let write = |epoch: u64| Batch::new(Some(WriterEpoch(epoch))).put(key("k"), "v", None);
    zombie.commit(write(1)).await.unwrap();
    let successor = open(&path);
    put(&successor, "control", r#"{"min_writer_epoch":2}"#).await;
    successor.close().await;
    assert_eq!(zombie.commit(write(1)).await, Err(CommitError::Fenced { min: 2 }));
    drop(zombie);
    let reopened = open(&path);
    assert_eq!(reopened.commit(write(1)).await, Err(CommitError::Fenced { min: 2 }));
    reopened.commit(write(2)).await.unwrap();
}
