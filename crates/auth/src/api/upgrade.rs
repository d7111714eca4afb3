//! Windows and migrations over the API: what an administrator sees and does while a cluster moves from one major to the next.
//!
//! Every right here is one on the kind `control`: `read` shows, `update` changes and shows rows, which may be documents of any kind. What is
//! done, and a move that was refused, is recorded. A bad row is repaired only as it was shown: the proposal that comes back
//! names the row, its revision and the fix. Values of rows that are no documents are not shown: they may be secrets of the vault.

use crate::{
    core::{Call, Fault, malformed},
    migrations::{self, GOAL},
    seat, walk,
    windows::{self, Asked},
};
use migrate::{Outcome, Proposal, RepairError, Runner, Status, StepError, TurnError};
use net::backoff::Backoff;
use rules::{
    Permit, Verb,
    documents::{Scope, decide_read, decide_write},
    permit::Write,
};
use sha2::{Digest as _, Sha256};
use std::time::{Duration, Instant};
use types::{Code, ControlRecord, Event, EventKind, HostId, Public, ResourceName, kind::Member};
use upgrade::{barrier::Move, evict::Consent, migrate::Fix};
use wire::api as pb;

/// The kind that the rights are on, and the name of its one document.
const CONTROL: &str = "control";
/// The longest a call waits for the barrier.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest reason that is kept.
const MAX_REASON: usize = 500;
/// Lost races with runners and writers before the caller is told.
const TRIES: usize = 20;

/// There is one control record: whoever may read it sees all of it.
pub(super) fn may_read(call: &Call) -> Result<(), Fault> {
    let permit = decide_read(call.caller()?, CONTROL, Verb::Read)?;
    match permit.scope {
        Scope::All => Ok(()),
        Scope::Named(_) | Scope::InRole(..) | Scope::Reachable(_) | Scope::SessionsOf(_) => {
            Err(rules::Denied::NotAllowed { who: call.name(), what: "read the control record".into() }.into())
        }
    }
}

pub(super) fn may_change(call: &Call) -> Result<Permit<Write>, Fault> {
    Ok(decide_write(call.caller()?, CONTROL, Verb::Update, &ResourceName::new(CONTROL)?)?)
}

/// An event of what the permit was used for.
pub(super) fn event(call: &Call, permit: &Permit<Write>, kind: EventKind) -> Event {
    call.event(kind).with("kind", permit.kind.as_str())
}

/// Marks what somebody did although an upgrade might be under way.
fn insisting(event: Event, insists: bool) -> Event {
    if insists { event.with("during_upgrade", true) } else { event }
}

pub(crate) async fn get_windows(call: Call, _ask: pb::Empty) -> Result<pb::WindowsReply, Fault> {
    may_read(&call)?;
    let stored = store::control::read(call.core.store.as_ref()).await.map_err(|error| Fault::Internal(error.to_string()))?;
    let stored = stored.ok_or_else(|| Fault::Internal("the control record is gone".into()))?;
    reply(&call, &stored.record).await
}

async fn reply(call: &Call, record: &ControlRecord) -> Result<pb::WindowsReply, Fault> {
    let seats = seat::all(&call.core).await?;
    let seat = |seat: upgrade::barrier::Seat| pb::AuthSeat {
        host_id: seat.host.map(|host| host.to_string()).unwrap_or_default(),
        name: seat.name,
        version: seat.version.to_string(),
        acknowledged: seat.acknowledged,
    };
    let control = serde_json::to_vec(record).map_err(|error| Fault::Internal(error.to_string()))?;
    Ok(pb::WindowsReply { control: control.into(), seats: seats.into_iter().map(seat).collect() })
}

pub(crate) async fn move_window(call: Call, ask: pb::MoveWindowRequest) -> Result<pb::WindowsReply, Fault> {
    let permit = may_change(&call)?;
    let (role, insists) = (ask.role, ask.during_upgrade);
    let (verb, major, wanted) = match ask.r#move {
        Some(pb::move_window_request::Move::Widen(major)) => ("widen", major, Move::Widen { role: role.clone(), major }),
        Some(pb::move_window_request::Move::Narrow(major)) => ("narrow", major, Move::Narrow { role: role.clone(), lo: major, hi: major }),
        None => return Err(malformed("the request says neither which major to admit nor which to keep")),
    };
    let about = |kind| {
        insisting(event(&call, &permit, kind), insists).with("role", crate::login::shown(&role)).with("move", verb).with("major", major)
    };
    let asked = Asked { wanted, insists, patience: PATIENCE.min(Duration::from_secs(ask.patience.into())), under: None };
    match windows::move_windows(&call.core, &asked).await {
        Ok(record) => {
            call.core.audit.record(about(EventKind::WindowMove).with("generation", record.window_gen)).await?;
            call.core.migrations.wake();
            reply(&call, &record).await
        }
        Err(fault) => {
            let event = about(EventKind::WindowRefused).with("error", fault.to_string());
            call.core.record_refusal(&format!("window {verb} {role} {major} {fault}"), event).await;
            Err(fault)
        }
    }
}

