//! The Proxy Service: the front door. One TLS port for everything, told apart by ALPN; reverse tunnels of agents; the way to
//! a host for `tsh` and, over a jump server, for plain OpenSSH; the web API.
//!
//! It keeps no state and decides from its cache, so existing certificates open sessions while every Auth Service is away. It
//! sees no plain text of a session: SSH is spliced, end to end. It never dials an address that a peer named: targets are ids of
//! registered hosts (`rules::route`). Start reading at [`listener`]; a session is `ssh/gateway.rs`, a tunnel `tunnel/registry.rs`.

mod certificate;
mod listener;
mod metrics;
mod record;
mod rescue;
mod ssh;
mod tunnel;
mod web;

pub use certificate::KeypairFiles;
pub use metrics::{Metrics, Sample};
pub use net::rate::Rate;
pub use web::read;

use certificate::WebCertificates;
use client::{api::Api, cache::Cache, host::HostCredentials, trust::ClusterTrust};
use net::{
    clock::SharedClock,
    health::{Board, Health},
    listen::{Limits, Port},
    shutdown::Shutdown,
    swap::Swap,
    task::Group,
    tls::{self, Authorities, TlsError},
    turn::Turn,
};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tunnel::Tunnels;
use types::{Version, name::ClusterId};
use wire::hello::Hello;

/// How long what is left may take to end once sessions have run out.
const LAST_DEADLINE: Duration = Duration::from_secs(5);

/// How long hosts may take from the process before this one.
const HOSTS_COME: Duration = Duration::from_secs(30);

/// Settings of a Proxy.
#[derive(Clone, Debug)]
pub struct Config {
    /// The TLS port. Default `0.0.0.0:3080`.
    pub listen_addr: SocketAddr,
    /// The jump server for plain OpenSSH. Default `0.0.0.0:3023`; `None` is off.
    pub ssh_listen_addr: Option<SocketAddr>,
    /// `host:port` that clients use, best first; for people to read.
    pub public_addrs: Vec<String>,
    /// The same for the jump server.
    pub ssh_public_addrs: Vec<String>,
    /// `host:port` of this Proxy alone, when its public address leads to several: where agents dial back to.
    pub tunnel_addr: Option<String>,
    /// `host:port` of each Auth Service; connections for them are spliced there.
    pub auth_servers: Vec<String>,
    /// Web certificates, chosen by name. Without any, the Proxy's host certificate serves the web too.
    pub https_keypairs: Vec<KeypairFiles>,
    /// Releases for hosts that come for rescue, as `make release` writes them: `<version>/` with its `SHA256SUMS`.
    pub mirror_dir: Option<PathBuf>,
    /// Where audit events wait that cannot be delivered; without it, in memory.
    pub spool_dir: Option<PathBuf>,
    /// Bounds on connections, of each port.
    pub limits: Limits,
    /// Logins and uses of invitations per source.
    pub login_rate: Rate,
}

impl Default for Config {
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self {
            listen_addr: any(3080),
            ssh_listen_addr: Some(any(3023)),
            public_addrs: Vec::new(),
            ssh_public_addrs: Vec::new(),
            tunnel_addr: None,
            auth_servers: Vec::new(),
            https_keypairs: Vec::new(),
            mirror_dir: None,
            spool_dir: None,
            // A web connection counts as a stranger's to its end: longer than the longest request.
            limits: Limits { handshake_deadline: Duration::from_secs(45), ..Limits::default() },
            // An office behind one address comes in at nine o'clock; an attacker gets two guesses a second.
            login_rate: Rate { burst: 40, per_second: 2.0 },
        }
    }
}

/// The process around the Proxy.
pub struct World {
    pub clock: SharedClock,
    /// What this process claims to be.
    pub version: Version,
    pub health: Board,
    pub credentials: watch::Receiver<Arc<HostCredentials>>,
    pub api: Api,
    /// Fed with [`client::cache::PROXY_KINDS`].
    pub cache: Cache,
    /// Already bound, instead of [`Config::listen_addr`].
    pub listener: Option<Port>,
    /// Already bound, instead of [`Config::ssh_listen_addr`].
    pub ssh_listener: Option<Port>,
    /// When another process serves on the same ports, hosts are sent there.
    pub turn: Turn,
    /// It takes another process's place: hosts are on their way from there.
    pub succeeds: bool,
}

/// Why a Proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("listen on {addr}: {source}")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error("use the web certificate: {0}")]
    Keypair(TlsError),
    #[error("set up TLS: {0}")]
    Tls(#[from] TlsError),
}

