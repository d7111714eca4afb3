//! What changes, among a hundred thousand hosts: 200 caches that follow, a burst of changes to 200 watchers, heartbeats.
//!
//! Caches are the product's own, with what an agent keeps; watchers take the same stream for hosts (as Proxies do) and only count. All are
//! in this process, each with its TLS connection over loopback, on the same two cores as the Auth Service: so what Auth used is given beside
//! what it took. Changes come from heartbeats of hosts that joined, as they do in a cluster.

use crate::{
    World,
    fleet::Place,
    large::Ground,
    measure::{Series, ms},
    process::{cpu_of, memory},
    report::{Report, row},
    step,
    stores::Driver,
};
use client::{
    api::Api,
    cache::{AGENT_KINDS, Cache},
    host::HostCredentials,
};
use futures::{FutureExt as _, future::join_all};
use net::{shutdown::Shutdown, task::Group};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;
use types::{
    Extra, Labels, Metadata, Resource, ResourceName,
    document::Spec as _,
    kind::{Lock, LockTarget, Node},
};
use wire::api::{WatchRequest, auth_client::AuthClient, watch_event::Event};

/// Caches, and watchers.
const FOLLOWERS: usize = 200;
/// Hosts that send heartbeats.
const SENDERS: usize = 64;
/// Changes of the burst, and how many are wanted in a second.
const BURST: usize = 1_000;
const PER_SECOND: usize = 1_000;
const LONG: Duration = Duration::from_secs(60);

/// What was measured on one driver.
pub(crate) struct Live {
    /// Until all caches had everything.
    connected: Duration,
    /// Auth's memory for each of them, KiB.
    each: f64,
    /// Of one change: until its writer had the answer, and until the last cache had it.
    answered: Series,
    seen: Series,
    /// Processor seconds of the Auth Service for one of them.
    change_cpu: f64,
    burst: Burst,
    /// Heartbeats per second, and what one cost the Auth Service.
    beats: f64,
    beat_cpu: f64,
}

struct Burst {
    /// Until the last was answered.
    written: Duration,
    /// From there until the last watcher had it.
    lag: Duration,
    delivered: u64,
    cpu: f64,
}

pub(crate) fn fanout(world: &World, ground: &Ground) -> Live {
    let auth = ground.cluster.auth().pid();
    let place = Place::of(&ground.cluster);
    world.runtime.block_on(async {
        step("hosts join that will send heartbeats");
        let hosts = join_all((0..SENDERS).map(|number| place.join(1_000_000 + number)));
        let hosts: Vec<Arc<HostCredentials>> = hosts.await.into_iter().map(|host| Arc::new(host.expect("a host"))).collect();
        let admin = ground.admin();
        let api = ground.api(&admin, "tctl");

        let before = memory(auth);
        let (group, shutdown) = (Group::new("caches"), Shutdown::new());
        let began = Instant::now();
        let caches: Vec<Cache> = (0_u64..)
            .take(FOLLOWERS)
            .map(|seed| {
                Cache::start(hosts[0].cluster().clone(), ground.api(&hosts[0], "node"), AGENT_KINDS, seed, &group, shutdown.clone())
            })
            .collect();
        join_all(caches.iter().map(Cache::synced)).await;
        let connected = began.elapsed();
        let each = memory(auth).rss.saturating_sub(before.rss) as f64 / FOLLOWERS as f64;
        step(&format!("{FOLLOWERS} caches are fed after {connected:?}; one change at a time"));
        let (mut answered, mut seen) = (Series::default(), Series::default());
        let used = cpu_of(auth);
        for number in 0..world.scale.changes {
            let (answer, last) = one_change(&api, &caches, number).await;
            answered.push(answer);
            seen.push(last);
        }
        let change_cpu = (cpu_of(auth) - used) / world.scale.changes as f64;
        shutdown.stop();
        group.join(Duration::from_secs(10)).await;
        drop(caches);

        step("a burst of changes");
        let senders: Vec<Api> = hosts.iter().map(|host| ground.api(host, "node")).collect();
        let burst = burst(ground, &place, &admin, &hosts, &senders).await;
        step("heartbeats");
        let (beats, beat_cpu) = beats(auth, &place, &hosts, &senders, world.scale.beating).await;
        Live { connected, each, answered, seen, change_cpu, burst, beats, beat_cpu }
    })
}

