//! Live restarts: a program behind a link, so that another can be put in its place while it runs, and the process that leads a member
//! after one has taken over from another.

use crate::{
    cluster::{Member, READY},
    process::Running,
    wait::eventually,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A link to a program, by which services are started.
pub struct Link {
    path: PathBuf,
    _dir: TempDir,
}

impl Link {
    pub fn to(program: &Path) -> Link {
        let dir = tempfile::Builder::new().prefix("lglink").tempdir_in("/tmp").expect("a directory");
        let path = dir.path().join("lockgate");
        symlink(program, &path).expect("a link");
        Link { path, _dir: dir }
    }
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }
    /// From now on it leads to another program.
    pub fn switch(&self, program: &Path) {
        let fresh = self.path.with_extension("new");
        symlink(program, &fresh).expect("a link");
        fs::rename(fresh, &self.path).expect("rename the link");
    }
}

impl Member {
    /// The process that leads, as it wrote down itself.
    pub fn leader(&self) -> u32 {
        let path = self.data_dir.join("lock");
        eventually(READY, "somebody leads", || fs::read_to_string(&path).ok()?.trim().parse().ok())
    }

    /// Sends a signal to the process that leads.
    pub fn tell_leader(&self, signal: Signal) {
        let leader = Pid::from_raw(i32::try_from(self.leader()).expect("a process id"));
        kill(leader, signal).unwrap_or_else(|error| panic!("{signal} to the leader of {}: {error}", self.name));
    }

    /// Waits until another process than this one leads, and every component of it is ready; its id.
    #[track_caller]
    pub fn wait_taken_over(&self, before: u32) -> u32 {
        self.with(Running::leaves_others);
        let what = format!("another process leads {}; log:\n{}", self.name, self.log());
        eventually(READY, &what, || {
            let leader = self.leader();
            (leader != before && self.readyz()?.0 == 200).then_some(leader)
        })
    }

    /// The program anew, and its process in the place of the one that leads.
    #[track_caller]
    pub fn reload(&self) -> u32 {
        let before = self.leader();
        self.with(Running::leaves_others);
        self.tell_leader(Signal::SIGHUP);
        self.wait_taken_over(before)
    }
}
