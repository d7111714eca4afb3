//! Are the members that were moved healthy? Counted against those that were not moved in the same minutes.
//!
//! Healthy means that a user got through, on this run of the process; that a process is up says nothing. Some members fail without any
//! upgrade, so failures are held against a rate: that of the control cohort, or the policy's, whichever is higher. A wave stops at
//! the smallest count that chance alone reaches in less than one case of a hundred. Where even all of a wave's members failing would not be
//! that unlikely, the answer is not "pass".

/// What is said of the members of one wave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Pass,
    Fail,
    /// Not all are judged yet, or the wave is too small to tell damage from noise.
    Inconclusive,
}

/// What was counted in one wave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    pub members: usize,
    pub passed: usize,
    pub failed: usize,
    /// Of the control cohort: walked through, and failed.
    pub control: usize,
    pub control_failed: usize,
}

impl Count {
    /// Failures that stop the wave.
    pub fn stop_at(&self, background: u32) -> usize {
        stop_at(self.members, self.rate(background))
    }

    /// Failures in ten thousand that are nobody's fault.
    fn rate(&self, background: u32) -> u32 {
        let seen = self.control_failed.saturating_mul(10_000).checked_div(self.control).unwrap_or(0);
        background.max(u32::try_from(seen).unwrap_or(10_000))
    }

    /// The verdict; members that are neither passed nor failed are unknown.
    pub fn verdict(&self, background: u32) -> Verdict {
        let stop = self.stop_at(background);
        let unknown = self.members.saturating_sub(self.passed).saturating_sub(self.failed);
        if self.failed >= stop {
            Verdict::Fail
        } else if unknown > 0 || (self.failed > 0 && stop > self.members) {
            Verdict::Inconclusive
        } else {
            Verdict::Pass
        }
    }
}

/// The smallest count of failures whose Poisson tail is below one percent, for so many members and a rate in ten thousand.
///
/// Only the four operations of IEEE 754, so that it is the same on every machine.
pub fn stop_at(members: usize, rate: u32) -> usize {
    let expected = f64::from(u32::try_from(members).unwrap_or(u32::MAX)) * f64::from(rate) / 10_000.0;
    // P(X >= k) < 1 % is the same as: the sum of the terms from k on is below 1 % of the sum of all. Terms are taken relative to the
    // largest, near `expected`, so that nothing overflows.
    let mode = whole(expected);
    let below: Vec<f64> = {
        let (mut term, mut at, mut terms) = (1.0, mode, Vec::new());
        while at > 0 && term > 1e-18 {
            term *= real(at) / expected;
            at -= 1;
            terms.push(term);
        }
        terms
    };
    let (mut term, mut at, mut above) = (1.0, mode, vec![1.0]);
    while term > 1e-18 {
        at += 1;
        term *= expected / real(at);
        above.push(term);
    }
    let all: f64 = below.iter().sum::<f64>() + above.iter().sum::<f64>();
    let (mut tail, mut stop) = (0.0, mode + above.len());
    for term in above.iter().rev().chain(&below) {
        tail += term;
        if tail >= all * 0.01 {
            break;
        }
        stop -= 1;
    }
    stop.max(1)
}

fn real(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Rounded down. Small: a fleet's expected failures.
fn whole(value: f64) -> usize {
    let (mut low, mut high) = (0_u32, u32::MAX);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if f64::from(middle) <= value {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    usize::try_from(low).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_stops_where_chance_would_rarely_come() {
        let check = |members, rate, expected| assert_eq!(stop_at(members, rate), expected, "{members} at {rate}");
        check(1, 10, 1);
        check(1000, 10, 5);
        check(2824, 10, 8);
        check(2824, 0, 1);
        check(100, 0, 1);
        check(1, 2000, 3);
        check(100_000, 10, 125);
        check(0, 10, 1);
    }

    #[test]
    fn the_stop_is_the_smallest_count_below_one_percent() {
        for members in [1_u32, 300, 1000, 2824, 17_000, 100_000] {
            let expected = f64::from(members) / 1000.0;
            let tail = |k: usize| {
                let (mut term, mut below) = ((-expected).exp(), 0.0);
                for at in 1..=k {
                    below += term;
                    term *= expected / real(at);
                }
                1.0 - below
            };
            let stop = stop_at(usize::try_from(members).unwrap(), 10);
            assert!(tail(stop) < 0.01 && tail(stop - 1) >= 0.01, "{expected}: {stop}");
        }
    }

    #[test]
    fn a_verdict_needs_everybody_and_a_control_cohort_excuses_what_happens_anyway() {
        let check = |members, passed, failed, control, control_failed, expected| {
            let count = Count { members, passed, failed, control, control_failed };
            assert_eq!(count.verdict(10), expected, "{count:?}");
        };
        check(1, 1, 0, 0, 0, Verdict::Pass);
        check(1, 0, 1, 5, 0, Verdict::Fail);
        check(1, 0, 0, 5, 0, Verdict::Inconclusive);
        check(1000, 990, 4, 5, 0, Verdict::Inconclusive);
        check(1000, 996, 4, 5, 0, Verdict::Pass);
        check(1000, 500, 5, 5, 0, Verdict::Fail);
        // A network that is down for everybody is not the upgrade's fault; nor does it prove anything.
        check(1, 0, 1, 5, 5, Verdict::Inconclusive);
        check(1000, 800, 200, 5, 1, Verdict::Pass);
        check(1000, 700, 300, 5, 1, Verdict::Fail);
    }
}
