//! The thread that writes: one transaction for each group of requests, answered after `COMMIT`.
//!
//! What a request comes to is decided in `group`; here it gets into the file. When SQLite fails before `COMMIT`, nothing of the
//! group was written; when `COMMIT` fails, nobody can say, and all are told so.

use super::Options;
use super::rows::Rows;
use crate::group::{Engine, Needs, Written, commits, decide};
use crate::request::Request;
use crate::watch::Hub;
use crate::{Clock, CommitError, StoreError};
use futures::future::{BoxFuture, FutureExt, ready};
use std::sync::Arc;

pub(super) struct Writer {
    rows: Rows,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    options: Options,
    unpruned_commits: usize,
    unpruned_bytes: usize,
}

impl Writer {
    pub(super) fn new(rows: Rows, hub: Arc<Hub>, clock: Arc<dyn Clock>, options: Options) -> Self {
        Self { rows, hub, clock, options, unpruned_commits: 0, unpruned_bytes: 0 }
    }

    /// Tells the watchers first: who reads the answer and then watches must not be told of an older state.
    fn group(&mut self, group: &[Request]) -> Result<Written, CommitError> {
        let written = self.transaction(group)?;
        let commits = commits(&written.outcomes);
        self.unpruned_commits += commits.len();
        self.unpruned_bytes += group.iter().map(Request::size).sum::<usize>();
        self.hub.publish(commits);
        Ok(written)
    }

    fn transaction(&self, group: &[Request]) -> Result<Written, CommitError> {
        #[cfg(test)]
        self.options.run_scripts(&self.rows);
        let before = |error: rusqlite::Error| CommitError::Store(self.rows.named(&error));
        self.rows.run("BEGIN IMMEDIATE").map_err(before)?;
        let written = match self.attempt(group) {
            Ok(written) => written,
            Err(error) => {
                self.roll_back();
                return Err(before(error));
            }
        };
        if written.outcomes.iter().flatten().all(Vec::is_empty) {
            self.roll_back();
            return Ok(written);
        }
        match self.rows.run("COMMIT") {
            Ok(()) => Ok(written),
            Err(error) => {
                self.roll_back();
                // A busy COMMIT has written nothing; of all others SQLite may have written the last page before it failed.
                Err(match self.rows.named(&error) {
                    busy @ StoreError::Busy { .. } => busy.into(),
                    unclear => CommitError::Ambiguous(unclear.to_string()),
                })
            }
        }
    }

    /// Everything between `BEGIN` and `COMMIT`.
    fn attempt(&self, group: &[Request]) -> Result<Written, rusqlite::Error> {
        let now = self.clock.now();
        let base = self.rows.revision()?;
        let outcomes = decide(group, self.rows.known(&Needs::of(group), now)?, base, now);
        for events in outcomes.iter().flatten() {
            self.rows.apply(events)?;
        }
        Ok(Written { base, outcomes })
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

impl Engine for Writer {
    fn gather(&mut self, _request: &Request, _first: bool) -> bool {
        true
    }

    fn write<'a>(&'a mut self, group: &'a [Request]) -> BoxFuture<'a, Result<Written, CommitError>> {
        ready(self.group(group)).boxed()
    }

    fn rest(&mut self) -> BoxFuture<'_, ()> {
        self.prune();
        ready(()).boxed()
    }
}
