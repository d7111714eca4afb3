//! Carries this Auth Service's chain from its files into PostgreSQL, in order, for as long as it takes.
//!
//! The cursor is the chain's own end in PostgreSQL, read at each new beginning, so nothing can be skipped and nothing sent twice
//! is doubled, whoever was killed when. While PostgreSQL is away the files go on; how far it is behind is counted, shown on the
//! health board, and past a bound the log takes nothing more (`Audit::record_all`): better no login than one nobody finds.
//! A line that does not follow on the one before is not sent: the log was tampered with, and somebody must look.

use super::{
    files::Files,
    postgres::Postgres,
    sink::{Sink as _, SinkError},
};
use crate::metrics::Metrics;
use net::{
    backoff::Backoff,
    clock::SharedClock,
    health::{Board, Health},
    shutdown::Shutdown,
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::watch;
use types::{HostId, Time};
use wire::audit::Head;

/// Its row on the health board.
const COMPONENT: &str = "audit_postgres";
/// How long PostgreSQL may be behind before somebody should look.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a stop waits for what is left to arrive.
const LAST: Duration = Duration::from_secs(5);

/// How far the chain has come.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Shipped {
    /// Durable in PostgreSQL; `None` until it was asked.
    pub(super) end: Option<Head>,
    /// Why it goes on no further.
    pub(super) fault: Option<String>,
    /// Whether waiting will not mend it.
    pub(super) stuck: bool,
}

pub(super) struct Shipper {
    pub(super) files: Files,
    pub(super) sink: Postgres,
    pub(super) chain: HostId,
    pub(super) name: String,
    pub(super) state: watch::Sender<Shipped>,
    pub(super) closing: Shutdown,
    /// Stops when the last event was written to the files.
    pub(super) taken: Shutdown,
}

impl Shipper {
    /// Until the log is closed.
    pub(super) async fn run(self) {
        // Each Auth Service has its own rhythm: they lose the same database together.
        let seed = u64::try_from(self.chain.as_uuid().as_u128() & u128::from(u64::MAX)).unwrap_or_default();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), seed);
        loop {
            let before = self.state.borrow().end;
            let error = match self.go().await {
                Ok(()) => return,
                Err(error) => error,
            };
            if self.state.borrow().end != before {
                backoff.reset();
            }
            let (stuck, fault) = (!error.passes(), Some(error.to_string()));
            // The same trouble is told once, however long it lasts.
            match (self.state.borrow().fault == fault, stuck) {
                (true, _) => {}
                (false, true) => tracing::error!(%error, "audit events do not go on to PostgreSQL"),
                (false, false) => tracing::warn!(%error, "audit events wait for PostgreSQL"),
            }
            self.state.send_modify(|state| (state.fault, state.stuck) = (fault, stuck));
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                // What is left lies in the files and goes on with the next start.
                () = self.closing.stopping() => return,
            }
        }
    }

    /// Sends until the log is closed and everything has arrived.
    async fn go(&self) -> Result<(), SinkError> {
        let begin = self.files.begin();
        let there = self.sink.begin(self.chain, &self.name, &begin).await?;
        let mut end = there.end;
        if end.events < begin.head.events {
            // Files were removed by hand before they arrived. The checkpoint is noted, so the rest follows; verification names the hole.
            tracing::error!(from = end.events, to = begin.head.events, "audit events are gone that never reached PostgreSQL");
            self.sink.begin_again(self.chain, &self.name, &begin).await?;
            end = begin.head;
        }
        self.belongs(end).await?;
        let mut heads = self.files.heads();
        let mut lines = self.files.read(self.chain, end.events);
        self.arrived(end);
        loop {
            let written = *heads.borrow_and_update();
            if written.events <= end.events {
                tokio::select! {
                    changed = heads.changed() => if changed.is_err() { return Ok(()) },
                    () = self.closing.stopping() => return self.rest(end).await,
                }
                continue;
            }
            end = self.send(lines.as_mut(), end).await?;
        }
    }

    /// The writer may still have something in its hands.
    async fn rest(&self, mut end: Head) -> Result<(), SinkError> {
        let mut lines = self.files.read(self.chain, end.events);
        let last = async {
            self.taken.stopping().await;
            while end.events < self.files.head().events {
                end = self.send(lines.as_mut(), end).await?;
            }
            Ok(())
        };
        tokio::time::timeout(LAST, last).await.unwrap_or(Ok(()))
    }

    async fn send(&self, lines: &mut dyn super::sink::Lines, behind: Head) -> Result<Head, SinkError> {
        let batch = lines.next().await?;
        let mut end = behind;
        for line in &batch {
            end.follow(line.parts()).map_err(|broken| {
                let place = format!("the audit file {}", self.files.file_of(line.index));
                SinkError::Damaged { place, detail: format!("{broken}; nothing behind it is sent") }
            })?;
        }
        self.sink.append(self.chain, behind, &batch).await?;
        self.arrived(end);
        Ok(end)
    }

    fn arrived(&self, end: Head) {
        self.state.send_replace(Shipped { end: Some(end), fault: None, stuck: false });
    }

    /// Whether PostgreSQL's end is a place of this log.
    async fn belongs(&self, end: Head) -> Result<(), SinkError> {
        let damaged = |detail: String| Err(SinkError::Damaged { place: self.sink.place().into(), detail });
        if end.events > self.files.head().events {
            let detail = format!("it has {} events of this Auth Service, but the files have {}", end.events, self.files.head().events);
            return damaged(detail);
        }
        match self.files.hash_before(end.events).await? {
            Some(own) if own != end => damaged(format!("its event {} is not the one in the files", end.events.saturating_sub(1))),
            Some(_) | None => Ok(()),
        }
    }
}

