//! Bad rows: shown with what is proposed for each, repaired one by one, by name, by somebody who consents.
//!
//! A bad row holds its migration in `expanded` (or in the copy); it never holds the service, which goes on with the old
//! form. What a row was before its repair goes to retention, and the progress says who consented and when.

use super::{Outcome, Runner, StepError, restart};
use crate::places::row;
use store::{Batch, Condition, Item, Key};
use types::Extra;
use upgrade::migrate::journal::{MAX_NAMED, Repaired};
use upgrade::migrate::{BadRow, Fix};

/// What may be done about a bad row.
#[derive(Clone, PartialEq, Debug)]
pub struct Proposal {
    pub bad: BadRow,
    /// As it is now.
    pub now: Vec<u8>,
    pub fix: Fix,
    /// The row's revision: what is consented to is this row and no later one.
    pub revision: u64,
}

/// Why a row was not repaired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepairError {
    #[error("{0} does not exist")]
    NotFound(String),
    #[error("{0} is not bad")]
    NotBad(String),
    #[error("{0} cannot be repaired in this state of the migration")]
    State(String),
    #[error("{0} was changed since it was shown")]
    Changed(String),
    #[error("what is proposed for {0} would be bad too: {1}")]
    StillBad(String, String),
    #[error("it is not known whether the row was repaired: {0}; look at it again")]
    Unclear(String),
    #[error(transparent)]
    Step(#[from] StepError),
}

impl Runner {
    /// Every bad row, without waiting for the check of the migration; writes nothing. Reads everything that would be migrated.
    pub async fn bad_rows(&self) -> Result<Vec<BadRow>, StepError> {
        let items = store::scan(self.store.as_ref(), &self.dirs.old, &self.dirs.old.prefix_end()).await?;
        Ok(items.iter().filter_map(|item| self.try_row(item).err()).collect())
    }

    /// What is proposed for a row that is bad.
    pub async fn propose(&self, key: &str) -> Result<Proposal, RepairError> {
        let place = Key::parse(key).map_err(StepError::from)?;
        let item = self.store.get(&place).await.map_err(StepError::from)?.ok_or_else(|| RepairError::NotFound(key.into()))?;
        let in_the_way = place.starts_with(&self.dirs.home);
        if !in_the_way && !place.starts_with(&self.dirs.old) {
            return Err(RepairError::NotBad(key.into()));
        }
        let bad = if in_the_way {
            BadRow { key: key.into(), why: "it lies where new rows will be".into() }
        } else {
            self.try_row(&item).err().ok_or_else(|| RepairError::NotBad(key.into()))?
        };
        let fix = self.migration.repair.filter(|_| !in_the_way).and_then(|repair| repair(&row(&item))).unwrap_or(Fix::Remove);
        if let Fix::Replace(value) = &fix {
            let mended = Item { value: value.clone().into(), ..item.clone() };
            self.try_row(&mended).map_err(|bad| RepairError::StillBad(key.into(), bad.why))?;
        }
        Ok(Proposal { bad, now: item.value.to_vec(), fix, revision: item.revision })
    }

    /// Does what was proposed, with the consent of `by`. The check begins anew.
    pub async fn repair(&self, proposal: &Proposal, by: &str) -> Result<(), RepairError> {
        let key = Key::parse(&proposal.bad.key).map_err(StepError::from)?;
        let seen = self.look().await?;
        let state = seen.known().state(&self.migration);
        let phase = restart(state).ok_or_else(|| RepairError::State(proposal.bad.key.clone()))?;
        let changed = || RepairError::Changed(proposal.bad.key.clone());
        let item = self.store.get(&key).await.map_err(StepError::from)?.ok_or_else(changed)?;
        // In `shadowing` the new side's rows are the migration's own.
        let theirs = state == upgrade::migrate::State::Shadowing && key.starts_with(&self.dirs.home);
        if item.revision != proposal.revision || theirs {
            return Err(changed());
        }
        let mut batch = Batch::new(Some(self.writer)).require(Condition::RevisionIs(key.clone(), item.revision));
        batch.ops.push(self.retain(&item)?);
        let (how, batch) = match &proposal.fix {
            Fix::Replace(value) => ("replaced", batch.put(key, value.clone(), item.expires)),
            Fix::Remove => ("removed", batch.delete(key)),
        };
        let mut progress = seen.progress().enter(phase, self.store.clock().now());
        let repaired =
            Repaired { key: proposal.bad.key.clone(), how: how.into(), by: by.into(), at: self.store.clock().now(), extra: Extra::new() };
        progress.repaired.push(repaired);
        let surplus = progress.repaired.len().saturating_sub(MAX_NAMED);
        progress.repaired.drain(..surplus);
        match self.commit_work(&seen, batch, progress, None, 1).await? {
            Outcome::Worked { .. } => Ok(()),
            Outcome::Unclear(why) => Err(RepairError::Unclear(why)),
            Outcome::Lost | Outcome::Moved { .. } | Outcome::Waiting(_) | Outcome::Done => Err(changed()),
        }
    }
}
