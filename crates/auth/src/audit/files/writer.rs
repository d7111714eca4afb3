//! Appends to the audit log's files: one owner, one fsync for what comes together, nothing lost silently.
//!
//! A write that fails is undone, so that the same lines can be written again. On start a torn last line (power cut) is removed:
//! it was never acknowledged. Chaining is done before (`take`); here a line that is not the next is refused.

use super::part::{self, Backwards, Part, Times};
use crate::audit::query::Facets;
use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};
use types::Time;
use wire::audit::{Head, Line, decode};

/// A new file is begun behind so many bytes, and each day.
const MAX_FILE: u64 = 64 << 20;

/// The open end of the log.
pub(super) struct Writer {
    dir: PathBuf,
    open: Option<Open>,
    head: Head,
}

/// The file that is written to.
struct Open {
    file: File,
    part: Part,
    day: String,
    len: u64,
    times: Times,
}

impl Writer {
    /// A log that has no file yet begins at `begin`.
    pub(super) fn open(dir: &Path, begin: Head) -> io::Result<Self> {
        let mut writer = Self { dir: dir.to_owned(), open: None, head: begin };
        let parts = part::parts(dir)?;
        if let Some(last) = parts.last() {
            let len = mend(&last.path)?;
            let day = last.shown().split('.').next().unwrap_or_default().to_owned();
            let file = OpenOptions::new().append(true).open(&last.path)?;
            writer.open = Some(Open { file, part: last.clone(), day, len, times: Times::of(last)? });
            if last.first != begin.events {
                writer.head.events = last.first;
            }
        }
        if let Some(head) = end(&parts)? {
            writer.head = head;
        }
        Ok(writer)
    }

    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// What times the open file has.
    pub(super) fn times(&self) -> Option<(u64, Times)> {
        self.open.as_ref().map(|open| (open.part.first, open.times))
    }

    /// Writes the lines, durably. On error nothing of them is in the log.
    pub(super) fn append(&mut self, lines: &[Line], now: Time) -> io::Result<()> {
        let (mut head, mut bytes, mut times) = (self.head, Vec::new(), Times::none());
        for line in lines {
            head.follow(line.parts()).map_err(|broken| io::Error::other(format!("{broken}: it is not written")))?;
            bytes.extend(line.parts().encode());
            times.add(Facets::of(&line.event).micros, 0);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.roll(now)?;
        let Some(open) = &mut self.open else { return Err(io::Error::other("the audit file is not open")) };
        if let Err(error) = open.file.write_all(&bytes).and_then(|()| open.file.sync_data()) {
            // Whatever part of it arrived goes again, or the chain would break behind it.
            let undone = open.file.set_len(open.len).and_then(|()| open.file.sync_data());
            return Err(match undone {
                Ok(()) => error,
                Err(undo) => io::Error::other(format!("{error}; and could not be undone: {undo}")),
            });
        }
        open.len = open.len.saturating_add(u64::try_from(bytes.len()).unwrap_or_default());
        for micros in [times.oldest, times.newest] {
            open.times.add(micros, 0);
        }
        open.times.bytes = open.len;
        self.head = head;
        Ok(())
    }

    /// Begins a new file for a new day or a full file. A clock that goes back begins none.
    fn roll(&mut self, now: Time) -> io::Result<()> {
        let today: String = now.to_string().chars().take(10).collect();
        let day = match &self.open {
            Some(open) if open.len == 0 || (today <= open.day && open.len < MAX_FILE) => return Ok(()),
            Some(open) => today.max(open.day.clone()),
            None => today,
        };
        let path = self.dir.join(part::name(&day, self.head.events));
        let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path)?;
        File::open(&self.dir)?.sync_all()?;
        if let Some(open) = &self.open {
            open.times.note(&open.part);
        }
        let part = Part { first: self.head.events, path };
        self.open = Some(Open { file, part, day, len: 0, times: Times::none() });
        Ok(())
    }
}

/// The place behind the last line that can be read.
fn end(parts: &[Part]) -> io::Result<Option<Head>> {
    for part in parts.iter().rev() {
        let mut lines = Backwards::open(&part.path, u64::MAX)?;
        while let Some(line) = lines.next()? {
            if let Some(line) = decode(&line) {
                return Ok(Some(Head { events: line.index.saturating_add(1), hash: line.hash }));
            }
        }
    }
    Ok(None)
}

/// Removes a last line without its newline. Returns the file's length.
fn mend(path: &Path) -> io::Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    let mut lines = Backwards::open(path, len)?;
    let Some(last) = lines.next()? else { return Ok(len) };
    let whole = {
        let mut end = [0; 1];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut end, len.saturating_sub(1))?;
        end == *b"\n"
    };
    if whole {
        return Ok(len);
    }
    let kept = len.saturating_sub(u64::try_from(last.len()).unwrap_or_default());
    tracing::warn!(file = %path.display(), bytes = len.saturating_sub(kept), "removed a torn last line from the audit log");
    file.set_len(kept)?;
    file.sync_all()?;
    Ok(kept)
}
