//! The audit log: what happened, hash-chained, durable before it is acknowledged.
//!
//! [`Audit::record`] returns when the event is on disk. The queue is bounded; when the disk does not take events the caller
//! gets [`AuditError`] and refuses what it was about to do: never is an event dropped silently (attack table, row 32). Every
//! few seconds the head is also noted in the store ([`Audit::head`]), so that cutting the log's end off is noticed too.
//! Lines and files: `file`; appending: `writer`; reading: `search`.

mod file;
mod search;
mod writer;

pub(crate) use search::{Found, Query, Verdict};

use crate::metrics::{Metrics, count};
use net::{
    backoff::Backoff,
    clock::SharedClock,
    health::{Board, Health},
    shutdown::Shutdown,
    task::Group,
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};
use types::{Event, EventKind, Time, name::ClusterId};
use writer::Writer;

/// Calls that may wait for the writer.
const QUEUE: usize = 1024;
/// Calls that share one fsync.
const GROUP: usize = 256;
/// How long a caller waits for the disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// The end of the log: how many events there are, and the hash of the last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) events: u64,
    #[serde(with = "hash_text")]
    pub(crate) hash: [u8; 32],
}

impl Head {
    /// As it stands in a backup.
    pub(crate) fn hash_text(&self) -> String {
        file::hex(&self.hash)
    }
}

/// Where this log begins when the cluster goes on from a backup: behind the events that an earlier log holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Origin {
    #[serde(flatten)]
    head: Head,
    /// When the backup was restored.
    restored: Time,
}

impl Origin {
    /// Behind the last event that the backup knew of; `None` if the position is not one.
    pub(crate) fn behind(position: &backup::AuditPosition, restored: Time) -> Option<Self> {
        let hash = data_encoding::HEXLOWER.decode(position.hash.as_bytes()).ok()?.try_into().ok()?;
        Some(Self { head: Head { events: position.index.checked_add(1)?, hash }, restored })
    }
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }
    fn note(&self) -> String {
        let last = self.head.events.saturating_sub(1);
        format!("it continues an earlier log behind event {last}, hash {}: restored from a backup {}", self.head.hash_text(), self.restored)
    }
}

/// What the store knows of the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Its end, some seconds ago.
    pub(crate) anchor: Option<Head>,
    pub(crate) origin: Option<Origin>,
}

mod hash_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(hash: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::file::hex(hash))
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(from)?;
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("a hash of another length"))
    }
}

/// Why an event is not (known to be) in the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    #[error("the audit log does not take events: its disk is slow, full or broken")]
    Stuck,
    #[error("the audit log is closed")]
    Closed,
    #[error("the audit log cannot be read: {0}")]
    Read(#[from] io::Error),
}

struct Job {
    events: Vec<Event>,
    done: oneshot::Sender<()>,
}

/// The log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Audit {
    jobs: mpsc::Sender<Job>,
    closing: Shutdown,
    head: watch::Receiver<Head>,
    dir: Arc<PathBuf>,
    cluster: ClusterId,
    /// What the store knew of the log when this process began.
    known: Arc<Known>,
    clock: SharedClock,
}

impl Audit {
    /// Opens the log in `dir`, which must exist; mends a torn end.
    pub(crate) async fn open(
        dir: &Path,
        cluster: ClusterId,
        known: Known,
        clock: SharedClock,
        group: &Group,
        metrics: Arc<Metrics>,
        health: Board,
    ) -> Result<Self, AuditError> {
        let (at, origin) = (dir.to_owned(), known.origin.clone());
        let writer =
            tokio::task::spawn_blocking(move || Writer::open(&at, &cluster, origin.as_ref())).await.map_err(|_| AuditError::Closed)??;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (tell, head) = watch::channel(writer.head());
        if let Some(anchor) = &known.anchor
            && anchor.events > writer.head().events
        {
            tracing::error!(
                have = writer.head().events,
                known = anchor.events,
                "the audit log is shorter than what was acknowledged; run: tctl audit verify"
            );
        }
        let hands = clock.clone();
        let closing = Shutdown::new();
        let closed = closing.clone();
        group.spawn("audit", async move { write(writer, queue, Telling { head: tell, metrics, health }, hands, closed).await });
        Ok(Self { jobs, closing, head, dir: Arc::new(dir.to_owned()), cluster, known: Arc::new(known), clock })
    }

