//! An upgrade in one command, with real programs of two majors: every process has an updater, the vendor signs, people use the cluster.

use crate::restart::load::Load;
use harness::{
    Cluster, Setup,
    binary::{ONE_AHEAD, claiming as built, current},
    cluster::{Member, until_ok},
    eventually,
    person::me,
    run::Run,
};
use release::testing::Vendor;
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

/// A heartbeat and some.
const HEARD: Duration = Duration::from_secs(200);
/// For everybody to be moved.
const MOVED: Duration = Duration::from_secs(600);
/// What people may wait for on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// A policy for a cluster that is upgraded in minutes.
const POLICY: &str = "kind: upgrade_policy\nversion: v1\nmetadata: {name: upgrade-policy}\nspec:\n  bake_canary: 1s\n  bake: 1s\n  soak: 1s\n  deadline: 5m\n  retry_after: 5s\n";

/// Releases signed by a vendor, where the cluster and its hosts find them.
pub(crate) struct Channel {
    pub(crate) vendor: Vendor,
    _keys: tempfile::TempDir,
    dir: tempfile::TempDir,
}

impl Channel {
    /// With the program of this checkout and the one of the next major.
    pub(crate) async fn new() -> Self {
        let (dir, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let now = SystemTime::now().into();
        let vendor = Vendor::new(dir.path().to_owned(), keys.path(), now).await;
        vendor.release(env!("CARGO_PKG_VERSION"), &slim(current()));
        vendor.release(ONE_AHEAD, &slim(&built(ONE_AHEAD)));
        vendor.sign(now).await;
        Self { vendor, _keys: keys, dir }
    }

    fn mirror(&self) -> &Path {
        self.dir.path()
    }
}

/// A program without what debuggers want: a quarter of the bytes to pack, hash and copy.
pub(crate) fn slim(program: &Path) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("lockgate");
    Run::new("strip").arg("-o").arg(&out).arg(program).go().ok();
    fs::read(out).unwrap()
}

/// A host whose updater makes one round after the other, as a timer would.
pub(crate) struct Updated {
    stop: Option<mpsc::SyncSender<()>>,
    rounds: Option<JoinHandle<()>>,
}

