//! The transaction: lock the head, read what the group needs, decide, write, `COMMIT`; two round trips for the whole group.
//!
//! Until `COMMIT` is sent a failure means that nothing was written, and the group is tried again on a new connection. After
//! that, nobody knows: so the head is locked once more, which waits until the lost transaction has ended either way, and the
//! change table is asked whether it holds the transaction's random name. Only when it surely does not is the group tried again.

use super::link::{Link, Live};
use super::pump::Seen;
use super::rows::Sql;
use super::{Options, fault};
use crate::group::{Engine, Needs, Written, commits, decide};
use crate::remote::Patience;
use crate::request::Request;
use crate::watch::Hub;
use crate::{Clock, CommitError, StoreError};
use futures::future::{BoxFuture, FutureExt};
use rand::RngExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub(super) struct Writer {
    link: Link,
    sql: Sql,
    options: Options,
    begin: String,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    seen: Arc<Seen>,
    kick: Arc<Notify>,
    closed: CancellationToken,
    unpruned_commits: usize,
    unpruned_bytes: usize,
}

/// How an attempt failed.
enum Lost {
    /// Nothing was written.
    Before(StoreError),
    /// `COMMIT` was sent and not answered.
    Unclear { done: Written, name: [u8; 16], detail: String },
}

/// What became of a lost transaction.
enum Fate {
    Done,
    NotDone,
    Unknown,
}

