//! What the executor of an upgrade writes down under `internal/upgrade/`, so that it can be killed at any instant.
//!
//! `told/<host>`: what a member was directed to; `walk/<host>`: how a user fared who went through it; `proof`: the backup made for the
//! upgrade, its drill and its rehearsal; `waivers`: checks that somebody took away. None of it says where the upgrade stands: that is read
//! off the cluster. What was said of members goes when the upgrade ends. Callers: `look`, `act`, `proof`, `api::plan`.

use crate::{
    core::{Core, Fault},
    vault::{self, Held, VaultError},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use store::{Batch, Key};
use types::{Extra, HostId, ResourceName, SystemRole, Time, Version};
use upgrade::plan::{Backup, Drill, Rehearsal, Waiver, Walk};

/// What a member was directed to, and by which directive: what its updater reports of an older one says nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) version: Version,
    pub(crate) at: Time,
    pub(crate) boot: String,
    pub(crate) attempts: u32,
    pub(crate) generation: u64,
    /// Who it is: its document lapses while it is silent, and it must not be forgotten then.
    pub(crate) name: String,
    pub(crate) roles: BTreeSet<SystemRole>,
    pub(crate) class: String,
    /// What it ran.
    pub(crate) from: Version,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

/// A backup that an upgrade made, and how far it was proved.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Proof {
    pub(crate) backup: Backup,
    /// Who made it, and can open it.
    pub(crate) by: HostId,
    /// The file's name in its place.
    pub(crate) name: String,
    pub(crate) place: String,
    /// Fingerprint of the key that signed it.
    pub(crate) signer: String,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

/// Checks that are taken away for some time.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Waivers {
    #[serde(default)]
    pub(crate) waivers: Vec<Waiver>,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

/// The most that are kept.
const MAX_WAIVERS: usize = 100;

fn told_dir() -> Result<Key, store::BadKey> {
    Key::dir(["internal", "upgrade", "told"])
}
fn walk_dir() -> Result<Key, store::BadKey> {
    Key::dir(["internal", "upgrade", "walk"])
}
fn proof_key() -> Result<Key, store::BadKey> {
    Key::new(["internal", "upgrade", "proof"])
}
fn waivers_key() -> Result<Key, store::BadKey> {
    Key::new(["internal", "upgrade", "waivers"])
}

/// All of it, as the store has it now.
pub(crate) struct Book {
    pub(crate) told: Vec<(String, Told)>,
    pub(crate) walks: Vec<(String, Walk)>,
    pub(crate) proof: Option<Held<Proof>>,
    pub(crate) waivers: Vec<Waiver>,
}

impl Book {
    pub(crate) async fn read(core: &Core) -> Result<Self, VaultError> {
        Ok(Self {
            told: core.vault.list(&told_dir()?).await?,
            walks: core.vault.list(&walk_dir()?).await?,
            proof: core.vault.read(&proof_key()?).await?,
            waivers: core.vault.read::<Waivers>(&waivers_key()?).await?.map(|held| held.value.waivers).unwrap_or_default(),
        })
    }
}

/// Keys that one batch holds.
const CHUNK: usize = 200;

/// Writes what members were told.
pub(crate) async fn tell(core: &Core, told: &[(ResourceName, Told)]) -> Result<(), VaultError> {
    for chunk in told.chunks(CHUNK) {
        let mut batch = core.vault.batch();
        for (member, told) in chunk {
            batch = batch.put(Key::new(["internal", "upgrade", "told", member.as_str()])?, vault::json(told), None);
        }
        core.vault.commit(batch).await?;
    }
    Ok(())
}

/// Writes how a user fared.
pub(crate) async fn walked(core: &Core, member: &ResourceName, walk: &Walk) -> Result<(), VaultError> {
    let key = Key::new(["internal", "upgrade", "walk", member.as_str()])?;
    core.vault.commit(core.vault.batch().put(key, vault::json(walk), None)).await.map(drop)
}

/// Forgets what was said of members: the upgrade is over.
pub(crate) async fn close(core: &Core) -> Result<(), VaultError> {
    let forget = |batch: Batch, dir: Key| {
        let end = dir.prefix_end();
        batch.delete_range(dir, end)
    };
    let batch = forget(forget(core.vault.batch(), told_dir()?), walk_dir()?);
    core.vault.commit(batch).await.map(drop)
}

/// A new backup takes the place of the last.
pub(crate) async fn prove(core: &Core, proof: &Proof) -> Result<(), VaultError> {
    core.vault.commit(core.vault.batch().put(proof_key()?, vault::json(proof), None)).await.map(drop)
}

/// Notes a drill or a rehearsal, if the backup is still the one that it was of.
pub(crate) async fn proved(core: &Core, backup: &str, drill: Option<Drill>, rehearsal: Option<Rehearsal>) -> Result<(), VaultError> {
    let key = proof_key()?;
    let Some(mut held) = core.vault.read::<Proof>(&key).await?.filter(|held| held.value.backup.id == backup) else { return Ok(()) };
    held.value.backup.drill = drill.or(held.value.backup.drill.take());
    held.value.backup.rehearsal = rehearsal.or(held.value.backup.rehearsal.take());
    let batch = core.vault.batch().require(vault::unchanged(&key, Some(&held))).put(key, vault::json(&held.value), None);
    core.vault.commit(batch).await.map(drop)
}

/// The upgrade that ended last: a cluster that takes releases by itself does not take that one again.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) target: Version,
    /// It did not come to stay.
    pub(crate) back: bool,
    pub(crate) at: Time,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

fn ended_key() -> Result<Key, store::BadKey> {
    Key::new(["internal", "upgrade", "ended"])
}

pub(crate) async fn note_end(core: &Core, ended: &Ended) -> Result<(), VaultError> {
    core.vault.commit(core.vault.batch().put(ended_key()?, vault::json(ended), None)).await.map(drop)
}

pub(crate) async fn ended(core: &Core) -> Result<Option<Ended>, VaultError> {
    Ok(core.vault.read::<Ended>(&ended_key()?).await?.map(|held| held.value))
}

/// Somebody mended what had failed: users that did not get through try again, and these members are told again as if it were the second
/// time, which makes a host forget that the release did not work there.
pub(crate) async fn forgive(core: &Core, members: &[ResourceName]) -> Result<(), VaultError> {
    let book = Book::read(core).await?;
    let failed = book.walks.iter().filter(|(_, walk)| walk.failed.is_some()).map(|(member, _)| member);
    for chunk in failed.collect::<Vec<_>>().chunks(CHUNK) {
        let mut batch = core.vault.batch();
        for member in chunk {
            batch = batch.delete(Key::new(["internal", "upgrade", "walk", member])?);
        }
        core.vault.commit(batch).await?;
    }
    let again = book.told.into_iter().filter_map(|(id, told)| {
        let member = ResourceName::new(&id).ok()?;
        members.contains(&member).then_some((member, Told { attempts: 1, ..told }))
    });
    tell(core, &again.collect::<Vec<_>>()).await
}

/// Forgets a proof that failed, so that it is tried again.
pub(crate) async fn retry(core: &Core) -> Result<(), VaultError> {
    let key = proof_key()?;
    let Some(mut held) = core.vault.read::<Proof>(&key).await? else { return Ok(()) };
    let backup = &mut held.value.backup;
    if backup.failed.is_some() {
        return core.vault.commit(core.vault.batch().require(vault::unchanged(&key, Some(&held))).delete(key)).await.map(drop);
    }
    backup.drill = backup.drill.take().filter(|drill| drill.failed.is_none());
    backup.rehearsal = backup.rehearsal.take().filter(|rehearsal| rehearsal.failed.is_none() && rehearsal.bad_rows.is_empty());
    let batch = core.vault.batch().require(vault::unchanged(&key, Some(&held))).put(key, vault::json(&held.value), None);
    core.vault.commit(batch).await.map(drop)
}

/// Changes the list of waivers; those that have lapsed are left out.
pub(crate) async fn waive(core: &Core, edit: impl Fn(&mut Vec<Waiver>)) -> Result<(), Fault> {
    let key = waivers_key().map_err(VaultError::from)?;
    for _ in 0..8 {
        let held = core.vault.read::<Waivers>(&key).await?;
        let mut next = held.as_ref().map(|held| held.value.clone()).unwrap_or_default();
        next.waivers.retain(|waiver| waiver.until > core.now());
        edit(&mut next.waivers);
        if next.waivers.len() > MAX_WAIVERS {
            return Err(crate::core::malformed(format!("more than {MAX_WAIVERS} waivers")));
        }
        let batch = core.vault.batch().require(vault::unchanged(&key, held.as_ref())).put(key.clone(), vault::json(&next), None);
        if core.vault.commit(batch).await? {
            return Ok(());
        }
    }
    Err(crate::windows::contended())
}
