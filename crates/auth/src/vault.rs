//! What the store holds and the API never serves: password hashes, second factors, failed attempts, invitations,
//! authority keys. Keys begin with `internal/`; documents begin with `doc/`, so no request can name these.
//!
//! Every write is conditional on what was read, and fenced like a document's.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::sync::Arc;
use store::{Batch, CommitError, Condition, Key, Store, StoreError, WriterEpoch};
use types::{Extra, Time, UserName};

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

/// Access to the internal keys.
#[derive(Clone)]
pub(crate) struct Vault {
    store: Arc<dyn Store>,
    writer: WriterEpoch,
}

pub(crate) fn account_key(user: &UserName) -> Result<Key, store::BadKey> {
    Key::new(["internal", "account", user.as_str()])
}
pub(crate) fn attempts_key(user: &UserName) -> Result<Key, store::BadKey> {
    Key::new(["internal", "attempts", user.as_str()])
}
pub(crate) fn invite_key(hash: &str) -> Result<Key, store::BadKey> {
    Key::new(["internal", "invite", hash])
}
pub(crate) fn authority_key(kind: crate::ca::CaKind) -> Result<Key, store::BadKey> {
    Key::new(["internal", "ca", kind.as_str()])
}
pub(crate) fn anchor_key() -> Result<Key, store::BadKey> {
    Key::new(["internal", "audit", "anchor"])
}

impl Vault {
    pub(crate) fn new(store: Arc<dyn Store>, writer: WriterEpoch) -> Self {
        Self { store, writer }
    }

    pub(crate) async fn read<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<Held<T>>, VaultError> {
        let Some(item) = self.store.get(key).await? else { return Ok(None) };
        let value = serde_json::from_slice(&item.value).map_err(|_| VaultError::Unreadable(key.clone()))?;
        Ok(Some(Held { value, revision: item.revision, expires: item.expires }))
    }

    pub(crate) fn batch(&self) -> Batch {
        Batch::new(Some(self.writer))
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
