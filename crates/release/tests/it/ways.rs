//! The ways an update may go: to its end, back, or on from where it was killed.

use crate::host::{Host, today};
use release::round::{Outcome, Seen};
use std::{fs, time::Duration};
use types::{Code, update::UpdateReport};
use upgrade::updater::{Rest, State, Verdict};

#[tokio::test]
async fn a_host_goes_to_the_directed_release_and_keeps_the_one_before() {
    let host = Host::new().await;
    host.directs(3, "1.1.0");
    assert_eq!(host.round().await, Outcome::Done("1.1.0".parse().unwrap()));
    assert_eq!((host.runs().as_str(), host.book().generation), ("1.1.0", 3));
    let opt = host.versions.current().parent().unwrap().to_owned();
    assert_eq!(fs::read_link(host.versions.current()).unwrap().to_str(), Some("versions/1.1.0"));
    assert_eq!(fs::read(opt.join("current/bin/lockgate")).unwrap(), b"program 1.1.0");
    assert_eq!(fs::read_link(opt.join("current/bin/tsh")).unwrap().to_str(), Some("lockgate"));
    assert_eq!(fs::read(opt.join("versions/1.0.0/bin/lockgate")).unwrap(), b"program 1.0.0", "what ran before stays");
    assert_eq!(host.report().state, UpdateReport::CONFIRMED);
    let disk = host.disk();
    assert_eq!(host.round().await, Outcome::Rest(Rest::AsDirected));
    assert_eq!(host.disk(), disk);
    // And the next one: of three releases the oldest goes.
    host.vendor.release("1.2.0", b"program 1.2.0");
    host.vendor.sign(today()).await;
    host.directs(4, "1.2.0");
    assert_eq!(host.round().await, Outcome::Done("1.2.0".parse().unwrap()));
    assert!(!opt.join("versions/1.0.0").exists() && opt.join("versions/1.1.0").exists());
    // The way back is a directive like any other, and needs no download.
    host.directs(5, "1.1.0");
    fs::remove_dir_all(host.mirror("1.1.0")).unwrap();
    assert_eq!(host.round().await, Outcome::Done("1.1.0".parse().unwrap()));
}

#[tokio::test]
async fn a_release_that_the_cluster_does_not_see_is_taken_back() {
    let host = Host::new().await;
    host.directs(3, "1.1.0");
    host.does(|does| drop(does.broken.insert("1.1.0".into(), String::new())));
    let began = host.does(|does| does.now);
    let Outcome::Reverted(version, why) = host.round().await else { panic!() };
    assert_eq!((version.to_string(), host.runs()), ("1.1.0".into(), "1.0.0".into()));
    assert_eq!(why.message, "the cluster could be reached for 5m and did not see this host with 1.1.0");
    assert!(host.does(|does| does.now).since(began) < Duration::from_secs(400));
    let report = host.report();
    assert_eq!((report.state.as_str(), &report.why), (UpdateReport::REVERTED, &why.message));
    assert!(matches!(host.round().await, Outcome::Reverted(..)), "it is said, and not tried again");
    assert_eq!(host.runs(), "1.0.0");
}

#[tokio::test]
async fn a_service_that_does_not_come_up_is_taken_back_at_once() {
    let host = Host::new().await;
    host.directs(3, "1.1.0");
    host.does(|does| drop(does.broken.insert("1.1.0".into(), "lockgate.service failed with status 1".into())));
    let began = host.does(|does| does.now);
    let Outcome::Reverted(_, why) = host.round().await else { panic!() };
    assert_eq!(why.message, "the service did not come up with it: lockgate.service failed with status 1");
    assert_eq!((host.runs().as_str(), host.does(|does| does.now)), ("1.0.0", began));
}

#[tokio::test]
async fn a_release_whose_own_test_fails_never_becomes_the_one_that_runs() {
    let host = Host::new().await;
    host.directs(3, "1.1.0");
    host.does(|does| does.verdict = Verdict::Failed("the configuration has a key that it does not know".into()));
    let Outcome::Reverted(_, why) = host.round().await else { panic!() };
    assert!(why.is(Code::UpdateFailed) && why.message.contains("the configuration has a key"));
    assert_eq!((host.runs().as_str(), host.versions.installed().unwrap().version.to_string().as_str()), ("1.0.0", "1.0.0"));
    assert_eq!(host.does(|does| does.running.clone()).unwrap().boot_id, "boot-0", "nothing was restarted");
}

