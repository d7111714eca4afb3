//! Bad rows, writers that bypass a migration, the older binary, retention, and what a status says.

use crate::drivers::{DRIVERS, FIRST, MEMORY, dump, fence, finalize, govern, reset};
use crate::samples::{ALL, INDEX, MOVED, RESHAPED, key, new_value, old_row, registry};
use migrate::{Limits, Mirror, Outcome, RepairError, Runner, StepError, read_journal, read_progress, status};
use std::sync::Arc;
use std::time::Duration;
use store::{Batch, CommitError, Key, Store, scan};
use types::control::Window;
use upgrade::migrate::{Fix, Goal, Migration, Phase, Row, State, Wait, oldest_writer};

fn runner(store: &Arc<dyn Store>, migration: Migration) -> Runner {
    Runner::new(Arc::clone(store), migration, FIRST, "one", Limits { rows: 3, ..Limits::default() }).unwrap()
}

fn rows(migration: &Migration, count: u64) -> Vec<(String, Vec<u8>)> {
    (0..count).map(|n| old_row(migration, &format!("r{n:02}"), n)).collect()
}

async fn put(store: &dyn Store, (key, value): (String, Vec<u8>)) {
    store.commit(Batch::new(None).put(Key::parse(key).unwrap(), value, None)).await.unwrap();
}

async fn state(store: &dyn Store, migration: &Migration) -> State {
    read_journal(store, migration.id).await.unwrap().unwrap().resource.spec.state
}

#[tokio::test]
async fn bad_rows_hold_the_migration_and_never_the_service() {
    let opened = (MEMORY.open)().await;
    let store = &opened.store;
    reset(store.as_ref(), &rows(&RESHAPED, 5)).await;
    let (bad, value) = old_row(&RESHAPED, "r09", 7);
    let broken = String::from_utf8(value).unwrap().replace("\"size\":7", "\"size\":\"7\"");
    put(store.as_ref(), (bad.clone(), broken.clone().into_bytes())).await;
    put(store.as_ref(), ("doc/widget/zz".into(), b"no json".to_vec())).await;
    let runner = runner(store, RESHAPED);
    assert_eq!(runner.bad_rows().await.unwrap().iter().map(|bad| bad.key.as_str()).collect::<Vec<_>>(), [&bad, "doc/widget/zz"]);
    let held = Outcome::Waiting(Wait::BadRows { count: 2, first: bad.clone() });
    assert_eq!(runner.run(Goal::Up).await.unwrap(), held);

    let mirror = Mirror::new(Arc::clone(store), registry());
    let shown = mirror.get(&Key::parse(&bad).unwrap()).await.unwrap().unwrap();
    assert_eq!(shown.value, broken.as_bytes(), "a bad row is shown as it lies");
    let write = Batch::new(Some(FIRST)).put(key(&RESHAPED, "r00"), new_value(&RESHAPED, "r00", 70), None);
    mirror.commit(write).await.unwrap();

    let proposal = runner.propose(&bad).await.unwrap();
    assert!(matches!(&proposal.fix, Fix::Replace(_)), "{proposal:?}");
    put(store.as_ref(), (bad.clone(), broken.clone().replace("\"kept\":7", "\"kept\":8").into_bytes())).await;
    assert_eq!(runner.repair(&proposal, "ann").await, Err(RepairError::Changed(bad.clone())), "consent is for one value");
    let proposal = runner.propose(&bad).await.unwrap();
    runner.repair(&proposal, "ann").await.unwrap();
    assert_eq!(runner.run(Goal::Up).await.unwrap(), Outcome::Waiting(Wait::BadRows { count: 1, first: "doc/widget/zz".into() }));
    let other = runner.propose("doc/widget/zz").await.unwrap();
    assert_eq!(other.fix, Fix::Remove);
    runner.repair(&other, "bob").await.unwrap();
    assert_eq!(runner.propose("doc/widget/r00").await, Err(RepairError::NotBad("doc/widget/r00".into())));
    assert_eq!(runner.run(Goal::Up).await.unwrap(), Outcome::Done);
    let kept = store.get(&Key::parse("retained/9-widget-size/doc/widget/zz").unwrap()).await.unwrap().unwrap();
    assert_eq!((kept.value.as_ref(), kept.expires.is_some()), (b"no json".as_slice(), true));
    let progress = read_progress(store.as_ref(), RESHAPED.id).await.unwrap().unwrap().resource.spec;
    let log: Vec<_> = progress.repaired.iter().map(|one| (one.key.as_str(), one.how.as_str(), one.by.as_str())).collect();
    assert_eq!(log, [(bad.as_str(), "replaced", "ann"), ("doc/widget/zz", "removed", "bob")]);
}

