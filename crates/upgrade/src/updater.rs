//! One host's update to another release, as pure decisions (design 3.8).
//!
//! idle → fetched → staged → tested → switched → confirmed, or reverted with a reason. [`next`] says what to do now, from what the
//! cluster directs, what the vendor vouches for, what is installed, and the host's own [`Book`]; whoever does it tells the outcome to
//! [`Book::after`]. A host installs only what both the vendor's metadata and the cluster's directive allow ([`allowed`]); generations
//! of directives never go back; nothing of another edition, system or architecture is touched; without a directive nothing changes.
//!
//! A release is marked bad only by what it did itself: its own test failed, or the cluster could be reached for long enough and did
//! not see it. A network that is away marks nothing: its time does not count. The book is written after each step, so that an
//! updater that is killed goes on where it was. Caller: `cli::server::update`.

mod allowed;
mod book;

pub use allowed::{Offer, Refusal, allowed, target_for};
pub use book::{Bad, Book, Event, Looked, State, Verdict};

use std::{collections::BTreeSet, time::Duration};
use types::{
    ClusterName, HostId, Sha256, SystemRole, Time, Version,
    update::{Directive, Target},
};

/// The host that asks.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    pub id: HostId,
    pub cluster: &'a ClusterName,
    pub roles: &'a BTreeSet<SystemRole>,
    /// What is sold under which name: never crossed.
    pub edition: &'a str,
    pub os: &'a str,
    pub arch: &'a str,
}

impl Host<'_> {
    /// As directives name it: `linux/amd64`.
    pub fn system(&self) -> String {
        format!("{}/{}", self.os, self.arch)
    }
}

/// What the link names.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Installed {
    pub version: Version,
    /// Of the archive it came from; unknown when a package or a person put it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Sha256>,
}

/// A release to bring onto this host: one file, allowed by both sides.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Job {
    pub version: Version,
    pub archive: Sha256,
    /// Bytes of the archive.
    pub size: u64,
    /// The file's name, as the vendor lists it.
    pub file: String,
    /// Of the program in it, which is checked once more after unpacking.
    pub program: Sha256,
    /// Of the directive.
    pub generation: u64,
}

/// How patient this host is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long a cluster that can be reached may fail to see the new release before it is taken back.
    pub confirm: Duration,
    /// After the first trouble; doubled each time.
    pub shortest: Duration,
    pub longest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { confirm: Duration::from_secs(300), shortest: Duration::from_secs(30), longest: Duration::from_secs(3600) }
    }
}

/// All that a decision is made of.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    pub host: Host<'a>,
    pub installed: &'a Installed,
    pub book: &'a Book,
    /// The cluster's, signature and all checked; none when the cluster directs nothing.
    pub directive: Option<&'a Directive>,
    /// What the vendor vouches for, signatures and all checked; or why nothing is believed.
    pub offers: Result<&'a [Offer], &'a str>,
    pub patience: Patience,
    pub now: Time,
}

/// What to do now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing.
    Rest(Rest),
    /// Nothing until then: something went wrong that passes.
    Wait { until: Time },
    /// Nothing, and say so: somebody wants what is not allowed.
    Refuse(Refusal),
    /// Get the archive, by its digest.
    Fetch(Job),
    /// Unpack it beside the others.
    Stage(Job),
    /// Let it say whether it could run here.
    Test(Job),
    /// Make the link name it, and restart the service.
    Switch(Job),
    /// Look whether the cluster sees this host with it.
    Look(Job),
    /// Make the link name what was there before, and restart the service.
    Revert { job: Job, to: Installed, why: String },
}

/// Why there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rest {
    /// The cluster directs nothing: the updater may be on for years and change nothing.
    NoDirective,
    /// No target is for this host.
    NotNamed,
    AsDirected,
    Pinned,
    /// It was tried and does not work here.
    Marked,
}

