//! What a release promised, written down when it was cut, and held against the tree ever after: `cargo xtask freeze`, step `frozen`.
//!
//! `frozen/<version>` has one list for each thing that others rely on: the API's messages and fields, error codes, audit events,
//! settings, commands and flags, exit statuses, metrics, migrations, and the digests of the golden files, which hold the bytes of
//! every format (`crates/*/tests/golden`, compared by those crates' tests). Later releases may add lines; a line that a release had
//! and the tree has not is a fault. The lists of a version that is not released yet are written anew by `freeze`, and have to be what
//! the tree says; those of a released one are never written again, and their digest stands in releases.toml. Sources
//! whose changelog does not begin with a chapter "Unreleased" have to have lists: nothing is cut that promises nothing.

mod api;
mod files;
mod pages;

use crate::check::Findings;
use crate::dist::manifest::sha256;
use crate::releases;
use crate::run::{Root, capture};
use anyhow::{Context, Result, bail};
use semver::Version;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

const DIR: &str = "frozen";
/// Tells the tests of golden files to write what is new.
const WRITE: &str = "LOCKGATE_FREEZE";

/// Where golden files are compared: the crate, its kinds of tests, and what their names have.
const GOLDEN: [(&str, &[&str], &str); 5] = [
    ("types", &["--test", "it"], "golden::"),
    ("wire", &["--test", "it"], "golden::"),
    ("store", &["--lib", "--test", "it"], "as_they_were_released"),
    ("auth", &["--lib"], "as_they_were_released"),
    ("harness", &["--test", "it"], "frozen::"),
];

/// One list: its file, what it is of, and who tells it from the tree as it is now.
struct List {
    file: &'static str,
    about: &'static str,
    now: fn(&Root) -> Result<BTreeSet<String>>,
}

const LISTS: &[List] = &[
    List { file: "api.txt", about: "the Auth Service's API: services, calls, messages, fields with their numbers", now: api::lines },
    List { file: "commands.txt", about: "commands, arguments, flags, their values and variables", now: pages::commands },
    List { file: "config.txt", about: "keys of the configuration file, with their types and values", now: pages::config },
    List { file: "errors.txt", about: "error codes and what they mean", now: pages::errors },
    List { file: "events.txt", about: "audit events, and the names of their fields", now: pages::events },
    List { file: "exit.txt", about: "exit statuses and what they mean", now: pages::exit },
    List { file: "files.txt", about: "golden files with their digests: the bytes of every format", now: files::golden },
    List { file: "metrics.txt", about: "names and types of metrics", now: pages::metrics },
    List { file: "migrations.txt", about: "migrations with their digests", now: files::migrations },
];

/// What one version promised: file name to text.
pub(crate) struct Frozen {
    version: Version,
    files: BTreeMap<String, String>,
}

impl Frozen {
    pub(crate) fn load(root: &Root, version: &Version) -> Result<Frozen> {
        let dir = root.path(DIR).join(version.to_string());
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("{DIR}/{version}: `cargo xtask freeze` makes it"))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(name, fs::read_to_string(&path).with_context(|| path.display().to_string())?);
        }
        Ok(Frozen { version: version.clone(), files })
    }

    /// Over all of it.
    pub(crate) fn digest(&self) -> String {
        let rows: String = self.files.keys().map(|name| format!("{name} {}\n", self.digest_of(name))).collect();
        sha256(rows.as_bytes())
    }

    pub(crate) fn digest_of(&self, file: &str) -> String {
        sha256(self.files.get(file).map(String::as_bytes).unwrap_or_default())
    }

    /// What was promised and is not so any more.
    fn broken(&self, now: &BTreeMap<&str, BTreeSet<String>>) -> Vec<String> {
        let version = &self.version;
        let mut faults = Vec::new();
        for (file, text) in &self.files {
            let Some(now) = now.get(file.as_str()) else {
                faults.push(format!("{DIR}/{version}/{file}: nothing tells this list any more"));
                continue;
            };
            let gone = entries(text).filter(|line| !now.contains(*line));
            faults.extend(gone.map(|line| format!("{DIR}/{version}/{file}: \"{line}\" was promised, and is gone or changed")));
        }
        faults
    }
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn now(root: &Root) -> Result<BTreeMap<&'static str, BTreeSet<String>>> {
    let one = |list: &List| (list.now)(root).with_context(|| format!("{DIR}: {}", list.file)).map(|lines| (list.file, lines));
    LISTS.iter().map(one).collect()
}

fn text(list: &List, version: &Version, lines: &BTreeSet<String>) -> String {
    let head = format!(
        "# {version}: {}.\n# Written by `cargo xtask freeze`; never changed once {version} is released. Later releases add.\n",
        list.about
    );
    head + &lines.iter().map(|line| format!("{line}\n")).collect::<String>()
}

/// The versions that have a folder, in order.
fn versions(root: &Root) -> Result<BTreeSet<Version>> {
    let Ok(entries) = fs::read_dir(root.path(DIR)) else { return Ok(BTreeSet::new()) };
    let name = |entry: std::io::Result<fs::DirEntry>| -> Result<Version> {
        let name = entry?.file_name().to_string_lossy().into_owned();
        name.parse().with_context(|| format!("{DIR}/{name} is not called by a version"))
    };
    entries.map(name).collect()
}

