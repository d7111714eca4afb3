//! Heartbeats: members and hosts stay in the inventory while they report, and hear what their operators should know.
//!
//! A member writes its own documents and nobody else's; the address of a host reached directly is the one seen here, never
//! the one it claims (attack table, row 13); one that came through a Proxy has none, since the one seen is the Proxy's. Documents lapse ten minutes after the last heartbeat. A host's document is
//! rewritten only when something in it changed or its lease runs low, so that watchers are not woken each minute by ten
//! thousand hosts. The sentences about versions (rule G12) are `upgrade::inventory`'s, made at most twice a minute.

use crate::{
    core::{Call, Core, Fault, malformed},
    hosts,
    metrics::count,
    quarantine, seat, updates,
};
use rules::{Verb, documents::decide_write, presence};
use std::{sync::Arc, time::Duration};
use store::documents::WriteError;
use types::{
    Document, HostIdentity, Metadata, Resource, ResourceName, SystemRole, Time,
    document::Spec,
    kind::{Member, Node, Platform},
    label::check_label,
    update::UpdateReport,
};
use wire::api as pb;

/// How old the sentences may be.
const FRESH: Duration = Duration::from_secs(30);
/// And while no Proxy is known: the first ones come soon after the Auth Service.
const EARLY: Duration = Duration::from_secs(2);

/// The most addresses of Proxies that are told.
const MAX_PROXIES: usize = 32;

/// What members are told of the cluster, and when that was put together.
type Made = Option<(Time, Arc<Told>)>;

/// What members are told of the cluster.
#[derive(Default)]
pub(crate) struct Told {
    alerts: Vec<String>,
    /// Where its Proxies are: a host that is refused later asks them for rescue.
    proxies: Vec<String>,
}

/// Made by one at a time, for whoever asks meanwhile too.
#[derive(Default)]
pub(crate) struct Notices(tokio::sync::Mutex<Made>);

impl Notices {
    async fn all(&self, core: &Arc<Core>, now: Time) -> Arc<Told> {
        let mut held = self.0.lock().await;
        let fresh = |told: &Told| if told.proxies.is_empty() { EARLY } else { FRESH };
        if let Some((_, told)) = held.as_ref().filter(|(made, told)| now.since(*made) < fresh(told)) {
            return told.clone();
        }
        // Every member is looked at: with a hundred thousand of them that takes a while, in which others are served.
        let of = core.clone();
        let told = tokio::task::spawn_blocking(move || tell(&of, now)).await.unwrap_or_default();
        let told = Arc::new(told);
        *held = Some((now, told.clone()));
        told
    }
}

fn tell(core: &Core, now: Time) -> Told {
    let control = core.mirror.control();
    let members = core.mirror.members();
    core.metrics.quarantined.store(quarantine::count_now(&members), std::sync::atomic::Ordering::Relaxed);
    let serves = |member: &&Resource<Member>| !matches!(member.spec.state.as_str(), "draining" | Member::QUARANTINED);
    let proxies = members.iter().filter(|member| member.spec.roles.contains(&SystemRole::Proxy)).filter(serves);
    let proxies = proxies.flat_map(|member| member.spec.proxy_addrs()).take(MAX_PROXIES).collect();
    let Some(control) = control.as_ref() else { return Told { alerts: Vec::new(), proxies } };
    let inventory = upgrade::inventory::summarise(&members, control, now, presence::OFFLINE_AFTER);
    Told { alerts: inventory.alerts.into_iter().map(|alert| format!("{}; {}", alert.text, alert.cure)).collect(), proxies }
}

