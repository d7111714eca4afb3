//! Removes events that are old enough, from the beginning of a chain, and says so in the log.
//!
//! Only a whole beginning goes: everything in it happened before the limit, which stands at the start of a day, so that a chain is
//! shortened once a day at most. First the removal is recorded as an event of the log, then a checkpoint takes the place of what
//! goes, then it goes; broken off anywhere, the next pass goes on. `verify` believes a checkpoint only when an event tells of it.
//! The files keep what has not arrived in PostgreSQL. In PostgreSQL each Auth Service shortens its own chain, and the chains of
//! those that have written nothing since the limit.

use super::{
    Audit, AuditError,
    sink::{Checkpoint, Extent, Sink},
};
use net::shutdown::Shutdown;
use std::time::Duration;
use types::{Event, EventKind, HostId, Time};
use wire::audit::{Digest, Head};

/// How often it is looked for something to remove.
const PASS: Duration = Duration::from_secs(600);
const DAY: i64 = 86_400;

/// Events before this moment may go: the start of the day that lies so far back.
pub(super) fn limit(now: Time, retention: Duration) -> Time {
    let at = now.minus(retention).unix();
    Time::from_unix(at.saturating_sub(at.rem_euclid(DAY)))
}

/// The place up to which a chain may be shortened, and what remains of it then: `None` when nothing is to be done.
pub(super) fn decide(begin: Head, older: Option<Head>, arrived: Option<u64>) -> Option<Head> {
    let upto = older.filter(|older| older.events > begin.events)?;
    // A place in the middle of what waits would need its hash: it goes when all of it has arrived.
    arrived.is_none_or(|arrived| upto.events <= arrived).then_some(upto)
}

/// What a removal is recorded as.
fn told(event: Event, sink: &str, chain: HostId, was: Head, at: Head, limit: Time) -> Event {
    event
        .with("sink", sink)
        .with("instance", chain.to_string())
        .with("first", at.events)
        .with("hash", at.hash.to_string())
        .with("removed", at.events.saturating_sub(was.events))
        .with("before", limit.to_string())
}

/// The removal that an event of the log tells of: whose chain begins where since.
pub(super) fn removal(event: &[u8]) -> Option<(HostId, Head)> {
    // Nearly no event is one: look before parsing.
    let name = EventKind::AuditTrim.name().as_bytes();
    event.windows(name.len()).any(|window| window == name).then_some(())?;
    let event: Event = serde_json::from_slice(event).ok()?;
    if !event.is(EventKind::AuditTrim) {
        return None;
    }
    let hash = Digest::from_hex(event.text("hash").as_bytes())?;
    Some((event.text("instance").parse().ok()?, Head { events: event.fields.get("first")?.as_u64()?, hash }))
}

impl Audit {
    /// Shortens the log for as long as the service runs.
    pub(crate) async fn keep_short(self, shutdown: Shutdown) {
        let mut pass = tokio::time::interval(PASS);
        loop {
            tokio::select! {
                _ = pass.tick() => {}
                () = shutdown.stopping() => return,
            }
            if let Err(error) = self.shorten().await {
                tracing::warn!(%error, "old events could not be removed from the audit log; it is tried again");
            }
        }
    }

    /// One pass over both sinks.
    pub(super) async fn shorten(&self) -> Result<(), AuditError> {
        let now = self.now();
        if let Some(retention) = self.settings().file_retention() {
            let limit = limit(now, retention);
            let arrived = self.arrived();
            for extent in self.files().chains().await? {
                self.shorten_chain(self.files(), &extent, limit, arrived).await?;
            }
        }
        if let (Some(retention), Some(sink)) = (self.settings().retention, self.postgres()) {
            let limit = limit(now, retention);
            // Before anything is recorded that is then not done.
            sink.check_retention().await?;
            for extent in sink.chains().await? {
                let own = extent.chain == self.chain();
                // The chain of an Auth Service that is gone: all of it is old.
                if own || sink.older(extent.chain, limit).await? == Some(extent.end) {
                    self.shorten_chain(sink, &extent, limit, None).await?;
                }
            }
        }
        Ok(())
    }

    async fn shorten_chain(&self, sink: &dyn Sink, extent: &Extent, limit: Time, arrived: Option<u64>) -> Result<(), AuditError> {
        let older = sink.older(extent.chain, limit).await?;
        match decide(extent.begin.head, older, arrived) {
            Some(head) => {
                let event = self.event(EventKind::AuditTrim);
                self.record(told(event, sink.name(), extent.chain, extent.begin.head, head, limit)).await?;
                let removed = head.events.saturating_sub(extent.begin.head.events);
                tracing::info!(sink = sink.name(), chain = %extent.chain, removed, first = head.events, "removing old audit events");
                sink.cut(extent.chain, &Checkpoint { head, time: self.now(), removed }).await?;
            }
            // What a removal that broke off has left.
            None if extent.begin.removed > 0 => sink.cut(extent.chain, &extent.begin).await?,
            None => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_start_of_a_day() {
        let at = |text: &str| text.parse::<Time>().unwrap();
        assert_eq!(limit(at("2027-01-15T08:30:00Z"), Duration::from_secs(86_400)), at("2027-01-14T00:00:00Z"));
        assert_eq!(limit(at("1970-01-01T08:30:00Z"), Duration::from_secs(86_400)), at("1969-12-31T00:00:00Z"));
    }

    #[test]
    fn only_a_beginning_goes_and_never_what_has_not_arrived() {
        let head = |events: u64| Head { events, hash: Digest::from_bytes([1; 32]) };
        let check = |begin: u64, older: Option<u64>, arrived: Option<u64>, expected: Option<u64>| {
            assert_eq!(decide(head(begin), older.map(head), arrived).map(|head| head.events), expected, "{begin} {older:?} {arrived:?}");
        };
        check(0, None, None, None);
        check(0, Some(7), None, Some(7));
        check(7, Some(7), None, None);
        check(0, Some(7), Some(7), Some(7));
        check(0, Some(7), Some(6), None);
    }

    #[test]
    fn a_removal_is_read_back_from_the_event_that_tells_of_it() {
        let (chain, was, at) = (HostId::from_uuid(uuid::Uuid::from_u128(5)), 3, 9);
        let head = |events: u64| Head { events, hash: Digest::from_bytes([2; 32]) };
        let event = Event::new(EventKind::AuditTrim, Time::EPOCH, uuid::Uuid::nil());
        let json = serde_json::to_vec(&told(event, "files", chain, head(was), head(at), Time::EPOCH)).unwrap();
        assert_eq!(removal(&json), Some((chain, head(at))));
        let other = Event::new(EventKind::Exec, Time::EPOCH, uuid::Uuid::nil()).with("command", "audit.trim");
        assert_eq!(removal(&serde_json::to_vec(&other).unwrap()), None);
    }
}
