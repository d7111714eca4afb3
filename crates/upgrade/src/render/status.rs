//! `tctl upgrade status`: where an upgrade stands, as data and as a screen.

use super::{blocks, describe, screen, waits};
use crate::plan::{
    Bar, Block, Decision, Direction, Fleet, Note, Stage, Standing, Tier, Verdict, View, Wait, Wave,
    health::{self, Verdict as Health},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use types::{Ttl, Version, control::ClusterVersion};

/// Where an upgrade stands.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    pub cluster: String,
    pub verdict: Verdict,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Version>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Version>,
    pub stage: Stage,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<Wave>,
    pub running: Ttl,
    pub rollback: Rollback,
    pub cluster_version: ClusterVersion,
    pub windows: BTreeMap<String, (u64, u64)>,
    /// Members by tier.
    pub members: BTreeMap<Tier, Count>,
    /// Of the wave that is being moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_wave: Option<Count>,
    /// Sessions go on in so many processes that drain.
    pub draining: usize,
    pub next: Vec<String>,
    pub waits: Vec<Wait>,
    pub blocked: Vec<Block>,
    pub notes: Vec<Note>,
}

/// Whether there is a way back without a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rollback {
    pub possible: bool,
    pub blockers: Vec<String>,
}

/// Members by how they stand.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Count {
    pub done: usize,
    pub moving: usize,
    pub waiting: usize,
    pub failed: usize,
    pub absent: usize,
    /// Failures that stop it.
    pub stop_at: usize,
    pub health: String,
}

/// What a decision says, with the figures that people ask for.
pub fn status(view: &View, decision: &Decision) -> Status {
    let upgrade = decision.upgrade.as_ref();
    let (mut members, mut in_wave) = (BTreeMap::new(), None);
    if let Some(upgrade) = upgrade {
        let fleet = Fleet { view, upgrade };
        for tier in Tier::ALL {
            let mut sum = Count::default();
            for (wave, of) in fleet.waves(tier) {
                let mut count = Count::default();
                of.iter().for_each(|member| add(&mut count, &fleet.standing(member, wave)));
                of.iter().for_each(|member| add(&mut sum, &fleet.standing(member, wave)));
                if decision.wave == Some(wave) {
                    in_wave = Some(judged(count, view.policy.background));
                }
            }
            members.insert(tier, judged(sum, view.policy.background));
        }
    }
    Status {
        cluster: view.cluster.clone(),
        verdict: decision.verdict(),
        from: upgrade.map(|upgrade| upgrade.source().clone()),
        to: upgrade.map(|upgrade| upgrade.goal().clone()),
        stage: decision.stage,
        wave: decision.wave,
        running: Ttl(upgrade.map_or_else(Default::default, |upgrade| view.now.since(upgrade.begun))),
        rollback: rollback(view, decision),
        cluster_version: view.control.cluster_version,
        windows: view.control.windows.iter().map(|(role, window)| (role.clone(), (window.lo, window.hi))).collect(),
        members,
        in_wave,
        draining: view.members.iter().filter(|member| member.state == crate::plan::Condition::Draining).count(),
        next: describe(&decision.next),
        waits: decision.waits.clone(),
        blocked: decision.blocked.clone(),
        notes: decision.notes.clone(),
    }
}

fn add(count: &mut Count, standing: &Standing) {
    match standing {
        Standing::Proved => count.done += 1,
        Standing::Moving | Standing::Unproved(_) => count.moving += 1,
        Standing::Idle | Standing::Unwell => count.waiting += 1,
        Standing::Ailing(_) | Standing::Failed { .. } => count.failed += 1,
        Standing::Absent => count.absent += 1,
    }
}