/// A new lock, as an administrator makes one: what must arrive soon.
async fn one_change(api: &Api, caches: &[Cache], number: usize) -> (Duration, Duration) {
    let target = LockTarget { user: Some("nobody".into()), ..LockTarget::default() };
    let name = ResourceName::new(format!("bench-{number}")).expect("a name");
    let lock = Resource::new(Metadata::named(name), Lock { target, message: "a bench".into(), extra: Extra::new() }).to_document();
    let began = Instant::now();
    let everyone = join_all(caches.iter().map(|cache| async move {
        let mut changed = cache.changed();
        while cache.locks().len() <= number {
            changed.changed().await.expect("a cache");
        }
    }));
    let write = async {
        api.create_raw(&lock).await.expect("a lock");
        began.elapsed()
    };
    let both = async { tokio::join!(write, everyone) };
    let (answered, _) = tokio::time::timeout(LONG, both).await.expect("all caches see a lock");
    (answered, began.elapsed())
}

/// Heartbeats with new labels, paced, while everybody watches hosts.
async fn burst(ground: &Ground, place: &Place, admin: &HostCredentials, hosts: &[Arc<HostCredentials>], senders: &[Api]) -> Burst {
    let reader = ground.api(&Arc::new(admin.clone()), "tctl");
    let from = revision(&reader, &hosts[..1]).await;
    let (group, delivered) = (Group::new("watchers"), Arc::new(AtomicU64::new(0)));
    let mut watchers = Vec::new();
    for _ in 0..FOLLOWERS {
        watchers.push(watcher(ground, admin, from, &group, delivered.clone()).await);
    }
    let auth = ground.cluster.auth().pid();
    let (cpu, began) = (cpu_of(auth), tokio::time::Instant::now());
    let pace = Duration::from_secs(1) / u32::try_from(PER_SECOND).expect("a rate");
    join_all(hosts.iter().zip(senders).enumerate().map(|(first, (host, api))| async move {
        for number in (first..BURST).step_by(SENDERS) {
            tokio::time::sleep_until(began + pace * u32::try_from(number).expect("a number")).await;
            let labels = Labels::from([("change".to_owned(), number.to_string())]);
            client::presence::beat(api, &place.beat(host, labels)).await.expect("a heartbeat");
        }
    }))
    .await;
    let written = began.elapsed();
    let last = revision(&reader, hosts).await;
    let caught_up = join_all(watchers.iter_mut().map(|seen| seen.wait_for(|seen| *seen >= last)));
    let caught_up = tokio::time::timeout(LONG, caught_up).await.expect("all watchers see the last change");
    assert!(caught_up.iter().all(Result::is_ok), "a watch ended");
    let lag = began.elapsed().saturating_sub(written);
    Burst { written, lag, delivered: delivered.load(Ordering::Relaxed), cpu: cpu_of(auth) - cpu }
}

/// The newest revision among these hosts' documents.
async fn revision(api: &Api, hosts: &[Arc<HostCredentials>]) -> u64 {
    let of = join_all(hosts.iter().map(|host| async move { api.get_raw(Node::KIND, &host.id().to_string()).await }));
    let of = of.await.into_iter().map(|node| node.expect("a host").metadata.revision.expect("a revision").0);
    of.map(|revision| revision.parse().expect("a number")).max().expect("a host")
}

/// One stream of changes of hosts; the revision that it has reached.
async fn watcher(ground: &Ground, admin: &HostCredentials, from: u64, group: &Group, delivered: Arc<AtomicU64>) -> watch::Receiver<u64> {
    let mut client = raw_client(ground, admin);
    let ask = WatchRequest { kinds: vec![Node::KIND.into()], from, ..WatchRequest::default() };
    let mut stream = client.watch(ask).await.expect("a watch").into_inner();
    let (reached, seen) = watch::channel(0);
    group.spawn("watcher", async move {
        while let Ok(Some(event)) = stream.message().await {
            if let Some(Event::Put(_)) = event.event {
                delivered.fetch_add(1, Ordering::Relaxed);
            }
            reached.send_replace(event.revision);
        }
    });
    seen
}

