//! Why a backup was refused, or not written: precise, each with its stable code and a cure.
//!
//! A reader tells apart what an operator does different things about: another file, a newer format, a broken transfer, a
//! mixed-up file, a stranger's signature, the wrong key. All are refusals: nothing was written to any target before.

use crate::record::BadRecord;
use crate::sign::{Fingerprint, SignError};
use std::fmt;
use std::io;
use types::{Code, Public};

/// Which part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Header,
    /// By its place in the file, from 0.
    Chunk(u64),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Chunk(number) => write!(f, "chunk {number}"),
        }
    }
}

/// Why a file is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the file is not a backup of Lockgate")]
    NotABackup,
    #[error("the backup needs {needs}, which this release does not know{}", by(written_by))]
    Newer { needs: String, written_by: Option<types::Version> },
    #[error("the backup is cut off at byte {at}")]
    Truncated { at: u64 },
    #[error("{0} of the backup is damaged")]
    Damaged(Part),
    #[error("chunk {found} of the backup stands where chunk {expected} belongs")]
    OutOfOrder { expected: u64, found: u64 },
    #[error("chunk {0} comes from another backup")]
    Spliced(u64),
    #[error("the backup goes on after its end at byte {at}")]
    Trailing { at: u64 },
    #[error("{what} of the backup has {size} bytes; the limit is {limit}")]
    TooLarge { what: String, size: u64, limit: u64 },
    /// Whole as far as digests tell, yet not what any release writes.
    #[error("{part} of the backup says what no release writes: {why}")]
    Malformed { part: Part, why: String },
    #[error("the signature of the backup does not hold")]
    BadSignature,
    /// The cluster's name is what the file claims.
    #[error("the backup says that it is of cluster \"{cluster}\", and is signed by {found}, not by {}", list(expected))]
    ForeignSigner { cluster: types::ClusterName, found: Fingerprint, expected: Vec<Fingerprint> },
    #[error("no key given opens the backup; it is encrypted to {}", list(wants))]
    WrongKey { wants: Vec<String> },
    #[error("the passphrase does not open the backup")]
    WrongPassphrase,
    #[error("the backup is encrypted to a passphrase, and none was given")]
    NeedsPassphrase,
    #[error("the backup is not encrypted, although a key or passphrase was given for it")]
    NotEncrypted,
    /// The second pass met other bytes than the first.
    #[error("the backup changed while it was read")]
    Changed,
    #[error("the backup could not be read: {0}")]
    Io(#[source] io::Error),
    #[error("the library of cryptography failed at {0}")]
    Crypto(&'static str),
}

fn by(version: &Option<types::Version>) -> String {
    version.as_ref().map(|version| format!("; Lockgate {version} wrote it")).unwrap_or_default()
}

fn list(items: &[impl fmt::Display]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    if items.is_empty() { "any key that is trusted".into() } else { items.join(" or ") }
}

impl ReadError {
    pub(crate) fn malformed(part: Part, why: impl fmt::Display) -> Self {
        Self::Malformed { part, why: why.to_string() }
    }

    pub fn code(&self) -> Code {
        match self {
            Self::NotABackup => Code::BackupForeign,
            Self::Newer { .. } => Code::BackupNewer,
            Self::Truncated { .. } => Code::BackupTruncated,
            Self::Damaged(_) | Self::OutOfOrder { .. } | Self::Spliced(_) | Self::Trailing { .. } => Code::BackupDamaged,
            Self::Malformed { .. } | Self::Changed => Code::BackupDamaged,
            Self::TooLarge { .. } => Code::BackupTooLarge,
            Self::BadSignature | Self::ForeignSigner { .. } => Code::BackupSigner,
            Self::WrongKey { .. } | Self::WrongPassphrase | Self::NeedsPassphrase | Self::NotEncrypted => Code::BackupKey,
            Self::Io(_) => Code::BackupIo,
            Self::Crypto(_) => Code::Internal,
        }
    }

    /// For the person who has the file in hand.
    pub fn public(&self) -> Public {
        let public = Public::new(self.code(), self.to_string());
        match self.hint() {
            Some(hint) => public.hint(hint),
            None => public,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotABackup => "a backup begins with the bytes 89 4c 47 42; was it copied as text, or packed once more?".into(),
            Self::Newer { written_by: Some(version), .. } => format!("use `tctl` of Lockgate {version} or newer"),
            Self::Newer { written_by: None, .. } => "use the newest `tctl`".into(),
            Self::Truncated { .. } => "copy the file again from where it was made, or use another backup".into(),
            Self::Damaged(_) | Self::OutOfOrder { .. } | Self::Spliced(_) | Self::Trailing { .. } | Self::Malformed { .. } => {
                "nothing was restored; copy the file again from where it was made, or use another backup".into()
            }
            Self::Changed => "nothing may be used of what was read; keep the file where nobody writes to it, and begin again".into(),
            Self::TooLarge { .. } => return None,
            Self::BadSignature => "somebody changed the file after it was signed; do not use it".into(),
            Self::ForeignSigner { .. } => {
                "it is of another cluster, or its authority was rotated since; compare with the fingerprint noted when it was made".into()
            }
            Self::WrongKey { .. } => "give the file with the AGE-SECRET-KEY-1 that belongs to one of these recipients".into(),
            Self::WrongPassphrase => "it is the one given when this backup was made".into(),
            Self::NeedsPassphrase => "give its passphrase instead of a key".into(),
            Self::NotEncrypted => "if you trust where it was kept, say that it may be unencrypted".into(),
            Self::Io(_) | Self::Crypto(_) => return None,
        })
    }
}

/// Why a backup was not written. What the sink holds then is not a backup, and reading it says so.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("a backup needs between 1 and {max} recipients, not {0}", max = crate::MAX_RECIPIENTS)]
    Recipients(usize),
    #[error("the passphrase is shorter than {min} characters", min = crate::format::MIN_PASSPHRASE)]
    WeakPassphrase,
    #[error("the cost of the passphrase is outside the bounds of the format")]
    Cost,
    #[error(transparent)]
    Record(#[from] BadRecord),
    #[error("a section of kind {kind} with {size} bytes: only kinds from 128 with at most {max} bytes may be added", max = crate::MAX_CHUNK)]
    Section { kind: u8, size: usize },
    #[error("the header has {0} bytes; the limit is {max}", max = crate::MAX_HEADER)]
    Header(usize),
    #[error("the backup could not be written: {0}")]
    Io(#[from] io::Error),
    /// An earlier write failed; nothing more is added to half a file.
    #[error("the backup was given up after an error")]
    GivenUp,
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("the library of cryptography failed at {0}")]
    Crypto(&'static str),
}

impl WriteError {
    pub fn code(&self) -> Code {
        match self {
            Self::Recipients(_) | Self::WeakPassphrase | Self::Cost => Code::Usage,
            Self::Record(_) | Self::Section { .. } | Self::Header(_) => Code::BackupTooLarge,
            Self::Io(_) | Self::GivenUp => Code::BackupIo,
            Self::Sign(_) => Code::BackupSigner,
            Self::Crypto(_) => Code::Internal,
        }
    }
    /// For the administrator who asked for the backup.
    pub fn public(&self) -> Public {
        Public::new(self.code(), self.to_string())
    }
}
