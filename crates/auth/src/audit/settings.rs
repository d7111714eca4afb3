//! How the audit log is kept. Files alone is the default; nothing is removed unless a retention is given.

use std::time::Duration;
use store::postgres::Options;

/// Events that may wait for PostgreSQL before the log takes nothing more.
const MAX_BACKLOG: u64 = 1_000_000;

/// How the log is kept.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// How long events are kept; for ever when absent.
    pub retention: Option<Duration>,
    /// Where the logs of all Auth Services come together.
    pub shared: Option<Shared>,
}

/// PostgreSQL behind the files.
#[derive(Clone, Debug)]
pub struct Shared {
    pub options: Box<Options>,
    /// How long the files keep what has arrived; as long as PostgreSQL when absent.
    pub local_retention: Option<Duration>,
    /// How many events may wait; at least one.
    pub max_backlog: u64,
}

impl Shared {
    pub fn new(options: Options) -> Self {
        Self { options: Box::new(options), local_retention: None, max_backlog: MAX_BACKLOG }
    }
}

impl Settings {
    /// How long the files keep their events.
    pub(super) fn file_retention(&self) -> Option<Duration> {
        let local = self.shared.as_ref().and_then(|shared| shared.local_retention);
        [self.retention, local].into_iter().flatten().min()
    }
}
