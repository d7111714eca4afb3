//! `bench/RESULTS.md`: what was measured, the targets beside it, and on what machine.
//!
//! Nothing in it is remembered from another run: cases hand in what they measured, this file lays it out.

use crate::{process::cores, step};
use harness::{Run, binary};
use std::{fmt::Write as _, fs, path::Path, time::Duration};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A figure that was promised.
struct Target {
    what: String,
    measured: String,
    wanted: String,
    met: bool,
}

pub(crate) struct Report {
    head: Vec<(&'static str, String)>,
    quick: bool,
    targets: Vec<Target>,
    body: String,
}

impl Report {
    pub(crate) fn new(program: &Path, quick: bool) -> Report {
        let said = |run: Run| {
            let ran = run.go();
            let all = format!("{}{}", ran.text(), ran.err);
            all.lines().next().unwrap_or("").trim().to_owned()
        };
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.to_owned()));
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib: u64 = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
        let profile =
            binary::current().parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let head = vec![
            (
                "date",
                OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH).format(&Rfc3339).unwrap_or_default(),
            ),
            (
                "machine",
                format!("{} cores, {}, {} GiB, Linux {}", cores(), model.unwrap_or_default(), kib >> 20, said(Run::new("uname").arg("-r"))),
            ),
            ("Lockgate", format!("{}, built as {}", said(Run::new(program).arg("version")), profile.trim_start_matches("current-"))),
            ("peer", said(Run::new("ssh").arg("-V"))),
        ];
        Report { head, quick, targets: Vec::new(), body: String::new() }
    }

    pub(crate) fn took(&mut self, length: Duration) {
        self.head.push(("duration", format!("{:.0} s", length.as_secs_f64())));
    }

    /// A promised figure, and whether it was reached.
    pub(crate) fn target(&mut self, what: &str, measured: String, wanted: &str, met: bool) {
        step(&format!("{what}: {measured} (target {wanted}){}", if met { "" } else { " MISSED" }));
        self.targets.push(Target { what: what.to_owned(), measured, wanted: wanted.to_owned(), met });
    }

    pub(crate) fn section(&mut self, title: &str, how: &str) {
        write!(self.body, "\n## {title}\n\n{how}\n").expect("a string");
    }

    /// The first row is the heading.
    pub(crate) fn table(&mut self, rows: &[Vec<String>]) {
        self.body.push('\n');
        for (number, row) in rows.iter().enumerate() {
            step(&row.join(" | "));
            writeln!(self.body, "| {} |", row.join(" | ")).expect("a string");
            if number == 0 {
                writeln!(self.body, "|---{}|", "|--:".repeat(row.len() - 1)).expect("a string");
            }
        }
    }

    pub(crate) fn line(&mut self, text: &str) {
        step(text);
        write!(self.body, "\n{text}\n").expect("a string");
    }

    /// The table of targets.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::from("| figure | measured | target | |\n|---|--:|--:|---|\n");
        for Target { what, measured, wanted, met } in &self.targets {
            writeln!(text, "| {what} | {measured} | {wanted} | {} |", if *met { "reached" } else { "**missed**" }).expect("a string");
        }
        text
    }

    pub(crate) fn render(&self) -> String {
        let mut text = String::from(
            "# Lockgate measured, beside OpenSSH, PostgreSQL, etcd and SQLite on the same machine\n\nWritten by `make bench`; do not edit. What the figures mean, and why, is in [NOTES.md](NOTES.md).\n\n",
        );
        for (name, value) in &self.head {
            writeln!(text, "- {name}: {value}").expect("a string");
        }
        if self.quick {
            text.push_str("- **a quick run**: too few rounds to compare with others\n");
        }
        write!(text, "\n{}{}", self.summary(), self.body).expect("a string");
        text
    }
}

/// A row of a table.
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}
