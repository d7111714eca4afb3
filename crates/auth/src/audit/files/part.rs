//! The files of a log: their names, their lines forwards and backwards, and what times each has.
//!
//! Files are named `<day>.<first index>.jsonl`; the chain runs on from one to the next. Beside a file that is closed lies
//! `<name>.times`: the oldest and the newest event in it, so that a search opens only files that can have an answer. It is a
//! hint, made anew when it does not fit its file, and nothing that verification believes. Plain blocking reading.

use super::super::query::Facets;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};
use wire::audit::{MAX_LINE, decode};

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

impl Part {
    pub(super) fn shown(&self) -> String {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned()
    }
    pub(super) fn times_path(&self) -> PathBuf {
        self.path.with_extension("times")
    }
}

/// What times a file has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Times {
    /// Bytes of the file that this speaks of.
    pub(super) bytes: u64,
    /// Microseconds since 1970.
    pub(super) oldest: i64,
    pub(super) newest: i64,
}

impl Times {
    pub(super) fn none() -> Self {
        Self { bytes: 0, oldest: i64::MAX, newest: i64::MIN }
    }
    pub(super) fn add(&mut self, micros: i64, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.oldest = self.oldest.min(micros);
        self.newest = self.newest.max(micros);
    }

    /// As noted beside the file, else by reading it.
    pub(super) fn of(part: &Part) -> io::Result<Self> {
        let bytes = std::fs::metadata(&part.path)?.len();
        let noted = std::fs::read(part.times_path()).ok().and_then(|json| serde_json::from_slice::<Self>(&json).ok());
        if let Some(noted) = noted.filter(|noted| noted.bytes == bytes) {
            return Ok(noted);
        }
        let mut times = Self::none();
        let mut lines = Forwards::open(&part.path, 0)?;
        while let Some(line) = lines.next()? {
            if let Some(line) = decode(line) {
                times.add(Facets::of(line.event).micros, 0);
            }
        }
        times.bytes = bytes;
        Ok(times)
    }

    /// Notes them beside a file that is closed. Without the note they are read from the file.
    pub(super) fn note(&self, part: &Part) {
        let noted = serde_json::to_vec(self).map_err(io::Error::from).and_then(|json| std::fs::write(part.times_path(), json));
        if let Err(error) = noted {
            tracing::debug!(%error, file = %part.path.display(), "the times of an audit file could not be noted");
        }
    }
}

/// Reads a file's lines from an offset on.
pub(super) struct Forwards {
    reader: BufReader<File>,
    line: Vec<u8>,
    /// Behind the last line given.
    pub(super) offset: u64,
}

impl Forwards {
    pub(super) fn open(path: &Path, offset: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self { reader: BufReader::with_capacity(256 << 10, file), line: Vec::new(), offset })
    }

    /// The next line without its newline. Bounded, so that a file without newlines does not fill the memory.
    pub(super) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let limit = u64::try_from(2 * MAX_LINE).unwrap_or(u64::MAX);
        let read = self.reader.by_ref().take(limit).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        self.offset = self.offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        }
        Ok(Some(&self.line))
    }
}

/// Where the line of an index begins, or the first with a greater one; found by halving, for every line says its index. In a file
/// that was tampered with it may be too early, never behind a line that is in order.
pub(super) fn seek(path: &Path, index: u64) -> io::Result<u64> {
    let (mut low, mut high) = (0u64, std::fs::metadata(path)?.len());
    let near = u64::try_from(4 * MAX_LINE).unwrap_or(u64::MAX);
    while high.saturating_sub(low) > near {
        let middle = low.midpoint(high);
        let mut lines = Forwards::open(path, middle)?;
        // The line that the middle stands in is not whole.
        lines.next()?;
        let begins = lines.offset;
        match lines.next()?.and_then(decode) {
            Some(line) if line.index <= index && begins < high => low = begins,
            Some(_) | None => high = middle,
        }
    }
    let mut lines = Forwards::open(path, low)?;
    loop {
        let begins = lines.offset;
        match lines.next()? {
            None => return Ok(begins),
            Some(line) if decode(line).is_some_and(|line| line.index >= index) => return Ok(begins),
            Some(_) => {}
        }
    }
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
    use wire::audit::{Digest, Parts};

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
    }

    #[test]
    fn the_line_of_an_index_is_found_by_halving() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let (mut text, mut begins) = (Vec::new(), Vec::new());
        for index in 0..3000u64 {
            begins.push(u64::try_from(text.len()).unwrap());
            let event = format!("{{\"x\":\"{}\"}}", "y".repeat(usize::try_from(index * 37 % 900).unwrap()));
            text.extend(Parts { index: index + 100, hash: Digest::from_bytes([0; 32]), event: event.as_bytes() }.encode());
        }
        std::fs::write(&path, &text).unwrap();
        for index in (0..3000).step_by(71) {
            assert_eq!(seek(&path, index + 100).unwrap(), begins[usize::try_from(index).unwrap()], "{index}");
        }
        assert_eq!((seek(&path, 0).unwrap(), seek(&path, 9999).unwrap()), (0, u64::try_from(text.len()).unwrap()));
    }
}