pub(crate) async fn evict_member(call: Call, ask: pb::EvictMemberRequest) -> Result<pb::WindowsReply, Fault> {
    let permit = may_change(&call)?;
    let host: HostId = ask.host_id.parse()?;
    if ask.reason.len() > MAX_REASON {
        return Err(malformed(format!("a reason has at most {MAX_REASON} bytes")));
    }
    let consent = Consent { by: call.name(), at: call.now, reason: ask.reason };
    let record = windows::evict_member(&call.core, &(&host).into(), &consent, ask.during_upgrade, None).await?;
    let event = event(&call, &permit, EventKind::MemberEvict).with("name", host.to_string()).with("reason", consent.reason.as_str());
    call.core.audit.record(insisting(event, ask.during_upgrade)).await?;
    reply(&call, &record).await
}

/// A user's path through a member, now. It makes sessions on hosts, so it takes the right to change.
pub(crate) async fn walk_member(call: Call, ask: pb::WalkMemberRequest) -> Result<pb::WalkMemberReply, Fault> {
    let permit = may_change(&call)?;
    let host: HostId = ask.host_id.parse()?;
    let found = call.core.mirror.typed::<Member>(&(&host).into());
    let member = found.ok_or_else(|| Public::new(Code::NotFound, format!("no member {host}")).hint("see: tctl inventory ls"))?;
    let began = Instant::now();
    let error = walk::walk(&call.core, &member).await.err().unwrap_or_default();
    let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let kind = if error.is_empty() { EventKind::MemberWalk } else { EventKind::MemberWalkFailed };
    let about = event(&call, &permit, kind).with("name", host.to_string()).with("hostname", member.spec.hostname.as_str());
    let about = if error.is_empty() { about } else { about.with("error", error.as_str()) };
    call.core.audit.record(about.with("success", error.is_empty())).await?;
    Ok(pb::WalkMemberReply { error, millis })
}

pub(crate) async fn list_migrations(call: Call, _ask: pb::Empty) -> Result<pb::ListMigrationsReply, Fault> {
    may_read(&call)?;
    let mut all = Vec::new();
    for migration in call.core.migrations.registry().iter() {
        all.push(shown(&call, migrate::status(call.core.store.as_ref(), migration, GOAL).await?));
    }
    Ok(pb::ListMigrationsReply { migrations: all })
}

fn shown(call: &Call, status: Status) -> pb::MigrationStatus {
    let trouble = call.core.migrations.trouble(status.id);
    let waiting = status.waiting.as_ref().map(ToString::to_string).or_else(|| trouble.clone()).unwrap_or_default();
    pb::MigrationStatus {
        id: status.id.to_owned(),
        about: status.about.to_owned(),
        class: status.class.to_owned(),
        state: status.state.as_str().to_owned(),
        phase: status.phase.as_str().to_owned(),
        cursor: status.cursor.unwrap_or_default(),
        done: status.done,
        total: status.total,
        rate: status.rate.unwrap_or_default(),
        left: status.left.map(|left| left.as_secs()),
        waiting,
        held: status.waiting.as_ref().is_some_and(migrations::follow::is_held) || trouble.is_some(),
        bad: status.bad_count,
        differences: status.differences.len() as u64,
        different: status.differences.iter().take(10).map(|named| format!("{}: {}", named.key, named.why)).collect(),
        attempt: status.attempt,
        holder: status.holder,
        undo: status.undo,
    }
}

pub(crate) async fn list_bad_rows(call: Call, ask: pb::ListBadRowsRequest) -> Result<pb::ListBadRowsReply, Fault> {
    // Rows are documents of any kind: whoever only reads the control record does not see them.
    may_change(&call).map(drop)?;
    let core = &call.core;
    let migration = core.migrations.find(&ask.migration)?;
    let (runner, status) = (migrations::runner(core, migration)?, migrate::status(core.store.as_ref(), migration, GOAL).await?);
    let mut rows = Vec::new();
    for named in status.bad {
        let row = match runner.propose(&named.key).await {
            Ok(proposal) => offered(&proposal),
            // Mended or gone since; the check begins anew with the next repair.
            Err(RepairError::NotFound(_) | RepairError::NotBad(_)) => continue,
            Err(error @ RepairError::StillBad(..)) => pb::BadRow { key: named.key, why: error.to_string(), ..Default::default() },
            Err(error) => return Err(error.into()),
        };
        rows.push(row);
    }
    Ok(pb::ListBadRowsReply { rows, count: status.bad_count })
}

fn offered(proposal: &Proposal) -> pb::BadRow {
    let open = proposal.bad.key.starts_with("doc/");
    let value = |value: &[u8]| if open { value.to_vec().into() } else { Default::default() };
    let (fix, then) = match &proposal.fix {
        Fix::Replace(bytes) => ("replace", value(bytes)),
        Fix::Remove => ("remove", Default::default()),
    };
    pb::BadRow {
        key: proposal.bad.key.clone(),
        why: proposal.bad.why.clone(),
        fix: fix.into(),
        now: value(&proposal.now),
        then,
        proposal: consent(proposal),
    }
}

