//! A large cluster: ten thousand hosts that joined and are listed, two thousand of them with an idle tunnel.
//!
//! The hosts are made by this process with the product's own crates: each joins with a token, has a key and certificates of its
//! own, sends the heartbeat that lists it, and holds a tunnel as an agent does, pings answered. Their memory is this process's;
//! what is measured is the Proxy's, before and after.

use crate::{
    World,
    measure::{Contestant, in_turns, ms, once},
    process::{Memory, memory},
    report::{Report, row},
    sessions, step,
};
use client::{
    api::{Access, Api, Settings, Via},
    host::{self, HostCredentials, Joining},
    presence::{self, Beat},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use harness::Cluster;
use net::{
    IoStream,
    clock::{SharedClock, SystemClock},
    frame::{read_frame, write_frame},
    hello::HelloPolicy,
    tls::{Trust, client_config},
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};
use types::{
    Extra, HostId, Labels, Metadata, NodeName, Resource, SystemRole, Version,
    kind::{Member, Node},
    version::Direction,
};
use wire::{
    alpn,
    hello::Hello,
    sni,
    tunnel::{PING_SECONDS, ToAgent, ToProxy, decode, encode},
};

/// Hosts that join at once.
const AT_ONCE: usize = 32;
const DEADLINE: Duration = Duration::from_secs(30);

/// What a made-up host needs to know.
pub(crate) struct Place {
    auth: String,
    proxy: String,
    joining: Joining,
    version: Version,
    clock: SharedClock,
}

pub(crate) fn fleet(world: &World, report: &mut Report) {
    let scale = world.scale;
    let place = Place::of(&world.cluster);
    step(&format!("{} hosts join and send a heartbeat", scale.hosts));
    let began = Instant::now();
    let hosts = world.runtime.block_on(join_all(&place, scale.hosts, scale.tunnels));
    let joined = began.elapsed();
    report.section(
        "A large cluster",
        &format!(
            "{} hosts joined with a token, each with keys of its own, and sent a heartbeat that lists it: {:.0} s, {:.0} per second, {AT_ONCE} at once (the hosts' own work is on the same cores).",
            scale.hosts,
            joined.as_secs_f64(),
            scale.hosts as f64 / joined.as_secs_f64()
        ),
    );
    listing(world, report);
    sessions::among_many(world, report, scale.hosts);
    tunnels(world, report, &place, hosts);
}

/// Joins `count` hosts; the credentials of the first `kept`.
async fn join_all(place: &Place, count: usize, kept: usize) -> Vec<HostCredentials> {
    let done = AtomicU64::new(0);
    let each = stream::iter(0..count).map(|number| {
        let done = &done;
        async move {
            let host = place.join(number).await.map_err(|error| format!("host {number}: {error}"))?;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(1000) {
                step(&format!("{done} joined"));
            }
            Ok::<_, String>((number < kept).then_some(host))
        }
    });
    let hosts: Vec<Option<HostCredentials>> = each.buffer_unordered(AT_ONCE).try_collect().await.unwrap_or_else(|error| panic!("{error}"));
    hosts.into_iter().flatten().collect()
}

impl Place {
    /// With a token for hosts.
    pub(crate) fn of(cluster: &Cluster) -> Place {
        let version = crate::version();
        Place {
            auth: cluster.auth_addr(),
            proxy: cluster.proxy_addr(),
            joining: Joining {
                via: Via::Auth(cluster.auth_addr()),
                token: types::Secret::new(cluster.token("node")),
                ca_pins: cluster.pins.iter().map(|pin| pin.parse().expect("a pin")).collect(),
                insecure: false,
                host_id: HostId::from_uuid(uuid::Uuid::new_v4()),
                node_name: NodeName::new("host").expect("a name"),
                roles: BTreeSet::from([SystemRole::Node]),
                names: Vec::new(),
                version: version.clone(),
                skip_version_check: false,
            },
            version,
            clock: SystemClock::shared(),
        }
    }

    /// A host that has joined and is listed.
    pub(crate) async fn join(&self, number: usize) -> Result<HostCredentials, types::Public> {
        let id = HostId::from_uuid(uuid::Uuid::new_v4());
        let name = NodeName::new(format!("host-{number:05}")).expect("a name");
        let joining = Joining { host_id: id, node_name: name, ..self.joining.clone() };
        let host = host::join(&joining, &self.clock).await?;
        let labels = [("env", ["prod", "staging", "dev"][number % 3]), ("rack", &format!("r{}", number % 40))]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        presence::beat(&api(self, &host, Via::Auth(self.auth.clone())), &self.beat(&host, labels.into())).await?;
        Ok(host)
    }

    /// The heartbeat of a host with these labels.
    pub(crate) fn beat(&self, host: &HostCredentials, labels: Labels) -> Beat {
        let (id, name, now) = (host.id(), host.identity.name.clone(), self.clock.now());
        let member = Member {
            hostname: name.to_string(),
            roles: self.joining.roles.clone(),
            version: self.version.clone(),
            boot_id: id.to_string(),
            started: now,
            last_seen: now,
            state: "active".into(),
            skips_version_check: false,
            labels: labels.clone(),
            platform: Default::default(),
            capabilities: Vec::new(),
            extra: Extra::new(),
        };
        let node = Node { hostname: name, addr: String::new(), use_tunnel: true, version: self.version.clone(), extra: Extra::new() };
        let mut metadata = Metadata::named(&id);
        metadata.labels = labels;
        Beat { member: Resource::new(Metadata::named(&id), member), node: Some(Resource::new(metadata, node)), ssh_port: 0 }
    }
}

fn api(place: &Place, host: &HostCredentials, via: Via) -> Api {
    // The sender may go: these certificates are not renewed.
    let (_, credentials) = watch::channel(Arc::new(host.clone()));
    Api::new(Settings {
        via,
        access: Access::Host(credentials),
        role: "node".into(),
        version: place.version.clone(),
        skip_version_check: false,
        clock: place.clock.clone(),
    })
}

/// `tsh ls`, whole: start, connection through the Proxy, list, table.
fn listing(world: &World, report: &mut Report) {
    let (hosts, runs) = (world.scale.hosts, world.scale.listings);
    let listed = world.alice.tsh(["ls", "--format=json"]).go().json();
    let listed = listed.as_array().map_or(0, Vec::len);
    assert_eq!(listed, hosts + 1, "hosts that are listed");
    let contestants = [
        Contestant::new("`tsh ls`", || world.alice.tsh(["ls"])),
        Contestant::new("`tsh ls --format=json`", || world.alice.tsh(["ls", "--format=json"])),
        Contestant::new("`tsh ls rack=r7`", || world.alice.tsh(["ls", "rack=r7"])),
    ];
    step(&format!("tsh ls among {hosts} hosts, {runs} rounds"));
    let series = in_turns(&contestants, runs, once);
    let mut rows = vec![row(["", "median ms", "fastest", "9 of 10 within"])];
    for (contestant, of) in contestants.iter().zip(&series) {
        rows.push(row([contestant.name, &ms(of.median()), &ms(of.fastest()), &ms(of.ninth())]));
    }
    report.table(&rows);
    let took = series[0].median().as_secs_f64() * 1000.0;
    report.target(&format!("`tsh ls` of {hosts} hosts"), format!("{took:.0} ms"), "< 200 ms", took < 200.0);
}

/// Idle tunnels, then the same agents' connections to the Auth Service, which the Proxy carries too.
fn tunnels(world: &World, report: &mut Report, place: &Place, hosts: Vec<HostCredentials>) {
    let (count, proxy) = (hosts.len(), world.cluster.proxy().pid());
    step(&format!("{count} tunnels"));
    let before = memory(proxy);
    let pongs = Arc::new(AtomicU64::new(0));
    let (with_tunnels, with_api, answered) = world.runtime.block_on(async {
        let mut held = JoinSet::new();
        let dialled: Vec<IoStream> = stream::iter(&hosts)
            .map(|host| open(place, host))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        for stream in dialled {
            held.spawn(hold(stream, pongs.clone()));
        }
        step("tunnels are up; every agent answers a ping");
        let end = Instant::now() + Duration::from_secs(PING_SECONDS + 5);
        while pongs.load(Ordering::Relaxed) < count as u64 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let (answered, with_tunnels) = (pongs.load(Ordering::Relaxed), memory(proxy));
        step("each agent's connection to the Auth Service, through the Proxy");
        let apis: Vec<Api> = stream::iter(&hosts)
            .map(|host| async {
                let api = api(place, host, Via::Proxy(place.proxy.clone()));
                api.ping().await.map(|_| api).map_err(|error| error.to_string())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let with_api = memory(proxy);
        drop(apis);
        held.shutdown().await;
        (with_tunnels, with_api, answered)
    });
    assert!(answered >= count as u64, "{answered} pings of {count} tunnels were answered");
    let each = |from: Memory, to: Memory| (to.rss as f64 - from.rss as f64) / count as f64;
    let own = |from: Memory, to: Memory| (to.anonymous as f64 - from.anonymous as f64) / count as f64;
    let held = [
        ("before: the cache with all hosts", before, before),
        ("each agent's tunnel, idle, pings answered", before, with_tunnels),
        ("and its connection to the Auth Service, carried through", with_tunnels, with_api),
    ];
    let mut rows = vec![row(["memory of the Proxy", "resident MiB", "KiB for each", "of that, own (anonymous)"])];
    for (at, (name, from, to)) in held.into_iter().enumerate() {
        let cells = if at == 0 {
            ["–".to_owned(), "–".to_owned()]
        } else {
            [format!("{:.1}", each(from, to)), format!("{:.1}", own(from, to))]
        };
        rows.push(row([name, &format!("{:.0}", to.rss as f64 / 1024.0), &cells[0], &cells[1]]));
    }
    report.table(&rows);
    let per_tunnel = each(before, with_tunnels);
    report.target(
        &format!("memory of the Proxy per idle tunnel, {count} tunnels"),
        format!("{per_tunnel:.1} KiB"),
        "≤ 30 KiB",
        per_tunnel <= 30.0,
    );
}

/// An agent's control connection, registered.
async fn open(place: &Place, host: &HostCredentials) -> Result<IoStream, String> {
    let said = |error: &dyn std::fmt::Display| format!("tunnel of {}: {error}", host.id());
    let trust = Trust::Cluster(host.trust.swap().map_err(|error| said(&error))?);
    let config = client_config(Some(&host.tls), trust, &[alpn::TUNNEL], &place.clock).map_err(|error| said(&error))?;
    let name = sni::role_name(&SystemRole::Proxy, host.cluster());
    let hello = Hello::ours(&place.version, "node");
    let connected = net::dial::dial(&place.proxy, config, &name, &hello, Direction::ServerFirst, HelloPolicy::default())
        .await
        .map_err(|error| said(&error))?;
    let mut stream: IoStream = Box::new(connected.stream);
    let register = ToProxy::Register { host_id: host.id(), boot_id: uuid::Uuid::now_v7().to_string(), extra: Extra::new() };
    write_frame(&mut stream, &encode(&register), DEADLINE).await.map_err(|error| said(&error))?;
    let first = read_frame(&mut stream, DEADLINE).await.map_err(|error| said(&error))?;
    match decode::<ToAgent>(&first) {
        Ok(ToAgent::Welcome { .. }) => Ok(stream),
        other => Err(said(&format!("{other:?}"))),
    }
}

/// Answers pings until it is dropped.
async fn hold(mut stream: IoStream, pongs: Arc<AtomicU64>) {
    while let Ok(payload) = read_frame(&mut stream, Duration::from_secs(600)).await {
        if let Ok(ToAgent::Ping { seq }) = decode::<ToAgent>(&payload) {
            if write_frame(&mut stream, &encode(&ToProxy::Pong { seq }), DEADLINE).await.is_err() {
                return;
            }
            pongs.fetch_add(1, Ordering::Relaxed);
        }
    }
}
