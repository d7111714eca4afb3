//! Several runners and several writers at once, on real threads: nothing is lost, nothing differs.

use crate::drivers::{DRIVERS, FIRST, dump, finalize, reset};
use crate::samples::{ALL, key, new_value, old_row, registry};
use migrate::{Limits, Mirror, Outcome, Runner, read_progress};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use store::{Batch, CommitError, Condition, Store};
use upgrade::migrate::{Goal, Migration, Row};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn size_of(migration: &Migration, name: &str, value: &[u8]) -> u64 {
    (0..10_000).find(|size| new_value(migration, name, *size) == value).unwrap()
}

/// Counts up, each time on what it read; returns how often. Rows come and go as well.
async fn count(store: Arc<dyn Store>, migration: Migration, stop: Arc<AtomicBool>) -> u64 {
    let mirror = Mirror::new(store, registry());
    let mut done = 0;
    for turn in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let name = NAMES[turn % NAMES.len()];
        let key = key(&migration, name);
        let item = mirror.get(&key).await.unwrap().unwrap();
        let next = new_value(&migration, name, size_of(&migration, name, &item.value) + 1);
        let batch = Batch::new(Some(FIRST)).require(Condition::RevisionIs(key.clone(), item.revision)).put(key, next, None);
        match mirror.commit(batch).await {
            Ok(_) => done += 1,
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        let passing = crate::samples::key(&migration, &format!("passing{}", turn % 3));
        let batch = Batch::new(Some(FIRST));
        let batch = if turn % 2 == 0 {
            batch.put(passing, new_value(&migration, &format!("passing{}", turn % 3), 3), None)
        } else {
            batch.delete(passing)
        };
        mirror.commit(batch).await.unwrap();
        tokio::task::yield_now().await;
    }
    done
}

async fn carry(store: Arc<dyn Store>, migration: Migration, holder: &'static str, goal: Goal) {
    let runner = Runner::new(store, migration, FIRST, holder, Limits { rows: 2, ..Limits::default() }).unwrap();
    loop {
        match runner.step(goal).await.unwrap() {
            Outcome::Done => break,
            Outcome::Waiting(wait) => panic!("it waits: {wait}"),
            Outcome::Moved { .. } | Outcome::Worked { .. } | Outcome::Lost | Outcome::Unclear(_) => {}
        }
        tokio::task::yield_now().await;
    }
}

async fn both(store: &Arc<dyn Store>, migration: Migration, goal: Goal) {
    let one = tokio::spawn(carry(Arc::clone(store), migration, "one", goal));
    let other = tokio::spawn(carry(Arc::clone(store), migration, "other", goal));
    one.await.unwrap();
    other.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_runners_and_two_writers_lose_nothing() {
    for driver in DRIVERS {
        for migration in ALL {
            let opened = (driver.open)().await;
            let store = &opened.store;
            let rows: Vec<_> = NAMES.iter().map(|name| old_row(&migration, name, 0)).collect();
            reset(store.as_ref(), &rows).await;
            let stop = Arc::new(AtomicBool::new(false));
            let writers: Vec<_> = (0..2).map(|_| tokio::spawn(count(Arc::clone(store), migration, Arc::clone(&stop)))).collect();
            for goal in [Goal::Up, Goal::Undo, Goal::Up] {
                both(store, migration, goal).await;
                let progress = read_progress(store.as_ref(), migration.id).await.unwrap().unwrap().resource.spec;
                assert_eq!((progress.rounds, progress.difference_count), (0, 0), "{}: {}", driver.name, migration.id);
            }
            finalize(store.as_ref()).await;
            both(store, migration, Goal::Contract).await;
            stop.store(true, Ordering::SeqCst);
            let mut counted = 0;
            for writer in writers {
                counted += writer.await.unwrap();
            }
            let mirror = Mirror::new(Arc::clone(store), registry());
            let mut sum = 0;
            for name in NAMES {
                let item = mirror.get(&key(&migration, name)).await.unwrap().unwrap();
                sum += size_of(&migration, name, &item.value);
            }
            assert_eq!(sum, counted, "{}: {}", driver.name, migration.id);
            let rows = dump(store.as_ref()).await;
            let (sources, derived): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(key, ..)| !key.starts_with("index/"));
            if !migration.is_one_to_one() {
                let forward = |(key, value, _): &(String, Vec<u8>, _)| migration.forward(&Row::new(key.clone(), value.clone())).unwrap();
                let mut expected: Vec<Row> = sources.iter().flat_map(forward).collect();
                expected.sort();
                let found: Vec<Row> = derived.into_iter().map(|(key, value, _)| Row::new(key, value)).collect();
                assert_eq!(found, expected);
            }
            assert!(counted > 0);
            store.close().await;
        }
    }
}
