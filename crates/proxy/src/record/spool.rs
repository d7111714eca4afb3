//! Events of this door that the Auth Service has not taken yet: in a file, so that they outlive the process.
//!
//! New ones are appended to `events.jsonl` and synced before they are sent. A delivery takes that file away under another name, and
//! deletes it when the Auth Service has all of it; a process that dies in between sends some twice, and they are recognised by their
//! ids. What a disk does not take stays in memory. Both are bounded, because strangers can cause events: what finds no
//! place is counted by the caller, and so is a line that cannot be read. Two processes may share the directory (a live restart): each has
//! a place of its own there, and whoever starts takes over what dead ones left. Caller: [`super`].

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};
use types::Event;

const FRESH: &str = "events.jsonl";
const SENDING: &str = "events.sending.jsonl";
const LOCK: &str = "events.lock";
/// Processes at once, and more.
const PLACES: usize = 16;
/// The most bytes of each file, some forty thousand refusals.
const MOST_BYTES: u64 = 16 << 20;
/// The most events in memory.
const MOST_IN_MEMORY: usize = 10_000;

pub(super) struct Spool {
    /// `None`: there is no disk, all is in memory.
    dir: Option<PathBuf>,
    /// Says that the place is taken.
    _lock: Option<File>,
    memory: VecDeque<Event>,
}

/// What is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    File,
    /// So many of the oldest in memory.
    Memory(usize),
}

/// Events to send.
pub(super) struct Batch {
    pub(super) taken: Taken,
    pub(super) events: Vec<Event>,
    /// Lines that are none.
    pub(super) unreadable: usize,
}

impl Spool {
    pub(super) fn new(dir: Option<PathBuf>) -> Self {
        let memory = VecDeque::new();
        let Some(dir) = dir else { return Self { dir: None, _lock: None, memory } };
        let Some((own, lock)) = (0..PLACES).map(|number| place(&dir, number)).find_map(|place| Some((place.clone(), hold(&place)?))) else {
            tracing::error!(dir = %dir.display(), "no place for audit events can be taken on disk; they are kept in memory");
            return Self { dir: None, _lock: None, memory };
        };
        for left in (0..PLACES).map(|number| place(&dir, number)).filter(|left| *left != own && left.exists()) {
            if let Some(_dead) = hold(&left)
                && let Err(error) = adopt(&left, &own)
            {
                tracing::error!(%error, left = %left.display(), "audit events that another process left stay where they are");
            }
        }
        Self { dir: Some(own), _lock: Some(lock), memory }
    }

    pub(super) fn is_empty(&self) -> bool {
        let there = |dir: &PathBuf| dir.join(SENDING).exists() || dir.join(FRESH).exists();
        self.memory.is_empty() && !self.dir.as_ref().is_some_and(there)
    }

    /// Returns when they are as safe as they can be; how many found no place.
    pub(super) async fn keep(&mut self, events: Vec<Event>) -> usize {
        let Some(dir) = self.dir.clone() else { return self.remember(events) };
        let lines = lines(&events);
        let written = tokio::task::spawn_blocking(move || append(&dir, &lines)).await;
        match written.map_err(io::Error::other).and_then(|written| written) {
            Ok(()) => 0,
            Err(error) => {
                tracing::error!(%error, events = events.len(), "audit events cannot be written to disk; they are kept in memory");
                self.remember(events)
            }
        }
    }

    fn remember(&mut self, events: Vec<Event>) -> usize {
        let room = MOST_IN_MEMORY.saturating_sub(self.memory.len());
        let lost = events.len().saturating_sub(room);
        self.memory.extend(events.into_iter().take(room));
        lost
    }

    /// What has waited longest; `None` when nothing waits. Not to be called again before it is forgotten, or sent anew.
    pub(super) async fn next(&self, most: usize) -> io::Result<Option<Batch>> {
        if let Some(dir) = self.dir.clone() {
            let read = tokio::task::spawn_blocking(move || take_away(&dir)).await.map_err(io::Error::other)?;
            if let Some((events, unreadable)) = read? {
                return Ok(Some(Batch { taken: Taken::File, events, unreadable }));
            }
        }
        let events: Vec<Event> = self.memory.iter().take(most).cloned().collect();
        Ok((!events.is_empty()).then_some(Batch { taken: Taken::Memory(events.len()), events, unreadable: 0 }))
    }

    /// It has arrived, or nobody will ever take it.
    pub(super) fn forget(&mut self, taken: Taken) -> io::Result<()> {
        match (taken, &self.dir) {
            (Taken::File, Some(dir)) => fs::remove_file(dir.join(SENDING))?,
            (Taken::File, None) => {}
            (Taken::Memory(count), _) => drop(self.memory.drain(..count.min(self.memory.len()))),
        }
        Ok(())
    }
}

fn place(dir: &Path, number: usize) -> PathBuf {
    if number == 0 { dir.to_owned() } else { dir.join(number.to_string()) }
}

/// Holds the place as long as the file is open.
fn hold(place: &Path) -> Option<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(place).ok()?;
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(place.join(LOCK)).ok()?;
    file.try_lock().ok().map(|()| file)
}