/// What every connection's handler reads.
pub(crate) struct Shared {
    pub(crate) clock: SharedClock,
    pub(crate) version: Version,
    /// What we say of ourselves.
    pub(crate) hello: Hello,
    pub(crate) health: Board,
    pub(crate) credentials: watch::Receiver<Arc<HostCredentials>>,
    pub(crate) api: Api,
    pub(crate) cache: Cache,
    /// Wakes when roles, users or locks have changed: not at every heartbeat, as the cache itself does.
    pub(crate) policy: watch::Sender<()>,
    pub(crate) tunnels: Tunnels,
    pub(crate) record: record::Recorder,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) authorities: Swap<Authorities>,
    pub(crate) member_tls: Arc<tls::ServerConfig>,
    pub(crate) web_tls: Arc<tls::ServerConfig>,
    pub(crate) certificates: Arc<WebCertificates>,
    pub(crate) attempts: web::Attempts,
    pub(crate) direct: ssh::direct::Direct,
    pub(crate) rescue: rescue::Rescue,
    pub(crate) auth_servers: Vec<String>,
    pub(crate) public_addrs: Vec<String>,
    pub(crate) ssh_public_addrs: Vec<String>,
    pub(crate) web_addr: SocketAddr,
    pub(crate) ssh_addr: Option<SocketAddr>,
    /// What lives beside sessions: control connections, splices to Auth. Ends when sessions have run out.
    pub(crate) background: Group,
    pub(crate) shutdown: Shutdown,
}

impl Shared {
    /// Whom we believe: what the cache says, or what we joined with until it has spoken.
    pub(crate) fn trust(&self) -> Arc<ClusterTrust> {
        trust(&self.cache, &self.credentials)
    }
    pub(crate) fn cluster_id(&self) -> Option<ClusterId> {
        self.cache.cluster_info().map(|info| info.spec.cluster_id)
    }
}

fn trust(cache: &Cache, credentials: &watch::Receiver<Arc<HostCredentials>>) -> Arc<ClusterTrust> {
    let cached = cache.trust();
    if cached.host_tls.is_empty() { credentials.borrow().trust.clone() } else { cached }
}

/// A Proxy that listens, and serves once it is run.
pub struct Proxy {
    shared: Arc<Shared>,
    listener: Port,
    ssh_listener: Option<Port>,
    limits: Limits,
    turn: Turn,
    succeeds: bool,
    /// Tunnels, records: everything that must outlive the last session.
    keepers: Group,
    shutdown: Shutdown,
}

impl Proxy {
    /// Opens the ports and sets TLS up. Nothing is accepted before [`Proxy::run`].
    pub fn build(config: Config, world: World) -> Result<Self, ProxyError> {
        let listener = listen(world.listener, config.listen_addr)?;
        let ssh_listener = match (world.ssh_listener, config.ssh_listen_addr) {
            (Some(given), _) => Some(given),
            (None, Some(addr)) => Some(listen(None, addr)?),
            (None, None) => None,
        };
        let address = |listener: &Port| listener.local_addr().map_err(|source| ProxyError::Listen { addr: config.listen_addr, source });
        let (web_addr, ssh_addr) = (address(&listener)?, ssh_listener.as_ref().map(address).transpose()?);

        let authorities = trust(&world.cache, &world.credentials).swap()?;
        let certificates = Arc::new(WebCertificates::new(config.https_keypairs, world.credentials.clone()).map_err(ProxyError::Keypair)?);
        let member_tls = certificate::member_config(&world.credentials, &authorities, &world.clock)?;
        let web_tls = certificate::web_config(&certificates, &authorities, &world.clock)?;
        let (keepers, shutdown) = (Group::new("proxy"), Shutdown::new());
        let metrics = Arc::new(Metrics::default());
        let proxy_id = world.credentials.borrow().id();
        world.health.set("proxy", Health::Starting);
        let shared = Arc::new(Shared {
            hello: Hello::ours(&world.version, "proxy"),
            tunnels: Tunnels::start(&keepers, proxy_id, config.tunnel_addr, shutdown.clone()),
            record: record::Recorder::start(
                &keepers,
                config.spool_dir,
                world.api.clone(),
                world.clock.clone(),
                metrics.clone(),
                shutdown.clone(),
            ),
            direct: ssh::direct::Direct::new(world.credentials.clone(), world.clock.clone(), authorities.clone()),
            attempts: web::Attempts::new(config.login_rate),
            rescue: rescue::Rescue::new(config.mirror_dir),
            background: Group::new("proxy background"),
            clock: world.clock,
            version: world.version,
            health: world.health,
            credentials: world.credentials,
            api: world.api,
            cache: world.cache,
            policy: watch::Sender::new(()),
            metrics,
            authorities,
            member_tls,
            web_tls,
            certificates,
            auth_servers: config.auth_servers,
            public_addrs: config.public_addrs,
            ssh_public_addrs: config.ssh_public_addrs,
            web_addr,
            ssh_addr,
            shutdown: shutdown.clone(),
        });
        let (turn, succeeds) = (world.turn, world.succeeds);
        Ok(Self { shared, listener, ssh_listener, limits: config.limits, turn, succeeds, keepers, shutdown })
    }

