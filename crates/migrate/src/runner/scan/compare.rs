//! The proof before the flip: every old row has its new rows, every new row has its old one, twice over.
//!
//! A page of each side is read at different times while writers write, so what looks like a difference is looked at again: one
//! side, the other, and the first again. If the first did not change meanwhile, no writer was there in between (writers write
//! both in one batch), and the difference is real. Real ones send the scan back to the copy, three times at most.

use super::{Outcome, Runner, Seen, StepError};
use std::collections::BTreeMap;
use store::{Batch, Item, Key};
use upgrade::migrate::journal::Named;
use upgrade::migrate::plan::MAX_ROUNDS;
use upgrade::migrate::{Phase, Progress, Side};

/// How often to look at a row that keeps changing, before the page is left for another step.
const MAX_LOOKS: usize = 10;

/// What a second look found.
enum Found {
    Same,
    Different(Named),
    /// It changed every time.
    Unsettled,
}

impl Runner {
    /// Each row of one side with its rows on the other.
    pub(super) async fn compare(&self, seen: &Seen, side: Side) -> Result<Outcome, StepError> {
        let (phase, dir) = match side {
            Side::Old => (Phase::CompareOld, &self.dirs.old),
            Side::New => (Phase::CompareNew, &self.dirs.home),
        };
        let mut walk = self.begin(seen, phase);
        let items = self.rows(&mut walk, dir).await?;
        let across = items.iter().flat_map(|item| self.across(side, item)).collect();
        let there = self.find(across, self.migration.is_one_to_one()).await?;
        for item in &items {
            match self.look_twice(side, item, &there).await? {
                Found::Same => {}
                Found::Different(named) => walk.progress.found_difference(named),
                Found::Unsettled if walk.rows == 0 => return Ok(Outcome::Lost),
                Found::Unsettled => break,
            }
            if !self.pass(&mut walk, item) {
                break;
            }
        }
        if walk.over() {
            let then = match side {
                Side::Old => Phase::CompareNew,
                Side::New if walk.progress.pass < 2 => Phase::CompareOld,
                Side::New => Phase::Compared,
            };
            walk.progress = self.after(walk.progress, then);
        }
        self.commit_work(seen, Batch::new(Some(self.writer)), walk.progress, None, walk.rows).await
    }

    /// The next phase, unless there were differences.
    fn after(&self, progress: Progress, then: Phase) -> Progress {
        if progress.difference_count == 0 {
            return progress.enter(then, self.now());
        }
        let rounds = progress.rounds + 1;
        let then = if rounds >= MAX_ROUNDS { Phase::Hold } else { Phase::Copy };
        Progress { rounds, ..progress }.enter(then, self.now())
    }

    /// Where the rows of a row's other side are.
    fn across(&self, side: Side, item: &Item) -> Vec<Key> {
        match side {
            Side::Old => self.homes(item),
            Side::New => self.source_of(&item.key).into_iter().collect(),
        }
    }

    /// What is wrong with a row, seen from one side.
    fn wrong(&self, side: Side, item: &Item, there: &BTreeMap<Key, Item>) -> Option<String> {
        match side {
            Side::Old => self.lack(item, there),
            Side::New => self.fault(item, self.source_of(&item.key).and_then(|key| there.get(&key))).map(str::to_owned),
        }
    }

    /// Looks at what seems to differ again: see the file's head.
    async fn look_twice(&self, side: Side, item: &Item, there: &BTreeMap<Key, Item>) -> Result<Found, StepError> {
        if self.wrong(side, item, there).is_none() {
            return Ok(Found::Same);
        }
        for _ in 0..MAX_LOOKS {
            let Some(item) = self.store.get(&item.key).await? else { return Ok(Found::Same) };
            let there = self.find(self.across(side, &item), false).await?;
            let Some(why) = self.wrong(side, &item, &there) else { return Ok(Found::Same) };
            let again = self.store.get(&item.key).await?;
            if again.is_some_and(|again| again.revision == item.revision) {
                return Ok(Found::Different(Named::new(item.key.to_string(), why)));
            }
        }
        Ok(Found::Unsettled)
    }
}
