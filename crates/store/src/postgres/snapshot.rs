//! A snapshot: a transaction of isolation level REPEATABLE READ on a connection of its own, read in pages by key.
//!
//! Behind a transaction-pooling proxy it keeps one connection of the pool for as long as it is read. It ends by itself when its
//! reader stands still, so that the server may clean up again.

use super::link::{Link, Live};
use super::rows::Sql;
use super::{Options, fault};
use crate::remote::Patience;
use crate::snapshot::{PAGE, Pages};
use crate::{Item, Key, Snapshot, StoreError};
use futures::future::{BoxFuture, FutureExt};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use types::Time;

/// The server hangs up when nothing is asked for so long.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL idle_in_transaction_session_timeout = 300000";
/// How long one page may take.
const PATIENCE: Duration = Duration::from_secs(60);

struct Held {
    link: Link,
    live: Live,
    sql: Sql,
    now: Time,
    next: Option<Key>,
    closed: CancellationToken,
}

/// Begins one. Tries again where the connection is lost; later that would be another moment.
pub(super) async fn begin(
    options: &Options,
    hosts: &[(String, u16)],
    sql: Sql,
    now: Time,
    closed: CancellationToken,
) -> Result<Snapshot, StoreError> {
    let link =
        Link::new(options, hosts).map_err(|error| StoreError::Refused { place: options.hosts.join(","), detail: error.to_string() })?;
    let mut patience = Patience::new(options.patience);
    loop {
        if closed.is_cancelled() {
            return Err(StoreError::Closed);
        }
        match first_look(&link, &sql).await {
            Ok((live, revision)) => {
                let held = Held { link, live, sql, now, next: Some(Key::first()), closed };
                return Ok(Snapshot::new(revision, "postgres", held));
            }
            Err(error) if fault::passes(&error) && patience.again(&closed).await => {}
            Err(error) => return Err(error),
        }
    }
}

/// The first statement takes the moment.
async fn first_look(link: &Link, sql: &Sql) -> Result<(Live, u64), StoreError> {
    let live = link.live().await?;
    let look = async {
        live.batch_execute(BEGIN).await?;
        sql.revision(&live).await
    };
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(revision)) => Ok((live, revision)),
        Ok(Err(error)) => {
            let named = link.lost(&live, &error);
            // It may be in a transaction: not for the next try.
            link.forget(&live);
            Err(named)
        }
        Err(_) => Err(link.silent()),
    }
}

impl Pages for Held {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Item>, StoreError>> {
        async move {
            if self.closed.is_cancelled() {
                return Err(StoreError::Closed);
            }
            let Some(from) = self.next.take() else { return Ok(Vec::new()) };
            let to = Key::last();
            let page = match tokio::time::timeout(PATIENCE, self.sql.held_page(&self.live, &from, &to, PAGE, self.now)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => return Err(self.link.lost(&self.live, &error)),
                Err(_) => return Err(self.link.silent()),
            };
            self.next = page.next;
            if self.next.is_none() {
                // Gives a pool its connection back in good order; whoever stops before the end hangs up instead.
                drop(tokio::time::timeout(PATIENCE, self.live.batch_execute("COMMIT")).await);
            }
            Ok(page.items)
        }
        .boxed()
    }
}
