//! `lockgate start`: one process, whatever services it runs.
//!
//! Read top to bottom: settings → data directory → Auth (if ours) → credentials (ours, kept, or joined for) → API and cache →
//! Proxy → SSH Service → heartbeats and renewal → diagnostics → wait for the end. Services meet over the wire even here: the
//! SSH Service reaches its own Proxy by tunnel, the Proxy its own Auth Service by TLS.

use super::{
    StartArgs, diag, logging, metrics,
    process::{DataLock, PidFile, host_id, host_part, loopback, make_private, tell_systemd},
    settings::{self, JoinBy, Settings},
    signals::Signals,
};
use crate::exit::{Could as _, Outcome};
use client::{
    api::{Access, Api, Settings as ApiSettings, Via},
    cache::{AGENT_KINDS, Cache, PROXY_KINDS},
    host::{self, HostCredentials, Joining},
    keys::KeyPair,
    known_proxies,
    presence::{self, Beat, Pulse},
};
use net::{
    clock::{SharedClock, SystemClock},
    health::{Board, Health},
    shutdown::Shutdown,
    task::Group,
};
use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};
use types::{
    Code, Extra, HostId, Metadata, Public, Resource, SystemRole, Time, Version,
    kind::{Member, Node},
    name::BootId,
};

/// How long services may take to end after a stop, recordings included.
const LAST_DEADLINE: Duration = Duration::from_secs(15);
/// How long an Auth Service that ends finishes the requests in progress.
const SENT_AWAY: Duration = Duration::from_secs(3);

/// Runs until a signal ends it.
pub(crate) fn start(args: &StartArgs) -> Outcome {
    let settings = settings::resolve(args).could("read the configuration")?;
    logging::start(settings.severity, settings.log_format);
    let use_it = || format!("use the data directory {}", settings.data_dir.display());
    make_private(&settings.data_dir).could(use_it())?;
    let _alone = DataLock::take(&settings.data_dir).could(use_it())?;
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().could("start the runtime")?;
    let ended = runtime.block_on(run(settings));
    runtime.shutdown_timeout(Duration::from_secs(2));
    ended.could("run the services").map(|()| ExitCode::SUCCESS)
}

/// Each connection takes a descriptor, and the limit that most systems start with (1,024) is for programs with few. Sessions get
/// the usual limit back.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// What the parts of this process share.
struct Process {
    settings: Settings,
    clock: SharedClock,
    version: Version,
    board: Board,
    tasks: Group,
    /// Proxy and SSH Service: they end by themselves once drained. The rest ends after them.
    services: Group,
    shutdown: Shutdown,
    host_id: HostId,
    boot_id: BootId,
    started: Time,
    metrics: metrics::Shared,
}

async fn run(settings: Settings) -> Result<(), Public> {
    let signals = Signals::listen().map_err(|error| Public::new(Code::Internal, format!("signals cannot be received: {error}")))?;
    let clock = SystemClock::shared();
    let host_id = host_id(&settings.data_dir)?;
    let mut process = Process {
        version: crate::version(),
        board: Board::default(),
        tasks: Group::new("lockgate"),
        services: Group::new("services"),
        shutdown: Shutdown::new(),
        host_id,
        boot_id: BootId::from_uuid(uuid::Uuid::new_v4()),
        started: clock.now(),
        metrics: metrics::Shared::new(metrics::Sources::default()),
        clock,
        settings,
    };
    let _pid_file = process.settings.pid_file.clone().map(PidFile::write).transpose()?;
    tracing::info!(version = %process.version, git = crate::GITREF, roles = %shown(&process.settings.roles), "Lockgate starts");
    process.tasks.spawn("signals", signals.obey(process.shutdown.clone()));
    for role in &process.settings.roles {
        process.board.set(component(role), Health::Starting);
    }
    diagnostics(&process).await?;
    let shutdown = process.shutdown.clone();
    let began = tokio::select! {
        began = serve(&mut process) => began,
        // Also when it drains: what has not begun has nothing to finish, and a join may wait for hours.
        () = shutdown.draining() => Ok(()),
    };
    if let Err(error) = began {
        shutdown.stop();
        process.tasks.join(LAST_DEADLINE).await;
        return Err(error);
    }
    process.announce_when_ready();
    shutdown.draining().await;
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    // Heartbeats say "draining"; the services wait for their sessions and then end by themselves, or by a stop.
    tokio::select! {
        _ = process.services.join(Duration::from_secs(365 * 24 * 3600)) => {}
        () = shutdown.stopping() => { process.services.join(LAST_DEADLINE).await; }
    }
    shutdown.stop();
    process.tasks.join(LAST_DEADLINE).await;
    tracing::info!("Lockgate ended");
    Ok(())
}

