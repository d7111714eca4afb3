//! Watches through a mirror: events of the side that is the truth, under the keys business code knows.
//!
//! The journals are watched too, so a move of the state is seen in its place among the events: what comes before is read by the
//! old rule, what comes after by the new one. A flip is no event: nothing of what is shown changes but revisions, and whoever
//! writes with one from before is told of a conflict and reads again. A watch from before the last move of a state cannot
//! know what was the truth then, and is told to read everything again.

use super::view::{Seen, View};
use super::{Mirror, unreadable};
use crate::places::decode;
use store::{Event, Item, Key, Lens, StoreError, Watch, WatchError};
use upgrade::migrate::{Journal, Side, State};

/// How often to begin with a journal that moves.
const TRIES: usize = 16;

impl Mirror {
    pub(super) async fn follow(&self, prefixes: Vec<Key>, from: Option<u64>) -> Result<Watch, WatchError> {
        let mut oldest = 0;
        for _ in 0..TRIES {
            let start = match from {
                Some(from) => from,
                None => self.inner.revision().await?,
            };
            let view = self.refresh().await?;
            let open: Vec<Seen> = view.seen.iter().filter(|seen| !seen.over && seen.migration.is_one_to_one()).cloned().collect();
            if open.is_empty() && last_move(&view) <= start {
                return self.inner.watch(prefixes, Some(start)).await;
            }
            let watch = self.inner.watch(physical(&prefixes, &open), Some(start)).await?;
            // Read after the watch began: a move behind the start will be seen as an event, one before it is known here.
            let view = self.refresh().await?;
            oldest = last_move(&view);
            if oldest <= start {
                let seen = view.seen.iter().filter(|seen| seen.migration.is_one_to_one()).cloned().collect();
                return Ok(watch.through(Box::new(Shown { prefixes, seen })));
            }
            if from.is_some() {
                break;
            }
        }
        Err(WatchError::Compacted { oldest })
    }
}

/// The revision from which on every event can be read. Rows with an index are shown as they are.
fn last_move(view: &View) -> u64 {
    view.seen.iter().filter(|seen| seen.migration.is_one_to_one()).filter_map(|seen| seen.revision).max().unwrap_or(0)
}

/// What to watch in the store.
fn physical(prefixes: &[Key], open: &[Seen]) -> Vec<Key> {
    if prefixes.is_empty() {
        return Vec::new();
    }
    let mut all = prefixes.to_vec();
    for seen in open {
        all.push(seen.journal.clone());
        for prefix in prefixes {
            let sides = [&seen.dirs.old, &seen.dirs.home];
            if seen.dirs.new.starts_with(prefix) {
                all.extend(sides.into_iter().cloned());
            } else {
                all.extend(sides.into_iter().filter_map(|dir| prefix.rebased(&seen.dirs.new, dir)));
            }
        }
    }
    all
}

/// Turns events of both sides into those of the one that is the truth.
struct Shown {
    prefixes: Vec<Key>,
    seen: Vec<Seen>,
}

/// What an event's key is.
enum Where {
    Elsewhere,
    /// Of the side that is not the truth.
    Silent,
    /// In this directory of that migration.
    Truth(usize, Key),
}

impl Lens for Shown {
    fn see(&mut self, event: Event) -> Result<Option<Event>, WatchError> {
        if let Event::Put(item) = &event {
            self.learn(item)?;
        }
        let Some(key) = event.key() else { return Ok(Some(event)) };
        let shown = match self.find(key) {
            Where::Elsewhere => event,
            Where::Silent => return Ok(None),
            Where::Truth(index, dir) => match self.seen.get(index) {
                Some(seen) => show(seen, &dir, event),
                None => event,
            },
        };
        let wanted = |key: &Key| self.prefixes.is_empty() || self.prefixes.iter().any(|prefix| key.starts_with(prefix));
        Ok(shown.key().is_some_and(wanted).then_some(shown))
    }
}

impl Shown {
    /// Takes in a journal's change.
    fn learn(&mut self, item: &Item) -> Result<(), StoreError> {
        if let Some(seen) = self.seen.iter_mut().find(|seen| seen.journal == item.key) {
            let kept = decode::<Journal>(item).map_err(unreadable)?;
            seen.state = kept.resource.spec.state;
            seen.over = kept.resource.spec.swept;
            seen.revision = Some(kept.revision);
        }
        Ok(())
    }

    fn find(&self, key: &Key) -> Where {
        for (index, seen) in self.seen.iter().enumerate() {
            let dirs = &seen.dirs;
            let inside = [&dirs.old, &dirs.new, &dirs.home].into_iter().find(|dir| key.starts_with(dir));
            let Some(dir) = inside else { continue };
            // Between contraction and sweep a row in its place is always the newest; the shadow only waits.
            let truth = match (seen.state.truth(), seen.state) {
                (Side::Old, _) => &dirs.old,
                (Side::New, State::Contracted) => &dirs.new,
                (Side::New, _) => &dirs.home,
            };
            return if dir == truth { Where::Truth(index, dir.clone()) } else { Where::Silent };
        }
        Where::Elsewhere
    }
}

fn show(seen: &Seen, dir: &Key, event: Event) -> Event {
    match event {
        Event::Put(item) => Event::Put(seen.show(item, dir).item),
        Event::Delete { key, revision } => Event::Delete { key: key.rebased(dir, &seen.dirs.new).unwrap_or(key), revision },
        init @ Event::Init { .. } => init,
    }
}
