//! Stores that several Auth Services share: etcd and PostgreSQL from Debian's packages, on ports of their own. PostgreSQL refuses to
//! run as root, so then it runs as the user that its package makes.

use harness::{Run, cluster::free_port, eventually, process::Running};
use std::{net::TcpStream, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

/// A running etcd; ends when dropped.
pub(super) struct Etcd {
    port: u16,
    _running: Running,
    _dir: tempfile::TempDir,
}

impl Etcd {
    pub(super) fn start() -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let mut made = tempfile::Builder::new();
        made.prefix("lg-etcd-");
        let dir = if memory.is_dir() { made.tempdir_in(memory) } else { made.tempdir() }.unwrap();
        let (port, peers) = (free_port(), free_port());
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
        let run = Run::new("etcd")
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client, "--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")]);
        let log = dir.path().join("log");
        let running = Running::start(&run.into_command(), &log);
        eventually(Duration::from_secs(30), "etcd (package etcd-server, make test-deps) listens", || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self { port, _running: running, _dir: dir }
    }

    /// `lockgate.storage`
    pub(super) fn storage(&self) -> String {
        format!("{{type: etcd, peers: ['127.0.0.1:{}']}}", self.port)
    }
}

/// A running PostgreSQL; ends when dropped.
pub(super) struct Postgres {
    pub(super) port: u16,
    _running: Running,
    _dir: tempfile::TempDir,
}

impl Postgres {
    pub(super) fn start() -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let mut made = tempfile::Builder::new();
        made.prefix("lg-postgres-");
        let dir = if memory.is_dir() { made.tempdir_in(memory) } else { made.tempdir() }.unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let (port, data) = (free_port(), dir.path().join("data"));
        let initdb = as_postgres(&programs().join("initdb")).args(["-A", "trust", "-U", "lockgate", "-N", "-D"]).arg(&data);
        initdb.deadline(Duration::from_secs(60)).go().ok();
        let server = as_postgres(&programs().join("postgres")).arg("-D").arg(&data).args(["-p", &port.to_string()]);
        let server = server.args([
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
            "-c",
            "fsync=off",
            "-c",
            "max_connections=400",
        ]);
        let running = Running::start(&server.into_command(), &dir.path().join("log"));
        eventually(Duration::from_secs(30), "PostgreSQL listens", || TcpStream::connect(("127.0.0.1", port)).ok());
        Self { port, _running: running, _dir: dir }
    }

    /// `lockgate.storage`
    pub(super) fn storage(&self) -> String {
        format!("{{type: postgres, hosts: ['127.0.0.1:{}'], database: postgres}}", self.port)
    }
}

/// Where the newest version's programs lie.
fn programs() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest =
        installed.map(|entry| entry.path()).max_by_key(|path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    newest.expect("PostgreSQL (package postgresql, make test-deps)").join("bin")
}

fn as_postgres(program: &std::path::Path) -> Run {
    if nix::unistd::geteuid().is_root() {
        Run::new("setpriv").args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=KILL", "--"]).arg(program)
    } else {
        Run::new(program)
    }
}
