//! `tctl` as an administrator uses it, and what it answers to mistakes.

use harness::{Cluster, cluster::shared, person::me};
use serde_json::Value;
use std::fs;

const ROLE: &str = "kind: role
version: v1
metadata:
  name: admin-dev
  labels: {team: a}
spec:
  allow:
    logins: [app]
    node_labels: {env: [prod, staging]}
";

#[test]
fn documents_are_created_read_changed_and_removed() {
    let cluster = shared();
    let create = |yaml: &str, words: &[&str]| cluster.tctl(["create"]).args(words).input(yaml).go();
    create(ROLE, &[]).ok();
    create(ROLE, &[]).fails(1, "LG-RESOURCE-002");
    let yaml = cluster.tctl(["get", "roles/admin-dev", "--format=yaml"]).go().ok();
    assert!(yaml.contains("staging") && yaml.contains("revision"), "{yaml}");
    // Two read the same document; the second to write is told.
    create(&yaml.replace("staging", "test"), &["-f"]).ok();
    create(&yaml.replace("staging", "other"), &["-f"]).fails(1, "LG-RESOURCE-003");
    let now = cluster.tctl(["get", "role/admin-dev", "--format=json"]).go().json();
    assert_eq!(now[0]["spec"]["allow"]["node_labels"]["env"], serde_json::json!(["prod", "test"]), "{now}");
    cluster.tctl(["rm", "role/admin-dev"]).go().ok();
    cluster.tctl(["get", "role/admin-dev"]).go().fails(1, "LG-RESOURCE-001");
    cluster.tctl(["rm", "role/admin-dev"]).go().fails(1, "LG-RESOURCE-001");
}

#[test]
fn fields_that_this_release_does_not_know_survive() {
    let cluster = shared();
    let future = "kind: role
version: v1
metadata: {name: admin-future, colour: blue}
spec:
  options: {teleportation: {range: [1, 2, {deep: null}]}}
  allow: {logins: [app], moons: 2}
";
    cluster.create(future);
    let yaml = cluster.tctl(["get", "role/admin-future"]).go().ok();
    cluster.tctl(["create", "-f"]).input(yaml.replace("app", "apq")).go().ok();
    let now = cluster.tctl(["get", "role/admin-future", "--format=json"]).go().json();
    assert_eq!(now[0]["spec"]["options"]["teleportation"]["range"], serde_json::json!([1, 2, {"deep": null}]), "{now}");
    assert_eq!((&now[0]["spec"]["allow"]["moons"], &now[0]["metadata"]["colour"]), (&serde_json::json!(2), &serde_json::json!("blue")));
    assert_eq!(now[0]["spec"]["allow"]["logins"][0], "apq");
}

#[test]
fn an_editor_changes_a_document_and_a_failing_one_changes_nothing() {
    let cluster = shared();
    cluster.create(&ROLE.replace("admin-dev", "admin-edit"));
    let edit = |editor: &str| cluster.tctl(["edit", "role/admin-edit"]).env("EDITOR", editor).go();
    edit("sed -i s/staging/lab/").ok();
    assert!(cluster.tctl(["get", "role/admin-edit"]).go().ok().contains("lab"));
    edit("false").refused();
    edit("sed -i s/spec:/spec:[/").refused();
    assert!(edit("true").ok().contains("Nothing"));
    assert!(cluster.tctl(["get", "role/admin-edit"]).go().ok().contains("lab"));
}

