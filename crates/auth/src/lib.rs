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
pub mod backup;
mod birth;
mod ca;
mod core;
mod executor;
mod hosts;
mod instance;
mod invites;
mod limits;
mod login;
pub mod metrics;
mod migrations;
mod mirror;
pub mod password;
mod presence;
mod quarantine;
mod recordings;
mod seat;
mod serve;
mod tokens;
mod updates;
mod vault;
mod walk;
mod windows;
mod world;

pub use audit::{Settings as AuditSettings, Shared as SharedAudit};
pub use metrics::Metrics;
pub use password::PasswordCost;
pub use walk::{Pass, Place, Step, Walker};
pub use world::{AuthError, Config, Known, REHEARSAL, Rehearsed, Releases, Storage, World};

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
    carries_upgrades: bool,
    updater: Option<Arc<dyn Fn() -> Option<types::update::UpdateReport> + Send + Sync>>,
    local_addr: SocketAddr,
    /// By which others know this one.
    address: String,
    health: Board,
    data_dir: std::path::PathBuf,
    schedule: Option<backup::Schedule>,
}

/// Opens or makes the cluster, and everything that is needed to serve it. Nothing is written to a store that a rule
/// forbids to touch.
pub async fn build(config: Config, world: World) -> Result<Auth, AuthError> {
    world.health.set("auth", Health::Starting);
    let home = config.data_dir.join("auth");
    let recordings = config.recordings_dir.clone().unwrap_or_else(|| home.join("recordings"));
    for dir in [&home, &home.join("audit"), &recordings, &config.data_dir.join("admin")] {
        private_dir(dir)?;
    }
    if let Some((roles, _)) = config.static_tokens.iter().find(|(_, token)| rules::token::check_chosen(token.expose()).is_err()) {
        let roles: Vec<&str> = roles.iter().map(SystemRole::as_str).collect();
        let message = format!("auth_service.tokens: the token for {} is too weak: {}", roles.join(","), rules::token::BadToken);
        return Err(Public::new(types::Code::Config, message).hint("make a token that ends: tctl tokens add").into());
    }
    let store = open_store(&config, &world).await?;
    let now = world.clock.now();
    seat::only_build(store.as_ref(), config.host_id, &world.version).await??;
    let registry = match config.migrations.clone() {
        Some(registry) => registry,
        None => upgrade::migrate::registry().map_err(|bad| AuthError::Store(bad.to_string()))?,
    };
    let cluster = birth::open(&store, &registry, &config, &world.version, now).await?;
    let (metrics, group, base) = (Arc::new(Metrics::default()), Group::new("auth"), Group::new("auth's audit log and mirror"));
    let vault = vault::Vault::new(cluster.documents.clone());
    let seats = vault::Vault::over(store.clone(), cluster.documents.clone());
    let known = instance::audit_known(&vault, config.host_id, &home.join("audit")).await?;
    let opening = audit::Opening {
        dir: home.join("audit"),
        cluster: cluster.info.cluster_id,
        host: config.host_id,
        name: config.node_name.to_string(),
        known,
        settings: config.audit.clone(),
        clock: world.clock.clone(),
        metrics: metrics.clone(),
        health: world.health.clone(),
    };
    let audit = audit::Audit::open(opening, &base).await?;
    let mirror = fill_mirror(cluster.documents.store(), &world, &base, &metrics).await?;
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
        store,
        documents: cluster.documents,
        vault,
        seats,
        migrations: migrations::Migrations::new(registry),
        authorities: cluster.authorities,
        mirror,
        audit,
        recordings: recordings::Recordings::new(&recordings, config.host_id),
        peers: recordings::peers::Lines::default(),
        backups: Arc::new(tokio::sync::Semaphore::new(1)),
        plans: Arc::new(tokio::sync::Semaphore::new(1)),
        preferred: Mutex::default(),
        hasher,
        gate: limits::Gate::logins(),
        joins: limits::Gate::joins(),
        used: hosts::Used::default(),
        seat: seat::Seat::new(cluster.window_gen),
        repeats: limits::Repeats::new(Duration::from_secs(600)),
        static_tokens: config.static_tokens,
        notices: presence::Notices::default(),
        releases: world.releases,
        health: world.health.clone(),
        walker: world.walker,
        metrics,
        group,
        shutdown: Shutdown::new(),
        handing_over: std::sync::atomic::AtomicBool::new(false),
    });
    let serving = serve::Serving::new(&core, &config.names, config.limits)?;
    let listener = match world.listener {
        Some(listener) => listener,
        None => net::listen::bind(config.listen_addr).map_err(|source| AuthError::Listen { addr: config.listen_addr, source })?,
    };
    let local_addr = listener.local_addr().map_err(|source| AuthError::Listen { addr: config.listen_addr, source })?;
    admin::write(&core, &config.data_dir, local_addr)?;
    let address = instance::address(config.public_addr.as_deref(), &config.node_name, local_addr);
    let (listener, health, data_dir, schedule) = (Mutex::new(Some(listener)), world.health, config.data_dir, config.backup);
    let (updater, carries_upgrades) = (world.updater, config.carries_upgrades);
    Ok(Auth { core, base, serving, listener, updater, carries_upgrades, local_addr, address, health, data_dir, schedule })
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
    /// Waits until lists and rights here show everything that the store holds now.
    pub async fn caught_up(&self) {
        match self.core.documents.store().revision().await {
            Ok(revision) => self.core.mirror.reached(revision).await,
            Err(error) => tracing::warn!(%error, "the store does not say how far it is"),
        }
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
        let wanted = api::certs::Wanted { names: &names, ssh: &ssh_public_key, tls: &tls_public_key, from: None };
        match api::certs::host_credentials(&self.core, &identity, &wanted, hosts::Occasion::Local, types::Labels::new()).await {
            Ok((credentials, _)) => Ok(credentials),
            Err(fault) => Err(self.core.fault("this process", None, "issue_local", fault).await),
        }
    }

    /// Moves the admission windows, behind the barrier: see [`upgrade::barrier`]. Waits for so long, at most two minutes. For whoever
    /// carries an upgrade out in this process; people come by the API, which records who it was.
    pub async fn move_windows(&self, wanted: &upgrade::barrier::Move, patience: Duration) -> Result<types::ControlRecord, Public> {
        let asked = windows::Asked { wanted: wanted.clone(), insists: true, patience, under: None };
        match windows::move_windows(&self.core, &asked).await {
            Ok(record) => Ok(record),
            Err(fault) => Err(self.core.fault("this process", None, "move_windows", fault).await),
        }
    }

    /// Ends an upgrade to this binary's major: its formats are in use from now on, and only a backup leads back. Refused while a
    /// migration is not flipped, or an older Auth Service may start. For whoever carries an upgrade out.
    pub async fn finalize(&self) -> Result<types::ControlRecord, Public> {
        match windows::finalize(&self.core, None).await {
            Ok(record) => Ok(record),
            Err(fault) => Err(self.core.fault("this process", None, "finalize", fault).await),
        }
    }

    /// From now on its end is a change of processes and not of the cluster: its row in the inventory stays as it is, for the next
    /// process to go on with.
    pub fn hand_over(&self) {
        self.core.handing_over.store(true, std::sync::atomic::Ordering::Release);
    }

    /// Puts an event of this process into the audit log.
    pub async fn record(&self, event: types::Event) -> Result<(), Public> {
        let event = event.with("server_id", self.core.host_id.to_string()).with("server_hostname", self.core.node_name.as_str());
        let event = event.with("cluster_name", self.core.cluster.as_str());
        self.core.audit.record(event).await.map_err(|error| Public::new(types::Code::AuditBroken, error.to_string()))
    }

    /// Serves until told to stop. The second call of a service returns at once.
    pub async fn run(&self, shutdown: Shutdown) {
        let taken = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(listener) = taken else { return };
        let core = &self.core;
        core.record_restore().await;
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
            tokio::select! {
                () = outer.stopping() => stop.stop(),
                // All clients have gone: it ends by itself.
                () = stop.stopping() => {}
            }
        });
        core.group.spawn("housekeeping", housekeeping(core.clone(), self.serving.own(), self.data_dir.clone(), self.local_addr));
        if let Some(schedule) = &self.schedule {
            core.group.spawn("scheduled backups", backup::schedule::run(core.clone(), schedule.clone()));
        }
        let holder = seat::Holder { address: self.address.clone(), boot_id: uuid::Uuid::new_v4().to_string() };
        // Before anything is served: without a seat nobody is admitted.
        if let Err(error) = seat::take(core, &holder).await {
            tracing::warn!(%error, "the seat of this Auth Service could not be taken yet");
        }
        let own = presence::Own {
            identity: self.serving.identity(),
            address: self.address.clone(),
            boot_id: holder.boot_id.clone(),
            started: core.now(),
            platform: net::platform::here(),
            updater: self.updater.clone(),
        };
        core.group.spawn("audit retention", core.audit.clone().keep_short(core.shutdown.clone()));
        core.group.spawn("seat", seat::keep(core.clone(), holder));
        if !core.migrations.is_empty() {
            core.group.spawn("migrations", migrations::carry(core.clone()));
            core.group.spawn("how far migrations are", migrations::follow::run(core.clone()));
        }
        if self.carries_upgrades {
            let workshop = executor::proof::Workshop::new(self.data_dir.clone(), self.schedule.clone());
            core.group.spawn("upgrade", executor::run(core.clone(), workshop));
        }
        core.group.spawn("presence", presence::keep_self(core.clone(), own));
        core.group.spawn("where recordings lie", recordings::peers::keep(core.clone(), self.address.clone()));
        self.health.set("auth", Health::Ready);
        self.serving.serve(core.clone(), listener, core.shutdown.clone()).await;
        self.health.set("auth", Health::Degraded("stopped".into()));
        // Requests in progress still write and record: they end first, then the log, then the store.
        core.shutdown.stop();
        core.group.join(LAST_DEADLINE).await;
        core.audit.close();
        note_head(core).await;
        core.store.close().await;
        self.base.join(LAST_DEADLINE).await;
    }
}

