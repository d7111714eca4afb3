//! What a decision does in a world where every step succeeds and every wait ends.
//!
//! The windows move through [`crate::barrier::change`] and the control record through its own rules, as they do in a cluster. Callers: the
//! forecast, and tests, which add what can go wrong.

use crate::{
    barrier::{Move, change},
    control,
    migrate::State,
    plan::{
        fleet::Tier,
        outcome::{Decision, Gate, Step, Wait},
        record::{Said, Upgrade},
        view::{Backup, Condition, Drill, Member, Rehearsal, View, Walk},
    },
    windows::AUTH,
};
use std::collections::{BTreeMap, BTreeSet};
use types::{ControlRecord, ResourceName, Time, Version};

/// Does what a decision says, as if everything went well. False when nothing came of it.
pub fn ideal(world: &mut View, decision: &Decision) -> bool {
    let (then, offline) = (world.now, world.policy.offline_after.0);
    let alive = |member: &Member| member.state != Condition::Missing && then.since(member.last_seen) <= offline;
    let places = world.members.iter().enumerate().map(|(at, member)| (member.id.clone(), at)).collect();
    let mut moved = decision.next.iter().filter(|step| take(world, &places, step)).count() > 0;
    if !moved {
        moved = decision.waits.iter().filter(|wait| end(world, &places, wait, decision)).count() > 0;
    }
    world.read_at = world.now;
    // Who is there stays there while time passes.
    let now = world.now;
    world.members.iter_mut().filter(|member| alive(member)).for_each(|member| member.last_seen = now);
    world.leaves.iter_mut().filter(|leaf| then.since(leaf.last_seen) <= offline).for_each(|leaf| leaf.last_seen = now);
    moved
}

fn replace(world: &mut View, wanted: &Move) -> bool {
    let documents = world.documents();
    match change(&world.control, wanted, &world.seats, &documents) {
        Ok(next) => {
            world.control = next;
            for seat in &mut world.seats {
                seat.acknowledged = world.control.window_gen;
            }
            true
        }
        Err(_) => false,
    }
}

fn rewrite(world: &mut View, edit: impl FnOnce(&mut Upgrade)) -> bool {
    let Ok(Some(mut upgrade)) = world.upgrade() else { return false };
    edit(&mut upgrade);
    world.control = upgrade.write_to(&world.control);
    true
}

/// Where members stand in the list, as long as nobody was taken out of it.
type Places = BTreeMap<ResourceName, usize>;

fn at<'a>(world: &'a mut View, places: &Places, id: &ResourceName) -> Option<&'a mut Member> {
    let place = places.get(id).copied().filter(|place| world.members.get(*place).is_some_and(|member| member.id == *id));
    match place {
        Some(place) => world.members.get_mut(place),
        None => world.members.iter_mut().find(|member| member.id == *id),
    }
}

/// One step in an ideal world.
fn take(world: &mut View, places: &Places, step: &Step) -> bool {
    let now = world.now;
    match step {
        Step::Begin { upgrade } => {
            world.control = (**upgrade).clone().write_to(&world.control);
            true
        }
        Step::Backup => {
            let cluster_version = world.control.cluster_version;
            world.backup = Some(Backup { id: "next".into(), at: now, cluster_version, failed: None, drill: None, rehearsal: None });
            true
        }
        Step::Drill { .. } => world.backup.as_mut().is_some_and(|backup| backup.drill.replace(Drill { at: now, failed: None }).is_none()),
        Step::Rehearse { target, .. } => world.backup.as_mut().is_some_and(|backup| {
            let done = Rehearsal { at: now, target: target.clone(), failed: None, bad_rows: Vec::new(), rows: 0, seconds: 0 };
            backup.rehearsal = Some(done);
            true
        }),
        Step::Widen { role, major } => replace(world, &Move::Widen { role: role.clone(), major: *major }),
        Step::Narrow { role, lo, hi } => replace(world, &Move::Narrow { role: role.clone(), lo: *lo, hi: *hi }),
        Step::Install { member, version, .. } => arrive(world, places, member, version),
        Step::Walk { member, boot, .. } => {
            let Some(walked) = at(world, places, member).filter(|walked| walked.boot == *boot) else { return false };
            walked.path = Some(Walk { boot: boot.clone(), at: now, failed: None });
            true
        }
        Step::Migrate { id, undo } => {
            let Some(migration) = world.migrations.iter_mut().find(|migration| migration.id == *id) else { return false };
            migration.undo = *undo;
            true
        }
        Step::Evict { member, .. } => {
            let count = world.members.len();
            world.members.retain(|other| other.id != *member);
            world.members.len() < count
        }
        Step::Soak => rewrite(world, |upgrade| upgrade.soaks_since = Some(now)),
        Step::Pause { .. } => false,
        Step::Finalize => {
            let Ok(Some(upgrade)) = world.upgrade() else { return false };
            let done = control::finalize(&world.control, &upgrade.target);
            let moved = done.is_ok();
            world.control = done.unwrap_or_else(|_| world.control.clone());
            acknowledge(world);
            moved
        }
        Step::GiveBack { major } => {
            let done = control::give_back(&world.control, *major);
            let moved = done.is_ok();
            world.control = done.unwrap_or_else(|_| world.control.clone());
            acknowledge(world);
            moved
        }
        Step::Finish => {
            world.control.upgrade = None;
            world.asked = None;
            true
        }
    }
}

