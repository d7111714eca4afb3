//! The people who run the cluster: they ask for the upgrade, read what the planner names, and do what its cures say, sooner or later.

use crate::{
    queue::{Event, HOUR, MINUTE},
    scenario::{Fate, Fault},
    world::{Life, OLD, SOURCE, TARGET, World},
};
use std::collections::BTreeSet;
use types::{SystemRole, Version};
use upgrade::plan::{Bar, Block, Decision, Direction, Finding, Fleet, Gate, Member, Said, Stage, Upgrade, Wait, Waiver, Wave};

/// After so long in calm it must have come to an end.
const PATIENCE: u64 = 24 * HOUR;

#[derive(Default)]
pub(crate) struct People {
    pub(crate) asked: bool,
    /// Where it stood when somebody last turned round to go back.
    pub(crate) turned_from: Option<Stage>,
    stage: Option<Stage>,
    wave: Option<Wave>,
    waits: Vec<Wait>,
    blocked: Vec<Block>,
    resumed: u32,
    /// Visits at which the same was inconclusive.
    unclear: u32,
    /// Visits without any Auth Service.
    dark: u32,
    read: bool,
}

impl People {
    /// They read what was decided last.
    pub(crate) fn saw(&mut self, decision: &Decision) {
        (self.stage, self.wave, self.read) = (Some(decision.stage), decision.wave, true);
        (self.waits, self.blocked) = (decision.waits.clone(), decision.blocked.clone());
    }
}

impl World {
    pub(crate) fn look_after(&mut self) {
        self.later(5 * MINUTE, Event::People);
        if self.calm && self.now > self.watch.calm_at + PATIENCE {
            return self.give_up();
        }
        if !self.people.asked {
            return self.ask();
        }
        self.bring_back_auth();
        if !std::mem::take(&mut self.people.read) {
            return;
        }
        if let Ok(Some(upgrade)) = self.view.upgrade() {
            self.unpause(&upgrade);
        }
        let (waits, blocked) = (self.people.waits.clone(), self.people.blocked.clone());
        for block in &blocked {
            if self.calm || self.dice.chance(50) {
                self.cure(block);
            }
        }
        for wait in &waits {
            if self.calm || self.dice.chance(40) {
                self.help(wait);
            }
        }
    }

    /// The property I23: with faults stopped it comes to an end, or says what a person has to decide.
    fn give_up(&mut self) {
        let blocks = self.people.blocked.iter().map(|block| block.code.as_str()).collect::<Vec<_>>().join(", ");
        if blocks.is_empty() {
            let waits = self.people.waits.iter().map(|wait| format!("{} {}", wait.code, wait.cause)).collect::<Vec<_>>().join("; ");
            let stage = self.people.stage.map_or("before", Stage::as_str);
            self.watch.break_off(self.now, format!("I23: after a day of calm it stands in {stage}: {waits}"));
        } else {
            self.watch.seen(&format!("ended blocked by {blocks}"));
            self.watch.end = format!("blocked by {blocks}");
        }
        self.over = true;
    }

    fn ask(&mut self) {
        let wrong = [Version::new(3, 0, 0), Version::new(0, 9, 0), "2.0.0-rc.1".parse().unwrap()];
        if self.scenario.has(Fault::Prerelease) && self.now < 30 * MINUTE {
            let place = self.dice.place(wrong.len());
            self.view.asked = Some(wrong[place].clone());
            return;
        }
        self.people.asked = true;
        self.view.asked = Some(self.versions[TARGET].clone());
    }

    /// Writes the upgrade's record as a person does: read, change, write.
    pub(crate) fn say(&mut self, edit: impl FnOnce(&mut Upgrade)) {
        if let Ok(Some(mut upgrade)) = self.view.upgrade() {
            edit(&mut upgrade);
            let next = upgrade.write_to(&self.view.control);
            self.store(next);
        }
    }

    pub(crate) fn turn(&mut self, direction: Direction) {
        let Ok(Some(upgrade)) = self.view.upgrade() else { return };
        let finalized = upgrade.is_major() && self.view.control.cluster_version.major >= upgrade.target.major();
        if finalized && direction == Direction::Down {
            return;
        }
        if direction == Direction::Down && upgrade.direction == Direction::Up {
            self.people.turned_from = self.people.stage;
        }
        self.people.resumed = 0;
        self.watch.seen("turned round");
        self.watch.tell(self.now, || format!("somebody turns round: {direction:?}"));
        self.say(|upgrade| *upgrade = upgrade.clone().turned(direction));
    }

