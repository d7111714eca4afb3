//! The driver for etcd 3.4 and later.
//!
//! etcd's own revisions belong to the whole etcd, and have gaps where others write. So the store counts its own, in the key
//! `head`, which every transaction of the store compares and puts: a write happens only if nothing at all has happened since what
//! it was decided on was read, the control record's epoch above all. Writers are put together into groups that share one transaction.
//! `head` also says how many events each commit of the group has, so that the events of etcd's watch, which come in the order of the
//! operations, can be dealt out to their commits, and a loss would be seen. Parts: `proto` and `client` speak with etcd, `layout` is
//! keys and values, `reader` reads, `writer` is the transaction, `past` finds old revisions, `pump` feeds the watches.

mod client;
mod layout;
mod past;
mod proto;
mod pump;
mod reader;
mod snapshot;
mod writer;

use crate::group;
use crate::remote::{OpenError, Tasks, Tls};
use crate::request::Queue;
use crate::watch::{Hub, Room};
use crate::{Batch, Clock, CommitError, Committed, Item, Key, Page, Snapshot, Store, StoreError, Watch, WatchError, WriterEpoch};
use client::Client;
use futures::future::{BoxFuture, FutureExt};
use layout::Layout;
use reader::Reader;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use types::Time;

/// How an etcd is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `host` or `host:port` of the members; any that answers is used.
    pub endpoints: Vec<String>,
    /// What all keys begin with, so that others can use the same etcd.
    pub prefix: String,
    pub user: Option<String>,
    /// Its first line is the password.
    pub password_file: Option<PathBuf>,
    pub tls: Option<Tls>,
    /// Allows other machines without TLS.
    pub insecure: bool,
    /// How long a lost connection is made anew before an operation fails.
    pub patience: Duration,
    /// How long one request may take before its connection is given up.
    pub answer: Duration,
}

impl Options {
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            prefix: "/lockgate/".into(),
            user: None,
            password_file: None,
            tls: None,
            insecure: false,
            patience: Duration::from_secs(10),
            answer: Duration::from_secs(8),
        }
    }
}

/// An open etcd.
pub struct Etcd {
    reader: Arc<Reader>,
    queue: Queue,
    tasks: Tasks,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    closed: CancellationToken,
}

impl Etcd {
    /// Connects, and makes `head` in a new store. Tries for [`Options::patience`].
    pub async fn open(options: Options, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let layout = Layout::new(&options.prefix)?;
        let closed = CancellationToken::new();
        let client = Client::new(&options)?;
        let reader = Arc::new(Reader { client, layout, patience: options.patience, closed: closed.clone() });
        let head = reader.prepare().await?;
        let hub = Arc::new(Hub::new(head.revision, Room { commits: 4096, bytes: 32 << 20 }));
        let pump = pump::Pump::new(Arc::clone(&reader), Arc::clone(&hub), head);
        let tasks = Tasks::default();
        tasks.detach("pump", pump.run());
        let place = reader.client.place().to_owned();
        let writer = writer::Writer::new(Arc::clone(&reader), Arc::clone(&clock));
        let (queue, requests) = Queue::new(closed.clone(), place);
        tasks.detach("writer", group::run(writer, requests));
        Ok(Self { reader, queue, tasks, hub, clock, closed })
    }

    async fn watch_now(&self, prefixes: Vec<Key>, from: Option<u64>) -> Result<Watch, WatchError> {
        let era = self.hub.era();
        let current = self.reader.head().await?.revision;
        if from.is_some_and(|from| from > current) {
            return Err(WatchError::Ahead { current });
        }
        let history = Arc::new(past::Past::new(Arc::clone(&self.reader)));
        let from = from.unwrap_or(current);
        let watch = Watch::start(Arc::clone(&self.hub), self.closed.clone(), Some(history), prefixes, from).await?;
        Ok(watch.since(era))
    }
}

impl Store for Etcd {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Item>, StoreError>> {
        async move { Ok(self.reader.item(key).await?.filter(|item| !item.expired(self.clock.now()))) }.boxed()
    }

    fn range<'a>(&'a self, from: &'a Key, to: &'a Key, limit: usize) -> BoxFuture<'a, Result<Page, StoreError>> {
        async move { self.reader.page(from, to, limit, self.clock.now()).await }.boxed()
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
        snapshot::begin(Arc::clone(&self.reader), self.clock.now()).boxed()
    }

    fn revision(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        async move { self.reader.head().await.map(|head| head.revision) }.boxed()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.closed.cancel();
            self.queue.close().await;
            self.reader.client.close();
            self.tasks.end().await;
        }
        .boxed()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}