/// Expires what has lapsed, anchors the audit log, renews the administrator's certificate and this service's own.
async fn housekeeping(core: Arc<Core>, mut own: serve::OwnCertificate, data_dir: std::path::PathBuf, local_addr: SocketAddr) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut beats, mut admin_since) = (0u64, core.now());
    loop {
        tokio::select! {
            () = core.shutdown.stopping() => return,
            _ = second.tick() => {}
        }
        beats = beats.wrapping_add(1);
        if let Err(error) = core.store.expire_due().await {
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
        if own.is_due(core.now()) {
            match own.renew(&core) {
                Ok(()) => tracing::info!("renewed the Auth Service's own certificate"),
                Err(error) => tracing::error!(%error, "the Auth Service's own certificate could not be renewed"),
            }
        }
    }
}

fn renewal_due(now: Time, since: Time) -> bool {
    now.since(since) >= admin::RENEW_EVERY
}

/// Notes the audit log's end in the store, where whoever cuts the file cannot reach it.
async fn note_head(core: &Core) {
    let Ok(key) = vault::own_anchor_key(core.host_id) else { return };
    let Some(anchor) = core.audit.anchor() else { return };
    let noted = async {
        let held = core.vault.read::<audit::Anchor>(&key).await?;
        if held.as_ref().is_some_and(|held| held.value.covers(&anchor)) {
            return Ok(true);
        }
        let batch = core.vault.batch().require(vault::unchanged(&key, held.as_ref())).put(key.clone(), vault::json(&anchor), None);
        core.vault.commit(batch).await
    };
    let done: Result<bool, vault::VaultError> = noted.await;
    if let Err(error) = done {
        tracing::warn!(%error, "the audit log's end could not be noted");
    }
}

