//! The thread that writes: takes what is queued, does it in one transaction, answers after `COMMIT`.
//!
//! Each batch has its own savepoint and revision, so that one that is refused leaves its neighbours alone. When SQLite itself
//! fails before `COMMIT`, nothing of the group was written and each batch is tried by itself; when `COMMIT` fails, nobody can say,
//! and all are told so.

use super::Options;
use super::rows::Rows;
use crate::batch::{fence, whole_millis};
use crate::watch::{Commit, Hub};
use crate::{Batch, BatchError, Clock, CommitError, Committed, Condition, Event, Item, Key, MAX_CHANGES, Op, StoreError, WriterEpoch};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use types::Time;

/// The most requests and the most bytes in one transaction. 64 writers fill a group of 64: more waits for nothing.
const GROUP: usize = 256;
const GROUP_BYTES: usize = 8 << 20;

/// What the writer is asked for. Batches have been checked.
pub(super) enum Write {
    Commit {
        batch: Batch,
        reply: oneshot::Sender<Result<Committed, CommitError>>,
    },
    KeepAlive {
        key: Key,
        revision: Option<u64>,
        expires: Time,
        writer: Option<WriterEpoch>,
        reply: oneshot::Sender<Result<Committed, CommitError>>,
    },
    Expire {
        reply: oneshot::Sender<Result<usize, CommitError>>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
    #[cfg(test)]
    Pragma {
        sql: String,
        reply: oneshot::Sender<Result<(), CommitError>>,
    },
}

pub(super) struct Writer {
    rows: Rows,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    options: Options,
    /// The control record's revision and the lowest epoch in it; only within one transaction.
    fence: Option<(u64, Result<u64, CommitError>)>,
    unpruned_commits: usize,
    unpruned_bytes: usize,
}

/// Why one request of a group was not done.
enum Fault {
    /// This one only.
    Refused(CommitError),
    /// The transaction is lost.
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}
impl From<CommitError> for Fault {
    fn from(error: CommitError) -> Self {
        Self::Refused(error)
    }
}

/// How a whole group failed.
enum Lost {
    /// Nothing was written.
    Before(StoreError),
    Unclear(String),
}

type Done = Result<Vec<Event>, CommitError>;

impl Writer {
    pub(super) fn new(rows: Rows, hub: Arc<Hub>, clock: Arc<dyn Clock>, options: Options) -> Self {
        Self { rows, hub, clock, options, fence: None, unpruned_commits: 0, unpruned_bytes: 0 }
    }

