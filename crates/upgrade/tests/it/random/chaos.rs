//! A world in which things go wrong: steps that fail or are done half, members that come and go, operators who change their mind.
//!
//! Windows are enforced as in a cluster: who restarts is judged by them and quarantined outside, an Auth Service that is refused has no seat,
//! and once all have acknowledged, whoever stands outside was cut off.

use crate::world::*;
use std::{collections::BTreeSet, time::Duration};
use types::{SystemRole, Time, Version};
use upgrade::{
    barrier::{Move, change},
    migrate::State,
    plan::{
        Condition, Consent, Decision, Direction, Finding, Member, OnFailure, Pause, Policy, Said, Step, Told, Upgrade, View, Walk, ideal,
    },
    windows::AUTH,
};

/// Numbers from a seed (SplitMix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D)
    }
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

pub(crate) struct Chaos {
    pub(crate) view: View,
    dice: Dice,
    born: usize,
}

impl Chaos {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let (auths, proxies, agents) = (1 + dice.below(3), dice.below(4), dice.below(6));
        let mut view = cluster("1.0.0", auths, proxies, agents);
        view.asked = Some(v("2.0.0"));
        for member in view.members.iter_mut().skip(auths) {
            member.class = ["a", "b"][dice.below(2)].to_owned();
            member.by_hand = dice.chance(10);
            if dice.chance(30) {
                member.serves = BTreeSet::from([format!("db-{}", dice.below(2))]);
            }
        }
        view.migrations.extend(dice.chance(60).then(|| migration("roles-v2", 2)));
        view.leaves.extend(dice.chance(30).then(|| leaf("berlin", "1.0.0")));
        view.policy = Policy {
            soak: types::Ttl::hours(1),
            finalize: if dice.chance(50) { Consent::After } else { Consent::Manual },
            on_failure: if dice.chance(50) { OnFailure::Pause } else { OnFailure::PauseAndRevert },
            absent_after: types::Ttl::hours(1),
            ..brisk()
        };
        Self { view, dice, born: 0 }
    }

    /// What the planner gets to see: now and then an old reading, or one in which somebody is missing.
    pub(crate) fn seen(&mut self) -> View {
        let mut seen = self.view.clone();
        if self.dice.chance(5) {
            seen.read_at = seen.now.minus(Duration::from_secs(600));
        }
        if self.dice.chance(5) && !seen.members.is_empty() {
            let at = self.dice.below(seen.members.len());
            // An Auth Service that sits is known by its seat at least.
            if !seen.members[at].roles.contains(&SystemRole::Auth) {
                seen.members.remove(at);
            }
        }
        seen
    }

    /// One round: some of the steps, and something that happens besides. Returns the story in a line.
    pub(crate) fn act(&mut self, decision: &Decision) -> String {
        let mut story = Vec::new();
        for step in &decision.next {
            if self.dice.chance(70) {
                story.push(format!("{step:?}").chars().take(90).collect::<String>());
                self.take(step, decision);
            }
        }
        if decision.next.is_empty() && self.dice.chance(30) {
            // A wait that nothing but time or people ends.
            let mut quiet = decision.clone();
            quiet.waits.retain(|wait| {
                matches!(
                    wait.code,
                    upgrade::plan::Gate::Data | upgrade::plan::Gate::Leaf | upgrade::plan::Gate::Soak | upgrade::plan::Gate::Paused
                )
            });
            ideal(&mut self.view, &quiet);
        }
        story.push(self.happen());
        self.pass();
        story.join("; ")
    }

    fn take(&mut self, step: &Step, decision: &Decision) {
        let now = self.view.now;
        match step {
            Step::Widen { role, major } => self.move_windows(&Move::Widen { role: role.clone(), major: *major }),
            Step::Narrow { role, lo, hi } => self.move_windows(&Move::Narrow { role: role.clone(), lo: *lo, hi: *hi }),
            Step::Install { member, version, boot, attempt, .. } => {
                if let Some(told) = self.view.members.iter_mut().find(|other| other.id == *member && other.boot == *boot) {
                    told.told = Some(Told { version: version.clone(), at: now, boot: boot.clone(), attempts: *attempt, failed: None });
                }
            }
            Step::Walk { member, boot, .. } => {
                let failed = self.dice.chance(5).then(|| "no shell".to_owned());
                if let Some(walked) = self.view.members.iter_mut().find(|other| other.id == *member && other.boot == *boot) {
                    walked.path = Some(Walk { boot: boot.clone(), at: now, failed });
                }
            }
            Step::Backup if self.dice.chance(10) => {
                self.view.backup = None;
            }
            Step::Pause { reason, revert } => self.edit(|upgrade| {
                upgrade.paused = Some(Pause { by: "planner".into(), at: now, reason: reason.clone(), failed: true, revert: *revert });
            }),
            other => {
                let one = Decision { next: vec![other.clone()], waits: Vec::new(), ..decision.clone() };
                ideal(&mut self.view, &one);
            }
        }
    }

    fn move_windows(&mut self, wanted: &Move) {
        let documents = self.view.documents();
        if let Ok(next) = change(&self.view.control, wanted, &self.view.seats, &documents) {
            self.view.control = next;
        }
    }

    fn edit(&mut self, edit: impl FnOnce(&mut Upgrade)) {
        if let Ok(Some(mut upgrade)) = self.view.upgrade() {
            edit(&mut upgrade);
            self.view.control = upgrade.write_to(&self.view.control);
        }
    }

    /// Something that the planner did not ask for.
    fn happen(&mut self) -> String {
        let count = self.view.members.len();
        let at = self.dice.below(count);
        let now = self.view.now;
        match self.dice.below(14) {
            0 => {
                let silent = self.dice.below(8000);
                let member = &mut self.view.members[at];
                member.last_seen = now.minus(Duration::from_secs(300 + u64::try_from(silent).unwrap()));
                let id = member.id.clone();
                self.view.seats.retain(|seat| seat.host.as_ref() != Some(&id));
                format!("{id} falls silent")
            }
            1 => {
                // A stale or a premature image.
                let version = if self.dice.chance(50) { v("1.0.0") } else { v("2.0.0") };
                self.start(at, &version);
                format!("{} restarts on {version}", self.view.members[at].id)
            }
            2 => {
                if let Some(told) = &mut self.view.members[at].told {
                    told.failed = Some("disk full".into());
                }
                format!("{} reports a failure", self.view.members[at].id)
            }
            3 => {
                let back = self.dice.chance(60);
                let finalized = self.view.control.cluster_version.major == 2;
                if !finalized {
                    self.edit(|upgrade| *upgrade = upgrade.clone().turned(if back { Direction::Down } else { Direction::Up }));
                }
                format!("somebody turns round, back: {back}")
            }
            4 => {
                self.edit(|upgrade| {
                    upgrade.paused = Some(Pause { by: "ann".into(), at: now, reason: "lunch".into(), failed: false, revert: None })
                });
                "somebody pauses".into()
            }
            5 | 6 => {
                self.edit(|upgrade| upgrade.paused = None);
                "somebody resumes".into()
            }
            7 => {
                self.edit(|upgrade| upgrade.finalize = Some(Said { by: "ann".into(), at: now }));
                "somebody consents".into()
            }
            8 => {
                self.evict(at);
                "somebody evicts".into()
            }
            9 => {
                self.born += 1;
                let name = format!("late-{}", self.born);
                let version = if self.dice.chance(50) { v("1.0.0") } else { v("2.0.0") };
                self.view.members.push(Member { last_seen: now, started: now, class: "a".into(), ..member(&name, &["node"], "1.0.0") });
                self.start(count, &version);
                format!("{name} joins with {version}")
            }
            10 => {
                let findings = &mut self.view.findings;
                if findings.pop().is_none() {
                    findings.push(Finding::Clock { member: "auth-1".into(), off: 400 });
                }
                "a clock is wrong, or right again".into()
            }
            11 => {
                if let Some(migration) = self.view.migrations.first_mut() {
                    migration.stuck = migration.stuck.is_none().then(|| "2 rows cannot be changed".to_owned());
                }
                "rows are bad, or mended".into()
            }
            _ => "nothing".into(),
        }
    }

    fn evict(&mut self, at: usize) {
        let consent = upgrade::evict::Consent { by: "ann".into(), at: self.view.now, reason: "gone".into() };
        let id = self.view.members[at].id.clone();
        let seated = self.view.seats.iter().any(|seat| seat.host.as_ref() == Some(&id));
        let documents = self.view.documents();
        if let Ok(next) = upgrade::evict::evict(&self.view.control, &id, &documents, seated, &consent, self.view.policy.offline_after.0) {
            self.view.control = next;
        }
    }

    /// A process starts, and is admitted or not.
    fn start(&mut self, at: usize, version: &Version) {
        let now = self.view.now;
        let control = self.view.control.clone();
        let member = &mut self.view.members[at];
        let draining = member.state == Condition::Draining;
        let inside =
            member.roles.iter().all(|role| role.window(draining).is_none_or(|role| control.windows[role].contains(version.major())));
        self.born += 1;
        (member.version, member.boot) = (version.clone(), format!("{}-{}", member.id, self.born));
        (member.started, member.last_seen, member.path) = (now, now, None);
        member.state = match (inside, draining) {
            (false, _) => Condition::Quarantined,
            (true, true) => Condition::Draining,
            (true, false) => Condition::Active,
        };
        let auth = member.roles.contains(&SystemRole::Auth);
        let fresh = seat(member, control.window_gen);
        self.view.seats.retain(|seat| seat.host != fresh.host);
        self.view.seats.extend((auth && inside).then_some(fresh));
    }

    /// Time passes: who was told arrives or not, who lives reports, Auth Services acknowledge, and then who is outside is cut off.
    fn pass(&mut self) {
        let step = Duration::from_secs(u64::try_from(1 + self.dice.below(400)).unwrap());
        let before = self.view.now;
        self.view.now = before.plus(step);
        for at in 0..self.view.members.len() {
            let member = &self.view.members[at];
            let alive = before.since(member.last_seen) < Duration::from_secs(230);
            let under_way =
                member.told.as_ref().filter(|told| told.failed.is_none() && told.boot == member.boot).map(|told| told.version.clone());
            match under_way {
                Some(version) if alive && self.dice.chance(50) => self.start(at, &version),
                _ if alive => self.view.members[at].last_seen = self.view.now,
                // Who was silent may be back.
                _ if self.dice.chance(15) => {
                    let version = self.view.members[at].version.clone();
                    self.start(at, &version);
                }
                _ => {}
            }
        }
        self.view.read_at = self.view.now;
        for leaf in &mut self.view.leaves {
            leaf.last_seen = self.view.now;
        }
        let generation = self.view.control.window_gen;
        for at in 0..self.view.seats.len() {
            if self.dice.chance(60) {
                self.view.seats[at].acknowledged = generation;
            }
        }
        if self.view.seats.iter().all(|seat| seat.acknowledged == generation) {
            self.cut_off();
        }
    }

    fn cut_off(&mut self) {
        let (control, seats) = (self.view.control.clone(), self.view.seats.clone());
        let silent = |member: &Member, now: Time| now.since(member.last_seen) > Duration::from_secs(225);
        let now = self.view.now;
        for member in &mut self.view.members {
            // Who is silent cannot be cut off; its document stands.
            if upgrade::barrier::outside(&control, &member.document(), &seats) && !silent(member, now) {
                member.state = Condition::Quarantined;
            }
        }
        let gone: Vec<_> =
            self.view.members.iter().filter(|member| member.state == Condition::Quarantined).map(|member| member.id.clone()).collect();
        self.view.seats.retain(|seat| seat.host.as_ref().is_none_or(|host| !gone.contains(host)));
    }

    /// Faults stop: everybody who can is back, and nobody interferes any more.
    pub(crate) fn calm(&mut self) {
        self.view.findings.clear();
        self.edit(|upgrade| upgrade.paused = None);
        for migration in &mut self.view.migrations {
            migration.stuck = None;
            // Half-way states go on by themselves.
            if matches!(migration.state, State::Shadowing | State::Verified) {
                migration.state = State::Expanded;
            }
        }
        for at in 0..self.view.members.len() {
            // Rescue brings back whoever was refused, on what its window admits.
            let member = &self.view.members[at];
            let window = member.roles.iter().find_map(|role| role.window(false)).map(|role| self.view.control.windows[role].clone());
            let version = match window {
                Some(window) if !window.contains(member.version.major()) => {
                    if window.hi == 2 {
                        v("2.0.0")
                    } else {
                        v("1.0.0")
                    }
                }
                _ => member.version.clone(),
            };
            self.view.members[at].told = None;
            self.start(at, &version);
        }
        for seat in &mut self.view.seats {
            seat.acknowledged = self.view.control.window_gen;
        }
        self.view.read_at = self.view.now;
        assert!(self.view.control.windows.contains_key(AUTH));
    }
}
