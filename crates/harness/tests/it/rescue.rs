//! Hosts that the cluster refuses for their version, with real programs: quarantined, listed, told what to install, given it from a
//! Proxy's mirror, and back when they run it. The protocol's own refusals are tested in `proxy`.

use crate::talk::{SOON, Tls, block_on, name_of, tls};
use client::{host::HostCredentials, identity_file};
use harness::{
    Cluster, Run, Setup,
    binary::{ONE_AHEAD, THREE_AHEAD, TWO_AHEAD, claiming as built, current},
    cluster::{Member, Way},
    eventually,
    person::me,
};
use net::{
    frame::{read_frame, write_frame},
    tls::TlsIdentity,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::{fs, path::Path, sync::Arc, time::Duration};
use types::{Public, SystemRole};
use wire::rescue::{Status, ToHost, ToProxy, decode, encode, system};

/// A host whose row still says that another release serves there is shown as refused once that has missed a heartbeat.
const LONG: Duration = Duration::from_secs(150);

fn archive(version: &str) -> String {
    let (os, arch) = system();
    format!("lockgate-{version}-{os}-{arch}.tar.gz")
}

fn content(version: &str) -> Vec<u8> {
    format!("release {version}\n").repeat(100_000).into_bytes()
}

/// A mirror as `make release` leaves it.
fn mirror(at: &Path, versions: &[&str]) {
    for version in versions {
        let folder = at.join(version);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(archive(version)), content(version)).unwrap();
        let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(content(version)));
        fs::write(folder.join("SHA256SUMS"), format!("{digest}  {}\n", archive(version))).unwrap();
    }
}

fn give_mirror(cluster: &Cluster, dir: &Path) {
    let proxy = cluster.proxy();
    let yaml = fs::read_to_string(&proxy.config).unwrap();
    let with = yaml.replace("proxy_service:\n", &format!("proxy_service:\n  mirror_dir: {}\n", dir.display()));
    assert_ne!(with, yaml);
    fs::write(&proxy.config, with).unwrap();
    proxy.restart();
}

fn stop(node: &Member) {
    node.signal(Signal::SIGTERM);
    assert_eq!(node.wait(LONG), 0);
}

/// A host that joined with one program and runs another since.
fn swapped(cluster: &Cluster, name: &str, way: Way, joined: &Path, now: &Path) -> Arc<Member> {
    let node = cluster.watch(cluster.new_node(name, way, &[], joined));
    node.start();
    node.wait_ready();
    let known = node.data_dir.join("host/proxies.json");
    eventually(LONG, "it was told of the Proxies", || known.exists().then_some(()));
    stop(&node);
    node.set_program(now);
    node.start();
    node
}

/// What `/readyz` says of the SSH Service, once it speaks of a quarantine with these words in it.
fn says(node: &Member, words: &[&str]) -> String {
    eventually(LONG, &format!("{} is quarantined: {words:?}; {:?}", node.name, node.readyz()), || {
        let (status, body) = node.readyz()?;
        let told = body["components"]["ssh"].as_str()?.to_owned();
        (status == 503 && told.starts_with("degraded: quarantined: ") && words.iter().all(|word| told.contains(word))).then_some(told)
    })
}

fn row(cluster: &Cluster, name: &str, state: &str) -> Value {
    eventually(LONG, &format!("{name} is listed as {state}"), || {
        let shown = cluster.tctl(["inventory", "ls", "--format=json"]).go().json();
        let rows = shown["members"].as_array()?.clone();
        rows.into_iter().find(|row| row["hostname"] == name && row["state"] == state)
    })
}

fn identity(node: &Member) -> TlsIdentity {
    HostCredentials::load(&node.data_dir.join("host/identity.json")).unwrap().tls
}

