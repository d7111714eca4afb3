//! What tests of this crate and of its users need: a cluster's authorities, an Auth Service in memory, and the suite that
//! both this one and the real one pass.
//!
//! Compiled only for tests (feature `testing`). [`Cluster`] signs whatever it is told to, also what no real authority would:
//! attack tests need that. [`FakeAuth`] keeps documents and serves watches as the real one does, and can be sent away.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test support: a panic is a failed test"
)]

mod auth;
mod cluster;
mod suite;

pub use auth::FakeAuth;
pub use cluster::{Cluster, HOUR};
pub use suite::suite;
