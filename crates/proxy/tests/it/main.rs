//! The Proxy over real sockets: a whole one per test, with certificate authorities of its own, a fake Auth Service behind its
//! API, fake agents that speak `wire::tunnel`, and `tsh` as `client` does it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests, and their helpers beside them"
)]

mod ca;
mod dial;
mod fake_agent;
mod fake_auth;
mod jump;
mod limits;
mod listener;
mod rescue;
mod rig;
mod stay;
mod web;