#[tokio::test]
async fn an_updater_that_is_killed_between_any_two_steps_goes_on_where_it_was() {
    let host = Host::new().await;
    host.directs(3, "1.1.0");
    host.does(|does| does.verdict = Verdict::Unclear("killed here".into()));
    assert!(matches!(host.round().await, Outcome::Waits(_)));
    let State::Staged { job } = host.book().state else { panic!() };
    // The power went after the book said that it was switched, and before the link moved.
    let from = host.versions.installed().unwrap();
    let switched = host.book().after(
        upgrade::updater::Event::Switched { job: job.clone(), from, boot: "boot-0".into() },
        &upgrade::updater::Patience::default(),
        host.does(|does| does.now),
    );
    let state = host.vendor.folder.0.parent().unwrap().join("state");
    release::round::keep(&state, &switched, None, today()).unwrap();
    host.does(|does| does.verdict = Verdict::Passed);
    assert_eq!(host.round().await, Outcome::Done("1.1.0".parse().unwrap()));
    // It went after the link moved and the new release runs: the next updater only looks.
    host.directs(4, "1.0.0");
    let switched = host.book().after(
        upgrade::updater::Event::Switched { job, from: host.versions.installed().unwrap(), boot: "boot-0".into() },
        &upgrade::updater::Patience::default(),
        host.does(|does| does.now),
    );
    release::round::keep(&state, &switched, None, today()).unwrap();
    host.does(|does| does.running = Some(Seen { version: "1.1.0".parse().unwrap(), boot_id: "boot-9".into() }));
    assert_eq!(host.round().await, Outcome::Done("1.1.0".parse().unwrap()));
}

#[tokio::test]
async fn two_updaters_do_not_work_on_one_host_at_once() {
    let host = Host::new().await;
    let held = host.versions.lock().unwrap();
    assert!(host.try_round().await.unwrap_err().is(Code::Conflict));
    drop(held);
    assert_eq!(host.round().await, Outcome::Rest(Rest::NoDirective));
}

#[tokio::test]
async fn a_new_root_that_enough_of_the_old_signers_signed_is_followed_and_the_old_keys_end() {
    let mut host = Host::new().await;
    host.directs(1, "1.1.0");
    assert!(matches!(host.round().await, Outcome::Done(_)));
    // The key of one signer was stolen: the others replace it.
    let keys = tempfile::tempdir().unwrap();
    let stolen = std::mem::replace(&mut host.vendor.signers[0], release::keys::Signer::generate(&keys.path().join("new.key")).unwrap().0);
    host.vendor.next_root(today());
    let done = host.vendor.sign_with(&[&host.vendor.signers[0], &host.vendor.signers[1]], today()).await;
    assert_eq!(done.waits.first(), Some(&("2.root.json".to_owned(), 1, 2)), "the old root's signers are asked too: {done:?}");
    let done = host.vendor.sign_with(&[&host.vendor.signers[2], &host.vendor.online], today()).await;
    assert!(done.published.contains(&"2.root.json".to_owned()), "{done:?}");
    host.vendor.release("1.2.0", b"program 1.2.0");
    let done = host.vendor.sign_with(&[&stolen, &host.vendor.signers[2]], today()).await;
    assert_eq!(done.waits.first().map(|(_, has, needs)| (*has, *needs)), Some((1, 2)), "a key that was replaced signs nothing: {done:?}");
    host.vendor.sign(today()).await;
    host.directs(2, "1.2.0");
    assert_eq!(host.round().await, Outcome::Done("1.2.0".parse().unwrap()));
    // The root that is believed now is remembered: without 2.root.json the old keys are not believed again.
    fs::remove_file(host.mirror("metadata/2.root.json")).unwrap();
    host.directs(3, "1.1.0");
    assert_eq!(host.round().await, Outcome::Done("1.1.0".parse().unwrap()));
}
