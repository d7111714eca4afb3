//! Finds the next step of one migration from what the store says. Pure, total, and the same for every runner.
//!
//! A runner is level-triggered: it reads, asks [`next`], does one bounded thing, and reads again. So a runner that dies is
//! followed by any other, and two that meet do the same. What keeps a cluster able to go back is decided here: shadowing does
//! not begin while the older binary may write, the old side is not given up before `finalize`, and an undo ends where that begins.

use crate::control::final_of;
use crate::migrate::definition::Migration;
use crate::migrate::journal::{Journal, Phase, Progress};
use crate::migrate::registry::{Registry, digest};
use crate::migrate::state::State;
use crate::windows::AUTH;
use types::ControlRecord;

/// How often a difference sends the scan back to the copy before somebody must look.
pub const MAX_ROUNDS: u32 = 3;

/// Where to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// To `flipped`: as far as there is a way back.
    Up,
    /// To `contracted`, for which the upgrade must be finalized.
    Contract,
    /// Back to `absent`.
    Undo,
}

/// What the store says of one migration.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub journal: Option<&'a Journal>,
    pub progress: Option<&'a Progress>,
    pub control: &'a ControlRecord,
}

impl Known<'_> {
    /// The state. A cluster that was born in the new form has no journal and needs none.
    pub fn state(&self, migration: &Migration) -> State {
        match self.journal {
            Some(journal) => journal.state,
            None if self.control.cluster_version >= migration.to => State::Contracted,
            None => State::Absent,
        }
    }
}

/// One bounded thing to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Move the state, with the scan at the beginning of `phase`.
    Move { to: State, phase: Phase },
    /// Do one batch of the scan.
    Batch(Phase),
    /// Nothing can be done for now.
    Wait(Wait),
    /// The goal is reached.
    Done,
}

/// Why a migration does not go on by itself. The service does.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Wait {
    #[error("{count} rows cannot be changed, first of all {first}; see them, and have them repaired by name")]
    BadRows { count: u64, first: String },
    #[error("Auth Services of major {oldest} may still write; narrow the window of auth to {needed} first")]
    OldWriters { oldest: u64, needed: u64 },
    #[error("the cluster is at version {major}.{step}; this migration begins at the end of major {from}")]
    NotYet { major: u64, step: u32, from: u64 },
    #[error("the upgrade is not finalized; until then the former format is kept for a way back")]
    NotFinal,
    #[error("the upgrade is finalized: only a backup leads back")]
    Final,
    #[error("after {rounds} rounds {count} rows still differ, first of all {first}; a writer bypasses the migration")]
    Differs { rounds: u32, count: u64, first: String },
    #[error("it was begun by a build whose migration is not the same as in this one; use that build")]
    OtherBuild,
}

/// The next step towards the goal, or towards the way back if the journal says that somebody wants that.
pub fn next(migration: &Migration, known: Known<'_>, goal: Goal) -> Step {
    let state = known.state(migration);
    let goal = if known.journal.is_some_and(|journal| journal.undo) { Goal::Undo } else { goal };
    if known.journal.is_some_and(|journal| state != State::Absent && journal.digest != digest(migration)) {
        return Step::Wait(Wait::OtherBuild);
    }
    let phase = known.progress.map(|progress| progress.phase).unwrap_or_default();
    match state {
        State::Undoing if phase == Phase::Erased => Step::Move { to: State::Absent, phase: Phase::Hold },
        State::Undoing => Step::Batch(Phase::Erase),
        State::Absent if goal == Goal::Undo => Step::Done,
        State::Absent => begin(migration, known.control),
        State::Contracted if goal == Goal::Undo => Step::Wait(Wait::Final),
        State::Contracted if known.journal.is_none_or(|journal| journal.swept) => Step::Done,
        State::Contracted => Step::Batch(Phase::Sweep),
        State::Expanded | State::Shadowing | State::Verified | State::Flipped if goal == Goal::Undo => {
            if known.control.cluster_version >= migration.to {
                Step::Wait(Wait::Final)
            } else {
                Step::Move { to: State::Undoing, phase: Phase::Erase }
            }
        }
        State::Expanded => expanded(migration, known, phase),
        State::Shadowing => shadowing(known, phase),
        State::Verified => Step::Move { to: State::Flipped, phase: Phase::Hold },
        State::Flipped if goal == Goal::Up => Step::Done,
        State::Flipped if known.control.cluster_version < migration.to => Step::Wait(Wait::NotFinal),
        State::Flipped => Step::Move { to: State::Contracted, phase: Phase::Sweep },
    }
}

