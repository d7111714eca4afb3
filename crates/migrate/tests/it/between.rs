//! A store with somebody before it, who watches, holds up or answers what passes: faults, meddlers, and journals that nobody wrote.

use futures::future::BoxFuture;
use std::ops::Deref;
use std::sync::Arc;
use store::{Batch, Clock, CommitError, Committed, Item, Key, Page, Snapshot, Store, StoreError, Watch, WatchError, WriterEpoch};
use types::Time;

/// What is done to operations on their way; by default nothing.
pub(crate) trait Between: Send + Sync + 'static {
    fn get<'a>(&'a self, inner: &'a dyn Store, key: &'a Key) -> BoxFuture<'a, Result<Option<Item>, StoreError>> {
        inner.get(key)
    }
    fn range<'a>(&'a self, inner: &'a dyn Store, from: &'a Key, to: &'a Key, limit: usize) -> BoxFuture<'a, Result<Page, StoreError>> {
        inner.range(from, to, limit)
    }
    fn commit<'a>(&'a self, inner: &'a dyn Store, batch: Batch) -> BoxFuture<'a, Result<Committed, CommitError>> {
        inner.commit(batch)
    }
}

/// The store that is reached through them.
pub(crate) struct Through<B> {
    inner: Arc<dyn Store>,
    between: B,
}

impl<B: Between> Through<B> {
    pub(crate) fn new(inner: &Arc<dyn Store>, between: B) -> Arc<Self> {
        Arc::new(Self { inner: Arc::clone(inner), between })
    }
}

impl<B> Deref for Through<B> {
    type Target = B;
    fn deref(&self) -> &B {
        &self.between
    }
}

impl<B: Between> Store for Through<B> {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Item>, StoreError>> {
        self.between.get(self.inner.as_ref(), key)
    }
    fn range<'a>(&'a self, from: &'a Key, to: &'a Key, limit: usize) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.between.range(self.inner.as_ref(), from, to, limit)
    }
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Committed, CommitError>> {
        self.between.commit(self.inner.as_ref(), batch)
    }
    fn keep_alive<'a>(
        &'a self,
        key: &'a Key,
        revision: Option<u64>,
        expires: Time,
        writer: Option<WriterEpoch>,
    ) -> BoxFuture<'a, Result<Committed, CommitError>> {
        self.inner.keep_alive(key, revision, expires, writer)
    }
    fn expire_due(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        self.inner.expire_due()
    }
    fn watch(&self, prefixes: Vec<Key>, from: Option<u64>) -> BoxFuture<'_, Result<Watch, WatchError>> {
        self.inner.watch(prefixes, from)
    }
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.inner.snapshot()
    }
    fn revision(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.inner.revision()
    }
    fn clock(&self) -> Arc<dyn Clock> {
        self.inner.clock()
    }
    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}