#[test]
fn hosts_that_are_too_old_are_quarantined_listed_given_their_next_major_and_come_back() {
    let (newest, next) = (built(THREE_AHEAD), built(TWO_AHEAD));
    let setup =
        Setup { split: true, with_node: false, allow_prerelease: true, auth: newest.clone(), proxy: newest.clone(), ..Setup::default() };
    let cluster = Cluster::with(setup);
    let releases = tempfile::tempdir().unwrap();
    mirror(releases.path(), &[ONE_AHEAD, TWO_AHEAD]);
    give_mirror(&cluster, releases.path());
    let two_behind = swapped(&cluster, "two-behind", Way::Tunnel, &next, &built(ONE_AHEAD));
    let three_behind = swapped(&cluster, "three-behind", Way::Tunnel, &next, current());
    // This one was given no Proxy, and knows them from when it was well.
    let direct = swapped(&cluster, "direct-behind", Way::Direct, &next, &built(ONE_AHEAD));
    says(&two_behind, &[ONE_AHEAD, &format!("install {TWO_AHEAD}"), "lockgate rescue --data-dir"]);
    says(&three_behind, &[&format!("install {ONE_AHEAD}, then"), &archive(ONE_AHEAD)]);
    says(&direct, &[&format!("install {TWO_AHEAD}"), "lockgate rescue --data-dir"]);
    let asked = Run::new(current()).args(["rescue", "--config"]).arg(&direct.config).arg("--data-dir").arg(&direct.data_dir).go().ok();
    assert!(asked.contains("compare the digest"), "{asked}");
    let line = eventually(LONG, "its log says it once", || {
        let log = three_behind.log();
        log.lines().find(|line| line.contains("WARN") && line.contains("quarantined: ")).map(str::to_owned)
    });
    assert!(line.contains(ONE_AHEAD) && line.contains("sha256") && line.contains("serves nobody new"), "{line}");

    for (name, want) in [("two-behind", TWO_AHEAD), ("three-behind", ONE_AHEAD), ("direct-behind", TWO_AHEAD)] {
        let listed = eventually(LONG, "the release of the mirror is listed", || {
            Some(row(&cluster, name, "quarantined")).filter(|row| row["quarantine"]["next"] == want)
        });
        assert!(listed["quarantine"]["since"].is_string() && listed["quarantine"]["why"].as_str().unwrap().contains("too old"), "{listed}");
    }
    let shown = cluster.tctl(["inventory", "status", "--format=json"]).go().json();
    assert_eq!((&shown["quarantined"], &shown["states"]["quarantined"]), (&3.into(), &3.into()), "{shown}");
    let text = cluster.tctl(["inventory", "ls"]).go().ok();
    assert!(text.contains(&format!("install {ONE_AHEAD} (since ")) && text.contains("3 hosts quarantined"), "{text}");

    // The command that its log names, by the old program: a damaged file is refused, the genuine one arrives.
    let into = tempfile::tempdir().unwrap();
    let fetch = || Run::new(current()).args(["rescue", "--config"]).arg(&three_behind.config).arg("--output").arg(into.path());
    let held = releases.path().join(ONE_AHEAD).join(archive(ONE_AHEAD));
    cluster.allow("is not what SHA256SUMS says");
    let mut damaged = content(ONE_AHEAD);
    damaged[77] ^= 1;
    fs::write(&held, damaged).unwrap();
    fetch().go().fails(1, "LG-RESCUE-001");
    assert!(!into.path().join(archive(ONE_AHEAD)).exists());
    fs::write(&held, content(ONE_AHEAD)).unwrap();
    let told = fetch().go().ok();
    assert!(told.contains("it is what that Proxy said") && told.contains("releases.toml"), "{told}");
    assert!(fs::read(into.path().join(archive(ONE_AHEAD))).unwrap() == content(ONE_AHEAD));
    nothing_for_strangers(&cluster, &three_behind);

    // Installed, it is back by itself, and nothing is left of the quarantine.
    for node in [&two_behind, &three_behind, &direct] {
        stop(node);
        node.set_program(&next);
        node.start();
        node.wait_ready();
        let back = row(&cluster, &node.name, "active");
        assert_eq!((back["version"].as_str(), back.get("quarantine")), (Some(TWO_AHEAD), None), "{back}");
    }
}

/// At the rescue door: nobody and a user; and in the end the host itself, once it is locked.
fn nothing_for_strangers(cluster: &Cluster, node: &Member) {
    let alice = cluster.person("rescue-alice", &["access"], &[me()]);
    let file = cluster.home.join("rescue.pem");
    alice.login().arg("--out").arg(&file).go().ok();
    let user = identity_file::load(&file).unwrap().tls;
    let (proxy, host) = (identity(cluster.proxy()), identity(node));
    let name = name_of(SystemRole::Proxy, cluster);
    let ask = async |identity: Option<&TlsIdentity>| -> Option<ToHost> {
        let mut stream: Tls = tls(cluster.web_port, b"lockgate-rescue", &name, identity).await.ok()?;
        write_frame(&mut stream, &encode(&ToProxy::Status(Status::default()), b"").unwrap(), SOON).await.ok()?;
        decode(&read_frame(&mut stream, SOON).await.ok()?).ok().map(|(head, _)| head)
    };
    let ask = |identity: Option<&TlsIdentity>| block_on(ask(identity));
    // Every member may fetch what its updater needs.
    for member in [&host, &proxy] {
        assert!(matches!(ask(Some(member)), Some(ToHost::Advice(_))));
    }
    for (who, identity) in [("nobody", None), ("a user", Some(&user))] {
        assert!(ask(identity).is_none(), "{who}");
    }
    let id = row(cluster, &node.name, "quarantined")["host_id"].as_str().unwrap().to_owned();
    let lock = format!("kind: lock\nversion: v1\nmetadata: {{name: stolen}}\nspec: {{target: {{node: {id}}}}}\n");
    cluster.tctl(["create"]).input(lock).go().ok();
    let locked = |answer: Option<ToHost>| match answer {
        Some(ToHost::Refused { error: Public { code, .. }, .. }) => Some(code),
        _ => None,
    };
    eventually(LONG, "the lock is known at the Proxy", || locked(ask(Some(&host))).filter(|code| code == "LG-ACCESS-003"));
    cluster.tctl(["rm", "lock/stolen"]).go().ok();
    eventually(LONG, "the lock is gone", || matches!(ask(Some(&host)), Some(ToHost::Advice(_))).then_some(()));
}

#[test]
fn a_host_two_majors_ahead_is_quarantined_and_sent_back_to_what_the_cluster_runs() {
    let program = built(ONE_AHEAD);
    let setup =
        Setup { split: true, with_node: false, auth: program.clone(), proxy: program.clone(), node: program.clone(), ..Setup::default() };
    let cluster = Cluster::with(setup);
    let ahead = swapped(&cluster, "ahead", Way::Tunnel, &program, &built(THREE_AHEAD));
    says(&ahead, &[THREE_AHEAD, &format!("install {ONE_AHEAD}, or wait until the cluster is upgraded"), "holds no file of it"]);
    let listed = row(&cluster, "ahead", "quarantined");
    assert_eq!((listed["version"].as_str(), listed["quarantine"]["next"].as_str()), (Some(THREE_AHEAD), Some(ONE_AHEAD)), "{listed}");
    let told = Run::new(built(THREE_AHEAD)).args(["rescue", "--config"]).arg(&ahead.config).args(["--format=json"]).go().json();
    assert_eq!((&told["advice"]["action"], &told["advice"]["version"]), (&"install".into(), &ONE_AHEAD.into()), "{told}");
    stop(&ahead);
    ahead.set_program(&program);
    ahead.start();
    ahead.wait_ready();
    row(&cluster, "ahead", "active");
}
