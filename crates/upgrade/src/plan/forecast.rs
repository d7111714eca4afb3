//! What will come: the same decision asked again and again, in a world where every step succeeds and every wait ends.
//!
//! A plan that would come to stand somewhere is told before it begins. How long data takes is what the rehearsal took, never a guess; what
//! nobody has measured is left out.

use crate::plan::{
    decide::decide,
    ideal::ideal,
    outcome::{Ahead, Bar, Decision, Gate, Hint, Note, Outcome, Stage, Step, Wait},
    policy::Consent,
    record::{Direction, Upgrade, Way},
    route::block,
    view::{Member, View},
};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use types::{ResourceName, Ttl};

/// More looks than any plan that makes progress needs.
const MAX_LOOKS: usize = 600;
/// From the directive to the new process, for a member that has the release already.
const RESTART: Duration = Duration::from_secs(60);

/// The decision of now, and what follows from it.
pub fn plan(view: &View) -> Outcome {
    let mut decision = decide(view);
    let proposed = view.control.upgrade.is_none();
    let mut forecast = Vec::new();
    if decision.blocked.is_empty() && decision.upgrade.is_some() && !(proposed && decision.next.is_empty()) {
        let seen = ahead(view, &decision);
        for text in seen.later {
            decision.notes.push(Note { code: Hint::Later, text });
        }
        if let Some((code, cause, cure)) = seen.end {
            decision.blocked.push(block(Bar::NoForecast, format!("the plan would come to stand: {code} {cause}"), cure));
            decision.next.clear();
        }
        forecast = seen.rows;
    }
    Outcome { id: id(&decision, &forecast), decision, forecast }
}

/// Of what somebody reads: not of the time at which he reads it.
fn id(decision: &Decision, forecast: &[Ahead]) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| hash.update(format!("{}:{text}", text.len()));
    if let Some(upgrade) = &decision.upgrade {
        add(&format!("{} {} {:?} {:?} {}", upgrade.from, upgrade.target, upgrade.direction, upgrade.way, upgrade.generation));
    }
    for ahead in forecast {
        // Hosts come and go while somebody reads: how many there are of them is no other plan.
        let what = if ahead.stage == Stage::Agents { "" } else { &ahead.what };
        add(&format!("{} {what}", ahead.stage.as_str()));
    }
    for block in &decision.blocked {
        add(&format!("{} {}", block.code, block.members.join(" ")));
    }
    let short: String = hash.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    match &decision.upgrade {
        Some(upgrade) => format!("{short}-{}", upgrade.goal().major()),
        None => short,
    }
}

/// A code, its cause and its cure.
type End = (String, String, String);

/// One stage as it adds up.
#[derive(Default)]
struct Sum {
    moved: BTreeMap<ResourceName, (String, bool)>,
    takes: Duration,
}

/// What was seen of the time to come.
struct Seen {
    rows: Vec<Ahead>,
    /// What somebody will be asked about on the way.
    later: Vec<String>,
    /// Where it would stand for ever.
    end: Option<End>,
}

