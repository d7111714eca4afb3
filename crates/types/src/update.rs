//! Who runs what: the directive by which a cluster moves its members to another release (design 3.8).
//!
//! A [`Directive`] is what the cluster says and signs; [`SignedDirective`] is it with its signature, as it stands in the document
//! [`UpdateDirective`] and as a host gets it. The bytes that are signed and the check are `wire::directive`'s, what a host does with
//! it `upgrade::updater`'s. A directive names releases and never makes one genuine: that is the vendor's signature to say. Which
//! files are meant is said by digest, so that neither side alone can exchange them.

use crate::{ClusterName, Extra, HostId, Sha256, SystemRole, Time, Version, document::Spec, name::ClusterId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a cluster says of who runs what.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Directive {
    /// [`FORMAT`]; one that is higher is not obeyed.
    pub format: u32,
    pub cluster: ClusterName,
    pub cluster_id: ClusterId,
    /// Grows with each directive of the cluster; a host never obeys a lower one than before.
    pub generation: u64,
    pub issued: Time,
    /// From then on nobody obeys it.
    pub expires: Time,
    /// The first that fits a host is the one for it; a host that none fits stays as it is.
    #[serde(default)]
    pub targets: Vec<Target>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// The format of directives that this release writes and obeys.
pub const FORMAT: u32 = 1;

/// Members and the release that they should run. Every condition that is given must hold; without any it is for all.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Target {
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub hosts: BTreeSet<HostId>,
    /// Hosts with no other roles than these: a target for hosts does not move an Auth Service that runs beside one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub roles: BTreeSet<SystemRole>,
    /// A share of them, the same at each look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<Wave>,
    pub version: Version,
    /// The archives that may be installed, by system: `linux/amd64`.
    #[serde(default)]
    pub artifacts: BTreeMap<String, Sha256>,
    /// Tries again what hosts have marked as bad.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retry: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

/// The hosts whose hash with the salt lies below a share. Another salt for each upgrade, or the same hosts always go first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Wave {
    pub salt: String,
    /// Of 10,000.
    pub below: u16,
}

/// The text that was signed, and the signature over it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SignedDirective {
    /// A [`Directive`] as JSON, as it was signed.
    #[serde(default)]
    pub directive: String,
    /// Base64 of 64 bytes: Ed25519, by the cluster's host authority.
    #[serde(default)]
    pub signature: String,
}

/// The directive in force: a singleton named `update-directive`. Written with its targets and how long it holds; generation and
/// signature are the Auth Service's, whatever is sent.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct UpdateDirective {
    #[serde(default)]
    pub targets: Vec<Target>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Time>,
    #[serde(default)]
    pub generation: u64,
    #[serde(default)]
    pub signed: SignedDirective,
    #[serde(flatten)]
    pub extra: Extra,
}
impl Spec for UpdateDirective {
    const KIND: &'static str = "update_directive";
    const VERSION: &'static str = "v1";
}

/// What a host's updater last did, as the host's heartbeat tells it: `update` in the `extra` of its `member` document.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct UpdateReport {
    /// `idle`, `fetched`, `staged`, `tested`, `switched`, `confirmed`, `reverted`, `refused`, or what a newer release says.
    pub state: String,
    /// The release that it is about, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Of the directive that was obeyed last.
    #[serde(default)]
    pub generation: u64,
    /// One sentence: why it is not where it should be; empty when nothing stands in the way.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    pub at: Time,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

impl UpdateReport {
    /// Its key in `extra` of a `member` document.
    pub const KEY: &str = "update";
    pub const CONFIRMED: &str = "confirmed";
    pub const REVERTED: &str = "reverted";
    pub const REFUSED: &str = "refused";

    /// What a member's document tells of its updater.
    pub fn of(extra: &Extra) -> Option<Self> {
        serde_json::from_value(extra.get(Self::KEY)?.clone()).ok()
    }
}
