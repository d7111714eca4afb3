//! The repository's Rust files, read once and cut into what the scans ask for: code, comments, and where tests begin.
//!
//! This is a reader of lines, not a parser: it knows `//` comments, string literals on one line, and the house rule that
//! unit tests stand at a file's end. That is enough for rules on words, and it cannot be stopped by code that does not compile.

use crate::run::Root;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// One file.
pub(crate) struct Source {
    /// Relative to the repository, with `/`.
    pub path: String,
    /// The folder under `crates/`.
    pub krate: String,
    pub lines: Vec<String>,
    /// Index of the first line of the unit tests; `lines.len()` when there are none; 0 when the file is all tests.
    pub tests_from: usize,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Source {
        let krate = path.split('/').nth(1).unwrap_or_default().to_owned();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let all_tests = path.contains("/tests/") || path.ends_with("/tests.rs") || path.contains("/benches/");
        let tests_from = if all_tests { 0 } else { first_test_line(&lines) };
        Source { path: path.to_owned(), krate, lines, tests_from }
    }

    /// Lines with comments and the contents of strings blanked, with their number counted from 1 and whether they are tests.
    pub(crate) fn code(&self) -> impl Iterator<Item = (usize, String, bool)> + '_ {
        self.lines.iter().enumerate().map(|(index, line)| (index + 1, code_of(line), index >= self.tests_from))
    }
}

/// `#[cfg(test)]` on a module with a body: from there to the end are tests.
fn first_test_line(lines: &[String]) -> usize {
    let marks = lines.iter().enumerate().filter(|(_, line)| line.trim() == "#[cfg(test)]");
    for (index, _) in marks {
        let next = lines.iter().skip(index + 1).map(|line| line.trim()).find(|line| !line.starts_with("#["));
        if next.is_some_and(|line| line.starts_with("mod ") && line.ends_with('{')) {
            return index;
        }
    }
    lines.len()
}

/// The line without its comment and without what stands between quotes.
fn code_of(line: &str) -> String {
    let mut code = String::with_capacity(line.len());
    let mut letters = line.chars().peekable();
    let mut quoted = false;
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if quoted => drop(letters.next()),
            '"' => {
                quoted = !quoted;
                code.push('"');
            }
            _ if quoted => {}
            // '"' and '\"' as characters do not open a string.
            '\'' if letters.peek() == Some(&'"') => drop(letters.by_ref().take(2).count()),
            '/' if letters.peek() == Some(&'/') => break,
            _ => code.push(letter),
        }
    }
    code
}

/// All `.rs` files of all crates, in order of path.
pub(crate) fn sources(root: &Root) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    collect(root.dir(), &root.path("crates"), &mut found)?;
    found.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(found)
}

fn collect(top: &Path, dir: &Path, found: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("could not list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(top, &path, found)?;
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
            let relative = path.strip_prefix(top).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            found.push(Source::new(&relative, &text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_not_code() {
        let check = |line: &str, expected: &str| assert_eq!(code_of(line), expected, "{line}");
        check("let x = 1; // unsafe", "let x = 1; ");
        check(r#"let u = "http://unsafe"; go()"#, r#"let u = ""; go()"#);
        check(r#"let q = "a\"unsafe"; go()"#, r#"let q = ""; go()"#);
        check(r#"if c == '"' { go() }"#, "if c ==  { go() }");
        check("//! words", "");
    }

    #[test]
    fn tests_begin_at_their_module_and_not_at_a_helper() {
        let file = Source::new("crates/x/src/a.rs", "#[cfg(test)]\nuse std::x;\nfn a() {}\n#[cfg(test)]\nmod tests {\n}\n");
        assert_eq!(file.tests_from, 3);
        assert_eq!(Source::new("crates/x/src/a.rs", "#[cfg(test)]\nmod tests;\nfn a() {}\n").tests_from, 3);
        assert_eq!(Source::new("crates/x/tests/it/main.rs", "fn a() {}").tests_from, 0);
    }
}
