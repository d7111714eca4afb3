//! Believing a repository: TUF's client workflow, by the crate `tough`, over any [`Source`].
//!
//! A host begins with a root file that somebody gave it and goes from root to root, each signed by enough keys of the one before.
//! What it believed last is kept in a directory; without it, older metadata could be played back. `tough` enforces thresholds,
//! expiry, versions that never go back, and that timestamp, snapshot and targets belong together; here its faults become one line
//! each, and those that pass by themselves are told from those that somebody has to look at.

use crate::{
    offer::Custom,
    source::{MAX_METADATA, Source, SourceError},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tough::{
    ExpirationEnforcement, Limits, RepositoryLoader, Transport, TransportError, TransportErrorKind, TransportStream, error::Error as Tuf,
    schema::RoleType,
};
use types::{Code, Public, Sha256, Time};
use upgrade::updater::Offer;
use url::Url;

/// No link of a chain of roots is taken beyond so many at once.
const MAX_ROOTS: u64 = 64;

/// Why nothing is believed.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    #[error("the {0} metadata is not signed by as many of its keys as it must be")]
    Threshold(String),
    #[error("the {0} metadata has expired")]
    Expired(String),
    #[error("the metadata is older than what was seen before: {0}")]
    Older(String),
    #[error("the parts of the metadata do not belong together: {0}")]
    Mixed(String),
    #[error("the metadata has more bytes than it may: {0}")]
    TooLong(String),
    #[error("the metadata cannot be read: {0}")]
    Malformed(String),
    #[error("the root file {path}: {source}")]
    Root { path: PathBuf, source: io::Error },
    #[error("the directory {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("this host's clock went back: {0}")]
    Clock(String),
    #[error("the metadata could not be fetched: {0}")]
    Unreachable(String),
}

impl Untrusted {
    /// Nothing is wrong with the metadata: try again later.
    pub const fn passes(&self) -> bool {
        matches!(self, Self::Clock(_) | Self::Unreachable(_) | Self::Directory { .. })
    }

    pub fn public(&self) -> Public {
        let public = |code| Public::new(code, self.to_string());
        match self {
            Self::Expired(_) => public(Code::UpdateUntrusted).hint("whoever publishes must sign it anew: lockgate release sign"),
            Self::Threshold(_) | Self::Older(_) | Self::Mixed(_) | Self::TooLong(_) | Self::Malformed(_) => {
                public(Code::UpdateUntrusted).hint("do not trust this mirror until somebody has looked at it")
            }
            Self::Root { .. } => public(Code::Config).hint("name the vendor's root file: update.root, or --root"),
            Self::Directory { .. } => public(Code::Usage),
            Self::Clock(_) => public(Code::Unavailable).hint("wait until the clock is set"),
            Self::Unreachable(_) => public(Code::Unreachable).hint("try again later"),
        }
    }
}

/// What is believed from the beginning, and what was believed last.
#[derive(Clone, Debug)]
pub struct Trust {
    root: Vec<u8>,
    dir: PathBuf,
}

