//! The store as business code sees it while migrations are under way: always in the newest form.
//!
//! Reads come from the side that is the truth; batches are rewritten so that each side that must be written is written in the same
//! transaction. Every rewritten batch is conditional on the journal of each migration it touches: a writer whose view of the
//! state is stale is refused by the store, reads the journal again and tries again. Every read of a migrated row is confirmed by
//! reading the journal after it. Without migrations the mirror is the store: each call is handed on as it came. A migration that is
//! over costs nothing at the store; one that is under way costs a read of one small row.
//!
//! Held to: what the former format cannot express is refused before the old side is given up; a row that cannot be migrated is
//! shown as it lies; conditions and revisions are those of the side that is the truth, so a holder of a revision from before
//! a flip is told of a conflict once. Both sides must fit in one batch: a document near 1 MiB can be refused as too large.

mod read;
mod view;
mod watching;
mod write;

use crate::places::ReadJournalError;
use futures::future::{BoxFuture, FutureExt};
use std::sync::{Arc, PoisonError, RwLock};
use store::{Batch, Clock, CommitError, Committed, Item, Key, Page, Snapshot, Store, StoreError, Watch, WatchError, WriterEpoch};
use types::Time;
use upgrade::migrate::{Registry, Side, State};
use view::View;

/// A `Store` around a store. Runners, backups and the control record use the store itself.
pub struct Mirror {
    inner: Arc<dyn Store>,
    registry: Registry,
    /// There is nothing to mirror.
    idle: bool,
    view: RwLock<Option<Arc<View>>>,
}

impl Mirror {
    pub fn new(inner: Arc<dyn Store>, registry: Registry) -> Self {
        let idle = registry.iter().next().is_none();
        Self { inner, registry, idle, view: RwLock::new(None) }
    }

    /// The bare store.
    pub fn inner(&self) -> &Arc<dyn Store> {
        &self.inner
    }

    /// The state of a migration, read now; `None` if there is no migration of that id.
    pub async fn state(&self, id: &str) -> Result<Option<State>, StoreError> {
        Ok(self.refresh().await?.seen.iter().find(|seen| seen.migration.id == id).map(|seen| seen.state))
    }

    /// Whether what a migration adds may be relied on: an index is complete, new fields may be written. Once true it stays so only
    /// behind `finalize`; ask again.
    pub async fn relies_on(&self, id: &str) -> Result<bool, StoreError> {
        Ok(self.state(id).await?.is_some_and(|state| state.truth() == Side::New))
    }

    /// What was last read of the journals.
    async fn view(&self) -> Result<Arc<View>, StoreError> {
        let known = self.view.read().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(view) => Ok(view),
            None => self.refresh().await,
        }
    }

    /// Reads the journals again.
    async fn refresh(&self) -> Result<Arc<View>, StoreError> {
        let view = Arc::new(View::read(self.inner.as_ref(), &self.registry).await?);
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&view));
        Ok(view)
    }
}

/// A journal that cannot be read stops what depends on it, and names itself.
pub(crate) fn unreadable(error: ReadJournalError) -> StoreError {
    match error {
        ReadJournalError::Store(error) => error,
        ReadJournalError::Unreadable { key, why } => StoreError::Corrupt { place: key.to_string(), detail: why },
        ReadJournalError::Key(bad) => StoreError::Corrupt { place: "migration".into(), detail: bad.to_string() },
    }
}

/// What came of too many tries.
fn restless(key: &Key) -> StoreError {
    StoreError::Io { place: key.to_string(), detail: "its migration moves on faster than it can be followed".into() }
}

impl Store for Mirror {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Item>, StoreError>> {
        if self.idle {
            return self.inner.get(key);
        }
        async move { Ok(self.look_up(key).await?.map(|shown| shown.item)) }.boxed()
    }

    fn range<'a>(&'a self, from: &'a Key, to: &'a Key, limit: usize) -> BoxFuture<'a, Result<Page, StoreError>> {
        if self.idle { self.inner.range(from, to, limit) } else { self.list(from, to, limit).boxed() }
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Committed, CommitError>> {
        if self.idle { self.inner.commit(batch) } else { self.write(batch).boxed() }
    }

    fn keep_alive<'a>(
        &'a self,
        key: &'a Key,
        revision: Option<u64>,
        expires: Time,
        writer: Option<WriterEpoch>,
    ) -> BoxFuture<'a, Result<Committed, CommitError>> {
        if self.idle {
            return self.inner.keep_alive(key, revision, expires, writer);
        }
        self.prolong(key, revision, expires, writer).boxed()
    }

    fn expire_due(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        self.inner.expire_due()
    }

    fn watch(&self, prefixes: Vec<Key>, from: Option<u64>) -> BoxFuture<'_, Result<Watch, WatchError>> {
        if self.idle { self.inner.watch(prefixes, from) } else { self.follow(prefixes, from).boxed() }
    }

    /// The bare store's: a backup holds journals and both sides as they lie.
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
