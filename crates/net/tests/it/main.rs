//! Whole paths through `net`: real TLS with authorities made on the spot, loopback sockets on free ports, in-memory pipes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests, and their helpers beside them"
)]

mod copy;
mod dial;
mod frame;
mod grpc;
mod hello;
mod listen;
mod peek;
mod tls;
mod world;
