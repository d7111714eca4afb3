//! The keys of a file: one random file key, wrapped for each recipient or under a passphrase; chunk keys derived from it.
//!
//! The constructions are age's: X25519 with an ephemeral share, HKDF-SHA-256 and ChaCha20-Poly1305 around the file key; then
//! one ChaCha20-Poly1305 per chunk with the chunk's number as nonce (STREAM), the summary chunk as the end. Passphrases go
//! through Argon2id instead of scrypt. The primitives are those of aws-lc-rs. A commitment to the file key stands in the header, so
//! that one file cannot open to two contents under two passphrases. Other half: `docs/backup-format.md`, "Keys".

use crate::error::{ReadError, WriteError};
use crate::format::{INFO_CHUNKS, INFO_COMMIT, INFO_WRAP, MAX_LANES, MAX_MEMORY_KIB, MAX_PASSES, MAX_RECIPIENTS, MIN_PASSPHRASE};
use crate::header::BackupId;
use crate::hex::Hex;
use crate::keys::{Entropy, PrivateKey, Recipient};
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use serde::{Deserialize, Serialize};
use types::Secret;
use zeroize::Zeroizing;

/// How a new file is protected.
#[derive(Clone, Debug)]
pub enum Protection {
    /// Any one of these opens it.
    Recipients(Vec<Recipient>),
    Passphrase {
        passphrase: Secret,
        cost: Cost,
    },
    /// Everybody who has the file can read it, the private keys of the cluster's authorities too.
    Unencrypted,
}

/// What a reader has to open a file with.
#[derive(Clone, Debug)]
pub enum Unlock {
    Keys(Vec<PrivateKey>),
    Passphrase(Secret),
    /// Accepts only files that are not encrypted; with anything else such a file is refused.
    Unencrypted,
}

/// What one guess at a passphrase costs (Argon2id, version 0x13).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// 8 per lane to 262144.
    pub memory_kib: u32,
    /// 1 to 16.
    pub passes: u32,
    /// 1 to 8.
    pub lanes: u32,
}

impl Default for Cost {
    /// The second recommendation of RFC 9106, section 4: 64 MiB, 3 passes, 4 lanes.
    fn default() -> Self {
        Self { memory_kib: 64 << 10, passes: 3, lanes: 4 }
    }
}

impl Cost {
    fn params(self) -> Option<Params> {
        let within = self.memory_kib <= MAX_MEMORY_KIB && self.passes <= MAX_PASSES && self.lanes <= MAX_LANES;
        if within { Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).ok() } else { None }
    }
}

/// How a file says that it is protected; part of the header's JSON.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Encryption {
    None,
    X25519 {
        commit: Hex<32>,
        recipients: Vec<Stanza>,
    },
    Argon2id {
        commit: Hex<32>,
        salt: Hex<16>,
        #[serde(flatten)]
        cost: Cost,
        key: Hex<48>,
    },
    /// Of a newer release.
    #[serde(other)]
    Unknown,
}

/// The file key, for one recipient.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Stanza {
    /// [`Recipient::short_id`].
    pub(crate) id: String,
    /// The ephemeral public key.
    share: Hex<32>,
    /// The file key, encrypted.
    key: Hex<48>,
}

/// From which every other key of the file is derived.
#[derive(Clone)]
pub(crate) struct FileKey(Zeroizing<[u8; 32]>);

impl FileKey {
    fn derive(&self, file: &BackupId, info: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
        hkdf(&file.0.0, self.0.as_slice(), info)
    }
    fn matches(&self, file: &BackupId, commit: &Hex<32>) -> bool {
        self.derive(file, INFO_COMMIT).is_some_and(|ours| *ours == commit.0)
    }
    /// What encrypts and opens the chunks of this file.
    pub(crate) fn cipher(&self, file: &BackupId, header: [u8; 32]) -> Option<Cipher> {
        Some(Cipher { key: aead(self.derive(file, INFO_CHUNKS)?.as_slice())?, header })
    }
}

/// Makes a file key and wraps it as asked.
pub(crate) fn lock(protection: &Protection, file: &BackupId, entropy: Entropy<'_>) -> Result<(Encryption, Option<FileKey>), WriteError> {
    let mut bytes = Zeroizing::new([0; 32]);
    entropy(bytes.as_mut_slice());
    let key = FileKey(bytes);
    let commit = Hex(*key.derive(file, INFO_COMMIT).ok_or(WriteError::Crypto("deriving keys"))?);
    let encryption = match protection {
        Protection::Unencrypted => return Ok((Encryption::None, None)),
        Protection::Recipients(recipients) => {
            if !(1..=MAX_RECIPIENTS).contains(&recipients.len()) {
                return Err(WriteError::Recipients(recipients.len()));
            }
            let wrapped = recipients.iter().map(|recipient| wrap(&key, recipient, entropy)).collect::<Option<_>>();
            Encryption::X25519 { commit, recipients: wrapped.ok_or(WriteError::Crypto("encrypting to a recipient"))? }
        }
        Protection::Passphrase { passphrase, cost } => {
            if passphrase.expose().chars().count() < MIN_PASSPHRASE {
                return Err(WriteError::WeakPassphrase);
            }
            let mut salt = Hex([0; 16]);
            entropy(&mut salt.0);
            let under = stretch(passphrase, &salt, *cost).ok_or(WriteError::Cost)?;
            let key = enclose(&under, &key).ok_or(WriteError::Crypto("encrypting to a passphrase"))?;
            Encryption::Argon2id { commit, salt, cost: *cost, key }
        }
    };
    Ok((encryption, Some(key)))
}

