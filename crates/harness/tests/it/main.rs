//! The whole system: real processes, real OpenSSH. One module for each thing that a user or an attacker does.

mod admin;
mod attacks;
mod diag;
mod fuzz;
mod join;
mod login;
mod openssh;
mod raw_ssh;
mod record;
mod ssh;
mod talk;
mod versions;