    fn unpause(&mut self, upgrade: &Upgrade) {
        let Some(pause) = &upgrade.paused else { return };
        if !pause.failed {
            if self.calm || self.dice.chance(30) {
                self.say(|upgrade| upgrade.paused = None);
            }
            return;
        }
        self.people.resumed += 1;
        let again = self.people.resumed <= 2 && self.dice.chance(60);
        match upgrade.direction {
            Direction::Up if !again => self.turn(Direction::Down),
            Direction::Up => self.say(|upgrade| upgrade.paused = None),
            Direction::Down => {
                if self.people.resumed > 2 {
                    self.waive_health();
                }
                self.say(|upgrade| upgrade.paused = None);
            }
        }
    }

    fn waive(&mut self, name: &str) {
        let (by, at, until) = ("ann".into(), self.time(), self.time().plus(std::time::Duration::from_secs(6 * 3600)));
        self.watch.tell(self.now, || format!("{name} is waived"));
        self.view.waivers.retain(|waiver| waiver.name != name);
        self.view.waivers.push(Waiver { name: name.into(), by, at, until, reason: "sim".into() });
    }

    fn waive_health(&mut self) {
        if let Some(wave) = self.people.wave {
            self.waive(&format!("health:{}", wave.tier.window()));
        }
    }

    pub(crate) fn evict(&mut self, host: usize) {
        self.refresh();
        let member = self.view.members[host].id.clone();
        if let Some(next) = self.evicted(&member, "it is gone") {
            self.watch.seen("somebody evicted a member");
            self.watch.tell(self.now, || format!("host {host} is evicted"));
            self.store(next);
        }
    }

    /// `web-17` is the eighteenth agent.
    fn by_name(&self, name: &str) -> Option<usize> {
        let (kind, number) = name.rsplit_once('-')?;
        let number: usize = number.parse().ok()?;
        let first = match kind {
            "auth" => 0,
            "proxy" => self.seats.len(),
            _ => self.seats.len() + self.scenario.proxies,
        };
        Some(first + number).filter(|host| *host < self.hosts.len())
    }

    /// Somebody goes there and installs it.
    fn install_by_hand(&mut self, host: usize, image: usize) {
        if self.hosts[host].life == Life::Lost || self.is_away(host) {
            return;
        }
        self.watch.tell(self.now, || format!("somebody installs {} on host {host}", self.versions[image]));
        let own = &mut self.hosts[host];
        (own.link, own.book, own.full_disk) = (image, None, false);
        self.restart(host, true);
    }

    fn goal(&self) -> Option<usize> {
        let upgrade = self.view.upgrade().ok().flatten()?;
        self.image(upgrade.goal())
    }

    fn cure(&mut self, block: &Block) {
        let hosts: Vec<usize> = block.members.iter().filter_map(|name| self.by_name(name)).collect();
        match block.code {
            Bar::CannotClose => hosts.into_iter().for_each(|host| self.mend_or_evict(host)),
            Bar::Behind => {
                for host in hosts {
                    if self.is_present(host) && self.hosts[host].life == Life::Up {
                        self.install_by_hand(host, SOURCE);
                    } else {
                        let name = self.view.members[host].name.clone();
                        self.waive(&format!("member:{name}"));
                    }
                }
            }
            Bar::Rotation => self.view.findings.retain(|finding| !matches!(finding, Finding::Rotation { .. })),
            Bar::Host => {
                self.view.findings.retain(|finding| !matches!(finding, Finding::Disk { .. } | Finding::Clock { .. }));
                hosts.into_iter().for_each(|host| (self.hosts[host].full_disk, self.hosts[host].skew) = (false, 0));
            }
            Bar::Leaf => block.waiver.iter().for_each(|name| self.waive(name)),
            Bar::Proof => self.view.backup = None,
            Bar::Data => {
                let now = self.time();
                self.data.iter_mut().for_each(|data| data.mend(now));
            }
            Bar::Release => {
                self.view.releases[TARGET].withdrawn = None;
                self.ask_again();
            }
            Bar::Prerelease | Bar::Source | Bar::Downgrade => self.ask_again(),
            Bar::Combined => {
                let auths = self.seats.len();
                for host in hosts.into_iter().filter(|host| *host >= auths) {
                    self.leave(host);
                    self.view.members[host].roles = [SystemRole::Node].into();
                    self.restart(host, false);
                }
            }
            Bar::Final => self.turn(Direction::Up),
            // A pause follows, and is answered there.
            Bar::Unhealthy => {}
            Bar::WayBack | Bar::Setting | Bar::RootFirst | Bar::Windows | Bar::Record | Bar::Another | Bar::NoForecast => {}
        }
    }

