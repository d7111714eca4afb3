//! Quarantine and rescue from the host's side: a Proxy played by hand refuses the host for its version, is asked what to install,
//! hands a file out, and at last takes the host after all.

use crate::reached::{Host, cluster, id};
use agent::rescue::{RescueError, Visit};
use client::testing::Cluster;
use net::{
    IoStream,
    clock::{Clock as _, ManualClock, SystemClock},
    frame::{read_frame, write_frame},
    health::Health,
    hello,
    task::Group,
    tls::{self, Certificates, ClientAuth},
};
use sha2::Digest as _;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch};
use types::{Code, Extra, Public, SystemRole, Version, version::Direction};
use wire::{
    alpn,
    hello::Hello,
    rescue::{Action, Advice, Artifact, Chunk, Sha256, Status, ToHost, ToProxy, decode, encode},
    tunnel,
};

const SOON: Duration = Duration::from_secs(20);
/// A refused tunnel is tried again after a quarter of a minute.
const LATER: Duration = Duration::from_secs(45);

fn content() -> Vec<u8> {
    b"a release, ".repeat(5000)
}

fn artifact(bytes: &[u8], size: usize) -> Artifact {
    Artifact {
        name: "lockgate-2.4.0-linux-amd64.tar.gz".parse().unwrap(),
        os: "linux".into(),
        arch: "amd64".into(),
        sha256: Sha256::new(sha2::Sha256::digest(bytes).into()),
        size: u64::try_from(size).unwrap(),
        extra: Extra::new(),
    }
}

/// What the Proxy is and has heard.
struct Proxy {
    addr: String,
    version: watch::Sender<Version>,
    heard: Arc<Mutex<Vec<Status>>>,
}

impl Proxy {
    async fn start(cluster: &Arc<Cluster>, tasks: &Group) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let us = cluster.host(id(), "proxy1", &[SystemRole::Proxy]);
        let (authorities, clock) = (cluster.trust().swap().unwrap(), SystemClock::shared());
        let doors = [alpn::TUNNEL, alpn::RESCUE];
        let config = tls::server_config(Certificates::fixed(&us.tls), ClientAuth::Required, &authorities, &doors, &clock).unwrap();
        let (version, heard) = (watch::Sender::new(Version::new(3, 0, 0)), Arc::<Mutex<Vec<Status>>>::default());
        let (now, hears, kept) = (version.subscribe(), heard.clone(), tasks.clone());
        tasks.spawn("proxy", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let accepted = tls::accept(stream, config.clone(), &authorities, &clock, SOON).await.unwrap();
                let rescue = accepted.alpn() == Some(alpn::RESCUE);
                let mut stream: IoStream = Box::new(accepted.stream);
                if rescue {
                    kept.spawn("rescue", visit(stream, hears.clone()));
                    continue;
                }
                let ours = Hello::ours(&now.borrow().clone(), "proxy");
                if hello::server(&mut stream, &ours, Direction::ServerFirst, SOON).await.is_ok() {
                    read_frame(&mut stream, SOON).await.unwrap();
                    let welcome = tunnel::ToAgent::Welcome { proxy_id: us.id(), peers: vec![], addr: None };
                    write_frame(&mut stream, &tunnel::encode(&welcome), SOON).await.unwrap();
                    kept.spawn("tunnel", async move { read_frame(&mut stream, Duration::from_secs(600)).await.is_ok() });
                }
            }
        });
        Self { addr, version, heard }
    }
}

