//! The backup file from outside: what is written reads back, and whatever is done to it on the way is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod damage;
mod forge;
mod golden;
mod keys;
mod memory;
mod mixed;
mod newer;
mod round;
mod support;
