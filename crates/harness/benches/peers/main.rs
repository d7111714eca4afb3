//! Lockgate against the OpenSSH, PostgreSQL, etcd and SQLite of the same machine, in one run, interleaved: what `make bench` runs. Never
//! part of tests.
//!
//! For sessions, one cluster of three processes (Auth, Proxy, SSH Service), two `sshd` with certificates on both sides, everything on loopback; for the large
//! figures (`raw`, `scale`), stores and clusters of their own.
//! Contestants take turns within a round, so that a machine that slows down slows all of them; figures are medians of a round's
//! commands, from process start to process end. `bench/RESULTS.md` is written anew from what this run measured and nothing else;
//! why a figure is as it is stands in `bench/NOTES.md`, by hand. `QUICK=1` is a smaller run for work on one figure, printed and
//! not written; `ONLY=setup,bulk` picks cases, `DRIVERS=etcd` stores. Every process started here dies with this one.
#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a bench: it fails by panicking, and prints its progress"
)]

mod clients;
mod fanout;
mod fleet;
mod large;
mod logins;
mod measure;
mod openssh;
mod process;
mod raw;
mod report;
mod scale;
mod sessions;
mod stores;

use harness::{Cluster, Person, Run, Setup, binary, person::somebody};
use openssh::OpenSsh;
use report::Report;
use std::{
    fs,
    time::{Duration, Instant},
};

/// How much is done.
#[derive(Clone, Copy, Debug)]
struct Scale {
    /// Sessions of each contestant, one after the other.
    rounds: usize,
    /// Sessions at once.
    crowd: usize,
    /// Bytes of one transfer, and how often each contestant carries them each way.
    bulk: u64,
    bulk_rounds: usize,
    /// Logins in all, and clients that log in at once.
    logins: usize,
    clients: usize,
    /// Hosts that join, and how many of them hold a tunnel.
    hosts: usize,
    tunnels: usize,
    /// Runs of `tsh ls`, of `tsh version`.
    listings: usize,
    starts: usize,
    /// Hosts in a filled store: SQLite at each, the others at the last.
    large: [usize; 3],
    /// Changes one at a time, and how long heartbeats are sent.
    changes: usize,
    beating: Duration,
    /// Documents written to each store by each contestant in a round, and rounds.
    raw: usize,
    raw_rounds: usize,
}

const FULL: Scale = Scale {
    rounds: 25,
    crowd: 100,
    bulk: 1 << 30,
    bulk_rounds: 3,
    logins: 300,
    clients: 16,
    hosts: 10_000,
    tunnels: 2_000,
    listings: 15,
    starts: 40,
    large: [1_000, 10_000, 100_000],
    changes: 100,
    beating: Duration::from_secs(3),
    raw: 10_000,
    raw_rounds: 3,
};
const QUICK: Scale = Scale {
    rounds: 7,
    crowd: 20,
    bulk: 256 << 20,
    bulk_rounds: 1,
    logins: 60,
    clients: 8,
    hosts: 1_000,
    tunnels: 500,
    listings: 7,
    starts: 10,
    large: [1_000, 3_000, 10_000],
    changes: 20,
    beating: Duration::from_secs(1),
    raw: 4_000,
    raw_rounds: 1,
};

/// What every case works with.
struct World {
    scale: Scale,
    cluster: Cluster,
    alice: Person,
    /// The account on the host, the same for everyone.
    login: &'static str,
    peer: OpenSsh,
    runtime: tokio::runtime::Runtime,
}

fn main() {
    // `cargo bench` passes `--bench`; `cargo test --benches` does not, and is not asked to measure.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let quick = std::env::var_os("QUICK").is_some_and(|value| value != "0" && !value.is_empty());
    let only = std::env::var("ONLY").unwrap_or_default();
    let wanted = |case: &str| only.is_empty() || only.split(',').any(|word| word == case);
    let began = Instant::now();
    process::raise_open_files();

    step("a cluster of three processes, and two sshd");
    let program = binary::current();
    // One measures releases and what will be one; whether this is a pre-release does not matter here.
    let cluster = Cluster::with(Setup { name: "bench".into(), split: true, allow_prerelease: true, ..Setup::default() });
    let login = account();
    let alice = cluster.person("alice", &["access"], &[login]);
    let peer = OpenSsh::start(&cluster.home.join("openssh"), login);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let world = World { scale: if quick { QUICK } else { FULL }, cluster, alice, login, peer, runtime };
    let mut report = Report::new(program, quick);

    type Case = fn(&World, &mut Report);
    let cases: [(&str, Case); 9] = [
        ("start", clients::start_up),
        ("setup", sessions::set_up),
        ("crowd", sessions::crowd),
        ("bulk", sessions::bulk),
        ("logins", logins::logins),
        ("helper", clients::helper),
        ("fleet", fleet::fleet),
        ("raw", raw::raw),
        ("scale", scale::scale),
    ];
    for (name, case) in cases {
        if wanted(name) {
            let start = Instant::now();
            case(&world, &mut report);
            step(&format!("{name} took {:.0} s", start.elapsed().as_secs_f64()));
        }
    }
    report.took(began.elapsed());
    let text = report.render();
    let path = binary::root().join("bench/RESULTS.md");
    if quick || !only.is_empty() || std::env::var_os("DRIVERS").is_some() {
        println!("{text}");
    } else {
        fs::write(&path, &text).expect("write bench/RESULTS.md");
        println!("{}", report.summary());
        step(&format!("written to {}", path.display()));
    }
}

/// What the program under test claims to be; the hosts and clients made here claim the same.
fn version() -> types::Version {
    static VERSION: std::sync::OnceLock<types::Version> = std::sync::OnceLock::new();
    let said = || Run::new(binary::current()).arg("version").go().text();
    let parse = |said: String| said.split_whitespace().find_map(|word| word.strip_prefix('v')?.parse().ok());
    VERSION.get_or_init(|| parse(said()).expect("a version")).clone()
}

/// An account with a plain `/bin/sh`, when there is the right to have one: what a person's shell reads at its start is not what
/// is measured here, and may take longer than everything else.
fn account() -> &'static str {
    let login = somebody();
    if nix::unistd::geteuid().is_root() {
        // Without a password but not locked: without PAM, sshd refuses accounts that are locked.
        Run::new("usermod").args(["-p", "*", login]).go().ok();
    }
    login
}

/// One line of progress.
fn step(text: &str) {
    eprintln!("bench: {text}");
}

/// What one command may take before the bench gives up.
const COMMAND: Duration = Duration::from_secs(120);
