//! Random clusters in which things go wrong: every plan and every state is held against the invariants, and when faults stop it comes to an end.
//!
//! A world is made from a seed, and so is all that happens in it; a failure names its seed and tells the story of its last rounds, and the
//! shortest story that still fails is looked for first. `LOCKGATE_PLANS` sets how many plans are made (10^5 without it).

mod chaos;

use crate::world::*;
use chaos::{Chaos, Dice};
use upgrade::{
    lint,
    plan::{Stage, Verdict, View, decide, ideal, plan},
};

/// Rounds in which things go wrong.
const ROUNDS: usize = 60;

fn wanted() -> usize {
    std::env::var("LOCKGATE_PLANS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

/// Plays a seed for so many rounds of trouble, then lets the world settle. Returns how many plans were made, or the story of what broke.
fn play(seed: u64, rounds: usize) -> Result<usize, String> {
    let mut chaos = Chaos::new(seed);
    let (mut plans, mut story) = (0, Vec::new());
    for round in 0..rounds {
        let seen = chaos.seen();
        let decision = decide(&seen);
        plans += 1;
        let before = chaos.view.clone();
        story.push(format!("{round}: {}", chaos.act(&decision)));
        let broken = [lint::plan(&seen, &decision), lint::state(&chaos.view), lint::change(&before, &chaos.view)].concat();
        if !broken.is_empty() {
            return Err(tell(seed, rounds, &story, &format!("{broken:?}\n{decision:#?}")));
        }
    }
    chaos.calm();
    let mut last = String::new();
    for _ in 0..400 {
        let decision = decide(&chaos.view);
        plans += 1;
        let broken = [lint::plan(&chaos.view, &decision), lint::state(&chaos.view)].concat();
        if !broken.is_empty() {
            return Err(tell(seed, rounds, &story, &format!("in calm: {broken:?}\n{decision:#?}")));
        }
        if decision.verdict() == Verdict::Done || !decision.blocked.is_empty() {
            return Ok(plans);
        }
        last = format!("{:?} {:?} {:?}", decision.stage, decision.next, decision.waits);
        if !ideal(&mut chaos.view, &decision) {
            break;
        }
    }
    Err(tell(seed, rounds, &story, &format!("it comes to no end: {last}")))
}

fn tell(seed: u64, rounds: usize, story: &[String], what: &str) -> String {
    let from = story.len().saturating_sub(12);
    format!("seed {seed}, {rounds} rounds: {what}\n{}", story[from..].join("\n"))
}

/// Plays every second seed, so that two of these share the work.
fn play_from(first: u64) {
    let (mut plans, mut seed) = (0, first);
    while plans < wanted() / 2 {
        match play(seed, ROUNDS) {
            Ok(made) => plans += made,
            // The fewest rounds that still fail tell the story best.
            Err(story) => panic!("{}", (0..ROUNDS).find_map(|rounds| play(seed, rounds).err()).unwrap_or(story)),
        }
        seed += 2;
    }
    println!("{plans} plans in {} worlds", (seed - first) / 2);
    assert!(plans >= wanted() / 2);
}

#[test]
fn whatever_goes_wrong_no_plan_breaks_a_rule_and_calm_leads_to_an_end() {
    play_from(0);
}

#[test]
fn whatever_goes_wrong_in_other_worlds_holds_likewise() {
    play_from(1);
}

/// Stages and how many members each moves.
fn structure(view: &View) -> Vec<(Stage, usize)> {
    plan(view).forecast.iter().map(|row| (row.stage, row.members)).collect()
}

fn quiet(seed: u64) -> View {
    let mut chaos = Chaos::new(seed);
    chaos.view.control.upgrade = None;
    chaos.view.asked = Some(v("2.0.0"));
    chaos.view
}

#[test]
fn members_that_change_their_ids_change_nothing_in_the_stages() {
    for seed in 0..60 {
        let view = quiet(seed);
        let mut other = view.clone();
        let count = other.members.len();
        let ids: Vec<_> = view.members.iter().map(|member| member.id.clone()).collect();
        for (at, member) in other.members.iter_mut().enumerate() {
            member.id = ids[(at + 1) % count].clone();
        }
        for seat in &mut other.seats {
            let at = view.members.iter().position(|member| Some(&member.id) == seat.host.as_ref()).unwrap();
            seat.host = Some(other.members[at].id.clone());
        }
        assert_eq!(structure(&view), structure(&other), "seed {seed}");
    }
}

#[test]
fn one_more_healthy_member_never_stands_in_the_way_of_a_plan_that_was_ready() {
    for seed in 0..120 {
        let view = quiet(seed);
        if plan(&view).decision.verdict() != Verdict::Ready {
            continue;
        }
        for kind in ["auth", "proxy", "node"] {
            let mut more = view.clone();
            let new = member("new-1", &[kind], "1.0.0");
            if kind == "auth" {
                more.seats.push(seat(&new, more.control.window_gen));
            }
            more.members.push(new);
            let outcome = plan(&more);
            assert_eq!(outcome.decision.verdict(), Verdict::Ready, "seed {seed}, {kind}: {:?}", outcome.decision.blocked);
        }
    }
}

#[test]
fn an_older_reading_never_permits_more() {
    for seed in 0..300 {
        let mut chaos = Chaos::new(seed);
        for _ in 0..20 {
            let fresh = chaos.seen();
            let permitted = decide(&fresh).next;
            for age in [60, 130, 4000] {
                let mut old = fresh.clone();
                old.read_at = old.read_at.minus(std::time::Duration::from_secs(age));
                assert!(decide(&old).next.iter().all(|step| permitted.contains(step)), "seed {seed}");
            }
            let decision = decide(&fresh);
            chaos.act(&decision);
        }
    }
}

#[test]
fn a_pause_at_any_moment_changes_nothing_in_the_end() {
    let end = |pause: Option<usize>| {
        let mut view = cluster("1.0.0", 3, 2, 5);
        view.asked = Some(v("2.0.0"));
        view.migrations = vec![migration("roles-v2", 2)];
        for look in 0..400 {
            if pause == Some(look)
                && let Ok(Some(mut upgrade)) = view.upgrade()
            {
                let at = view.now;
                upgrade.paused = Some(upgrade::plan::Pause { by: "ann".into(), at, reason: "lunch".into(), failed: false, revert: None });
                view.control = upgrade.write_to(&view.control);
                let held = decide(&view);
                assert!(held.next.is_empty(), "{:?}", held.next);
            }
            let decision = decide(&view);
            if decision.verdict() == Verdict::Done {
                break;
            }
            assert!(ideal(&mut view, &decision));
        }
        let versions: Vec<String> = view.members.iter().map(|member| format!("{} {}", member.id, member.version)).collect();
        (versions, view.control.windows, view.control.cluster_version, view.migrations)
    };
    let undisturbed = end(None);
    for look in 0..60 {
        assert_eq!(end(Some(look)), undisturbed, "paused at look {look}");
    }
}

#[test]
fn the_dice_fall_alike_for_one_seed() {
    let throw = |seed| (0..5).map(|_| 0).scan(Dice::new(seed), |dice, _| Some(dice.below(100))).collect::<Vec<usize>>();
    assert_eq!(throw(7), throw(7));
    assert_ne!(throw(7), throw(8));
}
