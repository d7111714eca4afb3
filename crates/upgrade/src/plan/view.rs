//! What the planner looks at: one reading of the cluster as plain data, which a support bundle can hold.
//!
//! Auth gathers it from its store (control record, seats, `member` documents, journals of migrations, the books of backups and releases);
//! `tctl` gets the same and asks the same question, so that what it shows is what Auth will do. Nothing here is inferred: what was
//! not learned is absent, and the planner takes what is absent as unhealthy. The time is a part of the view, because there is no other.

use crate::{
    barrier::Seat,
    migrate::{self, Known, State},
    plan::{
        fleet::Tier,
        policy::{Policy, Waiver},
        record::Upgrade,
    },
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use types::{ControlRecord, Extra, Labels, Metadata, Resource, ResourceName, SystemRole, Time, Version, control::ClusterVersion, kind};

/// One reading of a cluster.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct View {
    pub now: Time,
    /// When all below was read. A reading that is too old yields a wait, never a guess.
    pub read_at: Time,
    pub cluster: String,
    pub control: ControlRecord,
    /// The version somebody asks for; counts only while no upgrade is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Version>,
    pub members: Vec<Member>,
    pub seats: Vec<Seat>,
    #[serde(default)]
    pub leaves: Vec<Leaf>,
    /// The root that this cluster trusts, if it is a leaf (rule G11).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    #[serde(default)]
    pub migrations: Vec<Migration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    pub releases: Vec<Release>,
    /// What else stands against an upgrade, from whoever can see it.
    #[serde(default)]
    pub findings: Vec<Finding>,
    pub policy: Policy,
    #[serde(default)]
    pub waivers: Vec<Waiver>,
}

/// A process of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its host id: the name of its `member` document.
    pub id: ResourceName,
    /// For people.
    pub name: String,
    pub roles: BTreeSet<SystemRole>,
    pub version: Version,
    /// Changes at every start of the process. Empty when it has not said.
    #[serde(default)]
    pub boot: String,
    pub started: Time,
    pub last_seen: Time,
    pub state: Condition,
    /// Members that a fault of a build would hit alike: operating system, architecture, label group; of a Proxy, its region.
    #[serde(default)]
    pub class: String,
    /// The resources that it serves, where others may serve the same.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub serves: BTreeSet<String>,
    /// Whether it has an updater. Who has none is moved by people.
    #[serde(default)]
    pub by_hand: bool,
    /// What it was told last to install.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<Told>,
    /// The last walk of a user's path through it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Walk>,
    /// Of a process that drains: when its last session ends at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drains_until: Option<Time>,
}

/// How a member says it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    Joining,
    Active,
    Draining,
    /// Refused for its version; serves nobody and waits for another.
    Quarantined,
    /// Its document has lapsed; the books still know it.
    Missing,
}

/// A directive to a member.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Told {
    pub version: Version,
    pub at: Time,
    /// Its boot id when it was told: health that was seen on that run says nothing of the new version.
    pub boot: String,
    /// How often it was told this version, from 1.
    pub attempts: u32,
    /// What its updater reports against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// A synthetic login and session through a member: what a user would see.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Walk {
    /// The run of the process that was walked through.
    pub boot: String,
    pub at: Time,
    /// What did not work; none when all did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// A cluster that trusts this one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Leaf {
    pub name: String,
    /// Of its oldest Auth or Proxy.
    pub version: Version,
    pub last_seen: Time,
    /// Run by other people: this cluster can only ask.
    #[serde(default)]
    pub by_others: bool,
}

/// The cluster that this one trusts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Root {
    pub name: String,
    /// Of its oldest Auth or Proxy.
    pub version: Version,
}

/// A migration, as its journal and this release have it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Migration {
    pub id: String,
    pub to: ClusterVersion,
    /// The oldest major whose Auth Service may write while this is not begun.
    pub floor: u64,
    pub state: State,
    /// Somebody wants it undone.
    #[serde(default)]
    pub undo: bool,
    /// Why it does not go on before somebody does something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck: Option<String>,
    /// Rows of the present phase: done, and all.
    #[serde(default)]
    pub done: u64,
    #[serde(default)]
    pub total: u64,
    /// In `contracted`: nothing of the old side is left in its place.
    #[serde(default)]
    pub swept: bool,
}

/// The newest backup, and how far it was proved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Backup {
    pub id: String,
    pub at: Time,
    pub cluster_version: ClusterVersion,
    /// Why the last attempt to make one failed, if that was later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Restored into a scratch store, and logged in against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<Drill>,
    /// The whole upgrade, there and back, in that scratch store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<Rehearsal>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Drill {
    pub at: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rehearsal {
    pub at: Time,
    pub target: Version,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Rows that the next format cannot hold, by key.
    #[serde(default)]
    pub bad_rows: Vec<String>,
    pub rows: u64,
    /// How long the migrations took there. Estimates come from here, not from constants.
    pub seconds: u64,
}

