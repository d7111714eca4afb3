//! Reads and writes the control record, the small document at key `control` by which the store fences writers.
//!
//! What may be in it is decided in `upgrade`; here is only what keeps it safe: it is created once, changed only
//! by whoever read its last revision, and its epochs and cluster id never go back. A record that cannot be read is
//! an error and never a missing one, so that nobody starts a second cluster over a damaged first.

use crate::{Batch, CommitError, Condition, Key, Store, StoreError, WriterEpoch};
use serde::{Deserialize, Serialize};
use types::ControlRecord;
use types::control::FORMAT;

/// The record as it was read.
#[derive(Clone, PartialEq, Debug)]
pub struct Stored {
    pub record: ControlRecord,
    pub revision: u64,
}

/// Why the control record could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadControlError {
    #[error("the control record cannot be read: {0}")]
    Unreadable(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the control record could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteControlError {
    #[error("the store has a control record already")]
    Exists,
    #[error("the control record was changed since it was read")]
    Conflict,
    #[error("the control record's {field} may not go from {from} to {to}")]
    Backwards { field: &'static str, from: String, to: String },
    #[error("the control record cannot be written: {0}")]
    Unwritable(String),
    #[error(transparent)]
    Commit(CommitError),
}

/// The record, or `None` in a store that never had one.
pub async fn read(store: &dyn Store) -> Result<Option<Stored>, ReadControlError> {
    let Some(item) = store.get(&Key::control()).await? else { return Ok(None) };
    parse(&item.value).map(|record| Some(Stored { record, revision: item.revision })).map_err(ReadControlError::Unreadable)
}

/// Stands in the record's place while a backup is loaded: it fences every writer there was, and no release takes it for a record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Restoring {
    /// Always 0, the format of no record.
    format: u32,
    epoch: u64,
    min_writer_epoch: u64,
    /// Which backup; for people.
    restoring: String,
    /// Random: two loads never write the same note.
    name: String,
}

impl Restoring {
    pub(crate) fn new(epoch: u64, what: &str) -> Self {
        let name = format!("{:032x}", rand::random::<u128>());
        Self { format: 0, epoch, min_writer_epoch: epoch, restoring: what.to_owned(), name }
    }

    /// The note in these bytes of the control record's key, if that is what they are.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(bytes).ok().filter(|note| note.format == 0)
    }

    /// Every writer below is fenced.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn raise(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
        self.min_writer_epoch = self.min_writer_epoch.max(epoch);
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, String> {
        serde_json::to_vec(self).map_err(|error| error.to_string())
    }
}

/// Reads the bytes of an event or of a backup.
pub fn parse(bytes: &[u8]) -> Result<ControlRecord, String> {
    if let Some(note) = Restoring::parse(bytes) {
        return Err(format!("the restore of {} did not end; run it again: tctl backup restore", note.restoring));
    }
    let record: ControlRecord = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if record.format != FORMAT {
        return Err(format!("its format is {}, this release knows {FORMAT}", record.format));
    }
    Ok(record)
}

/// Writes the first record. Not fenced: before it, there is nothing to be fenced by.
pub async fn create(store: &dyn Store, record: &ControlRecord) -> Result<Stored, WriteControlError> {
    let batch = Batch::new(None).require(Condition::Absent(Key::control()));
    write(store, batch, record).await.map_err(|error| match error {
        WriteControlError::Conflict => WriteControlError::Exists,
        error => error,
    })
}

/// Replaces what was read by `record`, as `writer`. A new minimum epoch fences older writers from this commit on; the
/// writer itself is judged by the old one.
pub async fn update(store: &dyn Store, was: &Stored, record: &ControlRecord, writer: WriterEpoch) -> Result<Stored, WriteControlError> {
    let back = |field, from: String, to: String| Err(WriteControlError::Backwards { field, from, to });
    let old = &was.record;
    if record.epoch < old.epoch {
        return back("epoch", old.epoch.to_string(), record.epoch.to_string());
    }
    if record.min_writer_epoch < old.min_writer_epoch {
        return back("min_writer_epoch", old.min_writer_epoch.to_string(), record.min_writer_epoch.to_string());
    }
    if record.cluster_id != old.cluster_id {
        return back("cluster_id", format!("{:?}", old.cluster_id), format!("{:?}", record.cluster_id));
    }
    let batch = Batch::new(Some(writer)).require(Condition::RevisionIs(Key::control(), was.revision));
    write(store, batch, record).await
}

async fn write(store: &dyn Store, batch: Batch, record: &ControlRecord) -> Result<Stored, WriteControlError> {
    let bytes = serde_json::to_vec(record).map_err(|error| WriteControlError::Unwritable(error.to_string()))?;
    parse(&bytes).map_err(WriteControlError::Unwritable)?;
    match store.commit(batch.put(Key::control(), bytes, None)).await {
        Ok(done) => Ok(Stored { record: record.clone(), revision: done.revision }),
        Err(CommitError::Conflict { .. }) => Err(WriteControlError::Conflict),
        Err(error) => Err(WriteControlError::Commit(error)),
    }
}
