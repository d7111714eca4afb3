//! Clusters that earlier releases left behind: a backup of each stands in `tests/golden/<version>/`, and comes back to life today.
//!
//! This holds what no list can: everything that a release stores, also what the API never shows (password hashes, keys of
//! authorities, books of hosts). `cargo xtask freeze` makes the one of the version to come, when there is none yet; digests of all of them
//! stand in `frozen/`. What an upgrade in place does is the business of `versions`.

use harness::{Cluster, Run, Setup, person::me};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

const USER: &str = "frozen-alice";
const PASSWORD: &str = "correct horse battery staple";
/// Documents that do not end by themselves.
const KINDS: [&str; 6] = ["cluster_name", "cluster_auth_preference", "cert_authority", "role", "user", "lock"];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn setup() -> Setup {
    Setup { with_node: false, ..Setup::default() }
}

/// `tctl` without a cluster.
fn offline(cluster: &Cluster, words: &[&str]) -> Run {
    Run::new(cluster.program()).args(["tctl", "backup"]).args(words).env("LOCKGATE_HOME", cluster.home.join("nobody"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What the cluster has, without what the store adds.
fn documents(cluster: &Cluster) -> Vec<Value> {
    let mut all = Vec::new();
    for kind in KINDS {
        let told = cluster.tctl(["get", kind, "--format=json"]).go().json();
        for document in told.as_array().cloned().unwrap_or_else(|| vec![told]) {
            all.push(json!({"kind": document["kind"], "name": document["metadata"]["name"], "spec": document["spec"]}));
        }
    }
    all
}

/// A cluster with something of everything, and its backup in that folder.
fn leave_behind(folder: &Path) {
    let cluster = Cluster::with(setup());
    let made = cluster.home.join("made.yaml");
    let yaml = "kind: role\nversion: v1\nmetadata: {name: frozen-dev, labels: {team: a}}\nspec:\n  options: {max_session_ttl: 8h, forward_agent: true}\n  allow: {logins: [dev], node_labels: {env: [prod, staging]}}\n  deny: {logins: [root]}\n---\nkind: lock\nversion: v1\nmetadata: {name: frozen-lock}\nspec: {target: {user: frozen-bob}, message: left}\n";
    fs::write(&made, yaml).unwrap();
    cluster.tctl(["create", text(&made)]).go().ok();
    let invite =
        cluster.tctl(["users", "add", USER, "--roles=access,frozen-dev", "--format=json"]).arg(format!("--logins={}", me())).go().json();
    login(&cluster, &cluster.pins, Some(invite["invite"].as_str().unwrap())).ok();
    cluster.token("node");
    fs::create_dir_all(folder).unwrap();
    let (file, key) = (folder.join("cluster.lgbackup"), folder.join("cluster.key"));
    let made = offline(&cluster, &["keygen", "--out", text(&key)]).go().ok();
    let recipient = made.split_whitespace().find(|word| word.starts_with("age1")).unwrap().to_owned();
    let made = cluster.tctl(["backup", "create", "--format=json", "--out", text(&file), "--recipient", &recipient]).go().json();
    let facts = json!({"signer": made["signer"], "pins": cluster.pins, "documents": documents(&cluster)});
    fs::write(folder.join("cluster.json"), serde_json::to_string_pretty(&facts).unwrap() + "\n").unwrap();
}

fn login(cluster: &Cluster, pins: &[String], invite: Option<&str>) -> harness::run::Ran {
    let password = cluster.home.join("password");
    fs::write(&password, PASSWORD).unwrap();
    let run = Run::new(cluster.program())
        .args(["tsh", "login", &format!("--proxy={}", cluster.proxy_addr()), &format!("--user={USER}")])
        .args(pins.iter().map(|pin| format!("--ca-pin={pin}")))
        .args(invite.map(|link| format!("--invite={link}")));
    run.env("LOCKGATE_PASSWORD_FILE", &password).env("LOCKGATE_HOME", cluster.home.join("alice")).go()
}

fn comes_back(folder: &Path) {
    let facts: Value = serde_json::from_slice(&fs::read(folder.join("cluster.json")).unwrap()).unwrap();
    let (file, key) = (folder.join("cluster.lgbackup"), folder.join("cluster.key"));
    let signer = facts["signer"].as_str().unwrap();
    let cluster = Cluster::with(setup());
    let drill = offline(&cluster, &["drill", text(&file), "--identity-file", text(&key), "--signer", signer]).go().ok();
    assert!(drill.contains("The drill passed") && drill.contains(USER), "{drill}");
    // In the place of a new one, with its ports.
    cluster.auth().signal(Signal::SIGTERM);
    cluster.auth().wait(Duration::from_secs(30));
    fs::rename(&cluster.auth().data_dir, cluster.home.join("new")).unwrap();
    let config = cluster.auth().config.clone();
    let words = ["restore", text(&file), "--identity-file", text(&key), "--signer", signer, "--config", text(&config)];
    offline(&cluster, &words).go().ok();
    cluster.auth().start();
    cluster.auth().wait_ready();
    let (then, now) = (facts["documents"].as_array().unwrap(), documents(&cluster));
    for document in then {
        let same = now.iter().find(|one| one["kind"] == document["kind"] && one["name"] == document["name"]);
        let same = same.unwrap_or_else(|| panic!("{}/{} is gone", document["kind"], document["name"]));
        assert_eq!(same["spec"], document["spec"], "{}/{}", document["kind"], document["name"]);
    }
    let pins: Vec<String> = facts["pins"].as_array().unwrap().iter().map(|pin| pin.as_str().unwrap().to_owned()).collect();
    login(&cluster, &pins, None).ok();
    cluster.tctl(["audit", "verify"]).go().ok();
}

#[test]
fn a_cluster_of_every_release_comes_back_out_of_its_backup() {
    let own = golden().join(env!("CARGO_PKG_VERSION"));
    if env::var_os("LOCKGATE_FREEZE").is_some() && !own.exists() {
        leave_behind(&own);
    }
    let mut folders: Vec<PathBuf> = fs::read_dir(golden()).expect("tests/golden").map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(!folders.is_empty());
    folders.iter().for_each(|folder| comes_back(folder));
}
