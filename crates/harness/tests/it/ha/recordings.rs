//! Recordings when each Auth Service keeps a directory of its own: whoever is asked shows all, and says what is missing while one is down.

use super::servers::Etcd;
use harness::{
    Cluster, Person, Ran, Setup,
    cluster::{Member, until_ok},
    eventually,
    person::me,
};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// A session; its id, once its recording lies with that Auth Service.
fn session(cluster: &Cluster, alice: &Person, at: Option<&Member>) -> (String, String) {
    let ran = until_ok(SOON, || alice.ssh(&format!("{}@node1", me()), "echo $LOCKGATE_SESSION; echo shown"));
    let id = ran.text().lines().next().unwrap().to_owned();
    let second = cluster.second_auth();
    let holder = eventually(SOON, "the recording arrives", || {
        let lies = |auth: &&Member| cluster.recordings(auth).join(format!("{id}.rec")).exists();
        [cluster.auth(), &*second].into_iter().find(lies).map(|auth| auth.name.clone())
    });
    assert!(at.is_none_or(|at| at.name == holder));
    (id, holder)
}

fn listed(alice: &Person) -> (Vec<String>, Ran) {
    let ran = until_ok(SOON, || alice.tsh(["recordings", "ls", "--format=json"]));
    let ids = ran.json().as_array().unwrap().iter().map(|one| one["session"].as_str().unwrap().to_owned()).collect();
    (ids, ran)
}

#[test]
fn recordings_that_lie_with_several_auth_services_are_shown_by_each_and_what_is_missing_is_said() {
    let etcd = Etcd::start();
    let setup = Setup { split: true, storage: Some(etcd.storage()), second_auth: true, own_recordings: true, ..Setup::default() };
    let cluster = Cluster::with(setup);
    let (alice, second) = (cluster.person("alice", &["access"], &[me()]), cluster.second_auth());
    let (first, holder) = session(&cluster, &alice, None);
    let (one, other) = if holder == second.name { (&*second, cluster.auth()) } else { (cluster.auth(), &*second) };
    // Gracefully: it notes what lies there. One that is killed may be two seconds behind.
    one.stop();
    let (later, _) = session(&cluster, &alice, Some(other));

    // The one that is down is named, with how much lies there.
    let (ids, ran) = listed(&alice);
    assert_eq!(ids, std::slice::from_ref(&later));
    let line = ran.err.lines().find(|line| line.contains("missing")).unwrap_or_default();
    assert!(line.contains(&one.name) && line.contains("recordings that lie only there (1 when last heard of) are missing"), "{ran}");
    alice.tsh(["play", &first, "--format=text"]).go().refused();
    alice.tsh(["play", &later, "--format=text"]).go().ok();

    // Both are there, whichever is asked.
    one.start();
    one.wait_ready();
    let all = || {
        let (ids, ran) = listed(&alice);
        (ids == [later.clone(), first.clone()] && ran.err.is_empty()).then_some(())
    };
    eventually(SOON, "both are listed", all);
    for asked in [one, other] {
        // Each call goes to the one that is left to the Proxy.
        let way = if asked.name == one.name { other } else { one };
        way.kill();
        let (ids, _) = listed(&alice);
        assert_eq!(ids.len(), 1, "its own");
        way.start();
        way.wait_ready();
        eventually(SOON, "both are listed again", all);
        for id in [&first, &later] {
            let text = until_ok(SOON, || alice.tsh(["play", id, "--format=text"])).text();
            assert_eq!(text, format!("{id}\nshown\n"));
        }
    }
    // Somebody else learns of neither, and cannot tell that they are.
    let mallory = cluster.person("mallory", &["access"], &[me()]);
    assert!(listed(&mallory).0.is_empty());
    let (theirs, nobodys) = (mallory.tsh(["play", &first]).go(), mallory.tsh(["play", "01900000-0000-7000-8000-000000000001"]).go());
    assert_ne!(theirs.status, 0);
    assert_eq!(theirs.err.replace(&first, "x"), nobodys.err.replace("01900000-0000-7000-8000-000000000001", "x"));
}
