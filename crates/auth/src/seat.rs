//! This Auth Service's seat among those of its cluster: a short lease in the store that says by which windows it admits members.
//!
//! The key `internal/auth/<host id>` holds who it is and the generation of windows it has acknowledged. The lease is renewed well
//! before it ends, and at once when the windows change: then first what stands outside is cut off (watches judge their watchers
//! anew), and only then the new generation is acknowledged. An Auth Service that could not renew in time admits nobody
//! ([`Seat::holds`]), which is why whoever widens the windows need not wait for it ([`upgrade::barrier`]). Its own clock for that
//! is the one that never jumps, and it gives up twice as early as the store forgets.
//!
//! An Auth Service inside the new windows takes the record's epoch on when they were moved; one outside keeps its old epoch,
//! which the store refuses. Moving the windows: `windows`.

use crate::{
    core::Core,
    vault::{self, VaultError},
};
use net::health::Health;
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use store::{Condition, Key, WriterEpoch};
use tokio::time::Instant;
use types::{Code, ControlRecord, Extra, HostId, Public, ResourceName, Version};
use upgrade::Start;

/// How long the store keeps a seat that is not renewed.
pub(crate) const LEASE: Duration = Duration::from_secs(60);
/// How long its holder believes in it.
const BELIEVED: Duration = Duration::from_secs(30);
/// Between two renewals.
const RENEW: Duration = Duration::from_secs(8);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// As it stands in the store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) version: Version,
    /// Of this run of the process: two that share a host id are a copied data directory.
    pub(crate) boot_id: String,
    pub(crate) acknowledged: u64,
    /// What its build stores and speaks (`wire::content`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

/// What this process knows of its own seat.
pub(crate) struct Seat {
    believed_until: Mutex<Option<Instant>>,
    acknowledged: AtomicU64,
    /// The windows by which this process took its epoch.
    followed: AtomicU64,
    /// That it stands outside the windows was said.
    outside: AtomicBool,
}

impl Seat {
    /// Of an Auth Service that has read the record with these windows.
    pub(crate) fn new(generation: u64) -> Self {
        Self {
            believed_until: Mutex::new(None),
            acknowledged: AtomicU64::new(0),
            followed: AtomicU64::new(generation),
            outside: AtomicBool::new(false),
        }
    }

    /// Whether this Auth Service may admit members.
    pub(crate) fn holds(&self) -> Result<(), Public> {
        self.holds_at(Instant::now())
    }
    fn holds_at(&self, now: Instant) -> Result<(), Public> {
        let until = *self.believed_until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.is_some_and(|until| now < until) {
            return Ok(());
        }
        Err(Public::new(Code::Unavailable, "this Auth Service has lost touch with its store, so it admits nobody")
            .hint("it takes up its work again by itself; another Auth Service may serve meanwhile"))
    }

