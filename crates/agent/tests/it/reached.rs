//! The whole service, reached the two ways: through a Proxy's tunnel, and directly. The Proxy here is played by hand.

use crate::world::{Anyone, SOON, exec, name, own_login, role};
use agent::{Agent, Config, World};
use client::{
    cache::Cache,
    host::HostCredentials,
    testing::{Cluster, FakeAuth},
};
use net::{
    IoStream,
    clock::SystemClock,
    frame::{read_frame, write_frame},
    health::{Board, Health},
    hello::{self, HelloPolicy},
    shutdown::Shutdown,
    swap::Swap,
    task::Group,
    tls::{self, Certificates, ClientAuth, Trust},
    turn::Turn,
};
use russh::client::{self as ssh_client, AuthResult};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use types::{Extra, HostId, Metadata, Resource, SystemRole, Time, Version, kind::User, name::BootId, version::Direction};
use wire::{
    alpn,
    hello::Hello,
    route::{Dial, Dialed, Target, decode as decode_route, encode as encode_route},
    sni,
    tunnel::{DataHello, Start, ToAgent, ToProxy, decode, encode},
};

pub(crate) fn id() -> HostId {
    HostId::from_uuid(uuid::Uuid::new_v4())
}

/// A host with everything it needs, and how to end it.
pub(crate) struct Host {
    cluster: Arc<Cluster>,
    pub(crate) id: HostId,
    pub(crate) health: Board,
    shutdown: Shutdown,
    tasks: Group,
    addr: Option<std::net::SocketAddr>,
    _dir: tempfile::TempDir,
    _credentials: watch::Sender<Arc<HostCredentials>>,
    ended: watch::Receiver<bool>,
}

impl Host {
    pub(crate) fn start(cluster: &Arc<Cluster>, proxies: Vec<String>, listener: Option<TcpListener>) -> Self {
        let (dir, host) = (tempfile::tempdir().unwrap(), id());
        let cache = Cache::empty(cluster.name.clone());
        cache.put(cluster.authorities());
        cache.put([Resource::new(Metadata::named(name("access")), role()).to_document()]);
        let user = User { roles: [name("access")].into(), ..User::default() };
        cache.put([Resource::new(Metadata::named(name("alice")), user).to_document()]);
        let (keep, credentials) = watch::channel(Arc::new(cluster.host(host, "node1", &[SystemRole::Node])));
        let (health, shutdown, tasks) = (Board::default(), Shutdown::new(), Group::new("test"));
        let world = World {
            clock: SystemClock::shared(),
            version: Version::new(1, 0, 0),
            health: health.clone(),
            credentials,
            api: FakeAuth::new().api(),
            cache,
            boot: BootId::from_uuid(uuid::Uuid::new_v4()),
            listener: listener.map(Into::into),
            turn: Turn::always(),
            alone: Turn::always(),
            given: None,
        };
        let agent = Agent::build(Config::tunnel(dir.path(), proxies), world).unwrap();
        let addr = agent.local_addr();
        let (tell, ended) = watch::channel(false);
        let told = shutdown.clone();
        tasks.spawn("agent", async move {
            agent.run(told).await;
            tell.send_replace(true);
        });
        Self { cluster: cluster.clone(), id: host, health, shutdown, tasks, addr, _dir: dir, _credentials: keep, ended }
    }

    /// A session as alice over a stream that leads to this host.
    async fn session(&self, stream: IoStream) -> ssh_client::Handle<Anyone> {
        let mut client = ssh_client::connect_stream(Arc::new(ssh_client::Config::default()), stream, Anyone).await.unwrap();
        let login = own_login();
        let user = self.cluster.user("alice", &[login.as_str()]);
        let key = Arc::new(user.key.ssh_private().unwrap());
        let result = client.authenticate_openssh_cert(login.as_str(), key, user.ssh_certificate.clone()).await.unwrap();
        assert!(matches!(result, AuthResult::Success));
        client
    }

    pub(crate) async fn is(&self, health: Health) {
        let mut changes = self.health.changes();
        tokio::time::timeout(SOON, changes.wait_for(|rows| rows.get("ssh") == Some(&health))).await.expect("health").unwrap();
    }
}

/// Plays a Proxy: what agents open, in order.
struct Proxy {
    addr: String,
    control: mpsc::Receiver<IoStream>,
    data: mpsc::Receiver<(IoStream, DataHello)>,
}

