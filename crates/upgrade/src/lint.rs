//! The invariants of an upgrade, I1 to I24, as functions that find what breaks them.
//!
//! [`state`] looks at one reading of a cluster, [`plan()`] at what the planner wants to do with it, [`change`] at two readings in a row, and [`record`]
//! at what only those who act can know: whom they admitted and refused, which writes the store took, which plans were accepted. Those take
//! that knowledge as an argument ([`Facts`]) and are not skipped without it: nothing known is nothing broken. The tests hold all of them over every
//! plan and every state of the exhaustive model; an Auth Service holds them at run time. They decide nothing and share no code with what
//! decides, but for the rules over windows.

mod course;
mod state;
mod steps;

use crate::plan::{Decision, Upgrade, View};
use serde::{Deserialize, Serialize};
use types::Time;

/// Declares the invariants once: number and promise.
macro_rules! invariants {
    ($($name:ident = $number:literal : $promise:literal),+ $(,)?) => {
        /// By its number in the design.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
        pub enum Invariant { $(#[doc = $promise] $name),+ }
        impl Invariant {
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
            pub const fn number(self) -> u8 { match self { $(Self::$name => $number),+ } }
            pub const fn promise(self) -> &'static str { match self { $(Self::$name => $promise),+ } }
        }
    };
}

invariants! {
    Windows = 1: "every connection that the windows admit is legal",
    Membership = 2: "no two members that are there could meet and must not",
    Start = 3: "who stands outside its window is not admitted",
    Support = 4: "every Auth Service can work on the cluster version, and is not below the floor of its data",
    Emulation = 5: "two majors write only while nothing is stored in a new form",
    Fence = 6: "data changes its form only when the older major is shut out",
    Runner = 7: "a migration's journal is moved only by who holds the present epoch",
    Writer = 8: "the store takes no write of an epoch that was fenced",
    NoReturn = 9: "the way back ends only with a proved backup, a soak, consent, and everybody there",
    Monotone = 10: "epochs and generations never go back, and the cluster version only with the epoch",
    Availability = 11: "as many members stay ready as the policy says, and one of each resource",
    Order = 12: "a tier moves only when the one it depends on is closed",
    Sequence = 13: "majors one at a time, from versions that the release takes, past no release that must be visited",
    Leaf = 14: "a leaf is at its root's major or one behind",
    Return = 15: "before the end there is a way back without a backup",
    Drain = 16: "no process drains for ever, nor two majors behind",
    Authorities = 17: "no certificate authority is rotated during an upgrade",
    Signed = 18: "only releases that are known and genuine are installed, and their metadata never goes back",
    Blast = 19: "no more members are away than the policy says, and no wave begins before the one before is judged",
    Fresh = 20: "a verdict is of the run that it judges, and later than its start",
    Idempotent = 21: "steps of one plan may be done twice, in any order, and in part",
    Rescue = 22: "who is refused for its version was told a cure",
    Progress = 23: "there is a step, a named wait or a named block, or it is done",
    Chain = 24: "plans follow one another in one line",
}

impl std::fmt::Display for Invariant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "I{}", self.number())
    }
}

/// A broken invariant.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{invariant}: {text}")]
pub struct Fault {
    pub invariant: Invariant,
    pub text: String,
}

fn fault(invariant: Invariant, text: impl Into<String>) -> Fault {
    Fault { invariant, text: text.into() }
}

/// What only those who act can know.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    pub admitted: Vec<Admitted>,
    /// Attempts to write, as the store answered them.
    pub writes: Vec<Write>,
    /// Of these, moves of a migration's journal.
    pub journal: Vec<Write>,
    pub refused: Vec<Told>,
    /// Versions of release metadata, in the order in which they were accepted.
    pub metadata: Vec<u64>,
    /// Accepted plans, in their order.
    pub plans: Vec<Line>,
}

/// A member that came in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Admitted {
    pub name: String,
    /// The window it fell under, as it was when it was admitted.
    pub lo: u64,
    pub hi: u64,
    pub major: u64,
}

/// An attempt to write.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Write {
    pub who: String,
    pub epoch: u64,
    /// The least epoch that the store took at that moment.
    pub least: u64,
    pub committed: bool,
}

/// A member that was refused for its version.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Told {
    pub name: String,
    pub cure: String,
    pub at: Time,
}

/// An accepted plan.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Line {
    pub id: String,
    pub parent: String,
    pub generation: u64,
}

type OnState = fn(&View, Option<&Upgrade>) -> Vec<Fault>;
type OnPlan = fn(&View, &Decision) -> Vec<Fault>;

/// One reading of a cluster: I1, I2, I4, I5, I6, I14, I16.
pub fn state(view: &View) -> Vec<Fault> {
    let upgrade = view.upgrade().ok().flatten();
    let upgrade = upgrade.as_ref();
    let checks: [OnState; 7] = [state::i1, state::i2, state::i4, state::i5, state::i6, state::i14, state::i16];
    checks.iter().flat_map(|check| check(view, upgrade)).collect()
}

/// What the planner wants to do: I9, I11, I12, I13, I17 to I21, I23.
pub fn plan(view: &View, decision: &Decision) -> Vec<Fault> {
    let checks: [OnPlan; 10] =
        [steps::i9, steps::i11, steps::i12, steps::i13, steps::i17, steps::i18, steps::i19, steps::i20, steps::i21, steps::i23];
    checks.iter().flat_map(|check| check(view, decision)).collect()
}

/// Two readings in a row: I10, and the half of I17 that is about time.
pub fn change(before: &View, after: &View) -> Vec<Fault> {
    [course::i10(before, after), course::i17(before, after)].concat()
}

/// What those who act have seen: I3, I7, I8, I22, I24, and the half of I18 that is about metadata.
pub fn record(facts: &Facts) -> Vec<Fault> {
    let checks: [fn(&Facts) -> Vec<Fault>; 6] = [course::i3, course::i7, course::i8, course::i18, course::i22, course::i24];
    checks.iter().flat_map(|check| check(facts)).collect()
}

/// I15, by going the way back in an ideal world. Takes as long as a few hundred plans.
pub fn way_back(view: &View) -> Vec<Fault> {
    course::i15(view)
}

#[cfg(test)]
#[path = "lint/tests.rs"]
mod tests;
