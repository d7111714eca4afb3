//! A malicious agent: a host that joined properly, whose credentials were stolen, against real processes of everybody else.
//!
//! It speaks the agent's own protocols with its own certificate and says there whatever could send a Proxy, an Auth Service or a
//! user somewhere else (attack table, row 13). The traps are listeners that nobody has any reason to call.

use crate::talk::{SOON, Tls, block_on, name_of};
use client::{
    api::{Access, Api, Settings, Via},
    host::HostCredentials,
    presence::{self, Beat},
};
use harness::{
    Cluster, Person,
    cluster::{Way, until_ok},
    eventually,
    person::me,
    process::Running,
};
use net::{
    clock::SystemClock,
    dial::dial,
    frame::{read_frame, write_frame},
    hello::HelloPolicy,
    tls::{Trust, client_config},
};
use serde_json::json;
use std::{net::TcpListener, sync::Arc, time::Duration};
use tokio::sync::watch;
use types::{
    Extra, Metadata, Resource, SystemRole, Time, Version,
    kind::{Member, Node},
    version::Direction,
};
use wire::{hello::Hello, tunnel::ToAgent};

/// A listener on an address of this machine that nobody has a reason to call.
struct Trap(TcpListener);

impl Trap {
    fn set(address: &str) -> Trap {
        let listener = TcpListener::bind((address, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Trap(listener)
    }
    fn addr(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }
    #[track_caller]
    fn nobody_came(&self, what: &str) {
        assert!(self.0.accept().is_err(), "{what}: somebody was sent to {}", self.addr());
    }
}

/// A host of the cluster whose process is gone and whose credentials are in the wrong hands.
struct Rogue {
    credentials: HostCredentials,
    name: String,
}

fn stolen(cluster: &Cluster, name: &str, way: Way) -> Rogue {
    let host = cluster.join(name, way, &[]);
    let credentials = HostCredentials::load(&host.data_dir.join("host/identity.json")).unwrap();
    host.kill();
    Rogue { credentials, name: name.to_owned() }
}

fn version() -> Version {
    let shown = harness::Run::new(harness::binary::current()).args(["version", "--format=json"]).go().json();
    shown["version"].as_str().unwrap().parse().unwrap()
}

impl Rogue {
    /// A heartbeat that claims this address, port and host name, in every field that could hold one.
    async fn beat(&self, via: Via, addr: &str, port: u16, hostname: &str) -> Result<(), types::Public> {
        let id = self.credentials.id();
        let (_sender, access) = watch::channel(Arc::new(self.credentials.clone()));
        let version = version();
        let api = Api::new(Settings {
            via,
            access: Access::Host(access),
            role: "node".into(),
            version: version.clone(),
            skip_version_check: false,
            clock: SystemClock::shared(),
        });
        let mut extra = Extra::new();
        for field in ["addr", "address", "public_addr", "public_addrs", "peer_addr", "proxy_ids", "tunnel_addr"] {
            extra.insert(field.into(), json!(addr));
        }
        extra.remove("addr");
        let node = Node {
            hostname: hostname.parse().unwrap(),
            addr: addr.into(),
            use_tunnel: false,
            version: version.clone(),
            extra: extra.clone(),
        };
        let member = Member {
            hostname: hostname.into(),
            roles: [SystemRole::Node, SystemRole::Proxy, SystemRole::Auth].into(),
            version,
            boot_id: "rogue".into(),
            started: Time::EPOCH,
            last_seen: Time::EPOCH,
            state: "active".into(),
            skips_version_check: false,
            labels: [("env".to_owned(), "test".to_owned())].into(),
            platform: Default::default(),
            capabilities: Vec::new(),
            extra,
        };
        let beat = Beat {
            member: Resource::new(Metadata::named(&id), member),
            node: Some(Resource::new(Metadata::named(&id), node)),
            ssh_port: port,
        };
        presence::beat(&api, &beat).await.map(|_| ())
    }

    /// A connection of an agent to the Proxy, past the handshake.
    async fn dial(&self, cluster: &Cluster, alpn: &[u8]) -> Tls {
        let config = client_config(Some(&self.credentials.tls), Trust::Insecure, &[alpn], &SystemClock::shared()).unwrap();
        let (name, ours) = (name_of(SystemRole::Proxy, cluster), Hello::ours(&version(), "node"));
        let policy = HelloPolicy { deadline: SOON, skip_version_check: false };
        dial(&cluster.proxy_addr(), config, &name, &ours, Direction::ServerFirst, policy).await.unwrap().stream
    }

    /// Its control connection, registered with more words than the protocol has.
    async fn tunnel(&self, cluster: &Cluster, addr: &str) -> Tls {
        let mut stream = self.dial(cluster, b"lockgate-tunnel").await;
        let register = json!({"type": "register", "host_id": self.credentials.id(), "boot_id": "rogue", "addr": addr, "dial": addr, "principals": ["node1"], "peers": [addr], "public_addr": addr});
        say(&mut stream, &register).await;
        match hear(&mut stream).await {
            Some(ToAgent::Welcome { .. }) => stream,
            other => panic!("{other:?}"),
        }
    }
}

async fn say(stream: &mut Tls, message: &serde_json::Value) {
    let _hung_up_on = write_frame(stream, message.to_string().as_bytes(), SOON).await;
}

/// The next message that is more than a sign of life; none when the Proxy hung up.
async fn hear(stream: &mut Tls) -> Option<ToAgent> {
    loop {
        let payload = read_frame(stream, Duration::from_secs(30)).await.map_err(|error| eprintln!("the Proxy hung up: {error}")).ok()?;
        match wire::tunnel::decode(&payload).unwrap() {
            ToAgent::Ping { .. } | ToAgent::Spare { .. } => {}
            other => return Some(other),
        }
    }
}

/// `tsh ssh` to the rogue, beside the test, because the rogue answers.
fn visit(cluster: &Cluster, alice: &Person, rogue: &Rogue, number: usize) -> Running {
    let run = alice.ssh(&format!("{}@{}", me(), rogue.name), "true");
    Running::start(&run.into_command(), &cluster.home.join(format!("visit-{number}.log")))
}

#[test]
fn attack_row_13_a_malicious_agents_addresses_are_dialled_by_nobody() {
    let cluster = Cluster::split();
    let alice = cluster.person("alice", &["access"], &[me()]);
    let traps = [Trap::set("127.0.0.1"), Trap::set("127.0.0.2")];
    let listed = |rogue: &Rogue| {
        let id = rogue.credentials.id().to_string();
        let shown = cluster.tctl(["nodes", "ls", "--format=json"]).go().json();
        let node = shown.as_array().unwrap().iter().find(|node| node["metadata"]["name"] == *id).cloned();
        node.unwrap_or_else(|| panic!("no {id} in {shown}"))
    };

    // Beside a Proxy: whatever address and port it claims, it is reached by its tunnel or not at all.
    let behind = stolen(&cluster, "behind", Way::Tunnel);
    let own_ports = [cluster.auth_port, cluster.web_port, cluster.jump_port, cluster.proxy().diag_port];
    let addresses = traps.iter().map(Trap::addr).chain([
        format!("127.0.0.1:{}", cluster.auth_port),
        "169.254.169.254:80".into(),
        "[::1]:22".into(),
        "[fe80::1]:22".into(),
        "rebinding.example.com:22".into(),
        "http://127.0.0.1/".into(),
    ]);
    for addr in addresses {
        for port in own_ports.into_iter().chain([traps[0].0.local_addr().unwrap().port()]) {
            let _taken_or_refused = block_on(behind.beat(Via::Proxy(cluster.proxy_addr()), &addr, port, "node1"));
            let node = listed(&behind);
            assert_eq!((&node["spec"]["addr"], &node["spec"]["use_tunnel"]), (&json!(""), &json!(true)), "{addr} {port}: {node}");
            assert_eq!(node["spec"]["hostname"], "behind", "the name is the certificate's: {node}");
        }
        alice.ssh(&format!("{}@behind", me()), "true").go().fails(255, "LG-CONNECT-003");
    }

    // At an Auth Service directly: the address is the one that was seen; only the port is its own to say. On this machine that
    // can be the Auth Service's, which answers with another certificate.
    let beside = stolen(&cluster, "beside", Way::Direct);
    for (port, addr) in own_ports.into_iter().zip(traps.iter().cycle().map(Trap::addr)) {
        block_on(beside.beat(Via::Auth(cluster.auth_addr()), &addr, port, "node1")).unwrap();
        let node = listed(&beside);
        assert_eq!(node["spec"]["addr"], format!("127.0.0.1:{port}"), "{node}");
        eventually(SOON, "the Proxy knows", || {
            let ran = alice.ssh(&format!("{}@beside", me()), "true").go();
            assert_eq!(ran.status, 255, "{ran}");
            (ran.code() == Some("LG-CONNECT-003")).then_some(())
        });
    }

    for trap in &traps {
        trap.nobody_came("a claimed address");
    }
    // Everybody else is where he was.
    until_ok(SOON, || alice.ssh(&format!("{}@node1", me()), "true"));
}

#[test]
fn attack_row_13_a_malicious_agents_answers_send_nobody_elsewhere() {
    let cluster = Cluster::split();
    let alice = cluster.person("alice", &["access"], &[me()]);
    let trap = Trap::set("127.0.0.1");
    let (rogue, other) = (stolen(&cluster, "rogue", Way::Tunnel), stolen(&cluster, "other", Way::Tunnel));
    block_on(async {
        // As somebody else it gets no tunnel.
        let mut stream = rogue.dial(&cluster, b"lockgate-tunnel").await;
        say(&mut stream, &json!({"type": "register", "host_id": other.credentials.id(), "boot_id": "rogue"})).await;
        match hear(&mut stream).await {
            Some(ToAgent::Refused { error }) => assert_eq!(error.code, "LG-ACCESS-002", "{error}"),
            other => panic!("{other:?}"),
        }
        // Messages that no agent has any business to send.
        let addr = trap.addr();
        let mut control = rogue.tunnel(&cluster, &addr).await;
        for message in [
            json!({"type": "open", "ticket": "0", "client_addr": addr}),
            json!({"type": "redirect", "addr": addr, "to": addr}),
            json!({"type": "dial", "addr": addr, "target": {"name": addr}}),
            json!({"type": "welcome", "proxy_id": other.credentials.id(), "peers": [addr]}),
            json!({"type": "failed", "ticket": "not-one", "error": {"code": "LG-CONNECT-003", "message": "x"}, "addr": addr}),
        ] {
            say(&mut control, &message).await;
        }
        // A user comes: each time another wrong answer, and each time the user is told and nobody is dialled.
        for answer in 0..4 {
            let mut visitor = visit(&cluster, &alice, &rogue, answer);
            let ticket = match hear(&mut control).await {
                Some(ToAgent::Open { ticket, .. }) => ticket,
                other => panic!("{other:?}"),
            };
            let mut held = Vec::new();
            match answer {
                0 => {
                    let error = json!({"code": "LG-CONNECT-003", "message": format!("moved to {addr}"), "hint": format!("tsh login --proxy={addr} --insecure"), "addr": addr, "redirect": addr});
                    say(&mut control, &json!({"type": "failed", "ticket": ticket, "error": error, "addr": addr})).await;
                }
                1 => {
                    // The ticket in another host's hands is worth nothing; then it is given up.
                    let mut stream = other.dial(&cluster, b"lockgate-tunnel-data").await;
                    say(&mut stream, &json!({"type": "ticket", "ticket": ticket, "addr": addr})).await;
                    let cut = read_frame(&mut stream, SOON).await;
                    assert!(cut.is_err(), "{cut:?}");
                    say(&mut control, &json!({"type": "failed", "ticket": ticket, "error": {"code": "LG-CONNECT-003", "message": "x"}}))
                        .await;
                }
                2 => {
                    // It takes the session and answers with an order instead of SSH.
                    let mut stream = rogue.dial(&cluster, b"lockgate-tunnel-data").await;
                    say(&mut stream, &json!({"type": "ticket", "ticket": ticket, "addr": addr, "host_id": other.credentials.id()})).await;
                    say(&mut stream, &json!({"type": "redirect", "addr": addr})).await;
                }
                _ => {
                    // It answers as an SSH server without a key of the cluster, and leaves.
                    let mut stream = rogue.dial(&cluster, b"lockgate-tunnel-data").await;
                    say(&mut stream, &json!({"type": "ticket", "ticket": ticket})).await;
                    let _start = read_frame(&mut stream, SOON).await;
                    use tokio::io::AsyncWriteExt as _;
                    let _hung_up_on = stream.write_all(format!("moved to {addr}\r\nSSH-2.0-rogue\r\n").as_bytes()).await;
                    let _hung_up_on = stream.shutdown().await;
                    held.push(stream);
                }
            }
            let status = visitor.wait(Duration::from_secs(40));
            assert_eq!(status, 255, "{}", visitor.log());
            assert!(!visitor.log().contains("--insecure"), "an agent gives users no advice: {}", visitor.log());
            trap.nobody_came(&format!("answer {answer}"));
        }
    });
    until_ok(SOON, || alice.ssh(&format!("{}@node1", me()), "true"));
}
