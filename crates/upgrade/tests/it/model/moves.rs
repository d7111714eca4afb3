//! What can happen next to a state: a step of the plan, or anything else. Good moves are those that need no bad luck.

use super::{
    Without,
    cell::{Cell, Gates, Life, Process, name, place},
};
use upgrade::{
    barrier::{Move, change},
    migrate::State,
    plan::{Decision, Step},
    windows::ROLES,
};

type Next = (String, Cell, bool);

pub(super) fn successors(cell: &Cell, decision: &Decision, without: Without) -> Vec<Next> {
    let mut all: Vec<Next> = Vec::new();
    if cell.over {
        return all;
    }
    for step in &decision.next {
        if let Some(next) = take(cell, step, without) {
            all.push((format!("{step:?}").chars().take(70).collect(), next, true));
        }
    }
    for at in 0..cell.processes.len() {
        happen(cell, at, without, &mut all);
    }
    data(cell, without, &mut all);
    if cell.shape.leaf {
        let goal = u8::from(!cell.down);
        let (lo, hi) = cell.gates[4];
        if cell.leaf != goal && (lo..=hi).contains(&goal) {
            all.push(("the leaf moves".into(), Cell { leaf: goal, ..cell.clone() }, true));
        }
    }
    // Before the end somebody may turn round.
    if cell.shape.turns > 0 && !cell.finalized {
        let mut next = Cell { down: !cell.down, soaks: false, ..cell.clone() };
        next.shape.turns -= 1;
        all.push(("somebody turns round".into(), next, false));
    }
    all.retain(|(_, next, _)| next != cell);
    all
}

fn with(cell: &Cell, at: usize, edit: impl FnOnce(&mut Process)) -> Cell {
    let mut next = cell.clone();
    edit(&mut next.processes[at]);
    next
}

/// A step, decided on this state and done on it.
fn take(cell: &Cell, step: &Step, without: Without) -> Option<Cell> {
    let find = |member: &types::ResourceName| (0..cell.processes.len()).find(|at| name(*at) == member.as_str());
    match step {
        Step::Widen { role, major } => windows(cell, &Move::Widen { role: role.clone(), major: *major }, without),
        Step::Narrow { role, lo, hi } => windows(cell, &Move::Narrow { role: role.clone(), lo: *lo, hi: *hi }, without),
        Step::Install { member, version, .. } => {
            let told = u8::try_from(version.major() - 1).ok()?;
            Some(with(cell, find(member)?, |process| (process.told, process.fresh, process.walked) = (Some(told), false, false)))
        }
        Step::Walk { member, .. } => {
            let at = find(member)?;
            (cell.processes[at].life == Life::Up).then(|| with(cell, at, |process| process.walked = true))
        }
        Step::Migrate { undo, .. } => Some(Cell { data: cell.data.map(|(state, _)| (state, *undo)), ..cell.clone() }),
        Step::Evict { member, .. } => Some(with(cell, find(member)?, |process| process.life = Life::Gone)),
        Step::Soak => Some(Cell { soaks: true, ..cell.clone() }),
        Step::Finalize => Some(Cell { finalized: true, ..cell.clone() }),
        Step::Finish => Some(Cell { over: true, ..cell.clone() }),
        Step::Begin { .. } | Step::Backup | Step::Drill { .. } | Step::Rehearse { .. } | Step::Pause { .. } | Step::GiveBack { .. } => None,
    }
}

fn windows(cell: &Cell, wanted: &Move, without: Without) -> Option<Cell> {
    let documents: Vec<_> = cell.members(without).iter().map(upgrade::plan::Member::document).collect();
    let next = change(&cell.control(), wanted, &cell.seats(without), &documents).ok()?;
    let mut gates: Gates = cell.gates;
    for (role, gate) in ROLES.into_iter().zip(&mut gates) {
        let window = &next.windows[role];
        *gate = (u8::try_from(window.lo - 1).ok()?, u8::try_from(window.hi - 1).ok()?);
    }
    Some(Cell { gates, ..cell.clone() })
}

