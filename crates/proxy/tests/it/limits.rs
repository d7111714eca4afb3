//! Attack table, row 24: peers that are nobody and slow must not keep anybody out.

use crate::{
    ca::id,
    fake_agent::FakeAgent,
    rig::{Rig, SOON, Setup, version},
};
use net::listen::Limits;
use proxy::{Config, Rate};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use types::{Code, SystemRole};
use wire::{alpn, hello::HEADER};

fn small() -> Config {
    let limits = Limits { max_unauthenticated: 64, max_unauthenticated_per_ip: 16, ..Config::default().limits };
    Config { limits, ..Config::default() }
}

/// How long a login may take while strangers hold every place; the attack table says one second of legitimate work.
const FAST: Duration = Duration::from_secs(3);

#[tokio::test]
async fn attack_row_24_slow_peers_at_each_step_do_not_keep_a_login_or_a_session_out() {
    let rig = Arc::new(Rig::with(Setup { config: small(), ..Setup::default() }).await);
    FakeAgent::start(&rig, 1, "boot").await.serve(&rig, "one");
    let alice = rig.cluster.user("alice", &["access"]);
    let mut held: Vec<Box<dyn std::any::Any + Send>> = Vec::new();
    for step in [
        "nothing",
        "half a TLS hello",
        "TLS and no HTTP",
        "half an HTTP head",
        "half an HTTP body",
        "SSH banner by the byte",
        "member and no hello",
    ] {
        for _ in 0..40 {
            held.push(hold(&rig, step).await);
        }
        let work = async {
            assert_eq!(rig.get("/webapi/ping").await.status, 200, "{step}");
            let hello = serde_json::to_string(&wire::hello::Hello::ours(&version(), "tsh")).unwrap();
            let login = rig.http("POST", "/webapi/login", &[(HEADER, &hello)], "{}").await;
            assert!(login.is(400, Code::Malformed), "{step}: {login:?}");
            assert_eq!(rig.dial(&alice, "node1").await.unwrap().say("x").await, "one:x", "{step}");
            let ssh = TcpStream::connect(rig.ssh_addr).await.unwrap();
            let mut banner = [0; 8];
            tokio::io::BufReader::new(ssh).read_exact(&mut banner).await.unwrap();
            assert_eq!(&banner, b"SSH-2.0-", "{step}");
        };
        tokio::time::timeout(FAST, work).await.unwrap_or_else(|_| panic!("too slow: {step}"));
    }
}

/// A peer that stops at that step and stays.
async fn hold(rig: &Rig, step: &str) -> Box<dyn std::any::Any + Send> {
    let tcp = async |bytes: &[u8]| {
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    };
    let web = async |bytes: &[u8]| {
        let mut stream = rig.tls(None, alpn::HTTP).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    match step {
        "nothing" => Box::new(tcp(b"").await),
        "half a TLS hello" => Box::new(tcp(&[0x16, 3, 1, 2, 0, 1, 0]).await),
        "TLS and no HTTP" => Box::new(web(b"").await),
        "half an HTTP head" => Box::new(web(b"GET /webapi/ping HTTP/1.1\r\nHost: ").await),
        "half an HTTP body" => Box::new(web(b"POST /web/invite/0123456789 HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\nx").await),
        "SSH banner by the byte" => {
            let mut stream = TcpStream::connect(rig.ssh_addr).await.unwrap();
            stream.write_all(b"SSH-2.0-").await.unwrap();
            Box::new(stream)
        }
        "member and no hello" => {
            let host = rig.cluster.member(id(2), "slow", SystemRole::Node, &[]);
            Box::new(rig.tls(Some(&host.tls), alpn::TUNNEL).await.unwrap())
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn attack_row_24_who_says_nothing_is_cut_at_the_deadline() {
    let limits = Limits { handshake_deadline: Duration::from_millis(200), ..Config::default().limits };
    let rig = Rig::with(Setup { config: Config { limits, ..Config::default() }, ..Setup::default() }).await;
    for addr in [rig.addr, rig.ssh_addr] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let mut all = Vec::new();
        let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut all)).await.expect("the cut");
    }
    // Half a key exchange is no better: russh's own task ends with the connection.
    let mut stream = TcpStream::connect(rig.ssh_addr).await.unwrap();
    stream.write_all(b"SSH-2.0-slow\r\n").await.unwrap();
    let mut all = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut all)).await.expect("the cut");
    // A tunnel that is known stays.
    let agent = FakeAgent::start(&rig, 1, "boot").await;
    let mut idle = TcpStream::connect(rig.addr).await.unwrap();
    let _ = tokio::time::timeout(SOON, idle.read_to_end(&mut all)).await.expect("the cut");
    assert_eq!(*rig.tunnels.borrow(), 1);
    drop(agent);
}

#[tokio::test]
async fn one_source_has_so_many_attempts_at_logging_in() {
    let config = Config { login_rate: Rate { burst: 3, per_second: 0.0 }, ..Config::default() };
    let rig = Rig::with(Setup { config, ..Setup::default() }).await;
    for _ in 0..3 {
        assert_eq!(rig.get("/web/invite/0123456789").await.status, 404);
    }
    let hello = serde_json::to_string(&wire::hello::Hello::ours(&version(), "tsh")).unwrap();
    assert!(rig.http("POST", "/webapi/login", &[(HEADER, &hello)], "{}").await.is(429, Code::RateLimited));
    assert!(rig.get("/webapi/invite/0123456789").await.is(429, Code::RateLimited));
    assert_eq!(rig.get("/webapi/ping").await.status, 200);
}
