//! Golden files and migrations as lines: a name and a digest. A format's bytes are compared by its crate's own test; here it is
//! held that the file it is compared with is the one that was released.

use crate::dist::manifest::sha256;
use crate::run::Root;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Every file below `crates/*/tests/golden`.
pub(super) fn golden(root: &Root) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for krate in fs::read_dir(root.path("crates")).context("crates")? {
        let dir = krate?.path().join("tests/golden");
        if dir.is_dir() {
            collect(root, &dir, &mut lines)?;
        }
    }
    Ok(lines)
}

fn collect(root: &Root, dir: &Path, lines: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, lines)?;
        } else {
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            lines.insert(format!("{} {}", path.strip_prefix(root.dir())?.display(), sha256(&bytes)));
        }
    }
    Ok(())
}

/// The lines of the registry's own lock file.
pub(super) fn migrations(root: &Root) -> Result<BTreeSet<String>> {
    const LOCK: &str = "crates/upgrade/migrations.lock";
    let text = fs::read_to_string(root.path(LOCK)).context(LOCK)?;
    Ok(super::entries(&text).map(|line| line.trim().to_owned()).collect())
}
