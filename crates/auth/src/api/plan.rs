//! An upgrade over the API: the plan of one, how it stands, and what people say about it.
//!
//! `PlanUpgrade` writes nothing. A plan is accepted by the id of what was read: when the cluster has changed so that the plan would be
//! another one, it is shown instead and nothing begins. Whatever is said is recorded with who said it, and is written on the condition
//! that the control record is still as it was read.

use super::upgrade::{event, may_change, may_read};
use crate::{
    core::{Call, Fault, malformed},
    executor::{
        book,
        look::{self, Look, look},
    },
    windows,
};
use rules::{Permit, permit::Write};
use std::time::Duration;
use types::{Code, ControlRecord, EventKind, Public, ResourceName, Version};
use upgrade::{
    plan::{Bar, Direction, Outcome, Pause, Said, Stage, Upgrade, View, Waiver, decide, plan},
    render,
};
use wire::api::{self as pb, steer_upgrade_request::Order};

/// The longest reason, and name of a check, that is kept.
const MAX_TEXT: usize = 500;
/// The longest that a check is waived.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);
/// How long somebody waits for another's plan.
const PATIENCE: Duration = Duration::from_secs(10);
/// Lost races with the executor before the caller is told.
const TRIES: usize = 8;

pub(crate) async fn plan_upgrade(call: Call, ask: pb::PlanUpgradeRequest) -> Result<pb::PlanUpgradeReply, Fault> {
    may_read(&call)?;
    let asked = if ask.target.is_empty() { None } else { Some(version(&ask.target)?) };
    let mut view = look(&call.core, asked).await?.view;
    if ask.rollback {
        let upgrade = under_way(&view)?;
        view.control = upgrade.turned(Direction::Down).write_to(&view.control);
    }
    reply(&call, view, ask.with_view).await
}

pub(crate) async fn list_releases(call: Call, _ask: pb::Empty) -> Result<pb::ListReleasesReply, Fault> {
    may_read(&call)?;
    let (mut known, fault) = look::releases(&call.core).await;
    known.sort_by(|one, other| other.release.version.release_order(&one.release.version));
    let releases = known.iter().map(|known| json(&known.release)).collect::<Result<_, _>>()?;
    let fault = match (fault, &call.core.releases) {
        (Some(fault), _) => fault,
        (None, None) => "this Auth Service knows no mirror of releases: set auth_service.releases".into(),
        (None, Some(_)) => String::new(),
    };
    Ok(pb::ListReleasesReply { releases, fault })
}

fn version(text: &str) -> Result<Version, Fault> {
    text.parse().map_err(|error| malformed(format!("the version asked for: {error}")))
}

fn json<T: serde::Serialize>(value: &T) -> Result<bytes::Bytes, Fault> {
    serde_json::to_vec(value).map(Into::into).map_err(|error| Fault::Internal(error.to_string()))
}

/// A plan of a large cluster takes a while: one is made at a time, beside everything else that is served.
async fn aside<T: Send + 'static>(call: &Call, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
    let busy = || Public::new(Code::Unavailable, "another plan is being made").hint("try again");
    let turn = tokio::time::timeout(PATIENCE, call.core.plans.clone().acquire_owned()).await;
    let turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
    let made = tokio::task::spawn_blocking(move || {
        let made = work();
        drop(turn);
        made
    });
    made.await.map_err(|error| Fault::Internal(error.to_string()))
}

async fn reply(call: &Call, view: View, with_view: bool) -> Result<pb::PlanUpgradeReply, Fault> {
    aside(call, move || planned(&view, with_view)).await?
}

