//! What the text of the source may not say: the rules of the house that a compiler does not know.
//!
//! Each rule is a row: words to look for, the files it binds, and the sentence a person reads when he breaks it. Rules on
//! code ignore comments and the contents of strings; rules that spare tests stop where `source.rs` says tests begin. There
//! is no way to silence one in place: an exception is a change of this file, which a review sees.
//!
//! Pure crates decide and convert; time, seeds and order come in as arguments (ARCHITECTURE.md, invariants).

use crate::check::Findings;
use crate::run::Root;
use crate::source::{Source, sources};
use anyhow::Result;

/// Crates without runtime, clock, randomness, sockets, files and hash order.
pub(crate) const PURE: &[&str] = &["types", "rules", "wire", "upgrade", "backup"];
/// The only files that may say `unsafe`; each explains why in its header.
const UNSAFE_FILES: &[&str] = &["crates/agent/src/ssh/spawn.rs"];
/// Crates that print for a living.
const PRINTING: &[&str] = &["cli", "xtask", "harness"];
/// This file names what it forbids.
const THIS_FILE: &str = "crates/xtask/src/scan.rs";
/// A file longer than this says in its first line what it is for.
const HEADER_FROM_LINES: usize = 50;
const VAGUE_NAMES: &[&str] = &["common", "util", "utils", "helper", "helpers", "misc", "manager"];

/// Which text of a file a rule reads.
#[derive(PartialEq)]
enum Reads {
    /// Code outside tests.
    Code,
    /// Code, tests too.
    AllCode,
    /// Everything, comments too.
    Everything,
}

struct Rule {
    words: &'static [&'static str],
    reads: Reads,
    binds: fn(&Source) -> bool,
    reason: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        words: &["SystemTime::now", "Instant::now", "OffsetDateTime::now", "UtcDateTime::now", "Uuid::now_v7", "Uuid::new_v4"],
        reads: Reads::Code,
        binds: pure,
        reason: "a pure crate reads no clock and no randomness: take a `Time` or an id as an argument",
    },
    Rule {
        words: &[
            "rand::",
            "getrandom",
            "tokio::",
            "std::thread",
            "std::env::var",
            "std::env::args",
            "std::env::current",
            "std::fs",
            "fs::read",
            "fs::write",
            "TcpStream",
            "UdpSocket",
        ],
        reads: Reads::Code,
        binds: pure,
        reason: "a pure crate has no randomness, runtime, thread, environment, file or socket",
    },
    Rule {
        words: &["HashMap", "HashSet"],
        reads: Reads::Code,
        binds: |source| pure(source) && !generated(source),
        reason: "a pure crate's answers do not depend on hash order: BTreeMap, BTreeSet",
    },
    Rule {
        words: &["TODO", "FIXME", "XXX:"],
        reads: Reads::Everything,
        binds: everywhere,
        reason: "finish it, or open an issue and say nothing here",
    },
    Rule {
        words: &["todo!", "unimplemented!", "#[ignore"],
        reads: Reads::AllCode,
        binds: everywhere,
        reason: "no stubs, and no test that does not run",
    },
    Rule {
        words: &["unbounded_channel", "mpsc::unbounded", "mpsc::channel()"],
        reads: Reads::AllCode,
        binds: everywhere,
        reason: "every queue has a bound; say what happens when it is full",
    },
    Rule {
        words: &["tokio::spawn", "tokio::task::spawn(", "task::spawn(async", "Handle::current().spawn"],
        reads: Reads::Code,
        binds: |source| !["net", "harness"].contains(&source.krate.as_str()),
        reason: "tasks start through net::task, with a name, and end with their group",
    },
    Rule {
        words: &["print!(", "println!(", "eprint!(", "eprintln!(", "dbg!("],
        reads: Reads::Code,
        binds: |source| !PRINTING.contains(&source.krate.as_str()),
        reason: "only `cli` prints; everything else returns or logs",
    },
    Rule {
        words: &["unsafe", "allow(unsafe_code)"],
        reads: Reads::AllCode,
        binds: |source| !UNSAFE_FILES.contains(&source.path.as_str()),
        reason: "`unsafe` only in the files that crates/xtask/src/scan.rs lists",
    },
];

fn pure(source: &Source) -> bool {
    PURE.contains(&source.krate.as_str())
}

fn generated(source: &Source) -> bool {
    source.path.ends_with("/generated.rs")
}

fn everywhere(_: &Source) -> bool {
    true
}

/// Holds every file against every rule.
pub(crate) fn scan(root: &Root) -> Result<Findings> {
    let mut findings = Findings::default();
    for source in sources(root)? {
        findings.faults.extend(faults_of(&source));
    }
    Ok(findings)
}