    /// The generation of windows by which it admits.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    fn took(&self, asked: Instant, generation: u64) {
        *self.believed_until.lock().unwrap_or_else(PoisonError::into_inner) = asked.checked_add(BELIEVED);
        self.acknowledged.store(generation, Ordering::Release);
    }

    fn leave(&self) {
        *self.believed_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

pub(crate) fn dir() -> Result<Key, store::BadKey> {
    Key::dir(["internal", "auth"])
}
fn key(host: HostId) -> Result<Key, store::BadKey> {
    Key::new(["internal", "auth", &host.to_string()])
}

/// Who sits there.
#[derive(Clone)]
pub(crate) struct Holder {
    pub(crate) address: String,
    pub(crate) boot_id: String,
}

/// Takes the seat, and keeps it until the service stops; then leaves it, so that nobody waits for it.
pub(crate) async fn keep(core: Arc<Core>, holder: Holder) {
    let mut changes = core.mirror.controls();
    loop {
        changes.borrow_and_update();
        let wait = match take(&core, &holder).await {
            Ok(true) => RENEW,
            Ok(false) => AGAIN,
            Err(error) => {
                tracing::warn!(%error, "the seat of this Auth Service could not be renewed");
                AGAIN
            }
        };
        tokio::select! {
            biased;
            () = core.shutdown.stopping() => break,
            changed = changes.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(wait) => {}
        }
    }
    core.seat.leave();
    if let Ok(key) = key(core.host_id)
        && let Err(error) = core.seats.commit(core.seats.batch().delete(key)).await
    {
        tracing::info!(%error, "the seat of this Auth Service lapses by itself");
    }
}

/// Renews the seat by the windows that the mirror shows, if those are still the store's: whoever was paused must not come back with
/// windows of long ago. False when there is no seat for now.
pub(crate) async fn take(core: &Core, holder: &Holder) -> Result<bool, VaultError> {
    let asked = Instant::now();
    let Some(item) = core.store.get(&Key::control()).await? else { return Ok(false) };
    core.mirror.reached(item.revision).await;
    let control = core.mirror.control();
    let Some(control) = control.as_ref() else { return Ok(false) };
    if store::control::parse(&item.value).is_ok_and(|stored| stored.window_gen != control.window_gen) {
        return Ok(false);
    }
    if let Err(refused) = inside(control, &core.version) {
        core.seat.leave();
        core.health.set("auth", Health::Degraded(refused.to_string()));
        if !core.seat.outside.swap(true, Ordering::AcqRel) {
            tracing::warn!("this Auth Service admits nobody any more: {refused}");
        }
        return Ok(false);
    }
    if control.window_gen > core.seat.followed.load(Ordering::Acquire) {
        // The windows were moved, and we are inside: our writes are wanted. A restored store has not moved them.
        core.documents.follow(WriterEpoch(control.epoch));
        core.seat.followed.store(control.window_gen, Ordering::Release);
        if core.seat.outside.swap(false, Ordering::AcqRel) || core.seat.acknowledged() > 0 {
            core.health.set("auth", Health::Ready);
        }
    }
    if core.seat.acknowledged() == 0
        && let Err(other) = only_build(core.store.as_ref(), core.host_id, &core.version).await?
    {
        // It started in the same second as the other.
        core.health.set("auth", Health::Degraded(other.to_string()));
        if !core.seat.outside.swap(true, Ordering::AcqRel) {
            tracing::error!("this Auth Service admits nobody: {other}");
        }
        return Ok(false);
    }
    let key = key(core.host_id)?;
    let record = Record {
        name: core.node_name.to_string(),
        address: holder.address.clone(),
        version: core.version.clone(),
        boot_id: holder.boot_id.clone(),
        acknowledged: control.window_gen,
        content: Some(wire::content::digest().to_owned()),
        extra: Extra::new(),
    };
    if let Some(held) = core.seats.read::<Record>(&key).await?
        && held.value.boot_id != record.boot_id
        && core.seat.acknowledged() > 0
    {
        tracing::error!(host = %core.host_id, other = held.value.address, "another process serves under this Auth Service's host id: is its data directory a copy?");
    }
    let ends = core.now().plus(LEASE);
    let unmoved = Condition::RevisionIs(Key::control(), item.revision);
    if core.seats.commit(core.seats.batch().require(unmoved).put(key, vault::json(&record), Some(ends))).await? {
        core.seat.took(asked, control.window_gen);
        return Ok(true);
    }
    Ok(false)
}

/// Refuses to sit beside another build of the same version (design 3.1): one of the two would store what the other cannot know.
pub(crate) async fn only_build(store: &dyn store::Store, own: HostId, version: &Version) -> Result<Result<(), Public>, VaultError> {
    let dir = dir()?;
    for item in store::scan(store, &dir, &dir.prefix_end()).await? {
        let Ok(seat) = serde_json::from_slice::<Record>(&item.value) else { continue };
        let Some(theirs) = seat.content.as_deref().filter(|theirs| *theirs != wire::content::digest()) else { continue };
        // Our own seat of before a restart says nothing of now.
        if seat.version != *version || key(own)? == item.key {
            continue;
        }
        let short = wire::content::short;
        let message = format!(
            "{} at {} serves this cluster as {version} too, and is another build of it: content {}, here {}",
            seat.name,
            seat.address,
            short(theirs),
            short(wire::content::digest())
        );
        let hint = format!("install one build of {version} everywhere; compare with: lockgate version");
        return Ok(Err(Public::new(Code::VersionBuild, message).hint(hint)));
    }
    Ok(Ok(()))
}

/// Whether the control record, as the store has it now, wants this Auth Service's writes: it has followed the last change, or is about
/// to. What else is fenced stays so.
pub(crate) async fn is_wanted(core: &Core) -> bool {
    let Ok(Some(item)) = core.store.get(&Key::control()).await else { return false };
    let Ok(record) = store::control::parse(&item.value) else { return false };
    let follows = record.window_gen > core.seat.followed.load(Ordering::Acquire) || core.documents.writer().0 >= record.min_writer_epoch;
    follows && inside(&record, &core.version).is_ok()
}

/// Whether the windows admit this binary as an Auth Service now. Taking the cluster over is for a start, never for one that runs: it
/// was admitted once, and was shut out again.
fn inside(control: &ControlRecord, version: &Version) -> Result<(), Public> {
    match upgrade::control::may_start(Some(control), version)? {
        Start::Current | Start::Emulate => Ok(()),
        Start::Adopt | Start::Birth => {
            let message = format!("the window of auth does not admit major {}; this is {version}", version.major());
            Err(Public::new(Code::VersionWindow, message).hint("see: tctl windows ls"))
        }
    }
}

/// Whether this Auth Service is the first by its id of those that sit with its major: does what one is enough for. A hint, no lock.
pub(crate) async fn is_first(core: &Core) -> Result<bool, VaultError> {
    let (dir, own) = (dir()?, key(core.host_id)?);
    let items = store::scan(core.store.as_ref(), &dir, &dir.prefix_end()).await?;
    let peer = |item: &&store::Item| {
        serde_json::from_slice::<Record>(&item.value).is_ok_and(|record| record.version.major() == core.version.major())
    };
    Ok(items.iter().find(peer).is_some_and(|item| item.key == own))
}

/// Every seat that has not lapsed.
pub(crate) async fn all(core: &Core) -> Result<Vec<upgrade::barrier::Seat>, VaultError> {
    let dir = dir()?;
    let items = store::scan(core.store.as_ref(), &dir, &dir.prefix_end()).await?;
    let mut seats = Vec::new();
    for item in items {
        // A seat that cannot be read may be anything: it has acknowledged nothing.
        seats.push(match serde_json::from_slice::<Record>(&item.value) {
            Ok(record) => upgrade::barrier::Seat {
                host: ResourceName::new(item.key.name()).ok(),
                name: format!("{} at {}", record.name, record.address),
                version: record.version,
                acknowledged: record.acknowledged,
            },
            Err(_) => {
                upgrade::barrier::Seat { host: None, name: item.key.to_string(), version: Version::new(0, 0, 0), acknowledged: u64::MAX }
            }
        });
    }
    Ok(seats)
}

/// Whether the process with that host id serves as an Auth Service now.
pub(crate) async fn is_taken(core: &Core, host: HostId) -> bool {
    match key(host) {
        Ok(key) => core.seats.read::<Record>(&key).await.is_ok_and(|held| held.is_some()),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_auth_service_that_could_not_renew_its_seat_admits_nobody_before_the_store_forgets_it() {
        assert!(BELIEVED < LEASE && RENEW * 2 < BELIEVED);
        let (seat, start) = (Seat::new(1), Instant::now());
        assert!(seat.holds_at(start).unwrap_err().is(Code::Unavailable));
        seat.took(start, 1);
        seat.holds_at(start + BELIEVED - Duration::from_millis(1)).unwrap();
        assert!(seat.holds_at(start + BELIEVED).unwrap_err().is(Code::Unavailable));
        // The renewal counts from when it was asked for, however long the store took to answer.
        seat.took(start + BELIEVED, 2);
        assert!(seat.holds_at(start + BELIEVED * 2).is_err());
        seat.holds_at(start + BELIEVED).unwrap();
        assert_eq!(seat.acknowledged(), 2);
        seat.leave();
        assert!(seat.holds_at(start).is_err());
    }
}
