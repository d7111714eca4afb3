//! The one way to write: an atomic batch of operations under conditions.
//!
//! The limits are those of the narrowest driver to come (etcd takes 128 operations and about 1.5 MiB in a request), so
//! that a cluster can move between drivers. [`Batch::check`] is called by every driver before anything else; what it
//! refuses, all refuse. The control record can be put but never deleted or given an expiry: without it nobody is fenced.

use crate::{BadKey, Key, StoreError};
use bytes::Bytes;
use types::Time;

/// The most operations in a batch.
pub const MAX_OPS: usize = 128;
/// The most conditions in a batch; drivers need the rest of etcd's 128 for the fence.
pub const MAX_CONDITIONS: usize = 120;
/// The most bytes of keys and values in a batch, with 64 for each operation and condition: 1.5 MiB.
pub const MAX_REQUEST: usize = 3 << 19;
/// The most bytes of one value: 1 MiB for a document and 64 KiB for what surrounds it.
pub const MAX_VALUE: usize = (1 << 20) + (64 << 10);
/// The most keys that one batch may change, counting what its ranges delete.
pub const MAX_CHANGES: usize = 1 << 20;

/// The epoch of an Auth Service that may write; compared with the control record's `min_writer_epoch`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct WriterEpoch(pub u64);

/// What must hold for a batch to be done. An expired item is absent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    Absent(Key),
    Exists(Key),
    /// The item is there and was last changed at this revision.
    RevisionIs(Key, u64),
}

impl Condition {
    pub fn key(&self) -> &Key {
        match self {
            Self::Absent(key) | Self::Exists(key) | Self::RevisionIs(key, _) => key,
        }
    }

    /// Whether it holds for the live item's revision.
    pub(crate) fn holds(&self, live: Option<u64>) -> bool {
        match self {
            Self::Absent(_) => live.is_none(),
            Self::Exists(_) => live.is_some(),
            Self::RevisionIs(_, revision) => live == Some(*revision),
        }
    }
}

/// One change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    Put {
        key: Key,
        value: Bytes,
        expires: Option<Time>,
    },
    /// No error when absent: say [`Condition::Exists`] if it matters.
    Delete {
        key: Key,
    },
    /// Everything with `from <= key < to`.
    DeleteRange {
        from: Key,
        to: Key,
    },
}

/// An atomic conditional write.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    pub conditions: Vec<Condition>,
    pub ops: Vec<Op>,
    /// `None` is never fenced: for the birth of a cluster, and for tests.
    pub writer: Option<WriterEpoch>,
}

impl Batch {
    pub fn new(writer: Option<WriterEpoch>) -> Self {
        Self { conditions: Vec::new(), ops: Vec::new(), writer }
    }

    #[must_use]
    pub fn require(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    #[must_use]
    pub fn put(mut self, key: Key, value: impl Into<Bytes>, expires: Option<Time>) -> Self {
        self.ops.push(Op::Put { key, value: value.into(), expires });
        self
    }

    #[must_use]
    pub fn delete(mut self, key: Key) -> Self {
        self.ops.push(Op::Delete { key });
        self
    }

    #[must_use]
    pub fn delete_range(mut self, from: Key, to: Key) -> Self {
        self.ops.push(Op::DeleteRange { from, to });
        self
    }

    /// Refuses what no driver may accept.
    pub fn check(&self) -> Result<(), BatchError> {
        if self.ops.len() > MAX_OPS {
            return Err(BatchError::TooManyOps(self.ops.len()));
        }
        if self.conditions.len() > MAX_CONDITIONS {
            return Err(BatchError::TooManyConditions(self.conditions.len()));
        }
        let mut bytes = 64 * (self.ops.len() + self.conditions.len());
        for condition in &self.conditions {
            condition.key().proper()?;
            bytes += condition.key().len();
        }
        for op in &self.ops {
            bytes += op.check()?;
        }
        if bytes > MAX_REQUEST {
            return Err(BatchError::TooLarge(bytes));
        }
        self.check_overlap()
    }

    /// etcd refuses a transaction that touches a key twice, whether by name or by range.
    fn check_overlap(&self) -> Result<(), BatchError> {
        let mut spans: Vec<(&Key, Option<&Key>)> = self.ops.iter().map(Op::span).collect();
        spans.sort();
        for pair in spans.windows(2) {
            let [(first, end), (second, _)] = pair else { continue };
            if first == second || end.is_some_and(|end| *second < end) {
                return Err(BatchError::DuplicateKey((*second).clone()));
            }
        }
        Ok(())
    }
}

impl Op {
    /// Its keys, as a start and, for a range, an exclusive end.
    fn span(&self) -> (&Key, Option<&Key>) {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => (key, None),
            Self::DeleteRange { from, to } => (from, Some(to)),
        }
    }

