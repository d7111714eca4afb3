//! Carries a migration on, one bounded step at a time.
//!
//! Each [`Runner::step`] reads the control record, the journal and the progress, asks `upgrade::migrate::next`, and commits one
//! batch that holds the effect *and* the cursor, conditional on the journal's and the progress's revision and fenced by the
//! writer's epoch. It keeps nothing in memory between steps: after a lost race or an answer that never came it says so, and the
//! next step reads again. Moves of the state also write the control record (`migration_lease`), so that a move and a change
//! of the admission windows can never pass each other unseen. Parts: `scan` is the batches, `basket` their limits,
//! `repair` bad rows, `turn` the way back.

mod basket;
mod repair;
mod scan;
mod turn;

pub use basket::Limits;
pub use repair::{Proposal, RepairError};
pub use turn::TurnError;

use crate::places::{Dirs, Kept, ReadJournalError, journal_key, progress_key, read_journal, read_progress, replace, replaced};
use std::sync::Arc;
use store::{BadKey, Batch, CommitError, Condition, Key, Store, StoreError, WriterEpoch, control};
use types::Extra;
use upgrade::migrate::registry::digest;
use upgrade::migrate::{Goal, Journal, Known, Migration, Phase, Progress, State, Step, Wait, next};

/// Steps in a row that may come to nothing before [`Runner::run`] gives up.
const MAX_FRUITLESS: u32 = 1000;

/// Carries on one migration, as one process.
pub struct Runner {
    store: Arc<dyn Store>,
    migration: Migration,
    dirs: Dirs,
    writer: WriterEpoch,
    holder: String,
    limits: Limits,
}

/// What a step came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The state was moved.
    Moved { from: State, to: State },
    /// A batch was done.
    Worked { phase: Phase, rows: usize },
    /// Nothing can be done for now.
    Waiting(Wait),
    /// The goal is reached.
    Done,
    /// Another runner or a writer was there first; nothing was written. Look again, after a moment.
    Lost,
    /// It is not known whether the batch was done. Look again: the journal knows.
    Unclear(String),
}

