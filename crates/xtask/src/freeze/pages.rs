//! Lists that are told by `docs/reference`, which the program writes of itself and step `reference` holds to be true.
//!
//! Read are the tables and the help texts, as they stand. What is not a promise is left out: descriptions of settings and flags, defaults,
//! the order. Error codes, events and exit statuses keep their meaning word for word: a script or a rule of an alarm rests on it.

use crate::run::Root;
use crate::source::{Source, sources};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;

fn page(root: &Root, name: &str) -> Result<String> {
    let path = format!("docs/reference/{name}.md");
    fs::read_to_string(root.path(&path)).context(path)
}

/// Rows of the tables of a page, cell by cell, without the marks of code.
fn rows(text: &str) -> Vec<Vec<String>> {
    let body = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("|---"));
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    // A table's head is not code.
    body.map(cells).filter(|row| row.first().is_some_and(|first| first.starts_with('`'))).collect()
}

fn bare(cell: &str) -> &str {
    cell.trim_matches('`')
}

fn filled(lines: BTreeSet<String>, page: &str) -> Result<BTreeSet<String>> {
    if lines.is_empty() {
        bail!("docs/reference/{page}.md has no table");
    }
    Ok(lines)
}

/// `LG-VERSION-001: the client is …`
pub(super) fn errors(root: &Root) -> Result<BTreeSet<String>> {
    let table = rows(&page(root, "errors")?);
    filled(table.iter().filter_map(|row| Some(format!("{}: {}", bare(row.first()?), row.get(1)?))).collect(), "errors")
}

/// `2: wrong usage of a command`
pub(super) fn exit(root: &Root) -> Result<BTreeSet<String>> {
    let table = rows(&page(root, "exit")?);
    filled(table.iter().filter_map(|row| Some(format!("{}: {}", bare(row.first()?), row.get(1)?))).collect(), "exit")
}

/// `lockgate_auth_logins_total: counter`. A name in the sources that the page does not tell is a fault: some are only served now and then.
pub(super) fn metrics(root: &Root) -> Result<BTreeSet<String>> {
    let table = rows(&page(root, "metrics")?);
    let told: BTreeSet<&str> = table.iter().filter_map(|row| row.first().map(|cell| bare(cell))).collect();
    for source in product(root)? {
        for name in source.lines.iter().take(source.tests_from).flat_map(|line| metric_names(line)) {
            if !told.contains(name) {
                bail!("{}: the metric {name} has no row in crates/cli/src/server/metrics.rs", source.path);
            }
        }
    }
    filled(table.iter().filter_map(|row| Some(format!("{}: {}", bare(row.first()?), row.get(1)?))).collect(), "metrics")
}

/// Names in string literals, `"lockgate_proxy_logins_total"`; not the beginnings of names.
fn metric_names(line: &str) -> impl Iterator<Item = &str> {
    let names = line.split("\"lockgate_").skip(1).filter_map(|rest| {
        let end = rest.find(|letter: char| !letter.is_ascii_lowercase() && !letter.is_ascii_digit() && letter != '_')?;
        // A metric says of what and what: `"lockgate_audit"` is the name of something else.
        (rest.get(end..)?.starts_with('"')).then(|| rest.get(..end))?.filter(|name| name.contains('_'))
    });
    names.filter_map(move |name| line.find(&format!("lockgate_{name}\"")).and_then(|at| line.get(at..at + 9 + name.len())))
}

/// The sources of what ships.
fn product(root: &Root) -> Result<Vec<Source>> {
    let ours = |source: &Source| source.path.contains("/src/") && !["xtask", "harness", "sim"].contains(&source.krate.as_str());
    Ok(sources(root)?.into_iter().filter(ours).collect())
}

