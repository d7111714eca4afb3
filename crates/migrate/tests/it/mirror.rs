//! The mirror from outside: stale views, conditions, keep-alives, ranges, watches.

use crate::drivers::{DRIVERS, FIRST, MEMORY, finalize, reset};
use crate::fault::Fault;
use crate::samples::{ALL, INDEX, MOVED, RESHAPED, key, new_value, old_row, registry};
use migrate::{Limits, Mirror, Outcome, Runner};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{Batch, BatchError, CommitError, Condition, Event, Key, Store, WatchError, scan};
use types::Time;
use upgrade::migrate::{Goal, Migration, State};

fn rows(migration: &Migration, count: u64) -> Vec<(String, Vec<u8>)> {
    (0..count).map(|n| old_row(migration, &format!("r{n:02}"), n)).collect()
}

fn runner(store: &Arc<dyn Store>, migration: Migration) -> Runner {
    Runner::new(Arc::clone(store), migration, FIRST, "one", Limits { rows: 3, ..Limits::default() }).unwrap()
}

fn put(migration: &Migration, name: &str, size: u64) -> Batch {
    Batch::new(Some(FIRST)).put(key(migration, name), new_value(migration, name, size), None)
}

#[tokio::test]
async fn a_writer_with_a_stale_view_is_refused_by_the_store_and_looks_again() {
    for driver in DRIVERS {
        for migration in ALL {
            let opened = (driver.open)().await;
            let store = &opened.store;
            reset(store.as_ref(), &rows(&migration, 3)).await;
            let watched = Fault::none(store);
            let mirror = Mirror::new(watched.clone(), registry());
            let runner = runner(store, migration);
            let (mut n, mut refused) = (10, 0);
            let mut stages = vec![Goal::Up, Goal::Undo, Goal::Up, Goal::Contract].into_iter();
            let mut goal = stages.next().unwrap();
            loop {
                // A view of the state before the step, and a write after it.
                mirror.state(migration.id).await.unwrap();
                let outcome = runner.step(goal).await.unwrap();
                n += 1;
                mirror.commit(put(&migration, "r01", n)).await.unwrap();
                let conflicts = watched.conflicts().len();
                let moved = matches!(outcome, Outcome::Moved { .. });
                let ended = matches!(outcome, Outcome::Done);
                assert!(!moved || conflicts == refused + 1, "{}: {outcome:?} let a stale writer through", migration.id);
                refused = conflicts;
                let shown = mirror.get(&key(&migration, "r01")).await.unwrap().unwrap();
                assert_eq!(shown.value, new_value(&migration, "r01", n));
                if ended {
                    match stages.next() {
                        Some(next) => goal = next,
                        None => break,
                    }
                    if goal == Goal::Contract {
                        finalize(store.as_ref()).await;
                    }
                }
            }
            assert!(watched.conflicts().iter().all(|key| key == &format!("migration/{}/journal", migration.id)));
            store.close().await;
        }
    }
}

#[tokio::test]
async fn a_stale_reader_never_sees_the_side_that_was_given_up() {
    let opened = (MEMORY.open)().await;
    let store = &opened.store;
    for migration in [RESHAPED, MOVED] {
        reset(store.as_ref(), &rows(&migration, 4)).await;
        let sleeper = Mirror::new(Arc::clone(store), registry());
        let writer = Mirror::new(Arc::clone(store), registry());
        assert!(sleeper.get(&key(&migration, "r00")).await.unwrap().is_some());
        runner(store, migration).run(Goal::Up).await.unwrap();
        finalize(store.as_ref()).await;
        runner(store, migration).step(Goal::Contract).await.unwrap();
        writer.commit(put(&migration, "r00", 50)).await.unwrap();
        writer.commit(Batch::new(Some(FIRST)).delete(key(&migration, "r01"))).await.unwrap();
        let shown = sleeper.get(&key(&migration, "r00")).await.unwrap().unwrap();
        assert_eq!(shown.value, new_value(&migration, "r00", 50));
        assert_eq!(sleeper.get(&key(&migration, "r01")).await.unwrap(), None);
        let dir = Key::dir(migration.new_dir().split('/')).unwrap();
        let listed = scan(&sleeper, &dir, &dir.prefix_end()).await.unwrap();
        assert_eq!(listed.iter().map(|item| item.key.name()).collect::<Vec<_>>(), ["r00", "r02", "r03"]);
    }
}

