//! The audit log's files: one line per event, each with its index and the hash of everything before it.
//!
//! A line is `{"ei":7,"hash":"<64 hex>","event":{…}}` and its hash is SHA-256 over the previous hash, the index (8 bytes,
//! big-endian) and the event's bytes as they stand. The first previous hash is made of the cluster's id, so that a log
//! cannot be passed off as another cluster's. Files are named `<day>.<first index>.jsonl`; the chain runs on from one to
//! the next. Pure functions and plain file reading; who writes is in `writer`.

use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};
use types::name::ClusterId;

pub(super) type Hash = [u8; 32];

/// The most bytes of one event; longer ones are shortened before they are written.
pub(super) const MAX_EVENT: usize = 64 * 1024;
/// The most bytes of a line: the event and what surrounds it.
pub(super) const MAX_LINE: usize = MAX_EVENT + 256;

/// What the first event is chained to.
pub(super) fn genesis(cluster: &ClusterId) -> Hash {
    Sha256::digest(format!("lockgate audit 1\n{cluster}").as_bytes()).into()
}

/// The hash of an event in its place.
pub(super) fn chain(previous: &Hash, index: u64, event: &[u8]) -> Hash {
    Sha256::new().chain_update(previous).chain_update(index.to_be_bytes()).chain_update(event).finalize().into()
}

pub(super) fn hex(hash: &Hash) -> String {
    data_encoding::HEXLOWER.encode(hash)
}

/// One line, with its newline.
pub(super) fn encode(index: u64, hash: &Hash, event: &[u8]) -> Vec<u8> {
    let mut line = format!("{{\"ei\":{index},\"hash\":\"{}\",\"event\":", hex(hash)).into_bytes();
    line.extend_from_slice(event);
    line.extend_from_slice(b"}\n");
    line
}

/// The parts of one line, without its newline. `None` when it was not written by [`encode`].
pub(super) fn decode(line: &[u8]) -> Option<Line<'_>> {
    let rest = line.strip_prefix(b"{\"ei\":")?;
    let digits = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    let (number, rest) = rest.split_at_checked(digits)?;
    // One spelling per number: otherwise a change would go unnoticed.
    let index: u64 = std::str::from_utf8(number).ok()?.parse().ok()?;
    if number.len() > 1 && number.starts_with(b"0") {
        return None;
    }
    let rest = rest.strip_prefix(b",\"hash\":\"")?;
    let (hash, rest) = rest.split_at_checked(64)?;
    if hash.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let hash: Hash = data_encoding::HEXLOWER.decode(hash).ok()?.try_into().ok()?;
    let event = rest.strip_prefix(b"\",\"event\":")?.strip_suffix(b"}")?;
    Some(Line { index, hash, event })
}

pub(super) struct Line<'a> {
    pub(super) index: u64,
    pub(super) hash: Hash,
    pub(super) event: &'a [u8],
}

/// One file of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Part {
    pub(super) first: u64,
    pub(super) path: PathBuf,
}

/// The log's files in order.
pub(super) fn parts(dir: &Path) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(stem) = name.strip_suffix(".jsonl") else { continue };
        if let Some(first) = stem.rsplit_once('.').and_then(|(_, first)| first.parse().ok()) {
            parts.push(Part { first, path });
        }
    }
    parts.sort_by_key(|part| part.first);
    Ok(parts)
}

pub(super) fn name(day: &str, first: u64) -> String {
    format!("{day}.{first:020}.jsonl")
}

/// Reads a file's lines from its end to its start, in pieces.
pub(super) struct Backwards {
    file: File,
    /// Everything before this offset is still to be read.
    left: u64,
    /// Bytes read and not yet handed out; they end where the last line handed out began.
    buffer: Vec<u8>,
}

const PIECE: u64 = 64 * 1024;

impl Backwards {
    /// From the byte `end` on backwards; it should stand behind a newline.
    pub(super) fn open(path: &Path, end: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let left = file.metadata()?.len().min(end);
        Ok(Self { file, left, buffer: Vec::new() })
    }

    /// The line before, without its newline. A line longer than any of ours ends the file.
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let body = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
            if let Some(at) = body.iter().rposition(|byte| *byte == b'\n') {
                let line = body.get(at.saturating_add(1)..).unwrap_or_default().to_vec();
                self.buffer.truncate(at.saturating_add(1));
                return Ok(Some(line));
            }
            if self.left == 0 {
                let line = body.to_vec();
                let had = !self.buffer.is_empty();
                self.buffer.clear();
                return Ok(had.then_some(line));
            }
            if self.buffer.len() > 2 * MAX_LINE {
                return Ok(None);
            }
            let size = self.left.min(PIECE);
            self.left = self.left.saturating_sub(size);
            self.file.seek(SeekFrom::Start(self.left))?;
            let mut piece = vec![0; usize::try_from(size).unwrap_or_default()];
            self.file.read_exact(&mut piece)?;
            piece.extend_from_slice(&self.buffer);
            self.buffer = piece;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lines_read_backwards_are_the_lines_written(lines in prop::collection::vec("[a-z]{0,200}", 0..50)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x");
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            std::fs::write(&path, &text).unwrap();
            let mut backwards = Backwards::open(&path, u64::MAX).unwrap();
            let mut got = Vec::new();
            while let Some(line) = backwards.next().unwrap() {
                got.push(String::from_utf8(line).unwrap());
            }
            got.reverse();
            prop_assert_eq!(got, lines);
        }

        #[test]
        fn a_line_survives_and_a_changed_one_does_not(index: u64, event in "\\{[a-z\":,]{0,100}\\}", at in 0usize..300, bit in 0u8..8) {
            let previous = [7; 32];
            let hash = chain(&previous, index, event.as_bytes());
            let mut line = encode(index, &hash, event.as_bytes());
            line.pop();
            let read = decode(&line).unwrap();
            prop_assert!(read.index == index && read.hash == hash && read.event == event.as_bytes());
            let at = at % line.len();
            line[at] ^= 1 << bit;
            if let Some(read) = decode(&line) {
                prop_assert_ne!(chain(&previous, read.index, read.event), read.hash);
            }
        }
    }
}