fn acknowledge(world: &mut View) {
    for seat in &mut world.seats {
        seat.acknowledged = world.control.window_gen;
    }
}

/// A member comes back as another version.
fn arrive(world: &mut View, places: &Places, id: &ResourceName, version: &Version) -> bool {
    let now = world.now;
    let Some(member) = at(world, places, id) else { return false };
    member.boot = format!("{}+", member.boot);
    member.version = version.clone();
    (member.started, member.last_seen, member.state) = (now, now, Condition::Active);
    (member.path, member.told) = (None, None);
    if Tier::of(member) == Some(Tier::Auth) {
        for seat in world.seats.iter_mut().filter(|seat| seat.host.as_ref() == Some(id)) {
            seat.version = version.clone();
        }
        if world.control.windows.get(AUTH).is_some_and(|window| !window.contains(version.major())) {
            world.control = adopted(&world.control, version, &world.documents());
            acknowledge(world);
        }
    }
    true
}

fn adopted(control: &ControlRecord, version: &Version, members: &[types::Resource<types::kind::Member>]) -> ControlRecord {
    control::adopt(control, version, members).unwrap_or_else(|_| control.clone())
}

/// A wait ends by itself, or by what people do.
fn end(world: &mut View, places: &Places, wait: &Wait, decision: &Decision) -> bool {
    let Some(upgrade) = &decision.upgrade else { return false };
    let later = |world: &mut View, until: Option<Time>| match until.filter(|until| *until > world.now) {
        Some(until) => {
            world.now = until;
            true
        }
        None => false,
    };
    let named = |world: &View| -> Vec<ResourceName> {
        let names: BTreeSet<&String> = wait.members.iter().collect();
        world.members.iter().filter(|member| names.contains(&member.name)).map(|member| member.id.clone()).collect()
    };
    match wait.code {
        Gate::Bake | Gate::Soak | Gate::Retry => later(world, wait.until),
        Gate::Moving | Gate::ByHand => named(world).iter().filter(|id| arrive(world, places, id, upgrade.goal())).count() > 0,
        Gate::Barrier => {
            acknowledge(world);
            true
        }
        Gate::Outside | Gate::Draining => {
            let count = world.members.len();
            world.members.retain(|member| !wait.members.contains(&member.name));
            world.members.len() < count
        }
        Gate::Data => data(world, upgrade),
        Gate::Leaf => {
            for leaf in world.leaves.iter_mut().filter(|leaf| wait.members.contains(&leaf.name)) {
                leaf.version = upgrade.goal().clone();
            }
            true
        }
        Gate::Consent => rewrite(world, |upgrade| upgrade.finalize = Some(Said { by: "somebody".into(), at: upgrade.begun })),
        Gate::Paused => rewrite(world, |upgrade| upgrade.paused = None),
        Gate::Stale | Gate::NoAuth | Gate::Backup | Gate::Availability | Gate::Walk | Gate::Verdict => false,
    }
}

/// Migrations come to where their switches point.
fn data(world: &mut View, upgrade: &Upgrade) -> bool {
    let finalized = world.control.cluster_version.major >= upgrade.target.major();
    let mut moved = false;
    for migration in
        world.migrations.iter_mut().filter(|migration| migration.stuck.is_none() && migration.to.major == upgrade.target.major())
    {
        let next = if migration.undo {
            State::Absent
        } else if finalized {
            State::Contracted
        } else {
            State::Flipped
        };
        moved |= migration.state != next || !migration.swept;
        (migration.state, migration.swept) = (next, true);
    }
    moved
}
