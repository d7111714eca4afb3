//! How carefully a cluster is upgraded: figures that an operator may set, and the checks he may waive.
//!
//! The defaults are for a cluster that nobody has thought about. A waiver takes one check away, by name, from one person, for some time;
//! there is no way to take all of them away, and the windows, the barrier and the fences cannot be waived at all.

use serde::{Deserialize, Serialize};
use types::{Time, Ttl};

/// What an operator may set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Auth Services that stay ready; none means all but one, and two of three or more.
    pub min_auth: Option<usize>,
    /// Proxies of a region that stay ready; none means all but one.
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
}

/// What happens when a wave fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Nothing more is begun until somebody resumes or rolls back.
    Pause,
    /// Likewise, and the members of that wave go back to where they came from.
    PauseAndRevert,
}

/// Who ends the way back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consent {
    /// Somebody, by `tctl upgrade finalize`.
    Manual,
    /// This policy, once the soak is over and every gate is green. Time alone finalizes nothing.
    After,
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
        }
    }
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
}

/// One check taken away.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Waiver {
    /// As the block or wait names it, e.g. `leaf:berlin`.
    pub name: String,
    pub by: String,
    pub at: Time,
    pub until: Time,
    pub reason: String,
}
