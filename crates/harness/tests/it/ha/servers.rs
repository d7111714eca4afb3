//! Stores that several Auth Services share: etcd and PostgreSQL from Debian's packages, on ports of their own, alone or with members that
//! take over. PostgreSQL refuses to run as root, so then it runs as the user that its package makes. What the store itself knows of its
//! past ([`Postgres::history`], [`Etcd::history`]) is read with the stores' own tools, not with ours.

use data_encoding::{BASE64, HEXLOWER};
use harness::{Run, cluster::free_port, eventually, process::Running};
use std::{
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(30);

/// A transaction, as the store tells of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Written {
    /// What the store counts transactions by.
    pub(super) at: u64,
    /// Made up by whoever wrote it.
    pub(super) name: Vec<u8>,
    /// Our revision after it.
    pub(super) revision: u64,
    /// How many commits it is made of.
    pub(super) commits: u64,
    /// The control record that it leaves, when it changes it.
    pub(super) control: Option<Vec<u8>>,
    pub(super) keys: Vec<String>,
}

/// In memory, where there is room: nobody pulls the plug here.
fn room(prefix: &str) -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let mut made = tempfile::Builder::new();
    made.prefix(prefix);
    let dir = if memory.is_dir() { made.tempdir_in(memory) } else { made.tempdir() }.unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

fn listens(port: u16, what: &str) {
    eventually(SOON, what, || TcpStream::connect(("127.0.0.1", port)).ok());
}

/// A running etcd, alone; ends when dropped.
pub(crate) struct Etcd {
    pub(crate) port: u16,
    running: Running,
    dir: tempfile::TempDir,
}

impl Etcd {
    pub(crate) fn start() -> Self {
        let peer = free_port();
        Self::member("one", free_port(), peer, &format!("one=http://127.0.0.1:{peer}"))
    }

    /// Three that agree; the ports of their peers are known to all.
    pub(super) fn three() -> [Self; 3] {
        let peers = ["one", "two", "three"].map(|name| (name, free_port()));
        let all = peers.map(|(name, peer)| format!("{name}=http://127.0.0.1:{peer}")).join(",");
        let three = peers.map(|(name, peer)| Self::begin(name, free_port(), peer, &all));
        three.iter().for_each(|one| listens(one.port, "a member of etcd listens"));
        three
    }

    fn member(name: &str, port: u16, peer: u16, all: &str) -> Self {
        let begun = Self::begin(name, port, peer, all);
        listens(port, "etcd (package etcd-server, make test-deps) listens");
        begun
    }

    fn begin(name: &str, port: u16, peer: u16, all: &str) -> Self {
        let dir = room("lg-etcd-");
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let run = Run::new("etcd")
            .args(["--name", name, "--data-dir"])
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client, "--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", all]);
        let running = Running::start(&run.into_command(), &dir.path().join("log"));
        Self { port, running, dir }
    }

    pub(super) fn kill(&mut self) {
        self.running.kill();
    }

    fn ctl(&self) -> Run {
        Run::new("etcdctl").env("ETCDCTL_API", "3").arg(format!("--endpoints=http://127.0.0.1:{}", self.port))
    }

    /// Whether the others follow this one.
    pub(super) fn leads(&self) -> bool {
        let asked = self.ctl().args(["endpoint", "status", "-w", "json"]).go();
        let status: serde_json::Value = serde_json::from_slice(&asked.out).unwrap_or_default();
        let status = &status[0]["Status"];
        status["leader"].is_number() && status["leader"] == status["header"]["member_id"]
    }

    /// `lockgate.storage`, through that port.
    pub(crate) fn storage_at(port: u16) -> String {
        format!("{{type: etcd, peers: ['127.0.0.1:{port}']}}")
    }
    pub(crate) fn storage(&self) -> String {
        Self::storage_at(self.port)
    }

    /// Everything since the store is. Nobody writes any more.
    pub(super) fn history(&self) -> Vec<Written> {
        let head = self.ctl().args(["get", "/lockgate/head", "-w", "json"]).go().json();
        let Some(last) = head["kvs"][0]["mod_revision"].as_u64() else { return Vec::new() };
        let log = self.dir.path().join("watch");
        let watch = self.ctl().args(["watch", "--prefix", "/lockgate/", "--rev=1", "-w", "json"]);
        let watching = Running::start(&watch.into_command(), &log);
        let mark = format!("\"mod_revision\":{last},");
        let text = eventually(SOON * 2, "the history of etcd", || {
            Some(watching.log()).filter(|text| text.contains(&mark) && text.ends_with('\n'))
        });
        let answers =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}")));
        let mut all: Vec<Written> = Vec::new();
        for event in answers.flat_map(|answer| answer["Events"].as_array().cloned().unwrap_or_default()) {
            let kv = &event["kv"];
            let at = kv["mod_revision"].as_u64().unwrap();
            if all.last().is_none_or(|written| written.at != at) {
                all.push(Written { at, ..Written::default() });
            }
            let decode = |field: &str| BASE64.decode(kv[field].as_str().unwrap_or_default().as_bytes()).unwrap();
            let (key, value) = (String::from_utf8_lossy(&decode("key")).into_owned(), decode("value"));
            let written = all.last_mut().unwrap();
            match key.strip_prefix("/lockgate/").unwrap() {
                // As `store::etcd` documents it: layout, revision, name, then four bytes for each commit.
                "head" => {
                    written.revision = u64::from_be_bytes(value[1..9].try_into().unwrap());
                    written.name = value[9..25].to_vec();
                    written.commits = (value.len() as u64 - 25) / 4;
                }
                // Layout, revision, expiry, then the value.
                "item/control" => written.control = Some(value[17..].to_vec()),
                key => written.keys.push(key.to_owned()),
            }
        }
        all
    }
}