#[tokio::test]
async fn rows_in_the_place_of_new_ones_and_rows_too_large_for_both_sides_are_bad() {
    let opened = (MEMORY.open)().await;
    let store = &opened.store;
    reset(store.as_ref(), &rows(&MOVED, 2)).await;
    put(store.as_ref(), ("doc/device/stray".into(), b"{}".to_vec())).await;
    let (large, value) = old_row(&MOVED, "large", 1);
    let padded = String::from_utf8(value).unwrap().replace("\"kept\":1", &format!("\"kept\":\"{}\"", "x".repeat(700_000)));
    put(store.as_ref(), (large.clone(), padded.into_bytes())).await;
    let runner = runner(store, MOVED);
    assert_eq!(runner.run(Goal::Up).await.unwrap(), Outcome::Waiting(Wait::BadRows { count: 2, first: large }));
    let stray = runner.propose("doc/device/stray").await.unwrap();
    assert_eq!(stray.fix, Fix::Remove);
    runner.repair(&stray, "ann").await.unwrap();
}

#[tokio::test]
async fn what_the_older_binary_wrote_before_and_after_an_undo_is_what_the_second_upgrade_finds() {
    for driver in DRIVERS {
        let opened = (driver.open)().await;
        let store = &opened.store;
        for migration in ALL {
            reset(store.as_ref(), &rows(&migration, 6)).await;
            let runner = runner(store, migration);
            let step = runner.step(Goal::Up).await.unwrap();
            assert_eq!(step, Outcome::Moved { from: State::Absent, to: State::Expanded });
            put(store.as_ref(), old_row(&migration, "by-old-1", 8)).await;
            assert_eq!(runner.run(Goal::Up).await.unwrap(), Outcome::Done);
            let mirror = Mirror::new(Arc::clone(store), registry());
            let write = Batch::new(Some(FIRST)).put(key(&migration, "r01"), new_value(&migration, "r01", 90), None);
            mirror.commit(write.delete(key(&migration, "r02"))).await.unwrap();
            while runner.step(Goal::Undo).await.unwrap() != Outcome::Done {
                // Undoing: the older binary may be back already.
                put(store.as_ref(), old_row(&migration, "by-old-2", 9)).await;
            }
            let gone = Key::parse(old_row(&migration, "r03", 0).0).unwrap();
            store.commit(Batch::new(None).delete(gone)).await.unwrap();
            put(store.as_ref(), old_row(&migration, "r04", 77)).await;
            let mut expected: Vec<(&str, u64)> = vec![("by-old-1", 8), ("by-old-2", 9), ("r00", 0), ("r01", 90), ("r04", 77), ("r05", 5)];
            assert_eq!(runner.run(Goal::Up).await.unwrap(), Outcome::Done);
            finalize(store.as_ref()).await;
            assert_eq!(runner.run(Goal::Contract).await.unwrap(), Outcome::Done);
            expected.sort_unstable();
            let mut rows: Vec<(String, Vec<u8>)> =
                expected.iter().map(|(name, size)| (key(&migration, name).to_string(), new_value(&migration, name, *size))).collect();
            if !migration.is_one_to_one() {
                let derived = |(key, value): &(String, Vec<u8>)| migration.forward(&Row::new(key.clone(), value.clone())).unwrap();
                let derived: Vec<_> = rows.iter().flat_map(derived).map(|row| (row.key, row.value)).collect();
                rows.extend(derived);
            }
            rows.sort();
            let found: Vec<_> = dump(store.as_ref()).await.into_iter().map(|(key, value, _)| (key, value)).collect();
            assert_eq!(found, rows, "{}: {}", driver.name, migration.id);
        }
    }
}

