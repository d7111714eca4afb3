//! A host's process: it starts, asks to be let in, reports, is refused, is rescued. Admission and the advice to who is refused are the real ones.

use crate::{
    queue::{Event, MINUTE, SECOND},
    scenario::{Fate, Fault},
    world::{Life, SOURCE, TARGET, World, at},
};
use rules::{admission, presence, rescue};
use std::collections::BTreeSet;
use types::{
    SystemRole, Time, Version,
    version::{Direction, Skew},
};
use upgrade::{
    lint,
    plan::{Condition, Tier, Walk},
};

impl World {
    pub(crate) fn start(&mut self, host: usize) {
        if self.hosts[host].life != Life::Down {
            return;
        }
        let link = self.hosts[host].link;
        let fate = self.is_bad(host, link);
        let own = &mut self.hosts[host];
        own.boot += 1;
        (own.life, own.runs, own.refused) = (Life::Up, link, false);
        let boot = own.boot;
        match fate {
            Some(Fate::Crashes) => {
                self.hosts[host].life = Life::Down;
                self.soon(20 * SECOND, 40 * SECOND, Event::Start { host });
            }
            Some(Fate::Deaf) => {}
            Some(Fate::Broken | Fate::Unfit) | None if host < self.seats.len() => {
                self.soon(SECOND, 3 * SECOND, Event::Renew { host, boot })
            }
            Some(Fate::Broken | Fate::Unfit) | None => self.soon(SECOND, 5 * SECOND, Event::Attach { host, boot }),
        }
    }

    /// The process ends. `drains`: it says so before.
    pub(crate) fn stop(&mut self, host: usize, drains: bool) {
        self.leave(host);
        if host < self.seats.len() {
            let seat = &mut self.seats[host];
            seat.heard = None;
            seat.believes = 0;
            seat.pending = None;
            if drains {
                seat.lease = None;
            }
        }
        if drains && self.hosts[host].life == Life::Up && !self.hosts[host].refused {
            self.view.members[host].state = Condition::Draining;
        }
        if self.hosts[host].life == Life::Up {
            self.hosts[host].life = Life::Down;
        }
    }

    pub(crate) fn restart(&mut self, host: usize, drains: bool) {
        self.stop(host, drains);
        self.soon(2 * SECOND, 10 * SECOND, Event::Start { host });
        if self.has(Fault::Storm) && self.hosts[host].tier == Tier::Proxy {
            self.storm(host);
        }
    }

    /// Who was connected through a Proxy that goes connects anew, all at once.
    fn storm(&mut self, proxy: usize) {
        let proxies = self.scenario.proxies.max(1);
        for host in self.seats.len() + self.scenario.proxies..self.hosts.len() {
            if host % proxies == proxy % proxies && self.hosts[host].via.is_some() {
                self.leave(host);
                let boot = self.hosts[host].boot;
                self.soon(0, 3 * SECOND, Event::Attach { host, boot });
            }
        }
    }

    /// It is connected to nobody any more.
    pub(crate) fn leave(&mut self, host: usize) {
        if self.hosts[host].via.take().is_some() {
            self.watch.left(&self.view.members[host].roles, self.hosts[host].runs);
        }
    }

    /// It is let in by this Auth Service; an Auth Service by itself.
    pub(crate) fn enter(&mut self, host: usize, via: usize) {
        self.leave(host);
        self.hosts[host].via = Some(via);
        let runs = self.hosts[host].runs;
        self.watch.entered(self.now, &self.view, &self.view.members[host].roles, runs, &self.versions);
    }

    pub(crate) fn attach(&mut self, host: usize) {
        let boot = self.hosts[host].boot;
        let Some((auth, handshake)) = self.reachable_auth(host) else {
            self.soon(10 * SECOND, 20 * SECOND, Event::Attach { host, boot });
            return;
        };
        if let Skew::Refused(refusal) = handshake {
            return self.refuse(host, refusal.hint.as_deref().unwrap_or_default());
        }
        let version = self.versions[self.hosts[host].runs].clone();
        let heard = self.seats[auth].heard.as_ref();
        let applicant = admission::Applicant {
            roles: &self.view.members[host].roles,
            version: Some(&version),
            skips_version_check: false,
            draining: false,
        };
        let admitted = heard.map(|control| admission::admit(control, &applicant));
        match admitted {
            Some(Ok(_)) => {}
            Some(Err(refusal)) => {
                self.refuse(host, refusal.hint.as_deref().unwrap_or_default());
                return;
            }
            None => {
                self.soon(5 * SECOND, 10 * SECOND, Event::Attach { host, boot });
                return;
            }
        }
        // The document is written by who let it in; a fenced Auth Service cannot.
        if !self.can_write(auth) || !self.finds_proxy(host, &version) {
            self.soon(10 * SECOND, 30 * SECOND, Event::Attach { host, boot });
            return;
        }
        self.admit(host, auth, &version);
    }

