//! Every state of small clusters: the real planner, windows and barrier, with everything that can happen between two looks.
//!
//! A state is what a cluster is: windows, who has acknowledged which, each process with its image, directive and run, the data, the direction.
//! From each, every step of the plan may be done alone, members arrive, crash, restart on the image that they have or on another (stale or
//! premature), are lost for ever, are evicted, Auth Services hear late, data moves, somebody turns round. No state may break an invariant, and
//! from each there is a way to an end on which nothing goes wrong. Taking one safeguard away must make the search find what it is for.
//! Bounds: `LOCKGATE_MODEL=large` for the long one.

mod cell;
mod moves;

use cell::{Cell, Shape};
use moves::successors;
use std::collections::{HashMap, VecDeque};
use upgrade::{lint, plan::decide};

/// A safeguard that is taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Without {
    Nothing,
    /// Whoever starts is admitted.
    Enforcement,
    /// The planner does not know of the data when it goes back.
    ClusterVersion,
    /// Data changes its form while older Auth Services may write.
    ClosedAuth,
    /// Nobody evicts, and nobody is rescued.
    Eviction,
    /// Nobody asks whether Auth Services have acknowledged.
    Barrier,
    /// Who is outside stays connected, and nobody asks who is outside.
    Disconnect,
}

#[derive(Debug, Default)]
struct Found {
    states: usize,
    plans: usize,
    violations: Vec<String>,
    stuck: usize,
    example: String,
}

/// Searches everything that can be reached, until so many violations are found.
fn search(shape: Shape, without: Without) -> Found {
    let mut found = Found::default();
    let mut known = HashMap::<Cell, usize>::new();
    let (mut cells, mut onward): (Vec<Cell>, Vec<Vec<usize>>) = (Vec::new(), Vec::new());
    let mut from: Vec<Option<(usize, String)>> = Vec::new();
    let mut queue = VecDeque::new();
    let start = Cell::start(shape);
    known.insert(start.clone(), 0);
    cells.push(start);
    onward.push(Vec::new());
    from.push(None);
    queue.push_back(0);
    while let Some(at) = queue.pop_front() {
        let cell = cells[at].clone();
        let view = cell.view(without);
        let decision = decide(&view);
        found.plans += 1;
        let mut broken: Vec<String> = cell.meeting().into_iter().collect();
        broken.extend(lint::state(&cell.view(Without::Nothing)).iter().map(ToString::to_string));
        broken.extend(lint::plan(&view, &decision).iter().map(ToString::to_string));
        if let Some(fault) = broken.into_iter().next() {
            if found.violations.is_empty() {
                found.example = story(&from, at);
            }
            found.violations.push(fault);
            if found.violations.len() >= 3 {
                break;
            }
            continue;
        }
        for (name, next, good) in successors(&cell, &decision, without) {
            let to = *known.entry(next.clone()).or_insert_with(|| {
                cells.push(next);
                onward.push(Vec::new());
                from.push(Some((at, name)));
                queue.push_back(cells.len() - 1);
                cells.len() - 1
            });
            if good {
                onward[at].push(to);
            }
        }
    }
    found.states = cells.len();
    if found.violations.is_empty() {
        let stuck = stuck(&cells, &onward);
        found.stuck = stuck.len();
        if let Some(first) = stuck.first() {
            found.example = format!("{}\n{:#?}", story(&from, *first), decide(&cells[*first].view(without)));
        }
    }
    found
}

/// States from which nothing good leads to an end.
fn stuck(cells: &[Cell], onward: &[Vec<usize>]) -> Vec<usize> {
    let mut back = vec![Vec::new(); cells.len()];
    for (at, next) in onward.iter().enumerate() {
        next.iter().for_each(|to| back[*to].push(at));
    }
    let mut reaches: Vec<bool> = cells.iter().map(Cell::is_over).collect();
    let mut queue: VecDeque<usize> = (0..cells.len()).filter(|at| reaches[*at]).collect();
    while let Some(at) = queue.pop_front() {
        for before in &back[at] {
            if !std::mem::replace(&mut reaches[*before], true) {
                queue.push_back(*before);
            }
        }
    }
    (0..cells.len()).filter(|at| !reaches[*at]).collect()
}

fn story(from: &[Option<(usize, String)>], mut at: usize) -> String {
    let mut lines = Vec::new();
    while let Some((before, name)) = &from[at] {
        lines.push(name.clone());
        at = *before;
    }
    lines.reverse();
    lines.join("\n")
}

fn clean(shape: Shape) {
    let found = search(shape, Without::Nothing);
    println!("{shape:?}: {} states, {} plans, {} violations, {} stuck", found.states, found.plans, found.violations.len(), found.stuck);
    assert_eq!((found.violations.as_slice(), found.stuck), ([].as_slice(), 0), "{}", found.example);
    assert!(found.states > 100);
}

fn large() -> bool {
    std::env::var("LOCKGATE_MODEL").is_ok_and(|size| size == "large")
}

const SMALL: Shape = Shape { auths: 2, proxies: 1, agents: 1, leaf: false, data: true, faults: 1, turns: 1 };

#[test]
fn two_auth_services_a_proxy_and_an_agent_never_break_a_rule_and_never_stand_still() {
    clean(SMALL);
}

#[test]
fn a_leaf_and_one_of_each_never_break_a_rule_and_never_stand_still() {
    clean(Shape { auths: 1, leaf: true, data: false, ..SMALL });
}

#[test]
fn larger_clusters_never_break_a_rule_and_never_stand_still() {
    let shapes: &[Shape] = if large() {
        &[
            Shape { auths: 3, proxies: 2, agents: 2, leaf: true, ..SMALL },
            Shape { faults: 3, turns: 2, ..SMALL },
            Shape { auths: 2, proxies: 2, agents: 2, faults: 2, turns: 1, ..SMALL },
        ]
    } else {
        &[Shape { auths: 1, proxies: 1, agents: 2, data: false, turns: 0, ..SMALL }]
    };
    shapes.iter().for_each(|shape| clean(*shape));
}

/// What is taken away is missed.
fn missed(shape: Shape, without: Without) {
    let found = search(shape, without);
    println!("without {without:?}: {} states, {:?}, {} stuck", found.states, found.violations, found.stuck);
    assert!(!found.violations.is_empty() || found.stuck > 0, "without {without:?} nothing is missed in {} states", found.states);
}

/// Small enough to look at all of it once more.
const TINY: Shape = Shape { auths: 1, data: false, ..SMALL };

#[test]
fn without_enforcement_of_windows_a_member_is_where_it_must_not_be() {
    missed(SMALL, Without::Enforcement);
}

#[test]
fn without_regard_for_the_data_a_rollback_lets_an_auth_service_in_that_cannot_read_it() {
    missed(SMALL, Without::ClusterVersion);
}

#[test]
fn with_data_that_moves_before_auth_is_closed_two_majors_write() {
    missed(SMALL, Without::ClosedAuth);
}

#[test]
fn without_eviction_and_rescue_there_are_states_that_lead_nowhere() {
    missed(TINY, Without::Eviction);
}

#[test]
fn without_the_barrier_an_auth_service_that_hears_late_admits_what_must_not_be() {
    missed(Shape { data: false, ..SMALL }, Without::Barrier);
}

#[test]
fn without_disconnection_members_outside_meet_whom_they_must_not() {
    missed(Shape { data: false, ..SMALL }, Without::Disconnect);
}
