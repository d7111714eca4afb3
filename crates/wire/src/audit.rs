//! The audit log's bytes: lines in files, lines of an export, and the hash chain that both hold.
//!
//! A line of a log is `{"ei":7,"hash":"<64 hex>","event":{…}}`. Its hash is SHA-256 over the previous hash, the index (8 bytes,
//! big-endian) and the event's bytes as they stand; the first previous hash is made of the cluster's id, so that a log cannot be
//! passed off as another cluster's. A line of an export names its chain, too: `{"instance":"<id>","ei":7,"hash":"…","prev":"…",
//! "event":{…}}`, with `prev` where a chain's piece begins. [`Head::follow`] is the one place that judges a link: the Auth Service
//! uses it for files and PostgreSQL (`auth::audit`), `tctl audit verify --file` for exports ([`Runs`]).

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use types::{HostId, name::ClusterId};

/// The most bytes of one event; longer ones are shortened before they are written.
pub const MAX_EVENT: usize = 64 * 1024;
/// The most bytes of a line: the event and what surrounds it.
pub const MAX_LINE: usize = MAX_EVENT + 512;

/// SHA-256; text is 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
    /// Of one spelling only: otherwise a change would go unnoticed.
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        Some(Self(data_encoding::HEXLOWER.decode(text).ok()?.try_into().ok()?))
    }
}
impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}
impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}
impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::from_hex(text.as_bytes()).ok_or_else(|| D::Error::custom("not a SHA-256 of 64 hexadecimal digits"))
    }
}

/// The end of a chain, or a place in it: how many events are before, and the hash of the last of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    pub events: u64,
    pub hash: Digest,
}

/// Why a line is not the next of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Broken {
    #[error("event {index} is missing")]
    Missing { index: u64 },
    #[error("event {index} is out of order")]
    Order { index: u64 },
    #[error("event {index} was changed, or one before it is gone")]
    Changed { index: u64 },
}

impl Head {
    /// Where a cluster's chain begins at its birth.
    pub fn genesis(cluster: &ClusterId) -> Self {
        Self { events: 0, hash: Digest(Sha256::digest(format!("lockgate audit 1\n{cluster}").as_bytes()).into()) }
    }

    /// The place behind one more event.
    #[must_use]
    pub fn after(&self, event: &[u8]) -> Self {
        let hash = Sha256::new().chain_update(self.hash.0).chain_update(self.events.to_be_bytes()).chain_update(event).finalize();
        Self { events: self.events.saturating_add(1), hash: Digest(hash.into()) }
    }

    /// Goes on by a line, if it is the next.
    pub fn follow(&mut self, line: Parts<'_>) -> Result<(), Broken> {
        let index = self.events;
        if line.index > index {
            return Err(Broken::Missing { index });
        }
        if line.index < index {
            return Err(Broken::Order { index });
        }
        let next = self.after(line.event);
        if next.hash != line.hash {
            return Err(Broken::Changed { index });
        }
        *self = next;
        Ok(())
    }
}

/// One line, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parts<'a> {
    pub index: u64,
    pub hash: Digest,
    pub event: &'a [u8],
}

/// One line that owns its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    pub index: u64,
    pub hash: Digest,
    /// The event's JSON, as it was hashed.
    pub event: Bytes,
}

impl Line {
    /// The event behind `head`, which moves on.
    pub fn chained(head: &mut Head, event: Bytes) -> Self {
        let index = head.events;
        *head = head.after(&event);
        Self { index, hash: head.hash, event }
    }
    pub fn parts(&self) -> Parts<'_> {
        Parts { index: self.index, hash: self.hash, event: &self.event }
    }
}

impl Parts<'_> {
    pub fn to_line(self) -> Line {
        Line { index: self.index, hash: self.hash, event: Bytes::copy_from_slice(self.event) }
    }

    /// As it stands in a log's file, with its newline.
    pub fn encode(self) -> Vec<u8> {
        let mut line = format!("{{\"ei\":{},\"hash\":\"{}\",\"event\":", self.index, self.hash).into_bytes();
        line.extend_from_slice(self.event);
        line.extend_from_slice(b"}\n");
        line
    }

    /// As it stands in an export, with its newline. `prev` is the hash before, where a piece begins.
    pub fn export(self, instance: HostId, prev: Option<Digest>) -> Vec<u8> {
        let prev = prev.map(|prev| format!("\"prev\":\"{prev}\",")).unwrap_or_default();
        let mut line =
            format!("{{\"instance\":\"{instance}\",\"ei\":{},\"hash\":\"{}\",{prev}\"event\":", self.index, self.hash).into_bytes();
        line.extend_from_slice(self.event);
        line.extend_from_slice(b"}\n");
        line
    }
}

