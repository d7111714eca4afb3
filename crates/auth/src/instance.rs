//! What belongs to one Auth Service among several on one store: its audit log's position, and the address by which it is known.
//!
//! Each Auth Service writes an audit log of its own, on its own disk, with its own hash chain, and notes that chain's end in the
//! store under its host id: the log of one cannot be cut, or exchanged for another's, without the store knowing better. What
//! a restore leaves behind belongs to nobody yet: the first Auth Service that starts claims it, in one conditional batch, and
//! its log goes on behind the position that the backup knew; the others begin theirs at their birth. Caller: `build`.

use crate::{
    audit,
    vault::{self, Vault, VaultError},
};
use std::{fs, net::SocketAddr, path::Path};
use types::{HostId, NodeName};

/// Lost races after which an Auth Service starts without what another has claimed.
const MAX_RACES: usize = 16;

/// What the store knows of this Auth Service's audit log in `dir`.
pub(crate) async fn audit_known(vault: &Vault, host: HostId, dir: &Path) -> Result<audit::Known, VaultError> {
    let (anchor_key, origin_key) = (vault::own_anchor_key(host)?, vault::own_origin_key(host)?);
    let (left_anchor, left_origin) = (vault::anchor_key()?, vault::origin_key()?);
    for _ in 0..MAX_RACES {
        let (anchor, origin) = (vault.read::<audit::Anchor>(&anchor_key).await?, vault.read::<audit::Origin>(&origin_key).await?);
        if anchor.is_some() || origin.is_some() {
            return Ok(audit::Known { anchor: anchor.map(|held| held.value), origin: origin.map(|held| held.value) });
        }
        let (anchor, origin) = (vault.read::<audit::Anchor>(&left_anchor).await?, vault.read::<audit::Origin>(&left_origin).await?);
        // Without an origin it is the end of a log that lies somewhere: only who has a log can be the one.
        if origin.is_none() && (anchor.is_none() || !has_log(dir)) {
            return Ok(audit::Known::default());
        }
        let mut batch = vault
            .batch()
            .require(vault::unchanged(&left_anchor, anchor.as_ref()))
            .require(vault::unchanged(&left_origin, origin.as_ref()))
            .delete(left_anchor.clone())
            .delete(left_origin.clone());
        if let Some(held) = &anchor {
            batch = batch.put(anchor_key.clone(), vault::json(&held.value), None);
        }
        if let Some(held) = &origin {
            batch = batch.put(origin_key.clone(), vault::json(&held.value), None);
        }
        if vault.commit(batch).await? {
            return Ok(audit::Known { anchor: anchor.map(|held| held.value), origin: origin.map(|held| held.value) });
        }
    }
    Ok(audit::Known::default())
}

/// What the store knows of every Auth Service's log.
pub(crate) async fn all_known(vault: &Vault) -> Result<audit::AllKnown, VaultError> {
    let mut all = audit::AllKnown::new();
    for (name, anchor) in vault.list::<audit::Anchor>(&vault::anchors_dir()?).await? {
        if let Ok(host) = name.parse::<HostId>() {
            all.entry(host).or_default().anchor = Some(anchor);
        }
    }
    for (name, origin) in vault.list::<audit::Origin>(&vault::origins_dir()?).await? {
        if let Ok(host) = name.parse::<HostId>() {
            all.entry(host).or_default().origin = Some(origin);
        }
    }
    Ok(all)
}

fn has_log(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// `host:port` by which others reach this Auth Service: as configured, else where it listens.
pub(crate) fn address(configured: Option<&str>, name: &NodeName, listening: SocketAddr) -> String {
    match configured {
        Some(address) if address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => address.to_owned(),
        Some(host) => format!("{host}:{}", listening.port()),
        None if listening.ip().is_unspecified() => format!("{name}:{}", listening.port()),
        None => listening.to_string(),
    }
}
