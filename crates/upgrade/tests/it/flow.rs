//! The whole way, as far as nothing goes wrong.

use crate::world::*;
use types::control::ClusterVersion;
use upgrade::{
    plan::{Condition, Direction, Stage, Step, Told, Verdict, View, decide, ideal, plan},
    windows::{resting, settled},
};

/// Decides and does, until nothing is left to do.
pub(crate) fn go(world: &mut View) -> Vec<Stage> {
    let mut stages = Vec::new();
    for _ in 0..500 {
        let decision = decide(world);
        if decision.verdict() == Verdict::Done {
            return stages;
        }
        if stages.last() != Some(&decision.stage) {
            stages.push(decision.stage);
        }
        assert!(ideal(world, &decision), "it stands: {decision:#?}");
    }
    panic!("no end: {stages:?}");
}

fn turn(world: &mut View, direction: Direction) {
    let upgrade = world.upgrade().unwrap().unwrap().turned(direction);
    world.control = upgrade.write_to(&world.control);
}

fn versions(world: &View) -> Vec<String> {
    let mut all: Vec<String> = world.members.iter().map(|member| member.version.to_string()).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn g8_an_upgrade_goes_through_its_stages_in_order_and_ends_at_the_next_major() {
    let mut world = cluster("1.0.0", 3, 2, 7);
    world.asked = Some(v("2.0.0"));
    world.migrations = vec![migration("roles-v2", 2)];
    world.leaves = vec![leaf("berlin", "1.0.0")];
    let stages = go(&mut world);
    use Stage::{Agents, Auth, Backup, CloseAuth, Data, Done, Finalize, Leaves, Preflight, Proxies, Soak};
    let expected = [Preflight, Backup, Preflight, Auth, CloseAuth, Data, Proxies, Agents, Leaves, Soak, Finalize, Done];
    assert_eq!(stages, expected);
    assert_eq!((versions(&world), &world.control.windows), (vec!["2.0.0".to_owned()], &settled(2)));
    assert_eq!((world.control.cluster_version, world.control.upgrade), (ClusterVersion { major: 2, step: 0 }, None));
}

#[test]
fn from_every_look_before_the_end_a_rollback_leads_back_to_where_it_began() {
    let mut world = cluster("1.0.0", 3, 2, 4);
    world.asked = Some(v("2.0.0"));
    world.migrations = vec![migration("roles-v2", 2)];
    world.leaves = vec![leaf("berlin", "1.0.0")];
    let mut looks = 0;
    loop {
        let decision = decide(&world);
        if decision.stage == Stage::Finalize || decision.verdict() == Verdict::Done {
            break;
        }
        assert!(ideal(&mut world, &decision));
        if world.control.upgrade.is_none() || world.control.cluster_version.major == 2 {
            continue;
        }
        let mut back = world.clone();
        back.asked = None;
        turn(&mut back, Direction::Down);
        go(&mut back);
        assert_eq!((versions(&back), back.control.cluster_version.major), (vec!["1.0.0".to_owned()], 1), "from look {looks}");
        assert!(back.control.windows.values().all(|window| window.contains(1) && !window.contains(2)));
        looks += 1;
    }
    assert!(looks > 30, "{looks}");
}

#[test]
fn g9_one_process_that_is_everything_is_replaced_and_its_successor_takes_over() {
    let mut world = cluster("1.0.0", 0, 0, 2);
    world.members.push(member("box", &["auth", "proxy", "node"], "1.0.0"));
    world.seats = vec![seat(world.members.last().unwrap(), 1)];
    world.asked = Some(v("2.0.0"));
    world.migrations = vec![migration("roles-v2", 2)];
    let mut back = world.clone();
    go(&mut world);
    assert_eq!((versions(&world), world.control.cluster_version.major), (vec!["2.0.0".to_owned()], 2));
    // And back, from where the agents have moved.
    while decide(&back).stage != Stage::Soak {
        let decision = decide(&back);
        assert!(ideal(&mut back, &decision), "{decision:#?}");
    }
    turn(&mut back, Direction::Down);
    back.asked = None;
    let mut given = false;
    for _ in 0..100 {
        let decision = decide(&back);
        // Windows that were closed on the way up are opened first: nobody is sent to where he is refused.
        assert_eq!(upgrade::lint::plan(&back, &decision), []);
        given |= decision.next.iter().any(|step| matches!(step, Step::GiveBack { major: 1 }));
        if decision.verdict() == Verdict::Done {
            break;
        }
        assert!(ideal(&mut back, &decision), "{decision:#?}");
    }
    assert!(given);
    let mut expected = resting(1);
    expected.get_mut("auth").unwrap().shut = Some(2);
    assert_eq!(back.control.windows, expected);
}

#[test]
fn g3_within_a_major_only_the_order_matters() {
    let mut world = cluster("1.0.0", 2, 2, 3);
    world.releases.push(release("1.4.0"));
    world.asked = Some(v("1.4.0"));
    let windows = world.control.windows.clone();
    let stages = go(&mut world);
    assert_eq!(stages, [Stage::Preflight, Stage::Backup, Stage::Auth, Stage::Proxies, Stage::Agents, Stage::Done]);
    assert_eq!((versions(&world), world.control.windows), (vec!["1.4.0".to_owned()], windows));
}

#[test]
fn a_plan_is_equal_to_the_byte_however_its_members_are_ordered() {
    let mut world = cluster("1.0.0", 3, 2, 9);
    world.asked = Some(v("2.0.0"));
    let outcome = plan(&world);
    assert_eq!(outcome.decision.verdict(), Verdict::Ready, "{outcome:#?}");
    let bytes = serde_json::to_string(&outcome).unwrap();
    assert_eq!(serde_json::to_string(&plan(&world)).unwrap(), bytes);
    world.members.reverse();
    world.seats.reverse();
    assert_eq!(serde_json::to_string(&plan(&world)).unwrap(), bytes);
    // A support bundle holds the same question.
    let bundle = serde_json::to_string(&world).unwrap();
    let read: View = serde_json::from_str(&bundle).unwrap();
    assert_eq!(serde_json::to_string(&plan(&read)).unwrap(), bytes);
}

#[test]
fn who_drains_on_its_way_to_another_release_is_away_and_nobody_takes_its_place() {
    let mut world = cluster("1.0.0", 3, 1, 0);
    world.asked = Some(v("2.0.0"));
    let first = loop {
        let decision = decide(&world);
        if let Some(Step::Install { member, version, boot, .. }) = decision.next.first() {
            let told = Told { version: version.clone(), at: world.now, boot: boot.clone(), attempts: 1, failed: None };
            break (member.clone(), told);
        }
        assert!(ideal(&mut world, &decision));
    };
    let (id, told) = first;
    world.seats.retain(|seat| seat.host.as_ref() != Some(&id));
    let member = world.members.iter_mut().find(|member| member.id == id).unwrap();
    (member.told, member.state) = (Some(told), Condition::Draining);
    let decision = decide(&world);
    assert!(!decision.next.iter().any(|step| matches!(step, Step::Install { .. })), "{:#?}", decision.next);
    assert_eq!(decision.waits.iter().map(|wait| wait.code.as_str()).collect::<Vec<_>>(), ["G-06"]);
}
