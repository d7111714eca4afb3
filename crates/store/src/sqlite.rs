//! The default driver: one SQLite file, WAL, full synchronisation.
//!
//! A writer thread owns the writing connection and puts queued batches together into one transaction, so that they share
//! one fsync; answers go out after `COMMIT`. A reader thread has its own connection, so that reads never wait for a disk.
//! A third looks for commits of other processes. Any number of processes may have the file open: every transaction is
//! `BEGIN IMMEDIATE`. A commit that ended in an unclear state is answered [`CommitError::Ambiguous`].
//! Parts: `open` makes and checks files, `peek` looks into one that may not be ours, `rows` is all SQL, `writer`, `reader` and `snapshot` are the threads.

mod open;
mod peek;
mod reader;
mod rows;
mod snapshot;
#[cfg(test)]
mod tests;
mod writer;

pub use open::OpenError;
pub use peek::peek;

use crate::watch::{Commit, History, Hub, Room};
use crate::{
    Batch, BatchError, Clock, CommitError, Committed, Item, Key, Page, Snapshot, Store, StoreError, Watch, WatchError, WriterEpoch,
};
use futures::future::{BoxFuture, FutureExt};
use reader::Read;
use rows::Rows;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::Thread;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use types::Time;
use writer::Write;

/// How a file is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to wait for another process's lock.
    pub busy: Duration,
    /// Commits kept in the file for watches that resume.
    pub history: usize,
    /// Bytes of them.
    pub history_bytes: usize,
    /// How often to look for commits of other processes while somebody watches.
    pub poll: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { busy: Duration::from_secs(10), history: 16_384, history_bytes: 64 << 20, poll: Duration::from_millis(100) }
    }
}

/// Requests that may wait for each thread; senders wait when it is full.
const QUEUE: usize = 1024;

/// An open file.
pub struct Sqlite {
    writes: mpsc::Sender<Write>,
    reads: mpsc::Sender<Read>,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    closed: CancellationToken,
    pump: Thread,
    pump_ended: CancellationToken,
    path: PathBuf,
    place: String,
    busy: Duration,
}

