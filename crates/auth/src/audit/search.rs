//! Reading the audit log: search by filters and pages, and verification of the chain.
//!
//! Both read files, not memory, and are called on blocking threads. A search looks at a bounded number of events and then
//! hands out a page token, so that one question cannot keep a thread for ever. Verification names the first broken record.

use super::{
    Head, Known,
    file::{self, Backwards, MAX_LINE},
};
use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    path::Path,
};
use types::{Event, Time, name::ClusterId};

/// Events looked at for one page.
const MAX_LOOK: usize = 500_000;
/// Events in one page.
pub(crate) const MAX_PAGE: usize = 1000;
const DEFAULT_PAGE: usize = 500;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) from: Option<Time>,
    pub(crate) to: Option<Time>,
    /// Names of events; empty is all.
    pub(crate) names: BTreeSet<String>,
    pub(crate) user: String,
    pub(crate) limit: usize,
    /// Goes on behind this index, in the direction asked for.
    pub(crate) page: Option<u64>,
    pub(crate) oldest_first: bool,
}

impl Query {
    fn wants(&self, event: &Event) -> bool {
        self.from.is_none_or(|from| event.time >= from)
            && self.to.is_none_or(|to| event.time < to)
            && (self.names.is_empty() || self.names.contains(&event.event) || self.names.contains(&event.code))
            && (self.user.is_empty() || event.text("user") == self.user)
    }
}

/// A page of events, each with its index in `ei`.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) events: Vec<Event>,
    pub(crate) next: Option<u64>,
}

/// What a search does with one line.
enum Step {
    GoOn,
    Full(u64),
}

struct Collector<'a> {
    query: &'a Query,
    limit: usize,
    looked: usize,
    found: Vec<Event>,
}

impl Collector<'_> {
    fn look(&mut self, line: &[u8]) -> Step {
        let Some(line) = file::decode(line) else { return Step::GoOn };
        let past = self.query.page.is_none_or(|page| if self.query.oldest_first { line.index > page } else { line.index < page });
        if !past {
            return Step::GoOn;
        }
        self.looked = self.looked.saturating_add(1);
        if let Ok(mut event) = serde_json::from_slice::<Event>(line.event)
            && self.query.wants(&event)
        {
            event.fields.insert("ei".into(), line.index.into());
            self.found.push(event);
        }
        if self.found.len() >= self.limit || self.looked >= MAX_LOOK { Step::Full(line.index) } else { Step::GoOn }
    }
}

/// Searches the log up to `head`.
pub(super) fn search(dir: &Path, query: &Query, head: &Head) -> io::Result<Found> {
    let limit = if query.limit == 0 { DEFAULT_PAGE } else { query.limit.min(MAX_PAGE) };
    let mut collector = Collector { query, limit, looked: 0, found: Vec::new() };
    let parts = file::parts(dir)?;
    let ends: Vec<u64> = parts.iter().skip(1).map(|part| part.first).chain([head.events]).collect();
    let mut parts: Vec<_> = parts.into_iter().zip(ends).collect();
    if !query.oldest_first {
        parts.reverse();
    }
    for (part, end) in parts {
        let beside = query.page.is_some_and(|page| if query.oldest_first { end <= page } else { part.first >= page });
        if beside {
            continue;
        }
        let full = if query.oldest_first { forwards(&part.path, &mut collector)? } else { backwards(&part.path, &mut collector)? };
        if let Some(index) = full {
            let last = if query.oldest_first { index.saturating_add(1) >= head.events } else { index == 0 };
            return Ok(Found { events: collector.found, next: (!last).then_some(index) });
        }
    }
    Ok(Found { events: collector.found, next: None })
}

fn backwards(path: &Path, collector: &mut Collector<'_>) -> io::Result<Option<u64>> {
    let mut lines = Backwards::open(path, u64::MAX)?;
    while let Some(line) = lines.next()? {
        if let Step::Full(index) = collector.look(&line) {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

fn forwards(path: &Path, collector: &mut Collector<'_>) -> io::Result<Option<u64>> {
    let mut reader = BufReader::new(File::open(path)?);
    while let Some(line) = next_line(&mut reader)? {
        if let Step::Full(index) = collector.look(&line) {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// A line without its newline; bounded, so that a file without newlines does not fill the memory.
fn next_line(reader: &mut BufReader<File>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let limit = u64::try_from(2 * MAX_LINE).unwrap_or(u64::MAX);
    if reader.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(Some(line))
}

/// What verification came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Verdict {
    /// Events whose chain holds, from the first on.
    pub(crate) events: u64,
    /// Hash of the last of them, hex.
    pub(crate) head: String,
    /// The first thing that is wrong.
    pub(crate) fault: Option<String>,
    /// What is no fault and should be known; empty when there is nothing.
    pub(crate) note: String,
}

/// Reads the whole log and checks every link, up to `head`, and that what the anchor saw is still there. A log that begins at its
/// origin and not at its birth is whole; who cuts its first files off cannot make it begin there.
pub(super) fn verify(dir: &Path, cluster: &ClusterId, head: &Head, known: &Known) -> io::Result<Verdict> {
    let anchor = known.anchor.as_ref();
    let parts = file::parts(dir)?;
    let begins = |first: Option<u64>| known.origin.as_ref().filter(|origin| first.is_none_or(|first| first == origin.head.events));
    let origin = begins(parts.first().map(|part| part.first));
    let (mut index, mut hash) = origin.map_or_else(|| (0, file::genesis(cluster)), |origin| (origin.head.events, origin.head.hash));
    let mut fault = None;
    let mut anchored = anchor.is_none_or(|anchor| anchor.events == 0 || (anchor.events, anchor.hash) == (index, hash));
    'files: for part in parts {
        let shown = part.path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if part.first != index {
            fault = Some(format!("file {shown} begins with event {}, but event {index} is missing", part.first));
            break;
        }
        let mut reader = BufReader::new(File::open(&part.path)?);
        let mut number = 0u64;
        while index < head.events {
            let Some(line) = next_line(&mut reader)? else { break };
            number = number.saturating_add(1);
            let wrong = match file::decode(&line) {
                None => Some("cannot be read"),
                Some(line) if line.index != index => Some("is out of order"),
                Some(line) if file::chain(&hash, index, line.event) != line.hash => Some("was changed, or one before it is gone"),
                Some(line) => {
                    hash = line.hash;
                    None
                }
            };
            if let Some(wrong) = wrong {
                fault = Some(format!("event {index} {wrong} (line {number} of {shown})"));
                break 'files;
            }
            index = index.saturating_add(1);
            if let Some(anchor) = anchor
                && anchor.events == index
            {
                anchored = anchor.hash == hash;
            }
        }
    }
    if fault.is_none() && (index < head.events || hash != head.hash) {
        fault = Some(format!("the log ends behind event {index}, but {} were written", head.events));
    }
    if fault.is_none() && !anchored {
        fault = Some("events that were acknowledged are gone, or were replaced".into());
    }
    let note = origin.map(super::Origin::note).unwrap_or_default();
    Ok(Verdict { events: index, head: file::hex(&hash), fault, note })
}
