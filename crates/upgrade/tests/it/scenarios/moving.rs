//! Members move, and do not always come back as they should.

use super::*;
use std::{collections::BTreeSet, time::Duration};
use upgrade::{
    migrate::State,
    plan::{Condition, Drill, Gate, OnFailure, Told, Walk},
};

fn find<'a>(view: &'a mut View, name: &str) -> &'a mut upgrade::plan::Member {
    view.members.iter_mut().find(|member| member.name == name).unwrap()
}

/// Who is told first at this point.
fn told_first(view: &View) -> String {
    decide(view).next.iter().find_map(|step| if let Step::Install { name, .. } = step { Some(name.clone()) } else { None }).unwrap()
}

/// Tells whoever is to be told, so many seconds ago.
fn tell(view: &mut View, ago: u64) -> Vec<String> {
    let at = view.now.minus(Duration::from_secs(ago));
    let mut names = Vec::new();
    for step in decide(view).next {
        if let Step::Install { name, version, boot, attempt, .. } = step {
            find(view, &name).told = Some(Told { version, at, boot, attempts: attempt, failed: None });
            names.push(name);
        }
    }
    names
}

/// They come back on their new version, this long ago.
fn arrive(view: &mut View, names: &[String], ago: u64) {
    let now = view.now;
    for name in names {
        let member = find(view, name);
        let version = member.told.as_ref().unwrap().version.clone();
        (member.version, member.boot) = (version, format!("{name}-2"));
        (member.started, member.path) = (now.minus(Duration::from_secs(ago)), None);
        if let Some(seat) = view.seats.iter_mut().find(|seat| seat.name == *name) {
            seat.version = v("2.0.0");
        }
    }
}

fn walked(view: &mut View, name: &str, failed: Option<&str>) {
    let now = view.now;
    let member = find(view, name);
    member.path = Some(Walk { boot: member.boot.clone(), at: now, failed: failed.map(str::to_owned) });
}

/// An agent canary that has come back, and a cohort that was walked through.
fn canary(failed: Option<&str>, cohort: Option<&str>) -> View {
    let mut view = telling(usual(), "web");
    let names = tell(&mut view, 900);
    arrive(&mut view, &names, 700);
    walked(&mut view, &names[0], failed);
    for name in ["web-1", "web-2", "web-3", "web-4"].iter().filter(|name| **name != names[0]) {
        walked(&mut view, name, cohort);
    }
    view
}

/// Agents in great number, the canary being well.
fn many() -> View {
    let mut view = cluster("1.0.0", 1, 1, 60);
    view.asked = Some(v("2.0.0"));
    view.policy.in_flight = 20;
    telling(view, "web")
}

