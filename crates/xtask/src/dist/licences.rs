//! THIRD-PARTY.txt: the names and the full texts of the licences of everything in the program that others wrote.
//!
//! Most of them ask for no more than that their text goes along. A text that many share stands once. The texts are those in the
//! packages' own archives, which Cargo.lock pins; libraries that carry C sources have further texts inside, which are taken too.

use super::packages::Packages;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const NAMES: &[&str] = &["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE", "COPYRIGHT"];
/// How deep C sources keep their own.
const DEPTH: usize = 3;

pub(crate) fn third_party(packages: &Packages) -> Result<String> {
    let mut list = String::from(
        "Lockgate contains the following libraries of others. A list for machines is the bill of materials of the release.\n\n",
    );
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for shipped in packages.all.iter().filter(|shipped| shipped.package.source.is_some()) {
        let package = &shipped.package;
        let name = format!("{} {}", package.name, package.version);
        list.push_str(&format!("{name} ({})\n", package.license.as_deref().unwrap_or("see below")));
        let dir = package.manifest_path.parent().context("a manifest without a folder")?;
        let depth = if package.name.ends_with("-sys") { DEPTH } else { 0 };
        let mut found = Vec::new();
        collect(dir.as_std_path(), depth, &mut found).with_context(|| name.clone())?;
        for text in found {
            let users = texts.entry(text).or_default();
            if !users.contains(&name) {
                users.push(name.clone());
            }
        }
    }
    let mut blocks: Vec<(Vec<String>, String)> = texts.into_iter().map(|(text, users)| (users, text)).collect();
    blocks.sort();
    for (users, text) in blocks {
        list.push_str(&format!("\n{}\n{}\n{}\n\n{text}", "=".repeat(80), users.join(", "), "=".repeat(80)));
    }
    Ok(list)
}

/// Texts of licences in a folder, in the order of their names.
fn collect(dir: &Path, depth: usize, found: &mut Vec<String>) -> Result<()> {
    let mut paths = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_uppercase();
        let source = path.extension().is_some_and(|end| ["rs", "c", "h", "py", "go", "pl", "sh"].iter().any(|code| end == *code));
        if path.is_dir() && depth > 0 {
            collect(&path, depth - 1, found)?;
        } else if path.is_file() && !source && NAMES.iter().any(|known| name.starts_with(known)) {
            let text = String::from_utf8_lossy(&fs::read(&path)?).replace("\r\n", "\n");
            found.push(format!("{}\n", text.trim_end()));
        }
    }
    Ok(())
}
