//! The store fails over under a running cluster: PostgreSQL's standby is promoted, etcd's leader is killed.
//!
//! Two Auth Services, a Proxy and a host go on: sessions meanwhile do not notice, whatever was acknowledged before is there afterwards, and
//! both Auth Services take writes again by themselves.

use super::{
    load::{Tally, open_sessions},
    servers::{Etcd, Postgres},
};
use harness::{Cluster, Setup, cluster::until_ok, eventually, person::me};
use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(60);

/// Creates roles one after the other by one Auth Service until it is enough; those that were acknowledged.
fn write(cluster: &Cluster, data_dir: &std::path::Path, prefix: &str, enough: &AtomicBool) -> BTreeSet<String> {
    let mut acknowledged = BTreeSet::new();
    for number in 0.. {
        if enough.load(Ordering::Acquire) {
            break;
        }
        let name = format!("{prefix}-{number}");
        let role = format!("kind: role\nversion: v1\nmetadata: {{name: {name}}}\nspec: {{}}\n");
        let create = harness::Run::new(cluster.program()).args(["tctl", "--data-dir"]).arg(data_dir).args(["create", "-f"]).input(role);
        if create.env("LOCKGATE_HOME", cluster.home.join("nobody")).go().status == 0 {
            acknowledged.insert(name);
        }
    }
    acknowledged
}

/// Breaks the store under load; nothing acknowledged may be lost, and no session may notice.
fn check(storage: String, break_it: impl FnOnce()) {
    let cluster = Cluster::with(Setup { split: true, storage: Some(storage), second_auth: true, ..Setup::default() });
    // Requests of those seconds end with an error that says so.
    cluster.allow("");
    let alice = cluster.person("alice", &["access", "auditor"], &[me()]);
    let (target, second) = (format!("{}@node1", me()), cluster.second_auth());
    until_ok(SOON, || alice.ssh(&target, "true"));
    let (tally, enough) = (Mutex::new(Tally::default()), AtomicBool::new(false));
    let (acknowledged, outage) = std::thread::scope(|scope| {
        let (cluster, enough) = (&cluster, &enough);
        let one = scope.spawn(move || write(cluster, &cluster.auth().data_dir, "one", enough));
        let two = {
            let second = second.clone();
            scope.spawn(move || write(cluster, &second.data_dir, "two", enough))
        };
        let sessions = scope.spawn(|| open_sessions(&alice, || target.clone(), &tally, || enough.load(Ordering::Acquire)));
        let opened = || tally.lock().unwrap().opened.len();
        eventually(SOON, "the load runs", || (opened() >= 3).then_some(()));
        let (began, before) = (Instant::now(), opened());
        break_it();
        for (auth, name) in [(cluster.auth(), "after-one"), (&*second, "after-two")] {
            let role = format!("kind: role\nversion: v1\nmetadata: {{name: {name}}}\nspec: {{}}\n");
            until_ok(SOON, || {
                let create = harness::Run::new(cluster.program()).args(["tctl", "--data-dir"]).arg(&auth.data_dir).args(["create", "-f"]);
                create.input(role.clone())
            });
        }
        let outage = began.elapsed();
        eventually(SOON, "sessions go on", || (opened() >= before + 3).then_some(()));
        enough.store(true, Ordering::Release);
        sessions.join().unwrap();
        (one.join().unwrap().into_iter().chain(two.join().unwrap()).collect::<BTreeSet<_>>(), outage)
    });
    let Tally { tried, failed, .. } = tally.into_inner().unwrap();
    eprintln!(
        "both take writes {outage:?} after the blow; {} writes were acknowledged, {tried} sessions tried, {} failed",
        acknowledged.len(),
        failed.len()
    );
    assert_eq!(failed, Vec::<String>::new());
    let listed = cluster.tctl(["get", "roles", "--format=json"]).go().json();
    let there: BTreeSet<String> =
        listed.as_array().unwrap().iter().filter_map(|role| role["metadata"]["name"].as_str().map(str::to_owned)).collect();
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert!(lost.is_empty() && acknowledged.len() >= 4, "lost: {lost:?}");
}

#[test]
fn a_promoted_standby_of_postgresql_has_all_that_was_acknowledged_and_both_auth_services_go_on_with_it() {
    let mut primary = Postgres::start();
    let standby = primary.standby();
    check(Postgres::storage_at(&[primary.port, standby.port]), || {
        primary.kill();
        standby.promote();
    });
}

#[test]
fn a_cluster_on_three_members_of_etcd_goes_on_when_their_leader_is_killed() {
    let mut three = Etcd::three();
    let leader = eventually(SOON, "a leader", || three.iter().position(Etcd::leads));
    let peers = three.iter().map(|one| format!("'127.0.0.1:{}'", one.port)).collect::<Vec<_>>().join(", ");
    check(format!("{{type: etcd, peers: [{peers}]}}"), || three[leader].kill());
}
