//! Updates of a host with real programs: directed by the cluster, vouched for by a vendor, fetched from a Proxy's mirror, tested,
//! switched, confirmed; and taken back or refused where something is wrong. What is refused is listed in `release`'s own tests.

use harness::{
    Cluster, Run, Setup,
    binary::{ONE_AHEAD, claiming as built, current},
    cluster::{Member, Way},
    eventually,
};
use release::testing::Vendor;
use serde_json::Value;
use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

/// A heartbeat and some.
const LONG: Duration = Duration::from_secs(150);

fn now() -> types::Time {
    SystemTime::now().into()
}

/// A host whose service is restarted by a command of its updater, as systemd would.
struct Host {
    node: Arc<Member>,
    dir: PathBuf,
    root: PathBuf,
    restart: PathBuf,
}

/// The service manager: a command that asks through a pipe and waits for the answer in another.
fn service_manager(at: &Path, node: &Arc<Member>) -> PathBuf {
    let (ask, answer, command) = (at.join("ask"), at.join("answer"), at.join("restart"));
    for pipe in [&ask, &answer] {
        nix::unistd::mkfifo(pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    fs::write(&command, format!("#!/bin/sh\necho restart > {}\nread done < {}\n", ask.display(), answer.display())).unwrap();
    fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).unwrap();
    let node = node.clone();
    thread::spawn(move || {
        // Ends with the test: nobody asks any more, or the pipes are gone.
        while fs::read_to_string(&ask).is_ok_and(|asked| !asked.is_empty()) {
            node.restart();
            if fs::File::options().write(true).open(&answer).and_then(|mut pipe| pipe.write_all(b"done\n")).is_err() {
                return;
            }
        }
    });
    command
}

impl Host {
    fn update(&self, word: &str) -> Run {
        let program = self.dir.join("current/bin/lockgate");
        let run = Run::new(program).args(["update", word, "--config"]).arg(&self.node.config).arg("--dir").arg(&self.dir);
        run.deadline(Duration::from_secs(300))
    }

    /// One round; status and what it printed.
    fn round(&self) -> (i32, Value) {
        let ran = self.update("agent").arg("--root").arg(&self.root).arg("--restart").arg(&self.restart).arg("--format=json").go();
        (ran.status, serde_json::from_slice(&ran.out).unwrap_or_else(|_| panic!("{}", ran.err)))
    }
}

fn row(cluster: &Cluster, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
    eventually(LONG, &format!("{name} stands in `tctl update status` as it should"), || {
        let shown = cluster.tctl(["update", "status", "--format=json"]).go().json();
        shown["hosts"].as_array()?.iter().find(|row| row["host"] == name && fits(row)).cloned()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_brought_to_the_next_major_and_what_does_not_work_or_is_not_genuine_changes_nothing() {
    let ahead = built(ONE_AHEAD);
    let setup = Setup { split: true, with_node: false, auth: ahead.clone(), proxy: ahead.clone(), ..Setup::default() };
    let cluster = Cluster::with(setup);
    let (releases, keys, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let vendor = Vendor::new(releases.path().to_owned(), keys.path(), now()).await;
    vendor.release(ONE_AHEAD, &fs::read(&ahead).unwrap());
    vendor.release("2.9.0", b"#!/bin/sh\necho this is no release >&2\nexit 7\n");
    vendor.sign(now()).await;
    give_mirror(&cluster, releases.path());

    // It joined with this release, and runs what the link names.
    let dir = own.path().join("opt");
    let node = cluster.watch(cluster.new_node("web-1", Way::Tunnel, &[], current()));
    Run::new(current()).args(["update", "enable", "--config"]).arg(&node.config).arg("--dir").arg(&dir).go().ok();
    node.set_program(&dir.join("current/bin/lockgate"));
    node.start();
    node.wait_ready();
    let host = Host { restart: service_manager(own.path(), &node), root: vendor.root(), dir, node };
    let (before, pid) = (fs::read_link(host.dir.join("current")).unwrap(), host.node.pid());

    // Nothing is directed: nothing changes.
    let (status, told) = host.round();
    assert_eq!((status, &told["outcome"]), (0, &"rest".into()), "{told}");
    assert_eq!((fs::read_link(host.dir.join("current")).unwrap(), host.node.pid()), (before.clone(), pid));

    // A release that does not start is never switched to.
    let target = |version: &str| cluster.tctl(["update", "target", version, "--hosts=web-1", "--mirror"]).arg(releases.path()).go().ok();
    target("2.9.0");
    let (status, told) =
        eventually(LONG, "the Proxy hands out the directive", || Some(host.round()).filter(|(_, told)| told["outcome"] != "rest"));
    assert_eq!((status, &told["outcome"], &told["version"]), (5, &"reverted".into(), &"2.9.0".into()), "{told}");
    assert!(told["why"].as_str().unwrap().contains("this is no release"), "{told}");
    assert_eq!((fs::read_link(host.dir.join("current")).unwrap(), host.node.pid()), (before.clone(), pid));
    assert!(host.update("status").go().ok().contains("Does not work here: 2.9.0"));

    // A byte of the archive was changed on the Proxy: refused there, and nothing changed here.
    cluster.allow("is not what SHA256SUMS says");
    let (os, arch) = release::testing::system();
    let archive = releases.path().join(ONE_AHEAD).join(format!("lockgate-{ONE_AHEAD}-{os}-{arch}.tar.gz"));
    let genuine = fs::read(&archive).unwrap();
    let mut tampered = genuine.clone();
    tampered[1000] ^= 1;
    fs::write(&archive, tampered).unwrap();
    target(ONE_AHEAD);
    let (status, told) = eventually(LONG, "the next directive is handed out", || Some(host.round()).filter(|(status, _)| *status != 5));
    assert_eq!((status, &told["outcome"]), (4, &"refused".into()), "{told}");
    assert_eq!(fs::read_link(host.dir.join("current")).unwrap(), before);
    row(&cluster, "web-1", |row| row["state"] == "refused");
    cluster.event("update.refused", "LU022W", &[("server_hostname", "web-1")]);

    // Genuine, it is fetched, tested, switched and seen.
    fs::write(&archive, genuine).unwrap();
    let (status, told) = eventually(LONG, "the mirror is good again", || Some(host.round()).filter(|(status, _)| *status == 0));
    assert_eq!((status, &told["outcome"], &told["version"]), (0, &"done".into(), &ONE_AHEAD.into()), "{told}");
    assert_ne!(host.node.pid(), pid);
    row(&cluster, "web-1", |row| row["version"] == ONE_AHEAD && row["state"] == "done");
    // It is told with the next heartbeat, within a minute or so.
    eventually(LONG, "the move is in the audit log", || {
        cluster.tctl(["audit", "ls", "--format=json"]).go().ok().contains("LU021I").then_some(())
    });
    cluster.event("update.host", "LU021I", &[("version", ONE_AHEAD)]);
    let listed = Run::new(host.dir.join("current/bin/lockgate")).arg("version").go().ok();
    assert!(listed.contains(ONE_AHEAD), "{listed}");

    // Pinned, it stays whatever is said.
    host.update("pin").go().ok();
    target("2.9.0");
    assert_eq!(host.round().1["why"], "this host is pinned to what it runs");
}

fn give_mirror(cluster: &Cluster, dir: &Path) {
    let proxy = cluster.proxy();
    let yaml = fs::read_to_string(&proxy.config).unwrap();
    fs::write(&proxy.config, yaml.replace("proxy_service:\n", &format!("proxy_service:\n  mirror_dir: {}\n", dir.display()))).unwrap();
    proxy.restart();
}
