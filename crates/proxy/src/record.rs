//! The last of the five steps: refusals that happen at this door reach the audit log.
//!
//! Events go through a bounded queue to the Auth Service. While it is away they wait there; when the queue is full the newest
//! are counted and lost, because a door that stops for its diary can be stopped by whoever knocks often. What strangers can
//! cause is bounded per source besides.

use crate::metrics::Metrics;
use client::api::Api;
use net::{
    backoff::Backoff,
    clock::SharedClock,
    rate::{Buckets, Rate},
    shutdown::Shutdown,
    task::Group,
};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use types::{Code, Event, EventKind, HostId, Public, UserIdentity};
use wire::hello::Hello;

const QUEUE: usize = 1024;
/// Events sent in one call.
const BATCH: usize = 100;
/// Events that one source may cause: strangers' refusals.
const STRANGERS: Rate = Rate { burst: 20, per_second: 0.2 };

enum Entry {
    Event(Box<Event>),
    Flush(oneshot::Sender<()>),
}

/// Takes events without waiting. Clones share the queue.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Entry>,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    begun: Instant,
    strangers: Arc<Mutex<Buckets>>,
}

impl Recorder {
    pub(crate) fn start(group: &Group, api: Api, clock: SharedClock, metrics: Arc<Metrics>, shutdown: Shutdown) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE);
        group.spawn("record", send_all(inbox, api, metrics.clone(), shutdown));
        Self { queue, clock, metrics, begun: Instant::now(), strangers: Arc::new(Mutex::new(Buckets::new(STRANGERS))) }
    }

    /// A user was refused the way to a host.
    pub(crate) fn access_denied(&self, user: &UserIdentity, peer: SocketAddr, target: &str, error: &Public) {
        self.metrics.refused(error);
        tracing::info!(user = %user.user, %peer, target, %error, "refused");
        let event = self.event(EventKind::AccessDenied).with("user", user.user.as_str()).with("server", target).with("proto", "ssh");
        self.put(failure(event, Some(peer), error));
    }

    /// A session of theirs had to be cut here: the host did not end it although it may not go on.
    pub(crate) fn cut(&self, user: &UserIdentity, peer: SocketAddr, host: HostId, error: &Public) {
        self.metrics.refused(error);
        tracing::warn!(user = %user.user, %peer, %host, %error, "cut a session that its host did not end");
        let event = self.event(EventKind::AccessDenied).with("user", user.user.as_str());
        // Not `server_id`, which is who says so: the Auth Service takes no events in another host's name.
        let event = event.with("target_id", host.to_string());
        self.put(failure(event.with("proto", "ssh").with("running", true), Some(peer), error));
    }

    /// Somebody came whose certificate is not good enough for this door.
    pub(crate) fn stranger(&self, peer: SocketAddr, door: &str, error: &Public) {
        self.metrics.refused(error);
        tracing::debug!(%peer, door, %error, "refused");
        if self.few_from(peer) {
            let event = self.event(EventKind::AccessDenied).with("proto", door);
            self.put(failure(event, Some(peer), error));
        }
    }

    /// A handshake was refused by us, or by the peer.
    pub(crate) fn version_refused(&self, peer: Option<SocketAddr>, hello: Option<&Hello>, error: &Public, edge: &str) {
        self.metrics.refused(error);
        tracing::info!(?peer, version = hello.map(|hello| hello.version.as_str()), edge, %error, "refused because of its version");
        if peer.is_none_or(|peer| self.few_from(peer)) {
            self.put(failure(about(self.event(EventKind::VersionRefused), hello, edge), peer, error));
        }
    }

    /// A member goes on although rule G6 says otherwise.
    pub(crate) fn version_skipped(&self, peer: SocketAddr, hello: &Hello, edge: &str) {
        tracing::warn!(%peer, version = hello.version, edge, "version check skipped by the peer");
        self.put(about(self.event(EventKind::VersionSkipped), Some(hello), edge).with("addr.remote", peer.to_string()));
    }

    /// Waits until what was put before has been sent, or the deadline.
    pub(crate) async fn flush(&self, deadline: Duration) {
        let (done, sent) = oneshot::channel();
        if self.queue.try_send(Entry::Flush(done)).is_ok() {
            let _ = tokio::time::timeout(deadline, sent).await;
        }
    }

    fn few_from(&self, peer: SocketAddr) -> bool {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner).take(peer.ip(), self.begun.elapsed())
    }

    fn event(&self, kind: EventKind) -> Event {
        Event::new(kind, self.clock.now(), uuid::Uuid::now_v7())
    }

    fn put(&self, event: Event) {
        if self.queue.try_send(Entry::Event(Box::new(event))).is_err() {
            self.metrics.events_lost.add(1);
            tracing::warn!("an audit event was lost: the queue to the Auth Service is full");
        }
    }
}

fn about(event: Event, hello: Option<&Hello>, edge: &str) -> Event {
    let Some(hello) = hello else { return event.with("edge", edge) };
    // Text that a stranger chose: bounded and printable.
    let tame = |text: &str| text.chars().take(64).flat_map(char::escape_default).collect::<String>();
    event.with("edge", edge).with("version", tame(&hello.version)).with("role", tame(&hello.role))
}

fn failure(event: Event, peer: Option<SocketAddr>, error: &Public) -> Event {
    let event = event.with("success", false).with("error", error.message.as_str()).with("error_code", error.code.as_str());
    match peer {
        Some(peer) => event.with("addr.remote", peer.to_string()),
        None => event,
    }
}

/// Whether the same events may be taken later.
fn away(error: &Public) -> bool {
    matches!(error.known(), Some(Code::Unavailable | Code::Unreachable | Code::Timeout | Code::RateLimited))
}

async fn send_all(mut inbox: mpsc::Receiver<Entry>, api: Api, metrics: Arc<Metrics>, shutdown: Shutdown) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30), rand::random());
    let mut entries = Vec::new();
    while inbox.recv_many(&mut entries, BATCH).await > 0 {
        let (mut events, mut waiting) = (Vec::new(), Vec::new());
        for entry in entries.drain(..) {
            match entry {
                Entry::Event(event) => events.push(*event),
                Entry::Flush(done) => waiting.push(done),
            }
        }
        while !events.is_empty() {
            match api.emit_events(&events).await {
                Ok(refused) => {
                    for event in &refused {
                        tracing::error!(why = event.why, "an audit event was refused");
                    }
                    metrics.events_lost.add(u64::try_from(refused.len()).unwrap_or(u64::MAX));
                    events.clear();
                }
                // Auth is away: keep trying, unless we are to end.
                Err(error) if away(&error) && !shutdown.is_stopping() => {
                    tracing::debug!(%error, waiting = events.len(), "audit events could not be sent yet");
                    tokio::select! {
                        () = shutdown.stopping() => {}
                        () = tokio::time::sleep(backoff.next()) => {}
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, lost = events.len(), "audit events were lost");
                    metrics.events_lost.add(u64::try_from(events.len()).unwrap_or(u64::MAX));
                    events.clear();
                }
            }
        }
        backoff.reset();
        for done in waiting {
            let _ = done.send(());
        }
    }
}
