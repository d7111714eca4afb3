//! Runs migrations over a store, and shows the store in its newest form while one is under way (design 3.5).
//!
//! What a migration is, and what comes next, is decided by `upgrade::migrate`, which is pure; here is what touches the store.
//! [`Runner`] does one bounded step at a time: the effect and the cursor are one conditional batch, so that it may be killed
//! anywhere, and any number of runners may meet. [`Mirror`] is a `Store` around the store: business code reads and
//! writes the new form only, and the mirror finds the side that is the truth and writes both sides in one batch. `auth` opens
//! the one store through it, and runs the runner on the bare one. For authors of migrations: `docs/migrations.md`.

mod mirror;
mod places;
mod rehearse;
mod runner;
mod status;

pub use mirror::Mirror;
pub use places::{Kept, ReadJournalError, journal_key, progress_key, read_journal, read_progress};
pub use rehearse::{RehearseError, Rehearsed, rehearse};
pub use runner::{Limits, Outcome, Proposal, RepairError, Runner, StepError, TurnError};
pub use status::{Status, status};
