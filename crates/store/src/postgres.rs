//! The driver for PostgreSQL 13 and later: no extension, no logical decoding, at home behind a transaction-pooling proxy.
//!
//! Every write locks the one row of `head` and takes the revision after the newest change inside its transaction, so revisions are
//! total and gapless and become visible in their order: who has seen revision n has seen all before it. Writers are put together into groups that
//! share one transaction of two round trips. The same lock makes the fence exact: the control record is read under it, and
//! while a transaction holds it nobody can change the record. Nothing outlives a transaction: no prepared statement, no
//! session setting, no session lock, no `LISTEN`; watchers are fed by asking for changes after the last revision seen.
//! Parts: `link` keeps connections, `lanes` those of readers, `rows` is all SQL, `writer` the transaction, `pump` the watches, `fault` names errors.

mod fault;
mod lanes;
mod link;
mod open;
mod pump;
mod rows;
mod snapshot;
mod tls;
mod writer;

use crate::group;
use crate::remote::{OpenError, Patience, Tasks, Tls, host_and_port, is_local};
use crate::request::Queue;
use crate::watch::{Commit, History, Hub, Room};
use crate::{Batch, Clock, CommitError, Committed, Item, Key, Page, Snapshot, Store, StoreError, Watch, WatchError, WriterEpoch};
use futures::future::{BoxFuture, FutureExt};
use lanes::Lanes;
pub use link::{Link, Live};
use pump::Seen;
use rows::Sql;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use types::Time;

/// How a database is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `host`, `host:port` or the directory of a socket. Of several, the first that can be written to is used.
    pub hosts: Vec<String>,
    pub database: String,
    /// Where the tables are; made if the user may.
    pub schema: String,
    pub user: String,
    /// Its first line is the password.
    pub password_file: Option<PathBuf>,
    pub tls: Option<Tls>,
    /// Allows other machines without TLS.
    pub insecure: bool,
    /// How long a lost connection is made anew before an operation fails.
    pub patience: Duration,
    /// How long a transaction may stand still before the server ends it: a paused writer holds up the others no longer.
    pub stall: Duration,
    /// Commits kept for watches that resume.
    pub history: usize,
    /// Bytes of them.
    pub history_bytes: usize,
    /// How often to look for commits of other processes.
    pub poll: Duration,
}

impl Options {
    pub fn new(hosts: Vec<String>, database: impl Into<String>, user: impl Into<String>) -> Self {
        Self {
            hosts,
            database: database.into(),
            schema: "lockgate".into(),
            user: user.into(),
            password_file: None,
            tls: None,
            insecure: false,
            patience: Duration::from_secs(10),
            stall: Duration::from_secs(5),
            history: 65_536,
            history_bytes: 256 << 20,
            poll: Duration::from_millis(50),
        }
    }

    /// Refuses what cannot work or would not be safe.
    fn check(&self) -> Result<Vec<(String, u16)>, OpenError> {
        let bad = |text: String| Err(OpenError::Settings(text));
        if self.hosts.is_empty() {
            return bad("PostgreSQL needs at least one host".into());
        }
        for (name, value) in [("database", &self.database), ("user", &self.user)] {
            if value.is_empty() || value.contains('\0') {
                return bad(format!("PostgreSQL needs a {name}"));
            }
        }
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if self.schema.is_empty() || self.schema.len() > 40 || !self.schema.chars().all(plain) {
            return bad(format!("\"{}\" is not a schema's name: lower-case letters, digits and _, at most 40", self.schema));
        }
        let mut hosts = Vec::new();
        for host in &self.hosts {
            let (host, port) = if host.starts_with('/') { (host.clone(), 5432) } else { host_and_port(host, 5432)? };
            if self.tls.is_none() && !self.insecure && !is_local(&host) {
                return bad(format!(
                    "PostgreSQL at {host} is another machine: give tls_ca_file, or insecure if the network may see and change everything"
                ));
            }
            hosts.push((host, port));
        }
        Ok(hosts)
    }
}

/// An open database.
pub struct Postgres {
    options: Options,
    hosts: Vec<(String, u16)>,
    reads: Arc<Reads>,
    queue: Queue,
    tasks: Tasks,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    closed: CancellationToken,
}

/// What reads.
struct Reads {
    lanes: Lanes,
    sql: Sql,
    patience: Duration,
    closed: CancellationToken,
}

