//! The seam between the log and where it is kept: files of this Auth Service, and PostgreSQL for all of them.
//!
//! A sink holds *chains*, one for each Auth Service, by its host id. It promises: what [`Sink::append`] acknowledged is durable;
//! the same lines again change nothing, other lines in the same places are refused; [`Sink::cut`] removes a chain's beginning
//! and leaves a [`Checkpoint`] in its place. Both sinks pass one suite (`tests/sinks.rs`). Who calls: `take` and `ship` append,
//! `retention` cuts, `verify` and `export` read.

use super::query::{Found, Query};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::io;
use types::{HostId, Time};
use wire::audit::{Head, Line};

/// Lines handed over at once.
pub(super) const BATCH: usize = 500;
/// Bytes of them, unless one alone has more.
pub(super) const BATCH_BYTES: usize = 1 << 20;

/// Why a sink did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SinkError {
    #[error("the audit log's files in {place}: {error}")]
    Io { place: String, error: io::Error },
    #[error("{place} cannot be reached: {detail}")]
    Unreachable { place: String, detail: String },
    #[error("{place} refuses: {detail}")]
    Refused { place: String, detail: String },
    /// Somebody changed something, or two logs claim to be one.
    #[error("{place}: {detail}")]
    Damaged { place: String, detail: String },
    #[error("the audit log is closed")]
    Closed,
}

impl SinkError {
    /// Whether it may pass by itself.
    pub(super) fn passes(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Where a chain begins after its old events were removed, or at its birth.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    /// The place of the first event that is kept.
    #[serde(flatten)]
    pub(super) head: Head,
    /// When this place became the beginning.
    pub(super) time: Time,
    /// How many events the removal took away.
    #[serde(default)]
    pub(super) removed: u64,
}

/// One chain of a sink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    pub(super) chain: HostId,
    /// The Auth Service's name when its chain was begun here.
    pub(super) name: String,
    pub(super) begin: Checkpoint,
    pub(super) end: Head,
}

/// Lines of one chain in their order. The end is an empty batch; lines that are added later come afterwards.
pub(super) trait Lines: Send {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Line>, SinkError>>;
}

/// Where a log is kept.
pub(super) trait Sink: Send + Sync + 'static {
    /// `files` or `postgres`, for verdicts and events.
    fn name(&self) -> &'static str;
    /// Adds the lines that follow on that place, durably; those that are there already are passed over.
    fn append<'a>(&'a self, chain: HostId, behind: Head, lines: &'a [Line]) -> BoxFuture<'a, Result<(), SinkError>>;
    fn chains(&self) -> BoxFuture<'_, Result<Vec<Extent>, SinkError>>;
    /// From that index on, as far as it is there.
    fn read(&self, chain: HostId, from: u64) -> Box<dyn Lines>;
    /// Looks at a bounded number of events, then hands out a page.
    fn search<'a>(&'a self, query: &'a Query) -> BoxFuture<'a, Result<Found, SinkError>>;
    /// The first event in the period, and the index behind the last.
    fn span(&self, chain: HostId, from: Option<Time>, to: Option<Time>) -> BoxFuture<'_, Result<Option<(u64, u64)>, SinkError>>;
    /// The place up to which every event happened before `time`; `None` when the first did not.
    fn older(&self, chain: HostId, time: Time) -> BoxFuture<'_, Result<Option<Head>, SinkError>>;
    /// Removes what lies before the checkpoint. Broken off, it is done by the next call.
    fn cut<'a>(&'a self, chain: HostId, at: &'a Checkpoint) -> BoxFuture<'a, Result<(), SinkError>>;
}
