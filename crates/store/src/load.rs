//! Fills an empty store from a backup, so that it is a cluster only once everything is there.
//!
//! The first write puts a [`Restoring`] note in the control record's place: from then on every writer that the cluster ever had is
//! fenced, and every Auth Service refuses to start and says why. The last write replaces it by the real record. In between each
//! batch is conditional on the note's revision, so that of two loads at once the later one alone goes on. A load that broke off leaves
//! the note: the next [`Load::begin`] recognises it, empties the store, and begins again. A store with anything else in it is refused.

use crate::control::Restoring;
use crate::remote::Patience;
use crate::{Batch, BatchError, CommitError, Condition, Key, MAX_PAGE, Store, StoreError};
use bytes::Bytes;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use types::Time;

/// Bounds of one batch; some room is left below the limits of the store.
const OPS: usize = 100;
const BYTES: usize = 1 << 20;
/// Batches on their way at once: drivers write several in one transaction, and wait once for the disk. In whatever order they arrive, each
/// is conditional on the note alone.
const WIDTH: usize = 8;
/// How long a batch is tried whose end is not known. Repeating it is harmless: it puts the same under the same condition.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a store is not filled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("the store is not empty: it holds \"{key}\"")]
    NotEmpty { key: Key },
    #[error("another restore into this store has begun")]
    Overtaken,
    #[error("the control record cannot be written: {0}")]
    Control(String),
    #[error(transparent)]
    Key(#[from] crate::BadKey),
    #[error(transparent)]
    Commit(CommitError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<CommitError> for LoadError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict { .. } => Self::Overtaken,
            CommitError::Store(error) => Self::Store(error),
            error => Self::Commit(error),
        }
    }
}

/// A store being filled.
pub struct Load {
    store: Arc<dyn Store>,
    /// The revision of the note.
    note: u64,
    epoch: u64,
    batch: Batch,
    bytes: usize,
    flying: FuturesUnordered<BoxFuture<'static, Result<(), LoadError>>>,
    /// Nobody ends a load but its caller, by dropping it.
    never: CancellationToken,
}

/// Refuses a store that holds anything but the rest of a load that broke off; says whether it does. Writes nothing.
pub async fn check_empty(store: &dyn Store) -> Result<bool, LoadError> {
    let first = store.range(&Key::first(), &Key::last(), 2).await?.items;
    let Some(item) = first.into_iter().next() else { return Ok(false) };
    let control = store.get(&Key::control()).await?;
    match control {
        Some(control) if Restoring::parse(&control.value).is_some() => Ok(true),
        Some(control) => Err(LoadError::NotEmpty { key: control.key }),
        None => Err(LoadError::NotEmpty { key: item.key }),
    }
}

impl Load {
    /// Fences every writer below `epoch` and makes the store ready to be filled. `what` is for people: which backup is being restored.
    pub async fn begin(store: Arc<dyn Store>, epoch: u64, what: &str) -> Result<Self, LoadError> {
        let broken_off = check_empty(store.as_ref()).await?;
        let mut note = Restoring::new(epoch, what);
        let held = store.get(&Key::control()).await?;
        let condition = match &held {
            None => Condition::Absent(Key::control()),
            Some(item) => {
                // The fence never goes back.
                let before = Restoring::parse(&item.value).ok_or(LoadError::NotEmpty { key: Key::control() })?;
                note.raise(before.epoch());
                Condition::RevisionIs(Key::control(), item.revision)
            }
        };
        let bytes = note.to_bytes().map_err(LoadError::Control)?;
        let batch = Batch::new(None).require(condition).put(Key::control(), bytes.clone(), None);
        let revision = match store.commit(batch).await {
            Ok(done) => done.revision,
            // Whether it is there tells reading: the note has a random name.
            Err(CommitError::Ambiguous(why)) => match store.get(&Key::control()).await? {
                Some(item) if item.value == bytes => item.revision,
                _ => return Err(CommitError::Ambiguous(why).into()),
            },
            Err(error) => return Err(error.into()),
        };
        let (batch, never) = (Batch::new(None), CancellationToken::new());
        let mut load = Self { store, note: revision, epoch: note.epoch(), batch, bytes: 0, flying: FuturesUnordered::new(), never };
        if broken_off {
            load.empty().await?;
        }
        // Somebody may have written between the look and the fence.
        let rest = load.store.range(&Key::first(), &Key::last(), 2).await?.items;
        match rest.into_iter().find(|item| item.key != Key::control()) {
            Some(item) => Err(LoadError::NotEmpty { key: item.key }),
            None => Ok(load),
        }
    }