/// Tells the metrics and the health board how far behind PostgreSQL is, every second.
pub(super) struct Watching {
    pub(super) files: Files,
    pub(super) state: watch::Receiver<Shipped>,
    pub(super) bound: Bound,
    pub(super) clock: SharedClock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Board,
    pub(super) closing: Shutdown,
}

impl Watching {
    pub(super) async fn run(mut self) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        let mut since: Option<(u64, Time)> = None;
        loop {
            tokio::select! {
                _ = second.tick() => {}
                changed = self.state.changed() => if changed.is_err() { return },
                () = self.closing.stopping() => return,
            }
            let (state, now) = (self.state.borrow_and_update().clone(), self.clock.now());
            let backlog = behind(&self.files, state.end);
            let end = state.end.map_or(0, |end| end.events);
            // The age is that of the first event that waits: it begins anew whenever some arrived.
            since = match since {
                _ if backlog == 0 => None,
                Some((then, at)) if then == end => Some((then, at)),
                _ => Some((end, now)),
            };
            let age = since.map_or(Duration::ZERO, |(_, at)| now.since(at));
            self.metrics.audit_backlog_events.store(backlog, Ordering::Relaxed);
            self.metrics.audit_backlog_age_seconds.store(age.as_secs(), Ordering::Relaxed);
            self.health.set(COMPONENT, judge(&state, backlog, age, self.bound.is_reached(&self.files, state.end)));
        }
    }
}

/// What the health board says.
fn judge(state: &Shipped, backlog: u64, age: Duration, full: bool) -> Health {
    let why = state.fault.as_deref().unwrap_or("it takes them slowly");
    if full {
        return Health::Degraded(format!("{backlog} audit events wait for PostgreSQL, and nothing more is taken: {why}"));
    }
    if state.stuck || (backlog > 0 && age >= PATIENCE) || (state.fault.is_some() && age >= PATIENCE) {
        return Health::Attention(format!("{backlog} audit events have not reached PostgreSQL: {why}"));
    }
    Health::Ready
}

/// When nothing more is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    /// Events that may wait.
    pub(super) most: u64,
    /// The end of a log that was in files alone when this process began: its past may take its time.
    pub(super) past: u64,
}

impl Bound {
    pub(super) fn is_reached(&self, files: &Files, end: Option<Head>) -> bool {
        let arrived = end.map_or(0, |end| end.events).max(self.past);
        files.head().events.saturating_sub(arrived) >= self.most
    }
}

/// Events in the files that are not known to be in PostgreSQL.
pub(super) fn behind(files: &Files, end: Option<Head>) -> u64 {
    let arrived = end.map_or(0, |end| end.events).max(files.begin().head.events);
    files.head().events.saturating_sub(arrived)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_dropped_silently_a_backlog_is_told_and_a_full_one_refuses() {
        let check = |fault: Option<&str>, stuck: bool, backlog: u64, age: u64, expected: &str| {
            let state = Shipped { end: None, fault: fault.map(str::to_owned), stuck };
            let health = judge(&state, backlog, Duration::from_secs(age), backlog >= 100);
            let shown = match &health {
                Health::Ready | Health::Starting => "ready",
                Health::Attention(_) => "attention",
                Health::Degraded(_) => "degraded",
            };
            assert_eq!(shown, expected, "{state:?} {backlog} {age}");
        };
        check(None, false, 0, 0, "ready");
        check(None, false, 99, 5, "ready");
        check(None, false, 1, 30, "attention");
        check(Some("down"), false, 5, 5, "ready");
        check(Some("forked"), true, 0, 0, "attention");
        check(Some("down"), false, 100, 1, "degraded");
    }
}