impl Updated {
    /// Puts the running program among the releases, restarts the member from there, and lets the updater go.
    pub(crate) fn host(cluster: &Cluster, channel: &Channel, member: &Member, home: &Path) -> Self {
        let dir = home.join(&member.name).join("opt");
        Run::new(current()).args(["update", "enable", "--config"]).arg(&member.config).arg("--dir").arg(&dir).go().ok();
        let program = dir.join("current/bin/lockgate");
        member.set_program(&program);
        let restart = home.join(&member.name).join("restart");
        // What `systemctl reload` does: it is done when the next process leads.
        let lock = member.data_dir.join("lock");
        let lock = lock.display();
        let script = format!(
            "#!/bin/sh\nold=$(cat {lock}); kill -HUP \"$old\" || exit 1\nn=0; while [ \"$(cat {lock})\" = \"$old\" ]; do n=$((n+1)); [ $n -gt 600 ] && exit 1; sleep 0.1; done\n"
        );
        fs::write(&restart, script).unwrap();
        fs::set_permissions(&restart, fs::Permissions::from_mode(0o755)).unwrap();
        let (seen, config, root, proxy) = (dir, member.config.clone(), channel.vendor.root(), cluster.proxy_addr());
        // One word at most: that it ends.
        let (stop, stopped) = mpsc::sync_channel(1);
        let rounds = thread::spawn(move || {
            let mut told = String::new();
            loop {
                let run = Run::new(&program).args(["update", "agent", "--format=json", "--confirm-within=2m", "--config"]).arg(&config);
                let run = run.arg("--dir").arg(&seen).arg("--root").arg(&root).arg("--restart").arg(&restart);
                let ran = run.arg("--proxy-server").arg(&proxy).deadline(Duration::from_secs(400)).go();
                // What its outcome was, when it is another than before: for whoever reads why a test failed.
                let said = format!(
                    "{}: {} {}",
                    config.display(),
                    ran.status,
                    String::from_utf8_lossy(&ran.out).split_whitespace().collect::<Vec<_>>().join(" ")
                );
                if said != told {
                    eprintln!("{said} {}", ran.err);
                    told = said;
                }
                // The timer of a host; it stops with the test.
                if stopped.recv_timeout(Duration::from_secs(1)) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Self { stop: Some(stop), rounds: Some(rounds) }
    }
}

impl Drop for Updated {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(rounds) = self.rounds.take() {
            let _ended = rounds.join();
        }
    }
}

/// Lets Auth and Proxy know the channel.
pub(crate) fn give_channel(cluster: &Cluster, channel: &Channel) {
    let (mirror, root) = (channel.mirror().display(), channel.vendor.root());
    let known = format!("auth_service:\n  releases: {{mirror_dir: {mirror}, root_file: {}}}\n", root.display());
    for (member, section, with) in [
        (cluster.auth(), "auth_service:\n", known),
        (cluster.proxy(), "proxy_service:\n", format!("proxy_service:\n  mirror_dir: {mirror}\n")),
    ] {
        let yaml = fs::read_to_string(&member.config).unwrap();
        assert!(yaml.contains(section), "{yaml}");
        fs::write(&member.config, yaml.replacen(section, &with, 1)).unwrap();
    }
}

/// `tctl upgrade …` as JSON, whatever its exit status.
pub(crate) fn asked(cluster: &Cluster, words: &[&str]) -> Option<Value> {
    let ran = cluster.tctl(["upgrade"].iter().chain(words)).arg("--format=json").go();
    serde_json::from_slice(&ran.out).ok()
}

/// Waits until the upgrade is there; what it says then.
#[track_caller]
pub(crate) fn until(cluster: &Cluster, what: &str, there: impl Fn(&Value) -> bool) -> Value {
    let mut told = String::new();
    eventually(MOVED, what, || {
        let status = asked(cluster, &["status"])?;
        let line = format!("{} {} {} {}", status["stage"], status["next"], status["waits"], status["blocked"]);
        if line != told {
            eprintln!("{line}");
            told = line;
        }
        there(&status).then_some(status)
    })
}

fn waits_for(status: &Value, code: &str) -> bool {
    status["waits"].as_array().is_some_and(|waits| waits.iter().any(|wait| wait["code"] == code))
}

/// Asserts that every member is shown at that version, and serves.
#[track_caller]
fn all_run(cluster: &Cluster, version: &str) {
    let members = cluster.tctl(["get", "member", "--format=json"]).go().json();
    for member in members.as_array().unwrap() {
        let spec = &member["spec"];
        assert!(spec["version"] == version && (spec["state"] == "active" || spec["state"].is_null()), "not at {version}: {members:#}");
    }
}

/// A cluster of three processes, each with an updater, that knows the channel.
struct Fleet {
    // Its updaters end before the processes that they restart.
    _hosts: Vec<Updated>,
    cluster: Cluster,
    channel: Channel,
    _home: tempfile::TempDir,
}

impl Fleet {
    async fn start(policy: &str) -> Self {
        let channel = Channel::new().await;
        let cluster = Cluster::with(Setup { split: true, ..Setup::default() });
        let home = tempfile::tempdir().unwrap();
        give_channel(&cluster, &channel);
        let hosts = [cluster.auth(), cluster.proxy(), cluster.node()].into_iter().map(|member| {
            let host = Updated::host(&cluster, &channel, member, home.path());
            member.restart();
            host
        });
        let hosts = hosts.collect();
        cluster.create(policy);
        Self { _hosts: hosts, cluster, channel, _home: home }
    }

    /// The plan, once every updater has been heard of.
    #[track_caller]
    fn plan(&self, to: &str) -> Value {
        eventually(HEARD, "every member has an updater", || {
            let plan = asked(&self.cluster, &["plan", "--to", to])?;
            let by_hand = plan["notes"].as_array()?.iter().any(|note| note["code"] == "N-2");
            (!by_hand && plan["verdict"] == "READY").then_some(plan)
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_does_not_work_is_halted_at_its_first_canary_with_cause_and_name_and_nobody_else_is_touched() {
    const BROKEN: &str = concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".98.0");
    let fleet = Fleet::start(&POLICY.replace("  retry_after: 5s", "  retry_after: 5s\n  retries: 1")).await;
    let (cluster, vendor) = (&fleet.cluster, &fleet.channel.vendor);
    vendor.release(BROKEN, b"#!/bin/sh\necho this is no release >&2\nexit 7\n");
    vendor.sign(SystemTime::now().into()).await;
    let plan = fleet.plan(BROKEN);
    let pids = [cluster.auth(), cluster.proxy(), cluster.node()].map(Member::leader);
    cluster.tctl(["upgrade", "apply", "--to", BROKEN, "--plan", plan["id"].as_str().unwrap()]).go().ok();
    let halted = until(cluster, "it pauses itself", |status| status["verdict"] == "failed-and-paused");
    let block = &halted["blocked"][0];
    assert!(block["code"] == "B-14" && block["cause"].as_str().unwrap().contains("this is no release"), "{halted:#}");
    assert_eq!(block["members"], serde_json::json!(["auth"]));
    assert_eq!(cluster.tctl(["upgrade", "status"]).go().status, 5);
    assert!(cluster.tctl(["upgrade", "explain", "B-14"]).go().ok().contains("auth"));
    all_run(cluster, env!("CARGO_PKG_VERSION"));
    assert_eq!([cluster.auth(), cluster.proxy(), cluster.node()].map(Member::leader), pids, "nobody was restarted");

    cluster.tctl(["upgrade", "rollback", "--yes"]).go().ok();
    until(cluster, "it is taken back", |status| status["stage"] == "done" && status["from"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_goes_to_the_next_major_by_one_command_and_back_while_people_work() {
    let fleet = Fleet::start(POLICY).await;
    let cluster = &fleet.cluster;
    let alice = cluster.person("alice", &["access", "auditor"], &[me()]);
    until_ok(SOON, || alice.ssh(&format!("{}@node1", me()), "true"));

    // Reading the plan changes nothing, and nobody accepts another.
    let plan = fleet.plan(ONE_AHEAD);
    let id = plan["id"].as_str().unwrap();
    assert_eq!(cluster.tctl(["upgrade", "apply", "--to", ONE_AHEAD, "--plan", "00000000-0"]).go().status, 4);
    assert_eq!(asked(cluster, &["status"]).unwrap()["stage"], "done");
    let text = cluster.tctl(["upgrade", "plan", "--to", ONE_AHEAD]).go().ok();
    assert!(text.contains("READY") && text.contains(id), "{text}");

    let load = Load::start(cluster, &alice);
    cluster.tctl(["upgrade", "apply", "--to", ONE_AHEAD, "--plan", id]).go().ok();
    let there = until(cluster, "everything is moved and waits for consent", |status| waits_for(status, "G-17"));
    assert_eq!(there["rollback"]["possible"], true, "{there}");
    all_run(cluster, ONE_AHEAD);
    load.goes_on();

    // And back, with what was written meanwhile.
    cluster.tctl(["users", "add", "written-by-two", "--roles=access"]).go().ok();
    cluster.tctl(["upgrade", "rollback", "--yes"]).go().ok();
    until(cluster, "everybody is back", |status| status["stage"] == "done" && status["from"].is_null());
    all_run(cluster, env!("CARGO_PKG_VERSION"));
    assert!(cluster.tctl(["get", "user/written-by-two"]).go().ok().contains("written-by-two"));
    load.goes_on();
    load.finish(cluster, &alice);
    let history = cluster.tctl(["upgrade", "history"]).go().ok();
    for said in ["began, by plan", "rollback", "is done"] {
        assert!(history.contains(said), "{history}");
    }
}
