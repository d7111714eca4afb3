//! A store that fails at its k-th operation: a process killed before it or after it, or a commit whose answer never comes.

use futures::future::{BoxFuture, FutureExt};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use store::{Batch, Clock, CommitError, Committed, Item, Key, Page, Store, StoreError, Watch, WatchError, WriterEpoch};
use types::Time;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// The process dies; the operation was not done.
    Before,
    /// The operation was done; the process dies before it learns.
    After,
    /// The operation was done; the answer is lost and the process lives.
    LostAnswer,
    /// The operation was not done; the process lives and does not know.
    LostQuestion,
}

pub(crate) struct Fault {
    inner: Arc<dyn Store>,
    /// The operation that fails, from 0.
    at: usize,
    mode: Mode,
    count: AtomicUsize,
    dead: AtomicBool,
    /// Of each operation whether it was a commit.
    kinds: Mutex<Vec<bool>>,
    /// Keys on which commits conflicted.
    conflicts: Mutex<Vec<String>>,
}

impl Fault {
    pub(crate) fn new(inner: Arc<dyn Store>, at: usize, mode: Mode) -> Arc<Self> {
        let (count, dead) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Self { inner, at, mode, count, dead, kinds: Mutex::default(), conflicts: Mutex::default() })
    }

    /// Counts and never fails.
    pub(crate) fn none(inner: Arc<dyn Store>) -> Arc<Self> {
        Self::new(inner, usize::MAX, Mode::Before)
    }

    pub(crate) fn kinds(&self) -> Vec<bool> {
        self.kinds.lock().unwrap().clone()
    }

    pub(crate) fn conflicts(&self) -> Vec<String> {
        self.conflicts.lock().unwrap().clone()
    }

    pub(crate) fn struck(&self) -> bool {
        self.count.load(Ordering::SeqCst) > self.at
    }

    /// Whether this operation is the one.
    fn begin(&self, is_commit: bool) -> Result<bool, StoreError> {
        if self.dead.load(Ordering::SeqCst) {
            return Err(StoreError::Closed);
        }
        self.kinds.lock().unwrap().push(is_commit);
        let strikes = self.count.fetch_add(1, Ordering::SeqCst) == self.at;
        if strikes && self.mode == Mode::Before {
            return Err(self.die());
        }
        Ok(strikes)
    }

    fn die(&self) -> StoreError {
        self.dead.store(true, Ordering::SeqCst);
        StoreError::Closed
    }

    async fn read<T>(&self, read: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let strikes = self.begin(false)?;
        let done = read.await;
        if strikes && self.mode == Mode::After { Err(self.die()) } else { done }
    }
}

impl Store for Fault {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Item>, StoreError>> {
        self.read(self.inner.get(key)).boxed()
    }
    fn range<'a>(&'a self, from: &'a Key, to: &'a Key, limit: usize) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.read(self.inner.range(from, to, limit)).boxed()
    }
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Committed, CommitError>> {
        async move {
            let strikes = self.begin(true)?;
            if strikes && self.mode == Mode::LostQuestion {
                return Err(CommitError::Ambiguous("no answer".into()));
            }
            let done = self.inner.commit(batch).await;
            if let Err(CommitError::Conflict { key }) = &done {
                self.conflicts.lock().unwrap().push(key.to_string());
            }
            match (strikes, self.mode, done) {
                (true, Mode::After, _) => Err(self.die().into()),
                (true, Mode::LostAnswer, Ok(_)) => Err(CommitError::Ambiguous("no answer".into())),
                (_, _, done) => done,
            }
        }
        .boxed()
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
    fn snapshot(&self) -> BoxFuture<'_, Result<store::Snapshot, StoreError>> {
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
