//! Variables of our own, `LOCKGATE_*`. One that is set to nothing is as one that is not set: scripts and unit files clear
//! a variable that way.
//!
//! The flags read theirs through clap, which takes an empty variable for an empty value; so [`drop_empty`] leaves them out of
//! the definitions before a command line is read. The environment itself is not changed.

use clap::{Command, CommandFactory, FromArgMatches, builder::Resettable};
use std::ffi::OsString;
use tracing_subscriber::EnvFilter;

/// A variable that says something.
pub(crate) fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What to log: `LOCKGATE_LOG` in tracing's filter syntax, or `usual`.
pub(crate) fn log_filter(usual: &str) -> EnvFilter {
    let wanted = var("LOCKGATE_LOG").and_then(|text| match EnvFilter::try_new(&text) {
        Ok(filter) => Some(filter),
        Err(error) => {
            eprintln!("warning: LOCKGATE_LOG=\"{}\" is not understood and is left out: {error}", text.escape_debug());
            None
        }
    });
    wanted.unwrap_or_else(|| EnvFilter::new(usual))
}

/// Reads a command line; what is wrong with it is told, and ends the program with status 2.
pub(crate) fn parse<P: CommandFactory + FromArgMatches>(words: Vec<OsString>) -> P {
    let mut command = drop_empty(P::command());
    let mut matches = command.clone().get_matches_from(words);
    P::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.format(&mut command).exit())
}

/// The definitions without the variables that are set to nothing.
fn drop_empty(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let says_nothing = arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
        if says_nothing { arg.env(Resettable::Reset) } else { arg }
    });
    command.mut_subcommands(drop_empty)
}
