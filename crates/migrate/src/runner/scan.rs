//! The batches of a migration: a page is read, what it needs is worked out, and effect and cursor are committed together.
//!
//! The cursor is the last key that was dealt with. A page is a hint: every row that leads to a write is a condition of the
//! batch, so what changed in between makes the batch come to nothing, and the next step reads again. Doing a batch
//! twice writes nothing the second time. `copy` makes the new side like the old one, `compare` proves it; here are the check
//! before, the removal of a side, and what they all read with.

mod compare;
mod copy;

use super::basket::{Basket, MAX_PAIR, late};
use super::{Outcome, Runner, Seen, StepError};
use crate::places::{retained_key, row, unchanged};
use std::collections::BTreeMap;
use store::{Batch, Condition, Item, Key, Op, StoreError};
use types::Time;
use upgrade::migrate::journal::{MAX_NAMED, Named};
use upgrade::migrate::{BadRow, Journal, Phase, Progress, Row, Side};

/// Rows of one directory behind the cursor.
struct Page {
    items: Vec<Item>,
    /// More may follow the last of them.
    more: bool,
}

/// One step's way through a directory.
struct Walk {
    progress: Progress,
    started: Time,
    /// Rows dealt with, of how many.
    rows: usize,
    of: usize,
    /// More may follow behind these.
    more: bool,
}

impl Walk {
    /// Whether the directory was gone through to its end.
    fn over(&self) -> bool {
        self.rows == self.of && !self.more
    }
}

/// A new row at its present place.
struct Placed {
    key: Key,
    value: Vec<u8>,
}

impl Runner {
    pub(super) async fn batch(&self, seen: &Seen, phase: Phase) -> Result<Outcome, StepError> {
        match phase {
            Phase::Check => self.check(seen).await,
            Phase::Copy => self.copy(seen).await,
            Phase::Prune => self.prune(seen).await,
            Phase::CompareOld => self.compare(seen, Side::Old).await,
            Phase::CompareNew => self.compare(seen, Side::New).await,
            Phase::Erase => self.erase(seen).await,
            Phase::Sweep => self.sweep(seen).await,
            // Not phases that scan: `next` never asks for a batch of them.
            Phase::Checked | Phase::Compared | Phase::Hold | Phase::Erased | Phase::Done => Ok(Outcome::Done),
        }
    }

    /// The progress of this phase; where it was left by another phase, the beginning of this one.
    fn at(&self, seen: &Seen, phase: Phase) -> Progress {
        let progress = seen.progress();
        if progress.phase == phase && progress.started.is_some() { progress } else { progress.enter(phase, self.now()) }
    }

    fn now(&self) -> Time {
        self.store.clock().now()
    }

    /// Begins where the last step of this phase ended.
    fn begin(&self, seen: &Seen, phase: Phase) -> Walk {
        Walk { progress: self.at(seen, phase), started: self.now(), rows: 0, of: 0, more: false }
    }

    /// The rows to go through.
    async fn rows(&self, walk: &mut Walk, dir: &Key) -> Result<Vec<Item>, StepError> {
        let page = self.page(dir, walk.progress.cursor.as_deref()).await?;
        (walk.of, walk.more) = (page.items.len(), page.more);
        Ok(page.items)
    }

    /// A row was dealt with. False: that is enough for one step.
    fn pass(&self, walk: &mut Walk, item: &Item) -> bool {
        walk.rows += 1;
        walk.progress.done += 1;
        walk.progress.cursor = Some(item.key.to_string());
        !late(walk.started, self.now(), &self.limits)
    }

    /// Rows behind the cursor, up to the limits. Short pages of the store are put together only until there is one row.
    async fn page(&self, dir: &Key, cursor: Option<&str>) -> Result<Page, StepError> {
        let end = dir.prefix_end();
        let mut from = match cursor {
            Some(cursor) => Key::parse(cursor)?.successor(),
            None => dir.clone(),
        };
        loop {
            let page = self.store.range(&from, &end, self.limits.rows.max(1)).await?;
            let mut more = page.next.is_some();
            let mut items = page.items;
            let mut bytes = 0;
            let fits = |item: &Item| {
                bytes += item.key.len() + item.value.len();
                bytes <= self.limits.bytes
            };
            let count = items.iter().map(fits).take_while(|fits| *fits).count().max(1);
            if count < items.len() {
                items.truncate(count);
                more = true;
            }
            match page.next {
                Some(next) if items.is_empty() => from = next,
                Some(_) | None => return Ok(Page { items, more }),
            }
        }
    }

