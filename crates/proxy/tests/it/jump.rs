//! The jump server against russh's client: who gets in, what he may ask, where he gets.

use crate::{
    ca::{Cluster, HOUR, id, now},
    fake_agent::FakeAgent,
    rig::{Rig, SOON, Session},
};
use client::credentials::UserCredentials;
use russh::{
    ChannelMsg, ChannelOpenFailure, Preferred, cipher,
    client::{self as ssh, AuthResult, Handle},
    kex,
    keys::{Algorithm, Certificate, PublicKeyOrCertificate},
};
use std::{borrow::Cow, sync::Arc};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};
use types::{Code, EventKind};
use wire::{
    identity::{SshCert, SshCertKind},
    tunnel::DataHello,
};

pub(crate) struct Client {
    shown: watch::Sender<Option<Certificate>>,
    agreed: watch::Sender<Option<cipher::Name>>,
}

impl ssh::Handler for Client {
    type Error = russh::Error;
    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        if let PublicKeyOrCertificate::Certificate(certificate) = key {
            self.shown.send_replace(Some(certificate.clone()));
        }
        Ok(true)
    }
    async fn kex_done(&mut self, _: Option<&[u8]>, names: &russh::Names, _: &mut ssh::Session) -> Result<(), Self::Error> {
        self.agreed.send_replace(Some(names.cipher));
        Ok(())
    }
}

pub(crate) struct Visit {
    pub(crate) handle: Handle<Client>,
    shown: watch::Receiver<Option<Certificate>>,
}

async fn connect(rig: &Rig) -> Visit {
    let preferred = Preferred { host_key_certificates: Cow::Borrowed(&[Algorithm::Ed25519]), ..Preferred::default() };
    let config = Arc::new(ssh::Config { preferred, window_size: 128 << 10, channel_buffer_size: 1024, ..ssh::Config::default() });
    let (sender, shown) = watch::channel(None);
    let stream = TcpStream::connect(rig.ssh_addr).await.unwrap();
    let handle = ssh::connect_stream(config, stream, Client { shown: sender, agreed: watch::Sender::default() }).await.unwrap();
    Visit { handle, shown }
}

pub(crate) async fn log_in(rig: &Rig, user: &UserCredentials) -> (Visit, bool) {
    let mut visit = connect(rig).await;
    let key = Arc::new(user.key.ssh_private().unwrap());
    let result = visit.handle.authenticate_openssh_cert("anything", key, user.ssh_certificate.clone()).await.unwrap();
    (visit, matches!(result, AuthResult::Success))
}

fn refused(error: russh::Error) -> (u32, String) {
    match error {
        russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited) => (1, String::new()),
        russh::Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed) => (2, String::new()),
        russh::Error::ChannelOpenFailure(ChannelOpenFailure::UnknownChannelType) => (3, String::new()),
        russh::Error::ChannelOpenFailure(ChannelOpenFailure::Other { code, reason }) => (code, reason),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn plain_openssh_reaches_a_host_by_name_and_by_id() {
    let rig = Arc::new(Rig::start().await);
    FakeAgent::start(&rig, 1, "boot").await.serve(&rig, "one");
    let (visit, entered) = log_in(&rig, &rig.cluster.user("alice", &["access"])).await;
    assert!(entered);
    for target in ["node1", "node1.example", "00000000-0000-0000-0000-000000000001"] {
        let channel = visit.handle.channel_open_direct_tcpip(target, 0, "127.0.0.1", 1).await.unwrap();
        let mut session = Session(Box::new(channel.into_stream()));
        assert_eq!(session.say("x").await, "one:x", "{target}");
    }
    // The host certificate is the cluster's, so `@cert-authority` in known_hosts is enough.
    let certificate = visit.shown.borrow().clone().expect("no bare key");
    let cert = SshCert::verified(&certificate, SshCertKind::Host, &rig.cluster.trust().host_ssh, now()).unwrap();
    assert!(cert.principals.contains(&"proxy".to_owned()));
}

