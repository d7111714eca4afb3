//! The front of a file: magic, format, header. Readable without a key, authenticated by the signature at the end.
//!
//! The first fourteen bytes, the digest behind the header and the header's `product` are the same in every format there will
//! ever be, so that an older release can say which newer one reads a file. Unknown keys are ignored; what a
//! reader must understand is named in `requires`. The rest of what is known about a backup is in the [`Manifest`], the first chunk,
//! which is encrypted like the records.

use crate::chunk::Source;
use crate::crypt::{Encryption, Protection};
use crate::error::{Part, ReadError, WriteError};
use crate::format::{FORMAT, MAGIC, MAX_HEADER, MAX_RECIPIENTS};
use crate::hex::Hex;
use crate::keys::Entropy;
use crate::sign::SignerKey;
use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use std::io::Read;
use types::{ClusterName, Extra, Time, Version, control::ClusterVersion, name::ClusterId};

/// A file's random number: names the backup, and ties its chunks together. Sixteen bytes, written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BackupId(pub(crate) Hex<16>);

impl std::fmt::Display for BackupId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Where and when a backup is made; public in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    pub cluster: ClusterName,
    pub cluster_id: ClusterId,
    /// The release that writes.
    pub product: Version,
    pub created: Time,
}

/// What a file says about itself without a key. True only once [`crate::check`] or [`crate::verify`] has passed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    pub format: u16,
    pub id: BackupId,
    pub cluster: ClusterName,
    pub cluster_id: ClusterId,
    pub product: Version,
    pub created: Time,
    pub signer: SignerKey,
    pub lock: Lock,
}

/// What opens a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lock {
    Unencrypted,
    /// The private key of one of these; see [`crate::Recipient::short_id`].
    Recipients(Vec<String>),
    Passphrase,
}

/// What a backup says about the store it was made of; readable with the key only.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// The store's revision that the records show.
    pub revision: u64,
    /// The control record's epoch; a restore goes on above it.
    pub epoch: u64,
    /// The level of stored formats in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_version: Option<ClusterVersion>,
    /// The driver that was read: `sqlite`, `etcd`, `postgres`, `memory`.
    pub driver: String,
    /// How far the audit log went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditPosition>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// An entry of the audit log and its place in the hash chain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuditPosition {
    pub index: u64,
    /// Of that entry, in hexadecimal.
    pub hash: String,
}

/// The header's JSON.
#[derive(Serialize, Deserialize)]
struct Text {
    product: Version,
    cluster: ClusterName,
    cluster_id: ClusterId,
    created: Time,
    file: BackupId,
    signer: SignerKey,
    #[serde(default)]
    requires: Vec<String>,
    encryption: Encryption,
}

/// What of the header is the same in every format.
#[derive(Deserialize)]
struct Frozen {
    product: Version,
}

/// A header that was read or written.
pub(crate) struct Front {
    pub(crate) head: Head,
    pub(crate) encryption: Encryption,
    /// SHA-256 of everything before it: the start of the chain.
    pub(crate) digest: [u8; 32],
}

/// Draws the file's number and keys, and makes the bytes of its front.
pub(crate) fn make(
    origin: &Origin,
    protection: &Protection,
    signer: SignerKey,
    entropy: Entropy<'_>,
) -> Result<(Vec<u8>, Front, Option<crate::crypt::FileKey>), WriteError> {
    let mut file = BackupId(Hex([0; 16]));
    entropy(&mut file.0.0);
    let (encryption, key) = crate::crypt::lock(protection, &file, entropy)?;
    let text = Text {
        product: origin.product.clone(),
        cluster: origin.cluster.clone(),
        cluster_id: origin.cluster_id,
        created: origin.created,
        file,
        signer,
        requires: Vec::new(),
        encryption,
    };
    let json = serde_json::to_vec(&text).map_err(std::io::Error::from)?;
    let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= MAX_HEADER).ok_or(WriteError::Header(json.len()))?;
    let mut bytes = [MAGIC.as_slice(), &FORMAT.to_be_bytes(), &length.to_be_bytes(), &json].concat();
    let digest = sha256(&bytes);
    bytes.extend(digest);
    let encryption = text.encryption.clone();
    let front = Front { head: head(text).map_err(|_| WriteError::Crypto("its own header"))?, encryption, digest };
    Ok((bytes, front, key))
}

/// Reads the front of a file.
pub(crate) fn read<R: Read>(source: &mut Source<R>) -> Result<Front, ReadError> {
    let mut magic = [0; MAGIC.len()];
    let got = source.fill(&mut magic)?;
    if !MAGIC.starts_with(magic.get(..got).unwrap_or_default()) {
        return Err(ReadError::NotABackup);
    }
    if got < MAGIC.len() {
        return Err(source.cut());
    }
    let format: [u8; 2] = source.array()?;
    let length: [u8; 4] = source.array()?;
    let json = source.bytes("the header", u64::from(u32::from_be_bytes(length)), MAX_HEADER)?;
    let claimed: [u8; 32] = source.array()?;
    let digest = sha256(&[magic.as_slice(), &format, &length, &json].concat());
    if digest != claimed {
        return Err(ReadError::Damaged(Part::Header));
    }
    let format = u16::from_be_bytes(format);
    if format != FORMAT {
        return Err(newer(format!("format {format} of backups"), &json));
    }
    let text: Text = serde_json::from_slice(&json).map_err(|error| ReadError::malformed(Part::Header, error))?;
    if let Some(feature) = text.requires.first() {
        return Err(newer(
            format!("the feature \"{}\"", feature.chars().take(60).flat_map(char::escape_default).collect::<String>()),
            &json,
        ));
    }
    if text.encryption == Encryption::Unknown {
        return Err(newer("another kind of encryption".into(), &json));
    }
    let encryption = text.encryption.clone();
    Ok(Front { head: head(text)?, encryption, digest })
}

fn newer(needs: String, json: &[u8]) -> ReadError {
    ReadError::Newer { needs, written_by: serde_json::from_slice::<Frozen>(json).ok().map(|frozen| frozen.product) }
}

fn head(text: Text) -> Result<Head, ReadError> {
    let lock = match text.encryption {
        Encryption::None | Encryption::Unknown => Lock::Unencrypted,
        Encryption::Argon2id { .. } => Lock::Passphrase,
        Encryption::X25519 { recipients, .. } => {
            let plain = |id: &String| id.len() <= 32 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
            let ids: Vec<String> = recipients.into_iter().map(|stanza| stanza.id).collect();
            if !(1..=MAX_RECIPIENTS).contains(&ids.len()) || !ids.iter().all(plain) {
                return Err(ReadError::malformed(Part::Header, "its list of recipients"));
            }
            Lock::Recipients(ids)
        }
    };
    let Text { product, cluster, cluster_id, created, file, signer, .. } = text;
    Ok(Head { format: FORMAT, id: file, cluster, cluster_id, product, created, signer, lock })
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().unwrap_or_default()
}