impl Trust {
    /// The root file that was given, and the directory to remember in. A given file that changed since is somebody's word that trust
    /// begins anew with it.
    pub fn open(given: &Path, dir: &Path) -> Result<Self, Untrusted> {
        let root = fs::read(given).map_err(|source| Untrusted::Root { path: given.to_owned(), source })?;
        let failed = |source| Untrusted::Directory { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        let (anchor, last) = (dir.join("anchor.json"), dir.join("root.json"));
        if fs::read(&anchor).ok().as_ref() == Some(&root) {
            let root = fs::read(last).unwrap_or(root);
            return Ok(Self { root, dir: dir.to_owned() });
        }
        crate::versions::replace(&anchor, &root).map_err(failed)?;
        Ok(Self { root, dir: dir.to_owned() })
    }
}

/// What the vendor vouches for.
#[derive(Clone, Debug)]
pub struct Vouched {
    pub offers: Vec<Offer>,
    pub root_version: u64,
    /// How many signatures it took.
    pub threshold: u64,
    /// From then on nothing of it is believed.
    pub expires: Time,
}

/// Fetches and judges a repository's metadata.
pub async fn verify(trust: &Trust, source: Arc<dyn Source>) -> Result<Vouched, Untrusted> {
    // Only its last part is used: a source knows where its files are.
    let base = Url::parse("mirror://metadata/").map_err(|error| Untrusted::Malformed(error.to_string()))?;
    let limits = Limits {
        max_root_size: 1 << 20,
        max_targets_size: MAX_METADATA,
        max_timestamp_size: 64 << 10,
        max_snapshot_size: 1 << 20,
        max_root_updates: MAX_ROOTS,
    };
    let loader = RepositoryLoader::new(&trust.root, base.clone(), base)
        .transport(Carrier(source))
        .limits(limits)
        .datastore(&trust.dir)
        .expiration_enforcement(ExpirationEnforcement::Safe);
    let repository = loader.load().await.map_err(judged)?;
    let offers = repository.targets().signed.targets.iter().filter_map(|(name, target)| {
        let digest: [u8; 32] = target.hashes.sha256.as_ref().try_into().ok()?;
        Custom::offer(name.resolved(), Sha256::new(digest), target.length, &target.custom)
    });
    let mut offers: Vec<Offer> = offers.collect();
    offers.sort_by(|one, other| one.version.release_order(&other.version).then_with(|| one.file.cmp(&other.file)));
    let root = &repository.root().signed;
    let ends = [repository.targets().signed.expires, repository.snapshot().signed.expires, repository.timestamp().signed.expires];
    let expires = ends.into_iter().fold(root.expires, Ord::min);
    let threshold = root.roles.get(&RoleType::Targets).map_or(0, |role| role.threshold.get());
    Ok(Vouched { offers, root_version: root.version.get(), threshold, expires: Time::from_unix(expires.as_second()) })
}

/// One line for each of `tough`'s faults that a mirror or the world can cause.
fn judged(fault: Tuf) -> Untrusted {
    let text = fault.to_string();
    match fault {
        Tuf::VerifyMetadata { role, .. } => Untrusted::Threshold(role.to_string()),
        Tuf::VerifyRoleMetadata { role, .. } => Untrusted::Threshold(role),
        Tuf::VerifyTrustedMetadata { .. } => Untrusted::Threshold("trusted root".into()),
        Tuf::ExpiredMetadata { role, .. } => Untrusted::Expired(role.to_string()),
        Tuf::OlderMetadata { .. }
        | Tuf::OlderSnapshotInTimestamp { .. }
        | Tuf::SnapshotRoleMissing { .. }
        | Tuf::SnapshotRoleRollback { .. } => Untrusted::Older(text),
        Tuf::HashMismatch { .. } | Tuf::VersionMismatch { .. } => Untrusted::Mixed(text),
        Tuf::MaxSizeExceeded { .. } | Tuf::MaxUpdatesExceeded { .. } => Untrusted::TooLong(text),
        Tuf::SystemTimeSteppedBackward { .. } => Untrusted::Clock(text),
        Tuf::DatastoreInit { .. } | Tuf::DatastoreCreate { .. } | Tuf::DatastoreOpen { .. } | Tuf::DatastoreRemove { .. } => {
            Untrusted::Unreachable(text)
        }
        Tuf::Transport { source, .. } => carried(&source),
        _ => Untrusted::Malformed(text),
    }
}

/// `tough` reads streams, and says in the stream's fault that there was too much or something else than it should be.
fn carried(fault: &TransportError) -> Untrusted {
    let inner = std::error::Error::source(fault);
    match inner.and_then(|inner| inner.downcast_ref::<Tuf>()) {
        Some(Tuf::MaxSizeExceeded { .. }) => Untrusted::TooLong(inner.map(ToString::to_string).unwrap_or_default()),
        Some(Tuf::HashMismatch { .. }) => Untrusted::Mixed(inner.map(ToString::to_string).unwrap_or_default()),
        Some(_) => Untrusted::Malformed(fault.to_string()),
        None => match inner.and_then(|inner| inner.downcast_ref::<SourceError>()) {
            Some(SourceError::TooLong(_)) => Untrusted::TooLong(inner.map(ToString::to_string).unwrap_or_default()),
            Some(SourceError::Missing(_) | SourceError::Unreachable(_)) => {
                Untrusted::Unreachable(inner.map(ToString::to_string).unwrap_or_default())
            }
            None => Untrusted::Unreachable(fault.to_string()),
        },
    }
}

/// A source, as `tough` reads one.
#[derive(Clone, Debug)]
struct Carrier(Arc<dyn Source>);

#[tough::async_trait]
impl Transport for Carrier {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let name = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default().to_owned();
        let failed = |error: SourceError| {
            let kind = match error {
                SourceError::Missing(_) => TransportErrorKind::FileNotFound,
                SourceError::TooLong(_) | SourceError::Unreachable(_) => TransportErrorKind::Other,
            };
            TransportError::new_with_cause(kind, &url, error)
        };
        let bytes = self.0.metadata(&name).await.map_err(failed)?;
        Ok(Box::pin(futures::stream::once(std::future::ready(Ok(tough::Bytes::from(bytes))))))
    }
}
