//! releases.toml: every release that was cut, with its commit and digests; the step `releases` and `cargo xtask release-row`.
//!
//! A row is written in the commit after the release's own, since a commit cannot name itself. Rows never change and never go: the
//! history of the file is compared. Their digests guard the rest: `frozen` is over the folder `frozen/<version>`, where the lists
//! and digests of everything that the release promised stand (`freeze`), so what is frozen cannot be changed together with its guard.

use crate::check::Findings;
use crate::dist::manifest::sha256;
use crate::freeze;
use crate::migrations;
use crate::run::{Root, capture};
use anyhow::{Context, Result, bail};
use semver::Version;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

const FILE: &str = "releases.toml";
const CHANGES: &str = "CHANGELOG.md";

/// The file.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct Releases {
    /// Oldest first.
    #[serde(default)]
    pub release: Vec<Release>,
}

/// One release.
#[derive(Deserialize, Debug, Clone)]
#[serde(deny_unknown_fields)]
pub(crate) struct Release {
    pub version: Version,
    /// The full name.
    pub commit: String,
    /// `2026-11-23`
    pub date: String,
    /// Of `frozen/<version>/migrations.txt`.
    pub registry: String,
    /// Of `frozen/<version>/api.txt`.
    pub api: String,
    /// Of everything in `frozen/<version>`.
    pub frozen: String,
    /// File name to SHA-256.
    pub artifacts: BTreeMap<String, String>,
}

impl Release {
    /// Whether these are the bytes that were released.
    pub(crate) fn compare(&self, made: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        let wrong = self.artifacts.iter().filter(|(name, sum)| made.get(*name).map(|bytes| sha256(bytes)).as_ref() != Some(sum));
        let wrong: Vec<&str> = wrong.map(|(name, _)| name.as_str()).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        bail!(
            "{} was released with other bytes: {} differ. The tools that made it are in its manifest.json, `built_with`; \
             with other versions of them the program may differ",
            self.version,
            wrong.join(", ")
        )
    }
}

/// The releases so far.
pub(crate) fn load(root: &Root) -> Result<Releases> {
    let text = fs::read_to_string(root.path(FILE)).context(FILE)?;
    toml::from_str(&text).context(FILE)
}

#[derive(Deserialize)]
struct Manifest {
    workspace: Workspace,
}
#[derive(Deserialize)]
struct Workspace {
    package: Package,
}
#[derive(Deserialize)]
struct Package {
    version: Version,
}

/// The version that the sources claim.
pub(crate) fn workspace_version(manifest: &Path) -> Result<Version> {
    let text = fs::read_to_string(manifest).with_context(|| manifest.display().to_string())?;
    version_of(&text).with_context(|| manifest.display().to_string())
}

fn version_of(manifest: &str) -> Result<Version> {
    let manifest: Manifest = toml::from_str(manifest)?;
    Ok(manifest.workspace.package.version)
}

/// The step: the file is well-formed and true, as far as the tree and its history can tell.
pub(crate) fn check(root: &Root) -> Result<Findings> {
    let mut findings = Findings::default();
    let now = workspace_version(&root.path("Cargo.toml"))?;
    let releases = load(root)?;
    findings.faults.extend(shape(&releases.release, &now));
    let changes = fs::read_to_string(root.path(CHANGES)).context(CHANGES)?;
    findings.faults.extend(changelog(&changes, &releases.release, &now));
    for release in &releases.release {
        digests(root, release, &mut findings)?;
        history(root, release, &mut findings);
    }
    migrations::only_grown(root, FILE, "was in it once; rows of releases never change", &mut findings)?;
    Ok(findings)
}

/// What is wrong with the rows alone.
fn shape(rows: &[Release], now: &Version) -> Vec<String> {
    let hex =
        |text: &str, digits: usize| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let mut faults = Vec::new();
    for row in rows {
        let mut say = |what: &str| faults.push(format!("{FILE}: {}: {what}", row.version));
        if !hex(&row.commit, 40) {
            say("the commit is not its full name");
        }
        if ![&row.registry, &row.api, &row.frozen].into_iter().chain(row.artifacts.values()).all(|sum| hex(sum, 64)) {
            say("a digest is not 64 hexadecimal digits");
        }
        if !date(&row.date) {
            say("the date is not of the form 2026-11-23");
        }
        let (archive, package) = (format!("lockgate-{}-linux-", row.version), ".deb");
        let named = |wanted: &dyn Fn(&str) -> bool| row.artifacts.keys().any(|name| wanted(name));
        if !named(&|name| name.starts_with(&archive)) || !named(&|name| name.ends_with(package)) || !named(&|name| name == "sbom.cdx.json")
        {
            say("the archive, the Debian package or the bill of materials is missing");
        }
        if !row.version.build.is_empty() {
            say("a release has no build number");
        }
    }
    for pair in rows.windows(2) {
        if let [older, newer] = pair {
            if newer.version <= older.version {
                faults.push(format!("{FILE}: {} stands behind {}: versions ascend", newer.version, older.version));
            }
            if newer.date < older.date {
                faults.push(format!("{FILE}: {} is dated before {}", newer.version, older.version));
            }
        }
    }
    if let Some(last) = rows.last().filter(|last| *now < last.version) {
        faults.push(format!("the sources claim {now}, and {} was released already", last.version));
    }
    faults
}

fn date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let number = |text: &str, digits: usize, most: u32| text.len() == digits && text.parse::<u32>().is_ok_and(|n| (1..=most).contains(&n));
    matches!(parts.as_slice(), [year, month, day] if number(year, 4, 9999) && number(month, 2, 12) && number(day, 2, 31))
}

