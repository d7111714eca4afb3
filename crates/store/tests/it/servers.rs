//! Real servers for the drivers behind a network: PostgreSQL, pgbouncer and etcd from Debian's packages.
//!
//! Those that tests share are started once, at first need; tests that stop or fill a server start their own. All listen on free ports
//! of loopback and keep their files in memory where the system has room there. A missing program is a failure that names the
//! package. A shell that holds the reading end of a pipe ends everything and removes the files when the test process is gone,
//! however it went. PostgreSQL refuses to run as root, so then its programs run as the user that the package makes.

use crate::proxy::Proxy;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

pub(crate) const USER: &str = "lockgate";
pub(crate) const PASSWORD: &str = "in a file, never in an argument";

/// What ends the servers: one line with a process id for each.
#[allow(clippy::zombie_processes, reason = "it outlives this process, that is what it is for")]
fn guard() -> &'static (PathBuf, Mutex<std::process::ChildStdin>) {
    static GUARD: OnceLock<(PathBuf, Mutex<std::process::ChildStdin>)> = OnceLock::new();
    GUARD.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let mut made = tempfile::Builder::new();
        made.prefix("lockgate-store-");
        let dir = if memory.is_dir() { made.tempdir_in(memory) } else { made.tempdir() }.unwrap().keep();
        open_to_all(&dir);
        // PostgreSQL leaves shared memory behind unless it may end by itself.
        let script = r#"while read -r pid; do pids="$pids $pid"; done; kill -QUIT $pids; sleep 1; kill -KILL $pids; rm -rf "$0""#;
        let mut shell = Command::new("/bin/sh")
            .args(["-c", script])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        (dir, Mutex::new(shell.stdin.take().unwrap()))
    })
}

fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A new directory that goes when the test process does.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let dir = tempfile::Builder::new().prefix(name).tempdir_in(&guard().0).unwrap().keep();
    open_to_all(&dir);
    dir
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A running server; ends when dropped.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(mut command: Command, log: PathBuf, package: &str) -> Self {
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let spawned = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).process_group(0).spawn();
        let child = spawned.unwrap_or_else(|error| {
            panic!("{} cannot be started: {error}. Install the package {package} (make test-deps)", command.get_program().display())
        });
        writeln!(guard().1.lock().unwrap(), "{}", child.id()).unwrap();
        Self { child, log }
    }

    /// Waits until somebody accepts connections there.
    fn until_listening(&mut self, port: u16) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended with {status}:\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
            }
            assert!(Instant::now() < deadline, "the server does not listen:\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// As a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn stop(&mut self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.stop(rustix::process::Signal::QUIT);
        }
    }
}

/// Files for TLS, one authority for all.
pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    pub(crate) server: (PathBuf, PathBuf),
    /// Of the user [`USER`].
    pub(crate) client: (PathBuf, PathBuf),
    /// An authority that signed nothing.
    pub(crate) other_ca: PathBuf,
}

pub(crate) fn certificates() -> &'static Certificates {
    static FILES: OnceLock<Certificates> = OnceLock::new();
    FILES.get_or_init(|| {
        let dir = scratch("tls-");
        let authority = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let path = dir.join(format!("{name}.pem"));
            std::fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
            (path, rcgen::Issuer::new(params, key))
        };
        let (ca, issuer) = authority("ca");
        let signed = |name: &str, names: &[&str]| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, USER);
            let paths = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
            std::fs::write(&paths.0, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
            std::fs::write(&paths.1, key.serialize_pem()).unwrap();
            paths
        };
        Certificates {
            server: signed("server", &["localhost", "127.0.0.1"]),
            client: signed("client", &[]),
            other_ca: authority("other").0,
            ca,
        }
    })
}

/// The file with [`PASSWORD`] in it.
pub(crate) fn password_file() -> PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = scratch("password-").join("password");
        std::fs::write(&path, format!("{PASSWORD}\n")).unwrap();
        path
    })
    .clone()
}

/// The newest PostgreSQL that is installed.
fn postgres_program(name: &str) -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some((entry.as_ref().ok()?.file_name().to_str()?.parse().ok()?, entry.ok()?.path().join("bin").join(name))))
        .filter(|(_, path)| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("PostgreSQL's {name} is not there. Install the package postgresql (make test-deps)")).1
}

