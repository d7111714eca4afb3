//! A Proxy with everything around it.

use crate::{
    ca::{Cluster, id, now},
    fake_auth::FakeAuth,
};
use client::{api::Api, cache::Cache, connect::ConnectError, credentials::UserCredentials, host::HostCredentials};
use net::{
    IoStream,
    clock::{ManualClock, SharedClock},
    health::Board,
    shutdown::Shutdown,
    task::Group,
    tls::{Trust, client_config},
};
use proxy::{Config, Metrics, Proxy, World};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use types::{
    Code, Document, Extra, Metadata, NodeName, Public, Resource, ResourceName, SystemRole, Version,
    kind::{Node, User},
    label::parse_labels,
    role::Role,
    version::Direction,
};
use wire::{alpn, hello::Hello, sni};

pub(crate) const SOON: Duration = Duration::from_secs(10);
pub(crate) const PROXY_ID: u128 = 0xb0;

/// What a test may ask for before the Proxy starts.
pub(crate) struct Setup {
    pub(crate) config: Config,
    /// Fill the cache with the usual documents.
    pub(crate) synced: bool,
    pub(crate) auth: FakeAuth,
}

impl Default for Setup {
    fn default() -> Self {
        Self { config: Config::default(), synced: true, auth: FakeAuth::default() }
    }
}

pub(crate) struct Rig {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) addr: SocketAddr,
    pub(crate) ssh_addr: SocketAddr,
    pub(crate) cache: Cache,
    pub(crate) auth: FakeAuth,
    pub(crate) clock: ManualClock,
    pub(crate) tunnels: watch::Receiver<usize>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Board,
    pub(crate) shutdown: Shutdown,
    pub(crate) group: Group,
    pub(crate) ended: watch::Receiver<bool>,
    _credentials: watch::Sender<Arc<HostCredentials>>,
}

pub(crate) fn version() -> Version {
    Version::new(8, 3, 7)
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let (cluster, clock) = (Arc::new(Cluster::new("example")), ManualClock::new(now()));
        let credentials = cluster.member(id(PROXY_ID), "proxy", SystemRole::Proxy, &["proxy.example.com", "localhost"]);
        let (keep, credentials) = watch::channel(Arc::new(credentials));
        let cache = Cache::empty(cluster.name.clone());
        if setup.synced {
            cache.put(cluster.authorities());
            cache.put(documents());
        }
        let group = Group::new("test");
        setup.auth.know(cluster.clone());
        let (api, health) = (api(&setup.auth, &group), Board::default());
        let (listener, ssh_listener) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (addr, ssh_addr) = (listener.local_addr().unwrap(), ssh_listener.local_addr().unwrap());
        let world = World {
            clock: clock.shared(),
            version: version(),
            health: health.clone(),
            credentials,
            api,
            cache: cache.clone(),
            listener: Some(listener.into()),
            ssh_listener: Some(ssh_listener.into()),
            turn: net::turn::Turn::always(),
            succeeds: false,
        };
        let proxy = Proxy::build(setup.config, world).unwrap();
        let (tunnels, metrics, shutdown) = (proxy.tunnels(), proxy.metrics(), Shutdown::new());
        let (done, ended) = watch::channel(false);
        group.spawn("proxy", {
            let shutdown = shutdown.clone();
            async move {
                proxy.run(shutdown).await;
                done.send(true)
            }
        });
        Self {
            cluster,
            addr,
            ssh_addr,
            cache,
            auth: setup.auth,
            clock,
            tunnels,
            metrics,
            health,
            shutdown,
            group,
            ended,
            _credentials: keep,
        }
    }

    pub(crate) fn clock(&self) -> SharedClock {
        self.clock.shared()
    }

    /// Waits until so many hosts hold a tunnel.
    pub(crate) async fn until_tunnels(&self, count: usize) {
        let mut tunnels = self.tunnels.clone();
        tokio::time::timeout(SOON, tunnels.wait_for(|now| *now == count)).await.expect("the tunnels").unwrap();
    }

    /// What `tsh ssh` does first.
    pub(crate) async fn dial(&self, user: &UserCredentials, target: &str) -> Result<Session, Public> {
        let dialer = user.dialer(&self.addr.to_string(), "tsh", &version(), &self.clock()).unwrap();
        let dialed = tokio::time::timeout(SOON, dialer.dial(&target.parse().unwrap(), None)).await.expect("an answer");
        dialed.map(|node| Session(node.stream)).map_err(|error: ConnectError| error.public())
    }

    /// TLS with that protocol and certificate, to the Proxy by its name inside the cluster.
    pub(crate) async fn tls(&self, identity: Option<&net::tls::TlsIdentity>, protocol: &[u8]) -> Result<IoStream, Public> {
        let trust = Trust::Cluster(self.cluster.trust().swap().unwrap());
        let config = client_config(identity, trust, &[protocol], &self.clock()).unwrap();
        let tcp = TcpStream::connect(self.addr).await.unwrap();
        let stream = net::dial::tls(tcp, "proxy", config, &sni::role_name(&SystemRole::Proxy, &self.cluster.name)).await?;
        Ok(Box::new(stream))
    }

    /// The same, and our handshake.
    pub(crate) async fn greet(&self, identity: &net::tls::TlsIdentity, protocol: &[u8], hello: &Hello) -> Result<IoStream, Public> {
        let mut stream = self.tls(Some(identity), protocol).await?;
        net::hello::client(&mut stream, hello, Direction::CallerSpeaksOlder, Default::default()).await?;
        Ok(stream)
    }

    /// One HTTP request; status, head and body.
    pub(crate) async fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut stream = self.tls(None, alpn::HTTP).await.unwrap();
        let extra: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: proxy.example.com:3080\r\nConnection: close\r\n{extra}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        tokio::time::timeout(SOON, stream.read_to_end(&mut all)).await.expect("an answer").unwrap();
        Answer::read(&all)
    }
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.http("GET", path, &[], "").await
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.shutdown.stop();
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").expect("an HTTP answer");
        Self { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head: head.to_ascii_lowercase(), body: body.to_owned() }
    }
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
    pub(crate) fn is(&self, status: u16, code: Code) -> bool {
        self.status == status && self.json()["code"] == code.as_str()
    }
}