/// The heading of the changelog's first chapter; empty when there is none.
pub(crate) fn newest_chapter(root: &Root) -> Result<String> {
    let changes = fs::read_to_string(root.path(CHANGES)).context(CHANGES)?;
    Ok(changes.lines().find(|line| line.starts_with("## ")).unwrap_or_default().to_owned())
}

/// Each release has its chapter with its date, and what the sources claim has one too.
fn changelog(text: &str, rows: &[Release], now: &Version) -> Vec<String> {
    let has = |start: &str| text.lines().any(|line| line.starts_with(start));
    let mut faults: Vec<String> = rows
        .iter()
        .map(|row| format!("## [{}] - {}", row.version, row.date))
        .filter(|heading| !has(heading))
        .map(|heading| format!("{CHANGES}: there is no chapter \"{heading}\""))
        .collect();
    if !has(&format!("## [{now}]")) && !has("## [Unreleased]") {
        faults.push(format!("{CHANGES}: there is no chapter for {now}"));
    }
    faults
}

/// What the release promised is still written down as it was.
fn digests(root: &Root, row: &Release, findings: &mut Findings) -> Result<()> {
    let frozen = freeze::Frozen::load(root, &row.version)?;
    for (what, then, now) in [
        ("frozen", &row.frozen, frozen.digest()),
        ("registry", &row.registry, frozen.digest_of("migrations.txt")),
        ("api", &row.api, frozen.digest_of("api.txt")),
    ] {
        if *then != now {
            findings.fault(format!(
                "{FILE}: {}: {what} is {then}, and frozen/{} has {now}: put back what was released",
                row.version, row.version
            ));
        }
    }
    Ok(())
}

/// The commit is there, is an ancestor, and claims that version.
fn history(root: &Root, row: &Release, findings: &mut Findings) {
    let git = |words: &[&str]| {
        let mut command = Command::new("git");
        capture(command.current_dir(root.dir()).args(words))
    };
    if git(&["cat-file", "-e", &format!("{}^{{commit}}", row.commit)]).is_err() {
        match git(&["rev-parse", "--is-shallow-repository"]).as_deref().map(str::trim) {
            Ok("false") => findings.fault(format!("{FILE}: {}: there is no commit {}", row.version, row.commit)),
            Ok(_) => findings.note(format!("{FILE}: {}: this clone is shallow: its commit was not looked at", row.version)),
            Err(_) => findings.note(format!("{FILE}: {}: there is no history here: its commit was not looked at", row.version)),
        }
        return;
    }
    if git(&["merge-base", "--is-ancestor", &row.commit, "HEAD"]).is_err() {
        findings.fault(format!("{FILE}: {}: commit {} is not one that led here", row.version, row.commit));
    }
    let claimed = git(&["show", &format!("{}:Cargo.toml", row.commit)]).and_then(|text| version_of(&text));
    match claimed {
        Ok(claimed) if claimed == row.version => {}
        Ok(claimed) => findings.fault(format!("{FILE}: {}: its commit claims {claimed}", row.version)),
        Err(fault) => findings.fault(format!("{FILE}: {}: {fault:#}", row.version)),
    }
}

#[derive(Deserialize)]
struct Made {
    version: Version,
    commit: String,
    date: String,
}

/// `cargo xtask release-row`: appends the row of the release that lies in `dist/<version>`.
pub(crate) fn add(root: &Root) -> Result<()> {
    let version = workspace_version(&root.path("Cargo.toml"))?;
    if load(root)?.release.iter().any(|row| row.version == version) {
        bail!("{version} has its row already; a release that was wrong is followed by the next patch");
    }
    let dir = root.path("dist").join(version.to_string());
    let read = |name: &str| fs::read(dir.join(name)).with_context(|| format!("dist/{version}/{name}: `make release` makes it"));
    let made: Made = serde_json::from_slice(&read("manifest.json")?).context("manifest.json")?;
    if made.version != version {
        bail!("dist/{version}/manifest.json is of {}", made.version);
    }
    let mut artifacts = BTreeMap::new();
    for entry in fs::read_dir(&dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        artifacts.insert(name.clone(), sha256(&read(&name)?));
    }
    let frozen = freeze::Frozen::load(root, &version)?;
    let row = Release {
        version,
        commit: made.commit,
        date: made.date.chars().take(10).collect(),
        registry: frozen.digest_of("migrations.txt"),
        api: frozen.digest_of("api.txt"),
        frozen: frozen.digest(),
        artifacts,
    };
    let mut text = fs::read_to_string(root.path(FILE)).context(FILE)?;
    text.push_str(&format!("\n{}", written(&row)));
    fs::write(root.path(FILE), text).context(FILE)?;
    println!("{FILE} has a row for {} now; commit it: `releases: {}`", row.version, row.version);
    Ok(())
}

fn written(row: &Release) -> String {
    let artifacts: String = row.artifacts.iter().map(|(name, sum)| format!("\"{name}\" = \"{sum}\"\n")).collect();
    format!(
        "[[release]]\nversion = \"{}\"\ncommit = \"{}\"\ndate = \"{}\"\nregistry = \"{}\"\napi = \"{}\"\nfrozen = \"{}\"\n\n[release.artifacts]\n{artifacts}",
        row.version, row.commit, row.date, row.registry, row.api, row.frozen
    )
}

#[cfg(test)]
#[path = "releases/tests.rs"]
mod tests;