impl Writer {
    #[allow(clippy::too_many_arguments, reason = "the parts of one handle, put together in one place")]
    pub(super) fn new(
        link: Link,
        sql: Sql,
        options: Options,
        hub: Arc<Hub>,
        clock: Arc<dyn Clock>,
        seen: Arc<Seen>,
        kick: Arc<Notify>,
        closed: CancellationToken,
    ) -> Self {
        let stall = options.stall.as_millis().max(1);
        // A little longer than a stalled transaction may live, so that those who wait outlast it.
        let wait = (options.stall + options.stall / 2).as_millis().max(1);
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = {stall}; SET LOCAL lock_timeout = {wait}"
        );
        Self { link, sql, options, begin, hub, clock, seen, kick, closed, unpruned_commits: 0, unpruned_bytes: 0 }
    }

    /// How long one round trip may take, the wait for the lock included.
    fn deadline(&self) -> Duration {
        self.options.stall * 2
    }

    async fn group(&mut self, group: &[Request]) -> Result<Written, CommitError> {
        let mut patience = Patience::new(self.options.patience);
        loop {
            let lost = match self.attempt(group).await {
                Ok((written, name)) => return Ok(self.told(written, name)),
                Err(lost) => lost,
            };
            match lost {
                Lost::Before(error) => {
                    if !(fault::passes(&error) && patience.again(&self.closed).await) {
                        return Err(error.into());
                    }
                }
                Lost::Unclear { done, name, detail } => match self.fate(done.base + 1, &name, &mut patience).await {
                    Fate::Done => return Ok(self.told(done, name)),
                    Fate::NotDone if patience.again(&self.closed).await => {}
                    Fate::NotDone => return Err(StoreError::Unreachable { place: self.link.place().into(), detail }.into()),
                    Fate::Unknown => return Err(CommitError::Ambiguous(detail)),
                },
            }
        }
    }

    /// Tells the watchers first: who reads the answer and then watches must not be told of an older state.
    fn told(&mut self, written: Written, name: [u8; 16]) -> Written {
        let commits = commits(&written.outcomes);
        if let Some(last) = commits.last().map(|commit| commit.revision) {
            self.unpruned_commits += commits.len();
            if self.hub.publish_next(commits) {
                self.seen.note(last, &name);
            } else {
                self.kick.notify_one();
            }
        }
        written
    }

    async fn attempt(&self, group: &[Request]) -> Result<(Written, [u8; 16]), Lost> {
        let live = self.link.live().await.map_err(Lost::Before)?;
        let reading = tokio::time::timeout(self.deadline(), self.read(&live, group));
        let (base, outcomes) = match reading.await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => {
                let named = self.link.lost(&live, &error);
                self.roll_back(&live).await;
                return Err(Lost::Before(named));
            }
            Err(_) => {
                self.link.forget(&live);
                return Err(Lost::Before(self.link.silent()));
            }
        };
        let name: [u8; 16] = rand::rng().random();
        let written = Written { base, outcomes };
        let events: Vec<_> = written.outcomes.iter().flatten().flatten().collect();
        if events.is_empty() {
            self.roll_back(&live).await;
            return Ok((written, name));
        }
        // One after the other in the stream, but not waiting for each other: a statement that fails turns COMMIT into ROLLBACK.
        let writing = async { futures::join!(self.sql.write(&live, &events, &name), live.batch_execute("COMMIT")) };
        let detail = match tokio::time::timeout(self.deadline(), writing).await {
            Ok((Ok(()), Ok(()))) => return Ok((written, name)),
            Ok((Err(error), Ok(()))) => return Err(Lost::Before(self.link.lost(&live, &error))),
            // The connection may have gone in the middle: then both fail, and which came first does not matter.
            Ok((Ok(()) | Err(_), Err(error))) => self.link.lost(&live, &error).to_string(),
            Err(_) => self.link.silent().to_string(),
        };
        self.link.forget(&live);
        drop(events);
        Err(Lost::Unclear { done: written, name, detail })
    }

    /// The first round trip: the revision under the lock, and what each request comes to.
    async fn read(&self, live: &Live, group: &[Request]) -> Result<(u64, Vec<crate::group::Outcome>), tokio_postgres::Error> {
        let needs = Needs::of(group);
        let now = self.clock.now();
        let (begun, locked, base, known) = futures::join!(
            live.batch_execute(&self.begin),
            live.query_typed_one(&self.sql.lock, &[]),
            // A statement of its own, which begins when the lock is there: it sees what the last holder did.
            self.sql.revision(live),
            self.sql.known(live, &needs, now)
        );
        begun?;
        locked?;
        let base = base?;
        Ok((base, decide(group, known?, base, now)))
    }

    /// Ends a transaction that wrote nothing. When that fails the connection is dropped, which does the same.
    async fn roll_back(&self, live: &Live) {
        let done = tokio::time::timeout(self.deadline(), live.batch_execute("ROLLBACK")).await;
        if !matches!(done, Ok(Ok(()))) {
            self.link.forget(live);
        }
    }

    /// Looks a lost transaction up, for as long as there is patience.
    async fn fate(&self, first: u64, name: &[u8; 16], patience: &mut Patience) -> Fate {
        loop {
            match tokio::time::timeout(self.deadline(), self.look_up(first, name)).await {
                Ok(Ok(fate)) => return fate,
                Ok(Err(error)) => tracing::debug!(%error, "could not look up a lost transaction yet"),
                Err(_) => drop(self.link.silent()),
            }
            if !patience.again(&self.closed).await {
                return Fate::Unknown;
            }
        }
    }

    async fn look_up(&self, first: u64, name: &[u8; 16]) -> Result<Fate, StoreError> {
        let live = self.link.live().await?;
        let asked = futures::join!(
            live.batch_execute(&self.begin),
            live.query_typed_one(&self.sql.lock, &[]),
            self.sql.revision(&live),
            self.sql.written_by(&live, first),
            live.batch_execute("ROLLBACK")
        );
        let lost = |error: tokio_postgres::Error| {
            self.link.forget(&live);
            fault::named(self.link.place(), &error)
        };
        let (begun, locked, revision, writer, _ended) = asked;
        begun.map_err(lost)?;
        locked.map_err(lost)?;
        let revision = revision.map_err(lost)?;
        Ok(match writer.map_err(lost)? {
            Some(writer) if writer == name => Fate::Done,
            Some(_) => Fate::NotDone,
            None if revision < first => Fate::NotDone,
            // So much was written since that the table has forgotten.
            None => Fate::Unknown,
        })
    }

    /// Shortens the change table now and then: a quarter too long at most.
    async fn prune(&mut self) {
        let due = self.unpruned_commits > self.options.history / 4 || self.unpruned_bytes > self.options.history_bytes / 4;
        if !due {
            return;
        }
        self.unpruned_commits = 0;
        self.unpruned_bytes = 0;
        let pruning = async {
            let live = self.link.live().await?;
            let pruned = self.sql.prune(&live, self.options.history, self.options.history_bytes).await;
            pruned.map_err(|error| {
                self.link.forget(&live);
                fault::named(self.link.place(), &error)
            })
        };
        match tokio::time::timeout(self.deadline(), pruning).await.unwrap_or_else(|_| Err(self.link.silent())) {
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "could not shorten the history of changes; later commits will try again"),
        }
    }
}

impl Engine for Writer {
    fn gather(&mut self, _request: &Request, _first: bool) -> bool {
        true
    }

    fn write<'a>(&'a mut self, group: &'a [Request]) -> BoxFuture<'a, Result<Written, CommitError>> {
        self.unpruned_bytes += group.iter().map(Request::size).sum::<usize>();
        self.group(group).boxed()
    }

    fn rest(&mut self) -> BoxFuture<'_, ()> {
        self.prune().boxed()
    }
}
