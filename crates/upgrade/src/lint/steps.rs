//! Invariants of what the planner wants to do. Whatever holds for all steps of an answer holds for any of them.

use super::{Fault, Invariant, fault};
use crate::{
    barrier::{self, Move},
    plan::{Condition, Consent, Decision, Direction, Finding, Fleet, Member, Standing, Step, Tier, Told, Upgrade, View, Wave, Way},
    windows::{AGENT, AUTH, DRAINING, LEAF, PROXY, ROLES},
};
use std::collections::{BTreeMap, BTreeSet};
use types::Version;

/// A member, and the version that it is to install.
struct Ordered<'a> {
    member: &'a Member,
    version: &'a Version,
    digest: &'a str,
}

fn installs<'a>(view: &'a View, decision: &'a Decision) -> Vec<Ordered<'a>> {
    if !decision.next.iter().any(|step| matches!(step, Step::Install { .. })) {
        return Vec::new();
    }
    let by_id: BTreeMap<&str, &Member> = view.members.iter().map(|member| (member.id.as_str(), member)).collect();
    let one = |step: &'a Step| match step {
        Step::Install { member, version, digest, .. } => Some(Ordered { member: by_id.get(member.as_str())?, version, digest }),
        _ => None,
    };
    decision.next.iter().filter_map(one).collect()
}

fn is_closed(view: &View, role: &str, major: u64) -> bool {
    view.control.windows.get(role).is_some_and(|window| (window.lo, window.hi) == (major, major))
}

pub(super) fn i9(view: &View, decision: &Decision) -> Vec<Fault> {
    let Some(upgrade) = decision.upgrade.as_ref().filter(|_| decision.next.contains(&Step::Finalize)) else { return Vec::new() };
    let (policy, target) = (&view.policy, upgrade.target.major());
    let soaked = upgrade.soaks_since.is_some_and(|since| view.now >= since.plus(policy.soak.0));
    let young = view.backup.as_ref().is_some_and(|backup| backup.at >= view.now.minus(policy.backup_age.0));
    let drilled = view.backup.as_ref().and_then(|backup| backup.drill.as_ref()).is_some_and(|drill| drill.failed.is_none());
    let open = view.migrations.iter().filter(|m| m.to.major == target);
    let flipped = open.clone().all(|m| matches!(m.state, crate::migrate::State::Flipped | crate::migrate::State::Contracted));
    let checks = [
        (upgrade.direction == Direction::Up && upgrade.paused.is_none(), "turned round or paused"),
        (soaked, "the soak is not over"),
        (young || view.waived("backup").is_some(), "no backup of these days"),
        (drilled || view.waived("drill").is_some() || view.waived("backup").is_some(), "the backup was not drilled"),
        (upgrade.finalize.is_some() || policy.finalize == Consent::After, "nobody consented"),
        (flipped, "a migration is not flipped"),
        (ROLES.into_iter().all(|role| is_closed(view, role, target)), "a window is open to the major before"),
        (decision.blocked.is_empty(), "something stands against it"),
    ];
    checks.iter().filter(|(holds, _)| !holds).map(|(_, why)| fault(Invariant::NoReturn, format!("finalize, and {why}"))).collect()
}

pub(super) fn i11(view: &View, decision: &Decision) -> Vec<Fault> {
    let Some(upgrade) = &decision.upgrade else { return Vec::new() };
    let fleet = Fleet { view, upgrade };
    let taken: BTreeSet<&str> = installs(view, decision).iter().map(|order| order.member.id.as_str()).collect();
    let mut faults = Vec::new();
    // Of each group: all, ready, and ready members that are to be replaced. A wave that goes back was bad to begin with.
    let reverts = upgrade.paused.as_ref().is_some_and(|pause| pause.revert.is_some());
    let mut groups = BTreeMap::<(Tier, &str), (usize, usize, usize)>::new();
    let mut resources = BTreeMap::<&str, (usize, usize, usize)>::new();
    for tier in Tier::ALL {
        for member in fleet.tier(tier).filter(|member| member.state != Condition::Missing) {
            let (ready, goes) = (fleet.is_ready(member), taken.contains(member.id.as_str()));
            let count = |sum: &mut (usize, usize, usize)| {
                sum.0 += 1;
                sum.1 += usize::from(ready);
                sum.2 += usize::from(ready && goes);
            };
            count(groups.entry((tier, if tier == Tier::Auth { "" } else { &member.class })).or_default());
            // Who is gone serves nobody: the last one that is left is as good as one that always was alone.
            if tier == Tier::Agent && fleet.is_present(member) {
                member.serves.iter().for_each(|served| count(resources.entry(served).or_default()));
            }
        }
    }
    for ((tier, class), (all, ready, goes)) in groups {
        let least = match tier {
            Tier::Auth => view.policy.min_ready_auth(all),
            Tier::Proxy => view.policy.min_ready_proxies(all),
            Tier::Agent => 0,
        };
        if goes > 0 && !reverts && ready - goes < least {
            faults.push(fault(Invariant::Availability, format!("{} of {} {tier:?} {class} would stay, {least} must", ready - goes, all)));
        }
    }
    for (resource, (all, ready, goes)) in resources {
        if goes > 0 && !reverts && all > 1 && ready == goes {
            faults.push(fault(Invariant::Availability, format!("nobody would serve {resource}")));
        }
    }
    faults
}

