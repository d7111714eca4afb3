//! What kind of world it is: how large, which way the upgrade goes, what may go wrong. All of it follows from a seed and a size,
//! and each part can be taken away, which is how a failing world is made small enough to be read.

use crate::dice::Dice;
use std::collections::BTreeSet;
use upgrade::plan::{Tier, Way};

macro_rules! faults {
    ($($name:ident = $text:literal),+ $(,)?) => {
        /// Something that can go wrong, each on its own switch.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Fault { $(#[doc = $text] $name),+ }
        impl Fault {
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
            pub const fn text(self) -> &'static str { match self { $(Self::$name => $text),+ } }
        }
    };
}

faults! {
    Crash = "processes crash and restart",
    PowerLoss = "hosts lose power, and what was not on the disk yet",
    Freeze = "an Auth Service stands still, and wakes up late with what it had decided",
    CutFromStore = "an Auth Service cannot reach the store",
    CutOff = "hosts cannot reach the cluster",
    Region = "a whole class of hosts cannot reach the cluster",
    LostAnswer = "the store's answer is lost; what was written may be there or not",
    StaleImage = "a host restarts on the release before",
    PrematureImage = "a host restarts on the release to come",
    Reschedule = "a host is set up anew in the middle of a step",
    Turn = "somebody turns round",
    Pause = "somebody pauses, and resumes later",
    WrongEviction = "somebody evicts whoever is silent, and it comes back",
    Lost = "a host never comes back",
    Flapping = "a host comes and goes",
    DiskFull = "a disk is full when a release is unpacked",
    CorruptArtifact = "an archive arrives broken",
    StaleMetadata = "the vendor's metadata has expired",
    WrongClock = "the clock of a host is wrong",
    Rotation = "a certificate authority is being rotated",
    LeafFlaps = "a leaf's link comes and goes",
    LeafRefuses = "a leaf's owner does not upgrade it",
    Storm = "all hosts of a Proxy that restarts connect at once",
    TwoExecutors = "two Auth Services carry the upgrade out at once",
    BadRows = "rows cannot be changed",
    ProofFails = "a backup, a drill or a rehearsal fails",
    BadBuild = "the release does not work on some hosts, or on all",
    Noise = "a user's path fails now and then for no reason",
    ByHand = "some members have no updater",
    Withdrawn = "the release is withdrawn for a while",
    Behind = "a host is two majors behind",
    Sessions = "old processes drain for as long as their sessions last",
    Combined = "a second process is several services at once",
    Prerelease = "somebody asks for what the cluster does not take",
}

/// What is wrong with a build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It ends as soon as it starts.
    Crashes,
    /// It runs, and does not reach the cluster.
    Deaf,
    /// It serves, and users do not get through.
    Broken,
    /// It says itself that it cannot run here.
    Unfit,
}

/// A release that does not work in one tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadBuild {
    pub fate: Fate,
    pub tier: Tier,
    /// Of the tier's hosts, in percent.
    pub share: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub auths: usize,
    pub proxies: usize,
    pub agents: usize,
    /// Of agents; hosts that a build hits alike.
    pub classes: usize,
    pub way: Way,
    pub leaf: bool,
    /// Whether data changes its form.
    pub data: bool,
    /// A failing wave goes back by itself.
    pub reverts: bool,
    /// The policy ends the way back, not a person.
    pub finalizes: bool,
    pub bad: Option<BadBuild>,
    pub faults: BTreeSet<Fault>,
}

impl Scenario {
    /// The world of a seed, with about so many agents.
    pub fn of(seed: u64, agents: usize) -> Self {
        let mut dice = Dice::new(seed ^ 0x5EED);
        let way = match dice.below(10) {
            0 => Way::Swap,
            1 => Way::TakeOver,
            _ => Way::Roll,
        };
        let single = way == Way::TakeOver;
        // One in eight goes well, so that it is seen that it can.
        let calm = dice.chance(12);
        let faults: BTreeSet<Fault> = Fault::ALL.iter().copied().filter(|_| !calm && dice.chance(30)).collect();
        let (fate, tier, share) = (dice.place(4), dice.place(3), [100, 100, 60, 20, 5][dice.place(5)]);
        let bad = faults.contains(&Fault::BadBuild).then(|| BadBuild {
            fate: [Fate::Crashes, Fate::Deaf, Fate::Broken, Fate::Unfit][fate],
            tier: if single { Tier::Agent } else { [Tier::Auth, Tier::Proxy, Tier::Agent][tier] },
            share,
        });
        Self {
            seed,
            auths: if single { 1 } else { 1 + dice.place(3) },
            proxies: if single { 0 } else { 1 + dice.place(4) },
            agents: agents - dice.place(agents / 4 + 1),
            classes: 1 + dice.place(4),
            way,
            leaf: dice.chance(30),
            data: dice.chance(60),
            reverts: dice.chance(50),
            finalizes: dice.chance(50),
            bad,
            faults,
        }
    }

    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// The same world without that fault.
    #[must_use]
    pub fn without(&self, fault: Fault) -> Self {
        let mut less = self.clone();
        less.faults.remove(&fault);
        if fault == Fault::BadBuild {
            less.bad = None;
        }
        less
    }
}
