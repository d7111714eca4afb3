//! The audit log over the API: members add what they saw, auditors search and verify.
//!
//! A member speaks for itself only: its id and name are written over whatever the event says, and what only the Auth
//! Service can know (logins, certificates, changes of documents) is refused from anybody else.

use crate::{
    audit::{ChainVerdict, Query, Row},
    core::{Call, Fault, malformed},
    instance,
    presence::ADDRESS,
};
use bytes::Bytes;
use rules::{
    Verb,
    documents::{Scope, decide_read, decide_write},
};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use types::{Code, Event, EventKind, Public, ResourceName, SystemRole, Time};
use wire::api as pb;

/// Events in one call.
const MAX_EVENTS: usize = 1000;
/// A reader that takes nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes what a member saw. An event that can never be taken is named in the answer, and keeps none of the others out.
pub(crate) async fn emit(call: Call, ask: pb::EmitEventsRequest) -> Result<pb::EmitEventsReply, Fault> {
    let caller = call.caller()?;
    let rules::Caller::Host(host) = caller else {
        return Err(rules::Denied::NotAllowed { who: call.name(), what: "write events".into() }.into());
    };
    if host.roles.contains(&SystemRole::Admin) {
        return Err(rules::Denied::NotAllowed { who: call.name(), what: "write events".into() }.into());
    }
    let permit = decide_write(caller, "event", Verb::Create, &ResourceName::from(&host.id))?;
    if ask.events.len() > MAX_EVENTS {
        return Err(malformed(format!("more than {MAX_EVENTS} events in one call")));
    }
    let (mut events, mut refused) = (Vec::with_capacity(ask.events.len()), Vec::new());
    for (index, bytes) in (0..).zip(&ask.events) {
        match acceptable(bytes, &permit.name) {
            Ok(event) => {
                let event = event.with("server_id", permit.name.as_str()).with("server_hostname", host.name.as_str());
                events.push(event.with("cluster_name", call.core.cluster.as_str()));
            }
            Err(why) => {
                tracing::warn!(host = %host.id, why, "an event was refused");
                refused.push(pb::RefusedEvent { index, why });
            }
        }
    }
    call.core.audit.record_all(events).await?;
    Ok(pb::EmitEventsReply { refused })
}

/// An event that this host may report.
fn acceptable(bytes: &[u8], host: &ResourceName) -> Result<Event, String> {
    let event: Event = serde_json::from_slice(bytes).map_err(|error| format!("the event cannot be read: {error}"))?;
    if event.event.len() > 64 || event.code.len() > 16 {
        return Err("the event's name or code is too long".into());
    }
    if EventKind::ALL.iter().any(|kind| (kind.name() == event.event || kind.code() == event.code) && only_ours(*kind)) {
        return Err(format!("\"{}\" events are written by the Auth Service alone", event.event));
    }
    let said = event.text("server_id");
    if !said.is_empty() && said != host.as_str() {
        return Err("the event is of another host".into());
    }
    Ok(event)
}

/// Events that nobody else may claim to have seen.
fn only_ours(kind: EventKind) -> bool {
    match kind {
        EventKind::Login
        | EventKind::LoginFailed
        | EventKind::UserLocked
        | EventKind::PasswordChange
        | EventKind::InviteCreate
        | EventKind::CertCreate
        | EventKind::CertRefused
        | EventKind::SessionUpload
        | EventKind::SessionRecordingAccess
        | EventKind::Join
        | EventKind::JoinFailed
        | EventKind::ResourceCreate
        | EventKind::ResourceUpdate
        | EventKind::ResourceDelete
        | EventKind::AuthStart
        | EventKind::AuditTrim
        | EventKind::AuditExport
        | EventKind::WindowMove
        | EventKind::WindowRefused
        | EventKind::MemberEvict
        | EventKind::MemberWalk
        | EventKind::MemberWalkFailed
        | EventKind::MigrationMove
        | EventKind::MigrationTurn
        | EventKind::MigrationRepair
        | EventKind::Finalize
        | EventKind::UpgradeBegin
        | EventKind::UpgradeSteer
        | EventKind::UpgradeSteerRefused
        | EventKind::UpgradeStep
        | EventKind::UpgradePause
        | EventKind::UpgradeEnd
        | EventKind::UpdateDirective
        | EventKind::UpdateDone
        | EventKind::UpdateReverted
        | EventKind::UpdateRefused
        | EventKind::BackupCreate
        | EventKind::BackupFailed
        | EventKind::BackupRestore => true,
        EventKind::SessionStart
        | EventKind::SessionEnd
        | EventKind::SessionRejected
        | EventKind::Exec
        | EventKind::ExecFailed
        | EventKind::Subsystem
        | EventKind::PortForward
        | EventKind::RequestDenied
        | EventKind::AccessDenied
        | EventKind::VersionRefused
        | EventKind::VersionSkipped
        | EventKind::Restart
        | EventKind::RestartFailed => false,
    }
}

/// Only who may read all events may search them.
fn may_read(call: &Call) -> Result<(), Fault> {
    let permit = decide_read(call.caller()?, "event", Verb::List)?;
    match permit.scope {
        Scope::All => Ok(()),
        Scope::Named(_) | Scope::InRole(..) | Scope::Reachable(_) | Scope::SessionsOf(_) => {
            Err(rules::Denied::NotAllowed { who: call.name(), what: "read the audit log".into() }.into())
        }
    }
}