/// Starts the services in the order in which they need each other.
async fn serve(process: &mut Process) -> Result<(), Public> {
    let auth = match process.settings.roles.contains(&SystemRole::Auth) {
        true => Some(start_auth(process).await?),
        false => None,
    };
    let member_roles: BTreeSet<SystemRole> = process.settings.roles.iter().filter(|role| **role != SystemRole::Auth).cloned().collect();
    if member_roles.is_empty() {
        return Ok(());
    }
    let credentials = credentials(process, auth.as_deref(), &member_roles).await?;
    let (sender, receiver) = watch::channel(Arc::new(credentials));
    let via = match (&auth, &process.settings.join) {
        (Some(auth), _) => Via::Auth(auth.local_addr().to_string()),
        (None, Some(join)) => by(&join.by),
        (None, None) => return Err(Public::new(Code::Config, "there is no way to an Auth Service")),
    };
    let role = if member_roles.contains(&SystemRole::Proxy) { "proxy" } else { "node" };
    let api = Api::new(ApiSettings {
        via: via.clone(),
        access: Access::Host(receiver.clone()),
        role: role.into(),
        version: process.version.clone(),
        skip_version_check: process.settings.skip_version_check,
        clock: process.clock.clone(),
    });
    let kinds = if member_roles.contains(&SystemRole::Proxy) { PROXY_KINDS } else { AGENT_KINDS };
    let cluster = receiver.borrow().cluster().clone();
    let cache = Cache::start(cluster, api.clone(), kinds, rand::random(), &process.tasks, process.shutdown.clone());
    let mut proxy_addr = None;
    if !member_roles.contains(&SystemRole::Proxy) {
        process.tasks.spawn("cache health", follow_cache(cache.clone(), process.board.clone(), process.shutdown.clone()));
    }
    if member_roles.contains(&SystemRole::Proxy) {
        let proxy = start_proxy(process, &via, receiver.clone(), &api, &cache).await?;
        proxy_addr = Some(proxy);
    }
    let mut ssh = None;
    if member_roles.contains(&SystemRole::Node) {
        ssh = Some(start_agent(process, &via, proxy_addr, receiver.clone(), &api, &cache).await?);
    }
    keep_present(process, &api, &member_roles, proxy_addr, ssh, &receiver);
    process.tasks.spawn(
        "renew certificates",
        host::keep_renewed(
            sender,
            api,
            identity_path(&process.settings),
            names(&process.settings),
            process.clock.clone(),
            rand::random(),
            process.shutdown.clone(),
        ),
    );
    Ok(())
}

/// A host decides from its copy while every Auth Service is away, and says so; a Proxy tells of its own copy.
async fn follow_cache(cache: Cache, board: Board, shutdown: Shutdown) {
    let mut feeding = cache.feeding();
    loop {
        board.set("cache", feeding.borrow_and_update().health());
        tokio::select! {
            Ok(()) = feeding.changed() => {}
            () = shutdown.stopping() => return,
            else => return,
        }
    }
}

