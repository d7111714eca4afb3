//! The one program. Its first word, or the name it was called by, says which of three it is: `lockgate` (services),
//! `tsh` (users), `tctl` (administrators).
//!
//! Nothing happens here but choosing: no runtime is started before a command needs one, so that `tsh version` and
//! shell completion answer at once. The binary version enters here and is passed down as a value.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the crate that prints")]
#![allow(
    rustdoc::invalid_html_tags,
    rustdoc::broken_intra_doc_links,
    rustdoc::bare_urls,
    reason = "comments on flags are help texts for a terminal"
)]

#[cfg(feature = "server")]
mod config;
mod connection;
mod debug;
mod environment;
mod exit;
mod output;
mod reference;
#[cfg(feature = "server")]
mod server;
mod tctl;
mod tsh;

use std::{path::Path, process::ExitCode};
use types::Version;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What this binary was built as; a build for the version matrix may claim another (see `build.rs`).
pub(crate) fn version() -> Version {
    // The build script's text is a version, or nothing of this program works: 0.0.0 is refused by every peer.
    env!("LOCKGATE_VERSION").parse().unwrap_or(Version::new(0, 0, 0))
}

/// The commit it was built from.
pub(crate) const GITREF: &str = env!("LOCKGATE_GITREF");

fn main() -> ExitCode {
    let mut words: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let called = words.first().and_then(|word| Path::new(word).file_name()).and_then(|name| name.to_str()).unwrap_or("lockgate").to_owned();
    let program = match (called.as_str(), words.get(1).and_then(|word| word.to_str())) {
        ("tsh", _) => "tsh",
        ("tctl", _) => "tctl",
        (_, Some("tsh")) => {
            words.remove(0);
            "tsh"
        }
        (_, Some("tctl")) => {
            words.remove(0);
            "tctl"
        }
        _ => "lockgate",
    };
    let outcome = match program {
        "tsh" => tsh::main(words),
        "tctl" => tctl::main(words),
        _ => lockgate(words),
    };
    outcome.unwrap_or_else(|failure| failure.report())
}

#[cfg(feature = "server")]
fn lockgate(words: Vec<std::ffi::OsString>) -> exit::Outcome {
    server::main(words)
}

#[cfg(not(feature = "server"))]
fn lockgate(_words: Vec<std::ffi::OsString>) -> exit::Outcome {
    Err(exit::Failure::new("start a service", exit::usage("this build has only tsh and tctl")))
}

#[cfg(test)]
mod tests {
    fn check(command: &clap::Command, path: &str) {
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            assert!(argument.get_help().is_some(), "{path}: {} has no help", argument.get_id());
        }
        for inner in command.get_subcommands() {
            let path = format!("{path} {}", inner.get_name());
            assert!(inner.get_about().is_some(), "{path} has no help");
            check(inner, &path);
        }
    }

    #[test]
    fn every_command_and_every_flag_says_what_it_is_for() {
        check(&crate::tsh::command(), "tsh");
        check(&crate::tctl::command(), "tctl");
        #[cfg(feature = "server")]
        check(&crate::server::command(), "lockgate");
    }
}
