//! Who signed a backup: an Ed25519 key of the cluster, named by its fingerprint as OpenSSH prints it.
//!
//! The signature covers every byte of the file before it. A file carries the key it was signed with, which proves that it
//! is whole, not that it is yours: only [`Trust::Pinned`] does. [`Trust::Any`] is for looking at a file, never for restoring
//! one unseen. The signer is a trait, so that the private key stays where it is kept.

use crate::format::{SEAL_LABEL, SIGNATURE};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use data_encoding::BASE64_NOPAD;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The algorithm's name in SSH, part of what a fingerprint is made over.
const SSH_NAME: &[u8] = b"ssh-ed25519";

/// Why no signature was made.
#[derive(Debug, thiserror::Error)]
#[error("the backup could not be signed: {0}")]
pub struct SignError(pub String);

/// Signs with Ed25519 (RFC 8032, the plain form).
pub trait Signer: Send {
    /// The public key that goes into the file.
    fn public_key(&self) -> SignerKey;
    /// The signature over exactly these bytes; they begin with `lockgate backup v1 seal`, so no other signature of the key can be one.
    fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE], SignError>;
}

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignerKey(crate::Digest);

impl SignerKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(crate::hex::Hex(bytes))
    }
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0.0
    }
    /// As `ssh-keygen -l` prints it for the same key.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut blob = Vec::new();
        for part in [SSH_NAME, self.bytes().as_slice()] {
            blob.extend(u32::try_from(part.len()).unwrap_or(0).to_be_bytes());
            blob.extend(part);
        }
        Fingerprint(format!("SHA256:{}", BASE64_NOPAD.encode(digest(&SHA256, &blob).as_ref())))
    }
    /// Whether that is this key's signature over the seal of a file with this chain value.
    pub(crate) fn sealed(&self, chain: &[u8; 32], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.bytes()).verify(&seal_message(chain), signature).is_ok()
    }
}

/// What is signed: the label, and the digest of everything before.
pub(crate) fn seal_message(chain: &[u8; 32]) -> Vec<u8> {
    [SEAL_LABEL, chain].concat()
}

/// `SHA256:` and 43 characters of base64.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Fingerprint(String);

/// A text that is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a fingerprint; it looks like SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU")]
pub struct BadFingerprint(String);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::str::FromStr for Fingerprint {
    type Err = BadFingerprint;
    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let text = text.trim();
        let digest =
            text.strip_prefix("SHA256:").map(|tail| tail.trim_end_matches('=')).and_then(|tail| BASE64_NOPAD.decode(tail.as_bytes()).ok());
        match digest {
            Some(digest) if digest.len() == 32 => Ok(Self(format!("SHA256:{}", BASE64_NOPAD.encode(&digest)))),
            _ => Err(BadFingerprint(text.chars().take(60).flat_map(char::escape_default).collect())),
        }
    }
}

/// Whose signature is accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trust {
    /// One of these keys: what the cluster, or whoever restores, knows from elsewhere.
    Pinned(Vec<Fingerprint>),
    /// Whoever signed. Proves that the file is whole; show the fingerprint to a person.
    Any,
}

impl Trust {
    pub(crate) fn accepts(&self, key: &SignerKey) -> bool {
        match self {
            Self::Pinned(pins) => pins.contains(&key.fingerprint()),
            Self::Any => true,
        }
    }
}

/// A signer that has its seed at hand: for tests, tools, and keys that are stored as seeds.
pub struct SeedSigner(Ed25519KeyPair);

impl SeedSigner {
    /// From the 32 bytes of RFC 8032's private key.
    pub fn new(seed: &[u8; 32]) -> Result<Self, SignError> {
        Ed25519KeyPair::from_seed_unchecked(seed).map(Self).map_err(|error| SignError(error.to_string()))
    }
}
impl Signer for SeedSigner {
    fn public_key(&self) -> SignerKey {
        // The library's public key is 32 bytes, always.
        SignerKey::new(self.0.public_key().as_ref().try_into().unwrap_or_default())
    }
    fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE], SignError> {
        let signature = self.0.try_sign(message).map_err(|error| SignError(error.to_string()))?;
        signature.as_ref().try_into().map_err(|_| SignError("a signature of the wrong length".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_what_ssh_keygen_prints() {
        // RFC 8032, section 7.1, test 1; the fingerprint is from `ssh-keygen -lf`.
        let seed = data_encoding::HEXLOWER.decode(b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let signer = SeedSigner::new(&seed.try_into().unwrap()).unwrap();
        assert_eq!(signer.public_key().fingerprint().to_string(), "SHA256:bbXpuKG6zhzdmnxq256TlqzFBzRl2f6OOg722cYNbU8");
    }

    #[test]
    fn fingerprints_read_with_and_without_padding_and_nothing_else() {
        let text = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";
        assert_eq!(text.parse::<Fingerprint>().unwrap().to_string(), text);
        assert_eq!(format!(" {text}= ").parse::<Fingerprint>().unwrap().to_string(), text);
        for bad in ["", "SHA256:", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU", "MD5:00", "SHA256:47DEQpj8"] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }
}
