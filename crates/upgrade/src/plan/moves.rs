//! Moving the members of one tier: wave by wave, as many at once as may be away, each proved before the next wave begins.
//!
//! A wave that has failures above its stop count pauses the upgrade. A single failure below it stays behind, is told again, and is in
//! the way only when the window closes. Members without an updater are named with what to do; those who share a duty with them wait.

use crate::{
    inventory::name_hosts,
    plan::{
        decide::Draft,
        fleet::{Fleet, Standing, Tier, Wave, rank},
        health::{Count, Verdict},
        outcome::{Bar, Block, Gate, Hint, Step},
        policy::OnFailure,
        route::block,
        view::{Condition, Member},
    },
};
use std::collections::BTreeMap;
use types::{Time, Ttl};

/// The members of one wave, sorted by how they stand.
#[derive(Default)]
struct Sorted<'a> {
    count: Count,
    /// To be told, in this order.
    candidates: Vec<(&'a Member, u32)>,
    by_hand: Vec<&'a Member>,
    moving: Vec<&'a Member>,
    /// Not walked through yet, and from when on that counts.
    unproved: Vec<(&'a Member, Time)>,
    ailing: Vec<(&'a Member, String)>,
    /// Failed, and told again at that time.
    resting: Vec<(&'a Member, Time)>,
    given_up: Vec<(&'a Member, String)>,
}

impl Sorted<'_> {
    /// Whether everybody of the wave is where he will be.
    fn is_settled(&self) -> bool {
        self.candidates.is_empty()
            && self.by_hand.is_empty()
            && self.moving.is_empty()
            && self.unproved.is_empty()
            && self.resting.is_empty()
    }

    fn began(&self) -> bool {
        self.count.passed + self.count.failed > 0 || !self.moving.is_empty() || !self.unproved.is_empty() || !self.resting.is_empty()
    }
}

/// Moves a tier; true when everybody who can be moved is, and is well.
pub(crate) fn tier(draft: &mut Draft<'_>, tier: Tier) -> bool {
    for (wave, members) in draft.fleet.waves(tier) {
        let sorted = sort(draft.fleet, wave, &members);
        draft.decision.wave = Some(wave);
        if !sorted.began() && sorted.is_settled() {
            continue;
        }
        match judge(draft, wave, &sorted) {
            Verdict::Fail => return false,
            Verdict::Inconclusive if sorted.count.failed > 0 && !draft.decision.waits.is_empty() => return false,
            Verdict::Pass | Verdict::Inconclusive => {}
        }
        if !sorted.is_settled() {
            work(draft, wave, &sorted);
            return false;
        }
        left_behind(draft, wave, &sorted);
    }
    draft.decision.wave = None;
    true
}

fn sort<'a>(fleet: Fleet<'a>, wave: Wave, members: &[&'a Member]) -> Sorted<'a> {
    let (policy, now) = (&fleet.view.policy, fleet.view.now);
    let mut sorted = Sorted::default();
    for &member in members {
        match fleet.standing(member, wave) {
            Standing::Absent => continue,
            Standing::Proved => sorted.count.passed += 1,
            Standing::Unproved(from) => sorted.unproved.push((member, from)),
            Standing::Ailing(why) => sorted.ailing.push((member, why)),
            Standing::Moving => sorted.moving.push(member),
            Standing::Idle | Standing::Unwell if member.by_hand => sorted.by_hand.push(member),
            Standing::Idle | Standing::Unwell => sorted.candidates.push((member, 1)),
            Standing::Failed { why, attempts, .. } if attempts >= policy.retries => sorted.given_up.push((member, why)),
            Standing::Failed { attempts, at, .. } => {
                let again = at.plus(policy.retry_after.0);
                if now < again {
                    sorted.resting.push((member, again));
                } else if fleet.is_present(member) {
                    sorted.candidates.push((member, attempts.saturating_add(1)));
                } else {
                    sorted.given_up.push((member, "silent since it was told".into()));
                }
            }
        }
        sorted.count.members += 1;
    }
    sorted.count.failed = sorted.ailing.len() + sorted.given_up.len();
    // Who is told again is not given up; many at once are no accident.
    let retried = sorted.resting.len() + sorted.candidates.iter().filter(|(_, attempt)| *attempt > 1).count();
    if retried >= sorted.count.stop_at(policy.background).max(2) {
        sorted.count.failed += retried;
    }
    sorted
}

/// Holds a wave's failures against those of members that were not moved.
fn judge(draft: &mut Draft<'_>, wave: Wave, sorted: &Sorted<'_>) -> Verdict {
    let policy = &draft.view.policy;
    let mut count = sorted.count;
    if count.failed == 0 {
        return count.verdict(policy.background);
    }
    let check = format!("health:{}", wave.tier.window());
    if draft.view.waived(&check).is_some() {
        return Verdict::Pass;
    }
    let missing = control(draft, wave, sorted, &mut count);
    if !missing.is_empty() {
        let names = missing.iter().map(|member| member.name.clone()).collect::<Vec<_>>();
        let cause = format!("{} of {} in {wave} failed; members that were not moved are tried too", count.failed, count.members);
        draft.wait_for(Gate::Verdict, names, None, cause, "nothing to do; it takes some seconds");
        for member in missing {
            draft.step(Step::Walk { member: member.id.clone(), name: member.name.clone(), boot: member.boot.clone() });
        }
        return Verdict::Inconclusive;
    }
    let verdict = count.verdict(policy.background);
    match verdict {
        Verdict::Pass => {}
        Verdict::Inconclusive if count.stop_at(policy.background) <= count.members => {}
        Verdict::Inconclusive => {
            let cause = format!(
                "{} of {} in {wave} failed, and {} of {} that were not moved: too much is wrong to tell",
                count.failed, count.members, count.control_failed, count.control
            );
            let cure = format!("mend what is wrong with the others; or: tctl upgrade waive {check} --reason=…");
            draft.wait_for(Gate::Verdict, failed_names(sorted), None, cause, cure);
        }
        Verdict::Fail => fail(draft, wave, sorted, &count, check),
    }
    verdict
}

fn fail(draft: &mut Draft<'_>, wave: Wave, sorted: &Sorted<'_>, count: &Count, check: String) {
    let policy = &draft.view.policy;
    let who = name_hosts(sorted.ailing.iter().chain(&sorted.given_up).map(|(member, why)| format!("{} ({why})", member.name)));
    let who = if who.is_empty() { name_hosts(sorted.resting.iter().map(|(member, _)| member.name.clone())) } else { who };
    let stop = count.stop_at(policy.background);
    let reason = format!("{wave}: {} of {} failed, stop at {stop}: {who}", count.failed, count.members);
    draft.block(Block {
        members: failed_names(sorted),
        waiver: Some(check.clone()),
        ..block(
            Bar::Unhealthy,
            reason.clone(),
            format!("tctl upgrade rollback; or mend them and: tctl upgrade resume; or: tctl upgrade waive {check} --reason=…"),
        )
    });
    if draft.upgrade.paused.is_none() {
        let revert = (policy.on_failure == OnFailure::PauseAndRevert).then_some(wave);
        draft.step(Step::Pause { reason, revert });
    }
}

fn failed_names(sorted: &Sorted<'_>) -> Vec<String> {
    sorted.ailing.iter().chain(&sorted.given_up).map(|(member, _)| member.name.clone()).collect()
}

/// Counts the control cohort; returns who is to be walked through first.
fn control<'a>(draft: &Draft<'a>, wave: Wave, sorted: &Sorted<'_>, count: &mut Count) -> Vec<&'a Member> {
    let (fleet, policy, now) = (draft.fleet, &draft.view.policy, draft.view.now);
    let like_them = |member: &&Member| {
        let mut failed =
            sorted.ailing.iter().chain(&sorted.given_up).map(|(member, _)| *member).chain(sorted.resting.iter().map(|(member, _)| *member));
        wave.tier == Tier::Auth || failed.any(|other| other.class == member.class)
    };
    let unmoved = |member: &&Member| {
        !draft.upgrade.is_goal(&member.version)
            && fleet.is_present(member)
            && !fleet.is_replacing(member)
            && member.state == Condition::Active
    };
    let mut cohort: Vec<&Member> = fleet.tier(wave.tier).filter(unmoved).filter(like_them).collect();
    cohort.sort_by_key(|member| (rank(&draft.upgrade.id, member), &member.id));
    let fresh =
        |member: &&Member| member.path.as_ref().is_some_and(|walk| walk.boot == member.boot && now.since(walk.at) <= policy.deadline.0);
    let (walked, mut others): (Vec<&Member>, Vec<&Member>) = cohort.into_iter().partition(fresh);
    count.control = walked.len();
    count.control_failed = walked.iter().filter(|member| member.path.as_ref().is_some_and(|walk| walk.failed.is_some())).count();
    others.truncate(policy.control.saturating_sub(walked.len()));
    others
}

/// Tells who may be told, walks through who has arrived, and names who is waited for.
fn work<'a>(draft: &mut Draft<'a>, wave: Wave, sorted: &Sorted<'a>) {
    let view = draft.view;
    for (member, from) in &sorted.unproved {
        if view.now >= *from {
            draft.step(Step::Walk { member: member.id.clone(), name: member.name.clone(), boot: member.boot.clone() });
        }
    }
    let (due, early): (Vec<_>, Vec<_>) = sorted.unproved.iter().partition(|(_, from)| view.now >= *from);
    let names = |of: &[&(&Member, Time)]| of.iter().map(|(member, _)| member.name.clone()).collect::<Vec<_>>();
    if !due.is_empty() {
        let cause = format!("a user's path is walked through {}", name_hosts(names(&due).into_iter()));
        draft.wait_for(Gate::Walk, names(&due), None, cause, "nothing to do; it takes some seconds");
    }
    if !early.is_empty() {
        let until = early.iter().map(|(_, from)| *from).max();
        let cause = format!("{wave}: {} must serve for a while first", name_hosts(names(&early).into_iter()));
        draft.wait_for(Gate::Bake, names(&early), until, cause, "nothing to do");
    }
    if !sorted.moving.is_empty() {
        let names: Vec<String> = sorted.moving.iter().map(|member| member.name.clone()).collect();
        let until = sorted.moving.iter().filter_map(|member| member.told.as_ref()).map(|told| told.at.plus(view.policy.deadline.0)).max();
        let cause = format!("{wave}: {} of {} on their way: {}", names.len(), sorted.count.members, name_hosts(names.iter().cloned()));
        draft.wait_for(Gate::Moving, names, until, cause, "nothing to do; who does not come back in time counts as failed");
    }
    if !sorted.resting.is_empty() {
        let names: Vec<String> = sorted.resting.iter().map(|(member, _)| member.name.clone()).collect();
        let until = sorted.resting.iter().map(|(_, again)| *again).max();
        let cause = format!("{wave}: {} failed and told again", name_hosts(names.iter().cloned()));
        draft.wait_for(Gate::Retry, names, until, cause, "see what its updater reports: tctl inventory ls");
    }
    tell(draft, wave, sorted);
}

/// How many more may be away at a time.
struct Spare<'a> {
    fleet: Fleet<'a>,
    tier: Tier,
    /// Of each group: how many may be taken yet.
    left: BTreeMap<&'a str, usize>,
    /// Of each resource: members that serve it and stay.
    serving: BTreeMap<&'a str, (usize, usize)>,
}

impl<'a> Spare<'a> {
    fn of(fleet: Fleet<'a>, tier: Tier) -> Self {
        let policy = &fleet.view.policy;
        let (mut left, mut serving) = (BTreeMap::new(), BTreeMap::<&str, (usize, usize)>::new());
        let mut groups = BTreeMap::<&str, (usize, usize, usize)>::new();
        for member in fleet.tier(tier) {
            let group = groups.entry(group(tier, member)).or_default();
            // Who fell silent on its way is away all the same.
            group.2 += usize::from(fleet.is_replacing(member));
            if member.state == Condition::Missing {
                continue;
            }
            let ready = fleet.is_ready(member);
            group.0 += 1;
            group.1 += usize::from(ready);
            // Who is gone serves nobody: the one that is left is the only one, and moves like one that always was.
            for served in member.serves.iter().filter(|_| fleet.is_present(member)) {
                let (all, stay) = serving.entry(served).or_default();
                *all += 1;
                *stay += usize::from(ready);
            }
        }
        for (name, (all, ready, replacing)) in groups {
            let spare = match tier {
                Tier::Auth => ready.saturating_sub(policy.min_ready_auth(all)),
                Tier::Proxy => ready.saturating_sub(policy.min_ready_proxies(all)),
                Tier::Agent => policy.in_flight.saturating_sub(replacing),
            };
            left.insert(name, spare);
        }
        Self { fleet, tier, left, serving }
    }

    /// Takes a member away, if it may be away.
    fn take(&mut self, member: &'a Member) -> bool {
        let ready = self.fleet.is_ready(member);
        // Who is being replaced already was counted when that began.
        let costs = usize::from(if self.tier == Tier::Agent { !self.fleet.is_replacing(member) } else { ready });
        let left = self.left.entry(group(self.tier, member)).or_default();
        let alone =
            |served: &String| self.serving.get(served.as_str()).is_some_and(|(all, stay)| *all > 1 && stay - usize::from(ready) == 0);
        if *left < costs || (self.tier == Tier::Agent && member.serves.iter().any(alone)) {
            return false;
        }
        *left -= costs;
        for served in &member.serves {
            if let Some((_, stay)) = self.serving.get_mut(served.as_str()) {
                *stay -= usize::from(ready);
            }
        }
        true
    }
}

fn group(tier: Tier, member: &Member) -> &str {
    match tier {
        Tier::Auth => "",
        Tier::Proxy | Tier::Agent => &member.class,
    }
}

fn tell<'a>(draft: &mut Draft<'a>, wave: Wave, sorted: &Sorted<'a>) {
    let mut spare = Spare::of(draft.fleet, wave.tier);
    let mut told = 0;
    for (member, attempt) in &sorted.candidates {
        if spare.take(member) {
            told += 1;
            let step = install(draft, member, *attempt, false);
            draft.step(step);
        }
    }
    let busy = told > 0 || !sorted.moving.is_empty() || !sorted.unproved.is_empty() || !sorted.resting.is_empty();
    let mut asked = Vec::new();
    // People are asked last, so that nobody waits for them who could be moved meanwhile.
    if sorted.candidates.is_empty() {
        asked.extend(sorted.by_hand.iter().filter(|member| spare.take(member)).copied());
    }
    if !asked.is_empty() {
        let names: Vec<String> = asked.iter().map(|member| member.name.clone()).collect();
        let goal = draft.upgrade.goal();
        let cause = format!(
            "{} without an updater: {}",
            if names.len() == 1 { "a member is" } else { "members are" },
            name_hosts(names.iter().cloned())
        );
        draft.wait_for(Gate::ByHand, names, None, cause, format!("on each: install {goal}, then: systemctl restart lockgate"));
    } else if !busy {
        let names: Vec<String> =
            sorted.candidates.iter().map(|(member, _)| *member).chain(sorted.by_hand.iter().copied()).map(|m| m.name.clone()).collect();
        let cause = format!(
            "{wave}: nobody can be spared; {} held back: {}",
            if names.len() == 1 { "is" } else { "are" },
            name_hosts(names.iter().cloned())
        );
        draft.wait_for(Gate::Availability, names, None, cause, "bring those back that are not ready: tctl inventory ls");
    }
}

fn install(draft: &Draft<'_>, member: &Member, attempt: u32, back: bool) -> Step {
    let version = if back { draft.upgrade.source() } else { draft.upgrade.goal() }.clone();
    let digest = draft.view.release(&version).map(|release| release.digest.clone()).unwrap_or_default();
    let (id, name, boot) = (member.id.clone(), member.name.clone(), member.boot.clone());
    // Sessions run to their end in the old process, as long as a certificate lasts.
    Step::Install { member: id, name, version, digest, boot, attempt, drain: Ttl::hours(12) }
}

/// Takes the members of a wave back to where they came from, while the upgrade is paused.
pub(crate) fn revert(draft: &mut Draft<'_>, wave: Wave) {
    let members = draft.fleet.waves(wave.tier).remove(&wave).unwrap_or_default();
    let source = draft.upgrade.source().clone();
    // Somebody turned round meanwhile, or the window closed: nobody is sent to where he would be refused.
    if draft.upgrade.is_major() && !draft.admits(wave.tier.window(), source.major()) {
        return;
    }
    for member in members {
        let told_back = member.told.as_ref().is_some_and(|told| told.version == source && told.failed.is_none());
        let away = draft.upgrade.is_goal(&member.version)
            || member.told.as_ref().is_some_and(|told| told.version == *draft.upgrade.goal() && told.failed.is_none());
        if away && !told_back && !member.by_hand {
            let step = install(draft, member, 1, true);
            draft.step(step);
        }
    }
}

/// A wave is over without some of its members.
fn left_behind(draft: &mut Draft<'_>, wave: Wave, sorted: &Sorted<'_>) {
    let failed = sorted.ailing.iter().chain(&sorted.given_up);
    let names = name_hosts(failed.map(|(member, why)| format!("{} ({why})", member.name)));
    if !names.is_empty() {
        draft.note(Hint::Failed, format!("{wave}: left behind for now: {names}"));
    }
}
