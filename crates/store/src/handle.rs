//! One of several handles on a store that share it within a process: closing one closes none of the others.
//!
//! Drivers behind a network give each Auth Service a connection of its own; a store in this process is one value. Where several Auth
//! Services run on it side by side (tests, a world in one process) each takes a [`Handle`]. The store itself ends with its last owner.

use crate::{Batch, Clock, CommitError, Committed, Item, Key, Page, Snapshot, Store, StoreError, Watch, WatchError, WriterEpoch};
use futures::future::BoxFuture;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use types::Time;

/// A handle on a shared store. Its watches end when it is closed; they do not when the store itself is closed under it.
pub struct Handle(Arc<dyn Store>, CancellationToken);

impl Handle {
    pub fn on(store: Arc<dyn Store>) -> Self {
        Self(store, CancellationToken::new())
    }
}

impl Store for Handle {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Item>, StoreError>> {
        self.0.get(key)
    }
    fn range<'a>(&'a self, from: &'a Key, to: &'a Key, limit: usize) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.0.range(from, to, limit)
    }
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Committed, CommitError>> {
        self.0.commit(batch)
    }
    fn keep_alive<'a>(
        &'a self,
        key: &'a Key,
        revision: Option<u64>,
        expires: Time,
        writer: Option<WriterEpoch>,
    ) -> BoxFuture<'a, Result<Committed, CommitError>> {
        self.0.keep_alive(key, revision, expires, writer)
    }
    fn expire_due(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        self.0.expire_due()
    }
    fn watch(&self, prefixes: Vec<Key>, from: Option<u64>) -> BoxFuture<'_, Result<Watch, WatchError>> {
        Box::pin(async move { Ok(self.0.watch(prefixes, from).await?.until(&self.1)) })
    }
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.0.snapshot()
    }
    fn revision(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.0.revision()
    }
    fn clock(&self) -> Arc<dyn Clock> {
        self.0.clock()
    }
    fn close(&self) -> BoxFuture<'_, ()> {
        self.1.cancel();
        Box::pin(async {})
    }
}
