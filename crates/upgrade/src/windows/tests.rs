//! The rules over windows, checked against the arithmetic of the handshake over every possible connection.

use super::*;
use crate::control::birth;
use proptest::prelude::*;
use types::{Skew, Version, name::ClusterId, version::Direction};

fn control(windows: Windows) -> ControlRecord {
    ControlRecord { windows, ..birth(ClusterId::from_uuid(uuid::Uuid::nil()), &Version::new(8, 0, 0), true).unwrap() }
}

/// Every connection that these windows admit, as the handshake judges it.
fn connections(windows: &Windows) -> Vec<(&'static str, &'static str, Skew)> {
    let mut all = Vec::new();
    for (client, server) in EDGES {
        let (c, s) = (&windows[client], &windows[server]);
        for cm in c.lo..=c.hi {
            for sm in s.lo..=s.hi {
                let skew = Skew::judge(Direction::ServerFirst, Some(&Version::new(cm, 0, 0)), Some(&Version::new(sm, 0, 0)));
                all.push((client, server, skew));
            }
        }
    }
    all
}

#[test]
fn g4_a_cluster_at_rest_has_a_place_for_members_one_major_behind() {
    for major in 1..20 {
        let windows = resting(major);
        assert_eq!(check_windows(&windows, Phase::Resting), []);
        assert!(windows[AUTH].contains(major) && !windows[AUTH].contains(major - 1));
        for role in [PROXY, AGENT, DRAINING, LEAF] {
            assert!(windows[role].contains(major) && windows[role].contains(major - 1), "{role}");
            assert!(!windows[role].contains(major + 1), "{role}");
        }
    }
}

#[test]
fn at_rest_the_only_pair_left_to_the_handshake_is_a_newer_client_at_an_older_proxy() {
    let windows = resting(8);
    for (client, server, skew) in connections(&windows) {
        match skew {
            Skew::Same | Skew::ClientBehind => {}
            Skew::Refused(public) => {
                assert_eq!(server, PROXY, "{client}");
                assert!(public.is(types::Code::VersionTooNew));
            }
            Skew::ClientAhead => panic!("{client} {server}"),
        }
    }
    // For an upgrade that is not enough, and the check says so.
    assert!(check_windows(&windows, Phase::Rolling).contains(&Violation::Order { client: AGENT, server: PROXY, newest: 8, oldest: 7 }));
}

#[test]
fn g8_the_order_of_an_upgrade_is_the_only_one_that_windows_allow() {
    let go = |moves: &[(&str, &str)]| -> Result<ControlRecord, (usize, IllegalMove)> {
        let mut now = control(settled(8));
        for (at, (verb, role)) in moves.iter().enumerate() {
            let next = if *verb == "widen" { widen(&now, role, 9) } else { narrow(&now, role, 9, 9, &[]) };
            now = next.map_err(|error| (at, error))?;
        }
        Ok(now)
    };
    let right: Vec<_> = ROLES.iter().flat_map(|role| [("widen", *role), ("narrow", *role)]).collect();
    assert_eq!(go(&right).unwrap().windows, settled(9));
    let refused =
        |moves: &[(&str, &str)]| assert!(matches!(go(moves), Err((at, IllegalMove::Breaks { .. })) if at == moves.len() - 1), "{moves:?}");
    refused(&[("widen", PROXY)]);
    refused(&[("widen", AGENT)]);
    refused(&[("widen", AUTH), ("widen", PROXY)]);
    refused(&[("widen", AUTH), ("narrow", AUTH), ("widen", AGENT)]);
    refused(&[("widen", AUTH), ("narrow", AUTH), ("widen", PROXY), ("widen", AGENT)]);
    refused(&[("widen", AUTH), ("narrow", AUTH), ("widen", LEAF)]);
}

#[test]
fn g5_no_upgrade_begins_while_members_a_major_behind_may_join() {
    let error = widen(&control(resting(8)), AUTH, 9).unwrap_err();
    assert!(error.to_string().contains("major 7 could meet an auth of major 9"), "{error}");
}

