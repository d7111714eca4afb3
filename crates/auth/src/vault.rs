//! What the store holds and the API never serves: password hashes, second factors, failed attempts, invitations,
//! authority keys. Keys begin with `internal/`; documents begin with `doc/`, so no request can name these.
//!
//! Every write is conditional on what was read, and fenced like a document's.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, sync::Arc};
use store::{Batch, CommitError, Condition, Documents, Key, Store, StoreError};
use types::{Extra, HostId, Time, UserName};

/// Why a secret record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    #[error("an internal record cannot be read: {0}")]
    Unreadable(Key),
    #[error(transparent)]
    Key(#[from] store::BadKey),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// A record with the revision it was read at.
#[derive(Debug, Clone)]
pub(crate) struct Held<T> {
    pub(crate) value: T,
    pub(crate) revision: u64,
    pub(crate) expires: Option<Time>,
}

/// A user's proofs. Never printed: no `Debug`.
#[derive(Clone, Serialize, Deserialize, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
pub(crate) struct Account {
    /// PHC string of Argon2id.
    pub(crate) password: String,
    /// Base32; absent when no second factor was enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) otp: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_otp_step: Option<u64>,
    /// Where the user logged in lately, by the source's fingerprint.
    #[zeroize(skip)]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) sources: BTreeMap<String, Time>,
    #[zeroize(skip)]
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

/// An invitation, found by the hash of its secret.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Invite {
    pub(crate) user: UserName,
    /// Base32; made once, so that opening the page twice shows the same code.
    pub(crate) otp: String,
    pub(crate) created_by: String,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

/// What there is under `internal/`. A backup carries all of it; the tests compare this list with the sources and with a backup.
pub const FAMILIES: &[&str] = &["account", "attempts", "audit", "auth", "backup", "ca", "host", "invite", "name", "recordings", "upgrade"];

/// Access to the internal keys.
#[derive(Clone)]
pub(crate) struct Vault {
    store: Arc<dyn Store>,
    documents: Documents,
}

pub(crate) fn account_key(user: &UserName) -> Result<Key, store::BadKey> {
    Key::new(["internal", "account", user.as_str()])
}
/// Failures from everywhere.
pub(crate) fn attempts_key(user: &UserName) -> Result<Key, store::BadKey> {
    Key::new(["internal", "attempts", user.as_str()])
}
/// Failures from one source, by its fingerprint.
pub(crate) fn attempts_here_key(user: &UserName, source: &str) -> Result<Key, store::BadKey> {
    Key::new(["internal", "attempts", user.as_str(), source])
}
/// Forgets all failures of a name.
pub(crate) fn forget_attempts(batch: Batch, user: &UserName) -> Result<Batch, store::BadKey> {
    let dir = Key::dir(["internal", "attempts", user.as_str()])?;
    let end = dir.prefix_end();
    Ok(batch.delete(attempts_key(user)?).delete_range(dir, end))
}
pub(crate) fn invite_key(hash: &str) -> Result<Key, store::BadKey> {
    Key::new(["internal", "invite", hash])
}
pub(crate) fn authority_key(kind: crate::ca::CaKind) -> Result<Key, store::BadKey> {
    Key::new(["internal", "ca", kind.as_str()])
}
/// The end of an audit log that no Auth Service has claimed yet: what a restore leaves behind ([`crate::instance`]).
pub(crate) fn anchor_key() -> Result<Key, store::BadKey> {
    Key::new(["internal", "audit", "anchor"])
}
/// Where that audit log begins, after a restore.
pub(crate) fn origin_key() -> Result<Key, store::BadKey> {
    Key::new(["internal", "audit", "origin"])
}
/// The end of this Auth Service's own audit log.
pub(crate) fn own_anchor_key(host: HostId) -> Result<Key, store::BadKey> {
    Key::new(["internal", "audit", "anchor", &host.to_string()])
}
/// The ends of all Auth Services' logs.
pub(crate) fn anchors_dir() -> Result<Key, store::BadKey> {
    Key::dir(["internal", "audit", "anchor"])
}
/// The beginnings of those that continue another.
pub(crate) fn origins_dir() -> Result<Key, store::BadKey> {
    Key::dir(["internal", "audit", "origin"])
}
/// Where this Auth Service's own audit log begins, when it continues another.
pub(crate) fn own_origin_key(host: HostId) -> Result<Key, store::BadKey> {
    Key::new(["internal", "audit", "origin", &host.to_string()])
}

impl Vault {
    /// Writes as the same writer as those documents.
    pub(crate) fn new(documents: Documents) -> Self {
        Self::over(documents.store().clone(), documents)
    }

    /// As that writer, in that store: for what no migration may come between.
    pub(crate) fn over(store: Arc<dyn Store>, documents: Documents) -> Self {
        Self { store, documents }
    }

    pub(crate) async fn read<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<Held<T>>, VaultError> {
        let Some(item) = self.store.get(key).await? else { return Ok(None) };
        let value = serde_json::from_slice(&item.value).map_err(|_| VaultError::Unreadable(key.clone()))?;
        Ok(Some(Held { value, revision: item.revision, expires: item.expires }))
    }

    /// What lies directly in a directory, by the last part of its key.
    pub(crate) async fn list<T: DeserializeOwned>(&self, dir: &Key) -> Result<Vec<(String, T)>, VaultError> {
        let items = store::scan(self.store.as_ref(), dir, &dir.prefix_end()).await?;
        let read = |item: store::Item| {
            let name = String::from_utf8_lossy(item.key.as_bytes().get(dir.as_bytes().len()..).unwrap_or_default()).into_owned();
            serde_json::from_slice(&item.value).map(|value| (name, value)).map_err(|_| VaultError::Unreadable(item.key))
        };
        items.into_iter().map(read).collect()
    }

    pub(crate) fn batch(&self) -> Batch {
        Batch::new(Some(self.documents.writer()))
    }

    /// `Ok(false)`: a condition did not hold, nothing was written.
    pub(crate) async fn commit(&self, batch: Batch) -> Result<bool, VaultError> {
        match self.store.commit(batch).await {
            Ok(_) => Ok(true),
            Err(CommitError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Invitations of that user, by key.
    pub(crate) async fn invites_of(&self, user: &UserName) -> Result<Vec<Key>, VaultError> {
        let dir = Key::dir(["internal", "invite"])?;
        let items = store::scan(self.store.as_ref(), &dir, &dir.prefix_end()).await?;
        let of_user = |item: &store::Item| serde_json::from_slice::<Invite>(&item.value).is_ok_and(|invite| invite.user == *user);
        Ok(items.into_iter().filter(of_user).map(|item| item.key).collect())
    }
}

/// The condition that a record is still as it was read; `None` means that it was absent.
pub(crate) fn unchanged<T>(key: &Key, held: Option<&Held<T>>) -> Condition {
    match held {
        Some(held) => Condition::RevisionIs(key.clone(), held.revision),
        None => Condition::Absent(key.clone()),
    }
}

/// JSON of a record.
pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // These types serialise without failing; an empty value is unreadable to every reader.
    serde_json::to_vec(value).unwrap_or_default()
}
