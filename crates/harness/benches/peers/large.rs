//! A cluster of two processes, Auth and Proxy, on a store that is filled with hosts while they are down.
//!
//! Hosts are what Auth itself would have written: a `node` and a `member` document each, created one by one and fenced through
//! `store::Documents`, with a lease. Filling them in through joins and heartbeats instead is what `fleet` does with ten thousand.

use crate::{
    step,
    stores::{Driver, Server},
};
use client::{
    api::{Access, Api, Settings, Via},
    host::HostCredentials,
};
use futures::{StreamExt as _, stream};
use harness::{Cluster, Person, Setup, eventually};
use net::clock::SystemClock;
use nix::sys::signal::Signal;
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use store::{Documents, WriterEpoch};
use tokio::sync::watch;
use types::{
    Document, Extra, HostId, Labels, Metadata, NodeName, Resource, SystemRole, Time,
    kind::{Member, Node},
};

/// Writers at once.
const AT_ONCE: usize = 256;
/// What a start may take before the bench gives up.
const STARTS: Duration = Duration::from_secs(120);
/// Hosts that share a value of the label `rack`.
pub(crate) const RACK: usize = 250;

/// The ground that the large figures are taken on.
pub(crate) struct Ground {
    pub(crate) server: Server,
    pub(crate) cluster: Cluster,
    pub(crate) person: Person,
    /// Hosts in the store.
    pub(crate) hosts: usize,
}

/// How filling and starting went.
pub(crate) struct Filled {
    /// Documents written, and how long that took.
    pub(crate) documents: usize,
    pub(crate) fill: Duration,
    /// From the start of the process to "ready".
    pub(crate) auth: Duration,
    pub(crate) proxy: Duration,
}

impl Ground {
    pub(crate) fn new(driver: Driver) -> Ground {
        let server = Server::start(driver);
        let storage = Some(server.storage());
        let setup =
            Setup { name: driver.name().into(), split: true, with_node: false, allow_prerelease: true, storage, ..Setup::default() };
        let cluster = Cluster::with(setup);
        let person = cluster.person("large", &["access"], &["root"]);
        Ground { server, cluster, person, hosts: 0 }
    }

    /// Stops both services, adds hosts until there are so many, and starts them again, Auth first.
    pub(crate) fn grow(&mut self, runtime: &tokio::runtime::Runtime, hosts: usize) -> Filled {
        for member in [self.cluster.proxy(), self.cluster.auth()] {
            member.signal(Signal::SIGTERM);
            member.wait(Duration::from_secs(60));
        }
        step(&format!("{}: from {} to {hosts} hosts", self.server.driver.name(), self.hosts));
        let began = Instant::now();
        runtime.block_on(fill(&self.server, self.hosts..hosts));
        let (fill, documents) = (began.elapsed(), 2 * (hosts - self.hosts));
        self.hosts = hosts;
        let auth = start(self.cluster.auth());
        let proxy = start(self.cluster.proxy());
        Filled { documents, fill, auth, proxy }
    }

    /// The local administrator, who may see everything.
    pub(crate) fn admin(&self) -> Arc<HostCredentials> {
        let path = self.cluster.auth().data_dir.join("admin").join("identity.json");
        Arc::new(HostCredentials::load(&path).expect("the administrator's credentials"))
    }

    /// A connection to the Auth Service of its own.
    pub(crate) fn api(&self, credentials: &Arc<HostCredentials>, role: &str) -> Api {
        // The sender may go: these certificates are not renewed.
        let (_, credentials) = watch::channel(credentials.clone());
        Api::new(Settings {
            via: Via::Auth(self.cluster.auth_addr()),
            access: Access::Host(credentials),
            role: role.into(),
            version: crate::version(),
            skip_version_check: false,
            clock: SystemClock::shared(),
        })
    }
}

/// From the start of the process to "ready".
fn start(member: &harness::cluster::Member) -> Duration {
    let began = Instant::now();
    member.start();
    eventually(STARTS, &format!("{} is ready: {:?}", member.name, member.readyz()), || {
        member.readyz().filter(|(status, _)| *status == 200)
    });
    began.elapsed()
}

async fn fill(server: &Server, numbers: std::ops::Range<usize>) {
    let store = server.open().await;
    let record = store::control::read(store.as_ref()).await.expect("a control record").expect("a cluster").record;
    let documents = Documents::new(store.clone(), WriterEpoch(record.epoch));
    let now = Time::from(SystemTime::now());
    let all = numbers.flat_map(|number| host(number, now));
    let mut writing = stream::iter(all).map(|document| {
        let documents = documents.clone();
        async move { documents.create(&document).await.map(drop) }
    });
    let mut under_way = writing.by_ref().buffer_unordered(AT_ONCE);
    while let Some(written) = under_way.next().await {
        written.expect("a document is written");
    }
    store.close().await;
    server.settle();
}

/// The two documents of a host. It lives for longer than the bench, and counts as heard of now.
fn host(number: usize, now: Time) -> [Document; 2] {
    let id = HostId::from_uuid(uuid::Uuid::from_u128(0x4000_8000_0000_0000_0000 + number as u128));
    let hostname = NodeName::new(format!("host-{number:06}")).expect("a name");
    let labels: Labels = [("env", ["prod", "staging", "dev"][number % 3].to_owned()), ("rack", format!("r{}", number / RACK))]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
    let version = crate::version();
    let mut metadata = Metadata::named(&id);
    metadata.labels = labels.clone();
    metadata.expires = Some(now.plus(Duration::from_secs(7200)));
    let node = Node { hostname: hostname.clone(), addr: String::new(), use_tunnel: true, version: version.clone(), extra: Extra::new() };
    let member = Member {
        hostname: hostname.to_string(),
        roles: BTreeSet::from([SystemRole::Node]),
        version,
        boot_id: uuid::Uuid::now_v7().to_string(),
        started: now,
        last_seen: now,
        state: "active".into(),
        skips_version_check: false,
        labels,
        platform: Default::default(),
        capabilities: Vec::new(),
        extra: Extra::new(),
    };
    [Resource::new(metadata.clone(), node).to_document(), Resource::new(metadata, member).to_document()]
}
