//! The migrations of this product, oldest first: one file each, frozen once released (`migrate::registry`).
//!
//! Each file is complete in itself: what a later release does to its own types must not change what a migration of before makes of a
//! row. Their list is `migrate::registry::MIGRATIONS`; how to write one, and what users see of these: `docs/migrations.md`.

mod account_secret;
mod ca_secret;
pub mod host_compact;
mod invite_user;
mod user_status;

pub(crate) use account_secret::ACCOUNT_SECRET;
pub(crate) use ca_secret::CA_SECRET;
pub(crate) use host_compact::HOST_COMPACT;
pub(crate) use invite_user::INVITE_USER;
pub(crate) use user_status::USER_STATUS;
