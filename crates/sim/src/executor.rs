//! Who carries the upgrade out: an actor in each Auth Service that looks, decides with the real planner, does one thing, and looks again.
//!
//! It keeps nothing but what it decided last, and may be stopped, put to sleep and woken anywhere in between; a lease says whose turn it is, and
//! nothing depends on it. Every step is conditional on what was looked at: the revision of the control record, a member's boot id.

use crate::{
    auths::Answer,
    queue::{Event, MINUTE, Proof, SECOND},
    scenario::Fault,
    world::{TARGET, World},
};
use std::collections::VecDeque;
use types::{Time, Version};
use upgrade::{
    barrier::{Move, change},
    control, evict, lint,
    plan::{Backup, Condition, Direction, Drill, Pause, Rehearsal, Stage, Step, Tier, Told, Upgrade, Verdict, Wave, decide},
    windows::AUTH,
};

/// What was decided, and on what.
pub(crate) struct Pending {
    steps: VecDeque<Step>,
    revision: u64,
    wave: Option<Wave>,
    stage: Stage,
}

impl World {
    pub(crate) fn look(&mut self, auth: usize) {
        let boot = self.hosts[auth].boot;
        let again = Event::Look { host: auth, boot };
        if !self.believes(auth) || !self.reaches_store(auth) {
            return self.later(15 * SECOND, again);
        }
        let mine = self.lease.is_none_or(|(holder, until)| holder == auth || until <= self.now);
        if !mine && !self.has(Fault::TwoExecutors) {
            return self.later(20 * SECOND, again);
        }
        if mine {
            self.lease = Some((auth, self.now + 3 * MINUTE));
        }
        self.refresh();
        let decision = decide(&self.view);
        self.watch.decided(self.now, &self.view, &decision);
        if self.watch.violation.is_some() {
            return;
        }
        if decision.verdict() == Verdict::Done && decision.upgrade.is_none() {
            return self.later(MINUTE, again);
        }
        let pending =
            Pending { steps: decision.next.iter().cloned().collect(), revision: self.revision, wave: decision.wave, stage: decision.stage };
        self.people.saw(&decision);
        if pending.steps.is_empty() {
            let idle = self.pace(30 * SECOND);
            return self.later(idle, again);
        }
        self.seats[auth].pending = Some(pending);
        self.soon(SECOND, 3 * SECOND, Event::Act { host: auth, boot });
    }

    /// The more members, the less often they are looked at.
    fn pace(&self, wait: u64) -> u64 {
        wait * (1 + self.hosts.len() as u64 / 2500).min(4)
    }

    pub(crate) fn act(&mut self, auth: usize) {
        let boot = self.hosts[auth].boot;
        if self.is_frozen(auth) {
            let wait = self.seats[auth].frozen - self.now + 500;
            return self.later(wait, Event::Act { host: auth, boot });
        }
        let Some(mut pending) = self.seats[auth].pending.take() else {
            return self.later(10 * SECOND, Event::Look { host: auth, boot });
        };
        // Many steps are done in some strokes, so that it can be stopped in between.
        let stroke = 1 + self.hosts.len() / 64;
        for _ in 0..stroke {
            let Some(step) = pending.steps.pop_front() else { break };
            if !self.can_write(auth) || self.perform(auth, &pending, &step) != Answer::Done {
                pending.steps.clear();
            }
        }
        if pending.steps.is_empty() {
            let wait = self.pace(10 * SECOND);
            return self.later(wait, Event::Look { host: auth, boot });
        }
        self.seats[auth].pending = Some(pending);
        self.soon(200, 2 * SECOND, Event::Act { host: auth, boot });
    }

