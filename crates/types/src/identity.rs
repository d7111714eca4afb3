//! Who is on the other end: what a certificate says about its holder, after its signature was checked.
//!
//! One encoding (JSON, [`wire::identity`](../wire)) is put into both the SSH and the X.509 certificate. A holder of an
//! `Identity` value knows that the certificate chained to the cluster's CA; what the identity *may do* is for `rules`.

use crate::{ClusterName, Extra, HostId, Login, NodeName, ResourceName, Time, UserName};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// What a process is in the cluster. Stored as text; a role of a newer release is kept, grants nothing, and is held to the window of agents.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SystemRole {
    Auth,
    Proxy,
    /// The SSH Service; `node` in tokens and listings, as the field calls it.
    #[serde(alias = "ssh")]
    Node,
    Db,
    /// The local administrator on the Auth Service's own host.
    Admin,
    /// A role of another release: data, not an error.
    #[serde(untagged)]
    Other(String),
}

impl SystemRole {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Auth => "auth",
            Self::Proxy => "proxy",
            Self::Node => "node",
            Self::Db => "db",
            Self::Admin => "admin",
            Self::Other(text) => text,
        }
    }
    /// Whether processes of this role are resource services (they come last in an upgrade, rule G8).
    pub fn is_agent(&self) -> bool {
        match self {
            Self::Node | Self::Db => true,
            Self::Auth | Self::Proxy | Self::Admin | Self::Other(_) => false,
        }
    }
    /// The admission window in the control record that a process of this role falls under; `draining` when it serves its
    /// last sessions. `None` for what is no member. A role of a later release is judged as an agent: roles that come are
    /// resource services, and one that no window held would be a client of any age, which no rule over windows could see.
    pub fn window(&self, draining: bool) -> Option<&'static str> {
        match self {
            Self::Auth => Some("auth"),
            Self::Proxy | Self::Node | Self::Db | Self::Other(_) if draining => Some("draining"),
            Self::Proxy => Some("proxy"),
            Self::Node | Self::Db | Self::Other(_) => Some("agent"),
            Self::Admin => None,
        }
    }
}
impl std::fmt::Display for SystemRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
impl std::str::FromStr for SystemRole {
    type Err = std::convert::Infallible;
    /// Any text parses; unknown ones become [`SystemRole::Other`].
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auth" => Self::Auth,
            "proxy" => Self::Proxy,
            "node" | "ssh" => Self::Node,
            "db" => Self::Db,
            "admin" => Self::Admin,
            other => Self::Other(other.to_owned()),
        })
    }
}

/// Traits of a user: lists of values by name; `logins` fills `{{internal.logins}}` in roles.
pub type Traits = BTreeMap<String, Vec<String>>;

/// A person or a machine acting as a user.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UserIdentity {
    pub cluster: ClusterName,
    pub user: UserName,
    pub roles: BTreeSet<ResourceName>,
    #[serde(default)]
    pub traits: Traits,
    /// Operating-system logins at issue time; the SSH certificate's principals. Never empty in an SSH certificate.
    #[serde(default)]
    pub logins: BTreeSet<Login>,
    /// When the certificate ends. A certificate issued from this one never ends later.
    pub expires: Time,
    #[serde(default)]
    pub restrictions: Restrictions,
    /// Fields of a newer release, kept on re-issue.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What narrows a certificate below what its roles allow. A re-issued certificate has all of these and never fewer
/// (attack table, row 9).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Restrictions {
    /// Usable from this address only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_ip: Option<IpAddr>,
    /// May not be exchanged for another certificate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_reissue: bool,
    /// Usable at this host only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Whether a second factor was shown at login; a re-issue may keep or drop it, never add it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub second_factor: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

/// A member of the cluster: Auth, Proxy, a resource service; or the local administrator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostIdentity {
    pub cluster: ClusterName,
    pub id: HostId,
    pub name: NodeName,
    pub roles: BTreeSet<SystemRole>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// The field of a host's identity with its certificate's generation. In `extra`: older releases carry it unread.
const GENERATION: &str = "generation";

impl HostIdentity {
    /// Which of the host's certificates this is: each renewal has a higher number. 0 when it says none.
    pub fn generation(&self) -> u64 {
        self.extra.get(GENERATION).and_then(serde_json::Value::as_u64).unwrap_or(0)
    }
    /// The same host, as the next certificate names it.
    #[must_use]
    pub fn with_generation(mut self, generation: u64) -> Self {
        self.extra.insert(GENERATION.to_owned(), generation.into());
        self
    }
}

/// The holder of a certificate that this cluster's CA signed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Identity {
    User(UserIdentity),
    Host(HostIdentity),
}

impl Identity {
    pub fn cluster(&self) -> &ClusterName {
        match self {
            Self::User(user) => &user.cluster,
            Self::Host(host) => &host.cluster,
        }
    }
    /// The name for logs and audit: the user's name, or `node-name (host id)`.
    pub fn display(&self) -> String {
        match self {
            Self::User(user) => user.user.to_string(),
            Self::Host(host) => format!("{} ({})", host.name, host.id),
        }
    }
    pub fn has_system_role(&self, role: &SystemRole) -> bool {
        match self {
            Self::User(_) => false,
            Self::Host(host) => host.roles.contains(role),
        }
    }
}
