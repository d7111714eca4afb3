//! A snapshot: ranges at one revision of etcd. Nothing is held at the server, so a compaction that passes the revision ends it.

use super::client::{Fault, What};
use super::reader::Reader;
use crate::snapshot::{PAGE, Pages};
use crate::{Item, Key, Snapshot, StoreError};
use futures::future::{BoxFuture, FutureExt};
use std::sync::Arc;
use types::Time;

struct Held {
    reader: Arc<Reader>,
    now: Time,
    /// etcd's revision.
    at: i64,
    /// Read already, to learn the revision.
    first: Option<Vec<Item>>,
    next: Option<Key>,
}

/// Begins one.
pub(super) async fn begin(reader: Arc<Reader>, now: Time) -> Result<Snapshot, StoreError> {
    let (page, at) = reader.page_at(&Key::first(), &Key::last(), PAGE, now, 0).await.map_err(|fault| lost(&reader, fault))?;
    let held = Held { reader, now, at, first: Some(page.items), next: page.next };
    Ok(Snapshot::new(page.revision, "etcd", held))
}

fn lost(reader: &Reader, fault: Fault) -> StoreError {
    match fault {
        Fault { what: What::Compacted, .. } => StoreError::SnapshotLost {
            place: reader.client.place().into(),
            detail: "etcd compacted its revision before it was read to the end; compact less often (--auto-compaction-retention)".into(),
        },
        fault => reader.named(fault),
    }
}

impl Pages for Held {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Item>, StoreError>> {
        async move {
            if let Some(first) = self.first.take() {
                return Ok(first);
            }
            let Some(from) = self.next.take() else { return Ok(Vec::new()) };
            let page = self.reader.page_at(&from, &Key::last(), PAGE, self.now, self.at).await;
            let (page, _) = page.map_err(|fault| lost(&self.reader, fault))?;
            self.next = page.next;
            Ok(page.items)
        }
        .boxed()
    }
}
