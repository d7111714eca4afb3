//! A writer that is stopped, fenced, and wakes up: the store refuses it, whatever it was about to do.
//!
//! The test binary starts itself again as the writer: a real process with several writes under way, stopped by SIGSTOP at a random
//! moment, inside its transaction or outside. While it sleeps its epoch is fenced; then it is woken, and not one of its writes may be
//! younger than the fence. `LOCKGATE_STORE_ROUNDS` says how many times for each driver.

use crate::servers;
use crate::{clock, key};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use store::{Batch, CommitError, Etcd, Key, Memory, Postgres, Sqlite, Store, StoreError, WriterEpoch, etcd, postgres, scan, sqlite};

const PLACE: &str = "LOCKGATE_TEST_ZOMBIE";

/// `driver address name`.
async fn open(place: &str) -> Arc<dyn Store> {
    let mut words = place.split(' ');
    let (driver, address, name) = (words.next().unwrap(), words.next().unwrap().to_owned(), words.next().unwrap());
    match driver {
        "sqlite" => {
            let options = sqlite::Options { busy: Duration::from_millis(40), ..sqlite::Options::default() };
            Arc::new(Sqlite::open_with(address.as_ref(), clock(), options).unwrap())
        }
        "postgres" => {
            let mut options = postgres::Options::new(vec![address], "postgres", servers::USER);
            options.schema = name.into();
            options.password_file = Some(std::env::var_os("LOCKGATE_TEST_PASSWORD").map_or_else(servers::password_file, Into::into));
            options.stall = Duration::from_millis(100);
            Arc::new(Postgres::open(options, clock()).await.unwrap())
        }
        "etcd" => {
            let mut options = etcd::Options::new(vec![address]);
            options.prefix = name.into();
            Arc::new(Etcd::open(options, clock()).await.unwrap())
        }
        _ => panic!("{driver}"),
    }
}

/// For each epoch that it is told: writes until it is fenced, then says how many writes were acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_writes_with_the_epoch_it_is_told() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let store = open(&place).await;
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(tokio::io::stdin()));
    while let Ok(Some(line)) = lines.next_line().await {
        let epoch: u64 = line.parse().unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        futures::future::join_all((0..3).map(|writer| write(Arc::clone(&store), epoch, writer, Arc::clone(&done)))).await;
        say(&format!("fenced {}", done.load(Ordering::SeqCst)));
    }
}

/// To the parent, on a line of its own.
fn say(text: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "\n{text}").unwrap();
}

