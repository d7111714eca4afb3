//! What the one port makes of what comes: each protocol to its door, everything else told what it did wrong.

use crate::{
    ca::{Cluster, id},
    rig::{Answer, Rig, SOON, Setup, version},
};
use net::{
    health::Health,
    hello,
    tls::{self, Certificates, ClientAuth, TlsIdentity, Trust, client_config, server_config},
};
use proxy::{Config, KeypairFiles};
use std::{path::Path, sync::Arc};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use types::{SystemRole, version::Direction};
use wire::{alpn, hello::Hello, sni};

async fn raw(rig: &Rig, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(rig.addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut all = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut all)).await.expect("an end");
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn plain_http_and_ssh_are_told_what_to_do() {
    let rig = Rig::start().await;
    let http = raw(&rig, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(http.starts_with("HTTP/1.1 400") && http.contains("https://"), "{http}");
    let ssh = raw(&rig, b"SSH-2.0-OpenSSH_9.2\r\n").await;
    assert!(ssh.contains("ssh -J") && ssh.lines().count() == 1, "{ssh}");
    assert_eq!(raw(&rig, &[0; 64]).await, "");
    assert!(rig.metrics.foreign_connections.value() >= 3);
}

#[tokio::test]
async fn connections_for_auth_pass_unopened_to_one_that_answers() {
    // The Auth Service's end, with a certificate of another process and another authority than the Proxy has: what passes is
    // not opened on the way.
    let (cluster, clock) = (Arc::new(Cluster::new("inner")), net::clock::ManualClock::new(crate::ca::now()));
    let auth = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let servers = vec![dead.to_string(), auth.local_addr().unwrap().to_string()];
    let rig = Rig::with(Setup { config: Config { auth_servers: servers, ..Config::default() }, ..Setup::default() }).await;
    rig.group.spawn("auth", {
        let (cluster, clock) = (cluster.clone(), clock.shared());
        async move {
            let member = cluster.member(id(1), "auth", SystemRole::Auth, &[]);
            let authorities = member.trust.swap().unwrap();
            let config =
                server_config(Certificates::fixed(&member.tls), ClientAuth::Optional, &authorities, &[alpn::AUTH], &clock).unwrap();
            while let Ok((mut tcp, _)) = auth.accept().await {
                let mut mark = [0; wire::splice::MARK.len()];
                tcp.read_exact(&mut mark).await.unwrap();
                assert_eq!(mark, wire::splice::MARK, "the caller's address is not ours");
                let mut accepted = tls::accept(tcp, config.clone(), &authorities, &clock, SOON).await.unwrap();
                hello::server(&mut accepted.stream, &Hello::ours(&version(), "auth"), Direction::ServerFirst, SOON).await.unwrap();
                accepted.stream.write_all(accepted.identity.unwrap().display().as_bytes()).await.unwrap();
                accepted.stream.shutdown().await.unwrap();
            }
        }
    });
    let user = cluster.user("alice", &[]);
    let config = client_config(Some(&user.tls), Trust::Cluster(cluster.trust().swap().unwrap()), &[alpn::AUTH], &clock.shared()).unwrap();
    let name = sni::role_name(&SystemRole::Auth, &cluster.name);
    for _ in 0..3 {
        let hello = Hello::ours(&version(), "tsh");
        let dialled =
            net::dial::dial(&rig.addr.to_string(), config.clone(), &name, &hello, Direction::ServerFirst, Default::default()).await;
        let mut said = String::new();
        dialled.unwrap().stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "alice");
    }
}

/// A self-signed web certificate in files.
fn keypair(dir: &Path, serial: u64) -> (KeypairFiles, Vec<u8>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["www.example.com".into()]).unwrap();
    params.serial_number = Some(serial.into());
    let certificate = params.self_signed(&key).unwrap();
    let files = KeypairFiles { cert_file: dir.join("cert.pem"), key_file: dir.join("key.pem") };
    for (path, text) in [(&files.key_file, key.serialize_pem()), (&files.cert_file, certificate.pem())] {
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, path).unwrap();
    }
    (files, certificate.der().to_vec())
}

/// The certificate shown to whoever asks for that name.
async fn shown(rig: &Rig, name: &str) -> Vec<u8> {
    let config = client_config(None, Trust::Insecure, &[alpn::HTTP], &rig.clock()).unwrap();
    let tcp = TcpStream::connect(rig.addr).await.unwrap();
    let stream = net::dial::tls(tcp, "proxy", config, name).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_given_web_certificate_is_read_again_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (files, first) = keypair(dir.path(), 1);
    let config = Config { https_keypairs: vec![files.clone()], ..Config::default() };
    let rig = Rig::with(Setup { config, ..Setup::default() }).await;
    assert_eq!(shown(&rig, "www.example.com").await, first);
    let (_, second) = keypair(dir.path(), 2);
    assert_eq!(shown(&rig, "www.example.com").await, second);
    std::fs::write(&files.cert_file, "broken").unwrap();
    assert_eq!(shown(&rig, "www.example.com").await, second, "a broken file leaves the old certificate in use");
    let (_, third) = keypair(dir.path(), 3);
    assert_eq!(shown(&rig, "www.example.com").await, third);
    // Members of the cluster still see the host certificate, by its name.
    let members = shown(&rig, &sni::role_name(&SystemRole::Proxy, &rig.cluster.name)).await;
    assert!(wire::identity::from_x509_der(&members).unwrap().has_system_role(&SystemRole::Proxy));
    assert!(rig.get("/").await.head.contains("strict-transport-security"));
}

#[tokio::test]
async fn a_given_certificate_that_is_broken_at_the_start_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (files, _) = keypair(dir.path(), 1);
    std::fs::write(&files.key_file, "broken").unwrap();
    assert!(TlsIdentity::load(&files.cert_file, &files.key_file).is_err());
}

#[tokio::test]
async fn the_web_certificate_satisfies_a_pin_by_default() {
    let rig = Rig::start().await;
    let pins = rig.cluster.trust().pins();
    let config = client_config(None, Trust::Pins { pins, name: tls::PinnedName::Checked }, &[alpn::HTTP], &rig.clock()).unwrap();
    let tcp = TcpStream::connect(rig.addr).await.unwrap();
    let mut stream = net::dial::tls(tcp, "proxy", config, "proxy.example.com").await.unwrap();
    stream.write_all(b"GET /webapi/ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    let text = String::from_utf8(all).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let _: fn(&Answer) -> u16 = |answer| answer.status;
}

#[tokio::test]
async fn health_is_honest_about_the_cache() {
    let rig = Rig::start().await;
    let mut changes = rig.health.changes();
    let ready = changes.wait_for(|rows| rows.get("proxy") == Some(&Health::Ready) && rows.get("tunnel") == Some(&Health::Ready));
    tokio::time::timeout(SOON, ready).await.expect("ready").unwrap();
    // Filled by hand, fed by nobody: a copy, but no connection.
    let degraded = changes.wait_for(|rows| matches!(rows.get("cache"), Some(Health::Degraded(_))));
    tokio::time::timeout(SOON, degraded).await.expect("degraded").unwrap();
    rig.shutdown.drain();
    let stopping = changes.wait_for(|rows| matches!(rows.get("proxy"), Some(Health::Degraded(_))));
    tokio::time::timeout(SOON, stopping).await.expect("stopping").unwrap();
}
