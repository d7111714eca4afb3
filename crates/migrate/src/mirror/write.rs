//! Writes through a mirror: a batch over new rows becomes one over the sides that must be written.
//!
//! Conditions of the caller go to the side that is the truth. Where that is not known without looking (a reshaped row between
//! contraction and sweep) or where what is there decides what must be written (a row with derived rows), the row is read and
//! *pinned*: the caller's conditions are judged against what was read, and the batch is conditional on exactly that.

use super::view::{Place, Seen, View};
use super::{Mirror, restless};
use crate::places::{row, unchanged};
use std::collections::{BTreeMap, BTreeSet};
use store::{Batch, BatchError, CommitError, Committed, Condition, Item, Key, Op, WriterEpoch};
use types::Time;
use upgrade::migrate::{BadRow, Row, Writes};

/// How often a write follows a journal or a row that moves.
const TRIES: usize = 64;

/// A batch on its way to the store.
struct Draft {
    writer: Option<WriterEpoch>,
    /// Journals first, so that a stale view is told before anything else.
    journals: BTreeMap<Key, Condition>,
    pins: Vec<Condition>,
    conditions: Vec<Condition>,
    /// The caller's key of each key in `conditions`.
    meaning: BTreeMap<Key, Key>,
    ops: Vec<Op>,
}

