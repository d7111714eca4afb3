//! Times commands from start to end, in turns, and sums series up.
//!
//! The end of a process is waited for with a pidfd and not by polling, so that a few milliseconds can be told apart; a
//! command that does not end is killed and fails the bench.

use crate::COMMAND;
use harness::Run;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Durations of the same thing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<Duration>);

impl Series {
    pub(crate) fn push(&mut self, one: Duration) {
        self.0.push(one);
    }
    fn sorted(&self) -> Vec<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort();
        sorted
    }
    pub(crate) fn median(&self) -> Duration {
        let sorted = self.sorted();
        match sorted.len() {
            0 => Duration::ZERO,
            len if len % 2 == 1 => sorted[len / 2],
            len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2,
        }
    }
    pub(crate) fn fastest(&self) -> Duration {
        self.0.iter().min().copied().unwrap_or_default()
    }
    /// Nine of ten were not slower.
    pub(crate) fn ninth(&self) -> Duration {
        self.within(0.9)
    }
    /// So large a share was not slower.
    pub(crate) fn within(&self, share: f64) -> Duration {
        let sorted = self.sorted();
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
    /// This one's median in units of the other's.
    pub(crate) fn over(&self, other: &Series) -> f64 {
        self.median().as_secs_f64() / other.median().as_secs_f64()
    }
}

/// Who takes part: a name for the table, and the command, made anew for each turn.
pub(crate) struct Contestant<'a> {
    pub(crate) name: &'static str,
    pub(crate) command: Box<dyn Fn() -> Run + 'a>,
}

impl<'a> Contestant<'a> {
    pub(crate) fn new(name: &'static str, command: impl Fn() -> Run + 'a) -> Self {
        Self { name, command: Box::new(command) }
    }
    fn start(&self, stdin: Stdio) -> Started {
        start(self.name, (self.command)().into_command(), stdin)
    }
}

pub(crate) struct Started {
    name: &'static str,
    child: Child,
    began: Instant,
}

fn start(name: &'static str, mut command: Command, stdin: Stdio) -> Started {
    command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped());
    let began = Instant::now();
    let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
    Started { name, child, began }
}

impl Started {
    /// How long it ran, or what it said when it failed.
    fn end(mut self) -> Result<Duration, String> {
        let ended = ends(&self.child, COMMAND);
        let took = self.began.elapsed();
        if !ended {
            let _already_gone = self.child.kill();
        }
        let done = self.child.wait_with_output().map_err(|error| format!("{}: {error}", self.name))?;
        match (ended, done.status.success()) {
            (true, true) => Ok(took),
            (true, false) => Err(format!("{}: {}: {}", self.name, done.status, String::from_utf8_lossy(&done.stderr))),
            (false, _) => Err(format!("{}: did not end within {COMMAND:?}", self.name)),
        }
    }
}

/// Whether the process ends before the deadline.
fn ends(child: &Child, deadline: Duration) -> bool {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("a pidfd");
    let limit = Timespec::try_from(deadline).expect("a timespec");
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// One run, which must succeed.
pub(crate) fn once(contestant: &Contestant<'_>) -> Duration {
    contestant.start(Stdio::null()).end().unwrap_or_else(|error| panic!("{error}"))
}

/// Everyone once without counting, then `rounds` in which everyone has one turn.
pub(crate) fn in_turns(contestants: &[Contestant<'_>], rounds: usize, mut turn: impl FnMut(&Contestant<'_>) -> Duration) -> Vec<Series> {
    for contestant in contestants {
        let _uncounted = turn(contestant);
    }
    let mut series = vec![Series::default(); contestants.len()];
    for _ in 0..rounds {
        for (contestant, series) in contestants.iter().zip(&mut series) {
            series.push(turn(contestant));
        }
    }
    series
}

/// One run that is fed `bytes` zeros by a pipe.
pub(crate) fn fed(contestant: &Contestant<'_>, bytes: u64) -> Duration {
    let mut head = Command::new("head").args(["-c", &bytes.to_string(), "/dev/zero"]).stdout(Stdio::piped()).spawn().expect("head");
    let zeros = head.stdout.take().expect("piped");
    let took = contestant.start(zeros.into()).end();
    let _when_the_pipe_breaks = head.wait();
    took.unwrap_or_else(|error| panic!("{error}"))
}

/// `count` at once: until the last has ended, and what those said that failed.
pub(crate) fn at_once(contestant: &Contestant<'_>, count: usize) -> (Duration, Vec<String>) {
    let began = Instant::now();
    let started: Vec<Started> = (0..count).map(|_| contestant.start(Stdio::null())).collect();
    let failed = started.into_iter().filter_map(|one| one.end().err()).collect();
    (began.elapsed(), failed)
}

/// Milliseconds for a table.
pub(crate) fn ms(length: Duration) -> String {
    let ms = length.as_secs_f64() * 1000.0;
    if ms < 20.0 { format!("{ms:.1}") } else { format!("{ms:.0}") }
}
