//! Every state, phase and goal: what is done, what is waited for, and that a goal is always reached.

use super::*;
use crate::control::{birth, tests::v};
use crate::migrate::journal::Named;
use crate::migrate::registry::tests::{MOVED, RESHAPED};
use crate::windows::resting;
use proptest::prelude::*;
use types::{Extra, name::ClusterId};

fn control(major: u64, auth: u64) -> ControlRecord {
    let mut record = birth(ClusterId::from_uuid(uuid::Uuid::nil()), &v(&format!("{major}.0.0")), true).unwrap();
    record.windows = resting(auth);
    record
}
fn journal(state: State) -> Journal {
    Journal {
        state,
        digest: digest(&RESHAPED),
        attempt: 1,
        swept: false,
        undo: false,
        token: 1,
        holder: String::new(),
        changed: None,
        extra: Extra::new(),
    }
}
fn at(state: State, phase: Phase, control: &ControlRecord, goal: Goal) -> Step {
    let progress = Progress { phase, ..Progress::default() };
    next(&RESHAPED, Known { journal: Some(&journal(state)), progress: Some(&progress), control }, goal)
}

#[test]
fn shadowing_waits_until_the_older_binary_cannot_write() {
    let check = |auth, expected| assert_eq!(at(State::Expanded, Phase::Checked, &control(8, auth), Goal::Up), expected);
    check(8, Step::Wait(Wait::OldWriters { oldest: 8, needed: 9 }));
    check(9, Step::Move { to: State::Shadowing, phase: Phase::Copy });
    let mut blind = control(8, 9);
    blind.windows.clear();
    assert!(matches!(at(State::Expanded, Phase::Checked, &blind, Goal::Up), Step::Wait(Wait::OldWriters { .. })));
}

#[test]
fn the_old_side_is_kept_until_finalize_and_there_is_no_undo_behind_it() {
    assert_eq!(at(State::Flipped, Phase::Hold, &control(8, 9), Goal::Up), Step::Done);
    assert_eq!(at(State::Flipped, Phase::Hold, &control(8, 9), Goal::Contract), Step::Wait(Wait::NotFinal));
    let done = control(9, 9);
    assert_eq!(at(State::Flipped, Phase::Hold, &done, Goal::Contract), Step::Move { to: State::Contracted, phase: Phase::Sweep });
    for state in [State::Expanded, State::Shadowing, State::Verified, State::Flipped, State::Contracted] {
        assert_eq!(at(state, Phase::Hold, &done, Goal::Undo), Step::Wait(Wait::Final), "{state}");
    }
}

#[test]
fn who_is_wanted_back_is_undone_by_every_runner_and_not_begun_again() {
    let (progress, control) = (Progress::default(), control(8, 9));
    let step = |state, phase, goal| {
        let back = Journal { undo: true, ..journal(state) };
        let progress = Progress { phase, ..progress.clone() };
        next(&RESHAPED, Known { journal: Some(&back), progress: Some(&progress), control: &control }, goal)
    };
    for goal in [Goal::Up, Goal::Contract, Goal::Undo] {
        assert_eq!(step(State::Flipped, Phase::Hold, goal), Step::Move { to: State::Undoing, phase: Phase::Erase });
        assert_eq!(step(State::Absent, Phase::Hold, goal), Step::Done);
    }
}

#[test]
fn bad_rows_and_differences_hold_the_migration_and_are_named() {
    let mut progress = Progress { phase: Phase::Checked, ..Progress::default() };
    progress.found_bad(Named::new("doc/widget/a", "broken"));
    let known = |progress| Known { journal: Some(&EXPANDED), progress: Some(progress), control: &CONTROL };
    static EXPANDED: std::sync::LazyLock<Journal> = std::sync::LazyLock::new(|| journal(State::Expanded));
    static SHADOWING: std::sync::LazyLock<Journal> = std::sync::LazyLock::new(|| journal(State::Shadowing));
    static CONTROL: std::sync::LazyLock<ControlRecord> = std::sync::LazyLock::new(|| control(8, 9));
    let bad = Step::Wait(Wait::BadRows { count: 1, first: "doc/widget/a".into() });
    assert_eq!(next(&RESHAPED, known(&progress), Goal::Up), bad);
    let mut progress = Progress { phase: Phase::Hold, rounds: MAX_ROUNDS, ..Progress::default() };
    progress.found_difference(Named::new("doc/widget/b", "differs"));
    let known = Known { journal: Some(&SHADOWING), ..known(&progress) };
    let differs = Step::Wait(Wait::Differs { rounds: MAX_ROUNDS, count: 1, first: "doc/widget/b".into() });
    assert_eq!(next(&RESHAPED, known, Goal::Up), differs);
    assert_eq!(next(&RESHAPED, known, Goal::Undo), Step::Move { to: State::Undoing, phase: Phase::Erase });
}

