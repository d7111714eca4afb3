//! Sessions that run when the answer becomes no: the Proxy ends them, also when the host does not. The fake agents here are
//! such hosts: they echo for ever.

use crate::{
    ca::{HOUR, id, now},
    fake_agent::FakeAgent,
    jump::log_in,
    rig::{Rig, SOON, Session, named, node},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::io::AsyncReadExt as _;
use types::{
    Code, EventKind, Resource, ResourceName,
    document::Spec as _,
    kind::{Lock, LockTarget, Node, User},
    role::Role,
};

/// What changes, by name.
type Case = (&'static str, fn(&Rig));
/// What a lock promises, to the last byte.
const PROMISED: Duration = Duration::from_secs(5);

async fn ends(session: &mut Session, since: Instant, what: &str) {
    let end = tokio::time::timeout(SOON, session.0.read_u8()).await.unwrap_or_else(|_| panic!("{what}: it goes on"));
    assert!(end.is_err(), "{what}: {end:?}");
    assert!(since.elapsed() < PROMISED, "{what}: {:?}", since.elapsed());
}

fn lock(rig: &Rig, target: LockTarget) {
    rig.cache.put([named("l", Lock { target, message: "incident 7".into(), ..Lock::default() })]);
}

fn role(json: serde_json::Value) -> Role {
    serde_json::from_value(json).unwrap()
}

fn user(roles: &[&str]) -> User {
    User { roles: roles.iter().map(|role| ResourceName::new(role).unwrap()).collect(), ..User::default() }
}

#[tokio::test]
async fn what_ends_a_permit_ends_its_session_also_when_the_host_goes_on() {
    let check = async |what: &str, change: fn(&Rig)| {
        let rig = Arc::new(Rig::start().await);
        FakeAgent::start(&rig, 1, "boot").await.serve(&rig, "one");
        let mut gateway = rig.dial(&rig.cluster.user("alice", &["access"]), "node1").await.unwrap();
        let (visit, _) = log_in(&rig, &rig.cluster.user("alice", &["access"])).await;
        let mut jump = Session(Box::new(visit.handle.channel_open_direct_tcpip("node1", 22, "127.0.0.1", 1).await.unwrap().into_stream()));
        assert_eq!((gateway.say("x").await, jump.say("x").await), ("one:x".into(), "one:x".into()), "{what}");
        let since = Instant::now();
        change(&rig);
        ends(&mut gateway, since, what).await;
        ends(&mut jump, since, what).await;
        let event = rig.auth.event(|event| event.is(EventKind::AccessDenied) && event.fields.get("running").is_some()).await;
        assert_eq!((event.text("user"), event.text("target_id")), ("alice", id(1).to_string().as_str()), "{what}");
    };
    let cases: [Case; 7] = [
        ("a lock on the user", |rig| lock(rig, LockTarget { user: Some("alice".into()), ..LockTarget::default() })),
        ("a lock on a role", |rig| lock(rig, LockTarget { role: Some("access".into()), ..LockTarget::default() })),
        ("a lock on the host", |rig| lock(rig, LockTarget { node: Some(id(1)), ..LockTarget::default() })),
        ("a role taken away", |rig| rig.cache.put([named("alice", user(&[]))])),
        ("a user removed", |rig| rig.cache.remove(User::KIND, &ResourceName::new("alice").unwrap())),
        ("a role that now denies", |rig| {
            let both = serde_json::json!({ "allow": { "node_labels": { "env": "dev" } }, "deny": { "node_labels": { "env": "dev" } } });
            rig.cache.put([named("access", role(both))]);
        }),
        ("the end of a certificate, where a role says so", |rig| {
            let strict = serde_json::json!({
                "allow": { "node_labels": { "env": "dev" } },
                "options": { "disconnect_expired_cert": true, "max_session_ttl": "100h" },
            });
            rig.clock.advance(100 * HOUR);
            rig.cache.put([named("access", role(strict))]);
        }),
    ];
    futures::future::join_all(cases.map(|(what, change)| check(what, change))).await;
}

#[tokio::test]
async fn a_session_that_may_go_on_is_left_alone() {
    let rig = Arc::new(Rig::start().await);
    FakeAgent::start(&rig, 1, "boot").await.serve(&rig, "one");
    let mut alice = rig.dial(&rig.cluster.user("alice", &["access"]), "node1").await.unwrap();
    let mut bob = rig.dial(&rig.cluster.user("bob", &["admin"]), "node1").await.unwrap();
    assert_eq!((alice.say("x").await, bob.say("x").await), ("one:x".into(), "one:x".into()));
    // Nothing of this is about bob: a host that is cut off from the Auth Service, a certificate that ended, other people's locks.
    rig.cache.remove(Node::KIND, &ResourceName::from(&id(1)));
    rig.clock.advance(100 * HOUR);
    let since = Instant::now();
    lock(&rig, LockTarget { user: Some("alice".into()), ..LockTarget::default() });
    ends(&mut alice, since, "the locked user").await;
    assert_eq!(bob.say("y").await, "y");
}

#[tokio::test]
async fn a_lock_that_has_ended_or_names_something_else_ends_nothing() {
    let rig = Arc::new(Rig::start().await);
    FakeAgent::start(&rig, 1, "boot").await.serve(&rig, "one");
    let mut alice = rig.dial(&rig.cluster.user("alice", &["access"]), "node1").await.unwrap();
    let mut sentinel = rig.dial(&rig.cluster.user("bob", &["admin"]), "node1").await.unwrap();
    assert_eq!((alice.say("x").await, sentinel.say("x").await), ("one:x".into(), "one:x".into()));
    let put = |name: &str, target: LockTarget, ended: bool| {
        let mut document: Resource<Lock> = Resource::from_document(named(name, Lock { target, ..Lock::default() })).unwrap();
        document.metadata.expires = ended.then(|| now().minus(HOUR));
        rig.cache.put([document.to_document()]);
    };
    let target = LockTarget::default;
    put("past", LockTarget { user: Some("alice".into()), ..target() }, true);
    put("elsewhere", LockTarget { user: Some("alice".into()), node: Some(id(2)), ..target() }, false);
    // The login stands inside SSH: such a lock is the host's to carry out.
    put("login", LockTarget { user: Some("alice".into()), login: Some("root".into()), ..target() }, false);
    rig.cache.put([node(1, "node1", "env=dev,more=labels", "")]);
    let since = Instant::now();
    put("bob", LockTarget { user: Some("bob".into()), ..target() }, false);
    ends(&mut sentinel, since, "the one that is locked").await;
    assert_eq!(alice.say("y").await, "y");
    assert_eq!(rig.metrics.refusals(Code::AccessLocked), 1);
}
