//! Real servers for the drivers behind a network: PostgreSQL, pgbouncer and etcd from Debian's packages.
//!
//! Those that tests share are started once, at first need; tests that stop or fill a server start their own. All listen on free ports
//! of loopback and keep their files in memory where the system has room there. A missing program is a failure that names the
//! package. A shell that holds the reading end of a pipe ends everything and removes the files when the test process is gone,
//! however it went. PostgreSQL refuses to run as root, so then its programs run as the user that the package makes.
//! The tests of crate `migrate` include this module by its path: nothing here may name another module of these tests.

mod etcd;
mod postgres;
mod tls;

pub(crate) use etcd::{Cluster, Etcd, etcd, etcd_options};
pub(crate) use postgres::{PASSWORD, Pg, USER, password_file, pgbouncer, postgres, postgres_options};
pub(crate) use tls::certificates;

use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

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

    /// Stops the server and its children, as a disk would that does not answer, or lets them go on.
    pub(crate) fn freeze(&self, frozen: bool) {
        use rustix::process::{Pid, Signal, kill_process};
        let own = self.pid().as_raw_nonzero();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        for pid in children.chain([self.pid()]) {
            // A child may have ended meanwhile.
            let _ended = kill_process(pid, if frozen { Signal::STOP } else { Signal::CONT });
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
        self.freeze(false);
        // It may have ended already.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.stop(rustix::process::Signal::QUIT);
        }
    }
}

/// What it says, once it has ended well.
fn run(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display()));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// A name that no other test uses.
pub(crate) fn unique(prefix: &str) -> String {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    format!("{prefix}{}", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}
