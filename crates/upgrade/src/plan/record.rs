//! The upgrade under way, as it stands in the control record's `upgrade`.
//!
//! It says where to, which way, and what people have said about it; where the upgrade stands is not in it but read off the windows and
//! members each time, so that a record can be old without being wrong. Unknown keys are kept. Whoever writes it does so by the
//! conditional write of the control record, with the generation one higher: a directive of an older generation is refused by who gets it.

use crate::plan::fleet::Wave;
use serde::{Deserialize, Serialize};
use types::{ControlRecord, Extra, Time, Version};

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Upgrade {
    /// Salts the order of members, so that it is not always the same hosts that go first.
    pub id: String,
    pub from: Version,
    pub target: Version,
    pub direction: Direction,
    pub way: Way,
    pub begun: Time,
    pub by: String,
    /// Raised by every write of this record.
    pub generation: u64,
    /// The id of the plan that was accepted last; the next one names it.
    #[serde(default)]
    pub parent: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Pause>,
    /// Since when everything is moved and healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soaks_since: Option<Time>,
    /// Who said that the way back may end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finalize: Option<Said>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Which way the members go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    Up,
    Down,
}

/// How the Auth Service changes its major.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Role by role, old beside new, behind windows that make every possible connection legal.
    Roll,
    /// One process is several services at once, and cannot be in two windows: it is replaced, and the new one takes the cluster over
    /// (rule G9, by [`crate::adopt`]). Members one major behind keep their place meanwhile.
    TakeOver,
    /// Within one major nothing but the order matters (rule G3).
    Swap,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pause {
    pub by: String,
    pub at: Time,
    pub reason: String,
    /// A wave failed: nobody asked for it.
    #[serde(default)]
    pub failed: bool,
    /// The wave that goes back to where it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revert: Option<Wave>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Said {
    pub by: String,
    pub at: Time,
}

impl Upgrade {
    /// The version that members are moved to.
    pub const fn goal(&self) -> &Version {
        match self.direction {
            Direction::Up => &self.target,
            Direction::Down => &self.from,
        }
    }

    /// The version that members are moved from.
    pub const fn source(&self) -> &Version {
        match self.direction {
            Direction::Up => &self.from,
            Direction::Down => &self.target,
        }
    }

    /// Whether this version is where members are moved to. Between majors the major decides: who is moved by hand may be a patch ahead.
    pub fn is_goal(&self, version: &Version) -> bool {
        let goal = self.goal();
        version == goal || (self.is_major() && version.major() == goal.major())
    }

    pub fn is_major(&self) -> bool {
        self.from.major() != self.target.major()
    }

    /// The control record with this upgrade in it, one generation later.
    #[must_use]
    pub fn write_to(mut self, control: &ControlRecord) -> ControlRecord {
        self.generation = self.generation.saturating_add(1);
        ControlRecord { upgrade: serde_json::to_value(self).ok(), ..control.clone() }
    }

    /// The record after somebody turns round. What was said about the end of the way back is void.
    #[must_use]
    pub fn turned(self, direction: Direction) -> Self {
        Self { direction, paused: None, soaks_since: None, finalize: None, ..self }
    }
}
