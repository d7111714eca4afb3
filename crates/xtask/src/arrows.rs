//! Who may use whom: the table in ARCHITECTURE.md against what the manifests say.
//!
//! The table stands between two markers; every crate has a row, every arrow in a manifest must be in its row, also those
//! of tests and build scripts. An arrow in the table that nobody uses is allowed. Some arrows are refused even when the
//! table is edited to have them, each with its reason below. `harness` may test with what it likes and nobody may use it.

use crate::check::Findings;
use crate::run::Root;
use crate::scan::PURE;
use anyhow::{Context, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

const TABLE_FILE: &str = "ARCHITECTURE.md";
const BEGIN: &str = "<!-- arrows:begin -->";
const END: &str = "<!-- arrows:end -->";
const SERVICES: &[&str] = &["auth", "proxy", "agent"];
const TOOLS: &[&str] = &["harness", "sim", "xtask"];
const ANYHOW: &[&str] = &["cli", "harness", "xtask"];

/// Libraries no pure crate may name, with what they would bring in.
const IMPURE: &[(&str, &str)] = &[
    ("tokio", "a runtime"),
    ("tokio-util", "a runtime"),
    ("tokio-stream", "a runtime"),
    ("tokio-rustls", "sockets"),
    ("futures", "a runtime"),
    ("rustls", "sockets"),
    ("russh", "sockets"),
    ("hyper", "sockets"),
    ("hyper-util", "sockets"),
    ("axum", "sockets"),
    ("tower", "a runtime"),
    ("rand", "randomness"),
    ("getrandom", "randomness"),
    ("rcgen", "randomness"),
    ("rusqlite", "files"),
    ("rustix", "the operating system"),
    ("nix", "the operating system"),
    ("tonic", "sockets"),
    ("tonic-prost", "a runtime"),
    ("tracing", "a log"),
];
/// Generated code of the API needs these; `tonic` is there without a transport of its own.
const PURE_EXCEPTIONS: &[(&str, &str)] = &[("wire", "tonic"), ("wire", "tonic-prost")];

type Table = BTreeMap<String, BTreeSet<String>>;

/// One dependency as a manifest declares it.
struct Arrow {
    from: String,
    to: String,
    is_ours: bool,
    is_dev: bool,
}

/// Compares the manifests with the table, and with what no table may allow.
pub(crate) fn arrows(root: &Root) -> Result<Findings> {
    let metadata = MetadataCommand::new().current_dir(root.dir()).no_deps().exec().context("cargo metadata")?;
    let crates: BTreeSet<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let arrows = declared(&metadata, &crates);
    let mut findings = Findings::default();
    findings.faults.extend(arrows.iter().filter_map(refusal));
    let text = fs::read_to_string(root.path(TABLE_FILE)).with_context(|| format!("could not read {TABLE_FILE}"));
    match text.and_then(|text| table(&text, &crates)) {
        Ok(table) => findings.faults.extend(departures(&table, &crates, &arrows)),
        Err(fault) => findings.fault(format!("{fault:#}")),
    }
    Ok(findings)
}

fn declared(metadata: &Metadata, crates: &BTreeSet<String>) -> Vec<Arrow> {
    let mut arrows = Vec::new();
    for package in &metadata.packages {
        for dependency in &package.dependencies {
            arrows.push(Arrow {
                from: package.name.to_string(),
                to: dependency.name.clone(),
                is_ours: dependency.path.is_some() && crates.contains(&dependency.name),
                is_dev: dependency.kind == cargo_metadata::DependencyKind::Development,
            });
        }
    }
    arrows
}

/// Why this arrow may not be, whatever the table says.
fn refusal(arrow: &Arrow) -> Option<String> {
    let (from, to) = (arrow.from.as_str(), arrow.to.as_str());
    let reason = if !arrow.is_ours {
        outside_refusal(arrow)?
    } else if TOOLS.contains(&to) && !TOOLS.contains(&from) {
        format!("{to} is for testing what ships: nothing that ships may use it, not even in its tests")
    } else if ["proxy", "agent"].contains(&from) && to == "store" {
        "only auth opens the store; others ask its API".to_owned()
    } else if SERVICES.contains(&from) && SERVICES.contains(&to) {
        "services meet over wire, also inside one process: one path, always the tested one".to_owned()
    } else {
        return None;
    };
    Some(format!("{from} -> {to}: {reason}"))
}

fn outside_refusal(arrow: &Arrow) -> Option<String> {
    let (from, to) = (arrow.from.as_str(), arrow.to.as_str());
    if to == "anyhow" && !ANYHOW.contains(&from) {
        return Some(format!("anyhow is for {}; here an error is an enum beside its operation", ANYHOW.join(", ")));
    }
    if !PURE.contains(&from) || arrow.is_dev || PURE_EXCEPTIONS.contains(&(from, to)) {
        return None;
    }
    let (_, brings) = IMPURE.iter().find(|(name, _)| *name == to)?;
    Some(format!("{from} is pure, {to} brings in {brings}"))
}

fn departures(table: &Table, crates: &BTreeSet<String>, arrows: &[Arrow]) -> Vec<String> {
    let mut faults = Vec::new();
    faults.extend(crates.iter().filter(|name| !table.contains_key(*name)).map(|name| format!("{TABLE_FILE}: `{name}` has no row")));
    faults.extend(table.keys().filter(|name| !crates.contains(*name)).map(|name| format!("{TABLE_FILE}: there is no crate `{name}`")));
    for arrow in arrows.iter().filter(|arrow| arrow.is_ours && !(arrow.from == "harness" && arrow.is_dev)) {
        let Some(allowed) = table.get(&arrow.from) else { continue };
        if !allowed.contains(&arrow.to) {
            let kind = if arrow.is_dev { " (for its tests)" } else { "" };
            faults.push(format!("{} -> {}{kind}: not in {TABLE_FILE}; remove it, or add it there with its reason", arrow.from, arrow.to));
        }
    }
    faults
}

/// Reads `| crate | may use |` rows; "all that ship" stands for every crate but the tools.
fn table(text: &str, crates: &BTreeSet<String>) -> Result<Table> {
    let Some((_, rest)) = text.split_once(BEGIN) else { bail!("{TABLE_FILE}: no `{BEGIN}`") };
    let Some((inside, _)) = rest.split_once(END) else { bail!("{TABLE_FILE}: no `{END}`") };
    let mut table = Table::new();
    for line in inside.lines().map(str::trim).filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let (Some(first), Some(last)) = (cells.first(), cells.last()) else { continue };
        let name = bare(first);
        if cells.len() < 2 || name == "crate" || name.chars().all(|letter| "-: ".contains(letter)) {
            continue;
        }
        let allowed = if last.contains("all that ship") {
            crates.iter().filter(|other| !TOOLS.contains(&other.as_str()) && **other != name).cloned().collect()
        } else {
            last.split([',', ' ', ';']).map(bare).filter(|word| crates.contains(word)).collect()
        };
        if table.insert(name.clone(), allowed).is_some() {
            bail!("{TABLE_FILE}: `{name}` has two rows");
        }
    }
    Ok(table)
}