fn planned(view: &View, with_view: bool) -> Result<pb::PlanUpgradeReply, Fault> {
    let outcome = plan(view);
    let status = render::status(view, &outcome.decision);
    let shown = if with_view { json(view)? } else { bytes::Bytes::new() };
    if shown.len() > wire::api::MAX_MESSAGE / 2 {
        return Err(Public::new(Code::TooLarge, format!("what was looked at has {} bytes", shown.len()))
            .hint("ask without it: it is the members' documents, which tctl get member shows")
            .into());
    }
    Ok(pb::PlanUpgradeReply { outcome: json(&outcome)?, status: json(&status)?, view: shown, text: render::plan_text(view, &outcome) })
}

fn under_way(view: &View) -> Result<Upgrade, Fault> {
    match view.upgrade() {
        Ok(Some(upgrade)) => Ok(upgrade),
        Ok(None) => Err(Public::new(Code::UpgradeRefused, "no upgrade is under way")
            .hint("see what could be done: tctl upgrade plan --to <version>")
            .into()),
        Err(error) => Err(Public::new(Code::UpgradeRefused, format!("the upgrade in the control record cannot be read: {error}"))
            .hint("use the release that began it")
            .into()),
    }
}

pub(crate) async fn steer_upgrade(call: Call, ask: pb::SteerUpgradeRequest) -> Result<pb::PlanUpgradeReply, Fault> {
    let permit = may_change(&call)?;
    let order = ask.order.ok_or_else(|| malformed("the request says nothing of what to do"))?;
    let (name, detail) = told(&order);
    match steer(&call, &permit, &order).await {
        Ok(()) => {
            if !matches!(order, Order::Apply(_)) {
                let event = event(&call, &permit, EventKind::UpgradeSteer).with("order", name).with("detail", detail);
                call.core.audit.record(event).await?;
            }
            reply(&call, look(&call.core, None).await?.view, false).await
        }
        Err(fault) => {
            let event = event(&call, &permit, EventKind::UpgradeSteerRefused).with("order", name).with("detail", detail);
            call.core.record_refusal(&format!("{name} {fault}"), event.with("error", fault.to_string())).await;
            Err(fault)
        }
    }
}

/// An order as the audit log has it.
fn told(order: &Order) -> (&'static str, String) {
    let shown = |text: &str| crate::login::shown(text);
    match order {
        Order::Apply(apply) => ("apply", format!("{} by plan {}", shown(&apply.target), shown(&apply.plan))),
        Order::Pause(reason) => ("pause", shown(reason)),
        Order::Resume(_) => ("resume", String::new()),
        Order::Rollback(_) => ("rollback", String::new()),
        Order::Finalize(_) => ("finalize", String::new()),
        Order::Waive(waive) => ("waive", format!("{} for {} s: {}", shown(&waive.check), waive.seconds, shown(&waive.reason))),
        Order::Unwaive(check) => ("unwaive", shown(check)),
    }
}

async fn steer(call: &Call, permit: &Permit<Write>, order: &Order) -> Result<(), Fault> {
    let core = &call.core;
    match order {
        Order::Apply(apply) => self::apply(call, permit, apply).await,
        Order::Pause(reason) => {
            bounded(reason)?;
            let pause = Pause { by: call.name(), at: call.now, reason: reason.clone(), failed: false, revert: None };
            rewrite(call, |_, upgrade| match upgrade.paused {
                // It is paused; who said so first, and why, stays.
                Some(_) => Ok(upgrade),
                // Whatever held so far must hold anew.
                None => Ok(Upgrade { paused: Some(pause.clone()), soaks_since: None, ..upgrade }),
            })
            .await
        }
        Order::Resume(of) => {
            let view = look(core, None).await?.view;
            meant(&under_way(&view)?, of)?;
            book::retry(core).await?;
            book::forgive(core, &failed(&view)).await?;
            rewrite(call, |view, upgrade| Ok(resumed(view, meant(&upgrade, of).map(|()| upgrade)?))).await
        }
        Order::Rollback(of) => rewrite(call, |view, upgrade| turned_back(view, meant(&upgrade, of).map(|()| upgrade)?)).await,
        Order::Finalize(of) => {
            let said = Said { by: call.name(), at: call.now };
            rewrite(call, |view, upgrade| finalized(view, meant(&upgrade, of).map(|()| upgrade)?, &said)).await
        }
        Order::Waive(waive) => {
            bounded(&waive.check)?;
            bounded(&waive.reason)?;
            let life = Duration::from_secs(waive.seconds);
            if waive.check.is_empty() || waive.reason.is_empty() || life.is_zero() || life > LONGEST {
                return Err(malformed("a waiver names its check, a reason, and how long it holds: at most 30 days"));
            }
            let waiver = Waiver {
                name: waive.check.clone(),
                by: call.name(),
                at: call.now,
                until: call.now.plus(life),
                reason: waive.reason.clone(),
            };
            book::waive(core, |all| {
                all.retain(|known| known.name != waiver.name);
                all.push(waiver.clone());
            })
            .await
        }
        Order::Unwaive(check) => book::waive(core, |all| all.retain(|known| known.name != *check)).await,
    }
}