async fn visit(mut stream: IoStream, heard: Arc<Mutex<Vec<Status>>>) {
    let genuine = artifact(&content(), content().len());
    while let Ok(payload) = read_frame(&mut stream, SOON).await {
        let mut say = async |message: &serde_json::Value, body: &[u8]| {
            write_frame(&mut stream, &encode(message, body).unwrap(), SOON).await.unwrap();
        };
        // Of a release that is not written yet.
        say(&serde_json::json!({"type": "sing", "tune": [1]}), b"la").await;
        match decode::<ToProxy>(&payload).unwrap().0 {
            ToProxy::Status(status) => {
                heard.lock().unwrap().push(status);
                let advice = Advice {
                    action: Action::Install,
                    why: "this host runs 1.0.0, the cluster takes majors 2 to 3".into(),
                    cure: "install 2.4.0".into(),
                    again: 1,
                    artifacts: vec![genuine.clone()],
                    ..Advice::default()
                };
                say(&serde_json::to_value(ToHost::Advice(advice)).unwrap(), b"").await;
            }
            ToProxy::Fetch(fetch) if fetch.sha256 == genuine.sha256 => {
                let all = content();
                let (start, end) = (usize::try_from(fetch.offset).unwrap(), all.len());
                for (number, piece) in all[start..].chunks(7000).enumerate() {
                    let offset = start + number * 7000;
                    let last = offset + piece.len() >= end;
                    let chunk =
                        Chunk { offset: u64::try_from(offset).unwrap(), size: u64::try_from(end).unwrap(), last, extra: Extra::new() };
                    say(&serde_json::to_value(ToHost::Chunk(chunk)).unwrap(), piece).await;
                }
            }
            ToProxy::Fetch(_) => {
                // Another file than the one that was asked for.
                let chunk = Chunk { offset: 0, size: 4, last: true, extra: Extra::new() };
                say(&serde_json::to_value(ToHost::Chunk(chunk)).unwrap(), b"evil").await;
            }
            ToProxy::Metadata(_) | ToProxy::Unknown => {
                let error = Public::new(Code::NotFound, "no");
                say(&serde_json::to_value(ToHost::Refused { error, extra: Extra::new() }).unwrap(), b"").await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_refused_for_its_version_asks_for_rescue_says_so_and_is_back_when_it_is_admitted() {
    let (cluster, tasks) = (cluster(), Group::new("test"));
    let proxy = Proxy::start(&cluster, &tasks).await;
    let host = Host::start(&cluster, vec![proxy.addr.clone()], None);
    let mut health = host.health.changes();
    let advised = |rows: &std::collections::BTreeMap<&'static str, Health>| {
        matches!(rows.get("ssh"), Some(Health::Degraded(why)) if why.starts_with("quarantined: this host runs 1.0.0, the cluster takes majors 2 to 3; install 2.4.0; lockgate-2.4.0")
            && why.contains("lockgate rescue --data-dir"))
    };
    tokio::time::timeout(SOON, health.wait_for(advised)).await.expect("the advice").unwrap();
    let status = proxy.heard.lock().unwrap()[0].clone();
    assert_eq!((status.version.as_str(), status.content.as_deref()), ("1.0.0", Some(wire::content::digest())));
    assert!(status.refused.is_some_and(|public| public.is(Code::VersionTooOld)));
    // The cluster admits it: nothing has to be done on the host.
    proxy.version.send_replace(Version::new(2, 0, 0));
    tokio::time::timeout(LATER, health.wait_for(|rows| rows.get("ssh") == Some(&Health::Ready))).await.expect("back").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_believed_by_its_digest_alone_and_goes_on_where_it_broke_off() {
    let (cluster, tasks) = (cluster(), Group::new("test"));
    let proxy = Proxy::start(&cluster, &tasks).await;
    let (host, into) = (cluster.host(id(), "node1", &[SystemRole::Node]), tempfile::tempdir().unwrap());
    let open = async || Visit::open(&proxy.addr, &host, cluster.trust().swap().unwrap(), &SystemClock::shared()).await.unwrap();
    let advice = open().await.status(Status::default()).await.unwrap();
    let genuine = &advice.artifacts[0];
    let part = into.path().join(format!("{}.part", genuine.name));
    // As an earlier try left it.
    fs::write(&part, &content()[..20_000]).unwrap();
    let mut told = Vec::new();
    let path = open().await.fetch(genuine, into.path(), &mut |have| told.push(have)).await.unwrap();
    assert!(fs::read(&path).unwrap() == content() && !part.exists());
    assert_eq!((told[0], told.last()), (27_000, Some(&genuine.size)));
    // What was left is not the beginning of this file: found out at the end, and begun anew by the next try.
    fs::remove_file(&path).unwrap();
    fs::write(&part, b"nonsense").unwrap();
    let wrong = open().await.fetch(genuine, into.path(), &mut |_| ()).await.unwrap_err();
    assert!(matches!(wrong, RescueError::Digest(_)) && wrong.public().is(Code::MirrorBroken));
    assert!(!part.exists() && !path.exists());
    open().await.fetch(genuine, into.path(), &mut |_| ()).await.unwrap();
    // A Proxy that hands out something else, or more than it said, or less.
    let other = tempfile::tempdir().unwrap();
    let check = async |file: Artifact| open().await.fetch(&file, other.path(), &mut |_| ()).await.unwrap_err();
    assert!(matches!(check(artifact(b"good", 4)).await, RescueError::Digest(_)));
    assert!(matches!(check(artifact(b"good", 3)).await, RescueError::Answer));
    assert!(matches!(check(Artifact { size: 1, ..genuine.clone() }).await, RescueError::Answer));
    let refused = open().await.metadata("timestamp.json".parse().unwrap()).await.unwrap_err();
    assert!(matches!(refused, RescueError::Refused(public) if public.is(Code::NotFound)));
    assert!(fs::read_dir(other.path()).unwrap().all(|entry| entry.unwrap().file_name().to_string_lossy().ends_with(".part")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_a_release_is_written_only_where_nobody_else_can_turn_it_into_something_else() {
    let (cluster, tasks) = (cluster(), Group::new("test"));
    let proxy = Proxy::start(&cluster, &tasks).await;
    let host = cluster.host(id(), "node1", &[SystemRole::Node]);
    let open = async || Visit::open(&proxy.addr, &host, cluster.trust().swap().unwrap(), &SystemClock::shared()).await.unwrap();
    let genuine = artifact(&content(), content().len());
    let refused = async |into: &std::path::Path| open().await.fetch(&genuine, into, &mut |_| ()).await.unwrap_err();
    // As /var/tmp is.
    let into = tempfile::tempdir().unwrap();
    for mode in [0o1777, 0o770] {
        fs::set_permissions(into.path(), fs::Permissions::from_mode(mode)).unwrap();
        let error = refused(into.path()).await;
        assert!(matches!(error, RescueError::Place(_)) && error.public().hint.unwrap().contains("mktemp -d"));
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0);
    }
    fs::set_permissions(into.path(), fs::Permissions::from_mode(0o700)).unwrap();
    // What was put there before: links, symbolic and hard, to a file that must stay as it is.
    let (part, secret) = (into.path().join(format!("{}.part", genuine.name)), into.path().join("shadow"));
    fs::write(&secret, vec![b'x'; 300_000]).unwrap();
    std::os::unix::fs::symlink(&secret, &part).unwrap();
    assert!(matches!(refused(into.path()).await, RescueError::Place(_)));
    fs::remove_file(&part).unwrap();
    fs::hard_link(&secret, &part).unwrap();
    assert!(matches!(refused(into.path()).await, RescueError::Place(_)));
    assert_eq!(fs::read(&secret).unwrap(), vec![b'x'; 300_000]);
    fs::remove_file(&part).unwrap();
    assert!(fs::read(open().await.fetch(&genuine, into.path(), &mut |_| ()).await.unwrap()).unwrap() == content());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_certificate_has_ended_is_told_to_join_again() {
    let (cluster, tasks) = (cluster(), Group::new("test"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, us) = (listener.local_addr().unwrap().to_string(), cluster.host(id(), "proxy1", &[SystemRole::Proxy]));
    // The Proxy's clock is two years ahead.
    let (authorities, clock) =
        (cluster.trust().swap().unwrap(), ManualClock::new(SystemClock.now().plus(Duration::from_secs(63_000_000))).shared());
    let config = tls::server_config(Certificates::fixed(&us.tls), ClientAuth::Required, &authorities, &[alpn::RESCUE], &clock).unwrap();
    tasks.spawn("proxy", async move {
        while let Ok((stream, _)) = listener.accept().await {
            assert!(tls::accept(stream, config.clone(), &authorities, &clock, SOON).await.is_err());
        }
    });
    let host = cluster.host(id(), "node1", &[SystemRole::Node]);
    let asked = async {
        let mut visit = Visit::open(&addr, &host, cluster.trust().swap().unwrap(), &SystemClock::shared()).await?;
        visit.status(Status::default()).await
    };
    let refused = asked.await.unwrap_err().public();
    assert!(refused.is(Code::LoginExpired) || refused.is(Code::AccessIdentity), "{refused}");
    assert!(refused.hint.as_ref().is_some_and(|hint| hint.contains("join again with a fresh token")), "{refused:?}");
}