    fn perform(&mut self, auth: usize, pending: &Pending, step: &Step) -> Answer {
        let control = &self.view.control;
        match step {
            Step::Begin { upgrade } => {
                let next = (**upgrade).clone().write_to(control);
                self.watch.tell(self.now, || format!("an upgrade begins to {}, {:?}", upgrade.target, upgrade.way));
                self.write(auth, pending.revision, next)
            }
            Step::Backup => self.prove(Proof::Backup),
            Step::Drill { .. } => self.prove(Proof::Drill),
            Step::Rehearse { .. } => self.prove(Proof::Rehearsal),
            Step::Widen { role, major } => self.move_windows(auth, pending.revision, &Move::Widen { role: role.clone(), major: *major }),
            Step::Narrow { role, lo, hi } => {
                self.move_windows(auth, pending.revision, &Move::Narrow { role: role.clone(), lo: *lo, hi: *hi })
            }
            Step::Install { member, version, boot, attempt, .. } => {
                self.install(pending, member, version, boot, *attempt);
                Answer::Done
            }
            Step::Walk { member, boot, .. } => {
                if let Some(host) = self.find(member).filter(|host| self.boot_name(*host) == *boot) {
                    let boot = self.hosts[host].boot;
                    self.soon(SECOND, 8 * SECOND, Event::Walked { host, boot });
                }
                Answer::Done
            }
            Step::Migrate { undo, .. } => {
                let now = self.time();
                if let Some(data) = &mut self.data {
                    data.switch(*undo, &self.view.control, now);
                }
                Answer::Done
            }
            Step::Evict { member, name, reason } => {
                self.watch.tell(self.now, || format!("{name} is evicted: {reason}"));
                let next = self.evicted(member, reason);
                next.map_or(Answer::Lost, |next| self.write(auth, pending.revision, next))
            }
            Step::Soak => {
                let now = self.time();
                self.edit(auth, pending.revision, |upgrade| upgrade.soaks_since = Some(now))
            }
            Step::Pause { reason, revert } => {
                self.watch.pauses += 1;
                self.watch.tell(self.now, || format!("the upgrade pauses itself: {reason}"));
                let pause = Pause { by: "planner".into(), at: self.time(), reason: reason.clone(), failed: true, revert: *revert };
                self.edit(auth, pending.revision, |upgrade| upgrade.paused = Some(pause))
            }
            Step::Finalize => {
                let binary = self.versions[self.hosts[auth].runs].clone();
                match control::finalize(control, &binary) {
                    Ok(next) => self.write(auth, pending.revision, next),
                    Err(_) => Answer::Lost,
                }
            }
            Step::GiveBack { major } => match control::give_back(control, *major) {
                Ok(next) => {
                    let answer = self.write(auth, pending.revision, next);
                    self.is_back();
                    answer
                }
                Err(_) => Answer::Lost,
            },
            Step::Finish => {
                let next = types::ControlRecord { upgrade: None, ..control.clone() };
                let direction = self.view.upgrade().ok().flatten().map(|upgrade| upgrade.direction);
                let answer = self.write(auth, pending.revision, next);
                if self.view.control.upgrade.is_none() {
                    match direction {
                        Some(Direction::Down) => self.is_back(),
                        Some(Direction::Up) | None => self.is_there(),
                    }
                }
                answer
            }
        }
    }

    fn is_there(&mut self) {
        self.watch.upgrades += 1;
        self.view.asked = None;
        self.over = true;
        self.watch.end = format!("upgraded to {}", self.versions[TARGET]);
    }

    fn is_back(&mut self) {
        if self.view.control.upgrade.is_some() {
            return;
        }
        self.watch.rolled_back(self.people.turned_from);
        self.view.asked = None;
        self.over = true;
        self.watch.end = "rolled back".into();
    }

    pub(crate) fn find(&self, member: &types::ResourceName) -> Option<usize> {
        // Ids count from 1.
        let number: uuid::Uuid = member.as_str().parse().ok()?;
        usize::try_from(number.as_u128()).ok().map(|number| number - 1).filter(|host| *host < self.hosts.len())
    }

    pub(crate) fn edit(&mut self, auth: usize, revision: u64, edit: impl FnOnce(&mut Upgrade)) -> Answer {
        let Ok(Some(mut upgrade)) = self.view.upgrade() else { return Answer::Lost };
        edit(&mut upgrade);
        let next = upgrade.write_to(&self.view.control);
        self.write(auth, revision, next)
    }

    /// Judged once more at the moment of the write.
    fn move_windows(&mut self, auth: usize, revision: u64, wanted: &Move) -> Answer {
        self.refresh();
        if let (Move::Widen { role, major }, Some(data)) = (wanted, &self.data)
            && role == AUTH
            && data.floor(&self.view.control) > *major
        {
            return Answer::Lost;
        }
        let documents = self.view.documents();
        match change(&self.view.control, wanted, &self.view.seats, &documents) {
            Ok(next) => {
                self.watch.tell(self.now, || format!("auth-{auth}: {wanted:?}"));
                self.write(auth, revision, next)
            }
            Err(_) => {
                self.watch.seen("a move of the windows was refused at its write");
                Answer::Lost
            }
        }
    }

    fn install(&mut self, pending: &Pending, member: &types::ResourceName, version: &Version, boot: &str, attempt: u32) {
        let Some(host) = self.find(member).filter(|host| self.view.members[*host].boot == boot) else { return };
        let tier = self.hosts[host].tier;
        self.watch.tell(self.now, || {
            format!("host {host} is told to install {version}, attempt {attempt}, {:?} {:?}", pending.stage, pending.wave)
        });
        if self.image(version) == Some(TARGET) {
            self.blast(tier, pending.wave, host);
        }
        let (now, boot) = (self.time(), boot.to_owned());
        self.generation += 1;
        self.hosts[host].ordered = self.generation;
        self.view.members[host].told = Some(Told { version: version.clone(), at: now, boot, attempts: attempt, failed: None });
        let wait = self.dice.below(60) * SECOND;
        self.poll(host, wait);
    }

    /// A release that works nowhere in a tier gets no further than that tier's canaries.
    fn blast(&mut self, tier: Tier, wave: Option<Wave>, host: usize) {
        let Some(bad) = self.scenario.bad.filter(|bad| bad.tier == tier && bad.share == 100) else { return };
        if wave.is_some_and(|wave| wave.number > 0) {
            let text = format!("host {host} of {wave:?} is sent to a release that is {:?} on all of them", bad.fate);
            self.watch.break_off(self.now, format!("blast radius: {text}"));
        }
    }

