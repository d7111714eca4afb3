//! How long to wait before trying again: exponential, with full jitter, so that ten thousand agents that lost one Proxy do
//! not come back in one wave.
//!
//! A delay is drawn evenly between the shortest delay and a ceiling that doubles each time up to the longest. The seed is
//! passed in: two agents need two seeds (their boot id), a test needs one.

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::time::Duration;

/// Delays between attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    ceiling: Duration,
    random: SmallRng,
}

impl Backoff {
    /// Delays between `min` and `max`, both included; a `max` below `min` is taken as `min`.
    pub fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max: max.max(min), ceiling: min, random: SmallRng::seed_from_u64(seed) }
    }

    /// The next delay.
    #[allow(clippy::should_implement_trait, reason = "delays never run out; an iterator would say they might")]
    pub fn next(&mut self) -> Duration {
        self.ceiling = self.ceiling.saturating_mul(2).min(self.max);
        self.random.random_range(self.min..=self.ceiling)
    }

    /// Begins again with short delays: an attempt succeeded.
    pub fn reset(&mut self) {
        self.ceiling = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn delays_stay_between_the_shortest_and_a_doubling_ceiling(min in 1u64..5_000, more in 0u64..600_000, seed: u64, attempts in 1usize..40) {
            let (min, max) = (Duration::from_millis(min), Duration::from_millis(min.saturating_add(more)));
            let mut backoff = Backoff::new(min, max, seed);
            for attempt in 0..attempts {
                let doubled = min.saturating_mul(2u32.saturating_pow(u32::try_from(attempt).unwrap().saturating_add(1).min(31)));
                let delay = backoff.next();
                prop_assert!(delay >= min && delay <= max && delay <= doubled.max(min), "{attempt}: {delay:?}");
            }
            backoff.reset();
            prop_assert!(backoff.next() <= min.saturating_mul(2));
        }

        #[test]
        fn two_seeds_do_not_march_in_step(seed: u64) {
            let draw = |seed| {
                let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(60), seed);
                (0..8).map(|_| backoff.next()).collect::<Vec<_>>()
            };
            prop_assert_ne!(draw(seed), draw(seed.wrapping_add(1)));
            prop_assert_eq!(draw(seed), draw(seed));
        }
    }
}
