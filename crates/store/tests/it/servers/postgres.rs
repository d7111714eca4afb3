//! PostgreSQL, its standbys, and the proxy pgbouncer before it.

use super::{Running, certificates, free_port, run, scratch, unique};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub(crate) const USER: &str = "lockgate";
pub(crate) const PASSWORD: &str = "in a file, never in an argument";

/// A new schema of the server at that port.
pub(crate) fn postgres_options(port: u16, schema: &str) -> store::postgres::Options {
    let mut options = store::postgres::Options::new(vec![format!("127.0.0.1:{port}")], "postgres", USER);
    options.password_file = Some(password_file());
    options.schema = unique(schema);
    options
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

    /// Changes settings and starts again with them.
    pub(crate) fn set(&mut self, settings: &str) {
        let mut conf = std::fs::File::options().append(true).open(self.dir.join("postgresql.conf")).unwrap();
        conf.write_all(settings.as_bytes()).unwrap();
        self.running.stop(rustix::process::Signal::INT);
        self.restart();
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

    /// What psql prints: values alone, a row in a line.
    pub(crate) fn sql(&self, text: &str) -> String {
        let mut psql = Command::new(postgres_program("psql"));
        psql.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", USER, "-d", "postgres"]);
        psql.args(["-v", "ON_ERROR_STOP=1", "-qAt", "-c", text]).env("PGPASSWORD", PASSWORD);
        run(psql)
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
