//! The stores of the large parts: an SQLite file, a PostgreSQL and an etcd of their own, on the machine's disk and with `fsync`.
//!
//! PostgreSQL and etcd come from Debian's packages with their own settings, but for room (`--quota-backend-bytes`). PostgreSQL refuses to
//! run as root, so then it runs as the user that its package makes. A server that is dropped ends, and its files go.

use harness::{Run, cluster::free_port, eventually, process::Running};
use std::{
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use store::{Store, System};
use tempfile::TempDir;

const STARTS: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Driver {
    Sqlite,
    Postgres,
    Etcd,
}

impl Driver {
    /// All, or those named by `DRIVERS=sqlite,etcd`, for work on one figure.
    pub(crate) fn wanted() -> Vec<Driver> {
        let named = std::env::var("DRIVERS").unwrap_or_default();
        let wanted = |driver: &Driver| named.is_empty() || named.split(',').any(|word| word == driver.name());
        [Driver::Sqlite, Driver::Postgres, Driver::Etcd].into_iter().filter(wanted).collect()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Driver::Sqlite => "sqlite",
            Driver::Postgres => "postgres",
            Driver::Etcd => "etcd",
        }
    }

    /// What it is compared with.
    pub(crate) fn peer(self) -> &'static str {
        match self {
            Driver::Sqlite => "SQLite",
            Driver::Postgres => "PostgreSQL",
            Driver::Etcd => "etcd",
        }
    }
}

/// One server, or one directory for a file.
pub(crate) struct Server {
    pub(crate) driver: Driver,
    pub(crate) port: u16,
    _running: Option<Running>,
    dir: TempDir,
}

impl Server {
    pub(crate) fn start(driver: Driver) -> Server {
        let dir = tempfile::Builder::new().prefix("lg-store-").tempdir_in("/tmp").expect("a directory");
        let port = free_port();
        let command = match driver {
            Driver::Sqlite => None,
            Driver::Postgres => Some(postgres(dir.path(), port)),
            Driver::Etcd => Some(etcd(dir.path(), port)),
        };
        let running = command.map(|command| Running::start(&command.into_command(), &dir.path().join("log")));
        if running.is_some() {
            eventually(STARTS, &format!("{} listens (make test-deps)", driver.peer()), || TcpStream::connect(("127.0.0.1", port)).ok());
        }
        Server { driver, port, _running: running, dir }
    }

    /// Of the driver `sqlite`.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("state.db")
    }

    /// `lockgate.storage`
    pub(crate) fn storage(&self) -> String {
        match self.driver {
            Driver::Sqlite => format!("{{type: sqlite, path: {}}}", self.file().display()),
            Driver::Postgres => format!("{{type: postgres, hosts: ['127.0.0.1:{}'], database: postgres}}", self.port),
            Driver::Etcd => format!("{{type: etcd, peers: ['127.0.0.1:{}']}}", self.port),
        }
    }

    /// What PostgreSQL does by itself within a minute of so many writes, and its planner then knows.
    pub(crate) fn settle(&self) {
        if self.driver == Driver::Postgres {
            let to = ["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "lockgate", "-d", "postgres"].map(str::to_owned);
            as_postgres("psql").args(to).args(["-q", "-c", "VACUUM ANALYZE"]).deadline(STARTS).go().ok();
        }
    }

    /// The store through the product's own driver.
    pub(crate) async fn open(&self) -> Arc<dyn Store> {
        let (clock, place) = (Arc::new(System), format!("127.0.0.1:{}", self.port));
        match self.driver {
            Driver::Sqlite => Arc::new(store::Sqlite::open(&self.file(), clock).expect("a file")),
            Driver::Postgres => {
                let options = store::postgres::Options::new(vec![place], "postgres", "lockgate");
                Arc::new(store::Postgres::open(options, clock).await.expect("a database"))
            }
            Driver::Etcd => Arc::new(store::Etcd::open(store::etcd::Options::new(vec![place]), clock).await.expect("an etcd")),
        }
    }
}

fn etcd(dir: &Path, port: u16) -> Run {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
    Run::new("etcd")
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args(["--log-level=error", "--quota-backend-bytes=8589934592"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client, "--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")])
}

fn postgres(dir: &Path, port: u16) -> Run {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).expect("permissions");
    let data = dir.join("data");
    let initdb = as_postgres("initdb").args(["-A", "trust", "-U", "lockgate", "-N", "--no-locale", "-E", "UTF8", "-D"]).arg(&data);
    initdb.deadline(STARTS).go().ok();
    let settings = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=300"];
    as_postgres("postgres").arg("-D").arg(&data).args(["-p", &port.to_string()]).args(settings)
}

/// A program of the newest version that is installed.
fn as_postgres(program: &str) -> Run {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest =
        installed.map(|entry| entry.path()).max_by_key(|path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    let path = newest.expect("PostgreSQL (package postgresql, make test-deps)").join("bin").join(program);
    if nix::unistd::geteuid().is_root() {
        Run::new("setpriv").args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=KILL", "--"]).arg(path)
    } else {
        Run::new(path)
    }
}

/// The version of each, for the report's head.
pub(crate) fn versions() -> String {
    let etcd = Run::new("etcd").arg("--version").go().text();
    let etcd = etcd.lines().next().unwrap_or_default().replace("etcd Version:", "etcd");
    format!("SQLite {}, {}, {}", rusqlite::version(), as_postgres("postgres").arg("--version").go().text().trim(), etcd)
}
