//! What was acknowledged is there after `kill -9` at any moment.
//!
//! The test binary starts itself again with only [`a_child_writes_until_it_is_killed`] and a path in the environment: that process
//! writes numbers with several writers at once, so that commits are grouped, and says each number once it is
//! acknowledged. The parent kills it after a seeded count of them, opens the file, and looks.

use crate::{clock, key};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use store::{Batch, Key, Sqlite, Store, scan};

const PATH: &str = "LOCKGATE_TEST_KILLED_STORE";
const ROUND: &str = "LOCKGATE_TEST_KILLED_ROUND";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_writes_until_it_is_killed() {
    let (Some(path), Ok(round)) = (std::env::var_os(PATH), std::env::var(ROUND)) else { return };
    let store = Arc::new(Sqlite::open(Path::new(&path), clock()).unwrap());
    let writers = (0..6).map(|writer| {
        let (store, round) = (Arc::clone(&store), round.clone());
        async move {
            for number in 0_u64.. {
                let name = format!("{round}/{writer}/{number}");
                // Two keys at once, so that half a batch would show.
                let batch = Batch::new(None).put(key(&format!("a/{name}")), vec![7; 300], None).put(
                    key(&format!("b/{name}")),
                    vec![8; usize::try_from(number % 9).unwrap() * 1000],
                    None,
                );
                store.commit(batch).await.unwrap();
                writeln!(std::io::stdout(), "\nack {name}").unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
}

/// Starts the child, kills it after `count` acknowledgements, returns all that it said.
fn killed_after(path: &Path, round: usize, count: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "durability::a_child_writes_until_it_is_killed", "--nocapture", "--test-threads=1"])
        .env(PATH, path)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    let hear = |line: Result<String, _>, said: &mut Vec<String>| said.extend(line.unwrap().strip_prefix("ack ").map(str::to_owned));
    while said.len() < count {
        hear(lines.next().expect("the child ended by itself"), &mut said);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    lines.for_each(|line| hear(line, &mut said));
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_write_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sqlite.db");
    let mut rng = StdRng::seed_from_u64(9);
    let mut acknowledged = BTreeSet::new();
    for round in 0..6 {
        let count = rng.random_range(1..400);
        let said = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || killed_after(&path, round, count)).await.unwrap()
        };
        acknowledged.extend(said);
        let store = Sqlite::open(&path, clock()).unwrap();
        let items = scan(&store, &Key::first(), &Key::last()).await.unwrap();
        let names = |table: &str| -> BTreeSet<String> {
            let keys = items.iter().map(|item| item.key.to_string());
            keys.filter_map(|key| key.strip_prefix(table).map(str::to_owned)).collect()
        };
        let (firsts, seconds) = (names("a/"), names("b/"));
        assert_eq!(firsts, seconds, "half a batch, round {round}");
        assert!(acknowledged.is_subset(&firsts), "lost in round {round}: {:?}", acknowledged.difference(&firsts).collect::<Vec<_>>());
        assert_eq!(store.revision().await.unwrap(), u64::try_from(firsts.len()).unwrap(), "each batch is one revision");
        store.close().await;
    }
}
