//! The world itself: hosts, the store and its leases, and the loop that lets one event after the other happen.
//!
//! What is *true* of a process stands in [`Host`] and [`Seating`], what the cluster *knows* of it in the store's [`View`], and the two differ
//! as they do in life: by heartbeats, leases and reports. Nobody but the watch (`watch`) looks at both.

use crate::{
    Report,
    data::Data,
    dice::{Dice, mix},
    executor::Pending,
    queue::{Event, HOUR, MINUTE, Queue, SECOND, Tick},
    scenario::{Fault, Scenario},
    watch::Watch,
};
use std::collections::BTreeSet;
use types::{
    ClusterName, ControlRecord, ResourceName, SystemRole, Time, Ttl, Version,
    name::{ClusterId, HostId},
};
use upgrade::{
    barrier::Seat,
    plan::{Condition, Consent, Leaf, Member, OnFailure, Policy, Release, Tier, View, Way},
    updater::{Book, Offer},
};

/// The release that runs at first, the one that is wanted, and one that is too old. What a host has is a place in this list.
pub(crate) const SOURCE: usize = 0;
pub(crate) const TARGET: usize = 1;
pub(crate) const OLD: usize = 2;

/// How long a seat and a member's document live, and how long an Auth Service believes in its seat.
pub(crate) const SEAT: Tick = 60 * SECOND;
pub(crate) const BELIEF: Tick = 30 * SECOND;
pub(crate) const DOCUMENT: Tick = 10 * MINUTE;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    Up,
    Down,
    /// It never comes back.
    Lost,
}

/// What is true of a host.
pub(crate) struct Host {
    pub(crate) tier: Tier,
    /// What the link names, and what the process runs.
    pub(crate) link: usize,
    pub(crate) runs: usize,
    pub(crate) life: Life,
    pub(crate) boot: u32,
    /// The Auth Service that let it in, while it is in. An Auth Service sits itself.
    pub(crate) via: Option<usize>,
    /// Refused for its version.
    pub(crate) refused: bool,
    /// Cut off from the cluster until then.
    pub(crate) away: Tick,
    /// Its clock goes wrong by so many seconds.
    pub(crate) skew: i64,
    pub(crate) full_disk: bool,
    pub(crate) book: Option<Box<Book>>,
    /// A round of its updater is due.
    pub(crate) updating: bool,
    /// What the updater last refused, and the generation of that directive.
    pub(crate) refusal: Option<(u64, String)>,
    /// The generation of its directive.
    pub(crate) ordered: u64,
}

/// What is true of an Auth Service besides.
pub(crate) struct Seating {
    /// The record by which it admits.
    pub(crate) heard: Option<ControlRecord>,
    pub(crate) epoch: u64,
    pub(crate) believes: Tick,
    /// As the store has it: acknowledged, until when, of which version.
    pub(crate) lease: Option<(u64, Tick, Version)>,
    pub(crate) frozen: Tick,
    pub(crate) cut: Tick,
    pub(crate) pending: Option<Pending>,
}

pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) dice: Dice,
    pub(crate) now: Tick,
    pub(crate) queue: Queue,
    pub(crate) versions: [Version; 3],
    pub(crate) view: View,
    /// Of the control record.
    pub(crate) revision: u64,
    /// Whose turn it is to carry the upgrade out.
    pub(crate) lease: Option<(usize, Tick)>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) seats: Vec<Seating>,
    pub(crate) data: Option<Data>,
    pub(crate) offers: Vec<Offer>,
    pub(crate) cluster: ClusterName,
    /// Of directives.
    pub(crate) generation: u64,
    pub(crate) proving: bool,
    pub(crate) stale_metadata: bool,
    pub(crate) calm: bool,
    /// Hosts that were sent to a release that does not work on them.
    pub(crate) struck: BTreeSet<usize>,
    pub(crate) people: crate::people::People,
    pub(crate) over: bool,
    pub(crate) watch: Watch,
}

