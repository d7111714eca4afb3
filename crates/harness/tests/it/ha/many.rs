//! Many Auth Services of three majors, started at once on one PostgreSQL, some of them killed: what they wrote is replayed afterwards.
//!
//! Whoever serves writes its seat and its place in the inventory with its version; each such write must be inside the Auth window of the
//! control record at that revision. `LOCKGATE_MANY_AUTHS=50 LOCKGATE_ROUNDS=20` for a long run.

use super::servers::Postgres;
use harness::{Run, binary, cluster::free_port, eventually, process::Running};
use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use store::{Event, Store, postgres};
use types::{Document, Version, control::Window};

fn asked(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

struct One {
    running: Running,
    dies: Option<Instant>,
    killed: bool,
}

fn start(home: &std::path::Path, number: u64, program: &std::path::Path, storage: &str, length: Duration) -> One {
    let config = home.join(format!("auth{number}.yaml"));
    let yaml = format!(
        "version: v1\nlockgate:\n  nodename: auth{number}\n  data_dir: {}\n  storage: {storage}\nauth_service:\n  enabled: true\n  listen_addr: 127.0.0.1:{}\n  cluster_name: demo\nproxy_service: {{enabled: false}}\nssh_service: {{enabled: false}}\n",
        home.join(format!("auth{number}")).display(),
        free_port()
    );
    fs::write(&config, yaml).unwrap();
    let run = Run::new(program).args(["start", "--config"]).arg(&config);
    let running = Running::start(&run.into_command(), &home.join(format!("auth{number}.log")));
    let dies = rand::random::<bool>().then(|| Instant::now() + length.mul_f64(rand::random::<f64>()));
    One { running, dies, killed: false }
}

/// Replays the store's whole history; what was written by a version outside the window of that moment.
async fn forbidden(port: u16) -> (Vec<String>, usize) {
    let options = postgres::Options::new(vec![format!("127.0.0.1:{port}")], "postgres", "lockgate");
    let store = store::Postgres::open(options, Arc::new(store::System)).await.unwrap();
    let mut watch = store.watch(Vec::new(), Some(0)).await.unwrap();
    let last = store.revision().await.unwrap();
    let (mut window, mut broken, mut judged) = (None::<Window>, Vec::new(), 0);
    loop {
        let event = watch.next().await.unwrap().unwrap();
        if let Event::Put(item) = &event {
            let key = item.key.to_string();
            if key == "control" {
                window = Some(store::control::parse(&item.value).unwrap().windows["auth"].clone());
            }
            let version = if key.starts_with("internal/auth/") {
                serde_json::from_slice::<serde_json::Value>(&item.value).unwrap()["version"].as_str().map(str::to_owned)
            } else if key.starts_with("doc/member/") {
                Document::from_json(&item.value).unwrap().spec["version"].as_str().map(str::to_owned)
            } else {
                None
            };
            if let Some(version) = version {
                let major = version.parse::<Version>().unwrap().major();
                judged += 1;
                if window.as_ref().is_none_or(|window| !window.contains(major)) {
                    broken.push(format!("{key} by {version} at {} beside {window:?}", item.revision));
                }
            }
        }
        if event.revision() >= last {
            store.close().await;
            return (broken, judged);
        }
    }
}

#[test]
fn g5_and_g9_many_auth_processes_of_three_majors_at_once_on_postgresql_with_kills_never_write_a_forbidden_version() {
    let (many, rounds, length) = (asked("LOCKGATE_MANY_AUTHS", 9), asked("LOCKGATE_ROUNDS", 2), Duration::from_secs(6));
    let programs: [PathBuf; 3] = [binary::current().to_owned(), binary::claiming("1.4.0"), binary::claiming("2.1.0")];
    for round in 0..rounds {
        let (server, home) = (Postgres::start(), tempfile::tempdir().unwrap());
        let mut all: Vec<One> = (0..many)
            .map(|number| {
                let program = &programs[rand::random_range(0..programs.len())];
                start(home.path(), number, program, &server.storage(), length)
            })
            .collect();
        let until = Instant::now() + length + Duration::from_millis(200 * many);
        eventually(length * 20, "the round is over", || {
            for one in all.iter_mut().filter(|one| !one.killed && one.dies.is_some_and(|at| Instant::now() >= at)) {
                if one.running.ended().is_none() {
                    one.running.kill();
                    one.killed = true;
                }
            }
            (Instant::now() >= until).then_some(())
        });
        let (mut serving, mut refused) = (0, 0);
        for one in all.iter_mut().filter(|one| !one.killed) {
            let log = one.running.log();
            if one.running.ended().is_none() {
                serving += 1;
                continue;
            }
            refused += 1;
            let names_the_next = log.lines().any(|line| line.contains("the latest "));
            assert!(log.contains("LG-VERSION-") && names_the_next, "round {round}: one ended with\n{log}");
        }
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (broken, judged) = runtime.block_on(forbidden(server.port));
        eprintln!("round {round}: {serving} serve, {refused} were refused, the others were killed; {judged} writes judged");
        assert_eq!(broken, Vec::<String>::new(), "round {round}");
    }
}