    /// Where the TLS port listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.web_addr
    }
    /// Where the jump server listens, if it does.
    pub fn ssh_addr(&self) -> Option<SocketAddr> {
        self.shared.ssh_addr
    }
    /// Counters, for `/metrics`. Stays valid after [`Proxy::run`] took the rest.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.shared.metrics.clone()
    }
    /// How many hosts hold a tunnel here; wakes at each change.
    pub fn tunnels(&self) -> watch::Receiver<usize> {
        self.shared.tunnels.count()
    }

    /// Serves until told otherwise. Draining: takes nothing new, tells agents, and lets sessions run out; then, or when told to
    /// stop, everything ends.
    pub async fn run(self, shutdown: Shutdown) {
        let Self { shared, listener, ssh_listener, limits, turn, succeeds, keepers, shutdown: own } = self;
        keepers.spawn("follow", follow(shared.clone()));
        keepers.spawn("peers", tunnel::peers::follow(shared.clone()));
        if succeeds {
            shared.tunnels.expect(HOSTS_COME).await;
        }
        keepers.spawn("turn", take_turns(shared.tunnels.clone(), turn, succeeds));
        keepers.spawn("shutdown", {
            let (shared, outer, own) = (shared.clone(), shutdown.clone(), own.clone());
            async move {
                outer.draining().await;
                shared.health.set("proxy", Health::Degraded("stopping: takes no new connections".into()));
                own.drain();
                shared.tunnels.drain().await;
                outer.stopping().await;
                own.stop();
            }
        });
        shared.health.set("tunnel", Health::Ready);
        shared.health.set("proxy", Health::Ready);
        let jump = async {
            if let Some(listener) = ssh_listener {
                ssh::jump::run(listener, limits, shared.clone()).await;
            }
        };
        tokio::join!(listener::run(listener, limits, shared.clone()), jump);
        // No session is left. Agents were told; those that find another Proxy hang up here by themselves.
        let mut tunnels = shared.tunnels.count();
        tokio::select! {
            () = own.stopping() => {}
            _ = tunnels.wait_for(|left| *left == 0) => {}
            () = tokio::time::sleep(LAST_DEADLINE) => {}
        }
        own.stop();
        shared.background.join(LAST_DEADLINE).await;
        shared.record.flush(LAST_DEADLINE).await;
        keepers.abort();
    }
}

fn listen(given: Option<Port>, addr: SocketAddr) -> Result<Port, ProxyError> {
    match given {
        Some(port) => Ok(port),
        None => net::listen::bind(addr).map(Port::from).map_err(|source| ProxyError::Listen { addr, source }),
    }
}

/// Hosts belong where the ports are served: they are sent there, and waited for here. What they have here goes on serving meanwhile.
async fn take_turns(tunnels: Tunnels, turn: Turn, succeeds: bool) {
    turn.ours().await;
    if succeeds {
        tunnels.expect(HOSTS_COME).await;
    }
    loop {
        turn.theirs().await;
        tunnels.leave(true).await;
        turn.ours().await;
        tunnels.leave(false).await;
        tunnels.expect(HOSTS_COME).await;
    }
}

/// Follows what changes: authorities, sessions that may not go on, locks on hosts, and how well the cache is fed.
async fn follow(shared: Arc<Shared>) {
    let (mut changed, mut feeding, mut credentials) = (shared.cache.changed(), shared.cache.feeding(), shared.credentials.clone());
    let mut refused = None;
    loop {
        // Seen before it is acted upon: what changes meanwhile comes round again.
        let before = changed.borrow_and_update().policy;
        match shared.trust().tls() {
            Ok(authorities) => shared.authorities.store(authorities),
            Err(error) => tracing::error!(%error, "the cluster's authorities cannot be used; keeping the ones before"),
        }
        shared.policy.send_replace(());
        for (host, error) in tunnel::link::locked(&shared) {
            shared.tunnels.evict(host, error).await;
        }
        loop {
            shared.health.set("cache", feeding.borrow_and_update().health());
            // Its cure is said once; a Proxy has no rescue.
            let now = feeding.borrow().refused();
            if let Some(line) = now.as_ref().filter(|line| refused.as_ref() != Some(*line)) {
                tracing::warn!("{line}; it goes on asking");
            }
            refused = now;
            tokio::select! {
                () = shared.shutdown.stopping() => return,
                Ok(()) = changed.changed() => if changed.borrow_and_update().policy != before { break },
                Ok(()) = feeding.changed() => {}
                Ok(()) = credentials.changed() => break,
                else => return,
            }
        }
    }
}
