//! Bytes and back: everything that crosses a connection or is put into a file, without a socket in sight.
//!
//! Parsers here read strangers' bytes: every length has a bound, every failure is a value, and each has a fuzz target.
//! What is frozen for ever (the handshake's envelope, the control record, the tunnel's messages) is pinned by tests
//! that compare bytes.

pub mod alpn;
pub mod api;
pub mod audit;
pub mod capability;
pub mod content;
pub mod credentials;
pub mod directive;
pub mod edge;
pub mod frame;
pub mod handover;
pub mod hello;
pub mod identity;
pub mod recording;
pub mod rescue;
pub mod route;
pub mod sni;
pub mod splice;
pub mod tunnel;
pub mod web;
