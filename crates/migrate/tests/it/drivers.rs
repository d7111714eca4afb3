//! The drivers that the tests run on, and an empty cluster on one of them.

use crate::servers;
use futures::future::{BoxFuture, FutureExt};
use std::sync::Arc;
use std::time::Duration;
use store::{Batch, Etcd, Key, Manual, Memory, Postgres, Sqlite, Store, WriterEpoch, control, memory, scan};
use types::control::ClusterVersion;
use types::name::ClusterId;
use types::{ControlRecord, Time, Version};
use upgrade::migrate::definition::RETAINED;

type Handle = Arc<dyn Store>;

/// An open, empty store.
pub(crate) struct Opened {
    pub(crate) store: Handle,
    pub(crate) clock: Arc<Manual>,
    again: Box<dyn Fn() -> BoxFuture<'static, Handle> + Send + Sync>,
}

impl Opened {
    /// Another handle on the same data.
    pub(crate) async fn twin(&self) -> Handle {
        (self.again)().await
    }

    async fn with(again: impl Fn() -> BoxFuture<'static, Handle> + Send + Sync + 'static, clock: Arc<Manual>) -> Self {
        Self { store: again().await, clock, again: Box::new(again) }
    }
}

/// One driver: a line in `DRIVERS`.
pub(crate) struct Driver {
    pub(crate) name: &'static str,
    /// Behind a network: a hundred times slower than the others.
    pub(crate) remote: bool,
    pub(crate) open: fn() -> BoxFuture<'static, Opened>,
}

pub(crate) const MEMORY: Driver = Driver { name: "memory", remote: false, open: || in_memory(false).boxed() };
/// Its pages are as long as can be, so that the same run has the same operations.
pub(crate) const STEADY_MEMORY: Driver = Driver { name: "steady memory", remote: false, open: || in_memory(true).boxed() };
pub(crate) const DRIVERS: &[Driver] = &[
    MEMORY,
    Driver { name: "sqlite", remote: false, open: || in_sqlite().boxed() },
    Driver { name: "postgres", remote: true, open: || in_postgres().boxed() },
    Driver { name: "etcd", remote: true, open: || in_etcd().boxed() },
];

fn clock() -> Arc<Manual> {
    Arc::new(Manual::at(Time::from_unix(1_800_000_000)))
}

async fn in_memory(easy: bool) -> Opened {
    let clock = clock();
    let first = Arc::new(Memory::with(clock.clone(), memory::Options { seed: 7, easy, ..memory::Options::default() }));
    let data = Arc::clone(&first);
    let again = move || {
        let twin: Handle = Arc::new(data.twin());
        std::future::ready(twin).boxed()
    };
    Opened { store: first, ..Opened::with(again, clock).await }
}

async fn in_sqlite() -> Opened {
    let (path, clock) = (servers::scratch("sqlite-").join("state.db"), clock());
    let theirs = clock.clone();
    let again = move || {
        let handle: Handle = Arc::new(Sqlite::open(&path, theirs.clone()).unwrap());
        std::future::ready(handle).boxed()
    };
    Opened::with(again, clock).await
}

/// In a schema of its own.
async fn in_postgres() -> Opened {
    let mut options = servers::postgres_options(servers::postgres().port, "migrate");
    options.poll = Duration::from_millis(10);
    let clock = clock();
    let theirs = clock.clone();
    let again = move || {
        let opening = Postgres::open(options.clone(), theirs.clone());
        async { Arc::new(opening.await.unwrap()) as Handle }.boxed()
    };
    Opened::with(again, clock).await
}

/// Under a prefix of its own.
async fn in_etcd() -> Opened {
    let options = servers::etcd_options(servers::etcd().port, "/migrate/");
    let clock = clock();
    let theirs = clock.clone();
    let again = move || {
        let opening = Etcd::open(options.clone(), theirs.clone());
        async { Arc::new(opening.await.unwrap()) as Handle }.boxed()
    };
    Opened::with(again, clock).await
}

/// The first Auth of major 9 on a cluster of major 8.
pub(crate) const FIRST: WriterEpoch = WriterEpoch(2);

fn control_record() -> ControlRecord {
    let version: Version = "8.0.0".parse().unwrap();
    let born = upgrade::birth(ClusterId::from_uuid(uuid::Uuid::nil()), &version, true).unwrap();
    upgrade::adopt(&born, &"9.0.0".parse().unwrap(), &[]).unwrap()
}

/// Empties the store, and makes it a cluster of major 8 that an Auth of major 9 has taken over.
pub(crate) async fn reset(store: &dyn Store, rows: &[(String, Vec<u8>)]) {
    let control = Key::control();
    let wipe = Batch::new(None).delete_range(Key::first(), control.clone()).delete_range(control.successor(), Key::last());
    store.commit(wipe.put(control, serde_json::to_vec(&control_record()).unwrap(), None)).await.unwrap();
    if rows.is_empty() {
        return;
    }
    let puts = rows.iter().fold(Batch::new(None), |batch, (key, value)| batch.put(Key::parse(key).unwrap(), value.clone(), None));
    store.commit(puts).await.unwrap();
}

/// Changes the control record as somebody else would.
pub(crate) async fn govern(store: &dyn Store, change: impl Fn(&mut ControlRecord)) {
    let was = control::read(store).await.unwrap().unwrap();
    let mut record = was.record.clone();
    change(&mut record);
    store.commit(Batch::new(None).put(Key::control(), serde_json::to_vec(&record).unwrap(), None)).await.unwrap();
}

pub(crate) async fn finalize(store: &dyn Store) {
    govern(store, |record| record.cluster_version = ClusterVersion { major: 9, step: 0 }).await;
}

/// Fences every writer so far, and returns the epoch of the next.
pub(crate) async fn fence(store: &dyn Store) -> WriterEpoch {
    govern(store, |record| {
        record.epoch += 1;
        record.min_writer_epoch = record.epoch;
    })
    .await;
    WriterEpoch(control::read(store).await.unwrap().unwrap().record.epoch)
}

pub(crate) type Dump = Vec<(String, Vec<u8>, Option<Time>)>;

/// All rows but the control record, the journals, and what is in retention (which depends on when a row was last written).
pub(crate) async fn dump(store: &dyn Store) -> Dump {
    let items = scan(store, &Key::first(), &Key::last()).await.unwrap();
    let ours = |key: &str| key == "control" || key.starts_with("migration/") || key.starts_with(&format!("{RETAINED}/"));
    let rows = items.into_iter().map(|item| (item.key.to_string(), item.value.to_vec(), item.expires));
    rows.filter(|(key, ..)| !ours(key)).collect()
}
