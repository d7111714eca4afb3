//! The SSH Service as a whole: [`Agent::build`] checks and opens what can fail, [`Agent::run`] serves until told otherwise.
//!
//! Draining takes no new sessions and waits for those that run; stopping ends them: programs get `HUP`, recordings are
//! completed. What changes meanwhile is followed in `follow.rs`. Last of all, events and recordings are delivered as far as the cluster answers; the rest stays in the spool for
//! the next start.

use crate::{
    direct::{self, Direct},
    events::{Audit, Keeper, Reports},
    follow,
    metrics::Metrics,
    proxies::{self, Proxies},
    rescue::{self, Quarantine, Rescue},
    spool::Spool,
    ssh::{self, Arrival, Guard, Present, Refusals, Settings, Shared},
    tunnel::{self, Dialer, Tunnel},
    world::{HostKeys, Upstream},
};
use client::{api::Api, cache::Cache, host::HostCredentials, trust::ClusterTrust};
use net::{
    backoff::Backoff,
    clock::SharedClock,
    health::{Board, Health},
    listen::{self, Limits, Port},
    shutdown::Shutdown,
    swap::Swap,
    task::Group,
    tls::{self, Certificates, ClientAuth, TlsError, TlsIdentity},
    turn::Turn,
};
use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
};
use types::{Labels, Version, name::BootId};
use wire::{alpn, hello::Hello};

/// From the order to stop until the last session has said its last words.
const LAST_WORDS: Duration = Duration::from_secs(12);
/// For delivering what is left.
const LAST_DELIVERY: Duration = Duration::from_secs(5);
const DELIVERY_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Settings of an SSH Service.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its `spool` directory is made here.
    pub data_dir: PathBuf,
    /// The host's own labels; those of its join token win.
    pub labels: Labels,
    /// `host:port` of each Proxy to hold a tunnel to.
    pub proxies: Vec<String>,
    /// Where to be reached directly. `None` for a host that joined by tunnel.
    pub listen_addr: Option<SocketAddr>,
    /// Rule G6.
    pub skip_version_check: bool,
    pub limits: Limits,
    pub settings: Settings,
}

impl Config {
    /// A host reached by tunnel through these Proxies.
    pub fn tunnel(data_dir: impl Into<PathBuf>, proxies: Vec<String>) -> Self {
        Self {
            data_dir: data_dir.into(),
            labels: Labels::new(),
            proxies,
            listen_addr: None,
            skip_version_check: false,
            limits: Limits::default(),
            settings: Settings::default(),
        }
    }
}

/// The process around the service.
pub struct World {
    pub clock: SharedClock,
    /// What this process claims to be.
    pub version: Version,
    pub health: Board,
    pub credentials: watch::Receiver<Arc<HostCredentials>>,
    pub api: Api,
    /// Fed with [`client::cache::AGENT_KINDS`].
    pub cache: Cache,
    /// This run of the process.
    pub boot: BootId,
    /// Already bound, instead of [`Config::listen_addr`].
    pub listener: Option<Port>,
    /// Tunnels are made once it is ours. When it is another's as the service drains, what has begun is still let in.
    pub turn: Turn,
    /// Ours once no process before this one has sessions, whose files are in the same spool.
    pub alone: Turn,
    /// Connections to be served as if they had come through a tunnel.
    pub given: Option<mpsc::Receiver<TcpStream>>,
}

/// Why an SSH Service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("open the spool {path}: {source}")]
    Spool { path: PathBuf, source: io::Error },
    #[error("listen on {addr}: {source}")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error("set up TLS: {0}")]
    Tls(#[from] TlsError),
    #[error("use the host's credentials: they have no SSH certificate")]
    NotAnSshHost,
    #[error("be reached: neither a Proxy nor a listening address is configured")]
    Unreachable,
}

/// A service that can be reached once it runs.
pub struct Agent {
    shared: Arc<Shared>,
    dialer: Arc<Dialer>,
    direct: Option<(Port, Arc<Direct>, Limits)>,
    addr: Option<SocketAddr>,
    events: Reports,
    metrics: Arc<Metrics>,
    upstream: Arc<dyn Upstream>,
    api: Api,
    keys: watch::Sender<Arc<HostKeys>>,
    joined_with: watch::Sender<Arc<ClusterTrust>>,
    certificate: Swap<TlsIdentity>,
    config: Config,
    health: Board,
    boot: BootId,
    turn: Turn,
    alone: Turn,
    given: Option<mpsc::Receiver<TcpStream>>,
    /// Programs and what belongs to them.
    tasks: Group,
    stop: Shutdown,
}