/// A connection whose answers nobody parses.
fn raw_client(ground: &Ground, host: &HostCredentials) -> AuthClient<tonic::transport::Channel> {
    let trust = net::tls::Trust::Cluster(host.trust.swap().expect("authorities"));
    let clock = net::clock::SystemClock::shared();
    let config = net::tls::client_config(Some(&host.tls), trust, &[wire::alpn::AUTH], &clock).expect("TLS");
    let server = wire::sni::role_name(&types::SystemRole::Auth, host.cluster());
    let version = crate::version();
    let (hello, addr) = (wire::hello::Hello::ours(&version, "tctl"), ground.cluster.auth_addr());
    AuthClient::new(net::grpc::channel(move || {
        let (config, server, hello, addr) = (config.clone(), server.clone(), hello.clone(), addr.clone());
        async move {
            let policy = net::hello::HelloPolicy::default();
            let connected = net::dial::dial(&addr, config, &server, &hello, types::version::Direction::ServerFirst, policy).await?;
            Ok(Box::new(connected.stream) as net::IoStream)
        }
        .boxed()
    }))
}

/// Heartbeats in which nothing has changed but the time, as many as go.
async fn beats(auth: u32, place: &Place, hosts: &[Arc<HostCredentials>], senders: &[Api], length: Duration) -> (f64, f64) {
    let (cpu, began) = (cpu_of(auth), Instant::now());
    let sent = join_all(hosts.iter().zip(senders).map(|(host, api)| async move {
        let mut sent = 0_u64;
        while began.elapsed() < length {
            client::presence::beat(api, &place.beat(host, Labels::new())).await.expect("a heartbeat");
            sent += 1;
        }
        sent
    }));
    let sent = sent.await.into_iter().sum::<u64>() as f64;
    (sent / began.elapsed().as_secs_f64(), (cpu_of(auth) - cpu) / sent)
}

pub(crate) fn write(report: &mut Report, hosts: usize, all: &[(Driver, Live)]) {
    let needed = hosts as f64 / rules::presence::HEARTBEAT.as_secs_f64();
    report.section(
        &format!("{hosts} hosts: changes and heartbeats"),
        &format!(
            "{FOLLOWERS} caches of agents, each over a TLS connection of its own, then one lock at a time: from the request to the answer, and to \
             the moment when the last of the {FOLLOWERS} has it. The burst is {BURST} heartbeats with new labels, {PER_SECOND} in a second if the \
             store takes them, while {FOLLOWERS} others watch hosts; the lag is from the last answer to the last watcher. Heartbeats without \
             changes: as many as {SENDERS} hosts get through; {hosts} hosts send {needed:.0} in a second."
        ),
    );
    let mut rows = vec![row([
        "",
        "caches fed, s",
        "Auth, KiB for each",
        "answered, ms",
        "last cache, ms",
        "99 of 100 within",
        "Auth, processor ms each",
    ])];
    for (driver, live) in all {
        let cells = [
            driver.name(),
            &format!("{:.1}", live.connected.as_secs_f64()),
            &format!("{:.0}", live.each),
            &ms(live.answered.median()),
            &ms(live.seen.median()),
            &ms(live.seen.within(0.99)),
            &format!("{:.1}", live.change_cpu * 1000.0),
        ];
        rows.push(row(cells));
    }
    report.table(&rows);
    let mut rows = vec![row([
        "",
        "burst, changes per second",
        "events sent",
        "Auth, processor s",
        "lag, ms",
        "heartbeats per second",
        "Auth, processor ms each",
    ])];
    for (driver, live) in all {
        let burst = &live.burst;
        let cells = [
            driver.name(),
            &format!("{:.0}", BURST as f64 / burst.written.as_secs_f64()),
            &burst.delivered.to_string(),
            &format!("{:.2}", burst.cpu),
            &ms(burst.lag),
            &format!("{:.0}", live.beats),
            &format!("{:.2}", live.beat_cpu * 1000.0),
        ];
        rows.push(row(cells));
    }
    report.table(&rows);
    for (driver, live) in all {
        let name = driver.name();
        let slow = live.seen.within(0.99);
        let what = format!("one change to {FOLLOWERS} caches, 99 of 100, {name}");
        report.target(&what, format!("{} ms", ms(slow)), "< 50 ms", slow < Duration::from_millis(50));
        let what = format!("heartbeats per second, {name}");
        report.target(&what, format!("{:.0}", live.beats), &format!("≥ {needed:.0}"), live.beats >= needed);
    }
}
