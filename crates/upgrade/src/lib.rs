//! Moving a cluster from one version to the next, as pure decisions over documents.
//!
//! Today: the control record's rules (`control`: birth, may this Auth start, taking over from the major before), the
//! admission windows (`windows`: which are legal, widen, narrow; `barrier`: when the next change may come; `evict`: whom no change waits for), and the inventory (`inventory`: who runs what, who must
//! move, rule G12), one host's way to another release (`updater`), and migrations (`migrate`: states, definitions, the registry, the next step; the crate of that name runs
//! them). On these stands the planner (`plan`: what to do next on the way to another version, and why not more; `lint`: the invariants it keeps; `render`: what people read). Callers: `auth`, `migrate` and `cli`.

pub mod barrier;
pub mod control;
pub mod evict;
pub mod inventory;
pub mod lint;
pub mod migrate;
pub mod plan;
pub mod render;
pub mod updater;
pub mod windows;

pub use control::{Start, adopt, birth, finalize, may_start};
pub use inventory::{Inventory, summarise};
pub use windows::{Phase, check_windows, narrow, widen};
