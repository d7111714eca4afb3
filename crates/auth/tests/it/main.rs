//! The Auth Service in process, over loopback TLS, with the client stubs of `wire::api`: whole flows and every refusal.
//!
//! Each test has its own cluster with its own clock; `fixture` starts it and makes clients for the administrator, members,
//! users and strangers. Stores: memory, and SQLite where a restart matters.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod apart;
mod audit;
mod backup;
mod birth;
mod certs;
mod documents;
mod executor;
mod fixture;
mod hosts;
mod join;
mod login;
mod migrations;
mod quarantine;
mod rights;
#[path = "../../../store/tests/it/servers/mod.rs"]
#[allow(dead_code, unused_imports, reason = "what only the store's own tests need of its servers")]
mod servers;
mod several;
mod updates;
mod watch;
mod windows;
