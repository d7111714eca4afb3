//! What stays of a session: the recording and the audit log, also when a process dies in the middle.

use harness::{
    Cluster, Run,
    cluster::{shared, until_ok},
    eventually,
    person::me,
    process::Running,
};
use serde_json::Value;
use std::{fs, time::Duration};

const SOON: Duration = Duration::from_secs(30);

/// The recording of the newest session of a user, once it has arrived.
fn recording(auditor: &harness::Person, user: &str) -> Value {
    eventually(SOON, &format!("a recording of {user}"), || {
        let list = auditor.tsh(["recordings", "ls", "--format=json"]).go().json();
        list.as_array().unwrap().iter().find(|one| one["user"] == user).cloned()
    })
}

#[test]
fn a_session_is_recorded_listed_played_and_exported() {
    let cluster = shared();
    let alice = cluster.person("record-alice", &["access", "auditor"], &[me()]);
    alice.ssh(&format!("{}@node1", me()), "echo to be kept; echo aside >&2").go().ok();
    let kept = recording(&alice, "record-alice");
    let id = kept["session"].as_str().unwrap();
    assert_eq!((kept["login"].as_str(), kept["hostname"].as_str(), kept["kind"].as_str()), (Some(me()), Some("node1"), Some("exec")));
    let listed = alice.tsh(["recordings", "ls"]).go().ok();
    assert!(listed.contains(id) && listed.contains("Participants"), "{listed}");
    let text = alice.tsh(["play", id, "--format=text"]).go().ok();
    assert!(text.contains("to be kept") && text.contains("aside"), "{text}");
    let pty = alice.tsh(["play", id, "--speed=100"]).go().ok();
    assert!(pty.contains("to be kept"), "{pty}");
    let cast = alice.tsh(["recordings", "export", id, "--format=asciicast"]).go().ok();
    let lines: Vec<Value> = cast.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["version"], 2);
    assert!(lines[1..].iter().any(|line| line[1] == "o" && line[2].as_str().unwrap().contains("to be kept")), "{cast}");
    cluster.event("session.start", "L2000I", &[("user", "record-alice"), ("sid", id)]);
    cluster.event("session.end", "L2004I", &[("user", "record-alice"), ("sid", id)]);
    cluster.event("session.upload", "L2005I", &[("sid", id)]);
    cluster.event("exec", "L3002I", &[("user", "record-alice"), ("sid", id)]);
    cluster.event("session.recording.access", "L2012I", &[("user", "record-alice")]);
}

#[test]
fn a_failed_command_is_told_apart() {
    let cluster = shared();
    let alice = cluster.person("record-failed", &["access"], &[me()]);
    assert_eq!(alice.ssh(&format!("{}@node1", me()), "exit 5").go().status, 5);
    let event = cluster.event("exec", "L3002E", &[("user", "record-failed")]);
    assert!(event.to_string().contains('5') && event["command"] == "exit 5", "{event}");
}

#[test]
fn recordings_of_others_are_for_auditors() {
    let cluster = shared();
    let alice = cluster.person("record-owner", &["access"], &[me()]);
    let auditor = cluster.person("record-auditor", &["auditor"], &[]);
    alice.ssh(&format!("{}@node1", me()), "echo private matters").go().ok();
    let id = recording(&auditor, "record-owner")["session"].as_str().unwrap().to_owned();
    assert!(auditor.tsh(["play", &id, "--format=text"]).go().ok().contains("private matters"));
    let mallory = cluster.person("record-mallory", &["access"], &[me()]);
    mallory.tsh(["play", &id, "--format=text"]).go().refused();
    let seen = mallory.tsh(["recordings", "ls", "--format=json"]).go();
    assert!(!seen.text().contains(&id), "{seen}");
}

