//! Migrations on whole stores: every crash point, two runners, writers on both sides, bad rows, the mirror against a model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod at_once;
mod between;
mod contract;
mod crash;
mod drivers;
mod fault;
mod meddle;
mod mirror;
mod model;
mod rows;
mod samples;
#[path = "../../../store/tests/it/servers/mod.rs"]
#[allow(dead_code, unused_imports, reason = "what only the store's own tests need of its servers")]
mod servers;
