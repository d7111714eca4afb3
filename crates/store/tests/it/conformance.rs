//! The conformance suite on both drivers, and the reference model under random operations.

use crate::clock;
use proptest::prelude::*;
use std::sync::Arc;
use store::conformance::{World, model, run};
use store::{Memory, Sqlite, memory};
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