async fn start_auth(process: &mut Process) -> Result<Arc<auth::Auth>, Public> {
    let settings = &process.settings.auth;
    let directory = process.settings.data_dir.join("auth");
    make_private(&directory)?;
    let config = auth::Config {
        cluster_name: settings.cluster_name.clone(),
        listen_addr: settings.listen_addr,
        storage: settings.storage.clone(),
        auth_preference: settings.preference.clone(),
        static_tokens: settings.tokens.clone(),
        production: settings.production,
        recordings_dir: settings.recordings_dir.clone(),
        public_addr: settings.public_addr.first().cloned(),
        backup: settings.backup.clone(),
        audit: settings.audit.clone(),
        names: settings.public_addr.iter().filter_map(|address| host_part(address)).chain(names(&process.settings)).collect(),
        ..auth::Config::new(process.settings.data_dir.clone(), process.host_id, process.settings.nodename.clone())
    };
    let world =
        auth::World { clock: process.clock.clone(), version: process.version.clone(), health: process.board.clone(), listener: None };
    let auth = Arc::new(auth::build(config, world).await.map_err(|error| error.public())?);
    process.metrics.store(metrics::Sources { auth: Some(auth.metrics()), ..(*process.metrics.load()).clone() });
    let (running, ours, process_ends) = (auth.clone(), Shutdown::new(), process.shutdown.clone());
    // While the others drain, their sessions still need Auth: it ends with the process, not at the first stage. Its clients are sent
    // to another Auth Service first.
    process.tasks.spawn("auth", async move {
        let end = ours.clone();
        let serving = running.run(ours);
        tokio::pin!(serving);
        tokio::select! {
            () = &mut serving => return,
            () = process_ends.stopping() => end.drain(),
        }
        if tokio::time::timeout(SENT_AWAY, &mut serving).await.is_err() {
            end.stop();
            serving.await;
        }
    });
    tracing::info!(addr = %auth.local_addr(), "the Auth Service listens");
    Ok(auth)
}

/// From the Auth Service in this process, from the file of an earlier start, or in exchange for the token.
async fn credentials(process: &Process, auth: Option<&auth::Auth>, roles: &BTreeSet<SystemRole>) -> Result<HostCredentials, Public> {
    let settings = &process.settings;
    if let Some(auth) = auth {
        let key = KeyPair::generate().map_err(|error| Public::new(Code::Internal, error.to_string()))?;
        let public = key.ssh_public().map_err(|error| Public::new(Code::Internal, error.to_string()))?;
        let reply =
            auth.issue_local(process.host_id, settings.nodename.clone(), roles.clone(), names(settings), public, key.spki_der()).await?;
        let address = Some(auth.local_addr().to_string());
        return HostCredentials::from_reply(key, &reply, address).map_err(|error| error.public());
    }
    let path = identity_path(settings);
    let mut expired = None;
    match HostCredentials::load(&path) {
        Ok(kept) if kept.identity.roles.is_superset(roles) && kept.expires > process.clock.now() => return Ok(kept),
        Ok(kept) => {
            tracing::warn!(expires = %kept.expires, roles = %shown(&kept.identity.roles), "the kept certificates have expired or lack a role; joining anew");
            expired = Some(kept.expires).filter(|end| *end <= process.clock.now());
        }
        Err(error) if error.is_missing() => {}
        Err(error) => return Err(error.public()),
    }
    let Some(join) = &settings.join else { return Err(Public::new(Code::Config, "there is no way to an Auth Service")) };
    let Some(token) = &join.token else {
        if let Some(end) = expired {
            return Err(Public::new(Code::TokenInvalid, format!("this host's certificates ended at {end} and no token is given"))
                .hint("join again: `tctl tokens add` prints the command for this host"));
        }
        return Err(Public::new(Code::TokenInvalid, "this host has not joined the cluster yet and no token is given")
            .hint("`tctl tokens add` prints the command for this host"));
    };
    let pins = join
        .pins
        .iter()
        .map(|pin| pin.parse())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Public::new(Code::CaPin, "a pin cannot be read"))?;
    let joining = Joining {
        via: by(&join.by),
        token: token.clone(),
        ca_pins: pins,
        insecure: false,
        host_id: process.host_id,
        node_name: settings.nodename.clone(),
        roles: roles.clone(),
        names: names(settings),
        version: process.version.clone(),
        skip_version_check: settings.skip_version_check,
    };
    let joined = join_patiently(process, &joining).await?;
    if let Some(parent) = path.parent() {
        make_private(parent)?;
    }
    joined.save(&path).map_err(|error| error.public())?;
    tracing::info!(cluster = %joined.cluster(), "joined the cluster");
    Ok(joined)
}

