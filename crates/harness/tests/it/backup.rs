//! A cluster that lost its Auth Service's disk comes back out of one file: same pins, same second factors, no new tokens. Moves between
//! drivers: `drivers`; by schedule into a bucket and back out of it: `remote`; files that are refused, and bars: `damage`.

mod damage;
mod drivers;
mod remote;

use crate::login::{otp_code, otp_step};
use harness::{Cluster, Person, Run, Setup, cluster::free_port, eventually, person::me};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(60);

/// Somebody with a second factor, logged in; the file with its secret.
fn with_otp(cluster: &Cluster, name: &str) -> (Person, PathBuf) {
    let person = Person::invite(cluster, name, &["access", "auditor"], &[me()]);
    let kept = person.home.with_extension("otp");
    let accept = person
        .tsh(["login"])
        .args(person.where_to())
        .arg(format!("--invite={}", person.invite))
        .env("LOCKGATE_PASSWORD_FILE", person.password_file(&person.password))
        .env("LOCKGATE_OTP_SECRET_FILE", &kept);
    accept.go().ok();
    (person, kept)
}

/// Logs in with the next code that was not used yet.
fn logs_in(person: &Person, kept: &Path) {
    let secret = fs::read_to_string(kept).unwrap();
    let url = format!("otpauth://totp/x?secret={}", secret.trim());
    let step = otp_step();
    eventually(Duration::from_secs(35), "the next step of the clock", || (otp_step() > step).then_some(()));
    // The step before may have been used already, one ahead of its time.
    person.login().env("LOCKGATE_OTP", otp_code(&url, 1)).go().ok();
}

fn stop(cluster: &Cluster) {
    cluster.auth().signal(Signal::SIGTERM);
    cluster.auth().wait(Duration::from_secs(30));
}

/// `tctl backup …` on a file, offline.
fn offline(cluster: &Cluster, words: &[&str]) -> Run {
    Run::new(cluster.program()).args(["tctl", "backup"]).args(words).env("LOCKGATE_HOME", cluster.home.join("nobody"))
}

/// A key, a backup to it, and what is needed to restore it.
struct Kept {
    file: String,
    key: String,
    signer: String,
}

fn backed_up(cluster: &Cluster) -> Kept {
    backed_up_as(cluster, "lg")
}

fn backed_up_as(cluster: &Cluster, name: &str) -> Kept {
    let place = |name: String| cluster.home.join(name).display().to_string();
    let (file, key) = (place(format!("{name}.lgbackup")), place(format!("{name}.key")));
    let made = offline(cluster, &["keygen", "--out", &key]).go().ok();
    let recipient = made.split_whitespace().find(|word| word.starts_with("age1")).unwrap().to_owned();
    offline(cluster, &["keygen", "--out", &key]).go().fails(2, "File exists");
    let made = cluster.tctl(["backup", "create", "--format=json", "--out", &file, "--recipient", &recipient]).go().json();
    let signer = made["signer"].as_str().unwrap().to_owned();
    Kept { file, key, signer }
}

#[test]
fn a_cluster_whose_disk_is_lost_comes_back_out_of_its_backup() {
    let cluster = Cluster::with(Setup { split: true, otp: true, ..Setup::default() });
    let (alice, otp) = with_otp(&cluster, "backup-alice");
    alice.ssh(&format!("{}@node1", me()), "echo before").go().ok();
    cluster.event("session.upload", "L2005I", &[("user", "backup-alice")]);
    let kept = backed_up(&cluster);
    let Kept { file, key, signer } = &kept;

    // What can be said without a cluster, with and without the key.
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(file).unwrap().permissions()) & 0o777;
    assert_eq!(mode, 0o600);
    let fingerprints = cluster.tctl(["auth", "export", "--type=host", "--fingerprint"]).go().ok();
    assert!(fingerprints.contains(signer.as_str()), "{signer} is not among {fingerprints}");
    let shut = offline(&cluster, &["verify", file, "--signer", signer]).go().ok();
    assert!(shut.contains("not opened") && !shut.contains("doc/user"), "{shut}");
    let open = offline(&cluster, &["verify", file, "--signer", signer, "--identity-file", key, "--ca-pin", &cluster.pins[0]]).go().ok();
    assert!(open.contains("intact") && open.contains("doc/user"), "{open}");
    let told = offline(&cluster, &["inspect", file, "--format=json"]).go().json();
    assert_eq!((told["head"]["cluster"].as_str(), told["proven"].as_bool()), (Some("lg"), Some(false)));
    offline(&cluster, &["verify", file, "--signer", "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"]).go().fails(1, "LG-BACKUP-005");
    let drill = offline(&cluster, &["drill", file, "--identity-file", key, "--signer", signer]).go().ok();
    assert!(drill.contains("The drill passed") && drill.contains("issued for backup-alice"), "{drill}");
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let bad = cluster.home.join("bad.lgbackup").display().to_string();
    fs::write(&bad, bytes).unwrap();
    offline(&cluster, &["verify", &bad]).go().fails(1, "LG-BACKUP-004");

    // The disk is gone; Proxy and host live on.
    let home = cluster.auth().data_dir.clone();
    let place = home.display().to_string();
    offline(&cluster, &["restore", file, "--identity-file", key, "--signer", signer, "--data-dir", &place])
        .go()
        .fails(1, "another lockgate");
    stop(&cluster);
    fs::rename(&home, cluster.home.join("lost")).unwrap();
    let restore = |file: &str| {
        let config = cluster.auth().config.display().to_string();
        offline(&cluster, &["restore", file, "--identity-file", key, "--signer", signer, "--config", &config]).go()
    };
    restore(&bad).fails(1, "LG-BACKUP-004");
    let said = restore(file).ok();
    assert!(said.contains("Restored into") && said.contains(&cluster.pins[0]), "{said}");
    restore(file).fails(1, "not empty");
    cluster.auth().start();
    cluster.auth().wait_ready();

    let status = cluster.tctl(["status"]).go().ok();
    assert!(cluster.pins.iter().all(|pin| status.contains(pin)), "{status}");
    // Without a token on its command line: what is on its own disk is enough. One that is not restarted is listed with its next
    // heartbeat, about a minute later. The Proxy goes on as it is.
    cluster.node().set_args(Vec::<String>::new());
    cluster.node().restart();
    cluster.wait_node("node1");
    logs_in(&alice, &otp);
    let target = format!("{}@node1", me());
    let ran = eventually(SOON, "a session through the cluster that came back", || {
        let ran = alice.ssh(&target, "echo after").go();
        (ran.status == 0).then(|| ran.text())
    });
    assert!(ran.contains("after"), "{ran}");
    let verdict = cluster.tctl(["audit", "verify"]).go().ok();
    assert!(verdict.contains("intact") && verdict.contains("continues an earlier log behind event"), "{verdict}");
    cluster.event("backup.restore", "LB002I", &[]);
}