#[tokio::test]
async fn only_certificates_of_this_clusters_user_authority_get_in() {
    let rig = Rig::start().await;
    let alice = rig.cluster.user("alice", &["access"]);
    // The same key without its certificate.
    let mut visit = connect(&rig).await;
    let key = russh::keys::PrivateKeyWithHashAlg::new(Arc::new(alice.key.ssh_private().unwrap()), None);
    assert!(!visit.handle.authenticate_publickey("alice", key).await.unwrap().success());
    assert!(!visit.handle.authenticate_password("alice", "x").await.unwrap().success());
    assert!(!visit.handle.authenticate_none("alice").await.unwrap().success());
    assert!(!log_in(&rig, &Cluster::new("example").user("alice", &["access"])).await.1);
    let ended = rig.cluster.user_with(rig.cluster.identity("alice", &["access"], now().plus(HOUR)));
    rig.clock.advance(2 * HOUR);
    assert!(!log_in(&rig, &ended).await.1);
    let event = rig.auth.event(|event| event.is(EventKind::AccessDenied) && event.text("proto") == "ssh-jump").await;
    assert_eq!(event.text("error_code"), Code::AccessIdentity.as_str());
}

#[tokio::test]
async fn attack_row_8_the_jump_server_passes_connections_on_and_does_nothing_else() {
    let rig = Arc::new(Rig::start().await);
    FakeAgent::start(&rig, 1, "boot").await.serve(&rig, "one");
    let (visit, _) = log_in(&rig, &rig.cluster.user("alice", &["access"])).await;
    let handle = &visit.handle;
    let (code, why) = refused(handle.channel_open_session().await.unwrap_err());
    // Russh's client keeps the code; OpenSSH prints the reason as well.
    assert!(code == 1 && (why.is_empty() || why.contains("ssh -J")), "{why}");
    assert_eq!(refused(handle.channel_open_x11("127.0.0.1", 1).await.unwrap_err()).0, 1);
    assert_eq!(refused(handle.channel_open_direct_streamlocal("/run/x").await.unwrap_err()).0, 1);
    assert!(handle.tcpip_forward("127.0.0.1", 0).await.is_err());
    assert!(handle.streamlocal_forward("/tmp/x").await.is_err());
    // Requests on a channel that *is* open belong to nobody either.
    let mut channel = handle.channel_open_direct_tcpip("node1", 22, "127.0.0.1", 1).await.unwrap();
    let answers = async |channel: &mut russh::Channel<ssh::Msg>| loop {
        match tokio::time::timeout(SOON, channel.wait()).await.unwrap() {
            Some(ChannelMsg::Failure) => return false,
            Some(ChannelMsg::Success) => return true,
            Some(_) => {}
            None => panic!("closed"),
        }
    };
    channel.exec(true, "id").await.unwrap();
    assert!(!answers(&mut channel).await);
    channel.request_shell(true).await.unwrap();
    assert!(!answers(&mut channel).await);
    channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
    assert!(!answers(&mut channel).await);
    channel.request_subsystem(true, "sftp").await.unwrap();
    assert!(!answers(&mut channel).await);
    channel.set_env(true, "LANG", "C").await.unwrap();
    assert!(!answers(&mut channel).await);
    channel.agent_forward(true).await.unwrap();
    assert!(!answers(&mut channel).await);
    channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0).await.unwrap();
    assert!(!answers(&mut channel).await);
}

#[tokio::test]
async fn attack_row_20_the_jump_server_agrees_on_no_cipher_that_needs_strict_key_exchange() {
    let rig = Rig::start().await;
    let agree = async |kex: &'static [kex::Name], ciphers: &'static [cipher::Name]| {
        let preferred = Preferred { kex: Cow::Borrowed(kex), cipher: Cow::Borrowed(ciphers), ..Preferred::default() };
        let (noted, agreed) = watch::channel(None);
        let config = Arc::new(ssh::Config { preferred, ..ssh::Config::default() });
        let stream = TcpStream::connect(rig.ssh_addr).await.unwrap();
        let connected = ssh::connect_stream(config, stream, Client { shown: watch::Sender::default(), agreed: noted }).await;
        let now = *agreed.borrow();
        assert_eq!(connected.is_ok(), now.is_some());
        now
    };
    // OpenSSH 7.4's, in its order: it has no strict key exchange. Later ones differ in nothing that matters here.
    const OLD: &[kex::Name] = &[kex::CURVE25519_PRE_RFC_8731];
    const NEW: &[kex::Name] = &[kex::CURVE25519, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT];
    const ALL: &[cipher::Name] = &[
        cipher::CHACHA20_POLY1305,
        cipher::AES_128_CTR,
        cipher::AES_192_CTR,
        cipher::AES_256_CTR,
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
    ];
    for kex in [OLD, NEW] {
        assert_eq!(agree(kex, ALL).await, Some(cipher::AES_128_GCM));
        assert_eq!(agree(kex, &ALL[..4]).await, None);
    }
}

