//! Invariants of a course of events: two readings in a row, what those who act have seen, and the way back.

use super::{Facts, Fault, Invariant, fault, plan, state};
use crate::plan::{Condition, Direction, Finding, Member, Upgrade, Verdict, View, Way, decide, ideal};

/// More looks than any way back needs.
const MAX_LOOKS: usize = 600;

pub(super) fn i3(facts: &Facts) -> Vec<Fault> {
    let outside = facts.admitted.iter().filter(|member| !(member.lo..=member.hi).contains(&member.major));
    let text = |member: &super::Admitted| format!("{} at {} was admitted by [{}, {}]", member.name, member.major, member.lo, member.hi);
    outside.map(|member| fault(Invariant::Start, text(member))).collect()
}

pub(super) fn i7(facts: &Facts) -> Vec<Fault> {
    stale(&facts.journal, Invariant::Runner)
}

pub(super) fn i8(facts: &Facts) -> Vec<Fault> {
    stale(&facts.writes, Invariant::Writer)
}

fn stale(writes: &[super::Write], invariant: Invariant) -> Vec<Fault> {
    let taken = writes.iter().filter(|write| write.committed && write.epoch < write.least);
    taken.map(|write| fault(invariant, format!("{} wrote with epoch {}, the least is {}", write.who, write.epoch, write.least))).collect()
}

pub(super) fn i10(before: &View, after: &View) -> Vec<Fault> {
    let (was, is) = (&before.control, &after.control);
    let mut texts = Vec::new();
    if (is.epoch, is.cluster_version) < (was.epoch, was.cluster_version) {
        texts.push("epoch and cluster version went back");
    }
    if is.cluster_version < was.cluster_version {
        texts.push("the cluster version went back");
    }
    if is.window_gen < was.window_gen {
        texts.push("the generation of the windows went back");
    }
    if is.min_writer_epoch < was.min_writer_epoch {
        texts.push("the least epoch of writers went back");
    }
    if is.windows != was.windows && is.window_gen == was.window_gen {
        texts.push("windows moved without a new generation");
    }
    if let (Ok(Some(was)), Ok(Some(is))) = (before.upgrade(), after.upgrade())
        && was.id == is.id
        && is.generation < was.generation
    {
        texts.push("the generation of the upgrade went back");
    }
    texts.into_iter().map(|text| fault(Invariant::Monotone, text)).collect()
}

pub(super) fn i17(before: &View, after: &View) -> Vec<Fault> {
    let rotation =
        |view: &View| view.findings.iter().filter(|finding| matches!(finding, Finding::Rotation { .. })).cloned().collect::<Vec<_>>();
    let rolls = before.control.upgrade.is_some() && after.control.upgrade.is_some();
    if rolls && rotation(before) != rotation(after) {
        vec![fault(Invariant::Authorities, "a rotation moved during an upgrade")]
    } else {
        Vec::new()
    }
}

pub(super) fn i18(facts: &Facts) -> Vec<Fault> {
    let back = facts.metadata.windows(2).filter(|pair| pair.first() > pair.last());
    back.map(|pair| fault(Invariant::Signed, format!("release metadata went back: {pair:?}"))).collect()
}

pub(super) fn i22(facts: &Facts) -> Vec<Fault> {
    let silent = facts.refused.iter().filter(|told| told.cure.is_empty());
    silent.map(|told| fault(Invariant::Rescue, format!("{} was refused without a cure", told.name))).collect()
}

pub(super) fn i24(facts: &Facts) -> Vec<Fault> {
    let broken = facts.plans.windows(2).filter_map(|pair| match pair {
        [one, next] if next.parent != one.id || next.generation <= one.generation => Some((one, next)),
        _ => None,
    });
    broken.map(|(one, next)| fault(Invariant::Chain, format!("{} does not follow {}", next.id, one.id))).collect()
}

/// Turns round and goes back, with every plan and state on the way held against the other invariants.
pub(super) fn i15(view: &View) -> Vec<Fault> {
    let Some(upgrade) = view.upgrade().ok().flatten() else { return Vec::new() };
    if upgrade.is_major() && view.control.cluster_version.major >= upgrade.target.major() {
        return Vec::new();
    }
    let from = upgrade.from.clone();
    let way = upgrade.way;
    let mut world = View { asked: None, control: back(&upgrade).write_to(&view.control), ..view.clone() };
    for _ in 0..MAX_LOOKS {
        let decision = decide(&world);
        let broken: Vec<Fault> = plan(&world, &decision).into_iter().chain(state(&world)).collect();
        if !broken.is_empty() {
            let text = broken.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            return vec![fault(Invariant::Return, format!("on the way back: {text}"))];
        }
        if decision.verdict() == Verdict::Done {
            // A major that was taken over is given back when its process has yet to be replaced.
            let moved = world.members.iter().filter(|member| is_there(&world, member)).all(|member| member.version.major() == from.major());
            let moved = moved || way == Way::TakeOver;
            return if moved { Vec::new() } else { vec![fault(Invariant::Return, "the way back ended elsewhere")] };
        }
        if !ideal(&mut world, &decision) {
            // Somebody has to decide; that is told, and it is a way.
            let named = decision.blocked.first().map(|block| format!("{} {}", block.code, block.cause));
            let waits = decision.waits.first().map(|wait| format!("{} {}", wait.code, wait.cause));
            return match named.or(waits) {
                Some(_) => Vec::new(),
                None => vec![fault(Invariant::Return, "the way back stands still without a word")],
            };
        }
    }
    vec![fault(Invariant::Return, "the way back has no end")]
}

/// Who is silent or refused goes nowhere; rescue takes it up when it is back.
fn is_there(world: &View, member: &Member) -> bool {
    let silent = world.now.since(member.last_seen) > world.policy.offline_after.0;
    !silent && !matches!(member.state, Condition::Quarantined | Condition::Missing)
}

fn back(upgrade: &Upgrade) -> Upgrade {
    upgrade.clone().turned(Direction::Down)
}
