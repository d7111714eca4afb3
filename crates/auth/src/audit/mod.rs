//! The audit log: what happened, hash-chained, durable before it is acknowledged, and kept where auditors look.
//!
//! [`Audit::record`] returns when the event is in this Auth Service's files (`take`, `files`). With PostgreSQL configured it goes on
//! from there (`ship`, `postgres`), where the chains of all Auth Services lie together. Nothing is dropped silently: queues are
//! bounded, what waits is counted and told, and when events find no place the caller gets [`AuditError`] and refuses what it was
//! about to do (attack table, row 32). Every few seconds the head is noted in the store ([`Anchor`]), so that cutting the log's end
//! off is noticed too. Reading: `query`, `verify`, `export`; forgetting: `retention`; bytes: `wire::audit`. Guide: docs/audit.md.

mod export;
mod files;
mod postgres;
mod query;
mod retention;
mod settings;
mod ship;
mod sink;
mod take;
mod verify;

pub(crate) use query::{Found, Query, Row};
pub use settings::{Settings, Shared};
pub(crate) use sink::SinkError;
pub(crate) use verify::{AllKnown, ChainVerdict};

use crate::metrics::{Metrics, count};
use files::Files;
use net::{clock::SharedClock, health::Board, shutdown::Shutdown, task::Group};
use postgres::Postgres;
use serde::{Deserialize, Serialize};
use ship::{Bound, Shipped, Shipper, Watching};
use sink::{Checkpoint, Sink as _};
use std::{io, path::PathBuf, sync::Arc, time::Duration};
use take::{Job, Seen, Taker};
use tokio::sync::{mpsc, oneshot, watch};
use types::{Event, EventKind, HostId, Time, name::ClusterId};
pub(crate) use wire::audit::Head;

/// Its row on the health board.
const COMPONENT: &str = "audit";
/// Calls that may wait for the writer.
const QUEUE: usize = 1024;
/// How long a caller waits for the disk.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a start waits for PostgreSQL before it goes on without.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// What the store notes of a log, some seconds late.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Anchor {
    /// Its end.
    #[serde(flatten)]
    pub(crate) head: Head,
    /// How much of it had arrived in PostgreSQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) shipped: Option<Head>,
}

impl Anchor {
    /// Whether the other says nothing more.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let shipped = |anchor: &Self| anchor.shipped.map_or(0, |head| head.events);
        self.head.events >= other.head.events && shipped(self) >= shipped(other)
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
        let hash = wire::audit::Digest::from_hex(position.hash.as_bytes())?;
        Some(Self { head: Head { events: position.index.checked_add(1)?, hash }, restored })
    }
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }
    fn note(&self) -> String {
        let last = self.head.events.saturating_sub(1);
        format!("it continues an earlier log behind event {last}, hash {}: restored from a backup {}", self.head.hash, self.restored)
    }
}

/// What the store knows of one log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) anchor: Option<Anchor>,
    pub(crate) origin: Option<Origin>,
}

impl Known {
    fn shipped(&self) -> Option<Head> {
        self.anchor.as_ref().and_then(|anchor| anchor.shipped)
    }
}

