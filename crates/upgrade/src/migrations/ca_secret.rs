//! `2-ca-secret`: the private keys of the authorities leave `internal/` for `secret/`, like the accounts (`account_secret`).
//!
//! Whoever reads these two rows is the cluster. Values stay as they are.

use crate::control::final_of;
use crate::migrate::definition::{Change, Form, Migration};

pub(crate) const CA_SECRET: Migration = Migration {
    id: "2-ca-secret",
    about: "private keys of the authorities lie under secret/, which no monitor needs to read",
    from: final_of(1),
    to: final_of(2),
    floor: 1,
    change: Change::Moved { from: "internal/ca", to: "secret/ca", form: Form::Kept },
    repair: None,
    source: include_str!("ca_secret.rs"),
};
