//! What a host may install: what the vendor vouches for *and* the cluster directs, and nothing else (invariant I18).

use super::Host;
use sha2::Digest as _;
use std::collections::BTreeMap;
use types::{
    Code, Public, Sha256, Time, Version,
    update::{Directive, Target, Wave},
};

/// An archive that the vendor's signed metadata lists, with what its manifest says of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    pub version: Version,
    pub edition: String,
    pub os: String,
    pub arch: String,
    pub file: String,
    pub archive: Sha256,
    pub size: u64,
    pub program: Sha256,
    /// The oldest release that may go to it directly.
    pub minimum_source: Version,
    /// Releases that may not, and why.
    pub denied_sources: BTreeMap<String, String>,
}

/// Why a directive or a release is not followed. Nothing on the disk has changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the directive is of format {0}, which this release does not know")]
    Format(u32),
    #[error("the directive is of another cluster, {0}")]
    Cluster(types::ClusterName),
    #[error("the directive has generation {generation}, and {seen} was obeyed before")]
    Older { generation: u64, seen: u64 },
    #[error("the directive expired at {0}")]
    Expired(Time),
    #[error("the directive names no archive of {version} for {system}")]
    NoArchive { version: Version, system: String },
    #[error("{0}")]
    Metadata(String),
    #[error("the vendor's metadata does not list {0}")]
    UnknownVersion(Version),
    #[error("the vendor's metadata lists no archive of {version} with the digest that the directive names, {archive}")]
    UnknownArchive { version: Version, archive: Sha256 },
    #[error("the archive {file} is of edition {edition}, this host has {ours}")]
    Edition { file: String, edition: String, ours: String },
    #[error("the archive {file} is for {system}, this host is {ours}")]
    System { file: String, system: String, ours: String },
    #[error("{to} cannot be installed over {from}: the oldest release that may go to it is {minimum}")]
    Source { from: Version, to: Version, minimum: Version },
    #[error("{to} cannot be installed over {from}: {why}")]
    Denied { from: Version, to: Version, why: String },
    #[error("{to} cannot be installed over {from}: majors are taken one at a time, and {next} is next")]
    Major { from: Version, to: Version, next: u64 },
}

impl Refusal {
    /// One line for people, and what to do.
    pub fn public(&self) -> Public {
        match self {
            Self::Format(_) | Self::Cluster(_) | Self::Older { .. } | Self::Expired(_) => {
                Public::new(Code::UpdateDirective, self.to_string()).hint("set the target again: tctl update target")
            }
            Self::Metadata(_) => Public::new(Code::UpdateUntrusted, self.to_string())
                .hint("look at the mirror: its metadata must be signed anew before it expires (lockgate release sign)"),
            Self::NoArchive { .. } | Self::UnknownVersion(_) | Self::UnknownArchive { .. } => {
                Public::new(Code::UpdateRefused, self.to_string())
                    .hint("set the target from the mirror that this host uses: tctl update target --mirror")
            }
            Self::Edition { .. } | Self::System { .. } => Public::new(Code::UpdateRefused, self.to_string()),
            Self::Source { .. } | Self::Denied { .. } | Self::Major { .. } => {
                Public::new(Code::UpdateRefused, self.to_string()).hint("set a target that lies between: tctl update target")
            }
        }
    }
}

/// The target for this host: the first that fits it.
pub fn target_for<'a>(directive: &'a Directive, host: &Host<'_>) -> Option<&'a Target> {
    directive.targets.iter().find(|target| {
        (target.hosts.is_empty() || target.hosts.contains(&host.id))
            && (target.roles.is_empty() || host.roles.is_subset(&target.roles))
            && target.wave.as_ref().is_none_or(|wave| share(wave, host) < u64::from(wave.below))
            // A condition of a later release cannot be judged here, so it does not hold.
            && target.extra.is_empty()
    })
}

/// Where this host lies among 10,000, evenly and by no plan of anybody's.
fn share(wave: &Wave, host: &Host<'_>) -> u64 {
    let hash = sha2::Sha256::new().chain_update(wave.salt.as_bytes()).chain_update([0]).chain_update(host.id.as_uuid().as_bytes());
    let first = hash.finalize().first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    first % 10_000
}

/// The vendor's offer that the target means, if this host may install it.
pub fn allowed<'a>(offers: &'a [Offer], target: &Target, host: &Host<'_>, installed: &Version) -> Result<&'a Offer, Refusal> {
    let (version, system) = (&target.version, host.system());
    let Some(archive) = target.artifacts.get(&system).copied() else {
        return Err(Refusal::NoArchive { version: version.clone(), system });
    };
    let mut same = offers.iter().filter(|offer| offer.version == *version).peekable();
    if same.peek().is_none() {
        return Err(Refusal::UnknownVersion(version.clone()));
    }
    let unknown = || Refusal::UnknownArchive { version: version.clone(), archive };
    let offer = same.find(|offer| offer.archive == archive).ok_or_else(unknown)?;
    if offer.edition != host.edition {
        let (file, edition) = (offer.file.clone(), offer.edition.clone());
        return Err(Refusal::Edition { file, edition, ours: host.edition.to_owned() });
    }
    if (offer.os.as_str(), offer.arch.as_str()) != (host.os, host.arch) {
        let (file, ours) = (offer.file.clone(), system);
        return Err(Refusal::System { file, system: format!("{}/{}", offer.os, offer.arch), ours });
    }
    source(offer, installed).map(|()| offer)
}

/// Whether the release that runs may go to it directly. The way back is the cluster's to allow: its windows say who may serve.
fn source(offer: &Offer, installed: &Version) -> Result<(), Refusal> {
    let (from, to) = (installed.clone(), offer.version.clone());
    if let Some(why) = offer.denied_sources.get(&from.to_string()) {
        return Err(Refusal::Denied { from, to, why: why.clone() });
    }
    if from.release_order(&to).is_ge() {
        return Ok(());
    }
    let next = from.major().saturating_add(1);
    if to.major() > next {
        return Err(Refusal::Major { from, to, next });
    }
    if from.release_order(&offer.minimum_source).is_lt() {
        return Err(Refusal::Source { from, to, minimum: offer.minimum_source.clone() });
    }
    Ok(())
}
