//! Documents in a store: `doc/<kind>/<name>` holds the JSON of a [`Document`]; used only by `auth`.
//!
//! Every write carries the writer's epoch; an update names the revision that was read; there is no blind overwrite.
//! `metadata.revision` is the item's and is never stored; `metadata.expires` is the item's expiry, also after a keep-alive moved
//! it. Fields and kinds that this release does not know pass through unharmed. In a listing, a document that
//! cannot be read is skipped and counted, never fatal.

use crate::{BadKey, Batch, CommitError, Condition, Item, Key, MAX_PAGE, Op, Store, StoreError, Watch, WatchError, WriterEpoch};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use types::document::{BadDocument, MAX_DOCUMENT, Revision};
use types::{Code, Document, Public, ResourceName, Time};

/// Documents, read and written as one Auth Service.
#[derive(Clone)]
pub struct Documents {
    store: Arc<dyn Store>,
    /// Shared by the clones: they are one writer.
    writer: Arc<AtomicU64>,
}

/// A page of documents.
#[derive(Clone, PartialEq, Debug)]
pub struct Listing {
    /// By name.
    pub documents: Vec<Document>,
    /// `None` at the end.
    pub next: Option<PageToken>,
    /// What to watch from, if this is the first page.
    pub revision: u64,
    /// Documents of this page that cannot be read, as `kind/name: why`.
    pub skipped: Vec<String>,
}

/// Where a listing goes on: behind this name. Survives the deletion of what it names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageToken(ResourceName);

impl std::fmt::Display for PageToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0, f)
    }
}
impl std::str::FromStr for PageToken {
    type Err = types::name::BadName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ResourceName::new(text).map(Self)
    }
}