/// A stream to a fake agent, which sends back what it gets with its name in front.
pub(crate) struct Session(pub(crate) IoStream);

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

impl Session {
    pub(crate) async fn say(&mut self, text: &str) -> String {
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
        let mut buffer = [0; 256];
        let count = tokio::time::timeout(SOON, self.0.read(&mut buffer)).await.expect("an echo").unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }
}

fn api(auth: &FakeAuth, group: &Group) -> Api {
    let (auth, group) = (auth.clone(), group.clone());
    Api::over(move || {
        let (auth, group) = (auth.clone(), group.clone());
        Box::pin(async move { auth.connect(&group) })
    })
}

pub(crate) fn node(n: u128, hostname: &str, labels: &str, addr: &str) -> Document {
    let mut metadata = Metadata::named(&id(n));
    metadata.labels = parse_labels(labels).unwrap();
    let spec = Node {
        hostname: NodeName::new(hostname).unwrap(),
        addr: addr.into(),
        use_tunnel: addr.is_empty(),
        version: version(),
        extra: Extra::new(),
    };
    Resource::new(metadata, spec).to_document()
}

pub(crate) fn named<S: types::document::Spec>(name: &str, spec: S) -> Document {
    Resource::new(Metadata::named(ResourceName::new(name).unwrap()), spec).to_document()
}

/// alice and bob, hosts node1 (1), two called db (2 and 3), secret (4) that alice may not see.
fn documents() -> Vec<Document> {
    let access: Role =
        serde_json::from_value(serde_json::json!({ "allow": { "logins": ["app"], "node_labels": { "env": "dev" } } })).unwrap();
    let admin: Role = serde_json::from_value(serde_json::json!({ "allow": { "logins": ["app"], "node_labels": { "*": "*" } } })).unwrap();
    let user = |roles: &[&str]| User { roles: roles.iter().map(|role| ResourceName::new(role).unwrap()).collect(), ..User::default() };
    vec![
        named("access", access),
        named("admin", admin),
        named("alice", user(&["access"])),
        named("bob", user(&["admin"])),
        node(1, "node1", "env=dev", ""),
        node(2, "db", "env=dev", ""),
        node(3, "db", "env=dev", ""),
        node(4, "secret", "env=prod", ""),
    ]
}
