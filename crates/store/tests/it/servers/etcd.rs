//! etcd: one member, or a cluster of three.

use super::{Running, certificates, free_port, run, scratch, unique};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A new prefix of the etcd at that port.
pub(crate) fn etcd_options(port: u16, prefix: &str) -> store::etcd::Options {
    let mut options = store::etcd::Options::new(vec![format!("127.0.0.1:{port}")]);
    options.prefix = unique(prefix);
    options
}

/// A member of an etcd; the only one, or one of three.
pub(crate) struct Etcd {
    name: &'static str,
    /// All members, as etcd wants to be told.
    members: String,
    dir: PathBuf,
    pub(crate) port: u16,
    peer: u16,
    tls: bool,
    extra: Vec<String>,
    pub(crate) running: Running,
}

impl Etcd {
    pub(crate) fn start(extra: &[&str]) -> Self {
        Self::start_with(extra, false)
    }

    pub(crate) fn start_with(extra: &[&str], tls: bool) -> Self {
        let peer = free_port();
        let mut alone = Self::begin("one", member("one", peer), peer, tls, extra);
        alone.running.until_listening(alone.port);
        alone
    }

    /// Does not wait: a member of several listens only when it has found others.
    fn begin(name: &'static str, members: String, peer: u16, tls: bool, extra: &[&str]) -> Self {
        let (dir, port) = (scratch("etcd-"), free_port());
        let extra: Vec<String> = extra.iter().map(|text| (*text).to_owned()).collect();
        let running = Self::server(name, &members, &dir, (port, peer), tls, &extra);
        Self { name, members, dir, port, peer, tls, extra, running }
    }

    fn server(name: &str, members: &str, dir: &Path, (port, peer): (u16, u16), tls: bool, extra: &[String]) -> Running {
        let clients = format!("{}://127.0.0.1:{port}", if tls { "https" } else { "http" });
        let peers = format!("http://127.0.0.1:{peer}");
        let mut command = Command::new("etcd");
        command.args([&format!("--name={name}"), "--log-level=error", &format!("--initial-cluster={members}")]);
        command.args([format!("--listen-client-urls={clients}"), format!("--advertise-client-urls={clients}")]);
        command.args([format!("--listen-peer-urls={peers}"), format!("--initial-advertise-peer-urls={peers}")]);
        command.arg("--data-dir").arg(dir.join("data")).args(extra);
        if tls {
            let files = certificates();
            command.arg("--cert-file").arg(&files.server.0).arg("--key-file").arg(&files.server.1);
            command.arg("--trusted-ca-file").arg(&files.ca).arg("--client-cert-auth");
        }
        Running::start(command, dir.join("log"), "etcd-server")
    }

    pub(crate) fn restart(&mut self) {
        self.running = Self::server(self.name, &self.members, &self.dir, (self.port, self.peer), self.tls, &self.extra);
        self.running.until_listening(self.port);
    }

    /// Starts again on what a snapshot holds.
    pub(crate) fn restore(&mut self, snapshot: &Path) {
        self.running.kill();
        let data = self.dir.join("data");
        std::fs::remove_dir_all(&data).unwrap();
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(snapshot).arg("--data-dir").arg(&data);
        command.args([format!("--name={}", self.name), format!("--initial-cluster={}", self.members)]);
        command.arg(format!("--initial-advertise-peer-urls=http://127.0.0.1:{}", self.peer));
        run(command);
        self.restart();
    }

    /// What etcd's own tool prints.
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(args);
        if self.tls {
            let files = certificates();
            command.arg(format!("--endpoints=https://127.0.0.1:{}", self.port));
            command.arg("--cacert").arg(&files.ca).arg("--cert").arg(&files.client.0).arg("--key").arg(&files.client.1);
        } else {
            command.arg(format!("--endpoints=http://127.0.0.1:{}", self.port));
        }
        let output = command.output().unwrap_or_else(|error| panic!("etcdctl: {error}. Install the package etcd-client (make test-deps)"));
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    /// Whether it is the leader, or none while it does not say.
    fn leads(&self) -> Option<bool> {
        let said = self.ctl(&["endpoint", "status", "-w", "json"]);
        let json: serde_json::Value = serde_json::from_str(said.lines().next()?.trim()).ok()?;
        let status = json.get(0)?.get("Status")?;
        Some(status.get("leader")? == status.get("header")?.get("member_id")?)
    }
}

fn member(name: &str, peer: u16) -> String {
    format!("{name}=http://127.0.0.1:{peer}")
}

/// Three members that elect a new leader within a second.
pub(crate) struct Cluster {
    pub(crate) members: Vec<Etcd>,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let names = ["one", "two", "three"].map(|name| (name, free_port()));
        let all = names.map(|(name, peer)| member(name, peer)).join(",");
        let quick = ["--heartbeat-interval=50", "--election-timeout=500"];
        let mut members: Vec<Etcd> = names.into_iter().map(|(name, peer)| Etcd::begin(name, all.clone(), peer, false, &quick)).collect();
        for member in &mut members {
            member.running.until_listening(member.port);
        }
        Self { members }
    }

    /// Where the leader is in the list.
    pub(crate) fn leader(&self) -> usize {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(leader) = self.members.iter().position(|member| member.leads() == Some(true)) {
                return leader;
            }
            assert!(Instant::now() < deadline, "the members have no leader");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Starts a member again, and waits until it has all that the others have.
    pub(crate) fn revive(&mut self, which: usize) {
        let member = &mut self.members[which];
        member.restart();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !member.ctl(&["endpoint", "health"]).contains("is healthy") {
            assert!(Instant::now() < deadline, "the member does not come back");
        }
    }

    /// A new prefix, with all members as endpoints.
    pub(crate) fn options(&self, prefix: &str) -> store::etcd::Options {
        let mut options = etcd_options(0, prefix);
        options.endpoints = self.members.iter().map(|member| format!("127.0.0.1:{}", member.port)).collect();
        options
    }
}

/// The one that tests share.
pub(crate) fn etcd() -> &'static Etcd {
    static SHARED: OnceLock<Etcd> = OnceLock::new();
    SHARED.get_or_init(|| Etcd::start(&[]))
}
