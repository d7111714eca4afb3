//! Directives, signed as they are written, and what hosts tell of their updates (design 3.8).
//!
//! Whoever may write the document `update_directive` says who runs what and until when; generation and signature are made here,
//! whatever was sent, so no directive exists that this cluster did not sign and none has a lower generation than one before it, not
//! even after a restore: it is also not lower than the clock. A write stays conditional on the revision, so two writers cannot both
//! win. An executor writes the same document: it seals it with [`sealed`] and commits it with the revision it read. What a host may
//! install besides needs the vendor's word, which only the host checks.

use crate::core::{Call, Core, Fault, malformed};
use std::time::Duration;
use types::{
    Document, Event, EventKind, HostIdentity, Resource, ResourceName, Time,
    document::Spec,
    kind::Member,
    update::{Directive, FORMAT, UpdateDirective, UpdateReport},
};

/// How long a directive holds when nobody says.
const LIFE: Duration = Duration::from_secs(30 * 86_400);
/// The longest that one may hold: a host that was away for longer is not moved by what was meant for then.
const LONGEST: Duration = Duration::from_secs(400 * 86_400);
const MAX_TARGETS: usize = 100;
/// Characters of a host's text that are kept.
const MAX_TEXT: usize = 300;

/// The document with generation and signature, if it is the directive; any other as it is.
pub(crate) async fn sealed(call: &Call, document: Document) -> Result<Document, Fault> {
    if document.kind != UpdateDirective::KIND {
        return Ok(document);
    }
    let resource = Resource::<UpdateDirective>::from_document(document)?;
    let event = call.event(EventKind::UpdateDirective);
    Ok(seal(&call.core, resource, event).await?.to_document())
}

/// Gives it the next generation and signs it; the event that is given is completed and recorded.
pub(crate) async fn seal(core: &Core, mut resource: Resource<UpdateDirective>, event: Event) -> Result<Resource<UpdateDirective>, Fault> {
    let now = core.now();
    let before = core.documents.get(UpdateDirective::KIND, resource.name()).await?;
    let before = before.and_then(|document| Resource::<UpdateDirective>::from_document(document).ok());
    let last = before.map_or(0, |before| before.spec.generation);
    let spec = &mut resource.spec;
    if spec.targets.len() > MAX_TARGETS {
        return Err(malformed(format!("more than {MAX_TARGETS} targets")));
    }
    let expires = spec.expires.unwrap_or_else(|| now.plus(LIFE));
    if expires <= now || expires > now.plus(LONGEST) {
        return Err(malformed(format!("spec.expires: {expires} is not within the next 400 days")));
    }
    let directive = Directive {
        format: FORMAT,
        cluster: core.cluster.clone(),
        cluster_id: core.cluster_id,
        generation: last.saturating_add(1).max(now.unix_u64()),
        issued: now.whole_seconds(),
        expires,
        targets: spec.targets.clone(),
        extra: types::Extra::new(),
    };
    let sign = |message: &[u8]| core.authorities.sign(message);
    spec.signed = wire::directive::seal(&directive, sign).map_err(|error| Fault::Internal(error.to_string()))?;
    (spec.expires, spec.generation) = (Some(expires), directive.generation);
    let versions: Vec<String> = directive.targets.iter().map(|target| target.version.to_string()).collect();
    let event = event.with("generation", directive.generation).with("versions", versions);
    core.audit.record(event.with("expires", expires.to_string())).await?;
    Ok(resource)
}

/// Writes to the audit log what a host tells for the first time: it moved, went back, or refused.
pub(crate) async fn heard(call: &Call, host: &HostIdentity, member: &mut Member) -> Result<(), Fault> {
    let Some(mut report) = UpdateReport::of(&member.extra) else {
        member.extra.remove(UpdateReport::KEY);
        return Ok(());
    };
    report.why = report.why.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect();
    report.extra.clear();
    member.extra.insert(UpdateReport::KEY.into(), serde_json::to_value(&report).unwrap_or_default());
    let stored = call.core.mirror.typed::<Member>(&ResourceName::from(&host.id));
    let before = stored.and_then(|stored| UpdateReport::of(&stored.spec.extra));
    let told = |report: &UpdateReport| (report.state.clone(), report.version.clone(), report.why.clone(), report.generation);
    if before.as_ref().map(told) == Some(told(&report)) {
        return Ok(());
    }
    let kind = match report.state.as_str() {
        UpdateReport::CONFIRMED => EventKind::UpdateDone,
        UpdateReport::REVERTED => EventKind::UpdateReverted,
        UpdateReport::REFUSED => EventKind::UpdateRefused,
        _ => return Ok(()),
    };
    let event = call.event(kind).with("generation", report.generation).with("since", seconds(report.at));
    let event = match &report.version {
        Some(version) => event.with("version", version.to_string()),
        None => event,
    };
    let event = if report.why.is_empty() { event } else { event.with("error", report.why.as_str()) };
    Ok(call.core.audit.record(event).await?)
}

fn seconds(at: Time) -> String {
    at.whole_seconds().to_string()
}
