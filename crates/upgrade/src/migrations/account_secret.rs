//! `2-account-secret`: password hashes and second factors leave `internal/`, where leases and books lie, for `secret/`.
//!
//! Stores grant access by the beginning of a key (etcd's roles, a view in PostgreSQL). Whoever granted a monitor `internal/`, to see who
//! serves, granted every password hash with it, and one new kind of secret there would have been granted unseen. `ca_secret` does the same for the
//! authorities. Values stay as they are.

use crate::control::final_of;
use crate::migrate::definition::{Change, Form, Migration};

pub(crate) const ACCOUNT_SECRET: Migration = Migration {
    id: "2-account-secret",
    about: "password hashes and second factors lie under secret/, which no monitor needs to read",
    from: final_of(1),
    to: final_of(2),
    floor: 1,
    change: Change::Moved { from: "internal/account", to: "secret/account", form: Form::Kept },
    repair: None,
    source: include_str!("account_secret.rs"),
};
