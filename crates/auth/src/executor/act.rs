//! Does what the planner says, one step at a time, each conditional on what was looked at.
//!
//! A step that comes too late does nothing: the control record is written only as it was read, a window moves only under the same upgrade,
//! a directive names the run of the process that it is for. So two executors, and one that slept, do no harm. Members are directed
//! by the one document `update_directive`: whoever was told and has not arrived stands in it, in front of what an operator
//! wrote there by hand; how many of its targets are ours stands in its `extra`.

use crate::{
    core::{Core, Fault},
    executor::{
        book::{self, Ended, Told},
        look::Look,
        proof::Workshop,
    },
    migrations, updates,
    windows::{self, Asked},
};
use futures::{StreamExt as _, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use types::{
    EventKind, Extra, HostId, Metadata, Resource, ResourceName, Version,
    document::Spec as _,
    kind::singleton,
    update::{Target, UpdateDirective},
};
use upgrade::{
    barrier::Move,
    evict::Consent,
    plan::{Direction, Member, Pause, Step, Upgrade, Walk},
    render,
};

/// Where the count of our targets stands in the directive's `extra`.
const OURS: &str = "upgrade_targets";
/// Users' paths that are walked at the same time.
const WALKERS: usize = 16;
/// Those of one look: what people say is heard between two looks.
const WALKS: usize = 64;
/// For a barrier that is about to open.
const PATIENCE: Duration = Duration::from_secs(2);
/// By whom an executor says that it does something.
const BY: &str = "upgrade";

/// Does the steps of one decision; says whether anything was done. One that fails is no reason to leave the others undone; the first fault
/// is told at the end.
pub(crate) async fn act(core: &Arc<Core>, workshop: &Workshop, look: &Look, steps: &[Step]) -> Result<bool, Fault> {
    let (mut done, mut fault) = (false, None);
    let mut note = |outcome: Result<bool, Fault>| match outcome {
        Ok(did) => done |= did,
        Err(error) => drop(fault.get_or_insert(error)),
    };
    // A pause first: what it stops is not begun beside it.
    let (pauses, others): (Vec<&Step>, Vec<&Step>) = steps.iter().partition(|step| matches!(step, Step::Pause { .. }));
    for step in pauses {
        note(one(core, workshop, look, step).await);
    }
    let installs: Vec<Install<'_>> = steps.iter().filter_map(|step| Install::of(step, look)).collect();
    note(direct(core, look, &installs).await);
    let walks: Vec<&Member> = steps.iter().filter_map(|step| walked(step, look)).take(WALKS).collect();
    note(walk(core, &walks).await);
    for step in others {
        note(one(core, workshop, look, step).await);
    }
    let told = render::describe(steps);
    if done && !told.is_empty() && steps.iter().any(|step| !matches!(step, Step::Walk { .. })) {
        tracing::info!(steps = told.join("; "), "did the next steps of the upgrade");
        let event = core.event(EventKind::UpgradeStep).with("steps", told).with("server_id", core.host_id.to_string());
        core.audit.record(event).await?;
    }
    fault.map_or(Ok(done), Err)
}

/// All but directives and walks, which go together.
async fn one(core: &Arc<Core>, workshop: &Workshop, look: &Look, step: &Step) -> Result<bool, Fault> {
    match step {
        // Somebody accepts a plan, which writes it (`api::plan`), or the policy does (`managed`).
        Step::Begin { .. } | Step::Install { .. } | Step::Walk { .. } => return Ok(false),
        Step::Backup => workshop.backup(core).await?,
        Step::Drill { .. } | Step::Rehearse { .. } => return prove(core, workshop, step).await,
        Step::Widen { role, major } => moved(core, look, Move::Widen { role: role.clone(), major: *major }).await?,
        Step::Narrow { role, lo, hi } => moved(core, look, Move::Narrow { role: role.clone(), lo: *lo, hi: *hi }).await?,
        Step::Migrate { id, undo } => {
            windows::still_under(&windows::read(core).await?.record, under(look))?;
            let migration = core.migrations.find(id)?;
            let runner = migrations::runner(core, migration)?;
            runner.turn(*undo).await?;
            core.migrations.wake();
        }
        Step::Evict { member, reason, .. } => {
            let consent = Consent { by: BY.into(), at: core.now(), reason: reason.clone() };
            windows::evict_member(core, member, &consent, true, under(look)).await?;
            let event = core.event(EventKind::MemberEvict).with("name", member.as_str()).with("reason", reason.as_str());
            core.audit.record(event.with("server_id", core.host_id.to_string())).await?;
        }
        Step::Soak => {
            let now = core.now();
            return rewrite(core, look, |upgrade| Upgrade { soaks_since: Some(now), ..upgrade }).await;
        }
        Step::Pause { reason, revert } => {
            let pause = Pause { by: BY.into(), at: core.now(), reason: reason.clone(), failed: true, revert: *revert };
            // Whatever held so far must hold anew.
            let paused = rewrite(core, look, |upgrade| Upgrade { paused: Some(pause), soaks_since: None, ..upgrade }).await?;
            if paused {
                let event = core.event(EventKind::UpgradePause).with("error", reason.as_str());
                core.audit.record(event.with("server_id", core.host_id.to_string())).await?;
            }
            return Ok(paused);
        }
        Step::Finalize => drop(windows::finalize(core, under(look)).await?),
        Step::GiveBack { major } => {
            let next = upgrade::control::give_back(&look.control.record, *major)?;
            return Ok(windows::write(core, &look.control, next).await?.is_some());
        }
        Step::Finish => return finish(core, look).await,
    }
    Ok(true)
}

/// On whose behalf things are done: nobody may have said something else of it meanwhile.
fn under(look: &Look) -> Option<&serde_json::Value> {
    look.control.record.upgrade.as_ref()
}

/// A window moves only while the upgrade stands as it was looked at.
async fn moved(core: &Arc<Core>, look: &Look, wanted: Move) -> Result<(), Fault> {
    let asked = Asked { wanted, insists: true, patience: PATIENCE, under: under(look).cloned() };
    let record = windows::move_windows(core, &asked).await?;
    core.migrations.wake();
    let event = core.event(EventKind::WindowMove).with("generation", record.window_gen).with("server_id", core.host_id.to_string());
    let event = match &asked.wanted {
        Move::Widen { role, major } => event.with("role", role.as_str()).with("move", "widen").with("major", *major),
        Move::Narrow { role, hi, .. } => event.with("role", role.as_str()).with("move", "narrow").with("major", *hi),
    };
    Ok(core.audit.record(event).await?)
}

/// The record of the upgrade, rewritten if the control record is still the one that was read.
async fn rewrite(core: &Core, look: &Look, edit: impl FnOnce(Upgrade) -> Upgrade) -> Result<bool, Fault> {
    let Ok(Some(upgrade)) = look.view.upgrade() else { return Ok(false) };
    let next = edit(upgrade).write_to(&look.control.record);
    Ok(windows::write(core, &look.control, next).await?.is_some())
}

/// First what was said of members, then the record: a process that is killed in between does all of it again.
async fn finish(core: &Core, look: &Look) -> Result<bool, Fault> {
    let Ok(Some(upgrade)) = look.view.upgrade() else { return Ok(false) };
    directed(core, Vec::new()).await?;
    book::close(core).await?;
    let back = upgrade.direction == Direction::Down;
    book::note_end(core, &Ended { target: upgrade.target.clone(), back, at: core.now(), extra: Extra::new() }).await?;
    let next = types::ControlRecord { upgrade: None, ..look.control.record.clone() };
    if windows::write(core, &look.control, next).await?.is_none() {
        return Ok(false);
    }
    tracing::info!(from = %upgrade.source(), to = %upgrade.goal(), "the upgrade is done");
    let event = core.event(EventKind::UpgradeEnd).with("from", upgrade.source().to_string()).with("to", upgrade.goal().to_string());
    core.audit.record(event.with("upgrade", upgrade.id.as_str()).with("by", upgrade.by.as_str())).await?;
    Ok(true)
}

async fn prove(core: &Arc<Core>, workshop: &Workshop, step: &Step) -> Result<bool, Fault> {
    let Some(held) = book::Book::read(core).await?.proof else { return Ok(false) };
    let proof = held.value;
    if proof.by != core.host_id {
        // Only its maker can open it: this one makes its own.
        workshop.backup(core).await?;
        return Ok(true);
    }
    match step {
        Step::Drill { backup } if *backup == proof.backup.id => workshop.drill(core, &proof).await?,
        Step::Rehearse { backup, target } if *backup == proof.backup.id => workshop.rehearse(core, &proof, target).await?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// A member to direct.
struct Install<'a> {
    member: &'a Member,
    version: &'a Version,
    attempt: u32,
}

impl<'a> Install<'a> {
    /// `None` when the process is another than the one that was decided on.
    fn of(step: &'a Step, look: &'a Look) -> Option<Self> {
        let Step::Install { member, version, boot, attempt, .. } = step else { return None };
        let member = look.view.member(member).filter(|known| known.boot == *boot)?;
        Some(Self { member, version, attempt: *attempt })
    }
}

/// Directs members, all in one document, and writes down what each was told. Who was told to go elsewhere before somebody turned round is
/// taken out of it: nobody arrives where the cluster does not go any more.
async fn direct(core: &Core, look: &Look, installs: &[Install<'_>]) -> Result<bool, Fault> {
    let upgrade = look.view.upgrade().ok().flatten();
    let goes_there = |version: &Version| {
        upgrade.as_ref().is_some_and(|upgrade| {
            // A wave that failed may be going back while the upgrade is paused.
            let reverts = upgrade.paused.as_ref().is_some_and(|pause| pause.revert.is_some());
            upgrade.goal() == version || (reverts && upgrade.source() == version)
        })
    };
    let told: BTreeSet<&ResourceName> = installs.iter().map(|install| &install.member.id).collect();
    let waits = |id: &ResourceName, was: &Told| {
        let arrived = |member: &Member| member.version == was.version && member.boot != was.boot;
        goes_there(&was.version) && look.view.member(id).is_some_and(|member| !arrived(member))
    };
    let earlier = look.told.iter().filter(|(id, was)| !told.contains(id) && waits(id, was));
    let fresh = installs.iter().map(|install| (&install.member.id, install.version, install.attempt));
    let all = fresh.chain(earlier.map(|(id, was)| (id, &was.version, was.attempts)));
    let (generation, written) = directed(core, targets(look, all)).await?;
    let at = core.now();
    let told: Vec<(ResourceName, Told)> = installs
        .iter()
        .map(|install| {
            let Install { member, version, attempt } = install;
            let told = Told {
                version: (*version).clone(),
                at,
                boot: member.boot.clone(),
                attempts: *attempt,
                generation,
                name: member.name.clone(),
                roles: member.roles.clone(),
                class: member.class.clone(),
                from: member.version.clone(),
                extra: Extra::new(),
            };
            (member.id.clone(), told)
        })
        .collect();
    book::tell(core, &told).await?;
    Ok(written)
}

/// Members by the release that each should run, and whether it is tried again.
fn targets<'a>(look: &Look, told: impl Iterator<Item = (&'a ResourceName, &'a Version, u32)>) -> Vec<Target> {
    let mut groups = BTreeMap::<(String, bool), (Version, BTreeSet<HostId>)>::new();
    for (member, version, attempt) in told {
        let Ok(host) = member.as_str().parse() else { continue };
        let group = groups.entry((version.to_string(), attempt > 1)).or_insert_with(|| (version.clone(), BTreeSet::new()));
        group.1.insert(host);
    }
    let artifacts = |version: &Version| {
        look.releases.iter().find(|known| known.release.version == *version).map(|known| known.artifacts.clone()).unwrap_or_default()
    };
    let target = |((_, retry), (version, hosts)): ((String, bool), (Version, BTreeSet<HostId>))| Target {
        hosts,
        roles: BTreeSet::new(),
        wave: None,
        artifacts: artifacts(&version),
        version,
        retry,
        extra: Extra::new(),
    };
    groups.into_iter().map(target).collect()
}

/// Writes the directive with these targets in front, unless they stand there; its generation comes back, and whether it was written.
async fn directed(core: &Core, ours: Vec<Target>) -> Result<(u64, bool), Fault> {
    let name = ResourceName::new(singleton::UPDATE_DIRECTIVE)?;
    for _ in 0..8 {
        let known = core.documents.get(UpdateDirective::KIND, &name).await?;
        let exists = known.is_some();
        let mut resource = match known {
            Some(document) => Resource::<UpdateDirective>::from_document(document)?,
            None if ours.is_empty() => return Ok((0, false)),
            None => Resource::new(Metadata::named(name.clone()), UpdateDirective::default()),
        };
        let spec = &mut resource.spec;
        let before = spec.extra.get(OURS).and_then(serde_json::Value::as_u64).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
        if spec.targets.get(..before).is_some_and(|there| there == ours) {
            return Ok((spec.generation, false));
        }
        spec.targets.drain(..before.min(spec.targets.len()));
        spec.targets.splice(0..0, ours.iter().cloned());
        spec.extra.insert(OURS.into(), ours.len().into());
        spec.expires = None;
        let event = core.event(EventKind::UpdateDirective).with("server_id", core.host_id.to_string());
        let sealed = updates::seal(core, resource, event).await?;
        let document = sealed.to_document();
        let written = if exists { core.documents.update(&document).await } else { core.documents.create(&document).await };
        match written {
            Ok(_) => return Ok((sealed.spec.generation, true)),
            // Somebody was quicker: what he wrote stays, behind ours.
            Err(store::documents::WriteError::Conflict(_) | store::documents::WriteError::Exists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(windows::contended())
}

/// The member to walk through, if it is still the run that was decided on.
fn walked<'a>(step: &Step, look: &'a Look) -> Option<&'a Member> {
    let Step::Walk { member, boot, .. } = step else { return None };
    look.view.member(member).filter(|known| known.boot == *boot)
}

/// Walks a user's path through members, some at a time, and writes down how he fared.
async fn walk(core: &Arc<Core>, members: &[&Member]) -> Result<bool, Fault> {
    let runs: Vec<(ResourceName, String)> = members.iter().map(|member| (member.id.clone(), member.boot.clone())).collect();
    let mut walking = stream::iter(runs).map(|(member, boot)| walk_one(core.clone(), member, boot)).buffer_unordered(WALKERS);
    let mut done = false;
    while let Some(walked) = walking.next().await {
        done |= walked?;
    }
    Ok(done)
}

async fn walk_one(core: Arc<Core>, member: ResourceName, boot: String) -> Result<bool, Fault> {
    let Some(document) = core.documents.get(types::kind::Member::KIND, &member).await? else { return Ok(false) };
    let document = Resource::<types::kind::Member>::from_document(document)?;
    if document.spec.boot_id != boot {
        return Ok(false);
    }
    let failed = crate::walk::walk(&core, &document).await.err();
    if let Some(why) = &failed {
        tracing::warn!(member = document.spec.hostname, why, "no user gets through a member");
    }
    book::walked(&core, &member, &Walk { boot, at: core.now(), failed }).await?;
    Ok(true)
}