const DEADLINE: Duration = Duration::from_secs(20);

impl Proxy {
    async fn start(cluster: &Arc<Cluster>, tasks: &Group) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let us = cluster.host(id(), "proxy1", &[SystemRole::Proxy]);
        let (authorities, clock) = (cluster.trust().swap().unwrap(), SystemClock::shared());
        let config = tls::server_config(
            Certificates::fixed(&us.tls),
            ClientAuth::Required,
            &authorities,
            &[alpn::TUNNEL, alpn::TUNNEL_DATA],
            &clock,
        )
        .unwrap();
        let ((control_tx, control), (data_tx, data)) = (mpsc::channel(8), mpsc::channel(8));
        tasks.spawn("proxy", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let accepted = tls::accept(stream, config.clone(), &authorities, &clock, DEADLINE).await.unwrap();
                let is_data = accepted.alpn() == Some(alpn::TUNNEL_DATA);
                assert!(accepted.identity.as_ref().is_some_and(|identity| identity.has_system_role(&SystemRole::Node)));
                let mut stream: IoStream = Box::new(accepted.stream);
                let ours = Hello::ours(&Version::new(1, 0, 0), "proxy");
                hello::server(&mut stream, &ours, Direction::ServerFirst, DEADLINE).await.unwrap();
                if is_data {
                    let first = decode(&read_frame(&mut stream, DEADLINE).await.unwrap()).unwrap();
                    data_tx.send((stream, first)).await.unwrap();
                } else {
                    control_tx.send(stream).await.unwrap();
                }
            }
        });
        Self { addr, control, data }
    }

    /// The next tunnel, welcomed.
    async fn tunnel(&mut self, host: HostId) -> IoStream {
        let mut stream = tokio::time::timeout(SOON, self.control.recv()).await.expect("no tunnel").unwrap();
        match decode(&read_frame(&mut stream, DEADLINE).await.unwrap()).unwrap() {
            ToProxy::Register { host_id, .. } => assert_eq!(host_id, host),
            other => panic!("{other:?}"),
        }
        say(&mut stream, ToAgent::Welcome { proxy_id: id(), peers: vec![], addr: None }).await;
        stream
    }

    async fn dialled(&mut self) -> (IoStream, DataHello) {
        tokio::time::timeout(SOON, self.data.recv()).await.expect("no dial-back").unwrap()
    }
}

async fn say(stream: &mut IoStream, message: ToAgent) {
    write_frame(stream, &encode(&message), DEADLINE).await.unwrap();
}

async fn answers_ping(stream: &mut IoStream, seq: u64) {
    say(stream, ToAgent::Ping { seq }).await;
    let answer: ToProxy = decode(&read_frame(stream, DEADLINE).await.unwrap()).unwrap();
    assert_eq!(answer, ToProxy::Pong { seq });
}