fn bounded(text: &str) -> Result<(), Fault> {
    if text.len() > MAX_TEXT { Err(malformed(format!("more than {MAX_TEXT} bytes of text"))) } else { Ok(()) }
}

/// Accepts the plan that was read.
async fn apply(call: &Call, permit: &Permit<Write>, apply: &pb::ApplyUpgrade) -> Result<(), Fault> {
    let core = &call.core;
    let target = version(&apply.target)?;
    for _ in 0..TRIES {
        let Look { view, control, .. } = look(core, Some(target.clone())).await?;
        if let Ok(Some(upgrade)) = view.upgrade() {
            // Whoever asks again has lost the answer.
            if upgrade.target == target && upgrade.direction == Direction::Up {
                return Ok(());
            }
            return Err(Public::new(Code::UpgradeRefused, format!("the upgrade from {} to {} is under way", upgrade.from, upgrade.target))
                .hint("see: tctl upgrade status")
                .into());
        }
        let outcome = aside(call, move || plan(&view)).await?;
        let mut upgrade = accepted(&outcome, &apply.plan)?.clone();
        // What an earlier one left, if its end was cut off.
        book::close(core).await?;
        (upgrade.by, upgrade.begun, upgrade.parent) = (call.name(), call.now, outcome.id.clone());
        let next = upgrade.clone().write_to(&control.record);
        if windows::write(core, &control, next).await?.is_some() {
            tracing::info!(from = %upgrade.from, to = %upgrade.target, by = upgrade.by, "an upgrade began");
            let event = event(call, permit, EventKind::UpgradeBegin).with("from", upgrade.from.to_string());
            let event = event.with("to", upgrade.target.to_string()).with("upgrade", upgrade.id.as_str()).with("plan", outcome.id.as_str());
            return Ok(core.audit.record(event).await?);
        }
    }
    Err(windows::contended())
}

/// The upgrade that a plan would begin, if it is the plan that was read and nothing stands against it.
fn accepted<'a>(outcome: &'a Outcome, read: &str) -> Result<&'a Upgrade, Fault> {
    let decision = &outcome.decision;
    if let Some(block) = decision.blocked.first() {
        return Err(Public::new(Code::UpgradeRefused, format!("{} {}", block.code, block.cause)).hint(block.cure.clone()).into());
    }
    let Some(begun) = decision.begins() else {
        let cause = decision.waits.first().map_or("there is nothing to do".to_owned(), |wait| format!("{} {}", wait.code, wait.cause));
        return Err(Public::new(Code::UpgradeRefused, cause).hint("see: tctl upgrade plan").into());
    };
    if outcome.id != read {
        let message =
            format!("the plan that was read is {}; the cluster has changed, and the plan is {} now", crate::login::shown(read), outcome.id);
        return Err(Public::new(Code::UpgradeRefused, message).hint("read it again: tctl upgrade plan --to <version>").into());
    }
    Ok(begun)
}

