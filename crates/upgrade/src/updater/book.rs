//! What a host's updater remembers: how far it is, what it obeyed, what does not work here.
//!
//! Written to the disk after each step and read at each start. A transition consumes the old book. Generations only grow; a release
//! is marked bad by its own test or by a cluster that was there and did not see it, never by anything else.

use super::{Host, Installed, Job, Patience, obeyed};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};
use types::{
    Extra, Sha256, Time, Version,
    update::{Directive, UpdateReport},
};

/// Releases that are remembered as bad; the oldest is forgotten.
const MAX_BAD: usize = 16;

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Book {
    /// The highest generation of a directive that was obeyed.
    #[serde(default)]
    pub generation: u64,
    #[serde(default)]
    pub state: State,
    /// By digest of the archive.
    #[serde(default)]
    pub bad: BTreeMap<Sha256, Bad>,
    /// An operator holds this host where it is.
    #[serde(default)]
    pub pinned: bool,
    /// The trouble in a row with one archive, and until when it is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trouble: Option<Trouble>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum State {
    #[default]
    Idle,
    Fetched {
        job: Job,
    },
    Staged {
        job: Job,
    },
    Tested {
        job: Job,
    },
    Switched {
        job: Job,
        /// To go back to.
        from: Installed,
        /// The process that served before; the new one has another.
        boot: String,
        at: Time,
        /// For how long the cluster could be reached and did not see the new release.
        unseen: Duration,
        /// The last look.
        looked: Time,
        /// Whether the cluster could be reached then.
        reached: bool,
    },
    Confirmed {
        version: Version,
        at: Time,
    },
    Reverted {
        version: Version,
        why: String,
        at: Time,
    },
}

/// A release that does not work here.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Bad {
    pub version: Version,
    pub why: String,
    pub at: Time,
    /// Of the directive that it was tried for.
    pub generation: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Trouble {
    archive: Sha256,
    times: u32,
    until: Time,
}

/// What became of a step.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    Fetched(Job),
    Staged(Job),
    Tested(Job, Verdict),
    Switched {
        job: Job,
        from: Installed,
        boot: String,
    },
    Looked(Looked),
    Reverted {
        job: Job,
        why: String,
    },
    /// Something that passes by itself: no network, no disk, a mirror that is being filled.
    Trouble(Job),
}

/// What a new release says of itself before anything is switched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Passed,
    /// It does not run here.
    Failed(String),
    /// It could not try: nobody answered.
    Unclear(String),
}

/// What the cluster shows of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Looked {
    /// It sees this host with the new release, in a new process.
    Seen,
    /// It can be reached, and does not.
    Unseen,
    /// It cannot be reached.
    Unreachable,
}

impl Book {
    /// The same book after that.
    #[must_use]
    pub fn after(mut self, event: Event, patience: &Patience, now: Time) -> Self {
        match event {
            Event::Fetched(job) => self.moved(State::Fetched { job: job.clone() }, &job),
            Event::Staged(job) => self.moved(State::Staged { job: job.clone() }, &job),
            Event::Tested(job, Verdict::Passed) => self.moved(State::Tested { job: job.clone() }, &job),
            Event::Tested(job, Verdict::Failed(why)) => self.failed(job, why, now),
            Event::Tested(job, Verdict::Unclear(_)) => self.troubled(&job, patience, now),
            Event::Trouble(job) => {
                // What was fetched may be the trouble: it is fetched again.
                self.state = State::Idle;
                self.troubled(&job, patience, now);
            }
            Event::Switched { job, from, boot } => {
                let state = State::Switched { job: job.clone(), from, boot, at: now, unseen: Duration::ZERO, looked: now, reached: false };
                self.moved(state, &job);
            }
            Event::Looked(looked) => self.looked(looked, patience, now),
            Event::Reverted { job, why } => self.failed(job, why, now),
        }
        self
    }

