//! Nothing has begun: what would come, and what stands against it.

use super::*;
use std::{collections::BTreeSet, time::Duration};
use types::Ttl;
use upgrade::plan::{Condition, Finding, Policy, Root, Waiver};

fn finding(finding: Finding) -> View {
    with(usual(), |view| view.findings = vec![finding])
}

fn waiver(view: &View, name: &str) -> Waiver {
    Waiver { name: name.into(), by: "ann".into(), at: view.now, until: view.now.plus(Duration::from_secs(7200)), reason: "agreed".into() }
}

fn setting() -> Finding {
    Finding::Setting { member: "proxy-1".into(), key: "proxy_service.tunnel_strategy".into(), instead: "remove it".into() }
}

fn rotation() -> Finding {
    Finding::Rotation { authority: "host".into(), phase: "update_clients".into() }
}

pub(super) const ALL: &[Scenario] = &[
    ("a cluster at rest is asked for the next major", usual),
    ("nothing is asked", || with(usual(), |view| view.asked = None)),
    ("the version that runs is asked for", || with(usual(), |view| view.asked = Some(v("1.0.0")))),
    ("an older version is asked for", || with(usual(), |view| view.asked = Some(v("0.9.0")))),
    ("a far major is asked for, and the way there is several upgrades", || with(usual(), |view| view.asked = Some(v("4.0.0")))),
    ("a major between here and there is not in the mirror", || {
        with(usual(), |view| {
            view.asked = Some(v("4.0.0"));
            view.releases.retain(|release| release.version != v("3.0.0"));
        })
    }),
    ("a release that is not known is asked for", || with(usual(), |view| view.asked = Some(v("2.7.0")))),
    ("a release with broken signatures is asked for", || {
        with(usual(), |view| view.releases.iter_mut().for_each(|release| release.verified &= release.version != v("2.0.0")))
    }),
    ("a release that was withdrawn is asked for", || {
        with(usual(), |view| view.releases[1].withdrawn = Some("loses sessions on ARM".into()))
    }),
    ("a release that is not mirrored yet is asked for", || with(usual(), |view| view.releases[1].mirrored = false)),
    ("g2: a pre-release is asked for in production", || {
        with(usual(), |view| {
            view.asked = Some(v("2.0.0-rc.1"));
            view.releases.push(release("2.0.0-rc.1"));
        })
    }),
    ("the release takes no upgrades from what runs here, and what it takes is in the mirror", || {
        with(usual(), |view| {
            view.releases[1].min_source = Some(v("1.4.0"));
            view.releases.push(release("1.4.0"));
        })
    }),
    ("the release takes no upgrades from what runs here, and what it takes is not in the mirror", || {
        with(usual(), |view| view.releases[1].min_source = Some(v("1.4.0")))
    }),
    ("the release denies the version that runs here", || with(usual(), |view| view.releases[1].denied_sources = vec![v("1.0.0")])),
    ("a release on the way must be visited", || {
        with(usual(), |view| {
            view.asked = Some(v("2.3.0"));
            view.releases.extend([release("2.3.0"), upgrade::plan::Release { visit: true, ..release("2.1.0") }]);
        })
    }),
    ("the release that runs is not in the mirror, so there would be no way back", || {
        with(usual(), |view| view.releases[0].mirrored = false)
    }),
    ("somebody waived the way back", || {
        with(usual(), |view| {
            view.releases[0].mirrored = false;
            view.waivers = vec![waiver(view, "way-back")];
        })
    }),
    ("an authority is being rotated", || finding(rotation())),
    ("a setting is unknown to the next major", || finding(setting())),
    ("somebody waived the setting", || {
        with(finding(setting()), |view| view.waivers = vec![waiver(view, "setting:proxy_service.tunnel_strategy")])
    }),
    ("a waiver has run out", || {
        with(finding(setting()), |view| {
            let until = view.now.minus(Duration::from_secs(1));
            view.waivers = vec![Waiver { until, ..waiver(view, "setting:proxy_service.tunnel_strategy") }];
        })
    }),
    ("a disk is full", || finding(Finding::Disk { member: "web-1".into(), needs: 210, has: 40 })),
    ("a clock is wrong", || finding(Finding::Clock { member: "auth-2".into(), off: 340 })),
    ("an agent is a major behind", || with(usual(), |view| view.members[6].version = v("0.9.0"))),
    ("an agent was quarantined because it is ahead, and that is no reason to wait", || {
        with(usual(), |view| (view.members[6].version, view.members[6].state) = (v("2.0.0"), Condition::Quarantined))
    }),
    ("a leaf is a major behind", || with(usual(), |view| view.leaves = vec![leaf("berlin", "0.9.0")])),
    ("a leaf is run by others", || {
        with(usual(), |view| view.leaves = vec![upgrade::plan::Leaf { by_others: true, ..leaf("tokyo", "1.0.0") }])
    }),
    ("g11: this cluster is a leaf, and its root has not moved", || {
        with(usual(), |view| view.root = Some(Root { name: "hq".into(), version: v("1.2.0") }))
    }),
    ("g11: this cluster is a leaf, and its root is ahead", || {
        with(usual(), |view| view.root = Some(Root { name: "hq".into(), version: v("2.0.0") }))
    }),
    ("capability 1: four faults are planted, and exactly these four are named", || {
        with(cluster("1.0.0", 3, 2, 200), |view| {
            view.asked = Some(v("2.0.0"));
            view.members[100].version = v("0.8.0");
            view.members[100].state = Condition::Quarantined;
            view.members[100].class = "linux-amd64".into();
            view.leaves = vec![leaf("berlin", "1.0.0"), leaf("tokyo", "1.0.0")];
            view.leaves[1].last_seen = noon().minus(Duration::from_secs(86_400));
            view.findings = vec![setting(), rotation()];
        })
    }),
    ("one process is everything", || {
        with(cluster("1.0.0", 0, 0, 0), |view| {
            view.asked = Some(v("2.0.0"));
            view.members = vec![member("box", &["auth", "proxy", "node"], "1.0.0")];
            view.seats = vec![seat(&view.members[0], 1)];
        })
    }),
    ("one process is everything, and nobody but a person can replace it", || {
        with(cluster("1.0.0", 0, 0, 0), |view| {
            view.asked = Some(v("2.0.0"));
            view.members = vec![upgrade::plan::Member { by_hand: true, ..member("box", &["auth", "proxy", "node"], "1.0.0") }];
            view.seats = vec![seat(&view.members[0], 1)];
        })
    }),
    ("processes are several services, and there are three Auth Services", || {
        with(usual(), |view| view.members[0].roles.insert(role("proxy")).then_some(()).unwrap())
    }),
    ("a Proxy and an agent are one process beside one Auth Service", || {
        with(cluster("1.0.0", 1, 1, 2), |view| {
            view.asked = Some(v("2.0.0"));
            view.members[1].roles.insert(role("node"));
        })
    }),
    ("members have no updater", || {
        with(usual(), |view| view.members.iter_mut().filter(|member| member.name.starts_with("web")).for_each(|m| m.by_hand = true))
    }),
    ("the policy leaves no Auth Service to spare, so the plan would stand still", || {
        with(usual(), |view| view.policy = Policy { min_auth: Some(3), ..Policy::default() })
    }),
    ("what is known of the cluster is old", || with(usual(), |view| view.read_at = noon().minus(Duration::from_secs(600)))),
    ("no Auth Service has reported", || {
        with(usual(), |view| view.members.iter_mut().take(3).for_each(|auth| auth.last_seen = noon().minus(Duration::from_secs(900))))
    }),
    ("g3: a minor is asked for", || {
        with(usual(), |view| {
            view.releases.push(release("1.4.0"));
            view.asked = Some(v("1.4.0"));
        })
    }),
    ("the Auth Services are there already, and agents lag behind within the major", || {
        with(usual(), |view| {
            view.releases.push(release("1.4.0"));
            view.asked = Some(v("1.4.0"));
            view.members.iter_mut().take(5).for_each(|member| member.version = v("1.4.0"));
        })
    }),
    ("a large cluster in two regions, eleven classes and two leaves", || {
        with(cluster("18.4.1", 3, 8, 9412), |view| {
            view.asked = Some(v("19.0.0"));
            view.migrations = (1..=14).map(|n| migration(&format!("m{n:02}"), 19)).collect();
            view.backup = Some(proven(view, "19.0.0"));
            view.leaves = vec![leaf("berlin", "18.4.1"), upgrade::plan::Leaf { by_others: true, ..leaf("tokyo", "18.4.1") }];
            view.releases = vec![release("18.4.1"), release("19.0.0")];
            for (n, member) in view.members.iter_mut().enumerate() {
                match n {
                    0..3 => {}
                    3..11 => member.class = if n % 2 == 0 { "eu" } else { "us" }.into(),
                    _ => member.class = format!("class-{}", n % 11),
                }
                member.serves = BTreeSet::new();
            }
            view.members[500].last_seen = noon().minus(Duration::from_secs(86_400));
        })
    }),
    ("the policy finalizes by itself after a soak of a day", || {
        with(usual(), |view| {
            view.policy = Policy { finalize: upgrade::plan::Consent::After, soak: Ttl::hours(24), ..Policy::default() };
        })
    }),
];

#[test]
fn what_would_come_and_what_stands_against_it() {
    check("asking", ALL);
}

#[test]
fn capability_1_exactly_the_planted_faults_are_named() {
    let (_, world) = ALL.iter().find(|(sentence, _)| sentence.starts_with("capability 1")).unwrap();
    let view = world();
    let outcome = plan(&view);
    let codes: Vec<&str> = outcome.decision.blocked.iter().map(|block| block.code.as_str()).collect();
    assert_eq!(codes, ["B-08", "B-09", "B-06", "B-10"]);
    assert_eq!((outcome.decision.verdict().exit_status(), outcome.decision.next.len()), (3, 0));
    assert_eq!(outcome.decision.blocked[2].members, ["web-96"]);
    assert_eq!(outcome.decision.blocked[3].members, ["tokyo"]);
}
