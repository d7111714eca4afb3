//! The portable backup file: a stream of `{key, value}` records, chunked, compressed, encrypted, signed.
//!
//! Knows no store, socket, clock, file or chance: the caller brings bytes, the time and the random numbers, so that one file
//! format serves every driver. [`Writer`] writes; [`inspect`] reads what needs no key, [`check`] proves a file whole and
//! signed without a key, [`verify`] proves everything and only then hands out the records, in a second pass that proves
//! them again. All of it in constant memory: one chunk at a time, every length bounded before anything is allocated.
//! The bytes are described in `docs/backup-format.md`, of which `format` is the code; a test compares the two.
//! Who calls: `auth` (create, restore, drill) and `cli` (verify, inspect). What the keys and values mean is theirs.

mod bech32;
mod chunk;
mod crypt;
mod error;
mod format;
mod header;
mod hex;
mod keys;
mod read;
mod record;
mod sign;
mod write;

pub use crypt::{Cost, Protection, Unlock};
pub use error::{Part, ReadError, WriteError};
pub use format::{CHUNK, FORMAT, MAX_CHUNK, MAX_HEADER, MAX_KEY, MAX_KINDS, MAX_RECIPIENTS, MAX_VALUE, OPTIONAL};
pub use header::{AuditPosition, BackupId, Head, Lock, Manifest, Origin};
pub use keys::{BadAgeKey, Entropy, PrivateKey, Recipient};
pub use read::{Checked, Records, Verified, check, inspect, verify, verify_each};
pub use record::{BadRecord, Record, Summary, Tally};
pub use sign::{BadFingerprint, Fingerprint, SeedSigner, SignError, Signer, SignerKey, Trust};
pub use write::{Writer, Written};

/// SHA-256 of what is named beside it.
pub type Digest = hex::Hex<32>;
