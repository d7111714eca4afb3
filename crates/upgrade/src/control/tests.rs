//! Rules G2 and G5 at an Auth Service's start, and the hand-over from one major to the next.

use super::*;
use crate::inventory::tests::member;

pub(crate) fn v(text: &str) -> Version {
    text.parse().unwrap()
}
fn born(version: &str) -> ControlRecord {
    let record = birth(ClusterId::from_uuid(uuid::Uuid::nil()), &v(version), !v(version).is_prerelease()).unwrap();
    assert_eq!(faults(&record), Vec::<String>::new());
    record
}
fn refused(got: Result<Start, Public>, code: Code, hint: &str) {
    let public = got.unwrap_err();
    assert!(public.is(code), "{public}");
    assert!(public.hint.as_deref().unwrap_or_default().contains(hint), "{public:?}");
}

#[test]
fn a_cluster_is_born_at_the_last_step_of_its_major() {
    let record = born("8.3.1");
    assert_eq!(record.cluster_version, final_of(8));
    assert_eq!(record.windows, resting(8));
    assert_eq!(may_start(None, &v("8.3.1")), Ok(Start::Birth));
}

#[test]
fn g2_a_pre_release_neither_creates_nor_serves_a_production_cluster() {
    let id = ClusterId::from_uuid(uuid::Uuid::nil());
    assert!(birth(id, &v("8.0.0-rc.1"), true).unwrap_err().is(Code::VersionPrerelease));
    refused(may_start(Some(&born("8.0.0")), &v("8.1.0-rc.1")), Code::VersionPrerelease, "--allow-prerelease");
    let trial = birth(id, &v("8.0.0-rc.1"), false).unwrap();
    assert_eq!(may_start(Some(&trial), &v("8.0.0-rc.2")), Ok(Start::Current));
    assert_eq!(may_start(Some(&trial), &v("8.0.0")), Ok(Start::Current));
}

#[test]
fn g3_minors_and_patches_swap_both_ways() {
    let record = born("8.3.1");
    for other in ["8.0.0", "8.3.0", "8.9.9"] {
        assert_eq!(may_start(Some(&record), &v(other)), Ok(Start::Current), "{other}");
    }
}

#[test]
fn g5_majors_are_taken_one_at_a_time_and_never_back() {
    let record = born("8.3.1");
    assert_eq!(may_start(Some(&record), &v("9.0.0")), Ok(Start::Adopt));
    refused(may_start(Some(&record), &v("10.0.0")), Code::VersionSkip, "upgrade to the latest 9, then 10");
    refused(may_start(Some(&record), &v("12.0.0")), Code::VersionSkip, "upgrade to the latest 9, then 10, then 11, then 12");
    refused(may_start(Some(&record), &v("7.9.9")), Code::VersionDowngrade, "use the latest 8");
    let skip = may_start(Some(&record), &v("10.2.0")).unwrap_err();
    assert_eq!(skip.message, "the store was last used by major 8; this is 10.2.0: majors are taken one at a time");
}

#[test]
fn g5_a_half_finished_major_is_finished_first() {
    let mut record = born("8.0.0");
    record.cluster_version.step = 3;
    refused(may_start(Some(&record), &v("9.0.0")), Code::VersionSkip, "finish it with the latest 8");
}

#[test]
fn another_format_is_another_program() {
    let record = ControlRecord { format: 2, ..born("8.0.0") };
    refused(may_start(Some(&record), &v("8.0.0")), Code::StoreForeign, "data directory");
}

#[test]
fn the_next_major_takes_over_emulates_and_finalizes() {
    let before = born("8.0.0");
    let members = [member(1, "a-1", &["auth"], "8.0.0"), member(2, "web-1", &["node"], "8.0.0")];
    let after = adopt(&before, &v("9.0.0"), &members).unwrap();
    assert_eq!(faults(&after), Vec::<String>::new());
    assert_eq!(after.cluster_version, final_of(8), "formats stay");
    assert!(after.min_writer_epoch > before.epoch, "the old Auth is fenced");
    assert_eq!(may_start(Some(&after), &v("9.1.0")), Ok(Start::Emulate));
    refused(may_start(Some(&after), &v("8.9.0")), Code::VersionDowngrade, "restore the backup");
    refused(may_start(Some(&after), &v("10.0.0")), Code::VersionSkip, "the latest 9, then 10");
    let done = finalize(&after, &v("9.1.0")).unwrap();
    assert_eq!(done.cluster_version, final_of(9));
    assert!(done.window_gen > after.window_gen, "the Auth Services that serve must take the new epoch on");
    assert_eq!(may_start(Some(&done), &v("9.0.0")), Ok(Start::Current));
    assert_eq!(may_start(Some(&done), &v("10.0.0")), Ok(Start::Adopt));
    assert_eq!(finalize(&done, &v("9.1.0")).unwrap(), done, "doing it twice changes nothing");
    assert_eq!(adopt(&done, &v("9.1.0"), &[]).unwrap(), done);
}