#[tokio::test]
async fn a_writer_that_bypasses_the_migration_is_found_and_the_truth_stays_old() {
    let opened = (MEMORY.open)().await;
    let store = &opened.store;
    for migration in ALL {
        reset(store.as_ref(), &rows(&migration, 7)).await;
        let runner = runner(store, migration);
        let mut n = 100;
        let outcome = loop {
            let outcome = runner.step(Goal::Up).await.unwrap();
            let progress = read_progress(store.as_ref(), migration.id).await.unwrap().unwrap().resource.spec;
            match progress.phase {
                // Behind the copy's back, once in each round.
                Phase::CompareOld if progress.cursor.is_none() => {
                    n += 1;
                    put(store.as_ref(), old_row(&migration, "r06", n)).await;
                }
                _ => {}
            }
            if matches!(outcome, Outcome::Waiting(_) | Outcome::Done) {
                break outcome;
            }
        };
        let Outcome::Waiting(Wait::Differs { rounds: 3, .. }) = outcome else { panic!("{}: {outcome:?}", migration.id) };
        assert_eq!(state(store.as_ref(), &migration).await, State::Shadowing);
        let status = status(store.as_ref(), &migration, Goal::Up).await.unwrap();
        assert!(status.differences.iter().any(|named| named.key.ends_with("r06")), "{status:?}");
        assert!(matches!(status.waiting, Some(Wait::Differs { .. })));
        // The cause is gone: told to, it goes on.
        runner.again().await.unwrap();
        assert_eq!(runner.run(Goal::Up).await.unwrap(), Outcome::Done);
    }
}

#[tokio::test]
async fn a_runner_that_was_fenced_while_it_slept_writes_nothing() {
    for driver in DRIVERS {
        let opened = (driver.open)().await;
        let store = &opened.store;
        reset(store.as_ref(), &rows(&RESHAPED, 9)).await;
        let sleeper = runner(store, RESHAPED);
        for _ in 0..6 {
            sleeper.step(Goal::Up).await.unwrap();
        }
        fence(store.as_ref()).await;
        let before = scan(store.as_ref(), &Key::first(), &Key::last()).await.unwrap();
        let woken = sleeper.step(Goal::Up).await;
        assert!(matches!(woken, Err(StepError::Commit(CommitError::Fenced { min: 3 }))), "{woken:?}");
        assert_eq!(scan(store.as_ref(), &Key::first(), &Key::last()).await.unwrap(), before);
    }
}

#[tokio::test]
async fn shadowing_and_a_widened_window_cannot_pass_each_other() {
    let opened = (MEMORY.open)().await;
    let store = &opened.store;
    reset(store.as_ref(), &rows(&RESHAPED, 2)).await;
    let runner = runner(store, RESHAPED);
    govern(store.as_ref(), |record| drop(record.windows.insert("auth".into(), Window::new(8, 9)))).await;
    assert_eq!(runner.run(Goal::Up).await.unwrap(), Outcome::Waiting(Wait::OldWriters { oldest: 8, needed: 9 }));
    assert_eq!(oldest_writer([(&RESHAPED, state(store.as_ref(), &RESHAPED).await)]), 8);
    govern(store.as_ref(), |record| drop(record.windows.insert("auth".into(), Window::new(9, 9)))).await;
    // Somebody read the control record to widen the window again; the move to shadowing comes first.
    let was = store::control::read(store.as_ref()).await.unwrap().unwrap();
    assert_eq!(runner.step(Goal::Up).await.unwrap(), Outcome::Moved { from: State::Expanded, to: State::Shadowing });
    let mut widened = was.record.clone();
    widened.windows.insert("auth".into(), Window::new(8, 9));
    let late = store::control::update(store.as_ref(), &was, &widened, FIRST).await;
    assert_eq!(late, Err(store::control::WriteControlError::Conflict));
    assert_eq!(oldest_writer([(&RESHAPED, state(store.as_ref(), &RESHAPED).await)]), 9);
    let lease = store::control::read(store.as_ref()).await.unwrap().unwrap().record.migration_lease.unwrap();
    assert_eq!((&lease["holder"], &lease["token"], &lease["state"]), (&"one".into(), &2.into(), &"shadowing".into()));
}

