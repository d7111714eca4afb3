//! The last of the five steps: refusals that happen at this door reach the audit log.
//!
//! Events go through a bounded queue to the disk (`spool`) and from there to the Auth Service; while it is away they wait, also across
//! restarts. When there is no room the newest are counted and lost, because a door that stops for its diary can be stopped by whoever
//! knocks often. What strangers can cause is bounded per source besides.

mod spool;

use crate::metrics::Metrics;
use client::api::Api;
use futures::future::BoxFuture;
use net::{
    backoff::Backoff,
    clock::SharedClock,
    rate::{Buckets, Rate},
    shutdown::Shutdown,
    task::Group,
};
use spool::{Spool, Taken};
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use types::{Event, EventKind, HostId, Public, UserIdentity};
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
    /// With `dir`, what cannot be delivered waits there.
    pub(crate) fn start(
        group: &Group,
        dir: Option<PathBuf>,
        api: Api,
        clock: SharedClock,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30), rand::random());
        let keeper = Keeper { spool: Spool::new(dir), api, metrics: metrics.clone(), shutdown, backoff };
        group.spawn("record", keeper.run(inbox));
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

    /// Waits until what was put before has been sent, or at the end at least kept; or the deadline.
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
            tracing::warn!("an audit event was lost: the queue to the disk is full");
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

/// Sends them in order, and how many nobody will ever take; an error says that the rest has to wait.
async fn send(api: Api, events: Vec<Event>) -> Result<usize, Public> {
    let mut lost = 0;
    for some in events.chunks(BATCH) {
        let refused = api.emit_events(some).await?;
        refused.iter().for_each(|event| tracing::error!(why = event.why, "the Auth Service refuses an audit event; it is lost"));
        lost += refused.len();
    }
    Ok(lost)
}

/// Ends with how many were lost.
type Delivery = BoxFuture<'static, Result<usize, Public>>;

/// Keeps what comes, also while a delivery is under way, and delivers what was kept.
struct Keeper {
    spool: Spool,
    api: Api,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    backoff: Backoff,
}

impl Keeper {
    async fn run(mut self, mut inbox: mpsc::Receiver<Entry>) {
        let (mut entries, mut waiting): (Vec<Entry>, Vec<oneshot::Sender<()>>) = (Vec::new(), Vec::new());
        let mut under_way: Option<(Taken, usize, Delivery)> = None;
        let mut next = Instant::now();
        loop {
            let due = under_way.is_none() && !self.spool.is_empty();
            if under_way.is_none() && !due {
                waiting.drain(..).for_each(answer);
            }
            let delivering = async {
                match &mut under_way {
                    Some((_, _, delivery)) => delivery.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                taken = inbox.recv_many(&mut entries, QUEUE) => {
                    if taken == 0 {
                        return;
                    }
                    let asked = self.keep(entries.drain(..)).await;
                    if !asked.is_empty() {
                        next = Instant::now();
                        waiting.extend(asked);
                    }
                }
                () = tokio::time::sleep_until(next), if due => match self.spool.next(BATCH).await {
                    Ok(Some(batch)) => {
                        under_way = Some((batch.taken, batch.unreadable, Box::pin(send(self.api.clone(), batch.events))));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::error!(%error, "audit events that wait cannot be read now; they stay there");
                        next = Instant::now() + self.backoff.next();
                    }
                },
                delivered = delivering => {
                    let Some((taken, unreadable, _)) = under_way.take() else { continue };
                    match self.settle(taken, delivered.map(|lost| lost + unreadable)) {
                        Ok(()) => self.backoff.reset(),
                        Err(()) => {
                            next = Instant::now() + self.backoff.next();
                            // What waits outlives this process.
                            if self.shutdown.is_stopping() {
                                waiting.drain(..).for_each(answer);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Returns who waits until all this has been sent.
    async fn keep(&mut self, entries: impl Iterator<Item = Entry>) -> Vec<oneshot::Sender<()>> {
        let (mut events, mut asked) = (Vec::new(), Vec::new());
        for entry in entries {
            match entry {
                Entry::Event(event) => events.push(*event),
                Entry::Flush(done) => asked.push(done),
            }
        }
        if !events.is_empty() {
            let lost = self.spool.keep(events).await;
            self.lost(lost);
        }
        asked
    }

    /// Whether it is done with.
    fn settle(&mut self, taken: Taken, delivered: Result<usize, Public>) -> Result<(), ()> {
        match delivered {
            Ok(lost) => {
                self.lost(lost);
                let forgotten = self.spool.forget(taken);
                forgotten.map_err(|error| tracing::error!(%error, "delivered audit events cannot be deleted from the disk"))
            }
            Err(error) => {
                tracing::debug!(%error, "audit events could not be sent yet");
                Err(())
            }
        }
    }

    fn lost(&self, count: usize) {
        if count > 0 {
            self.metrics.events_lost.add(u64::try_from(count).unwrap_or(u64::MAX));
            tracing::error!(lost = count, "audit events were lost");
        }
    }
}

fn answer(done: oneshot::Sender<()>) {
    // Whoever waited may have given up.
    let _ = done.send(());
}
