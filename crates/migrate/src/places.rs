//! Where everything of a migration lies in the store, and its two documents as they are read and written.
//!
//! `migration/<id>/journal` and `migration/<id>/progress`; `shadow/<id>/…` for new rows whose place is taken by old ones;
//! `retained/<id>/…` for rows that were given up or repaired, until they expire. None of these is served as a document.

use store::{BadKey, Batch, Condition, Item, Key, Store, StoreError};
use types::document::Spec;
use types::{Document, Metadata, Resource, ResourceName};
use upgrade::migrate::definition::RETAINED;
use upgrade::migrate::{Journal, Migration, Progress, Row};

/// The state's document.
pub fn journal_key(id: &str) -> Result<Key, BadKey> {
    Key::new(["migration", id, "journal"])
}

/// The scan's document.
pub fn progress_key(id: &str) -> Result<Key, BadKey> {
    Key::new(["migration", id, "progress"])
}

/// Where a given-up row is kept.
pub(crate) fn retained_key(id: &str, key: &Key) -> Result<Key, BadKey> {
    Key::parse(format!("{RETAINED}/{id}/{key}"))
}

/// A document as it was read.
#[derive(Clone, PartialEq, Debug)]
pub struct Kept<S> {
    pub resource: Resource<S>,
    pub revision: u64,
}

/// Why a migration's document could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadJournalError {
    #[error("{key} cannot be read: {why}")]
    Unreadable { key: Key, why: String },
    #[error(transparent)]
    Key(#[from] BadKey),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The state of a migration as the store has it; none if it was never begun.
pub async fn read_journal(store: &dyn Store, id: &str) -> Result<Option<Kept<Journal>>, ReadJournalError> {
    read(store, &journal_key(id)?).await
}

/// The scan that is under way.
pub async fn read_progress(store: &dyn Store, id: &str) -> Result<Option<Kept<Progress>>, ReadJournalError> {
    read(store, &progress_key(id)?).await
}

async fn read<S: Spec>(store: &dyn Store, key: &Key) -> Result<Option<Kept<S>>, ReadJournalError> {
    store.get(key).await?.map(|item| decode(&item)).transpose()
}

/// Reads an item or an event's.
pub(crate) fn decode<S: Spec>(item: &Item) -> Result<Kept<S>, ReadJournalError> {
    let read = Document::from_json(&item.value).and_then(Resource::from_document);
    match read {
        Ok(resource) => Ok(Kept { resource, revision: item.revision }),
        Err(error) => Err(ReadJournalError::Unreadable { key: item.key.clone(), why: error.to_string() }),
    }
}

/// The same document with another spec; a new one where there was none.
pub(crate) fn replaced<S: Spec>(kept: Option<&Kept<S>>, id: &str, spec: S) -> Result<Resource<S>, types::name::BadName> {
    match kept {
        Some(kept) => Ok(Resource { spec, ..kept.resource.clone() }),
        None => Ok(Resource::new(Metadata::named(ResourceName::new(id)?), spec)),
    }
}

/// Adds to a batch that a document is still as it was read, and what it becomes.
pub(crate) fn replace<S: Spec>(batch: Batch, key: Key, kept: Option<&Kept<S>>, next: &Resource<S>) -> Batch {
    batch.require(unchanged(&key, kept.map(|kept| kept.revision))).put(key, next.to_document().to_json(), None)
}

/// The condition that an item is still as it was read.
pub(crate) fn unchanged(key: &Key, revision: Option<u64>) -> Condition {
    match revision {
        Some(revision) => Condition::RevisionIs(key.clone(), revision),
        None => Condition::Absent(key.clone()),
    }
}

/// The directories of a migration as bounds of ranges.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Dirs {
    pub(crate) old: Key,
    pub(crate) new: Key,
    /// Where new rows are until the sweep.
    pub(crate) home: Key,
}

impl Dirs {
    pub(crate) fn of(migration: &Migration) -> Result<Self, BadKey> {
        let dir = |text: &str| Key::dir(text.split('/'));
        Ok(Self { old: dir(migration.old_dir())?, new: dir(migration.new_dir())?, home: dir(&migration.home_dir())? })
    }
}

/// An item as the pure functions take it.
pub(crate) fn row(item: &Item) -> Row {
    Row::new(item.key.to_string(), item.value.to_vec())
}
