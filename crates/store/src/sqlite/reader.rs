//! The thread that reads, and the one that looks for commits of other processes.

use super::rows::Rows;
use crate::watch::{Commit, Hub, WatchError};
use crate::{Clock, Item, Key, Page, StoreError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the reader is asked for.
pub(super) enum Read {
    Get { key: Key, reply: Reply<Option<Item>> },
    Range { from: Key, to: Key, limit: usize, reply: Reply<Page> },
    Changes { after: u64, most: usize, reply: Reply<Result<Vec<Arc<Commit>>, WatchError>> },
    Revision(Reply<u64>),
    Close { reply: oneshot::Sender<()> },
}

/// Until closed, or until all handles are gone. An answer that nobody waits for is dropped.
pub(super) fn run(rows: Rows, clock: &dyn Clock, mut queue: mpsc::Receiver<Read>) {
    while let Some(read) = queue.blocking_recv() {
        match read {
            Read::Get { key, reply } => {
                let found = rows.item(&key).map(|item| item.filter(|item| !item.expired(clock.now())));
                drop(reply.send(found.map_err(|error| rows.named(&error))));
            }
            Read::Range { from, to, limit, reply } => {
                let page = rows.page(&from, &to, limit, clock.now());
                drop(reply.send(page.map_err(|error| rows.named(&error))));
            }
            Read::Changes { after, most, reply } => {
                let changes = rows.changes(after, most);
                drop(reply.send(changes.map_err(|error| rows.named(&error))));
            }
            Read::Revision(reply) => drop(reply.send(rows.revision().map_err(|error| rows.named(&error)))),
            Read::Close { reply } => {
                // The last connection to go folds the log into the file: it must be gone when the answer comes.
                drop(rows);
                let _unheard = reply.send(());
                return;
            }
        }
    }
}

/// Tells the hub of revisions that other processes made; the watches fetch them from the table.
pub(super) fn pump(rows: &Rows, hub: &Hub, closed: &CancellationToken, poll: Duration) {
    let mut seen = None;
    let mut failing = false;
    while !closed.is_cancelled() {
        match rows.data_version().and_then(|version| if seen == Some(version) { Ok(None) } else { Ok(Some((version, rows.revision()?))) }) {
            Ok(news) => {
                failing = false;
                if let Some((version, revision)) = news {
                    seen = Some(version);
                    hub.advance(revision);
                }
            }
            Err(error) => {
                // Said once, not ten times a second.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(place = %rows.place, %error, "could not look for commits of other processes");
                }
            }
        }
        if hub.has_watchers() {
            std::thread::park_timeout(poll);
        } else {
            std::thread::park();
        }
    }
}
