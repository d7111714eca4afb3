//! Appends to the audit log: one owner, group commit, nothing lost silently.
//!
//! Events that arrive while the disk is busy share the next fsync. A write that fails is undone and tried again until it
//! succeeds; meanwhile the bounded queue fills and callers get an error, so that what cannot be recorded is not done. On
//! start a torn last line (power cut) is removed: it was never acknowledged.

use super::{
    Head, Origin,
    file::{self, Hash, MAX_EVENT, Part},
};
use std::{
    collections::{HashSet, VecDeque},
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};
use types::{Event, Time, name::ClusterId};

/// A new file is begun behind so many bytes, and each day.
const MAX_FILE: u64 = 256 << 20;
/// Ids of events remembered, so that an agent that repeats its upload does not double them.
const REMEMBERED: usize = 100_000;

/// The open end of the log.
pub(super) struct Writer {
    dir: PathBuf,
    file: Option<File>,
    path: PathBuf,
    day: String,
    len: u64,
    next: u64,
    hash: Hash,
    uids: HashSet<uuid::Uuid>,
    order: VecDeque<uuid::Uuid>,
}

impl Writer {
    /// A log that has no file yet begins at its origin, if it has one.
    pub(super) fn open(dir: &Path, cluster: &ClusterId, origin: Option<&Origin>) -> io::Result<Self> {
        let mut writer = Self {
            dir: dir.to_owned(),
            file: None,
            path: PathBuf::new(),
            day: String::new(),
            len: 0,
            next: origin.map_or(0, |origin| origin.head.events),
            hash: origin.map_or_else(|| file::genesis(cluster), |origin| origin.head.hash),
            uids: HashSet::new(),
            order: VecDeque::new(),
        };
        let parts = file::parts(dir)?;
        if let Some(last) = parts.last() {
            writer.len = mend(&last.path)?;
            writer.path = last.path.clone();
            writer.next = last.first;
            writer.day =
                last.path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split('.').next()).unwrap_or_default().to_owned();
            writer.file = Some(OpenOptions::new().append(true).open(&last.path)?);
        }
        writer.remember(&parts)?;
        Ok(writer)
    }

    /// Finds the end of the chain and the ids of the latest events.
    fn remember(&mut self, parts: &[Part]) -> io::Result<()> {
        let mut found = false;
        let mut uids = Vec::new();
        'parts: for part in parts.iter().rev() {
            let mut lines = file::Backwards::open(&part.path, u64::MAX)?;
            while let Some(line) = lines.next()? {
                let Some(line) = file::decode(&line) else { continue };
                if !found {
                    (self.next, self.hash, found) = (line.index.saturating_add(1), line.hash, true);
                }
                if let Ok(event) = serde_json::from_slice::<Event>(line.event) {
                    uids.push(event.uid);
                }
                // A bounded look back: repeats come within minutes.
                if uids.len() >= REMEMBERED / 10 {
                    break 'parts;
                }
            }
        }
        uids.into_iter().rev().for_each(|uid| self.saw(uid));
        Ok(())
    }

    fn saw(&mut self, uid: uuid::Uuid) {
        if self.uids.insert(uid) {
            self.order.push_back(uid);
        }
        while self.order.len() > REMEMBERED {
            if let Some(old) = self.order.pop_front() {
                self.uids.remove(&old);
            }
        }
    }

    pub(super) fn head(&self) -> Head {
        Head { events: self.next, hash: self.hash }
    }

    /// Writes what is new of these events, durably. On error nothing of them is in the log. Returns how many were written.
    pub(super) fn append(&mut self, events: &[Event], now: Time) -> io::Result<u64> {
        let (mut next, mut hash, mut bytes) = (self.next, self.hash, Vec::new());
        let mut fresh = HashSet::new();
        for event in events {
            if self.uids.contains(&event.uid) || !fresh.insert(event.uid) {
                continue;
            }
            let json = shortened(event);
            hash = file::chain(&hash, next, &json);
            bytes.extend(file::encode(next, &hash, &json));
            next = next.saturating_add(1);
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let written = next.saturating_sub(self.next);
        self.roll(now)?;
        let Some(file) = &mut self.file else { return Err(io::Error::other("the audit file is not open")) };
        if let Err(error) = file.write_all(&bytes).and_then(|()| file.sync_data()) {
            // Whatever part of it arrived goes again, or the chain would break behind it.
            let undone = file.set_len(self.len).and_then(|()| file.sync_data());
            return Err(match undone {
                Ok(()) => error,
                Err(undo) => io::Error::other(format!("{error}; and could not be undone: {undo}")),
            });
        }
        self.len = self.len.saturating_add(u64::try_from(bytes.len()).unwrap_or_default());
        (self.next, self.hash) = (next, hash);
        fresh.into_iter().for_each(|uid| self.saw(uid));
        Ok(written)
    }

    /// Begins a new file for a new day or a full file. A clock that goes back begins none.
    fn roll(&mut self, now: Time) -> io::Result<()> {
        let today: String = now.to_string().chars().take(10).collect();
        if self.file.is_some() && today <= self.day && self.len < MAX_FILE {
            return Ok(());
        }
        if self.file.is_some() && self.len == 0 {
            return Ok(());
        }
        let day = today.max(self.day.clone());
        let path = self.dir.join(file::name(&day, self.next));
        let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path)?;
        File::open(&self.dir)?.sync_all()?;
        (self.file, self.path, self.day, self.len) = (Some(file), path, day, 0);
        Ok(())
    }
}

/// Removes a last line without its newline. Returns the file's length.
fn mend(path: &Path) -> io::Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    let mut lines = file::Backwards::open(path, len)?;
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

/// The event's bytes, with long texts cut so that it fits; it then says so.
fn shortened(event: &Event) -> Vec<u8> {
    let json = serde_json::to_vec(event).unwrap_or_default();
    if json.len() <= MAX_EVENT {
        return json;
    }
    let mut short = event.clone();
    for value in short.fields.values_mut() {
        if serde_json::to_vec(&*value).map_or(0, |bytes| bytes.len()) > 1024 {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            *value = text.chars().take(512).collect::<String>().into();
        }
    }
    short.fields.insert("truncated".into(), true.into());
    let json = serde_json::to_vec(&short).unwrap_or_default();
    if json.len() <= MAX_EVENT {
        return json;
    }
    // Thousands of small fields: only the envelope is worth keeping.
    short.fields = types::Extra::from_iter([("truncated".to_owned(), true.into())]);
    serde_json::to_vec(&short).unwrap_or_default()
}