#[test]
fn everything_that_prints_a_table_prints_json_and_yaml() {
    let cluster = shared();
    let alice = cluster.person("admin-formats", &["access", "auditor"], &[me()]);
    let check = |run: &dyn Fn() -> harness::Run, heading: &str| {
        let text = run().arg("--format=text").go().ok();
        assert!(text.contains(heading), "no {heading} in {text}");
        let json = run().arg("--format=json").go().json();
        let yaml = run().arg("--format=yaml").go().ok();
        let read: Vec<Value> = serde_saphyr::from_multiple(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
        assert!(!read.is_empty() && !json.is_null());
    };
    for (words, heading) in [
        (&["status"][..], "sha256:"),
        (&["users", "ls"], "Roles"),
        (&["tokens", "ls"], "oken"),
        (&["nodes", "ls"], "Public Address"),
        (&["get", "roles"], "access"),
        (&["audit", "ls"], "Code"),
        (&["inventory", "ls"], "Version"),
        (&["version"], env!("CARGO_PKG_VERSION")),
    ] {
        check(&|| cluster.tctl(words), heading);
    }
    for (words, heading) in [
        (&["status"][..], "admin-formats"),
        (&["ls"], "Node Name"),
        (&["clusters"], "Cluster Name"),
        (&["version"], env!("CARGO_PKG_VERSION")),
    ] {
        check(&|| alice.tsh(words), heading);
    }
}

#[test]
fn users_are_added_listed_changed_and_removed() {
    let cluster = shared();
    let bob = cluster.person("admin-bob", &["access"], &[me()]);
    assert!(cluster.tctl(["users", "ls"]).go().ok().contains("admin-bob"));
    cluster.tctl(["users", "add", "admin-bob", "--roles=access"]).go().fails(1, "LG-RESOURCE-002");
    cluster.tctl(["users", "add", "admin-carol", "--roles=no-such-role"]).go().fails(1, "LG-RESOURCE-001");
    cluster.tctl(["users", "update", "admin-bob", "--set-roles=access,auditor"]).go().ok();
    let seen = cluster.tctl(["get", "user/admin-bob", "--format=json"]).go();
    assert!(seen.ok().contains("auditor"));
    assert!(!seen.text().to_lowercase().contains("argon"), "no hash leaves the Auth Service");
    let reset = cluster.tctl(["users", "reset", "admin-bob", "--format=json"]).go().json();
    assert!(reset["invite"].as_str().unwrap().contains("/web/invite/"), "{reset}");
    bob.login().go().ok();
    cluster.tctl(["users", "rm", "admin-bob"]).go().ok();
    bob.login().go().fails(1, "LG-LOGIN-001");
}

#[test]
fn certificates_are_signed_and_authorities_exported() {
    let cluster = shared();
    cluster.person("admin-sign", &["access"], &[me()]);
    let stem = cluster.home.join("signed");
    let file = cluster.home.join("signed.pem");
    cluster.tctl(["auth", "sign", "--user=admin-sign", "--ttl=10m", "--out"]).arg(&file).go().ok();
    let listed = harness::Run::new(harness::binary::current())
        .args(["tsh", "--proxy", &cluster.proxy_addr(), "-i"])
        .arg(&file)
        .arg("ls")
        .env("LOCKGATE_HOME", "/nonexistent")
        .go();
    assert!(listed.ok().contains("node1"));
    cluster.tctl(["auth", "sign", "--format=openssh", "--host=git.example.com", "--out"]).arg(&stem).go().ok();
    let shown = harness::Run::new("ssh-keygen").args(["-L", "-f"]).arg(format!("{}-cert.pub", stem.display())).go().ok();
    assert!(shown.contains("git.example.com") && shown.contains("host certificate"), "{shown}");
    for (kind, word) in
        [("user", "ssh-ed25519 "), ("host", "@cert-authority"), ("tls-user", "BEGIN CERTIFICATE"), ("tls-host", "BEGIN CERTIFICATE")]
    {
        let out = cluster.tctl(["auth", "export", &format!("--type={kind}")]).go().ok();
        assert!(out.contains(word) && !out.contains("PRIVATE"), "{kind}: {out}");
    }
}

#[test]
fn mistakes_are_named_with_their_place() {
    let cluster = shared();
    let create = |yaml: &str| cluster.tctl(["create"]).input(yaml).go();
    let broken = create("kind: role\nversion: v1\nmetadata:\n  name: [not, a, name]\nspec: {}\n");
    broken.refused();
    assert!(broken.err.contains(":4:"), "line and column: {broken}");
    create("kind: role\nversion: v1\nmetadata: {name: a}\nspec: {allow: {logins: 5}}\n").fails(1, "LG-RESOURCE-004");
    create("kind: role\nversion: v1\nmetadata: {name: a}\nspec: {options: {max_session_ttl: soon}}\n")
        .fails(1, "spec.options.max_session_ttl: ");
    create("kind: role\nversion: v1\nmetadata: {name: a}\nspec: {allow: {logins: ['*']}}\n").refused();
    create("kind: planet\nversion: v1\nmetadata: {name: mars}\nspec: {}\n").refused();
    create("").fails(2, "LG-USAGE-001");
    let file = cluster.home.join("broken.yaml");
    fs::write(&file, "kind: role\n  version: v1\n").unwrap();
    let named = cluster.tctl(["create"]).arg(&file).go();
    named.refused();
    assert!(named.err.contains("broken.yaml:2:"), "{named}");
}

#[test]
fn wrong_usage_ends_with_status_2_and_every_error_has_a_cause() {
    let cluster = shared();
    for words in [
        &["no-such-command"][..],
        &["users", "add"],
        &["tokens", "add", "--type=node", "--ttl=soon"],
        &["rm", "role"],
        &["get", "roles", "--format=toml"],
    ] {
        let ran = cluster.tctl(words).go();
        assert_eq!(ran.status, 2, "{ran}");
    }
    let tsh = |words: &[&str]| {
        harness::Run::new(harness::binary::current()).arg("tsh").args(words).env("LOCKGATE_HOME", cluster.home.join("nobody")).go()
    };
    assert_eq!(tsh(&["ssh"]).status, 2);
    tsh(&["ls"]).fails(1, "LG-LOGIN-004");
    let nowhere = tsh(&["login", "--proxy=127.0.0.1:1", "--user=a"]);
    nowhere.fails(1, "LG-CONNECT-004");
    let lines: Vec<&str> = nowhere.err.lines().collect();
    assert!(lines[0].starts_with("error: could not ") && lines[1].starts_with("cause: ") && lines.len() <= 3, "{nowhere}");
}

#[test]
fn an_administrator_works_from_elsewhere_with_what_his_roles_allow() {
    let cluster = Cluster::start();
    let eve = cluster.person("eve", &["editor"], &[]);
    let tctl = |person: &harness::Person, words: &[&str]| {
        harness::Run::new(harness::binary::current()).arg("tctl").args(words).env("LOCKGATE_HOME", &person.home).go()
    };
    tctl(&eve, &["users", "ls"]).ok();
    tctl(&eve, &["audit", "ls"]).fails(1, "LG-ACCESS-001");
    let alice = cluster.person("alice", &["access"], &[me()]);
    let refused = tctl(&alice, &["users", "add", "mallory", "--roles=editor"]);
    refused.fails(1, "LG-ACCESS-001");
    cluster.event("access.denied", "L9003W", &[("user", "alice")]);
}

#[test]
fn a_slip_leaves_nothing_half_done_and_loses_nobodys_work() {
    let cluster = shared();
    // Refused before anything is written.
    cluster.tctl(["users", "add", "slip", "--roles=access", "--ttl=100h"]).go().fails(2, "48 hours");
    cluster.tctl(["get", "user/slip"]).go().fails(1, "LG-RESOURCE-001");
    cluster.tctl(["users", "add", "slip", "--roles=access"]).go().ok();
    cluster.tctl(["users", "add", "slip", "--roles=access"]).go().fails(1, "tctl users reset slip");
    cluster.tctl(["users", "rm", "slip"]).go().ok();
    // A kind that nobody knows is not an empty list.
    cluster.tctl(["get", "rolls"]).go().fails(1, "LG-RESOURCE-001").fails(1, "kinds are");
    cluster.tctl(["get", "locks"]).go().ok();
    // A token is named as `ls` shows it, or by itself.
    let token = cluster.token("node");
    cluster.tctl(["tokens", "rm", "0000000000000000"]).go().fails(1, "LG-RESOURCE-001");
    cluster.tctl(["tokens", "rm", &token]).go().ok();
    let token = cluster.token("node");
    cluster.tctl(["tokens", "rm", &format!("{}…", &token[..6])]).go().ok();
    // What was written in the editor is kept when it cannot be used.
    cluster.role("edited", "{allow: {logins: [app]}}");
    let edited = cluster.tctl(["edit", "role/edited"]).env("EDITOR", "sed -i s/logins:/logins/").go();
    edited.fails(1, "LG-RESOURCE-004").fails(1, "your text is kept");
    let kept = edited.err.split_whitespace().last().unwrap();
    assert!(fs::read_to_string(kept).unwrap().contains("logins"), "{edited}");
    fs::remove_file(kept).unwrap();
    // One process at a time has a data directory; the one that is there goes on.
    cluster.auth().command().go().fails(1, "LG-CONFIG-001").fails(1, &format!("process {}", cluster.auth().pid()));
    cluster.tctl(["status"]).go().ok();
}

#[test]
fn windows_and_migrations_are_shown_and_an_illegal_step_ends_with_status_4_and_the_step_that_comes_first() {
    let cluster = shared();
    let seen = cluster.tctl(["windows", "ls", "--format=json"]).go().json();
    let window = |role: &str| seen["windows"].as_array().unwrap().iter().find(|window| window["role"] == role).unwrap().clone();
    let (major, above) = (window("auth")["hi"].as_u64().unwrap(), window("auth")["hi"].as_u64().unwrap() + 1);
    assert_eq!((&window("auth")["lo"], &window("auth")["members"][0]["major"]), (&major.into(), &major.into()), "{seen}");
    assert_eq!((&seen["auth_services"][0]["acknowledged"], &window("agent")["outside"]), (&seen["generation"], &serde_json::json!([])));
    let text = cluster.tctl(["windows", "ls"]).go().ok();
    assert!(text.contains("admits by these") && text.contains("draining"), "{text}");
    let above = above.to_string();
    // A cluster at rest has a place for members one behind; that ends before an upgrade begins.
    cluster.tctl(["windows", "widen", "auth", &above]).go().fails(4, "tctl windows narrow proxy");
    cluster.tctl(["windows", "narrow", "agent", &above]).go().fails(4, "tctl windows widen agent");
    cluster.tctl(["windows", "widen", "gateway", &above]).go().fails(4, "LG-UPGRADE-002");
    cluster.tctl(["windows", "evict", "nobody-here"]).go().fails(1, "LG-RESOURCE-001");
    let host = window("agent")["members"].as_array().unwrap().is_empty();
    assert!(!host, "there is a host: {seen}");
    assert!(cluster.tctl(["migrations", "ls"]).go().ok().contains("no migrations"));
    assert_eq!(cluster.tctl(["migrations", "ls", "--format=json"]).go().json(), serde_json::json!([]));
    for words in [["migrations", "undo", "9-x"], ["migrations", "retry", "9-x"], ["migrations", "bad", "9-x"]] {
        cluster.tctl(words).go().fails(1, "LG-RESOURCE-001");
    }
}
