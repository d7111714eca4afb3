//! The data plane without any Auth Service: existing certificates open sessions, known locks and roles hold, and what was recorded
//! meanwhile arrives whole afterwards.
//!
//! Seconds of load by default; `LOCKGATE_SOAK_SECONDS=600` (in `make soak`) for the ten minutes that a release is held to.

use super::{
    load::{Books, Tally, open_sessions, recorded},
    servers::Etcd,
};
use harness::{Cluster, Run, Setup, cluster::until_ok, eventually, person::me};
use std::{
    collections::BTreeSet,
    sync::Mutex,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(30);
/// Who open sessions at once.
const WORKERS: usize = 4;
/// Recordings played in the end as a user plays them; all are read.
const PLAYED: usize = 40;

fn length() -> Duration {
    let asked = std::env::var("LOCKGATE_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(10))
}

#[test]
fn existing_certificates_open_sessions_under_load_while_every_auth_service_is_away_and_all_of_it_arrives_afterwards() {
    let etcd = Etcd::start();
    let cluster = Cluster::with(Setup { split: true, storage: Some(etcd.storage()), second_auth: true, ..Setup::default() });
    cluster.allow("could not");
    let target = format!("{}@node1", me());
    cluster.role("elsewhere", &format!("{{allow: {{logins: [{}], node_labels: {{env: elsewhere}}}}}}", me()));
    let alice = cluster.person("alice", &["access", "auditor"], &[me()]);
    let bob = cluster.person("bob", &["access"], &[me()]);
    // Her role leads to other hosts.
    let carol = cluster.person("carol", &["elsewhere"], &[]);
    // Everybody was let in before: what refuses them is what the hosts know.
    [&alice, &bob].iter().for_each(|person| drop(until_ok(SOON, || person.ssh(&target, "true"))));
    cluster.create("kind: lock\nversion: v1\nmetadata: {name: bob-is-out}\nspec: {target: {user: bob}, message: known before}\n");
    eventually(SOON, "the lock is known", || (bob.ssh(&target, "true").go().status != 0).then_some(()));

    let second = cluster.second_auth();
    cluster.auth().kill();
    second.kill();
    let (tally, until) = (Mutex::new(Tally::default()), Instant::now() + length());
    let mut refused = 0;
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| open_sessions(&alice, || target.clone(), &tally, || Instant::now() >= until));
        }
        while Instant::now() < until {
            assert_ne!(bob.ssh(&target, "true").go().status, 0, "a lock that was known opened");
            assert_ne!(carol.ssh(&target, "true").go().status, 0, "a role that was known gave more");
            refused += 2;
        }
    });
    let Tally { tried, failed, opened } = tally.into_inner().unwrap();
    eprintln!("{:?} without any Auth Service: {tried} sessions tried, {} failed, {refused} refused", length(), failed.len());
    assert!(tried >= 10 && refused >= 2);
    assert!(failed.len() * 1000 <= tried, "{} of {tried} failed: {}", failed.len(), failed[0]);

    let began = Instant::now();
    for auth in [cluster.auth(), &second] {
        auth.start();
        auth.wait_ready();
    }
    let auths = [cluster.auth(), &*second];
    let wanted: BTreeSet<String> = opened.keys().cloned().collect();
    let events = ["session.start", "session.end", "exec", "session.upload"];
    let books = eventually(length() + Duration::from_secs(120), "every event of every session arrives", || {
        let books = Books::of(&auths);
        events.iter().all(|event| wanted.is_subset(&books.with(event))).then_some(books)
    });
    for session in &wanted {
        for event in ["session.start", "session.end", "exec"] {
            assert_eq!(books.times(event, session), 1, "{event} of {session}");
        }
    }
    recorded(&cluster, &auths, &alice, &opened, PLAYED);
    eprintln!("{:?} later all events and recordings of {} sessions are there, each once", began.elapsed(), wanted.len());
    for auth in auths {
        let verify = Run::new(cluster.program()).args(["tctl", "--data-dir"]).arg(&auth.data_dir).args(["audit", "verify"]);
        verify.go().ok();
    }
}
