//! The one migration of a simulated upgrade: the real next step over a journal, with rows that are only counted.

use types::{ControlRecord, Time, Version};
use upgrade::{
    control::final_of,
    migrate::{Change, Form, Goal, Journal, Known, Migration, Named, Phase, Progress, State, Step, next, registry::digest},
    plan,
};

const ROWS: u64 = 4000;
/// Of one turn.
const BATCH: u64 = 500;

pub(crate) struct Data {
    migration: Migration,
    journal: Option<Journal>,
    progress: Progress,
    /// Rows that nobody has mended yet.
    pub(crate) bad: bool,
}

fn grow(value: &[u8]) -> Result<Vec<u8>, String> {
    Ok([value, b"+"].concat())
}

fn shrink(value: &[u8]) -> Result<Vec<u8>, String> {
    value.strip_suffix(b"+").map(<[u8]>::to_vec).ok_or_else(|| "it has no new form".into())
}

impl Data {
    pub(crate) fn to(target: &Version) -> Self {
        let (from, to) = (final_of(target.major() - 1), final_of(target.major()));
        let change = Change::InPlace { dir: "sim/rows", form: Form::Bytes { up: grow, down: shrink } };
        let migration = Migration { id: "rows", about: "rows grow", from, to, floor: from.major, change, repair: None, source: "sim" };
        Self { migration, journal: None, progress: Progress::default(), bad: false }
    }

    fn known<'a>(&'a self, control: &'a ControlRecord) -> Known<'a> {
        Known { journal: self.journal.as_ref(), progress: Some(&self.progress), control }
    }

    pub(crate) fn seen(&self, control: &ControlRecord) -> plan::Migration {
        plan::Migration::of(&self.migration, self.known(control))
    }

    pub(crate) fn state(&self, control: &ControlRecord) -> State {
        self.known(control).state(&self.migration)
    }

    /// The oldest major that may write beside it.
    pub(crate) fn floor(&self, control: &ControlRecord) -> u64 {
        upgrade::migrate::oldest_writer([(&self.migration, self.state(control))])
    }

    pub(crate) fn switch(&mut self, undo: bool, control: &ControlRecord, now: Time) {
        let mut journal = self.journal.clone().unwrap_or_else(|| self.written(State::Absent, 0, control, now));
        journal.undo = undo;
        self.journal = Some(journal);
    }

    /// Whoever mends rows has them checked again.
    pub(crate) fn mend(&mut self, now: Time) {
        self.bad = false;
        if matches!(self.journal.as_ref().map(|journal| journal.state), Some(State::Expanded)) {
            self.progress = std::mem::take(&mut self.progress).enter(Phase::Check, now);
        }
    }

    fn written(&self, state: State, epoch: u64, control: &ControlRecord, now: Time) -> Journal {
        let was = self.journal.as_ref();
        let begins = self.state(control) == State::Absent && state != State::Absent;
        Journal {
            state,
            digest: digest(&self.migration),
            attempt: was.map_or(0, |was| was.attempt) + u32::from(begins),
            swept: false,
            undo: was.is_some_and(|was| was.undo),
            token: epoch,
            holder: String::new(),
            changed: Some(now),
            extra: types::Extra::new(),
        }
    }

    /// One turn of a runner. True when it moved the state, which writes the control record too.
    pub(crate) fn turn(&mut self, goal: Goal, epoch: u64, control: &ControlRecord, now: Time) -> bool {
        match next(&self.migration, self.known(control), goal) {
            Step::Move { to, phase } => {
                self.journal = Some(self.written(to, epoch, control, now));
                self.progress = std::mem::take(&mut self.progress).enter(phase, now);
                true
            }
            Step::Batch(phase) => {
                self.batch(phase, now);
                false
            }
            Step::Wait(_) | Step::Done => false,
        }
    }

    fn batch(&mut self, phase: Phase, now: Time) {
        let mut progress = std::mem::take(&mut self.progress);
        if progress.phase != phase {
            progress = progress.enter(phase, now);
        }
        progress.total = ROWS;
        progress.done = (progress.done + BATCH).min(ROWS);
        if progress.done == ROWS {
            let then = match phase {
                Phase::Check if self.bad => {
                    progress.found_bad(Named::new("sim/rows/7", "it cannot grow"));
                    Phase::Checked
                }
                Phase::Check => Phase::Checked,
                Phase::Copy => Phase::Prune,
                Phase::Prune => Phase::CompareOld,
                Phase::CompareOld => Phase::CompareNew,
                Phase::CompareNew if progress.pass >= 2 => Phase::Compared,
                Phase::CompareNew => Phase::CompareOld,
                Phase::Erase => Phase::Erased,
                Phase::Sweep => Phase::Done,
                Phase::Checked | Phase::Compared | Phase::Hold | Phase::Erased | Phase::Done => phase,
            };
            progress = progress.enter(then, now);
            if let (Phase::Done, Some(journal)) = (then, &mut self.journal) {
                journal.swept = true;
            }
        }
        self.progress = progress;
    }
}
