//! What is stored, as 1.0.0 and later releases wrote it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod golden;
mod hold;
