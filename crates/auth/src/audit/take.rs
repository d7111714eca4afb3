//! Takes events into the files: one task, one fsync for what comes together, an answer when it is durable.
//!
//! Events get their place in the chain here. An event that the same reporter told lately is there already: an agent that repeats its
//! upload does not double it. Reporters choose their ids, so an id alone says nothing: nobody silences another's event by using up
//! its id. A write that fails is tried again until it succeeds; meanwhile the bounded queue fills and callers get an
//! error, so that what cannot be recorded is not done.

use super::{
    COMPONENT,
    files::Files,
    sink::{Sink as _, SinkError},
};
use crate::metrics::{Metrics, count};
use net::{
    backoff::Backoff,
    health::{Board, Health},
    shutdown::Shutdown,
};
use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};
use types::{Event, HostId};
use wire::audit::{Line, MAX_EVENT};

/// Calls that share one fsync.
const GROUP: usize = 256;
/// Events remembered.
const REMEMBERED: usize = 100_000;
/// Of them, read back at the start: repeats come within minutes.
const READ_BACK: usize = 10_000;
/// The field that says who reports an event; the Auth Service writes it over what a host says.
const REPORTER: &str = "server_id";

pub(super) struct Job {
    pub(super) events: Vec<Event>,
    pub(super) done: oneshot::Sender<()>,
}

/// What an event is recognised by when it comes again: its id, its name, and the server that reports it, which [`crate::api`] vouches
/// for. All three stand in the log, also in what is left of an oversized event: [`shortened`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Told {
    uid: uuid::Uuid,
    event: Box<str>,
    by: Box<str>,
}

impl Told {
    pub(super) fn of(event: &Event) -> Self {
        Self { uid: event.uid, event: event.event.as_str().into(), by: event.text(REPORTER).into() }
    }
}

/// Events seen lately.
#[derive(Default)]
pub(super) struct Seen {
    known: HashSet<Told>,
    order: VecDeque<Told>,
}

impl Seen {
    pub(super) async fn of(files: &Files) -> Result<Self, SinkError> {
        let mut seen = Self::default();
        for told in files.newest(READ_BACK).await? {
            seen.note(told);
        }
        Ok(seen)
    }

    /// Whether it is new.
    fn note(&mut self, told: Told) -> bool {
        let new = self.known.insert(told.clone());
        if new {
            self.order.push_back(told);
        }
        while self.order.len() > REMEMBERED {
            if let Some(old) = self.order.pop_front() {
                self.known.remove(&old);
            }
        }
        new
    }
}

pub(super) struct Taker {
    pub(super) files: Files,
    pub(super) chain: HostId,
    pub(super) seen: Seen,
    pub(super) queue: mpsc::Receiver<Job>,
    pub(super) closing: Shutdown,
    /// Stopped at the end: nothing more is written.
    pub(super) taken: Shutdown,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Board,
}

impl Taker {
    /// Until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        self.health.set(COMPONENT, Health::Ready);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 0);
        let mut jobs = Vec::new();
        loop {
            tokio::select! {
                taken = self.queue.recv_many(&mut jobs, GROUP) => if taken == 0 { return self.taken.stop() },
                () = self.closing.stopping(), if !self.queue.is_closed() => {
                    self.queue.close();
                    continue;
                }
            }
            let behind = self.files.head();
            let mut head = behind;
            let fresh = jobs.iter().flat_map(|job| &job.events).filter(|event| self.seen.note(Told::of(event)));
            let lines: Vec<Line> = fresh.map(|event| Line::chained(&mut head, shortened(event).into())).collect();
            while let Err(error) = self.files.append(self.chain, behind, &lines).await {
                count(&self.metrics.audit_write_errors);
                // What cannot be recorded is not done, so this service serves nobody now.
                self.health.set(COMPONENT, Health::Degraded(format!("the audit log cannot be written: {error}")));
                tracing::error!(%error, waiting = lines.len(), "could not write the audit log; trying again");
                tokio::time::sleep(backoff.next()).await;
            }
            backoff.reset();
            self.metrics.audit_events.fetch_add(u64::try_from(lines.len()).unwrap_or_default(), Ordering::Relaxed);
            self.health.set(COMPONENT, Health::Ready);
            for job in jobs.drain(..) {
                // A caller that gave up has its event in the log all the same.
                let _ = job.done.send(());
            }
        }
    }
}

/// The event's bytes, with long texts cut so that it fits; it then says so.
fn shortened(event: &Event) -> Vec<u8> {
    let json = serde_json::to_vec(event).unwrap_or_default();
    if json.len() <= MAX_EVENT {
        return json;
    }
    let mut short = event.clone();
    for value in short.fields.values_mut() {
        if serde_json::to_vec(&*value).map_or(0, |bytes| bytes.len()) > 1024 {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            *value = text.chars().take(512).collect::<String>().into();
        }
    }
    short.fields.insert("truncated".into(), true.into());
    let json = serde_json::to_vec(&short).unwrap_or_default();
    if json.len() <= MAX_EVENT {
        return json;
    }
    // Thousands of small fields: only the envelope is worth keeping, and who reported it.
    short.fields.retain(|field, _| [REPORTER, "server_hostname", "truncated"].contains(&field.as_str()));
    serde_json::to_vec(&short).unwrap_or_default()
}