    /// Remembers the directive, so that no older one is obeyed after it; one that does not count leaves no trace.
    #[must_use]
    pub fn heard(mut self, directive: &Directive, host: &Host<'_>, now: Time) -> Self {
        if obeyed(host, &self, directive, now).is_ok() {
            self.generation = directive.generation;
        }
        self
    }

    fn moved(&mut self, state: State, job: &Job) {
        self.generation = self.generation.max(job.generation);
        self.state = state;
        self.trouble = None;
    }

    fn failed(&mut self, job: Job, why: String, now: Time) {
        self.generation = self.generation.max(job.generation);
        self.trouble = None;
        self.bad.insert(job.archive, Bad { version: job.version.clone(), why: why.clone(), at: now, generation: job.generation });
        while self.bad.len() > MAX_BAD {
            let oldest = self.bad.iter().min_by_key(|(_, bad)| bad.at).map(|(archive, _)| *archive);
            oldest.and_then(|archive| self.bad.remove(&archive));
        }
        self.state = State::Reverted { version: job.version, why, at: now };
    }

    fn troubled(&mut self, job: &Job, patience: &Patience, now: Time) {
        let times = self.trouble.as_ref().filter(|trouble| trouble.archive == job.archive).map_or(0, |trouble| trouble.times);
        let factor = 1u32.checked_shl(times.min(16)).unwrap_or(u32::MAX);
        let wait = patience.shortest.saturating_mul(factor).min(patience.longest);
        self.trouble = Some(Trouble { archive: job.archive, times: times.saturating_add(1), until: now.plus(wait) });
    }

    /// Time counts between two looks that both reached the cluster, and no more of it than a round can take: a host that slept, or
    /// whose clock jumped, has not been watched.
    fn looked(&mut self, outcome: Looked, patience: &Patience, now: Time) {
        let State::Switched { job, unseen, looked, reached, .. } = &mut self.state else { return };
        match outcome {
            Looked::Seen => {
                let version = job.version.clone();
                self.bad.remove(&job.archive);
                self.state = State::Confirmed { version, at: now };
            }
            Looked::Unseen => {
                if *reached {
                    *unseen = unseen.saturating_add(now.since(*looked).min(patience.confirm / 4));
                }
                (*looked, *reached) = (now, true);
            }
            Looked::Unreachable => (*looked, *reached) = (now, false),
        }
    }

    /// Whether it was tried and does not work, as far as a directive of this generation cares.
    pub fn is_bad(&self, archive: &Sha256, generation: u64, retry: bool) -> bool {
        self.bad.get(archive).is_some_and(|bad| !(retry && generation > bad.generation))
    }

    /// Until when that archive is left alone.
    pub(super) fn wait_until(&self, job: &Job) -> Option<Time> {
        self.trouble.as_ref().filter(|trouble| trouble.archive == job.archive).map(|trouble| trouble.until)
    }

    /// For the inventory and for people. `refused`: what stands in the way now.
    pub fn report(&self, refused: Option<&str>, now: Time) -> UpdateReport {
        let (state, version, why, at) = match &self.state {
            State::Idle => ("idle", None, "", now),
            State::Fetched { job } => ("fetched", Some(&job.version), "", now),
            State::Staged { job } => ("staged", Some(&job.version), "", now),
            State::Tested { job } => ("tested", Some(&job.version), "", now),
            State::Switched { job, at, .. } => ("switched", Some(&job.version), "", *at),
            State::Confirmed { version, at } => (UpdateReport::CONFIRMED, Some(version), "", *at),
            State::Reverted { version, why, at } => (UpdateReport::REVERTED, Some(version), why.as_str(), *at),
        };
        let (state, why) = refused.map_or((state, why), |refused| (UpdateReport::REFUSED, refused));
        UpdateReport {
            state: state.into(),
            version: version.cloned(),
            generation: self.generation,
            why: why.into(),
            at,
            pinned: self.pinned,
            extra: Extra::new(),
        }
    }
}