#[tokio::test]
async fn given_up_rows_go_to_retention_and_lapse() {
    let opened = (MEMORY.open)().await;
    let store = &opened.store;
    for migration in [RESHAPED, MOVED, INDEX] {
        let old = rows(&migration, 5);
        reset(store.as_ref(), &old).await;
        let runner = runner(store, migration);
        runner.run(Goal::Up).await.unwrap();
        assert_eq!(runner.run(Goal::Contract).await.unwrap(), Outcome::Waiting(Wait::NotFinal));
        finalize(store.as_ref()).await;
        assert_eq!(runner.run(Goal::Undo).await.unwrap(), Outcome::Waiting(Wait::Final));
        assert_eq!(runner.run(Goal::Contract).await.unwrap(), Outcome::Done);
        let dir = Key::dir(["retained", migration.id]).unwrap();
        let kept = scan(store.as_ref(), &dir, &dir.prefix_end()).await.unwrap();
        let ends = store.clock().now().plus(Duration::from_secs(30 * 86_400));
        assert!(kept.iter().all(|item| item.expires == Some(ends)));
        let prefix = format!("retained/{}/", migration.id);
        let found: Vec<_> = kept.iter().map(|item| (item.key.to_string().replace(&prefix, ""), item.value.to_vec())).collect();
        assert_eq!(found, if migration.is_one_to_one() { old } else { Vec::new() });
    }
}

#[tokio::test]
async fn a_status_is_told_before_during_and_after() {
    let opened = (MEMORY.open)().await;
    let store = &opened.store;
    reset(store.as_ref(), &rows(&RESHAPED, 8)).await;
    let tell = async || status(store.as_ref(), &RESHAPED, Goal::Up).await.unwrap();
    let before = tell().await;
    assert_eq!((before.state, before.waiting, before.left), (State::Absent, None, None));
    let runner = runner(store, RESHAPED);
    while tell().await.phase != Phase::Copy || tell().await.cursor.is_none() {
        runner.step(Goal::Up).await.unwrap();
    }
    let during = tell().await;
    assert_eq!((during.state, during.total, during.attempt, during.holder.as_str()), (State::Shadowing, 8, 1, "one"));
    assert!(during.done > 0 && during.done < 8);
    runner.run(Goal::Up).await.unwrap();
    let after = tell().await;
    assert_eq!((after.state, after.left), (State::Flipped, Some(Duration::ZERO)));
}

#[tokio::test]
async fn whoever_wants_a_migration_back_is_heard_by_every_runner_until_he_says_otherwise() {
    for driver in DRIVERS {
        let opened = (driver.open)().await;
        let store = &opened.store;
        let rows: Vec<_> = (0..4).map(|n| old_row(&RESHAPED, &format!("r{n}"), n)).collect();
        reset(store.as_ref(), &rows).await;
        let before = dump(store.as_ref()).await;
        let (one, two) = (runner(store, RESHAPED), runner(store, RESHAPED));
        assert_eq!(one.turn(false).await.unwrap(), Outcome::Done, "forward is where it goes");
        one.run(Goal::Up).await.unwrap();
        assert!(matches!(one.turn(true).await.unwrap(), Outcome::Worked { .. }));
        assert_eq!(one.turn(true).await.unwrap(), Outcome::Done, "twice is once");
        assert_eq!(two.run(Goal::Contract).await.unwrap(), Outcome::Done);
        assert_eq!(state(store.as_ref(), &RESHAPED).await, State::Absent);
        assert_eq!(dump(store.as_ref()).await, before);
        assert!(status(store.as_ref(), &RESHAPED, Goal::Up).await.unwrap().undo);
        two.turn(false).await.unwrap();
        two.run(Goal::Up).await.unwrap();
        assert_eq!(state(store.as_ref(), &RESHAPED).await, State::Flipped);
        finalize(store.as_ref()).await;
        let refused = one.turn(true).await.unwrap_err();
        assert!(refused.to_string().contains("only a backup leads back"), "{refused}");
        // One that was not begun can be kept from beginning.
        reset(store.as_ref(), &rows).await;
        one.turn(true).await.unwrap();
        assert_eq!(two.run(Goal::Up).await.unwrap(), Outcome::Done);
        assert_eq!(state(store.as_ref(), &RESHAPED).await, State::Absent);
        store.close().await;
    }
}