/// Moves what waits in one place to another.
fn adopt(left: &Path, own: &Path) -> io::Result<()> {
    for path in [SENDING, FRESH].map(|name| left.join(name)) {
        match fs::read(&path) {
            Ok(lines) => {
                append(own, &lines)?;
                fs::remove_file(&path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn lines(events: &[Event]) -> Vec<u8> {
    // What was torn before stays a line of its own.
    let mut lines = vec![b'\n'];
    for event in events {
        lines.extend(serde_json::to_vec(event).unwrap_or_default());
        lines.push(b'\n');
    }
    lines
}

fn append(dir: &Path, lines: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join(FRESH))?;
    if file.metadata()?.len() + lines.len() as u64 > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many wait for the Auth Service"));
    }
    file.write_all(lines)?;
    file.sync_data()
}

fn take_away(dir: &Path) -> io::Result<Option<(Vec<Event>, usize)>> {
    let (fresh, sending) = (dir.join(FRESH), dir.join(SENDING));
    if !sending.exists() {
        match fs::rename(&fresh, &sending) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            renamed => renamed?,
        }
    }
    let (mut events, mut unreadable) = (Vec::new(), 0);
    for line in fs::read(&sending)?.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(event) => events.push(event),
            Err(error) => {
                tracing::error!(%error, "a line among the audit events that wait is not an event");
                unreadable += 1;
            }
        }
    }
    Ok(Some((events, unreadable)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{EventKind, Time};

    fn event(number: u128) -> Event {
        Event::new(EventKind::AccessDenied, Time::EPOCH, uuid::Uuid::from_u128(number))
    }
    async fn next(spool: &Spool) -> Option<(Taken, Vec<Event>, usize)> {
        spool.next(100).await.unwrap().map(|batch| (batch.taken, batch.events, batch.unreadable))
    }

    #[tokio::test]
    async fn what_was_kept_is_there_for_the_next_process_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let spool = || Spool::new(Some(dir.path().join("proxy")));
        assert!(spool().is_empty());
        assert_eq!(spool().keep(vec![event(1), event(2)]).await, 0);
        assert_eq!(next(&spool()).await, Some((Taken::File, vec![event(1), event(2)], 0)));
        // Killed while it was on its way, and more came.
        assert_eq!(spool().keep(vec![event(3)]).await, 0);
        assert_eq!(next(&spool()).await, Some((Taken::File, vec![event(1), event(2)], 0)));
        spool().forget(Taken::File).unwrap();
        assert_eq!(next(&spool()).await, Some((Taken::File, vec![event(3)], 0)));
        spool().forget(Taken::File).unwrap();
        assert!(spool().is_empty() && next(&spool()).await.is_none());
    }

    #[tokio::test]
    async fn two_processes_keep_theirs_apart_and_whoever_starts_takes_over_what_a_dead_one_left() {
        let dir = tempfile::tempdir().unwrap();
        let spool = || Spool::new(Some(dir.path().to_owned()));
        let (mut older, mut younger) = (spool(), spool());
        older.keep(vec![event(1)]).await;
        younger.keep(vec![event(2)]).await;
        assert_eq!(next(&older).await, Some((Taken::File, vec![event(1)], 0)));
        assert_eq!(next(&younger).await, Some((Taken::File, vec![event(2)], 0)));
        drop((older, younger));
        assert_eq!(next(&spool()).await.map(|(_, events, _)| events.len()), Some(1), "what was on its way is sent again first");
        let mut spool = spool();
        spool.forget(Taken::File).unwrap();
        assert_eq!(next(&spool).await, Some((Taken::File, vec![event(2)], 0)));
    }

    #[tokio::test]
    async fn a_torn_line_harms_no_other_and_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(Some(dir.path().to_owned()));
        spool.keep(vec![event(1)]).await;
        let whole = fs::read(dir.path().join(FRESH)).unwrap();
        fs::write(dir.path().join(FRESH), [&whole, &whole[..20]].concat()).unwrap();
        spool.keep(vec![event(2)]).await;
        assert_eq!(next(&spool).await, Some((Taken::File, vec![event(1), event(2)], 1)));
    }

    #[tokio::test]
    async fn without_room_on_disk_memory_takes_them_and_then_they_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FRESH), vec![b'\n'; MOST_BYTES as usize]).unwrap();
        let mut spool = Spool::new(Some(dir.path().to_owned()));
        assert_eq!(spool.keep(vec![event(1)]).await, 0);
        assert_eq!(spool.keep((0..MOST_IN_MEMORY as u128).map(event).collect()).await, 1);
        assert_eq!(next(&spool).await, Some((Taken::File, vec![], 0)));
        spool.forget(Taken::File).unwrap();
        let (taken, events, _) = next(&spool).await.unwrap();
        assert_eq!((taken, &events[0]), (Taken::Memory(100), &event(1)));
        spool.forget(taken).unwrap();
        assert_eq!(spool.memory.len(), MOST_IN_MEMORY - 100);
    }
}
