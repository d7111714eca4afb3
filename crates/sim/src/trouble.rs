//! What goes wrong: one function for each fault, called again and again until calm.

use crate::{
    queue::{Event, MINUTE, SECOND},
    scenario::Fault,
    world::{Life, SOURCE, TARGET, World},
};
use upgrade::plan::{Direction, Finding, Pause};

impl World {
    pub(crate) fn trouble(&mut self, fault: usize) {
        if self.calm {
            return;
        }
        let name = Fault::ALL[fault];
        let again = self.dice.between(3, 25) * MINUTE;
        self.later(again, Event::Trouble { fault });
        self.watch.tell(self.now, || format!("trouble: {}", name.text()));
        let auth = self.dice.place(self.seats.len());
        let minutes = self.dice.between(1, 25) * MINUTE;
        match name {
            Fault::Crash => self.some(|world, host| world.restart(host, false)),
            Fault::PowerLoss => self.some(|world, host| {
                world.hosts[host].book = None;
                world.restart(host, false);
            }),
            Fault::Freeze => {
                // It is who carries the upgrade out that matters.
                let auth = self.lease.map_or(auth, |(holder, _)| holder);
                self.seats[auth].frozen = self.now + minutes;
                self.leave(auth);
            }
            Fault::CutFromStore => self.seats[auth].cut = self.now + minutes,
            Fault::CutOff => self.some(|world, host| world.cut(host, minutes)),
            Fault::Region => {
                let host = self.dice.place(self.hosts.len());
                let class = self.view.members[host].class.clone();
                for other in self.seats.len()..self.hosts.len() {
                    if self.view.members[other].class == class {
                        self.cut(other, minutes);
                    }
                }
            }
            Fault::StaleImage => self.some(|world, host| world.reimage(host, SOURCE)),
            Fault::PrematureImage => self.some(|world, host| world.reimage(host, TARGET)),
            Fault::Reschedule => self.some(|world, host| {
                world.hosts[host].book = None;
                world.restart(host, true);
            }),
            Fault::Turn => self.turn_by_whim(),
            Fault::Pause => self.pause_or_resume(),
            Fault::WrongEviction => {
                let silent = (0..self.hosts.len()).find(|host| !self.is_present(*host));
                let host = silent.unwrap_or_else(|| self.dice.place(self.hosts.len()));
                self.evict(host);
            }
            Fault::Lost => {
                if self.dice.chance(40) {
                    self.lose();
                }
            }
            Fault::Flapping => {
                let host = self.hosts.len() - 1;
                if self.hosts[host].life != Life::Lost {
                    self.cut(host, minutes / 6);
                }
            }
            Fault::DiskFull => self.fill_disk(),
            Fault::StaleMetadata => self.stale_metadata = !self.stale_metadata,
            Fault::WrongClock => self.wrong_clock(),
            Fault::Rotation => self.rotate(),
            Fault::BadRows => {
                if let Some(data) = &mut self.data {
                    data.bad = true;
                }
            }
            Fault::Withdrawn => {
                let release = &mut self.view.releases[TARGET];
                release.withdrawn = release.withdrawn.is_none().then(|| "it loses mail".to_owned());
            }
            // These are asked about where they matter.
            Fault::LostAnswer | Fault::CorruptArtifact | Fault::LeafFlaps | Fault::LeafRefuses | Fault::Storm | Fault::TwoExecutors => {}
            Fault::ProofFails | Fault::BadBuild | Fault::Noise | Fault::ByHand | Fault::Behind | Fault::Sessions | Fault::Combined => {}
            Fault::Prerelease => {}
        }
    }

    /// One host of a few hundred, and one at least.
    fn some(&mut self, mut what: impl FnMut(&mut Self, usize)) {
        for _ in 0..=self.hosts.len() / 300 {
            let host = self.dice.place(self.hosts.len());
            if self.hosts[host].life != Life::Lost {
                what(self, host);
            }
        }
    }

    fn cut(&mut self, host: usize, length: u64) {
        self.hosts[host].away = self.hosts[host].away.max(self.now + length);
        self.leave(host);
    }

    fn reimage(&mut self, host: usize, image: usize) {
        if self.dice.chance(50) {
            self.hosts[host].link = image;
            self.restart(host, false);
        }
    }

    /// A host that is no Auth Service: those are replaced by people, or the cluster is gone.
    fn lose(&mut self) {
        let first = self.seats.len() + self.scenario.proxies.min(1);
        if first < self.hosts.len() {
            let host = first + self.dice.place(self.hosts.len() - first);
            self.stop(host, false);
            self.hosts[host].life = Life::Lost;
            self.watch.tell(self.now, || format!("host {host} is lost"));
        }
    }

    fn fill_disk(&mut self) {
        let host = self.dice.place(self.hosts.len());
        self.hosts[host].full_disk = true;
        if self.view.control.upgrade.is_none() {
            let member = self.view.members[host].name.clone();
            self.view.findings.push(Finding::Disk { member, needs: 210, has: 40 });
        }
    }

    fn wrong_clock(&mut self) {
        let host = self.dice.place(self.hosts.len());
        let seconds = i64::try_from(self.dice.below(3600)).unwrap_or(0);
        self.hosts[host].skew = if self.dice.chance(50) { seconds } else { -seconds };
        if self.view.control.upgrade.is_none() {
            let member = self.view.members[host].name.clone();
            self.view.findings.push(Finding::Clock { member, off: seconds.unsigned_abs() });
        }
    }

    /// Tried at any time; who rotates looks whether an upgrade is under way.
    fn rotate(&mut self) {
        let rotates = |finding: &Finding| matches!(finding, Finding::Rotation { .. });
        if self.view.control.upgrade.is_none() && !self.view.findings.iter().any(rotates) {
            self.view.findings.push(Finding::Rotation { authority: "host".into(), phase: "update_clients".into() });
        }
    }

    fn turn_by_whim(&mut self) {
        if let Ok(Some(upgrade)) = self.view.upgrade()
            && self.dice.chance(40)
        {
            self.turn(if upgrade.direction == Direction::Up { Direction::Down } else { Direction::Up });
        }
    }

    fn pause_or_resume(&mut self) {
        let pause = Pause { by: "ann".into(), at: self.time(), reason: "lunch".into(), failed: false, revert: None };
        self.say(|upgrade| upgrade.paused = upgrade.paused.is_none().then_some(pause));
        self.watch.pauses += 1;
    }

    /// Faults stop. What they broke is mended, but who is lost stays lost and a bad build stays bad.
    pub(crate) fn settle_down(&mut self) {
        self.calm = true;
        self.watch.tell(self.now, || "calm".into());
        for seat in &mut self.seats {
            (seat.frozen, seat.cut) = (seat.frozen.min(self.now), seat.cut.min(self.now));
        }
        for host in &mut self.hosts {
            (host.away, host.skew, host.full_disk) = (host.away.min(self.now), 0, false);
        }
        self.stale_metadata = false;
        self.view.releases[TARGET].withdrawn = None;
        self.view.findings.retain(|finding| matches!(finding, Finding::Rotation { .. }));
        let now = self.time();
        if let Some(data) = &mut self.data {
            data.mend(now);
        }
        self.later(SECOND, Event::People);
    }
}