    pub(crate) fn evicted(&self, member: &types::ResourceName, reason: &str) -> Option<types::ControlRecord> {
        let consent = evict::Consent { by: "ann".into(), at: self.time(), reason: reason.to_owned() };
        let seated = self.view.seats.iter().any(|seat| seat.host.as_ref() == Some(member));
        let silent = self.view.policy.offline_after.0;
        evict::evict(&self.view.control, member, &self.view.documents(), seated, &consent, silent).ok()
    }

    fn prove(&mut self, what: Proof) -> Answer {
        if !std::mem::replace(&mut self.proving, true) {
            self.soon(MINUTE, 6 * MINUTE, Event::Proved { what });
        }
        Answer::Done
    }

    pub(crate) fn proved(&mut self, what: Proof) {
        self.proving = false;
        let now: Time = self.time();
        let failed = (self.has(Fault::ProofFails) && self.dice.chance(40)).then(|| "the scratch store is full".to_owned());
        let cluster_version = self.view.control.cluster_version;
        let target = self.versions[TARGET].clone();
        match (what, &mut self.view.backup) {
            (Proof::Backup, backup) => {
                let older = backup.take();
                *backup = Some(match failed {
                    Some(why) => {
                        let none =
                            Backup { id: "none".into(), at: Time::EPOCH, cluster_version, failed: None, drill: None, rehearsal: None };
                        Backup { failed: Some(why), ..older.unwrap_or(none) }
                    }
                    None => Backup { id: format!("b-{}", self.now), at: now, cluster_version, failed: None, drill: None, rehearsal: None },
                });
            }
            (Proof::Drill, Some(backup)) => backup.drill = Some(Drill { at: now, failed }),
            (Proof::Rehearsal, Some(backup)) => {
                backup.rehearsal = Some(Rehearsal { at: now, target, failed, bad_rows: Vec::new(), rows: 4000, seconds: 60 });
            }
            (Proof::Drill | Proof::Rehearsal, None) => {}
        }
    }

    /// The runner of migrations, in whichever Auth Service of the newer major can write.
    pub(crate) fn carry_data(&mut self) {
        self.later(20 * SECOND, Event::Data);
        let able = |world: &Self, auth: usize| {
            world.believes(auth)
                && world.can_write(auth)
                && world.versions[world.hosts[auth].runs].major() == world.versions[TARGET].major()
        };
        let Some(auth) = (0..self.seats.len()).find(|auth| able(self, *auth)) else { return };
        if self.view.control.upgrade.is_none() && self.people.asked {
            return;
        }
        let Some(mut data) = self.data.take() else { return };
        let finalized = self.view.control.cluster_version.major >= self.versions[TARGET].major();
        let goal = if finalized { upgrade::migrate::Goal::Contract } else { upgrade::migrate::Goal::Up };
        let epoch = self.seats[auth].epoch;
        let least = self.view.control.min_writer_epoch;
        let now = self.time();
        let control = self.view.control.clone();
        if data.turn(goal, epoch, &control, now) {
            let state = data.state(&control);
            self.watch.seen(match state {
                upgrade::migrate::State::Undoing => "data is undone",
                upgrade::migrate::State::Contracted => "data is contracted",
                _ => "data moves",
            });
            self.watch.tell(self.now, || format!("data is {state}"));
            let write = lint::Write { who: format!("auth-{auth}"), epoch, least, committed: true };
            self.watch.faults(self.now, lint::record(&lint::Facts { journal: vec![write], ..lint::Facts::default() }));
            let lease = serde_json::json!({"holder": format!("auth-{auth}"), "state": state.as_str()});
            self.store(types::ControlRecord { migration_lease: Some(lease), ..control });
        }
        self.data = Some(data);
    }

    pub(crate) fn leaf(&mut self, leaf: usize) {
        self.later(MINUTE, Event::Leaf { leaf });
        let (now, flaps) = (self.time(), self.has(Fault::LeafFlaps) && self.dice.chance(60));
        if flaps {
            return;
        }
        self.view.leaves[leaf].last_seen = now;
        let refuses = self.has(Fault::LeafRefuses);
        let Some(upgrade) = self.view.upgrade().ok().flatten() else { return };
        let goal = upgrade.goal().clone();
        let window = self.view.control.windows.get(upgrade::windows::LEAF);
        let open = window.is_some_and(|window| window.contains(goal.major()));
        let root =
            self.view.control.windows.get(AUTH).is_some_and(|window| window.lo >= goal.major() || upgrade.direction == Direction::Down);
        if upgrade.is_major() && open && root && !refuses && self.dice.chance(30) {
            self.view.leaves[leaf].version = goal;
        }
    }

    pub(crate) fn is_present(&self, host: usize) -> bool {
        let member = &self.view.members[host];
        member.state != Condition::Missing && self.time().since(member.last_seen) <= self.view.policy.offline_after.0
    }
}
