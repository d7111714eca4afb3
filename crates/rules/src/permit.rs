//! What a decision yields: a [`Permit`] for one action, or [`Denied`].
//!
//! A permit's field is private and its maker is private to this crate, so holding one proves that the decision was taken;
//! it carries the facts that the handler needs, so that the handler asks nobody again. Permits are not `Clone` and not
//! `Deserialize`: they can be neither copied to another request nor sent.
//!
//! [`Denied`] is for logs and audit; [`Denied::public`] is what the other side learns. A stranger cannot tell a thing that
//! is unknown from a thing that is forbidden.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};
use types::{Code, HostId, Identity, Labels, Login, Public, ResourceName, SystemRole, Time, UserIdentity, UserName};

/// Proof that `rules` allowed the action `A`.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit is for a handler to take"]
pub struct Permit<A>(A);

impl<A> Permit<A> {
    pub(crate) fn grant(action: A) -> Self {
        Self(action)
    }
    /// The facts; the proof ends here.
    pub fn into_facts(self) -> A {
        self.0
    }
}
impl<A> std::ops::Deref for Permit<A> {
    type Target = A;
    fn deref(&self) -> &A {
        &self.0
    }
}

/// Reading documents of one kind: list, read or watch. Handlers pass every document through [`Permit::shows`].
#[derive(Debug)]
pub struct Read {
    pub kind: String,
    pub scope: crate::documents::Scope,
}

/// One conditional write of one document.
#[derive(Debug, PartialEq, Eq)]
pub struct Write {
    pub kind: String,
    pub name: ResourceName,
    pub verb: crate::documents::Verb,
}

/// An SSH connection of a user, as a login, at a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSession {
    pub user: UserName,
    pub login: Login,
    pub host: HostId,
    pub options: SessionOptions,
    /// When running sessions must end; set by `disconnect_expired_cert`.
    pub deadline: Option<Time>,
}

/// How the sessions of one connection behave: the holder's roles combined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// Sessions at once over one connection.
    pub max_sessions: u32,
    /// Connections at once of this user at this host; `None` is without limit.
    pub max_connections: Option<u32>,
    pub port_forwarding: bool,
    pub forward_agent: bool,
    /// Ends a session without input or output for so long.
    pub idle_timeout: Option<Duration>,
    pub disconnect_expired_cert: bool,
}

/// Opening one SSH channel.
#[derive(Debug, PartialEq, Eq)]
pub struct OpenChannel {
    pub kind: crate::channel::Channel,
}

/// Serving one SSH request. `quietly`: answer success and do nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct Serve {
    pub request: crate::channel::Request,
    pub quietly: bool,
}

/// Dialling a registered host, by id and never by address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    pub host: HostId,
    pub hostname: types::NodeName,
    pub use_tunnel: bool,
    /// Where the Auth Service saw the host, when it is reached directly; empty when by tunnel.
    pub addr: String,
}

/// A login that was proven: the only way to [`crate::issue::login`].
#[derive(Debug, PartialEq, Eq)]
pub struct LoggedIn {
    pub user: UserName,
    /// Whether a one-time code was shown.
    pub second_factor: bool,
    /// The time-step of that code; to be stored before anything is issued, so that the code works once.
    pub otp_step: Option<u64>,
}

/// Issuing user certificates with exactly this content.
#[derive(Debug, PartialEq, Eq)]
pub struct Issue {
    pub identity: UserIdentity,
}

/// Admitting a new member with these roles and labels.
#[derive(Debug, PartialEq, Eq)]
pub struct Join {
    pub roles: BTreeSet<SystemRole>,
    pub labels: Labels,
}

/// Entering at all: the certificate was accepted.
#[derive(Debug, PartialEq, Eq)]
pub struct Enter {
    pub identity: Identity,
}

