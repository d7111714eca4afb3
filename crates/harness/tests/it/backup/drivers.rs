//! A cluster moves between all drivers: every ordered pair of them, on real servers, and once with everything that runs.
//!
//! `LOCKGATE_BACKUP_MIB` makes the store larger that goes through all of them, and then the printed rates mean something.

use super::{Kept, backed_up_as, logs_in, offline, stop, with_otp};
use crate::ha::servers::{Etcd, Postgres};
use auth::{
    Storage,
    backup::{Source, Terms, make, restore},
};
use backup::{Origin, PrivateKey, Protection, SeedSigner, Trust, Unlock};
use harness::{Cluster, Setup, eventually, person::me};
use rand::Rng as _;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Seek as _, Write as _},
    path::Path,
    sync::Arc,
    time::Instant,
};
use store::{Batch, Key, Store, scan};
use types::Time;

const VERSION: &str = "1.0.0";

type Dump = BTreeMap<String, (Vec<u8>, Option<Time>)>;

/// Everything but what a restore writes itself.
async fn dump(store: &dyn Store) -> Dump {
    let all = scan(store, &Key::first(), &Key::last()).await.unwrap();
    let kept = all.into_iter().filter(|item| item.key != Key::control());
    kept.map(|item| (item.key.to_string(), (item.value.to_vec(), item.expires))).collect()
}

fn rate(bytes: u64, since: Instant) -> u64 {
    (bytes >> 10) * 1000 / 1024 / u64::try_from(since.elapsed().as_millis()).unwrap().max(1)
}

/// A backup of a store as it is.
async fn made(store: &Arc<dyn Store>, key: &PrivateKey) -> (File, u64) {
    let record = store::control::read(store.as_ref()).await.unwrap().unwrap().record;
    let origin = Origin {
        cluster: "demo".parse().unwrap(),
        cluster_id: record.cluster_id,
        product: VERSION.parse().unwrap(),
        created: Time::from_unix(1_800_000_000),
    };
    let source = Source { store: store.clone(), origin, audit: None, signer: Box::new(SeedSigner::new(&[7; 32]).unwrap()) };
    let protection = Protection::Recipients(vec![key.recipient().unwrap()]);
    let made = make(source, protection, tempfile::tempfile().unwrap(), Arc::default()).await.unwrap();
    let mut file = made.sink;
    file.flush().and_then(|()| file.rewind()).unwrap();
    (file, made.written.summary.bytes)
}

async fn restored(storage: &Storage, file: File, key: &PrivateKey) -> Arc<dyn Store> {
    let store = auth::open_storage(storage, net::clock::SystemClock::shared()).await.unwrap_or_else(|error| panic!("{error}"));
    let terms = Terms {
        unlock: Unlock::Keys(vec![key.clone()]),
        trust: Trust::Any,
        ca_pin: None,
        version: VERSION.parse().unwrap(),
        now: Time::from(std::time::SystemTime::now()),
    };
    restore(store.clone(), file, terms, Arc::default()).await.unwrap();
    store
}

