//! Walking a user's path through the members of a cluster (`tctl inventory walk`): it leads to its end where users can connect, says in
//! one line what does not work where they cannot, and the walker's identity is to be had by nobody.

use harness::{Cluster, cluster::Member, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

fn walk(cluster: &Cluster, member: &Member) -> (i32, Value) {
    let ran = cluster.tctl(["inventory", "walk", &member.name, "--format=json"]).go();
    let told: Value = serde_json::from_slice(&ran.out).unwrap_or_else(|_| panic!("{ran}"));
    assert!(!told["error"].as_str().unwrap().contains('\n'), "one line: {told}");
    (ran.status, told)
}

#[track_caller]
fn passes(cluster: &Cluster, member: &Member) {
    // A member that has just come is not known to everybody yet.
    eventually(SOON, &format!("a user's path leads through {}; last: {:?}", member.name, walk(cluster, member)), || {
        let (status, told) = walk(cluster, member);
        (status == 0 && told["passed"] == true && told["error"] == "").then_some(())
    });
}

#[track_caller]
fn fails(cluster: &Cluster, member: &Member, begins: &str, says: &str) {
    let (status, told) = walk(cluster, member);
    let error = told["error"].as_str().unwrap();
    assert!(status == 5 && told["passed"] == false && error.starts_with(begins) && error.contains(says), "{status} {told}");
}

#[test]
fn a_walk_passes_where_users_can_connect_and_says_where_they_cannot() {
    let cluster = Cluster::split();
    let (auth, proxy, node) = (cluster.auth(), cluster.proxy(), cluster.node());
    for member in [auth, proxy, node] {
        passes(&cluster, member);
    }
    let table = cluster.tctl(["inventory", "walk", "node1"]).go().ok();
    assert!(table.contains("Walk") && table.contains("passed"), "{table}");
    // It is in the audit log under a name of its own, and in nobody's way in the list of recordings.
    for (name, code) in [("session.start", "L2000I"), ("exec", "L3002I"), ("session.end", "L2004I"), ("cert.create", "LC000I")] {
        assert_eq!(cluster.event(name, code, &[("user", "lockgate-walk")])["walk"], true, "{name}");
    }
    cluster.event("member.walk", "LM002I", &[("hostname", "node1")]);
    let auditor = cluster.person("ann", &["auditor"], &[]);
    let recordings = auditor.tsh(["recordings", "ls", "--format=json"]).go().json();
    assert_eq!(recordings, serde_json::json!([]));

    // A host whose sessions cannot begin.
    cluster.allow("audit events cannot be written to the spool");
    let spool = node.data_dir.join("spool");
    let aside = node.data_dir.join("aside");
    std::fs::rename(&spool, &aside).unwrap();
    fails(&cluster, node, "the host node1: no session through the Proxy proxy1: ", "cannot be recorded");
    fails(&cluster, proxy, "the Proxy proxy1 at ", "no session on node1 through it: ");
    std::fs::rename(&aside, &spool).unwrap();
    passes(&cluster, node);

    // One whose process is up and does nothing, and one that is gone.
    node.signal(Signal::SIGSTOP);
    fails(&cluster, node, "the host node1: no session through the Proxy proxy1: ", "not open within 6 seconds");
    node.signal(Signal::SIGCONT);
    passes(&cluster, node);
    node.kill();
    eventually(SOON, "the host is not connected", || {
        let (status, told) = walk(&cluster, node);
        (status == 5 && told["error"].as_str().unwrap().contains("LG-CONNECT-003")).then_some(())
    });
    passes(&cluster, auth);

    proxy.kill();
    fails(&cluster, proxy, &format!("the Proxy proxy1 at {}: ", cluster.proxy_addr()), "refused");
    fails(&cluster, node, "the host node1: no session through the Proxy proxy1: ", "refused");
    passes(&cluster, auth);
    cluster.event("member.walk", "LM002E", &[("hostname", "proxy1")]);
    cluster.tctl(["inventory", "walk", "nobody"]).go().fails(1, "LG-RESOURCE-001");
}

#[test]
fn the_walkers_identity_is_to_be_had_by_nobody() {
    let cluster = Cluster::start();
    passes(&cluster, cluster.auth());
    let named = ["--roles=access", "--logins=root"];
    cluster.tctl(["users", "add", "lockgate-walk"]).args(named).go().fails(1, "LG-ACCESS-001");
    for kind in ["user", "role"] {
        let yaml = format!("kind: {kind}\nversion: v1\nmetadata: {{name: lockgate-walk}}\nspec: {{}}\n");
        cluster.tctl(["create", "-f"]).input(yaml).go().fails(1, "LG-ACCESS-001");
    }
    let out = cluster.home.join("walker");
    cluster.tctl(["auth", "sign", "--user=lockgate-walk", "--out"]).arg(&out).go().fails(1, "LG-RESOURCE-001");
    assert!(!out.exists());
    cluster.tctl(["users", "add", "mallory", "--roles=access,lockgate-walk"]).go().fails(1, "LG-RESOURCE-001");
    // The login alone is that of an account, which the host does not have.
    let mallory = cluster.person("mallory", &["access"], &["lockgate-walk"]);
    let ran = mallory.ssh("lockgate-walk@node1", "lockgate-walk").input("x\n").go();
    assert!(ran.status == 255 && ran.err.contains("no account \"lockgate-walk\""), "{ran}");
    mallory.tsh(["ls"]).go().ok();
}
