//! The fake passes the suite; errors and certificates of a real connection are told apart.

use super::*;
use crate::testing::{Cluster, FakeAuth, suite};
use net::{
    clock::SystemClock,
    grpc::{Peer, ServerIo, incoming},
    task::Group,
    tls::{self, Certificates, ClientAuth},
};
use std::net::SocketAddr;
use types::{HostId, Time};

#[tokio::test]
async fn the_fake_auth_passes_the_suite() {
    suite(&FakeAuth::new().api()).await;
}

#[tokio::test]
async fn an_auth_that_is_away_is_unavailable_and_found_again() {
    let fake = FakeAuth::new();
    let api = fake.api();
    fake.go_away();
    let error = api.ping().await.unwrap_err();
    assert!(error.is(Code::Unreachable), "{error:?}");
    fake.come_back();
    assert_eq!(api.ping().await.unwrap().server_version, "1.0.0");
}

#[tokio::test]
async fn long_lists_are_followed_to_their_last_page() {
    let fake = FakeAuth::new();
    for number in 0..PAGE + 3 {
        fake.put(Document::from_json(format!(r#"{{"kind":"lock","version":"v1","metadata":{{"name":"n{number}"}}}}"#).as_bytes()).unwrap());
    }
    let listed = fake.api().list_raw("lock", &Labels::new()).await.unwrap();
    assert_eq!((listed.items.len(), listed.skipped), (usize::try_from(PAGE).unwrap() + 3, 0));
}

/// A TLS port that shakes hands as an Auth Service of `cluster` and version, and answers pings through the fake.
struct Port {
    addr: SocketAddr,
    _group: Group,
}

async fn port(cluster: &Cluster, version: &str) -> Port {
    let clock = SystemClock::shared();
    let host = cluster.host(HostId::from_uuid(uuid::Uuid::from_u128(1)), "auth1", &[SystemRole::Auth]);
    let authorities = cluster.trust().swap().unwrap();
    let config = tls::server_config(Certificates::fixed(&host.tls), ClientAuth::Optional, &authorities, &[alpn::AUTH], &clock).unwrap();
    let listener = net::listen::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let addr = listener.local_addr().unwrap();
    let (sender, stream) = incoming(4);
    let group = Group::new("test");
    let fake = FakeAuth::new();
    let service = fake.service();
    group.spawn("serve", async move {
        let _fake = fake;
        net::grpc::server().serve_with_incoming(service, stream).await
    });
    let ours = Hello::ours(&version.parse().unwrap(), "auth");
    group.spawn("accept", async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let Ok(mut accepted) = tls::accept(stream, config.clone(), &authorities, &clock, tls::DEADLINE).await else { continue };
            let Ok(hello) = net::hello::server(&mut accepted.stream, &ours, Direction::ServerFirst, tls::DEADLINE).await else { continue };
            let peer = Peer { identity: accepted.identity.map(Arc::new), hello: Arc::new(hello), addr: peer, spliced: false };
            sender.send(ServerIo::new(Box::new(accepted.stream), peer, ())).await;
        }
    });
    Port { addr, _group: group }
}

fn settings(port: &Port, access: Access) -> Settings {
    Settings {
        via: Via::Auth(port.addr.to_string()),
        access,
        role: "tctl".into(),
        version: Version::new(8, 0, 0),
        skip_version_check: false,
        clock: SystemClock::shared(),
    }
}

fn now() -> Time {
    std::time::SystemTime::now().into()
}

#[tokio::test]
async fn a_user_calls_an_auth_of_its_own_cluster_and_no_other() {
    let (demo, evil) = (Cluster::new("demo", now()), Cluster::new("demo", now()));
    let ours = port(&demo, "8.1.0").await;
    let user = demo.user("alice", &["root"]);
    Api::new(settings(&ours, user.access().unwrap())).ping().await.unwrap();

    let theirs = port(&evil, "8.1.0").await;
    let error = Api::new(settings(&theirs, user.access().unwrap())).ping().await.unwrap_err();
    assert!(error.is(Code::Certificate), "{error:?}");
}

#[tokio::test]
async fn a_pin_says_whether_an_unknown_cluster_is_the_right_one() {
    let (demo, other) = (Cluster::new("demo", now()), Cluster::new("other", now()));
    let port = port(&demo, "8.0.0").await;
    let pinned = |cluster: &Cluster| {
        Access::unknown_cluster(Trust::Pins { pins: cluster.trust().pins(), name: tls::PinnedName::AuthOfUnknownCluster })
    };
    Api::new(settings(&port, pinned(&demo))).ping().await.unwrap();
    let error = Api::new(settings(&port, pinned(&other))).ping().await.unwrap_err();
    assert!(error.is(Code::CaPin), "{error:?}");
}

#[tokio::test]
async fn g4_a_version_that_does_not_fit_is_told_with_its_cure() {
    let demo = Cluster::new("demo", now());
    let access = demo.user("alice", &["root"]).access().unwrap();
    let check = async |server: &str, want: Option<Code>| {
        let port = port(&demo, server).await;
        let got = Api::new(settings(&port, access.clone())).ping().await.err();
        assert_eq!(got.as_ref().and_then(Public::known), want, "{server}: {got:?}");
    };
    check("8.4.0", None).await;
    check("9.0.0", None).await;
    check("10.0.0", Some(Code::VersionTooOld)).await;
    check("7.9.9", Some(Code::VersionTooNew)).await;
}

#[tokio::test]
async fn renewed_credentials_are_used_by_the_next_call() {
    let demo = Cluster::new("demo", now());
    let port = port(&demo, "8.0.0").await;
    let id = HostId::from_uuid(uuid::Uuid::from_u128(7));
    let (tx, rx) = watch::channel(Arc::new(demo.host(id, "node1", &[SystemRole::Node])));
    let api = Api::new(Settings { role: "node".into(), ..settings(&port, Access::Host(rx)) });
    api.ping().await.unwrap();
    let first = api.0.live.lock().unwrap().as_ref().and_then(|live| live.made_with.clone()).unwrap();
    tx.send_replace(Arc::new(demo.host(id, "node1", &[SystemRole::Node])));
    api.ping().await.unwrap();
    let second = api.0.live.lock().unwrap().as_ref().and_then(|live| live.made_with.clone()).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
}