/// Why documents could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("{0}")]
    Bad(BadStored),
    #[error(transparent)]
    Key(#[from] BadKey),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was found under a document's key, and is not that document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {why}")]
pub struct BadStored {
    pub key: Key,
    pub why: String,
}

/// Why a document was not written, or is not known to be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("{0} exists already")]
    Exists(String),
    #[error("{0} does not exist")]
    NotFound(String),
    #[error("{0} was changed since it was read")]
    Conflict(String),
    #[error("the update of {0} does not say which revision was read")]
    NoRevision(String),
    #[error(transparent)]
    Bad(#[from] BadDocument),
    #[error(transparent)]
    Key(#[from] BadKey),
    /// Fenced, ambiguous, or the store's own trouble.
    #[error(transparent)]
    Commit(CommitError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Documents {
    pub fn new(store: Arc<dyn Store>, writer: WriterEpoch) -> Self {
        Self { store, writer: Arc::new(AtomicU64::new(writer.0)) }
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub fn writer(&self) -> WriterEpoch {
        WriterEpoch(self.writer.load(Ordering::Acquire))
    }

    /// Writes with a higher epoch from now on, in every clone: for a writer that the new control record wants.
    pub fn follow(&self, writer: WriterEpoch) {
        self.writer.fetch_max(writer.0, Ordering::AcqRel);
    }

    /// The document, with its revision and expiry filled in.
    pub async fn get(&self, kind: &str, name: &ResourceName) -> Result<Option<Document>, ReadError> {
        match self.store.get(&key(kind, name)?).await? {
            Some(item) => decode(&item).map(Some).map_err(ReadError::Bad),
            None => Ok(None),
        }
    }

    /// Up to `limit` documents of a kind that pass the filter, in order of their names.
    pub async fn list(
        &self,
        kind: &str,
        page: Option<&PageToken>,
        limit: usize,
        filter: impl Fn(&Document) -> bool,
    ) -> Result<Listing, ReadError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let dir = Key::dir(["doc", kind])?;
        let end = dir.prefix_end();
        let mut from = match page {
            Some(PageToken(name)) => key(kind, name)?.successor(),
            None => dir,
        };
        let mut listing = Listing { documents: Vec::new(), next: None, revision: 0, skipped: Vec::new() };
        let mut first = true;
        loop {
            let page = self.store.range(&from, &end, limit).await?;
            if std::mem::take(&mut first) {
                listing.revision = page.revision;
            }
            let mut items = page.items.into_iter().peekable();
            while let Some(item) = items.next() {
                match decode(&item) {
                    Ok(document) if filter(&document) => listing.documents.push(document),
                    Ok(_) => {}
                    Err(bad) => listing.skipped.push(bad.to_string()),
                }
                let more = items.peek().is_some() || page.next.is_some();
                if listing.documents.len() == limit && more {
                    listing.next = ResourceName::new(item.key.name()).ok().map(PageToken);
                    return Ok(listing);
                }
            }
            match page.next {
                Some(next) => from = next,
                None => return Ok(listing),
            }
        }
    }

    /// Stores a new document and returns it with its revision.
    pub async fn create(&self, document: &Document) -> Result<Document, WriteError> {
        let (key, op) = encode(document)?;
        match self.commit(Condition::Absent(key), op).await {
            Ok(revision) => Ok(with_revision(document, revision)),
            Err(CommitError::Conflict { .. }) => Err(WriteError::Exists(document.reference())),
            Err(error) => Err(WriteError::Commit(error)),
        }
    }

    /// Replaces the document whose `metadata.revision` was read.
    pub async fn update(&self, document: &Document) -> Result<Document, WriteError> {
        let Some(revision) = &document.metadata.revision else { return Err(WriteError::NoRevision(document.reference())) };
        let (key, op) = encode(document)?;
        // A revision that is no number was not given out by this store: nothing can match it.
        let Ok(revision) = revision.0.parse() else { return Err(self.changed_or_gone(&key, document.reference()).await) };
        match self.commit(Condition::RevisionIs(key.clone(), revision), op).await {
            Ok(revision) => Ok(with_revision(document, revision)),
            Err(CommitError::Conflict { .. }) => Err(self.changed_or_gone(&key, document.reference()).await),
            Err(error) => Err(WriteError::Commit(error)),
        }
    }

    /// Deletes the document; with a revision, only if it still has it.
    pub async fn delete(&self, kind: &str, name: &ResourceName, revision: Option<&Revision>) -> Result<(), WriteError> {
        let reference = format!("{kind}/{name}");
        let key = key(kind, name)?;
        let condition = match revision.map(|revision| revision.0.parse()) {
            None => Condition::Exists(key.clone()),
            Some(Ok(revision)) => Condition::RevisionIs(key.clone(), revision),
            Some(Err(_)) => return Err(self.changed_or_gone(&key, reference).await),
        };
        match self.commit(condition, Op::Delete { key: key.clone() }).await {
            Ok(_) => Ok(()),
            Err(CommitError::Conflict { .. }) => Err(self.changed_or_gone(&key, reference).await),
            Err(error) => Err(WriteError::Commit(error)),
        }
    }

    /// Moves the document's expiry (a heartbeat); returns its new revision.
    pub async fn keep_alive(&self, kind: &str, name: &ResourceName, expires: Time) -> Result<Revision, WriteError> {
        match self.store.keep_alive(&key(kind, name)?, None, expires, Some(self.writer())).await {
            Ok(done) => Ok(Revision(done.revision.to_string())),
            Err(CommitError::NotFound { .. }) => Err(WriteError::NotFound(format!("{kind}/{name}"))),
            Err(error) => Err(WriteError::Commit(error)),
        }
    }

    /// Events of documents of these kinds (none = all kinds); read them with [`decode`] and [`reference()`].
    pub async fn watch(&self, kinds: &[&str], from: Option<u64>) -> Result<Watch, WatchDocumentsError> {
        let mut prefixes = kinds.iter().map(|kind| Key::dir(["doc", kind])).collect::<Result<Vec<_>, _>>()?;
        if prefixes.is_empty() {
            prefixes.push(Key::dir(["doc"])?);
        }
        Ok(self.store.watch(prefixes, from).await?)
    }

    async fn commit(&self, condition: Condition, op: Op) -> Result<u64, CommitError> {
        let batch = Batch { conditions: vec![condition], ops: vec![op], writer: Some(self.writer()) };
        Ok(self.store.commit(batch).await?.revision)
    }

    /// Tells apart the two reasons why a condition on a revision fails.
    async fn changed_or_gone(&self, key: &Key, reference: String) -> WriteError {
        match self.store.get(key).await {
            Ok(Some(_)) => WriteError::Conflict(reference),
            Ok(None) => WriteError::NotFound(reference),
            Err(error) => WriteError::Store(error),
        }
    }
}

/// Why a watch of documents did not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchDocumentsError {
    #[error(transparent)]
    Key(#[from] BadKey),
    #[error(transparent)]
    Watch(#[from] WatchError),
}

/// Where a document is stored.
pub fn key(kind: &str, name: &ResourceName) -> Result<Key, BadKey> {
    Key::new(["doc", kind, name.as_str()])
}

/// The kind and name of a document's key; `None` for other keys.
pub fn reference(key: &Key) -> Option<(&str, &str)> {
    let mut parts = key.parts();
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("doc"), Some(kind), Some(name), None) => Some((kind, name)),
        _ => None,
    }
}

/// The document in an item, with the item's revision and expiry.
pub fn decode(item: &Item) -> Result<Document, BadStored> {
    let bad = |why: String| BadStored { key: item.key.clone(), why };
    let mut document = Document::from_json(&item.value).map_err(|error| bad(error.to_string()))?;
    if reference(&item.key) != Some((&document.kind, document.metadata.name.as_str())) {
        return Err(bad(format!("it says that it is {}", document.reference())));
    }
    document.metadata.revision = Some(Revision(item.revision.to_string()));
    // What was written stands unless a keep-alive has moved it: the store keeps milliseconds, the document may have said more.
    if document.metadata.expires.map(crate::batch::whole_millis) != item.expires {
        document.metadata.expires = item.expires;
    }
    Ok(document)
}

/// The put that stores a document, for batches that do more than one thing.
pub fn encode(document: &Document) -> Result<(Key, Op), WriteError> {
    let key = key(&document.kind, &document.metadata.name)?;
    let mut stripped = document.clone();
    stripped.metadata.revision = None;
    let bytes = stripped.to_json();
    if bytes.len() > MAX_DOCUMENT {
        return Err(BadDocument::TooLarge(bytes.len()).into());
    }
    Ok((key.clone(), Op::Put { key, value: bytes.into(), expires: document.metadata.expires }))
}

fn with_revision(document: &Document, revision: u64) -> Document {
    let mut document = document.clone();
    document.metadata.revision = Some(Revision(revision.to_string()));
    document
}

impl WriteError {
    /// What a stranger may see; details of the store's own trouble stay in the log under `log_reference`.
    pub fn public(&self, log_reference: &str) -> Public {
        let text = self.to_string();
        match self {
            Self::Exists(_) => Public::new(Code::AlreadyExists, text).hint("use update to change it"),
            Self::NotFound(_) => Public::new(Code::NotFound, text),
            Self::Conflict(_) => Public::new(Code::Conflict, text).hint("read it again, repeat the change, and write that"),
            Self::NoRevision(_) => Public::new(Code::Malformed, text).hint("send back metadata.revision as it was read"),
            Self::Bad(BadDocument::TooLarge(_)) => Public::new(Code::TooLarge, text),
            Self::Bad(_) | Self::Key(_) | Self::Commit(CommitError::Invalid(_)) => Public::new(Code::Malformed, text),
            Self::Commit(CommitError::Fenced { .. }) => Public::new(Code::StoreFenced, "this Auth Service may no longer write"),
            Self::Commit(CommitError::Conflict { .. }) => Public::new(Code::Conflict, "the resource was changed since it was read"),
            Self::Commit(CommitError::NotFound { .. }) => Public::new(Code::NotFound, "no such resource"),
            Self::Commit(CommitError::Ambiguous(_)) => {
                let public = Public::new(Code::StoreBroken, "it is not known whether the change was made");
                Public { reference: Some(log_reference.into()), ..public.hint("read it again before repeating the change") }
            }
            Self::Commit(CommitError::Control(_) | CommitError::Store(_)) | Self::Store(_) => broken(log_reference),
        }
    }
}

impl ReadError {
    /// What a stranger may see, as for [`WriteError::public`].
    pub fn public(&self, log_reference: &str) -> Public {
        match self {
            Self::Key(error) => Public::new(Code::Malformed, error.to_string()),
            Self::Bad(_) | Self::Store(_) => broken(log_reference),
        }
    }
}

fn broken(log_reference: &str) -> Public {
    Public { reference: Some(log_reference.into()), ..Public::new(Code::StoreBroken, "the store cannot be read or written") }
}
