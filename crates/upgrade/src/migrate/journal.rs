//! What the store remembers of a migration: two documents, one for the state and one for the scan that is under way.
//!
//! [`Journal`] changes only when the state does; every writer's batch is conditional on it. [`Progress`] changes with every
//! batch of the runner, in the same transaction as the batch's effect. Both keep fields of newer releases. A cursor is a
//! key, never a store revision: revisions can be compacted away.

use crate::migrate::state::State;
use serde::{Deserialize, Serialize};
use types::{Extra, Time, document::Spec};

/// The most bad rows and differences that are kept by name; the rest is counted.
pub const MAX_NAMED: usize = 100;

/// The state's document.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Journal {
    pub state: State,
    /// Of the migration as it was when this attempt began.
    pub digest: String,
    /// Counts the beginnings, from 1.
    pub attempt: u32,
    /// In `contracted`: nothing of the old side is left in its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub swept: bool,
    /// Somebody wants it back: every runner undoes it, and none begins it again until he says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undo: bool,
    /// The epoch of the runner that moved the state last.
    pub token: u64,
    /// That runner, for people.
    #[serde(default)]
    pub holder: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Time>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for Journal {
    const KIND: &'static str = "migration";
    const VERSION: &'static str = "v1";
}

/// What the runner does next within a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// `expanded`: every old row is tried.
    #[default]
    Check,
    /// `expanded`: all were tried.
    Checked,
    /// `shadowing`: old rows are copied.
    Copy,
    /// `shadowing`: new rows without an old one are removed.
    Prune,
    /// `shadowing`: every old row is on the new side.
    CompareOld,
    /// `shadowing`: every new row is on the old side.
    CompareNew,
    /// `shadowing`: two passes found no difference.
    Compared,
    /// Nothing to scan, or somebody must look: see the bad rows and differences.
    Hold,
    /// `undoing`: new rows are removed.
    Erase,
    /// `undoing`: none is left.
    Erased,
    /// `contracted`: old rows go to retention.
    Sweep,
    /// `contracted`: none is left.
    Done,
}

impl Phase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Checked => "checked",
            Self::Copy => "copy",
            Self::Prune => "prune",
            Self::CompareOld => "compare-old",
            Self::CompareNew => "compare-new",
            Self::Compared => "compared",
            Self::Hold => "hold",
            Self::Erase => "erase",
            Self::Erased => "erased",
            Self::Sweep => "sweep",
            Self::Done => "done",
        }
    }
}

/// A row by its key, with what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Named {
    pub key: String,
    pub why: String,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Named {
    pub fn new(key: impl Into<String>, why: impl Into<String>) -> Self {
        Self { key: key.into(), why: why.into(), extra: Extra::new() }
    }
}

/// A row that somebody had repaired.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Repaired {
    pub key: String,
    /// What was done to it: `replaced` or `removed`. What it was before is kept in retention.
    pub how: String,
    /// Who consented.
    pub by: String,
    pub at: Time,
    #[serde(flatten)]
    pub extra: Extra,
}

/// The scan's document.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    pub phase: Phase,
    /// The key the scan goes on at; none at its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// 1 or 2, in the phases that compare.
    #[serde(default)]
    pub pass: u8,
    /// How often a difference sent the scan back to the copy.
    #[serde(default)]
    pub rounds: u32,
    /// Rows of this phase looked at.
    #[serde(default)]
    pub done: u64,
    /// Old rows that the check counted.
    #[serde(default)]
    pub total: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad: Vec<Named>,
    #[serde(default)]
    pub bad_count: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Named>,
    #[serde(default)]
    pub difference_count: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repaired: Vec<Repaired>,
    /// When the phase began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<Time>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for Progress {
    const KIND: &'static str = "migration-progress";
    const VERSION: &'static str = "v1";
}

impl Progress {
    /// The beginning of a phase. Counts of what was found and repaired stay.
    #[must_use]
    pub fn enter(mut self, phase: Phase, now: Time) -> Self {
        match phase {
            Phase::Check | Phase::Copy => {
                self.bad.clear();
                self.bad_count = 0;
                self.pass = 0;
            }
            Phase::CompareOld => {
                self.differences.clear();
                self.difference_count = 0;
                self.pass += 1;
            }
            Phase::Checked
            | Phase::Prune
            | Phase::CompareNew
            | Phase::Compared
            | Phase::Hold
            | Phase::Erase
            | Phase::Erased
            | Phase::Sweep
            | Phase::Done => {}
        }
        Self { phase, cursor: None, done: 0, started: Some(now), updated: Some(now), ..self }
    }

    /// Counts a bad row, and names it while there is room.
    pub fn found_bad(&mut self, bad: Named) {
        self.bad_count += 1;
        if self.bad.len() < MAX_NAMED {
            self.bad.push(bad);
        }
    }

    /// Counts a difference, and names it while there is room.
    pub fn found_difference(&mut self, difference: Named) {
        self.difference_count += 1;
        if self.differences.len() < MAX_NAMED {
            self.differences.push(difference);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Document, Metadata, Resource, ResourceName};

    #[test]
    fn what_a_newer_release_wrote_survives_in_both_rows() {
        let journal = br#"{"kind":"migration","version":"v1","metadata":{"name":"m"},"spec":{"state":"flipped","digest":"d","attempt":2,
            "token":7,"future":{"a":1}},"beyond":true}"#;
        let mut read: Resource<Journal> = Resource::from_document(Document::from_json(journal).unwrap()).unwrap();
        assert_eq!((read.spec.state, read.spec.swept), (State::Flipped, false));
        read.spec.state = State::Undoing;
        let written = serde_json::to_value(read.to_document()).unwrap();
        assert_eq!((&written["spec"]["future"]["a"], &written["beyond"]), (&1.into(), &true.into()));
        let progress = br#"{"kind":"migration-progress","version":"v1","metadata":{"name":"m"},"spec":{"phase":"compare-old",
            "bad":[{"key":"k","why":"w","note":1}],"later":[]}}"#;
        let read: Resource<Progress> = Resource::from_document(Document::from_json(progress).unwrap()).unwrap();
        let entered = Resource { spec: read.spec.enter(Phase::CompareNew, Time::EPOCH), ..read };
        let written = serde_json::to_value(entered.to_document()).unwrap();
        assert_eq!(written["spec"]["bad"][0]["note"], 1);
        assert!(written["spec"]["later"].is_array());
    }

    #[test]
    fn names_are_bounded_and_counts_are_not() {
        let mut progress = Progress::default();
        for n in 0..250 {
            progress.found_bad(Named::new(format!("k{n}"), "w"));
            progress.found_difference(Named::new(format!("k{n}"), "w"));
        }
        assert_eq!((progress.bad.len(), progress.bad_count), (MAX_NAMED, 250));
        assert_eq!((progress.differences.len(), progress.difference_count), (MAX_NAMED, 250));
        let document = Resource::new(Metadata::named(ResourceName::new("m").unwrap()), progress).to_document();
        assert!(document.to_json().len() < 1 << 16);
    }
}