pub(super) const ALL: &[Scenario] = &[
    ("windows of a cluster at rest are settled first", || at(Stage::Preflight)),
    ("the backup is made", || at(Stage::Backup)),
    ("the backup failed", || {
        with(at(Stage::Backup), |view| {
            view.backup = Some(upgrade::plan::Backup {
                at: noon().minus(Duration::from_secs(900_000)),
                failed: Some("no space in /backups".into()),
                ..proven(view, "2.0.0")
            });
        })
    }),
    ("the drill failed", || {
        with(at(Stage::Backup), |view| {
            view.backup = Some(upgrade::plan::Backup {
                drill: Some(Drill { at: noon(), failed: Some("nobody could log in".into()) }),
                ..proven(view, "2.0.0")
            });
        })
    }),
    ("the rehearsal found rows that the next format cannot hold", || {
        with(at(Stage::Backup), |view| {
            let mut backup = proven(view, "2.0.0");
            backup.rehearsal.as_mut().unwrap().bad_rows = vec!["doc/role/ops".into(), "doc/role/old".into()];
            view.backup = Some(backup);
        })
    }),
    ("the window of auth is opened", || at(Stage::Auth)),
    ("an Auth Service has not acknowledged the windows", || with(at(Stage::Auth), |view| view.seats[1].acknowledged = 0)),
    ("the first Auth Service is told", || telling(usual(), "auth")),
    ("the first Auth Service installs", || with(telling(usual(), "auth"), |view| drop(tell(view, 30)))),
    ("the first Auth Service is back and must serve for a while", || {
        with(telling(usual(), "auth"), |view| {
            let names = tell(view, 100);
            arrive(view, &names, 40);
        })
    }),
    ("the first Auth Service has served for long enough to be walked through", || {
        with(telling(usual(), "auth"), |view| {
            let names = tell(view, 800);
            arrive(view, &names, 700);
        })
    }),
    ("nobody could log in through the first Auth Service, and the others are tried too", || {
        with(telling(usual(), "auth"), |view| {
            let names = tell(view, 800);
            arrive(view, &names, 700);
            walked(view, &names[0], Some("login: the certificate is not accepted"));
        })
    }),
    ("nobody could log in through the first Auth Service, and the others are well", || {
        with(telling(usual(), "auth"), |view| {
            let names = tell(view, 800);
            arrive(view, &names, 700);
            walked(view, &names[0], Some("login: the certificate is not accepted"));
            ["auth-1", "auth-2", "auth-3"].iter().filter(|name| **name != names[0]).for_each(|name| walked(view, name, None));
        })
    }),
    ("an Auth Service is away, and no other can be spared", || {
        with(telling(usual(), "auth"), |view| {
            let first = told_first(view);
            let other = ["auth-1", "auth-2", "auth-3"].into_iter().find(|name| *name != first).unwrap();
            find(view, other).last_seen = noon().minus(Duration::from_secs(400));
        })
    }),
    ("Auth Services without an updater are moved by people, one at a time", || {
        with(telling(usual(), "auth"), |view| view.members.iter_mut().take(3).for_each(|auth| auth.by_hand = true))
    }),
    ("the window of auth is closed", || at(Stage::CloseAuth)),
    ("data is reshaped", || with(at(Stage::Data), |view| (view.migrations[0].state, view.migrations[0].done) = (State::Shadowing, 412))),
    ("a migration found rows that it cannot change", || {
        with(at(Stage::Data), |view| {
            view.migrations[0].state = State::Expanded;
            view.migrations[0].stuck = Some("2 rows cannot be changed, first of all doc/role/ops".into());
        })
    }),
    ("a migration was taken back by hand and must go on", || with(at(Stage::Data), |view| view.migrations[0].undo = true)),
    ("the first Proxy is told", || telling(usual(), "proxy")),
    ("an agent canary is told", || telling(usual(), "web")),
    ("an agent canary failed and is told again after a while", || {
        with(telling(usual(), "web"), |view| {
            let names = tell(view, 60);
            find(view, &names[0]).told.as_mut().unwrap().failed = Some("disk full (need 210 MB, has 40 MB)".into());
        })
    }),
    ("an agent canary never came back", || {
        with(telling(usual(), "web"), |view| tell(view, 4000).iter().for_each(|name| find(view, name).told.as_mut().unwrap().attempts = 3))
    }),
    ("a user could not get through the agent canary, and could through others", || canary(Some("no shell"), None)),
    ("a user could get through neither the agent canary nor any other", || canary(Some("no shell"), Some("the network is down"))),
    ("the policy takes a failed canary back", || {
        with(canary(Some("no shell"), None), |view| view.policy.on_failure = OnFailure::PauseAndRevert)
    }),
    ("a failed canary is being taken back while the upgrade is paused", || {
        with(canary(Some("no shell"), None), |view| {
            let wave = decide(view).wave;
            paused(view, "agent canary: 1 of 1 failed", true);
            edit(view, |upgrade| upgrade.paused.as_mut().unwrap().revert = wave);
        })
    }),
    ("somebody knows better and waives the health of agents", || {
        with(canary(Some("no shell"), None), |view| {
            view.waivers = vec![upgrade::plan::Waiver {
                name: "health:agent".into(),
                by: "ann".into(),
                at: noon(),
                until: view.now.plus(Duration::from_secs(600)),
                reason: "it has no shell".into(),
            }];
        })
    }),
    ("a wave of agents is on its way", || {
        let mut view = many();
        let names = tell(&mut view, 900);
        arrive(&mut view, &names, 700);
        walked(&mut view, &names[0], None);
        tell(&mut view, 20);
        view
    }),
    ("agents that serve one database never move together", || {
        with(telling(usual(), "web"), |view| {
            view.members
                .iter_mut()
                .filter(|member| member.name.starts_with("web"))
                .for_each(|agent| agent.serves = BTreeSet::from(["orders-db".to_owned()]));
        })
    }),
    ("agents without an updater come last", || {
        until(with(usual(), |view| view.members.iter_mut().skip(7).for_each(|agent| agent.by_hand = true)), |decision| {
            decision.waits.iter().any(|wait| wait.code == Gate::ByHand)
        })
    }),
    ("silent agents stand in the way of the window of agents", || {
        let mut view = with(usual(), |view| {
            view.members[7].last_seen = noon().minus(Duration::from_secs(9 * 86_400));
            view.members[8].last_seen = noon().minus(Duration::from_secs(9 * 86_400));
        });
        view = until(view, |decision| !decision.blocked.is_empty());
        view
    }),
    ("agents silent for a month are evicted when the window closes", || {
        let view = with(usual(), |view| view.members[7].last_seen = noon().minus(Duration::from_secs(40 * 86_400)));
        until(view, |decision| decision.next.iter().any(|step| matches!(step, Step::Evict { .. })))
    }),
    ("an old Proxy drains its last sessions", || {
        let drains = |view: &mut View| {
            let mut old = member("proxy-old", &["proxy"], "1.0.0");
            (old.state, old.last_seen, old.drains_until) =
                (Condition::Draining, view.now, Some(view.now.plus(Duration::from_secs(5 * 3600))));
            view.members.push(old);
        };
        with(at(Stage::Leaves), |view| {
            let windows = &mut view.control.windows;
            windows.insert("draining".into(), types::control::Window::new(1, 2));
            windows.insert("leaf".into(), types::control::Window::new(1, 1));
            drains(view);
        })
    }),
    ("a release is withdrawn while the upgrade is under way", || {
        with(telling(usual(), "web"), |view| view.releases[1].withdrawn = Some("loses sessions on ARM".into()))
    }),
    ("somebody paused", || with(telling(usual(), "web"), |view| paused(view, "incident 4411", false))),
    ("the reading is old while members are moving", || {
        with(telling(usual(), "web"), |view| view.read_at = view.now.minus(Duration::from_secs(300)))
    }),
    ("somebody moved a window by hand to where no upgrade leads", || {
        with(telling(usual(), "web"), |view| drop(view.control.windows.insert("proxy".into(), types::control::Window::new(1, 2))))
    }),
    ("a leaf is waited for", || {
        let view = with(usual(), |view| {
            view.leaves = vec![leaf("berlin", "1.0.0"), upgrade::plan::Leaf { by_others: true, ..leaf("tokyo", "1.0.0") }]
        });
        until(view, |decision| decision.waits.iter().any(|wait| wait.code == Gate::Leaf))
    }),
];

#[test]
fn members_move_and_do_not_always_come_back_as_they_should() {
    check("moving", ALL);
}
