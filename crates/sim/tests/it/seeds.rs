//! Seeds by the dozen: each is played twice, must be the same both times, break no rule, and come to an end.
//!
//! What can be seen must have been seen: a gate that no world ever shut proves nothing about the gate.

use sim::{Report, Scenario, run, shrink};
use std::{collections::BTreeMap, time::Instant};

fn wanted(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Plays a world twice. A broken rule is told by the smallest world that breaks it.
fn play(scenario: &Scenario) -> Report {
    let report = run(scenario);
    if let Some(violation) = &report.violation {
        let (least, told) = shrink(scenario, violation);
        panic!("seed {}: {violation}\nsmallest: {least:#?}\n{}", scenario.seed, told.story.join("\n"));
    }
    assert_eq!(run(scenario).trace_hash, report.trace_hash, "seed {} is not the same twice", scenario.seed);
    report
}

#[derive(Default)]
struct Sum {
    events: u64,
    decisions: u64,
    upgrades: u64,
    rollbacks: u64,
    blocked: u64,
    pauses: u64,
    seen: BTreeMap<String, u64>,
}

impl Sum {
    fn add(&mut self, report: Report) {
        // Played twice.
        self.events += 2 * report.events;
        self.decisions += 2 * report.decisions;
        self.upgrades += report.upgrades;
        self.rollbacks += report.rollbacks;
        self.blocked += u64::from(report.end.starts_with("blocked"));
        self.pauses += report.pauses;
        for (what, count) in report.seen {
            *self.seen.entry(what).or_default() += count;
        }
    }
}

#[test]
fn whatever_goes_wrong_no_world_breaks_a_rule_each_comes_to_an_end_and_is_the_same_twice() {
    let (seeds, agents) = (wanted("SIM_SEEDS", 30), wanted("SIM_AGENTS", 50));
    let (mut sum, begun) = (Sum::default(), Instant::now());
    for seed in 0..seeds {
        sum.add(play(&Scenario::of(seed, usize::try_from(agents).unwrap())));
    }
    let rate = u128::from(sum.events) * 1000 / begun.elapsed().as_millis().max(1);
    println!("\n seeds   agents     events  events/s     looks  upgraded  rolled back  blocked  pauses  violations");
    println!(
        "{seeds:>6} {agents:>8} {:>10} {rate:>9} {:>9} {:>9} {:>12} {:>8} {:>7} {:>11}",
        sum.events, sum.decisions, sum.upgrades, sum.rollbacks, sum.blocked, sum.pauses, 0
    );
    if std::env::var("SIM_SEEN").is_ok() {
        sum.seen.iter().for_each(|(what, count)| println!("{count:>10}  {what}"));
    }
}
