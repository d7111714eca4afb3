//! One SSH connection, from its first byte to the recording. Everything about russh stays in this module.
//!
//! **accept** (`serve`): a stream from the listener or the tunnel, a deadline until it is authenticated. **identify**
//! (`identify`): the certificate whose key was just proven. **decide** (`Connection::decide`): `rules::access` yields a
//! permit or a refusal; the permit is watched while it lasts (`watch`), and every channel and request passes the table of
//! `rules::channel` (`handler`). **act** (`session`, `forward`): a process as the target account, or a dialled
//! address. **record** (`crate::record`, `crate::events`).
//!
//! A holder of a valid certificate who may not enter is told why: he gets a channel on which nothing runs, with the reason
//! on its standard error. Strangers learn nothing.

mod account;
mod agent;
mod env;
mod forward;
mod guard;
mod handler;
mod identify;
mod input;
mod limits;
mod pty;
mod session;
mod spawn;
mod stream;

pub use guard::Guard;
pub use limits::{Present, Refusals};

use crate::{events::Audit, spool::Spool, world::HostKeys};
use client::{cache::Cache, trust::ClusterTrust};
use handler::Door;
use identify::Entered;
use net::{clock::SharedClock, shutdown::Shutdown, task::Group};
use rules::{
    Denied, Permit,
    access::{CurrentUser, RoleSet, SessionRequest, decide_session},
    permit::OpenSession,
};
use russh::{
    MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex,
    keys::{Algorithm, EcdsaCurve, PrivateKey},
    server,
};
use std::{borrow::Cow, net::SocketAddr, sync::Arc, time::Duration};
use stream::{Flow, Guarded};
use tokio::sync::watch as channel;
use types::{Event, EventKind, Public};

/// How connections are treated.
#[derive(Clone, Debug)]
pub struct Settings {
    /// From the first byte until the certificate was proven.
    pub auth_deadline: Duration,
    /// Between two questions whether the client is still there.
    pub keep_alive: Duration,
    /// A client that says nothing for so long, although asked, is gone.
    pub silence: Duration,
    /// Algorithms offered; tests may weaken them to speak by hand.
    pub preferred: Preferred,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            auth_deadline: Duration::from_secs(20),
            keep_alive: Duration::from_secs(30),
            silence: Duration::from_secs(900),
            preferred: preferred(),
        }
    }
}

/// What all connections of one SSH Service share.
pub struct Shared {
    pub cache: Cache,
    /// Whom to believe until the cache has spoken.
    pub joined_with: channel::Receiver<Arc<ClusterTrust>>,
    pub keys: channel::Receiver<Arc<HostKeys>>,
    pub clock: SharedClock,
    pub audit: Audit,
    pub spool: Spool,
    pub tasks: Group,
    pub shutdown: Shutdown,
    pub settings: Settings,
    /// Connections per user; begins empty.
    pub present: Present,
    /// Which refused certificates reach the audit log.
    pub refusals: Refusals,
    /// Ends the sessions' programs if this process is killed.
    pub guard: Guard,
}

impl Shared {
    pub(crate) fn host(&self) -> Arc<HostKeys> {
        self.keys.borrow().clone()
    }

    /// Whose certificates are believed now.
    fn trust(&self) -> Arc<ClusterTrust> {
        let cached = self.cache.trust();
        if cached.user_ssh.is_empty() { self.joined_with.borrow().clone() } else { cached }
    }
}

/// Where a connection came from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival {
    /// The client's address: seen here, or told by a Proxy that proved itself.
    pub client: Option<SocketAddr>,
    /// Where it was accepted, for a direct connection.
    pub local: Option<SocketAddr>,
}

/// Facts and switches of one connection.
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    pub(crate) arrival: Arrival,
    pub(crate) flow: Arc<Flow>,
    /// Set once, when everything on this connection must end: the reason for the user.
    pub(crate) over: channel::Sender<Option<Public>>,
    authenticated: channel::Sender<bool>,
}