/// The step.
pub(crate) fn check(root: &Root) -> Result<Findings> {
    let mut findings = Findings::default();
    let (now, own) = (now(root)?, releases::workspace_version(&root.path("Cargo.toml"))?);
    let released: BTreeSet<Version> = releases::load(root)?.release.into_iter().map(|row| row.version).collect();
    for version in versions(root)? {
        let frozen = Frozen::load(root, &version)?;
        if released.contains(&version) {
            findings.faults.extend(frozen.broken(&now));
        } else if version == own {
            findings.faults.extend(stale(&frozen, &now));
        } else {
            findings.fault(format!("{DIR}/{version}: neither released nor the version of the sources, {own}"));
        }
    }
    for version in released.difference(&versions(root)?) {
        findings.fault(format!("{DIR}/{version} is gone, and {version} is released"));
    }
    let chapter = releases::newest_chapter(root)?;
    findings.faults.extend(unfrozen(&own, versions(root)?.contains(&own), &chapter));
    Ok(findings)
}

/// A version that is about to be cut and promises nothing. One in development says so: its chapter of the changelog has no date yet.
fn unfrozen(own: &Version, frozen: bool, chapter: &str) -> Option<String> {
    let in_development = chapter.trim_end() == "## [Unreleased]";
    (!frozen && !in_development).then(|| {
        format!(
            "there is no {DIR}/{own}, so {own} promises nothing: run `cargo xtask freeze`; or, while it is in development, let CHANGELOG.md begin with \"## [Unreleased]\" and not with \"{chapter}\""
        )
    })
}

/// Lists of a version to come that are not what the tree says.
fn stale(frozen: &Frozen, now: &BTreeMap<&str, BTreeSet<String>>) -> Vec<String> {
    let version = &frozen.version;
    let differs = |list: &&List| now.get(list.file).is_none_or(|lines| frozen.files.get(list.file) != Some(&text(list, version, lines)));
    let told = |list: &List| {
        format!("{DIR}/{version}/{} is not what the tree says; {version} is not released yet: run `cargo xtask freeze`", list.file)
    };
    LISTS.iter().filter(differs).map(told).collect()
}

/// Writes golden files that are new and the lists of the sources' version.
pub(crate) fn freeze(root: &Root) -> Result<()> {
    let version = releases::workspace_version(&root.path("Cargo.toml"))?;
    let released = releases::load(root)?.release;
    if released.iter().any(|row| row.version == version) {
        bail!("{version} is released: what it promised stays as it is. The next version gets lists of its own");
    }
    for (krate, targets, named) in GOLDEN {
        let mut tests = root.cargo();
        tests.args(["test", "--quiet", "--locked", "-p", krate]).args(targets).args(["--", named]).env(WRITE, "1");
        capture(&mut tests).with_context(|| format!("golden files of {krate}"))?;
    }
    let now = now(root)?;
    for row in &released {
        let broken = Frozen::load(root, &row.version)?.broken(&now);
        if !broken.is_empty() {
            bail!("{version} would break what {} promised:\n{}", row.version, broken.join("\n"));
        }
    }
    let dir = root.path(DIR).join(version.to_string());
    fs::create_dir_all(&dir)?;
    for list in LISTS {
        let lines = now.get(list.file).context("a list without lines")?;
        fs::write(dir.join(list.file), text(list, &version, lines)).with_context(|| list.file.to_owned())?;
        println!("{DIR}/{version}/{:<15} {:>5} lines", list.file, lines.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promised(lines: &str) -> Frozen {
        Frozen { version: Version::new(1, 0, 0), files: BTreeMap::from([("errors.txt".to_owned(), format!("# words\n{lines}"))]) }
    }

    #[test]
    fn later_releases_add_and_never_take_away() {
        let check = |now: &[&str], expected: usize| {
            let now = BTreeMap::from([("errors.txt", now.iter().map(|line| (*line).to_owned()).collect())]);
            assert_eq!(promised("LG-A-001: a\nLG-B-001: b\n").broken(&now).len(), expected, "{now:?}");
        };
        check(&["LG-A-001: a", "LG-B-001: b"], 0);
        check(&["LG-A-001: a", "LG-B-001: b", "LG-C-001: c"], 0);
        check(&["LG-A-001: a"], 1);
        check(&["LG-A-001: something else", "LG-B-001: b"], 1);
        check(&[], 2);
    }

    #[test]
    fn a_version_that_has_a_date_has_its_lists() {
        let check = |frozen, chapter: &str, expected| {
            assert_eq!(unfrozen(&Version::new(1, 0, 0), frozen, chapter).is_some(), expected, "{frozen} {chapter}");
        };
        check(false, "## [1.0.0] - 2026-11-30", true);
        check(true, "## [1.0.0] - 2026-11-30", false);
        check(false, "## [Unreleased]", false);
        check(true, "## [Unreleased]", false);
        check(false, "", true);
    }

    #[test]
    fn a_list_that_nothing_tells_any_more_is_a_fault() {
        assert_eq!(promised("LG-A-001: a\n").broken(&BTreeMap::new()).len(), 1);
    }

    #[test]
    fn the_digest_sees_every_change_of_every_list() {
        let (one, other) = (promised("a\n"), promised("b\n"));
        assert_ne!(one.digest(), other.digest());
        let renamed =
            Frozen { files: BTreeMap::from([("x.txt".to_owned(), one.files["errors.txt"].clone())]), version: Version::new(1, 0, 0) };
        assert_ne!(one.digest(), renamed.digest());
    }
}
