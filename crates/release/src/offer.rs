//! What the vendor says of an archive: its release's `manifest.json`, and the same as the custom part of a target.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use types::{Sha256, Version};
use upgrade::updater::Offer;

/// The edition of this program, as manifests name it. A host never takes another.
pub const EDITION: &str = "lockgate";
/// What manifests call an archive.
const ARCHIVE: &str = "archive";

/// `manifest.json` of a release, as `cargo xtask dist` writes it; what is not needed here is left where it is.
#[derive(Clone, Debug, Deserialize)]
pub struct Manifest {
    pub product: String,
    pub version: Version,
    pub artifacts: Vec<Artifact>,
    pub program: Program,
    pub minimum_source: Version,
    #[serde(default)]
    pub denied_sources: BTreeMap<String, String>,
    #[serde(default)]
    pub security: bool,
    #[serde(default)]
    pub content: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Artifact {
    pub file: String,
    pub kind: String,
    pub sha256: Sha256,
    pub size: u64,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub arch: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Program {
    pub sha256: Sha256,
}

impl Manifest {
    /// The digest of its archive for each system, as directives name them: `linux/amd64`.
    pub fn digests(&self) -> BTreeMap<String, Sha256> {
        self.archives().map(|(artifact, _)| (format!("{}/{}", artifact.os, artifact.arch), artifact.sha256)).collect()
    }

    /// The archives of this release, with what the vendor signs of each.
    pub(crate) fn archives(&self) -> impl Iterator<Item = (&Artifact, Custom)> {
        let custom = |artifact: &Artifact| Custom {
            kind: ARCHIVE.to_owned(),
            product: self.product.clone(),
            version: self.version.clone(),
            os: artifact.os.clone(),
            arch: artifact.arch.clone(),
            program: self.program.sha256,
            minimum_source: self.minimum_source.clone(),
            denied_sources: self.denied_sources.clone(),
            security: self.security,
            content: self.content.clone(),
        };
        self.artifacts.iter().filter(|artifact| artifact.kind == ARCHIVE).map(move |artifact| (artifact, custom(artifact)))
    }
}

/// The custom part of a target.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Custom {
    kind: String,
    product: String,
    version: Version,
    os: String,
    arch: String,
    program: Sha256,
    minimum_source: Version,
    #[serde(default)]
    denied_sources: BTreeMap<String, String>,
    #[serde(default)]
    security: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

impl Custom {
    pub(crate) fn to_map(&self) -> HashMap<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map.into_iter().collect(),
            Ok(_) | Err(_) => HashMap::new(),
        }
    }

    /// What a target offers; none for what is not an archive that this release understands.
    pub(crate) fn offer(file: &str, archive: Sha256, size: u64, map: &HashMap<String, Value>) -> Option<Offer> {
        let custom: Self = serde_json::from_value(Value::Object(map.clone().into_iter().collect())).ok()?;
        (custom.kind == ARCHIVE).then(|| Offer {
            version: custom.version,
            edition: custom.product,
            os: custom.os,
            arch: custom.arch,
            file: file.to_owned(),
            archive,
            size,
            program: custom.program,
            minimum_source: custom.minimum_source,
            denied_sources: custom.denied_sources,
        })
    }
}
