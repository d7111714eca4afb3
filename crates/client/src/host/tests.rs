//! Credentials files, and what joining and renewing refuse.

use super::*;
use crate::testing::{Cluster, FakeAuth, HOUR};
use net::clock::ManualClock;
use std::os::unix::fs::PermissionsExt as _;

fn now() -> Time {
    Time::from_unix(1_800_000_000)
}
fn id() -> HostId {
    HostId::from_uuid(uuid::Uuid::from_u128(7))
}

#[test]
fn credentials_survive_their_file_which_is_their_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host").join("identity.json");
    assert!(HostCredentials::load(&path).unwrap_err().is_missing());
    let demo = Cluster::new("demo", now());
    let saved = demo.host(id(), "node1", &[SystemRole::Node]);
    saved.save(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    let read = HostCredentials::load(&path).unwrap();
    assert_eq!((&read.identity, &read.key, read.expires), (&saved.identity, &saved.key, now().plus(HOUR)));
    assert_eq!(read.trust.host_ssh, saved.trust.host_ssh);
    assert_eq!(read.renew_at(), now());
}

#[test]
fn a_users_certificate_makes_no_host() {
    let demo = Cluster::new("demo", now());
    let alice = demo.user("alice", &["root"]);
    let mut file = demo.host(id(), "node1", &[SystemRole::Node]).to_file();
    file.private_key = alice.key.pkcs8_pem();
    file.tls_certificate = alice.tls_pem().to_owned();
    assert!(matches!(HostCredentials::from_file(&file), Err(HostError::NotAHost)));
    let mut file = demo.host(id(), "node1", &[SystemRole::Node]).to_file();
    file.authorities = Cluster::new("other", now()).authorities();
    assert!(matches!(HostCredentials::from_file(&file), Err(HostError::NoAuthorities)));
}

fn joining(ca_pins: Vec<Pin>) -> Joining {
    Joining {
        via: Via::Auth("127.0.0.1:1".into()),
        token: Secret::new("token"),
        ca_pins,
        insecure: false,
        host_id: id(),
        node_name: NodeName::new("node1").unwrap(),
        roles: [SystemRole::Node].into(),
        names: Vec::new(),
        version: Version::new(1, 0, 0),
        skip_version_check: false,
    }
}

#[tokio::test]
async fn a_host_does_not_show_its_token_to_a_cluster_it_cannot_check() {
    let clock = ManualClock::new(now()).shared();
    let error = join(&joining(Vec::new()), &clock).await.unwrap_err();
    assert!(error.is(Code::CaPin) && error.hint.unwrap().contains("--ca-pin"));
    let pins = Cluster::new("demo", now()).trust().pins();
    assert!(join(&joining(pins), &clock).await.unwrap_err().is(Code::Unreachable));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_is_tried_again_and_the_old_credentials_stay() {
    let demo = Cluster::new("demo", now());
    let fake = FakeAuth::new();
    let (tx, rx) = watch::channel(Arc::new(demo.host(id(), "node1", &[SystemRole::Node])));
    let shutdown = Shutdown::new();
    let before = rx.borrow().clone();
    let clock = ManualClock::new(now().plus(HOUR / 2)).shared();
    let renewing = keep_renewed(tx, fake.api(), PathBuf::from("/nonexistent/identity.json"), Vec::new(), clock, 1, shutdown.clone());
    let stop = async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        shutdown.stop();
    };
    tokio::join!(renewing, stop);
    assert!(Arc::ptr_eq(&before, &rx.borrow()));
}
