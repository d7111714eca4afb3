//! The Auth Service: keeps the cluster's state, issues every certificate, takes the audit log and the recordings.
//!
//! The only crate that opens the store. [`build`] reads the control record first and refuses a store it may not touch
//! (`birth`); [`Auth::run`] serves the API of `wire::api` over mutual TLS until it is stopped. A request goes through
//! identify (`core`), decide (`rules`), act and record (`api/*`). Passwords never leave `login`, keys never leave `ca`.
//!
//! Not here: who may do what (`rules`), what certificates look like on the wire (`wire::identity`), how members present
//! themselves (`client`).

mod admin;
mod api;
mod audit;
mod birth;
mod ca;
mod core;
mod invites;
mod limits;
mod login;
pub mod metrics;
mod mirror;
pub mod password;
mod presence;
mod recordings;
mod serve;
mod tokens;
mod vault;
mod world;

pub use metrics::Metrics;
pub use password::PasswordCost;
pub use world::{AuthError, Config, Storage, World};

use crate::core::Core;
use net::{
    health::{Board, Health},
    shutdown::Shutdown,
    task::Group,
};
use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use store::{Memory, Sqlite, Store};
use tokio::net::TcpListener;
use types::{ClusterName, HostId, HostIdentity, NodeName, Public, SystemRole, Time};
use wire::api as pb;

/// How long requests in progress have after a stop.
const LAST_DEADLINE: Duration = Duration::from_secs(10);

/// An Auth Service that may serve its cluster.
pub struct Auth {
    core: Arc<Core>,
    /// What requests lean on: it ends after them.
    base: Group,
    serving: serve::Serving,
    listener: Mutex<Option<TcpListener>>,
    local_addr: SocketAddr,
    health: Board,
    data_dir: std::path::PathBuf,
}

/// Opens or makes the cluster, and everything that is needed to serve it. Nothing is written to a store that a rule
/// forbids to touch.
pub async fn build(config: Config, world: World) -> Result<Auth, AuthError> {
    world.health.set("auth", Health::Starting);
    let home = config.data_dir.join("auth");
    for dir in [&home, &home.join("audit"), &home.join("recordings"), &config.data_dir.join("admin")] {
        private_dir(dir)?;
    }
    let store = open_store(&config, &world).await?;
    let now = world.clock.now();
    let cluster = birth::open(&store, &config, &world.version, now).await?;
    let (metrics, group, base) = (Arc::new(Metrics::default()), Group::new("auth"), Group::new("auth's audit log and mirror"));
    let vault = vault::Vault::new(store.clone(), cluster.documents.writer());
    let anchor_key = vault::anchor_key().map_err(vault::VaultError::from)?;
    let anchor = vault.read::<audit::Head>(&anchor_key).await?.map(|held| held.value);
    let audit =
        audit::Audit::open(&home.join("audit"), cluster.info.cluster_id, anchor, world.clock.clone(), &base, metrics.clone()).await?;
    let mirror = mirror::Mirror::start(store.clone(), world.clock.clone(), &base, metrics.clone()).await?;
    let cost = config.password_cost;
    let hasher =
        tokio::task::spawn_blocking(move || password::Hasher::new(cost)).await.map_err(|error| AuthError::Serve(error.to_string()))??;
    let core = Arc::new(Core {
        clock: world.clock.clone(),
        version: world.version.clone(),
        cluster: cluster.info.cluster_name,
        cluster_id: cluster.info.cluster_id,
        host_id: config.host_id,
        node_name: config.node_name.clone(),
        documents: cluster.documents,
        vault,
        authorities: cluster.authorities,
        mirror,
        audit,
        recordings: recordings::Recordings::new(&home.join("recordings")),
        hasher,
        gate: limits::Gate::default(),
        repeats: limits::Repeats::new(Duration::from_secs(600)),
        static_tokens: config.static_tokens,
        notices: presence::Notices::default(),
        health: world.health.clone(),
        metrics,
        group,
        shutdown: Shutdown::new(),
    });
    let serving = serve::Serving::new(&core, &config.names, config.limits)?;
    let listener = match world.listener {
        Some(listener) => listener,
        None => net::listen::bind(config.listen_addr).map_err(|source| AuthError::Listen { addr: config.listen_addr, source })?,
    };
    let local_addr = listener.local_addr().map_err(|source| AuthError::Listen { addr: config.listen_addr, source })?;
    admin::write(&core, &config.data_dir, local_addr)?;
    Ok(Auth { core, base, serving, listener: Mutex::new(Some(listener)), local_addr, health: world.health, data_dir: config.data_dir })
}

impl Auth {
    /// Where the API listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
    pub fn cluster(&self) -> &ClusterName {
        &self.core.cluster
    }
    pub fn metrics(&self) -> Arc<Metrics> {
        self.core.metrics.clone()
    }
    /// The pins of the host authority, for `--ca-pin`.
    pub fn ca_pins(&self) -> Vec<String> {
        self.core.authorities.pins()
    }

