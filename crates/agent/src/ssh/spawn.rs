//! Starting a process as the target account: the only module of this crate with `unsafe`.
//!
//! The child keeps nothing of the service: no environment (attack table, row 19), no signal dispositions, no descriptors
//! above 2, no groups, no user id. Between `fork` and `exec` only system calls are made, on values prepared before: other
//! threads may hold the allocator's lock at that moment. Whatever fails there fails the start, and the child never runs
//! with the service's rights. Who may be started, and as whom, was decided by the caller ([`super::session`]).
#![allow(unsafe_code, reason = "the hook between fork and exec cannot be written without; every line of it is here")]

use super::account::Account;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use rustix::{
    fs::Mode,
    io::{FdFlags, fcntl_setfd},
    process::{Gid, Resource, Rlimit, Uid, getrlimit, setrlimit},
};
use std::{
    ffi::{CString, OsString},
    io,
    os::{
        fd::{BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
    process::Stdio,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command},
};

/// What to run.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    /// `-bash` for a login shell.
    pub(crate) arg0: OsString,
    pub(crate) args: Vec<OsString>,
    /// The whole environment.
    pub(crate) env: Vec<(OsString, OsString)>,
}

/// Descriptors 0, 1 and 2 of the child.
pub(crate) struct Streams {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// They are one terminal, which becomes the controlling one.
    pub(crate) terminal: bool,
}

/// Starts the program as the account, as leader of a session of its own.
///
/// A service that does not run as root can only start its own account; the caller refuses others before.
pub(crate) fn spawn(launch: &Launch, account: &Account, streams: Streams) -> io::Result<Child> {
    let mut command = Command::new(&launch.program);
    command.arg0(&launch.arg0).args(&launch.args).env_clear().envs(launch.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::from(streams.stdin)).stdout(Stdio::from(streams.stdout)).stderr(Stdio::from(streams.stderr));
    command.kill_on_drop(false);
    let mut child = Prepared::new(account, streams.terminal)?;
    // SAFETY: `Prepared::enter` makes system calls only; it neither allocates nor locks.
    unsafe { command.pre_exec(move || child.enter()) };
    command.spawn()
}

/// A descriptor to be awaited for reading and writing.
pub(crate) fn watch_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open for as long as it lives and always the same one; it is dropped after its registration.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE | Interest::WRITABLE) }?)
}

/// All that the child needs, made before `fork`.
struct Prepared {
    terminal: bool,
    /// `None` when the service is not root: it runs as itself.
    user: Option<(Uid, Gid, Vec<Gid>)>,
    home: CString,
    highest_fd: RawFd,
}

impl Prepared {
    fn new(account: &Account, terminal: bool) -> io::Result<Self> {
        let as_root = rustix::process::geteuid().is_root();
        let groups = account.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        Ok(Self {
            terminal,
            user: as_root.then(|| (Uid::from_raw(account.uid), Gid::from_raw(account.gid), groups)),
            home: CString::new(account.home.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
            highest_fd: highest_fd(),
        })
    }

    /// Runs in the child, after its descriptors 0 to 2 are in place.
    fn enter(&mut self) -> io::Result<()> {
        rustix::process::setsid()?;
        if self.terminal {
            // SAFETY: descriptor 0 was put in place just before and stays open.
            let stdin = unsafe { BorrowedFd::borrow_raw(0) };
            rustix::process::ioctl_tiocsctty(stdin)?;
        }
        rustix::process::umask(Mode::WGRP | Mode::WOTH);
        self.close_all_else();
        default_signals();
        usual_files()?;
        if let Some((uid, gid, groups)) = &self.user {
            rustix::thread::set_thread_groups(groups)?;
            rustix::thread::set_thread_res_gid(*gid, *gid, *gid)?;
            rustix::thread::set_thread_res_uid(*uid, *uid, *uid)?;
            if rustix::process::geteuid() != *uid || rustix::process::getuid() != *uid || rustix::process::getegid() != *gid {
                return Err(io::Error::from(io::ErrorKind::PermissionDenied));
            }
        }
        // As the user: his home may be where root may not look.
        if rustix::process::chdir(self.home.as_c_str()).is_err() {
            rustix::process::chdir(c"/")?;
        }
        Ok(())
    }

    /// Everything in this process is opened close-on-exec; this is for what a library might have opened otherwise.
    fn close_all_else(&self) {
        for fd in 3..=self.highest_fd {
            // SAFETY: the number is only named to the kernel; a closed one answers EBADF, which is as good.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let _closed_already = fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
    }
}

/// The service raised its limit of open files; a program that puts descriptors into a `select` set must not inherit that.
fn usual_files() -> io::Result<()> {
    const USUAL: u64 = 1024;
    let maximum = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(maximum.unwrap_or(USUAL).min(USUAL)), maximum })?)
}

