//! The sink that is always there: this Auth Service's own chain, in files on its own disk.
//!
//! What is acknowledged is on the disk (`writer`). Readers follow the files while they are written, never past the head. Old
//! events go by whole files; `checkpoint.json` says where the chain begins since, and is written before anything is removed, so
//! that a removal which broke off is finished by the next. All work is done on blocking threads. Names and lines: `part`.

mod part;
mod search;
mod writer;

use super::{
    query::{Found, Query, micros},
    sink::{BATCH, BATCH_BYTES, Checkpoint, Extent, Lines, Sink, SinkError},
    take::Told,
};
use futures::future::{BoxFuture, FutureExt as _};
use net::clock::SharedClock;
use part::{Backwards, Forwards, Part, Times};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;
use types::{HostId, Time};
use wire::audit::{Head, Line, decode};
use writer::Writer;

const CHECKPOINT: &str = "checkpoint.json";

/// The files. Cheap to clone.
#[derive(Clone)]
pub(super) struct Files(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    chain: HostId,
    name: String,
    clock: SharedClock,
    writer: Mutex<Writer>,
    begin: Mutex<Checkpoint>,
    /// Of files that are closed, by their first index.
    times: Mutex<BTreeMap<u64, Times>>,
    head: watch::Sender<Head>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Files {
    /// Opens the log in `dir`, which must exist; mends a torn end. A log without files begins at `begin`.
    pub(super) fn open(dir: &Path, chain: HostId, name: String, begin: Checkpoint, clock: SharedClock) -> io::Result<Self> {
        let begin = match fs::read(dir.join(CHECKPOINT)) {
            Ok(json) => serde_json::from_slice(&json).map_err(|error| io::Error::other(format!("{CHECKPOINT}: {error}")))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => begin,
            Err(error) => return Err(error),
        };
        let writer = Writer::open(dir, begin.head)?;
        let head = watch::Sender::new(writer.head());
        let (writer, begin) = (Mutex::new(writer), Mutex::new(begin));
        Ok(Self(Arc::new(Inner { dir: dir.to_owned(), chain, name, clock, writer, begin, times: Mutex::default(), head })))
    }

    pub(super) fn head(&self) -> Head {
        *self.0.head.borrow()
    }
    /// Wakes when events were written.
    pub(super) fn heads(&self) -> watch::Receiver<Head> {
        self.0.head.subscribe()
    }
    pub(super) fn begin(&self) -> Checkpoint {
        lock(&self.0.begin).clone()
    }
    /// As [`Sink::search`], of the events from that index on.
    pub(super) async fn search_from(&self, query: &Query, index: u64) -> Result<Found, SinkError> {
        let query = query.clone();
        self.work(move |files| search::search(files, &query, index)).await
    }

    /// The hash before that event; `None` when neither the line before nor the checkpoint says it.
    pub(super) async fn hash_before(&self, index: u64) -> Result<Option<Head>, SinkError> {
        let begin = self.begin().head;
        if begin.events == index {
            return Ok(Some(begin));
        }
        let Some(before) = index.checked_sub(1) else { return Ok(None) };
        let line = self.read(self.0.chain, before).next().await?.into_iter().next();
        Ok(line.filter(|line| line.index == before).map(|line| Head { events: index, hash: line.hash }))
    }

    /// The file that has, or should have, that event.
    pub(super) fn file_of(&self, index: u64) -> String {
        let parts = part::parts(&self.0.dir).unwrap_or_default();
        parts.iter().rfind(|part| part.first <= index).or(parts.first()).map(Part::shown).unwrap_or_default()
    }

    /// What the newest events are recognised by, oldest first.
    pub(super) async fn newest(&self, most: usize) -> Result<Vec<Told>, SinkError> {
        self.work(move |files| {
            let mut newest = Vec::new();
            for part in part::parts(&files.dir)?.iter().rev() {
                let mut lines = Backwards::open(&part.path, u64::MAX)?;
                while let Some(line) = lines.next()?.filter(|_| newest.len() < most) {
                    if let Some(event) = decode(&line).and_then(|line| serde_json::from_slice::<types::Event>(line.event).ok()) {
                        newest.push(Told::of(&event));
                    }
                }
            }
            newest.reverse();
            Ok(newest)
        })
        .await
    }

    /// The files that hold the chain, in order.
    #[cfg(test)]
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        part::parts(&self.0.dir).unwrap().into_iter().map(|part| part.path).collect()
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> io::Result<T> + Send + 'static) -> Result<T, SinkError> {
        let inner = self.0.clone();
        let place = inner.dir.display().to_string();
        let done = tokio::task::spawn_blocking(move || work(&inner)).await.map_err(|_| SinkError::Closed)?;
        done.map_err(|error| SinkError::Io { place, error })
    }
}