/// A cluster that does not answer yet is waited for; a refusal is final.
async fn join_patiently(process: &Process, joining: &Joining) -> Result<HostCredentials, Public> {
    let mut backoff = net::backoff::Backoff::new(Duration::from_millis(500), Duration::from_secs(15), rand::random());
    let key = KeyPair::generate().map_err(|error| Public::new(Code::Internal, error.to_string()))?;
    loop {
        match host::join_with(joining, key.clone(), &process.clock).await {
            Err(error) if matches!(error.known(), Some(Code::Unreachable | Code::Timeout | Code::Unavailable)) => {
                let wait = backoff.next();
                tracing::warn!(%error, ?wait, "the cluster does not answer; trying again");
                tokio::time::sleep(wait).await;
            }
            done => return done,
        }
    }
}

async fn start_proxy(
    process: &mut Process,
    via: &Via,
    credentials: watch::Receiver<Arc<HostCredentials>>,
    api: &Api,
    cache: &Cache,
) -> Result<SocketAddr, Public> {
    let settings = &process.settings.proxy;
    let config = proxy::Config {
        listen_addr: settings.listen_addr,
        ssh_listen_addr: settings.ssh_listen_addr,
        public_addrs: public_addrs(&process.settings),
        tunnel_addr: settings.tunnel_addr.clone(),
        auth_servers: via.addrs().to_vec(),
        https_keypairs: settings
            .keypairs
            .iter()
            .map(|pair| proxy::KeypairFiles { cert_file: pair.cert_file.clone(), key_file: pair.key_file.clone() })
            .collect(),
        mirror_dir: settings.mirror_dir.clone(),
        spool_dir: Some(process.settings.data_dir.join("proxy")),
        ..proxy::Config::default()
    };
    let world = proxy::World {
        clock: process.clock.clone(),
        version: process.version.clone(),
        health: process.board.clone(),
        credentials,
        api: api.clone(),
        cache: cache.clone(),
        listener: None,
        ssh_listener: None,
    };
    let proxy = proxy::Proxy::build(config, world).map_err(|error| Public::new(Code::Config, format!("the Proxy could not {error}")))?;
    process.metrics.store(metrics::Sources { proxy: Some(proxy.metrics()), ..(*process.metrics.load()).clone() });
    let addr = proxy.local_addr();
    let ssh = process.settings.proxy.ssh_listen_addr.map_or_else(|| "off".to_owned(), |addr| addr.to_string());
    tracing::info!(%addr, ssh, public = public_addrs(&process.settings).join(","), "the Proxy Service listens");
    let shutdown = process.shutdown.clone();
    process.services.spawn("proxy", proxy.run(shutdown));
    Ok(addr)
}

