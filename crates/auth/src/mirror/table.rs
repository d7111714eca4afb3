//! The documents of one kind, and what became of each: its last change, in the order of the store's revisions.
//!
//! A watcher asks for everything after the revision that it has. It gets each document that changed once, as it is now, so that a slow
//! watcher loses nothing and costs nothing; and of those that are gone, their names. Only deletions are forgotten, the oldest first,
//! beyond [`GRAVES`]: a watcher from before that begins this one kind anew, and no other. Pure: no clock, no lock; `mirror` owns both.

use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound::{Excluded, Included},
    sync::Arc,
};
use store::{Item, documents};
use types::{
    Document, Extra, ResourceName, Time,
    document::Spec as _,
    kind::{Member, Node},
};

/// Deletions remembered of one kind.
const GRAVES: usize = 16_384;

/// Kinds with a document for each host: of these, only what lists and rights look at is kept parsed.
const MANY: [&str; 2] = [Node::KIND, Member::KIND];

/// One document, ready to be sent.
pub(crate) struct Entry {
    /// Of the kinds in [`MANY`] without most of its spec: [`Entry::full`] has it.
    pub(crate) document: Document,
    /// As [`Document::to_json`] writes it, revision included.
    pub(crate) json: Bytes,
    whole: bool,
}

impl Entry {
    fn new(mut document: Document) -> Self {
        // A hundred thousand of them: not a byte more than there is.
        let json = Bytes::from(document.to_json().into_boxed_slice());
        let whole = !MANY.contains(&document.kind.as_str());
        if !whole {
            // Rights ask for a member's roles.
            let roles = document.spec.get_mut("roles").map(serde_json::Value::take);
            document.spec = roles.map_or(serde_json::Value::Null, |roles| serde_json::json!({ "roles": roles }));
            (document.extra, document.metadata.extra, document.metadata.description) = (Extra::new(), Extra::new(), None);
        }
        Self { document, json, whole }
    }

    /// The whole document.
    pub(crate) fn full(&self) -> Option<Document> {
        if self.whole { Some(self.document.clone()) } else { Document::from_json(&self.json).ok() }
    }

    pub(crate) fn alive(&self, now: Time) -> bool {
        self.document.metadata.expires.is_none_or(|end| end > now)
    }
}

/// What an item of the store holds.
pub(super) struct Read {
    kind: String,
    name: String,
    revision: u64,
    /// `None` when it cannot be read here.
    entry: Option<Arc<Entry>>,
}

impl Read {
    /// Reads an item; `None` for one that is no document. The costly part, so it is done where nobody waits for a lock.
    pub(super) fn of(item: &Item) -> Option<Self> {
        let (kind, name) = documents::reference(&item.key)?;
        let entry = match documents::decode(item) {
            Ok(document) => Some(Arc::new(Entry::new(document))),
            Err(bad) => {
                tracing::warn!(%bad, "a stored document cannot be read; it is left out");
                None
            }
        };
        Some(Self { kind: kind.to_owned(), name: name.to_owned(), revision: item.revision, entry })
    }

    pub(super) fn kind(&self) -> &str {
        &self.kind
    }
}

/// What became of a document.
#[derive(Clone)]
pub(crate) enum Change {
    Put(Arc<Entry>),
    Gone(Arc<str>),
}

/// A revision, and the place within it: one commit may change several documents.
type At = (u64, u32);

/// One kind.
pub(super) struct Table {
    entries: BTreeMap<ResourceName, (At, Arc<Entry>)>,
    /// Names of those that cannot be read.
    bad: BTreeSet<String>,
    /// The last change of each document that is there, and deletions.
    log: BTreeMap<At, Change>,
    /// Where the deletions are in it, oldest first.
    graves: VecDeque<At>,
    /// Every deletion after this revision is in the log.
    floor: u64,
}

impl Table {
    /// Empty, as of a revision from which on everything is told.
    pub(super) fn new(floor: u64) -> Self {
        Self { entries: BTreeMap::new(), bad: BTreeSet::new(), log: BTreeMap::new(), graves: VecDeque::new(), floor }
    }

    pub(super) fn entries(&self) -> &BTreeMap<ResourceName, (At, Arc<Entry>)> {
        &self.entries
    }

    pub(super) fn unreadable(&self) -> usize {
        self.bad.len()
    }

    pub(super) fn put(&mut self, read: Read) {
        let Read { name, revision, entry, .. } = read;
        let Some(entry) = entry else {
            // What we had is no longer true, and what is true we cannot read.
            if self.take_out(&name) {
                self.bury(&name, revision);
            }
            self.bad.insert(name);
            return;
        };
        self.bad.remove(&name);
        let at = self.free_place(revision);
        let name = entry.document.metadata.name.clone();
        if let Some((before, _)) = self.entries.insert(name, (at, entry.clone())) {
            self.log.remove(&before);
        }
        self.log.insert(at, Change::Put(entry));
    }