#[test]
fn g5_a_major_that_was_shut_out_again_does_not_take_over_by_itself() {
    let mut record = born("8.0.0");
    record.windows = windows::settled(8);
    let wide = windows::widen(&record, AUTH, 9).unwrap();
    assert_eq!(may_start(Some(&wide), &v("9.0.0")), Ok(Start::Emulate));
    let back = windows::narrow(&wide, AUTH, 8, 8, &[]).unwrap();
    refused(may_start(Some(&back), &v("9.0.0")), Code::VersionWindow, "use the latest 8; to try 9 again: tctl windows widen auth 9");
    assert!(adopt(&back, &v("9.0.0"), &[]).is_err());
    assert_eq!(may_start(Some(&back), &v("8.1.0")), Ok(Start::Current));
    let again = windows::widen(&back, AUTH, 9).unwrap();
    assert_eq!(may_start(Some(&again), &v("9.0.0")), Ok(Start::Emulate));
    let up = windows::narrow(&again, AUTH, 9, 9, &[]).unwrap();
    assert_eq!(up.windows[AUTH], types::control::Window::new(9, 9));
    // The way back from there, and forward again.
    let both = windows::widen(&up, AUTH, 8).unwrap();
    assert_eq!(may_start(Some(&both), &v("8.1.0")), Ok(Start::Current));
}

#[test]
fn g4_taking_over_waits_for_members_that_would_be_two_behind() {
    let members = [
        member(2, "web-1", &["node"], "7.4.0"),
        member(3, "web-2", &["node"], "8.0.0"),
        member(4, "later-1", &["app"], "7.5.0"),
        member(5, "later-2", &["app"], "8.0.0"),
    ];
    let error = adopt(&born("8.0.0"), &v("9.0.0"), &members).unwrap_err();
    assert_eq!(error.message, "members would be two majors behind 9.0.0: web-1 (7.4.0), later-1 (7.5.0)");
    assert!(error.is(Code::VersionSkip));
}

#[test]
fn hands_are_kept_off_while_an_upgrade_of_whichever_release_is_under_way() {
    let mut record = born("8.0.0");
    assert_eq!(by_hand(&record, false), Ok(()));
    // Another release's, whose shape is not known here.
    record.upgrade = Some(serde_json::json!({"plan": 7, "of": {"a": "later release"}}));
    record.written_by = Some("8.4.0".into());
    let error = by_hand(&record, false).unwrap_err();
    assert!(error.is(Code::UpgradeRunning));
    assert_eq!(error.message, "an upgrade is under way and moves the windows itself (the record was written by 8.4.0)");
    let hint = error.hint.unwrap();
    assert!(hint.contains("tctl upgrade pause") && hint.contains("--force-during-upgrade"), "{hint}");
    assert_eq!(by_hand(&record, true), Ok(()));
}

#[test]
fn unknown_fields_of_a_newer_release_survive_every_move() {
    let mut record = born("8.0.0");
    record.extra.insert("future".into(), serde_json::json!({"a": 1}));
    record.windows.get_mut("agent").unwrap().extra.insert("note".into(), "kept".into());
    record.windows.insert("worker".into(), types::control::Window::new(8, 8));
    let after = adopt(&record, &v("9.0.0"), &[]).unwrap();
    assert_eq!(after.extra, record.extra);
    assert_eq!(after.windows["agent"].extra, record.windows["agent"].extra);
    assert_eq!(after.windows["worker"], record.windows["worker"]);
    let json = serde_json::to_string(&after).unwrap();
    assert_eq!(serde_json::from_str::<ControlRecord>(&json).unwrap(), after);
}

#[test]
fn windows_at_rest_are_no_fault_until_a_major_is_rolled() {
    let born = born("8.0.0");
    let upgrade = |way: &str, target: &str| {
        serde_json::json!({"id": "u", "from": "8.0.0", "target": target, "direction": "up", "way": way, "begun": "2026-11-23T12:00:00Z",
            "by": "ann", "generation": 1})
    };
    for (way, target) in [("swap", "8.1.0"), ("take-over", "9.0.0"), ("roll", "9.0.0")] {
        let begun = ControlRecord { upgrade: Some(upgrade(way, target)), ..born.clone() };
        assert_eq!(faults(&begun), Vec::<String>::new(), "{way}");
    }
    let mut rolls = ControlRecord { upgrade: Some(upgrade("roll", "9.0.0")), ..born.clone() };
    rolls.windows.insert(AUTH.into(), types::control::Window::new(8, 9));
    assert!(!faults(&rolls).is_empty());
    // What cannot be read is judged by every rule.
    assert!(!faults(&ControlRecord { upgrade: Some(serde_json::json!("later")), ..born }).is_empty());
}
