//! A host's updater: the real judgement, round by round, in a world where fetching takes time and disks are full.

use crate::{
    queue::{Event, MINUTE, SECOND},
    scenario::{Fate, Fault},
    world::{Life, TARGET, World, at, host_id},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use types::{
    Extra, Sha256, Version,
    name::ClusterId,
    update::{Directive, FORMAT, Target},
};
use upgrade::plan::Tier;
use upgrade::updater::{Book, Case, Event as Outcome, Host, Installed, Looked, Offer, Patience, Step, Verdict, next};

fn digest(version: &Version) -> Sha256 {
    let mut bytes = [0; 32];
    bytes.iter_mut().zip(version.to_string().bytes()).for_each(|(byte, letter)| *byte = letter);
    Sha256::new(bytes)
}

pub(crate) fn offer(version: &Version) -> Offer {
    Offer {
        version: version.clone(),
        edition: "sim".into(),
        os: "linux".into(),
        arch: "amd64".into(),
        file: format!("lockgate-{version}.tar.zst"),
        archive: digest(version),
        size: 1 << 24,
        program: digest(version),
        minimum_source: Version::new(0, 0, 0),
        denied_sources: BTreeMap::new(),
    }
}

impl World {
    /// The directive of one host, as the cluster hands it out: one that was given before somebody turned round is handed out no more.
    fn directive(&self, host: usize) -> Option<Directive> {
        let told = self.view.members[host].told.as_ref()?;
        let upgrade = self.view.upgrade().ok().flatten()?;
        let reverts = upgrade.paused.as_ref().is_some_and(|pause| pause.revert.is_some()) && told.version == *upgrade.source();
        if told.version != *upgrade.goal() && !reverts {
            return None;
        }
        Some(Directive {
            format: FORMAT,
            cluster: self.cluster.clone(),
            cluster_id: ClusterId::from_uuid(uuid::Uuid::from_u128(7)),
            generation: self.hosts[host].ordered,
            issued: told.at,
            expires: told.at.plus(Duration::from_secs(30 * 86_400)),
            targets: vec![Target {
                hosts: BTreeSet::from([host_id(host)]),
                roles: BTreeSet::new(),
                wave: None,
                version: told.version.clone(),
                artifacts: BTreeMap::from([("linux/amd64".to_owned(), digest(&told.version))]),
                retry: true,
                extra: Extra::new(),
            }],
            extra: Extra::new(),
        })
    }

    /// One round: decide, do it, and come back when it is done.
    pub(crate) fn round(&mut self, host: usize) {
        self.hosts[host].updating = false;
        if self.hosts[host].life == Life::Lost {
            return;
        }
        let reached = !self.is_away(host) && self.is_served();
        let now = at(self.now);
        let roles = self.view.members[host].roles.clone();
        let own = Host { id: host_id(host), cluster: &self.cluster, roles: &roles, edition: "sim", os: "linux", arch: "amd64" };
        let linked = self.versions[self.hosts[host].link].clone();
        let installed = Installed { archive: Some(digest(&linked)), version: linked };
        let mut book: Book = self.hosts[host].book.take().map_or_else(Book::default, |book| *book);
        let directive = self.directive(host).filter(|_| reached);
        if let Some(directive) = &directive {
            book = book.heard(directive, &own, now);
        }
        let patience = Patience::default();
        let offers = if self.stale_metadata { Err("the metadata has expired") } else { Ok(self.offers.as_slice()) };
        let step = next(&Case { host: own, installed: &installed, book: &book, directive: directive.as_ref(), offers, patience, now });
        let (outcome, wait) = self.carry_out(host, step, reached, &installed);
        if let Some(outcome) = outcome {
            book = book.after(outcome, &patience, now);
        }
        self.hosts[host].book = Some(Box::new(book));
        if let Some(wait) = wait {
            self.poll(host, wait);
        }
    }

    /// Has the updater look once more, unless it does so anyway.
    pub(crate) fn poll(&mut self, host: usize, wait: u64) {
        if !std::mem::replace(&mut self.hosts[host].updating, true) {
            self.later(wait, Event::Round { host });
        }
    }

    /// What comes of a step, and when to look again; never, if nothing is left to do.
    fn carry_out(&mut self, host: usize, step: Step, reached: bool, installed: &Installed) -> (Option<Outcome>, Option<u64>) {
        let told = self.view.members[host].told.is_some();
        match step {
            // A directive may stand that was not heard of.
            Step::Rest(_) => (None, (told && !reached).then_some(MINUTE)),
            Step::Wait { until } => {
                let wait = u64::try_from(until.since(at(self.now)).as_millis()).unwrap_or(MINUTE);
                (None, Some(wait.max(SECOND)))
            }
            Step::Refuse(refusal) => {
                let generation = self.hosts[host].ordered;
                self.hosts[host].refusal = Some((generation, refusal.public().to_string()));
                self.watch.seen("an updater refused");
                (None, Some(10 * MINUTE))
            }
            Step::Fetch(job) => {
                let wait = self.dice.between(2, 60) * SECOND;
                if !reached {
                    return (Some(Outcome::Trouble(job)), Some(30 * SECOND));
                }
                (Some(Outcome::Fetched(job)), Some(wait))
            }
            Step::Stage(job) => {
                let broken = self.has(Fault::CorruptArtifact) && self.dice.chance(20);
                if broken || self.hosts[host].full_disk {
                    self.watch.seen("an updater had trouble");
                    return (Some(Outcome::Trouble(job)), Some(30 * SECOND));
                }
                (Some(Outcome::Staged(job)), Some(5 * SECOND))
            }
            Step::Test(job) => {
                let unfit = self.image(&job.version).and_then(|image| self.is_bad(host, image)) == Some(Fate::Unfit);
                let verdict = if unfit { Verdict::Failed("it cannot run here".into()) } else { Verdict::Passed };
                (Some(Outcome::Tested(job, verdict)), Some(2 * SECOND))
            }
            Step::Switch(job) => {
                let boot = self.boot_name(host);
                self.strike(host, &job.version);
                self.watch.tell(self.now, || format!("host {host} switches to {}", job.version));
                self.switch(host, &job.version);
                let from = installed.clone();
                (Some(Outcome::Switched { job, from, boot }), Some(20 * SECOND))
            }
            Step::Look(job) => {
                let member = &self.view.members[host];
                let there = member.version == job.version && member.boot == self.boot_name(host) && member.last_seen >= member.started;
                let shown = there && self.hosts[host].via.is_some();
                let looked = match (reached, shown) {
                    (false, _) => Looked::Unreachable,
                    (true, true) => Looked::Seen,
                    (true, false) => Looked::Unseen,
                };
                (Some(Outcome::Looked(looked)), Some(25 * SECOND))
            }
            Step::Revert { job, to, why } => {
                self.watch.seen("an updater took a release back");
                self.watch.tell(self.now, || format!("host {host} goes back to {}: {why}", to.version));
                self.switch(host, &to.version);
                (Some(Outcome::Reverted { job, why }), Some(20 * SECOND))
            }
        }
    }

    /// A release that works nowhere in a tier gets no further than that tier's canaries.
    fn strike(&mut self, host: usize, version: &Version) {
        let tier = self.hosts[host].tier;
        let everywhere = self.scenario.bad.is_some_and(|bad| bad.tier == tier && bad.share == 100);
        if !everywhere || self.image(version) != Some(TARGET) {
            return;
        }
        self.struck.insert(host);
        let canaries = match tier {
            Tier::Auth => 1,
            Tier::Proxy => self.scenario.proxies.min(2),
            Tier::Agent => self.scenario.classes,
        };
        if self.struck.len() > canaries {
            let text = format!("{} hosts were sent to a release that works on none, and there are {canaries} canaries", self.struck.len());
            self.watch.break_off(self.now, format!("blast radius: {text}"));
        }
    }

    fn switch(&mut self, host: usize, version: &Version) {
        let Some(image) = self.image(version) else { return };
        self.hosts[host].link = image;
        self.drain(host);
        let drains = self.dice.chance(50);
        self.restart(host, drains);
    }

    /// With its heartbeat a host says what came of its directive.
    pub(crate) fn report(&mut self, host: usize) {
        let own = &self.hosts[host];
        let Some(book) = &own.book else { return };
        let Some(told) = &mut self.view.members[host].told else { return };
        let marked = book.bad.get(&digest(&told.version)).filter(|bad| bad.generation == own.ordered).map(|bad| bad.why.clone());
        let refused = own.refusal.as_ref().filter(|(generation, _)| *generation == own.ordered).map(|(_, why)| why.clone());
        told.failed = told.failed.take().or(marked).or(refused);
    }
}
