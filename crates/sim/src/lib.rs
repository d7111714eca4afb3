//! Upgrades of whole clusters on virtual time: the real planner, windows, admission, rescue, updater and migrations, in a world where things go wrong.
//!
//! [`run`] plays one [`Scenario`]: up to a hundred thousand hosts as small structs, one heap of events, and one generator from which all chance comes, so
//! that a seed is a world and everything that happens in it. Executors are actors in the Auth Services: they look, decide, do one thing and look
//! again; they are frozen, cut off, doubled and killed. Faults ([`Fault`]) are switched on by the seed, a different set each time. At every
//! decision and every write of the control record the invariants of the design are held against it (`upgrade::lint`), at every arrival who
//! may meet whom; when faults stop, the upgrade must come to an end. A run that breaks a rule is made smaller ([`shrink()`]) and told as a story.
//!
//! What is simulated and not the shipped code: processes, clocks, the network, the store's bytes, and the loop around the planner's answers.
//! Two majors of the planner itself cannot be linked together before there are two; what would exchange bytes then is [`upgrade::plan::View`], which is
//! serialisable. Read next: `world` (what is true and what is known), `executor`, `watch`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a world that is not as it was made must stop the run"
)]

mod auths;
mod data;
mod dice;
mod executor;
mod host;
mod people;
mod queue;
mod scenario;
mod shrink;
mod trouble;
mod updater;
mod watch;
mod world;

pub use scenario::{BadBuild, Fate, Fault, Scenario};
pub use shrink::shrink;

use std::collections::BTreeMap;

/// What came of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    pub seed: u64,
    pub members: usize,
    pub events: u64,
    pub decisions: u64,
    pub virtual_seconds: u64,
    /// Of everything that happened, in its order.
    pub trace_hash: u64,
    pub upgrades: u64,
    pub rollbacks: u64,
    pub pauses: u64,
    /// How it ended, for people.
    pub end: String,
    /// How often what was seen: gates, bars, stages, ways back.
    pub seen: BTreeMap<String, u64>,
    /// The first rule that was broken.
    pub violation: Option<String>,
    /// The last lines before the end, when they were asked for.
    pub story: Vec<String>,
}

/// Plays a scenario to its end.
pub fn run(scenario: &Scenario) -> Report {
    world::World::new(scenario, false).run()
}

/// The same, with its story.
pub fn tell(scenario: &Scenario) -> Report {
    world::World::new(scenario, true).run()
}
