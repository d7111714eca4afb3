//! Bounds against floods: how often the same refusal is written down, and how many logins and joins are in progress at once.
//!
//! [`Repeats`] keeps a crash loop or a scanner from filling the audit log: of one thing, the first in each window is
//! recorded and the rest are counted and added to the next record, so that nothing is lost silently. [`Gate`] bounds logins
//! and joins in progress, and failures by source and in all (attack table, row 24). Both hold a bounded number of keys.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use types::Time;

const MAX_KEYS: usize = 10_000;

/// Remembers what was recorded lately.
pub(crate) struct Repeats {
    window: Duration,
    seen: Mutex<SeenLately>,
}

#[derive(Default)]
struct SeenLately {
    by_key: HashMap<String, Seen>,
    /// When old keys were last looked for: not at each of a flood.
    pruned: Option<Time>,
}

#[derive(Clone, Copy)]
struct Seen {
    since: Time,
    suppressed: u64,
}

impl Repeats {
    pub(crate) fn new(window: Duration) -> Self {
        Self { window, seen: Mutex::default() }
    }

    /// `Some(n)`: record it now, and say that `n` like it were not recorded before. `None`: it is counted.
    pub(crate) fn admit(&self, key: &str, now: Time) -> Option<u64> {
        let mut state = lock(&self.seen);
        let SeenLately { by_key: seen, pruned } = &mut *state;
        if let Some(entry) = seen.get_mut(key) {
            if now.since(entry.since) < self.window && now >= entry.since {
                entry.suppressed = entry.suppressed.saturating_add(1);
                return None;
            }
            let suppressed = std::mem::take(&mut entry.suppressed);
            entry.since = now;
            return Some(suppressed);
        }
        if seen.len() >= MAX_KEYS && pruned.is_none_or(|last| now.since(last) >= self.window / 4) {
            seen.retain(|_, entry| now.since(entry.since) < self.window);
            *pruned = Some(now);
        }
        // When even that made no room, the flood is of different things: one key stands for all of them.
        let key = if seen.len() >= MAX_KEYS { "…" } else { key };
        if let Some(entry) = seen.get_mut(key) {
            entry.suppressed = entry.suppressed.saturating_add(1);
            return None;
        }
        seen.insert(key.to_owned(), Seen { since: now, suppressed: 0 });
        Some(0)
    }
}

/// What one door lets through.
#[derive(Clone, Copy)]
struct Bounds {
    /// In progress at once, from everywhere and from one source.
    running: usize,
    per_source: usize,
    /// Failures of one source in [`FAILURE_WINDOW`] before it must wait. Many people may sit behind one address.
    failures: u32,
    /// Failures of all sources before each that failed at all must wait: who guesses from everywhere gets no farther.
    in_all: u32,
}

const LOGINS: Bounds = Bounds { running: 256, per_source: 64, failures: 200, in_all: 20_000 };
const JOINS: Bounds = Bounds { running: 256, per_source: 64, failures: 100, in_all: 2000 };
const FAILURE_WINDOW: Duration = Duration::from_secs(600);
/// Logins of one name judged at once: fewer than lock an account.
const TURNS: usize = 4;

/// One source, however many addresses it has: who has one of IPv6 has 2^64.
pub(crate) fn source(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// Many sources that look like one: all that come through one Proxy. They fail ten times as often before they must wait,
/// because one of them must not keep the others out so easily.
pub(crate) fn crowd(source: &str) -> String {
    format!("{CROWD}{source}")
}
const CROWD: &str = "through ";

/// The door before the costly or guessable: password hashes, join tokens.
pub(crate) struct Gate {
    bounds: Bounds,
    state: Mutex<GateState>,
}

struct GateState {
    total: usize,
    running: HashMap<String, usize>,
    failures: HashMap<String, (Time, u32)>,
    /// Of all sources, since when.
    in_all: (Time, u32),
    pruned: Option<Time>,
    names: HashMap<String, Arc<Semaphore>>,
}

/// A login in progress; dropping it frees its place.
pub(crate) struct Place<'a> {
    gate: &'a Gate,
    source: String,
}

impl Gate {
    pub(crate) fn logins() -> Self {
        Self::new(LOGINS)
    }
    pub(crate) fn joins() -> Self {
        Self::new(JOINS)
    }
    fn new(bounds: Bounds) -> Self {
        let state = GateState {
            total: 0,
            running: HashMap::new(),
            failures: HashMap::new(),
            in_all: (Time::EPOCH, 0),
            pruned: None,
            names: HashMap::new(),
        };
        Self { bounds, state: Mutex::new(state) }
    }

