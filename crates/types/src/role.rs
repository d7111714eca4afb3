//! Roles: what their holders may do. Deny wins; allow is conjunctive inside one role and roles are joined by *or*.
//!
//! This is the data; every decision over it is in `rules::access`. Field names follow the field's best-known system.

use crate::{Extra, Ttl, document::Spec};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// Spec of kind `role`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Role {
    #[serde(default)]
    pub options: Options,
    #[serde(default)]
    pub allow: Conditions,
    #[serde(default)]
    pub deny: Conditions,
    #[serde(flatten)]
    pub extra: Extra,
}
impl Spec for Role {
    const KIND: &'static str = "role";
    const VERSION: &'static str = "v1";
}

/// How sessions of the holders behave. Several roles combine: shortest life; a permission if any role gives it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Longest life of a certificate. Default 30 h.
    #[serde(default = "Options::longest")]
    pub max_session_ttl: Ttl,
    /// `ssh -L` and `-R`. Default true.
    #[serde(default = "yes")]
    pub port_forwarding: bool,
    /// `ssh -A`. Default false.
    #[serde(default)]
    pub forward_agent: bool,
    /// Sessions at once over one SSH connection. Default 10, as OpenSSH's `MaxSessions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<u32>,
    /// SSH connections at once per user and host. Default without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Ends a session without input or output for so long. Default never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_idle_timeout: Option<Ttl>,
    /// Ends running sessions when their certificate ends. Default false.
    #[serde(default)]
    pub disconnect_expired_cert: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

fn yes() -> bool {
    true
}
impl Options {
    fn longest() -> Ttl {
        Ttl::hours(30)
    }
}
impl Default for Options {
    fn default() -> Self {
        Self {
            max_session_ttl: Self::longest(),
            port_forwarding: true,
            forward_agent: false,
            max_sessions: None,
            max_connections: None,
            client_idle_timeout: None,
            disconnect_expired_cert: false,
            extra: Extra::new(),
        }
    }
}

/// One side of a role. In `allow` all parts must match; in `deny` labels or any one part is enough.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Conditions {
    /// Operating-system accounts; literals or templates such as `{{internal.logins}}`. `*` is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logins: Vec<String>,
    /// Label key to accepted values: literal, `*` glob or `^regular expression$`. Key `*` only with value `*`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_labels: BTreeMap<String, OneOrMany>,
    /// What administrators may do to documents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// A right on kinds of documents.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Rule {
    /// Kinds, or `*`.
    pub resources: Vec<String>,
    /// `list`, `create`, `read`, `update`, `delete`, or `*`.
    pub verbs: Vec<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// `prod` or `[prod, staging]` in YAML.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct OneOrMany(pub Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a value or a list of values")]
        enum Either {
            One(String),
            Many(Vec<String>),
        }
        Ok(match Either::deserialize(from)? {
            Either::One(value) => Self(vec![value]),
            Either::Many(values) => Self(values),
        })
    }
}
