//! Names what PostgreSQL, a proxy before it, or the network between said, so that the reader knows whom to ask.

use crate::StoreError;
use std::error::Error as _;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

/// Names an error. What is none of the known troubles is given as it is.
pub(super) fn named(place: &str, error: &Error) -> StoreError {
    let place = place.to_owned();
    let Some(said) = error.as_db_error() else { return without_words(place, error) };
    let detail = said.message().to_owned();
    match said.code().code() {
        // Invalid password, or no rule of pg_hba.conf lets this login in.
        "28P01" | "28000" => StoreError::Refused { place, detail: format!("PostgreSQL refuses the login: {detail}") },
        "42501" => StoreError::Refused { place, detail: format!("PostgreSQL refuses the right: {detail}") },
        "3D000" | "3F000" => StoreError::Refused { place, detail: format!("PostgreSQL has no such thing: {detail}") },
        "53100" => StoreError::Full { place },
        "25006" => StoreError::ReadOnly { place },
        "55P03" => StoreError::Busy { place },
        "42P01" | "42703" | "42P07" | "XX001" | "XX002" => StoreError::Corrupt { place, detail },
        "53300" => StoreError::Unreachable { place, detail: format!("PostgreSQL has no connection left: {detail}") },
        "57P01" | "57P02" => StoreError::Unreachable { place, detail: format!("PostgreSQL is shutting down: {detail}") },
        "57P03" => StoreError::Unreachable { place, detail: format!("PostgreSQL is starting or stopping: {detail}") },
        "25P03" | "57P05" => {
            StoreError::Unreachable { place, detail: format!("this process stood still and PostgreSQL hung up: {detail}") }
        }
        // 08: connection exceptions, which are also what proxies answer when they have lost the server.
        code if code.starts_with("08") => StoreError::Unreachable { place, detail },
        code => StoreError::Io { place, detail: format!("PostgreSQL: {detail} ({code})") },
    }
}

fn without_words(place: String, error: &Error) -> StoreError {
    let mut detail = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        let text = deeper.to_string();
        if !detail.contains(&text) {
            detail = format!("{detail}: {text}");
        }
        cause = deeper.source();
    }
    if detail.starts_with("authentication error") || detail.starts_with("invalid configuration") {
        return StoreError::Refused { place, detail: format!("PostgreSQL refuses the login: {detail}") };
    }
    if detail.starts_with("error performing TLS handshake") {
        return StoreError::Refused { place, detail };
    }
    // `head` has one row, and every column its type.
    if detail.contains("error deserializing column") || detail.contains("unexpected number of rows") {
        return StoreError::Corrupt { place, detail };
    }
    StoreError::Unreachable { place, detail }
}

/// No answer came in time.
pub(super) fn silent(place: &str) -> StoreError {
    StoreError::Unreachable { place: place.into(), detail: crate::remote::SILENT.into() }
}

/// Whether it may pass by itself, on another connection or another host.
pub(super) fn passes(error: &StoreError) -> bool {
    matches!(error, StoreError::Unreachable { .. } | StoreError::ReadOnly { .. })
}

/// Whether a table or a column is missing.
pub(super) fn missing(error: &Error) -> bool {
    error.code().is_some_and(|code| *code == SqlState::UNDEFINED_TABLE || *code == SqlState::UNDEFINED_COLUMN)
}
