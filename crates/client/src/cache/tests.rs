//! The cache against an Auth Service that changes, vanishes, forgets and is upgraded.

use super::*;
use crate::testing::{Cluster, FakeAuth};
use std::time::Duration;
use types::{Labels, Metadata, Time, Version, kind::LockTarget};

const SOON: Duration = Duration::from_secs(20);

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}
fn lock(text: &str) -> Document {
    let spec =
        Lock { target: LockTarget { user: Some("bob".into()), ..LockTarget::default() }, message: text.into(), extra: Default::default() };
    Resource::new(Metadata::named(name(text)), spec).to_document()
}
fn raw(kind: &str, text: &str, spec: &str) -> Document {
    Document::from_json(format!(r#"{{"kind":"{kind}","version":"v1","metadata":{{"name":"{text}"}},"spec":{spec}}}"#).as_bytes()).unwrap()
}

struct World {
    fake: FakeAuth,
    cache: Cache,
    _group: Group,
}

async fn world(fake: FakeAuth, kinds: &[&str]) -> World {
    let group = Group::new("test");
    let cache = Cache::start(ClusterName::new("demo").unwrap(), fake.api(), kinds, 7, &group, Shutdown::new());
    World { fake, cache, _group: group }
}

impl World {
    /// Waits until the cache says so.
    async fn until(&self, what: &str, holds: impl Fn(&Cache) -> bool) {
        let (mut changes, mut feeding) = (self.cache.changed(), self.cache.feeding());
        let wait = async {
            while !holds(&self.cache) {
                tokio::select! {
                    changed = changes.changed() => changed.unwrap(),
                    changed = feeding.changed() => changed.unwrap(),
                }
            }
        };
        tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}: {:?}", self.cache));
    }
}

#[tokio::test]
async fn what_exists_and_what_changes_arrives() {
    let fake = FakeAuth::new();
    let demo = Cluster::new("demo", Time::from_unix(1_800_000_000));
    for authority in demo.authorities() {
        fake.put(authority);
    }
    fake.put(lock("before"));
    let world = world(fake, AGENT_KINDS).await;
    tokio::time::timeout(SOON, world.cache.synced()).await.unwrap();
    assert_eq!(world.cache.locks().len(), 1);
    assert_eq!(world.cache.trust().host_ssh, demo.trust().host_ssh);
    assert_eq!(world.cache.auth_preference().spec, AuthPreference::default());

    let before = *world.cache.changed().borrow();
    world.fake.put(lock("after"));
    world.until("a new lock", |cache| cache.locks().len() == 2).await;
    world.fake.remove(Lock::KIND, &name("before"));
    world.until("a lock less", |cache| cache.locks().len() == 1).await;
    assert!(world.cache.changed().borrow().policy > before.policy);
    assert_eq!(world.cache.changed().borrow().nodes, before.nodes);
}

#[tokio::test]
async fn it_keeps_what_it_has_while_auth_is_away_and_then_gets_only_what_it_missed() {
    let fake = FakeAuth::new();
    fake.put(lock("one"));
    let world = world(fake, AGENT_KINDS).await;
    tokio::time::timeout(SOON, world.cache.synced()).await.unwrap();
    world.fake.go_away();
    world.until("not live", |cache| !cache.feeding().borrow().live).await;
    assert_eq!(world.cache.locks().len(), 1);
    assert!(world.cache.feeding().borrow().synced && world.cache.feeding().borrow().error.is_some());

    world.fake.put(lock("two"));
    world.fake.remove(Lock::KIND, &name("one"));
    world.fake.come_back();
    world.until("caught up", |cache| cache.feeding().borrow().live).await;
    let locks: Vec<_> = world.cache.locks().iter().map(|lock| lock.metadata.name.to_string()).collect();
    assert_eq!(locks, ["two"]);
    assert_eq!(world.fake.snapshots(), 1, "it must resume, not begin again");
}

#[tokio::test]
async fn a_forgotten_past_is_replaced_by_a_snapshot() {
    let fake = FakeAuth::new();
    fake.put(lock("one"));
    let world = world(fake, AGENT_KINDS).await;
    tokio::time::timeout(SOON, world.cache.synced()).await.unwrap();
    world.fake.go_away();
    world.until("not live", |cache| !cache.feeding().borrow().live).await;
    world.fake.remove(Lock::KIND, &name("one"));
    world.fake.put(lock("two"));
    world.fake.put(lock("three"));
    world.fake.forget_history();
    world.fake.come_back();
    world.until("live", |cache| cache.feeding().borrow().live).await;
    let locks: Vec<_> = world.cache.locks().iter().map(|lock| lock.metadata.name.to_string()).collect();
    assert_eq!(locks, ["three", "two"]);
}

#[tokio::test]
async fn a_kind_that_an_upgraded_auth_serves_later_is_fetched_whole_and_no_other() {
    let fake = FakeAuth::new();
    fake.serve(&[Role::KIND]);
    fake.put(lock("one"));
    fake.put(raw("role", "dev", r#"{"new":true}"#));
    let world = world(fake, &[Role::KIND, Lock::KIND]).await;
    tokio::time::timeout(SOON, world.cache.synced()).await.unwrap();
    assert_eq!(world.cache.feeding().borrow().unserved, [Lock::KIND]);
    assert!(world.cache.locks().is_empty() && world.cache.role(&name("dev")).is_some());

    world.fake.go_away();
    world.until("not live", |cache| !cache.feeding().borrow().live).await;
    world.fake.serve(&[Role::KIND, Lock::KIND]);
    world.fake.come_back();
    world.until("the late kind", |cache| cache.locks().len() == 1).await;
    world.until("live", |cache| cache.feeding().borrow().live).await;
    assert!(world.cache.feeding().borrow().unserved.is_empty());
    assert_eq!((world.fake.told_whole(Role::KIND), world.fake.told_whole(Lock::KIND)), (1, 1));
}

#[tokio::test]
async fn a_kind_whose_past_is_lost_begins_anew_and_the_others_go_on() {
    let fake = FakeAuth::new();
    (0..50).for_each(|number| drop(fake.put(raw("role", &format!("r{number}"), "{}"))));
    fake.put(lock("one"));
    let world = world(fake, &[Role::KIND, Lock::KIND]).await;
    tokio::time::timeout(SOON, world.cache.synced()).await.unwrap();
    world.fake.go_away();
    world.until("not live", |cache| !cache.feeding().borrow().live).await;
    world.fake.remove(Lock::KIND, &name("one"));
    world.fake.put(lock("two"));
    world.fake.forget_history_of(Lock::KIND);
    world.fake.remove(Role::KIND, &name("r7"));
    world.fake.put(raw("role", "new", "{}"));
    world.fake.come_back();
    world.until("live", |cache| cache.feeding().borrow().live).await;
    let locks: Vec<_> = world.cache.locks().iter().map(|lock| lock.metadata.name.to_string()).collect();
    assert_eq!(locks, ["two"]);
    assert!(world.cache.role(&name("r7")).is_none() && world.cache.role(&name("new")).is_some() && world.cache.role(&name("r8")).is_some());
    let whole = world.cache.feeding().borrow().whole.clone();
    assert_eq!(whole, BTreeMap::from([(Lock::KIND.into(), 2), (Role::KIND.into(), 1)]));
    assert_eq!((world.fake.snapshots(), world.fake.told_whole(Role::KIND)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn two_hundred_caches_that_lost_one_auth_do_not_come_back_at_once() {
    let fake = FakeAuth::new();
    fake.put(lock("one"));
    let group = Group::new("test");
    let start = |seed| Cache::start(ClusterName::new("demo").unwrap(), fake.api(), AGENT_KINDS, seed, &group, Shutdown::new());
    let caches: Vec<Cache> = (0..200).map(start).collect();
    for cache in &caches {
        cache.synced().await;
    }
    let before = fake.watches().len();
    let lost = tokio::time::Instant::now();
    fake.go_away();
    for cache in &caches {
        cache.feeding().wait_for(|feeding| !feeding.live).await.unwrap();
    }
    fake.come_back();
    for cache in &caches {
        cache.feeding().wait_for(|feeding| feeding.live).await.unwrap();
    }
    let mut tenths = BTreeMap::<u128, usize>::new();
    fake.watches().iter().skip(before).for_each(|at| *tenths.entry(at.duration_since(lost).as_millis() / 100).or_default() += 1);
    assert_eq!(tenths.values().sum::<usize>(), 200, "each comes back once: {tenths:?}");
    assert!(tenths.values().all(|count| *count <= 30) && tenths.len() >= 15, "in tenths of a second: {tenths:?}");
    assert_eq!(fake.snapshots(), 200, "none begins anew");
}

#[tokio::test]
async fn what_cannot_be_read_here_is_counted_and_disturbs_nothing() {
    let fake = FakeAuth::new();
    fake.serve(&["starship", Lock::KIND, User::KIND]);
    fake.put(raw("starship", "enterprise", "{}"));
    fake.put(lock("good"));
    let world = world(fake, &["starship", Lock::KIND, User::KIND]).await;
    tokio::time::timeout(SOON, world.cache.synced()).await.unwrap();
    assert_eq!(world.cache.feeding().borrow().skipped, 1);

    world.fake.put(raw("user", "alice", r#"{"roles":"not a list"}"#));
    world.fake.put(lock("better"));
    world.until("the next document", |cache| cache.locks().len() == 2).await;
    assert_eq!(world.cache.feeding().borrow().skipped, 2);
    assert!(world.cache.users().is_empty());
    assert_eq!(world.fake.snapshots(), 1);
}

#[test]
fn a_user_that_becomes_unreadable_is_no_longer_believed() {
    let cache = Cache::empty(ClusterName::new("demo").unwrap());
    cache.put([raw("user", "alice", r#"{"roles":["access"]}"#)]);
    assert!(cache.user(&name("alice")).is_some());
    cache.put([raw("user", "alice", r#"{"roles":7}"#)]);
    assert!(cache.user(&name("alice")).is_none());
}

#[test]
fn a_lock_that_becomes_unreadable_still_locks() {
    let cache = Cache::empty(ClusterName::new("demo").unwrap());
    cache.put([lock("incident")]);
    cache.put([raw("lock", "incident", r#"{"target":{"devices":["x"]}}"#)]);
    assert_eq!(cache.locks().len(), 1, "a target of which nothing can be read leaves the last one in force");
    cache.put([raw("lock", "other", r#"{"target":{"user":"eve","login":7}}"#)]);
    assert_eq!(cache.locks().len(), 2);
}

#[test]
fn a_snapshot_holds_still_and_nodes_are_found_by_name_and_id() {
    let cache = Cache::empty(ClusterName::new("demo").unwrap());
    let node = |number: u128, hostname: &str| {
        let id = HostId::from_uuid(uuid::Uuid::from_u128(number));
        let mut metadata = Metadata::named(&id);
        metadata.labels = Labels::from([("env".into(), "prod".into())]);
        let spec = Node {
            hostname: NodeName::new(hostname).unwrap(),
            addr: String::new(),
            use_tunnel: true,
            version: Version::new(1, 0, 0),
            extra: Default::default(),
        };
        Resource::new(metadata, spec).to_document()
    };
    cache.put([node(1, "a"), node(2, "b"), node(3, "b")]);
    let still = cache.nodes();
    cache.remove(Node::KIND, &ResourceName::from(&HostId::from_uuid(uuid::Uuid::from_u128(2))));
    assert_eq!((still.len(), cache.nodes().len()), (3, 2));
    assert_eq!(cache.nodes_named(&NodeName::new("b").unwrap()).len(), 1);
    assert!(cache.node(&HostId::from_uuid(uuid::Uuid::from_u128(1))).is_some());
    assert_eq!(cache.changed().borrow().nodes, 2);
}

#[test]
fn attack_row_12_an_authority_of_another_cluster_is_not_trusted() {
    let other = Cluster::new("other", Time::from_unix(1_800_000_000));
    let cache = Cache::empty(ClusterName::new("demo").unwrap());
    cache.put(other.authorities());
    assert!(cache.trust().host_ssh.is_empty() && cache.trust().user_tls.is_empty());
}