/// The parts of a log's line, without its newline. `None` when it was not written by [`Parts::encode`].
pub fn decode(line: &[u8]) -> Option<Parts<'_>> {
    let (index, rest) = number(line.strip_prefix(b"{\"ei\":")?)?;
    let (hash, rest) = hash(rest.strip_prefix(b",\"hash\":\"")?)?;
    let event = rest.strip_prefix(b",\"event\":")?.strip_suffix(b"}")?;
    Some(Parts { index, hash, event })
}

/// One line of an export, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exported<'a> {
    pub instance: HostId,
    pub prev: Option<Digest>,
    pub parts: Parts<'a>,
}

/// The parts of an export's line, without its newline.
pub fn decode_export(line: &[u8]) -> Option<Exported<'_>> {
    let (instance, rest) = line.strip_prefix(b"{\"instance\":\"")?.split_at_checked(36)?;
    let instance: HostId = std::str::from_utf8(instance).ok()?.parse().ok()?;
    let (index, rest) = number(rest.strip_prefix(b"\",\"ei\":")?)?;
    let (own, rest) = hash(rest.strip_prefix(b",\"hash\":\"")?)?;
    let (prev, rest) = match rest.strip_prefix(b",\"prev\":\"") {
        Some(rest) => hash(rest).map(|(prev, rest)| (Some(prev), rest))?,
        None => (None, rest),
    };
    let event = rest.strip_prefix(b",\"event\":")?.strip_suffix(b"}")?;
    Some(Exported { instance, prev, parts: Parts { index, hash: own, event } })
}

/// Digits, of one spelling per number.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().position(|byte| !byte.is_ascii_digit())?;
    let (number, rest) = text.split_at_checked(digits)?;
    if number.len() > 1 && number.starts_with(b"0") {
        return None;
    }
    Some((std::str::from_utf8(number).ok()?.parse().ok()?, rest))
}

/// A hash and the quote behind it.
fn hash(text: &[u8]) -> Option<(Digest, &[u8])> {
    let (hash, rest) = text.split_at_checked(64)?;
    if hash.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    Some((Digest::from_hex(hash)?, rest.strip_prefix(b"\"")?))
}

/// A piece of one chain, as an export holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Before its first event.
    pub begin: Head,
    /// Behind its last.
    pub end: Head,
}

/// Why an export does not hold.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadExport {
    #[error("line {line} is not a line of an export")]
    Unreadable { line: u64 },
    #[error("line {line}: the events of {instance} begin without the hash before them")]
    NoBegin { line: u64, instance: HostId },
    #[error("line {line}, {instance}: {broken}")]
    Broken { line: u64, instance: HostId, broken: Broken },
}

/// Follows the chains of an export, line by line. Each chain is one piece without a gap; files of several exports may be joined.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    lines: u64,
    runs: BTreeMap<HostId, Run>,
}

impl Runs {
    /// Takes the next line, without its newline.
    pub fn take(&mut self, line: &[u8]) -> Result<(), BadExport> {
        self.lines = self.lines.saturating_add(1);
        let at = self.lines;
        let Exported { instance, prev, parts } = decode_export(line).ok_or(BadExport::Unreadable { line: at })?;
        let broken = |broken| BadExport::Broken { line: at, instance, broken };
        let run = match (self.runs.get_mut(&instance), prev) {
            (Some(run), None) => run,
            // The next export of the same chain: it must begin where this one ended.
            (Some(run), Some(prev)) if parts.index == run.end.events && prev != run.end.hash => {
                return Err(broken(Broken::Changed { index: parts.index }));
            }
            (Some(run), Some(_)) => run,
            (None, Some(hash)) => {
                let begin = Head { events: parts.index, hash };
                self.runs.entry(instance).or_insert(Run { begin, end: begin })
            }
            (None, None) => return Err(BadExport::NoBegin { line: at, instance }),
        };
        run.end.follow(parts).map_err(broken)
    }

