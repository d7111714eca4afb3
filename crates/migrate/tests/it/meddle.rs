//! Somebody who does something between a runner's read and its commit, each time.

use crate::between::{Between, Through};
use crate::drivers::{DRIVERS, FIRST, MEMORY, finalize, govern, reset};
use crate::samples::{ALL, RESHAPED, key, new_value, old_row, registry};
use futures::future::{BoxFuture, FutureExt};
use migrate::{Limits, Mirror, Outcome, Runner, read_progress};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use store::{Batch, CommitError, Committed, Store};
use types::control::Window;
use upgrade::migrate::{Class, Goal, Phase, State, Wait};

type Deed = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Does a deed before each commit.
struct Meddler(Deed);

impl Between for Meddler {
    fn commit<'a>(&'a self, inner: &'a dyn Store, batch: Batch) -> BoxFuture<'a, Result<Committed, CommitError>> {
        async move {
            (self.0)().await;
            inner.commit(batch).await
        }
        .boxed()
    }
}

fn runner(inner: &Arc<dyn Store>, migration: upgrade::migrate::Migration, deed: Deed) -> Runner {
    Runner::new(Through::new(inner, Meddler(deed)), migration, FIRST, "one", Limits { rows: 2, ..Limits::default() }).unwrap()
}

#[tokio::test]
async fn a_row_written_between_the_read_and_the_commit_is_never_overwritten() {
    for driver in DRIVERS {
        for migration in ALL {
            let opened = (driver.open)().await;
            let store = &opened.store;
            let names = ["a", "b", "c", "d", "e", "f"];
            reset(store.as_ref(), &names.map(|name| old_row(&migration, name, 1))).await;
            let mirror = Arc::new(Mirror::new(Arc::clone(store), registry()));
            let turn = Arc::new(AtomicU64::new(0));
            let (writer, turns) = (Arc::clone(&mirror), Arc::clone(&turn));
            let deed: Deed = Box::new(move || {
                let (mirror, n) = (Arc::clone(&writer), turns.fetch_add(1, Ordering::SeqCst));
                async move {
                    // Each row in turn, so that now and then a page is left alone.
                    let name = names[usize::try_from(n).unwrap() % names.len()];
                    let put = Batch::new(Some(FIRST)).put(key(&migration, name), new_value(&migration, name, 10 + n), None);
                    if n.is_multiple_of(4) {
                        mirror.commit(Batch::new(Some(FIRST)).delete(key(&migration, name))).await.unwrap()
                    } else {
                        mirror.commit(put).await.unwrap()
                    };
                }
                .boxed()
            });
            let runner = runner(store, migration, deed);
            for goal in [Goal::Up, Goal::Undo, Goal::Up] {
                assert_eq!(runner.run(goal).await.unwrap(), Outcome::Done, "{}: {}", driver.name, migration.id);
                let progress = read_progress(store.as_ref(), migration.id).await.unwrap().unwrap().resource.spec;
                assert_eq!((progress.rounds, progress.difference_count), (0, 0), "{}: {}", driver.name, migration.id);
            }
            store.close().await;
        }
    }
}

#[tokio::test]
async fn a_window_widened_between_the_read_and_the_commit_keeps_the_old_writers_truth() {
    let opened = (MEMORY.open)().await;
    let store = &opened.store;
    reset(store.as_ref(), &[old_row(&RESHAPED, "a", 1)]).await;
    let mirror = Mirror::new(Arc::clone(store), registry());
    let plain = Runner::new(Arc::clone(store), RESHAPED, FIRST, "one", Limits::default()).unwrap();
    for _ in 0..2 {
        plain.step(Goal::Up).await.unwrap();
    }
    let inner = Arc::clone(store);
    let deed: Deed = Box::new(move || {
        let store = Arc::clone(&inner);
        async move { govern(store.as_ref(), |record| drop(record.windows.insert("auth".into(), Window::new(8, 9)))).await }.boxed()
    });
    assert_eq!(runner(store, RESHAPED, deed).step(Goal::Up).await.unwrap(), Outcome::Lost);
    assert_eq!(mirror.state(RESHAPED.id).await.unwrap(), Some(State::Expanded));
}

#[tokio::test]
async fn a_batch_whose_rows_were_written_meanwhile_comes_to_nothing() {
    let opened = (MEMORY.open)().await;
    let store = &opened.store;
    for migration in ALL {
        for phase in [Phase::Copy, Phase::Sweep] {
            reset(store.as_ref(), &[old_row(&migration, "a", 1)]).await;
            let plain = Runner::new(Arc::clone(store), migration, FIRST, "one", Limits::default()).unwrap();
            let goal = if phase == Phase::Copy { Goal::Up } else { Goal::Contract };
            let at = async || read_progress(store.as_ref(), migration.id).await.unwrap().map(|kept| kept.resource.spec.phase);
            while at().await != Some(phase) {
                if plain.step(goal).await.unwrap() == Outcome::Waiting(Wait::NotFinal) {
                    finalize(store.as_ref()).await;
                }
            }
            let mirror = Arc::new(Mirror::new(Arc::clone(store), registry()));
            let writer = Arc::clone(&mirror);
            let deed: Deed = Box::new(move || {
                let mirror = Arc::clone(&writer);
                let put = Batch::new(Some(FIRST)).put(key(&migration, "a"), new_value(&migration, "a", 2), None);
                async move {
                    mirror.commit(put).await.unwrap();
                }
                .boxed()
            });
            let outcome = runner(store, migration, deed).step(goal).await.unwrap();
            // A moved row is at its new place only, and an index has nothing to sweep: there a writer is not in the way.
            let apart = phase == Phase::Sweep && migration.class() != Class::Reshaped && migration.class() != Class::Encoding;
            assert_eq!(outcome == Outcome::Lost, !apart, "{} {phase:?}: {outcome:?}", migration.id);
            let shown = mirror.get(&key(&migration, "a")).await.unwrap().unwrap();
            assert_eq!(shown.value, new_value(&migration, "a", 2));
            assert!(matches!(plain.run(goal).await.unwrap(), Outcome::Done));
            assert_eq!(mirror.get(&key(&migration, "a")).await.unwrap().unwrap().value, new_value(&migration, "a", 2));
        }
    }
}