fn ahead(view: &View, first: &Decision) -> Seen {
    let mut world = view.clone();
    // A wave at a time is enough to see; how long it takes is counted below.
    let in_flight = world.policy.in_flight.max(1);
    world.policy.in_flight = usize::MAX;
    let mut later = Vec::new();
    let (mut rows, mut decision, mut end) = (BTreeMap::<usize, (Stage, Sum)>::new(), first.clone(), None);
    let mut order: Vec<Stage> = Vec::new();
    let mut last = first.upgrade.clone();
    for look in 0.. {
        if decision.upgrade.is_none() {
            break;
        }
        last.clone_from(&decision.upgrade);
        let at = order.iter().position(|stage| *stage == decision.stage).unwrap_or_else(|| {
            order.push(decision.stage);
            order.len() - 1
        });
        let sum = &mut rows.entry(at).or_insert_with(|| (decision.stage, Sum::default())).1;
        let before = world.now;
        if let Some(outside) = decision.blocked.iter().find(|block| block.code == Bar::CannotClose) {
            later.push(format!("in stage {} somebody will be asked: {} {}", decision.stage.as_str(), outside.code, outside.cause));
            // He will bring them back, or let them go.
            let count = world.members.len();
            world.members.retain(|member| !outside.members.contains(&member.name));
            if world.members.len() < count {
                decision = decide(&world);
                continue;
            }
        }
        let stands =
            if look >= MAX_LOOKS { Some(("no end".into(), "it goes on and on".into(), "report this".into())) } else { stands(&decision) };
        if stands.is_some() {
            end = stands;
            break;
        }
        let batch = decision.next.iter().filter(|step| matches!(step, Step::Install { .. })).count();
        for step in &decision.next {
            if let Step::Install { member, name, .. } = step {
                sum.moved.insert(member.clone(), (name.clone(), decision.wave.is_some_and(|wave| wave.number == 0)));
            }
        }
        for wait in decision.waits.iter().filter(|wait| wait.code == Gate::ByHand) {
            for member in world.members.iter().filter(|member| wait.members.contains(&member.name)) {
                sum.moved.insert(member.id.clone(), (member.name.clone(), false));
            }
        }
        if decision.stage == Stage::Data {
            let seconds = world.backup.as_ref().and_then(|backup| backup.rehearsal.as_ref()).map_or(0, |rehearsal| rehearsal.seconds);
            sum.takes = Duration::from_secs(seconds);
        }
        if !ideal(&mut world, &decision) {
            end = Some(("no end".into(), format!("nothing follows in stage {}", decision.stage.as_str()), "report this".into()));
            break;
        }
        let rounds = u32::try_from(batch.div_ceil(in_flight)).unwrap_or(u32::MAX);
        sum.takes += world.now.since(before) + RESTART.saturating_mul(rounds);
        decision = decide(&world);
    }
    Seen { rows: table(view, &order, &rows, last.as_ref()), later, end }
}

fn stands(decision: &Decision) -> Option<End> {
    if let Some(block) = decision.blocked.first() {
        return Some((block.code.to_string(), block.cause.clone(), block.cure.clone()));
    }
    let stuck = |wait: &&Wait| matches!(wait.code, Gate::Availability | Gate::Verdict | Gate::Stale | Gate::NoAuth);
    let wait = decision.waits.iter().find(stuck).filter(|_| decision.next.is_empty())?;
    Some((wait.code.to_string(), wait.cause.clone(), wait.cure.clone()))
}

fn table(view: &View, order: &[Stage], rows: &BTreeMap<usize, (Stage, Sum)>, upgrade: Option<&Upgrade>) -> Vec<Ahead> {
    let Some(upgrade) = upgrade else { return Vec::new() };
    let shown = order.iter().enumerate().filter(|(_, stage)| !matches!(stage, Stage::Preflight | Stage::Done));
    shown
        .filter_map(|(at, stage)| {
            let (_, sum) = rows.get(&at)?;
            // A stage in which nobody moves is not worth a line.
            let empty = match stage {
                Stage::Proxies | Stage::Agents => sum.moved.is_empty(),
                Stage::Auth => sum.moved.is_empty() && upgrade.way != Way::Roll && upgrade.direction == Direction::Up,
                Stage::Leaves => view.leaves.is_empty(),
                Stage::Data => view.migrations.is_empty(),
                Stage::Preflight | Stage::Backup | Stage::CloseAuth | Stage::Soak | Stage::Finalize | Stage::Done => false,
            };
            if empty {
                return None;
            }
            let members = if *stage == Stage::Leaves { view.leaves.len() } else { sum.moved.len() };
            let back = *stage != Stage::Finalize;
            Some(Ahead {
                stage: *stage,
                members,
                what: what(view, upgrade, *stage, sum),
                takes: Ttl(sum.takes),
                back,
                then: then(view, upgrade, *stage),
            })
        })
        .collect()
}

