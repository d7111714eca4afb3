//! The sink that all Auth Services share: tables in PostgreSQL 13 and later, behind a transaction-pooling proxy too.
//!
//! Adding is idempotent by chain and index: a batch whose answer was lost is sent again, and what stands there already must be the
//! same. A batch is taken only behind the line before it, in one statement, so that no chain here ever has a hole, whatever
//! happened to the server meanwhile. The connection, TLS and the names of faults are those of the store's driver
//! (`store::postgres`); SQL is in `rows`.

mod rows;

#[cfg(test)]
pub(super) use rows::tables;

use super::{
    query::{Found, Query, Row, page},
    sink::{Checkpoint, Extent, Lines, Sink, SinkError},
};
use futures::future::{BoxFuture, FutureExt as _};
use rows::Sql;
use std::{sync::Arc, time::Duration};
use store::{
    StoreError,
    postgres::{Link, Live, Options},
    remote::OpenError,
};
use tokio_postgres::types::Type;
use types::{HostId, Time, name::ClusterId};
use wire::audit::{Head, Line};

const OLDEST: i32 = 130_000;
/// How long one statement may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The tables. Cheap to clone.
#[derive(Clone)]
pub(super) struct Postgres(Arc<Inner>);

struct Inner {
    link: Link,
    sql: Sql,
    cluster: ClusterId,
    /// Whether the tables were looked at.
    ready: tokio::sync::OnceCell<()>,
}

impl Postgres {
    /// Looks at the settings; connects when something is asked.
    pub(super) fn new(options: &Options, cluster: ClusterId) -> Result<Self, OpenError> {
        let (link, sql) = (Link::open(options)?, Sql::new(&options.schema));
        Ok(Self(Arc::new(Inner { link, sql, cluster, ready: tokio::sync::OnceCell::new() })))
    }

    pub(super) fn place(&self) -> &str {
        self.0.link.place()
    }

    /// Connects, looks at the server and makes the tables, once. What no waiting mends is said as [`SinkError::Refused`].
    pub(super) async fn open(&self) -> Result<(), SinkError> {
        self.0.ready.get_or_try_init(|| self.prepare()).await.map(drop)
    }

    /// The chain of this Auth Service here: begun now, if it is not there.
    pub(super) async fn begin(&self, chain: HostId, name: &str, at: &Checkpoint) -> Result<Extent, SinkError> {
        self.open().await?;
        let id = chain.to_string();
        let mine = |live: Live| {
            let id = id.clone();
            async move { self.0.sql.chains(&live, Some(&id)).await }
        };
        if self.ask(mine).await?.is_empty() {
            self.ask(|live| {
                let id = id.clone();
                async move { self.0.sql.register(&live, &id, name, at).await }
            })
            .await?;
        }
        let found = self.ask(mine).await?.into_iter().next();
        let gone = || SinkError::Damaged { place: self.place().into(), detail: "the table checkpoint takes no row".into() };
        found.ok_or_else(gone)
    }

    /// Notes that the chain goes on at that place, behind a hole.
    pub(super) async fn begin_again(&self, chain: HostId, name: &str, at: &Checkpoint) -> Result<(), SinkError> {
        let id = chain.to_string();
        let id = id.as_str();
        self.ask(|live| async move { self.0.sql.register(&live, id, name, at).await }).await
    }

    /// Whether retention has the right it needs.
    pub(super) async fn check_retention(&self) -> Result<(), SinkError> {
        self.open().await?;
        if self.ask(|live| async move { self.0.sql.may_delete(&live).await }).await? {
            return Ok(());
        }
        let detail = "retention needs the right to DELETE from the table event".into();
        Err(SinkError::Refused { place: self.place().into(), detail })
    }

