//! Other people's code: its licences, where it comes from, and whether it is known to be broken.
//!
//! `licences` is `cargo deny check licenses bans sources` by deny.toml, and needs no more than the registry. `advisories` has three
//! parts: the floors of advisories.toml, always; versions withdrawn from the registry, when the registry answers; and the
//! RustSec database, when its git repository can be fetched. A part that could not be done is told as a note, never hidden.
//!
//! cargo-deny is compiled once into .cache/tools (`make tools`; 97 s of processor time, measured); an own check of
//! licences would save those minutes, and would have to read licence expressions and texts as well as it does.

use crate::check::Findings;
use crate::run::{Root, capture};
use anyhow::{Context, Result, bail};
use semver::Version;
use serde::Deserialize;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

const TOOL: &str = ".cache/tools/bin/cargo-deny";
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Floors {
    floor: Vec<Floor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Floor {
    #[serde(rename = "crate")]
    name: String,
    version: Version,
    ids: Vec<String>,
    reason: String,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: Version,
    source: Option<String>,
}

/// Licences, bans and sources.
pub(crate) fn licences(root: &Root) -> Result<Findings> {
    let mut command = deny(root)?;
    command.args(["--locked", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]);
    Ok(capture(&mut command).map(drop).into())
}

/// Floors, withdrawn versions, RustSec.
pub(crate) fn advisories(root: &Root) -> Result<Findings> {
    let floors: Floors = read(root, "advisories.toml")?;
    let lock: Lock = read(root, "Cargo.lock")?;
    let mut findings = Findings::default();
    findings.faults.extend(below_floor(&floors.floor, &lock.package));
    withdrawn(root, &lock, &mut findings)?;
    rustsec(root, &mut findings)?;
    Ok(findings)
}

fn read<T: serde::de::DeserializeOwned>(root: &Root, file: &str) -> Result<T> {
    let text = fs::read_to_string(root.path(file)).with_context(|| format!("could not read {file}"))?;
    toml::from_str(&text).with_context(|| file.to_owned())
}

fn deny(root: &Root) -> Result<Command> {
    let tool = root.path(TOOL);
    if !tool.exists() {
        bail!("cargo-deny is not installed: `make tools` compiles it into {TOOL}");
    }
    let mut command = Command::new(tool);
    command.current_dir(root.dir());
    Ok(command)
}

fn below_floor(floors: &[Floor], locked: &[Locked]) -> Vec<String> {
    let mut faults = Vec::new();
    for floor in floors {
        for found in locked.iter().filter(|found| found.name == floor.name && found.version < floor.version) {
            let ids = floor.ids.join(", ");
            faults.push(format!("{} {} is below {}: {} ({ids})", found.name, found.version, floor.version, floor.reason));
        }
    }
    faults
}

/// Asks cargo to resolve, from nothing, exactly what is locked: it refuses a version that was withdrawn and names it.
///
/// A lock file keeps such a version silently, and cargo has no command that tells. Only index pages are fetched.
fn withdrawn(root: &Root, lock: &Lock, findings: &mut Findings) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    fs::create_dir(scratch.path().join("src"))?;
    fs::write(scratch.path().join("src/lib.rs"), "")?;
    fs::write(scratch.path().join("Cargo.toml"), exact_manifest(&lock.package)?)?;
    let mut command = root.cargo();
    command.args(["generate-lockfile", "--manifest-path"]).arg(scratch.path().join("Cargo.toml"));
    let Err(fault) = capture(&mut command) else { return Ok(()) };
    let text = format!("{fault:#}");
    if text.contains("yanked") {
        findings.fault(format!("withdrawn from the registry: {text}"));
    } else if ["resolve host", "failed to download", "Timeout", "timed out", "Could not connect"].iter().any(|sign| text.contains(sign)) {
        findings.note("the registry does not answer: withdrawn versions were not looked for");
    } else {
        findings.fault(text);
    }
    Ok(())
}

fn exact_manifest(locked: &[Locked]) -> Result<String> {
    let mut text = String::from("[workspace]\n[package]\nname = \"exactly-what-is-locked\"\nedition = \"2024\"\n[dependencies]\n");
    for (index, found) in locked.iter().enumerate().filter(|(_, found)| found.source.as_deref() == Some(REGISTRY)) {
        // Build metadata takes no part in a requirement.
        let version = Version { build: semver::BuildMetadata::EMPTY, ..found.version.clone() };
        writeln!(text, "d{index} = {{ package = \"{}\", version = \"={version}\", default-features = false }}", found.name)?;
    }
    Ok(text)
}

fn rustsec(root: &Root, findings: &mut Findings) -> Result<()> {
    let mut fetch = deny(root)?;
    if capture(fetch.args(["fetch", "db"])).is_err() {
        findings.note("the RustSec database cannot be fetched from here: only advisories.toml and withdrawn versions were checked");
        return Ok(());
    }
    let mut command = deny(root)?;
    command.args(["--locked", "check", "--disable-fetch", "--hide-inclusion-graph", "advisories"]);
    if let Err(fault) = capture(&mut command) {
        findings.fault(format!("{fault:#}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked(name: &str, version: &str) -> Locked {
        Locked { name: name.into(), version: version.parse().unwrap(), source: Some(REGISTRY.into()) }
    }

    #[test]
    fn every_locked_version_is_held_against_its_floor() {
        let text = "[[floor]]\ncrate = \"russh\"\nversion = \"0.62.5\"\nids = [\"CVE-1\"]\nreason = \"r\"\n";
        let floors: Floors = toml::from_str(text).unwrap();
        let check = |version: &str, expected: usize| {
            let found = below_floor(&floors.floor, &[locked("russh", version), locked("other", "0.1.0")]);
            assert_eq!(found.len(), expected, "{version}: {found:?}");
        };
        check("0.62.5", 0);
        check("0.65.1", 0);
        check("0.62.4", 1);
        check("0.62.5-beta.1", 1);
    }

    #[test]
    fn the_manifest_that_asks_for_withdrawn_versions_names_each_exactly() {
        let text = exact_manifest(&[locked("toml", "1.2.1+spec-1.1.0")]).unwrap();
        assert!(text.contains("package = \"toml\", version = \"=1.2.1\""), "{text}");
    }
}