fn default_signals() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        // SAFETY: installs no handler. KILL and STOP answer EINVAL.
        let _fixed = unsafe { sigaction(signal, &default) };
    }
    let _unchanged = SigSet::empty().thread_set_mask();
}

/// The highest descriptor in use, with room for what other threads open meanwhile.
fn highest_fd() -> RawFd {
    let listed = std::fs::read_dir("/proc/self/fd").map(|entries| {
        entries.flatten().filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok())).max().unwrap_or(0)
    });
    listed.unwrap_or(1024).saturating_add(64).min(65_536)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    /// What a shell started as that account prints.
    async fn run(account: &Account, command: &str) -> String {
        let launch = Launch {
            program: "/bin/sh".into(),
            arg0: "sh".into(),
            args: vec!["-c".into(), command.into()],
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        };
        let (out, far) = io::pipe().unwrap();
        let (input, _) = io::pipe().unwrap();
        let streams = Streams { stdin: input.into(), stdout: far.try_clone().unwrap().into(), stderr: far.into(), terminal: false };
        let mut child = spawn(&launch, account, streams).unwrap();
        let mut text = String::new();
        tokio::net::unix::pipe::Receiver::from_owned_fd(out.into()).unwrap().read_to_string(&mut text).await.unwrap();
        child.wait().await.unwrap();
        text
    }

    fn account(uid: u32) -> Account {
        Account { name: "x".into(), uid, gid: uid, groups: vec![uid, 4242], home: "/nowhere".into(), shell: "/bin/sh".into() }
    }

    #[tokio::test]
    async fn a_child_has_all_of_its_account_and_nothing_of_root() {
        let own = rustix::process::geteuid();
        let text =
            run(&account(65_534), "id -u; id -g; id -G; umask; pwd; ps -o sid= -p $$ | tr -d ' ' | grep -qx $$ && echo leader").await;
        if own.is_root() {
            assert_eq!(text.lines().collect::<Vec<_>>(), ["65534", "65534", "65534 4242", "0022", "/", "leader"]);
            assert!(run(&account(65_534), "cat /etc/shadow; chgrp 0 /proc/self/cwd").await.contains("ermission denied"));
        } else {
            assert_eq!(text.lines().next(), Some(own.as_raw().to_string().as_str()));
        }
    }

    #[tokio::test]
    async fn a_child_has_the_usual_limit_of_open_files_whatever_the_service_has() {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
        let text = run(&account(rustix::process::geteuid().as_raw()), "ulimit -Sn; ulimit -Hn").await;
        let limits: Vec<u64> = text.lines().map(|line| line.parse().unwrap_or(u64::MAX)).collect();
        let hard = limit.maximum.unwrap_or(u64::MAX);
        assert_eq!(limits, [hard.min(1024), hard], "{text}");
    }

    #[tokio::test]
    async fn signals_that_the_service_ignores_work_in_the_child() {
        let text = run(&account(rustix::process::geteuid().as_raw()), "grep SigIgn /proc/self/status").await;
        let mask = u64::from_str_radix(text.split_whitespace().last().unwrap(), 16).unwrap();
        // Above 31 are the C library's own.
        assert_eq!(mask & 0x7fff_ffff, 0, "{text}");
    }
}