impl Agent {
    /// Opens spool and port. Nothing is served before [`Agent::run`].
    pub fn build(config: Config, world: World) -> Result<Self, AgentError> {
        let World { clock, version, health, credentials, api, cache, boot, listener, turn, alone, given } = world;
        let path = config.data_dir.join("spool");
        let spool = Spool::open(&path).map_err(|source| AgentError::Spool { path, source })?;
        let now = credentials.borrow().clone();
        let (keys, keys_now) = watch::channel(Arc::new(HostKeys::new(&now, &config.labels).ok_or(AgentError::NotAnSshHost)?));
        let (joined_with, trusted) = watch::channel(now.trust.clone());
        let listener = match (listener, config.listen_addr) {
            (Some(given), _) => Some(given),
            (None, Some(addr)) => Some(listen::bind(addr).map(Port::from).map_err(|source| AgentError::Listen { addr, source })?),
            (None, None) => None,
        };
        if listener.is_none() && config.proxies.is_empty() {
            return Err(AgentError::Unreachable);
        }
        let addr = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let authorities = follow::trust(&cache, &now).swap()?;
        let (audit, events) = Audit::new();
        let (tasks, stop) = (Group::new("ssh"), Shutdown::new());
        health.set("ssh", Health::Starting);
        let shared = Arc::new(Shared {
            cache,
            joined_with: trusted,
            keys: keys_now,
            clock: clock.clone(),
            audit,
            spool,
            tasks: tasks.clone(),
            shutdown: stop.clone(),
            settings: config.settings.clone(),
            present: Present::default(),
            refusals: Refusals::default(),
            guard: Guard::default(),
        });
        let hello = Hello::ours(&version, "node");
        let certificate = Swap::new(now.tls.clone());
        let direct = match listener {
            Some(listener) => {
                let tls = tls::server_config(
                    Certificates::current(certificate.clone()),
                    ClientAuth::Required,
                    &authorities,
                    &[alpn::SSH],
                    &clock,
                )?;
                let direct =
                    Direct { shared: shared.clone(), tls, authorities: authorities.clone(), clock: clock.clone(), hello: hello.clone() };
                Some((listener, Arc::new(direct), config.limits))
            }
            None => None,
        };
        let dialer = Arc::new(Dialer {
            credentials,
            authorities,
            clock,
            hello,
            skip_version_check: config.skip_version_check,
            made: Mutex::new(None),
        });
        Ok(Self {
            shared,
            dialer,
            direct,
            addr,
            events,
            metrics: Arc::default(),
            upstream: Arc::new(api.clone()),
            api,
            keys,
            joined_with,
            certificate,
            config,
            health,
            boot,
            turn,
            alone,
            given,
            tasks,
            stop,
        })
    }

