//! Backups of the cluster's state: made here, restored here, and drilled. The file itself is crate `backup`'s.
//!
//! `make` reads a snapshot of the bare store and writes it out, signed by the host authority, while the cluster works on; the API
//! (`api::backup`) and the schedule (`schedule`, to a `place`) use it. `restore` fills an empty store, offline, and fences every Auth Service
//! that lived before. `drill` restores into a scratch directory, starts an Auth Service there and uses it. What of the store
//! stands in a backup, and in which bytes, is said by `content`. Recordings and the files of the audit log are not in it: the log
//! goes on behind the position that the backup names (`audit::Origin`).

mod client;
pub mod content;
pub mod drill;
pub mod make;
pub mod place;
pub mod restore;
pub mod schedule;
mod turn;

pub use drill::{Drilled, drill};
pub use make::{Made, Source, make};
pub use place::Place;
pub use restore::{RestoreError, Restored, Terms, restore};
pub use schedule::Schedule;

use std::{
    io::{self, Read, Seek, SeekFrom},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// What a backup or a restore is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The file is read, and nothing is written yet.
    Proving,
    Writing,
    /// The store is read again.
    Comparing,
    /// In a drill: an Auth Service runs on it.
    Using,
}

const STAGES: [Stage; 4] = [Stage::Proving, Stage::Writing, Stage::Comparing, Stage::Using];

/// How far a backup or a restore has come; for progress bars.
#[derive(Debug, Default)]
pub struct Progress {
    stage: AtomicUsize,
    done: AtomicU64,
    /// 0 is unknown.
    total: AtomicU64,
}

impl Progress {
    /// The stage, bytes so far, and bytes in all if they are known.
    pub fn so_far(&self) -> (Stage, u64, Option<u64>) {
        let stage = STAGES.get(self.stage.load(Ordering::Relaxed)).copied().unwrap_or(Stage::Comparing);
        let total = self.total.load(Ordering::Relaxed);
        (stage, self.done.load(Ordering::Relaxed), (total > 0).then_some(total))
    }
    fn begin(&self, stage: Stage, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.stage.store(STAGES.iter().position(|known| *known == stage).unwrap_or_default(), Ordering::Relaxed);
    }
    fn add(&self, bytes: usize) {
        self.done.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A reader that says how much was read while the file is being proven.
struct Watched<R> {
    inner: R,
    progress: Arc<Progress>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        if self.progress.so_far().0 == Stage::Proving {
            self.progress.add(count);
        }
        Ok(count)
    }
}
impl<R: Seek> Seek for Watched<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}