/// What is consented to, in a few letters: this row, as it is at this revision, and this fix.
fn consent(proposal: &Proposal) -> String {
    let (how, value): (u8, &[u8]) = match &proposal.fix {
        Fix::Replace(value) => (1, value),
        Fix::Remove => (0, &[]),
    };
    let mut hash = Sha256::new();
    hash.update((proposal.bad.key.len() as u64).to_be_bytes());
    hash.update(proposal.bad.key.as_bytes());
    hash.update(proposal.revision.to_be_bytes());
    hash.update([how]);
    hash.update(value);
    data_encoding::HEXLOWER.encode(&hash.finalize()).chars().take(32).collect()
}

pub(crate) async fn repair_row(call: Call, ask: pb::RepairRowRequest) -> Result<pb::Empty, Fault> {
    let permit = may_change(&call)?;
    let core = &call.core;
    let migration = core.migrations.find(&ask.migration)?;
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(500), rand::random());
    for _ in 0..TRIES {
        let runner = migrations::runner(core, migration)?;
        let proposal = runner.propose(&ask.key).await?;
        if consent(&proposal) != ask.proposal {
            return Err(RepairError::Changed(ask.key).into());
        }
        match runner.repair(&proposal, &call.name()).await {
            Ok(()) => {
                let how = if matches!(proposal.fix, Fix::Remove) { "removed" } else { "replaced" };
                let event = event(&call, &permit, EventKind::MigrationRepair).with("name", migration.id).with("key", ask.key.as_str());
                core.audit.record(event.with("how", how)).await?;
                core.migrations.wake();
                return Ok(pb::Empty {});
            }
            // A runner was quicker with its own step, or the row is another: the proposal knows.
            Err(RepairError::Changed(_)) => tokio::time::sleep(backoff.next()).await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(StepError::Contended.into())
}

pub(crate) async fn turn_migration(call: Call, ask: pb::TurnMigrationRequest) -> Result<pb::MigrationStatus, Fault> {
    let permit = may_change(&call)?;
    let core = &call.core;
    let migration = core.migrations.find(&ask.migration)?;
    turn(&call, || migrations::runner(core, migration), ask.back).await?;
    let event =
        event(&call, &permit, EventKind::MigrationTurn).with("name", migration.id).with("to", if ask.back { "back" } else { "forward" });
    core.audit.record(event).await?;
    core.migrations.wake();
    Ok(shown(&call, migrate::status(core.store.as_ref(), migration, GOAL).await?))
}

async fn turn(call: &Call, runner: impl Fn() -> Result<Runner, StepError>, back: bool) -> Result<(), Fault> {
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(500), rand::random());
    for _ in 0..TRIES {
        match runner()?.turn(back).await? {
            Outcome::Done | Outcome::Worked { .. } | Outcome::Moved { .. } | Outcome::Waiting(_) => return Ok(()),
            Outcome::Lost => tokio::time::sleep(backoff.next()).await,
            Outcome::Unclear(why) => {
                tracing::info!(who = call.name(), why, "it is not known whether a migration was turned; looking again");
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
    Err(StepError::Contended.into())
}

impl From<StepError> for Fault {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Contended => Public::new(Code::UpgradeWaits, error.to_string()).hint("try again").into(),
            StepError::Commit(error) => crate::vault::VaultError::from(error).into(),
            StepError::Store(error) => crate::vault::VaultError::from(error).into(),
            StepError::NoControl | StepError::Control(_) | StepError::Journal(_) | StepError::Name(_) | StepError::Key(_) => {
                Self::Internal(error.to_string())
            }
        }
    }
}

impl From<TurnError> for Fault {
    fn from(error: TurnError) -> Self {
        match error {
            TurnError::Held { .. } => Public::new(Code::UpgradeRefused, error.to_string()).hint("see: tctl migrations ls").into(),
            TurnError::Step(error) => error.into(),
        }
    }
}

impl From<RepairError> for Fault {
    fn from(error: RepairError) -> Self {
        let (text, again) = (error.to_string(), "see the rows again: tctl migrations bad");
        match error {
            RepairError::NotFound(_) => Public::new(Code::NotFound, text).hint(again).into(),
            RepairError::Changed(_) | RepairError::NotBad(_) => Public::new(Code::Conflict, text).hint(again).into(),
            RepairError::State(_) | RepairError::StillBad(..) => Public::new(Code::UpgradeRefused, text).hint(again).into(),
            RepairError::Unclear(_) => Public::new(Code::StoreBroken, text).hint(again).into(),
            RepairError::Step(StepError::Key(bad)) => malformed(bad),
            RepairError::Step(error) => error.into(),
        }
    }
}
