//! The Auth Service: keeps state, issues every certificate, takes the audit log and the recordings.
#![allow(dead_code)]

mod audit;
mod ca;
mod limits;
pub mod metrics;
mod mirror;
pub mod password;
mod recordings;
mod vault;
