//! What the kernel says of a process and of the machine: memory, processor time, cores.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{fs, thread::available_parallelism};

/// Memory of a process, KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Everything that is mapped and in memory.
    pub(crate) rss: u64,
    /// Its own: neither files nor shared.
    pub(crate) anonymous: u64,
    /// Its share of what is shared, and its own.
    pub(crate) pss: u64,
}

pub(crate) fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup of a live process");
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
    };
    Memory { rss: field("Rss:"), anonymous: field("Anonymous:"), pss: field("Pss:") }
}

/// Processor seconds that a process has used.
pub(crate) fn cpu_of(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat of a live process");
    // The command's name stands in parentheses and may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    ticks as f64 / USER_HZ
}

/// Processor seconds that everybody on this machine has used.
pub(crate) fn cpu_of_all() -> f64 {
    let text = fs::read_to_string("/proc/stat").expect("/proc/stat");
    let fields: Vec<u64> =
        text.lines().next().expect("cpu").split_whitespace().skip(1).map(|field| field.parse().expect("ticks")).collect();
    // user, nice, system; idle and iowait left out; irq, softirq, steal.
    let busy: u64 = fields.iter().take(3).chain(fields.iter().skip(5).take(3)).sum();
    busy as f64 / USER_HZ
}

/// Ticks per second in `/proc`: a constant of the kernel's interface, whatever the kernel's own clock.
const USER_HZ: f64 = 100.0;

pub(crate) fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Thousands of connections need as many descriptors; children inherit the limit.
pub(crate) fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("raise the limit of open files to what is allowed");
}