    /// Where it listens, if it does: what the heartbeat tells.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.addr
    }

    /// Its numbers, of any moment.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// Serves until told otherwise.
    pub async fn run(self, shutdown: Shutdown) {
        let seed = self.boot.as_uuid().as_u64_pair().1;
        let (background, delivery, uploads) = (Group::new("agent background"), Group::new("agent delivery"), Group::new("agent uploads"));
        let backoff = || Backoff::new(DELIVERY_BACKOFF.0, DELIVERY_BACKOFF.1, seed);
        let sessions = Group::new("ssh connections");
        let quarantine = Quarantine::default();
        let proxies = self.start_tunnels(&quarantine, &sessions, &background, seed, &shutdown);
        let Self {
            shared,
            dialer,
            direct,
            addr: _,
            events,
            metrics,
            upstream,
            api: _,
            keys,
            joined_with,
            certificate,
            config,
            health,
            boot: _,
            turn,
            alone,
            given,
            tasks,
            stop,
        } = self;
        delivery.spawn("events", Keeper::new(shared.spool.dir(), upstream.clone(), backoff(), metrics).run(events, alone.clone()));
        uploads.spawn("recordings", {
            let (spool, audit, backoff) = (shared.spool.clone(), shared.audit.clone(), backoff());
            async move { spool.deliver(upstream, audit, backoff, alone).await }
        });
        background.spawn("credentials", follow::credentials(dialer.credentials.clone(), keys, joined_with, certificate, config.labels));
        background.spawn("authorities", follow::authorities(shared.cache.clone(), dialer.clone()));
        background.spawn("quarantine", rescue::follow_auth(shared.cache.clone(), quarantine.clone()));
        let asking = Rescue {
            quarantine: quarantine.clone(),
            dialer: dialer.clone(),
            proxies: proxies.clone(),
            given: config.proxies.clone(),
            listens: direct.is_some(),
            data_dir: config.data_dir.clone(),
        };
        background.spawn("rescue", rescue::keep(asking, seed, shutdown.clone()));
        background.spawn("health", follow::health(health, proxies, quarantine, config.proxies.len(), direct.is_some(), shutdown.clone()));

        if let Some(given) = given {
            background.spawn("given", serve_given(given, shared.clone(), sessions.clone()));
        }

        // Its own switch: handlers must live until their sessions have said their last words.
        let port = Shutdown::new();
        let listening = async {
            if let Some((listener, direct, limits)) = direct {
                listen::accept_loop(listener, limits, port.clone(), move |conn| direct::serve(direct.clone(), conn)).await;
            }
        };
        let ending = async {
            shutdown.draining().await;
            // What came here before another process's turn is served here.
            if turn.is_ours() {
                stop.drain();
            }
            port.drain();
            tokio::select! {
                () = run_out(&sessions, &tasks) => {}
                () = shutdown.stopping() => {}
            }
            stop.stop();
            sessions.join(LAST_WORDS).await;
            tasks.join(LAST_WORDS).await;
            port.stop();
        };
        tokio::join!(listening, ending);
        last_recordings(&shared.spool).await;
        uploads.abort();
        uploads.join(LAST_DELIVERY).await;
        background.abort();
        background.join(LAST_DELIVERY).await;
        // With the last holder of the audit queue gone, the keeper writes and delivers what is left.
        drop((shared, dialer));
        delivery.join(LAST_DELIVERY).await;
    }

    /// One for each Proxy that was given, and for each that they tell of.
    fn start_tunnels(&self, quarantine: &Quarantine, sessions: &Group, background: &Group, seed: u64, shutdown: &Shutdown) -> Proxies {
        let proxies = Proxies::new();
        if self.config.proxies.is_empty() {
            return proxies;
        }
        let (dialer, shared, sessions, boot_id) = (self.dialer.clone(), self.shared.clone(), sessions.clone(), self.boot.to_string());
        let (known, quarantine) = (proxies.clone(), quarantine.clone());
        let make = move |number, addr: String, wanted, shutdown: Shutdown| Tunnel {
            number,
            addr,
            wanted,
            back: Mutex::new(None),
            proxies: known.clone(),
            quarantine: quarantine.clone(),
            dialer: dialer.clone(),
            shared: shared.clone(),
            sessions: sessions.clone(),
            boot_id: boot_id.clone(),
            up: watch::Sender::new(false),
            spare: AtomicBool::new(false),
            shutdown,
        };
        for (number, addr) in (0u64..).zip(&self.config.proxies) {
            let tunnel = make(number, addr.clone(), None, shutdown.clone());
            let turn = self.turn.clone();
            background.spawn("tunnel", async move {
                turn.ours().await;
                tunnel::keep(Arc::new(tunnel), seed.wrapping_add(number)).await;
            });
        }
        let told = move |number, addr, id, end| make(number, addr, Some(id), end);
        let api = self.api.clone();
        let heard = move |addrs| api.told_of_proxies(addrs);
        background.spawn("peers", proxies::keep_peers(proxies.clone(), background.clone(), seed, shutdown.clone(), heard, told));
        proxies
    }
}

/// Serves connections that did not come by tunnel or port.
async fn serve_given(mut given: mpsc::Receiver<TcpStream>, shared: Arc<Shared>, sessions: Group) {
    while let Some(stream) = given.recv().await {
        let (shared, client) = (shared.clone(), stream.peer_addr().ok());
        sessions.spawn("given", async move { ssh::serve(shared, stream, Arrival { client, local: None }, || ()).await });
    }
}

/// Waits until no session and no program is left: looked at, because each of the two may start the other.
async fn run_out(sessions: &Group, tasks: &Group) {
    while !(sessions.is_empty() && tasks.is_empty()) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Gives the recordings of the last sessions a moment to arrive.
async fn last_recordings(spool: &Spool) {
    spool.finished();
    let left = async {
        while spool.waiting() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(LAST_DELIVERY, left).await.is_err() {
        tracing::info!("recordings stay in the spool until the next start");
    }
}
