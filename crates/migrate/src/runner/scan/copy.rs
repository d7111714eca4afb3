//! The back-fill: copies what writers have not yet written on both sides, and removes new rows that no old row leads to.
//!
//! A writer writes both sides in one batch, so an old row that is still at the revision that was read has the new rows that
//! were read with it. Rows that are right already cost no write.

use super::{Basket, Outcome, Placed, Runner, Seen, StepError, row, unchanged};
use std::collections::BTreeMap;
use store::{Condition, Item, Key, Op};
use upgrade::migrate::journal::Named;
use upgrade::migrate::{BadRow, Phase};

/// What a new row is to be.
enum Verdict {
    Right,
    Orphan,
    Wrong(Placed, Item),
}

impl Runner {
    pub(super) async fn copy(&self, seen: &Seen) -> Result<Outcome, StepError> {
        let mut walk = self.begin(seen, Phase::Copy);
        let items = self.rows(&mut walk, &self.dirs.old).await?;
        let wanted: Vec<(&Item, Result<Vec<Placed>, BadRow>)> = items.iter().map(|item| (item, self.placed(item))).collect();
        let keys = wanted.iter().filter_map(|(_, placed)| placed.as_ref().ok()).flatten().map(|placed| placed.key.clone()).collect();
        let there = self.find(keys, self.migration.is_one_to_one()).await?;
        let mut basket = Basket::new(self.writer, &self.limits);
        for (item, placed) in wanted {
            let ops = match placed {
                Ok(placed) => puts(placed, item, &there),
                Err(bad) => {
                    walk.progress.found_bad(Named::new(bad.key, bad.why));
                    Vec::new()
                }
            };
            let alone = basket.is_empty();
            if !ops.is_empty() && !basket.take(vec![Condition::RevisionIs(item.key.clone(), item.revision)], ops) {
                if !alone {
                    break;
                }
                walk.progress.found_bad(Named::new(item.key.to_string(), "its new rows do not fit in one write"));
            }
            if !self.pass(&mut walk, item) {
                break;
            }
        }
        if walk.over() {
            let then = if walk.progress.bad_count > 0 { Phase::Hold } else { Phase::Prune };
            walk.progress = walk.progress.enter(then, self.now());
        }
        self.commit_work(seen, basket.into_batch(), walk.progress, None, walk.rows).await
    }

    pub(super) async fn prune(&self, seen: &Seen) -> Result<Outcome, StepError> {
        let mut walk = self.begin(seen, Phase::Prune);
        let items = self.rows(&mut walk, &self.dirs.home).await?;
        let sources: Vec<Option<Key>> = items.iter().map(|item| self.source_of(&item.key)).collect();
        let olds = self.find(sources.iter().flatten().cloned().collect(), self.migration.is_one_to_one()).await?;
        let mut basket = Basket::new(self.writer, &self.limits);
        for (item, source) in items.iter().zip(sources) {
            let old = source.as_ref().and_then(|key| olds.get(key));
            let mut conditions = vec![Condition::RevisionIs(item.key.clone(), item.revision)];
            conditions.extend(source.iter().map(|key| unchanged(key, old.map(|old| old.revision))));
            let op = match self.judge(item, old) {
                Verdict::Right => None,
                Verdict::Orphan => Some(Op::Delete { key: item.key.clone() }),
                Verdict::Wrong(placed, old) => Some(Op::Put { key: placed.key, value: placed.value.into(), expires: old.expires }),
            };
            let full = op.is_some_and(|op| !basket.take(conditions, vec![op])) && !basket.is_empty();
            if full || !self.pass(&mut walk, item) {
                break;
            }
        }
        if walk.over() {
            walk.progress = walk.progress.enter(Phase::CompareOld, self.now());
        }
        self.commit_work(seen, basket.into_batch(), walk.progress, None, walk.rows).await
    }

    /// Where the old row of a new one is; none if the key cannot be one of this migration's.
    pub(super) fn source_of(&self, home: &Key) -> Option<Key> {
        let new = self.migration.final_key(&home.to_string())?;
        Key::parse(self.migration.old_key(&new)?).ok()
    }

    /// What a new row is, seen from its old one.
    fn judge(&self, new: &Item, old: Option<&Item>) -> Verdict {
        let Some(old) = old else { return Verdict::Orphan };
        let Ok(placed) = self.placed(old) else { return Verdict::Orphan };
        match placed.into_iter().find(|placed| placed.key == new.key) {
            None => Verdict::Orphan,
            Some(placed) if is(&placed, old, new) => Verdict::Right,
            Some(placed) => Verdict::Wrong(placed, old.clone()),
        }
    }

    /// What is wrong with a new row, seen from its old one.
    pub(super) fn fault(&self, new: &Item, old: Option<&Item>) -> Option<&'static str> {
        match self.judge(new, old) {
            Verdict::Right => None,
            Verdict::Orphan => Some("no old row leads to it"),
            Verdict::Wrong(..) => Some("it is not what its old row leads to"),
        }
    }

    /// What is wrong with the new side of an old row.
    pub(super) fn lack(&self, old: &Item, there: &BTreeMap<Key, Item>) -> Option<String> {
        match self.placed(old) {
            Err(bad) => Some(bad.why),
            Ok(placed) => {
                let missing = placed.iter().find(|placed| !there.get(&placed.key).is_some_and(|new| is(placed, old, new)))?;
                Some(format!("{} is not what it leads to", missing.key))
            }
        }
    }

    /// The places of an old row's new rows; none for a bad one.
    pub(super) fn homes(&self, old: &Item) -> Vec<Key> {
        debug_assert!(row(old).key.starts_with(self.migration.old_dir()));
        self.placed(old).into_iter().flatten().map(|placed| placed.key).collect()
    }
}

/// The puts of new rows that are not there as they should be.
fn puts(placed: Vec<Placed>, old: &Item, there: &BTreeMap<Key, Item>) -> Vec<Op> {
    let lacking = placed.into_iter().filter(|placed| !there.get(&placed.key).is_some_and(|new| is(placed, old, new)));
    lacking.map(|placed| Op::Put { key: placed.key, value: placed.value.into(), expires: old.expires }).collect()
}

/// Equal in value and in expiry.
fn is(placed: &Placed, old: &Item, new: &Item) -> bool {
    placed.value == new.value.as_ref() && old.expires == new.expires
}
