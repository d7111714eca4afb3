//! The drivers that the tests run on, and an empty cluster on one of them.

use futures::future::{BoxFuture, FutureExt};
use std::sync::Arc;
use store::{Batch, Key, Manual, Memory, Sqlite, Store, WriterEpoch, control, memory, scan};
use tempfile::TempDir;
use types::control::ClusterVersion;
use types::name::ClusterId;
use types::{ControlRecord, Time, Version};
use upgrade::migrate::definition::RETAINED;

/// An open, empty store, and what must live as long.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Store>,
    #[allow(dead_code, reason = "kept until the store is done")]
    keep: Option<TempDir>,
}

/// One driver: a line in `DRIVERS`.
pub(crate) struct Driver {
    pub(crate) name: &'static str,
    pub(crate) open: fn() -> BoxFuture<'static, Opened>,
}

pub(crate) const MEMORY: Driver = Driver { name: "memory", open: || in_memory(false).boxed() };
/// Its pages are as long as can be, so that the same run has the same operations.
pub(crate) const STEADY_MEMORY: Driver = Driver { name: "steady memory", open: || in_memory(true).boxed() };
pub(crate) const DRIVERS: &[Driver] = &[MEMORY, Driver { name: "sqlite", open: || in_sqlite().boxed() }];

fn clock() -> Arc<Manual> {
    Arc::new(Manual::at(Time::from_unix(1_800_000_000)))
}

async fn in_memory(easy: bool) -> Opened {
    Opened { store: Arc::new(Memory::with(clock(), memory::Options { seed: 7, easy, ..memory::Options::default() })), keep: None }
}

async fn in_sqlite() -> Opened {
    // A file in memory where there is one: what is tried here is the driver, not the disk.
    let shm = std::path::Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    Opened { store: Arc::new(Sqlite::open(&dir.path().join("state.db"), clock()).unwrap()), keep: Some(dir) }
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
