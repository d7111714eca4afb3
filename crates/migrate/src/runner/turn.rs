//! Which way a migration goes: forward by itself, or back because somebody wants that.
//!
//! The wish stands in the journal, so every runner of the cluster follows it, whichever process is asked and whichever dies; the next
//! step of any runner begins the way back. Behind `finalize` there is none. Writers are not concerned: the state moves by steps.

use super::{Outcome, Runner, StepError};
use crate::places::{journal_key, replace, replaced};
use store::{Batch, Condition, Key};
use types::Extra;
use upgrade::migrate::registry::digest;
use upgrade::migrate::{Journal, Phase, State, Wait};

/// Why a migration was not turned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TurnError {
    #[error("migration {id} stays as it is: {why}")]
    Held { id: &'static str, why: Wait },
    #[error(transparent)]
    Step(#[from] StepError),
}

impl Runner {
    /// Turns it back, or forward again. Forward also begins the check or the copy anew where one is held. `Done`: it goes that way
    /// already. Look again after `Lost` and `Unclear`.
    pub async fn turn(&self, back: bool) -> Result<Outcome, TurnError> {
        let seen = self.look().await?;
        let (known, id) = (seen.known(), self.migration.id);
        let state = known.state(&self.migration);
        if state == State::Contracted || (back && known.control.cluster_version >= self.migration.to) {
            return if back { Err(TurnError::Held { id, why: Wait::Final }) } else { Ok(Outcome::Done) };
        }
        let held = known.progress.is_some_and(|progress| match progress.phase {
            Phase::Hold => state == State::Shadowing,
            Phase::Checked => state == State::Expanded && progress.bad_count > 0,
            _ => false,
        });
        if known.journal.map_or(!back, |journal| journal.undo == back) {
            return if held && !back { Ok(self.again().await?) } else { Ok(Outcome::Done) };
        }
        let journal = match known.journal {
            Some(journal) => Journal { undo: back, ..journal.clone() },
            None => Journal {
                state: State::Absent,
                digest: digest(&self.migration),
                attempt: 0,
                swept: false,
                undo: back,
                token: self.writer.0,
                holder: self.holder.clone(),
                changed: None,
                extra: Extra::new(),
            },
        };
        // An upgrade that is finalized at this moment leaves no way back.
        let batch = Batch::new(Some(self.writer)).require(Condition::RevisionIs(Key::control(), seen.control.revision));
        let next = replaced(seen.journal.as_ref(), id, journal).map_err(StepError::from)?;
        let batch = replace(batch, journal_key(id).map_err(StepError::from)?, seen.journal.as_ref(), &next);
        let phase = known.progress.map(|progress| progress.phase).unwrap_or_default();
        Ok(self.commit(batch, Outcome::Worked { phase, rows: 0 }).await?)
    }
}
