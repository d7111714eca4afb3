//! Which of several addresses the next connection goes to: Auth Services, or Proxies before them.
//!
//! Each connection begins with another one, by chance, so that a fleet spreads over them; one that failed lately comes last, so
//! that a dead one costs a caller nothing after the first time. A connection that is lost or sent away (its Auth Service stops)
//! is replaced by this same choice at the next call. Beside the addresses that were given there are those that were told since
//! (a host hears of other Proxies): they come and go. The order is a pure function ([`order`]); the clock is tokio's.

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How long one that failed is tried after the others.
const SHUNNED: Duration = Duration::from_secs(30);
/// For one of several: the caller's deadline is for all of them.
const EACH: Duration = Duration::from_secs(5);
/// More than a cluster has, and more than a deadline lets one try.
const MOST: usize = 64;

/// The ways into a cluster, as one caller knows them.
pub(super) struct Spread(Mutex<Vec<Place>>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Place {
    addr: String,
    /// By the configuration: never forgotten.
    given: bool,
    failed: Option<Instant>,
}

impl Spread {
    pub(super) fn new(addrs: Vec<String>) -> Self {
        Self(Mutex::new(addrs.into_iter().map(|addr| Place { addr, given: true, failed: None }).collect()))
    }

    /// The addresses that are known beside the given ones, from now on.
    pub(super) fn told(&self, addrs: Vec<String>) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|place| place.given || addrs.contains(&place.addr));
        for addr in addrs {
            if places.len() < MOST && !places.iter().any(|place| place.addr == addr) {
                places.push(Place { addr, given: false, failed: None });
            }
        }
    }

    /// Dials one after the other until one answers; the last error when none does. `late` makes the error of one that took too long.
    pub(super) async fn dial<T, E, F>(&self, dial: impl Fn(String) -> F, late: impl Fn(String) -> E) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: std::fmt::Display,
    {
        let all = self.in_order();
        let several = all.len() > 1;
        let mut last = None;
        for addr in all {
            let dialled = if several {
                tokio::time::timeout(EACH, dial(addr.clone())).await.unwrap_or_else(|_| Err(late(addr.clone())))
            } else {
                dial(addr.clone()).await
            };
            match dialled {
                Ok(done) => {
                    self.note(&addr, None);
                    return Ok(done);
                }
                Err(error) => {
                    tracing::debug!(addr, %error, "no Auth Service answers there");
                    self.note(&addr, Some(Instant::now()));
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| late("no address".into())))
    }

    fn in_order(&self) -> Vec<String> {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shunned: Vec<bool> = places.iter().map(|place| place.failed.is_some_and(|since| since.elapsed() < SHUNNED)).collect();
        let order = order(&shunned, rand::random());
        order.into_iter().filter_map(|at| places.get(at)).map(|place| place.addr.clone()).collect()
    }

    fn note(&self, addr: &str, failed: Option<Instant>) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.iter_mut().find(|place| place.addr == addr) {
            place.failed = failed;
        }
    }
}

/// Every place once: first those that are not shunned, from a place by chance on, then the others likewise.
fn order(shunned: &[bool], chance: u64) -> Vec<usize> {
    let turned = |wanted: bool| {
        let mut places: Vec<usize> =
            shunned.iter().enumerate().filter(|(_, shunned)| **shunned == wanted).map(|(place, _)| place).collect();
        let count = u64::try_from(places.len()).unwrap_or(0).max(1);
        places.rotate_left(usize::try_from(chance % count).unwrap_or(0));
        places
    };
    turned(false).into_iter().chain(turned(true)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_one_is_tried_once_and_those_that_failed_last() {
        let check = |shunned: &[bool], chance: u64, want: &[usize]| assert_eq!(order(shunned, chance), want, "{shunned:?} {chance}");
        check(&[], 7, &[]);
        check(&[false], 7, &[0]);
        check(&[false, false, false], 0, &[0, 1, 2]);
        check(&[false, false, false], 5, &[2, 0, 1]);
        check(&[true, false, false], 1, &[2, 1, 0]);
        check(&[true, true, false], 3, &[2, 1, 0]);
        check(&[true, true], u64::MAX, &[1, 0]);
    }

    #[test]
    fn callers_spread_evenly() {
        let mut first = [0; 3];
        (0..300).for_each(|chance| first[order(&[false, false, false], chance)[0]] += 1);
        assert_eq!(first, [100, 100, 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_one_is_passed_over_and_tried_again_later() {
        let spread = Spread::new(vec!["dead".into(), "alive".into()]);
        let tried = Mutex::new(Vec::new());
        let go = || {
            spread.dial(
                |addr| {
                    tried.lock().unwrap().push(addr.clone());
                    async move {
                        if addr == "dead" {
                            std::future::pending::<()>().await
                        }
                        Ok::<_, String>(addr)
                    }
                },
                |addr| format!("{addr} is late"),
            )
        };
        for _ in 0..50 {
            assert_eq!(go().await.unwrap(), "alive");
        }
        assert!(tried.lock().unwrap().iter().filter(|addr| *addr == "dead").count() <= 2, "it was waited for each time");
        tokio::time::advance(SHUNNED).await;
        for _ in 0..50 {
            go().await.unwrap();
        }
        assert!(tried.lock().unwrap().iter().filter(|addr| *addr == "dead").count() >= 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_told_is_tried_beside_what_was_given_until_nobody_tells_of_it() {
        let spread = Spread::new(vec!["given".into()]);
        let tried = || {
            let mut all = spread.in_order();
            all.sort_unstable();
            all
        };
        spread.told(vec!["other".into(), "given".into()]);
        assert_eq!(tried(), ["given", "other"]);
        spread.note("given", Some(Instant::now()));
        assert_eq!(spread.in_order(), ["other", "given"]);
        // Told again it keeps its mark.
        spread.told(vec!["third".into(), "given".into()]);
        assert_eq!(spread.in_order(), ["third", "given"]);
        spread.told((0..200).map(|number| number.to_string()).collect());
        assert_eq!(spread.in_order().len(), MOST);
        spread.told(Vec::new());
        assert_eq!(tried(), ["given"]);
    }
}