/// Takes one heartbeat.
pub(crate) async fn heartbeat(call: Call, ask: pb::HeartbeatRequest) -> Result<pb::HeartbeatReply, Fault> {
    let core = &call.core;
    let caller = call.caller()?;
    let rules::Caller::Host(host) = caller else {
        return Err(rules::Denied::NotAllowed { who: call.name(), what: "report as a member".into() }.into());
    };
    let own = ResourceName::from(&host.id);
    let permit = decide_write(caller, Member::KIND, Verb::Update, &own)?;
    let mut member = Resource::<Member>::from_document(Document::from_json(&ask.member)?)?;
    check_metadata(&member.metadata)?;
    if *member.name() != permit.name {
        return Err(rules::Denied::NotAllowed { who: call.name(), what: format!("report as {}", member.name()) }.into());
    }
    // What the certificate and the handshake say stands, whatever the document says.
    member.spec.roles = host.roles.clone();
    if host.id == core.host_id {
        member.spec.roles.insert(SystemRole::Auth);
    }
    // Where an Auth Service is reached is for it alone to say.
    member.spec.extra.remove(ADDRESS);
    let known = core.mirror.typed::<Member>(&own).filter(|known| known.spec.roles.contains(&SystemRole::Auth));
    if let Some(address) = known.and_then(|known| known.spec.extra.get(ADDRESS).cloned())
        && seat::is_taken(core, host.id).await
    {
        member.spec.roles.insert(SystemRole::Auth);
        member.spec.extra.insert(ADDRESS.into(), address);
    }
    member.spec.hostname = host.name.to_string();
    member.spec.version = call.peer.hello.parsed().ok_or_else(|| malformed("the version cannot be read"))?;
    member.spec.skips_version_check = call.peer.hello.skips_version_check;
    member.spec.last_seen = call.now;
    // A clock that is ahead proves nothing before its time.
    member.spec.started = member.spec.started.min(call.now);
    quarantine::admitted(&mut member.spec, &call.peer.hello);
    core.register(&host.roles, &call.peer, member.spec.state == "draining")?;
    let lease = presence::lease_end(call.now);
    member.metadata.expires = Some(lease);
    updates::heard(&call, host, &mut member.spec).await?;
    put(core, &member.to_document()).await?;
    hosts::seen(core, host).await?;
    if !ask.node.is_empty() {
        let permit = decide_write(caller, Node::KIND, Verb::Update, &own)?;
        let node = Resource::<Node>::from_document(Document::from_json(&ask.node)?)?;
        take_node(&call, host, node, &permit.name, ask.ssh_port, lease).await?;
    }
    count(&core.metrics.heartbeats);
    let random = rand::random::<u32>();
    let interval = presence::interval(presence::HEARTBEAT, random).as_secs().max(1);
    let told = core.notices.all(core, call.now).await;
    Ok(pb::HeartbeatReply { interval, notices: notices(&call, host, &member, &told), proxies: told.proxies.clone() })
}

async fn take_node(
    call: &Call,
    host: &HostIdentity,
    mut node: Resource<Node>,
    name: &ResourceName,
    port: u32,
    lease: Time,
) -> Result<(), Fault> {
    check_metadata(&node.metadata)?;
    if !host.roles.contains(&SystemRole::Node) || node.name() != name {
        return Err(rules::Denied::NotAllowed { who: call.name(), what: format!("report node/{}", node.name()) }.into());
    }
    node.spec.hostname = host.name.clone();
    node.spec.version = call.peer.hello.parsed().ok_or_else(|| malformed("the version cannot be read"))?;
    let mut port = u16::try_from(port).map_err(|_| malformed("the SSH port is not a port"))?;
    if port != 0 && call.peer.spliced {
        tracing::warn!(host = %host.id, port, "a host that came through a Proxy says that it listens; it is reached by its tunnel");
        port = 0;
    }
    node.spec.use_tunnel = port == 0;
    node.spec.addr =
        if port == 0 { String::new() } else { std::net::SocketAddr::new(call.peer.addr.ip().to_canonical(), port).to_string() };
    node.metadata.expires = Some(lease);
    let stored = call.core.mirror.typed::<Node>(name);
    let fresh = |stored: &Resource<Node>| {
        let left = stored.metadata.expires.map_or(Duration::ZERO, |end| end.since(call.now));
        stored.spec == node.spec && stored.metadata.labels == node.metadata.labels && left * 2 > presence::LEASE
    };
    if stored.as_ref().is_some_and(fresh) {
        return Ok(());
    }
    put(&call.core, &node.to_document()).await
}

