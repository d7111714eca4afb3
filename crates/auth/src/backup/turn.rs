//! Whose turn it is to make the scheduled backup, when several Auth Services share a store and a schedule.
//!
//! A *turn* is a short lease in the store, renewed while a backup is being made: it keeps others from beginning at the same time, and
//! when its holder dies it lapses and another takes over. It decides nothing. What decides is the *state* of the place, one record that
//! names the last backup and the one being made: who begins writes himself in, and a backup counts only if that record is still as he
//! wrote it. So of two that both believe in their turn (one was paused) one backup counts, and the other removes his file. The
//! state also names the upload that runs, so that whoever comes after a killed process can abort it. Who calls: `schedule`.

use super::place::Place;
use crate::{
    core::Core,
    vault::{self, Held, VaultError},
};
use net::task::Group;
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use store::{CommitError, Condition, Key};
use types::{Extra, HostId, NodeName, Time};

/// How long a turn lasts that is not renewed.
pub(super) const LEASE: Duration = Duration::from_secs(60);
const RENEW: Duration = Duration::from_secs(15);

/// A backup that is complete and was read again.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Last {
    pub(super) at: Time,
    pub(super) name: String,
    pub(super) id: String,
    pub(super) digest: String,
    pub(super) bytes: u64,
    pub(super) by: HostId,
    pub(super) node: NodeName,
    #[serde(flatten)]
    pub(super) extra: Extra,
}

/// One that is being made, or whose maker has died.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) by: HostId,
    pub(super) name: String,
    /// See [`super::place::Upload::id`].
    pub(super) upload: String,
    pub(super) began: Time,
    #[serde(flatten)]
    pub(super) extra: Extra,
}

/// What the store knows of a place.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) place: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<Last>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) running: Option<Running>,
    /// Names of those that this cluster made and has not removed, oldest first: others in the same place are not its own to remove. A
    /// cluster that was restored begins anew, so a copy of one never removes the backups of the other.
    #[serde(default)]
    pub(super) kept: Vec<String>,
    #[serde(flatten)]
    pub(super) extra: Extra,
}

/// A place may have any characters and any length; a key may not.
fn digest(place: &Place) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, place.to_string().as_bytes());
    data_encoding::HEXLOWER.encode(digest.as_ref()).chars().take(32).collect()
}
fn state_key(place: &Place) -> Result<Key, store::BadKey> {
    Key::new(["internal", "backup", "made", &digest(place)])
}
fn turn_key(place: &Place) -> Result<Key, store::BadKey> {
    Key::new(["internal", "backup", "turn", &digest(place)])
}

/// What is known of a place.
pub(super) async fn look(core: &Core, place: &Place) -> Result<State, VaultError> {
    let held = core.vault.read::<State>(&state_key(place)?).await?;
    Ok(held.map(|held| held.value).unwrap_or_default())
}

/// The right to begin, and what was known when it was taken.
pub(super) struct Turn {
    core: Arc<Core>,
    key: Key,
    /// Of the lease, which moves at each renewal.
    lease: Arc<AtomicU64>,
    keeping: Group,
    state_key: Key,
    held: Option<Held<State>>,
    place: String,
}

impl Turn {
    /// `None`: another Auth Service has it.
    pub(super) async fn take(core: &Arc<Core>, place: &Place) -> Result<Option<Self>, VaultError> {
        let (key, state_key) = (turn_key(place)?, state_key(place)?);
        let holder = serde_json::json!({"by": core.host_id, "node": core.node_name, "since": core.now()});
        let batch = core.vault.batch().require(Condition::Absent(key.clone()));
        let batch = batch.put(key.clone(), holder.to_string(), Some(core.now().plus(LEASE)));
        let revision = match core.documents.store().commit(batch).await {
            Ok(done) => done.revision,
            Err(CommitError::Conflict { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (lease, keeping) = (Arc::new(AtomicU64::new(revision)), Group::new("backup turn"));
        keeping.spawn("lease", keep(core.clone(), key.clone(), lease.clone()));
        let held = core.vault.read::<State>(&state_key).await?;
        Ok(Some(Self { core: core.clone(), key, lease, keeping, state_key, held, place: place.to_string() }))
    }

    /// As it was when the turn was taken, or as this turn has written it since.
    pub(super) fn state(&self) -> State {
        self.held.as_ref().map(|held| held.value.clone()).unwrap_or_default()
    }

    /// Says what is being made. False: somebody else has written meanwhile, and goes on in this one's place.
    pub(super) async fn begin(&mut self, running: Running) -> Result<bool, VaultError> {
        let state = State { running: Some(running), ..self.state() };
        self.write(state).await
    }

    /// Makes a backup count. False: it does not, another does.
    pub(super) async fn done(&mut self, last: Last) -> Result<bool, VaultError> {
        let mut state = self.state();
        state.kept.push(last.name.clone());
        self.write(State { last: Some(last), running: None, ..state }).await
    }

    /// Notes which of those made are still there.
    pub(super) async fn keep(&mut self, kept: Vec<String>) -> Result<bool, VaultError> {
        self.write(State { kept, ..self.state() }).await
    }

    /// What was begun has come to nothing, and nothing of it is left.
    pub(super) async fn gave_up(&mut self) -> Result<bool, VaultError> {
        let state = State { running: None, ..self.state() };
        self.write(state).await
    }

    async fn write(&mut self, mut state: State) -> Result<bool, VaultError> {
        state.place.clone_from(&self.place);
        let batch = self.core.vault.batch().require(vault::unchanged(&self.state_key, self.held.as_ref()));
        let batch = batch.put(self.state_key.clone(), vault::json(&state), None);
        let revision = match self.core.documents.store().commit(batch).await {
            Ok(done) => done.revision,
            Err(CommitError::Conflict { .. }) => return Ok(false),
            // Whether it was written tells reading: nobody else writes the same.
            Err(error @ CommitError::Ambiguous(_)) => match self.core.vault.read::<State>(&self.state_key).await? {
                Some(held) if held.value == state => held.revision,
                _ => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        };
        self.held = Some(Held { value: state, revision, expires: None });
        Ok(true)
    }

    /// Gives the turn back, so that nobody waits for it.
    pub(super) async fn release(self) {
        self.keeping.abort();
        let condition = Condition::RevisionIs(self.key.clone(), self.lease.load(Ordering::Acquire));
        if let Err(error) = self.core.vault.commit(self.core.vault.batch().require(condition).delete(self.key.clone())).await {
            tracing::info!(%error, "the turn to make backups lapses by itself");
        }
    }
}

/// Renews a turn until somebody else has it.
async fn keep(core: Arc<Core>, key: Key, lease: Arc<AtomicU64>) {
    loop {
        tokio::time::sleep(RENEW).await;
        let until = core.now().plus(LEASE);
        let held = lease.load(Ordering::Acquire);
        match core.documents.store().keep_alive(&key, Some(held), until, Some(core.documents.writer())).await {
            Ok(done) => lease.store(done.revision, Ordering::Release),
            Err(CommitError::Conflict { .. } | CommitError::NotFound { .. }) => {
                return tracing::warn!("the turn to make backups has lapsed");
            }
            Err(error) => tracing::warn!(%error, "the turn to make backups could not be renewed"),
        }
    }
}