pub(super) fn i12(view: &View, decision: &Decision) -> Vec<Fault> {
    let Some(upgrade) = decision.upgrade.as_ref().filter(|upgrade| upgrade.is_major()) else { return Vec::new() };
    let (goal, source) = (upgrade.goal().major(), upgrade.source().major());
    let mut faults = Vec::new();
    for order in installs(view, decision) {
        let Some(tier) = Tier::of(order.member) else { continue };
        let major = order.version.major();
        let admitted = view.control.windows.get(tier.window()).is_some_and(|window| window.contains(major));
        let takes_over = upgrade.way == Way::TakeOver && tier == Tier::Auth;
        if !admitted && !takes_over {
            faults
                .push(fault(Invariant::Order, format!("{} is sent to {major}, which {} does not admit", order.member.name, tier.window())));
        }
        let first = before(upgrade, tier);
        for role in first.iter().filter(|role| major == goal && !is_closed(view, role, goal)) {
            faults.push(fault(Invariant::Order, format!("{} moves before {role} is closed to {goal}", order.member.name)));
        }
    }
    for step in &decision.next {
        if let Step::Widen { role, major } = step {
            let first: &[&str] = match (upgrade.direction, role.as_str()) {
                (Direction::Up, AUTH) => &[],
                (Direction::Up, PROXY | DRAINING) => &[AUTH],
                (Direction::Up, AGENT) => &[AUTH, PROXY],
                (Direction::Up, _) => &[AUTH, PROXY],
                (Direction::Down, AUTH) => &[PROXY, AGENT, DRAINING, LEAF],
                (Direction::Down, PROXY) => &[AGENT, LEAF],
                (Direction::Down, _) => &[],
            };
            for other in first.iter().filter(|other| !is_closed(view, other, goal)) {
                faults.push(fault(Invariant::Order, format!("{role} opens to {major} before {other} is closed to {goal}")));
            }
            if *major != goal {
                faults.push(fault(Invariant::Order, format!("{role} opens to {major}, and the way is from {source} to {goal}")));
            }
        }
    }
    faults
}

/// What must be closed to the goal before a tier moves there.
fn before(upgrade: &Upgrade, tier: Tier) -> &'static [&'static str] {
    match (upgrade.way, upgrade.direction, tier) {
        (Way::Swap, ..) | (Way::TakeOver, Direction::Down, _) => &[],
        (Way::TakeOver | Way::Roll, Direction::Up, Tier::Auth) => &[],
        (Way::TakeOver | Way::Roll, Direction::Up, Tier::Proxy) => &[AUTH],
        (Way::TakeOver | Way::Roll, Direction::Up, Tier::Agent) => &[AUTH, PROXY],
        (Way::Roll, Direction::Down, Tier::Auth) => &[PROXY, AGENT],
        (Way::Roll, Direction::Down, Tier::Proxy) => &[AGENT],
        (Way::Roll, Direction::Down, Tier::Agent) => &[],
    }
}

pub(super) fn i13(view: &View, decision: &Decision) -> Vec<Fault> {
    let begins = decision.next.iter().find_map(|step| if let Step::Begin { upgrade } = step { Some(upgrade) } else { None });
    let Some(upgrade) = begins else { return Vec::new() };
    let level = view.control.cluster_version.major;
    let mut texts = Vec::new();
    if !(level..=level + 1).contains(&upgrade.target.major()) {
        texts.push(format!("from cluster version {level} to {}", upgrade.target));
    }
    let release = view.release(&upgrade.target);
    if release.is_some_and(|release| release.denied_sources.contains(&upgrade.from)) {
        texts.push(format!("{} denies {}", upgrade.target, upgrade.from));
    }
    if release.and_then(|release| release.min_source.as_ref()).is_some_and(|least| upgrade.from.release_order(least).is_lt()) {
        texts.push(format!("{} is too old for {}", upgrade.from, upgrade.target));
    }
    let passed = |version: &Version| version.release_order(&upgrade.from).is_gt() && version.release_order(&upgrade.target).is_lt();
    texts.extend(
        view.releases.iter().filter(|r| r.visit && passed(&r.version)).map(|release| format!("{} is passed over", release.version)),
    );
    texts.into_iter().map(|text| fault(Invariant::Sequence, text)).collect()
}

