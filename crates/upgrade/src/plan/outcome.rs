//! What the planner answers: steps to take now, what is waited for, what stands against it, and what will come.
//!
//! All steps of one answer may be taken in any order, together, and any of them may fail: the next look finds out. Every wait and block has
//! a code that keeps its meaning, a cause and a cure; a cure that is a command can be pasted. `G-` is a gate that opens by itself or when
//! what it names is done; `B-` waits for a decision or a repair by a person; `N-` is worth knowing.

use crate::plan::{fleet::Wave, record::Upgrade};
use serde::{Deserialize, Serialize};
use types::{ResourceName, Time, Ttl, Version};

/// Declares codes once: name, text, meaning.
macro_rules! codes {
    ($(#[$doc:meta])* $type:ident: $($name:ident = $text:literal : $meaning:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
        pub enum $type { $(#[doc = $meaning] #[serde(rename = $text)] $name),+ }
        impl $type {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
            pub const fn as_str(self) -> &'static str { match self { $(Self::$name => $text),+ } }
            pub const fn meaning(self) -> &'static str { match self { $(Self::$name => $meaning),+ } }
        }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.pad(self.as_str()) }
        }
    };
}

codes! {
    /// Why nothing more is done for now.
    Gate:
    Stale = "G-01": "what is known of the cluster is too old to act on",
    NoAuth = "G-02": "no Auth Service is known to serve",
    Backup = "G-03": "the backup is being made, restored for a drill, or rehearsed on",
    Barrier = "G-04": "Auth Services have not acknowledged the last change of the windows",
    Outside = "G-05": "members stand outside the windows and have not left yet",
    Moving = "G-06": "members install, restart or prove themselves",
    ByHand = "G-07": "members without an updater are moved by people",
    Availability = "G-08": "one more at a time would leave too few that serve",
    Walk = "G-09": "a user's path through a member has not been walked yet",
    Bake = "G-10": "a member has not served for long enough to be judged",
    Data = "G-11": "data is being brought into the other format",
    Retry = "G-12": "a member failed and is told again after a while",
    Draining = "G-13": "processes that drain have sessions left",
    Verdict = "G-14": "whether the members that were moved are healthy cannot be said yet",
    Leaf = "G-15": "a leaf has not been upgraded by those who run it",
    Soak = "G-16": "everything is moved; it must hold for a while before the way back may end",
    Consent = "G-17": "somebody must say that the way back may end",
    Paused = "G-18": "somebody paused the upgrade",
}

codes! {
    /// What stands against the upgrade until somebody does something.
    Bar:
    Release = "B-01": "the release cannot be used: unknown, not genuine, withdrawn or not in the mirror",
    Prerelease = "B-02": "a pre-release on a production cluster",
    Source = "B-03": "the release does not take upgrades from the version that runs here",
    Downgrade = "B-04": "the version asked for is behind the cluster version",
    WayBack = "B-05": "the release that runs now is not in the mirror, so there would be no way back",
    Behind = "B-06": "members are at another major than the cluster",
    CannotClose = "B-07": "a window cannot be closed because members stand outside it",
    Rotation = "B-08": "a certificate authority is being rotated",
    Setting = "B-09": "a setting means something else, or nothing, in the next major",
    Leaf = "B-10": "a leaf is behind, or cannot be reached",
    RootFirst = "B-11": "the root cluster goes first",
    Combined = "B-12": "processes are several services at once, and there is more than one Auth Service",
    Proof = "B-13": "the backup, its drill or the rehearsal failed",
    Unhealthy = "B-14": "members that were moved are not healthy",
    Windows = "B-15": "the windows are not those of an upgrade that this plan knows",
    Data = "B-16": "a migration does not go on by itself",
    Final = "B-17": "the upgrade is finalized: only a backup leads back",
    Host = "B-18": "a host is not fit for an upgrade",
    Record = "B-19": "the upgrade under way was begun by a release that this one does not understand",
    Another = "B-20": "another upgrade is under way",
    NoForecast = "B-21": "the plan does not come to an end",
}

codes! {
    /// Worth knowing, and no reason to wait.
    Hint:
    Absent = "N-1": "members that have not been heard of for a while",
    ByHand = "N-2": "members without an updater",
    LeafOfOthers = "N-3": "a leaf that other people run",
    Waived = "N-4": "a check that somebody waived",
    Sequence = "N-5": "more upgrades follow this one",
    NoSpare = "N-6": "a role with one process is away while that restarts",
    Combined = "N-7": "one process is several services, so the new one takes the cluster over",
    Failed = "N-8": "members that failed and are left behind for now",
    Later = "N-9": "what somebody will be asked about on the way",
}

/// Where an upgrade stands, in the order of its way up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Preflight,
    Backup,
    Auth,
    CloseAuth,
    Data,
    Proxies,
    Agents,
    Leaves,
    Soak,
    Finalize,
    Done,
}

