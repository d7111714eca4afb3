//! The real OpenSSH and the programs that ride on it: with `tsh config`, through the jump server, and directly.

use harness::{
    Cluster, Person, Run,
    cluster::{Way, shared, until_ok},
    person::me,
};
use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

/// A directory and an `ssh_config` made by `tsh config`.
struct Plain {
    alice: Person,
    config: PathBuf,
    dir: PathBuf,
    host: String,
}

fn plain(cluster: &Cluster, name: &str) -> Plain {
    let alice = cluster.person(name, &["access"], &[me()]);
    let dir = cluster.open().join(format!("plain-{name}"));
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    let config = dir.join("ssh_config");
    // Nothing of the tester's own: no agent, no known hosts, no question.
    let own = "\nHost *\n  BatchMode yes\n  IdentityAgent none\n  GlobalKnownHostsFile /dev/null\n  LogLevel ERROR\n";
    fs::write(&config, alice.tsh(["config"]).go().ok() + own).unwrap();
    Plain { alice, config, dir, host: format!("{}@node1.{}", me(), cluster.name) }
}

impl Plain {
    fn run(&self, program: &str) -> Run {
        let run = Run::new(program).env("LOCKGATE_HOME", &self.alice.home).dir(&self.dir);
        if program == "git" || program == "rsync" { run } else { run.arg("-F").arg(&self.config) }
    }
    fn over(&self) -> String {
        format!("ssh -F {}", self.config.display())
    }
}

#[test]
fn plain_ssh_works_with_the_printed_configuration() {
    let cluster = shared();
    let plain = plain(&cluster, "openssh-ssh");
    let run = |command: &str| plain.run("ssh").args([&plain.host, command]).go();
    assert_eq!(run("id -un").ok().trim(), me());
    assert_eq!(run("exit 9").status, 9);
    assert_eq!(plain.run("ssh").args(["-tt", &plain.host, "test -t 0 && echo a terminal"]).go().ok().trim(), "a terminal");
    let set = plain.run("ssh").args(["-o", "SetEnv=LC_MINE=yes LD_PRELOAD=/nowhere.so", &plain.host, "echo $LC_MINE-$LD_PRELOAD"]).go();
    assert_eq!(set.ok().trim(), "yes-");
}

#[test]
fn files_are_copied_by_scp_sftp_and_rsync() {
    let cluster = shared();
    let plain = plain(&cluster, "openssh-files");
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let from = plain.dir.join("from");
    fs::write(&from, &content).unwrap();
    let to = |name: &str| plain.dir.join(name);
    let arrived = |name: &str| assert!(fs::read(to(name)).unwrap() == content, "{name}");
    let remote = |name: &str| format!("{}:{}", plain.host, to(name).display());
    // scp's own protocol, and the newer one over sftp.
    plain.run("scp").arg("-O").arg(&from).arg(remote("scp-up")).go().ok();
    arrived("scp-up");
    plain.run("scp").arg(&from).arg(remote("scp-sftp")).go().ok();
    arrived("scp-sftp");
    plain.run("scp").arg(remote("from")).arg(to("scp-down")).go().ok();
    arrived("scp-down");
    let batch =
        format!("put {} {}\nget {0} {}\nls {}\n", from.display(), to("sftp-up").display(), to("sftp-down").display(), plain.dir.display());
    plain.run("sftp").args(["-b", "-", &plain.host]).input(batch).go().ok();
    arrived("sftp-up");
    arrived("sftp-down");
    plain.run("rsync").args(["-e", &plain.over()]).arg(&from).arg(remote("rsync-up")).go().ok();
    arrived("rsync-up");
}

#[test]
fn git_clones_over_it() {
    let cluster = shared();
    let plain = plain(&cluster, "openssh-git");
    let git =
        |words: &[&str]| plain.run("git").env("GIT_SSH_COMMAND", plain.over()).env("GIT_CONFIG_GLOBAL", "/dev/null").args(words).go().ok();
    // Made by the account that serves it: git reads no other's repository.
    let make = "git init -q origin && cd origin && echo kept >file && git add . && git -c user.name=a -c user.email=a@b commit -qm one";
    plain.run("ssh").args([&plain.host, &format!("cd {} && {make}", plain.dir.display())]).go().ok();
    let url = format!("ssh://{}{}", plain.host, plain.dir.join("origin").display());
    git(&["clone", "-q", &url, "clone"]);
    assert_eq!(fs::read_to_string(plain.dir.join("clone/file")).unwrap(), "kept\n");
}