/// What somebody says is of the upgrade that he saw.
fn meant(upgrade: &Upgrade, of: &pb::OfUpgrade) -> Result<(), Fault> {
    if of.upgrade.is_empty() || of.upgrade == upgrade.id {
        return Ok(());
    }
    let message = format!("the upgrade {} is under way, and {} was meant", upgrade.id, crate::login::shown(&of.upgrade));
    Err(Public::new(Code::UpgradeRefused, message).hint("see: tctl upgrade status").into())
}

/// Members that were told and did not come to be where they were sent.
fn failed(view: &View) -> Vec<ResourceName> {
    let late = |told: &upgrade::plan::Told| view.now > told.at.plus(view.policy.deadline.0);
    let failed = |member: &&upgrade::plan::Member| member.told.as_ref().is_some_and(|told| told.failed.is_some() || late(told));
    view.members.iter().filter(failed).map(|member| member.id.clone()).collect()
}

/// Goes on the way that it went. Only a way back that has come to its end, because the upgrade was finalized, is left for the way up.
fn resumed(view: &View, upgrade: Upgrade) -> Upgrade {
    let no_way_back = view.control.cluster_version.major >= upgrade.target.major() && upgrade.is_major();
    if upgrade.direction == Direction::Down && no_way_back {
        return upgrade.turned(Direction::Up);
    }
    Upgrade { paused: None, soaks_since: None, ..upgrade }
}

/// What stands in the way back is shown on it, and is no reason not to take it; but for what makes it impossible.
fn turned_back(view: &View, upgrade: Upgrade) -> Result<Upgrade, Fault> {
    if upgrade.direction == Direction::Down {
        return Ok(Upgrade { paused: None, ..upgrade });
    }
    let back = upgrade.clone().turned(Direction::Down);
    let ahead = View { asked: None, control: back.clone().write_to(&view.control), ..view.clone() };
    let blocked = decide(&ahead).blocked;
    match blocked.iter().find(|block| matches!(block.code, Bar::Final | Bar::Record)) {
        None => Ok(back),
        Some(block) => {
            let message = format!("there is no way back: {} {}", block.code, block.cause);
            Err(Public::new(Code::UpgradeRefused, message).hint(block.cure.clone()).into())
        }
    }
}

fn finalized(view: &View, upgrade: Upgrade, said: &Said) -> Result<Upgrade, Fault> {
    let decision = decide(view);
    let ready = upgrade.direction == Direction::Up && matches!(decision.stage, Stage::Soak | Stage::Finalize | Stage::Done);
    if let Some(block) = decision.blocked.first() {
        return Err(Public::new(Code::UpgradeRefused, format!("{} {}", block.code, block.cause)).hint(block.cure.clone()).into());
    }
    if !ready {
        let cause = decision.waits.first().map_or_else(String::new, |wait| format!(": {} {}", wait.code, wait.cause));
        return Err(Public::new(Code::UpgradeWaits, format!("the upgrade is at stage {}{cause}", decision.stage.as_str()))
            .hint("finalize when everything is moved: tctl upgrade status")
            .into());
    }
    Ok(Upgrade { finalize: Some(upgrade.finalize.clone().unwrap_or_else(|| said.clone())), ..upgrade })
}

/// Writes what somebody says into the record of the upgrade.
async fn rewrite(call: &Call, edit: impl Fn(&View, Upgrade) -> Result<Upgrade, Fault>) -> Result<(), Fault> {
    for _ in 0..TRIES {
        let Look { view, control, .. } = look(&call.core, None).await?;
        let upgrade = under_way(&view)?;
        let next = edit(&view, upgrade.clone())?;
        if next == upgrade {
            return Ok(());
        }
        let record: ControlRecord = next.write_to(&control.record);
        if windows::write(&call.core, &control, record).await?.is_some() {
            return Ok(());
        }
    }
    Err(windows::contended())
}
