//! Records inside a chunk, and what is counted over all of them.
//!
//! A record is length of key (u16), length of value (u32), key, value; big-endian. Keys grow strictly from one record to
//! the next over the whole file. [`Tally`] checks that, counts, and digests; the writer, both passes of the reader, and
//! whoever compares a restored store with its backup use the same one.

use crate::Digest;
use crate::format::{MAX_KEY, MAX_KIND, MAX_KINDS, MAX_VALUE, RECORD_HEAD};
use crate::hex::Hex;
use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What could not be counted one by one.
const OTHER: &[u8] = b"*";

/// One stored item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// Why a record cannot stand in a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    #[error("a record has a key of {0} bytes; between 1 and {MAX_KEY} are possible")]
    Key(usize),
    #[error("the value of {key} has {size} bytes; the limit is {MAX_VALUE}")]
    Value { key: String, size: usize },
    #[error("the key {key} does not come after the one before it")]
    Order { key: String },
    #[error("a record is cut off")]
    Short,
}

fn shown(key: &[u8]) -> String {
    key.get(..80).unwrap_or(key).escape_ascii().to_string()
}

/// What a backup holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Summary {
    pub records: u64,
    /// Of keys and values.
    pub bytes: u64,
    /// Records by kind: the first two components of a key of three or more, else the first. `doc/role/dev` is of kind `doc/role`,
    /// `control` of kind `control`. Bytes outside printable ASCII are escaped as in Rust. `*` is what did not fit.
    pub kinds: BTreeMap<String, u64>,
    /// SHA-256 over all records as they stand in chunks: equal for equal contents, whatever the file around them.
    pub content: Digest,
}

/// Counts and digests records as they come, in constant memory.
pub struct Tally {
    last: Vec<u8>,
    records: u64,
    bytes: u64,
    kinds: BTreeMap<Vec<u8>, u64>,
    digest: Context,
}

impl Default for Tally {
    fn default() -> Self {
        Self { last: Vec::new(), records: 0, bytes: 0, kinds: BTreeMap::new(), digest: Context::new(&SHA256) }
    }
}

impl Tally {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next record in order of keys.
    pub fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), BadRecord> {
        let head = head(key, value)?;
        if key <= self.last.as_slice() {
            return Err(BadRecord::Order { key: shown(key) });
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        self.records += 1;
        self.bytes += (key.len() + value.len()) as u64;
        self.count(kind_of(key));
        for part in [&head, key, value] {
            self.digest.update(part);
        }
        Ok(())
    }

    fn count(&mut self, kind: &[u8]) {
        if let Some(count) = self.kinds.get_mut(kind) {
            *count += 1;
        } else {
            let kind = if self.kinds.len() + 1 < MAX_KINDS && kind.len() <= MAX_KIND { kind } else { OTHER };
            *self.kinds.entry(kind.to_vec()).or_default() += 1;
        }
    }

    /// What was counted.
    pub fn finish(self) -> Summary {
        let kinds = self.kinds.iter().map(|(kind, count)| (kind.escape_ascii().to_string(), *count)).collect();
        let content = Hex(self.digest.finish().as_ref().try_into().unwrap_or_default());
        Summary { records: self.records, bytes: self.bytes, kinds, content }
    }
}

/// The first two components of three or more, else the first.
fn kind_of(key: &[u8]) -> &[u8] {
    let mut slashes = key.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let (first, second) = (slashes.next(), slashes.next());
    second.or(first).and_then(|end| key.get(..end)).unwrap_or(key)
}

/// The two lengths before a record, within bounds.
fn head(key: &[u8], value: &[u8]) -> Result<[u8; RECORD_HEAD], BadRecord> {
    let key_len =
        u16::try_from(key.len()).ok().filter(|len| (1..=MAX_KEY).contains(&usize::from(*len))).ok_or(BadRecord::Key(key.len()))?;
    let too_large = || BadRecord::Value { key: shown(key), size: value.len() };
    let value_len = u32::try_from(value.len()).ok().filter(|_| value.len() <= MAX_VALUE).ok_or_else(too_large)?;
    let ([a, b], [c, d, e, f]) = (key_len.to_be_bytes(), value_len.to_be_bytes());
    Ok([a, b, c, d, e, f])
}

/// Appends a record that [`Tally::add`] accepted.
pub(crate) fn put(chunk: &mut Vec<u8>, key: &[u8], value: &[u8]) -> Result<(), BadRecord> {
    let head = head(key, value)?;
    for part in [&head, key, value] {
        chunk.extend_from_slice(part);
    }
    Ok(())
}

/// The record at the front of a chunk, and what follows it.
pub(crate) struct Taken<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) rest: &'a [u8],
}

/// Takes the first record off.
pub(crate) fn take(chunk: &[u8]) -> Result<Taken<'_>, BadRecord> {
    let ([a, b, c, d, e, f], rest) = chunk.split_first_chunk::<RECORD_HEAD>().ok_or(BadRecord::Short)?;
    let key_len = usize::from(u16::from_be_bytes([*a, *b]));
    let value_len = usize::try_from(u32::from_be_bytes([*c, *d, *e, *f])).map_err(|_| BadRecord::Short)?;
    let (key, rest) = rest.split_at_checked(key_len).ok_or(BadRecord::Short)?;
    let (value, rest) = rest.split_at_checked(value_len).ok_or(BadRecord::Short)?;
    Ok(Taken { key, value, rest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_the_first_two_components_of_three_or_else_the_first() {
        let check = |key: &[u8], kind: &[u8]| assert_eq!(kind_of(key), kind, "{}", key.escape_ascii());
        check(b"doc/role/dev", b"doc/role");
        check(b"doc/role/a/b", b"doc/role");
        check(b"presence/web1", b"presence");
        check(b"control", b"control");
        check(b"/x", b"");
        check(b"\xff", b"\xff");
    }

    #[test]
    fn keys_that_do_not_grow_are_refused_and_lengths_are_bounded() {
        let mut tally = Tally::new();
        tally.add(b"b", b"1").unwrap();
        for key in [b"b".as_slice(), b"a"] {
            assert!(matches!(tally.add(key, b""), Err(BadRecord::Order { .. })));
        }
        assert_eq!(tally.add(b"", b""), Err(BadRecord::Key(0)));
        assert_eq!(tally.add(&[b'k'; MAX_KEY + 1], b""), Err(BadRecord::Key(MAX_KEY + 1)));
        assert!(matches!(tally.add(b"c", &vec![0; MAX_VALUE + 1]), Err(BadRecord::Value { .. })));
        tally.add(&[b'c'; MAX_KEY], &vec![0; MAX_VALUE]).unwrap();
        assert_eq!(tally.finish().records, 2);
    }

    #[test]
    fn more_kinds_than_fit_are_counted_together() {
        let mut tally = Tally::new();
        for kind in 0..2000 {
            tally.add(format!("{kind:05}/x").as_bytes(), b"").unwrap();
        }
        let summary = tally.finish();
        assert_eq!(summary.kinds.len(), MAX_KINDS);
        assert_eq!(summary.kinds.get("*"), Some(&(2000 - 1023)));
    }
}
