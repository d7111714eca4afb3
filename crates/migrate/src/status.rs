//! How far a migration is, for people: served before, during and after.

use crate::runner::{Seen, StepError};
use std::time::Duration;
use store::Store;
use types::Time;
use upgrade::migrate::journal::{Named, Repaired};
use upgrade::migrate::{Goal, Migration, Phase, State, Step, Wait, next};

/// A migration as it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct Status {
    pub id: &'static str,
    pub about: &'static str,
    pub class: &'static str,
    pub state: State,
    pub phase: Phase,
    /// The last key dealt with.
    pub cursor: Option<String>,
    /// Rows of this phase dealt with, and how many there are as far as is known.
    pub done: u64,
    pub total: u64,
    /// Rows a second in this phase.
    pub rate: Option<f64>,
    /// Until the goal, at that rate; none while there is no rate yet.
    pub left: Option<Duration>,
    /// What it waits for.
    pub waiting: Option<Wait>,
    pub bad: Vec<Named>,
    pub bad_count: u64,
    pub differences: Vec<Named>,
    pub repaired: Vec<Repaired>,
    pub attempt: u32,
    /// Somebody wants it back.
    pub undo: bool,
    pub holder: String,
}

/// Reads it. `store` is the bare one.
pub async fn status(store: &dyn Store, migration: &Migration, goal: Goal) -> Result<Status, StepError> {
    let seen = Seen::read(store, migration.id).await?;
    let known = seen.known();
    let state = known.state(migration);
    let progress = known.progress.cloned().unwrap_or_default();
    let total = progress.total.max(progress.done);
    let rate = rate(progress.done, progress.started, progress.updated);
    let rows = scans_left(progress.phase, progress.pass).saturating_mul(total).saturating_sub(progress.done);
    let step = next(migration, known, goal);
    let left = match (&step, rate) {
        (Step::Done, _) => Some(Duration::ZERO),
        (Step::Move { .. } | Step::Batch(_), Some(rate)) => Duration::try_from_secs_f64(rows as f64 / rate).ok(),
        (Step::Move { .. } | Step::Batch(_), None) | (Step::Wait(_), _) => None,
    };
    Ok(Status {
        id: migration.id,
        about: migration.about,
        class: migration.class().as_str(),
        state,
        phase: progress.phase,
        cursor: progress.cursor,
        done: progress.done,
        total,
        rate,
        left,
        waiting: match step {
            Step::Wait(wait) => Some(wait),
            Step::Move { .. } | Step::Batch(_) | Step::Done => None,
        },
        bad: progress.bad,
        bad_count: progress.bad_count,
        differences: progress.differences,
        repaired: progress.repaired,
        undo: known.journal.is_some_and(|journal| journal.undo),
        attempt: known.journal.map_or(0, |journal| journal.attempt),
        holder: known.journal.map(|journal| journal.holder.clone()).unwrap_or_default(),
    })
}

fn rate(done: u64, started: Option<Time>, updated: Option<Time>) -> Option<f64> {
    let took = updated?.since(started?).as_secs_f64();
    (done > 0 && took > 0.0).then(|| done as f64 / took)
}

/// How many scans of all rows are left, this one counted.
fn scans_left(phase: Phase, pass: u8) -> u64 {
    let second = u64::from(pass < 2) * 2;
    match phase {
        Phase::Check => 7,
        Phase::Checked | Phase::Copy => 6,
        Phase::Prune => 5,
        Phase::CompareOld => 2 + second,
        Phase::CompareNew => 1 + second,
        Phase::Erase | Phase::Sweep => 1,
        Phase::Compared | Phase::Hold | Phase::Erased | Phase::Done => 0,
    }
}
