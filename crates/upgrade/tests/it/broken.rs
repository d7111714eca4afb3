//! Every invariant is broken on purpose, so that none of them holds because it looks at nothing. Those over [`lint::Facts`] are in `src/lint/tests.rs`.

use crate::world::*;
use std::{collections::BTreeSet, time::Duration};
use types::control::Window;
use upgrade::{
    lint::{self, Fault},
    migrate::State,
    plan::{Condition, Decision, Direction, Finding, Said, Step, View, decide, ideal},
};

/// A usual upgrade, at the first look that is as wanted.
fn until(wanted: impl Fn(&Decision) -> bool) -> View {
    let mut view = cluster("1.0.0", 3, 2, 4);
    view.asked = Some(v("2.0.0"));
    view.migrations = vec![migration("roles-v2", 2)];
    for _ in 0..400 {
        let decision = decide(&view);
        if wanted(&decision) {
            return view;
        }
        assert!(ideal(&mut view, &decision));
    }
    panic!("it never comes to that");
}

fn telling(who: &'static str) -> View {
    until(move |decision| decision.next.iter().any(|step| matches!(step, Step::Install { name, .. } if name.starts_with(who))))
}

fn finalizing() -> View {
    let mut view = until(|decision| decision.waits.iter().any(|wait| wait.code == upgrade::plan::Gate::Consent));
    let mut record = view.upgrade().unwrap().unwrap();
    record.finalize = Some(Said { by: "ann".into(), at: view.now });
    view.control = record.write_to(&view.control);
    view.backup = Some(proven(&view, "2.0.0"));
    view
}

fn window(view: &mut View, role: &str, lo: u64, hi: u64) {
    view.control.windows.insert(role.to_owned(), Window::new(lo, hi));
}

/// The decision, with something in it that the planner would not say.
fn meddled(view: &View, meddle: impl FnOnce(&mut Decision)) -> Vec<Fault> {
    let mut decision = decide(view);
    meddle(&mut decision);
    lint::plan(view, &decision)
}

fn check(number: u8, faults: &[Fault]) {
    assert!(faults.iter().any(|fault| fault.invariant.number() == number), "I{number}: {faults:?}");
}

#[test]
fn a_reading_that_breaks_a_rule_is_found() {
    let state = |number, view: View| check(number, &lint::state(&view));
    let mut view = telling("web");
    assert_eq!(lint::state(&view), []);
    window(&mut view, "proxy", 1, 2);
    state(1, view);
    let mut view = telling("auth");
    view.members[3].version = v("2.0.0");
    window(&mut view, "proxy", 1, 2);
    state(2, view);
    let mut view = telling("web");
    view.control.cluster_version.major = 5;
    state(4, view);
    let mut view = telling("auth");
    (view.seats[0].version, view.migrations[0].state) = (v("2.0.0"), State::Shadowing);
    state(5, view.clone());
    state(6, view);
    let mut view = telling("web");
    view.leaves = vec![leaf("berlin", "0.9.0")];
    window(&mut view, "leaf", 0, 1);
    state(14, view);
    let mut view = telling("web");
    let mut old = member("old", &["proxy"], "0.9.0");
    old.state = Condition::Draining;
    view.members.push(old);
    window(&mut view, "draining", 0, 1);
    state(16, view);
}

#[test]
fn a_plan_that_breaks_a_rule_is_found() {
    let view = finalizing();
    assert_eq!(lint::plan(&view, &decide(&view)), []);
    for spoil in [
        (|view| view.backup = None) as fn(&mut View),
        |view| view.migrations[0].state = State::Shadowing,
        |view| window(view, "agent", 1, 2),
    ] {
        let mut spoiled = view.clone();
        spoil(&mut spoiled);
        check(9, &meddled(&spoiled, |decision| decision.next = vec![Step::Finalize]));
    }
    let view = telling("auth");
    let all = |view: &View, who: &str| -> Vec<Step> {
        let one = decide(view).next.into_iter().find(|step| matches!(step, Step::Install { .. })).unwrap();
        let of = |member: &upgrade::plan::Member| match &one {
            Step::Install { version, digest, attempt, drain, .. } => Step::Install {
                member: member.id.clone(),
                name: member.name.clone(),
                version: version.clone(),
                digest: digest.clone(),
                boot: member.boot.clone(),
                attempt: *attempt,
                drain: *drain,
            },
            other => other.clone(),
        };
        view.members.iter().filter(|member| member.name.starts_with(who)).map(of).collect()
    };
    check(11, &meddled(&view, |decision| decision.next = all(&view, "auth")));
    check(12, &meddled(&view, |decision| decision.next = all(&view, "web")));
    check(19, &meddled(&view, |decision| decision.next = all(&view, "auth")));
    check(21, &meddled(&view, |decision| decision.next = [all(&view, "auth-1"), all(&view, "auth-1")].concat()));
    check(
        18,
        &meddled(&view, |decision| {
            decision.next.iter_mut().for_each(|step| {
                if let Step::Install { digest, .. } = step {
                    digest.clear()
                }
            });
        }),
    );
    check(23, &meddled(&view, |decision| decision.next.clear()));
    let mut one_database = telling("web");
    one_database.members.iter_mut().for_each(|member| member.serves = BTreeSet::from(["db".to_owned()]));
    check(11, &meddled(&one_database, |decision| decision.next = all(&one_database, "web")));
    let mut rest = cluster("1.0.0", 3, 2, 4);
    rest.asked = Some(v("2.0.0"));
    let begin = decide(&rest).next;
    rest.releases[1].min_source = Some(v("1.4.0"));
    rest.findings = vec![Finding::Rotation { authority: "host".into(), phase: "init".into() }];
    let faults = meddled(&rest, |decision| decision.next = begin);
    check(13, &faults);
    check(17, &faults);
    let mut closing = until(|decision| decision.next.iter().any(|step| matches!(step, Step::Narrow { role, lo: 2, .. } if role == "auth")));
    let narrow = decide(&closing).next;
    closing.members[0].path = None;
    check(20, &meddled(&closing, |decision| decision.next = narrow));
}

#[test]
fn a_course_that_breaks_a_rule_is_found() {
    let before = telling("web");
    let mut after = before.clone();
    assert_eq!(lint::change(&before, &after), []);
    after.control.window_gen -= 1;
    check(10, &lint::change(&before, &after));
    let mut after = before.clone();
    after.findings = vec![Finding::Rotation { authority: "host".into(), phase: "init".into() }];
    check(17, &lint::change(&before, &after));
}

#[test]
fn from_every_look_before_the_end_there_is_a_way_back_that_breaks_no_rule() {
    let mut view = cluster("1.0.0", 3, 2, 4);
    view.asked = Some(v("2.0.0"));
    view.migrations = vec![migration("roles-v2", 2)];
    for _ in 0..60 {
        assert_eq!(lint::way_back(&view), []);
        let decision = decide(&view);
        ideal(&mut view, &decision);
    }
    // A window that nothing leads back from is found.
    let mut astray = telling("web");
    let mut record = astray.upgrade().unwrap().unwrap();
    record.direction = Direction::Up;
    astray.control = record.write_to(&astray.control);
    astray.members.iter_mut().for_each(|member| member.last_seen = astray.now.minus(Duration::from_secs(5)));
    window(&mut astray, "proxy", 1, 2);
    check(15, &lint::way_back(&astray));
}