/// An etcd of its own; ends with the test.
struct Etcd {
    child: std::process::Child,
    port: u16,
}

impl Etcd {
    fn start(dir: &Path) -> Self {
        let (port, peer) = (free_port(), free_port());
        let (clients, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let child = std::process::Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.join("etcd"))
            .args(["--unsafe-no-fsync", "--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers, "--initial-cluster", &format!("default={peers}")])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("etcd cannot be started: {error}. Install the package etcd-server (make test-deps)"));
        let etcd = Self { child, port };
        eventually(SOON, "etcd listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        etcd
    }
}
impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_cluster_moves_from_sqlite_to_etcd_and_an_auth_service_of_before_is_fenced() {
    let cluster = Cluster::start();
    let alice = cluster.person("backup-mover", &["access"], &[me()]);
    let etcd = Etcd::start(&cluster.home);
    let kept = backed_up(&cluster);
    stop(&cluster);
    let config = cluster.auth().config.clone();
    let yaml = fs::read_to_string(&config).unwrap();
    let storage = format!("lockgate:\n  storage: {{type: etcd, peers: ['127.0.0.1:{}']}}\n", etcd.port);
    fs::write(&config, yaml.replacen("lockgate:\n", &storage, 1)).unwrap();
    let place = config.display().to_string();
    let restore = |kept: &Kept| {
        let words = ["restore", &kept.file, "--identity-file", &kept.key, "--signer", &kept.signer, "--config", &place, "--format=json"];
        offline(&cluster, &words).go()
    };
    let first = restore(&kept).json();
    cluster.auth().start();
    cluster.auth().wait_ready();
    cluster.wait_node("node1");
    alice.login().go().ok();

    // Somebody empties the store and restores while the old process only stands still.
    let again = backed_up_once_more(&cluster, &kept);
    // From here on its complaints are what is wanted.
    cluster.allow("");
    cluster.auth().signal(Signal::SIGSTOP);
    let emptied = Run::new("etcdctl")
        .args(["--endpoints", &format!("127.0.0.1:{}", etcd.port), "del", "--prefix", "/lockgate/"])
        .env("ETCDCTL_API", "3");
    emptied.go().ok();
    fs::rename(cluster.auth().data_dir.join("lock"), cluster.home.join("lock-of-the-old")).unwrap();
    let second = restore(&again).json();
    let epoch = |told: &Value| told["epoch"].as_u64().unwrap();
    assert!(epoch(&second) > epoch(&first));
    cluster.auth().signal(Signal::SIGCONT);
    eventually(SOON, "the old process is refused by the store", || cluster.auth().log().contains("may no longer write").then_some(()));
}

fn backed_up_once_more(cluster: &Cluster, kept: &Kept) -> Kept {
    let file = cluster.home.join("second.lgbackup").display().to_string();
    let text = fs::read_to_string(&kept.key).unwrap();
    let recipient = text.split_whitespace().find(|word| word.starts_with("age1")).unwrap().to_owned();
    let made = cluster.tctl(["backup", "create", "--format=json", "--out", &file, "--recipient", &recipient]).go().json();
    Kept { file, key: kept.key.clone(), signer: made["signer"].as_str().unwrap().to_owned() }
}
