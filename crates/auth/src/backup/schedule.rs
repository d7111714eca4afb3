//! Backups by themselves: to a directory or a bucket, every so often, encrypted to recipients, the oldest removed.
//!
//! Every Auth Service with a schedule runs this; of several on one store exactly one makes each backup (`turn`). The one that made the last
//! makes the next, so that files gather in one place; the others wait a little longer, and take over when it does not. A backup counts
//! once it was read again from where it lies; only then are the oldest removed, and only those that this cluster made. One that
//! fails is tried again soon, shows on the health board (row `backup`) and in the metrics, and removes nothing. A fault here does not
//! take the Auth Service out of service: the board says `attention`.

use super::{
    make::MakeError,
    place::{Opened, Place, PlaceError, Upload, name_of},
    turn::{self, Last, Running, State, Turn},
};
use crate::{
    core::Core,
    metrics::{Metrics, count},
    vault::VaultError,
};
use backup::{Protection, Recipient, Trust, Written};
use net::health::Health;
use std::{
    collections::BTreeSet,
    io::Read,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;
use types::{Event, EventKind, Extra, HostId, Time};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub every: Duration,
    pub place: Place,
    /// How many files stay.
    pub keep: usize,
    pub recipients: Vec<Recipient>,
}

/// Its row on the health board.
const COMPONENT: &str = "backup";
/// How often the clock is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often the store is asked what others have done.
const LOOK: Duration = Duration::from_secs(20);
/// How much longer those wait who did not make the last one.
const GRACE: Duration = Duration::from_secs(30);
/// Names of backups kept in mind at least, seen or not.
const UNSEEN: usize = 100;
/// Between two looks while another is making one.
const WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error(transparent)]
    Make(#[from] MakeError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("the file is not what was written: {0}")]
    Proof(#[from] backup::ReadError),
    #[error(transparent)]
    Turn(#[from] VaultError),
    #[error("another Auth Service has made it meanwhile")]
    Overtaken,
    #[error("{0}")]
    Core(String),
}

/// When the next one is due for this Auth Service; `None` is at once.
fn due(last: Option<&Last>, own: HostId, every: Duration) -> Option<Time> {
    let last = last?;
    let grace = if last.by == own { Duration::ZERO } else { GRACE.min(every / 10) };
    Some(last.at.plus(every).plus(grace))
}

/// What one Auth Service knows between two looks.
#[derive(Default)]
struct Watch {
    last: Option<Last>,
    /// The name of the last one, when its file was seen to be gone: until there is another, there is none.
    gone: Option<String>,
    looked: Option<Instant>,
    /// Its own last attempt failed: why, and when the next may be.
    failing: Option<(String, Time)>,
    /// Another is at it.
    wait: Option<Time>,
}

/// Runs until the service stops.
pub(crate) async fn run(core: Arc<Core>, schedule: Schedule) {
    core.health.set(COMPONENT, Health::Ready);
    let (mut watch, mut tick) = (Watch::default(), tokio::time::interval(TICK));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = core.shutdown.stopping() => return,
            _ = tick.tick() => {}
        }
        if let Err(error) = watch.beat(&core, &schedule).await {
            tracing::warn!(%error, "when the next backup is due could not be read");
        }
    }
}

impl Watch {
    fn is_due(&self, core: &Core, schedule: &Schedule) -> bool {
        let by_last = due(self.last.as_ref(), core.host_id, schedule.every);
        let others = [self.failing.as_ref().map(|(_, again)| *again), self.wait];
        by_last.into_iter().chain(others.into_iter().flatten()).max().is_none_or(|due| core.now() >= due)
    }

    async fn beat(&mut self, core: &Arc<Core>, schedule: &Schedule) -> Result<(), VaultError> {
        let fresh = self.looked.is_some_and(|at| at.elapsed() < LOOK);
        if fresh && !self.is_due(core, schedule) {
            return Ok(());
        }
        let state = turn::look(core, &schedule.place).await?;
        if self.looked.is_none() {
            self.gone = lost(core, schedule, &state).await;
        }
        self.last = state.last.filter(|last| self.gone.as_ref() != Some(&last.name));
        (self.looked, self.wait) = (Some(Instant::now()), None);
        if self.is_due(core, schedule) {
            self.attempt(core, schedule).await;
        }
        self.tell(core, schedule);
        Ok(())
    }