#[test]
fn a_migration_begun_by_another_build_is_left_alone() {
    let other = Journal { digest: "other".into(), ..journal(State::Shadowing) };
    for goal in [Goal::Up, Goal::Contract, Goal::Undo] {
        let control = control(8, 9);
        assert_eq!(next(&RESHAPED, Known { journal: Some(&other), progress: None, control: &control }, goal), Step::Wait(Wait::OtherBuild));
    }
}

#[test]
fn a_cluster_born_in_the_new_form_has_nothing_to_do() {
    let control = control(9, 9);
    let known = Known { journal: None, progress: None, control: &control };
    assert_eq!(known.state(&RESHAPED), State::Contracted);
    assert_eq!(next(&RESHAPED, known, Goal::Up), Step::Done);
    assert_eq!(next(&RESHAPED, known, Goal::Undo), Step::Wait(Wait::Final));
}

#[test]
fn the_oldest_writer_is_the_newest_that_any_migration_needs() {
    let check = |one, other, expected| assert_eq!(oldest_writer([(&RESHAPED, one), (&MOVED, other)]), expected, "{one} {other}");
    check(State::Absent, State::Expanded, 8);
    check(State::Absent, State::Shadowing, 9);
    check(State::Undoing, State::Undoing, 8);
    check(State::Flipped, State::Absent, 9);
    assert_eq!(oldest_writer([]), 0);
    let registry = Registry::new(&[RESHAPED, MOVED]).unwrap();
    let open = unfinished(&registry, 9, |migration| if migration.id == MOVED.id { State::Flipped } else { State::Verified });
    assert_eq!(open.iter().map(|migration| migration.id).collect::<Vec<_>>(), [RESHAPED.id]);
    assert!(unfinished(&registry, 8, |_| State::Absent).is_empty());
}

proptest! {
    /// Whatever the store says, a move is a legal one, and doing every step reaches the goal or says what it waits for.
    #[test]
    fn every_walk_is_legal_and_ends(goals in prop::collection::vec(0usize..3, 1..6), auth in 8u64..=9, finalize_at in 0usize..40) {
        let mut control = control(8, auth);
        let (mut now, mut progress) = (None::<Journal>, Progress::default());
        let mut steps = 0;
        for goal in goals.into_iter().map(|goal| [Goal::Up, Goal::Contract, Goal::Undo][goal]) {
            for round in 0..60 {
                let flipped = now.as_ref().is_some_and(|journal| journal.state == State::Flipped);
                if steps >= finalize_at && flipped {
                    control.cluster_version = RESHAPED.to;
                }
                steps += 1;
                let known = Known { journal: now.as_ref(), progress: Some(&progress), control: &control };
                let state = known.state(&RESHAPED);
                match next(&RESHAPED, known, goal) {
                    Step::Done | Step::Wait(_) => break,
                    Step::Move { to, phase } => {
                        prop_assert!(state.band_to(to).is_some(), "{} -> {}", state, to);
                        prop_assert!(to.admits_old_writers() || auth == 9);
                        prop_assert!(to != State::Contracted || control.cluster_version >= RESHAPED.to);
                        now = Some(journal(to));
                        progress = progress.enter(phase, types::Time::EPOCH);
                    }
                    Step::Batch(phase) => {
                        let then = match phase {
                            Phase::Check => Phase::Checked,
                            Phase::Copy => Phase::Prune,
                            Phase::Prune => Phase::CompareOld,
                            Phase::CompareOld => Phase::CompareNew,
                            Phase::CompareNew => Phase::Compared,
                            Phase::Erase => Phase::Erased,
                            _ => Phase::Done,
                        };
                        if then == Phase::Done {
                            now.as_mut().unwrap().swept = true;
                        }
                        progress = progress.enter(then, types::Time::EPOCH);
                    }
                }
                prop_assert!(round < 59, "it does not end");
            }
        }
    }
}
