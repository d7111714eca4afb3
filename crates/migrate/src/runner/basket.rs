//! How much one step may do, and a batch that is filled up to that.

use std::time::Duration;
use store::{Batch, Condition, MAX_CONDITIONS, MAX_OPS, MAX_REQUEST, Op, WriterEpoch};
use types::Time;

/// Operations and conditions left for the journal, the progress and the control record.
const OURS: usize = 4;
/// Bytes left for them: the progress may name two hundred rows.
const OUR_BYTES: usize = 384 << 10;
/// The most bytes that both forms of one row may have, so that one batch can hold them with what else it must.
pub(crate) const MAX_PAIR: usize = MAX_REQUEST - OUR_BYTES;

/// The bounds of one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Rows looked at. What fits in a batch bounds them too.
    pub rows: usize,
    /// Bytes read, and bytes written; one row may have more.
    pub bytes: usize,
    /// Time from the first row to the last, by the store's clock.
    pub time: Duration,
    /// How long given-up rows are kept.
    pub retention: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { rows: 200, bytes: 512 << 10, time: Duration::from_millis(500), retention: Duration::from_secs(30 * 86_400) }
    }
}

/// A batch that knows when it is full.
pub(crate) struct Basket {
    batch: Batch,
    bytes: usize,
    limit: usize,
}

impl Basket {
    pub(crate) fn new(writer: WriterEpoch, limits: &Limits) -> Self {
        Self { batch: Batch::new(Some(writer)), bytes: 0, limit: limits.bytes.min(MAX_PAIR) }
    }

    /// Takes all of it, or none if it is too much. Alone it may be larger than the limit of bytes, never than a batch.
    pub(crate) fn take(&mut self, conditions: Vec<Condition>, ops: Vec<Op>) -> bool {
        let bytes = ops.iter().map(size).sum::<usize>() + conditions.iter().map(|condition| 64 + condition.key().len()).sum::<usize>();
        let limit = if self.batch.ops.is_empty() { MAX_PAIR + (64 << 10) } else { self.limit };
        let fits = self.batch.ops.len() + ops.len() <= MAX_OPS - OURS
            && self.batch.conditions.len() + conditions.len() <= MAX_CONDITIONS - OURS
            && self.bytes + bytes <= limit;
        if fits {
            self.batch.ops.extend(ops);
            self.batch.conditions.extend(conditions);
            self.bytes += bytes;
        }
        fits
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batch.ops.is_empty()
    }

    pub(crate) fn into_batch(self) -> Batch {
        self.batch
    }
}

fn size(op: &Op) -> usize {
    64 + match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete { key } => key.len(),
        Op::DeleteRange { from, to } => from.len() + to.len(),
    }
}

/// Whether a step has gone on for long enough.
pub(crate) fn late(started: Time, now: Time, limits: &Limits) -> bool {
    now.since(started) >= limits.time
}
