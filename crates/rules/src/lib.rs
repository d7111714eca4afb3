//! Every decision of Lockgate: who may enter, what he may do there, which member is admitted.
//!
//! This is the crate an auditor reads. It knows no clock, no socket, no randomness and no hash order: the time, the
//! documents and the facts are arguments, and the answer is a [`Permit`] that nobody else can make, or a [`Denied`].
//! A handler that acts takes the permit, so that skipping the decision does not compile (design 2.2).
//!
//! Start with `permit` (what a decision yields), `access` (roles and sessions), `documents` (the API's table) and
//! `channel` (the SSH policy table). The bytes that the facts came from are read in `wire`.

pub mod access;
pub mod admission;
pub mod cert;
pub mod channel;
pub mod documents;
pub mod issue;
pub mod lock;
pub mod login;
pub mod password;
pub mod permit;
pub mod presence;
pub mod presets;
pub mod rescue;
pub mod route;
pub mod selector;
pub mod token;
pub mod walk;

pub use access::{CurrentUser, RoleSet};
pub use documents::{Caller, Verb};
pub use permit::{Denied, Permit};
