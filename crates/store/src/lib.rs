//! Cluster state: the [`Store`] trait, its drivers and the conformance suite they all pass.
//!
//! A store is an ordered map of byte keys with get, range, one atomic conditional batch, leases with expiry, and a
//! watch that resumes. Every write may carry its writer's epoch and is refused, inside the same transaction, once the
//! control record asks for a higher one (design 3.4). Only `auth` opens a store; it uses [`documents`] and
//! [`control`] on top. Drivers: [`memory`] (the strictest, for tests and caches), [`sqlite`] (the default), and
//! [`postgres`] and [`etcd`] for several Auth Services. What those that store something share is in `request` and `group` (their writes);
//! what those behind a network share besides is in [`remote`].
//! A new driver is a module and one line in `tests/it`; the trait does not change for it.
#![cfg_attr(not(all(feature = "memory", feature = "sqlite")), allow(dead_code, reason = "drivers share what one alone may not need"))]

mod batch;
mod clock;
pub mod conformance;
pub mod control;
pub mod documents;
pub mod etcd;
mod group;
mod handle;
#[cfg(test)]
#[path = "../../types/tests/it/hold.rs"]
mod hold;
mod key;
mod load;
#[cfg(feature = "memory")]
pub mod memory;
pub mod postgres;
pub mod remote;
mod request;
mod snapshot;
#[cfg(feature = "sqlite")]
pub mod sqlite;
mod watch;

pub use batch::{
    Batch, BatchError, CommitError, Committed, Condition, MAX_CHANGES, MAX_CONDITIONS, MAX_OPS, MAX_REQUEST, MAX_VALUE, Op, WriterEpoch,
};
pub use clock::{Clock, Manual, System};
pub use documents::Documents;
pub use etcd::Etcd;
pub use handle::Handle;
pub use key::{BadKey, Key, MAX_KEY};
pub use load::{Load, LoadError, check_empty};
#[cfg(feature = "memory")]
pub use memory::Memory;
pub use postgres::Postgres;
pub use snapshot::Snapshot;
#[cfg(feature = "sqlite")]
pub use sqlite::Sqlite;
pub use watch::{Event, Lens, Watch, WatchError};

use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;
use types::Time;

/// The most items one page has, whatever was asked for.
pub const MAX_PAGE: usize = 10_000;

/// One stored value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    pub key: Key,
    /// Kept verbatim.
    pub value: Bytes,
    /// The store's revision at this item's last change; grows over the whole store, never per key.
    pub revision: u64,
    /// The item is gone from this time on. Kept to the millisecond, rounded up.
    pub expires: Option<Time>,
}

impl Item {
    /// Whether the item counts as absent at `now`.
    pub fn expired(&self, now: Time) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// A piece of a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Sorted by key; no expired ones.
    pub items: Vec<Item>,
    /// Where the next page starts. Only `None` means that the range is at its end: a page may be short before.
    pub next: Option<Key>,
    /// The store's revision that this page shows. Whoever reads several pages and then watches, watches from the *first* page's.
    pub revision: u64,
}

/// Why the store could not be read (or, inside [`CommitError::Store`], why nothing was written).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("the store is closed")]
    Closed,
    /// Another process held the lock for longer than the driver waits.
    #[error("the store {place} is busy: another process holds its lock")]
    Busy { place: String },
    #[error("no space left for the store {place}")]
    Full { place: String },
    #[error("the store {place} cannot be written: it is read-only")]
    ReadOnly { place: String },
    #[error("the store {place} is damaged: {detail}")]
    Corrupt { place: String, detail: String },
    #[error("the store {place} failed: {detail}")]
    Io { place: String, detail: String },
    /// The server did not answer, or not in time; tried again for as long as the driver waits.
    #[error("the store {place} cannot be reached: {detail}")]
    Unreachable { place: String, detail: String },
    /// The server knows this login, or this login's rights, and says no.
    #[error("the store {place} refuses: {detail}")]
    Refused { place: String, detail: String },
    #[error(
        "etcd is over its space quota ({place}): compact and defragment it or raise --quota-backend-bytes, then disarm its NOSPACE alarm"
    )]
    Quota { place: String },
    /// From a snapshot that was read for longer than the server keeps old states.
    #[error("the store {place} no longer has the state that the snapshot shows: {detail}")]
    SnapshotLost { place: String, detail: String },
}

/// An ordered map of byte keys; used as `Arc<dyn Store>`.
///
/// Dropping a future of a read is harmless. Dropping one of [`commit`](Self::commit) or
/// [`keep_alive`](Self::keep_alive) leaves it open whether the write happened, as [`CommitError::Ambiguous`] does.
pub trait Store: Send + Sync + 'static {
    /// The item, unless absent or expired.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Item>, StoreError>>;

    /// At most `limit` (clamped to 1..=[`MAX_PAGE`]) live items with `from <= key < to`. The size in bytes of what is
    /// asked for never makes it fail, but a page may have fewer items than `limit` although more follow: see [`Page::next`].
    fn range<'a>(&'a self, from: &'a Key, to: &'a Key, limit: usize) -> BoxFuture<'a, Result<Page, StoreError>>;

    /// Does all operations of the batch at one revision, or none of them. Durable once it returns.
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Committed, CommitError>>;

    /// Moves an item's expiry without touching its value; watchers see a put at a new revision. With a `revision`, only if the item still
    /// has it. [`CommitError::NotFound`] when the item is gone or expired.
    fn keep_alive<'a>(
        &'a self,
        key: &'a Key,
        revision: Option<u64>,
        expires: Time,
        writer: Option<WriterEpoch>,
    ) -> BoxFuture<'a, Result<Committed, CommitError>>;

    /// Deletes what has expired by the store's clock, so that watchers learn of it; returns how many. Reads hide expired items at once,
    /// with or without this; whoever opened the store calls it about once a second.
    fn expire_due(&self) -> BoxFuture<'_, Result<usize, StoreError>>;

    /// Events of all keys that begin with one of `prefixes` (none = everything), after revision `from` (`None` = from now on).
    /// The first event is [`Event::Init`]. Prefixes are compared byte by byte: end them with `/` ([`Key::dir`]).
    fn watch(&self, prefixes: Vec<Key>, from: Option<u64>) -> BoxFuture<'_, Result<Watch, WatchError>>;

    /// Everything, as it is now, to be read while writes go on. Keys grow from page to page.
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>>;

    /// The revision of the last change; 0 for a store never written.
    fn revision(&self) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// The clock by which items expire.
    fn clock(&self) -> Arc<dyn Clock>;

    /// Finishes what was accepted, ends all watches of this handle, releases the files. Everything after answers [`StoreError::Closed`].
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Reads a whole range, page by page. Not one consistent cut: see [`Page::revision`].
pub async fn scan(store: &dyn Store, from: &Key, to: &Key) -> Result<Vec<Item>, StoreError> {
    let mut items = Vec::new();
    let mut next = Some(from.clone());
    while let Some(from) = next {
        let page = store.range(&from, to, MAX_PAGE).await?;
        items.extend(page.items);
        next = page.next;
    }
    Ok(items)
}