fn judged(count: Count, background: u32) -> Count {
    let members = count.done + count.moving + count.waiting + count.failed;
    let seen = health::Count { members, passed: count.done, failed: count.failed, control: 0, control_failed: 0 };
    let health = match seen.verdict(background) {
        Health::Pass => "pass",
        Health::Fail => "fail",
        Health::Inconclusive => "open",
    };
    Count { stop_at: seen.stop_at(background), health: health.to_owned(), ..count }
}

/// Whether the way back is open, and what would stand in it.
fn rollback(view: &View, decision: &Decision) -> Rollback {
    let Some(upgrade) = &decision.upgrade else { return Rollback { possible: false, blockers: Vec::new() } };
    let mut blockers = Vec::new();
    if upgrade.is_major() && view.control.cluster_version.major >= upgrade.target.major() {
        blockers.push(format!("{}: {}", Bar::Final, Bar::Final.meaning()));
    } else if upgrade.direction == Direction::Up {
        let back = upgrade.clone().turned(Direction::Down);
        let ahead = View { asked: None, read_at: view.now, control: back.write_to(&view.control), ..view.clone() };
        blockers = crate::plan::plan(&ahead).decision.blocked.iter().map(|block| format!("{}: {}", block.code, block.cause)).collect();
    }
    Rollback { possible: blockers.is_empty(), blockers }
}

/// The screen.
pub fn status_text(status: &Status) -> String {
    let (Some(from), Some(to)) = (&status.from, &status.to) else {
        let level = status.cluster_version;
        let first = format!("{}   no upgrade is under way   cluster version {}.{}\n", status.cluster, level.major, level.step);
        return if status.blocked.is_empty() { first } else { blocks(&status.blocked) };
    };
    let wave = status.wave.map_or_else(String::new, |wave| format!(", {wave}"));
    let back = if status.rollback.possible { "yes" } else { "NO" };
    let running = screen::length(status.running.0);
    let first =
        format!("{} {from} -> {to}   stage {}{wave}   running {running}   can roll back: {back}", status.cluster, status.stage.as_str());
    let mut text = format!("{}\n", screen::cut(&first));
    let shown = |(lo, hi): (u64, u64)| if lo == hi { format!("[{lo}]") } else { format!("[{lo},{hi}]") };
    let windows = crate::windows::ROLES.iter().filter_map(|role| Some(format!("{role} {}", shown(*status.windows.get(*role)?))));
    let level = status.cluster_version;
    let windows = format!("{}  cluster version {}.{}", windows.collect::<Vec<_>>().join("  "), level.major, level.step);
    text.push_str(&screen::item("windows", "", &windows));
    for (tier, count) in &status.members {
        let label = match tier {
            Tier::Auth => "auth",
            Tier::Proxy => "proxies",
            Tier::Agent => "agents",
        };
        if count.done + count.moving + count.waiting + count.failed + count.absent > 0 {
            text.push_str(&screen::item(label, "", &counted(count)));
        }
    }
    if let (Some(wave), Some(count)) = (status.wave, &status.in_wave) {
        let line = format!("{wave}: {}, stop at {}; verdict {}", counted(count), count.stop_at, count.health);
        text.push_str(&screen::item("wave", "", &line));
    }
    if status.draining > 0 {
        text.push_str(&screen::item("sessions", "", &format!("{} processes drain", status.draining)));
    }
    text.push_str(&blocks(&status.blocked));
    text.push_str(&waits(&status.waits));
    for line in &status.next {
        text.push_str(&screen::item("next", "", line));
    }
    for blocker in &status.rollback.blockers {
        text.push_str(&screen::item("no way", "", &format!("back: {blocker}")));
    }
    text
}

fn counted(count: &Count) -> String {
    let parts =
        [("done", count.done), ("in flight", count.moving), ("waiting", count.waiting), ("failed", count.failed), ("absent", count.absent)];
    let shown = parts.iter().filter(|(what, number)| *number > 0 || *what == "done");
    shown.map(|(what, number)| format!("{what} {}", screen::thousands(*number))).collect::<Vec<_>>().join("  ")
}