    pub fn lines(&self) -> u64 {
        self.lines
    }
    /// What was found whole, by chain.
    pub fn runs(&self) -> &BTreeMap<HostId, Run> {
        &self.runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cluster() -> ClusterId {
        ClusterId::from_uuid(uuid::Uuid::from_u128(7))
    }
    fn host(number: u128) -> HostId {
        HostId::from_uuid(uuid::Uuid::from_u128(number))
    }
    fn lines(number: u64) -> Vec<Line> {
        let mut head = Head::genesis(&cluster());
        (0..number).map(|at| Line::chained(&mut head, format!("{{\"n\":{at}}}").into())).collect()
    }
    fn export(lines: &[Line], first: usize) -> Vec<Vec<u8>> {
        let before = first.checked_sub(1).map_or_else(|| Head::genesis(&cluster()).hash, |before| lines[before].hash);
        let piece = lines[first..].iter().enumerate();
        piece.map(|(at, line)| line.parts().export(host(1), (at == 0).then_some(before))).collect()
    }
    fn judge(export: &[Vec<u8>]) -> Result<Runs, BadExport> {
        let mut runs = Runs::default();
        export.iter().try_for_each(|line| runs.take(line.strip_suffix(b"\n").unwrap())).map(|()| runs)
    }

    #[test]
    fn the_bytes_of_a_line_and_its_hash_are_frozen() {
        let line = &lines(1)[0];
        let encoded = String::from_utf8(line.parts().encode()).unwrap();
        let hash = "cd50785602eeb67747771af8321a395406d4b1e7a867b08af731d921bf0d188c";
        assert_eq!(encoded, format!("{{\"ei\":0,\"hash\":\"{hash}\",\"event\":{{\"n\":0}}}}\n"));
    }

    #[test]
    fn an_export_holds_from_its_first_line_to_its_last_and_joins_the_next() {
        let all = lines(9);
        let runs = judge(&export(&all, 3)).unwrap();
        let run = runs.runs()[&host(1)];
        assert_eq!((run.begin.events, run.end.events, run.end.hash), (3, 9, all[8].hash));
        let joined: Vec<_> = export(&all[..5], 0).into_iter().chain(export(&all, 5)).collect();
        assert_eq!(judge(&joined).unwrap().runs()[&host(1)].end.events, 9);
    }

    #[test]
    fn attack_row_32_a_line_taken_out_of_an_export_moved_or_changed_is_named() {
        let check = |change: fn(&mut Vec<Vec<u8>>), expected: &str| {
            let mut export = export(&lines(6), 0);
            change(&mut export);
            assert_eq!(judge(&export).unwrap_err().to_string(), expected);
        };
        let id = "00000000-0000-0000-0000-000000000001";
        check(|lines| drop(lines.remove(3)), &format!("line 4, {id}: event 3 is missing"));
        check(|lines| lines.swap(2, 3), &format!("line 3, {id}: event 2 is missing"));
        check(|lines| lines.insert(3, lines[1].clone()), &format!("line 4, {id}: event 3 is out of order"));
        check(|lines| lines[4] = lines[4].replace_last(), &format!("line 5, {id}: event 4 was changed, or one before it is gone"));
        check(|lines| drop(lines.remove(0)), &format!("line 1: the events of {id} begin without the hash before them"));
        check(|lines| lines[2] = b"{}\n".to_vec(), "line 3 is not a line of an export");
    }

    trait Replace {
        fn replace_last(&self) -> Vec<u8>;
    }
    impl Replace for Vec<u8> {
        fn replace_last(&self) -> Vec<u8> {
            String::from_utf8(self.clone()).unwrap().replace("{\"n\":4}", "{\"n\":5}").into_bytes()
        }
    }

    proptest! {
        #[test]
        fn a_line_survives_and_a_changed_one_does_not(index: u64, event in "\\{[a-z\":,]{0,100}\\}", at in 0usize..300, bit in 0u8..8) {
            let before = Head { events: index, hash: Digest::from_bytes([7; 32]) };
            let hash = before.after(event.as_bytes()).hash;
            let mut line = Parts { index, hash, event: event.as_bytes() }.encode();
            line.pop();
            prop_assert_eq!(decode(&line), Some(Parts { index, hash, event: event.as_bytes() }));
            let exported = Parts { index, hash, event: event.as_bytes() }.export(host(3), Some(before.hash));
            let read = decode_export(exported.strip_suffix(b"\n").unwrap()).unwrap();
            prop_assert_eq!((read.instance, read.prev, read.parts), (host(3), Some(before.hash), Parts { index, hash, event: event.as_bytes() }));
            let at = at % line.len();
            line[at] ^= 1 << bit;
            if let Some(read) = decode(&line) {
                prop_assert!(before.clone().follow(read).is_err());
            }
        }

        #[test]
        fn bytes_of_strangers_never_break_the_parsers(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _read = (decode(&bytes), decode_export(&bytes));
        }
    }
}