    async fn prepare(&self) -> Result<(), SinkError> {
        let refused = |detail: String| SinkError::Refused { place: self.place().into(), detail };
        let (version, shown, encoding, lazy) = self
            .ask(|live| async move {
                let sql = "SELECT current_setting('server_version_num')::int4, current_setting('server_version'), current_setting('server_encoding'), current_setting('synchronous_commit')";
                let row = live.query_typed_one(sql, &[]).await?;
                Ok((row.try_get::<_, i32>(0)?, row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?, row.try_get::<_, String>(3)? == "off"))
            })
            .await?;
        if version < OLDEST {
            return Err(refused(format!("it runs PostgreSQL {shown}; Lockgate needs PostgreSQL 13 or later")));
        }
        if encoding != "UTF8" {
            return Err(refused(format!("the database's encoding is {encoding}, and events are UTF8")));
        }
        if lazy {
            tracing::warn!(
                place = self.place(),
                "synchronous_commit is off: events may be lost here when the server crashes, until they are sent again"
            );
        }
        let name = self.0.sql.log_name();
        let there = self
            .ask(|live| {
                let name = name.clone();
                async move {
                    let row = live.query_typed_one("SELECT to_regclass($1) IS NOT NULL", &[(&name, Type::TEXT)]).await?;
                    row.try_get::<_, bool>(0)
                }
            })
            .await?;
        let log = |live: Live| async move { self.0.sql.log(&live).await };
        let mut found = if there { self.ask(log).await? } else { None };
        if found.is_none() {
            if there {
                // Made beforehand, by who owns them.
                self.ask(|live| async move { self.0.sql.claim(&live, &self.0.cluster.to_string()).await }).await?;
            } else {
                self.make().await?;
            }
            found = self.ask(log).await?;
        }
        match found {
            Some((rows::LAYOUT, cluster)) if cluster == self.0.cluster.to_string() => Ok(()),
            Some((rows::LAYOUT, cluster)) => {
                Err(refused(format!("it is the audit log of another cluster ({cluster}); choose another schema")))
            }
            Some((layout, _)) => Err(refused(format!("it was written by a newer release: its layout is {layout}"))),
            None => Err(refused("the table log has no row".into())),
        }
    }

    /// In one transaction, so that there is never half of it.
    async fn make(&self) -> Result<(), SinkError> {
        let script = self.0.sql.creation(&self.0.cluster.to_string());
        self.ask(|live| {
            let script = script.clone();
            async move {
                let made = live.batch_execute(&script).await;
                if made.is_err() {
                    // The transaction is open and failed: nobody may go on in it.
                    live.batch_execute("ROLLBACK").await?;
                }
                made
            }
        })
        .await
    }

    /// Asks once, and once more when the connection had gone. Everything asked here may be repeated.
    async fn ask<T, F>(&self, work: impl Fn(Live) -> F) -> Result<T, SinkError>
    where
        F: Future<Output = Result<T, tokio_postgres::Error>>,
    {
        let link = &self.0.link;
        let once = || async {
            let attempt = async {
                let live = link.live().await?;
                work(live.clone()).await.map_err(|error| link.lost(&live, &error))
            };
            tokio::time::timeout(PATIENCE, attempt).await.unwrap_or_else(|_| Err(link.silent()))
        };
        let done = match once().await {
            Err(StoreError::Unreachable { .. } | StoreError::ReadOnly { .. }) => once().await,
            done => done,
        };
        done.map_err(|error| named(self.place(), error))
    }

    /// Why a batch was not taken whole: what stands in its places?
    async fn judge(&self, chain: &str, before: Head, lines: &[Line]) -> Result<(), SinkError> {
        let (from, to) = (before.events.saturating_sub(1), lines.last().map_or(before.events, |line| line.index.saturating_add(1)));
        let stand = self.ask(|live| async move { self.0.sql.hashes(&live, chain, from, to).await }).await?;
        let at = |index: u64| stand.iter().find(|(there, _)| *there == index).map(|(_, hash)| *hash);
        let place = self.place().to_owned();
        for line in lines {
            match at(line.index) {
                Some(Some(hash)) if hash == line.hash => {}
                Some(_) => {
                    let detail = format!("another event stands at {} of {chain}: this log and the files are not one chain", line.index);
                    return Err(SinkError::Damaged { place, detail });
                }
                None if line.index == before.events && before.events > 0 && at(from).is_some_and(|hash| hash != Some(before.hash)) => {
                    let detail = format!("another event stands at {from} of {chain}: this log and the files are not one chain");
                    return Err(SinkError::Damaged { place, detail });
                }
                // It fell back to an older state: whoever sends looks where its end is now.
                None => {
                    return Err(SinkError::Unreachable { place, detail: "it no longer has the events before these; looking again".into() });
                }
            }
        }
        Ok(())
    }
}

fn named(place: &str, error: StoreError) -> SinkError {
    let place = place.to_owned();
    match error {
        StoreError::Closed => SinkError::Closed,
        StoreError::Unreachable { detail, .. } => SinkError::Unreachable { place, detail },
        StoreError::ReadOnly { .. } => SinkError::Unreachable { place, detail: "it is read-only, a standby perhaps".into() },
        StoreError::Busy { .. } => SinkError::Unreachable { place, detail: "a lock is held by somebody else".into() },
        StoreError::Full { .. } => SinkError::Unreachable { place, detail: "its disk is full".into() },
        StoreError::Refused { detail, .. } => SinkError::Refused { place, detail },
        StoreError::Corrupt { detail, .. } | StoreError::Io { detail, .. } | StoreError::SnapshotLost { detail, .. } => {
            SinkError::Damaged { place, detail }
        }
        StoreError::Quota { .. } => SinkError::Damaged { place, detail: "it is over its quota".into() },
    }
}