/// How the SSH Service of this process is reached: the port of its listener, or by tunnel.
async fn start_agent(
    process: &mut Process,
    via: &Via,
    own_proxy: Option<SocketAddr>,
    credentials: watch::Receiver<Arc<HostCredentials>>,
    api: &Api,
    cache: &Cache,
) -> Result<Option<u16>, Public> {
    let proxies = match (own_proxy, via) {
        (Some(addr), _) => vec![loopback(addr).to_string()],
        (None, Via::Proxy(_) | Via::AnyProxy(_)) => via.addrs().to_vec(),
        (None, Via::Auth(_) | Via::AnyAuth(_)) => Vec::new(),
    };
    let settings = &process.settings;
    let direct = proxies.is_empty();
    let mut config = agent::Config::tunnel(settings.data_dir.clone(), proxies);
    config.listen_addr = direct.then_some(settings.ssh.listen_addr);
    config.labels = settings.ssh.labels.clone();
    config.skip_version_check = settings.skip_version_check;
    let world = agent::World {
        clock: process.clock.clone(),
        version: process.version.clone(),
        health: process.board.clone(),
        credentials,
        api: api.clone(),
        cache: cache.clone(),
        boot: process.boot_id,
        listener: None,
    };
    let agent =
        agent::Agent::build(config, world).map_err(|error| Public::new(Code::Config, format!("the SSH Service could not {error}")))?;
    process.metrics.store(metrics::Sources { agent: Some(agent.metrics()), ..(*process.metrics.load()).clone() });
    let port = agent.local_addr().map(|addr| addr.port());
    match port {
        Some(port) => tracing::info!(port, "the SSH Service listens"),
        None => tracing::info!("the SSH Service is reached by tunnel; it opens no port"),
    }
    let shutdown = process.shutdown.clone();
    process.services.spawn("ssh", agent.run(shutdown));
    Ok(port)
}

/// Heartbeats of this process: one `member`, and a `node` when it serves SSH.
fn keep_present(
    process: &Process,
    api: &Api,
    roles: &BTreeSet<SystemRole>,
    proxy: Option<SocketAddr>,
    ssh: Option<Option<u16>>,
    credentials: &watch::Receiver<Arc<HostCredentials>>,
) {
    let (host_id, boot_id, started) = (process.host_id, process.boot_id, process.started);
    let (clock, version) = (process.clock.clone(), process.version.clone());
    let (nodename, skips) = (process.settings.nodename.clone(), process.settings.skip_version_check);
    let own_labels = process.settings.ssh.labels.clone();
    let platform = net::platform::here();
    let roles = roles.clone();
    let mut extra = Extra::new();
    if let (Some(_), Some(address)) = (proxy, public_addrs(&process.settings).first()) {
        extra.insert(Member::PROXY_PUBLIC_ADDR.into(), address.clone().into());
    }
    if let (Some(_), Some(address)) = (proxy, &process.settings.proxy.tunnel_addr) {
        extra.insert(Member::PROXY_TUNNEL_ADDR.into(), address.clone().into());
    }
    let credentials = credentials.clone();
    let describe = move |state: &'static str| {
        // Labels of the join token win: the cluster's administrator gave them, and roles select hosts by labels.
        let mut labels = own_labels.clone();
        labels.extend(credentials.borrow().labels.clone());
        let member = Member {
            hostname: nodename.to_string(),
            roles: roles.clone(),
            version: version.clone(),
            boot_id: boot_id.to_string(),
            started,
            last_seen: clock.now(),
            state: state.into(),
            skips_version_check: skips,
            labels: labels.clone(),
            platform: platform.clone(),
            // None of this release.
            capabilities: Vec::new(),
            extra: extra.clone(),
        };
        let node = ssh.map(|port| {
            let node = Node {
                hostname: nodename.clone(),
                addr: String::new(),
                use_tunnel: port.is_none(),
                version: version.clone(),
                extra: Extra::new(),
            };
            let mut metadata = Metadata::named(&host_id);
            metadata.labels = labels;
            Resource::new(metadata, node)
        });
        Beat { member: Resource::new(Metadata::named(&host_id), member), node, ssh_port: ssh.flatten().unwrap_or(0) }
    };
    let (pulse, felt) = watch::channel(Pulse::default());
    process.tasks.spawn("known proxies", keep_known_proxies(felt, process.settings.data_dir.clone(), process.shutdown.clone()));
    process.tasks.spawn("heartbeats", presence::run(api.clone(), describe, pulse, rand::random(), process.shutdown.clone()));
}