    /// Takes a place, or says that there is none.
    pub(crate) fn enter(&self, source: &str, now: Time) -> Option<Place<'_>> {
        let mut state = lock(&self.state);
        if state.total >= self.bounds.running {
            return None;
        }
        let recent = |(since, count): (Time, u32)| if now.since(since) < FAILURE_WINDOW { count } else { 0 };
        let failed = state.failures.get(source).copied().map_or(0, recent);
        let flooded = recent(state.in_all) >= self.bounds.in_all && (failed > 0 || state.failures.len() >= MAX_KEYS);
        let crowd = source.starts_with(CROWD);
        let most = if crowd { self.bounds.failures.saturating_mul(10) } else { self.bounds.failures };
        if failed >= most || (flooded && !crowd) {
            return None;
        }
        let running = state.running.entry(source.to_owned()).or_default();
        if *running >= self.bounds.per_source {
            return None;
        }
        *running = running.saturating_add(1);
        state.total = state.total.saturating_add(1);
        Some(Place { gate: self, source: source.to_owned() })
    }

    /// Counts a failure of that source.
    pub(crate) fn failed(&self, source: &str, now: Time) {
        let mut state = lock(&self.state);
        if now.since(state.in_all.0) >= FAILURE_WINDOW {
            state.in_all = (now, 0);
        }
        state.in_all.1 = state.in_all.1.saturating_add(1);
        if state.failures.len() >= MAX_KEYS {
            if state.pruned.is_none_or(|last| now.since(last) >= FAILURE_WINDOW / 4) {
                state.failures.retain(|_, (since, _)| now.since(*since) < FAILURE_WINDOW);
                state.pruned = Some(now);
            }
            if state.failures.len() >= MAX_KEYS && !state.failures.contains_key(source) {
                return;
            }
        }
        let entry = state.failures.entry(source.to_owned()).or_insert((now, 0));
        if now.since(entry.0) >= FAILURE_WINDOW {
            *entry = (now, 0);
        }
        entry.1 = entry.1.saturating_add(1);
    }

    /// Waits for one of a name's few turns: guesses at one account that overtake each other must not outrun its counter.
    pub(crate) async fn turn(&self, name: &str) -> Option<OwnedSemaphorePermit> {
        let turns = {
            let mut state = lock(&self.state);
            if state.names.len() >= self.bounds.running {
                state.names.retain(|_, turns| turns.available_permits() < TURNS || Arc::strong_count(turns) > 1);
            }
            state.names.entry(name.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(TURNS))).clone()
        };
        turns.acquire_owned().await.ok()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.gate.state);
        state.total = state.total.saturating_sub(1);
        if let Some(running) = state.running.get_mut(&self.source) {
            *running = running.saturating_sub(1);
            if *running == 0 {
                state.running.remove(&self.source);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_flood_is_recorded_and_the_rest_are_counted() {
        let repeats = Repeats::new(Duration::from_secs(60));
        let at = |seconds| repeats.admit("a", Time::from_unix(seconds));
        assert_eq!((at(0), at(1), at(59)), (Some(0), None, None));
        assert_eq!(repeats.admit("b", Time::from_unix(1)), Some(0));
        assert_eq!((at(60), at(61)), (Some(2), None));
    }

    #[test]
    fn attack_row_24_pre_login_floods_are_bounded() {
        let repeats = Repeats::new(Duration::from_secs(60));
        let recorded = (0..30_000).filter(|i| repeats.admit(&format!("source {i}"), Time::from_unix(0)).is_some()).count();
        assert!(recorded <= MAX_KEYS + 1, "{recorded}");

        let gate = Gate::logins();
        let now = Time::from_unix(0);
        let one: Vec<_> = (0..100).filter_map(|_| gate.enter("10.0.0.1", now)).collect();
        assert_eq!(one.len(), LOGINS.per_source);
        assert!(gate.enter("10.0.0.2", now).is_some());
        let many: Vec<_> = (0..1000).filter_map(|i| gate.enter(&format!("10.1.0.{i}"), now)).collect();
        assert_eq!(one.len() + many.len(), LOGINS.running);
        drop((one, many));
        assert!(gate.enter("10.0.0.1", now).is_some());

        (0..LOGINS.failures).for_each(|_| gate.failed("10.0.0.1", now));
        assert!(gate.enter("10.0.0.1", now).is_none());
        assert!(gate.enter("10.0.0.2", now).is_some());
        assert!(gate.enter("10.0.0.1", Time::from_unix(600)).is_some());
    }

    #[test]
    fn failed_joins_are_bounded_by_source_and_in_all() {
        let (gate, now) = (Gate::joins(), Time::from_unix(0));
        (0..JOINS.failures).for_each(|_| gate.failed("10.0.0.1", now));
        assert!(gate.enter("10.0.0.1", now).is_none() && gate.enter("10.0.0.2", now).is_some());
        (0..JOINS.in_all).for_each(|number| gate.failed(&format!("10.1.{}.{}", number / 250, number % 250), now));
        // Whoever comes through a Proxy shares its address with others.
        let through = crowd("10.0.0.9");
        (0..JOINS.failures * 10 - 1).for_each(|_| gate.failed(&through, now));
        assert!(gate.enter(&through, now).is_some());
        gate.failed(&through, now);
        assert!(gate.enter(&through, now).is_none());
        // Who failed once waits now; who did not is let in.
        assert!(gate.enter("10.1.0.7", now).is_none() && gate.enter("10.0.0.2", now).is_some());
        assert!(gate.enter("10.1.0.7", Time::from_unix(600)).is_some());
    }

    #[test]
    fn a_source_of_ipv6_is_its_network() {
        let check = |text: &str, want: &str| assert_eq!(source(text.parse().unwrap()), want);
        check("192.0.2.7", "192.0.2.7");
        check("::ffff:192.0.2.7", "192.0.2.7");
        check("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64");
    }
}