/// `L1000I user.login: a user logged in`, and `field user` for each name under which an event has a detail.
pub(super) fn events(root: &Root) -> Result<BTreeSet<String>> {
    let table = rows(&page(root, "events")?);
    let kinds = table.iter().filter_map(|row| Some(format!("{} {}: {}", bare(row.first()?), bare(row.get(1)?), row.get(2)?)));
    let mut lines = filled(kinds.collect(), "events")?;
    for source in product(root)? {
        let lively = source.lines.iter().take(source.tests_from);
        if lively.clone().any(|line| line.contains("EventKind::")) {
            lines.extend(lively.flat_map(|line| details(line)).map(|name| format!("field {name}")));
        }
    }
    Ok(lines)
}

/// Names in `.with("name", …)`.
fn details(line: &str) -> impl Iterator<Item = &str> {
    line.split(".with(\"").skip(1).filter_map(|rest| rest.split_once("\",").map(|(name, _)| name))
}

/// `auth_service.backup.keep: integer`; for a choice `…second_factor`, and a line for each value.
pub(super) fn config(root: &Root) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for row in rows(&page(root, "config")?) {
        let [key, kind, ..] = row.as_slice() else { continue };
        let key = bare(key);
        if kind.starts_with('`') {
            lines.extend(kind.split(" or ").map(|value| format!("{key} = {}", bare(value))));
        } else {
            lines.insert(format!("{key}: {kind}"));
        }
    }
    filled(lines, "config")
}

/// `tsh ls --format`, and what belongs to it.
pub(super) fn commands(root: &Root) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for program in ["lockgate", "tsh", "tctl"] {
        lines.extend(help(&page(root, program)?));
    }
    filled(lines, "tsh")
}

/// One page of help texts, each under a heading with the command's name.
fn help(page: &str) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for chapter in page.split("\n## `").skip(1) {
        let Some((command, text)) = chapter.split_once('`') else { continue };
        lines.insert(command.to_owned());
        for item in items(text) {
            let option = item.first().map(|line| line.trim()).unwrap_or_default();
            let words: Vec<&str> =
                option.split("  ").next().unwrap_or_default().split([' ', ',']).filter(|word| !word.is_empty()).collect();
            let Some(name) = words.iter().copied().rfind(|word| word.starts_with("--")).or_else(|| words.first().copied()) else {
                continue;
            };
            let takes = words.iter().any(|word| word.starts_with('<') || word.starts_with('[')) && name.starts_with('-');
            lines.insert(format!("{command} {name}{}", if takes { " VALUE" } else { "" }));
            lines.extend(
                words
                    .iter()
                    .filter(|word| word.starts_with('-') && !word.starts_with("--"))
                    .map(|short| format!("{command} {short} is {name}")),
            );
            let told = item.join(" ");
            lines.extend(bracketed(&told, "[possible values:").map(|value| format!("{command} {name} = {value}")));
            lines.extend(bulleted(&item).map(|value| format!("{command} {name} = {value}")));
            lines.extend(bracketed(&told, "[aliases:").map(|alias| format!("{command} {alias} is {name}")));
            lines.extend(bracketed(&told, "[env:").map(|variable| format!("{command} {name} from {}", variable.trim_end_matches('='))));
        }
    }
    lines
}

/// The arguments and options of a help text: each with the lines that explain it.
fn items(text: &str) -> Vec<Vec<&str>> {
    let mut found: Vec<Vec<&str>> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let depth = line.len() - line.trim_start().len();
        let begins = line.trim_start().starts_with(['-', '<', '[']) && depth <= 6 && !line.trim_start().starts_with("- ");
        match (line.trim(), depth) {
            ("", _) => {}
            (heading, 0) => inside = heading.ends_with(':') && heading != "Commands:" && !heading.starts_with("Examples"),
            _ if !inside => {}
            _ if begins => found.push(vec![line]),
            (explains, _) => found.last_mut().into_iter().for_each(|item| item.push(explains)),
        }
    }
    found
}