impl Inner {
    /// The files with the index behind the last event of each.
    fn parts(&self) -> io::Result<Vec<(Part, u64)>> {
        let parts = part::parts(&self.dir)?;
        let ends: Vec<u64> = parts.iter().skip(1).map(|part| part.first).chain([self.head.borrow().events]).collect();
        Ok(parts.into_iter().zip(ends).collect())
    }

    fn times_of(&self, part: &Part) -> io::Result<Times> {
        if let Some((first, times)) = lock(&self.writer).times()
            && first == part.first
        {
            return Ok(times);
        }
        if let Some(times) = lock(&self.times).get(&part.first) {
            return Ok(*times);
        }
        let times = Times::of(part)?;
        times.note(part);
        lock(&self.times).insert(part.first, times);
        Ok(times)
    }

    /// The first event in the period and the index behind the last.
    fn span(&self, from: Option<Time>, to: Option<Time>) -> io::Result<Option<(u64, u64)>> {
        let begin = lock(&self.begin).head.events;
        let period = Query { from, to, ..Query::default() };
        let (mut first, mut last) = (None, 0);
        for (part, end) in self.parts()? {
            let times = self.times_of(&part)?;
            if end <= begin || !period.touches(times.oldest, times.newest) {
                continue;
            }
            let mut lines = Forwards::open(&part.path, 0)?;
            while let Some(line) = lines.next()? {
                let Some(line) = decode(line) else { continue };
                if line.index < begin || line.index >= end {
                    continue;
                }
                let at = super::query::Facets::of(line.event).micros;
                if from.is_none_or(|from| at >= micros(from)) && to.is_none_or(|to| at < micros(to)) {
                    first = first.or(Some(line.index));
                    last = line.index.saturating_add(1);
                }
            }
        }
        Ok(first.map(|first| (first, last)))
    }

    /// Where the files end whose events all happened before.
    fn older(&self, time: Time) -> io::Result<Option<Head>> {
        let begin = lock(&self.begin).head.events;
        let mut found = None;
        for (part, end) in self.parts()? {
            if end <= begin {
                continue;
            }
            if self.times_of(&part)?.newest >= micros(time) || end == part.first {
                break;
            }
            let mut lines = Backwards::open(&part.path, u64::MAX)?;
            let mut last = None;
            while let Some(line) = lines.next()?.filter(|_| last.is_none()) {
                last = decode(&line).filter(|line| line.index.saturating_add(1) == end).map(|line| line.hash);
            }
            let Some(hash) = last else { break };
            found = Some(Head { events: end, hash });
        }
        Ok(found)
    }

    fn cut(&self, at: &Checkpoint) -> io::Result<()> {
        let begins = lock(&self.begin).head.events;
        if at.head.events > begins {
            let fresh = self.dir.join(format!("{CHECKPOINT}.new"));
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(&serde_json::to_vec(at).map_err(io::Error::from)?)?;
            file.sync_all()?;
            fs::rename(&fresh, self.dir.join(CHECKPOINT))?;
            File::open(&self.dir)?.sync_all()?;
            *lock(&self.begin) = at.clone();
        }
        let kept = lock(&self.begin).head.events;
        // The last file is open, whatever is in it.
        let mut parts = self.parts()?;
        parts.pop();
        for (part, _) in parts.into_iter().take_while(|(_, end)| *end <= kept) {
            fs::remove_file(&part.path)?;
            if let Err(error) = fs::remove_file(part.times_path())
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            lock(&self.times).remove(&part.first);
        }
        Ok(())
    }
}

