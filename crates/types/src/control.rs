//! The control record: the small document every Auth reads before it writes anything (design 3.3).
//!
//! Its format is frozen for ever: every major ever released reads and writes it, unknown keys are kept at every level,
//! and no migration touches it. The decisions over it (may this binary start? which windows are legal?) are in
//! `upgrade::control`; the store compares `epoch` inside each write transaction (design 3.4).

use crate::{Extra, Time, name::ClusterId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The only format number there is.
pub const FORMAT: u32 = 1;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ControlRecord {
    pub format: u32,
    pub cluster_id: ClusterId,
    /// Raised at every change that must fence older writers.
    pub epoch: u64,
    /// A writer whose epoch is lower is refused by the store.
    pub min_writer_epoch: u64,
    /// The level of stored formats in use.
    pub cluster_version: ClusterVersion,
    /// Admitted majors by role: `auth`, `proxy`, `agent`, `draining`, `leaf`.
    pub windows: BTreeMap<String, Window>,
    pub window_gen: u64,
    /// `false` when the cluster was created with `--allow-prerelease` (rule G2).
    #[serde(default = "production")]
    pub production: bool,
    /// The upgrade in progress, if any; its shape belongs to `upgrade`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration_lease: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evictions: Vec<serde_json::Value>,
    /// The version that wrote last, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_at: Option<Time>,
    #[serde(flatten)]
    pub extra: Extra,
}
fn production() -> bool {
    true
}

/// `(major, step)`: totally ordered; a new cluster is born at its major's last step.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ClusterVersion {
    pub major: u64,
    pub step: u32,
}

/// Majors `lo..=hi` that may start, register or stay in a role.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Window {
    pub lo: u64,
    pub hi: u64,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Window {
    pub fn new(lo: u64, hi: u64) -> Self {
        Self { lo, hi, extra: Extra::new() }
    }
    pub fn contains(&self, major: u64) -> bool {
        (self.lo..=self.hi).contains(&major)
    }
}
