//! The watch over a world: every invariant at every decision and write, who may meet whom at every arrival, and what was seen at all.
//!
//! It folds everything that happens into one number, so that two runs of a seed can be compared; and when it is asked to, it tells the story.

use crate::{
    Report,
    queue::{Event, Tick},
    scenario::Scenario,
    world::at,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use types::{ControlRecord, SystemRole, Version};
use upgrade::{
    lint::{self, Fault},
    plan::{Decision, Direction, Stage, View, Way},
    windows::{AGENT, AUTH, EDGES, PROXY},
};

/// The last lines of a story.
const LINES: usize = 120;
/// Clusters in which the way back is walked at each new stage; elsewhere it would take longer than all the rest.
const WALKED_BACK: usize = 40;

pub(crate) struct Watch {
    trace: u64,
    events: u64,
    decisions: u64,
    pub(crate) violation: Option<String>,
    telling: bool,
    story: VecDeque<String>,
    seen: BTreeMap<String, u64>,
    /// Processes that are in, by role and release.
    there: BTreeMap<&'static str, [u32; 3]>,
    stages: BTreeSet<(Stage, bool)>,
    pub(crate) upgrades: u64,
    rollbacks: u64,
    pub(crate) pauses: u64,
    pub(crate) calm_at: Tick,
    pub(crate) end: String,
}

fn roles(of: &BTreeSet<SystemRole>) -> impl Iterator<Item = &'static str> {
    of.iter().filter_map(|role| role.window(false))
}

impl Watch {
    pub(crate) fn new(telling: bool) -> Self {
        Self {
            trace: 0xCBF2_9CE4_8422_2325,
            events: 0,
            decisions: 0,
            violation: None,
            telling,
            story: VecDeque::new(),
            seen: BTreeMap::new(),
            there: [AUTH, PROXY, AGENT].into_iter().map(|role| (role, [0; 3])).collect(),
            stages: BTreeSet::new(),
            upgrades: 0,
            rollbacks: 0,
            pauses: 0,
            calm_at: 0,
            end: String::new(),
        }
    }

    fn fold(&mut self, number: u64) {
        self.trace = crate::dice::mix(self.trace ^ number).wrapping_mul(0x0000_0100_0000_01B3);
    }