/// Why a step could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    #[error("the store has no control record")]
    NoControl,
    #[error(transparent)]
    Control(#[from] control::ReadControlError),
    #[error(transparent)]
    Journal(#[from] ReadJournalError),
    #[error(transparent)]
    Name(#[from] types::name::BadName),
    #[error(transparent)]
    Key(#[from] BadKey),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Fenced, or the store's own trouble.
    #[error(transparent)]
    Commit(CommitError),
    #[error("others were always first; try again later")]
    Contended,
}

/// What the store says, with revisions.
pub(crate) struct Seen {
    pub(crate) control: control::Stored,
    pub(crate) journal: Option<Kept<Journal>>,
    pub(crate) progress: Option<Kept<Progress>>,
}

impl Seen {
    pub(crate) async fn read(store: &dyn Store, id: &str) -> Result<Self, StepError> {
        let control = control::read(store).await?.ok_or(StepError::NoControl)?;
        Ok(Self { control, journal: read_journal(store, id).await?, progress: read_progress(store, id).await? })
    }

    pub(crate) fn known(&self) -> Known<'_> {
        Known {
            journal: self.journal.as_ref().map(|kept| &kept.resource.spec),
            progress: self.progress.as_ref().map(|kept| &kept.resource.spec),
            control: &self.control.record,
        }
    }

    fn progress(&self) -> Progress {
        self.progress.as_ref().map(|kept| kept.resource.spec.clone()).unwrap_or_default()
    }
}

impl Runner {
    /// `store` is the bare one, never a `Mirror`; `holder` names this process for people.
    pub fn new(
        store: Arc<dyn Store>,
        migration: Migration,
        writer: WriterEpoch,
        holder: impl Into<String>,
        limits: Limits,
    ) -> Result<Self, BadKey> {
        let dirs = Dirs::of(&migration)?;
        Ok(Self { store, migration, dirs, writer, holder: holder.into(), limits })
    }

    pub fn migration(&self) -> &Migration {
        &self.migration
    }

    /// Does one thing, and says what it was.
    pub async fn step(&self, goal: Goal) -> Result<Outcome, StepError> {
        let seen = self.look().await?;
        match next(&self.migration, seen.known(), goal) {
            Step::Move { to, phase } => self.move_to(&seen, to, phase).await,
            Step::Batch(phase) => self.batch(&seen, phase).await,
            Step::Wait(wait) => Ok(Outcome::Waiting(wait)),
            Step::Done => Ok(Outcome::Done),
        }
    }

    /// Steps until there is nothing to do; answers `Done` or `Waiting`. For rehearsals, drills and tests: a service makes the steps
    /// itself, with a pause after a lost one.
    pub async fn run(&self, goal: Goal) -> Result<Outcome, StepError> {
        let mut fruitless = 0;
        while fruitless < MAX_FRUITLESS {
            match self.step(goal).await? {
                Outcome::Moved { .. } | Outcome::Worked { .. } => fruitless = 0,
                Outcome::Lost | Outcome::Unclear(_) => fruitless += 1,
                outcome @ (Outcome::Waiting(_) | Outcome::Done) => return Ok(outcome),
            }
        }
        Err(StepError::Contended)
    }

    /// Begins the check, or in `shadowing` the copy, from the start: after repairs, or when a migration is held by differences
    /// whose cause is gone.
    pub async fn again(&self) -> Result<Outcome, StepError> {
        let seen = self.look().await?;
        let Some(phase) = restart(seen.known().state(&self.migration)) else { return Ok(Outcome::Done) };
        let progress = Progress { rounds: 0, ..seen.progress() }.enter(phase, self.store.clock().now());
        self.commit_work(&seen, Batch::new(Some(self.writer)), progress, None, 0).await
    }

    async fn look(&self) -> Result<Seen, StepError> {
        Seen::read(self.store.as_ref(), self.migration.id).await
    }

    async fn move_to(&self, seen: &Seen, to: State, phase: Phase) -> Result<Outcome, StepError> {
        let id = self.migration.id;
        let now = self.store.clock().now();
        let from = seen.known().state(&self.migration);
        let was = seen.journal.as_ref().map(|kept| kept.resource.spec.clone());
        let begins = from == State::Absent;
        let journal = Journal {
            state: to,
            digest: was.as_ref().filter(|_| !begins).map_or_else(|| digest(&self.migration), |was| was.digest.clone()),
            attempt: was.as_ref().map_or(0, |was| was.attempt).saturating_add(u32::from(begins)),
            swept: false,
            undo: was.as_ref().is_some_and(|was| was.undo),
            token: self.writer.0,
            holder: self.holder.clone(),
            changed: Some(now),
            extra: was.map_or_else(Extra::new, |was| was.extra),
        };
        let before = if begins { Progress { extra: seen.progress().extra, ..Progress::default() } } else { seen.progress() };
        let progress = before.enter(phase, now);
        let mut record = seen.control.record.clone();
        record.migration_lease = Some(self.lease(record.migration_lease, to));
        let control = serde_json::to_vec(&record).map_err(|error| control::ReadControlError::Unreadable(error.to_string()))?;
        let batch = Batch::new(Some(self.writer)).require(Condition::RevisionIs(Key::control(), seen.control.revision)).put(
            Key::control(),
            control,
            None,
        );
        let batch = replace(batch, journal_key(id)?, seen.journal.as_ref(), &replaced(seen.journal.as_ref(), id, journal)?);
        let batch = replace(batch, progress_key(id)?, seen.progress.as_ref(), &replaced(seen.progress.as_ref(), id, progress)?);
        self.commit(batch, Outcome::Moved { from, to }).await
    }

    /// Who moved what last; fields of newer releases stay.
    fn lease(&self, was: Option<serde_json::Value>, to: State) -> serde_json::Value {
        let mut lease = match was {
            Some(serde_json::Value::Object(lease)) => lease,
            Some(_) | None => Extra::new(),
        };
        lease.insert("holder".into(), self.holder.clone().into());
        lease.insert("token".into(), self.writer.0.into());
        lease.insert("migration".into(), self.migration.id.into());
        lease.insert("state".into(), to.as_str().into());
        lease.into()
    }

    /// Commits the effect of a batch together with the progress, and with the journal if that changes.
    async fn commit_work(
        &self,
        seen: &Seen,
        batch: Batch,
        progress: Progress,
        journal: Option<Journal>,
        rows: usize,
    ) -> Result<Outcome, StepError> {
        let id = self.migration.id;
        let phase = seen.progress().phase;
        let progress = Progress { updated: Some(self.store.clock().now()), ..progress };
        let batch = replace(batch, progress_key(id)?, seen.progress.as_ref(), &replaced(seen.progress.as_ref(), id, progress)?);
        let batch = match journal {
            Some(journal) => replace(batch, journal_key(id)?, seen.journal.as_ref(), &replaced(seen.journal.as_ref(), id, journal)?),
            None => batch.require(crate::places::unchanged(&journal_key(id)?, seen.journal.as_ref().map(|kept| kept.revision))),
        };
        self.commit(batch, Outcome::Worked { phase, rows }).await
    }

    async fn commit(&self, batch: Batch, done: Outcome) -> Result<Outcome, StepError> {
        match self.store.commit(batch).await {
            Ok(_) => Ok(done),
            Err(CommitError::Conflict { .. }) => Ok(Outcome::Lost),
            Err(CommitError::Ambiguous(why)) => Ok(Outcome::Unclear(why)),
            Err(error) => Err(StepError::Commit(error)),
        }
    }
}

/// Where the scan of a state begins anew.
fn restart(state: State) -> Option<Phase> {
    match state {
        State::Expanded => Some(Phase::Check),
        State::Shadowing => Some(Phase::Copy),
        State::Absent | State::Verified | State::Flipped | State::Contracted | State::Undoing => None,
    }
}