#[test]
fn attack_row_17_a_host_killed_in_the_middle_keeps_what_was_seen_until_then() {
    let cluster = Cluster::split();
    let alice = cluster.person("alice", &["access", "auditor"], &[me()]);
    let target = format!("{}@node1", me());
    until_ok(SOON, || alice.ssh(&target, "true"));
    let log = cluster.home.join("cut.log");
    let mut session = Running::start(&alice.ssh(&target, "echo seen be''fore; sleep 60").into_command(), &log);
    eventually(SOON, "the session has begun", || session.log().contains("seen before").then_some(()));
    // Written to the spool while it runs: what the user saw is on disk soon after.
    let spool = cluster.node().data_dir.join("spool");
    let recorded = || {
        fs::read_dir(&spool)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| fs::read(entry.path()).is_ok_and(|bytes| bytes.windows(11).any(|window| window == b"seen before")))
    };
    eventually(SOON, "the spool has it", || recorded().then_some(()));
    cluster.node().kill();
    assert_ne!(session.wait(SOON), 0);
    cluster.node().start();
    cluster.node().wait_ready();
    let started = cluster.event("session.start", "L2000I", &[("user", "alice"), ("command", "echo seen be''fore; sleep 60")]);
    let id = started["sid"].as_str().unwrap();
    let ended = cluster.event("session.end", "L2004I", &[("sid", id)]);
    assert_eq!(ended["recovered"], true, "{ended}");
    let text = until_ok(SOON, || alice.tsh(["play", id, "--format=text"])).ok();
    assert!(text.contains("seen before"), "{text}");
    let ends = cluster.events(&["session.end"]).iter().filter(|event| event["sid"] == id).count();
    assert_eq!(ends, 1, "a session closes exactly once");
    until_ok(SOON, || alice.ssh(&target, "true"));
    cluster.tctl(["audit", "verify"]).go().ok();
}

#[test]
fn events_survive_an_auth_service_that_is_away() {
    let cluster = Cluster::split();
    let alice = cluster.person("alice", &["access", "auditor"], &[me()]);
    let target = format!("{}@node1", me());
    until_ok(SOON, || alice.ssh(&target, "true"));
    cluster.auth().kill();
    until_ok(SOON, || alice.ssh(&target, "echo while it was away"));
    cluster.auth().start();
    cluster.auth().wait_ready();
    let event = cluster.event("exec", "L3002I", &[("command", "echo while it was away")]);
    let id = event["sid"].as_str().unwrap();
    let text = until_ok(SOON, || alice.tsh(["play", id, "--format=text"])).ok();
    assert!(text.contains("while it was away"));
}

#[test]
fn attack_row_32_a_changed_byte_in_the_audit_log_is_found() {
    let cluster = Cluster::start();
    cluster.person("alice", &["access"], &[me()]);
    let seen = cluster.tctl(["audit", "verify", "--format=json"]).go().json();
    assert_eq!(seen["intact"], true, "{seen}");
    assert!(seen["events"].as_u64().unwrap() >= 3, "{seen}");
    cluster.auth().signal(nix::sys::signal::Signal::SIGTERM);
    cluster.auth().wait(SOON);
    let file = Run::new("grep")
        .args(["-rl", "alice"])
        .arg(cluster.auth().data_dir.join("auth/audit"))
        .go()
        .ok()
        .lines()
        .next()
        .unwrap()
        .to_owned();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("alice", "alicf", 1)).unwrap();
    cluster.allow("audit");
    cluster.auth().start();
    // A service may refuse to go on, or go on and say so; it may not stay silent.
    let verdict = eventually(SOON, "an answer", || {
        if cluster.auth().has_ended() {
            return Some(cluster.auth().log());
        }
        let ran = cluster.tctl(["audit", "verify"]).go();
        ran.err.contains("LG-AUDIT-001").then_some(ran.err)
    });
    assert!(verdict.contains("LG-AUDIT-001"), "{verdict}");
}

#[test]
fn the_log_names_what_administrators_do() {
    let cluster = shared();
    cluster.create("kind: role\nversion: v1\nmetadata: {name: record-role}\nspec: {}\n");
    cluster.create("kind: role\nversion: v1\nmetadata: {name: record-role}\nspec: {allow: {logins: [app]}}\n");
    cluster.tctl(["rm", "role/record-role"]).go().ok();
    for (name, code) in [("resource.create", "L9000I"), ("resource.update", "L9001I"), ("resource.delete", "L9002I")] {
        cluster.event(name, code, &[("kind", "role"), ("name", "record-role")]);
    }
    let text = cluster.tctl(["audit", "ls", "--event=resource.delete"]).go().ok();
    assert!(text.contains("L9002I") && text.contains("record-role"), "{text}");
}