impl World {
    pub(crate) fn new(scenario: &Scenario, tell: bool) -> Self {
        let mut dice = Dice::new(scenario.seed);
        let target = if scenario.way == Way::Swap { Version::new(1, 1, 0) } else { Version::new(2, 0, 0) };
        let versions = [Version::new(1, 0, 0), target, Version::new(0, 9, 0)];
        let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(7));
        let control = upgrade::birth(cluster, &versions[SOURCE], true).unwrap();
        let view = View {
            now: birth(),
            read_at: birth(),
            cluster: "sim".into(),
            control,
            asked: None,
            members: Vec::new(),
            seats: Vec::new(),
            leaves: Vec::new(),
            root: None,
            migrations: Vec::new(),
            backup: None,
            releases: versions.iter().take(2).map(release).collect(),
            findings: Vec::new(),
            policy: policy(scenario),
            waivers: Vec::new(),
        };
        let data = (scenario.data && scenario.way != Way::Swap).then(|| Data::to(&versions[TARGET]));
        let mut world = Self {
            offers: versions.iter().take(2).map(crate::updater::offer).collect(),
            scenario: scenario.clone(),
            now: 0,
            queue: Queue::default(),
            view,
            revision: 1,
            lease: None,
            hosts: Vec::new(),
            seats: Vec::new(),
            data,
            cluster: ClusterName::new("sim").unwrap(),
            generation: 0,
            proving: false,
            stale_metadata: false,
            calm: false,
            struck: BTreeSet::new(),
            people: crate::people::People::default(),
            over: false,
            watch: Watch::new(tell),
            versions,
            dice: Dice::new(0),
        };
        world.populate(&mut dice);
        world.dice = dice;
        world.begin();
        world
    }

    fn populate(&mut self, dice: &mut Dice) {
        let scenario = self.scenario.clone();
        let by_hand = |dice: &mut Dice| scenario.has(Fault::ByHand) && dice.chance(8);
        for number in 0..scenario.auths {
            let roles: &[SystemRole] =
                if scenario.way == Way::TakeOver { &[SystemRole::Auth, SystemRole::Proxy, SystemRole::Node] } else { &[SystemRole::Auth] };
            let member = member(self.hosts.len(), &format!("auth-{number}"), roles, &self.versions[SOURCE]);
            self.add(Tier::Auth, member);
            let seat = Seating { heard: None, epoch: 0, believes: 0, lease: None, frozen: 0, cut: 0, pending: None };
            self.seats.push(seat);
        }
        for number in 0..scenario.proxies {
            let class = format!("region-{}", number % 2);
            let member = member(self.hosts.len(), &format!("proxy-{number}"), &[SystemRole::Proxy], &self.versions[SOURCE]);
            self.add(Tier::Proxy, Member { class, by_hand: by_hand(dice), ..member });
        }
        for number in 0..scenario.agents {
            let class = format!("class-{}", dice.place(scenario.classes));
            let serves = BTreeSet::from_iter((number % 10 < 2).then(|| format!("db-{}", number / 10)));
            let old = number == 0 && scenario.has(Fault::Behind);
            let version = if old { OLD } else { SOURCE };
            let member = member(self.hosts.len(), &format!("web-{number}"), &[SystemRole::Node], &self.versions[version]);
            self.add(Tier::Agent, Member { class, serves, by_hand: by_hand(dice), ..member });
            let host = self.hosts.last_mut().unwrap();
            (host.link, host.runs) = (version, version);
        }
        if scenario.has(Fault::Combined) && scenario.way == Way::Roll && scenario.auths > 1 && scenario.agents > 1 {
            self.view.members.last_mut().unwrap().roles = [SystemRole::Proxy, SystemRole::Node].into();
        }
        if scenario.leaf {
            let (name, version) = ("berlin".to_owned(), self.versions[SOURCE].clone());
            self.view.leaves.push(Leaf { name, version, last_seen: birth(), by_others: scenario.has(Fault::LeafRefuses) });
        }
    }

    fn add(&mut self, tier: Tier, member: Member) {
        self.view.members.push(member);
        self.hosts.push(Host {
            tier,
            link: SOURCE,
            runs: SOURCE,
            life: Life::Down,
            boot: 0,
            via: None,
            refused: false,
            away: 0,
            skew: 0,
            full_disk: false,
            book: None,
            updating: false,
            refusal: None,
            ordered: 0,
        });
    }

    /// Everybody starts; a day later, as it were, somebody wants another release.
    fn begin(&mut self) {
        for host in 0..self.hosts.len() {
            let at = if host < self.seats.len() { 0 } else { 2 * SECOND + self.dice.below(MINUTE) };
            self.queue.put(at, Event::Start { host });
        }
        self.queue.put(3 * MINUTE, Event::People);
        for leaf in 0..self.view.leaves.len() {
            self.queue.put(MINUTE, Event::Leaf { leaf });
        }
        if self.data.is_some() {
            self.queue.put(MINUTE, Event::Data);
        }
        for (fault, name) in Fault::ALL.iter().enumerate() {
            if self.scenario.has(*name) {
                let first = self.dice.below(20 * MINUTE) + 30 * SECOND;
                self.queue.put(first, Event::Trouble { fault });
            }
        }
        let calm = if self.scenario.faults.is_empty() { HOUR } else { self.dice.between(2, 5) * HOUR };
        self.queue.put(calm, Event::Calm);
        self.watch.calm_at = calm;
    }

    /// Lets everything happen, until the upgrade is over or time is up.
    pub(crate) fn run(mut self) -> Report {
        while !self.over && self.watch.violation.is_none() {
            let Some((at, event)) = self.queue.next() else { break };
            self.now = at;
            self.watch.happened(at, event);
            self.happen(event);
        }
        let (view, now) = (&self.view, self.now);
        self.watch.report(&self.scenario, view, now)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start { host } => self.start(host),
            Event::Attach { host, boot } if self.is_same(host, boot) => self.attach(host),
            Event::Beat { host, boot } if self.is_same(host, boot) => self.beat(host),
            Event::Rescue { host, boot } if self.is_same(host, boot) => self.rescue(host),
            Event::Renew { host, boot } if self.is_same(host, boot) => self.renew(host),
            Event::Look { host, boot } if self.is_same(host, boot) => self.look(host),
            Event::Act { host, boot } if self.is_same(host, boot) => self.act(host),
            Event::Walked { host, boot } if self.is_same(host, boot) => self.walked(host),
            Event::Attach { .. } | Event::Beat { .. } | Event::Rescue { .. } | Event::Renew { .. } => {}
            Event::Look { .. } | Event::Act { .. } | Event::Walked { .. } => {}
            Event::Round { host } => self.round(host),
            Event::Proved { what } => self.proved(what),
            Event::Data => self.carry_data(),
            Event::Leaf { leaf } => self.leaf(leaf),
            Event::Drained { drainer } => self.drained(drainer),
            Event::Trouble { fault } => self.trouble(fault),
            Event::Calm => self.settle_down(),
            Event::People => self.look_after(),
        }
    }

    fn is_same(&self, host: usize, boot: u32) -> bool {
        let host = &self.hosts[host];
        host.boot == boot && host.life == Life::Up
    }

    pub(crate) fn later(&mut self, wait: Tick, event: Event) {
        self.queue.put(self.now + wait, event);
    }

    /// Soon, and not all at one time.
    pub(crate) fn soon(&mut self, low: Tick, high: Tick, event: Event) {
        let wait = self.dice.between(low, high);
        self.later(wait, event);
    }

    pub(crate) fn time(&self) -> Time {
        at(self.now)
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        !self.calm && self.scenario.has(fault)
    }

    pub(crate) fn image(&self, version: &Version) -> Option<usize> {
        self.versions.iter().position(|known| known == version)
    }

    pub(crate) fn boot_name(&self, host: usize) -> String {
        format!("{host}-{}", self.hosts[host].boot)
    }

    /// Whether a release is bad on this host.
    pub(crate) fn is_bad(&self, host: usize, image: usize) -> Option<crate::scenario::Fate> {
        let bad = self.scenario.bad.filter(|bad| image == TARGET && bad.tier == self.hosts[host].tier)?;
        (mix(self.scenario.seed ^ mix(host as u64)) % 100 < bad.share).then_some(bad.fate)
    }

    /// Reads the store as it is now: leases that ended are gone.
    pub(crate) fn refresh(&mut self) {
        let now = self.now;
        (self.view.now, self.view.read_at) = (at(now), at(now));
        let (members, seats) = (&self.view.members, &mut self.seats);
        self.view.seats = seats
            .iter_mut()
            .zip(members)
            .filter_map(|(seat, member)| {
                seat.lease = seat.lease.take().filter(|(_, until, _)| *until > now);
                let (acknowledged, _, version) = seat.lease.clone()?;
                Some(Seat { host: Some(member.id.clone()), name: member.name.clone(), version, acknowledged })
            })
            .collect();
        let lapsed = at(now.saturating_sub(DOCUMENT));
        for member in self.view.members.iter_mut().take(self.hosts.len()) {
            if member.last_seen < lapsed {
                member.state = Condition::Missing;
            }
        }
        let control = &self.view.control;
        self.view.migrations = self.data.iter().map(|data| data.seen(control)).collect();
    }
}