impl Stage {
    pub const ALL: [Self; 11] = [
        Self::Preflight,
        Self::Backup,
        Self::Auth,
        Self::CloseAuth,
        Self::Data,
        Self::Proxies,
        Self::Agents,
        Self::Leaves,
        Self::Soak,
        Self::Finalize,
        Self::Done,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Backup => "backup",
            Self::Auth => "auth",
            Self::CloseAuth => "close-auth",
            Self::Data => "data",
            Self::Proxies => "proxies",
            Self::Agents => "agents",
            Self::Leaves => "leaves",
            Self::Soak => "soak",
            Self::Finalize => "finalize",
            Self::Done => "done",
        }
    }
}

/// One thing to do. Each may be repeated, and says what it was decided on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Step {
    /// Write this record into the control record. Somebody must have accepted the plan.
    Begin {
        upgrade: Box<Upgrade>,
    },
    /// Make a backup.
    Backup,
    /// Restore it into a scratch store, start an Auth Service on that and log in.
    Drill {
        backup: String,
    },
    /// Run the upgrade there and back in that scratch store.
    Rehearse {
        backup: String,
        target: Version,
    },
    /// [`crate::barrier::change`], asked again at the moment of the write.
    Widen {
        role: String,
        major: u64,
    },
    Narrow {
        role: String,
        lo: u64,
        hi: u64,
    },
    /// Direct a member to a version. Void if its boot id is another by then.
    Install {
        member: ResourceName,
        name: String,
        version: Version,
        digest: String,
        boot: String,
        attempt: u32,
        drain: Ttl,
    },
    /// Walk a user's path through a member; the result counts for this run of it.
    Walk {
        member: ResourceName,
        name: String,
        boot: String,
    },
    /// Let a migration go on, or have it undone.
    Migrate {
        id: String,
        undo: bool,
    },
    /// [`crate::evict::evict`]: no window waits for it until it reports again; rescue takes it up then.
    Evict {
        member: ResourceName,
        name: String,
        reason: String,
    },
    /// Write that the soak begins now.
    Soak,
    /// Write that nothing more is begun, and why.
    Pause {
        reason: String,
        revert: Option<Wave>,
    },
    /// [`crate::control::finalize`].
    Finalize,
    /// [`crate::control::give_back`]: the older major may start again.
    GiveBack {
        major: u64,
    },
    /// Take the upgrade out of the control record.
    Finish,
}

/// A gate that is shut.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Wait {
    pub code: Gate,
    pub cause: String,
    /// What would open it, or what to look at.
    pub cure: String,
    /// Names of the members it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
    /// When it opens by itself, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

/// What stands against it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Block {
    pub code: Bar,
    pub cause: String,
    pub cure: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
    /// The name of the waiver that takes this check away, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiver: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Note {
    pub code: Hint,
    pub text: String,
}

/// The answer to one look.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Decision {
    /// Of the upgrade under way, or of the one that would begin; none when there is nothing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Upgrade>,
    pub stage: Stage,
    /// The wave of members that is being moved, where there are waves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<Wave>,
    pub next: Vec<Step>,
    pub waits: Vec<Wait>,
    pub blocked: Vec<Block>,
    pub notes: Vec<Note>,
    /// Upgrades that follow this one, for who asked for more than one major.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Version>,
}

/// In one word, and as an exit status.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// There is something to do, and it can be done.
    Ready,
    /// Nothing is to be done.
    Done,
    Waiting,
    Blocked,
    /// A wave failed, and the upgrade paused itself.
    FailedAndPaused,
}

impl Verdict {
    /// The exit status of `tctl upgrade …`.
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Ready | Self::Done => 0,
            Self::Waiting => 10,
            Self::Blocked => 3,
            Self::FailedAndPaused => 5,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::Done => "DONE",
            Self::Waiting => "WAITING",
            Self::Blocked => "BLOCKED",
            Self::FailedAndPaused => "PAUSED",
        }
    }
}

impl Decision {
    /// The upgrade that would begin, if nothing stands against it.
    pub fn begins(&self) -> Option<&Upgrade> {
        let begun = self.next.iter().find_map(|step| if let Step::Begin { upgrade } = step { Some(upgrade.as_ref()) } else { None });
        begun.filter(|_| self.blocked.is_empty())
    }

    pub fn verdict(&self) -> Verdict {
        let failed = self.upgrade.as_ref().and_then(|upgrade| upgrade.paused.as_ref()).is_some_and(|pause| pause.failed);
        if failed {
            Verdict::FailedAndPaused
        } else if !self.blocked.is_empty() {
            Verdict::Blocked
        } else if !self.next.is_empty() {
            Verdict::Ready
        } else if !self.waits.is_empty() {
            Verdict::Waiting
        } else {
            Verdict::Done
        }
    }
}

/// A decision, and what will come of it if nothing goes wrong.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Of everything below: who accepts a plan names what he read.
    pub id: String,
    #[serde(flatten)]
    pub decision: Decision,
    pub forecast: Vec<Ahead>,
}

/// A stage to come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ahead {
    pub stage: Stage,
    /// Members that are moved in it.
    pub members: usize,
    /// Who or what, for people.
    pub what: String,
    /// How long it takes, if nothing goes wrong.
    pub takes: Ttl,
    /// Whether there is a way back from it without a backup.
    pub back: bool,
    /// What the stage after it waits for.
    pub then: String,
}