pub(super) fn i17(view: &View, decision: &Decision) -> Vec<Fault> {
    let begins = decision.next.iter().any(|step| matches!(step, Step::Begin { .. }));
    let rotates = view.findings.iter().any(|finding| matches!(finding, Finding::Rotation { .. }));
    if begins && rotates { vec![fault(Invariant::Authorities, "an upgrade begins during a rotation")] } else { Vec::new() }
}

pub(super) fn i18(view: &View, decision: &Decision) -> Vec<Fault> {
    let genuine =
        |order: &Ordered<'_>| view.release(order.version).is_some_and(|release| release.verified && release.digest == order.digest);
    let bad = installs(view, decision).into_iter().filter(|order| !genuine(order));
    bad.map(|order| fault(Invariant::Signed, format!("{} is sent to {}, which is not genuine", order.member.name, order.version))).collect()
}

pub(super) fn i19(view: &View, decision: &Decision) -> Vec<Fault> {
    let Some(upgrade) = decision.upgrade.as_ref() else { return Vec::new() };
    let orders = installs(view, decision);
    if orders.is_empty() || upgrade.paused.is_some() {
        return Vec::new();
    }
    let fleet = Fleet { view, upgrade };
    let mut faults = Vec::new();
    let tiers: BTreeSet<Tier> = orders.iter().filter_map(|order| Tier::of(order.member)).collect();
    for tier in tiers {
        let waves = fleet.waves(tier);
        let wave_of: BTreeMap<&str, Wave> =
            waves.iter().flat_map(|(wave, members)| members.iter().map(|member| (member.id.as_str(), *wave))).collect();
        let begun: BTreeSet<Wave> = orders.iter().filter_map(|order| wave_of.get(order.member.id.as_str()).copied()).collect();
        let Some(last) = begun.last() else { continue };
        for (wave, members) in waves.iter().filter(|(wave, _)| *wave < last) {
            for member in members {
                let standing = fleet.standing(member, *wave);
                let open = matches!(standing, Standing::Unproved(_) | Standing::Moving)
                    || (matches!(standing, Standing::Idle | Standing::Unwell) && !member.by_hand);
                if open {
                    faults.push(fault(Invariant::Blast, format!("{last} begins while {} of {wave} is {standing:?}", member.name)));
                }
            }
        }
        if tier == Tier::Agent {
            let mut away = BTreeMap::<&str, usize>::new();
            let taken: BTreeSet<&str> = orders.iter().map(|order| order.member.id.as_str()).collect();
            // Where more are away already, as when two who act met, it counts that no more are taken.
            let fresh = orders.iter().filter(|order| !fleet.is_replacing(order.member));
            let classes: BTreeSet<&str> = fresh.map(|order| order.member.class.as_str()).collect();
            for member in fleet.tier(tier).filter(|member| fleet.is_replacing(member) || taken.contains(member.id.as_str())) {
                *away.entry(member.class.as_str()).or_default() += 1;
            }
            let over = away.iter().filter(|(class, count)| **count > view.policy.in_flight && classes.contains(*class));
            faults.extend(over.map(|(class, count)| fault(Invariant::Blast, format!("{count} of class {class} would be away"))));
        }
        let mut serving = BTreeSet::new();
        for order in orders.iter().filter(|order| Tier::of(order.member) == Some(Tier::Agent)) {
            for served in &order.member.serves {
                if !serving.insert(served) {
                    faults.push(fault(Invariant::Blast, format!("two that serve {served} move at once")));
                }
            }
        }
    }
    faults
}

