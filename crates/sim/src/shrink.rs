//! Makes a failing world small: without the faults that do not matter, then with fewer members, as long as it still breaks the same rule.

use crate::{Report, Scenario, run, tell};

/// The smallest world found that breaks the same rule, and its story.
pub fn shrink(scenario: &Scenario, violation: &str) -> (Scenario, Report) {
    let fails = |candidate: &Scenario| run(candidate).violation.is_some_and(|found| rule(&found) == rule(violation));
    let mut least = scenario.clone();
    while let Some(smaller) = smaller(&least).into_iter().find(&fails) {
        least = smaller;
    }
    let report = tell(&least);
    (least, report)
}

/// `I12: …` and `blast radius: …` by what stands before the colon, anything else by its first words.
fn rule(violation: &str) -> &str {
    violation.split_once(':').map_or_else(|| violation.get(..12).unwrap_or(violation), |(rule, _)| rule)
}

/// Fewer members come first: whatever is tried after that is quicker.
fn smaller(scenario: &Scenario) -> Vec<Scenario> {
    let mut all: Vec<Scenario> = Vec::new();
    let with = |all: &mut Vec<Scenario>, edit: fn(&mut Scenario)| {
        let mut less = scenario.clone();
        edit(&mut less);
        if less != *scenario {
            all.push(less);
        }
    };
    with(&mut all, |less| less.agents = (less.agents / 2).max(1));
    with(&mut all, |less| less.proxies = less.proxies.min(1));
    with(&mut all, |less| less.auths = less.auths.saturating_sub(1).max(1));
    with(&mut all, |less| less.classes = 1);
    with(&mut all, |less| less.leaf = false);
    with(&mut all, |less| less.data = false);
    all.extend(scenario.faults.iter().map(|fault| scenario.without(*fault)));
    with(&mut all, |less| less.agents = less.agents.saturating_sub(1).max(1));
    all
}