    /// About how much it writes.
    pub(crate) fn size(&self) -> usize {
        64 + match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
            Self::DeleteRange { from, to } => from.len() + to.len(),
        }
    }

    /// Its size in a request.
    fn check(&self) -> Result<usize, BatchError> {
        match self {
            Self::Put { key, value, expires } => {
                key.proper()?;
                if value.len() > MAX_VALUE {
                    return Err(BatchError::ValueTooLarge { key: key.clone(), len: value.len() });
                }
                if expires.is_some() && *key == Key::control() {
                    return Err(BatchError::Control);
                }
                Ok(key.len() + value.len())
            }
            Self::Delete { key } => {
                key.proper()?;
                if *key == Key::control() {
                    return Err(BatchError::Control);
                }
                Ok(key.len())
            }
            Self::DeleteRange { from, to } => {
                if from >= to {
                    return Err(BatchError::EmptyRange { from: from.clone(), to: to.clone() });
                }
                if (from..to).contains(&&Key::control()) {
                    return Err(BatchError::Control);
                }
                Ok(from.len() + to.len())
            }
        }
    }
}

/// Why a batch is refused before its conditions are looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("the batch has {0} operations; the limit is {MAX_OPS}")]
    TooManyOps(usize),
    #[error("the batch has {0} conditions; the limit is {MAX_CONDITIONS}")]
    TooManyConditions(usize),
    #[error("the batch has {0} bytes; the limit is {MAX_REQUEST}")]
    TooLarge(usize),
    #[error("the value of {key} has {len} bytes; the limit is {MAX_VALUE}")]
    ValueTooLarge { key: Key, len: usize },
    #[error("the batch changes {0} twice")]
    DuplicateKey(Key),
    #[error("the range from {from} to {to} is empty")]
    EmptyRange { from: Key, to: Key },
    #[error("the batch would delete more than {MAX_CHANGES} items")]
    TooManyChanges,
    #[error("the control record may not be deleted nor expire")]
    Control,
    /// By a layer above the drivers.
    #[error("{key} cannot be written: {why}")]
    Refused { key: Key, why: String },
    #[error(transparent)]
    BadKey(#[from] BadKey),
}

/// A batch that was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// The revision of everything the batch changed; the store's revision when it changed nothing.
    pub revision: u64,
}