#[tokio::test]
async fn attack_row_13_the_jump_server_dials_no_address() {
    let rig = Rig::start().await;
    let trap = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(trap.local_addr().unwrap().port());
    let (visit, _) = log_in(&rig, &rig.cluster.user("bob", &["admin"])).await;
    for target in ["127.0.0.1", "localhost", "::1", "169.254.169.254", "", "secret.other"] {
        assert_eq!(refused(visit.handle.channel_open_direct_tcpip(target, port, "127.0.0.1", 1).await.unwrap_err()).0, 2, "{target}");
    }
    let event = rig.auth.event(|event| event.is(EventKind::AccessDenied) && event.text("server") == "169.254.169.254").await;
    assert_eq!(event.text("user"), "bob");
    assert!(tokio::time::timeout(std::time::Duration::ZERO, trap.accept()).await.is_err());
}

#[tokio::test]
async fn many_channels_at_once_move_in_bulk_both_ways_without_stopping_each_other() {
    let rig = Arc::new(Rig::start().await);
    FakeAgent::start(&rig, 1, "boot").await.serve(&rig, "one");
    let (visit, _) = log_in(&rig, &rig.cluster.user("alice", &["access"])).await;
    // A host that does not read must not stop its neighbours.
    let mut deaf = FakeAgent::start(&rig, 2, "boot").await;
    let (stalled, held) = tokio::join!(visit.handle.channel_open_direct_tcpip(id(2).to_string(), 22, "127.0.0.1", 1), async {
        let ticket = deaf.ticket().await;
        deaf.data(&rig, &DataHello::Ticket { ticket }).await
    });
    let (_reader, mut writer) = tokio::io::split(stalled.unwrap().into_stream());
    tokio::time::timeout(SOON, writer.write_all(&vec![0; 2 << 20])).await.expect("room for it").unwrap();
    let mut channels = Vec::new();
    for _ in 0..15 {
        channels.push(visit.handle.channel_open_direct_tcpip("node1", 22, "127.0.0.1", 1).await.unwrap());
    }
    let all = channels.into_iter().map(|channel| async move {
        let (mut reader, mut writer) = tokio::io::split(channel.into_stream());
        const TOTAL: usize = 2 << 20;
        let sending = async {
            writer.write_all(&vec![7; TOTAL]).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let reading = async {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).await.unwrap();
            assert_eq!(all.len(), TOTAL + "one:".len());
        };
        tokio::join!(sending, reading);
    });
    tokio::time::timeout(SOON * 6, futures::future::join_all(all)).await.expect("no standstill");
    drop(held);
}

/// The real thing, without a host behind it: `ssh -W` is what `ssh -J` runs on the way.
#[tokio::test]
async fn the_real_openssh_client_passes_through_and_is_told_why_when_it_does_not() {
    let rig = Arc::new(Rig::start().await);
    FakeAgent::start(&rig, 1, "boot").await.serve(&rig, "one");
    let (alice, dir) = (rig.cluster.user("alice", &["access"]), tempfile::tempdir().unwrap());
    let path = |name: &str| dir.path().join(name);
    net::tls::write_private(&path("key"), alice.key.openssh_pem().unwrap().expose().as_bytes()).unwrap();
    std::fs::write(path("key-cert.pub"), alice.ssh_line()).unwrap();
    let authority = rig.cluster.trust().host_ssh[0].to_openssh().unwrap();
    std::fs::write(path("known_hosts"), format!("@cert-authority proxy {authority}\n")).unwrap();
    let ssh = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new("ssh");
        command.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "HostKeyAlias=proxy",
        ]);
        command.arg("-i").arg(path("key")).arg("-o").arg(format!("UserKnownHostsFile={}", path("known_hosts").display()));
        command.args(["-p", &rig.ssh_addr.port().to_string()]).args(arguments).arg("alice@127.0.0.1");
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true);
        command.spawn().expect("the OpenSSH client")
    };
    let run = async |arguments: &[&str]| {
        let mut child = ssh(arguments);
        child.stdin.take().unwrap().write_all(b"hello").await.unwrap();
        let out = tokio::time::timeout(SOON, child.wait_with_output()).await.expect("an end").unwrap();
        (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (out, error) = run(&["-W", "node1:22"]).await;
    assert_eq!(out, "one:hello", "{error}");
    let (_, error) = run(&["-W", "nothere:22"]).await;
    assert!(error.contains("no host \"nothere\", or no access to it") && error.contains("LG-CONNECT-001"), "{error}");
    let (_, error) = run(&["-T"]).await;
    assert!(error.contains("jump server without a shell"), "{error}");
}
