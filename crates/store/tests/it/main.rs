//! The store as its users see it: the conformance suite on each driver, and what only a whole driver can show.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod conformance;
mod documents;
mod durability;
mod memory;
mod reopen;

use std::sync::Arc;
use store::{Key, Manual};
use types::Time;

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn clock() -> Arc<Manual> {
    Arc::new(Manual::at(Time::from_unix(1_800_000_000)))
}