/// As the user `postgres` when this is root.
fn unprivileged(program: PathBuf) -> Command {
    if rustix::process::getuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
        command.current_dir("/");
        command
    } else {
        Command::new(program)
    }
}

fn give_away(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = if path.is_dir() { 0o700 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    if rustix::process::getuid().is_root() {
        let output = Command::new("chown").arg("postgres:postgres").arg(path).output().unwrap();
        assert!(output.status.success(), "there is no user postgres. Install the package postgresql (make test-deps)");
    }
}

fn run(mut command: Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display()));
    assert!(output.status.success(), "{command:?}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

/// A PostgreSQL of its own.
pub(crate) struct Pg {
    pub(crate) dir: PathBuf,
    pub(crate) port: u16,
    pub(crate) running: Running,
}

impl Pg {
    pub(crate) fn start() -> Self {
        let home = scratch("postgres-");
        give_away(&home);
        let dir = home.join("data");
        let secret = home.join("password");
        std::fs::copy(password_file(), &secret).unwrap();
        give_away(&secret);
        let mut initdb = unprivileged(postgres_program("initdb"));
        initdb.args(["--username", USER, "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--no-locale", "--no-instructions"]);
        initdb.arg("--pwfile").arg(&secret).arg("-D").arg(&dir);
        run(initdb);
        let files = certificates();
        for (from, to) in [(&files.server.0, "server.crt"), (&files.server.1, "server.key"), (&files.ca, "ca.pem")] {
            std::fs::copy(from, dir.join(to)).unwrap();
            give_away(&dir.join(to));
        }
        let access =
            "hostssl all,replication by_certificate 127.0.0.1/32 cert map=by_name\nhost all,replication all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(dir.join("pg_hba.conf"), access).unwrap();
        std::fs::write(dir.join("pg_ident.conf"), format!("by_name {USER} by_certificate\n")).unwrap();
        let settings = "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\nmax_connections = 200\nshared_buffers = 32MB\ndynamic_shared_memory_type = mmap\n\
             ssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\nssl_ca_file = 'ca.pem'\nwal_level = replica\n";
        let mut conf = std::fs::File::options().append(true).open(dir.join("postgresql.conf")).unwrap();
        conf.write_all(settings.as_bytes()).unwrap();
        Self::run(dir)
    }

    /// The server on what is in the directory.
    fn run(dir: PathBuf) -> Self {
        let port = free_port();
        let running = Self::server(&dir, port);
        Self { dir, port, running }
    }

    fn server(dir: &Path, port: u16) -> Running {
        let mut command = unprivileged(postgres_program("postgres"));
        command.arg("-D").arg(dir).args(["-p", &port.to_string()]);
        let mut running = Running::start(command, dir.with_extension("log"), "postgresql");
        running.until_listening(port);
        // It listens before it is ready, and a standby before it can be promoted.
        let ready = || {
            let mut ask = Command::new(postgres_program("pg_isready"));
            ask.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]).env("PGSSLMODE", "disable").status().unwrap().success()
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !ready() {
            assert!(Instant::now() < deadline, "PostgreSQL is not ready");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        running
    }

    /// A copy that follows this one, ready to be promoted.
    pub(crate) fn standby(&self) -> Self {
        let home = scratch("standby-");
        give_away(&home);
        let dir = home.join("data");
        let mut copy = unprivileged(postgres_program("pg_basebackup"));
        copy.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", USER, "-R", "-c", "fast", "--no-sync", "-D"]).arg(&dir);
        copy.env("PGPASSWORD", PASSWORD).env("PGSSLMODE", "disable");
        run(copy);
        Self::run(dir)
    }

    pub(crate) fn promote(&self) {
        let mut command = unprivileged(postgres_program("pg_ctl"));
        command.args(["promote", "-w", "-D"]).arg(&self.dir);
        run(command);
    }

    /// Starts again at the same port after it was killed or stopped.
    pub(crate) fn restart(&mut self) {
        self.running = Self::server(&self.dir, self.port);
    }

    pub(crate) fn sql(&self, text: &str) {
        let mut psql = Command::new(postgres_program("psql"));
        psql.args([
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
            "-U",
            USER,
            "-d",
            "postgres",
            "-v",
            "ON_ERROR_STOP=1",
            "-q",
            "-c",
            text,
        ]);
        psql.env("PGPASSWORD", PASSWORD);
        run(psql);
    }
}

/// The one that tests share.
pub(crate) fn postgres() -> &'static Pg {
    static SHARED: OnceLock<Pg> = OnceLock::new();
    SHARED.get_or_init(Pg::start)
}

