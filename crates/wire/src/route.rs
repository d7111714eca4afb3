//! What a client says on a `lockgate-ssh` connection after the handshake, and what the Proxy answers.
//!
//! One [`Dial`] frame up, one [`Dialed`] frame down, then the bytes are SSH's. A target is a name or a host id, never an
//! address (attack table, row 13): the type has no place for one. The same `Dial` opens a direct TLS connection to an agent.

/// Both frames are plain JSON, like the tunnel's messages.
pub use crate::tunnel::{BadMessage, decode, encode};

use serde::{Deserialize, Serialize};
use types::{ClusterName, Extra, HostId, NodeName, Public};

/// Which host the client wants.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Dial {
    pub target: Target,
    /// The cluster the host belongs to; absent means the Proxy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterName>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    Id(HostId),
    Name(NodeName),
}

impl std::str::FromStr for Target {
    type Err = types::name::BadName;
    /// A UUID is an id; anything else must be a well-formed name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self::Id).or_else(|_| NodeName::new(text).map(Self::Name))
    }
}
impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// The Proxy's answer; after `Connected` the stream is the host's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialed {
    Connected { host_id: HostId, hostname: NodeName },
    Refused(Public),
}
