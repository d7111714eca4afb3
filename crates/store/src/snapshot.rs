//! A whole store as it was at one revision, read page by page while writes go on; what backups are made of.
//!
//! Each driver has its own way to hold the moment: `memory` a copy, `sqlite` a read transaction on a connection of its own,
//! `postgres` a transaction of isolation level REPEATABLE READ, `etcd` a revision. Holding one costs the server the space of what
//! is overwritten meanwhile, so read to the end or drop it. One page is held at a time. The bare store is shown, journals of
//! migrations and all: `migrate::Mirror` passes through. Other half: `load`.

use crate::{Item, StoreError};
use futures::future::BoxFuture;

/// Items asked for at once.
pub(crate) const PAGE: usize = 1000;

/// The pages of one moment, each in order of its keys and behind the one before.
pub(crate) trait Pages: Send {
    /// The next items; none at the end.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Item>, StoreError>>;
}

/// A store at one revision.
pub struct Snapshot {
    revision: u64,
    driver: &'static str,
    pages: Option<Box<dyn Pages>>,
}

impl Snapshot {
    pub(crate) fn new(revision: u64, driver: &'static str, pages: impl Pages + 'static) -> Self {
        Self { revision, driver, pages: Some(Box::new(pages)) }
    }

    /// The revision that all items show.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// `memory`, `sqlite`, `postgres` or `etcd`.
    pub fn driver(&self) -> &'static str {
        self.driver
    }

    /// The next items in order of their keys, without those that had expired when the snapshot was taken; `None` at the end and
    /// after an error. What was read before an error is not the whole.
    pub async fn page(&mut self) -> Result<Option<Vec<Item>>, StoreError> {
        let Some(pages) = &mut self.pages else { return Ok(None) };
        let page = pages.next().await;
        if !matches!(&page, Ok(items) if !items.is_empty()) {
            // Whatever it held is let go at once.
            self.pages = None;
        }
        page.map(|items| Some(items).filter(|items| !items.is_empty()))
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("revision", &self.revision).field("driver", &self.driver).finish_non_exhaustive()
    }
}
