//! Hosts that are refused for their version, in the inventory (design 3.2): an agent that is too old is never lost.
//!
//! Whoever is refused cannot report as a member, so its `member` document is written here: in state `quarantined`, with since when
//! and what to install. It is noted where this Auth Service refuses a host itself, and where a Proxy says that one came
//! for rescue; it lapses like any other when the host falls silent, and its first heartbeat overwrites it. Only hosts in the books
//! are noted, so nobody can fill the inventory; one that reports elsewhere as it should is left alone. What is next
//! is decided in `rules::rescue`.

use crate::{
    core::{Call, Core, Fault, malformed},
    hosts,
    metrics::count,
    presence,
};
use rules::{admission, presence as rules_presence, rescue};
use std::{collections::BTreeSet, time::Duration};
use types::{
    Code, HostId, HostIdentity, Identity, Labels, Metadata, NodeName, Public, Resource, ResourceName, SystemRole, Time, Version,
    kind::{Member, Quarantine},
};
use wire::{api as pb, hello::Hello};

/// A host that comes again sooner changes nothing in the inventory.
const FRESH: Duration = Duration::from_secs(60);
/// Who has not reported for so long has missed a heartbeat.
const REPORTS: Duration = Duration::from_secs(90);
/// Releases that a Proxy may tell of.
const MAX_RELEASES: usize = 64;
/// Characters of a peer's text that are kept.
const MAX_TEXT: usize = 300;

/// A host that was refused.
struct Refused<'a> {
    host: HostId,
    /// From its certificate, where this Auth Service has seen it.
    identity: Option<&'a HostIdentity>,
    version: Option<Version>,
    content: Option<&'a str>,
    other_build: bool,
    why: String,
    /// The version of whom it would go through.
    server: &'a Version,
    releases: &'a [Version],
}

/// A Proxy tells of a host that came for rescue.
pub(crate) async fn report(call: Call, ask: pb::ReportQuarantineRequest) -> Result<pb::ReportQuarantineReply, Fault> {
    call.only(SystemRole::Proxy, "report hosts that came for rescue")?;
    let host: HostId = ask.host_id.parse().map_err(malformed)?;
    if ask.releases.len() > MAX_RELEASES {
        return Err(malformed(format!("more than {MAX_RELEASES} releases")));
    }
    let releases: Vec<Version> = ask.releases.iter().filter_map(|text| text.parse().ok()).collect();
    let server = call.peer.hello.parsed().ok_or_else(|| malformed("the version cannot be read"))?;
    let core = &call.core;
    let control = core.mirror.control();
    let Some(control) = control.as_ref() else {
        return Err(Public::new(Code::Unavailable, "the Auth Service has not read its control record").into());
    };
    let why = serde_json::from_slice::<Public>(&ask.refused).map_or_else(|_| String::new(), |public| tame(&public.message));
    let refused = Refused {
        host,
        identity: None,
        version: ask.version.parse().ok(),
        content: None,
        other_build: ask.other_build,
        why,
        server: &server,
        releases: &releases,
    };
    note(core, &refused, call.now).await?;
    let window = SystemRole::Node.window(false).and_then(|role| control.windows.get(role));
    let (lo, hi) = window.map_or((1, 0), |window| (window.lo, window.hi));
    Ok(pb::ReportQuarantineReply { lo, hi, production: control.production })
}

/// This Auth Service refuses somebody: notes it, if it is a host and its version is the reason.
pub(crate) async fn refused(core: &Core, identity: Option<&Identity>, hello: Option<&Hello>, public: &Public) {
    let (Some(Identity::Host(host)), Some(hello)) = (identity, hello) else { return };
    if host.id == core.host_id || host.cluster != core.cluster || !public.known().is_some_and(Code::is_about_version) {
        return;
    }
    let refused = Refused {
        host: host.id,
        identity: Some(host),
        version: hello.parsed(),
        content: hello.content.as_deref(),
        other_build: public.is(Code::VersionBuild),
        why: tame(&public.message),
        server: &core.version,
        releases: &[],
    };
    if let Err(error) = note(core, &refused, core.now()).await {
        tracing::debug!(%error, host = %host.id, "a quarantined host could not be noted");
    }
}

async fn note(core: &Core, refused: &Refused<'_>, now: Time) -> Result<(), Fault> {
    let Some(name) = hosts::name_of(core, refused.host).await? else { return Ok(()) };
    let stored = core.mirror.typed::<Member>(&ResourceName::from(&refused.host));
    let roles = roles(refused, stored.as_ref());
    // An Auth Service in the same process says for itself how it is.
    if roles.contains(&SystemRole::Auth) {
        return Ok(());
    }
    let stored_serves = stored.as_ref().is_some_and(|member| serves(core, member, now));
    let same_version = stored.as_ref().is_some_and(|member| refused.version.as_ref() == Some(&member.spec.version));
    // What this Auth Service refused itself does not serve; of a Proxy's guest that is to be seen.
    if refused.identity.is_none() && !refused.other_build && same_version && stored_serves {
        return Ok(());
    }
    // A process of the next major, or on the way back of the one before, took its place, reports, and is admitted; this one drains beside it
    // with the sessions that it has (rule G13).
    let neighbour = |member: &Resource<Member>| {
        let (refused, serves) = (refused.version.as_ref().map(Version::major), member.spec.version.major());
        refused.is_some_and(|refused| refused.abs_diff(serves) == 1) && now.since(member.spec.last_seen) < REPORTS
    };
    if refused.identity.is_some() && stored_serves && stored.as_ref().is_some_and(neighbour) {
        return Ok(());
    }
    let fresh = member(core, refused, &name, roles, stored.as_ref(), now);
    let same = |member: &Resource<Member>| {
        let (was, is) = (member.spec.quarantine(), fresh.spec.quarantine());
        let next = |told: Option<Quarantine>| told.map(|told| told.next);
        was.is_some() && next(was) == next(is) && member.spec.version == fresh.spec.version && now.since(member.spec.last_seen) < FRESH
    };
    if stored.as_ref().is_some_and(same) {
        return Ok(());
    }
    count(&core.metrics.quarantines);
    tracing::info!(host = %refused.host, %name, version = %fresh.spec.version, why = refused.why, "a host is quarantined for its version");
    presence::put(core, &fresh.to_document()).await
}