/// A running PostgreSQL; ends when dropped.
pub(crate) struct Postgres {
    pub(crate) port: u16,
    running: Running,
    _dir: tempfile::TempDir,
}

impl Postgres {
    pub(crate) fn start() -> Self {
        let dir = room("lg-postgres-");
        let initdb = as_postgres("initdb").args(["-A", "trust", "-U", "lockgate", "-N", "-D"]).arg(dir.path().join("data"));
        initdb.deadline(Duration::from_secs(60)).go().ok();
        Self::serve(dir)
    }

    fn serve(dir: tempfile::TempDir) -> Self {
        let port = free_port();
        let server = as_postgres("postgres").arg("-D").arg(dir.path().join("data")).args(["-p", &port.to_string()]);
        let settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=400"];
        let server = settings.iter().fold(server, |server, setting| server.args(["-c", setting]));
        let running = Running::start(&server.into_command(), &dir.path().join("log"));
        let serving = Self { port, running, _dir: dir };
        eventually(SOON, "PostgreSQL (package postgresql, make test-deps) answers", || {
            (serving.psql("SELECT 1").go().status == 0).then_some(())
        });
        serving
    }

    /// Another that follows this one; nothing is acknowledged from now on that it does not have.
    pub(super) fn standby(&self) -> Self {
        let dir = room("lg-standby-");
        let copy = as_postgres("pg_basebackup").args([
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
            "-U",
            "lockgate",
            "-R",
            "-c",
            "fast",
            "-D",
        ]);
        copy.arg(dir.path().join("data")).deadline(Duration::from_secs(60)).go().ok();
        let standby = Self::serve(dir);
        self.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
        self.sql("SELECT pg_reload_conf()");
        eventually(SOON, "the standby is synchronous", || {
            (self.sql("SELECT sync_state FROM pg_stat_replication").trim() == "sync").then_some(())
        });
        standby
    }

    pub(super) fn promote(&self) {
        assert_eq!(self.sql("SELECT pg_promote()").trim(), "t");
    }
    pub(super) fn kill(&mut self) {
        self.running.kill();
    }

    fn psql(&self, text: &str) -> Run {
        let psql = as_postgres("psql").args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "lockgate"]);
        psql.args(["-p", &self.port.to_string(), "-d", "postgres", "-c", text])
    }
    pub(super) fn sql(&self, text: &str) -> String {
        self.psql(text).go().ok()
    }

    /// `lockgate.storage`, through these ports.
    pub(crate) fn storage_at(ports: &[u16]) -> String {
        let hosts = ports.iter().map(|port| format!("'127.0.0.1:{port}'")).collect::<Vec<_>>().join(", ");
        format!("{{type: postgres, hosts: [{hosts}], database: postgres}}")
    }

    /// Everything since the store is, a commit each. Nobody writes any more.
    pub(super) fn history(&self) -> Vec<Written> {
        let there = self.sql("SELECT to_regclass('lockgate.change') IS NOT NULL");
        if there.trim() != "t" {
            return Vec::new();
        }
        let rows = self.sql(
            "SELECT revision, encode(writer, 'hex'), encode(key, 'hex'), CASE WHEN key = 'control' THEN encode(value, 'hex') END
             FROM lockgate.change ORDER BY revision, place",
        );
        let mut all: Vec<Written> = Vec::new();
        for row in rows.lines() {
            let [revision, name, key, control] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
            let (revision, hex) = (revision.parse().unwrap(), |text: &str| HEXLOWER.decode(text.as_bytes()).unwrap());
            if all.last().is_none_or(|written| written.revision != revision) {
                all.push(Written { at: revision, revision, commits: 1, name: hex(name), ..Written::default() });
            }
            let written = all.last_mut().unwrap();
            match String::from_utf8_lossy(&hex(key)).into_owned() {
                key if key == "control" => written.control = Some(hex(control)),
                key => written.keys.push(key),
            }
        }
        let newest: u64 = self.sql("SELECT coalesce(max(revision), 0) FROM lockgate.item").trim().parse().unwrap();
        assert!(all.last().map_or(0, |written| written.revision) >= newest, "the history does not reach the present");
        all
    }
}

/// A program of the newest version that is installed, as the user that may run it.
fn as_postgres(program: &str) -> Run {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest =
        installed.map(|entry| entry.path()).max_by_key(|path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    let program: PathBuf = newest.expect("PostgreSQL (package postgresql, make test-deps)").join("bin").join(program);
    if nix::unistd::geteuid().is_root() {
        Run::new("setpriv").args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=KILL", "--"]).arg(program)
    } else {
        Run::new(program)
    }
}
