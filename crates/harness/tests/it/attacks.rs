//! Attacks on the whole system, named after the rows of the attack table. What one crate can prove alone is proven there.
//!
//! Here is what they share: a cluster to attack, and clients that say what no well-behaved one says. [`certificates`] has the rows
//! about who somebody is, [`protocol`] those about packets and connections, [`front`] those about names and pages.

mod certificates;
mod front;
mod protocol;

use crate::{
    raw_ssh::{KEX_INIT_ECDH, KEX_REPLY_ECDH, Plain, agree, lists, middle, string},
    talk::{SOON, block_on, claiming, http, name_of, tls},
};
use client::{
    api::{Api, Settings, Via},
    identity_file,
    keys::KeyPair,
};
use futures::StreamExt as _;
use harness::{
    Cluster, Run,
    cluster::{Shared, Way, until_ok},
    person::me,
    process::Running,
};
use net::clock::SystemClock;
use russh::{
    Pty,
    client::{AuthResult, Handle, Handler},
    keys::{Certificate, HashAlg, PrivateKey, agent::AgentIdentity},
};
use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::net::{TcpSocket, TcpStream};
use types::SystemRole;

/// One cluster for these tests: three processes, `node1` by tunnel and `direct1` with a port of its own.
struct Field {
    cluster: Shared,
    direct: Arc<harness::cluster::Member>,
}

fn field() -> Field {
    static FIELD: OnceLock<(Cluster, Arc<harness::cluster::Member>)> = OnceLock::new();
    let (cluster, direct) = FIELD.get_or_init(|| {
        let cluster = Cluster::split();
        let direct = cluster.join("direct1", Way::Direct, &[]);
        (cluster, direct)
    });
    Field { cluster: Shared::of(cluster), direct: direct.clone() }
}

/// Key and certificate of a user as OpenSSH has them.
fn signed(cluster: &Cluster, user: &str, logins: &[&str]) -> PathBuf {
    cluster.person(user, &["access"], logins);
    let stem = cluster.home.join(format!("attack-{user}"));
    cluster.tctl(["auth", "sign", "--format=openssh", &format!("--user={user}"), "--out"]).arg(&stem).go().ok();
    stem
}

fn keygen(words: &[&str], dir: &Path) {
    Run::new("ssh-keygen").arg("-q").args(words).dir(dir).go().ok();
}

/// `ssh` with this key and certificate and nothing else, to the host's own port or through the jump server.
fn ssh_with(field: &Field, key: &Path, certificate: &Path, jump: bool, login: &str) -> Run {
    let option = |name: &str, value: &dyn std::fmt::Display| ["-o".to_owned(), format!("{name}={value}")];
    let mut words = vec!["-F".to_owned(), "/dev/null".to_owned()];
    for (name, value) in [
        ("BatchMode", "yes"),
        ("IdentityAgent", "none"),
        ("IdentitiesOnly", "yes"),
        ("StrictHostKeyChecking", "no"),
        ("UserKnownHostsFile", "/dev/null"),
    ] {
        words.extend(option(name, &value));
    }
    words.extend(option("IdentityFile", &key.display()));
    words.extend(option("CertificateFile", &certificate.display()));
    let run = Run::new("ssh");
    if jump {
        // The jump itself is given the same: `-J` would not pass the options on.
        let inner = format!("ssh {} -p {} -W %h:%p {}@127.0.0.1", words.join(" "), field.cluster.jump_port, me());
        run.args(&words).args(["-o", &format!("ProxyCommand={inner}"), &format!("{login}@direct1"), "id -un"])
    } else {
        run.args(&words).args(["-p", &field.direct.ssh_port.to_string(), &format!("{login}@127.0.0.1"), "id -un"])
    }
}

/// A russh client that believes every host: these tests are about the server.
struct Anyone;
impl Handler for Anyone {
    type Error = russh::Error;
    async fn check_server_key(&mut self, _key: &russh::keys::PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

async fn connect(port: u16) -> Handle<Anyone> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    russh::client::connect_stream(Arc::new(russh::client::Config::default()), stream, Anyone).await.unwrap()
}

/// Key and certificate from the files of [`signed`].
fn load(stem: &Path) -> (PrivateKey, Certificate) {
    let key = PrivateKey::read_openssh_file(stem).unwrap();
    let certificate = Certificate::read_file(&PathBuf::from(format!("{}-cert.pub", stem.display()))).unwrap();
    (key, certificate)
}

/// An authenticated connection.
async fn enter(port: u16, key: &PrivateKey, certificate: &Certificate) -> Handle<Anyone> {
    let mut handle = connect(port).await;
    let entered = handle.authenticate_openssh_cert(me(), Arc::new(key.clone()), certificate.clone()).await.unwrap();
    assert!(matches!(entered, AuthResult::Success), "{entered:?}");
    handle
}

/// What a command prints.
async fn exec(handle: &Handle<Anyone>, command: &str) -> String {
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, command).await.unwrap();
    let mut out = Vec::new();
    let read = async {
        while let Some(message) = channel.wait().await {
            if let russh::ChannelMsg::Data { data } = message {
                out.extend_from_slice(&data);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("an end");
    String::from_utf8(out).unwrap()
}

/// What the program under test is.
fn current_version() -> types::Version {
    let shown = Run::new(harness::binary::current()).args(["version", "--format=json"]).go().json();
    shown["version"].as_str().unwrap().parse().unwrap()
}