    fn admit(&mut self, host: usize, auth: usize, version: &Version) {
        let control = self.seats[auth].heard.as_ref();
        let roles = self.view.members[host].roles.iter().filter_map(|role| role.window(false));
        let windows = roles.filter_map(|role| Some((role, control?.windows.get(role)?)));
        let admitted =
            windows.map(|(role, window)| lint::Admitted { name: role.to_owned(), lo: window.lo, hi: window.hi, major: version.major() });
        let facts = lint::Facts { admitted: admitted.collect(), ..lint::Facts::default() };
        self.watch.faults(self.now, lint::record(&facts));
        self.enter(host, auth);
        self.wrote(host, Condition::Active);
        let boot = self.hosts[host].boot;
        self.soon(SECOND, 60 * SECOND, Event::Beat { host, boot });
    }

    /// What the cluster knows of a process from now on.
    pub(crate) fn wrote(&mut self, host: usize, state: Condition) {
        let (now, boot) = (self.time(), self.boot_name(host));
        let version = self.versions[self.hosts[host].runs].clone();
        let skew = self.hosts[host].skew;
        let member = &mut self.view.members[host];
        if member.boot != boot {
            (member.boot, member.version, member.path) = (boot, version, None);
            member.started = Time::from_unix_millis(now.unix_millis() + skew * 1000);
        }
        (member.last_seen, member.state) = (now, state);
    }

    fn refuse(&mut self, host: usize, cure: &str) {
        self.leave(host);
        self.hosts[host].refused = true;
        self.wrote(host, Condition::Quarantined);
        let told = lint::Told { name: self.view.members[host].name.clone(), cure: cure.to_owned(), at: self.time() };
        self.watch.faults(self.now, lint::record(&lint::Facts { refused: vec![told], ..lint::Facts::default() }));
        self.watch.seen("refused for its version");
        self.watch.tell(self.now, || format!("host {host} is refused: {cure}"));
        let boot = self.hosts[host].boot;
        self.soon(30 * SECOND, 3 * MINUTE, Event::Rescue { host, boot });
    }

    /// Somebody who is inside no more is cut off, by who let it in.
    pub(crate) fn cut_off(&mut self, host: usize, control: &types::ControlRecord) {
        let version = self.versions[self.hosts[host].runs].clone();
        let roles = self.view.members[host].roles.clone();
        let applicant = admission::Applicant { roles: &roles, version: Some(&version), skips_version_check: false, draining: false };
        if let Err(refusal) = admission::admit(control, &applicant) {
            self.refuse(host, refusal.hint.as_deref().unwrap_or_default());
        }
    }

    /// A refused host asks what it should run, and runs it.
    pub(crate) fn rescue(&mut self, host: usize) {
        let boot = self.hosts[host].boot;
        let again = |world: &mut Self| world.soon(MINUTE, 4 * MINUTE, Event::Rescue { host, boot });
        if !self.hosts[host].refused {
            return;
        }
        if self.is_away(host) || self.reachable_auth(host).is_none() || self.view.members[host].by_hand && !self.dice.chance(30) {
            again(self);
            return;
        }
        let role = if self.hosts[host].tier == Tier::Proxy { "proxy" } else { "agent" };
        let own = self.versions[self.hosts[host].runs].clone();
        let proxy = self.newest_server();
        let releases = [self.versions[SOURCE].clone(), self.versions[TARGET].clone()];
        let window = self.view.control.windows.get(role).cloned();
        let case = rescue::Case {
            host: Some(&own),
            other_build: false,
            window: window.as_ref(),
            production: true,
            proxy: &proxy,
            releases: &releases,
        };
        match rescue::next(&case) {
            rescue::Advice::Install(target, _) => {
                let image = target.version.as_ref().and_then(|version| self.image(version));
                let Some(image) = image.filter(|image| *image != self.hosts[host].runs) else { return again(self) };
                self.watch.seen("rescued");
                self.watch.tell(self.now, || format!("host {host} is rescued to {target}"));
                self.hosts[host].link = image;
                self.restart(host, false);
            }
            rescue::Advice::Retry => {
                self.hosts[host].refused = false;
                self.soon(SECOND, 5 * SECOND, Event::Attach { host, boot });
            }
            rescue::Advice::Wait => again(self),
        }
    }

    /// The newest version that serves beside the hosts: of a Proxy, or of an Auth Service that is one too.
    fn newest_server(&self) -> Version {
        let servers = self.hosts.iter().take(self.seats.len() + self.scenario.proxies).skip(if self.scenario.proxies > 0 {
            self.seats.len()
        } else {
            0
        });
        let up = servers.filter(|host| host.via.is_some()).map(|host| &self.versions[host.runs]);
        up.max_by(|one, other| one.release_order(other)).unwrap_or(&self.versions[SOURCE]).clone()
    }

