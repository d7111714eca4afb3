//! What ends programs when the service no longer can: a small process beside it that outlives `kill -9`.
//!
//! A program on a terminal hears `HUP` from the kernel when the service is gone. One without would run on, recorded and
//! watched by nobody. So each program's process group stands on a list at the other end of a pipe, kept by a few lines of
//! shell; the pipe's end is the service's end, however it came, and whoever is on the list then gets `HUP` and, some
//! seconds later, `KILL`. (`PR_SET_PDEATHSIG` would reach the shell that runs a command, but not the command, and is
//! undone by every program that changes its user.) A shell, not this program again: it can be started from anywhere, and
//! whoever kills every process called `lockgate` spares it.
//!
//! One for all sessions of a service, started with the first. What a program moved into a session of its own, and what an
//! ended session left in the background, is not on the list. `super::session` puts programs on it and takes them off.

use rustix::{io::ioctl_fionbio, process::Pid};
use std::{
    collections::BTreeSet,
    io::{self, PipeWriter, Write},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::process::{Child, Command};

const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
groups=' '
while read -r sign group; do
    case $sign in
    +) groups="$groups$group " ;;
    -) case $groups in *" $group "*) groups="${groups%% $group *} ${groups#* $group }" ;; esac ;;
    esac
done
[ "$groups" = ' ' ] && exit
for group in $groups; do kill -s HUP -- "-$group"; kill -s CONT -- "-$group"; done
sleep 3
for group in $groups; do kill -s KILL -- "-$group"; done
"#;

/// The list of programs that run. Clones share it; with the last one, they end.
#[derive(Clone, Debug, Default)]
pub struct Guard(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    groups: BTreeSet<i32>,
    helper: Option<Helper>,
}

#[derive(Debug)]
struct Helper {
    pipe: PipeWriter,
    /// Reaped when it ends; it outlives us otherwise.
    _child: Child,
}

impl Guard {
    /// From now on this group ends with the service.
    pub(crate) fn add(&self, group: Pid) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.groups.insert(group.as_raw_pid());
        let told = match &mut state.helper {
            Some(helper) => helper.say('+', group.as_raw_pid()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        match told {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => state.start(),
            Err(error) => tracing::warn!(%error, "a program may outlive a killed service: the process that would end it does not listen"),
            Ok(()) => {}
        }
    }

    /// This group has ended, or may go on.
    pub(crate) fn remove(&self, group: Pid) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.groups.remove(&group.as_raw_pid());
        if let Some(helper) = &mut state.helper {
            // One that is gone has forgotten it.
            let _gone = helper.say('-', group.as_raw_pid());
        }
    }
}

impl State {
    /// Starts a process with the whole list: the first, or instead of one that died.
    fn start(&mut self) {
        let started = Helper::start().and_then(|mut helper| {
            self.groups.iter().try_for_each(|group| helper.say('+', *group))?;
            Ok(helper)
        });
        match started {
            Ok(helper) => self.helper = Some(helper),
            Err(error) => tracing::warn!(%error, "programs may outlive a killed service: the process that would end them does not start"),
        }
    }
}

impl Helper {
    fn start() -> io::Result<Self> {
        let (far, pipe) = io::pipe()?;
        // A worker must not wait for a process that somebody stopped.
        ioctl_fionbio(&pipe, true)?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "lockgate-guard"]).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
        command.stdin(Stdio::from(far)).stdout(Stdio::null()).stderr(Stdio::null());
        // What a terminal sends to us, it must outlive.
        command.process_group(0).kill_on_drop(false);
        Ok(Self { pipe, _child: command.spawn()? })
    }

    /// One line, which a pipe takes whole or not at all.
    fn say(&mut self, sign: char, group: i32) -> io::Result<()> {
        self.pipe.write_all(format!("{sign} {group}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    fn sleeper() -> (Child, Pid) {
        // As sessions have it, also when the tests run under `nohup`.
        let child =
            Command::new("env").args(["--default-signal=HUP", "sleep", "1000"]).process_group(0).kill_on_drop(true).spawn().unwrap();
        let group = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        (child, group)
    }

    async fn signal(child: &mut Child) -> Option<i32> {
        tokio::time::timeout(std::time::Duration::from_secs(20), child.wait()).await.expect("its end").unwrap().signal()
    }

    #[tokio::test]
    async fn who_is_on_the_list_ends_with_it_and_who_was_taken_off_does_not() {
        let guard = Guard::default();
        let mut all = [sleeper(), sleeper(), sleeper(), sleeper()];
        for (_, group) in &all {
            guard.add(*group);
        }
        guard.remove(all[0].1);
        guard.remove(all[2].1);
        guard.remove(all[2].1);
        drop(guard);
        assert_eq!((signal(&mut all[1].0).await, signal(&mut all[3].0).await), (Some(1), Some(1)));
        assert!(all[0].0.try_wait().unwrap().is_none() && all[2].0.try_wait().unwrap().is_none());
    }

    #[tokio::test]
    async fn a_guard_that_died_is_replaced_with_the_whole_list() {
        let guard = Guard::default();
        let mut all = [sleeper(), sleeper()];
        guard.add(all[0].1);
        let mut helper = guard.0.lock().unwrap().helper.take().unwrap();
        helper._child.start_kill().unwrap();
        helper._child.wait().await.unwrap();
        // The child of another test may hold the far end until it has become another program.
        while helper.say('-', 0).is_ok() {
            tokio::task::yield_now().await;
        }
        guard.0.lock().unwrap().helper = Some(helper);
        guard.add(all[1].1);
        drop(guard);
        assert_eq!((signal(&mut all[0].0).await, signal(&mut all[1].0).await), (Some(1), Some(1)));
    }
}