    async fn attempt(&mut self, core: &Arc<Core>, schedule: &Schedule) {
        let now = core.now();
        match attempt(core, schedule, self.last.is_none(), now).await {
            Ok(Some(last)) => {
                tracing::info!(to = %schedule.place, name = last.name, "made a backup");
                (self.last, self.failing) = (Some(last), None);
            }
            Ok(None) | Err(Failed::Overtaken) => self.wait = Some(now.plus(WAIT)),
            Err(error) => {
                tracing::error!(%error, "the scheduled backup failed");
                count(&core.metrics.backup_failures);
                let again = (schedule.every / 10).clamp(Duration::from_secs(10), Duration::from_secs(600));
                self.failing = Some((error.to_string(), now.plus(again)));
                let event = core.event(EventKind::BackupFailed).with("error", error.to_string()).with("scheduled", true);
                record(core, event).await;
            }
        }
    }

    fn tell(&mut self, core: &Core, schedule: &Schedule) {
        tell(&core.metrics, self.last.as_ref().map(|last| last.at));
        let age =
            self.last.as_ref().map_or("there is none yet".to_owned(), |last| format!("the last one is of {}", last.at.whole_seconds()));
        // Two intervals: whoever makes them has died or fails, and so do the others.
        let overdue = self.last.as_ref().is_some_and(|last| core.now() > last.at.plus(schedule.every * 2).plus(GRACE));
        let health = match &self.failing {
            // Another has made one since this one failed.
            Some((_, again)) if self.last.as_ref().is_some_and(|last| last.at.plus(schedule.every) > *again) => {
                self.failing = None;
                Health::Ready
            }
            Some((why, _)) => Health::Attention(format!("the scheduled backup failed: {why}; {age}")),
            None if overdue => Health::Attention(format!("no scheduled backup is made; {age}")),
            None => Health::Ready,
        };
        core.health.set(COMPONENT, health);
    }
}

async fn record(core: &Core, event: Event) {
    if let Err(error) = core.audit.record(event).await {
        tracing::error!(%error, "a backup could not be recorded");
    }
}

fn tell(metrics: &Metrics, last: Option<Time>) {
    metrics.backup_last_unix.store(last.map_or(0, Time::unix_u64), Ordering::Relaxed);
}

/// The name of the last backup, if this Auth Service can see that its file is gone: then one is due now.
async fn lost(core: &Core, schedule: &Schedule, state: &State) -> Option<String> {
    let last = state.last.as_ref()?;
    let visible = match schedule.place {
        Place::Dir(_) => last.by == core.host_id,
        Place::Bucket(_) => true,
    };
    let listed = async { Opened::new(&schedule.place).await?.list(Some(core.cluster.as_str())).await };
    match listed.await {
        Ok(found) if visible && !found.iter().any(|found| found.name == last.name) => {
            tracing::warn!(name = last.name, place = %schedule.place, "the last backup is gone");
            Some(last.name.clone())
        }
        // A place that cannot be seen fails the next backup, and says why then.
        Ok(_) | Err(_) => None,
    }
}

/// One backup, if it is this one's turn and nobody has made it meanwhile. `anew`: whatever was made is gone.
async fn attempt(core: &Arc<Core>, schedule: &Schedule, anew: bool, now: Time) -> Result<Option<Last>, Failed> {
    let Some(mut turn) = Turn::take(core, &schedule.place).await? else { return Ok(None) };
    let known = turn.state().last;
    let made = if !anew && due(known.as_ref(), core.host_id, schedule.every).is_some_and(|due| now < due) {
        Ok(None)
    } else {
        once(core, schedule, &mut turn, now).await.map(Some)
    };
    turn.release().await;
    made
}

