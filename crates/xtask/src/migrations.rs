//! Released migrations stay as they were released: `crates/upgrade/migrations.lock` only grows, and its digests hold.
//!
//! The digests are compared by a test of `upgrade`, which this step runs. What a test cannot see is a line that was
//! changed together with its migration: the history shows every line that ever stood in the file, and all of them must still be there.

use crate::check::Findings;
use crate::run::{Root, capture};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

const LOCK: &str = "crates/upgrade/migrations.lock";
const TEST: &str = "migrate::registry::tests::the_released_migrations_are_as_they_were_released";

/// Compares the file with its history, and the migrations with the file.
pub(crate) fn migrations(root: &Root) -> Result<Findings> {
    let mut findings = Findings::default();
    only_grown(root, LOCK, "was released and is gone; put it back, and fix by a new migration", &mut findings)?;
    let mut test = root.cargo();
    test.args(["test", "--quiet", "--locked", "-p", "upgrade", "--lib", "--", "--exact", TEST]);
    let told = capture(&mut test)?;
    if !told.contains("1 passed") {
        findings.fault(format!("the test {TEST} is gone"));
    }
    Ok(findings)
}

/// Every line that ever stood in that file still does.
pub(crate) fn only_grown(root: &Root, file: &str, cure: &str, findings: &mut Findings) -> Result<()> {
    let now = fs::read_to_string(root.path(file)).with_context(|| format!("could not read {file}"))?;
    let mut log = Command::new("git");
    log.current_dir(root.dir()).args(["log", "--format=", "--unified=0", "--patch", "--", file]);
    match capture(&mut log) {
        Ok(history) => findings.faults.extend(lost(&history, &now).into_iter().map(|line| format!("{file}: \"{line}\" {cure}"))),
        Err(fault) => findings.note(format!("the history of {file} could not be read: {fault:#}")),
    }
    Ok(())
}

/// Lines that stood in the file once, and do not now.
fn lost<'a>(history: &'a str, now: &str) -> BTreeSet<&'a str> {
    let present: BTreeSet<&str> = now.lines().map(str::trim).collect();
    let gone = history.lines().filter(|line| !line.starts_with("---")).filter_map(|line| line.strip_prefix('-')).map(str::trim);
    gone.filter(|line| !line.is_empty() && !line.starts_with('#') && !present.contains(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_stood_there_once_must_still_stand_there() {
        let check = |history: &str, now: &str, expected: usize| assert_eq!(lost(history, now).len(), expected, "{history}");
        let changed = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-2-users abc\n+2-users def\n";
        check("", "# words\n2-users abc\n", 0);
        check(changed, "2-users def\n", 1);
        check(changed, "2-users abc\n2-users def\n", 0);
        check("-# words\n+# other words\n", "# other words\n", 0);
    }
}