impl Sqlite {
    /// Opens the file, or makes it with mode 0600. Blocks for some milliseconds; the directory must exist.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        Self::open_with(path, clock, Options::default())
    }

    /// As [`open`](Self::open), with other limits.
    pub fn open_with(path: &Path, clock: Arc<dyn Clock>, options: Options) -> Result<Self, OpenError> {
        open::prepare(path)?;
        let connect = || open::connect(path, options.busy).map(|connection| Rows::new(connection, path));
        let (write_rows, read_rows, pump_rows) = (connect()?, connect()?, connect()?);
        let revision = read_rows.revision().map_err(|error| open::fault(path, &error))?;
        let hub = Arc::new(Hub::new(revision, Room { commits: 1024, bytes: 16 << 20 }));
        let closed = CancellationToken::new();
        let pump_ended = CancellationToken::new();

        let (writes, write_queue) = mpsc::channel(QUEUE);
        let (reads, read_queue) = mpsc::channel(QUEUE);
        let (poll, busy) = (options.poll, options.busy);
        let writer = writer::Writer::new(write_rows, Arc::clone(&hub), Arc::clone(&clock), options);
        spawn(path, "store-writer", move || writer.run(write_queue))?;
        let read_clock = Arc::clone(&clock);
        spawn(path, "store-reader", move || reader::run(read_rows, read_clock.as_ref(), read_queue))?;
        let (pump_hub, pump_closed, ended) = (Arc::clone(&hub), closed.clone(), pump_ended.clone().drop_guard());
        let pump = spawn(path, "store-pump", move || {
            reader::pump(&pump_rows, &pump_hub, &pump_closed, poll);
            drop(pump_rows);
            drop(ended);
        })?;
        let place = path.display().to_string();
        Ok(Self { writes, reads, hub, clock, closed, pump, pump_ended, path: path.to_owned(), place, busy })
    }

    fn is_open(&self) -> Result<(), StoreError> {
        if self.closed.is_cancelled() { Err(StoreError::Closed) } else { Ok(()) }
    }

    async fn read<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Read) -> Result<T, StoreError> {
        self.is_open()?;
        ask(&self.reads, request).await
    }

    /// Hands a request to the writer. An answer that never comes may stand for a write that was done.
    async fn write<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T, CommitError>>) -> Write) -> Result<T, CommitError> {
        self.is_open()?;
        let (reply, answer) = oneshot::channel();
        self.writes.send(request(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or_else(|_| Err(CommitError::Ambiguous("the writer stopped".into())))
    }

    async fn watch_now(&self, prefixes: Vec<Key>, from: Option<u64>) -> Result<Watch, WatchError> {
        let current = self.read(Read::Revision).await?;
        if from.is_some_and(|from| from > current) {
            return Err(WatchError::Ahead { current });
        }
        let history = Arc::new(Table(self.reads.clone()));
        let from = from.unwrap_or(current);
        let watch = Watch::start(Arc::clone(&self.hub), self.closed.clone(), Some(history), prefixes, from).await?;
        // It sleeps while nobody watches.
        self.pump.unpark();
        Ok(watch)
    }
}

impl Store for Sqlite {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Item>, StoreError>> {
        self.read(|reply| Read::Get { key: key.clone(), reply }).boxed()
    }

    fn range<'a>(&'a self, from: &'a Key, to: &'a Key, limit: usize) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.read(move |reply| Read::Range { from: from.clone(), to: to.clone(), limit, reply }).boxed()
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Committed, CommitError>> {
        async move {
            batch.check()?;
            self.write(|reply| Write::Commit { batch, reply }).await
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
        async move {
            key.proper().map_err(BatchError::from)?;
            if *key == Key::control() {
                return Err(BatchError::Control.into());
            }
            self.write(|reply| Write::KeepAlive { key: key.clone(), revision, expires, writer, reply }).await
        }
        .boxed()
    }

    fn expire_due(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        async move {
            let mut count = 0;
            loop {
                let some = self.write(|reply| Write::Expire { reply }).await.map_err(|error| match error {
                    CommitError::Store(error) => error,
                    error => StoreError::Io { place: self.place.clone(), detail: error.to_string() },
                })?;
                count += some;
                if some < rows::EXPIRE_AT_ONCE {
                    return Ok(count);
                }
            }
        }
        .boxed()
    }

    fn watch(&self, prefixes: Vec<Key>, from: Option<u64>) -> BoxFuture<'_, Result<Watch, WatchError>> {
        self.watch_now(prefixes, from).boxed()
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        async move {
            self.is_open()?;
            snapshot::begin(self.path.clone(), self.busy, self.clock.now(), self.closed.clone()).await
        }
        .boxed()
    }

    fn revision(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.read(Read::Revision).boxed()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.closed.cancel();
            self.pump.unpark();
            let (written, written_answer) = oneshot::channel();
            let (read, read_answer) = oneshot::channel();
            // An error means that the thread has ended already.
            if self.writes.send(Write::Close { reply: written }).await.is_ok() {
                written_answer.await.unwrap_or_default();
            }
            if self.reads.send(Read::Close { reply: read }).await.is_ok() {
                read_answer.await.unwrap_or_default();
            }
            self.pump_ended.cancelled().await;
        }
        .boxed()
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.closed.cancel();
        self.pump.unpark();
    }
}

/// The change table as watches see it, once the ring no longer has what they need.
struct Table(mpsc::Sender<Read>);

impl History for Table {
    fn after(&self, revision: u64, most: usize) -> BoxFuture<'_, Result<Vec<Arc<Commit>>, WatchError>> {
        async move { ask(&self.0, |reply| Read::Changes { after: revision, most, reply }).await? }.boxed()
    }
}

async fn ask<T>(reads: &mpsc::Sender<Read>, request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Read) -> Result<T, StoreError> {
    let (reply, answer) = oneshot::channel();
    reads.send(request(reply)).await.map_err(|_| StoreError::Closed)?;
    answer.await.unwrap_or(Err(StoreError::Closed))
}

/// SQLite blocks, so it gets threads of its own rather than tasks.
fn spawn(path: &Path, name: &str, work: impl FnOnce() + Send + 'static) -> Result<Thread, OpenError> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(work);
    let thread = spawned.map_err(|error| OpenError::Io { path: path.into(), detail: error.to_string() })?;
    Ok(thread.thread().clone())
}
