//! Migrations as pure decisions: what one is, which states it goes through, what the next step is (design 3.5).
//!
//! A migration changes how some documents are stored while the cluster serves. `definition` says what changes, as functions
//! over rows; `state` says which side is the truth and what a writer writes; `journal` is what the store remembers;
//! `plan` finds the next step; `registry` is the list of all and their frozen digests. Nothing here touches a store: the
//! crate `migrate` does, with the runner and the layer that writers go through. For authors: `docs/migrations.md`.

pub mod definition;
pub mod journal;
pub mod plan;
pub mod registry;
pub mod state;

pub use definition::{BadRow, Change, Class, Fix, Form, Migration, Row};
pub use journal::{Journal, Named, Phase, Progress, Repaired};
pub use plan::{Goal, Known, Step, Wait, next, oldest_writer, unfinished};
pub use registry::{BadRegistry, Registry, registry};
pub use state::{Band, Side, State, Writes};
