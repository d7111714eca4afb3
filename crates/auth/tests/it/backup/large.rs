//! A store of any size is backed up, proven and restored in the same memory: measured, in a process of its own.
//!
//! `LOCKGATE_BACKUP_MIB=10240` (`make soak`) makes it ten gibibytes; the bound stays. The process is this one started again with a variable
//! that lets the second test do its work: the peak of a test process says nothing about one of its tests.

use super::{make, source, terms, with_control};
use auth::backup::{Progress, restore};
use backup::{Protection, SeedSigner, Signer as _, Trust, Unlock};
use rand::{Rng as _, SeedableRng as _};
use std::{fs::File, io::BufWriter, path::Path, process::Command, sync::Arc, time::Instant};
use store::{Batch, Key, Sqlite, Store};
use types::Time;

/// What the process may hold at its peak, whatever the size of the store.
const HELD_MIB: u64 = 192;
const CHILD: &str = "LOCKGATE_BACKUP_LARGE_CHILD";
/// Of one document.
const SIZE: usize = 8 << 10;

fn mebibytes() -> u64 {
    std::env::var("LOCKGATE_BACKUP_MIB").map_or(256, |text| text.parse().unwrap())
}

#[test]
fn a_store_of_any_size_is_backed_up_and_restored_in_the_same_memory() {
    // A small one where no disk is waited for.
    let memory = Path::new("/dev/shm");
    let room = if memory.is_dir() && mebibytes() <= 512 { memory } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
    let dir = tempfile::tempdir_in(room).unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "backup::large::the_work_of_the_large_store_in_a_process_of_its_own", "--nocapture"]);
    let output = again.env(CHILD, dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("large: ")).collect();
    assert_eq!(lines.len(), 4, "{text}");
    eprintln!("{}", lines.join("\n"));
    let peaks = lines.iter().map(|line| line.split_whitespace().rev().nth(1).unwrap().parse::<u64>().unwrap());
    let most = peaks.max().unwrap();
    assert!(most < HELD_MIB, "{most} MiB were held; {HELD_MIB} are allowed\n{text}");
}

/// The most memory that this process has ever held.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

#[allow(clippy::print_stdout, reason = "the figures of a soak are for people")]
fn said(what: &str, since: Instant) {
    let (took, mebibytes) = (since.elapsed(), mebibytes());
    let rate = mebibytes * 1000 / u64::try_from(took.as_millis()).unwrap().max(1);
    println!("large: {what} {mebibytes} MiB in {:.1} s, {rate} MiB/s, peak {} MiB", took.as_secs_f64(), peak_mib());
}

fn sqlite(path: &Path) -> Arc<dyn Store> {
    Arc::new(Sqlite::open(path, Arc::new(store::Manual::at(Time::from_unix(1_800_000_000)))).unwrap())
}

async fn fill(store: &Arc<dyn Store>) {
    let (mut noise, mut number) = (vec![0; 16 << 20], 0u64);
    rand::rngs::StdRng::seed_from_u64(9).fill_bytes(&mut noise);
    // Half noise, half text; no two alike, and none that a chunk could tell from the one before.
    let mut value = vec![b'v'; SIZE];
    while number < mebibytes() << 7 {
        let mut batches = Vec::new();
        for _ in 0..8 {
            let mut batch = Batch::new(None);
            for _ in 0..100 {
                let at = usize::try_from(number * 4099).unwrap() % (noise.len() - SIZE);
                value[..SIZE / 2].copy_from_slice(&noise[at..at + SIZE / 2]);
                value[..8].copy_from_slice(&number.to_be_bytes());
                batch = batch.put(Key::parse(format!("doc/bulk/n{number:012}")).unwrap(), value.clone(), None);
                number += 1;
            }
            batches.push(store.commit(batch));
        }
        futures::future::try_join_all(batches).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_work_of_the_large_store_in_a_process_of_its_own() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let (from, to) = (Path::new(&dir).join("from.db"), Path::new(&dir).join("to.db"));
    let path = Path::new(&dir).join("large.lgbackup");
    let began = Instant::now();
    let store = sqlite(&from);
    with_control(&store).await;
    fill(&store).await;
    said("filled", began);

    let began = Instant::now();
    let sink = BufWriter::with_capacity(1 << 20, File::create(&path).unwrap());
    let key = super::schedule::private_key();
    let made = make(source(&store), Protection::Recipients(vec![key.recipient().unwrap()]), sink, Arc::default()).await.unwrap();
    made.sink.into_inner().unwrap().sync_all().unwrap();
    said("created", began);
    store.close().await;
    drop(store);
    // Two of them at once would need the disk for both.
    std::fs::remove_file(&from).unwrap();

    let trust = Trust::Pinned(vec![SeedSigner::new(&[7; 32]).unwrap().public_key().fingerprint()]);
    let terms = terms(Unlock::Keys(vec![key]), trust);
    let (began, file, opened) = (Instant::now(), File::open(&path).unwrap(), terms.clone());
    let verifying = tokio::task::spawn_blocking(move || {
        backup::verify(std::io::BufReader::with_capacity(1 << 20, file), &opened.unlock, &opened.trust).unwrap().summary().records
    });
    assert!(verifying.await.unwrap() > mebibytes() << 7);
    said("verified", began);

    let began = Instant::now();
    let store = sqlite(&to);
    let restored = restore(store.clone(), File::open(&path).unwrap(), terms, Arc::new(Progress::default())).await;
    // Without an authority of its own the made-up cluster has no pins; nothing else is different.
    let restored = restored.unwrap();
    assert_eq!(restored.compared.records + 1, restored.summary.records);
    said("restored", began);
    store.close().await;
}