/// Documents of many sizes, some with a time at which they end.
async fn fill(store: &Arc<dyn Store>) {
    let record = upgrade::control::birth("00000000-0000-0000-0000-000000000007".parse().unwrap(), &VERSION.parse().unwrap(), true).unwrap();
    store::control::create(store.as_ref(), &record).await.unwrap();
    let mebibytes: u64 = std::env::var("LOCKGATE_BACKUP_MIB").map_or(4, |text| text.parse().unwrap());
    let ends = Time::from(std::time::SystemTime::now()).plus(std::time::Duration::from_secs(86_400));
    let (mut bytes, mut number, mut value) = (0, 0u64, vec![b'v'; 16 << 10]);
    while bytes < mebibytes << 20 {
        let mut batch = Batch::new(None);
        for _ in 0..50 {
            rand::rng().fill_bytes(&mut value[..8 << 10]);
            let size = 1 + usize::try_from(number * 7919 % (16 << 10)).unwrap();
            let expires = number.is_multiple_of(10).then_some(ends);
            batch = batch.put(Key::parse(format!("doc/bulk/{number:08}")).unwrap(), value[..size].to_vec(), expires);
            (bytes, number) = (bytes + size as u64, number + 1);
        }
        store.commit(batch).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_went_through_every_pair_of_drivers_is_equal_to_the_first() {
    let (etcd, postgres, dir) = (Etcd::start(), Postgres::start(), tempfile::tempdir().unwrap());
    let key = PrivateKey::generate(&mut |bytes| rand::rng().fill_bytes(bytes));
    let place = |driver: &str, step: usize| match driver {
        "sqlite" => Storage::Sqlite { path: dir.path().join(format!("{step}.db")) },
        "etcd" => {
            let options = store::etcd::Options::new(vec![format!("127.0.0.1:{}", etcd.port)]);
            Storage::Etcd(Box::new(store::etcd::Options { prefix: format!("/step{step}/"), ..options }))
        }
        _ => {
            let options = store::postgres::Options::new(vec![format!("127.0.0.1:{}", postgres.port)], "postgres", "lockgate");
            let options = store::postgres::Options { schema: format!("step{step}"), ..options };
            Storage::Postgres(Box::new(options))
        }
    };
    // Each ordered pair once.
    let way = ["sqlite", "etcd", "postgres", "sqlite", "postgres", "etcd", "sqlite"];
    let mut store =
        auth::open_storage(&place(way[0], 0), net::clock::SystemClock::shared()).await.unwrap_or_else(|error| panic!("{error}"));
    fill(&store).await;
    let first = dump(store.as_ref()).await;
    for (step, pair) in way.windows(2).enumerate() {
        let began = Instant::now();
        let (file, bytes) = made(&store, &key).await;
        let creating = rate(bytes, began);
        store.close().await;
        let began = Instant::now();
        store = restored(&place(pair[1], step + 1), file, &key).await;
        let (restoring, mebibytes) = (rate(bytes, began), bytes >> 20);
        eprintln!("{mebibytes} MiB: created from {} at {creating} MiB/s, restored into {} at {restoring} MiB/s", pair[0], pair[1]);
        let now = dump(store.as_ref()).await;
        let differ = first.keys().chain(now.keys()).find(|key| first.get(*key) != now.get(*key));
        let expires = |dump: &Dump| differ.and_then(|key| dump.get(key)).map(|(value, expires)| (value.len(), *expires));
        assert_eq!((differ, expires(&now)), (None, expires(&first)), "from {} to {}", pair[0], pair[1]);
    }
    store.close().await;
}

/// Gives an Auth Service another store.
fn move_to(config: &Path, original: &str, storage: &str) {
    let storage = format!("lockgate:\n  storage: {storage}\n");
    fs::write(config, original.replacen("lockgate:\n", &storage, 1)).unwrap();
}

#[test]
fn a_running_cluster_moves_from_sqlite_to_etcd_to_postgresql_and_back() {
    let cluster = Cluster::with(Setup { split: true, otp: true, ..Setup::default() });
    let (alice, otp) = with_otp(&cluster, "backup-traveller");
    let (etcd, postgres) = (Etcd::start(), Postgres::start());
    let config = cluster.auth().config.clone();
    let original = fs::read_to_string(&config).unwrap();
    let back = cluster.home.join("back.db");
    let stops = [etcd.storage(), Postgres::storage_at(&[postgres.port]), format!("{{type: sqlite, path: {}}}", back.display())];
    // From here on the node has what is on its own disk, and no token.
    cluster.node().set_args(Vec::<String>::new());
    let target = format!("{}@node1", me());
    for (step, storage) in stops.iter().enumerate() {
        let Kept { file, key, signer } = backed_up_as(&cluster, &format!("step{step}"));
        stop(&cluster);
        move_to(&config, &original, storage);
        let place = config.display().to_string();
        let words = ["restore", &file, "--identity-file", &key, "--signer", &signer, "--config", &place, "--format=json"];
        let told = offline(&cluster, &words).go().json();
        assert_eq!(told["pins"].as_array().unwrap().len(), cluster.pins.len(), "{told}");
        cluster.auth().start();
        cluster.auth().wait_ready();
        cluster.node().restart();
        cluster.wait_node("node1");
        let ran = eventually(super::SOON, "a session through the cluster that moved", || {
            let ran = alice.ssh(&target, "echo there").go();
            (ran.status == 0).then(|| ran.text())
        });
        assert!(ran.contains("there"), "{ran}");
    }
    logs_in(&alice, &otp);
    let verdict = cluster.tctl(["audit", "verify"]).go().ok();
    assert!(verdict.contains("intact"), "{verdict}");
}
