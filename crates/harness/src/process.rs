//! A service as a process: its own process group, its log in a file, signals, and the certainty that it does not outlive the
//! tests.
//!
//! Children are told by the kernel when their parent dies (`setpriv --pdeathsig`), which means the *thread* that made them: so
//! all are made by one thread that lives as long as the process. Dropping a [`Running`] kills it.

use crate::{
    run::shown,
    wait::{eventually, pause},
};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        mpsc::{Sender, SyncSender, channel, sync_channel},
    },
    time::{Duration, Instant},
};

struct Order {
    command: Command,
    reply: SyncSender<std::io::Result<Child>>,
}

/// Makes a child that dies with this process.
fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = channel::<Order>();
        let work = move || orders.into_iter().for_each(|mut order: Order| drop(order.reply.send(order.command.spawn())));
        drop(std::thread::Builder::new().name("spawner".into()).spawn(work).expect("a thread"));
        sender
    });
    let (reply, answer) = sync_channel(1);
    spawner.send(Order { command, reply }).expect("the spawner lives");
    answer.recv().expect("the spawner answers")
}

/// A process that goes on beside the test.
pub struct Running {
    child: Child,
    line: String,
    log: PathBuf,
    ended: Option<ExitStatus>,
    /// Another process of its group may go on in its place.
    leaves_others: bool,
}

impl Running {
    /// Starts `command` in its own process group; both outputs are appended to `log`.
    pub fn start(command: &Command, log: &Path) -> Running {
        let line = shown(command);
        let open = || File::options().create(true).append(true).open(log).expect("the log file");
        let mut wrapped = Command::new("setpriv");
        wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args()).env_clear();
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            wrapped.current_dir(directory);
        }
        wrapped.stdin(Stdio::null()).stdout(open()).stderr(open()).process_group(0);
        let child = spawn(wrapped).unwrap_or_else(|error| panic!("{line}: {error}"));
        Running { child, line, log: log.to_owned(), ended: None, leaves_others: false }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
    fn raw_pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    /// From now on its end is not that of its group.
    pub fn leaves_others(&mut self) {
        self.leaves_others = true;
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        kill(self.raw_pid(), signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.line));
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("wait for a child");
        }
        self.ended
    }

    /// Waits for the end; 128 + n when a signal ended it.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> i32 {
        let line = format!("the end of {}", self.line);
        let status = eventually(deadline, &line, || self.ended());
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }

    /// `kill -9`, at once and for all of its group.
    pub fn kill(&mut self) {
        if self.ended().is_none() || self.leaves_others {
            let _already_gone = killpg(self.raw_pid(), Signal::SIGKILL);
            let end = Instant::now() + Duration::from_secs(10);
            while self.ended().is_none() && Instant::now() < end {
                pause(Duration::from_millis(2));
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Lines at level ERROR in a service's log that hold none of `allowed`.
pub fn errors_in(log: &str, allowed: &[String]) -> Vec<String> {
    let is_error = |line: &&str| {
        line.split_whitespace().nth(1) == Some("ERROR") || line.contains("\"level\":\"ERROR\"") || line.contains("panicked at")
    };
    log.lines().filter(is_error).filter(|line| !allowed.iter().any(|text| line.contains(text))).map(str::to_owned).collect()
}
