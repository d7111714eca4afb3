//! The nouns of Lockgate: ids, names, versions, documents, roles, identities, audit events, public errors.
//!
//! Everything here is data: parsed at the edge into a type that cannot be wrong, compared and printed, never
//! acting. No clock, no socket, no randomness: whoever needs the time or an id passes it in. Decisions over these
//! nouns live in `rules`, their bytes on the wire in `wire`.

pub mod control;
pub mod digest;
pub mod document;
pub mod error;
pub mod event;
pub mod identity;
pub mod kind;
pub mod label;
pub mod name;
pub mod role;
pub mod secret;
pub mod time;
pub mod update;
pub mod upgrade;
pub mod version;

pub use control::ControlRecord;
pub use digest::Sha256;
pub use document::{Document, Metadata, Resource};
pub use error::{Code, Public};
pub use event::{Event, EventKind};
pub use identity::{HostIdentity, Identity, SystemRole, UserIdentity};
pub use label::Labels;
pub use name::{ClusterName, HostId, Login, NodeName, ResourceName, SessionId, UserName};
pub use secret::Secret;
pub use time::{Time, Ttl};
pub use version::{Skew, Version};

/// A JSON object whose keys keep their order; how unknown fields are carried.
pub type Extra = serde_json::Map<String, serde_json::Value>;