impl Rest {
    pub const fn why(self) -> &'static str {
        match self {
            Self::NoDirective => "the cluster directs nothing",
            Self::NotNamed => "no target of the directive is for this host",
            Self::AsDirected => "this host runs what it should",
            Self::Pinned => "this host is pinned to what it runs",
            Self::Marked => "the release that it should run was tried and does not work on this host",
        }
    }
}

/// Decides. Equal inputs give equal steps.
pub fn next(case: &Case<'_>) -> Step {
    // Unless somebody made the link name something else since: then what was switched to is not judged any more.
    if let State::Switched { job, from, unseen, .. } = &case.book.state
        && case.installed.version == job.version
    {
        return switched(case, job, from, *unseen);
    }
    if case.book.pinned {
        return Step::Rest(Rest::Pinned);
    }
    let Some(directive) = case.directive else { return Step::Rest(Rest::NoDirective) };
    if let Err(refusal) = obeyed(&case.host, case.book, directive, case.now) {
        return Step::Refuse(refusal);
    }
    let Some(target) = target_for(directive, &case.host) else { return Step::Rest(Rest::NotNamed) };
    let wanted = target.artifacts.get(&case.host.system());
    if case.installed.version == target.version && (case.installed.archive.is_none() || case.installed.archive.as_ref() == wanted) {
        return Step::Rest(Rest::AsDirected);
    }
    if wanted.is_some_and(|archive| case.book.is_bad(archive, directive.generation, target.retry)) {
        return Step::Rest(Rest::Marked);
    }
    // What was refused may be allowed next time, and refusing costs nothing: only trouble is waited for.
    let job = match job(case, directive, target) {
        Ok(job) => job,
        Err(refusal) => return Step::Refuse(refusal),
    };
    if let Some(until) = case.book.wait_until(&job).filter(|until| *until > case.now) {
        return Step::Wait { until };
    }
    match &case.book.state {
        State::Fetched { job: held } if *held == job => Step::Stage(job),
        State::Staged { job: held } if *held == job => Step::Test(job),
        State::Tested { job: held } if *held == job => Step::Switch(job),
        State::Idle
        | State::Fetched { .. }
        | State::Staged { .. }
        | State::Tested { .. }
        | State::Switched { .. }
        | State::Confirmed { .. }
        | State::Reverted { .. } => Step::Fetch(job),
    }
}

/// The new release runs, or should.
fn switched(case: &Case<'_>, job: &Job, from: &Installed, unseen: Duration) -> Step {
    if unseen < case.patience.confirm {
        return Step::Look(job.clone());
    }
    let why = format!("the cluster could be reached for {} and did not see this host with {}", types::Ttl(unseen), job.version);
    Step::Revert { job: job.clone(), to: from.clone(), why }
}

/// A directive that counts here and now.
fn obeyed(host: &Host<'_>, book: &Book, directive: &Directive, now: Time) -> Result<(), Refusal> {
    if directive.format > types::update::FORMAT {
        return Err(Refusal::Format(directive.format));
    }
    if directive.cluster != *host.cluster {
        return Err(Refusal::Cluster(directive.cluster.clone()));
    }
    if directive.generation < book.generation {
        return Err(Refusal::Older { generation: directive.generation, seen: book.generation });
    }
    if directive.expires <= now {
        return Err(Refusal::Expired(directive.expires));
    }
    Ok(())
}

fn job(case: &Case<'_>, directive: &Directive, target: &Target) -> Result<Job, Refusal> {
    let offers = case.offers.map_err(|why| Refusal::Metadata(why.to_owned()))?;
    let offer = allowed(offers, target, &case.host, &case.installed.version)?;
    Ok(Job {
        version: offer.version.clone(),
        archive: offer.archive,
        size: offer.size,
        file: offer.file.clone(),
        program: offer.program,
        generation: directive.generation,
    })
}

#[cfg(test)]
#[path = "updater/tests.rs"]
mod tests;