/// It reports as a member whose version is admitted.
fn serves(core: &Core, member: &Resource<Member>, now: Time) -> bool {
    let spec = &member.spec;
    let online = rules_presence::presence(spec.last_seen, now) == rules_presence::Presence::Online;
    if spec.state == Member::QUARANTINED || spec.state == "draining" || !online {
        return false;
    }
    let control = core.mirror.control();
    let applicant = admission::Applicant {
        roles: &spec.roles,
        version: Some(&spec.version),
        skips_version_check: spec.skips_version_check,
        draining: spec.state == "draining",
    };
    control.as_ref().as_ref().is_some_and(|control| admission::admit(control, &applicant).is_ok())
}

fn roles(refused: &Refused<'_>, stored: Option<&Resource<Member>>) -> BTreeSet<SystemRole> {
    match (refused.identity, stored) {
        (Some(identity), _) => identity.roles.clone(),
        (None, Some(member)) => member.spec.roles.clone(),
        (None, None) => [SystemRole::Node].into(),
    }
}

fn member(
    core: &Core,
    refused: &Refused<'_>,
    name: &NodeName,
    roles: BTreeSet<SystemRole>,
    stored: Option<&Resource<Member>>,
    now: Time,
) -> Resource<Member> {
    let before = stored.and_then(|member| member.spec.quarantine());
    let since = before.as_ref().map_or(now, |told| told.since);
    let kept = before.as_ref().map(|told| told.extra.clone()).unwrap_or_default();
    let told = Quarantine { since, next: next(core, refused, &roles, before.as_ref()), why: refused.why.clone(), extra: kept };
    // Fields of another release stay, here and inside.
    let mut extra = stored.map(|member| member.spec.extra.clone()).unwrap_or_default();
    extra.insert(Member::QUARANTINE.into(), serde_json::to_value(&told).unwrap_or_default());
    extra.remove(Member::CONTENT);
    if let Some(content) = refused.content {
        extra.insert(Member::CONTENT.into(), tame(content).into());
    }
    let spec = Member {
        hostname: name.to_string(),
        roles,
        version: refused.version.clone().unwrap_or(Version::new(0, 0, 0)),
        boot_id: stored.map(|member| member.spec.boot_id.clone()).unwrap_or_default(),
        started: stored.map_or(now, |member| member.spec.started),
        last_seen: now,
        state: Member::QUARANTINED.into(),
        skips_version_check: false,
        labels: stored.map_or_else(Labels::new, |member| member.spec.labels.clone()),
        platform: stored.map(|member| member.spec.platform.clone()).unwrap_or_default(),
        capabilities: stored.map(|member| member.spec.capabilities.clone()).unwrap_or_default(),
        extra,
    };
    let mut metadata = stored.map_or_else(|| Metadata::named(&refused.host), |member| member.metadata.clone());
    metadata.expires = Some(rules_presence::lease_end(now));
    Resource::new(metadata, spec)
}

/// What to install, as the inventory shows it; empty when there is nothing to install. The release that a Proxy found in its mirror
/// stays: this Auth Service, which has none, knows no more than the major.
fn next(core: &Core, refused: &Refused<'_>, roles: &BTreeSet<SystemRole>, before: Option<&Quarantine>) -> String {
    let control = core.mirror.control();
    let Some(control) = control.as_ref() else { return String::new() };
    let case = rescue::Case {
        host: refused.version.as_ref(),
        other_build: refused.other_build,
        window: roles.iter().find_map(|role| control.windows.get(role.window(false)?)),
        production: control.production,
        proxy: refused.server,
        releases: refused.releases,
    };
    match rescue::next(&case) {
        rescue::Advice::Install(target, _) => {
            let found = before.and_then(|told| told.next.parse::<Version>().ok()).filter(|found| found.major() == target.major);
            found.filter(|_| refused.identity.is_some()).map_or_else(|| target.to_string(), |found| found.to_string())
        }
        rescue::Advice::Wait | rescue::Advice::Retry => String::new(),
    }
}

/// A peer's text, fit for a document.
fn tame(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

/// What a heartbeat may not say of itself, and the handshake's word for its build.
pub(crate) fn admitted(member: &mut Member, hello: &Hello) {
    member.extra.remove(Member::QUARANTINE);
    member.extra.remove(Member::CONTENT);
    if let Some(content) = &hello.content {
        member.extra.insert(Member::CONTENT.into(), tame(content).into());
    }
    if member.state == Member::QUARANTINED {
        member.state.clear();
    }
}

/// How many are quarantined at this moment.
pub(crate) fn count_now(members: &[Resource<Member>]) -> u64 {
    u64::try_from(members.iter().filter(|member| member.spec.quarantine().is_some()).count()).unwrap_or(u64::MAX)
}
