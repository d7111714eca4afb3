//! `cargo xtask smells`: what a review should ask about. Signs, not limits, so it never fails.
//!
//! Function bodies are found by indentation, which rustfmt makes exact: a `fn` line and the first later line that is its
//! closing brace at the same depth. Generated code is left out.

use crate::run::Root;
use crate::source::{Source, sources};
use anyhow::Result;

const FUNCTION_LINES: usize = 60;
const FILE_LINES: usize = 800;
const STRUCT_FIELDS: usize = 12;
const PARAMETERS: usize = 5;
const HEADER_LINES: usize = 15;

/// A thing with a body: what it is, where it begins, how many lines it has inside.
struct Body {
    head: String,
    line: usize,
    inside: Vec<String>,
}

/// Prints them by kind, the longest first.
pub(crate) fn smells(root: &Root) -> Result<()> {
    let sources: Vec<Source> = sources(root)?.into_iter().filter(|source| !source.path.ends_with("/generated.rs")).collect();
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut functions = 0;
    for source in &sources {
        functions += bodies(source, is_function).len();
        found.extend(smells_of(source));
    }
    found.sort_by(|left, right| right.0.cmp(&left.0).then_with(|| left.1.cmp(&right.1)));
    for (_, text) in &found {
        println!("{text}");
    }
    let long = found.iter().filter(|(_, text)| text.contains("lines in fn")).count();
    println!(
        "{} files, {functions} functions, {long} of them over {FUNCTION_LINES} lines; {} things to answer for",
        sources.len(),
        found.len()
    );
    Ok(())
}

fn smells_of(source: &Source) -> Vec<(usize, String)> {
    let path = &source.path;
    let mut found = Vec::new();
    let mut tell = |size: usize, limit: usize, line: usize, what: String| {
        if size > limit {
            found.push((size, format!("{path}:{line}: {size} {what}")));
        }
    };
    tell(source.lines.len(), FILE_LINES, 1, "lines in the file".to_owned());
    tell(source.lines.iter().take_while(|line| line.starts_with("//!")).count(), HEADER_LINES, 1, "lines of header".to_owned());
    for body in bodies(source, is_function) {
        tell(body.inside.len(), FUNCTION_LINES, body.line, format!("lines in fn {}", body.head));
    }
    for body in bodies(source, is_struct) {
        let fields = body.inside.iter().filter(|line| line.contains(": ") && !line.trim_start().starts_with(['/', '#'])).count();
        tell(fields, STRUCT_FIELDS, body.line, format!("fields in struct {}", body.head));
    }
    for (index, line) in source.lines.iter().enumerate().filter(|(_, line)| is_function(line)) {
        let count = line.split_once('(').map_or(0, |(_, rest)| rest.matches(": ").count());
        tell(count, PARAMETERS, index + 1, "parameters".to_owned());
    }
    found
}

fn bodies(source: &Source, starts: fn(&str) -> bool) -> Vec<Body> {
    let mut found = Vec::new();
    for (index, line) in source.lines.iter().enumerate().filter(|(_, line)| starts(line)) {
        let depth = line.len() - line.trim_start().len();
        let close = format!("{}}}", " ".repeat(depth));
        let rest = source.lines.iter().skip(index + 1);
        let inside: Vec<String> = rest.take_while(|line| **line != close).cloned().collect();
        let one_line = line.ends_with(['}', ';']) || index + 1 + inside.len() >= source.lines.len();
        if !one_line {
            found.push(Body { head: name_of(line), line: index + 1, inside });
        }
    }
    found
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace().skip_while(|word| word.starts_with("pub") || ["async", "const", "unsafe", "extern"].contains(word))
}

fn is_function(line: &str) -> bool {
    words(line).next() == Some("fn")
}

fn is_struct(line: &str) -> bool {
    words(line).next() == Some("struct")
}

fn name_of(line: &str) -> String {
    let name = words(line).nth(1).unwrap_or_default();
    name.split(['(', '<', '{', ';']).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_ends_at_its_own_brace() {
        let text = "impl A {\n    pub(crate) async fn long(x: u8) -> u8 {\n        if x {\n        }\n        1\n    }\n}\nfn short() {}\n";
        let found = bodies(&Source::new("crates/x/src/a.rs", text), is_function);
        let seen: Vec<(&str, usize, usize)> = found.iter().map(|body| (body.head.as_str(), body.line, body.inside.len())).collect();
        assert_eq!(seen, [("long", 2, 3)]);
    }
}
