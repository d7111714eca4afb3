//! `cargo xtask check|golden|reference|smells|freeze|dist|release-row`: what keeps the house in order, and what leaves it.
//!
//! `check` is what a change must pass before it lands, and is all of `make check`; `golden` and `reference` write files
//! that are made from others and checked in, and with `--check` only compare; `smells` lists what a review should ask
//! about and never fails. `freeze`, `dist` and `release-row` are the three steps of a release (docs/releases.md). The rules themselves
//! are explained beside the code that holds to them: `arrows.rs` (who may use whom), `scan.rs` (what the text may not say),
//! `supply.rs` (other people's code), `freeze.rs` and `releases.rs` (what was promised).
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a person at a terminal")]

mod arrows;
mod check;
mod dist;
mod freeze;
mod golden;
mod migrations;
mod reference;
mod releases;
mod run;
mod scan;
mod smells;
mod source;
mod supply;

use anyhow::{Result, bail};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask check [STEP...]        all steps, or only those named; `--list` names them
       cargo xtask golden [--check]       crates/wire/src/api/generated.rs from the .proto
       cargo xtask reference [--check]    docs/reference/ from the program's own definitions
       cargo xtask smells                 long functions, files and the like; never fails
       cargo xtask freeze                 frozen/<version>: what the coming release promises
       cargo xtask dist [--commit C] [--verify] [--program FILE]
                                          a release into dist/<version>/; twice, and compared; or only packed
       cargo xtask release-row            the row of dist/<version> into releases.toml";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match dispatch(&words) {
        Ok(code) => code,
        Err(fault) => {
            eprintln!("error: {fault:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(words: &[&str]) -> Result<ExitCode> {
    let root = run::Root::find()?;
    match words {
        ["check", "--list"] => check::list(),
        ["check", steps @ ..] => return check::check(&root, steps),
        ["golden"] => golden::golden(&root, false)?,
        ["golden", "--check"] => golden::golden(&root, true)?,
        ["reference"] => reference::reference(&root, false)?,
        ["reference", "--check"] => reference::reference(&root, true)?,
        ["smells"] => smells::smells(&root)?,
        ["freeze"] => freeze::freeze(&root)?,
        ["dist", options @ ..] => dist::dist(&root, options)?,
        ["release-row"] => releases::add(&root)?,
        ["help" | "-h" | "--help"] => println!("{USAGE}"),
        _ => bail!("unknown command `{}`\n{USAGE}", words.join(" ")),
    }
    Ok(ExitCode::SUCCESS)
}
