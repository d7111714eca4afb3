//! The generated parts of the documentation, from the code itself: the configuration from its types, the commands from
//! their definitions, error codes, exit statuses, audit events and metrics from their tables. `cargo xtask reference` writes them to
//! `docs/reference`, `--check` compares.

#[cfg(feature = "server")]
use crate::server::Program;
use std::{fmt::Write as _, path::Path};
use types::{Code, EventKind};

/// Writes every page.
#[cfg(feature = "server")]
pub(crate) fn write(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("config.md"), config())?;
    std::fs::write(dir.join("errors.md"), errors())?;
    std::fs::write(dir.join("events.md"), events())?;
    std::fs::write(dir.join("exit.md"), exit())?;
    std::fs::write(dir.join("metrics.md"), metrics())?;
    for program in [Program::Lockgate, Program::Tsh, Program::Tctl] {
        let command = program.command();
        let name = command.get_name().to_owned();
        std::fs::write(dir.join(format!("{name}.md")), commands(command))?;
    }
    Ok(())
}

/// Writes a man page for each program and each of its commands.
#[cfg(feature = "server")]
pub(crate) fn man(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for program in [Program::Lockgate, Program::Tsh, Program::Tctl] {
        clap_mangen::generate_to(program.command(), dir)?;
    }
    Ok(())
}

fn errors() -> String {
    let mut out =
        String::from("# Error codes\n\nGenerated from the code. A code never changes its meaning.\n\n| code | meaning |\n|---|---|\n");
    for code in Code::ALL {
        put(&mut out, &format!("| `{code}` | {} |", code.meaning()));
    }
    out
}

fn events() -> String {
    let mut out = String::from(
        "# Audit events\n\nGenerated from the code. `I` is a success, `W` a refusal, `E` a failure.\n\n| code | event | meaning |\n|---|---|---|\n",
    );
    for kind in EventKind::ALL {
        put(&mut out, &format!("| `{}` | `{}` | {} |", kind.code(), kind.name(), kind.meaning()));
    }
    out
}

fn exit() -> String {
    let mut out =
        String::from("# Exit statuses\n\nGenerated from the code. A status keeps its meaning.\n\n| status | meaning |\n|---|---|\n");
    for (status, meaning) in crate::exit::Status::ALL {
        put(&mut out, &format!("| `{}` | {meaning} |", *status as u8));
    }
    out
}

#[cfg(feature = "server")]
fn metrics() -> String {
    let mut out = String::from(
        "# Metrics\n\nGenerated from the code: what `/metrics` serves, as far as the process runs that service. Names and types stay.\n\n| metric | type | meaning |\n|---|---|---|\n",
    );
    for (name, kind, meaning) in crate::server::metrics::names() {
        put(&mut out, &format!("| `{name}` | {kind} | {meaning} |"));
    }
    out
}

fn put(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

/// One page per program: each command with its usage, flags and examples.
fn commands(mut command: clap::Command) -> String {
    command = command.term_width(100);
    command.build();
    let name = command.get_name().to_owned();
    let mut out = format!("# `{name}`\n\nGenerated from the command line definitions.\n");
    section(&mut out, &mut command, &name);
    out
}

fn section(out: &mut String, command: &mut clap::Command, path: &str) {
    let help = command.render_long_help().to_string();
    let help: String = help.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    // Writing into a String cannot fail.
    let _infallible = write!(out, "\n## `{path}`\n\n```text\n{}\n```\n", help.trim_end());
    let names: Vec<String> = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
        .map(|sub| sub.get_name().to_owned())
        .collect();
    for name in names {
        if let Some(sub) = command.find_subcommand_mut(&name) {
            section(out, sub, &format!("{path} {name}"));
        }
    }
}

/// The configuration's keys, from the schema that is derived from the types.
#[cfg(feature = "server")]
fn config() -> String {
    let schema = schemars::schema_for!(crate::config::Config);
    let root = schema.as_value();
    let mut out = String::from(
        "# Configuration\n\nGenerated from the types that read the file. File < environment < flag. Unknown keys are errors.\n\n| key | type | meaning |\n|---|---|---|\n",
    );
    keys(&mut out, root, root, "");
    out
}

#[cfg(feature = "server")]
fn keys(out: &mut String, root: &serde_json::Value, schema: &serde_json::Value, prefix: &str) {
    let Some(properties) = schema.get("properties").and_then(|value| value.as_object()) else { return };
    for (name, property) in properties {
        let target = resolve(root, property);
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let meaning = property
            .get("description")
            .or_else(|| target.get("description"))
            .and_then(|value| value.as_str())
            .unwrap_or("")
            .replace('\n', " ")
            .replace('|', "\\|");
        put(out, &format!("| `{path}` | {} | {meaning} |", type_name(root, property)));
        let items = target.get("items").map(|items| resolve(root, items));
        match items {
            Some(items) if items.get("properties").is_some() => keys(out, root, items, &format!("{path}[]")),
            _ => keys(out, root, target, &path),
        }
    }
}

/// Follows `$ref`, and the one alternative of an optional value that is not null.
#[cfg(feature = "server")]
fn resolve<'a>(root: &'a serde_json::Value, schema: &'a serde_json::Value) -> &'a serde_json::Value {
    if let Some(pointer) = schema.get("$ref").and_then(|value| value.as_str()) {
        return root.pointer(pointer.trim_start_matches('#')).unwrap_or(schema);
    }
    let alternatives = schema.get("anyOf").and_then(|value| value.as_array());
    match alternatives.and_then(|list| list.iter().find(|one| one.get("type").is_none_or(|kind| kind != "null"))) {
        Some(one) => resolve(root, one),
        None => schema,
    }
}

#[cfg(feature = "server")]
fn type_name(root: &serde_json::Value, property: &serde_json::Value) -> String {
    let target = resolve(root, property);
    if let Some(values) = target.get("enum").and_then(|value| value.as_array()) {
        return values.iter().filter_map(|value| value.as_str()).map(|value| format!("`{value}`")).collect::<Vec<_>>().join(" or ");
    }
    let kind = match target.get("type") {
        Some(serde_json::Value::String(kind)) => kind.clone(),
        Some(serde_json::Value::Array(kinds)) => {
            kinds.iter().filter_map(|kind| kind.as_str()).find(|&kind| kind != "null").unwrap_or("any").to_owned()
        }
        _ => "any".into(),
    };
    match kind.as_str() {
        "array" => format!("list of {}", target.get("items").map_or_else(|| "any".into(), |items| type_name(root, items))),
        "object" if target.get("properties").is_some() => "section".into(),
        "object" => "map".into(),
        "boolean" => "yes/no".into(),
        other => other.into(),
    }
}
