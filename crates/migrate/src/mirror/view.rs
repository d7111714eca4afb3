//! What a mirror knows of the journals, and what that makes of a key.

use super::unreadable;
use crate::places::{Dirs, journal_key, read_journal, unchanged};
use bytes::Bytes;
use store::{Condition, Item, Key, Store, StoreError, control};
use upgrade::migrate::{Migration, Registry, Side, State};

/// The journals as they were last read.
#[derive(Debug)]
pub(super) struct View {
    pub(super) seen: Vec<Seen>,
}

/// One migration as it was last read.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) migration: Migration,
    pub(super) dirs: Dirs,
    pub(super) journal: Key,
    /// Of the journal; none if there is no journal.
    pub(super) revision: Option<u64>,
    pub(super) state: State,
    /// Nothing will ever move again: rows lie in their places, in the new form.
    pub(super) over: bool,
}

/// What a key is to the migrations.
#[derive(Clone, Copy)]
pub(super) enum Place<'v> {
    /// Nothing.
    Plain,
    /// A row that has, or will have, two sides.
    Row(&'v Seen),
    /// The old place of a row that is moved: nothing is there for those who know only the new one.
    Hidden,
    /// A row from which others are derived.
    Source(&'v Seen),
    /// One of those.
    Derived,
}

/// An item as business code sees it.
pub(super) struct Shown {
    pub(super) item: Item,
    /// It cannot be migrated and is shown as it lies.
    pub(super) raw: bool,
}

impl View {
    pub(super) async fn read(store: &dyn Store, registry: &Registry) -> Result<Self, StoreError> {
        let mut seen = Vec::new();
        for migration in registry.iter() {
            seen.push(Seen::read(store, migration).await?);
        }
        Ok(Self { seen })
    }

    pub(super) fn place(&self, key: &Key) -> Place<'_> {
        for seen in &self.seen {
            let (in_old, in_new) = (key.starts_with(&seen.dirs.old), key.starts_with(&seen.dirs.new));
            match (seen.migration.is_one_to_one(), in_old, in_new) {
                (_, false, false) => {}
                (true, _, _) if seen.over => {}
                (true, _, true) => return Place::Row(seen),
                (true, true, false) => return Place::Hidden,
                (false, true, _) => return Place::Source(seen),
                (false, false, true) => return Place::Derived,
            }
        }
        Place::Plain
    }

    /// Directories whose rows have two sides or are hidden, in order, each with its end.
    pub(super) fn covered(&self) -> Vec<(&Key, Key, Place<'_>)> {
        let mut all = Vec::new();
        for seen in self.seen.iter().filter(|seen| seen.migration.is_one_to_one() && !seen.over) {
            all.push((&seen.dirs.new, seen.dirs.new.prefix_end(), Place::Row(seen)));
            if seen.dirs.old != seen.dirs.new {
                all.push((&seen.dirs.old, seen.dirs.old.prefix_end(), Place::Hidden));
            }
        }
        all.sort_by(|left, right| left.0.cmp(right.0));
        all
    }
}

impl Seen {
    pub(super) async fn read(store: &dyn Store, migration: &Migration) -> Result<Self, StoreError> {
        let journal = journal_key(migration.id).map_err(|bad| unreadable(bad.into()))?;
        let dirs = Dirs::of(migration).map_err(|bad| unreadable(bad.into()))?;
        let mut seen = Self { migration: *migration, dirs, journal, revision: None, state: State::Absent, over: false };
        if let Some(kept) = read_journal(store, migration.id).await.map_err(unreadable)? {
            let journal = &kept.resource.spec;
            return Ok(Self { revision: Some(kept.revision), state: journal.state, over: journal.swept, ..seen });
        }
        let control = control::read(store).await.map_err(|error| match error {
            control::ReadControlError::Store(error) => error,
            control::ReadControlError::Unreadable(detail) => StoreError::Corrupt { place: "control".into(), detail },
        })?;
        // A cluster is born in the newest form; before it has a control record it is being born.
        let born_here = control.as_ref().is_none_or(|control| control.record.cluster_version >= migration.to);
        if born_here {
            seen.state = State::Contracted;
            seen.over = control.is_some();
        }
        Ok(seen)
    }

    /// The condition that the journal is still as it was read.
    pub(super) fn still(&self) -> Condition {
        unchanged(&self.journal, self.revision)
    }

    /// Whether the journal is still as it was read.
    pub(super) async fn holds(&self, store: &dyn Store) -> Result<bool, StoreError> {
        if self.over {
            return Ok(true);
        }
        let now = store.get(&self.journal).await?.map(|item| item.revision);
        Ok(now == self.revision)
    }

    /// New rows and old ones of one key lie in one place at different times.
    pub(super) fn in_place(&self) -> bool {
        self.dirs.old == self.dirs.new
    }

    /// In which directory the truth lies; none if each row must be looked for: see `Mirror`'s reads.
    pub(super) fn truth_dir(&self) -> Option<&Key> {
        match (self.state.truth(), self.state) {
            (Side::Old, _) => Some(&self.dirs.old),
            (Side::New, State::Contracted) if self.in_place() => None,
            (Side::New, _) => Some(&self.dirs.home),
        }
    }

    /// A physical item as business code sees it.
    pub(super) fn show(&self, item: Item, from: &Key) -> Shown {
        let key = item.key.rebased(from, &self.dirs.new).unwrap_or_else(|| item.key.clone());
        if self.state.truth() == Side::New {
            return Shown { item: Item { key, ..item }, raw: false };
        }
        match self.migration.forward(&crate::places::row(&item)).map(|mut rows| rows.pop()) {
            Ok(Some(row)) => Shown { item: Item { key, value: Bytes::from(row.value), ..item }, raw: false },
            Ok(None) | Err(_) => Shown { item: Item { key, ..item }, raw: true },
        }
    }
}