#[tokio::test]
async fn what_only_the_new_form_can_say_waits_for_the_contraction() {
    let opened = (MEMORY.open)().await;
    let store = &opened.store;
    reset(store.as_ref(), &rows(&RESHAPED, 1)).await;
    let mirror = Mirror::new(Arc::clone(store), registry());
    let richer = String::from_utf8(new_value(&RESHAPED, "r00", 4)).unwrap().replace("\"cm\":4", "\"cm\":4,\"mm\":2");
    let write = Batch::new(Some(FIRST)).put(key(&RESHAPED, "r00"), richer.clone().into_bytes(), None);
    let runner = runner(store, RESHAPED);
    loop {
        let refused = mirror.commit(write.clone()).await.unwrap_err();
        assert!(matches!(&refused, CommitError::Invalid(BatchError::Refused { .. })), "{refused}");
        assert!(refused.to_string().contains("until the upgrade is finalized"), "{refused}");
        if runner.step(Goal::Up).await.unwrap() == Outcome::Done {
            break;
        }
    }
    finalize(store.as_ref()).await;
    runner.step(Goal::Contract).await.unwrap();
    mirror.commit(write).await.unwrap();
    assert_eq!(runner.run(Goal::Contract).await.unwrap(), Outcome::Done);
    assert_eq!(mirror.get(&key(&RESHAPED, "r00")).await.unwrap().unwrap().value, richer);
}

#[tokio::test]
async fn conditions_and_keep_alives_follow_the_truth_through_every_state() {
    for driver in DRIVERS {
        for migration in ALL {
            let opened = (driver.open)().await;
            let store = &opened.store;
            reset(store.as_ref(), &rows(&migration, 3)).await;
            let mirror = Mirror::new(Arc::clone(store), registry());
            let runner = runner(store, migration);
            let (here, free) = (key(&migration, "r01"), key(&migration, "free"));
            for turn in 0.. {
                let item = mirror.get(&here).await.unwrap().unwrap();
                let value = || put(&migration, "r01", 30);
                let exactly = value().require(Condition::RevisionIs(here.clone(), item.revision));
                mirror.commit(exactly.clone()).await.unwrap();
                let conflict = Err(CommitError::Conflict { key: here.clone() });
                assert_eq!(mirror.commit(exactly).await, conflict, "the revision has moved on");
                assert_eq!(mirror.commit(value().require(Condition::Absent(here.clone()))).await, conflict);
                mirror.commit(value().require(Condition::Exists(here.clone())).require(Condition::Absent(free.clone()))).await.unwrap();
                assert_eq!(
                    mirror.commit(value().require(Condition::Exists(free.clone()))).await,
                    Err(CommitError::Conflict { key: free.clone() })
                );
                let expires = Time::from_unix(1_900_000_000 + turn);
                let alive = mirror.keep_alive(&here, None, expires, Some(FIRST)).await.unwrap();
                let item = mirror.get(&here).await.unwrap().unwrap();
                assert_eq!((item.expires, item.revision), (Some(expires), alive.revision));
                let stale = mirror.keep_alive(&here, Some(item.revision - 1), expires, Some(FIRST)).await;
                assert_eq!(stale, conflict);
                let gone = mirror.keep_alive(&free, None, expires, Some(FIRST)).await;
                assert_eq!(gone, Err(CommitError::NotFound { key: free.clone() }));
                if runner.step(Goal::Contract).await.unwrap() == Outcome::Done {
                    break;
                }
                if mirror.state(migration.id).await.unwrap() == Some(State::Flipped) {
                    finalize(store.as_ref()).await;
                }
            }
            store.close().await;
        }
    }
}

