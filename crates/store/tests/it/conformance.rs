//! The conformance suite on each driver, and the reference model under random operations.

use crate::{clock, servers};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use store::conformance::{World, model, run, run_async};
use store::{Etcd, Memory, Postgres, Sqlite, memory};
use tempfile::TempDir;

fn in_memory(options: memory::Options) -> World {
    let clock = clock();
    let store = Memory::with(clock.clone(), options);
    let twin = Arc::new(store.twin());
    World { store: Arc::new(store), twin, clock }
}

/// Two handles on a new file in a directory that outlives them.
fn in_sqlite(dirs: &TempDir) -> World {
    let dir = tempfile::tempdir_in(dirs.path()).unwrap().keep();
    let clock = clock();
    let open = || Arc::new(Sqlite::open(&dir.join("sqlite.db"), clock.clone()).unwrap());
    World { store: open(), twin: open(), clock: clock.clone() }
}

/// Two handles on a new schema of the shared database.
async fn in_postgres(port: u16) -> World {
    let clock = clock();
    let mut options = servers::postgres_options(port, "conformance");
    options.poll = Duration::from_millis(5);
    let (store, twin) = (Postgres::open(options.clone(), clock.clone()).await, Postgres::open(options, clock.clone()).await);
    World { store: Arc::new(store.unwrap()), twin: Arc::new(twin.unwrap()), clock }
}

/// Two handles on a new prefix of the shared etcd.
async fn in_etcd() -> World {
    let clock = clock();
    let options = servers::etcd_options(servers::etcd().port, "/conformance/");
    let (store, twin) = (Etcd::open(options.clone(), clock.clone()).await, Etcd::open(options, clock.clone()).await);
    World { store: Arc::new(store.unwrap()), twin: Arc::new(twin.unwrap()), clock }
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    for seed in 1..=3 {
        run(|| in_memory(memory::Options { seed, ..memory::Options::default() })).await;
    }
}

#[tokio::test]
async fn easy_memory_keeps_the_contract() {
    run(|| in_memory(memory::Options { easy: true, ..memory::Options::default() })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_the_contract() {
    let dirs = tempfile::tempdir().unwrap();
    run(|| in_sqlite(&dirs)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_keeps_the_contract() {
    run_async(|| in_postgres(servers::postgres().port)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_behind_a_transaction_pool_keeps_the_contract() {
    run_async(|| in_postgres(servers::pgbouncer())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_the_contract() {
    run_async(in_etcd).await;
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn memory_equals_the_model(steps in prop::collection::vec(any::<model::Step>(), 1..80), seed: u64) {
        block_on(model::check(&in_memory(memory::Options { seed, ..memory::Options::default() }), &steps));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn sqlite_equals_the_model(steps in prop::collection::vec(any::<model::Step>(), 1..80)) {
        let dirs = tempfile::tempdir().unwrap();
        block_on(model::check(&in_sqlite(&dirs), &steps));
    }
}