    fn ask_again(&mut self) {
        if self.view.control.upgrade.is_none() && self.people.asked {
            self.view.asked = Some(self.versions[TARGET].clone());
        }
    }

    fn mend_or_evict(&mut self, host: usize) {
        let Some(goal) = self.goal() else { return };
        if !self.is_present(host) {
            self.evict(host);
        } else if self.is_bad(host, goal).is_some_and(|fate| fate != Fate::Broken) {
            // What does not run there is stopped there.
            self.stop(host, true);
            self.hosts[host].life = Life::Lost;
        } else {
            self.install_by_hand(host, goal);
        }
    }

    fn help(&mut self, wait: &Wait) {
        let hosts: Vec<usize> = wait.members.iter().filter_map(|name| self.by_name(name)).collect();
        match wait.code {
            Gate::ByHand => {
                if let Some(goal) = self.goal() {
                    hosts.into_iter().for_each(|host| self.install_by_hand(host, goal));
                }
            }
            Gate::Outside => {
                for host in hosts.into_iter().filter(|host| !self.is_present(*host)).collect::<Vec<_>>() {
                    self.evict(host);
                }
            }
            Gate::Leaf => wait.members.iter().for_each(|name| self.waive(&format!("leaf:{name}"))),
            Gate::Consent => {
                let said = Said { by: "ann".into(), at: self.time() };
                self.say(|upgrade| upgrade.finalize = Some(said));
            }
            Gate::Verdict => {
                self.people.unclear += 1;
                let down = self.view.upgrade().ok().flatten().is_some_and(|upgrade| upgrade.direction == Direction::Down);
                match (self.people.unclear > 6, down) {
                    (true, true) => self.waive_health(),
                    (true, false) => self.turn(Direction::Down),
                    (false, _) => {}
                }
            }
            Gate::Availability => {
                if let Some(goal) = self.goal() {
                    self.not_ready_beside(&wait.members).into_iter().for_each(|host| self.install_by_hand(host, goal));
                }
            }
            Gate::Stale | Gate::NoAuth | Gate::Backup | Gate::Barrier | Gate::Moving | Gate::Walk | Gate::Bake => {}
            Gate::Data | Gate::Retry | Gate::Draining | Gate::Soak | Gate::Paused => {}
        }
    }

    /// Who serves what these serve, and does not: the cure says to bring him back.
    fn not_ready_beside(&self, held: &[String]) -> Vec<usize> {
        let Ok(Some(upgrade)) = self.view.upgrade() else { return Vec::new() };
        let fleet = Fleet { view: &self.view, upgrade: &upgrade };
        let of_them = |member: &&Member| held.contains(&member.name);
        let duties: BTreeSet<&String> = self.view.members.iter().filter(of_them).flat_map(|member| &member.serves).collect();
        let shares = |member: &&Member| member.serves.iter().any(|served| duties.contains(served)) && !fleet.is_ready(member);
        self.view.members.iter().filter(shares).filter_map(|member| self.by_name(&member.name)).collect()
    }

    /// Without any Auth Service nobody tells anything; somebody looks at the logs, and starts what the store takes.
    fn bring_back_auth(&mut self) {
        self.people.dark = if self.is_served() { 0 } else { self.people.dark + 1 };
        if self.people.dark < 4 {
            return;
        }
        for auth in 0..self.seats.len() {
            let fits = |image: &usize| {
                *image != OLD
                    && self.is_bad(auth, *image).is_none()
                    && upgrade::may_start(Some(&self.view.control), &self.versions[*image]).is_ok()
            };
            if let Some(image) = [self.hosts[auth].link, SOURCE, TARGET].into_iter().find(fits) {
                self.watch.seen("an Auth Service was brought back by hand");
                self.install_by_hand(auth, image);
            }
        }
        self.people.dark = 0;
    }
}