    /// Every writer below is fenced: what was asked for, or what a load that broke off had asked for if that was more.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Removes what a load that broke off had written, in pieces that every driver takes.
    async fn empty(&mut self) -> Result<(), LoadError> {
        for (from, end) in [(Key::first(), Key::control()), (Key::control().successor(), Key::last())] {
            let mut from = from;
            loop {
                let page = self.store.range(&from, &end, MAX_PAGE).await?;
                let to = page.next.clone().unwrap_or_else(|| end.clone());
                if !page.items.is_empty() {
                    self.commit(self.batch().delete_range(from, to.clone())).await?;
                }
                match page.next {
                    Some(next) => from = next,
                    None => break,
                }
            }
        }
        Ok(())
    }

    fn batch(&self) -> Batch {
        Batch::new(None).require(Condition::RevisionIs(Key::control(), self.note))
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), LoadError>> {
        let (store, never) = (self.store.clone(), self.never.clone());
        Box::pin(async move {
            let mut patience = Patience::new(PATIENCE);
            loop {
                match store.commit(batch.clone()).await {
                    Ok(_) => return Ok(()),
                    Err(CommitError::Ambiguous(_) | CommitError::Store(StoreError::Busy { .. } | StoreError::Unreachable { .. }))
                        if patience.again(&never).await => {}
                    Err(error) => return Err(error.into()),
                }
            }
        })
    }

    /// Takes the next item; written with those around it. The control record is not one: see [`Load::finish`].
    pub async fn add(&mut self, key: Key, value: Bytes, expires: Option<Time>) -> Result<(), LoadError> {
        if key == Key::control() {
            return Err(LoadError::Commit(BatchError::Control.into()));
        }
        let size = key.len() + value.len() + 64;
        if self.batch.ops.len() == OPS || (self.bytes + size > BYTES && !self.batch.ops.is_empty()) {
            self.flush().await?;
        }
        self.bytes += size;
        self.batch = std::mem::take(&mut self.batch).put(key, value, expires);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), LoadError> {
        let ops = std::mem::take(&mut self.batch).ops;
        self.bytes = 0;
        if !ops.is_empty() {
            self.flying.push(self.commit(Batch { ops, ..self.batch() }));
        }
        while self.flying.len() >= WIDTH {
            self.flying.next().await.transpose()?;
        }
        Ok(())
    }

    /// Writes what is left. The store is still nobody's: what was written can be compared before [`Load::finish`].
    pub async fn settle(&mut self) -> Result<(), LoadError> {
        self.flush().await?;
        while let Some(done) = self.flying.next().await {
            done?;
        }
        Ok(())
    }

    /// The last write: the store is a cluster from here on. The record's epochs may not be below the fence.
    pub async fn finish(mut self, record: &types::ControlRecord) -> Result<(), LoadError> {
        self.settle().await?;
        let bytes = serde_json::to_vec(record).map_err(|error| LoadError::Control(error.to_string()))?;
        crate::control::parse(&bytes).map_err(LoadError::Control)?;
        let batch = self.batch().put(Key::control(), bytes.clone(), None);
        match self.store.commit(batch).await {
            Ok(_) => Ok(()),
            Err(CommitError::Ambiguous(why)) => match self.store.get(&Key::control()).await? {
                Some(item) if item.value == bytes => Ok(()),
                _ => Err(CommitError::Ambiguous(why).into()),
            },
            Err(error) => Err(error.into()),
        }
    }
}
