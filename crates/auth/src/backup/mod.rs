//! Backups of the cluster's state: made here, restored here, and drilled. The file itself is crate `backup`'s.
//!
//! `make` reads a snapshot of the bare store and writes it out, signed by the host authority, while the cluster works on; the API
//! (`api::backup`) and the schedule (`schedule`) use it. `restore` fills an empty store, offline, and fences every Auth Service
//! that lived before. `drill` restores into a scratch directory, starts an Auth Service there and uses it. What of the store
//! stands in a backup, and in which bytes, is said by `content`. Recordings and the files of the audit log are not in it: the log
//! goes on behind the position that the backup names (`audit::Origin`).

mod client;
pub mod content;
pub mod drill;
pub mod make;
pub mod restore;
pub mod schedule;

pub use drill::{Drilled, drill};
pub use make::{Made, Source, make};
pub use restore::{RestoreError, Restored, Terms, restore};
pub use schedule::Schedule;

use std::sync::atomic::{AtomicU64, Ordering};

/// How far a backup or a restore has come; for progress bars.
#[derive(Debug, Default)]
pub struct Progress {
    records: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    /// Records and bytes (of keys and values) so far.
    pub fn so_far(&self) -> (u64, u64) {
        (self.records.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
    fn add(&self, records: usize, bytes: usize) {
        self.records.fetch_add(records as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
