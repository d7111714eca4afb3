//! The proof before the flip: every old row has its new rows, every new row has its old one, twice over.
//!
//! A page of each side is read at different times while writers write, so what looks like a difference is looked at again: one
//! side, the other, and the first again. If the first did not change meanwhile, no writer was there in between (writers write
//! both in one batch), and the difference is real. Real ones send the scan back to the copy, three times at most.

use super::{Outcome, Runner, Seen, StepError, late};
use store::{Batch, Item, Key};
use upgrade::migrate::journal::Named;
use upgrade::migrate::plan::MAX_ROUNDS;
use upgrade::migrate::{Phase, Progress};

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
    pub(super) async fn compare_old(&self, seen: &Seen) -> Result<Outcome, StepError> {
        let mut progress = self.at(seen, Phase::CompareOld);
        let started = self.now();
        let page = self.page(&self.dirs.old, progress.cursor.as_deref()).await?;
        let keys = page.items.iter().flat_map(|item| self.homes(item)).collect();
        let there = self.find(keys, self.migration.is_one_to_one()).await?;
        let mut rows = 0;
        for item in &page.items {
            let found = if self.lack(item, &there).is_some() { self.look_from_old(&item.key).await? } else { Found::Same };
            match found {
                Found::Same => {}
                Found::Different(named) => progress.found_difference(named),
                Found::Unsettled if rows == 0 => return Ok(Outcome::Lost),
                Found::Unsettled => break,
            }
            rows += 1;
            progress.cursor = Some(item.key.to_string());
            if late(started, self.now(), &self.limits) {
                break;
            }
        }
        progress.done += rows as u64;
        if rows == page.items.len() && !page.more {
            progress = self.after(progress, Phase::CompareNew);
        }
        self.commit_work(seen, Batch::new(Some(self.writer)), progress, None, rows).await
    }

    pub(super) async fn compare_new(&self, seen: &Seen) -> Result<Outcome, StepError> {
        let mut progress = self.at(seen, Phase::CompareNew);
        let started = self.now();
        let page = self.page(&self.dirs.home, progress.cursor.as_deref()).await?;
        let sources: Vec<Option<Key>> = page.items.iter().map(|item| self.source_of(&item.key)).collect();
        let olds = self.find(sources.iter().flatten().cloned().collect(), self.migration.is_one_to_one()).await?;
        let mut rows = 0;
        for (item, source) in page.items.iter().zip(sources) {
            let old = source.as_ref().and_then(|key| olds.get(key));
            let found = if self.fault(item, old).is_some() { self.look_from_new(item, source.as_ref()).await? } else { Found::Same };
            match found {
                Found::Same => {}
                Found::Different(named) => progress.found_difference(named),
                Found::Unsettled if rows == 0 => return Ok(Outcome::Lost),
                Found::Unsettled => break,
            }
            rows += 1;
            progress.cursor = Some(item.key.to_string());
            if late(started, self.now(), &self.limits) {
                break;
            }
        }
        progress.done += rows as u64;
        if rows == page.items.len() && !page.more {
            let then = if progress.pass < 2 { Phase::CompareOld } else { Phase::Compared };
            progress = self.after(progress, then);
        }
        self.commit_work(seen, Batch::new(Some(self.writer)), progress, None, rows).await
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

    async fn look_from_old(&self, key: &Key) -> Result<Found, StepError> {
        for _ in 0..MAX_LOOKS {
            let Some(old) = self.store.get(key).await? else { return Ok(Found::Same) };
            let there = self.find(self.homes(&old), false).await?;
            let Some(why) = self.lack(&old, &there) else { return Ok(Found::Same) };
            let again = self.store.get(key).await?;
            if again.is_some_and(|again| again.revision == old.revision) {
                return Ok(Found::Different(Named::new(key.to_string(), why)));
            }
        }
        Ok(Found::Unsettled)
    }

    async fn look_from_new(&self, new: &Item, source: Option<&Key>) -> Result<Found, StepError> {
        for _ in 0..MAX_LOOKS {
            let Some(new) = self.store.get(&new.key).await? else { return Ok(Found::Same) };
            let old = match source {
                Some(source) => self.store.get(source).await?,
                None => None,
            };
            let Some(why) = self.fault(&new, old.as_ref()) else { return Ok(Found::Same) };
            let again = self.store.get(&new.key).await?;
            if again.is_some_and(|again| again.revision == new.revision) {
                return Ok(Found::Different(Named::new(new.key.to_string(), why)));
            }
        }
        Ok(Found::Unsettled)
    }
}