/// The mirror. A migration that reaches another state at this moment makes it begin anew.
async fn fill_mirror(
    business: &Arc<dyn Store>,
    world: &World,
    base: &Group,
    metrics: &Arc<Metrics>,
) -> Result<mirror::Mirror, mirror::MirrorError> {
    for _ in 0..3 {
        match mirror::Mirror::start(business.clone(), world.clock.clone(), base, metrics.clone()).await {
            Err(mirror::MirrorError::Watch(store::WatchError::Compacted { .. })) => {}
            started => return started,
        }
    }
    mirror::Mirror::start(business.clone(), world.clock.clone(), base, metrics.clone()).await
}

async fn open_store(config: &Config, world: &World) -> Result<Arc<dyn Store>, AuthError> {
    if let Storage::Sqlite { path } = &config.storage {
        let (path, version) = (path.clone(), world.version.clone());
        let judged = tokio::task::spawn_blocking(move || may_open(&path, &version));
        judged.await.map_err(|error| AuthError::Open(error.to_string()))??;
    }
    open_storage(&config.storage, world.clock.clone()).await
}

/// Opens a store without asking what is in it: for a restore, which asks itself. An Auth Service opens its own in [`build`].
pub async fn open_storage(storage: &Storage, clock: net::clock::SharedClock) -> Result<Arc<dyn Store>, AuthError> {
    let clock: Arc<dyn store::Clock> = Arc::new(world::StoreClock(clock));
    match storage {
        Storage::Open(store) => Ok(store.clone()),
        Storage::Memory => Ok(Arc::new(Memory::new(clock))),
        Storage::Sqlite { path } => {
            let path = path.clone();
            let opened = tokio::task::spawn_blocking(move || Sqlite::open(&path, clock).map_err(not_opened));
            Ok(Arc::new(opened.await.map_err(|error| AuthError::Open(error.to_string()))??))
        }
        Storage::Postgres(options) => Ok(Arc::new(store::Postgres::open((**options).clone(), clock).await.map_err(not_reached)?)),
        Storage::Etcd(options) => Ok(Arc::new(store::Etcd::open((**options).clone(), clock).await.map_err(not_reached)?)),
    }
}

