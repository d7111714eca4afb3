//! manifest.json: what an updater must know of a release before it takes it, and SHA256SUMS for people.
//!
//! The artifacts with digest and size, which stored formats and APIs the release works with, which older releases may go to it
//! directly, and the tools that made it: who wants the same bytes needs the same. What only a person can say stands in
//! packaging/release.toml. Later releases add fields; none changes its meaning.

use super::program::Facts;
use super::{Artifacts, Origin};
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Only ever raised when an old reader would be misled.
const FORMAT: u32 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    minimum_source: semver::Version,
    denied_sources: BTreeMap<String, String>,
    security: bool,
}

/// Digest of bytes, in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `tools`: what the program was built with, by name.
pub(crate) fn manifest(
    source: &Path,
    origin: &Origin,
    facts: &Facts,
    artifacts: &Artifacts,
    tools: &BTreeMap<&str, String>,
) -> Result<String> {
    const SAID: &str = "packaging/release.toml";
    let said: Said = toml::from_str(&fs::read_to_string(source.join(SAID)).context(SAID)?).context(SAID)?;
    let rows: Vec<Value> = artifacts.iter().map(|(name, bytes)| artifact(name, bytes, facts)).collect();
    let whole = json!({
        "format": FORMAT, "product": "lockgate", "version": origin.version, "commit": origin.commit, "date": origin.stamp,
        "artifacts": rows,
        "program": {"sha256": facts.digest, "size": facts.size},
        "content": facts.content, "apis": facts.apis, "cluster_version": facts.cluster_version,
        "minimum_source": said.minimum_source.to_string(), "denied_sources": said.denied_sources, "security": said.security,
        "built_with": tools,
    });
    Ok(serde_json::to_string_pretty(&whole)? + "\n")
}

fn artifact(name: &str, bytes: &[u8], facts: &Facts) -> Value {
    let kind = match name.rsplit('.').next() {
        Some("gz") => "archive",
        Some("deb") => "debian-package",
        Some("json") => "sbom",
        _ => "container-file",
    };
    let mut row = json!({"file": name, "kind": kind, "sha256": sha256(bytes), "size": bytes.len()});
    if let Some(fields) = row.as_object_mut().filter(|_| kind != "sbom") {
        fields.insert("os".into(), "linux".into());
        fields.insert("arch".into(), facts.arch.into());
    }
    row
}

/// Lines for `sha256sum --check`, in the order of names.
pub(crate) fn sums(artifacts: &Artifacts) -> String {
    artifacts.iter().map(|(name, bytes)| format!("{}  {name}\n", sha256(bytes))).collect()
}
