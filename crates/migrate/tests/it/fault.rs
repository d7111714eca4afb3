//! A store that fails at its k-th operation: a process killed before it or after it, or a commit whose answer never comes.

use crate::between::{Between, Through};
use futures::future::{BoxFuture, FutureExt};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use store::{Batch, CommitError, Committed, Item, Key, Page, Store, StoreError};

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
    pub(crate) fn before(inner: &Arc<dyn Store>, at: usize, mode: Mode) -> Arc<Through<Self>> {
        let (count, dead) = (AtomicUsize::new(0), AtomicBool::new(false));
        Through::new(inner, Self { at, mode, count, dead, kinds: Mutex::default(), conflicts: Mutex::default() })
    }

    /// Counts and never fails.
    pub(crate) fn none(inner: &Arc<dyn Store>) -> Arc<Through<Self>> {
        Self::before(inner, usize::MAX, Mode::Before)
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

impl Between for Fault {
    fn get<'a>(&'a self, inner: &'a dyn Store, key: &'a Key) -> BoxFuture<'a, Result<Option<Item>, StoreError>> {
        self.read(inner.get(key)).boxed()
    }
    fn range<'a>(&'a self, inner: &'a dyn Store, from: &'a Key, to: &'a Key, limit: usize) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.read(inner.range(from, to, limit)).boxed()
    }
    fn commit<'a>(&'a self, inner: &'a dyn Store, batch: Batch) -> BoxFuture<'a, Result<Committed, CommitError>> {
        async move {
            let strikes = self.begin(true)?;
            if strikes && self.mode == Mode::LostQuestion {
                return Err(CommitError::Ambiguous("no answer".into()));
            }
            let done = inner.commit(batch).await;
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
}