/// Why a batch or a keep-alive was not done, or is not known to be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The first condition that did not hold. Nothing was written.
    #[error("{key} is not in the expected state")]
    Conflict { key: Key },
    /// Only from a keep-alive.
    #[error("{key} does not exist")]
    NotFound { key: Key },
    /// This writer may no longer write; it must stop. Nothing was written.
    #[error("writers below epoch {min} may no longer write")]
    Fenced { min: u64 },
    /// Without a readable control record nobody who can be fenced may write. Nothing was written.
    #[error("the control record cannot be read: {0}")]
    Control(String),
    #[error(transparent)]
    Invalid(#[from] BatchError),
    /// The batch was done or was not: read again before doing anything else, never retry blindly.
    #[error("it is not known whether the write was done: {0}")]
    Ambiguous(String),
    /// Nothing was written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads the lowest epoch that may write from the bytes of the control record.
pub(crate) fn fence(control: &[u8]) -> Result<u64, CommitError> {
    #[derive(serde::Deserialize)]
    struct Fence {
        min_writer_epoch: u64,
    }
    let fence: Fence = serde_json::from_slice(control).map_err(|error| CommitError::Control(error.to_string()))?;
    Ok(fence.min_writer_epoch)
}

/// To the millisecond, rounded up: an item never goes before its time.
pub(crate) fn whole_millis(time: Time) -> Time {
    let down = Time::from_unix_millis(time.unix_millis());
    if down < time { down.plus(std::time::Duration::from_millis(1)) } else { down }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }
    fn bound(text: &str) -> Key {
        Key::stored(text.as_bytes().to_vec())
    }

    #[test]
    fn what_one_driver_could_not_take_is_refused_by_name() {
        let check = |batch: Batch, expected: Result<(), BatchError>| assert_eq!(batch.check(), expected);
        let puts =
            |count: usize, size: usize| (0..count).fold(Batch::new(None), |batch, n| batch.put(key(&format!("k{n}")), vec![0; size], None));
        check(Batch::new(None), Ok(()));
        check(puts(MAX_OPS, 1), Ok(()));
        check(puts(MAX_OPS + 1, 1), Err(BatchError::TooManyOps(MAX_OPS + 1)));
        check(puts(1, MAX_VALUE), Ok(()));
        check(puts(1, MAX_VALUE + 1), Err(BatchError::ValueTooLarge { key: key("k0"), len: MAX_VALUE + 1 }));
        check(puts(2, MAX_VALUE), Err(BatchError::TooLarge(2 * (64 + 2 + MAX_VALUE))));
        let conditions = (0..=MAX_CONDITIONS).fold(Batch::new(None), |batch, n| batch.require(Condition::Absent(key(&format!("k{n}")))));
        check(conditions, Err(BatchError::TooManyConditions(MAX_CONDITIONS + 1)));
    }

    #[test]
    fn a_key_is_touched_at_most_once() {
        let check = |batch: Batch, twice: Option<&str>| {
            assert_eq!(batch.check().err(), twice.map(|key| BatchError::DuplicateKey(Key::parse(key).unwrap())));
        };
        let new = || Batch::new(None);
        check(new().put(key("a"), "", None).delete(key("b")), None);
        check(new().put(key("b"), "", None).put(key("a"), "", None).put(key("b"), "", None), Some("b"));
        check(new().put(key("a/b"), "", None).delete_range(bound("a/"), bound("a0")), Some("a/b"));
        check(new().put(key("a"), "", None).delete_range(bound("a/"), bound("a0")), None);
        check(new().delete_range(key("w"), key("y")).delete_range(key("x"), key("z")), Some("x"));
        check(new().delete_range(key("w"), key("y")).delete_range(key("y"), key("z")), None);
    }

    #[test]
    fn an_empty_range_is_refused() {
        let batch = Batch::new(None).delete_range(key("a"), key("a"));
        assert_eq!(batch.check(), Err(BatchError::EmptyRange { from: key("a"), to: key("a") }));
    }

    #[test]
    fn the_control_record_cannot_be_lost() {
        let control = Key::control();
        for batch in [
            Batch::new(None).delete(control.clone()),
            Batch::new(None).put(control.clone(), "{}", Some(Time::EPOCH)),
            Batch::new(None).delete_range(Key::first(), Key::last()),
        ] {
            assert_eq!(batch.check(), Err(BatchError::Control));
        }
        assert_eq!(Batch::new(None).put(control, "{}", None).check(), Ok(()));
    }

    #[test]
    fn an_expiry_is_rounded_up_to_the_millisecond() {
        let check = |nanos: u64, millis: i64| {
            assert_eq!(whole_millis(Time::EPOCH.plus(std::time::Duration::from_nanos(nanos))), Time::from_unix_millis(millis));
        };
        check(0, 0);
        check(1, 1);
        check(1_000_000, 1);
        check(1_000_001, 2);
    }
}