/// The name without Markdown around it; of several words the first ("**types** *pure*").
fn bare(cell: &str) -> String {
    let word = cell.split_whitespace().next().unwrap_or_default();
    word.trim_matches(|letter: char| !letter.is_alphanumeric() && letter != '-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crates() -> BTreeSet<String> {
        ["types", "net", "auth", "proxy", "store", "harness"].map(str::to_owned).into()
    }

    fn ours(from: &str, to: &str) -> Arrow {
        Arrow { from: from.into(), to: to.into(), is_ours: true, is_dev: false }
    }

    const TEXT: &str = "x\n<!-- arrows:begin -->\n| crate | may use |\n|---|---|\n| **types** *pure* | – |\n| `net` | types |\n\
        | auth | types, net, store |\n| proxy | types, net |\n| store | types |\n| harness | all that ship |\n<!-- arrows:end -->\n";

    #[test]
    fn an_arrow_outside_the_table_is_a_fault_and_an_unused_one_is_not() {
        let table = table(TEXT, &crates()).unwrap();
        assert_eq!(departures(&table, &crates(), &[ours("auth", "types"), ours("net", "types")]), Vec::<String>::new());
        let faults = departures(&table, &crates(), &[ours("net", "auth")]);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(departures(&table, &crates(), &[ours("harness", "proxy")]), Vec::<String>::new());
    }

    #[test]
    fn crates_without_a_row_and_rows_without_a_crate_are_faults() {
        let mut others = crates();
        others.remove("net");
        others.insert("agent".into());
        let faults = departures(&table(TEXT, &others).unwrap(), &others, &[]);
        assert_eq!(faults.len(), 2, "{faults:?}");
    }

    #[test]
    fn some_arrows_no_table_may_allow() {
        let check = |from: &str, to: &str, expected: bool| assert_eq!(refusal(&ours(from, to)).is_some(), expected, "{from} -> {to}");
        check("proxy", "store", true);
        check("agent", "store", true);
        check("auth", "store", false);
        check("proxy", "auth", true);
        check("cli", "auth", false);
        check("cli", "harness", true);
        check("harness", "cli", false);
    }

    #[test]
    fn pure_crates_name_no_runtime_and_services_no_anyhow() {
        let outside = |from: &str, to: &str| Arrow { is_ours: false, ..ours(from, to) };
        let check = |from: &str, to: &str, expected: bool| assert_eq!(refusal(&outside(from, to)).is_some(), expected, "{from} -> {to}");
        check("rules", "tokio", true);
        check("wire", "tonic", false);
        check("types", "tonic", true);
        check("auth", "tokio", false);
        check("auth", "anyhow", true);
        check("cli", "anyhow", false);
    }
}
