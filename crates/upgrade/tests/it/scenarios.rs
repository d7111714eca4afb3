//! What people read in written situations: a table of scenarios, each a sentence and a world, one file of text for each group.
//!
//! A scenario shows the plan where nothing has begun, and the status afterwards. Every screen is held to its width, and every plan and state to
//! the invariants.

mod asking;
mod ends;
mod moving;

use crate::world::*;
use upgrade::{
    lint,
    plan::{Bar, Decision, Direction, Pause, Stage, Step, View, decide, ideal, plan},
    render::{WIDTH, plan_text, status, status_text},
};

/// A sentence, and the world that it is about.
type Scenario = (&'static str, fn() -> View);

/// The screens of a group, one after the other.
fn screens(scenarios: &[Scenario]) -> String {
    let mut text = String::new();
    for (sentence, world) in scenarios {
        let view = world();
        let outcome = plan(&view);
        let decision = decide(&view);
        assert_eq!(lint::plan(&view, &decision), [], "{sentence}");
        // Windows that somebody moved to where they must not be are not the planner's, and it says so.
        let astray = decision.blocked.iter().any(|block| block.code == Bar::Windows);
        assert_eq!(lint::state(&view).is_empty(), !astray, "{sentence}");
        let screen = if view.control.upgrade.is_none() { plan_text(&view, &outcome) } else { status_text(&status(&view, &decision)) };
        for line in screen.lines() {
            assert!(line.chars().count() <= WIDTH, "{sentence}: {line}");
        }
        text.push_str(&format!("# {sentence}\n\n{screen}\n"));
    }
    text
}

fn check(group: &str, scenarios: &[Scenario]) {
    insta::with_settings!({omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "scenarios"}, {
        insta::assert_snapshot!(group, screens(scenarios));
    });
}

#[test]
fn there_are_sixty_scenarios_and_each_has_its_own_sentence() {
    let mut all: Vec<&str> =
        [asking::ALL, moving::ALL, ends::ALL].iter().flat_map(|group| group.iter().map(|(sentence, _)| *sentence)).collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert!(count >= 60 && all.len() == count, "{count} scenarios, {} of them different", all.len());
}

/// A cluster of usual size, asked to go to 2.0.0.
fn usual() -> View {
    let mut view = cluster("1.0.0", 3, 2, 4);
    view.asked = Some(v("2.0.0"));
    view.migrations = vec![migration("roles-v2", 2)];
    view
}

/// The world at the first decision that is as wanted, if all goes well until then.
fn until(mut view: View, wanted: impl Fn(&Decision) -> bool) -> View {
    for _ in 0..400 {
        let decision = decide(&view);
        if wanted(&decision) {
            return view;
        }
        assert!(ideal(&mut view, &decision), "{decision:#?}");
    }
    panic!("it never comes to that");
}

fn at(stage: Stage) -> View {
    until(usual(), |decision| decision.stage == stage && decision.upgrade.as_ref().is_some_and(|upgrade| upgrade.generation > 0))
}

/// Where somebody of that name is to be told.
fn telling(view: View, who: &'static str) -> View {
    until(view, |decision| decision.next.iter().any(|step| matches!(step, Step::Install { name, .. } if name.starts_with(who))))
}

fn with(mut view: View, edit: impl FnOnce(&mut View)) -> View {
    edit(&mut view);
    view
}

fn edit(view: &mut View, change: impl FnOnce(&mut upgrade::plan::Upgrade)) {
    let mut upgrade = view.upgrade().unwrap().unwrap();
    change(&mut upgrade);
    view.control = upgrade.write_to(&view.control);
}

fn turned(mut view: View) -> View {
    let upgrade = view.upgrade().unwrap().unwrap().turned(Direction::Down);
    view.control = upgrade.write_to(&view.control);
    view
}

fn paused(view: &mut View, reason: &str, failed: bool) {
    let at = view.now;
    edit(view, |upgrade| upgrade.paused = Some(Pause { by: "ann".into(), at, reason: reason.into(), failed, revert: None }));
}
