//! `2-invite-user`: invitations are found by their user.
//!
//! An invitation lies under the hash of its secret, so whoever opens it is found at once; but a new one replaces the older ones of its
//! user, and those were found by reading every invitation there is. Who invites ten thousand people reads fifty million rows. Now each
//! has an empty row `internal/invited/<user>/<hash>` beside it, with the same end.

use crate::control::final_of;
use crate::migrate::definition::{Change, Migration, Row};
use serde_json::Value;

const SOURCE: &str = "internal/invite";
const INTO: &str = "internal/invited";

pub(crate) const INVITE_USER: Migration = Migration {
    id: "2-invite-user",
    about: "invitations are found by their user, without reading all of them",
    from: final_of(1),
    to: final_of(2),
    floor: 1,
    change: Change::Index { source: SOURCE, into: INTO, derive, source_of },
    repair: None,
    source: include_str!("invite_user.rs"),
};

fn derive(invite: &Row) -> Result<Vec<Row>, String> {
    let read: Value = serde_json::from_slice(&invite.value).map_err(|error| error.to_string())?;
    let user = read.get("user").and_then(Value::as_str).ok_or("it does not say for whom it is")?;
    if user.is_empty() || user.contains('/') {
        return Err("the name of its user is none".into());
    }
    let hash = invite.key.rsplit('/').next().unwrap_or_default();
    Ok(vec![Row::new(format!("{INTO}/{user}/{hash}"), "")])
}

fn source_of(derived: &str) -> Option<String> {
    let (_user, hash) = derived.strip_prefix(INTO)?.strip_prefix('/')?.split_once('/')?;
    Some(format!("{SOURCE}/{hash}"))
}