    /// Until closed, or until all handles are gone.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Write>) {
        let mut group = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            let mut bytes = 0;
            let mut next = Some(first);
            let mut close = None;
            while let Some(write) = next.take() {
                if let Write::Close { reply } = write {
                    close = Some(reply);
                    break;
                }
                bytes += write.size();
                group.push(write);
                if group.len() < GROUP && bytes < GROUP_BYTES {
                    next = queue.try_recv().ok();
                }
            }
            self.group(std::mem::take(&mut group));
            if let Some(reply) = close {
                return self.close(queue, reply);
            }
            self.prune();
        }
    }

    fn close(self, mut queue: mpsc::Receiver<Write>, reply: oneshot::Sender<()>) {
        queue.close();
        while let Ok(write) = queue.try_recv() {
            write.answer(Err(StoreError::Closed.into()), 0);
        }
        drop(self.rows);
        // Nobody need be waiting any more, here and for all answers.
        let _unheard = reply.send(());
    }

    /// Does the group, or each alone when it cannot be done together.
    fn group(&mut self, group: Vec<Write>) {
        if group.is_empty() {
            return;
        }
        match self.attempt(&group) {
            Ok((base, done)) => self.finish(group, base, done),
            Err(Lost::Unclear(detail)) => {
                for write in group {
                    write.answer(Err(CommitError::Ambiguous(detail.clone())), 0);
                }
            }
            Err(Lost::Before(error)) if group.len() == 1 => {
                for write in group {
                    write.answer(Err(error.clone().into()), 0);
                }
            }
            Err(Lost::Before(_)) => group.into_iter().for_each(|write| self.group(vec![write])),
        }
    }

    /// Publishes first: who reads the answer and then watches must not be told of an older state.
    fn finish(&mut self, group: Vec<Write>, base: u64, done: Vec<Done>) {
        let mut revision = base;
        let mut commits = Vec::new();
        let mut answers = Vec::new();
        for outcome in done {
            answers.push(outcome.map(|events| {
                let count = events.len();
                if count > 0 {
                    revision += 1;
                    self.unpruned_commits += 1;
                    commits.push(Arc::new(Commit { revision, events }));
                }
                (Committed { revision }, count)
            }));
        }
        self.hub.publish(commits);
        for (write, answer) in group.into_iter().zip(answers) {
            self.unpruned_bytes += write.size();
            match answer {
                Ok((committed, count)) => write.answer(Ok(committed), count),
                Err(error) => write.answer(Err(error), 0),
            }
        }
    }

    /// One transaction. Returns the revision before it and what each request came to.
    fn attempt(&mut self, group: &[Write]) -> Result<(u64, Vec<Done>), Lost> {
        self.fence = None;
        let before = |rows: &Rows, error: rusqlite::Error| Lost::Before(rows.named(&error));
        self.rows.run("BEGIN IMMEDIATE").map_err(|error| before(&self.rows, error))?;
        let tried = self.try_all(group);
        let (base, done) = match tried {
            Ok(done) => done,
            Err(error) => {
                self.roll_back();
                return Err(before(&self.rows, error));
            }
        };
        let wrote = done.iter().any(|outcome| outcome.as_ref().is_ok_and(|events| !events.is_empty()));
        if !wrote {
            self.roll_back();
            return Ok((base, done));
        }
        match self.rows.run("COMMIT") {
            Ok(()) => Ok((base, done)),
            Err(error) => {
                self.roll_back();
                let named = self.rows.named(&error);
                // A busy COMMIT has written nothing; of all others SQLite may have written the last page before it failed.
                Err(if matches!(named, StoreError::Busy { .. }) { Lost::Before(named) } else { Lost::Unclear(named.to_string()) })
            }
        }
    }

    fn try_all(&mut self, group: &[Write]) -> Result<(u64, Vec<Done>), rusqlite::Error> {
        let base = self.rows.revision()?;
        let mut revision = base;
        let mut done = Vec::with_capacity(group.len());
        for write in group {
            self.rows.run("SAVEPOINT batch")?;
            let outcome = match self.one(write, revision + 1) {
                Ok(events) => {
                    self.rows.record(&events)?;
                    revision += u64::from(!events.is_empty());
                    Ok(events)
                }
                Err(Fault::Refused(error)) => {
                    self.rows.run("ROLLBACK TO batch")?;
                    self.fence = None;
                    Err(error)
                }
                Err(Fault::Sql(error)) => return Err(error),
            };
            self.rows.run("RELEASE batch")?;
            done.push(outcome);
        }
        Ok((base, done))
    }

    fn one(&mut self, write: &Write, revision: u64) -> Result<Vec<Event>, Fault> {
        let now = self.clock.now();
        match write {
            Write::Commit { batch, .. } => {
                self.admit(batch.writer)?;
                self.meets(&batch.conditions, now)?;
                self.apply(&batch.ops, revision)
            }
            Write::KeepAlive { key, revision: wanted, expires, writer, .. } => {
                self.admit(*writer)?;
                self.keep_alive(key, *wanted, *expires, revision, now)
            }
            Write::Expire { .. } => self.expire(revision, now),
            Write::Close { .. } => Ok(Vec::new()),
            #[cfg(test)]
            Write::Pragma { sql, .. } => {
                self.rows.connection.execute_batch(sql)?;
                Ok(Vec::new())
            }
        }
    }

    /// Refuses a fenced writer, in this very transaction (design 3.4).
    fn admit(&mut self, writer: Option<WriterEpoch>) -> Result<(), Fault> {
        let Some(WriterEpoch(epoch)) = writer else { return Ok(()) };
        let Some(found) = self.rows.find(&Key::control())? else { return Ok(()) };
        let min = match &self.fence {
            Some((revision, min)) if *revision == found.revision => min.clone(),
            _ => {
                let item = self.rows.item(&Key::control())?;
                let min = item.map_or(Ok(0), |item| fence(&item.value));
                self.fence = Some((found.revision, min.clone()));
                min
            }
        }?;
        if epoch < min { Err(CommitError::Fenced { min }.into()) } else { Ok(()) }
    }

    fn meets(&self, conditions: &[Condition], now: Time) -> Result<(), Fault> {
        for condition in conditions {
            let live = self.rows.find(condition.key())?.filter(|found| found.lives(now));
            if !condition.holds(live.map(|found| found.revision)) {
                return Err(CommitError::Conflict { key: condition.key().clone() }.into());
            }
        }
        Ok(())
    }

    fn apply(&self, ops: &[Op], revision: u64) -> Result<Vec<Event>, Fault> {
        let mut events = Vec::new();
        for op in ops {
            match op {
                Op::Put { key, value, expires } => {
                    let item = Item { key: key.clone(), value: value.clone(), revision, expires: expires.map(whole_millis) };
                    self.rows.put(&item)?;
                    events.push(Event::Put(item));
                }
                Op::Delete { key } => {
                    if self.rows.delete(key)? {
                        events.push(Event::Delete { key: key.clone(), revision });
                    }
                }
                Op::DeleteRange { from, to } => {
                    let keys = self.rows.keys(from, to, MAX_CHANGES + 1)?;
                    events.extend(keys.into_iter().map(|key| Event::Delete { key, revision }));
                    if events.len() <= MAX_CHANGES {
                        self.rows.delete_range(from, to)?;
                    }
                }
            }
            if events.len() > MAX_CHANGES {
                return Err(CommitError::from(BatchError::TooManyChanges).into());
            }
        }
        Ok(events)
    }

    fn keep_alive(&self, key: &Key, wanted: Option<u64>, expires: Time, revision: u64, now: Time) -> Result<Vec<Event>, Fault> {
        let live = self.rows.item(key)?.filter(|item| !item.expired(now));
        let Some(mut item) = live else { return Err(CommitError::NotFound { key: key.clone() }.into()) };
        if wanted.is_some_and(|wanted| wanted != item.revision) {
            return Err(CommitError::Conflict { key: key.clone() }.into());
        }
        item.revision = revision;
        item.expires = Some(whole_millis(expires));
        self.rows.put(&item)?;
        Ok(vec![Event::Put(item)])
    }

    fn expire(&self, revision: u64, now: Time) -> Result<Vec<Event>, Fault> {
        let due = self.rows.due(now)?;
        for key in &due {
            self.rows.delete(key)?;
        }
        Ok(due.into_iter().map(|key| Event::Delete { key, revision }).collect())
    }

    /// After some failures SQLite has rolled back by itself.
    fn roll_back(&self) {
        if self.rows.connection.is_autocommit() {
            return;
        }
        if let Err(error) = self.rows.run("ROLLBACK") {
            tracing::warn!(place = %self.rows.place, %error, "could not roll back");
        }
    }

    /// Shortens the change table now and then: a quarter too long at most.
    fn prune(&mut self) {
        let due = self.unpruned_commits > self.options.history / 4 || self.unpruned_bytes > self.options.history_bytes / 4;
        if !due {
            return;
        }
        self.unpruned_commits = 0;
        self.unpruned_bytes = 0;
        let pruned = self.rows.run("BEGIN IMMEDIATE").and_then(|()| {
            self.rows.prune(self.options.history, self.options.history_bytes)?;
            self.rows.run("COMMIT")
        });
        if let Err(error) = pruned {
            tracing::warn!(place = %self.rows.place, %error, "could not shorten the history of changes; the next commits will try again");
            self.roll_back();
        }
    }
}

impl Write {
    fn size(&self) -> usize {
        match self {
            Self::Commit { batch, .. } => batch.ops.iter().map(Op::size).sum(),
            Self::KeepAlive { key, .. } => key.len(),
            Self::Expire { .. } | Self::Close { .. } => 0,
            #[cfg(test)]
            Self::Pragma { .. } => 0,
        }
    }

    fn answer(self, result: Result<Committed, CommitError>, count: usize) {
        match self {
            Self::Commit { reply, .. } | Self::KeepAlive { reply, .. } => drop(reply.send(result)),
            Self::Expire { reply } => drop(reply.send(result.map(|_| count))),
            Self::Close { reply } => reply.send(()).unwrap_or_default(),
            #[cfg(test)]
            Self::Pragma { reply, .. } => drop(reply.send(result.map(drop))),
        }
    }
}
