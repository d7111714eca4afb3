//! The services of one process, started in the order in which they need each other.
//!
//! Auth (if ours) → credentials (ours, kept, or joined for) → API and cache → Proxy → SSH Service → heartbeats and renewal. Services meet
//! over the wire even here: the SSH Service reaches its own Proxy by tunnel, the Proxy its own Auth Service by TLS. Who calls is
//! `start.rs`; what has its turn when another process stands beside this one is told in `restart`.

use super::{
    diag, metrics,
    process::{host_part, loopback, make_private},
    releases,
    settings::{JoinBy, Settings},
    start::{AuthRun, MemberPart, Process, component, shown},
    walk::Walker,
};
use client::{
    api::{Access, Api, Settings as ApiSettings, Via},
    cache::{AGENT_KINDS, Cache, PROXY_KINDS},
    host::{self, HostCredentials, Joining},
    keys::KeyPair,
    known_proxies,
    presence::{self, Beat, Pulse},
};
use net::{
    health::Board,
    shutdown::Shutdown,
    turn::{Switch, Turn},
};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use types::{
    Code, Extra, Metadata, Public, Resource, SystemRole,
    kind::{Member, Node},
    update::UpdateReport,
};
use wire::handover::ToOld;

/// How long an Auth Service that ends finishes the requests in progress.
const SENT_AWAY: Duration = Duration::from_secs(3);

/// Starts them all.
pub(super) async fn serve(process: &mut Process) -> Result<(), Public> {
    let auth = match process.settings.roles.contains(&SystemRole::Auth) {
        true => Some(first_auth(process).await?),
        false => None,
    };
    let member_roles: BTreeSet<SystemRole> = process.settings.roles.iter().filter(|role| **role != SystemRole::Auth).cloned().collect();
    if member_roles.is_empty() {
        return Ok(());
    }
    let credentials = credentials(process, auth.as_deref(), &member_roles).await?;
    let (sender, receiver) = watch::channel(Arc::new(credentials));
    let local = auth.is_some();
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
    process.board.set("cache", net::health::Health::Starting);
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
    process.tasks.spawn("renew certificates", keep_renewed(process, sender.clone(), api.clone()));
    process.member = Some(MemberPart { api, credentials: sender, roles: member_roles, local });
    Ok(())
}

/// In our turn. Renewing with what another process renewed would look like a copied host: what it left in the file comes first.
fn keep_renewed(process: &Process, credentials: watch::Sender<Arc<HostCredentials>>, api: Api) -> impl Future<Output = ()> + use<> {
    let (turn, shutdown, clock) = (process.turn.clone(), process.shutdown.clone(), process.clock.clone());
    let (path, names) = (identity_path(&process.settings), names(&process.settings));
    async move {
        loop {
            tokio::select! {
                () = shutdown.stopping() => return,
                () = turn.ours() => {}
            }
            if let Ok(kept) = HostCredentials::load(&path) {
                credentials.send_if_modified(|now| {
                    let newer = kept.issued > now.issued && kept.id() == now.id();
                    if newer {
                        *now = Arc::new(kept);
                    }
                    newer
                });
            }
            let renewing = host::keep_renewed(
                credentials.clone(),
                api.clone(),
                path.clone(),
                names.clone(),
                clock.clone(),
                rand::random(),
                shutdown.clone(),
            );
            tokio::select! {
                () = renewing => return,
                () = turn.theirs() => {}
            }
        }
    }
}