fn faults_of(source: &Source) -> Vec<String> {
    let mut faults: Vec<String> = shape_faults(source).into_iter().map(|text| format!("{}: {text}", source.path)).collect();
    if source.path == THIS_FILE {
        return faults;
    }
    for rule in RULES.iter().filter(|rule| (rule.binds)(source)) {
        for (number, code, is_test) in source.code() {
            let whole = source.lines.get(number - 1).map_or("", String::as_str);
            let text = if rule.reads == Reads::Everything { whole } else { &code };
            if is_test && rule.reads == Reads::Code {
                continue;
            }
            if let Some(word) = rule.words.iter().find(|word| says(text, word)) {
                faults.push(format!("{}:{number}: `{word}`: {}", source.path, rule.reason));
            }
        }
    }
    faults
}

/// Name, place and header of a file.
fn shape_faults(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    let stems = source.path.split('/').map(|part| part.trim_end_matches(".rs"));
    if let Some(vague) = stems.into_iter().find(|stem| VAGUE_NAMES.contains(stem)) {
        faults.push(format!("nothing is called `{vague}`: put it beside its only user, or name the thing it is"));
    }
    let opens = source.lines.first().is_some_and(|line| line.starts_with("//!"));
    if source.lines.len() > HEADER_FROM_LINES && !opens {
        faults.push(format!("a file over {HEADER_FROM_LINES} lines opens with `//!`: what it is for, what it promises, who calls it"));
    }
    if source.path.contains("/tests/") && !source.path.contains("/tests/it/") && !source.path.contains("/src/") {
        faults.push("one integration binary per crate: move it under tests/it/ as a module of main.rs".to_owned());
    }
    faults
}

/// Whether `text` has `word` with no letter, digit or `_` on either side where the word itself begins or ends with one.
fn says(text: &str, word: &str) -> bool {
    let part = |letter: char| letter.is_alphanumeric() || letter == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text.get(..at).and_then(|left| left.chars().next_back());
        let after = text.get(at + word.len()..).and_then(|right| right.chars().next());
        let opens = word.chars().next().is_some_and(part) && before.is_some_and(part);
        let closes = word.chars().next_back().is_some_and(part) && after.is_some_and(part);
        !opens && !closes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, expected: &[&str]) {
        let faults = faults_of(&Source::new(path, text));
        assert_eq!(faults.len(), expected.len(), "{path}: {faults:?}");
        for (fault, part) in faults.iter().zip(expected) {
            assert!(fault.contains(part), "{fault} should name {part}");
        }
    }

    #[test]
    fn pure_crates_read_no_clock_no_chance_and_no_hash_order() {
        check("crates/rules/src/a.rs", "let t = std::time::SystemTime::now();", &["a.rs:1: `SystemTime::now`"]);
        check("crates/wire/src/a.rs", "use std::collections::HashMap;", &["hash order"]);
        check("crates/types/src/a.rs", "let x = rand::random();", &["`rand::`"]);
        check("crates/auth/src/a.rs", "let x: HashMap<A, B>; rand::random(); SystemTime::now();", &[]);
        check("crates/rules/src/a.rs", "/// Like a HashMap.\nfn operand() {}", &[]);
        check("crates/rules/src/a.rs", "#[cfg(test)]\nmod tests {\n  use std::collections::HashMap;\n}", &[]);
    }

    #[test]
    fn stubs_are_found_in_tests_and_in_comments() {
        check("crates/auth/src/a.rs", "// TODO later", &["`TODO`"]);
        check("crates/auth/tests/it/main.rs", "#[ignore]\nfn a() {}", &["`#[ignore`"]);
        check("crates/auth/src/a.rs", "todo!()", &["`todo!`"]);
        check("crates/auth/src/a.rs", "let todos = 1; // mastodon", &[]);
    }

    #[test]
    fn tasks_channels_printing_and_unsafe_have_their_places() {
        check("crates/proxy/src/a.rs", "tokio::spawn(x);", &["net::task"]);
        check("crates/proxy/src/a.rs", "tokio::task::spawn_blocking(x);", &[]);
        check("crates/net/src/task.rs", "tokio::spawn(x);", &[]);
        check("crates/net/src/a.rs", "let (a, b) = mpsc::unbounded_channel();", &["bound"]);
        check("crates/net/src/a.rs", "let (a, b) = mpsc::channel(8);", &[]);
        check("crates/agent/src/a.rs", "println!(\"x\");", &["only `cli` prints"]);
        check("crates/agent/src/a.rs", "fn blueprint() {}", &[]);
        check("crates/agent/src/a.rs", "unsafe { x() }", &["`unsafe`"]);
        check("crates/agent/src/a.rs", "#![deny(unsafe_code)] // no unsafe here", &[]);
        check("crates/agent/src/ssh/spawn.rs", "unsafe { x() }", &[]);
    }

    #[test]
    fn files_have_a_name_a_place_and_a_header() {
        check("crates/agent/src/utils.rs", "", &["`utils`"]);
        check("crates/agent/src/common/mod.rs", "", &["`common`"]);
        check("crates/agent/tests/other.rs", "", &["tests/it/"]);
        check("crates/agent/src/a.rs", &"\n".repeat(51), &["opens with"]);
        check("crates/agent/src/a.rs", &format!("//! Words.\n{}", "\n".repeat(60)), &[]);
    }
}