/// Why a decision was no. `Display` is for the log; [`Denied::public`] for the other side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("the certificate of {who} ended at {at}")]
    Expired { who: String, at: Time },
    #[error("the certificate is of cluster {found}, this is cluster {here}")]
    Cluster { found: String, here: String },
    #[error("the certificate is restricted: {0}")]
    Restricted(String),
    #[error("no certificate that this cluster accepts: {0}")]
    Certificate(#[from] crate::cert::Refused),
    #[error("no host \"{asked}\", or no access to it")]
    Node { asked: String },
    #[error("several hosts are called \"{asked}\": {candidates}")]
    Ambiguous { asked: String, candidates: String },
    #[error("no role of {user} allows login \"{login}\" on \"{host}\"")]
    Login { user: String, login: String, host: String, allowed: Vec<String> },
    #[error("a role of {user} cannot be judged here: {why}")]
    Unreadable { user: String, why: String },
    #[error("locked: {message}")]
    Locked { message: String },
    #[error("{who} may not {verb} {what}")]
    Document { who: String, verb: &'static str, what: String },
    #[error("{what} is refused: {why}")]
    Policy { what: String, why: &'static str },
    #[error("the limit of {limit} {what} is reached")]
    Limit { what: &'static str, limit: u32 },
    #[error("the host \"{hostname}\" is registered but not connected")]
    Offline { hostname: String },
    #[error("{who} may not {what}")]
    NotAllowed { who: String, what: String },
    #[error("the join token is not valid: {why}")]
    Token { why: &'static str },
    #[error("the invitation is not valid: {why}")]
    Invite { why: &'static str },
    #[error("login of {user} failed: {why}")]
    LoginFailed { user: String, why: &'static str },
    #[error("{user} is locked until {until} after repeated failures")]
    LoginLocked { user: String, until: Time },
    #[error("the address {peer:?} is not the one the certificate is for ({bound})")]
    Address { peer: Option<IpAddr>, bound: IpAddr },
}

impl Denied {
    /// What the other side is told.
    pub fn public(&self) -> Public {
        let restricted = || Public::new(Code::AccessIdentity, "the certificate may not be used for this");
        match self {
            Self::Expired { at, .. } => {
                Public::new(Code::LoginExpired, format!("the certificate ended at {at}")).hint("log in again: tsh login")
            }
            Self::Cluster { .. } => {
                Public::new(Code::AccessIdentity, "the certificate is not of this cluster").hint("log in to this cluster: tsh login")
            }
            Self::Restricted(why) => Public::new(Code::AccessIdentity, format!("the certificate is restricted: {why}")),
            Self::Address { .. } => restricted().hint("it is bound to another address; log in again from here"),
            Self::Certificate(_) => {
                Public::new(Code::AccessIdentity, "no certificate that this cluster accepts").hint("log in again: tsh login")
            }
            Self::Node { asked } => Public::new(Code::NodeUnknown, format!("no host \"{asked}\", or no access to it"))
                .hint("list the hosts you can reach: tsh ls"),
            Self::Ambiguous { asked, candidates } => Public::new(Code::NodeAmbiguous, format!("several hosts are called \"{asked}\""))
                .hint(format!("name one by its id: {candidates}")),
            Self::Login { login, host, allowed, .. } => {
                let error = Public::new(Code::AccessDenied, format!("no role allows login \"{login}\" on \"{host}\""));
                if allowed.is_empty() { error } else { error.hint(format!("logins you may use: {}", allowed.join(", "))) }
            }
            Self::Unreadable { .. } => Public::new(Code::AccessDenied, "a role you hold cannot be judged by this service")
                .hint("an administrator can see which in the service's log; a newer release may be needed here"),
            Self::Locked { message } if message.is_empty() => Public::new(Code::AccessLocked, "a lock is in force"),
            Self::Locked { message } => Public::new(Code::AccessLocked, format!("a lock is in force: {message}")),
            Self::Document { verb, what, .. } => Public::new(Code::AccessDenied, format!("no role allows you to {verb} {what}")),
            Self::Policy { what, why } => Public::new(Code::AccessDenied, format!("{what} is refused: {why}")),
            Self::Limit { what, limit } => {
                Public::new(Code::AccessLimit, format!("the limit of {limit} {what} is reached")).hint("close one first")
            }
            Self::Offline { hostname } => {
                Public::new(Code::NodeOffline, format!("the host \"{hostname}\" is registered but not connected"))
                    .hint("its agent reconnects by itself; look at the agent's log if it does not")
            }
            Self::NotAllowed { what, .. } => Public::new(Code::AccessDenied, format!("you may not {what}")),
            Self::Token { .. } => Public::new(Code::TokenInvalid, "the join token is unknown, expired or not for this role")
                .hint("make a new one: tctl tokens add --type=node"),
            Self::Invite { .. } => {
                Public::new(Code::InviteInvalid, "the invitation is unknown, used or expired").hint("ask an administrator for a new one")
            }
            Self::LoginFailed { .. } => Public::new(Code::LoginFailed, "wrong user name, password or one-time code"),
            Self::LoginLocked { .. } => Public::new(Code::LoginLocked, "too many failed logins; the account is locked for a while")
                .hint("try again in 20 minutes, or from where you logged in lately"),
        }
    }
}
impl From<Denied> for Public {
    fn from(denied: Denied) -> Self {
        denied.public()
    }
}