/// One backup, proven, in its place; then the oldest are removed.
async fn once(core: &Arc<Core>, schedule: &Schedule, turn: &mut Turn, now: Time) -> Result<Last, Failed> {
    let names: Vec<String> = schedule.recipients.iter().map(Recipient::short_id).collect();
    let event = core.event(EventKind::BackupCreate).with("scheduled", true).with("recipients", names.join(","));
    let event = event.with("to", schedule.place.to_string());
    core.audit.record(event).await.map_err(|error| Failed::Core(error.to_string()))?;
    let place = Opened::new(&schedule.place).await?;
    let dead = turn.state().running;
    if let Some(dead) = &dead {
        tracing::warn!(name = dead.name, by = %dead.by, "a backup was begun and never ended: its rest is removed");
        if let Err(error) = place.clear(&dead.name, &dead.upload).await {
            tracing::warn!(%error, name = dead.name, "the rest of it could not be removed; do that by hand");
        }
    }
    let name = free_name(&place, core.cluster.as_str(), now).await?;
    let last = match write(core, schedule, &place, turn, &name, now).await {
        Ok(last) => last,
        Err(error) => {
            // Another's file has another name.
            remove(&place, &name).await;
            let _told = turn.gave_up().await;
            return Err(error);
        }
    };
    // Perhaps it counts although the answer was lost: a surplus file harms nobody, a missing one does.
    if !turn.done(last.clone()).await? {
        remove(&place, &name).await;
        return Err(Failed::Overtaken);
    }
    // Complete and never counted: whoever began it is overtaken now and cannot make it count any more.
    if let Some(dead) = dead.filter(|dead| dead.name != name) {
        remove(&place, &dead.name).await;
    }
    count(&core.metrics.backups);
    if let Err(error) = prune(&place, core.cluster.as_str(), schedule.keep, turn).await {
        tracing::warn!(%error, "an old backup could not be removed");
    }
    Ok(last)
}

/// The name for a backup of now; the next second's when one of that name is there, as after a restore within the same second.
pub(crate) async fn free_name(place: &Opened, cluster: &str, now: Time) -> Result<String, PlaceError> {
    let there = place.list(Some(cluster)).await?;
    let mut names = (0..).map(|second| name_of(cluster, now.plus(Duration::from_secs(second))));
    Ok(names.find(|name| there.iter().all(|found| found.name != *name)).unwrap_or_default())
}

async fn write(core: &Arc<Core>, schedule: &Schedule, place: &Opened, turn: &mut Turn, name: &str, now: Time) -> Result<Last, Failed> {
    let upload = place.begin(name).await?;
    let running = Running { by: core.host_id, name: name.to_owned(), upload: upload.id(), began: now, extra: Extra::new() };
    if !turn.begin(running).await? {
        return Err(Failed::Overtaken);
    }
    let written = fill(core, place, name, upload, schedule.recipients.clone()).await?;
    Ok(Last {
        at: now,
        name: name.to_owned(),
        id: written.head.id.to_string(),
        digest: written.digest.to_string(),
        bytes: written.bytes,
        by: core.host_id,
        node: core.node_name.clone(),
        extra: Extra::new(),
    })
}

/// Makes a backup into an upload that was begun, reads it again from where it lies, and notes it.
pub(crate) async fn fill(
    core: &Arc<Core>,
    place: &Opened,
    name: &str,
    upload: Upload,
    recipients: Vec<Recipient>,
) -> Result<Written, Failed> {
    let made = core.make_backup(Protection::Recipients(recipients), upload, Arc::default()).await?;
    made.sink.complete().await?;
    let (source, _) = place.read(name).await?;
    prove(source, &made.written).await?;
    core.note_backup(&made.written, made.manifest.revision).await;
    Ok(made.written)
}

pub(crate) async fn remove(place: &Opened, name: &str) {
    if let Err(error) = place.remove(name).await {
        tracing::warn!(%error, name, "what does not count could not be removed");
    }
}

