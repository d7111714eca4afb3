//! Servers whose disk is full, slow, or stands still: the error says which, nothing is lost, and when the disk is well so is the store.

use crate::load::Load;
use crate::servers::{self, Etcd as EtcdServer, Pg, Running};
use crate::{clock, create, key, put};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Batch, CommitError, Etcd, Postgres, Store, StoreError, etcd, postgres};

/// A value that PostgreSQL cannot compress, so that it lies in the table of large values.
fn noise(seed: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..64 << 10).map(|_| rng.random()).collect()
}

fn large(at: &str, seed: u64) -> Batch {
    Batch::new(None).put(key(at), noise(seed), None)
}

/// The disk is full for one file: that of large values is a link to the device that is always full, until there is room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_postgres_is_named_and_refuses_only_what_does_not_fit() {
    let mut server = Pg::start();
    let mut options = servers::postgres_options(server.port, "full");
    options.stall = Duration::from_secs(5);
    Postgres::open(options.clone(), clock()).await.unwrap().close().await;
    let path = format!("SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE oid = '{}.item'::regclass", options.schema);
    let file = server.dir.join(server.sql(&path).trim());
    server.running.stop(rustix::process::Signal::INT);
    std::fs::rename(&file, file.with_extension("kept")).unwrap();
    std::os::unix::fs::symlink("/dev/full", &file).unwrap();
    server.restart();

    let store: Arc<dyn Store> = Arc::new(Postgres::open(options.clone(), clock()).await.unwrap());
    put(&store, "before").await;
    let (one, big, two) = futures::join!(store.commit(create("one")), store.commit(large("big", 1)), store.commit(create("two")));
    let error = big.unwrap_err();
    assert!(matches!(error, CommitError::Store(StoreError::Full { .. })), "{error:?}");
    assert!(error.to_string().contains("no space left for the store PostgreSQL"), "{error}");
    assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
    assert_eq!(store.get(&key("big")).await, Ok(None));
    assert_eq!(store.revision().await, Ok(3), "what was refused was not done");

    server.running.stop(rustix::process::Signal::INT);
    std::fs::rename(file.with_extension("kept"), &file).unwrap();
    server.restart();
    let revision = store.commit(large("big", 1)).await.unwrap().revision;
    assert_eq!(revision, 4);
    assert_eq!(store.get(&key("big")).await.unwrap().unwrap().value, noise(1));
}

/// Short stops under load, then one for longer than a hasty store of the same server waits.
async fn stands_still(running: &Running, load: Load, hasty: Arc<dyn Store>) {
    put(&hasty, "warm").await;
    for millis in [100, 300, 1500] {
        load.until(20).await;
        running.freeze(true);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        running.freeze(false);
    }
    load.until(20).await;
    running.freeze(true);
    let begun = Instant::now();
    let (read, written) = futures::join!(async { hasty.get(&key("warm")).await }, hasty.commit(create("still")));
    let took = begun.elapsed();
    running.freeze(false);
    for said in [read.unwrap_err().to_string(), written.as_ref().unwrap_err().to_string()] {
        assert!(said.contains("no answer in time: the server, its disk or the network stands still"), "{said}");
    }
    assert!(took < Duration::from_secs(8), "{took:?}");
    let there = hasty.get(&key("still")).await.unwrap().is_some();
    match written.unwrap_err() {
        CommitError::Ambiguous(_) => {}
        CommitError::Store(StoreError::Unreachable { .. }) => assert!(!there, "said not to be done"),
        other => panic!("{other:?}"),
    }
    assert_eq!(load.finish().await, 0, "what happened to each write is known");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_of_postgres_that_is_slow_or_stands_still_loses_nothing() {
    let mut server = Pg::start();
    // Each flush of the log takes a tenth of a second.
    server.set("fsync = on\ncommit_delay = 100000\ncommit_siblings = 0\n");
    let options = postgres::Options { stall: Duration::from_millis(500), ..servers::postgres_options(server.port, "still") };
    let open = async |options: &postgres::Options| Arc::new(Postgres::open(options.clone(), clock()).await.unwrap()) as Arc<dyn Store>;
    let (store, other) = (open(&options).await, open(&options).await);
    let load = Load::start(store, &other).await;
    let hasty = servers::postgres_options(server.port, "hasty");
    let hasty = open(&postgres::Options { patience: Duration::from_millis(300), stall: options.stall, ..hasty }).await;
    stands_still(&server.running, load, hasty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_of_etcd_that_stands_still_loses_nothing() {
    let server = EtcdServer::start(&[]);
    let options = etcd::Options { answer: Duration::from_secs(1), ..servers::etcd_options(server.port, "/still/") };
    let open = async |options: &etcd::Options| Arc::new(Etcd::open(options.clone(), clock()).await.unwrap()) as Arc<dyn Store>;
    let (store, other) = (open(&options).await, open(&options).await);
    let load = Load::start(store, &other).await;
    let hasty = servers::etcd_options(server.port, "/hasty/");
    let hasty = open(&etcd::Options { patience: Duration::from_millis(300), answer: options.answer, ..hasty }).await;
    stands_still(&server.running, load, hasty).await;
}