impl Postgres {
    /// Connects, and makes the tables in a new database. Tries for [`Options::patience`].
    pub async fn open(options: Options, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let hosts = options.check()?;
        let closed = CancellationToken::new();
        let tasks = Tasks::default();
        let link = || Link::new(&options, &hosts);
        let sql = Sql::new(&options.schema);
        let lanes = Lanes::new(&options, &hosts)?;
        let reads = Arc::new(Reads { lanes, sql: sql.clone(), patience: options.patience, closed: closed.clone() });
        let revision = open::prepare(&reads).await?;
        let hub = Arc::new(Hub::new(revision, Room { commits: 4096, bytes: 32 << 20 }));
        let (seen, kick) = (Arc::new(Seen::default()), Arc::new(Notify::new()));
        let pump = pump::Pump {
            link: link()?,
            sql: sql.clone(),
            hub: Arc::clone(&hub),
            seen: Arc::clone(&seen),
            kick: Arc::clone(&kick),
            poll: options.poll,
        };
        tasks.detach("pump", pump.run(closed.clone()));
        let place = reads.lanes.place().to_owned();
        let (hub_, clock_, closed_) = (Arc::clone(&hub), Arc::clone(&clock), closed.clone());
        let writer = writer::Writer::new(link()?, sql, options.clone(), hub_, clock_, seen, kick, closed_);
        let (queue, requests) = Queue::new(closed.clone(), place);
        tasks.detach("writer", group::run(writer, requests));
        Ok(Self { options, hosts, reads, queue, tasks, hub, clock, closed })
    }

    async fn watch_now(&self, prefixes: Vec<Key>, from: Option<u64>) -> Result<Watch, WatchError> {
        let era = self.hub.era();
        let current = self.reads.revision().await?;
        if from.is_some_and(|from| from > current) {
            return Err(WatchError::Ahead { current });
        }
        let history: Arc<dyn History> = Arc::clone(&self.reads) as _;
        let from = from.unwrap_or(current);
        let watch = Watch::start(Arc::clone(&self.hub), self.closed.clone(), Some(history), prefixes, from).await?;
        Ok(watch.since(era))
    }
}

impl Reads {
    /// Reads, again if the connection was lost meanwhile.
    async fn again<T, F>(&self, mut read: impl FnMut(Live) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, tokio_postgres::Error>>,
    {
        let mut patience = Patience::new(self.patience);
        loop {
            if self.closed.is_cancelled() {
                return Err(StoreError::Closed);
            }
            let limit = self.patience.max(Duration::from_secs(1));
            let attempt = tokio::time::timeout(limit, self.lanes.once(&mut read)).await;
            let done = attempt.unwrap_or_else(|_| Err(fault::silent(self.lanes.place())));
            match done {
                Err(error) if fault::passes(&error) && patience.again(&self.closed).await => {}
                _ if self.closed.is_cancelled() => return Err(StoreError::Closed),
                done => return done,
            }
        }
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.again(|live| async move { self.sql.revision(&live).await }).await
    }
}

impl History for Reads {
    fn after(&self, revision: u64, _most: usize) -> BoxFuture<'_, Result<Vec<Arc<Commit>>, WatchError>> {
        async move {
            let changes = self.again(|live| async move { self.sql.changes(&live, revision).await }).await?;
            match changes.commits.first() {
                Some(first) if first.revision != revision + 1 => Err(WatchError::Lagged { oldest: first.revision }),
                None if changes.revision > revision => Err(WatchError::Lagged { oldest: changes.revision + 1 }),
                _ => Ok(changes.commits),
            }
        }
        .boxed()
    }
}

impl Store for Postgres {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Item>, StoreError>> {
        async move {
            let item = self.reads.again(|live| async move { self.reads.sql.item(&live, key).await }).await?;
            Ok(item.filter(|item| !item.expired(self.clock.now())))
        }
        .boxed()
    }

    fn range<'a>(&'a self, from: &'a Key, to: &'a Key, limit: usize) -> BoxFuture<'a, Result<Page, StoreError>> {
        async move {
            let now = self.clock.now();
            self.reads.again(|live| async move { self.reads.sql.page(&live, from, to, limit, now).await }).await
        }
        .boxed()
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
        snapshot::begin(&self.options, &self.hosts, self.reads.sql.clone(), self.clock.now(), self.closed.clone()).boxed()
    }

    fn revision(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.reads.revision().boxed()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.closed.cancel();
            self.queue.close().await;
            self.reads.lanes.close();
            self.tasks.end().await;
        }
        .boxed()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}