/// The port of a transaction-pooling proxy before the shared PostgreSQL: a few server connections for everyone.
pub(crate) fn pgbouncer() -> u16 {
    static SHARED: OnceLock<(Running, u16)> = OnceLock::new();
    SHARED
        .get_or_init(|| {
            let home = scratch("pgbouncer-");
            give_away(&home);
            let port = free_port();
            let users = home.join("users");
            std::fs::write(&users, format!("\"{USER}\" \"{PASSWORD}\"\n")).unwrap();
            give_away(&users);
            let settings = home.join("pgbouncer.ini");
            std::fs::write(
                &settings,
                format!(
                    "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
                     auth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\ndefault_pool_size = 4\nmax_client_conn = 200\n",
                    postgres().port,
                    users.display()
                ),
            )
            .unwrap();
            give_away(&settings);
            let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].map(PathBuf::from).into_iter().find(|path| path.exists());
            let program = program.unwrap_or_else(|| panic!("pgbouncer is not there. Install the package pgbouncer (make test-deps)"));
            let mut command = unprivileged(program);
            command.arg(&settings);
            let mut running = Running::start(command, home.join("log"), "pgbouncer");
            running.until_listening(port);
            (running, port)
        })
        .1
}

/// An etcd of its own, of one member.
pub(crate) struct Etcd {
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
        let (dir, port, peer) = (scratch("etcd-"), free_port(), free_port());
        let extra: Vec<String> = extra.iter().map(|text| (*text).to_owned()).collect();
        let running = Self::server(&dir, port, peer, tls, &extra);
        Self { dir, port, peer, tls, extra, running }
    }

    fn server(dir: &Path, port: u16, peer: u16, tls: bool, extra: &[String]) -> Running {
        let clients = format!("{}://127.0.0.1:{port}", if tls { "https" } else { "http" });
        let peers = format!("http://127.0.0.1:{peer}");
        let mut command = Command::new("etcd");
        command.args(["--name=one", "--log-level=error", &format!("--initial-cluster=one={peers}")]);
        command.args([format!("--listen-client-urls={clients}"), format!("--advertise-client-urls={clients}")]);
        command.args([format!("--listen-peer-urls={peers}"), format!("--initial-advertise-peer-urls={peers}")]);
        command.arg("--data-dir").arg(dir.join("data")).args(extra);
        if tls {
            let files = certificates();
            command.arg("--cert-file").arg(&files.server.0).arg("--key-file").arg(&files.server.1);
            command.arg("--trusted-ca-file").arg(&files.ca).arg("--client-cert-auth");
        }
        let mut running = Running::start(command, dir.join("log"), "etcd-server");
        running.until_listening(port);
        running
    }

    pub(crate) fn restart(&mut self) {
        self.running = Self::server(&self.dir, self.port, self.peer, self.tls, &self.extra);
    }

    /// Starts again on what a snapshot holds.
    pub(crate) fn restore(&mut self, snapshot: &Path) {
        self.running.kill();
        let data = self.dir.join("data");
        std::fs::remove_dir_all(&data).unwrap();
        let peers = format!("http://127.0.0.1:{}", self.peer);
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["snapshot", "restore", "--name=one"]).arg(snapshot).arg("--data-dir").arg(&data);
        command.args([format!("--initial-cluster=one={peers}"), format!("--initial-advertise-peer-urls={peers}")]);
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
}

/// The one that tests share.
pub(crate) fn etcd() -> &'static Etcd {
    static SHARED: OnceLock<Etcd> = OnceLock::new();
    SHARED.get_or_init(|| Etcd::start(&[]))
}

/// A name that no other test uses.
pub(crate) fn unique(prefix: &str) -> String {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    format!("{prefix}{}", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

/// A proxy before a server, to do it harm.
pub(crate) async fn before(port: u16) -> Proxy {
    Proxy::start(port).await
}