/// Serves SSH on a stream until it ends. Errors of the peer are the peer's affair and only logged.
///
/// `entered` is called once a certificate was proven.
pub async fn serve<S: net::Io>(shared: Arc<Shared>, stream: S, arrival: Arrival, entered: impl FnOnce() + Send) {
    let (flow, config) = (Flow::new(), config(&shared));
    let _however_this_ends = CutOnDrop(flow.clone());
    let connection = Arc::new(Connection {
        shared: shared.clone(),
        arrival,
        flow: flow.clone(),
        over: channel::Sender::new(None),
        authenticated: channel::Sender::new(false),
    });
    let mut authenticated = connection.authenticated.subscribe();
    let mut over = connection.over.subscribe();
    let door = Door::new(connection.clone());
    let deadline = tokio::time::Instant::now() + shared.settings.auth_deadline;
    let begun = tokio::time::timeout_at(deadline, server::run_stream(Arc::new(config), Guarded::new(stream, flow.clone()), door)).await;
    let mut running = match begun {
        Ok(Ok(running)) => running,
        Ok(Err(error)) => return tracing::debug!(%error, "no SSH connection"),
        Err(_) => return tracing::debug!("no SSH identification in time"),
    };
    let handle = running.handle();
    let in_time =
        async { tokio::time::timeout_at(deadline, authenticated.wait_for(|done| *done)).await.is_ok_and(|result| result.is_ok()) };
    tokio::select! {
        end = &mut running => return log_end(end),
        in_time = in_time => if !in_time {
            return tracing::debug!("not authenticated in time");
        },
    }
    entered();
    let reason = tokio::select! {
        end = &mut running => return log_end(end),
        () = flow.silent_for(shared.settings.silence) => {
            return tracing::info!("the client is gone");
        }
        Ok(reason) = over.wait_for(Option::is_some) => reason.clone(),
        () = shared.shutdown.stopping() => {
            let reason = Some(Public::new(types::Code::Unavailable, "this host's SSH Service stops"));
            connection.over.send_replace(reason.clone());
            reason
        }
    };
    drop(over);
    // Sessions say their last words by themselves, each holding a receiver; then the connection goes.
    let words = reason.map_or_else(String::new, |reason| reason.to_string());
    let _last = tokio::time::timeout(LAST_WORDS, async {
        let _in_time = tokio::time::timeout(session::HANG_UP + Duration::from_secs(1), connection.over.closed()).await;
        let _gone = handle.disconnect(russh::Disconnect::ByApplication, words, String::new()).await;
        (&mut running).await
    })
    .await;
}

/// russh's task goes on by itself: without its stream it ends.
struct CutOnDrop(Arc<Flow>);
impl Drop for CutOnDrop {
    fn drop(&mut self) {
        self.0.cut();
    }
}

/// From the reason to the end of the connection.
const LAST_WORDS: Duration = Duration::from_secs(8);

fn log_end(end: Result<(), russh::Error>) {
    match end {
        Ok(()) => tracing::debug!("SSH connection closed"),
        Err(error) => tracing::debug!(%error, "SSH connection ended"),
    }
}

impl Connection {
    /// May this user enter, now? Asked at the start and whenever something changes.
    pub(crate) fn decide(&self, entered: &Entered) -> Result<Permit<OpenSession>, Denied> {
        self.decide_at(entered, self.shared.clock.now())
    }

    fn decide_at(&self, entered: &Entered, now: types::Time) -> Result<Permit<OpenSession>, Denied> {
        let (cache, host) = (&self.shared.cache, self.shared.host());
        let user = cache.user(&(&entered.identity.user).into());
        let current = user.as_deref().map_or(CurrentUser::Deleted, CurrentUser::Known);
        let roles = RoleSet::resolve(&entered.identity, cache.roles(), current);
        for problem in roles.problems() {
            tracing::debug!(%problem, user = %entered.identity.user, "a role cannot be judged whole");
        }
        decide_session(&SessionRequest {
            cluster: cache.cluster(),
            identity: &entered.identity,
            roles: &roles,
            host: host.identity.id,
            hostname: host.identity.name.as_str(),
            labels: &host.labels,
            login: &entered.login,
            peer: self.arrival.client.map(|client| client.ip()),
            locks: &cache.locks(),
            now,
        })
    }

