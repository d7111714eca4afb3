//! Scheduled backups of a real Auth Service into a bucket, and the way back out of it with `tctl` alone.
//!
//! The S3 server is the one of `scripts/s3-server.py`, which checks signatures; `make test-deps` makes it ready.

use super::{SOON, offline, stop};
use harness::{Cluster, Setup, eventually};
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// A server of its own; ends with the test.
struct S3 {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    port: u64,
    credentials: PathBuf,
}

impl S3 {
    fn start(dir: &Path) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut python = Command::new(root.join(".cache/tools/s3/bin/python"));
        python.arg("-I").arg(root.join("scripts/s3-server.py")).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = python.spawn().unwrap_or_else(|error| panic!("{python:?}: {error}. Make it ready: make test-deps"));
        let (input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let told: serde_json::Value = serde_json::from_str(&line).unwrap();
        let credentials = dir.join("s3-credentials");
        let keys = [("aws_access_key_id", "id"), ("aws_secret_access_key", "secret")];
        let text: String = keys.iter().map(|(key, from)| format!("{key} = {}\n", told[from].as_str().unwrap())).collect();
        fs::write(&credentials, text).unwrap();
        fs::set_permissions(&credentials, fs::Permissions::from_mode(0o600)).unwrap();
        Self { child, input, output, port: told["port"].as_u64().unwrap(), credentials }
    }

    fn ask(&mut self, what: &str) -> serde_json::Value {
        writeln!(self.input, "{what}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_lost_auth_service_comes_back_out_of_the_bucket_of_its_scheduled_backups() {
    let cluster = Cluster::with(Setup { split: true, ..Setup::default() });
    let mut s3 = S3::start(&cluster.home);
    let key = cluster.home.join("backup.key").display().to_string();
    let made = offline(&cluster, &["keygen", "--out", &key]).go().ok();
    let recipient = made.split_whitespace().find(|word| word.starts_with("age1")).unwrap().to_owned();
    stop(&cluster);
    let config = cluster.auth().config.clone();
    let yaml = fs::read_to_string(&config).unwrap();
    let section = format!(
        "auth_service:\n  backup: {{to: 's3://backups/lg', endpoint: 'http://127.0.0.1:{}', credentials_file: s3-credentials, recipients: [{recipient}]}}\n",
        s3.port
    );
    // Named relative to the configuration, wherever that is.
    let beside = config.with_file_name("s3-credentials");
    if beside != s3.credentials {
        fs::copy(&s3.credentials, &beside).unwrap();
    }
    assert!(yaml.contains("auth_service:\n"), "{yaml}");
    fs::write(&config, yaml.replacen("auth_service:\n", &section, 1)).unwrap();
    cluster.auth().start();
    cluster.auth().wait_ready();

    let place = config.display().to_string();
    let found = eventually(SOON, "a scheduled backup in the bucket", || {
        let listed = offline(&cluster, &["ls", "--config", &place, "--format=json"]).go();
        listed.json().as_array().filter(|all| !all.is_empty()).cloned()
    });
    let file = format!("s3://backups/lg/{}", found[0]["name"].as_str().unwrap());
    eventually(SOON, "the backup counts", || {
        let control = cluster.tctl(["get", "control/control", "--format=json"]).go();
        control.text().contains("digest").then_some(())
    });
    let listed = offline(&cluster, &["ls", "s3://backups/lg", "--config", &place]).go().ok();
    assert!(listed.contains("Made (UTC)") && listed.contains("lg-2"), "{listed}");
    let temporary = cluster.home.join("temporary");
    fs::create_dir(&temporary).unwrap();
    let on = |words: &[&str]| offline(&cluster, words).env("TMPDIR", &temporary).go();
    let told = on(&["inspect", &file, "--config", &place, "--format=json"]).json();
    let signer = told["head"]["signer"].as_str().unwrap().to_owned();
    let open = on(&["verify", &file, "--config", &place, "--identity-file", &key, "--signer", &signer]).ok();
    assert!(open.contains("The backup is intact"), "{open}");
    on(&["verify", "s3://backups/lg/none.lgbackup", "--config", &place]).fails(1, "there is no such file");
    on(&[
        "verify",
        "s3://elsewhere/none.lgbackup",
        "--endpoint",
        &format!("http://127.0.0.1:{}", s3.port),
        "--credentials-file",
        &s3.credentials.display().to_string(),
    ])
    .fails(1, "the bucket does not exist");

    stop(&cluster);
    fs::rename(&cluster.auth().data_dir, cluster.home.join("lost")).unwrap();
    on(&["restore", &file, "--config", &place, "--identity-file", &key, "--signer", &signer]).ok();
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "what was fetched goes");
    cluster.auth().start();
    cluster.auth().wait_ready();
    // Not to wait for its next heartbeat; it has what is on its own disk, and no token.
    cluster.node().set_args(Vec::<String>::new());
    cluster.node().restart();
    cluster.wait_node("node1");
    // The first backup of the cluster that came back, beside the one it came out of.
    eventually(SOON, "a second backup beside the first", || {
        let names: Vec<String> = s3.ask("objects").as_array().unwrap().iter().map(|name| name.to_string()).collect();
        assert!(names.iter().any(|name| file.ends_with(name.trim_matches('"').rsplit('/').next().unwrap())), "{file} is gone: {names:?}");
        (names.len() > 1).then_some(())
    });
    s3.ask(&format!("flip {}", file.trim_start_matches("s3://backups/")));
    on(&["verify", &file, "--config", &place]).fails(1, "LG-BACKUP-004");
}