    /// Takes nothing more; what was handed over is still written.
    pub(crate) fn close(&self) {
        self.closing.stop();
    }

    /// A new event of this kind, now.
    pub(crate) fn event(&self, kind: EventKind) -> Event {
        Event::new(kind, self.clock.now(), uuid::Uuid::now_v7())
    }

    /// Returns when the event is durable.
    pub(crate) async fn record(&self, event: Event) -> Result<(), AuditError> {
        self.record_all(vec![event]).await
    }

    /// Returns when all events are durable. Events whose id was seen lately are already there.
    pub(crate) async fn record_all(&self, events: Vec<Event>) -> Result<(), AuditError> {
        if events.is_empty() {
            return Ok(());
        }
        let (done, written) = oneshot::channel();
        let work = async {
            self.jobs.send(Job { events, done }).await.map_err(|_| AuditError::Closed)?;
            written.await.map_err(|_| AuditError::Closed)
        };
        tokio::time::timeout(PATIENCE, work).await.map_err(|_| AuditError::Stuck)?
    }

    pub(crate) fn head(&self) -> Head {
        self.head.borrow().clone()
    }

    /// Whether the anchor may be moved to the present head: not when what it saw is missing, which is evidence.
    pub(crate) fn anchor_holds(&self) -> bool {
        self.known.anchor.as_ref().is_none_or(|anchor| anchor.events <= self.head().events)
    }

    pub(crate) async fn search(&self, query: Query) -> Result<Found, AuditError> {
        let (dir, head) = (self.dir.clone(), self.head());
        Ok(tokio::task::spawn_blocking(move || search::search(&dir, &query, &head)).await.map_err(|_| AuditError::Closed)??)
    }

    pub(crate) async fn verify(&self) -> Result<Verdict, AuditError> {
        let (dir, head, cluster, known) = (self.dir.clone(), self.head(), self.cluster, self.known.clone());
        let work = move || search::verify(&dir, &cluster, &head, &known);
        Ok(tokio::task::spawn_blocking(work).await.map_err(|_| AuditError::Closed)??)
    }
}

/// Its row on the health board.
const COMPONENT: &str = "audit";

/// Whom the writer tells how it goes.
struct Telling {
    head: watch::Sender<Head>,
    metrics: Arc<Metrics>,
    health: Board,
}

/// Owns the writer: takes what waits, writes it with one fsync, answers.
async fn write(mut writer: Writer, mut queue: mpsc::Receiver<Job>, telling: Telling, clock: SharedClock, closing: Shutdown) {
    telling.health.set(COMPONENT, Health::Ready);
    let mut jobs = Vec::new();
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2), 0);
    loop {
        tokio::select! {
            taken = queue.recv_many(&mut jobs, GROUP) => if taken == 0 { return },
            () = closing.stopping(), if !queue.is_closed() => {
                queue.close();
                continue;
            }
        }
        let events: Arc<Vec<Event>> = Arc::new(jobs.iter().flat_map(|job| job.events.iter().cloned()).collect());
        loop {
            let (batch, now) = (events.clone(), clock.now());
            let work = move || {
                let result = writer.append(&batch, now);
                (writer, result)
            };
            let Ok((back, result)) = tokio::task::spawn_blocking(work).await else {
                telling.health.set(COMPONENT, Health::Degraded("the audit writer broke; restart the Auth Service".into()));
                tracing::error!("the audit writer broke; nothing more can be recorded");
                return;
            };
            writer = back;
            match result {
                Ok(written) => {
                    telling.metrics.audit_events.fetch_add(written, Ordering::Relaxed);
                    telling.health.set(COMPONENT, Health::Ready);
                    backoff.reset();
                    break;
                }
                Err(error) => {
                    count(&telling.metrics.audit_write_errors);
                    // What cannot be recorded is not done, so this service serves nobody now.
                    telling.health.set(COMPONENT, Health::Degraded(format!("the audit log cannot be written: {error}")));
                    tracing::error!(%error, waiting = events.len(), "could not write the audit log; trying again");
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
        telling.head.send_replace(writer.head());
        for job in jobs.drain(..) {
            // A caller that gave up has its event in the log all the same.
            let _ = job.done.send(());
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