fn not_reached(error: store::remote::OpenError) -> AuthError {
    use store::remote::OpenError;
    let refused = |code, hint: &str| AuthError::Refused(Public::new(code, error.to_string()).hint(hint));
    match &error {
        OpenError::Settings(_) | OpenError::File { .. } => refused(types::Code::Config, "see lockgate.storage in docs/storage.md"),
        OpenError::TooOld { .. } | OpenError::Newer { .. } | OpenError::Foreign { .. } => {
            refused(types::Code::StoreForeign, "check lockgate.storage: is this the store of this cluster?")
        }
        OpenError::Store(error) => AuthError::Open(error.to_string()),
    }
}

/// Judges the file's control record before the file is opened for work, which would already change it (rules G2 and G5).
fn may_open(path: &Path, version: &types::Version) -> Result<(), AuthError> {
    let Some(bytes) = store::sqlite::peek(path).map_err(not_opened)? else { return Ok(()) };
    let record = store::control::parse(&bytes).map_err(|why| AuthError::Store(format!("the control record cannot be read: {why}")))?;
    upgrade::control::may_start(Some(&record), version)?;
    Ok(())
}

fn not_opened(error: store::sqlite::OpenError) -> AuthError {
    match error {
        store::sqlite::OpenError::Foreign { .. } | store::sqlite::OpenError::Newer { .. } => AuthError::Refused(
            Public::new(types::Code::StoreForeign, error.to_string()).hint("check auth_service.storage.path and the data directory"),
        ),
        other => AuthError::Open(other.to_string()),
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
