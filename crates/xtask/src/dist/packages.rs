//! Which packages end up in the program: those that `cli` needs to run, by cargo's own resolution for the target.
//!
//! What only builds or tests it (build scripts, macros' own builders, test tools) is not in it and is not listed; procedural macros
//! are listed, since the code they write is. Used by the bill of materials and by the texts of licences.

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::Path;

/// What the program is made of.
pub(crate) struct Packages {
    /// By name and version; `cli` itself among them.
    pub all: Vec<Shipped>,
}

/// One package of it.
pub(crate) struct Shipped {
    pub package: Package,
    /// References of what it needs, in order.
    pub needs: Vec<String>,
    /// SHA-256 of the archive in the registry, as Cargo.lock pins it; ours have none.
    pub checksum: Option<String>,
}

impl Shipped {
    /// Names it in a bill of materials: its package URL, or ours.
    pub(crate) fn reference(&self) -> String {
        reference(&self.package)
    }
}

fn reference(package: &Package) -> String {
    let scheme = if package.source.is_some() { "pkg:cargo/" } else { "lockgate:" };
    format!("{scheme}{}@{}", package.name, package.version)
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The packages of the sources in `dir`, for a target triple.
pub(crate) fn shipped(dir: &Path, target: &str) -> Result<Packages> {
    let mut command = MetadataCommand::new();
    command.manifest_path(dir.join("Cargo.toml")).other_options(["--locked".into(), "--filter-platform".into(), target.into()]);
    let metadata = command.exec().context("cargo metadata")?;
    let lock: Lock = toml::from_str(&fs::read_to_string(dir.join("Cargo.lock"))?).context("Cargo.lock")?;
    let sums: BTreeMap<(String, String), Option<String>> =
        lock.package.into_iter().map(|locked| ((locked.name, locked.version), locked.checksum)).collect();
    let needs = reached(&metadata)?;
    let by_id: BTreeMap<&PackageId, &Package> = metadata.packages.iter().map(|package| (&package.id, package)).collect();
    let mut all = Vec::new();
    for (id, needed) in &needs {
        let package = by_id.get(id).context("cargo metadata names a package that it does not list")?;
        let mut needs: Vec<String> = needed.iter().filter_map(|id| by_id.get(id)).map(|package| reference(package)).collect();
        needs.sort();
        let checksum = sums.get(&(package.name.to_string(), package.version.to_string())).cloned().flatten();
        all.push(Shipped { package: (*package).clone(), needs, checksum });
    }
    all.sort_by(|left, right| (&left.package.name, &left.package.version).cmp(&(&right.package.name, &right.package.version)));
    Ok(Packages { all })
}

/// From `cli`, along ordinary dependencies.
fn reached(metadata: &Metadata) -> Result<BTreeMap<PackageId, BTreeSet<PackageId>>> {
    let resolve = metadata.resolve.as_ref().context("cargo metadata resolved nothing")?;
    let first =
        metadata.workspace_packages().into_iter().find(|package| package.name.as_str() == "cli").context("there is no package cli")?;
    let (mut found, mut waiting) = (BTreeMap::new(), VecDeque::from([first.id.clone()]));
    while let Some(id) = waiting.pop_front() {
        if found.contains_key(&id) {
            continue;
        }
        let node = resolve.nodes.iter().find(|node| node.id == id).context("cargo metadata has a gap")?;
        let ordinary = node.deps.iter().filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal));
        let needed: BTreeSet<PackageId> = ordinary.map(|dep| dep.pkg.clone()).collect();
        waiting.extend(needed.iter().cloned());
        found.insert(id, needed);
    }
    Ok(found)
}