#[test]
fn narrowing_names_the_members_outside_and_narrowing_auth_fences() {
    let members =
        [crate::inventory::tests::member(1, "web-17", &["node"], "7.2.0"), crate::inventory::tests::member(2, "db-3", &["node"], "8.0.0")];
    let mut before = control(resting(8));
    let error = narrow(&before, AGENT, 8, 8, &members).unwrap_err();
    assert_eq!(error.to_string(), "cannot close agent to majors outside [8, 8]: web-17 (7.2.0) would be outside");
    before.evictions.push(serde_json::json!({"member": members[0].name().as_str(), "reason": "gone"}));
    assert_eq!(narrow(&before, AGENT, 8, 8, &members).unwrap().windows[AGENT], Window::new(8, 8));
    let wide = widen(&control(settled(8)), AUTH, 9).unwrap();
    let closed = narrow(&wide, AUTH, 9, 9, &[]).unwrap();
    assert_eq!((closed.epoch, closed.min_writer_epoch), (wide.epoch + 1, wide.epoch + 1));
    assert!(closed.window_gen > wide.window_gen);
}

#[test]
fn a_member_of_a_role_that_only_a_later_release_knows_is_waited_for_as_an_agent() {
    let members = [crate::inventory::tests::member(1, "app-1", &["app"], "7.2.0")];
    let error = narrow(&control(resting(8)), AGENT, 8, 8, &members).unwrap_err();
    assert_eq!(error.to_string(), "cannot close agent to majors outside [8, 8]: app-1 (7.2.0) would be outside");
    assert!(narrow(&control(resting(8)), PROXY, 8, 8, &members).is_ok());
}

#[test]
fn a_move_that_was_made_already_changes_nothing_when_it_is_asked_for_again() {
    let wide = widen(&control(settled(8)), AUTH, 9).unwrap();
    assert_eq!(widen(&wide, AUTH, 9).unwrap(), wide);
    // A rollback shuts the newer major out; asking twice does not let it in again.
    let back = narrow(&wide, AUTH, 8, 8, &[]).unwrap();
    assert_eq!(back.windows[AUTH].shut, Some(9));
    assert_eq!(narrow(&back, AUTH, 8, 8, &[]).unwrap(), back);
}

#[test]
fn moves_that_make_no_sense_are_refused() {
    let now = control(settled(8));
    assert!(matches!(widen(&now, "gateway", 9), Err(IllegalMove::NoRole(_))));
    assert!(matches!(widen(&now, AUTH, 10), Err(IllegalMove::NotNext { .. })));
    assert!(matches!(widen(&now, AUTH, 8), Err(IllegalMove::NotNext { .. })));
    assert!(matches!(narrow(&now, AUTH, 9, 9, &[]), Err(IllegalMove::NotInside { .. })));
    assert!(matches!(narrow(&now, AUTH, 9, 8, &[]), Err(IllegalMove::NotInside { .. })));
}

proptest! {
    #[test]
    fn windows_that_pass_make_every_possible_connection_legal(spans in proptest::collection::vec((5u64..9, 0u64..3), 5)) {
        let windows: Windows = ROLES.iter().zip(&spans).map(|(role, (lo, width))| ((*role).to_owned(), Window::new(*lo, lo + width))).collect();
        let legal = connections(&windows).iter().all(|(_, _, skew)| matches!(skew, Skew::Same | Skew::ClientBehind));
        if check_windows(&windows, Phase::Rolling).is_empty() {
            prop_assert!(legal);
        }
        // And the rules refuse nothing that would be legal, shapes aside.
        let shape = spans.iter().all(|(_, width)| *width <= 1);
        if legal && shape {
            prop_assert!(check_windows(&windows, Phase::Rolling).is_empty());
        }
    }

    #[test]
    fn no_sequence_of_moves_leads_to_an_illegal_connection(moves in proptest::collection::vec((0usize..5, any::<bool>(), any::<bool>()), 0..40)) {
        let mut now = control(settled(8));
        for (role, up, widening) in moves {
            let role = ROLES[role];
            let window = now.windows[role].clone();
            let next = match (widening, up) {
                (true, true) => widen(&now, role, window.hi + 1),
                (true, false) => widen(&now, role, window.lo.saturating_sub(1)),
                (false, true) => narrow(&now, role, window.hi, window.hi, &[]),
                (false, false) => narrow(&now, role, window.lo, window.lo, &[]),
            };
            if let Ok(next) = next {
                prop_assert!(next == now || next.window_gen > now.window_gen && next.epoch >= now.epoch);
                now = next;
            }
            for (client, server, skew) in connections(&now.windows) {
                prop_assert!(matches!(skew, Skew::Same | Skew::ClientBehind), "{} to {}: {:?}", client, server, skew);
            }
        }
    }
}
