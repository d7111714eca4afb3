//! `2-user-status`: who made a user is noted where only the cluster writes.
//!
//! It stood in `spec.created_by`, among what administrators write: whoever could change a user could say that somebody else had made
//! it, and whoever wrote a user from a file of his own took the note away. Now it is `status.created_by`, beside `spec`; the Auth Service
//! puts in what is stored, whatever is sent. Callers of major 1 go on reading and writing the former shape (`migrate::edition`).

use crate::control::final_of;
use crate::migrate::definition::{Change, Fix, Form, Migration, Row};
use serde_json::{Value, json};
use types::Document;

pub(crate) const USER_STATUS: Migration = Migration {
    id: "2-user-status",
    about: "who made a user is noted where only the cluster writes",
    from: final_of(1),
    to: final_of(2),
    floor: 1,
    change: Change::InPlace { dir: "doc/user", form: Form::Document { versions: ["v1", "v2"], up, down } },
    repair: Some(repair),
    source: include_str!("user_status.rs"),
};

const STATUS: &str = "status";
const CREATED_BY: &str = "created_by";

fn up(mut user: Document) -> Result<Document, String> {
    if user.extra.contains_key(STATUS) {
        return Err("it has a status, which no release of major 1 has written".into());
    }
    let spec = user.spec.as_object_mut().ok_or("its spec is no object")?;
    if let Some(who) = spec.shift_remove(CREATED_BY) {
        user.extra.insert(STATUS.into(), json!({ CREATED_BY: who }));
    }
    Ok(user)
}

fn down(mut user: Document) -> Result<Document, String> {
    let Some(status) = user.extra.shift_remove(STATUS) else { return Ok(user) };
    let spec = user.spec.as_object_mut().ok_or("its spec is no object")?;
    match status {
        Value::Object(mut status) if status.len() == 1 && !spec.contains_key(CREATED_BY) => {
            let who = status.shift_remove(CREATED_BY).ok_or("its status does not say who made it")?;
            spec.insert(CREATED_BY.into(), who);
            Ok(user)
        }
        _ => Err("its status says more than who made it".into()),
    }
}

/// A status that somebody made up means nothing to major 1.
fn repair(row: &Row) -> Option<Fix> {
    let mut user = Document::from_json(&row.value).ok()?;
    user.extra.shift_remove(STATUS)?;
    Some(Fix::Replace(user.to_json()))
}
