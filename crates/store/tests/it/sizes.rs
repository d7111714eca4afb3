//! Large values, full batches and long ranges on every driver: they come back whole, and so do the watch's events of them.

use crate::{clock, key, servers};
use std::time::Duration;
use store::{Batch, Etcd, Memory, Postgres, Sqlite, Store, memory, scan};

/// `other` has seen nothing of it, so it reads all changes from where they are kept.
async fn come_whole(store: &dyn Store, other: &dyn Store) {
    for n in 0..24_u8 {
        store.commit(Batch::new(None).put(key(&format!("big/{n:02}")), vec![n; 1 << 20], None)).await.unwrap();
    }
    let large = scan(store, &key("big"), &key("bih")).await.unwrap();
    assert!(large.len() == 24 && large.iter().all(|item| item.value.len() == 1 << 20));
    let soon = store.clock().now().plus(Duration::from_secs(60));
    for start in 0..50 {
        // In etcd, with an entry for each expiry, that is more than one level of a transaction takes.
        let batch = (0..120).fold(Batch::new(None), |batch, n| batch.put(key(&format!("many/{start}/{n}")), "x", Some(soon)));
        store.commit(batch).await.unwrap();
    }
    assert_eq!(scan(store, &key("many"), &key("manz")).await.unwrap().len(), 6000);
    let last = store.commit(Batch::new(None).put(key("z"), "x", None).delete_range(key("many"), key("manz"))).await.unwrap().revision;
    assert_eq!(last, 24 + 50 + 1);
    let mut watch = other.watch(vec![], Some(0)).await.unwrap();
    let mut counts = [0; 76];
    while watch.resume_point() < last {
        let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap().unwrap();
        counts[usize::try_from(event.revision()).unwrap()] += 1;
    }
    assert!(
        counts[1..25].iter().all(|count| *count == 1) && counts[25..75].iter().all(|count| *count == 120) && counts[75] == 6001,
        "{counts:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_in_memory() {
    let store = Memory::with(clock(), memory::Options { easy: true, ..memory::Options::default() });
    come_whole(&store, &store.twin()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_in_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Sqlite::open(&dir.path().join("state.db"), clock()).unwrap();
    come_whole(&open(), &open()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_in_postgres() {
    let options = servers::postgres_options(servers::postgres().port, "sizes");
    let open = async || Postgres::open(options.clone(), clock()).await.unwrap();
    come_whole(&open().await, &open().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_in_etcd() {
    let options = servers::etcd_options(servers::etcd().port, "/sizes/");
    let open = async || Etcd::open(options.clone(), clock()).await.unwrap();
    come_whole(&open().await, &open().await).await;
}
