//! A snapshot: a read transaction on a connection of its own, in a thread of its own that hands out a page when asked.
//!
//! While it is held the write-ahead log cannot be folded into the file, and grows; a reader that goes away ends the thread.

use super::open::{self, OpenError};
use super::rows::Rows;
use super::spawn;
use crate::snapshot::{PAGE, Pages};
use crate::{Item, Snapshot, StoreError};
use futures::future::{BoxFuture, FutureExt};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use types::Time;

type Answer = Result<Vec<Item>, StoreError>;

struct Held {
    asks: mpsc::Sender<oneshot::Sender<Answer>>,
    closed: CancellationToken,
}

impl Pages for Held {
    fn next(&mut self) -> BoxFuture<'_, Answer> {
        async move {
            if self.closed.is_cancelled() {
                return Err(StoreError::Closed);
            }
            let (reply, answer) = oneshot::channel();
            self.asks.send(reply).await.map_err(|_| StoreError::Closed)?;
            answer.await.unwrap_or(Err(StoreError::Closed))
        }
        .boxed()
    }
}

/// Begins one.
pub(super) async fn begin(path: PathBuf, busy: Duration, now: Time, closed: CancellationToken) -> Result<Snapshot, StoreError> {
    let (asks, queue) = mpsc::channel(1);
    let (tell, begun) = oneshot::channel();
    let place = path.display().to_string();
    let at = path.clone();
    let work = move || {
        let rows = match open::connect(&at, busy).map_err(|error| unopened(&at.display().to_string(), error)) {
            Ok(connection) => Rows::new(connection, &at),
            Err(error) => return drop(tell.send(Err(error))),
        };
        hold(&rows, now, tell, queue);
    };
    spawn(&path, "store-snapshot", work).map_err(|error| unopened(&place, error))?;
    let revision = begun.await.unwrap_or(Err(StoreError::Closed))?;
    Ok(Snapshot::new(revision, "sqlite", Held { asks, closed }))
}

fn unopened(place: &str, error: OpenError) -> StoreError {
    let place = place.to_owned();
    match error {
        OpenError::Busy { .. } => StoreError::Busy { place },
        OpenError::Full { .. } => StoreError::Full { place },
        OpenError::ReadOnly { .. } => StoreError::ReadOnly { place },
        OpenError::Damaged { detail, .. } => StoreError::Corrupt { place, detail },
        OpenError::Foreign { .. } | OpenError::Newer { .. } | OpenError::Io { .. } => StoreError::Io { place, detail: error.to_string() },
    }
}

/// The transaction, from the first look to the last page.
fn hold(rows: &Rows, now: Time, tell: oneshot::Sender<Result<u64, StoreError>>, mut queue: mpsc::Receiver<oneshot::Sender<Answer>>) {
    let begun = rows.connection.unchecked_transaction().and_then(|transaction| Ok((rows.revision()?, transaction)));
    let (revision, _transaction) = match begun {
        Ok(begun) => begun,
        Err(error) => return drop(tell.send(Err(rows.named(&error)))),
    };
    if tell.send(Ok(revision)).is_err() {
        return;
    }
    let mut from = crate::Key::first();
    let mut over = false;
    while let Some(reply) = queue.blocking_recv() {
        let answer = if over {
            Ok(Vec::new())
        } else {
            rows.part(&from, &crate::Key::last(), PAGE, now).map_err(|error| rows.named(&error)).map(|(items, next)| {
                match next {
                    Some(next) => from = next,
                    None => over = true,
                }
                items
            })
        };
        if reply.send(answer).is_err() {
            return;
        }
    }
}