/// A release that the cluster knows, from verified metadata.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Release {
    pub version: Version,
    /// Of its list of digests; what a member installs must have it.
    pub digest: String,
    /// Signed as the release policy asks.
    pub verified: bool,
    /// Its files are in the mirror of this cluster.
    pub mirrored: bool,
    /// The oldest version from which one may come here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_source: Option<Version>,
    #[serde(default)]
    pub denied_sources: Vec<Version>,
    /// Must not be passed over.
    #[serde(default)]
    pub visit: bool,
    /// Why nobody should install it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<String>,
}

/// Something that stands against an upgrade.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Finding {
    /// A certificate authority is being rotated.
    Rotation { authority: String, phase: String },
    /// A setting that the next major does not know, or reads otherwise.
    Setting { member: String, key: String, instead: String },
    /// Too little room on a member's disk, in MiB.
    Disk { member: String, needs: u64, has: u64 },
    /// A clock that is wrong, in seconds.
    Clock { member: String, off: u64 },
}

impl View {
    /// The upgrade under way, if the control record has one that this release can read.
    pub fn upgrade(&self) -> Result<Option<Upgrade>, serde_json::Error> {
        self.control.upgrade.as_ref().map(Upgrade::deserialize).transpose()
    }

    /// Whether a check is waived now, and by whom.
    pub fn waived(&self, name: &str) -> Option<&Waiver> {
        self.waivers.iter().find(|waiver| waiver.name == name && waiver.until > self.now)
    }

    /// The members as the rules over windows judge them.
    pub fn documents(&self) -> Vec<Resource<kind::Member>> {
        self.members.iter().filter(|member| member.state != Condition::Missing).map(Member::document).collect()
    }

    pub fn release(&self, version: &Version) -> Option<&Release> {
        self.releases.iter().find(|release| release.version == *version)
    }

    /// Whether anybody installs from the mirror. Where people move every member, what they install is theirs to get.
    pub fn uses_mirror(&self) -> bool {
        self.members.iter().any(|member| !member.by_hand && Tier::of(member).is_some())
    }

    pub fn member(&self, id: &ResourceName) -> Option<&Member> {
        self.members.iter().find(|member| member.id == *id)
    }
}

impl Condition {
    /// As in the `state` of a `member` document; what a newer release says counts as not there yet.
    pub fn read(state: &str) -> Self {
        match state {
            "" | "active" => Self::Active,
            "draining" => Self::Draining,
            kind::Member::QUARANTINED => Self::Quarantined,
            "missing" => Self::Missing,
            _ => Self::Joining,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Quarantined => kind::Member::QUARANTINED,
            Self::Missing => "missing",
        }
    }
}

impl Member {
    /// What a `member` document says, with its platform as its class; directive, walk and updater are for the caller to add.
    pub fn of(document: &Resource<kind::Member>) -> Self {
        let spec = &document.spec;
        Self {
            id: document.name().clone(),
            name: spec.hostname.clone(),
            roles: spec.roles.clone(),
            version: spec.version.clone(),
            boot: spec.boot_id.clone(),
            started: spec.started,
            last_seen: spec.last_seen,
            state: Condition::read(&spec.state),
            class: [&spec.platform.os, &spec.platform.arch, &spec.platform.libc, &spec.platform.init].map(String::as_str).join("/"),
            serves: BTreeSet::new(),
            by_hand: true,
            told: None,
            path: None,
            drains_until: None,
        }
    }

    /// As the rules over windows want it.
    pub fn document(&self) -> Resource<kind::Member> {
        let spec = kind::Member {
            hostname: self.name.clone(),
            roles: self.roles.clone(),
            version: self.version.clone(),
            boot_id: self.boot.clone(),
            started: self.started,
            last_seen: self.last_seen,
            state: self.state.as_str().to_owned(),
            skips_version_check: false,
            labels: Labels::new(),
            platform: kind::Platform::default(),
            capabilities: Vec::new(),
            extra: Extra::new(),
        };
        Resource { metadata: Metadata::named(self.id.clone()), spec, extra: Extra::new() }
    }
}

impl Migration {
    /// What the store says of a migration that this release knows.
    pub fn of(migration: &migrate::Migration, known: Known<'_>) -> Self {
        let stuck = match migrate::next(migration, known, migrate::Goal::Contract) {
            migrate::Step::Wait(wait @ (migrate::Wait::BadRows { .. } | migrate::Wait::Differs { .. } | migrate::Wait::OtherBuild)) => {
                Some(wait.to_string())
            }
            migrate::Step::Wait(_) | migrate::Step::Move { .. } | migrate::Step::Batch(_) | migrate::Step::Done => None,
        };
        Self {
            id: migration.id.to_owned(),
            to: migration.to,
            floor: migration.floor,
            state: known.state(migration),
            undo: known.journal.is_some_and(|journal| journal.undo),
            stuck,
            done: known.progress.map_or(0, |progress| progress.done),
            total: known.progress.map_or(0, |progress| progress.total),
            swept: known.journal.is_none_or(|journal| journal.swept),
        }
    }
}
