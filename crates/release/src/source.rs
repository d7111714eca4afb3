//! Where a repository's files come from: a folder here, a Proxy's mirror in `cli`.
//!
//! A source is not believed: it may be slow, stale, or somebody else's. Names are one part of a path, and nothing is read without
//! a bound.

use std::{
    fmt::Debug,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};
use types::{Sha256, Version};

/// The most bytes of one metadata file.
pub(crate) const MAX_METADATA: u64 = 8 << 20;

/// Why a file did not come.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("there is no {0}")]
    Missing(String),
    #[error("{0} is larger than {MAX_METADATA} bytes")]
    TooLong(String),
    /// Passes by itself.
    #[error("{0}")]
    Unreachable(String),
}

/// Gives metadata files by name.
#[tough::async_trait]
pub trait Source: Debug + Send + Sync {
    async fn metadata(&self, name: &str) -> Result<Vec<u8>, SourceError>;
}

/// A mirror on this disk: `metadata/`, and `<version>/` with the files of each release.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    pub(crate) fn metadata_dir(&self) -> PathBuf {
        self.0.join("metadata")
    }

    /// The archive of that name, if it is there with that digest.
    pub fn archive(&self, version: &Version, file: &str, wanted: &Sha256) -> Result<PathBuf, SourceError> {
        let path = self.0.join(version.to_string()).join(file);
        let missing = || SourceError::Missing(path.display().to_string());
        if file.contains(['/', '\\']) || !path.is_file() {
            return Err(missing());
        }
        match crate::digest_of(&path) {
            Ok(digest) if digest == *wanted => Ok(path),
            Ok(_) => Err(SourceError::Unreachable(format!("{} is not what the metadata says", path.display()))),
            Err(error) => Err(SourceError::Unreachable(format!("{}: {error}", path.display()))),
        }
    }
}

#[tough::async_trait]
impl Source for Folder {
    async fn metadata(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        read(&self.metadata_dir().join(name), name)
    }
}

fn read(path: &Path, name: &str) -> Result<Vec<u8>, SourceError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => SourceError::Missing(name.to_owned()),
        _ => SourceError::Unreachable(format!("{}: {error}", path.display())),
    };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_METADATA + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > MAX_METADATA { Err(SourceError::TooLong(name.to_owned())) } else { Ok(bytes) }
}
