//! Moving a cluster from one version to the next, as pure decisions over documents.
//!
//! Today: the control record's rules (`control`: birth, may this Auth start, taking over from the major before), the
//! admission windows (`windows`: which are legal, widen, narrow), and the inventory (`inventory`: who runs what, who must
//! move, rule G12). The plan, the executor and the registry of migrations come here later. Callers: `auth` and `cli`.

pub mod control;
pub mod inventory;
pub mod windows;

pub use control::{Start, adopt, birth, finalize, may_start};
pub use inventory::{Inventory, summarise};
pub use windows::{Phase, check_windows, narrow, widen};