impl Mirror {
    pub(super) async fn write(&self, batch: Batch) -> Result<Committed, CommitError> {
        batch.check()?;
        let mut view = self.view().await?;
        for _ in 0..TRIES {
            let draft = match self.draft(&view, &batch).await {
                Ok(draft) => draft,
                // What a stale view refuses may be allowed by now.
                Err(_) if !self.is_current(&view).await? => {
                    view = self.refresh().await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if draft.journals.is_empty() && draft.pins.is_empty() {
                return self.inner.commit(draft.into_batch()).await;
            }
            let (journals, meaning) = (draft.journals.clone(), draft.meaning.clone());
            match self.inner.commit(draft.into_batch()).await {
                Err(CommitError::Conflict { key }) if journals.contains_key(&key) => view = self.refresh().await?,
                Err(CommitError::Conflict { key }) => {
                    if let Some(theirs) = meaning.get(&key) {
                        return Err(CommitError::Conflict { key: theirs.clone() });
                    }
                }
                done => return done,
            }
        }
        Err(restless(batch.ops.first().map_or(&Key::control(), key_of)).into())
    }

    async fn is_current(&self, view: &View) -> Result<bool, CommitError> {
        for seen in &view.seen {
            if !seen.holds(self.inner.as_ref()).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn draft(&self, view: &View, batch: &Batch) -> Result<Draft, CommitError> {
        let mut draft = Draft::new(batch.writer);
        let written: BTreeSet<&Key> = batch.ops.iter().map(key_of).collect();
        let mut pinned: BTreeMap<&Key, Option<Item>> = BTreeMap::new();
        let keys = batch.conditions.iter().map(Condition::key).chain(written.iter().copied());
        for key in keys {
            let pin = match view.place(key) {
                Place::Row(seen) => seen.truth_dir().is_none(),
                Place::Source(seen) => seen.state.writes() != Writes::Old && written.contains(key),
                Place::Plain | Place::Hidden | Place::Derived => false,
            };
            if pin && !pinned.contains_key(key) {
                pinned.insert(key, self.pin(view, key, &mut draft).await?);
            }
        }
        for condition in &batch.conditions {
            match pinned.get(condition.key()) {
                Some(item) => judge(condition, item.as_ref())?,
                None => draft.require(view, condition)?,
            }
        }
        for op in &batch.ops {
            match op {
                Op::Put { key, value, expires } => {
                    let put = Row::new(key.to_string(), value.to_vec());
                    draft.put(view, (key, put), *expires, pinned.get(key).and_then(Option::as_ref))?;
                }
                Op::Delete { key } => draft.delete(view, key, pinned.get(key).and_then(Option::as_ref))?,
                Op::DeleteRange { from, to } => draft.delete_range(view, from, to)?,
            }
        }
        Ok(draft)
    }

    /// Reads a row, and makes the draft conditional on exactly what was read.
    async fn pin(&self, view: &View, key: &Key, draft: &mut Draft) -> Result<Option<Item>, CommitError> {
        let read = self.inner.get(key).await?;
        draft.pins.push(unchanged(key, read.as_ref().map(|item| item.revision)));
        let Place::Row(seen) = view.place(key) else { return Ok(read) };
        draft.touch(seen);
        let home = key.rebased(&seen.dirs.new, &seen.dirs.home).unwrap_or_else(|| key.clone());
        let shadow = self.inner.get(&home).await?;
        draft.pins.push(unchanged(&home, shadow.as_ref().map(|item| item.revision)));
        // The shadow is the truth where there is one; both are conditions, so reading them one after the other is safe.
        Ok(shadow.or(read))
    }

    pub(super) async fn prolong(
        &self,
        key: &Key,
        revision: Option<u64>,
        expires: Time,
        writer: Option<WriterEpoch>,
    ) -> Result<Committed, CommitError> {
        for _ in 0..TRIES {
            let view = self.view().await?;
            let seen = match view.place(key) {
                Place::Plain | Place::Derived => return self.inner.keep_alive(key, revision, expires, writer).await,
                Place::Hidden => return Err(CommitError::NotFound { key: key.clone() }),
                Place::Row(seen) | Place::Source(seen) => seen,
            };
            let Some(shown) = self.look_up(key).await? else { return Err(CommitError::NotFound { key: key.clone() }) };
            if revision.is_some_and(|revision| revision != shown.item.revision) {
                return Err(CommitError::Conflict { key: key.clone() });
            }
            let still = Condition::RevisionIs(key.clone(), shown.item.revision);
            let done = if shown.raw {
                // Only the old side has it; nobody could write it on the other.
                let at = key.rebased(&seen.dirs.new, &seen.dirs.old).unwrap_or_else(|| key.clone());
                let batch = Batch::new(writer).require(seen.still());
                let batch = batch.require(Condition::RevisionIs(at.clone(), shown.item.revision));
                self.inner.commit(batch.put(at, shown.item.value, Some(expires))).await
            } else {
                self.write(Batch::new(writer).require(still).put(key.clone(), shown.item.value, Some(expires))).await
            };
            match done {
                Err(CommitError::Conflict { .. }) => drop(self.refresh().await?),
                done => return done,
            }
        }
        Err(restless(key).into())
    }
}

impl Draft {
    fn new(writer: Option<WriterEpoch>) -> Self {
        Self { writer, journals: BTreeMap::new(), pins: Vec::new(), conditions: Vec::new(), meaning: BTreeMap::new(), ops: Vec::new() }
    }

    /// Makes the batch conditional on a migration being where it was seen.
    fn touch(&mut self, seen: &Seen) {
        if !seen.over {
            self.journals.insert(seen.journal.clone(), seen.still());
        }
    }

    /// A condition of the caller, on the side that is the truth.
    fn require(&mut self, view: &View, condition: &Condition) -> Result<(), CommitError> {
        let key = condition.key();
        let at = match view.place(key) {
            Place::Hidden => return judge(condition, None),
            Place::Plain | Place::Source(_) | Place::Derived => key.clone(),
            Place::Row(seen) => {
                self.touch(seen);
                seen.truth_dir().and_then(|dir| key.rebased(&seen.dirs.new, dir)).unwrap_or_else(|| key.clone())
            }
        };
        self.meaning.insert(at.clone(), key.clone());
        self.conditions.push(match condition {
            Condition::Absent(_) => Condition::Absent(at),
            Condition::Exists(_) => Condition::Exists(at),
            Condition::RevisionIs(_, revision) => Condition::RevisionIs(at, *revision),
        });
        Ok(())
    }

    fn put(&mut self, view: &View, (key, put): (&Key, Row), expires: Option<Time>, was: Option<&Item>) -> Result<(), CommitError> {
        let one = |key: Key, value: Vec<u8>| Op::Put { key, value: value.into(), expires };
        let seen = match view.place(key) {
            Place::Hidden | Place::Derived => return Err(refused(key, "only a migration writes there")),
            Place::Plain => {
                self.ops.push(one(key.clone(), put.value));
                return Ok(());
            }
            Place::Source(seen) => return self.put_source(seen, (key, put), expires, was),
            Place::Row(seen) => seen,
        };
        self.touch(seen);
        if seen.state.writes() == Writes::New {
            self.ops.push(one(key.clone(), put.value));
            self.leave_shadow(seen, key);
            return Ok(());
        }
        let pair = seen.migration.pair(&put).map_err(|bad| bad_row(key, bad))?;
        if seen.state.writes() == Writes::Both {
            self.ops.push(one(side(seen, key, &seen.dirs.home), pair.new.value));
        }
        self.ops.push(one(side(seen, key, &seen.dirs.old), pair.old.value));
        Ok(())
    }

    /// A row and all that is derived from it; what was derived before and is no more goes.
    fn put_source(&mut self, seen: &Seen, (key, put): (&Key, Row), expires: Option<Time>, was: Option<&Item>) -> Result<(), CommitError> {
        self.touch(seen);
        if seen.state.writes() == Writes::Old {
            self.ops.push(Op::Put { key: key.clone(), value: put.value.into(), expires });
            return Ok(());
        }
        let derived = seen.migration.forward(&put).map_err(|bad| bad_row(key, bad))?;
        let mut before = derived_of(seen, was);
        for new in derived {
            let same_expiry = was.is_some_and(|was| was.expires == expires.map(whole_millis));
            if before.remove(&new.key).is_some_and(|value| value == new.value && same_expiry) {
                continue;
            }
            let at = parse(key, &new.key)?;
            self.ops.push(Op::Put { key: at, value: new.value.into(), expires });
        }
        for gone in before.into_keys() {
            self.ops.push(Op::Delete { key: parse(key, &gone)? });
        }
        self.ops.push(Op::Put { key: key.clone(), value: put.value.into(), expires });
        Ok(())
    }

    fn delete(&mut self, view: &View, key: &Key, was: Option<&Item>) -> Result<(), CommitError> {
        match view.place(key) {
            Place::Hidden => {}
            Place::Derived => return Err(refused(key, "only a migration writes there")),
            Place::Plain => self.ops.push(Op::Delete { key: key.clone() }),
            Place::Source(seen) => {
                self.touch(seen);
                for gone in derived_of(seen, was).into_keys() {
                    self.ops.push(Op::Delete { key: parse(key, &gone)? });
                }
                self.ops.push(Op::Delete { key: key.clone() });
            }
            Place::Row(seen) => {
                self.touch(seen);
                match seen.state.writes() {
                    Writes::Old => self.ops.push(Op::Delete { key: side(seen, key, &seen.dirs.old) }),
                    Writes::Both => {
                        self.ops.push(Op::Delete { key: side(seen, key, &seen.dirs.old) });
                        self.ops.push(Op::Delete { key: side(seen, key, &seen.dirs.home) });
                    }
                    Writes::New => {
                        self.ops.push(Op::Delete { key: key.clone() });
                        self.leave_shadow(seen, key);
                    }
                }
            }
        }
        Ok(())
    }

    /// After the contraction a row that is written lies in its place, and no longer in the shadow.
    fn leave_shadow(&mut self, seen: &Seen, key: &Key) {
        if seen.in_place() {
            self.ops.push(Op::Delete { key: side(seen, key, &seen.dirs.home) });
        }
    }

    /// Cut where another rule holds.
    fn delete_range(&mut self, view: &View, from: &Key, to: &Key) -> Result<(), CommitError> {
        for seen in view.seen.iter().filter(|seen| !seen.migration.is_one_to_one()) {
            let (old, new) = (&seen.dirs.old, &seen.dirs.new);
            if ![old, new].into_iter().any(|dir| *dir < *to && *from < dir.prefix_end()) {
                continue;
            }
            self.touch(seen);
            let whole = |dir: &Key| *from <= *dir && dir.prefix_end() <= *to;
            if seen.state.writes() != Writes::Old && !(whole(old) && whole(new)) {
                return Err(refused(from, "rows with an index are deleted one by one"));
            }
        }
        let mut from = from.clone();
        let cut = |from: Key, to: Key| Op::DeleteRange { from, to };
        for (start, end, place) in view.covered() {
            if end <= from || *start >= *to {
                continue;
            }
            if *start > from {
                self.ops.push(cut(from.clone(), start.clone()));
            }
            let (first, last) = (start.clone().max(from.clone()), end.clone().min(to.clone()));
            if let Place::Row(seen) = place {
                self.touch(seen);
                let dirs = match seen.state.writes() {
                    Writes::Old => vec![&seen.dirs.old],
                    Writes::Both => vec![&seen.dirs.old, &seen.dirs.home],
                    Writes::New if seen.in_place() => vec![&seen.dirs.new, &seen.dirs.home],
                    Writes::New => vec![&seen.dirs.new],
                };
                let at = |key: &Key, dir: &Key| super::read::bound(key, &seen.dirs.new, dir);
                self.ops.extend(dirs.into_iter().map(|dir| cut(at(&first, dir), at(&last, dir))));
            }
            from = end;
        }
        if from < *to {
            self.ops.push(cut(from, to.clone()));
        }
        Ok(())
    }

    fn into_batch(self) -> Batch {
        let mut conditions: Vec<Condition> = self.journals.into_values().collect();
        conditions.extend(self.pins);
        conditions.extend(self.conditions);
        Batch { conditions, ops: self.ops, writer: self.writer }
    }
}

/// What was derived from a row; nothing from a row that is absent or bad.
fn derived_of(seen: &Seen, was: Option<&Item>) -> BTreeMap<String, Vec<u8>> {
    let rows = was.and_then(|was| seen.migration.forward(&row(was)).ok()).unwrap_or_default();
    rows.into_iter().map(|row| (row.key, row.value)).collect()
}

/// A key of business code on one of the sides.
fn side(seen: &Seen, key: &Key, dir: &Key) -> Key {
    key.rebased(&seen.dirs.new, dir).unwrap_or_else(|| key.clone())
}

fn judge(condition: &Condition, item: Option<&Item>) -> Result<(), CommitError> {
    let holds = match condition {
        Condition::Absent(_) => item.is_none(),
        Condition::Exists(_) => item.is_some(),
        Condition::RevisionIs(_, revision) => item.is_some_and(|item| item.revision == *revision),
    };
    if holds { Ok(()) } else { Err(CommitError::Conflict { key: condition.key().clone() }) }
}

fn key_of(op: &Op) -> &Key {
    match op {
        Op::Put { key, .. } | Op::Delete { key } => key,
        Op::DeleteRange { from, .. } => from,
    }
}

fn whole_millis(time: Time) -> Time {
    let down = Time::from_unix_millis(time.unix_millis());
    if down < time { down.plus(std::time::Duration::from_millis(1)) } else { down }
}

fn parse(of: &Key, text: &str) -> Result<Key, CommitError> {
    Key::parse(text).map_err(|bad| refused(of, &bad.to_string()))
}

fn bad_row(key: &Key, bad: BadRow) -> CommitError {
    refused(key, &bad.why)
}

fn refused(key: &Key, why: &str) -> CommitError {
    BatchError::Refused { key: key.clone(), why: why.to_owned() }.into()
}
