//! Moves the admission windows of the control record, evicts who is gone, finalizes: each one conditional write (design 3.3).
//!
//! A widening waits until every Auth Service that has a seat acknowledged the present windows, or lost its seat; what is decided is
//! [`upgrade::barrier`]'s, from the record, the seats and the members as the store has them at that moment. An older major is let in as an
//! Auth Service only while no migration needs writers that know both forms. The record is written only if it is still the one that was
//! judged, and each move of a migration's state writes it too: no two of these pass each other unseen. While an upgrade is under way, of
//! whichever release, it alone moves windows and evicts, unless somebody insists. Caller: `api::upgrade`.

use crate::{
    core::{Core, Fault},
    migrations, seat,
    vault::VaultError,
};
use rules::presence;
use std::time::Duration;
use store::{
    Documents, Key, StoreError,
    control::{self, Stored, WriteControlError},
    documents::ReadError,
};
use tokio::time::Instant;
use types::{Code, ControlRecord, EventKind, Public, Resource, ResourceName, document::Spec, kind::Member};
use upgrade::{
    barrier::{Move, Refused, change},
    control::by_hand,
    evict::{Consent, NotEvicted, evict},
    migrate::{State, oldest_writer, unfinished},
    windows::AUTH,
};

/// A seat that nobody renews has lapsed by then.
const PATIENCE: Duration = seat::LEASE.saturating_mul(2);
const LOOK: Duration = Duration::from_millis(100);
/// Lost races after which the caller is told to try again.
const TRIES: usize = 16;

/// A move of the windows that somebody asks for.
pub(crate) struct Asked {
    pub(crate) wanted: Move,
    /// He carries an upgrade out, or insists although one is under way.
    pub(crate) insists: bool,
    /// How long to wait for the barrier, at most twice a seat's lease.
    pub(crate) patience: Duration,
    /// The upgrade on whose behalf it is made must still be what it was: nobody paused it or turned round meanwhile.
    pub(crate) under: Option<serde_json::Value>,
}

/// An upgrade that is not the one on whose behalf something was to be done.
pub(crate) fn still_under(record: &ControlRecord, under: Option<&serde_json::Value>) -> Result<(), Fault> {
    match under {
        Some(under) if record.upgrade.as_ref() != Some(under) => {
            Err(Public::new(Code::UpgradeWaits, "somebody said something else about the upgrade meanwhile").into())
        }
        Some(_) | None => Ok(()),
    }
}

/// Makes the move, once it is legal.
pub(crate) async fn move_windows(core: &Core, asked: &Asked) -> Result<ControlRecord, Fault> {
    let (wanted, end) = (&asked.wanted, Instant::now() + asked.patience.min(PATIENCE));
    loop {
        let stored = read(core).await?;
        by_hand(&stored.record, asked.insists)?;
        still_under(&stored.record, asked.under.as_ref())?;
        if let Move::Widen { role, major } = wanted
            && role == AUTH
        {
            may_write(core, *major).await?;
        }
        let (seats, members) = (seat::all(core).await?, members(&core.documents).await?);
        match change(&stored.record, wanted, &seats, &members) {
            // It is so already: whoever asks again has lost the answer.
            Ok(next) if next == stored.record => return Ok(next),
            Ok(next) => {
                if let Some(record) = write(core, &stored, next).await? {
                    tracing::info!(generation = record.window_gen, ?wanted, "moved the admission windows");
                    return Ok(record);
                }
                // Somebody was quicker: what he left is judged anew.
                if Instant::now() >= end {
                    return Err(contended());
                }
            }
            Err(refused) if refused.passes() && Instant::now() < end => tokio::time::sleep(LOOK).await,
            Err(refused) => return Err(shown(&refused).into()),
        }
    }
}

fn shown(refused: &Refused) -> Public {
    let code = if refused.passes() { Code::UpgradeWaits } else { Code::UpgradeRefused };
    Public::new(code, refused.to_string()).hint(refused.cure())
}

pub(crate) fn contended() -> Fault {
    Public::new(Code::UpgradeWaits, "the control record was changed by others each time").hint("try again").into()
}

/// Whether Auth Services of that major may write beside the migrations as they stand. Read after the control record.
async fn may_write(core: &Core, major: u64) -> Result<(), Fault> {
    let states = migrations::states(core).await.map_err(|error| Fault::Internal(error.to_string()))?;
    let mut needed: Vec<(String, State)> = Vec::new();
    if oldest_writer(states.iter().copied()) > major {
        let needs = |(migration, state): &&(_, State)| oldest_writer([(*migration, *state)]) > major;
        needed.extend(states.iter().filter(needs).map(|(migration, state)| (migration.id.to_owned(), *state)));
    }
    // Of another build: what it needs is known there.
    for id in journals(core).await? {
        let known = core.migrations.registry().find(&id).is_some();
        let journal = if known { None } else { migrate::read_journal(core.store.as_ref(), &id).await.map_err(internal)? };
        let state = journal.map(|kept| kept.resource.spec.state);
        needed.extend(state.filter(|state| matches!(state, State::Shadowing | State::Verified | State::Flipped)).map(|state| (id, state)));
    }
    let Some((first, _)) = needed.first() else { return Ok(()) };
    let hint = format!("first: tctl migrations undo {first}; see: tctl migrations ls");
    let names = needed.iter().map(|(id, state)| format!("{id} ({state})")).collect::<Vec<_>>().join(", ");
    let message = format!("Auth Services of major {major} may not write while these migrations are under way: {names}");
    Err(Public::new(Code::UpgradeRefused, message).hint(hint).into())
}

