//! `net::dial` against real loopback ports: the way that works, and every way that fails with its code.
//!
//! Codes are what scripts and people see, so each row names the one it must be.

use crate::world::{Cluster, hello};
use net::{
    dial::{self, DialError, dial},
    hello::{HelloPolicy, server},
    tls::{Certificates, ClientAuth, ClientConfig, Trust, accept, client_config, server_config},
};
use std::{sync::Arc, time::Duration};
use tokio::{io::AsyncWriteExt, net::TcpListener};
use types::{Code, SystemRole, version::Direction};
use wire::{alpn, hello::Hello};

const SOON: Duration = Duration::from_secs(5);

fn calling(cluster: &Cluster) -> Arc<ClientConfig> {
    client_config(Some(&cluster.alice_cert()), Trust::Cluster(cluster.trusted.clone()), &[alpn::AUTH], &cluster.clock()).unwrap()
}

async fn call(cluster: &Cluster, addr: &str, ours: &Hello) -> Result<dial::Connected, DialError> {
    dial(addr, calling(cluster), &cluster.name_of(SystemRole::Auth), ours, Direction::ServerFirst, HelloPolicy::default()).await
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    (listener, addr)
}

#[tokio::test]
async fn a_member_is_reached_by_address_or_name_and_both_versions_are_known() {
    let cluster = Cluster::new("prod");
    let (listener, addr) = listener().await;
    let certificates = Certificates::fixed(&cluster.host_cert(SystemRole::Auth));
    let serving = server_config(certificates, ClientAuth::Required, &cluster.trusted, &[alpn::AUTH], &cluster.clock()).unwrap();
    for host in [addr.clone(), addr.replace("127.0.0.1", "localhost")] {
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut accepted = accept(stream, serving.clone(), &cluster.trusted, &cluster.clock(), SOON).await.unwrap();
            let peer = server(&mut accepted.stream, &hello("auth", "8.1.0"), Direction::ServerFirst, SOON).await.unwrap();
            assert_eq!(peer.version, "8.0.0");
            assert_eq!(accepted.identity, Some(cluster.alice()));
        };
        let ours = hello("tsh", "8.0.0");
        let (connected, ()) = tokio::join!(call(&cluster, &host, &ours), serve);
        let connected = connected.unwrap();
        assert_eq!(connected.peer.version, "8.1.0");
        assert_eq!(connected.server_identity(), Some(cluster.host(SystemRole::Auth)));
        assert!(connected.stream.get_ref().0.get_ref().nodelay().unwrap());
    }
}

#[tokio::test]
async fn every_way_to_fail_has_its_code_and_names_the_address() {
    let (cluster, ours) = (Cluster::new("prod"), hello("tsh", "8.0.0"));
    let (closed, addr) = listener().await;
    drop(closed);
    let table = [
        (addr.as_str(), Code::Unreachable),
        ("nowhere", Code::Usage),
        (":3025", Code::Usage),
        ("host:port", Code::Usage),
        ("host:99999", Code::Usage),
        ("no.such.host.invalid:3025", Code::Unreachable),
    ];
    for (addr, want) in table {
        let error = call(&cluster, addr, &ours).await.unwrap_err();
        assert!(error.public().is(want) && error.public().message.contains(addr), "{addr}: {error:?}");
    }
}

#[tokio::test]
async fn a_port_that_speaks_something_else_is_named_so() {
    let cluster = Cluster::new("prod");
    for greeting in [b"SSH-2.0-OpenSSH_9.9\r\n".as_slice(), b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\0\0\0\0\0"] {
        let (listener, addr) = listener().await;
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(greeting).await.unwrap();
            stream
        };
        let ours = hello("tsh", "8.0.0");
        let (called, _stream) = tokio::join!(call(&cluster, &addr, &ours), serve);
        let public = called.unwrap_err().public();
        assert!(public.is(Code::VersionProtocol) && public.hint.is_some(), "{greeting:?}: {public:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn attack_row_24_a_server_that_says_nothing_is_left_after_the_deadline() {
    let cluster = Cluster::new("prod");
    let (silent, _server) = tokio::io::duplex(1 << 16);
    let error = dial::tls(silent, "pipe", calling(&cluster), &cluster.name_of(SystemRole::Auth)).await.unwrap_err();
    assert!(error.public().is(Code::Timeout), "{error:?}");
}