impl Sink for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn append<'a>(&'a self, chain: HostId, _behind: Head, lines: &'a [Line]) -> BoxFuture<'a, Result<(), SinkError>> {
        let head = self.head();
        let lines: Vec<Line> = lines.iter().filter(|line| line.index >= head.events).cloned().collect();
        async move {
            if chain != self.0.chain {
                let place = self.0.dir.display().to_string();
                return Err(SinkError::Refused { place, detail: "it is the log of another Auth Service".into() });
            }
            let now = self.0.clock.now();
            let head = self.work(move |files| {
                let mut writer = lock(&files.writer);
                writer.append(&lines, now).map(|()| writer.head())
            });
            self.0.head.send_replace(head.await?);
            Ok(())
        }
        .boxed()
    }

    fn chains(&self) -> BoxFuture<'_, Result<Vec<Extent>, SinkError>> {
        let extent = Extent { chain: self.0.chain, name: self.0.name.clone(), begin: self.begin(), end: self.head() };
        async move { Ok(vec![extent]) }.boxed()
    }

    fn read(&self, chain: HostId, from: u64) -> Box<dyn Lines> {
        let next = if chain == self.0.chain { from } else { u64::MAX };
        Box::new(Reading { files: self.clone(), next, at: None })
    }

    fn search<'a>(&'a self, query: &'a Query) -> BoxFuture<'a, Result<Found, SinkError>> {
        self.search_from(query, 0).boxed()
    }

    fn span(&self, _chain: HostId, from: Option<Time>, to: Option<Time>) -> BoxFuture<'_, Result<Option<(u64, u64)>, SinkError>> {
        self.work(move |files| files.span(from, to)).boxed()
    }

    fn older(&self, _chain: HostId, time: Time) -> BoxFuture<'_, Result<Option<Head>, SinkError>> {
        self.work(move |files| files.older(time)).boxed()
    }

    fn cut<'a>(&'a self, _chain: HostId, at: &'a Checkpoint) -> BoxFuture<'a, Result<(), SinkError>> {
        let at = at.clone();
        self.work(move |files| files.cut(&at)).boxed()
    }
}

/// Follows the files from an index on.
struct Reading {
    files: Files,
    next: u64,
    at: Option<(Part, u64)>,
}

impl Lines for Reading {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Line>, SinkError>> {
        async move {
            let (next, at) = (self.next, self.at.take());
            if next >= self.files.head().events {
                self.at = at;
                return Ok(Vec::new());
            }
            let (lines, at, why) = self.files.work(move |files| batch(files, next, at)).await?;
            self.at = at;
            match (lines.last(), why) {
                (Some(last), _) => self.next = last.index.saturating_add(1),
                (None, Some(detail)) => return Err(SinkError::Damaged { place: self.files.file_of(next), detail }),
                (None, None) => {}
            }
            Ok(lines)
        }
        .boxed()
    }
}

type Batch = (Vec<Line>, Option<(Part, u64)>, Option<String>);

/// Lines from `next` on, where they end, and why there is none although there should be.
fn batch(files: &Inner, next: u64, at: Option<(Part, u64)>) -> io::Result<Batch> {
    let end = files.head.borrow().events;
    let (mut part, mut offset) = match at {
        Some(at) => at,
        None => {
            let parts = part::parts(&files.dir)?;
            let Some(part) = parts.iter().rfind(|part| part.first <= next).or(parts.first()).cloned() else {
                return Ok((Vec::new(), None, Some(format!("event {next} is missing"))));
            };
            let offset = part::seek(&part.path, next)?;
            (part, offset)
        }
    };
    let (mut lines, mut bytes) = (Vec::new(), 0usize);
    loop {
        let mut reader = match Forwards::open(&part.path, offset) {
            Ok(reader) => Some(reader),
            // Retention was here: what comes next lies in the next file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        while let Some(reader) = reader.as_mut().filter(|_| lines.len() < BATCH && bytes < BATCH_BYTES) {
            let last = lines.last().map_or(next, |line: &Line| line.index.saturating_add(1));
            if last >= end {
                break;
            }
            match reader.next()?.map(decode) {
                None => break,
                Some(None) if lines.is_empty() => return Ok((lines, Some((part, offset)), Some(format!("event {last} cannot be read")))),
                Some(None) => break,
                Some(Some(line)) => {
                    bytes = bytes.saturating_add(line.event.len());
                    lines.push(line.to_line());
                }
            }
            offset = reader.offset;
        }
        if !lines.is_empty() {
            return Ok((lines, Some((part, offset)), None));
        }
        // This file is at its end: the next goes on.
        let parts = part::parts(&files.dir)?;
        match parts.into_iter().find(|other| other.first > part.first) {
            Some(other) => (part, offset) = (other, 0),
            None => return Ok((lines, Some((part, offset)), Some(format!("the log ends before event {next}, but {end} were written")))),
        }
    }
}