impl Sink for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn append<'a>(&'a self, chain: HostId, behind: Head, lines: &'a [Line]) -> BoxFuture<'a, Result<(), SinkError>> {
        async move {
            if lines.is_empty() {
                return Ok(());
            }
            self.open().await?;
            let id = chain.to_string();
            let id = id.as_str();
            let taken = self.ask(|live| async move { self.0.sql.insert(&live, id, behind, lines).await }).await?;
            if usize::try_from(taken).is_ok_and(|taken| taken == lines.len()) { Ok(()) } else { self.judge(id, behind, lines).await }
        }
        .boxed()
    }

    fn chains(&self) -> BoxFuture<'_, Result<Vec<Extent>, SinkError>> {
        async move {
            self.open().await?;
            self.ask(|live| async move { self.0.sql.chains(&live, None).await }).await
        }
        .boxed()
    }

    fn read(&self, chain: HostId, from: u64) -> Box<dyn Lines> {
        Box::new(Reading { sink: self.clone(), chain: chain.to_string(), next: from })
    }

    fn search<'a>(&'a self, query: &'a Query) -> BoxFuture<'a, Result<Found, SinkError>> {
        async move {
            self.open().await?;
            let limit = i64::try_from(query.page_size().saturating_add(1)).unwrap_or(i64::MAX);
            let stored = self.ask(|live| async move { self.0.sql.search(&live, query, limit).await }).await?;
            let row = |stored: rows::Stored| Some(Row::of(stored.chain.parse().ok()?, stored.line.index, stored.line.event).0);
            Ok(page(query, stored.into_iter().filter_map(row).collect(), None))
        }
        .boxed()
    }

    fn span(&self, chain: HostId, from: Option<Time>, to: Option<Time>) -> BoxFuture<'_, Result<Option<(u64, u64)>, SinkError>> {
        async move {
            let chain = chain.to_string();
            let chain = chain.as_str();
            self.ask(|live| async move { self.0.sql.span(&live, chain, from, to).await }).await
        }
        .boxed()
    }

    fn older(&self, chain: HostId, time: Time) -> BoxFuture<'_, Result<Option<Head>, SinkError>> {
        async move {
            self.open().await?;
            let id = chain.to_string();
            let id = id.as_str();
            let extents = self.ask(|live| async move { self.0.sql.chains(&live, Some(id)).await }).await?;
            let Some(extent) = extents.into_iter().next() else { return Ok(None) };
            let since = self.ask(|live| async move { self.0.sql.first_since(&live, id, time).await }).await?;
            let Some(since) = since else { return Ok((extent.end.events > extent.begin.head.events).then_some(extent.end)) };
            if since <= extent.begin.head.events {
                return Ok(None);
            }
            let before = since.saturating_sub(1);
            let hashes = self.ask(|live| async move { self.0.sql.hashes(&live, id, before, since).await }).await?;
            Ok(hashes.into_iter().find_map(|(_, hash)| hash).map(|hash| Head { events: since, hash }))
        }
        .boxed()
    }

    fn cut<'a>(&'a self, chain: HostId, at: &'a Checkpoint) -> BoxFuture<'a, Result<(), SinkError>> {
        async move {
            self.open().await?;
            let id = chain.to_string();
            let id = id.as_str();
            let extents = self.ask(|live| async move { self.0.sql.chains(&live, Some(id)).await }).await?;
            let name = extents.first().map(|extent| extent.name.clone()).unwrap_or_default();
            let name = name.as_str();
            self.ask(|live| async move { self.0.sql.register(&live, id, name, at).await }).await?;
            while self.ask(|live| async move { self.0.sql.cut(&live, id, at.head.events).await }).await? > 0 {}
            Ok(())
        }
        .boxed()
    }
}

/// Reads a chain in batches.
struct Reading {
    sink: Postgres,
    chain: String,
    next: u64,
}

impl Lines for Reading {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Line>, SinkError>> {
        async move {
            let (sink, chain, from) = (&self.sink, self.chain.as_str(), self.next);
            let lines = sink.ask(|live| async move { sink.0.sql.lines(&live, chain, from).await }).await?;
            if let Some(last) = lines.last() {
                self.next = last.index.saturating_add(1);
            }
            Ok(lines)
        }
        .boxed()
    }
}
