//! The planner: what to do next to bring a cluster to another version, and why not more (design 3.7).
//!
//! [`decide`] answers one look: steps to take, waits, blocks. [`plan()`] is the same with a forecast of all that will come, made by asking `decide`
//! again and again in a world where everything goes well; it is what people read before they say yes. Both are pure and total, and
//! for equal views their answers are equal to the byte: the command line, the Auth Service, a test and a support bundle agree.
//!
//! An executor is a loop without memory: **look** (gather a [`View`]), **decide**, **do one thing** of `next`, and look again. Steps of one
//! answer may be done in any order, some or all of them, and each may fail half-way: nothing is remembered of it, the next look sees what
//! is. Each step is written conditionally on what was looked at (the control record's revision; a member's boot id), so that two
//! executors, or one that slept, do no harm. A person accepts a plan by the id of its [`Outcome`]; the executor then does [`Step::Begin`]. Turning
//! round is [`Upgrade::turned`], written by the same conditional write. The rules that every plan and state must keep are in `lint`.

mod decide;
pub mod fleet;
mod forecast;
mod gates;
pub mod health;
mod ideal;
mod moves;
pub mod outcome;
pub mod policy;
mod preflight;
pub mod record;
mod route;
pub mod view;

pub use decide::decide;
pub use fleet::{Fleet, Standing, Tier, Wave};
pub use forecast::plan;
pub use ideal::ideal;
pub use outcome::{Ahead, Bar, Block, Decision, Gate, Hint, Note, Outcome, Stage, Step, Verdict, Wait};
pub use policy::{Consent, Managed, OnFailure, Policy, Waiver};
pub use record::{Direction, Pause, Said, Upgrade, Way};
pub use view::{Backup, Condition, Drill, Finding, Leaf, Member, Migration, Rehearsal, Release, Root, Told, View, Walk};
