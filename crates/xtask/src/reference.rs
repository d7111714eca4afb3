//! `cargo xtask reference [--check]`: `docs/reference/*.md`, written by the program from its own definitions.
//!
//! Commands come from the command-line definitions, settings from the configuration's types, so neither can drift from
//! what the program does. The text itself is made by the hidden command `lockgate reference --dir DIR` (crate `cli`).
//! With `--check` the files are written aside and compared, both ways: a page nobody generates any more is a fault too.

use crate::golden::first_difference;
use crate::run::{Root, capture};
use anyhow::{Context, Result, bail};
use cargo_metadata::MetadataCommand;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIR: &str = "docs/reference";

/// Writes the reference, or with `check` compares it with what is there.
pub(crate) fn reference(root: &Root, check: bool) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    capture(Command::new(program(root)?).args(["reference", "--dir"]).arg(scratch.path())).context("lockgate reference")?;
    let wanted = pages(scratch.path())?;
    if wanted.is_empty() {
        bail!("`lockgate reference` wrote no page");
    }
    let home = root.path(DIR);
    let present = if home.is_dir() { pages(&home)? } else { BTreeMap::new() };
    let differences = differences(&present, &wanted);
    if differences.is_empty() {
        return Ok(());
    }
    if check {
        bail!("{}\nrun `cargo xtask reference`", differences.join("\n"));
    }
    fs::create_dir_all(&home)?;
    for stale in present.keys().filter(|name| !wanted.contains_key(*name)) {
        fs::remove_file(home.join(stale))?;
    }
    for (name, text) in &wanted {
        fs::write(home.join(name), text)?;
    }
    Ok(())
}

/// Builds it as the tests do, for the whole workspace: one package alone would take other features and be built twice.
fn program(root: &Root) -> Result<PathBuf> {
    let mut build = root.cargo();
    capture(build.args(["build", "--quiet", "--locked", "--workspace", "--bin", "lockgate"]))?;
    let metadata = MetadataCommand::new().current_dir(root.dir()).no_deps().exec().context("cargo metadata")?;
    Ok(metadata.target_directory.join("debug/lockgate").into_std_path_buf())
}

fn pages(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).with_context(|| format!("could not list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(".md") {
            found.insert(name, fs::read_to_string(&path)?);
        }
    }
    Ok(found)
}

fn differences(present: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> Vec<String> {
    let stale = present.keys().filter(|name| !wanted.contains_key(*name)).map(|name| format!("{DIR}/{name}: nothing generates it"));
    let changed = wanted.iter().filter_map(|(name, text)| match present.get(name) {
        None => Some(format!("{DIR}/{name}: missing")),
        Some(there) if there != text => Some(format!("{DIR}/{name}: {}", first_difference(there, text))),
        Some(_) => None,
    });
    stale.chain(changed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(pages: &[(&str, &str)]) -> BTreeMap<String, String> {
        pages.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
    }

    #[test]
    fn missing_changed_and_stale_pages_are_all_named() {
        let found = differences(&book(&[("a.md", "1"), ("old.md", "")]), &book(&[("a.md", "2"), ("b.md", "")]));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(differences(&book(&[("a.md", "1")]), &book(&[("a.md", "1")])).is_empty());
    }
}