#[tokio::test]
async fn a_watch_through_flip_undo_and_contraction_tells_everything_once() {
    for driver in DRIVERS {
        for migration in ALL {
            let opened = (driver.open)().await;
            let store = &opened.store;
            reset(store.as_ref(), &rows(&migration, 4)).await;
            let mirror = Mirror::new(Arc::clone(store), registry());
            let dir = if migration.is_one_to_one() { migration.new_dir() } else { migration.old_dir() };
            let dir = Key::dir(dir.split('/')).unwrap();
            let mut known: BTreeMap<String, Vec<u8>> = scan(&mirror, &dir, &dir.prefix_end())
                .await
                .unwrap()
                .into_iter()
                .map(|item| (item.key.to_string(), item.value.to_vec()))
                .collect();
            let mut watch = mirror.watch(vec![dir.clone()], None).await.unwrap();
            let runner = runner(store, migration);
            let mut n = 0;
            for goal in [Goal::Up, Goal::Undo, Goal::Up, Goal::Contract] {
                if goal == Goal::Contract {
                    finalize(store.as_ref()).await;
                }
                while runner.step(goal).await.unwrap() != Outcome::Done {
                    n += 1;
                    let batch = put(&migration, &format!("r{:02}", n % 6), 20 + n);
                    mirror.commit(batch.delete(key(&migration, &format!("r{:02}", (n + 2) % 6)))).await.unwrap();
                }
            }
            mirror.commit(put(&migration, "last", 1)).await.unwrap();
            let last = key(&migration, "last").to_string();
            while !known.contains_key(&last) {
                match watch.next().await.unwrap().unwrap() {
                    Event::Init { .. } => {}
                    Event::Put(item) => drop(known.insert(item.key.to_string(), item.value.to_vec())),
                    Event::Delete { key, .. } => drop(known.remove(&key.to_string())),
                }
            }
            let now: BTreeMap<String, Vec<u8>> = scan(&mirror, &dir, &dir.prefix_end())
                .await
                .unwrap()
                .into_iter()
                .map(|item| (item.key.to_string(), item.value.to_vec()))
                .collect();
            assert_eq!(known, now, "{}: {}", driver.name, migration.id);
            let early = mirror.watch(vec![dir], Some(1)).await.err();
            if migration.is_one_to_one() {
                assert!(matches!(early, Some(WatchError::Compacted { .. })), "{early:?}: nobody knows what was the truth then");
            }
            store.close().await;
        }
    }
}

#[tokio::test]
async fn a_cluster_born_in_the_new_form_needs_no_journal() {
    let opened = (MEMORY.open)().await;
    let store = &opened.store;
    let mirror = Mirror::new(Arc::clone(store), registry());
    // Before there is a control record, and after.
    mirror.commit(put(&RESHAPED, "early", 1)).await.unwrap();
    reset(store.as_ref(), &[]).await;
    finalize(store.as_ref()).await;
    let mirror = Mirror::new(Arc::clone(store), registry());
    mirror.commit(put(&RESHAPED, "a", 1)).await.unwrap();
    mirror.commit(put(&INDEX, "h", 1)).await.unwrap();
    let raw = store.get(&key(&RESHAPED, "a")).await.unwrap().unwrap();
    assert_eq!(raw.value, new_value(&RESHAPED, "a", 1));
    assert!(store.get(&Key::parse("index/host/site-lyon/h").unwrap()).await.unwrap().is_some());
    assert_eq!(runner(store, RESHAPED).run(Goal::Up).await.unwrap(), Outcome::Done);
    assert!(mirror.relies_on(INDEX.id).await.unwrap());
}

#[tokio::test]
async fn old_places_are_hidden_and_derived_rows_are_the_migrations_own() {
    let opened = (MEMORY.open)().await;
    let store = &opened.store;
    reset(store.as_ref(), &rows(&MOVED, 3)).await;
    let mirror = Mirror::new(Arc::clone(store), registry());
    let old = Key::parse("doc/gadget/r00").unwrap();
    assert_eq!(mirror.get(&old).await.unwrap(), None);
    let (doc, end) = (Key::dir(["doc"]).unwrap(), Key::dir(["doc"]).unwrap().prefix_end());
    let listed = scan(&mirror, &doc, &end).await.unwrap();
    assert_eq!(listed.iter().map(|item| item.key.to_string()).collect::<Vec<_>>(), ["doc/device/r00", "doc/device/r01", "doc/device/r02"]);
    for at in ["doc/gadget/x", "index/host/site-lyon/x"] {
        let batch = Batch::new(Some(FIRST)).put(Key::parse(at).unwrap(), "", None);
        assert!(matches!(mirror.commit(batch).await, Err(CommitError::Invalid(BatchError::Refused { .. }))), "{at}");
    }
    let cut = Batch::new(Some(FIRST)).delete_range(key(&MOVED, "r01"), end.clone());
    runner(store, MOVED).run(Goal::Up).await.unwrap();
    let refused = mirror.commit(Batch::new(Some(FIRST)).delete_range(doc.clone(), end.clone())).await;
    assert!(refused.is_ok(), "no index is maintained yet: {refused:?}");
    reset(store.as_ref(), &rows(&MOVED, 3)).await;
    runner(store, MOVED).run(Goal::Up).await.unwrap();
    mirror.commit(cut).await.unwrap();
    let all = scan(store.as_ref(), &doc, &end).await.unwrap();
    assert_eq!(all.iter().map(|item| item.key.to_string()).collect::<Vec<_>>(), ["doc/device/r00", "doc/gadget/r00"]);
}