pub(crate) fn cluster() -> Arc<Cluster> {
    Arc::new(Cluster::new("example", Time::from(std::time::SystemTime::now())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_behind_a_tunnel_takes_sessions_by_ticket_and_on_its_spare_and_never_listens() {
    let (cluster, tasks) = (cluster(), Group::new("test"));
    let mut proxy = Proxy::start(&cluster, &tasks).await;
    let host = Host::start(&cluster, vec![proxy.addr.clone()], None);
    assert_eq!(host.addr, None);
    let mut control = proxy.tunnel(host.id).await;
    host.is(Health::Ready).await;
    answers_ping(&mut control, 1).await;

    say(&mut control, ToAgent::Open { ticket: "t1".into(), client_addr: "192.0.2.9:1000".into() }).await;
    let (stream, first) = proxy.dialled().await;
    assert_eq!(first, DataHello::Ticket { ticket: "t1".into() });
    let client = host.session(stream).await;
    assert_eq!(exec(&client, "echo $SSH_CLIENT", "").await.text().trim(), "192.0.2.9 1000 0");

    say(&mut control, ToAgent::Spare { keep: true }).await;
    let (mut stream, first) = proxy.dialled().await;
    assert!(matches!(first, DataHello::Spare { boot_id: Some(_) }), "{first:?}");
    let start = Start { client_addr: "192.0.2.10:1000".into(), extra: Extra::new() };
    write_frame(&mut stream, &encode(&start), DEADLINE).await.unwrap();
    let warm = host.session(stream).await;
    assert_eq!(exec(&warm, "echo $SSH_CLIENT", "").await.text().trim(), "192.0.2.10 1000 0");
    let (_next, first) = proxy.dialled().await;
    assert!(matches!(first, DataHello::Spare { .. }), "the next one is dialled");

    // What a newer Proxy says is no reason to hang up.
    write_frame(&mut control, br#"{"type":"sing","song":"x"}"#, DEADLINE).await.unwrap();
    answers_ping(&mut control, 2).await;
    assert_eq!(exec(&client, "echo still", "").await.text().trim(), "still");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_tunnel_comes_back_by_itself_and_a_draining_proxy_is_left_only_for_another() {
    let (cluster, tasks) = (cluster(), Group::new("test"));
    let mut proxy = Proxy::start(&cluster, &tasks).await;
    let host = Host::start(&cluster, vec![proxy.addr.clone()], None);
    let control = proxy.tunnel(host.id).await;
    host.is(Health::Ready).await;
    drop(control);
    let mut control = proxy.tunnel(host.id).await;
    host.is(Health::Ready).await;
    say(&mut control, ToAgent::Drain).await;
    let mut another = proxy.tunnel(host.id).await;
    answers_ping(&mut another, 1).await;
    answers_ping(&mut control, 2).await;

    // Draining: the tunnel goes, the session that runs goes on, and the service ends after it.
    say(&mut another, ToAgent::Open { ticket: "t".into(), client_addr: String::new() }).await;
    let client = host.session(proxy.dialled().await.0).await;
    assert_eq!(exec(&client, "echo in", "").await.text().trim(), "in");
    host.shutdown.drain();
    assert!(read_frame(&mut another, DEADLINE).await.is_err(), "hung up");
    assert_eq!(exec(&client, "echo on", "").await.text().trim(), "on");
    assert!(!*host.ended.borrow());
    drop(client);
    let mut ended = host.ended.clone();
    tokio::time::timeout(SOON, ended.wait_for(|ended| *ended)).await.expect("does not end").unwrap();
    assert!(host.tasks.len() <= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_tunnel_serves_plain_ssh_and_proxies_on_one_port() {
    let cluster = cluster();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = Host::start(&cluster, vec![], Some(listener));
    let addr = host.addr.unwrap().to_string();
    host.is(Health::Ready).await;
    let plain: IoStream = Box::new(tokio::net::TcpStream::connect(&addr).await.unwrap());
    let client = host.session(plain).await;
    assert_eq!(exec(&client, "echo plain", "").await.text().trim(), "plain");

    let dial = async |role: SystemRole, target: HostId| -> Result<(IoStream, Dialed), String> {
        let us = cluster.host(id(), "p", &[role]);
        let authorities = Swap::new(cluster.trust().tls().unwrap());
        let config = tls::client_config(Some(&us.tls), Trust::Cluster(authorities), &[alpn::SSH], &SystemClock::shared()).unwrap();
        let (ours, policy) = (Hello::ours(&Version::new(1, 0, 0), "proxy"), HelloPolicy::default());
        let connected = net::dial::dial(&addr, config, &sni::host_name(&host.id), &ours, Direction::CallerSpeaksOlder, policy).await;
        let mut stream: IoStream = Box::new(connected.map_err(|error| error.to_string())?.stream);
        let mut extra = Extra::new();
        extra.insert("client_addr".into(), "192.0.2.11:99".into());
        let ask = Dial { target: Target::Id(target), cluster: None, extra };
        write_frame(&mut stream, &encode_route(&ask), DEADLINE).await.map_err(|error| error.to_string())?;
        let answer = read_frame(&mut stream, DEADLINE).await.map_err(|error| error.to_string())?;
        Ok((stream, decode_route(&answer).unwrap()))
    };
    let (stream, answer) = dial(SystemRole::Proxy, host.id).await.unwrap();
    assert!(matches!(answer, Dialed::Connected { host_id, .. } if host_id == host.id));
    let client = host.session(stream).await;
    assert!(exec(&client, "echo $SSH_CLIENT", "").await.text().starts_with("192.0.2.11 99 "));
    assert!(matches!(dial(SystemRole::Proxy, id()).await.unwrap().1, Dialed::Refused(_)));
    assert!(dial(SystemRole::Node, host.id).await.is_err(), "only a Proxy comes over TLS");
    host.shutdown.stop();
    let mut ended = host.ended.clone();
    tokio::time::timeout(SOON, ended.wait_for(|ended| *ended)).await.expect("does not end").unwrap();
}