/// The Auth Service, once its files are ours alone.
async fn first_auth(process: &mut Process) -> Result<Arc<auth::Auth>, Public> {
    if let Some(before) = &mut process.before {
        before.auth().await?;
    }
    let auth = start_auth(process).await?;
    if let Some(before) = &process.before {
        before.say(&ToOld::AuthServes { version: process.version.clone() }).await;
    }
    Ok(auth)
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

pub(super) async fn start_auth(process: &mut Process) -> Result<Arc<auth::Auth>, Public> {
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
    let listener = process.ports.listener("auth", settings.listen_addr, "auth_service.listen_addr")?;
    let world = auth::World {
        clock: process.clock.clone(),
        version: process.version.clone(),
        health: process.board.clone(),
        listener: Some(listener),
        walker: Some(Arc::new(Walker { version: process.version.clone(), clock: process.clock.clone() })),
        releases: settings.releases.as_ref().map(|known| releases::Mirror::shared(known, &process.settings.data_dir)),
        updater: Some({
            let data_dir = process.settings.data_dir.clone();
            Arc::new(move || super::update::report(&data_dir))
        }),
    };
    let auth = Arc::new(auth::build(config, world).await.map_err(|error| error.public())?);
    process.metrics.store(metrics::Sources { auth: Some(auth.metrics()), ..(*process.metrics.load()).clone() });
    process.pins = auth.ca_pins().iter().filter_map(|pin| pin.parse().ok()).collect();
    let (running, end, process_ends) = (auth.clone(), Shutdown::new(), process.shutdown.clone());
    let (ending, ended) = (end.clone(), Switch::new(false));
    process.auth = Some(AuthRun { auth: auth.clone(), end, ended: ended.turn() });
    // While the others drain, their sessions still need Auth: it ends with the process, not at the first stage. Its clients are sent
    // to another Auth Service first.
    process.tasks.spawn("auth", async move {
        {
            let serving = running.run(ending.clone());
            tokio::pin!(serving);
            tokio::select! {
                () = &mut serving => {}
                () = ending.draining() => {}
                () = process_ends.stopping() => ending.drain(),
            }
            if ending.is_draining() && tokio::time::timeout(SENT_AWAY, &mut serving).await.is_err() {
                ending.stop();
                serving.await;
            }
        }
        drop(running);
        ended.set(true);
    });
    tracing::info!(addr = %auth.local_addr(), "the Auth Service listens");
    Ok(auth)
}

impl Process {
    /// Ends the Auth Service of this process and nothing else: another process goes on with its files.
    pub(super) async fn stop_auth(&mut self) {
        if let Some(AuthRun { auth, end, ended }) = self.auth.take() {
            auth.hand_over();
            drop(auth);
            end.drain();
            ended.ours().await;
        }
    }
}

/// From the Auth Service in this process, from the file of an earlier start, or in exchange for the token.
pub(super) async fn credentials(
    process: &Process,
    auth: Option<&auth::Auth>,
    roles: &BTreeSet<SystemRole>,
) -> Result<HostCredentials, Public> {
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
    let jump = |addr| process.ports.open("jump", addr, "proxy_service.listen_addr");
    let world = proxy::World {
        listener: Some(process.ports.open("proxy", settings.listen_addr, "proxy_service.web_listen_addr")?),
        ssh_listener: settings.ssh_listen_addr.map(jump).transpose()?,
        turn: process.turn.clone(),
        succeeds: process.before.is_some(),
        clock: process.clock.clone(),
        version: process.version.clone(),
        health: process.board.clone(),
        credentials,
        api: api.clone(),
        cache: cache.clone(),
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
    let listener = match direct {
        true => {
            let port = process.ports.listener("direct", settings.ssh.listen_addr, "ssh_service.listen_addr")?;
            Some(net::listen::Port::new(port, process.turn.clone(), None))
        }
        false => None,
    };
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
        listener,
        turn: process.turn.clone(),
        alone: process.before.as_ref().map_or_else(Turn::always, super::restart::before::Before::alone),
        given: Some(process.ports.door("ssh")),
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
    let (platform, data_dir) = (net::platform::here(), process.settings.data_dir.clone());
    let roles = roles.clone();
    let mut extra = Extra::new();
    if let (Some(_), Some(address)) = (proxy, public_addrs(&process.settings).first()) {
        extra.insert(Member::PROXY_PUBLIC_ADDR.into(), address.clone().into());
    }
    if let (Some(_), Some(address)) = (proxy, &process.settings.proxy.tunnel_addr) {
        extra.insert(Member::PROXY_TUNNEL_ADDR.into(), address.clone().into());
    }
    let credentials = credentials.clone();
    let updated = data_dir.clone();
    let mut describe = move |state: &'static str| {
        let mut extra = extra.clone();
        if let Some(report) = super::update::report(&updated) {
            extra.insert(UpdateReport::KEY.into(), serde_json::to_value(report).unwrap_or_default());
        }
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
            capabilities: wire::capability::OURS.iter().map(|&one| one.to_owned()).collect(),
            extra,
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
    let (api, turn, shutdown) = (api.clone(), process.turn.clone(), process.shutdown.clone());
    process.tasks.spawn("heartbeats", async move {
        loop {
            tokio::select! {
                () = shutdown.stopping() => return,
                () = turn.ours() => {}
            }
            let (pulse, felt) = watch::channel(Pulse::default());
            tokio::select! {
                () = presence::run(api.clone(), &mut describe, pulse, rand::random(), shutdown.clone()) => return,
                () = keep_known_proxies(felt, &data_dir) => {}
                // The other process reports for this host: that this one drains is no news.
                () = turn.theirs() => {}
            }
        }
    });
}

/// Keeps where the Proxies are for the day on which this host is refused for its version; until the heartbeats end.
async fn keep_known_proxies(mut felt: watch::Receiver<Pulse>, data_dir: &Path) {
    loop {
        let proxies = felt.borrow_and_update().proxies.clone();
        if let Err(error) = known_proxies::save(data_dir, &proxies) {
            tracing::warn!(%error, "the addresses of the Proxies could not be kept for a rescue");
        }
        if felt.changed().await.is_err() {
            return;
        }
    }
}

/// Opens the diagnostic address, which shows how everything starts.
pub(super) fn diagnostics(process: &Process) -> Result<(), Public> {
    let Some(addr) = process.settings.diag_addr else { return Ok(()) };
    let listener = process.ports.open("diag", addr, "lockgate.diag_addr")?;
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
        let served = axum::serve(diag::Listener(listener), router).with_graceful_shutdown(async move { shutdown.stopping().await });
        if let Err(error) = served.await {
            tracing::error!(%error, "diagnostics ended");
        }
    });
    Ok(())
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
