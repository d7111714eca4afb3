//! One state of the model, and the view that the planner gets of it.

use super::Without;
use crate::world::*;
use types::{ControlRecord, Ttl, control::Window};
use upgrade::{
    barrier::Seat,
    migrate::State,
    plan::{Condition, Consent, Direction, Member, Policy, Told, Upgrade, View, Waiver, Walk, Way},
    windows::{EDGES, ROLES, settled},
};

/// How large a world is, and how much may go wrong in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Shape {
    pub(crate) auths: usize,
    pub(crate) proxies: usize,
    pub(crate) agents: usize,
    pub(crate) leaf: bool,
    pub(crate) data: bool,
    /// Crashes, wrong images and losses.
    pub(crate) faults: u8,
    /// How often somebody turns round.
    pub(crate) turns: u8,
}

/// Low and high of each role's window, as offsets from major 1.
pub(crate) type Gates = [(u8, u8); 5];

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Life {
    Up,
    /// Its document stands.
    Down,
    /// It will never come back; its document stands until somebody evicts it.
    Lost,
    /// Refused for its version.
    Refused,
    /// Evicted, or its document lapsed.
    Gone,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Process {
    pub(crate) role: &'static str,
    /// What it runs, or ran last: 0 is major 1, 1 is major 2.
    pub(crate) runs: u8,
    pub(crate) life: Life,
    pub(crate) told: Option<u8>,
    /// It restarted since it was told.
    pub(crate) fresh: bool,
    pub(crate) walked: bool,
    /// Of an Auth Service: the windows by which it admits.
    pub(crate) heard: Option<Gates>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Cell {
    pub(crate) shape: Shape,
    pub(crate) gates: Gates,
    pub(crate) processes: Vec<Process>,
    pub(crate) leaf: u8,
    pub(crate) data: Option<(State, bool)>,
    pub(crate) down: bool,
    pub(crate) soaks: bool,
    pub(crate) finalized: bool,
    /// The record is out of the control record.
    pub(crate) over: bool,
}

impl Cell {
    pub(crate) fn start(shape: Shape) -> Self {
        let gates = [(0, 0); 5];
        let process = |role, heard| Process { role, runs: 0, life: Life::Up, told: None, fresh: true, walked: true, heard };
        let mut processes = vec![process("auth", Some(gates)); shape.auths];
        processes.extend(vec![process("proxy", None); shape.proxies]);
        processes.extend(vec![process("node", None); shape.agents]);
        let data = shape.data.then_some((State::Absent, false));
        Self { shape, gates, processes, leaf: 0, data, down: false, soaks: false, finalized: false, over: false }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    pub(crate) fn control(&self) -> ControlRecord {
        let mut record = control("1.0.0");
        record.windows = settled(1);
        for (role, (lo, hi)) in ROLES.into_iter().zip(self.gates) {
            record.windows.insert(role.to_owned(), Window::new(u64::from(lo) + 1, u64::from(hi) + 1));
        }
        // One generation for the windows as they are; whoever heard others is behind.
        record.window_gen = 100;
        if self.finalized {
            record.cluster_version.major = 2;
        }
        if !self.over {
            record.upgrade = serde_json::to_value(self.upgrade()).ok();
        }
        record
    }

    fn upgrade(&self) -> Upgrade {
        Upgrade {
            id: "m".into(),
            from: v("1.0.0"),
            target: v("2.0.0"),
            direction: if self.down { Direction::Down } else { Direction::Up },
            way: Way::Roll,
            begun: noon().minus(std::time::Duration::from_secs(3600)),
            by: String::new(),
            generation: 1,
            parent: String::new(),
            paused: None,
            soaks_since: self.soaks.then(noon),
            finalize: None,
            extra: types::Extra::new(),
        }
    }

    pub(crate) fn seats(&self, without: Without) -> Vec<Seat> {
        let sits = |process: &&(usize, &Process)| process.1.life == Life::Up && process.1.heard.is_some();
        let of = |(at, process): (usize, &Process)| Seat {
            host: Some(id(&name(at))),
            name: name(at),
            version: version(process.runs),
            acknowledged: if process.heard == Some(self.gates) || without == Without::Barrier { 100 } else { 99 },
        };
        self.processes.iter().enumerate().filter(|process| sits(&process)).map(of).collect()
    }

    /// Two processes that are up and must not meet, whatever windows say of them.
    pub(crate) fn meeting(&self) -> Option<String> {
        let up = |role: &str| -> Vec<u8> {
            let there = self.processes.iter().filter(|process| process.life == Life::Up && window(process.role) == role);
            there.map(|process| process.runs).collect()
        };
        EDGES.iter().find_map(|(client, server)| {
            let (clients, servers) = (up(client), up(server));
            let newer = clients.iter().any(|c| servers.iter().any(|s| c > s));
            newer.then(|| format!("a newer {client} is beside an older {server}"))
        })
    }

    /// Whether a process stands outside its window.
    fn is_outside(&self, process: &Process) -> bool {
        let (lo, hi) = self.gates[place(process.role)];
        !(lo..=hi).contains(&process.runs)
    }

    pub(crate) fn members(&self, without: Without) -> Vec<Member> {
        let hidden = |process: &Process| without == Without::Disconnect && process.role != "auth" && self.is_outside(process);
        let there = self.processes.iter().enumerate().filter(|(_, process)| process.life != Life::Gone && !hidden(process));
        there.map(|(at, process)| self.member(at, process)).collect()
    }

    fn member(&self, at: usize, process: &Process) -> Member {
        let silent = noon().minus(std::time::Duration::from_secs(900));
        let boot = format!("b{}-{}", process.runs, process.fresh);
        let told = process.told.map(|told| Told {
            version: version(told),
            at: noon(),
            boot: if process.fresh { "before".into() } else { boot.clone() },
            attempts: 1,
            failed: None,
        });
        Member {
            last_seen: if matches!(process.life, Life::Down | Life::Lost) { silent } else { noon() },
            started: if process.told.is_some() && process.fresh { noon() } else { noon().minus(std::time::Duration::from_secs(7200)) },
            state: if process.life == Life::Refused { Condition::Quarantined } else { Condition::Active },
            path: process.walked.then(|| Walk { boot: boot.clone(), at: noon(), failed: None }),
            boot,
            told,
            ..member(&name(at), &[process.role], &version(process.runs).to_string())
        }
    }

    /// What the planner sees.
    pub(crate) fn view(&self, without: Without) -> View {
        let mut view = cluster("1.0.0", 0, 0, 0);
        view.control = self.control();
        (view.members, view.seats) = (self.members(without), self.seats(without));
        view.leaves.extend(self.shape.leaf.then(|| leaf("berlin", &version(self.leaf).to_string())));
        let blind = without == Without::ClusterVersion && self.down;
        view.migrations.extend(self.data.filter(|_| !blind).map(|(state, undo)| upgrade::plan::Migration {
            state,
            undo,
            swept: true,
            ..migration("m", 2)
        }));
        let none = Ttl::from_secs(0);
        view.policy = Policy { bake: none, bake_canary: none, soak: none, finalize: Consent::After, ..Policy::default() };
        let until = noon().plus(std::time::Duration::from_secs(60));
        let waive = |name: &str| Waiver { name: name.into(), by: "m".into(), at: noon(), until, reason: "model".into() };
        view.waivers = ["backup", "drill", "rehearsal"].into_iter().map(waive).collect();
        view
    }
}

pub(crate) fn name(at: usize) -> String {
    format!("p{at}")
}

pub(crate) fn version(offset: u8) -> types::Version {
    types::Version::new(u64::from(offset) + 1, 0, 0)
}

fn window(role: &str) -> &str {
    if role == "node" { "agent" } else { role }
}

/// The window that a process falls under, by its place in [`ROLES`].
pub(crate) fn place(role: &str) -> usize {
    ROLES.into_iter().position(|known| known == window(role)).unwrap()
}
