//! The control record: the small document every Auth reads before it writes anything (design 3.3).
//!
//! Its format is frozen for ever (a test compares bytes): every major ever released reads and writes it, unknown keys are
//! kept at every level, and no migration touches it. The decisions over it (may this binary start? which windows are legal?) are in
//! `upgrade::control`; the store compares `epoch` inside each write transaction (design 3.4).

use crate::{Extra, Time, name::ClusterId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _};
use serde_json::Value;
use std::collections::BTreeMap;

/// The only format number there is.
pub const FORMAT: u32 = 1;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
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
    pub upgrade: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration_lease: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evictions: Vec<Value>,
    /// The version that wrote last, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_at: Option<Time>,
    /// Unknown keys. Those inside `cluster_version`, a plain pair for whoever compares it, stand here under its name.
    #[serde(flatten)]
    pub extra: Extra,
}
fn production() -> bool {
    true
}

/// The one part of the record that has no `extra` of its own.
const LEVEL: &str = "cluster_version";

impl<'de> Deserialize<'de> for ControlRecord {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let all = Extra::deserialize(from)?;
        let mut unknown = all.get(LEVEL).and_then(Value::as_object).cloned().unwrap_or_default();
        unknown.retain(|key, _| key != "major" && key != "step");
        let mut record = Self::deserialize(Value::Object(all)).map_err(D::Error::custom)?;
        if !unknown.is_empty() {
            record.extra.insert(LEVEL.into(), Value::Object(unknown));
        }
        Ok(record)
    }
}

impl Serialize for ControlRecord {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Some(unknown) = self.extra.get(LEVEL).and_then(Value::as_object) else { return Self::serialize(self, to) };
        let mut plain = self.clone();
        plain.extra.remove(LEVEL);
        let mut all = Self::serialize(&plain, serde_json::value::Serializer).map_err(S::Error::custom)?;
        if let Some(level) = all.get_mut(LEVEL).and_then(Value::as_object_mut) {
            level.extend(unknown.clone());
        }
        all.serialize(to)
    }
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
    /// In the window of `auth`: the major above, when it was admitted and then shut out again. It does not take over by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shut: Option<u64>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Window {
    pub fn new(lo: u64, hi: u64) -> Self {
        Self { lo, hi, shut: None, extra: Extra::new() }
    }
    pub fn contains(&self, major: u64) -> bool {
        (self.lo..=self.hi).contains(&major)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As 1.0.0 writes it for a new cluster. Frozen: a later release reads this, and this release reads what a later one adds.
    const BORN: &str = r#"{"format":1,"cluster_id":"00000000-0000-0000-0000-000000000007","epoch":1,"min_writer_epoch":1,"cluster_version":{"major":1,"step":0},"windows":{"agent":{"lo":0,"hi":1},"auth":{"lo":1,"hi":1}},"window_gen":1,"production":true,"written_by":"1.0.0","written_at":"2026-11-23T00:00:00Z"}"#;

    #[test]
    fn the_control_record_is_frozen_byte_for_byte() {
        let record: ControlRecord = serde_json::from_str(BORN).unwrap();
        assert_eq!((record.cluster_version, record.windows["agent"].lo), (ClusterVersion { major: 1, step: 0 }, 0));
        assert!(record.extra.is_empty());
        assert_eq!(serde_json::to_string(&record).unwrap(), BORN);
    }

    #[test]
    fn unknown_keys_are_kept_at_every_level_of_the_control_record() {
        let mut later: Value = serde_json::from_str(BORN).unwrap();
        later["colour"] = "blue".into();
        later["cluster_version"]["features"] = serde_json::json!(["a"]);
        later["windows"]["agent"]["until"] = 7.into();
        later["windows"]["satellite"] = serde_json::json!({"lo": 1, "hi": 1, "x": {}});
        for key in ["upgrade", "migration_lease", "backup", "rollback"] {
            later[key] = serde_json::json!({"deep": {"er": [1, null]}});
        }
        later["evictions"] = serde_json::json!([{"who": "x", "new": true}]);
        let mut record: ControlRecord = serde_json::from_value(later.clone()).unwrap();
        assert_eq!(serde_json::to_value(&record).unwrap(), later);
        // Through a change too.
        record.epoch = 2;
        record.cluster_version.step = 3;
        (later["epoch"], later["cluster_version"]["step"]) = (2.into(), 3.into());
        assert_eq!(serde_json::to_value(&record).unwrap(), later);
    }
}
