//! Who is at the rescue door: how many at once, and how often each may ask.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use types::HostId;

/// Visits at once: hashing and reading are the mirror's disk.
const MOST: usize = 64;
/// Of one host.
const MOST_OF_ONE: usize = 2;
/// Questions at once, and then per second: at 4 MiB each, a release in seconds, and no faster than the sessions beside it can bear.
const BURST: f64 = 24.0;
const PER_SECOND: f64 = 2.0;
/// Hosts remembered; beyond, those that have not asked for long are forgotten.
const REMEMBERED: usize = 10_000;

#[derive(Debug)]
struct Host {
    open: usize,
    left: f64,
    at: Instant,
}

impl Host {
    fn fill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND;
        (self.left, self.at) = ((self.left + gained).min(BURST), now);
    }
}

/// Everybody who is here or was lately.
#[derive(Debug, Default)]
pub(super) struct Guests(Mutex<BTreeMap<HostId, Host>>);

impl Guests {
    /// A place, until the value is dropped; none when all are taken.
    pub(super) fn enter(&self, id: HostId, now: Instant) -> Option<Guest<'_>> {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= REMEMBERED {
            hosts.retain(|_, host| {
                host.fill(now);
                host.open > 0 || host.left < BURST
            });
        }
        let open: usize = hosts.values().map(|host| host.open).sum();
        let full = open >= MOST || (hosts.len() >= REMEMBERED && !hosts.contains_key(&id));
        let host = (!full).then(|| hosts.entry(id).or_insert(Host { open: 0, left: BURST, at: now }))?;
        if host.open >= MOST_OF_ONE {
            return None;
        }
        host.open += 1;
        Some(Guest { guests: self, id })
    }
}

/// One visit.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    guests: &'a Guests,
    id: HostId,
}

impl Guest<'_> {
    /// Takes one question of this host; how long it must wait before that is heard.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let mut hosts = self.guests.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(host) = hosts.get_mut(&self.id) else { return Duration::ZERO };
        host.fill(now);
        host.left -= 1.0;
        Duration::from_secs_f64((-host.left / PER_SECOND).max(0.0))
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        if let Some(host) = self.guests.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&self.id) {
            host.open = host.open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> HostId {
        HostId::from_uuid(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn attack_row_24_one_host_has_two_places_and_all_together_have_a_bound() {
        let (guests, now) = (Guests::default(), Instant::now());
        let own = [guests.enter(id(1), now).unwrap(), guests.enter(id(1), now).unwrap()];
        assert!(guests.enter(id(1), now).is_none());
        let others: Vec<_> = (2..200).filter_map(|number| guests.enter(id(number), now)).collect();
        assert_eq!(others.len(), MOST - own.len());
        drop(own);
        assert!(guests.enter(id(1), now).is_some());
    }

    #[test]
    fn attack_row_24_who_asks_too_often_waits_and_coming_again_does_not_help() {
        let (guests, now) = (Guests::default(), Instant::now());
        let first = guests.enter(id(1), now).unwrap();
        assert!((0..24).all(|_| first.wait(now) == Duration::ZERO));
        assert!(first.wait(now) > Duration::ZERO);
        drop(first);
        let again = guests.enter(id(1), now).unwrap();
        assert!(again.wait(now) > Duration::from_millis(900));
        assert_eq!(guests.enter(id(2), now).unwrap().wait(now), Duration::ZERO);
        assert_eq!(again.wait(now + Duration::from_secs(60)), Duration::ZERO);
    }
}