    fn fold_text(&mut self, text: &str) {
        let sum = text.bytes().fold(0xCBF2_9CE4_8422_2325, |sum: u64, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3));
        self.fold(sum);
    }

    pub(crate) fn happened(&mut self, at: Tick, event: Event) {
        self.events += 1;
        let (kind, who) = match event {
            Event::Start { host } => (1, host as u64),
            Event::Attach { host, .. } => (2, host as u64),
            Event::Beat { host, .. } => (3, host as u64),
            Event::Rescue { host, .. } => (4, host as u64),
            Event::Round { host } => (5, host as u64),
            Event::Renew { host, .. } => (6, host as u64),
            Event::Look { host, .. } => (7, host as u64),
            Event::Act { host, .. } => (8, host as u64),
            Event::Walked { host, .. } => (9, host as u64),
            Event::Proved { what } => (10, what as u64),
            Event::Data => (11, 0),
            Event::Leaf { leaf } => (12, leaf as u64),
            Event::Drained { drainer } => (13, drainer as u64),
            Event::Trouble { fault } => (14, fault as u64),
            Event::Calm => (15, 0),
            Event::People => (16, 0),
        };
        self.fold(at ^ (kind << 56) ^ (who << 32));
    }

    /// A line of the story, made only when somebody reads it.
    pub(crate) fn tell(&mut self, now: Tick, line: impl FnOnce() -> String) {
        if self.telling {
            if self.story.len() == LINES {
                self.story.pop_front();
            }
            self.story.push_back(format!("{} {}", &at(now).to_string()[11..19], line()));
        }
    }

    pub(crate) fn seen(&mut self, what: &str) {
        match self.seen.get_mut(what) {
            Some(count) => *count += 1,
            None => drop(self.seen.insert(what.to_owned(), 1)),
        }
    }

    /// The first thing that must not be ends the run.
    pub(crate) fn break_off(&mut self, now: Tick, what: String) {
        if self.violation.is_none() {
            self.tell(now, || what.clone());
            self.violation = Some(what);
        }
    }

    pub(crate) fn faults(&mut self, now: Tick, faults: Vec<Fault>) {
        if let Some(fault) = faults.first() {
            self.break_off(now, fault.to_string());
        }
    }

    pub(crate) fn record(&mut self, now: Tick, faults: &[String]) {
        if let Some(fault) = faults.first() {
            self.break_off(now, format!("control record: {fault}"));
        }
    }

    pub(crate) fn left(&mut self, of: &BTreeSet<SystemRole>, runs: usize) {
        for role in roles(of) {
            if let Some(count) = self.there.get_mut(role) {
                count[runs] -= 1;
            }
        }
    }

    /// Somebody is in: nobody whom it must not meet may be there.
    pub(crate) fn entered(&mut self, now: Tick, view: &View, of: &BTreeSet<SystemRole>, runs: usize, versions: &[Version; 3]) {
        for role in roles(of) {
            if let Some(count) = self.there.get_mut(role) {
                count[runs] += 1;
            }
        }
        let rolls = view.upgrade().ok().flatten().is_some_and(|upgrade| {
            let begun = view.control.windows.get(AUTH).is_some_and(|window| window.contains(upgrade.target.major()));
            upgrade.way == Way::Roll && upgrade.is_major() && begun
        });
        for (client, server) in EDGES {
            let (Some(clients), Some(servers)) = (self.there.get(client), self.there.get(server)) else { continue };
            for (c, _) in clients.iter().enumerate().filter(|(_, count)| **count > 0) {
                for (s, _) in servers.iter().enumerate().filter(|(_, count)| **count > 0) {
                    let (c, s) = (versions[c].major(), versions[s].major());
                    // Windows at rest leave that pair to the handshake.
                    let refused = !rolls && server == PROXY && c > s;
                    if (c > s || s - c > 1) && !refused {
                        let text = format!("a {client} at {c} could meet a {server} at {s}");
                        self.break_off(now, text);
                        return;
                    }
                }
            }
        }
    }

    pub(crate) fn wrote(&mut self, now: Tick, control: &ControlRecord) {
        let text = serde_json::to_string(control).unwrap_or_default();
        self.fold_text(&text);
        if self.telling {
            let windows = control.windows.iter().map(|(role, window)| format!("{role} [{}, {}]", window.lo, window.hi));
            let windows = windows.collect::<Vec<_>>().join(", ");
            self.tell(now, || format!("the control record says: {windows}, epoch {}", control.epoch));
        }
    }

    pub(crate) fn decided(&mut self, now: Tick, view: &View, decision: &Decision) {
        self.decisions += 1;
        let direction = decision.upgrade.as_ref().map(|upgrade| upgrade.direction);
        let text = format!("{:?} {:?} {:?} {}", direction, decision.stage, decision.wave, decision.next.len());
        self.fold_text(&text);
        for wait in &decision.waits {
            self.fold_text(wait.code.as_str());
            self.seen(wait.code.as_str());
        }
        for block in &decision.blocked {
            self.fold_text(block.code.as_str());
            self.seen(block.code.as_str());
        }
        self.tell(now, || {
            let waits = decision.waits.iter().map(|wait| format!("{} {}", wait.code, wait.cause));
            let blocks = decision.blocked.iter().map(|block| format!("{} {}", block.code, block.cause));
            let named = waits.chain(blocks).collect::<Vec<_>>().join("; ");
            format!("look: {text} steps: {}", named.chars().take(400).collect::<String>())
        });
        self.faults(now, lint::plan(view, decision));
        self.faults(now, lint::state(view));
        let stage = (decision.stage, direction == Some(Direction::Down));
        let new = direction.is_some() && self.stages.insert(stage);
        if new {
            self.seen(&format!("stage {} {}", decision.stage.as_str(), if stage.1 { "down" } else { "up" }));
        }
        if new && view.control.upgrade.is_some() && view.members.len() <= WALKED_BACK {
            self.faults(now, lint::way_back(view));
        }
    }

    pub(crate) fn rolled_back(&mut self, from: Option<Stage>) {
        self.rollbacks += 1;
        if let Some(stage) = from {
            self.seen(&format!("rolled back from {}", stage.as_str()));
        }
    }

    pub(crate) fn report(self, scenario: &Scenario, view: &View, now: Tick) -> Report {
        Report {
            seed: scenario.seed,
            members: view.members.len(),
            events: self.events,
            decisions: self.decisions,
            virtual_seconds: now / 1000,
            trace_hash: self.trace,
            upgrades: self.upgrades,
            rollbacks: self.rollbacks,
            pauses: self.pauses,
            end: self.end,
            seen: self.seen,
            violation: self.violation,
            story: self.story.into(),
        }
    }
}