    /// Certificates for the other services of this process: whoever holds this value is the Auth Service's own process.
    pub async fn issue_local(
        &self,
        host_id: HostId,
        node_name: NodeName,
        roles: BTreeSet<SystemRole>,
        names: Vec<String>,
        ssh_public_key: String,
        tls_public_key: Vec<u8>,
    ) -> Result<pb::HostCredentials, Public> {
        let identity = HostIdentity { cluster: self.core.cluster.clone(), id: host_id, name: node_name, roles, extra: types::Extra::new() };
        let issued = api::certs::host_credentials(&self.core, &identity, &names, &ssh_public_key, &tls_public_key, types::Labels::new());
        match issued {
            Ok((credentials, _)) => Ok(credentials),
            Err(fault) => Err(self.core.fault("this process", None, "issue_local", fault).await),
        }
    }

    /// Serves until told to stop. The second call of a service returns at once.
    pub async fn run(&self, shutdown: Shutdown) {
        let taken = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(listener) = taken else { return };
        let core = &self.core;
        let started =
            core.event(types::EventKind::AuthStart).with("version", core.version.to_string()).with("server_id", core.host_id.to_string());
        if let Err(error) = core.audit.record(started).await {
            tracing::error!(%error, "the start could not be recorded");
        }
        let stop = core.shutdown.clone();
        let outer = shutdown.clone();
        core.group.spawn("shutdown", async move {
            outer.draining().await;
            stop.drain();
            outer.stopping().await;
            stop.stop();
        });
        core.group.spawn("housekeeping", housekeeping(core.clone(), self.data_dir.clone(), self.local_addr));
        core.group.spawn("presence", presence::keep_self(core.clone(), self.serving.identity()));
        self.health.set("auth", Health::Ready);
        self.serving.serve(core.clone(), listener, core.shutdown.clone()).await;
        self.health.set("auth", Health::Degraded("stopped".into()));
        // Requests in progress still write and record: they end first, then the log, then the store.
        core.shutdown.stop();
        core.group.join(LAST_DEADLINE).await;
        core.audit.close();
        note_head(core).await;
        core.documents.store().close().await;
        self.base.join(LAST_DEADLINE).await;
    }
}

/// Expires what has lapsed, anchors the audit log, renews the administrator's certificate.
async fn housekeeping(core: Arc<Core>, data_dir: std::path::PathBuf, local_addr: SocketAddr) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut beats, mut admin_since) = (0u64, core.now());
    loop {
        tokio::select! {
            () = core.shutdown.stopping() => return,
            _ = second.tick() => {}
        }
        beats = beats.wrapping_add(1);
        if let Err(error) = core.documents.store().expire_due().await {
            tracing::warn!(%error, "what has lapsed could not be removed");
        }
        if beats.is_multiple_of(10) {
            note_head(&core).await;
        }
        if renewal_due(core.now(), admin_since) {
            match admin::write(&core, &data_dir, local_addr) {
                Ok(()) => admin_since = core.now(),
                Err(error) => tracing::error!(%error, "the administrator's certificate could not be renewed"),
            }
        }
    }
}

fn renewal_due(now: Time, since: Time) -> bool {
    now.since(since) >= admin::RENEW_EVERY
}

/// Notes the audit log's end in the store, where whoever cuts the file cannot reach it.
async fn note_head(core: &Core) {
    let Ok(key) = vault::anchor_key() else { return };
    let head = core.audit.head();
    let noted = async {
        let held = core.vault.read::<audit::Head>(&key).await?;
        if !core.audit.anchor_holds() || held.as_ref().is_some_and(|held| held.value.events >= head.events) {
            return Ok(true);
        }
        let batch = core.vault.batch().require(vault::unchanged(&key, held.as_ref())).put(key.clone(), vault::json(&head), None);
        core.vault.commit(batch).await
    };
    let done: Result<bool, vault::VaultError> = noted.await;
    if let Err(error) = done {
        tracing::warn!(%error, "the audit log's end could not be noted");
    }
}

async fn open_store(config: &Config, world: &World) -> Result<Arc<dyn Store>, AuthError> {
    let clock: Arc<dyn store::Clock> = Arc::new(world::StoreClock(world.clock.clone()));
    match &config.storage {
        Storage::Open(store) => Ok(store.clone()),
        Storage::Memory => Ok(Arc::new(Memory::new(clock))),
        Storage::Sqlite { path } => {
            let path = path.clone();
            let opened = tokio::task::spawn_blocking(move || Sqlite::open(&path, clock))
                .await
                .map_err(|error| AuthError::Open(error.to_string()))?;
            Ok(Arc::new(opened.map_err(|error| {
                match error {
                    store::sqlite::OpenError::Foreign { .. } | store::sqlite::OpenError::Newer { .. } => AuthError::Refused(
                        Public::new(types::Code::StoreForeign, error.to_string())
                            .hint("check auth_service.storage.path and the data directory"),
                    ),
                    other => AuthError::Open(other.to_string()),
                }
            })?))
        }
    }
}

/// Makes a directory for its owner alone.
fn private_dir(path: &Path) -> Result<(), AuthError> {
    let made: io::Result<()> = (|| {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
    })();
    made.map_err(|source| AuthError::File { path: path.to_owned(), source })
}
