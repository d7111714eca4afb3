//! What of the store stands in a backup, and how: each item under its own key, its value behind a few bytes that say when it expires.
//!
//! Everything is carried, known or not, secrets of the vault and journals of migrations included, but what [`LEFT_OUT`] names. A
//! record's value is one byte, 0 for an item that stays, 1 for one that expires, then (for 1) the time in milliseconds since 1970 (8
//! bytes, signed, big-endian), then the item's value as it lies in the store. Revisions are not carried: a restored store counts its own.
//! Told to others in `docs/backup-format.md`, "Values".

use store::Item;
use types::Time;

const STAYS: u8 = 0;
const EXPIRES: u8 = 1;

/// What no backup carries, by the beginning of its key, and why.
pub const LEFT_OUT: &[(&str, &str)] = &[
    ("doc/member/", "a heartbeat: whoever lives says so again within a minute"),
    ("doc/node/", "a heartbeat: whoever lives says so again within a minute"),
    ("internal/auth/", "the lease of an Auth Service that lives"),
    (
        "internal/backup/made/",
        "what lies in the place of scheduled backups: this one would be told as begun and never ended, and be removed",
    ),
    ("internal/backup/turn/", "the lease of an Auth Service that makes a backup"),
    ("internal/recordings/", "where recordings lie: whoever keeps some says so again when it starts"),
];

pub use crate::vault::FAMILIES;

/// Where the audit log's end is noted; a restore writes both itself.
pub(crate) const AUDIT: &str = "internal/audit/";

/// Whether an item is part of backups.
pub fn carried(key: &[u8]) -> bool {
    !LEFT_OUT.iter().any(|(prefix, _)| key.starts_with(prefix.as_bytes()))
}

/// Why a record of a backup is no item.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the record {key} of the backup cannot be read: {why}")]
pub struct BadContent {
    pub key: String,
    pub why: &'static str,
}

/// The value of an item's record.
pub fn encode(value: &[u8], expires: Option<Time>, into: &mut Vec<u8>) {
    into.clear();
    match expires {
        None => into.push(STAYS),
        Some(time) => {
            into.push(EXPIRES);
            into.extend(time.unix_millis().to_be_bytes());
        }
    }
    into.extend_from_slice(value);
}

/// The item's value and expiry in a record.
pub fn decode<'a>(key: &[u8], record: &'a [u8]) -> Result<(&'a [u8], Option<Time>), BadContent> {
    let bad = |why| BadContent { key: key.escape_ascii().to_string().chars().take(80).collect(), why };
    match record.split_first() {
        Some((&STAYS, value)) => Ok((value, None)),
        Some((&EXPIRES, rest)) => {
            let (millis, value) = rest.split_first_chunk::<8>().ok_or_else(|| bad("it is cut off"))?;
            Ok((value, Some(Time::from_unix_millis(i64::from_be_bytes(*millis)))))
        }
        Some(_) => Err(bad("a newer release wrote it")),
        None => Err(bad("it is empty")),
    }
}

/// Counts and digests items as they come, as a backup of them would be: equal for equal contents.
pub struct Sums {
    tally: backup::Tally,
    value: Vec<u8>,
}

impl Default for Sums {
    fn default() -> Self {
        Self { tally: backup::Tally::new(), value: Vec::new() }
    }
}

impl Sums {
    /// An item, in order of keys. What expires may go at any moment, and what a restore writes itself differs: neither is counted.
    pub fn add(&mut self, key: &[u8], value: &[u8], expires: Option<Time>) -> Result<(), backup::BadRecord> {
        if expires.is_some() || key == store::Key::control().as_bytes() || key.starts_with(AUDIT.as_bytes()) || !carried(key) {
            return Ok(());
        }
        encode(value, None, &mut self.value);
        self.tally.add(key, &self.value)
    }

    /// The same for an item of a store.
    pub fn add_item(&mut self, item: &Item) -> Result<(), backup::BadRecord> {
        self.add(item.key.as_bytes(), &item.value, item.expires)
    }

    pub fn finish(self) -> backup::Summary {
        self.tally.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_item_survives_its_record(value in prop::collection::vec(any::<u8>(), 0..50), millis: Option<i64>) {
            let expires = millis.map(|millis| Time::from_unix_millis(millis >> 16));
            let mut record = vec![9];
            encode(&value, expires, &mut record);
            prop_assert_eq!(decode(b"k", &record), Ok((value.as_slice(), expires)));
        }
    }

    #[test]
    fn records_of_a_newer_release_and_cut_ones_are_told_apart() {
        let why = |record: &[u8]| decode(b"doc/x", record).unwrap_err().to_string();
        assert_eq!(why(&[2, 1]), "the record doc/x of the backup cannot be read: a newer release wrote it");
        assert_eq!(why(&[]), "the record doc/x of the backup cannot be read: it is empty");
        assert_eq!(why(&[1, 0, 0]), "the record doc/x of the backup cannot be read: it is cut off");
    }

    #[test]
    fn heartbeats_are_left_out_and_nothing_that_only_begins_alike() {
        assert!(!carried(b"doc/member/x") && !carried(b"doc/node/x"));
        assert!(carried(b"doc/members/x") && carried(b"doc/node-x/y") && carried(b"internal/host/x") && carried(b"unheard/of"));
    }
}