    /// Told of although it may not have been known here: a watcher may have it from before, and it had expired or was deleted while
    /// the store was read.
    pub(super) fn delete(&mut self, name: &str, revision: u64) {
        self.bad.remove(name);
        self.take_out(name);
        self.bury(name, revision);
    }

    /// Whether it was there.
    fn take_out(&mut self, name: &str) -> bool {
        let known = ResourceName::new(name).ok().and_then(|name| self.entries.remove(&name));
        known.is_some_and(|(before, _)| self.log.remove(&before).is_some())
    }

    fn bury(&mut self, name: &str, revision: u64) {
        let at = self.free_place(revision);
        self.log.insert(at, Change::Gone(name.into()));
        self.graves.push_back(at);
        self.forget();
    }

    fn forget(&mut self) {
        while self.graves.len() > GRAVES {
            let Some(oldest) = self.graves.pop_front() else { return };
            self.log.remove(&oldest);
            self.floor = self.floor.max(oldest.0);
        }
    }

    fn free_place(&self, revision: u64) -> At {
        let last = self.log.range((revision, 0)..=(revision, u32::MAX)).next_back();
        (revision, last.map_or(0, |((_, place), _)| place.saturating_add(1)))
    }

    /// Whether everything that was deleted after that revision is known.
    pub(super) fn knows_since(&self, revision: u64) -> bool {
        self.floor <= revision
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Takes in deletions from before the floor, as the store's history tells them, oldest first; complete after `since`.
    pub(super) fn remember(&mut self, since: u64, gone: &[(u64, String)]) {
        if since >= self.floor {
            return;
        }
        let mut older = Vec::new();
        for (revision, name) in gone.iter().filter(|(revision, _)| *revision <= self.floor) {
            let at = self.free_place(*revision);
            self.log.insert(at, Change::Gone(name.as_str().into()));
            older.push(at);
        }
        self.floor = since;
        older.into_iter().rev().for_each(|at| self.graves.push_front(at));
        self.forget();
    }

    /// Changes after `from` up to `to`, in order, at most so many; and the revision up to which they are all.
    pub(super) fn since(&self, from: u64, to: u64, most: usize) -> (Vec<(u64, Change)>, u64) {
        let range = || self.log.range((Excluded((from, u32::MAX)), Included((to, u32::MAX))));
        if from >= to {
            return (Vec::new(), to);
        }
        let some: Vec<(u64, Change)> =
            range().take(most.saturating_add(1)).map(|((revision, _), change)| (*revision, change.clone())).collect();
        if some.len() <= most {
            return (some, to);
        }
        // A commit is told whole, however large.
        let cut = some.get(most).map_or(to, |(revision, _)| *revision);
        let whole: Vec<(u64, Change)> = some.into_iter().take_while(|(revision, _)| *revision < cut).collect();
        if whole.is_empty() {
            let first = range().take_while(|((revision, _), _)| *revision == cut);
            return (first.map(|((revision, _), change)| (*revision, change.clone())).collect(), cut);
        }
        (whole, cut.saturating_sub(1))
    }

    /// Takes another reading of the store for the present. What is missing in it was deleted at its revision at the latest, and what reads
    /// otherwise than before without a revision of its own (a migration's flip) is told at that revision. Watchers were told up to `told`.
    pub(super) fn replace(&mut self, mut fresh: Self, told: u64, revision: u64) {
        fresh.floor = self.floor;
        for at in std::mem::take(&mut self.graves) {
            if let Some(gone) = self.log.remove(&at) {
                let at = fresh.free_place(at.0);
                fresh.log.insert(at, gone);
                fresh.graves.push_back(at);
            }
        }
        let same = |name: &ResourceName, entry: &Entry| self.entries.get(name).is_some_and(|(_, known)| known.json == entry.json);
        let otherwise = fresh.entries.iter().filter(|(name, (at, entry))| at.0 <= told && !same(name, entry));
        let otherwise: Vec<ResourceName> = otherwise.map(|(name, _)| name.clone()).collect();
        for name in otherwise {
            let at = fresh.free_place(revision);
            if let Some((before, entry)) = fresh.entries.get_mut(&name) {
                fresh.log.remove(before);
                *before = at;
                fresh.log.insert(at, Change::Put(entry.clone()));
            }
        }
        let missing: Vec<ResourceName> = self.entries.keys().filter(|name| !fresh.entries.contains_key(*name)).cloned().collect();
        missing.iter().for_each(|name| fresh.bury(name.as_str(), revision));
        *self = fresh;
    }
}

#[cfg(test)]
#[path = "table/tests.rs"]
mod tests;
