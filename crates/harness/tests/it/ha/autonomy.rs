//! The data plane without any Auth Service: existing certificates open sessions, known locks hold, and what was recorded
//! meanwhile arrives whole afterwards.
//!
//! Seconds of load by default; `LOCKGATE_SOAK_SECONDS=600` for the ten minutes that a release is held to.

use super::servers::Etcd;
use harness::{
    Cluster, Person, Setup,
    cluster::{Member, until_ok},
    eventually,
    person::me,
};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Mutex,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(30);
/// Who open sessions at once.
const WORKERS: usize = 4;
/// Recordings played in the end.
const PLAYED: usize = 40;

fn length() -> Duration {
    let asked = std::env::var("LOCKGATE_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(10))
}

/// What was tried, and what came of it.
#[derive(Default)]
struct Tally {
    tried: usize,
    failed: Vec<String>,
    /// Sessions that ended well, with the digest of what they showed.
    opened: BTreeMap<String, Vec<u8>>,
}

fn load(alice: &Person, until: Instant, tally: &Mutex<Tally>) {
    let command = "echo $LOCKGATE_SESSION; seq 1 3000";
    while Instant::now() < until {
        let ran = alice.ssh(&format!("{}@node1", me()), command).go();
        let mut tally = tally.lock().unwrap();
        tally.tried += 1;
        if ran.status == 0 {
            let text = ran.text();
            assert!(text.ends_with("\n2999\n3000\n"), "a session's output is cut: {ran}");
            tally.opened.insert(text.lines().next().unwrap().to_owned(), Sha256::digest(text.as_bytes()).to_vec());
        } else {
            tally.failed.push(ran.to_string());
        }
    }
}

/// Sessions that an event of that name stands for in the audit logs of these Auth Services. Each keeps its own.
fn audited(auths: &[&Member], event: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for auth in auths {
        for file in fs::read_dir(auth.data_dir.join("auth/audit")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            let lines = text.lines().filter(|line| line.contains(&format!("\"event\":\"{event}\"")));
            found.extend(lines.filter_map(|line| line.split("\"sid\":\"").nth(1)?.split('"').next().map(str::to_owned)));
        }
    }
    found
}

#[test]
fn existing_certificates_open_sessions_under_load_while_every_auth_service_is_away_and_all_of_it_arrives_afterwards() {
    let etcd = Etcd::start();
    let cluster = Cluster::with(Setup { split: true, storage: Some(etcd.storage()), second_auth: true, ..Setup::default() });
    cluster.allow("could not");
    let (alice, bob) = (cluster.person("alice", &["access", "auditor"], &[me()]), cluster.person("bob", &["access"], &[me()]));
    let target = format!("{}@node1", me());
    until_ok(SOON, || alice.ssh(&target, "true"));
    until_ok(SOON, || bob.ssh(&target, "true"));
    cluster.create("kind: lock\nversion: v1\nmetadata: {name: bob-is-out}\nspec: {target: {user: bob}, message: known before}\n");
    eventually(SOON, "the lock is known", || (bob.ssh(&target, "true").go().status != 0).then_some(()));

    let second = cluster.second_auth();
    cluster.auth().kill();
    second.kill();
    let (tally, until) = (Mutex::new(Tally::default()), Instant::now() + length());
    let mut refused = 0;
    std::thread::scope(|scope| {
        (0..WORKERS).for_each(|_| drop(scope.spawn(|| load(&alice, until, &tally))));
        while Instant::now() < until {
            assert_ne!(bob.ssh(&target, "true").go().status, 0, "a lock that was known opened");
            refused += 1;
        }
    });
    let Tally { tried, failed, opened } = tally.into_inner().unwrap();
    eprintln!("without any Auth Service: {tried} sessions tried, {} failed, {refused} refused to whom is locked", failed.len());
    assert!(tried >= 10 && refused >= 1);
    assert!(failed.len() * 1000 <= tried, "{} of {tried} failed: {}", failed.len(), failed[0]);

    for auth in [cluster.auth(), &second] {
        auth.start();
        auth.wait_ready();
    }
    let (auths, wanted) = ([cluster.auth(), &*second], opened.keys().cloned().collect::<BTreeSet<_>>());
    for event in ["session.start", "session.end", "exec", "session.upload"] {
        let missing = || wanted.difference(&audited(&auths, event)).cloned().collect::<Vec<_>>();
        eventually(length() + Duration::from_secs(120), &format!("{event} of all {} sessions arrives", wanted.len()), || {
            missing().is_empty().then_some(())
        });
    }
    let refusals = audited(&auths, "session.rejected").len();
    eprintln!("all {} sessions are in the logs, with {refusals} refusals", wanted.len());
    let every = wanted.len().div_ceil(PLAYED).max(1);
    for (session, digest) in opened.iter().step_by(every) {
        assert!(cluster.home.join(format!("recordings/{session}.rec")).exists());
        let played = alice.tsh(["play", session, "--format=text"]).go().ok();
        assert_eq!(&Sha256::digest(played.as_bytes()).to_vec(), digest, "the recording of {session} shows something else");
    }
    let recorded = fs::read_dir(cluster.home.join("recordings")).unwrap().flatten();
    let recorded: BTreeSet<String> =
        recorded.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".rec").map(str::to_owned)).collect();
    assert!(wanted.is_subset(&recorded), "{} recordings of {} sessions", recorded.len(), wanted.len());
    for auth in auths {
        let verified =
            harness::Run::new(cluster.program()).args(["tctl", "--data-dir"]).arg(&auth.data_dir).args(["audit", "verify"]).go().ok();
        assert!(verified.contains("other Auth Services keep their own") || !verified.is_empty(), "{verified}");
    }
}
