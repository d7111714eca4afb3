//! How carefully a cluster is upgraded: the document `upgrade_policy`, a singleton named `upgrade-policy`.
//!
//! Everything in it has a default, which is for a cluster that nobody has thought about. What it means is decided in crate `upgrade`.

use crate::{Extra, Ttl, document::Spec};
use serde::{Deserialize, Serialize};

/// What an operator may set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Auth Services that stay ready; none means all but one, and two of three or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_auth: Option<usize>,
    /// Proxies of a region that stay ready; none means all but one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_proxies: Option<usize>,
    /// Agents of a class that are moved at a time.
    pub in_flight: usize,
    /// Ends of the waves of agents, in percent of all; each class has a canary before the first.
    pub waves: Vec<u8>,
    /// How long a canary serves before it is judged, and everybody else.
    pub bake_canary: Ttl,
    pub bake: Ttl,
    /// How long a member may take to install, restart and pass; then it counts as failed.
    pub deadline: Ttl,
    /// How often a member is told again, and after how long.
    pub retries: u32,
    pub retry_after: Ttl,
    /// Failures in ten thousand that happen without any upgrade.
    pub background: u32,
    /// Members of the control cohort that are walked through before a failure is judged.
    pub control: usize,
    pub on_failure: OnFailure,
    /// The oldest backup with which an upgrade begins, and with which it is finalized.
    pub backup_age: Ttl,
    pub soak: Ttl,
    pub finalize: Consent,
    /// Agents silent for so long are evicted, with rescue, when a window closes.
    pub absent_after: Ttl,
    /// Silent for so long counts as not there.
    pub offline_after: Ttl,
    /// The oldest reading that is acted on.
    pub fresh: Ttl,
    /// The cluster takes new releases by itself; none means that somebody asks for each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managed: Option<Managed>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// What happens when a wave fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Likewise, and the members of that wave go back to where they came from.
    PauseAndRevert,
    /// Nothing more is begun until somebody resumes or rolls back. What a later release says is read as this.
    #[serde(other)]
    Pause,
}

/// Who ends the way back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consent {
    /// This policy, once the soak is over and every gate is green. Time alone finalizes nothing.
    After,
    /// Somebody, by `tctl upgrade finalize`. What a later release says is read as this.
    #[serde(other)]
    Manual,
}

/// Which releases a cluster takes by itself, and when it begins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Managed {
    /// Only releases of the major that runs.
    pub minors_only: bool,
    /// Days of the week on which an upgrade may begin, Monday being 1; empty is every day.
    pub days: Vec<u8>,
    /// Hours of the day, UTC, in which it may begin: from this one, and before that one. Equal is all day.
    pub from_hour: u8,
    pub to_hour: u8,
}

impl Default for Managed {
    fn default() -> Self {
        Self { minors_only: true, days: Vec::new(), from_hour: 0, to_hour: 0 }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            min_auth: None,
            min_proxies: None,
            in_flight: 200,
            waves: vec![1, 5, 20, 50, 100],
            bake_canary: Ttl::from_secs(600),
            bake: Ttl::from_secs(30),
            deadline: Ttl::from_secs(900),
            retries: 3,
            retry_after: Ttl::from_secs(120),
            background: 10,
            control: 5,
            on_failure: OnFailure::Pause,
            backup_age: Ttl::hours(24),
            soak: Ttl::hours(7 * 24),
            finalize: Consent::Manual,
            absent_after: Ttl::hours(30 * 24),
            offline_after: Ttl::from_secs(225),
            fresh: Ttl::from_secs(120),
            managed: None,
            extra: Extra::new(),
        }
    }
}

impl Spec for Policy {
    const KIND: &'static str = "upgrade_policy";
    const VERSION: &'static str = "v1";
}

impl Policy {
    /// How many of so many Auth Services stay ready.
    pub fn min_ready_auth(&self, all: usize) -> usize {
        self.min_auth.unwrap_or(if all >= 3 { (all - 1).max(2) } else { all.saturating_sub(1) }).min(all)
    }

    /// How many of so many Proxies of a region stay ready.
    pub fn min_ready_proxies(&self, all: usize) -> usize {
        self.min_proxies.unwrap_or(all.saturating_sub(1)).min(all)
    }

    /// Settings that mean nothing, each in one line.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.in_flight == 0 {
            faults.push("in_flight: 0 moves nobody".into());
        }
        if self.waves.last() != Some(&100) || !self.waves.is_sorted() || self.waves.first() == Some(&0) {
            faults.push("waves: percentages that rise to 100, e.g. [1, 5, 20, 50, 100]".into());
        }
        if self.deadline.0.is_zero() || self.fresh.0.is_zero() || self.offline_after.0.is_zero() {
            faults.push("deadline, fresh and offline_after: longer than nothing".into());
        }
        if let Some(managed) = &self.managed {
            if managed.days.iter().any(|day| !(1..=7).contains(day)) {
                faults.push("managed.days: 1 for Monday to 7 for Sunday".into());
            }
            if managed.from_hour > 23 || managed.to_hour > 24 {
                faults.push("managed.from_hour and to_hour: hours of a day, UTC".into());
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_would_move_nobody_or_judge_nothing_is_named() {
        assert!(Policy::default().faults().is_empty());
        let bad = |edit: fn(&mut Policy)| {
            let mut policy = Policy::default();
            edit(&mut policy);
            policy.faults().len()
        };
        assert_eq!(bad(|policy| policy.in_flight = 0), 1);
        assert_eq!(bad(|policy| policy.waves = vec![]), 1);
        assert_eq!(bad(|policy| policy.waves = vec![50, 20, 100]), 1);
        assert_eq!(bad(|policy| policy.waves = vec![0, 100]), 1);
        assert_eq!(bad(|policy| policy.deadline = Ttl::from_secs(0)), 1);
        assert_eq!(bad(|policy| policy.managed = Some(Managed { days: vec![0], from_hour: 24, ..Managed::default() })), 2);
    }
}
