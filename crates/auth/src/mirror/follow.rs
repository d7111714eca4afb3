//! What watchers ask of the mirror: to be woken when one of their kinds changes, what a watch begins with, and what is new.
//!
//! A watcher sleeps until one of *its* kinds changes: heartbeats of a hundred thousand hosts wake nobody who follows roles and locks. It
//! then reads on from its position; nothing is queued for it, so a slow one costs nothing. What was deleted before this Auth Service's
//! start is asked of the store's history, once for all watchers who come back after it.

use super::{
    Mirror,
    table::{Change, Entry, Table},
    table_of,
};
use crate::metrics::count;
use futures::FutureExt as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};
use store::{Event, StoreError, WatchError, documents};
use tokio::sync::watch;

/// Changes that a watcher is told at once.
const NEWS: usize = 1024;
/// How long the store's history may take to tell what was deleted.
const HISTORY: Duration = Duration::from_secs(10);

/// How far a watcher is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Position {
    pub(crate) revision: u64,
    pub(super) life: u64,
}

/// What a watch begins with: changes of the kinds it resumes, and the documents of the others.
pub(crate) struct Beginning {
    pub(crate) changes: Vec<(String, Change)>,
    pub(crate) whole: Vec<Arc<Entry>>,
    pub(crate) at: Position,
}

/// Changes with their revisions and kinds, in order.
pub(crate) type News<'a> = Vec<(u64, &'a str, Change)>;

/// Why a watcher cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lost {
    /// More was deleted meanwhile than is remembered.
    Behind,
    /// The store was restored from an older copy.
    Restored,
}

/// Kinds, and who sleeps until one of them changes.
pub(super) type Topics = BTreeMap<BTreeSet<String>, watch::Sender<u64>>;

impl Mirror {
    /// Wakes when one of these kinds may have changed, and only then.
    pub(crate) fn follow(&self, kinds: BTreeSet<String>) -> watch::Receiver<u64> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.retain(|_, sleepers| sleepers.receiver_count() > 0);
        topics.entry(kinds).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    /// Which of these kinds can be told from that revision on, deletions included. Asks the store's history, once for all who come back
    /// after this Auth Service's start.
    pub(crate) async fn tellable(&self, kinds: &BTreeMap<String, u64>) -> BTreeSet<String> {
        let known = || {
            let state = self.read();
            let told = |(kind, from): &(&String, &u64)| **from <= state.revision && state.knows_since(kind, **from);
            kinds.iter().filter(told).map(|(kind, _)| kind.clone()).collect::<BTreeSet<_>>()
        };
        let now = known();
        if now.len() == kinds.len() {
            return now;
        }
        let _one_asks = self.asking.lock().await;
        let now = known();
        let oldest = kinds.iter().filter(|(kind, _)| !now.contains(*kind)).map(|(_, from)| *from).filter(|from| *from > 0).min();
        let Some(oldest) = oldest.filter(|from| *from <= self.revision()) else { return now };
        count(&self.metrics.watch_histories);
        match tokio::time::timeout(HISTORY, self.remember(oldest)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(%error, oldest, "the store's history does not reach back to a watcher who returned"),
            Err(_) => tracing::warn!(oldest, "the store's history takes too long"),
        }
        known()
    }

    /// Learns from the store's history what was deleted after that revision.
    async fn remember(&self, since: u64) -> Result<(), WatchError> {
        let (life, until) = {
            let state = self.read();
            (state.life, state.kinds.values().map(Table::floor).chain([state.floor]).max().unwrap_or_default().min(state.revision))
        };
        let mut gone: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
        // Without prefixes: so the last commit is surely seen, whatever it changed.
        let mut history = self.store.watch(Vec::new(), Some(since)).await?;
        let mut seen = since;
        loop {
            // Events of one commit share a revision: those of the last one are read to their end, and they are there already.
            let next = if seen < until { history.next().await } else { history.next().now_or_never().flatten() };
            let event = match next {
                Some(event) => event?,
                None if seen < until => return Err(StoreError::Closed.into()),
                None => break,
            };
            seen = event.revision();
            if seen > until {
                break;
            }
            if let Event::Delete { key, revision } = &event
                && let Some((kind, name)) = documents::reference(key)
            {
                gone.entry(kind.to_owned()).or_default().push((*revision, name.to_owned()));
            }
        }
        self.write(|state| {
            if state.life == life {
                // Also of a kind whose last document is gone: what was deleted is told by its table.
                for kind in gone.keys() {
                    table_of(&mut state.kinds, kind, state.floor);
                }
                state.floor = state.floor.min(since);
                let none = Vec::new();
                state.kinds.iter_mut().for_each(|(kind, table)| table.remember(since, gone.get(kind).unwrap_or(&none)));
            }
        });
        Ok(())
    }

    /// What a watch of these kinds begins with: changes after the revision that is given, and everything where none is.
    pub(crate) fn begin(&self, kinds: &BTreeMap<String, Option<u64>>) -> Beginning {
        let now = self.clock.now();
        let state = self.read();
        let at = Position { revision: state.revision, life: state.life };
        let mut beginning = Beginning { changes: Vec::new(), whole: Vec::new(), at };
        for (kind, from) in kinds {
            let Some(table) = state.kinds.get(kind) else { continue };
            match from {
                Some(from) => {
                    let (changes, _) = table.since(*from, at.revision, usize::MAX);
                    beginning.changes.extend(changes.into_iter().map(|(_, change)| (kind.clone(), change)));
                }
                None => beginning.whole.extend(table.entries().values().map(|(_, entry)| entry).filter(|entry| entry.alive(now)).cloned()),
            }
        }
        beginning
    }

    /// What changed of these kinds since, with revisions, in order; some of it if it is much. The position that is reached is behind all
    /// that is told.
    pub(crate) fn news<'a>(&self, kinds: impl Iterator<Item = &'a String>, at: Position) -> Result<(News<'a>, Position), Lost> {
        let state = self.read();
        if state.life != at.life {
            return Err(Lost::Restored);
        }
        let (mut all, mut to) = (Vec::new(), state.revision);
        for kind in kinds {
            let Some(table) = state.kinds.get(kind) else { continue };
            if !table.knows_since(at.revision) {
                return Err(Lost::Behind);
            }
            let (changes, end) = table.since(at.revision, to, NEWS);
            to = to.min(end);
            all.extend(changes.into_iter().map(|(revision, change)| (revision, kind.as_str(), change)));
        }
        all.retain(|(revision, ..)| *revision <= to);
        all.sort_by_key(|(revision, ..)| *revision);
        Ok((all, Position { revision: to.max(at.revision), ..at }))
    }
}
