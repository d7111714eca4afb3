//! Invariants of one reading of a cluster.

use super::{Fault, Invariant, fault};
use crate::{
    barrier,
    plan::{Condition, Direction, Member, Tier, Upgrade, View, Way},
    windows::{AUTH, EDGES, LEAF, PROXY, Phase, check_windows, is_in},
};
use std::collections::BTreeMap;

/// Whether windows are judged with every rule: while a major is rolled. Before and after, and where one process takes over, the pair that
/// the handshake refuses is left to it.
pub(super) fn phase(view: &View, upgrade: Option<&Upgrade>) -> Phase {
    let rolls = upgrade.is_some_and(|upgrade| {
        let windows = &view.control.windows;
        let began = windows.get(AUTH).is_some_and(|window| window.contains(upgrade.target.major()));
        upgrade.way == Way::Roll && began
    });
    if rolls { Phase::Rolling } else { Phase::Resting }
}

pub(super) fn i1(view: &View, upgrade: Option<&Upgrade>) -> Vec<Fault> {
    check_windows(&view.control.windows, phase(view, upgrade)).iter().map(|broken| fault(Invariant::Windows, broken.to_string())).collect()
}

/// The pairs are those of the edge table; towards Proxies a newer client is refused by the handshake while the windows rest. Windows say who may
/// be there; a member that is found outside is being disconnected, and holds up the next widening, so it is not a fault by itself.
pub(super) fn i2(view: &View, upgrade: Option<&Upgrade>) -> Vec<Fault> {
    let resting = phase(view, upgrade) == Phase::Resting;
    let mut majors = BTreeMap::<&str, BTreeMap<u64, &str>>::new();
    for member in view.members.iter().filter(|member| serves(view, member)) {
        let document = member.document();
        for role in crate::windows::ROLES.into_iter().filter(|role| is_in(role, &document)) {
            majors.entry(role).or_default().insert(member.version.major(), &member.name);
        }
    }
    let mut faults = Vec::new();
    let none = BTreeMap::new();
    for (client, server) in EDGES {
        for (c, who) in majors.get(client).unwrap_or(&none) {
            for (s, whom) in majors.get(server).unwrap_or(&none) {
                let refused = resting && server == PROXY && c > s;
                if (c > s || s - c > 1) && !refused {
                    faults.push(fault(Invariant::Membership, format!("{client} {who} at {c} could meet {server} {whom} at {s}")));
                }
            }
        }
    }
    faults
}

/// A member that may be there: inside its windows, or not yet found out.
fn serves(view: &View, member: &Member) -> bool {
    // Who was evicted is silent, and is judged by the windows when he is back.
    if crate::evict::is_evicted(&view.control, &member.document()) {
        return false;
    }
    matches!(member.state, Condition::Active | Condition::Draining) && !barrier::outside(&view.control, &member.document(), &view.seats)
}

pub(super) fn i4(view: &View, _: Option<&Upgrade>) -> Vec<Fault> {
    let level = view.control.cluster_version;
    let last = level == crate::control::final_of(level.major);
    let floor = view.migrations.iter().map(|m| crate::migrate::plan::floor_in(m.floor, m.to.major, m.state)).max().unwrap_or(0);
    writers(view)
        .filter_map(|(name, major)| {
            let fits = major == level.major || (last && major == level.major + 1);
            if !fits {
                Some(format!("Auth Service {name} at {major} cannot work on cluster version {}.{}", level.major, level.step))
            } else if major < floor {
                Some(format!("Auth Service {name} at {major} is below the floor {floor} of the data"))
            } else {
                None
            }
        })
        .map(|text| fault(Invariant::Support, text))
        .collect()
}

/// Auth Services whose writes the store takes: they sit, inside the window.
fn writers(view: &View) -> impl Iterator<Item = (&str, u64)> {
    let window = view.control.windows.get(AUTH);
    let seats = view.seats.iter().map(|seat| (seat.name.as_str(), seat.version.major()));
    seats.filter(move |(_, major)| window.is_some_and(|window| window.contains(*major)))
}

pub(super) fn i5(view: &View, _: Option<&Upgrade>) -> Vec<Fault> {
    let (oldest, newest) = (writers(view).map(|(_, major)| major).min(), writers(view).map(|(_, major)| major).max());
    let (Some(oldest), Some(newest)) = (oldest, newest) else { return Vec::new() };
    if oldest == newest {
        return Vec::new();
    }
    let level = view.control.cluster_version;
    let mut faults = Vec::new();
    if level != crate::control::final_of(oldest) {
        faults.push(fault(
            Invariant::Emulation,
            format!("majors {oldest} and {newest} write at cluster version {}.{}", level.major, level.step),
        ));
    }
    for migration in view.migrations.iter().filter(|migration| migration.to.major == newest && !migration.state.admits_old_writers()) {
        faults
            .push(fault(Invariant::Emulation, format!("majors {oldest} and {newest} write while {} is {}", migration.id, migration.state)));
    }
    faults
}

pub(super) fn i6(view: &View, _: Option<&Upgrade>) -> Vec<Fault> {
    let Some(window) = view.control.windows.get(AUTH) else { return Vec::new() };
    let early = |m: &&crate::plan::Migration| !m.state.admits_old_writers() && window.lo < m.to.major;
    let text = |m: &crate::plan::Migration| format!("{} is {} while auth admits [{}, {}]", m.id, m.state, window.lo, window.hi);
    view.migrations.iter().filter(early).map(|migration| fault(Invariant::Fence, text(migration))).collect()
}

pub(super) fn i14(view: &View, _: Option<&Upgrade>) -> Vec<Fault> {
    let Some(auth) = view.control.windows.get(AUTH) else { return Vec::new() };
    let admitted = view.control.windows.get(LEAF);
    view.leaves
        .iter()
        // A leaf outside its window is refused: it was left behind by name.
        .filter(|leaf| admitted.is_some_and(|window| window.contains(leaf.version.major())))
        .filter(|leaf| leaf.version.major() > auth.lo || auth.hi.saturating_sub(leaf.version.major()) > 1)
        .map(|leaf| fault(Invariant::Leaf, format!("leaf {} at {} beside auth [{}, {}]", leaf.name, leaf.version, auth.lo, auth.hi)))
        .collect()
}

pub(super) fn i16(view: &View, upgrade: Option<&Upgrade>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for member in view.members.iter().filter(|member| member.state == Condition::Draining && Tier::of(member) != Some(Tier::Auth)) {
        // Until the next major is let in, nobody is there whom it could meet.
        let begun = |upgrade: &&Upgrade| view.control.windows.get(AUTH).is_some_and(|window| window.contains(upgrade.target.major()));
        let up = upgrade.filter(|upgrade| upgrade.direction == Direction::Up).filter(begun);
        let oldest = up.map_or(0, |upgrade| upgrade.target.major().saturating_sub(1));
        let outside = barrier::outside(&view.control, &member.document(), &view.seats);
        // Somebody gave it up: it is silent, and meets nobody.
        let evicted = crate::evict::is_evicted(&view.control, &member.document());
        if member.version.major() < oldest && !outside && !evicted {
            faults.push(fault(Invariant::Drain, format!("{} drains at {}, two majors behind", member.name, member.version)));
        }
    }
    faults
}
