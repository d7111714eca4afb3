//! How carefully a cluster is upgraded: figures that an operator may set, and the checks he may waive.
//!
//! The figures are a document (`types::upgrade`). A waiver takes one check away, by name, from one person, for some time;
//! there is no way to take all of them away, and the windows, the barrier and the fences cannot be waived at all.

use serde::{Deserialize, Serialize};
use types::Time;
pub use types::upgrade::{Consent, Managed, OnFailure, Policy};

/// One check taken away.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Waiver {
    /// As the block or wait names it, e.g. `leaf:berlin`.
    pub name: String,
    pub by: String,
    pub at: Time,
    pub until: Time,
    pub reason: String,
}
