//! A rehearsal: this release's migrations, run there and back on a copy of a cluster's store that nobody uses.
//!
//! It takes the copy over as its Auth Service would, carries every migration to `flipped`, undoes them, and compares what lies there with what lay
//! there before. What it says is what an upgrade is planned with: rows that the new form cannot hold, how many rows there are, and that the
//! way back leads to the same bytes. Caller: `lockgate rehearse`, which the executor runs from the release that is to come.

use crate::runner::{Limits, Outcome, Runner, StepError};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use store::{Key, Store, StoreError, WriterEpoch, control};
use types::{ControlRecord, Public, Version};
use upgrade::migrate::{Goal, Registry};

/// What was seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rehearsed {
    /// Why it did not come there and back.
    pub failed: Option<String>,
    /// Rows that the new form cannot hold, by key; at most a few of each migration are named.
    pub bad_rows: Vec<String>,
    /// Rows that were brought into the new form.
    pub rows: u64,
}

/// Why nothing could be rehearsed.
#[derive(Debug, thiserror::Error)]
pub enum RehearseError {
    #[error("{0}")]
    Refused(Public),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Control(#[from] control::WriteControlError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Rehearses on a store that is nobody's.
pub async fn rehearse(store: Arc<dyn Store>, registry: &Registry, version: &Version) -> Result<Rehearsed, RehearseError> {
    let was = control::read(store.as_ref()).await.map_err(StepError::from)?.ok_or(StepError::NoControl)?;
    // The copy may be of the middle of an upgrade; what it says of that is not ours.
    let alone = ControlRecord { upgrade: None, ..was.record.clone() };
    let taken = upgrade::control::adopt(&alone, version, &[]).map_err(RehearseError::Refused)?;
    let now = control::update(store.as_ref(), &was, &taken, WriterEpoch(was.record.epoch)).await?;
    let writer = WriterEpoch(now.record.epoch);
    let before = digest(store.as_ref()).await?;

    let mut seen = Rehearsed::default();
    let mut done = Vec::new();
    for migration in registry.iter().filter(|migration| migration.to > alone.cluster_version) {
        let runner = Runner::new(store.clone(), *migration, writer, "rehearsal", Limits::default()).map_err(StepError::from)?;
        let outcome = runner.run(Goal::Up).await?;
        let status = crate::status(store.as_ref(), migration, Goal::Up).await?;
        seen.rows = seen.rows.saturating_add(status.total);
        seen.bad_rows.extend(status.bad.into_iter().map(|bad| bad.key));
        match outcome {
            Outcome::Done => done.push(runner),
            Outcome::Waiting(wait) if seen.bad_rows.is_empty() => seen.failed = Some(format!("{}: {wait}", migration.id)),
            _ => {}
        }
        if seen.failed.is_some() || !seen.bad_rows.is_empty() {
            break;
        }
    }
    // The way back, the last one first; also of one that came to stand half-way.
    for runner in done.iter().rev() {
        if let Outcome::Waiting(wait) = runner.run(Goal::Undo).await?
            && seen.failed.is_none()
        {
            seen.failed = Some(format!("back from {}: {wait}", runner.migration().id));
        }
    }
    if seen.failed.is_none() && seen.bad_rows.is_empty() && digest(store.as_ref()).await? != before {
        seen.failed = Some("after the way back the store does not hold what it held before".into());
    }
    Ok(seen)
}

/// Of everything that stays: not the control record, the migrations' own books, and what lapses by itself.
async fn digest(store: &dyn Store) -> Result<[u8; 32], StoreError> {
    let mut hash = Sha256::new();
    let mut snapshot = store.snapshot().await?;
    while let Some(page) = snapshot.page().await? {
        for item in page {
            let own = item.key == Key::control() || item.key.parts().next() == Some("migration");
            if own || item.expires.is_some() {
                continue;
            }
            for part in [item.key.as_bytes(), &item.value] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
    }
    Ok(hash.finalize().into())
}