async fn write(store: Arc<dyn Store>, epoch: u64, writer: usize, done: Arc<AtomicUsize>) {
    for number in 0_usize.. {
        let batch = Batch::new(Some(WriterEpoch(epoch))).put(key(&format!("z/{epoch}/{writer}-{number}")), vec![1; 100], None);
        match store.commit(batch).await {
            Ok(_) => {
                if done.fetch_add(1, Ordering::SeqCst) == 0 && std::env::var_os(PLACE).is_some() {
                    say("writing");
                }
            }
            Err(CommitError::Fenced { .. }) => return,
            Err(CommitError::Ambiguous(_) | CommitError::Store(StoreError::Busy { .. } | StoreError::Unreachable { .. })) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

struct Zombie {
    child: Child,
    commands: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Zombie {
    fn start(place: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "zombie::a_child_writes_with_the_epoch_it_is_told", "--nocapture", "--test-threads=1"])
            .env(PLACE, place)
            .env("LOCKGATE_TEST_PASSWORD", servers::password_file())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { commands: child.stdin.take().unwrap(), lines, child }
    }

    fn tell(&mut self, epoch: u64) {
        writeln!(self.commands, "{epoch}").unwrap();
    }

    /// What stands behind the word in the next line that begins with it.
    fn hear(&mut self, word: &str) -> String {
        let mut lines = self.lines.by_ref().map(|line| line.expect("the child speaks"));
        lines.find_map(|line| line.strip_prefix(word).map(str::to_owned)).expect("the child lives")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Zombie {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }
}

/// The record that lets only later epochs write.
fn fence(by: u64, min: u64) -> Batch {
    Batch::new(Some(WriterEpoch(by))).put(Key::control(), format!(r#"{{"min_writer_epoch":{min}}}"#), None)
}

/// Not one write of the epoch is younger than the fence.
async fn check(store: &dyn Store, epoch: u64, acknowledged: usize, fenced_at: u64) {
    let dir = Key::dir(["z", &epoch.to_string()]).unwrap();
    let items = scan(store, &dir, &dir.prefix_end()).await.unwrap();
    let youngest = items.iter().map(|item| item.revision).max().unwrap_or(0);
    assert!(youngest < fenced_at, "epoch {epoch} wrote at {youngest}, and was fenced at {fenced_at}");
    assert!(items.len() >= acknowledged, "{} of {acknowledged} are there", items.len());
    for items in items.chunks(128) {
        let batch = items.iter().fold(Batch::new(None), |batch, item| batch.delete(item.key.clone()));
        store.commit(batch).await.unwrap();
    }
}

async fn rounds_against(place: String, usual: usize) {
    let store = open(&place).await;
    store.commit(fence(1, 1)).await.unwrap();
    let mut zombie = tokio::task::block_in_place(|| Zombie::start(&place));
    let mut rng = StdRng::seed_from_u64(4);
    for epoch in (1..).take(crate::rounds(usual)) {
        tokio::task::block_in_place(|| {
            zombie.tell(epoch);
            zombie.hear("writing");
        });
        spin(rng.random_range(0..3000));
        zombie.signal(Signal::STOP);
        let fenced_at = loop {
            match store.commit(fence(epoch, epoch + 1)).await {
                Ok(done) => break done.revision,
                // It sleeps with the lock in its hand: in SQLite nobody can take that from it, so it may go on a little.
                Err(CommitError::Store(StoreError::Busy { .. })) => {
                    zombie.signal(Signal::CONT);
                    spin(rng.random_range(0..500));
                    zombie.signal(Signal::STOP);
                }
                Err(error) => panic!("{error}"),
            }
        };
        zombie.signal(Signal::CONT);
        let acknowledged = tokio::task::block_in_place(|| zombie.hear("fenced ")).parse().unwrap();
        check(&*store, epoch, acknowledged, fenced_at).await;
    }
    let late = store.commit(fence(1, 1)).await;
    assert!(matches!(late, Err(CommitError::Fenced { .. })), "{late:?}");
}

/// Some microseconds, too few to sleep.
fn spin(micros: u64) {
    let until = Instant::now() + Duration::from_micros(micros);
    while Instant::now() < until {
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_zombie_cannot_write_to_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    rounds_against(format!("sqlite {} -", dir.path().join("state.db").display()), 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_zombie_cannot_write_to_postgres() {
    rounds_against(format!("postgres 127.0.0.1:{} {}", servers::postgres().port, servers::unique("zombie")), 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_zombie_cannot_write_to_etcd() {
    rounds_against(format!("etcd 127.0.0.1:{} {}", servers::etcd().port, servers::unique("/zombie/")), 20).await;
}

/// In one process: the writer's tasks are overtaken at any point where they wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_zombie_cannot_write_to_memory() {
    let store = Arc::new(Memory::new(clock()));
    store.commit(fence(1, 1)).await.unwrap();
    for epoch in (1..).take(crate::rounds(50)) {
        let done = Arc::new(AtomicUsize::new(0));
        let writers = futures::future::join_all((0..3).map(|writer| write(store.clone(), epoch, writer, Arc::clone(&done))));
        let writers = tokio::spawn(writers);
        spin(epoch % 300);
        let fenced_at = store.commit(fence(epoch, epoch + 1)).await.unwrap().revision;
        writers.await.unwrap();
        check(&*store, epoch, done.load(Ordering::SeqCst), fenced_at).await;
    }
}