/// Reads again what lies there now: signature and digests, without a key.
async fn prove(source: Box<dyn Read + Send>, written: &Written) -> Result<(), Failed> {
    let (signer, digest) = (written.head.signer.fingerprint(), written.digest);
    let proving = tokio::task::spawn_blocking(move || backup::check(source, &Trust::Pinned(vec![signer])));
    let checked = proving.await.map_err(|error| Failed::Core(error.to_string()))??;
    if checked.digest == digest { Ok(()) } else { Err(Failed::Core("what lies there is another backup".into())) }
}

/// Removes the oldest beyond `keep` of those that this cluster made; never the one that was just made.
async fn prune(place: &Opened, cluster: &str, keep: usize, turn: &mut Turn) -> Result<(), Failed> {
    let there = place.list(Some(cluster)).await?.into_iter().map(|found| found.name).collect();
    let (kept, surplus) = sorted_out(turn.state().kept, &there, keep);
    for name in &surplus {
        place.remove(name).await?;
    }
    // Another has written meanwhile and sorts out himself.
    let _another_does = turn.keep(kept).await?;
    Ok(())
}

/// Which of those that were made are still known of, and which go now. What cannot be seen here may lie in the directory of another Auth
/// Service, and is forgotten only when very many are.
fn sorted_out(made: Vec<String>, there: &BTreeSet<String>, keep: usize) -> (Vec<String>, Vec<String>) {
    let seen = made.iter().filter(|name| there.contains(*name)).count();
    let mut surplus = seen.saturating_sub(keep.max(1));
    let (gone, mut known): (Vec<String>, Vec<String>) = made.into_iter().partition(|name| {
        let goes = surplus > 0 && there.contains(name);
        surplus -= usize::from(goes);
        goes
    });
    known.drain(..known.len().saturating_sub(keep.max(UNSEEN)));
    (known, gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::NodeName;

    #[test]
    fn only_what_this_cluster_made_is_removed_and_the_newest_stays() {
        let names = |days: &[u64]| -> Vec<String> { days.iter().map(|day| format!("demo-{day}")).collect() };
        let check = |made: &[u64], there: &[u64], keep: usize, kept: &[u64], gone: &[u64]| {
            let there = names(there).into_iter().collect();
            assert_eq!(sorted_out(names(made), &there, keep), (names(kept), names(gone)));
        };
        check(&[1, 2, 3], &[1, 2, 3], 2, &[2, 3], &[1]);
        check(&[1, 2, 3], &[1, 2, 3], 0, &[3], &[1, 2]);
        check(&[1, 2], &[1, 2], 7, &[1, 2], &[]);
        // Of the cluster that this one is a copy of.
        check(&[8, 9], &[1, 2, 3, 8, 9], 2, &[8, 9], &[]);
        // Those of another Auth Service, in a directory of its own.
        check(&[1, 2, 3, 4, 5], &[3, 4, 5], 2, &[1, 2, 4, 5], &[3]);
        let many: Vec<u64> = (0..150).collect();
        check(&many, &many[149..], 2, &many[50..], &[]);
    }

    #[test]
    fn whoever_made_the_last_is_the_first_to_make_the_next() {
        let (own, other) = (HostId::from_uuid(uuid::Uuid::from_u128(1)), HostId::from_uuid(uuid::Uuid::from_u128(2)));
        let at = Time::from_unix(1_800_000_000);
        let last = |by| Last {
            at,
            name: "x".into(),
            id: "x".into(),
            digest: "x".into(),
            bytes: 1,
            by,
            node: NodeName::new("x").unwrap(),
            extra: Extra::new(),
        };
        let check = |last: Option<Last>, every: u64, seconds: Option<u64>| {
            let expected = seconds.map(|seconds| at.plus(Duration::from_secs(seconds)));
            assert_eq!(due(last.as_ref(), own, Duration::from_secs(every)), expected);
        };
        check(None, 3600, None);
        check(Some(last(own)), 3600, Some(3600));
        check(Some(last(other)), 3600, Some(3630));
        check(Some(last(other)), 60, Some(66));
    }
}
