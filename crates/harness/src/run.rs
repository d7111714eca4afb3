//! Runs a command to its end: input, both outputs, exit status, and a deadline after which it is killed and the test fails.

use crate::wait::pause;
use nix::{sys::signal::Signal, unistd::Pid};
use std::{
    ffi::OsStr,
    io::{Read, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// What a command may take, unless told otherwise.
const DEADLINE: Duration = Duration::from_secs(60);

/// A command to be run. Its environment is a fixed one: no variable of the person who runs the tests reaches it.
pub struct Run {
    command: Command,
    input: Vec<u8>,
    deadline: Duration,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The line that was run, for messages.
    pub line: String,
    /// 128 + n when a signal ended it.
    pub status: i32,
    pub out: Vec<u8>,
    pub err: String,
}

impl Run {
    pub fn new(program: impl AsRef<OsStr>) -> Run {
        let mut command = Command::new(program);
        command.env_clear();
        for name in ["PATH", "HOME", "USER", "LOGNAME"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("LC_ALL", "C.UTF-8").env("TERM", "dumb");
        Run { command, input: Vec::new(), deadline: DEADLINE }
    }
    #[must_use]
    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Run {
        self.command.arg(word);
        self
    }
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Run {
        self.command.args(words);
        self
    }
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Run {
        self.command.env(name, value);
        self
    }
    #[must_use]
    pub fn dir(mut self, path: &Path) -> Run {
        self.command.current_dir(path);
        self
    }
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Run {
        self.input = bytes.into();
        self
    }
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Run {
        self.deadline = deadline;
        self
    }
    /// The command itself, for a terminal or for a process that goes on beside the test.
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Runs it to the end.
    #[track_caller]
    pub fn go(mut self) -> Ran {
        let line = shown(&self.command);
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        let mut stdin = child.stdin.take().expect("piped");
        let input = std::mem::take(&mut self.input);
        // Ends with a broken pipe when the command does not read it all.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let (out, err) = (drain(child.stdout.take().expect("piped")), drain(child.stderr.take().expect("piped")));
        let status = finish(&mut child, self.deadline);
        let (out, err) = (out.join().expect("reader"), String::from_utf8_lossy(&err.join().expect("reader")).into_owned());
        drop(writer);
        match status {
            Some(status) => Ran { line, status, out, err },
            None => panic!("{line}\ndid not end within {:?}\nstdout: {}\nstderr: {err}", self.deadline, String::from_utf8_lossy(&out)),
        }
    }
}

fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let _until_it_breaks = from.read_to_end(&mut all);
        all
    })
}

/// Waits for the end, kills the whole group at the deadline.
fn finish(child: &mut Child, deadline: Duration) -> Option<i32> {
    let end = Instant::now() + deadline;
    let mut step = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
        }
        if Instant::now() > end {
            let group = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
            let _already_gone = nix::sys::signal::killpg(group, Signal::SIGKILL);
            let _reaped = child.wait();
            return None;
        }
        pause(step);
        step = (step * 2).min(Duration::from_millis(20));
    }
}

pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

impl Ran {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
    /// Must have succeeded; its output.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert_eq!(self.status, 0, "{self}");
        self.text()
    }
    /// Must have succeeded; its output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{self}"))
    }
    /// Must have failed with this status and this text in its messages.
    #[track_caller]
    pub fn fails(&self, status: i32, text: &str) -> &Ran {
        assert_eq!(self.status, status, "{self}");
        assert!(self.err.contains(text), "no \"{text}\" in:\n{self}");
        self
    }
    /// Must have failed, however.
    #[track_caller]
    pub fn refused(&self) -> &Ran {
        assert_ne!(self.status, 0, "{self}");
        self
    }
    /// The code in `[LG-…]`, if there is one.
    pub fn code(&self) -> Option<&str> {
        let from = self.err.find("LG-")?;
        let rest = &self.err[from..];
        Some(&rest[..rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len())])
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let out: String = self.text().chars().take(4000).collect();
        write!(f, "$ {}\nstatus {}\nstdout: {out}\nstderr: {}", self.line, self.status, self.err)
    }
}
