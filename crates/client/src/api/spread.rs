//! Which of several Auth Services the next connection goes to.
//!
//! Each connection begins with another one, by chance, so that a fleet spreads over them; one that failed lately comes last, so
//! that a dead one costs a caller nothing after the first time. A connection that is lost or sent away (its Auth Service stops)
//! is replaced by this same choice at the next call. The order is a pure function ([`order`]); the clock is tokio's.

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

/// The Auth Services of a cluster, as one caller knows them.
pub(super) struct Spread {
    addrs: Vec<String>,
    failed: Mutex<Vec<Option<Instant>>>,
}

impl Spread {
    pub(super) fn new(addrs: Vec<String>) -> Self {
        let failed = Mutex::new(vec![None; addrs.len()]);
        Self { addrs, failed }
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
        for place in all {
            let Some(addr) = self.addrs.get(place).cloned() else { continue };
            let dialled = if several {
                tokio::time::timeout(EACH, dial(addr.clone())).await.unwrap_or_else(|_| Err(late(addr.clone())))
            } else {
                dial(addr.clone()).await
            };
            match dialled {
                Ok(done) => {
                    self.note(place, None);
                    return Ok(done);
                }
                Err(error) => {
                    tracing::debug!(addr, %error, "an Auth Service cannot be reached");
                    self.note(place, Some(Instant::now()));
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| late("no address".into())))
    }

    fn in_order(&self) -> Vec<usize> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let shunned: Vec<bool> = failed.iter().map(|since| since.is_some_and(|since| since.elapsed() < SHUNNED)).collect();
        order(&shunned, rand::random())
    }

    fn note(&self, place: usize, failed: Option<Instant>) {
        if let Some(known) = self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_mut(place) {
            *known = failed;
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
}
