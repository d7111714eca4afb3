//! Many Auth Services of three majors, started at once on one store, some of them killed: who wrote what is proved from the wire.
//!
//! Rules G5 and G9. Between each process and the store stands a witness ([`super::witness`]), so a write is told by who sent it, whatever
//! he claims; every transaction in the store's own history must have one writer, inside the Auth window of that moment. Whoever was
//! refused says in one line which release is the next legal one. `LOCKGATE_MANY_AUTHS`, `LOCKGATE_ROUNDS` make it longer (`make soak`).

use super::{
    servers::{Etcd, Postgres, Written},
    witness::{Names, Witness, judge},
};
use harness::{Run, binary, cluster::free_port, eventually, process::Running};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// For all of a round to have begun, or been refused.
const DECIDED: Duration = Duration::from_secs(240);
/// How long those that serve are left to write.
const SERVING: Duration = Duration::from_secs(3);

fn asked(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

struct One {
    major: u64,
    running: Running,
    witness: Witness,
    dies: Option<Instant>,
    killed: bool,
}

impl One {
    fn start(home: &Path, number: usize, (program, major): &(PathBuf, u64), store: u16, storage: &dyn Fn(u16) -> String) -> Self {
        let (config, witness) = (home.join(format!("auth{number}.yaml")), Witness::before(store));
        let yaml = format!(
            "version: v1\nlockgate:\n  nodename: auth{number}\n  data_dir: {}\n  storage: {}\nauth_service:\n  enabled: true\n  listen_addr: 127.0.0.1:{}\n  cluster_name: demo\nproxy_service: {{enabled: false}}\nssh_service: {{enabled: false}}\n",
            home.join(format!("auth{number}")).display(),
            storage(witness.port),
            free_port()
        );
        fs::write(&config, yaml).unwrap();
        let run = Run::new(program).args(["start", "--config"]).arg(&config);
        let running = Running::start(&run.into_command(), &home.join(format!("auth{number}.log")));
        Self { major: *major, running, witness, dies: None, killed: false }
    }

    fn serves(&mut self) -> bool {
        !self.killed && self.running.ended().is_none() && self.running.log().contains("the Auth Service listens")
    }
    fn refused(&mut self) -> bool {
        !self.killed && self.running.ended().is_some()
    }
    /// The most memory it ever had, in MiB.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.running.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
    }
}

/// Starts them, kills half of them at moments by chance, and waits until the others serve or were refused.
fn round(home: &Path, many: usize, store: u16, storage: &dyn Fn(u16) -> String) -> Vec<One> {
    let programs = [
        (binary::current().to_owned(), binary::MAJOR as u64),
        (binary::claiming(binary::ONE_AHEAD), binary::MAJOR as u64 + 1),
        (binary::claiming(binary::TWO_AHEAD), binary::MAJOR as u64 + 2),
    ];
    let began = Instant::now();
    let mut all: Vec<One> = (0..many).map(|number| One::start(home, number, &programs[rand::random_range(0..3)], store, storage)).collect();
    // Some die before they have read anything, some in their first writes, some while they serve.
    let longest = Duration::from_millis(300 * many as u64) + SERVING;
    for one in all.iter_mut().filter(|_| rand::random()) {
        one.dies = Some(began + longest.mul_f64(rand::random()));
    }
    eventually(DECIDED, "everybody serves, was refused, or is dead", || {
        for one in all.iter_mut().filter(|one| !one.killed && one.dies.is_some_and(|at| Instant::now() >= at)) {
            if one.running.ended().is_none() {
                one.running.kill();
                one.killed = true;
            }
            one.dies = None;
        }
        let over = all.iter_mut().all(|one| one.dies.is_none() && (one.killed || one.refused() || one.serves()));
        over.then_some(())
    });
    let until = Instant::now() + SERVING;
    eventually(SERVING * 2, "they have served", || (Instant::now() >= until).then_some(()));
    let serving: Vec<&mut One> = all.iter_mut().filter_map(|one| one.serves().then_some(one)).collect();
    let memory = serving.iter().map(|one| one.memory()).max().unwrap_or(0);
    eprintln!("{many} processes, {:.1} s; {} serve, with at most {memory} MiB each", began.elapsed().as_secs_f64(), serving.len());
    all
}

/// Ends everybody, reads the history, and judges every transaction in it.
fn prove(mut all: Vec<One>, history: impl FnOnce() -> Vec<Written>) {
    let refused: Vec<(u64, String)> = all.iter_mut().filter_map(|one| one.refused().then(|| (one.major, one.running.log()))).collect();
    all.iter_mut().for_each(|one| one.running.kill());
    let history = history();
    let names = Names::of(&history);
    let mut writers: BTreeMap<Vec<u8>, Vec<(usize, u64)>> = BTreeMap::new();
    for (number, one) in all.iter().enumerate() {
        for name in one.witness.sent(&names) {
            writers.entry(name).or_default().push((number, one.major));
        }
    }
    assert_eq!(judge(&history, &writers), Vec::<String>::new());
    let majors: BTreeSet<u64> = windows(&history);
    for (major, log) in &refused {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("the latest ")).collect();
        assert!(log.contains("LG-VERSION-") && lines.len() == 1, "one of major {major} ended with\n{log}");
        let named = lines[0].split("the latest ").nth(1).unwrap();
        let next: u64 = named.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap();
        // Behind the cluster: its own major. Two ahead: the one between.
        let legal = if *major < next { majors.contains(&next) } else { next < *major && majors.contains(&(next - 1)) };
        assert!(legal, "one of major {major} was told to use {next}, beside {majors:?}");
    }
    let wrote: BTreeSet<usize> = writers.values().flatten().map(|(number, _)| *number).collect();
    eprintln!(
        "{} transactions by {} processes, all allowed; {} refused in one line; majors {majors:?}",
        history.len(),
        wrote.len(),
        refused.len()
    );
    assert!(!history.is_empty() && !wrote.is_empty());
}

/// The majors that ever served.
fn windows(history: &[Written]) -> BTreeSet<u64> {
    let records = history.iter().filter_map(|written| written.control.as_ref());
    records.map(|record| store::control::parse(record).unwrap().windows["auth"].clone()).flat_map(|window| window.lo..=window.hi).collect()
}

#[test]
fn g5_and_g9_fifty_auth_processes_of_three_majors_at_once_on_postgresql_with_kills_never_write_a_forbidden_version() {
    for _ in 0..asked("LOCKGATE_ROUNDS", 1) {
        let (server, home) = (Postgres::start(), tempfile::tempdir().unwrap());
        let all = round(home.path(), asked("LOCKGATE_MANY_AUTHS", 50), server.port, &|port| Postgres::storage_at(&[port]));
        eprintln!("{} connections", server.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lockgate'").trim());
        prove(all, || server.history());
    }
}

#[test]
fn g5_and_g9_many_auth_processes_of_three_majors_at_once_on_etcd_with_kills_never_write_a_forbidden_version() {
    for _ in 0..asked("LOCKGATE_ROUNDS", 1) {
        let (server, home) = (Etcd::start(), tempfile::tempdir().unwrap());
        let all = round(home.path(), asked("LOCKGATE_MANY_AUTHS", 12), server.port, &Etcd::storage_at);
        prove(all, || server.history());
    }
}
