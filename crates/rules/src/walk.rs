//! The walker: the user as whom the cluster tries whether users can connect (design 3.7). Neither a person nor a document, but a name.
//!
//! Whoever holds a certificate of the user authority for [`NAME`] has the rights made here and no others, whatever the certificate and the
//! store say: he sees every host, enters each as the login of that name, and runs one program there ([`SCRIPT`], by the row of its own in
//! `channel`). The Auth Service makes the certificate for itself ([`certificate`]); the name is refused to everybody else: a user or role
//! of it is not written (`documents`), and nobody logs in or is signed for under it (`issue`). So it needs no document, which a cluster born
//! with an older release would not have, and no administrator could widen. A release that does not know the name gives it nothing at all.

use crate::permit::{Denied, Issue, Permit};
use types::{
    ClusterName, Extra, Login, Metadata, Resource, ResourceName, Time, Ttl, UserIdentity, UserName,
    identity::{Restrictions, Traits},
    name::BadName,
    role::{Conditions, OneOrMany, Options, Role},
};

/// Of the user, of his role, of the login that he asks for, and of the command that he may run.
pub const NAME: &str = "lockgate-walk";
/// What a host runs for it, in `sh`: one line comes in and goes out again, so that both ways are tried.
pub const SCRIPT: &str = "IFS= read -r line && printf '%s\\n' \"$line\"";
/// The life of his certificate. A walk takes seconds; the rest is for hosts whose clock is ahead.
pub const LIFE: Ttl = Ttl::from_secs(600);
/// Ends what he left open.
const IDLE: Ttl = Ttl::from_secs(20);

/// Whether this is the walker.
pub fn is(user: &UserName) -> bool {
    user.as_str() == NAME
}

/// His certificate. Called by the Auth Service for nobody but itself.
pub fn certificate(cluster: &ClusterName, now: Time) -> Result<Permit<Issue>, BadName> {
    let identity = UserIdentity {
        cluster: cluster.clone(),
        user: UserName::new(NAME)?,
        roles: [ResourceName::new(NAME)?].into(),
        traits: Traits::new(),
        logins: [Login::new(NAME)?].into(),
        expires: now.plus(LIFE.0),
        restrictions: Restrictions::default(),
        extra: Extra::new(),
    };
    Ok(Permit::grant(Issue { identity }))
}

/// Refuses the name to whoever is not the cluster itself.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), Denied> {
    if name == NAME { Err(Denied::Policy { what: format!("{what} \"{name}\""), why: "the name is the cluster's own" }) } else { Ok(()) }
}

/// What he may do. `None` only if [`NAME`] were malformed, which a test excludes.
pub(crate) fn role() -> Option<Resource<Role>> {
    let options = Options {
        max_session_ttl: LIFE,
        port_forwarding: false,
        forward_agent: false,
        max_sessions: Some(1),
        client_idle_timeout: Some(IDLE),
        disconnect_expired_cert: true,
        ..Options::default()
    };
    let allow = Conditions {
        logins: vec![NAME.into()],
        node_labels: [("*".to_owned(), OneOrMany(vec!["*".into()]))].into(),
        ..Conditions::default()
    };
    Some(Resource::new(Metadata::named(ResourceName::new(NAME).ok()?), Role { options, allow, ..Role::default() }))
}

#[cfg(test)]
#[path = "walk/tests.rs"]
mod tests;