/// Key, certificate and known hosts as files, for an OpenSSH that knows nothing of Lockgate.
fn files(cluster: &Cluster, user: &str) -> Vec<String> {
    let stem = cluster.home.join(format!("key-{user}"));
    cluster.tctl(["auth", "sign", "--format=openssh", &format!("--user={user}"), "--out"]).arg(&stem).go().ok();
    let known = cluster.home.join(format!("known-{user}"));
    fs::write(&known, cluster.tctl(["auth", "export", "--type=host"]).go().ok()).unwrap();
    let config = cluster.home.join(format!("config-{user}"));
    let text = format!(
        "Host *\n  BatchMode yes\n  IdentityAgent none\n  IdentitiesOnly yes\n  IdentityFile {0}\n  CertificateFile {0}-cert.pub\n  UserKnownHostsFile {1}\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n",
        stem.display(),
        known.display()
    );
    fs::write(&config, text).unwrap();
    vec!["-F".into(), config.display().to_string()]
}

#[test]
fn the_jump_server_takes_plain_openssh_to_a_host() {
    let cluster = shared();
    cluster.person("openssh-jump", &["access"], &[me()]);
    let files = files(&cluster, "openssh-jump");
    let jump = format!("{}@127.0.0.1:{}", me(), cluster.jump_port);
    let ssh = |host: &str, command: &str| Run::new("ssh").args(&files).args(["-J", &jump, host, command]);
    let host = format!("{}@node1", me());
    assert_eq!(until_ok(Duration::from_secs(10), || ssh(&host, "id -un")).ok().trim(), me());
    assert_eq!(ssh(&host, "exit 4").go().status, 4);
    // The jump server is a way to hosts and nothing else.
    Run::new("ssh").args(&files).args(["-p", &cluster.jump_port.to_string(), &format!("{}@127.0.0.1", me()), "id"]).go().refused();
    ssh(&format!("{}@node9", me()), "true").go().refused();
}

/// Some clients wait for the server's version line before they say anything (RFC 4253 lets either side be first).
#[test]
fn a_client_that_lets_the_server_speak_first_is_served() {
    let cluster = Cluster::split();
    let direct = cluster.join("direct1", Way::Direct, &[]);
    for port in [cluster.jump_port, direct.ssh_port] {
        let begun = std::time::Instant::now();
        let scanned = Run::new("ssh-keyscan").args(["-t", "ed25519", "-p", &port.to_string(), "127.0.0.1"]).go();
        assert!(scanned.text().contains("ssh-ed25519 "), "port {port}: {scanned}");
        assert!(begun.elapsed() < Duration::from_secs(5), "port {port} took {:?}", begun.elapsed());
    }
}

#[test]
fn a_host_that_joined_directly_is_reached_on_its_own_port_and_through_the_proxy() {
    let cluster = Cluster::split();
    let alice = cluster.person("alice", &["access"], &[me()]);
    let direct = cluster.join("direct1", Way::Direct, &[]);
    until_ok(Duration::from_secs(20), || alice.ssh(&format!("{}@direct1", me()), "true"));
    let files = files(&cluster, "alice");
    let port = direct.ssh_port.to_string();
    let ssh = |login: &str, command: &str| {
        Run::new("ssh").args(&files).args(["-o", "HostKeyAlias=direct1", "-p", &port, &format!("{login}@127.0.0.1"), command]).go()
    };
    assert_eq!(ssh(me(), "id -un").ok().trim(), me());
    ssh("nobody", "true").refused();
    let jump = format!("{}@127.0.0.1:{}", me(), cluster.jump_port);
    let jumped = Run::new("ssh").args(&files).args(["-J", &jump, &format!("{}@direct1", me()), "echo both ways"]).go();
    assert_eq!(jumped.ok().trim(), "both ways");
}
