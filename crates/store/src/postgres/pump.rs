//! Feeds the watches: asks the database for commits after the last one known, several times a second, for all of them together.
//!
//! The handle's own commits are there at once, put by its writer. A database that went back (a standby was promoted that had not
//! yet received everything) is noticed by its revision, or by another transaction's name on a revision already seen.

use super::fault;
use super::link::Link;
use super::rows::{Changes, Sql};
use crate::StoreError;
use crate::watch::Hub;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The newest commit known, and the transaction that wrote it.
#[derive(Default)]
pub(super) struct Seen(Mutex<Option<(u64, Vec<u8>)>>);

impl Seen {
    pub(super) fn note(&self, revision: u64, writer: &[u8]) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.as_ref().is_none_or(|(known, _)| *known < revision) {
            *seen = Some((revision, writer.to_vec()));
        }
    }

    fn last(&self) -> Option<(u64, Vec<u8>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

pub(super) struct Pump {
    pub(super) link: Link,
    pub(super) sql: Sql,
    pub(super) hub: Arc<Hub>,
    pub(super) seen: Arc<Seen>,
    /// Rings when there is certainly something.
    pub(super) kick: Arc<Notify>,
    pub(super) poll: Duration,
}

impl Pump {
    /// Until closed.
    pub(super) async fn run(self, closed: CancellationToken) {
        let mut failing = false;
        let mut more = false;
        loop {
            if !more {
                tokio::select! {
                    () = closed.cancelled() => return,
                    () = self.kick.notified() => {}
                    () = tokio::time::sleep(self.poll) => {}
                }
            }
            let looked = tokio::select! {
                () = closed.cancelled() => return,
                looked = tokio::time::timeout(Duration::from_secs(20), self.look()) => looked.unwrap_or_else(|_| Err(self.link.silent())),
            };
            match looked {
                Ok(some) => {
                    failing = false;
                    more = some;
                }
                Err(error) => {
                    more = false;
                    // Said once, not many times a second.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "could not look for changes; trying again");
                    }
                    tokio::select! {
                        () = closed.cancelled() => return,
                        () = tokio::time::sleep(crate::remote::pause(4)) => {}
                    }
                }
            }
        }
    }

    /// Whether there may be more at once.
    async fn look(&self) -> Result<bool, StoreError> {
        let live = self.link.live().await?;
        let seen = self.seen.last();
        let latest = self.hub.latest();
        // One after the other: see `lanes`.
        let asked = async {
            let changes = self.sql.changes(&live, latest).await?;
            let writer = match &seen {
                Some((revision, _)) => self.sql.written_by(&live, *revision).await?,
                None => None,
            };
            Ok((changes, writer))
        };
        let (changes, writer) = asked.await.map_err(|error| {
            self.link.forget(&live);
            fault::named(self.link.place(), &error)
        })?;
        let other = seen.is_some_and(|(_, known)| writer.is_some_and(|writer| writer != known));
        // The hub may have moved on since: then the answer is old, not the database.
        if changes.revision < latest || other {
            tracing::warn!(
                place = self.link.place(),
                had = latest,
                has = changes.revision,
                "the database has gone back; all watches start anew"
            );
            self.seen.forget();
            self.hub.rewind(changes.revision);
            return Ok(false);
        }
        let Changes { revision, commits, writer } = changes;
        let Some(last) = commits.last().map(|commit| commit.revision) else {
            // What is between is gone already.
            self.hub.advance(revision);
            return Ok(false);
        };
        if let Some(writer) = writer {
            self.seen.note(last, &writer);
        }
        self.hub.publish(commits);
        Ok(last < revision)
    }
}