fn begin(migration: &Migration, control: &ControlRecord) -> Step {
    let version = control.cluster_version;
    if version < migration.from || version >= migration.to {
        return Step::Wait(Wait::NotYet { major: version.major, step: version.step, from: migration.from.major });
    }
    Step::Move { to: State::Expanded, phase: Phase::Check }
}

fn expanded(migration: &Migration, known: Known<'_>, phase: Phase) -> Step {
    if phase != Phase::Checked {
        return Step::Batch(Phase::Check);
    }
    if let Some(wait) = bad_rows(known.progress) {
        return Step::Wait(wait);
    }
    let needed = migration.to.major;
    let oldest = known.control.windows.get(AUTH).map_or(migration.floor, |window| window.lo);
    if oldest < needed {
        return Step::Wait(Wait::OldWriters { oldest, needed });
    }
    Step::Move { to: State::Shadowing, phase: Phase::Copy }
}

fn shadowing(known: Known<'_>, phase: Phase) -> Step {
    match phase {
        Phase::Prune | Phase::CompareOld | Phase::CompareNew => Step::Batch(phase),
        Phase::Compared => Step::Move { to: State::Verified, phase: Phase::Hold },
        Phase::Hold => match (bad_rows(known.progress), known.progress) {
            (Some(wait), _) => Step::Wait(wait),
            (None, Some(progress)) if progress.rounds >= MAX_ROUNDS => Step::Wait(Wait::Differs {
                rounds: progress.rounds,
                count: progress.difference_count,
                first: progress.differences.first().map(|named| named.key.clone()).unwrap_or_default(),
            }),
            (None, _) => Step::Batch(Phase::Copy),
        },
        Phase::Copy | Phase::Check | Phase::Checked | Phase::Erase | Phase::Erased | Phase::Sweep | Phase::Done => Step::Batch(Phase::Copy),
    }
}

fn bad_rows(progress: Option<&Progress>) -> Option<Wait> {
    let progress = progress.filter(|progress| progress.bad_count > 0)?;
    let first = progress.bad.first().map(|named| named.key.clone()).unwrap_or_default();
    Some(Wait::BadRows { count: progress.bad_count, first })
}

/// The oldest major whose Auth Service may write while the migrations are in these states. Whoever widens the window of auth
/// asks first, and makes his write of the control record conditional: each move of a state changes that record too.
pub fn oldest_writer<'a>(states: impl IntoIterator<Item = (&'a Migration, State)>) -> u64 {
    states.into_iter().map(|(migration, state)| floor_in(migration.floor, migration.to.major, state)).max().unwrap_or(0)
}

/// The same for one migration, by its floor and the major that it leads to.
pub const fn floor_in(floor: u64, to: u64, state: State) -> u64 {
    if state.admits_old_writers() { floor } else { to }
}

/// The migrations to this major that are not yet flipped: `finalize` waits for them.
pub fn unfinished(registry: &Registry, major: u64, state: impl Fn(&Migration) -> State) -> Vec<&Migration> {
    let open = |migration: &&Migration| migration.to == final_of(major) && !matches!(state(migration), State::Flipped | State::Contracted);
    registry.iter().filter(open).collect()
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