/// Creates or replaces a member's own document: only its holder writes it, so a lost race is with its own older beat.
pub(crate) async fn put(core: &Core, document: &Document) -> Result<(), Fault> {
    let mut document = document.clone();
    let known = core.mirror.get(&document.kind, &document.metadata.name);
    document.metadata.revision = known.and_then(|entry| entry.document.metadata.revision.clone());
    for _ in 0..4 {
        let written = match &document.metadata.revision {
            Some(_) => core.documents.update(&document).await,
            None => core.documents.create(&document).await,
        };
        match written {
            Ok(written) => {
                settle(core, &written).await;
                return Ok(());
            }
            Err(WriteError::Conflict(_) | WriteError::Exists(_) | WriteError::NotFound(_)) => {
                // The mirror is behind.
                let known = core.documents.get(&document.kind, &document.metadata.name).await?;
                document.metadata.revision = known.and_then(|known| known.metadata.revision);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Fault::Write(WriteError::Conflict(document.reference())))
}

/// Waits until lists show what was written.
pub(crate) async fn settle(core: &Core, written: &Document) {
    if let Some(revision) = written.metadata.revision.as_ref().and_then(|revision| revision.0.parse().ok()) {
        core.mirror.reached(revision).await;
    }
}

fn check_metadata(metadata: &Metadata) -> Result<(), Fault> {
    for (key, value) in &metadata.labels {
        check_label(key, value).map_err(malformed)?;
    }
    if metadata.labels.len() > 100 { Err(malformed("more than 100 labels")) } else { Ok(()) }
}

/// Alerts name hosts, so only the services that administrators run get them all; an agent hears of itself.
fn notices(call: &Call, host: &HostIdentity, member: &Resource<Member>, told: &Told) -> Vec<String> {
    if host.roles.iter().any(|role| matches!(role, SystemRole::Auth | SystemRole::Proxy | SystemRole::Admin)) {
        return told.alerts.clone();
    }
    let (own, ours) = (member.spec.version.major(), call.core.version.major());
    if own >= ours {
        return Vec::new();
    }
    vec![format!(
        "this host runs {}, one major behind; upgrade it to the latest {ours} before the cluster moves to {}",
        member.spec.version,
        ours.saturating_add(1)
    )]
}

/// This Auth Service, as it stands in the inventory.
pub(crate) struct Own {
    pub(crate) identity: HostIdentity,
    /// `host:port` by which it is reached.
    pub(crate) address: String,
    pub(crate) boot_id: String,
    pub(crate) started: Time,
    pub(crate) platform: Platform,
    /// What this host's updater did last.
    pub(crate) updater: Option<Arc<dyn Fn() -> Option<UpdateReport> + Send + Sync>>,
}

/// Where an Auth Service is reached, in its `member` document.
pub(crate) const ADDRESS: &str = "auth_addr";

/// Keeps the Auth Service itself in the inventory. It leaves at once when it drains.
pub(crate) async fn keep_self(core: Arc<Core>, own: Own) {
    let (mut state, mut told) = ("active", Arc::new(Told::default()));
    loop {
        if let Err(error) = put(&core, &own_member(&core, &own, state).to_document()).await {
            tracing::warn!(%error, "could not report as a member");
        }
        let lines = core.notices.all(&core, core.now()).await;
        // Said once, not each minute.
        if lines.alerts != told.alerts {
            lines.alerts.iter().for_each(|line| tracing::warn!("{line}"));
            told = lines;
        }
        let wait = presence::interval(presence::HEARTBEAT, rand::random());
        tokio::select! {
            // However it ends, it says so once.
            biased;
            () = core.shutdown.draining(), if state == "active" => {
                if core.handing_over.load(std::sync::atomic::Ordering::Acquire) {
                    return;
                }
                state = "draining";
            }
            () = core.shutdown.stopping() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn own_member(core: &Core, own: &Own, state: &str) -> Resource<Member> {
    // The other services of this process report under the same id: their roles and details stay.
    let name = ResourceName::from(&own.identity.id);
    let stored = core.mirror.typed::<Member>(&name);
    let mut member = stored.unwrap_or_else(|| {
        let spec = Member {
            hostname: own.identity.name.to_string(),
            roles: own.identity.roles.clone(),
            version: core.version.clone(),
            boot_id: own.boot_id.clone(),
            started: own.started,
            last_seen: own.started,
            state: state.to_owned(),
            skips_version_check: false,
            labels: types::Labels::new(),
            platform: own.platform.clone(),
            capabilities: Vec::new(),
            extra: types::Extra::new(),
        };
        Resource::new(Metadata::named(name), spec)
    });
    if member.spec.roles == own.identity.roles {
        // Nobody else reports: this is the whole process.
        (member.spec.boot_id, member.spec.started) = (own.boot_id.clone(), own.started);
        member.spec.hostname = own.identity.name.to_string();
        member.spec.platform = own.platform.clone();
        member.spec.capabilities = wire::capability::OURS.iter().map(|&one| one.to_owned()).collect();
    }
    member.spec.roles.extend(own.identity.roles.iter().cloned());
    member.spec.version = core.version.clone();
    member.spec.last_seen = core.now();
    member.spec.extra.insert(ADDRESS.into(), own.address.clone().into());
    member.spec.extra.insert(Member::CONTENT.into(), wire::content::digest().into());
    if let Some(report) = own.updater.as_ref().and_then(|updater| updater()) {
        member.spec.extra.insert(UpdateReport::KEY.into(), serde_json::to_value(report).unwrap_or_default());
    }
    member.spec.extra.insert("window_gen".into(), core.seat.acknowledged().into());
    state.clone_into(&mut member.spec.state);
    member.metadata.expires = Some(presence::lease_end(core.now()));
    member
}