pub(super) fn time(text: &str) -> Result<Option<Time>, Fault> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(malformed) }
}

pub(crate) async fn search(call: Call, ask: pb::SearchEventsRequest) -> Result<pb::SearchEventsReply, Fault> {
    may_read(&call)?;
    let query = Query {
        from: time(&ask.from)?,
        to: time(&ask.to)?,
        kinds: ask.names.into_iter().take(100).collect(),
        user: ask.user,
        session: ask.session,
        limit: usize::try_from(ask.limit).unwrap_or(usize::MAX),
        page: if ask.page.is_empty() { None } else { Some(ask.page.parse().map_err(malformed)?) },
        oldest_first: ask.oldest_first,
    };
    let (found, lacks) = call.core.audit.search(&query).await?;
    let events = found.rows.iter().filter_map(Row::shown).map(|event| serde_json::to_vec(&event).unwrap_or_default().into()).collect();
    let next_page = found.next.map(|next| next.to_string()).unwrap_or_default();
    Ok(pb::SearchEventsReply { events, next_page, note: lacks.unwrap_or_else(|| others(&call)) })
}

pub(crate) async fn verify(call: Call, _ask: pb::Empty) -> Result<pb::VerifyAuditReply, Fault> {
    may_read(&call)?;
    let known = instance::all_known(&call.core.vault).await?;
    let verdict = call.core.audit.verify(&known).await?;
    let fault = verdict.fault();
    if let Some(fault) = &fault {
        tracing::error!(fault, "the audit log's hash chain does not hold");
    }
    let own = verdict.chains.first();
    let note = [verdict.note(), others(&call)].into_iter().filter(|note| !note.is_empty()).collect::<Vec<_>>().join("; ");
    Ok(pb::VerifyAuditReply {
        intact: fault.is_none(),
        events: own.map_or(0, |own| own.end.events),
        head: own.map(|own| own.end.hash.to_string()).unwrap_or_default(),
        fault: fault.unwrap_or_default(),
        note,
        chains: verdict.chains.into_iter().map(shown).collect(),
    })
}

fn shown(verdict: ChainVerdict) -> pb::ChainVerdict {
    pb::ChainVerdict {
        instance: verdict.chain.to_string(),
        name: verdict.name,
        sink: verdict.sink.into(),
        begin: verdict.begin,
        events: verdict.end.events,
        head: verdict.end.hash.to_string(),
        fault: verdict.fault.unwrap_or_default(),
        note: verdict.note,
    }
}

pub(crate) type ExportStream = ReceiverStream<Result<pb::ExportChunk, Status>>;

/// Recorded before the first line leaves: whoever has an export has everything that happened.
pub(crate) async fn export(call: Call, ask: pb::ExportEventsRequest) -> Result<ExportStream, Fault> {
    may_read(&call)?;
    let (from, to) = (time(&ask.from)?, time(&ask.to)?);
    let event = call.event(EventKind::AuditExport).with("from", ask.from.as_str()).with("to", ask.to.as_str());
    call.core.audit.record(event).await?;
    let (sender, receiver) = mpsc::channel(4);
    let work = call.clone();
    call.core.group.spawn("audit export", async move {
        let (lines, mut made) = mpsc::channel(2);
        let exporting = async move { work.core.audit.export(from, to, &lines).await };
        let sending = async {
            while let Some(lines) = made.recv().await {
                if !hand_over(&sender, Ok(pb::ExportChunk { lines, done: Bytes::new() })).await {
                    // Dropping the receiver ends the reading, too.
                    return;
                }
            }
        };
        let (done, ()) = tokio::join!(exporting, sending);
        let last = match done {
            Ok(done) => Ok(pb::ExportChunk { lines: Bytes::new(), done: serde_json::to_vec(&done).unwrap_or_default().into() }),
            Err(error) => {
                tracing::warn!(%error, "an export of the audit log broke off");
                Err(pb::to_status(&Public::new(Code::Unavailable, format!("the audit log could not be read: {error}"))))
            }
        };
        hand_over(&sender, last).await;
    });
    Ok(ReceiverStream::new(receiver))
}

/// Whether somebody took it.
async fn hand_over(sender: &mpsc::Sender<Result<pb::ExportChunk, Status>>, piece: Result<pb::ExportChunk, Status>) -> bool {
    matches!(tokio::time::timeout(PATIENCE, sender.send(piece)).await, Ok(Ok(())))
}

/// Which other Auth Services have logs of their own; empty when there are none.
fn others(call: &Call) -> String {
    let core = &call.core;
    if core.audit.is_shared() {
        return String::new();
    }
    let others = core.mirror.members().into_iter().filter(|member| member.spec.roles.contains(&SystemRole::Auth));
    let others: Vec<String> = others
        .filter(|member| *member.name() != ResourceName::from(&core.host_id))
        .map(|member| match member.spec.extra.get(ADDRESS).and_then(|address| address.as_str()) {
            Some(address) => format!("{} ({address})", member.spec.hostname),
            None => member.spec.hostname.clone(),
        })
        .collect();
    if others.is_empty() {
        return String::new();
    }
    format!("this is the log of {}; other Auth Services keep their own: {}", core.node_name, others.join(", "))
}