/// Why an event is not (known to be) in the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    #[error("the audit log does not take events: its disk is slow, full or broken")]
    Stuck,
    #[error("the audit log takes no more: {0} events wait for PostgreSQL")]
    Backlog(u64),
    #[error("the audit log is closed")]
    Closed,
    #[error("the audit log cannot be opened: {0}")]
    Open(#[from] io::Error),
    /// The files lack what was acknowledged, and where it could be fetched from does not answer.
    #[error("the audit log lacks {missing} acknowledged events, and they cannot be fetched from PostgreSQL: {why}")]
    Short { missing: u64, why: SinkError },
    #[error("the audit log's settings: {0}")]
    Settings(#[from] store::remote::OpenError),
    #[error(transparent)]
    Sink(#[from] SinkError),
}

/// What a log is opened with.
pub(crate) struct Opening {
    /// Must exist.
    pub(crate) dir: PathBuf,
    pub(crate) cluster: ClusterId,
    pub(crate) host: HostId,
    pub(crate) name: String,
    /// What the store knew of the log when this process began.
    pub(crate) known: Known,
    pub(crate) settings: Settings,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Board,
}

/// The log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Audit(Arc<Inner>);

struct Inner {
    jobs: mpsc::Sender<Job>,
    closing: Shutdown,
    files: Files,
    postgres: Option<(Postgres, watch::Receiver<Shipped>)>,
    bound: Bound,
    cluster: ClusterId,
    host: HostId,
    known: Known,
    settings: Settings,
    clock: SharedClock,
    metrics: Arc<Metrics>,
}

impl Audit {
    /// Opens the log and mends a torn end; fetches from PostgreSQL what the files lost. Its tasks run in `group`.
    pub(crate) async fn open(opening: Opening, group: &Group) -> Result<Self, AuditError> {
        let Opening { dir, cluster, host, name, known, settings, clock, metrics, health } = opening;
        let begin = match &known.origin {
            Some(origin) => Checkpoint { head: origin.head, time: origin.restored, removed: 0 },
            None => Checkpoint { head: Head::genesis(&cluster), time: clock.now(), removed: 0 },
        };
        let (hands, named) = (clock.clone(), name.clone());
        let opened = tokio::task::spawn_blocking(move || Files::open(&dir, host, named, begin, hands));
        let files = opened.await.map_err(|_| AuditError::Closed)??;
        let postgres = settings.shared.as_ref().map(|shared| Postgres::new(&shared.options, cluster)).transpose()?;
        if let Some(sink) = &postgres {
            first_look(sink, &files, host, &known).await?;
        }
        let (have, noted) = (files.head().events, known.anchor.as_ref().map_or(0, |anchor| anchor.head.events));
        if have < noted {
            tracing::error!(have, known = noted, "the audit log is shorter than what was acknowledged; run: tctl audit verify");
        }
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (closing, taken) = (Shutdown::new(), Shutdown::new());
        let seen = Seen::of(&files).await?;
        let taker = Taker {
            files: files.clone(),
            chain: host,
            seen,
            queue,
            closing: closing.clone(),
            taken: taken.clone(),
            metrics: metrics.clone(),
            health: health.clone(),
        };
        group.spawn("audit", taker.run());
        let bound = Bound {
            most: settings.shared.as_ref().map_or(u64::MAX, |shared| shared.max_backlog),
            past: if known.shipped().is_none() { files.head().events } else { 0 },
        };
        let postgres = postgres.map(|sink| {
            let state = watch::Sender::new(Shipped { end: known.shipped(), ..Shipped::default() });
            let watched = state.subscribe();
            let watching = Watching {
                files: files.clone(),
                state: state.subscribe(),
                bound,
                clock: clock.clone(),
                metrics: metrics.clone(),
                health,
                closing: closing.clone(),
            };
            let shipper = Shipper { files: files.clone(), sink: sink.clone(), chain: host, name, state, closing: closing.clone(), taken };
            group.spawn("audit backlog", watching.run());
            group.spawn("audit to PostgreSQL", shipper.run());
            (sink, watched)
        });
        Ok(Self(Arc::new(Inner { jobs, closing, files, postgres, bound, cluster, host, known, settings, clock, metrics })))
    }

    /// Takes nothing more; what was handed over is still written.
    pub(crate) fn close(&self) {
        self.0.closing.stop();
    }

    /// A new event of this kind, now.
    pub(crate) fn event(&self, kind: EventKind) -> Event {
        Event::new(kind, self.now(), uuid::Uuid::now_v7())
    }

    /// Returns when the event is durable.
    pub(crate) async fn record(&self, event: Event) -> Result<(), AuditError> {
        self.record_all(vec![event]).await
    }

    /// Returns when all events are durable. Events that the same reporter told lately are already there.
    pub(crate) async fn record_all(&self, events: Vec<Event>) -> Result<(), AuditError> {
        if events.is_empty() {
            return Ok(());
        }
        let done = self.take(events).await;
        if done.is_err() {
            count(&self.0.metrics.audit_refused);
        }
        done
    }

    async fn take(&self, events: Vec<Event>) -> Result<(), AuditError> {
        if let Some((_, state)) = &self.0.postgres {
            let end = state.borrow().end;
            if self.0.bound.is_reached(&self.0.files, end) {
                return Err(AuditError::Backlog(ship::behind(&self.0.files, end)));
            }
        }
        let (done, written) = oneshot::channel();
        let work = async {
            self.0.jobs.send(Job { events, done }).await.map_err(|_| AuditError::Closed)?;
            written.await.map_err(|_| AuditError::Closed)
        };
        tokio::time::timeout(PATIENCE, work).await.map_err(|_| AuditError::Stuck)?
    }

    pub(crate) fn head(&self) -> Head {
        self.0.files.head()
    }

    /// What the store should know; `None` when what it saw is missing, which is evidence.
    pub(crate) fn anchor(&self) -> Option<Anchor> {
        let head = self.head();
        if self.0.known.anchor.as_ref().is_some_and(|anchor| anchor.head.events > head.events) {
            return None;
        }
        let shipped = self.0.postgres.as_ref().and_then(|(_, state)| state.borrow().end);
        Some(Anchor { head, shipped })
    }

    /// A page of events, and what it lacks.
    pub(crate) async fn search(&self, query: &Query) -> Result<(Found, Option<String>), AuditError> {
        let Some((sink, state)) = &self.0.postgres else { return Ok((self.0.files.search(query).await?, None)) };
        // First where it ends, then what it holds: what arrives in between is in both, and given once.
        let arrived = state.borrow().end.map_or(0, |end| end.events);
        let silent = |_| Err(SinkError::Unreachable { place: sink.place().into(), detail: "no answer in time".into() });
        match tokio::time::timeout(PATIENCE, sink.search(query)).await.unwrap_or_else(silent) {
            Ok(found) => {
                let waiting = self.0.files.search_from(query, arrived).await?;
                Ok((query::merge(query, found, waiting), None))
            }
            Err(error) => {
                let why = format!("only the events of this Auth Service: {error}");
                Ok((self.0.files.search(query).await?, Some(why)))
            }
        }
    }

    /// Whether one search finds the events of every Auth Service.
    pub(crate) fn is_shared(&self) -> bool {
        self.0.postgres.is_some()
    }

    fn now(&self) -> Time {
        self.0.clock.now()
    }
    fn files(&self) -> &Files {
        &self.0.files
    }
    fn postgres(&self) -> Option<&Postgres> {
        self.0.postgres.as_ref().map(|(sink, _)| sink)
    }
    /// The place up to which PostgreSQL has this log; `None` without PostgreSQL.
    fn arrived(&self) -> Option<u64> {
        self.0.postgres.as_ref().map(|(_, state)| state.borrow().end.map_or(0, |end| end.events))
    }
    fn chain(&self) -> HostId {
        self.0.host
    }
    fn cluster(&self) -> ClusterId {
        self.0.cluster
    }
    fn settings(&self) -> &Settings {
        &self.0.settings
    }
}

/// Looks at PostgreSQL before anything is written. What no waiting mends refuses the start. Files that lost their end, as those of a
/// machine that came back from an older image, get it back: or the chain would fork.
async fn first_look(sink: &Postgres, files: &Files, host: HostId, known: &Known) -> Result<(), AuditError> {
    let missing = known.anchor.as_ref().map_or(0, |anchor| anchor.head.events.saturating_sub(files.head().events));
    let silent = || SinkError::Unreachable { place: sink.place().into(), detail: "no answer in time".into() };
    let look = async {
        let chains = sink.chains().await?;
        Ok(chains.into_iter().find(|extent| extent.chain == host).map(|extent| extent.end))
    };
    match tokio::time::timeout(FIRST_LOOK, look).await.unwrap_or_else(|_| Err(silent())) {
        Ok(Some(end)) if end.events > files.head().events => fetch(sink, files, host, end).await,
        Ok(_) => Ok(()),
        Err(error) if !error.passes() => Err(error.into()),
        Err(why) if missing > 0 => Err(AuditError::Short { missing, why }),
        Err(error) => {
            tracing::warn!(%error, "audit events wait for PostgreSQL");
            Ok(())
        }
    }
}

/// Fetches the end that the files lack, if it is the end of this chain.
async fn fetch(sink: &Postgres, files: &Files, host: HostId, end: Head) -> Result<(), AuditError> {
    let mut head = files.head();
    let from = head.events;
    let mut lines = sink.read(host, from);
    while head.events < end.events {
        let (behind, batch) = (head, lines.next().await?);
        let follows = batch.iter().try_for_each(|line| head.follow(line.parts()));
        if batch.is_empty() || follows.is_err() {
            // Not one chain: told by the one who sends, and by verification.
            tracing::error!(from, "PostgreSQL has audit events that do not follow on those in the files; run: tctl audit verify");
            return Ok(());
        }
        files.append(host, behind, &batch).await?;
    }
    tracing::warn!(from, to = head.events, "audit events that the files had lost were fetched from PostgreSQL");
    Ok(())
}

#[cfg(test)]
mod tests;
