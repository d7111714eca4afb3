//! How hosts come into a cluster, and how they do not.

use harness::{
    Cluster,
    cluster::{Way, shared, until_ok},
    person::me,
};
use nix::sys::signal::Signal;
use std::{collections::BTreeSet, fs, time::Duration};

const SOON: Duration = Duration::from_secs(20);

/// Ports on which a process listens, found by its sockets.
fn listens_on(pid: u32) -> BTreeSet<u16> {
    let sockets: BTreeSet<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
        .collect();
    let table = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let all = table("tcp") + &table("tcp6");
    let listening = all
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.get(3) == Some(&"0A") && sockets.contains(words[9]));
    listening.map(|words| u16::from_str_radix(words[1].rsplit(':').next().unwrap(), 16).unwrap()).collect()
}

#[test]
fn a_host_joined_by_tunnel_never_listens_and_needs_its_token_once() {
    let cluster = shared();
    let node = cluster.join("join-tunnel", Way::Tunnel, &[("kind", "tunnel")]);
    let alice = cluster.person("join-alice", &["access"], &[me()]);
    let target = format!("{}@join-tunnel", me());
    until_ok(SOON, || alice.ssh(&target, "true"));
    // Its diagnostic address is this test's own wish.
    assert_eq!(listens_on(node.pid()), BTreeSet::from([node.diag_port]));
    cluster.event("instance.join", "LJ002I", &[]);
    node.set_args(Vec::<String>::new());
    node.restart();
    until_ok(SOON, || alice.ssh(&target, "true"));
    assert_eq!(listens_on(node.pid()), BTreeSet::from([node.diag_port]));
}

#[test]
fn a_host_joined_directly_listens_and_needs_its_token_once() {
    let cluster = shared();
    let node = cluster.join("join-direct", Way::Direct, &[]);
    assert_eq!(listens_on(node.pid()), BTreeSet::from([node.diag_port, node.ssh_port]));
    node.set_args(Vec::<String>::new());
    node.restart();
    let alice = cluster.person("join-bob", &["access"], &[me()]);
    until_ok(SOON, || alice.ssh(&format!("{}@join-direct", me()), "true"));
}

#[test]
fn a_bad_token_a_foreign_role_and_a_bad_pin_are_refused_by_name() {
    let cluster = shared();
    let program = harness::binary::current();
    for way in [Way::Tunnel, Way::Direct] {
        let node = cluster.new_node(&format!("bad-token-{way:?}").to_lowercase(), way, &[], program);
        node.set_args(["--token=0123456789abcdef0123456789abcdef"]);
        node.command().go().fails(1, "LG-JOIN-001");
        node.set_args([format!("--token={}", cluster.token("proxy"))]);
        node.command().go().fails(1, "LG-JOIN-001");
        let mut yaml = fs::read_to_string(&node.config).unwrap();
        for pin in &cluster.pins {
            yaml = yaml.replace(pin, &format!("sha256:{}", "ab".repeat(32)));
        }
        fs::write(&node.config, yaml).unwrap();
        node.set_args([format!("--token={}", cluster.token("node"))]);
        node.command().go().fails(1, "LG-JOIN-002");
        let yaml = fs::read_to_string(&node.config).unwrap().replace("  ca_pin:", "  # ca_pin:");
        fs::write(&node.config, yaml).unwrap();
        node.command().go().fails(1, "LG-JOIN-002");
        assert!(!node.data_dir.join("host/identity.json").exists(), "nothing is left half-done");
    }
    cluster.event("instance.join", "LJ002W", &[]);
}

#[test]
fn a_token_that_was_removed_or_has_expired_joins_nobody() {
    let cluster = shared();
    let node = cluster.new_node("join-removed", Way::Tunnel, &[], harness::binary::current());
    let made =
        cluster.tctl(["tokens", "add", "--type=node", "--ttl=1h", "--value=my-own-token-of-some-length", "--format=json"]).go().json();
    assert_eq!(made["token"], "my-own-token-of-some-length");
    let listed = cluster.tctl(["tokens", "ls", "--format=json"]).go();
    assert!(!listed.ok().contains("my-own-token-of-some-length"), "a token is shown once");
    let name = listed
        .json()
        .as_array()
        .unwrap()
        .iter()
        .find(|token| {
            token["spec"]["hint"].as_str().is_some_and(|hint| !hint.is_empty() && "my-own-token-of-some-length".starts_with(hint))
        })
        .unwrap()["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    cluster.tctl(["tokens", "rm", &name]).go().ok();
    node.set_args(["--token=my-own-token-of-some-length"]);
    node.command().go().fails(1, "LG-JOIN-001");
}

#[test]
fn a_host_that_stops_leaves_the_list_or_is_named_offline() {
    let cluster = Cluster::start();
    let alice = cluster.person("alice", &["access"], &[me()]);
    let node = cluster.join("leaver", Way::Tunnel, &[]);
    until_ok(SOON, || alice.ssh(&format!("{}@leaver", me()), "true"));
    node.signal(Signal::SIGTERM);
    assert_eq!(node.wait(SOON), 0, "a stop that was asked for is no failure");
    let ran = alice.ssh(&format!("{}@leaver", me()), "true").go();
    assert!(["LG-CONNECT-001", "LG-CONNECT-003"].contains(&ran.refused().code().unwrap_or_default()), "{ran}");
}
