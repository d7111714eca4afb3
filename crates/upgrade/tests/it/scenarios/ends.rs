//! Soak and finalize, and the way back from everywhere.

use super::*;
use std::time::Duration;
use types::Ttl;
use upgrade::plan::{Consent, Gate, Policy, Said, Walk};

fn soaking() -> View {
    until(usual(), |decision| decision.waits.iter().any(|wait| wait.code == Gate::Soak))
}

fn consenting() -> View {
    until(usual(), |decision| decision.waits.iter().any(|wait| wait.code == Gate::Consent))
}

fn said(view: &mut View) {
    let at = view.now;
    edit(view, |upgrade| upgrade.finalize = Some(Said { by: "ann".into(), at }));
}

pub(super) const ALL: &[Scenario] = &[
    ("everything is moved, and the soak begins", || at(Stage::Soak)),
    ("the soak goes on", soaking),
    ("a member turns bad during the soak", || {
        with(soaking(), |view| {
            let now = view.now;
            let agent = view.members.last_mut().unwrap();
            agent.path = Some(Walk { boot: agent.boot.clone(), at: now, failed: Some("no shell".into()) });
        })
    }),
    ("the soak is over, and somebody must consent", consenting),
    ("somebody consented, and a fresh backup comes first", || with(consenting(), said)),
    ("somebody consented, and everything is ready", || {
        with(consenting(), |view| {
            said(view);
            view.backup = Some(proven(view, "2.0.0"));
        })
    }),
    ("the policy consents once the soak is over", || {
        let policy = Policy { finalize: Consent::After, soak: Ttl::hours(1), ..Policy::default() };
        let view = with(usual(), |view| view.policy = policy);
        until(view, |decision| decision.next.contains(&Step::Finalize))
    }),
    ("it is finalized, and the old form is given up", || {
        let view = with(consenting(), said);
        until(view, |decision| decision.stage == Stage::Finalize && decision.waits.iter().any(|wait| wait.code == Gate::Data))
    }),
    ("it is over", || until(usual(), |decision| decision.next.contains(&Step::Finish))),
    ("after the end there is no way back", || turned(until(usual(), |decision| decision.next.contains(&Step::Finish)))),
    ("a rollback before anything moved", || turned(at(Stage::Backup))),
    ("a rollback while Auth Services are moving", || turned(telling(usual(), "auth"))),
    ("a rollback with data in both forms", || {
        let view = turned(at(Stage::Proxies));
        until(view, |decision| decision.stage == Stage::Data)
    }),
    ("a rollback from the soak begins at the far end", || turned(soaking())),
    ("a rollback comes to the Proxies", || until(turned(soaking()), |decision| decision.stage == Stage::Proxies)),
    ("a rollback comes to the Auth Services", || until(turned(soaking()), |decision| decision.stage == Stage::Auth)),
    ("a rollback waits for a leaf", || {
        let view = with(usual(), |view| view.leaves = vec![leaf("berlin", "1.0.0")]);
        let view = turned(until(view, |decision| decision.stage == Stage::Soak));
        until(view, |decision| decision.waits.iter().any(|wait| wait.code == Gate::Leaf))
    }),
    ("a rollback, and an agent that was offline comes back too new", || {
        let view = until(turned(soaking()), |decision| {
            decision.next.iter().any(|step| matches!(step, Step::Narrow { role, .. } if role == "agent"))
        });
        with(view, |view| {
            let mut late = member("late", &["node"], "2.0.0");
            (late.last_seen, late.started) = (view.now.minus(Duration::from_secs(400)), view.now);
            view.members.push(late);
        })
    }),
    ("a rollback after which somebody goes forward again", || {
        let view = until(turned(soaking()), |decision| decision.stage == Stage::Proxies);
        with(view, |view| edit(view, |upgrade| *upgrade = upgrade.clone().turned(Direction::Up)))
    }),
    ("the cluster was taken over by hand, and the planner goes on from there", || {
        let mut view = cluster("1.0.0", 1, 1, 2);
        let documents = view.documents();
        view.control = upgrade::adopt(&view.control, &v("2.0.0"), &documents).unwrap();
        (view.members[0].version, view.seats[0].version) = (v("2.0.0"), v("2.0.0"));
        view.seats[0].acknowledged = view.control.window_gen;
        view.asked = Some(v("2.0.0"));
        view
    }),
    ("one process is being replaced by hand", || {
        let mut view = cluster("1.0.0", 0, 0, 0);
        view.asked = Some(v("2.0.0"));
        view.members = vec![upgrade::plan::Member { by_hand: true, ..member("box", &["auth", "proxy", "node"], "1.0.0") }];
        view.seats = vec![seat(&view.members[0], 1)];
        until(view, |decision| decision.waits.iter().any(|wait| wait.code == Gate::ByHand))
    }),
    ("a minor is swapped, Auth Services first", || {
        let mut view = usual();
        view.releases.push(release("1.4.0"));
        view.asked = Some(v("1.4.0"));
        telling(view, "auth")
    }),
    ("the record was written by a release that this one does not understand", || {
        with(usual(), |view| view.control.upgrade = Some(serde_json::json!({"route": ["x"]})))
    }),
];

#[test]
fn soak_finalize_and_the_way_back() {
    check("ends", ALL);
}