    /// Agents come through a Proxy with which they can speak.
    fn finds_proxy(&self, host: usize, version: &Version) -> bool {
        let (first, count) = (self.seats.len(), self.scenario.proxies);
        if self.hosts[host].tier != Tier::Agent || count == 0 {
            return true;
        }
        self.hosts[first..first + count]
            .iter()
            .filter(|proxy| proxy.via.is_some())
            .any(|proxy| Skew::judge(Direction::ServerFirst, Some(version), Some(&self.versions[proxy.runs])).accepted().is_ok())
    }

    /// An Auth Service that admits, by chance, and what the handshake with it says. Whoever can speak with some of them finds one.
    fn reachable_auth(&mut self, host: usize) -> Option<(usize, Skew)> {
        if self.is_away(host) {
            return None;
        }
        let own = &self.versions[self.hosts[host].runs];
        let handshake = |auth: usize| Skew::judge(Direction::ServerFirst, Some(own), Some(&self.versions[self.hosts[auth].runs]));
        let auths = (0..self.seats.len()).filter(|auth| self.believes(*auth)).map(|auth| (auth, handshake(auth)));
        let (able, others): (Vec<_>, Vec<_>) = auths.partition(|(_, skew)| skew.accepted().is_ok());
        let mut among = if able.is_empty() { others } else { able };
        let place = self.dice.place(among.len());
        (place < among.len()).then(|| among.swap_remove(place))
    }

    pub(crate) fn is_away(&self, host: usize) -> bool {
        self.hosts[host].away > self.now
    }

    /// Whether some Auth Service answers.
    pub(crate) fn is_served(&self) -> bool {
        (0..self.seats.len()).any(|auth| self.believes(auth))
    }

    pub(crate) fn beat(&mut self, host: usize) {
        let boot = self.hosts[host].boot;
        if self.hosts[host].refused {
            return;
        }
        let via = self.hosts[host].via.filter(|via| self.believes(*via) && self.can_write(*via));
        if via.is_none() || self.is_away(host) {
            self.leave(host);
            self.soon(5 * SECOND, 20 * SECOND, Event::Attach { host, boot });
            return;
        }
        self.view.members[host].last_seen = at(self.now);
        self.view.members[host].state = Condition::Active;
        self.report(host);
        let wait = presence::interval(presence::HEARTBEAT, u32::try_from(self.dice.next() >> 32).unwrap_or(0));
        self.later(u64::try_from(wait.as_millis()).unwrap_or(60_000), Event::Beat { host, boot });
    }

    /// A user's path through a member, as it is at the end of the walk.
    pub(crate) fn walked(&mut self, host: usize) {
        let boot = self.boot_name(host);
        if self.view.members[host].boot != boot {
            return;
        }
        let noise = self.has(Fault::Noise) && self.dice.chance(2);
        let broken = self.is_bad(host, self.hosts[host].runs) == Some(Fate::Broken);
        let through = self.hosts[host].via.is_some() && !self.is_away(host);
        let failed = (noise || broken || !through).then(|| "a user did not get through".to_owned());
        self.watch.tell(self.now, || format!("a user's path through host {host}: {}", failed.as_deref().unwrap_or("open")));
        self.view.members[host].path = Some(Walk { boot, at: at(self.now), failed });
    }

    /// What remains of a process that others replaced: it ends with its last session.
    pub(crate) fn drain(&mut self, host: usize) {
        let drainers = self.view.members.len() - self.hosts.len();
        if !self.has(Fault::Sessions) || drainers >= 8 || self.hosts[host].tier == Tier::Auth || self.hosts[host].via.is_none() {
            return;
        }
        self.generation += 1;
        let number = usize::try_from(self.generation).unwrap_or(0) + 1_000_000;
        let roles: BTreeSet<SystemRole> = self.view.members[host].roles.clone();
        let roles: Vec<SystemRole> = roles.into_iter().collect();
        let name = format!("{}-drains", self.view.members[host].name);
        let wait = self.dice.between(5, 90) * MINUTE;
        let mut drainer = crate::world::member(number, &name, &roles, &self.versions[self.hosts[host].runs]);
        (drainer.state, drainer.last_seen, drainer.drains_until) = (Condition::Draining, at(self.now), Some(at(self.now + wait)));
        drainer.boot = format!("drains-{number}");
        self.view.members.push(drainer);
        self.later(wait, Event::Drained { drainer: number });
    }

    pub(crate) fn drained(&mut self, drainer: usize) {
        let id = types::ResourceName::from(&crate::world::host_id(drainer));
        let hosts = self.hosts.len();
        if let Some(place) = self.view.members.iter().skip(hosts).position(|member| member.id == id) {
            self.view.members.remove(hosts + place);
        }
    }
}