    /// The same for a session that runs: a certificate that ended since matters only if a role says so.
    fn decide_again(&self, entered: &Entered) -> Result<Permit<OpenSession>, Denied> {
        let now = self.shared.clock.now();
        let just_before = entered.identity.expires.minus(Duration::from_secs(1));
        let permit = self.decide_at(entered, now.min(just_before))?;
        match permit.deadline {
            Some(deadline) if deadline <= now => Err(Denied::Expired { who: entered.identity.user.to_string(), at: deadline }),
            Some(_) | None => Ok(permit),
        }
    }

    /// An event about this connection.
    pub(crate) fn event(&self, kind: EventKind) -> Event {
        let host = self.shared.host();
        let event = Event::new(kind, self.shared.clock.now(), uuid::Uuid::new_v4())
            .with("cluster_name", self.shared.cache.cluster().as_str())
            .with("server_id", host.identity.id.to_string())
            .with("server_hostname", host.identity.name.as_str());
        match self.arrival.client {
            Some(client) => event.with("addr.remote", client.to_string()),
            None => event,
        }
    }
}

/// Watches a permit for as long as its connection lasts: when the answer becomes no, everything on it ends.
async fn watch(connection: Arc<Connection>, entered: Entered) {
    /// The clock may be moved: looked at again at least so often.
    const AGAIN: Duration = Duration::from_secs(30);
    let mut changes = connection.shared.cache.changed();
    loop {
        let wait = match connection.decide_again(&entered) {
            Ok(permit) => permit.deadline.map_or(AGAIN, |deadline| deadline.since(connection.shared.clock.now()).min(AGAIN)),
            Err(denied) => {
                tracing::info!(user = %entered.identity.user, %denied, "a permit ended with its connection");
                let event = connection.event(EventKind::SessionRejected).with("user", entered.identity.user.as_str());
                connection
                    .shared
                    .audit
                    .emit(event.with("login", entered.login.as_str()).with("error", denied.to_string()).with("running", true))
                    .await;
                connection.over.send_replace(Some(denied.public()));
                return;
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { tokio::time::sleep(wait).await },
            () = tokio::time::sleep(wait.max(Duration::from_millis(10))) => {}
            () = connection.over.closed() => return,
        }
    }
}

/// Data in one packet: with what SSH puts around it, four TLS records, half as many packets as OpenSSH's 32 KiB.
/// russh takes no more than 65,535; a client that sends less is not asked for more.
pub(crate) const PACKET: u32 = 65_490;

fn config(shared: &Shared) -> server::Config {
    let host = shared.host();
    server::Config {
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-Lockgate")),
        methods: MethodSet::from([MethodKind::PublicKey].as_slice()),
        auth_rejection_time: Duration::from_millis(300),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![PrivateKey::clone(&host.ssh_key)],
        certificates: vec![host.ssh_certificate.clone()],
        // What may be under way to one channel; the sum over channels stays below what `Guarded` reads ahead.
        window_size: 512 * 1024,
        maximum_packet_size: PACKET,
        channel_buffer_size: 8,
        event_buffer_size: 32,
        preferred: shared.settings.preferred.clone(),
        max_auth_attempts: 6,
        // Deadlines are in `serve`: russh counts a client that was told to wait as gone.
        inactivity_timeout: None,
        keepalive_interval: Some(shared.settings.keep_alive),
        keepalive_max: 0,
        nodelay: true,
        ..server::Config::default()
    }
}

/// AES-GCM and nothing else. It is not open to prefix truncation (attack table, row 20; CVE-2023-48795), as ChaCha20 and the
/// encrypt-then-MAC kinds are with clients that lack strict key exchange; russh does not tell a server whether the client has
/// it. OpenSSH has had AES-GCM since 6.2. It is also the fastest where the CPU has AES: 2.5 times ChaCha20 here.
fn preferred() -> Preferred {
    Preferred {
        kex: Cow::Borrowed(&[
            kex::MLKEM768X25519_SHA256,
            kex::CURVE25519,
            kex::CURVE25519_PRE_RFC_8731,
            kex::EXTENSION_SUPPORT_AS_SERVER,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
        ]),
        key: Cow::Borrowed(&[Algorithm::Ed25519, Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }]),
        cipher: Cow::Borrowed(&[cipher::AES_256_GCM, cipher::AES_128_GCM]),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::default()
    }
}
