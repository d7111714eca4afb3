//! `cargo xtask check`: every step runs, each is shown with its time, all faults are told, one exit status.
//!
//! A step is a name and a function that returns its faults; an empty list is a pass. A step that could do only a part of
//! its work says so in a note, which is printed and does not fail: silence means that all of it was done.
//! The quick steps come first, so that a person who watches sees a slip at once. New step: one line in `STEPS`.

use crate::run::{Root, capture};
use crate::{arrows, freeze, golden, migrations, reference, releases, scan, supply};
use anyhow::{Result, bail};
use std::process::ExitCode;
use std::time::Instant;

/// What a step found.
#[derive(Default)]
pub(crate) struct Findings {
    /// Each makes the check fail.
    pub faults: Vec<String>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

impl Findings {
    pub(crate) fn fault(&mut self, text: impl Into<String>) {
        self.faults.push(text.into());
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

impl From<Result<()>> for Findings {
    fn from(outcome: Result<()>) -> Findings {
        let faults = outcome.err().map(|fault| format!("{fault:#}")).into_iter().collect();
        Findings { faults, notes: Vec::new() }
    }
}

struct Step {
    name: &'static str,
    about: &'static str,
    run: fn(&Root) -> Findings,
}

const STEPS: &[Step] = &[
    Step { name: "fmt", about: "rustfmt has nothing to change", run: fmt },
    Step {
        name: "text",
        about: "what the source may not say (crates/xtask/src/scan.rs)",
        run: |root| scan::scan(root).unwrap_or_else(failed),
    },
    Step {
        name: "arrows",
        about: "dependencies are those ARCHITECTURE.md allows",
        run: |root| arrows::arrows(root).unwrap_or_else(failed),
    },
    Step { name: "golden", about: "generated code is what the .proto generates", run: |root| golden::golden(root, true).into() },
    Step { name: "licences", about: "licences, bans and sources (deny.toml)", run: |root| supply::licences(root).unwrap_or_else(failed) },
    Step {
        name: "advisories",
        about: "floors, withdrawn versions, RustSec where reachable",
        run: |root| supply::advisories(root).unwrap_or_else(failed),
    },
    Step {
        name: "migrations",
        about: "released migrations are as they were released",
        run: |root| migrations::migrations(root).unwrap_or_else(failed),
    },
    Step {
        name: "releases",
        about: "releases.toml is well-formed, and true as far as the history tells",
        run: |root| releases::check(root).unwrap_or_else(failed),
    },
    Step { name: "frozen", about: "what releases promised still holds (frozen/)", run: |root| freeze::check(root).unwrap_or_else(failed) },
    Step { name: "clippy", about: "clippy, warnings denied", run: clippy },
    Step { name: "doc", about: "documentation builds, warnings denied", run: doc },
    Step {
        name: "reference",
        about: "docs/reference is what the program says of itself",
        run: |root| reference::reference(root, true).into(),
    },
];

fn failed(fault: anyhow::Error) -> Findings {
    Err(fault).into()
}

/// Prints the steps and what each looks at.
pub(crate) fn list() {
    for step in STEPS {
        println!("{:<12} {}", step.name, step.about);
    }
}

/// Runs all steps, or those named.
pub(crate) fn check(root: &Root, wanted: &[&str]) -> Result<ExitCode> {
    if let Some(unknown) = wanted.iter().find(|name| STEPS.iter().all(|step| step.name != **name)) {
        bail!("there is no step `{unknown}`; `cargo xtask check --list` names them");
    }
    let begun = Instant::now();
    let mut broken = Vec::new();
    for step in STEPS.iter().filter(|step| wanted.is_empty() || wanted.contains(&step.name)) {
        let started = Instant::now();
        let findings = (step.run)(root);
        let verdict = if findings.faults.is_empty() { "ok" } else { "FAILED" };
        println!("{:<12} {verdict:<6} {:>6.1} s", step.name, started.elapsed().as_secs_f64());
        for note in &findings.notes {
            println!("    note: {note}");
        }
        for fault in &findings.faults {
            println!("    {}", fault.trim_end().replace('\n', "\n    "));
        }
        if !findings.faults.is_empty() {
            broken.push(step.name);
        }
    }
    println!("{:<12} {:<6} {:>6.1} s", "check", if broken.is_empty() { "ok" } else { "FAILED" }, begun.elapsed().as_secs_f64());
    if broken.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("failed: {}; one alone: cargo xtask check STEP", broken.join(", "));
    Ok(ExitCode::FAILURE)
}

fn fmt(root: &Root) -> Findings {
    let mut command = root.cargo();
    command.args(["fmt", "--all", "--check", "--", "-l"]);
    capture(&mut command).map(drop).map_err(|fault| fault.context("cargo fmt would change these")).into()
}

fn clippy(root: &Root) -> Findings {
    let mut command = root.cargo();
    command.args(["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]);
    capture(&mut command).map(drop).into()
}

fn doc(root: &Root) -> Findings {
    let mut command = root.cargo();
    command.args(["doc", "--quiet", "--no-deps", "--workspace", "--locked"]).env("RUSTDOCFLAGS", "-D warnings");
    capture(&mut command).map(drop).into()
}