/// Keeps where the Proxies are for the day on which this host is refused for its version.
async fn keep_known_proxies(mut felt: watch::Receiver<Pulse>, data_dir: PathBuf, shutdown: Shutdown) {
    loop {
        let proxies = felt.borrow_and_update().proxies.clone();
        if let Err(error) = known_proxies::save(&data_dir, &proxies) {
            tracing::warn!(%error, "the addresses of the Proxies could not be kept for a rescue");
        }
        tokio::select! {
            () = shutdown.stopping() => return,
            changed = felt.changed() => if changed.is_err() { return },
        }
    }
}

async fn diagnostics(process: &Process) -> Result<(), Public> {
    let Some(addr) = process.settings.diag_addr else { return Ok(()) };
    let listener = TcpListener::bind(addr)
        .await
        .map_err(|error| Public::new(Code::Config, format!("the diagnostic address {addr} cannot be used: {error}")))?;
    let sources = process.metrics.subscribe();
    let router = diag::router(Arc::new(diag::Diagnostics {
        board: process.board.clone(),
        version: process.version.clone(),
        roles: process.settings.roles.iter().map(component).collect(),
        metrics: Box::new(move || sources.borrow().render()),
    }));
    let shutdown = process.shutdown.clone();
    tracing::info!(%addr, "diagnostics");
    process.tasks.spawn("diagnostics", async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.stopping().await });
        if let Err(error) = served.await {
            tracing::error!(%error, "diagnostics ended");
        }
    });
    Ok(())
}

impl Process {
    /// Says so, to the log and to systemd, once users can be served.
    fn announce_when_ready(&self) {
        let (board, shutdown) = (self.board.clone(), self.shutdown.clone());
        self.tasks.spawn("announce", async move {
            let mut changes = board.changes();
            while !board.all_ready() {
                tokio::select! {
                    () = shutdown.draining() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
            }
            tracing::info!("ready");
            tell_systemd(&[sd_notify::NotifyState::Ready]);
        });
    }
}

fn by(by: &JoinBy) -> Via {
    match by {
        JoinBy::Auth(addrs) => match addrs.as_slice() {
            [one] => Via::Auth(one.clone()),
            [] | [..] => Via::AnyAuth(addrs.clone()),
        },
        JoinBy::Proxy(addrs) => Via::proxies(addrs),
    }
}

fn identity_path(settings: &Settings) -> PathBuf {
    settings.data_dir.join("host/identity.json")
}

/// Names and addresses for this process's certificates, beside those that Auth gives.
fn names(settings: &Settings) -> Vec<String> {
    if !settings.roles.contains(&SystemRole::Proxy) {
        return Vec::new();
    }
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    names.push(settings.nodename.to_string());
    names.extend(settings.proxy.public_addr.iter().filter_map(|address| host_part(address)));
    names.dedup();
    names
}

/// What clients call this Proxy: as configured, else the node's name and the port it listens on.
fn public_addrs(settings: &Settings) -> Vec<String> {
    match settings.proxy.public_addr.as_slice() {
        [] => vec![format!("{}:{}", settings.nodename, settings.proxy.listen_addr.port())],
        given => given.to_vec(),
    }
}

/// What `/readyz` and the metrics call a service.
fn component(role: &SystemRole) -> &'static str {
    match role {
        SystemRole::Auth => "auth",
        SystemRole::Proxy => "proxy",
        SystemRole::Node => "ssh",
        SystemRole::Db => "db",
        SystemRole::Admin | SystemRole::Other(_) => "other",
    }
}

fn shown(roles: &BTreeSet<SystemRole>) -> String {
    roles.iter().map(SystemRole::as_str).collect::<Vec<_>>().join(",")
}