/// Closing a tier is the verdict over it: everybody who is there was walked through on the run that he is on.
pub(super) fn i20(view: &View, decision: &Decision) -> Vec<Fault> {
    let Some(upgrade) = decision.upgrade.as_ref().filter(|upgrade| upgrade.is_major()) else { return Vec::new() };
    let fleet = Fleet { view, upgrade };
    let mut faults = Vec::new();
    for step in &decision.next {
        let Step::Narrow { role, lo, .. } = step else { continue };
        let settles = upgrade.direction == Direction::Up && *lo == upgrade.from.major();
        let Some(tier) = Tier::ALL.into_iter().find(|tier| tier.window() == role).filter(|_| !settles) else { continue };
        for member in fleet.tier(tier).filter(|member| member.state == Condition::Active && fleet.is_present(member)) {
            let proved = member.path.as_ref().is_some_and(|walk| walk.boot == member.boot && walk.at >= member.started);
            // A directive elsewhere that failed has left the run as it was.
            let stays = |told: &Told| told.failed.is_some() && !upgrade.is_goal(&told.version);
            let told = member.told.as_ref().is_none_or(|told| told.boot != member.boot || stays(told));
            let untouched = upgrade.direction == Direction::Down && member.started < upgrade.begun;
            let judged = untouched || (proved && told) || excused(view, tier, member);
            if upgrade.is_goal(&member.version) && !judged {
                faults.push(fault(Invariant::Fresh, format!("{role} closes, and nobody walked through {} since it started", member.name)));
            }
        }
    }
    faults
}

/// Its failure is known, and below the stop count or waived.
fn excused(view: &View, tier: Tier, member: &Member) -> bool {
    let failed = member.path.as_ref().is_some_and(|walk| walk.boot == member.boot && walk.failed.is_some());
    let late = member.told.as_ref().is_some_and(|told| view.now > told.at.plus(view.policy.deadline.0));
    failed || late || view.waived(&format!("health:{}", tier.window())).is_some()
}

pub(super) fn i21(view: &View, decision: &Decision) -> Vec<Fault> {
    let mut faults = Vec::new();
    let moves: Vec<Move> = decision.next.iter().filter_map(as_move).collect();
    if moves.len() > 1 || (!moves.is_empty() && decision.next.iter().any(|step| matches!(step, Step::Install { .. }))) {
        faults.push(fault(Invariant::Idempotent, "a window moves together with something that depends on it"));
    }
    let documents = if moves.is_empty() { Vec::new() } else { view.documents() };
    for wanted in moves {
        let once = barrier::change(&view.control, &wanted, &view.seats, &documents);
        match once.as_ref().map(|once| barrier::change(once, &wanted, &view.seats, &documents)) {
            Ok(Ok(twice)) if once.as_ref() == Ok(&twice) => {}
            // After the first the seats have yet to acknowledge; what counts is that nothing else comes of the second.
            Ok(Err(barrier::Refused::Behind { .. })) => {}
            Ok(Ok(_) | Err(_)) => faults.push(fault(Invariant::Idempotent, format!("{wanted:?} done twice is not {wanted:?}"))),
            Err(refused) => faults.push(fault(Invariant::Idempotent, format!("{wanted:?} is refused: {refused}"))),
        }
    }
    let mut members = BTreeSet::new();
    if let Some(twice) = installs(view, decision).iter().find(|order| !members.insert(&order.member.id)) {
        faults.push(fault(Invariant::Idempotent, format!("{} is told twice", twice.member.name)));
    }
    faults
}

fn as_move(step: &Step) -> Option<Move> {
    match step {
        Step::Widen { role, major } => Some(Move::Widen { role: role.clone(), major: *major }),
        Step::Narrow { role, lo, hi } => Some(Move::Narrow { role: role.clone(), lo: *lo, hi: *hi }),
        _ => None,
    }
}

pub(super) fn i23(view: &View, decision: &Decision) -> Vec<Fault> {
    let mut faults = Vec::new();
    let wanted = decision.upgrade.is_some();
    if wanted && decision.next.is_empty() && decision.waits.is_empty() && decision.blocked.is_empty() {
        faults.push(fault(Invariant::Progress, format!("nothing to do, to wait for, or against it, in stage {}", decision.stage.as_str())));
    }
    let told = decision.waits.iter().map(|wait| (wait.code.as_str(), &wait.cause, &wait.cure));
    for (code, cause, cure) in told.chain(decision.blocked.iter().map(|block| (block.code.as_str(), &block.cause, &block.cure))) {
        if cause.is_empty() || cure.is_empty() {
            faults.push(fault(Invariant::Progress, format!("{code} has no cause or no cure")));
        }
    }
    let stale = view.now.since(view.read_at) > view.policy.fresh.0;
    if stale && !decision.next.is_empty() {
        faults.push(fault(Invariant::Fresh, "a step on a reading that is too old"));
    }
    faults
}