fn what(view: &View, upgrade: &Upgrade, stage: Stage, sum: &Sum) -> String {
    let down = upgrade.direction == Direction::Down;
    let to = upgrade.goal().major();
    match stage {
        Stage::Backup if upgrade.is_major() => "backup, restore drill, rehearse".into(),
        Stage::Backup => "backup, restore drill".into(),
        Stage::Auth if upgrade.way == Way::TakeOver && down => format!("auth: give back to {to}"),
        Stage::Auth if upgrade.way == Way::TakeOver => format!("auth: {to} takes over"),
        Stage::Auth => {
            let mut names: Vec<&(String, bool)> = sum.moved.values().collect();
            names.sort_by_key(|(name, canary)| (!canary, name.clone()));
            let shown = names.iter().take(3).map(|(name, canary)| if *canary { format!("{name} canary") } else { name.clone() });
            let mut text = shown.collect::<Vec<_>>().join(", ");
            if names.len() > 3 {
                text = format!("{text} and {} more", names.len() - 3);
            }
            if text.is_empty() { format!("auth: open to {to}") } else { format!("auth: {text}") }
        }
        Stage::CloseAuth => format!("close auth to {}", upgrade.source().major()),
        Stage::Data if down => "data: back to the old form".into(),
        Stage::Data => "reshape data (online)".into(),
        Stage::Proxies => {
            let mut regions = BTreeMap::<&str, usize>::new();
            for member in moved(view, sum) {
                *regions.entry(member.class.as_str()).or_default() += 1;
            }
            let one = |(region, count): (&&str, &usize)| {
                let split = if *count > 1 { format!("1+{}", count - 1) } else { "1".into() };
                if region.is_empty() { split } else { format!("{region} {split}") }
            };
            let text = regions.iter().take(3).map(one).collect::<Vec<_>>().join(", ");
            if text.is_empty() { "proxies".into() } else { format!("proxies: {text}") }
        }
        Stage::Agents => {
            let classes: BTreeSet<&str> = moved(view, sum).map(|member| member.class.as_str()).collect();
            let plural = if classes.len() == 1 { "class" } else { "classes" };
            format!("agents: {} {plural}, {} waves", classes.len(), view.policy.waves.len() + 1)
        }
        Stage::Leaves => {
            let names = view.leaves.iter().take(3).map(|leaf| leaf.name.as_str()).collect::<Vec<_>>().join(", ");
            format!("leaves: {names}{}", if view.leaves.len() > 3 { ", …" } else { "" })
        }
        Stage::Soak => "soak".into(),
        Stage::Finalize => "finalize".into(),
        Stage::Preflight | Stage::Done => String::new(),
    }
}

fn moved<'a>(view: &'a View, sum: &'a Sum) -> impl Iterator<Item = &'a Member> {
    view.members.iter().filter(|member| sum.moved.contains_key(&member.id))
}

/// What the stage after this one waits for.
fn then(view: &View, upgrade: &Upgrade, stage: Stage) -> String {
    let auths = view.seats.len();
    match stage {
        Stage::Backup if upgrade.is_major() => match view.migrations.len() {
            0 => "a login there, and a rehearsal".into(),
            1 => "1 migration rehearsed, no bad row".into(),
            count => format!("{count} migrations rehearsed, no bad row"),
        },
        Stage::Backup => "a login there".into(),
        Stage::Auth => "each walked through by a user".into(),
        Stage::CloseAuth => format!("{auths} of {auths} acknowledged"),
        Stage::Data if upgrade.direction == Direction::Down => "nothing of the new form left".into(),
        Stage::Data => "two clean comparisons".into(),
        Stage::Proxies => "tunnels dialled again, each proved".into(),
        Stage::Agents => "each wave below its stop count".into(),
        Stage::Leaves => "each leaf's own upgrade".into(),
        Stage::Soak => "no red gate".into(),
        Stage::Finalize => match view.policy.finalize {
            Consent::Manual => "somebody's consent".into(),
            Consent::After => "policy".into(),
        },
        Stage::Preflight | Stage::Done => String::new(),
    }
}
