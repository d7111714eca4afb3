//! `cargo xtask check|golden|reference|smells`: what keeps the house in order.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod golden;
mod run;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let check = words.iter().any(|word| word == "--check");
    let outcome = run::Root::find().and_then(|root| golden::golden(&root, check));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("error: {fault:#}");
            ExitCode::FAILURE
        }
    }
}
