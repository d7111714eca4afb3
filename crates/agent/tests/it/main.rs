//! The SSH Service from outside: a real client against the real server, over streams in memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests, and their helpers beside them"
)]

mod attacks;
mod bulk;
mod killed;
mod lasting;
mod openssh;
mod raw;
mod reached;
mod rescue;
mod sessions;
mod walk;
mod world;