/// Noon of 2026-11-23.
fn birth() -> Time {
    Time::from_unix(1_795_435_200)
}

pub(crate) fn at(tick: Tick) -> Time {
    birth().plus(std::time::Duration::from_millis(tick))
}

fn release(version: &Version) -> Release {
    Release {
        version: version.clone(),
        digest: format!("sha256:{version}"),
        verified: true,
        mirrored: true,
        min_source: None,
        denied_sources: Vec::new(),
        visit: false,
        withdrawn: None,
    }
}

fn policy(scenario: &Scenario) -> Policy {
    Policy {
        in_flight: (scenario.agents / 20).max(5),
        bake_canary: Ttl::from_secs(300),
        soak: Ttl::from_secs(1800),
        absent_after: Ttl::hours(1),
        on_failure: if scenario.reverts { OnFailure::PauseAndRevert } else { OnFailure::Pause },
        finalize: if scenario.finalizes { Consent::After } else { Consent::Manual },
        ..Policy::default()
    }
}

pub(crate) fn host_id(host: usize) -> HostId {
    HostId::from_uuid(uuid::Uuid::from_u128(host as u128 + 1))
}

pub(crate) fn member(host: usize, name: &str, roles: &[SystemRole], version: &Version) -> Member {
    Member {
        id: ResourceName::from(&host_id(host)),
        name: name.to_owned(),
        roles: roles.iter().cloned().collect(),
        version: version.clone(),
        boot: String::new(),
        started: birth(),
        last_seen: birth(),
        // Nobody has heard of it yet.
        state: Condition::Missing,
        class: String::new(),
        serves: BTreeSet::new(),
        by_hand: false,
        told: None,
        path: None,
        drains_until: None,
    }
}
