//! Keys and values as they lie in etcd.
//!
//! `<prefix>head`: layout (1 byte), revision (8, big-endian), random name of the transaction that wrote it (16), then for each commit
//! of that transaction the number of its events (4 each). `<prefix>item/<key>`: layout (1), revision (8), expiry in milliseconds (8,
//! the lowest number for none), value. `<prefix>due/<expiry>/<key>`: an empty entry for each item that expires, ordered by time; one
//! whose item has another expiry by now is stale, and goes when its time comes. In a watch of `head` and `item/`, the put of `head`
//! is the last event of each transaction.

use crate::remote::OpenError;
use crate::{Event, Item, Key};
use bytes::{BufMut as _, Bytes};
use types::Time;

const LAYOUT: u8 = 1;
const NEVER: i64 = i64::MIN;

/// The keys of one store.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    prefix: String,
}

/// What `head` holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Head {
    /// Of the last commit.
    pub(super) revision: u64,
    /// Of the transaction.
    pub(super) name: [u8; 16],
    /// How many events each of its commits has; together they end at `revision`.
    pub(super) counts: Vec<u32>,
    /// etcd's revision of this value; 0 if it is still to be written.
    pub(super) at: i64,
}

/// Why bytes are not a value of this layout.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(super) enum Unreadable {
    Newer(u8),
    Foreign,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Newer(found) => write!(f, "a value has the layout {found} of a newer release"),
            Self::Foreign => f.write_str("a value was not written by Lockgate"),
        }
    }
}

impl Layout {
    pub(super) fn new(prefix: &str) -> Result<Self, OpenError> {
        let proper = prefix.len() <= 64 && prefix.bytes().all(|byte| byte.is_ascii_graphic());
        if !proper {
            return Err(OpenError::Settings(format!(
                "\"{}\" is not a prefix for etcd: at most 64 visible ASCII characters",
                prefix.escape_default()
            )));
        }
        let slash = if prefix.ends_with('/') { "" } else { "/" };
        Ok(Self { prefix: format!("{prefix}{slash}") })
    }

    fn with(&self, dir: &str, rest: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + dir.len() + rest.len());
        key.extend_from_slice(self.prefix.as_bytes());
        key.extend_from_slice(dir.as_bytes());
        key.extend_from_slice(rest);
        key
    }

    pub(super) fn head(&self) -> Vec<u8> {
        self.with("head", b"")
    }

    pub(super) fn item(&self, key: &Key) -> Vec<u8> {
        self.with("item/", key.as_bytes())
    }

    /// What a watch must see: `head` and all items, without `due/`.
    pub(super) fn watched(&self) -> (Vec<u8>, Vec<u8>) {
        (self.head(), self.with("item0", b""))
    }

    /// The key of an item's name in etcd.
    pub(super) fn key(&self, name: &[u8]) -> Option<Key> {
        let rest = name.strip_prefix(self.prefix.as_bytes())?.strip_prefix(b"item/")?;
        Some(Key::stored(rest.to_vec()))
    }

    pub(super) fn due(&self, expires: Time, key: &Key) -> Vec<u8> {
        let mut rest = ordered(expires.unix_millis()).into_bytes();
        rest.push(b'/');
        rest.extend_from_slice(key.as_bytes());
        self.with("due/", &rest)
    }

    /// From the first entry to the last that is due.
    pub(super) fn due_until(&self, now: Time) -> (Vec<u8>, Vec<u8>) {
        (self.with("due/", b""), self.with("due/", ordered(now.unix_millis().saturating_add(1)).as_bytes()))
    }

    /// The time and the item of an entry.
    pub(super) fn parse_due(&self, name: &[u8]) -> Option<(Time, Key)> {
        let rest = name.strip_prefix(self.prefix.as_bytes())?.strip_prefix(b"due/")?;
        let (time, key) = (rest.get(..16)?, rest.get(17..)?);
        let number = u64::from_str_radix(std::str::from_utf8(time).ok()?, 16).ok()?;
        let millis = (number ^ (1 << 63)).cast_signed();
        Some((Time::from_unix_millis(millis), Key::stored(key.to_vec())))
    }
}

/// Sixteen digits that sort as the numbers do.
fn ordered(millis: i64) -> String {
    format!("{:016x}", millis.cast_unsigned() ^ (1 << 63))
}

impl Head {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(25 + 4 * self.counts.len());
        bytes.put_u8(LAYOUT);
        bytes.put_u64(self.revision);
        bytes.put_slice(&self.name);
        self.counts.iter().for_each(|count| bytes.put_u32(*count));
        bytes
    }

    pub(super) fn parse(bytes: &[u8], at: i64) -> Result<Self, Unreadable> {
        let rest = layout(bytes)?;
        let (revision, rest) = rest.split_first_chunk::<8>().ok_or(Unreadable::Foreign)?;
        let (name, counts) = rest.split_first_chunk::<16>().ok_or(Unreadable::Foreign)?;
        let counts = counts.chunks(4).map(|count| count.try_into().map(u32::from_be_bytes).map_err(|_| Unreadable::Foreign));
        Ok(Self { revision: u64::from_be_bytes(*revision), name: *name, counts: counts.collect::<Result<_, _>>()?, at })
    }
}

pub(super) fn item_bytes(item: &Item) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(17 + item.value.len());
    bytes.put_u8(LAYOUT);
    bytes.put_u64(item.revision);
    bytes.put_i64(item.expires.map_or(NEVER, Time::unix_millis));
    bytes.put_slice(&item.value);
    bytes
}

