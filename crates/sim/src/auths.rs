//! Auth Services: whether one may start, its seat, its epoch, and its writes of the control record, each conditional and fenced.

use crate::{
    queue::{Event, MINUTE, SECOND},
    scenario::Fault,
    world::{BELIEF, Life, SEAT, World},
};
use types::ControlRecord;
use upgrade::{Start, control, lint, plan::Condition, windows::AUTH};

/// What the store answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Done,
    /// Somebody else wrote first, or the writer was fenced.
    Lost,
    /// None came.
    Unclear,
}

impl World {
    pub(crate) fn is_frozen(&self, auth: usize) -> bool {
        self.seats[auth].frozen > self.now
    }

    pub(crate) fn reaches_store(&self, auth: usize) -> bool {
        self.seats[auth].cut <= self.now && !self.is_frozen(auth)
    }

    /// Whether it admits members.
    pub(crate) fn believes(&self, auth: usize) -> bool {
        let seat = &self.seats[auth];
        self.hosts[auth].life == Life::Up && seat.believes > self.now && !self.is_frozen(auth) && !self.is_away(auth)
    }

    /// Whether the store takes its writes.
    pub(crate) fn can_write(&self, auth: usize) -> bool {
        self.reaches_store(auth) && self.seats[auth].epoch >= self.view.control.min_writer_epoch
    }

    /// Renews its seat, or takes it: every few seconds.
    pub(crate) fn renew(&mut self, auth: usize) {
        let boot = self.hosts[auth].boot;
        let again = Event::Renew { host: auth, boot };
        if self.is_frozen(auth) {
            let wait = self.seats[auth].frozen - self.now + SECOND;
            return self.later(wait, again);
        }
        if !self.reaches_store(auth) || self.is_away(auth) {
            if self.seats[auth].believes <= self.now {
                self.leave(auth);
            }
            return self.later(8 * SECOND, again);
        }
        let sits = self.seats[auth].heard.is_some();
        let version = self.versions[self.hosts[auth].runs].clone();
        if !sits && !self.begin_service(auth) {
            return self.soon(50 * SECOND, 70 * SECOND, again);
        }
        let control = self.view.control.clone();
        if !control.windows.get(AUTH).is_some_and(|window| window.contains(version.major())) {
            // Shut out: it ends, and asks again as whoever starts does.
            self.stop(auth, false);
            return self.soon(20 * SECOND, MINUTE, Event::Start { host: auth });
        }
        let moved = self.seats[auth].heard.as_ref().is_none_or(|heard| heard.window_gen != control.window_gen);
        if moved {
            let inside: Vec<usize> = (self.seats.len()..self.hosts.len()).filter(|host| self.hosts[*host].via == Some(auth)).collect();
            inside.into_iter().for_each(|host| self.cut_off(host, &control));
        }
        let now = self.now;
        let seat = &mut self.seats[auth];
        seat.epoch = control.epoch;
        seat.lease = Some((control.window_gen, now + SEAT, version));
        seat.believes = now + BELIEF;
        seat.heard = Some(control);
        if self.hosts[auth].via.is_none() {
            self.enter(auth, auth);
        }
        if !sits {
            self.soon(5 * SECOND, 20 * SECOND, Event::Look { host: auth, boot });
        }
        self.wrote(auth, Condition::Active);
        self.report(auth);
        self.later(8 * SECOND, again);
    }

    /// The real rule of who may start; the next major may take over here.
    fn begin_service(&mut self, auth: usize) -> bool {
        let version = self.versions[self.hosts[auth].runs].clone();
        match upgrade::may_start(Some(&self.view.control), &version) {
            Ok(Start::Current | Start::Emulate) => true,
            Ok(Start::Birth) => false,
            Ok(Start::Adopt) => {
                self.refresh();
                let documents = self.view.documents();
                let Ok(next) = upgrade::adopt(&self.view.control, &version, &documents) else { return false };
                self.watch.seen("taken over");
                self.watch.tell(self.now, || format!("Auth Service {auth} takes the cluster over with {version}"));
                self.store(next);
                true
            }
            Err(refusal) => {
                self.watch.seen("an Auth Service was refused");
                let cure = refusal.hint.clone().unwrap_or_default();
                let told = lint::Told { name: format!("auth-{auth}"), cure, at: self.time() };
                self.watch.faults(self.now, lint::record(&lint::Facts { refused: vec![told], ..lint::Facts::default() }));
                false
            }
        }
    }

    /// A write of the control record by an Auth Service, on what it has seen.
    pub(crate) fn write(&mut self, auth: usize, seen: u64, next: ControlRecord) -> Answer {
        let least = self.view.control.min_writer_epoch;
        let epoch = self.seats[auth].epoch;
        let lost = self.has(Fault::LostAnswer) && self.dice.chance(15);
        let never_came = lost && self.dice.chance(50);
        let taken = self.reaches_store(auth) && !never_came && epoch >= least && seen == self.revision;
        let write = lint::Write { who: format!("auth-{auth}"), epoch, least, committed: taken };
        self.watch.faults(self.now, lint::record(&lint::Facts { writes: vec![write], ..lint::Facts::default() }));
        if epoch < least {
            self.watch.seen("a fenced write");
        }
        if taken {
            self.store(next);
        } else if !lost {
            self.watch.seen("a write lost");
        }
        match (lost, taken) {
            (true, _) => Answer::Unclear,
            (false, true) => Answer::Done,
            (false, false) => Answer::Lost,
        }
    }

    /// The control record as it is from now on.
    pub(crate) fn store(&mut self, next: ControlRecord) {
        let before = self.bare();
        self.view.control = next;
        self.revision += 1;
        let after = self.bare();
        self.watch.faults(self.now, lint::change(&before, &after));
        self.watch.wrote(self.now, &self.view.control);
        let faults = control::faults(&self.view.control);
        self.watch.record(self.now, &faults);
    }

    /// The view without its members, for rules that do not look at them.
    fn bare(&self) -> upgrade::plan::View {
        upgrade::plan::View {
            now: self.time(),
            read_at: self.time(),
            cluster: String::new(),
            control: self.view.control.clone(),
            asked: None,
            members: Vec::new(),
            seats: Vec::new(),
            leaves: Vec::new(),
            root: None,
            migrations: Vec::new(),
            backup: None,
            releases: Vec::new(),
            findings: self.view.findings.clone(),
            policy: self.view.policy.clone(),
            waivers: Vec::new(),
        }
    }
}