/// Starts a process on an image; it is judged by the record if it is an Auth Service, and else by whichever Auth Service it comes to.
fn start(cell: &Cell, at: usize, image: u8, without: Without) -> Vec<Cell> {
    let process = cell.processes[at];
    let up = |fresh: Process, heard| {
        with(cell, at, |p| *p = Process { runs: image, life: Life::Up, fresh: true, walked: false, heard, ..fresh })
    };
    let refused = || with(cell, at, |p| (p.runs, p.life, p.fresh, p.walked) = (image, Life::Refused, true, false));
    let admits =
        |gates: &Gates| without == Without::Enforcement || (gates[place(process.role)].0..=gates[place(process.role)].1).contains(&image);
    if process.role == "auth" {
        return vec![if admits(&cell.gates) { up(process, Some(cell.gates)) } else { refused() }];
    }
    let mut all: Vec<Cell> = Vec::new();
    for other in cell.processes.iter().filter(|other| other.life == Life::Up) {
        let Some(heard) = other.heard else { continue };
        let next = if admits(&heard) { up(process, None) } else { refused() };
        if !all.contains(&next) {
            all.push(next);
        }
    }
    all
}

fn happen(cell: &Cell, at: usize, without: Without, all: &mut Vec<Next>) {
    let process = cell.processes[at];
    let mut push = |what: &str, next: Vec<Cell>, good: bool| {
        all.extend(next.into_iter().map(|next| (format!("{} {} {what}", process.role, name(at)), next, good)))
    };
    let spend = |mut next: Cell| {
        next.shape.faults -= 1;
        next
    };
    let faulty = cell.shape.faults > 0;
    match process.life {
        Life::Up => {
            if let Some(told) = process.told.filter(|told| *told != process.runs || !process.fresh) {
                push("arrives", start(cell, at, told, without), true);
            }
            if process.heard.is_some_and(|heard| heard != cell.gates) {
                push("acknowledges", vec![acknowledge(cell, at, without)], true);
            }
            if faulty {
                push("crashes", vec![spend(with(cell, at, |p| p.life = Life::Down))], false);
                // The last Auth Service takes the cluster with it.
                let others = cell.processes.iter().enumerate().filter(|(other, p)| *other != at && p.role == "auth" && p.life == Life::Up);
                if process.role != "auth" || others.count() > 0 {
                    push("is lost", vec![spend(with(cell, at, |p| p.life = Life::Lost))], false);
                }
                push("restarts on another image", start(cell, at, 1 - process.runs, without).into_iter().map(spend).collect(), false);
            }
        }
        Life::Down => {
            push("restarts", start(cell, at, process.runs, without), true);
            if faulty {
                push("restarts on another image", start(cell, at, 1 - process.runs, without).into_iter().map(spend).collect(), false);
            }
        }
        Life::Refused if without != Without::Eviction => {
            let (lo, hi) = cell.gates[place(process.role)];
            let goal = u8::from(!cell.down);
            let image = if (lo..=hi).contains(&goal) { goal } else { lo };
            push("is rescued", start(cell, at, image, without), true);
        }
        Life::Lost if without != Without::Eviction => push("is evicted", vec![with(cell, at, |p| p.life = Life::Gone)], true),
        Life::Refused | Life::Lost | Life::Gone => {}
    }
}

/// An Auth Service hears of the windows, cuts off who is outside, and acknowledges.
fn acknowledge(cell: &Cell, at: usize, without: Without) -> Cell {
    let mut next = cell.clone();
    let own = next.processes[at];
    let (lo, hi) = cell.gates[0];
    if (lo..=hi).contains(&own.runs) || without == Without::Enforcement {
        next.processes[at].heard = Some(cell.gates);
    } else {
        next.processes[at].life = Life::Refused;
    }
    if without == Without::Disconnect {
        return next;
    }
    for process in next.processes.iter_mut().filter(|process| process.life == Life::Up && process.role != "auth") {
        let (lo, hi) = cell.gates[place(process.role)];
        if !(lo..=hi).contains(&process.runs) {
            process.life = Life::Refused;
        }
    }
    next
}

/// The runner of the newer major moves the data as far as the windows let it.
fn data(cell: &Cell, without: Without, all: &mut Vec<Next>) {
    let Some((state, undo)) = cell.data else { return };
    let runner = cell.processes.iter().any(|process| process.life == Life::Up && process.role == "auth" && process.runs == 1);
    if !runner {
        return;
    }
    let closed = cell.gates[0] == (1, 1) || without == Without::ClosedAuth;
    let next = match (state, undo) {
        (State::Absent, false) => Some(State::Expanded),
        (State::Expanded, false) if closed => Some(State::Shadowing),
        (State::Shadowing, false) => Some(State::Flipped),
        (State::Flipped, false) if cell.finalized => Some(State::Contracted),
        (State::Expanded | State::Shadowing | State::Flipped, true) if !cell.finalized => Some(State::Undoing),
        (State::Undoing, _) => Some(State::Absent),
        _ => None,
    };
    all.extend(next.map(|next| (format!("data becomes {next}"), Cell { data: Some((next, undo)), ..cell.clone() }, true)));
}
