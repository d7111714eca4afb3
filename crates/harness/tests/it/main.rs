//! The whole system: real processes, real OpenSSH. One module for each thing that a user or an attacker does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests and their helpers fail by panicking"
)]

mod admin;
mod attacks;
mod backup;
mod diag;
mod forward;
mod frozen;
mod fuzz;
mod ha;
mod join;
mod login;
mod openssh;
mod raw_ssh;
mod record;
mod rescue;
mod restart;
mod rogue;
mod ssh;
mod talk;
mod update;
mod upgrade;
mod versions;
mod walk;
