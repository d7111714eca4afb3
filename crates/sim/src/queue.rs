//! What will happen, in the order in which it does: one heap, ties in the order in which they were put there.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Milliseconds since the world began.
pub(crate) type Tick = u64;

pub(crate) const SECOND: Tick = 1000;
pub(crate) const MINUTE: Tick = 60 * SECOND;
pub(crate) const HOUR: Tick = 60 * MINUTE;

/// Something that happens to a host, a service or the world. `boot`: void if the process is another by then.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Event {
    /// The host's process begins.
    Start {
        host: usize,
    },
    /// It asks an Auth Service to be admitted.
    Attach {
        host: usize,
        boot: u32,
    },
    Beat {
        host: usize,
        boot: u32,
    },
    /// A refused host acts on the advice that it was given.
    Rescue {
        host: usize,
        boot: u32,
    },
    /// A round of the host's updater, which outlives the service.
    Round {
        host: usize,
    },
    /// An Auth Service renews its seat.
    Renew {
        host: usize,
        boot: u32,
    },
    /// An executor looks and decides.
    Look {
        host: usize,
        boot: u32,
    },
    /// It does something of what it decided.
    Act {
        host: usize,
        boot: u32,
    },
    /// A user's path through a member was walked to its end.
    Walked {
        host: usize,
        boot: u32,
    },
    /// A backup, drill or rehearsal is over.
    Proved {
        what: Proof,
    },
    /// The runner of migrations has a turn.
    Data,
    Leaf {
        leaf: usize,
    },
    /// The last session in a process that drains ends.
    Drained {
        drainer: usize,
    },
    /// Something goes wrong.
    Trouble {
        fault: usize,
    },
    /// Faults stop, and what they broke is mended.
    Calm,
    /// Somebody looks after the cluster.
    People,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Proof {
    Backup,
    Drill,
    Rehearsal,
}

#[derive(Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<(Tick, u64, Event)>>,
    put: u64,
}

impl Queue {
    pub(crate) fn put(&mut self, at: Tick, event: Event) {
        self.put += 1;
        self.heap.push(Reverse((at, self.put, event)));
    }

    pub(crate) fn next(&mut self) -> Option<(Tick, Event)> {
        self.heap.pop().map(|Reverse((at, _, event))| (at, event))
    }
}
