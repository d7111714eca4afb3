//! Searching the files: only those whose times can have an answer, from the nearest on, until the page is full.
//!
//! The answer is in the order of time, and files overlap in time (an agent that was offline delivers later), so a page is
//! complete only when no file that is left can have an earlier one. The number of events looked at is bounded: then the page ends
//! where the files that were read are complete, and its token goes on from there.

use super::{Inner, part::Forwards};
use crate::audit::query::{Cursor, Facets, Found, Query, Row, page};
use bytes::Bytes;
use std::io;
use types::HostId;
use wire::audit::decode;

/// Events looked at for one page, but for the last file's.
const MAX_LOOK: usize = 500_000;

/// Of the events from `index` on, as far as they are written.
pub(super) fn search(files: &Inner, query: &Query, index: u64) -> io::Result<Found> {
    let begin = super::lock(&files.begin).head.events.max(index);
    let mut parts = Vec::new();
    for (part, end) in files.parts()? {
        if end <= begin {
            continue;
        }
        let times = files.times_of(&part)?;
        if query.touches(times.oldest, times.newest) {
            parts.push((part, times, end));
        }
    }
    if query.oldest_first {
        parts.sort_by_key(|(_, times, _)| times.oldest);
    } else {
        parts.sort_by_key(|(_, times, _)| std::cmp::Reverse(times.newest));
    }
    let mut nearest = Nearest { query, rows: Vec::new(), known: None };
    let mut looked = 0usize;
    for (part, times, end) in &parts {
        // Nothing of this file, and so of none behind it, comes before this place.
        let bound = if query.oldest_first {
            Cursor { micros: times.oldest.saturating_sub(1), chain: HIGHEST, index: u64::MAX }
        } else {
            Cursor { micros: times.newest, chain: HIGHEST, index: u64::MAX }
        };
        let goes_on = query.page.is_none_or(|page| query.before(page, bound));
        if nearest.is_full_before(bound) || (looked >= MAX_LOOK && goes_on) {
            nearest.ends(bound);
            break;
        }
        let mut lines = Forwards::open(&part.path, 0)?;
        while let Some(line) = lines.next()? {
            let Some(line) = decode(line).filter(|line| line.index >= begin && line.index < *end) else { continue };
            looked = looked.saturating_add(1);
            nearest.look(files.chain, line.index, line.event);
        }
    }
    Ok(nearest.page())
}

const HIGHEST: HostId = HostId::from_uuid(uuid::Uuid::max());

/// The first rows of the answer, among those seen.
struct Nearest<'a> {
    query: &'a Query,
    rows: Vec<Row>,
    known: Option<Cursor>,
}

impl Nearest<'_> {
    fn look(&mut self, chain: HostId, index: u64, event: &[u8]) {
        let facets = Facets::of(event);
        let at = Cursor { micros: facets.micros, chain, index };
        if !self.query.wants(at, &facets) || self.known.is_some_and(|known| self.query.before(known, at)) {
            return;
        }
        self.rows.push(Row { at, event: Bytes::copy_from_slice(event) });
        if self.rows.len() > 2 * self.query.page_size() {
            self.shorten();
        }
    }

    /// Keeps a page and one more, which tells that the page is not the last.
    fn shorten(&mut self) {
        self.query.sort(&mut self.rows);
        if self.rows.len() > self.query.page_size().saturating_add(1) {
            self.rows.truncate(self.query.page_size().saturating_add(1));
            self.known = self.rows.last().map(|row| row.at);
        }
    }

    fn is_full_before(&mut self, bound: Cursor) -> bool {
        self.shorten();
        let last = self.rows.get(self.query.page_size());
        last.is_some_and(|last| !self.query.before(bound, last.at))
    }

    /// What comes behind this place was not looked for everywhere.
    fn ends(&mut self, bound: Cursor) {
        self.known = Some(match self.known {
            Some(known) if self.query.before(known, bound) => known,
            _ => bound,
        });
    }

    fn page(mut self) -> Found {
        self.shorten();
        page(self.query, self.rows, self.known)
    }
}