    /// Those of these keys that exist. `together`: they lie side by side in one directory, so that a range finds them.
    async fn find(&self, mut keys: Vec<Key>, together: bool) -> Result<BTreeMap<Key, Item>, StoreError> {
        keys.sort();
        keys.dedup();
        let mut found = BTreeMap::new();
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return Ok(found) };
        if !together || keys.len() < 3 {
            for key in &keys {
                if let Some(item) = self.store.get(key).await? {
                    found.insert(key.clone(), item);
                }
            }
            return Ok(found);
        }
        let end = last.successor();
        let mut next = Some(first.clone());
        while let Some(from) = next {
            let page = self.store.range(&from, &end, self.limits.rows.max(keys.len())).await?;
            found.extend(page.items.into_iter().map(|item| (item.key.clone(), item)));
            next = page.next;
        }
        found.retain(|key, _| keys.binary_search(key).is_ok());
        Ok(found)
    }

    /// The new rows of an old item, where they are to lie.
    fn placed(&self, item: &Item) -> Result<Vec<Placed>, BadRow> {
        let old = row(item);
        self.migration.forward(&old)?.into_iter().map(|new| self.place(&old, new)).collect()
    }

    fn place(&self, old: &Row, new: Row) -> Result<Placed, BadRow> {
        let bad = |why: String| BadRow { key: old.key.clone(), why };
        let home = self.migration.home(&new.key).ok_or_else(|| bad(format!("{} is not a place of this migration", new.key)))?;
        let key = Key::parse(&home).map_err(|error| bad(error.to_string()))?;
        Ok(Placed { key, value: new.value })
    }

    /// Tries every old row, and looks whether the place of new rows is free.
    async fn check(&self, seen: &Seen) -> Result<Outcome, StepError> {
        let mut walk = self.begin(seen, Phase::Check);
        for item in &self.rows(&mut walk, &self.dirs.old).await? {
            if let Err(bad) = self.try_row(item) {
                walk.progress.found_bad(Named::new(bad.key, bad.why));
            }
            if !self.pass(&mut walk, item) {
                break;
            }
        }
        if walk.over() {
            let foreign = self.page(&self.dirs.home, None).await?;
            for item in foreign.items.iter().take(MAX_NAMED) {
                walk.progress.found_bad(Named::new(item.key.to_string(), "it lies where new rows will be"));
            }
            walk.progress.total = walk.progress.done;
            walk.progress = walk.progress.enter(Phase::Checked, self.now());
        }
        self.commit_work(seen, Batch::new(Some(self.writer)), walk.progress, None, walk.rows).await
    }

    /// Why an old row could not be migrated, or its new rows.
    pub(super) fn try_row(&self, item: &Item) -> Result<(), BadRow> {
        let old = row(item);
        let bad = |why: String| BadRow { key: old.key.clone(), why };
        let mut bytes = item.key.len() + item.value.len();
        for new in self.migration.check(&old)? {
            let new = self.place(&old, new)?;
            bytes += new.key.len() + new.value.len();
        }
        retained_key(self.migration.id, &item.key).map_err(|error| bad(error.to_string()))?;
        if bytes > MAX_PAIR {
            return Err(bad(format!("both forms together have {bytes} bytes; one write holds {MAX_PAIR}")));
        }
        Ok(())
    }

    /// Removes new rows, without looking at them: nobody writes them any more.
    async fn erase(&self, seen: &Seen) -> Result<Outcome, StepError> {
        let mut progress = self.at(seen, Phase::Erase);
        let page = self.page(&self.dirs.home, progress.cursor.as_deref()).await?;
        let mut batch = Batch::new(Some(self.writer));
        if let (Some(first), Some(last)) = (page.items.first(), page.items.last()) {
            batch = batch.delete_range(first.key.clone(), last.key.successor());
            progress.cursor = Some(last.key.to_string());
        }
        progress.done += page.items.len() as u64;
        if !page.more {
            progress = progress.enter(Phase::Erased, self.now());
        }
        self.commit_work(seen, batch, progress, None, page.items.len()).await
    }

    /// Moves given-up rows to retention, and new rows that waited for the place into it.
    async fn sweep(&self, seen: &Seen) -> Result<Outcome, StepError> {
        let mut walk = self.begin(seen, Phase::Sweep);
        let in_place = self.dirs.old == self.dirs.new;
        let items = match (self.migration.is_one_to_one(), in_place) {
            (false, _) => Vec::new(),
            (true, true) => self.rows(&mut walk, &self.dirs.home).await?,
            (true, false) => self.rows(&mut walk, &self.dirs.old).await?,
        };
        let finals = items.iter().filter_map(|item| item.key.rebased(&self.dirs.home, &self.dirs.new)).collect();
        let mains = if in_place { self.find(finals, true).await? } else { BTreeMap::new() };
        let mut basket = Basket::new(self.writer, &self.limits);
        for item in &items {
            let main = item.key.rebased(&self.dirs.home, &self.dirs.new).filter(|_| in_place);
            let (conditions, ops) = match &main {
                Some(key) => self.take_place(item, key, mains.get(key))?,
                None => self.give_up(item)?,
            };
            if !basket.take(conditions, ops) || !self.pass(&mut walk, item) {
                break;
            }
        }
        let (over, rows) = (walk.over(), walk.rows);
        let journal = seen.journal.as_ref().filter(|_| over).map(|kept| Journal { swept: true, ..kept.resource.spec.clone() });
        let progress = if over { walk.progress.enter(Phase::Done, self.now()) } else { walk.progress };
        self.commit_work(seen, basket.into_batch(), progress, journal, rows).await
    }

    /// A new row goes to its place, and the old one from there to retention.
    fn take_place(&self, new: &Item, key: &Key, old: Option<&Item>) -> Result<(Vec<Condition>, Vec<Op>), StepError> {
        let conditions = vec![Condition::RevisionIs(new.key.clone(), new.revision), unchanged(key, old.map(|old| old.revision))];
        let mut ops =
            vec![Op::Put { key: key.clone(), value: new.value.clone(), expires: new.expires }, Op::Delete { key: new.key.clone() }];
        if let Some(old) = old {
            ops.push(self.retain(old)?);
        }
        Ok((conditions, ops))
    }

    fn give_up(&self, old: &Item) -> Result<(Vec<Condition>, Vec<Op>), StepError> {
        let ops = vec![Op::Delete { key: old.key.clone() }, self.retain(old)?];
        Ok((vec![Condition::RevisionIs(old.key.clone(), old.revision)], ops))
    }

    pub(super) fn retain(&self, old: &Item) -> Result<Op, StepError> {
        let key = retained_key(self.migration.id, &old.key)?;
        Ok(Op::Put { key, value: old.value.clone(), expires: Some(self.now().plus(self.limits.retention)) })
    }
}