/// Finds the file key; `None` for a file that is rightly not encrypted.
pub(crate) fn unlock(encryption: &Encryption, unlock: &Unlock, file: &BackupId) -> Result<Option<FileKey>, ReadError> {
    match (encryption, unlock) {
        (Encryption::None, Unlock::Unencrypted) => Ok(None),
        (Encryption::None, Unlock::Keys(_) | Unlock::Passphrase(_)) => Err(ReadError::NotEncrypted),
        (Encryption::X25519 { commit, recipients }, Unlock::Keys(keys)) => {
            let opened = keys.iter().filter_map(|key| Some((key, key.recipient()?)));
            let mut opened = opened.flat_map(|(key, public)| recipients.iter().filter_map(move |stanza| unwrap(stanza, key, &public)));
            opened.find(|key| key.matches(file, commit)).map(Some).ok_or_else(|| wrong_key(recipients))
        }
        (Encryption::X25519 { recipients, .. }, Unlock::Passphrase(_) | Unlock::Unencrypted) => Err(wrong_key(recipients)),
        (Encryption::Argon2id { commit, salt, cost, key }, Unlock::Passphrase(passphrase)) => {
            let under = stretch(passphrase, salt, *cost).ok_or_else(|| cost_refused(*cost))?;
            let opened = disclose(&under, key).filter(|key| key.matches(file, commit));
            opened.map(Some).ok_or(ReadError::WrongPassphrase)
        }
        (Encryption::Argon2id { .. }, Unlock::Keys(_) | Unlock::Unencrypted) => Err(ReadError::NeedsPassphrase),
        // The header was refused before.
        (Encryption::Unknown, _) => Err(ReadError::Crypto("an unknown kind of encryption")),
    }
}

fn wrong_key(recipients: &[Stanza]) -> ReadError {
    ReadError::WrongKey { wants: recipients.iter().map(|stanza| stanza.id.clone()).collect() }
}

fn cost_refused(cost: Cost) -> ReadError {
    let size = u64::from(cost.memory_kib) << 10;
    ReadError::TooLarge { what: "the cost of the passphrase".into(), size, limit: u64::from(MAX_MEMORY_KIB) << 10 }
}

fn wrap(key: &FileKey, recipient: &Recipient, entropy: Entropy<'_>) -> Option<Stanza> {
    let ephemeral = PrivateKey::generate(entropy);
    let share = *ephemeral.recipient()?.bytes();
    let salt = [share, *recipient.bytes()].concat();
    let under = ephemeral.agree(recipient.bytes(), |shared| hkdf(&salt, shared, INFO_WRAP))??;
    Some(Stanza { id: recipient.short_id(), share: Hex(share), key: enclose(&under, key)? })
}

fn unwrap(stanza: &Stanza, private: &PrivateKey, public: &Recipient) -> Option<FileKey> {
    let salt = [stanza.share.0, *public.bytes()].concat();
    let under = private.agree(&stanza.share.0, |shared| hkdf(&salt, shared, INFO_WRAP))??;
    disclose(&under, &stanza.key)
}

/// Encrypts the file key under a key that is used for nothing else, hence the nonce of zeros.
fn enclose(under: &Zeroizing<[u8; 32]>, key: &FileKey) -> Option<Hex<48>> {
    let mut body = Zeroizing::new(key.0.to_vec());
    let tag = aead(under.as_slice())?.seal_in_place_separate_tag(nonce(0), Aad::empty(), body.as_mut_slice()).ok()?;
    [body.as_slice(), tag.as_ref()].concat().try_into().ok().map(Hex)
}

fn disclose(under: &Zeroizing<[u8; 32]>, key: &Hex<48>) -> Option<FileKey> {
    let mut body = Zeroizing::new(key.0);
    let opened = aead(under.as_slice())?.open_in_place(nonce(0), Aad::empty(), body.as_mut_slice()).ok()?;
    let opened: &[u8] = opened;
    opened.try_into().ok().map(|bytes| FileKey(Zeroizing::new(bytes)))
}

fn stretch(passphrase: &Secret, salt: &Hex<16>, cost: Cost) -> Option<Zeroizing<[u8; 32]>> {
    let mut out = Zeroizing::new([0; 32]);
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, cost.params()?);
    argon.hash_password_into(passphrase.expose().as_bytes(), &salt.0, out.as_mut_slice()).ok()?;
    Some(out)
}

struct Bytes32;
impl KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

fn hkdf(salt: &[u8], secret: &[u8], info: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let mut out = Zeroizing::new([0; 32]);
    Salt::new(HKDF_SHA256, salt).extract(secret).expand(&[info], Bytes32).ok()?.fill(out.as_mut_slice()).ok()?;
    Some(out)
}

fn aead(key: &[u8]) -> Option<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(LessSafeKey::new)
}

/// Four zeros and the number, big-endian.
fn nonce(number: u64) -> Nonce {
    let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
    Nonce::assume_unique_for_key([0, 0, 0, 0, a, b, c, d, e, f, g, h])
}

/// Encrypts and opens chunks. Bound to the header, to the chunk's own head and to its number.
pub(crate) struct Cipher {
    key: LessSafeKey,
    header: [u8; 32],
}

impl Cipher {
    /// Encrypts in place and appends the tag.
    pub(crate) fn seal(&self, number: u64, head: &[u8], payload: &mut Vec<u8>) -> Option<()> {
        let bound = Aad::from([self.header.as_slice(), head].concat());
        self.key.seal_in_place_append_tag(nonce(number), bound, payload).ok()
    }
    /// Opens in place and takes the tag off.
    pub(crate) fn open(&self, number: u64, head: &[u8], payload: &mut Vec<u8>) -> Option<()> {
        let bound = Aad::from([self.header.as_slice(), head].concat());
        let length = self.key.open_in_place(nonce(number), bound, payload).ok()?.len();
        payload.truncate(length);
        Some(())
    }
}