/// `[possible values: text, json]`
fn bracketed<'a>(text: &'a str, opens: &'a str) -> impl Iterator<Item = &'a str> {
    let inner = text.split_once(opens).and_then(|(_, rest)| rest.split_once(']')).map(|(inner, _)| inner).unwrap_or_default();
    inner.split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// `- text:  For people` behind `Possible values:`
fn bulleted<'a>(item: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    let behind = item.iter().skip_while(|line| !line.ends_with("Possible values:")).skip(1);
    behind.filter_map(|line| line.trim().strip_prefix("- ")).map(|line| line.split(':').next().unwrap_or(line).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_help_text_gives_command_arguments_flags_values_and_variables() {
        let page = "\n## `tsh ls`\n\n```text\nLists hosts\n\n  -x is not a flag here\n\nUsage: tsh ls [OPTIONS] [LABELS]\n\nArguments:\n  [LABELS]\n          Which\n\n\
            Options:\n  -f, --format <FORMAT>\n          How to print\n\n          Possible values:\n          - text: For people\n          - json\n\n          [default: text]\n\n\
            \x20     --proxy <PROXY>\n          Where\n\n          [env: LOCKGATE_PROXY=]\n\n  -v, --verbose  More [aliases: loud]\n      --mode <MODE>  One [possible values: fast,\n          slow]\n```\n";
        let wanted = [
            "tsh ls",
            "tsh ls --format = json",
            "tsh ls --format = text",
            "tsh ls --format VALUE",
            "tsh ls --mode = fast",
            "tsh ls --mode = slow",
            "tsh ls --mode VALUE",
            "tsh ls --proxy VALUE",
            "tsh ls --proxy from LOCKGATE_PROXY",
            "tsh ls --verbose",
            "tsh ls -f is --format",
            "tsh ls -v is --verbose",
            "tsh ls [LABELS]",
            "tsh ls loud is --verbose",
        ];
        assert_eq!(help(page).iter().map(String::as_str).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn rows_are_cells_and_heads_are_not() {
        let text = "| code | meaning |\n|---|---|\n| `A` | says \\| so |\n";
        assert_eq!(rows(text), [["`A`", "says \\| so"]]);
    }

    #[test]
    fn fields_of_events_are_found_where_they_are_written() {
        assert_eq!(details(r#"event.with("user", x).with("addr.remote", y).with(name, z)"#).collect::<Vec<_>>(), ["user", "addr.remote"]);
    }

    #[test]
    fn metrics_are_found_where_they_are_named() {
        let check = |line: &str, expected: &[&str]| assert_eq!(metric_names(line).collect::<Vec<_>>(), expected, "{line}");
        check(r#"a("lockgate_proxy_logins_total", "lockgate_x", "lockgate_x_y")"#, &["lockgate_proxy_logins_total", "lockgate_x_y"]);
        check(r##""# HELP lockgate_build_info What", "lockgate_auth_{name}_total""##, &[]);
    }

    #[test]
    fn the_pages_of_this_repository_can_be_read() {
        let root = Root::find().unwrap();
        let has = |lines: Result<BTreeSet<String>>, wanted: &[&str]| {
            let lines = lines.unwrap();
            wanted.iter().for_each(|line| assert!(lines.contains(*line), "{line} is missing in {lines:#?}"));
        };
        has(errors(&root), &["LG-LOGIN-004: not logged in"]);
        has(events(&root), &["L1000I user.login: a user logged in", "field user", "field addr.remote"]);
        has(config(&root), &["lockgate.data_dir: string", "lockgate.storage.type = sqlite"]);
        has(commands(&root), &["tsh ssh", "lockgate start --token VALUE", "lockgate start --token from LOCKGATE_TOKEN"]);
        has(exit(&root), &["0: done", "2: wrong usage of a command"]);
        has(metrics(&root), &["lockgate_build_info: gauge", "lockgate_auth_logins_total: counter", "lockgate_proxy_sessions_open: gauge"]);
    }
}