/// The ids of all migrations that were ever begun on this store.
async fn journals(core: &Core) -> Result<Vec<String>, Fault> {
    let dir = Key::dir(["migration"]).map_err(internal)?;
    let items = store::scan(core.store.as_ref(), &dir, &dir.prefix_end()).await.map_err(internal)?;
    let journal = |item: &store::Item| item.key.parts().nth(1).filter(|_| item.key.name() == "journal").map(str::to_owned);
    Ok(items.iter().filter_map(journal).collect())
}

fn internal(error: impl std::fmt::Display) -> Fault {
    Fault::Internal(error.to_string())
}

/// Evicts a silent member: no window waits for it until it reports again.
pub(crate) async fn evict_member(
    core: &Core,
    name: &ResourceName,
    consent: &Consent,
    insists: bool,
    under: Option<&serde_json::Value>,
) -> Result<ControlRecord, Fault> {
    for _ in 0..TRIES {
        let (stored, seats) = (read(core).await?, seat::all(core).await?);
        by_hand(&stored.record, insists)?;
        still_under(&stored.record, under)?;
        // A seat that cannot be read may be anybody's.
        let seated = seats.iter().any(|seat| seat.host.as_ref().is_none_or(|host| host == name));
        let next = evict(&stored.record, name, &members(&core.documents).await?, seated, consent, presence::OFFLINE_AFTER);
        let next = next.map_err(|refused| {
            let code = if matches!(refused, NotEvicted::Unknown(_)) { Code::NotFound } else { Code::UpgradeRefused };
            Public::new(code, refused.to_string()).hint(refused.cure())
        })?;
        if let Some(record) = write(core, &stored, next).await? {
            return Ok(record);
        }
    }
    Err(contended())
}

/// Sets the cluster version to this binary's major: the end of an upgrade, and of the way back. It is the older formats alone that this
/// gives up, so it asks for the window of `auth` and for the migrations; members one major behind keep their place (rule G4).
pub(crate) async fn finalize(core: &Core, under: Option<&serde_json::Value>) -> Result<ControlRecord, Fault> {
    for _ in 0..TRIES {
        let stored = read(core).await?;
        still_under(&stored.record, under)?;
        let states = migrations::states(core).await.map_err(internal)?;
        let state = |id: &str| states.iter().find(|(migration, _)| migration.id == id).map_or(State::Absent, |(_, state)| *state);
        let open = unfinished(core.migrations.registry(), core.version.major(), |migration| state(migration.id));
        if !open.is_empty() {
            let names = open.iter().map(|migration| format!("{} ({})", migration.id, state(migration.id))).collect::<Vec<_>>().join(", ");
            return Err(Public::new(Code::UpgradeWaits, format!("these migrations are not flipped yet: {names}"))
                .hint("see: tctl migrations ls")
                .into());
        }
        let next = upgrade::control::finalize(&stored.record, &core.version)
            .map_err(|refused| Public { code: Code::UpgradeRefused.as_str().into(), ..refused })?;
        if next == stored.record {
            return Ok(next);
        }
        if let Some(record) = write(core, &stored, next).await? {
            let level = record.cluster_version;
            tracing::info!(major = level.major, step = level.step, "the upgrade is finalized");
            core.audit.record(core.event(EventKind::Finalize).with("version", format!("{}.{}", level.major, level.step))).await?;
            return Ok(record);
        }
    }
    Err(contended())
}

pub(crate) async fn read(core: &Core) -> Result<Stored, Fault> {
    let stored = control::read(core.store.as_ref()).await.map_err(internal)?;
    stored.ok_or_else(|| Fault::Internal("the control record is gone".into()))
}

/// Writes the record in place of the one that was judged; `None` when somebody was quicker. An answer that never came is found out.
pub(crate) async fn write(core: &Core, was: &Stored, mut next: ControlRecord) -> Result<Option<ControlRecord>, Fault> {
    (next.written_by, next.written_at) = (Some(core.version.to_string()), Some(core.now()));
    match control::update(core.store.as_ref(), was, &next, core.documents.writer()).await {
        Ok(done) => Ok(Some(done.record)),
        Err(WriteControlError::Conflict) => Ok(None),
        // The record says when and by whom: nobody else writes this one.
        Err(WriteControlError::Commit(store::CommitError::Ambiguous(why))) => match read(core).await?.record {
            record if record == next => Ok(Some(record)),
            _ => Err(Fault::Vault(VaultError::Store(StoreError::Io { place: Key::control().to_string(), detail: why }))),
        },
        Err(WriteControlError::Commit(error)) => Err(VaultError::from(error).into()),
        Err(error) => Err(Public::new(Code::Conflict, error.to_string()).into()),
    }
}

/// All of them, from the store itself: the mirror may be behind.
pub(crate) async fn members(documents: &Documents) -> Result<Vec<Resource<Member>>, ReadError> {
    let (mut all, mut page) = (Vec::new(), None);
    loop {
        let listing = documents.list(Member::KIND, page.as_ref(), store::MAX_PAGE, |_| true).await?;
        all.extend(listing.documents.into_iter().filter_map(|document| Resource::from_document(document).ok()));
        page = listing.next;
        if page.is_none() {
            return Ok(all);
        }
    }
}
