//! The planner as its callers see it: whole ways, written scenarios, random worlds, and every state of small ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests are test code too"
)]

mod broken;
mod flow;
mod model;
mod random;
mod scenarios;
mod world;
