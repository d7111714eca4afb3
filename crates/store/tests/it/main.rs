//! The store as its users see it: the conformance suite on each driver, and what only a whole driver can show.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod conformance;
mod documents;
mod durability;
mod etcd;
mod load;
mod memory;
mod postgres;
mod proxy;
mod reopen;
mod servers;
mod zombie;

use std::sync::Arc;
use store::{Key, Manual};
use types::Time;

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

/// A number from the environment, for longer runs than usual.
fn rounds(usual: usize) -> usize {
    std::env::var("LOCKGATE_STORE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn clock() -> Arc<Manual> {
    Arc::new(Manual::at(Time::from_unix(1_800_000_000)))
}