pub(super) fn parse_item(key: Key, bytes: &Bytes) -> Result<Item, Unreadable> {
    let rest = layout(bytes)?;
    let (revision, rest) = rest.split_first_chunk::<8>().ok_or(Unreadable::Foreign)?;
    let (expires, _) = rest.split_first_chunk::<8>().ok_or(Unreadable::Foreign)?;
    let expires = Some(i64::from_be_bytes(*expires)).filter(|millis| *millis != NEVER).map(Time::from_unix_millis);
    Ok(Item { key, value: bytes.slice(17..), revision: u64::from_be_bytes(*revision), expires })
}

fn layout(bytes: &[u8]) -> Result<&[u8], Unreadable> {
    match bytes.split_first() {
        Some((&LAYOUT, rest)) => Ok(rest),
        Some((&newer @ 2..=31, _)) => Err(Unreadable::Newer(newer)),
        _ => Err(Unreadable::Foreign),
    }
}

/// Deals the events of one transaction out to its commits; `None` when some are missing.
pub(super) fn deal(head: &Head, events: Vec<(Key, Option<Item>)>) -> Option<Vec<crate::watch::Commit>> {
    let expected: usize = head.counts.iter().map(|count| usize::try_from(*count).unwrap_or(usize::MAX)).sum();
    if expected != events.len() {
        return None;
    }
    let first = (head.revision + 1).checked_sub(u64::try_from(head.counts.len()).ok()?)?;
    let mut events = events.into_iter();
    let commits = (first..).zip(&head.counts).map(|(revision, count)| {
        let some = events.by_ref().take(usize::try_from(*count).unwrap_or(usize::MAX));
        let some = some.map(|(key, item)| match item {
            Some(item) => Event::Put(item),
            None => Event::Delete { key, revision },
        });
        crate::watch::Commit { revision, events: some.collect() }
    });
    Some(commits.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let head = Head { revision: 7, name: [9; 16], counts: vec![1, 0, 300], at: 5 };
        assert_eq!(Head::parse(&head.to_bytes(), 5), Ok(head));
        for expires in [None, Some(Time::from_unix_millis(-1)), Some(Time::from_unix(1_800_000_000))] {
            let item = Item { key: key("a"), value: Bytes::from_static(b"v"), revision: 3, expires };
            assert_eq!(parse_item(key("a"), &item_bytes(&item).into()), Ok(item));
        }
    }

    #[test]
    fn keys_and_values_are_as_they_were_released() {
        let layout = Layout::new("/lockgate").unwrap();
        let head = Head { revision: 7, name: *b"0123456789abcdef", counts: vec![1, 0, 300], at: 5 };
        let item = |expires| Item { key: key("doc/user/alice"), value: Bytes::from_static(b"{}"), revision: 3, expires };
        let (from, to) = layout.watched();
        let (due, (first, until)) = (Time::from_unix(1_800_000_000), layout.due_until(Time::from_unix(1_800_000_000)));
        let lines: [(&str, Vec<u8>); 10] = [
            ("head", layout.head()),
            ("item", layout.item(&key("doc/user/alice"))),
            ("due", layout.due(due, &key("doc/user/alice"))),
            ("watched from", from),
            ("watched to", to),
            ("due from", first),
            ("due to", until),
            ("value of head", head.to_bytes()),
            ("value of an item", item_bytes(&item(None))),
            ("value of an item that expires", item_bytes(&item(Some(due)))),
        ];
        let text: String = lines.iter().map(|(what, bytes)| format!("{what}: {}\n", bytes.escape_ascii())).collect();
        crate::hold::text("etcd.txt", &text);
    }

    #[test]
    fn newer_foreign_and_torn_values_are_told_apart() {
        let check = |bytes: &[u8], expected: Unreadable| assert_eq!(Head::parse(bytes, 1), Err(expected));
        check(&[2; 30], Unreadable::Newer(2));
        check(b"hello", Unreadable::Foreign);
        check(b"", Unreadable::Foreign);
        check(&[1; 20], Unreadable::Foreign);
        check(&[1; 27], Unreadable::Foreign);
        assert_eq!(parse_item(key("a"), &Bytes::from_static(&[1; 16])), Err(Unreadable::Foreign));
    }

    #[test]
    fn entries_sort_by_time_and_are_read_back() {
        let layout = Layout::new("/x").unwrap();
        let times = [-10_000_000_000, -5, 0, 5, 4_000_000_000_000].map(Time::from_unix_millis);
        let entries: Vec<_> = times.iter().map(|time| layout.due(*time, &key("a/b"))).collect();
        assert!(entries.is_sorted());
        for (time, entry) in times.into_iter().zip(&entries) {
            assert_eq!(layout.parse_due(entry), Some((time, key("a/b"))));
        }
        let (from, to) = layout.due_until(Time::from_unix_millis(5));
        assert_eq!(entries.iter().filter(|entry| (&from..&to).contains(entry)).count(), 4, "what is due now is in it");
        let (from, to) = layout.watched();
        let inside = |name: Vec<u8>| (&from..&to).contains(&&name);
        assert!(inside(layout.head()) && inside(layout.item(&key("zz"))) && !inside(entries[0].clone()));
    }

    #[test]
    fn events_are_dealt_out_to_commits_and_a_loss_is_seen() {
        let events = || vec![(key("a"), None), (key("b"), None), (key("c"), None)];
        let head = |counts: &[u32]| Head { revision: 9, name: [0; 16], counts: counts.to_vec(), at: 1 };
        let dealt = deal(&head(&[1, 2]), events()).unwrap();
        assert_eq!(dealt.iter().map(|commit| (commit.revision, commit.events.len())).collect::<Vec<_>>(), [(8, 1), (9, 2)]);
        assert!(deal(&head(&[1, 1]), events()).is_none() && deal(&head(&[4]), events()).is_none());
        assert_eq!(deal(&head(&[]), vec![]).map(|commits| commits.len()), Some(0));
    }
}
