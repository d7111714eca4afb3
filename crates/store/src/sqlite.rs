//! The default driver: one SQLite file, WAL, full synchronisation.
//!
//! A writer thread owns the writing connection and does queued batches together in one transaction, so that they share
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

use crate::group;
use crate::request::Queue;
use crate::watch::{Commit, History, Hub, Room};
use crate::{Batch, Clock, CommitError, Committed, Item, Key, Page, Snapshot, Store, StoreError, Watch, WatchError, WriterEpoch};
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
    /// What the writer does to its connection before its next transaction.
    #[cfg(test)]
    scripts: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            busy: Duration::from_secs(10),
            history: 16_384,
            history_bytes: 64 << 20,
            poll: Duration::from_millis(100),
            #[cfg(test)]
            scripts: Arc::default(),
        }
    }
}

/// Reads that may wait; senders wait when it is full.
const QUEUE: usize = 1024;

/// An open file.
pub struct Sqlite {
    queue: Queue,
    reads: mpsc::Sender<Read>,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    closed: CancellationToken,
    pump: Thread,
    pump_ended: CancellationToken,
    path: PathBuf,
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

        let (queue, requests) = Queue::new(closed.clone(), path.display().to_string());
        let (reads, read_queue) = mpsc::channel(QUEUE);
        let (poll, busy) = (options.poll, options.busy);
        let writer = writer::Writer::new(write_rows, Arc::clone(&hub), Arc::clone(&clock), options);
        spawn(path, "store-writer", move || drive(group::run(writer, requests)))?;
        let read_clock = Arc::clone(&clock);
        spawn(path, "store-reader", move || reader::run(read_rows, read_clock.as_ref(), read_queue))?;
        let (pump_hub, pump_closed, ended) = (Arc::clone(&hub), closed.clone(), pump_ended.clone().drop_guard());
        let pump = spawn(path, "store-pump", move || {
            reader::pump(&pump_rows, &pump_hub, &pump_closed, poll);
            drop(pump_rows);
            drop(ended);
        })?;
        Ok(Self { queue, reads, hub, clock, closed, pump, pump_ended, path: path.to_owned(), busy })
    }

    async fn read<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Read) -> Result<T, StoreError> {
        self.queue.open()?;
        ask(&self.reads, request).await
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
        self.queue.commit(batch).boxed()
    }

    fn keep_alive<'a>(
        &'a self,
        key: &'a Key,
        revision: Option<u64>,
        expires: Time,
        writer: Option<WriterEpoch>,
    ) -> BoxFuture<'a, Result<Committed, CommitError>> {
        self.queue.keep_alive(key, revision, expires, writer).boxed()
    }

    fn expire_due(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        self.queue.expire_due().boxed()
    }

    fn watch(&self, prefixes: Vec<Key>, from: Option<u64>) -> BoxFuture<'_, Result<Watch, WatchError>> {
        self.watch_now(prefixes, from).boxed()
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        async move {
            self.queue.open()?;
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
            self.queue.close().await;
            let (read, read_answer) = oneshot::channel();
            // An error means that the thread has ended already.
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

/// Runs what waits for requests, on a thread that may block.
fn drive(work: impl Future<Output = ()>) {
    match tokio::runtime::Builder::new_current_thread().build() {
        Ok(runtime) => runtime.block_on(work),
        // Dropped unbegun, it answers everything with `Closed`.
        Err(error) => tracing::error!(%error, "the writer of the store could not be started"),
    }
}
