//! The attack list of capability 11: each is refused in one line, and nothing on the disk of releases, the link or the service changed.

use crate::host::{Host, directive, system_name, today};
use release::round::Outcome;
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};
use types::{Code, Public, update::UpdateReport};
use upgrade::updater::{Rest, State};

const DAY: Duration = Duration::from_secs(86_400);

/// The round refuses with that code and these words, and changes nothing; asked again it says the same or waits.
async fn refused(host: &Host, code: Code, words: &str) -> Public {
    let (before, runs) = (host.disk(), host.runs());
    let Outcome::Refused(public) = host.round().await else { panic!("not refused: {:?}", host.book()) };
    assert!(public.is(code) && public.message.contains(words), "{public}");
    assert!(!public.message.contains('\n') && public.message.len() < 300, "one line: {public}");
    unchanged(host, before, &runs);
    let report = host.report();
    assert_eq!((report.state.as_str(), report.why.as_str()), (UpdateReport::REFUSED, public.message.as_str()));
    public
}

fn unchanged(host: &Host, before: BTreeMap<PathBuf, Vec<u8>>, runs: &str) {
    // What runs may have been copied beside the link, so that there is something to go back to; nothing else may be there.
    let own = |disk: BTreeMap<PathBuf, Vec<u8>>| {
        disk.into_iter().filter(|(path, _)| !path.to_string_lossy().contains("versions/1.0.0/")).collect::<BTreeMap<_, _>>()
    };
    let mut after = own(host.disk());
    if before.is_empty() {
        after.remove(&host.versions.current());
    }
    assert_eq!(after.keys().collect::<Vec<_>>(), own(before.clone()).keys().collect::<Vec<_>>());
    assert!(host.versions.installed().is_none_or(|installed| installed.version.to_string() == runs));
    assert_eq!(host.runs(), runs);
    assert!(host.book().bad.is_empty(), "a release is not bad because somebody lied about it");
}

fn edit(path: &PathBuf, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

fn archive(host: &Host) -> PathBuf {
    let (os, arch) = release::testing::system();
    host.mirror("1.1.0").join(format!("lockgate-1.1.0-{os}-{arch}.tar.gz"))
}

#[tokio::test]
async fn attack_11_a_tampered_binary_is_refused() {
    let host = Host::new().await;
    host.directs(1, "1.1.0");
    let mut bytes = fs::read(archive(&host)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(archive(&host), bytes).unwrap();
    refused(&host, Code::UpdateBroken, "it has another digest than was signed").await;
    // And it is not tried again at once: whoever tampers does not get to keep the host busy.
    assert!(matches!(host.round().await, Outcome::Waits(_)));
}

#[tokio::test]
async fn attack_11_a_program_that_the_vendor_did_not_sign_inside_a_genuine_archive_is_refused() {
    let host = Host::new().await;
    let mut vendor = host;
    vendor.vendor.manifest = Box::new(|manifest| manifest["program"]["sha256"] = "ab".repeat(32).into());
    vendor.vendor.release("1.1.0", b"program 1.1.0");
    vendor.vendor.sign(today()).await;
    vendor.directs(1, "1.1.0");
    refused(&vendor, Code::UpdateBroken, "the program in").await;
}

#[tokio::test]
async fn attack_11_replayed_older_metadata_is_refused() {
    let host = Host::new().await;
    let old: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(host.mirror("metadata"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    host.vendor.release("1.2.0", b"program 1.2.0");
    host.vendor.sign(today()).await;
    host.directs(1, "1.2.0");
    assert!(matches!(host.round().await, Outcome::Done(_)));
    // Everything as it was before 1.2.0, all of it genuine.
    fs::remove_dir_all(host.mirror("metadata")).unwrap();
    fs::create_dir_all(host.mirror("metadata")).unwrap();
    old.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    host.directs(2, "1.1.0");
    refused(&host, Code::UpdateUntrusted, "older than what was seen before").await;
}

#[tokio::test]
async fn attack_11_frozen_metadata_is_refused() {
    let host = Host::new().await;
    host.vendor.sign(today().minus(DAY * 8)).await;
    host.directs(1, "1.1.0");
    let public = refused(&host, Code::UpdateUntrusted, "has expired").await;
    assert!(public.hint.unwrap().contains("lockgate release sign"));
}

#[tokio::test]
async fn attack_11_a_frozen_directive_is_refused() {
    let host = Host::new().await;
    let mut old = directive(1, "1.1.0", &[(system_name(), host.vendor.digest("1.1.0"))]);
    old.expires = today().minus(DAY);
    host.does(|does| does.directive = Ok(Some(old)));
    refused(&host, Code::UpdateDirective, "the directive expired at").await;
}

#[tokio::test]
async fn attack_11_the_wrong_architecture_is_refused() {
    let host = Host::new().await;
    host.vendor.release_for("1.1.0", b"program of another machine", "linux", "riscv64");
    host.vendor.sign(today()).await;
    let other = release::digest_of(&host.mirror("1.1.0/lockgate-1.1.0-linux-riscv64.tar.gz")).unwrap();
    // The cluster's directive names it for this system, and the vendor did sign it, for another.
    host.does(|does| does.directive = Ok(Some(directive(1, "1.1.0", &[(system_name(), other)]))));
    refused(&host, Code::UpdateRefused, "is for linux/riscv64, this host is linux/").await;
    host.does(|does| does.directive = Ok(Some(directive(2, "1.1.0", &[("linux/riscv64".into(), other)]))));
    refused(&host, Code::UpdateRefused, "the directive names no archive of 1.1.0 for linux/").await;
}

#[tokio::test]
async fn attack_11_the_wrong_edition_is_refused() {
    let mut host = Host::new().await;
    host.vendor.manifest = Box::new(|manifest| manifest["product"] = "lockgate-enterprise".into());
    host.vendor.release("1.1.0", b"program 1.1.0");
    host.vendor.sign(today()).await;
    host.directs(1, "1.1.0");
    refused(&host, Code::UpdateRefused, "is of edition lockgate-enterprise, this host has lockgate").await;
}

#[tokio::test]
async fn attack_11_metadata_below_the_threshold_of_signatures_is_refused() {
    let host = Host::new().await;
    host.vendor.release("1.2.0", b"program 1.2.0");
    // One signer and the key for freshness are stolen: what they sign together waits for a second signer …
    let stolen = [&host.vendor.signers[0], &host.vendor.online];
    let done = host.vendor.sign_with(&stolen, today()).await;
    assert_eq!(done.waits, [("3.targets.json".to_owned(), 1, 2)]);
    // … and put into force by hand it is not believed.
    fs::rename(host.mirror("staging/targets.json"), host.mirror("metadata/3.targets.json")).unwrap();
    host.vendor.sign_with(&[&host.vendor.online], today()).await;
    host.directs(1, "1.2.0");
    refused(&host, Code::UpdateUntrusted, "the targets metadata is not signed by as many of its keys as it must be").await;
}

#[tokio::test]
async fn attack_11_one_key_that_signs_twice_is_still_one() {
    let host = Host::new().await;
    host.vendor.release("1.2.0", b"program 1.2.0");
    host.vendor.sign_with(&[&host.vendor.signers[0]], today()).await;
    let staged = host.mirror("staging/targets.json");
    edit(&staged, |targets| {
        let again = targets["signatures"][0].clone();
        targets["signatures"].as_array_mut().unwrap().push(again);
    });
    fs::rename(staged, host.mirror("metadata/3.targets.json")).unwrap();
    host.vendor.sign_with(&[&host.vendor.online], today()).await;
    host.directs(1, "1.2.0");
    refused(&host, Code::UpdateUntrusted, "not signed by as many").await;
}

#[tokio::test]
async fn attack_11_mix_and_match_is_refused() {
    let host = Host::new().await;
    host.vendor.release("1.2.0", b"program 1.2.0");
    host.vendor.sign(today()).await;
    // Both genuine, and not of one day.
    fs::copy(host.mirror("metadata/2.targets.json"), host.mirror("metadata/3.targets.json")).unwrap();
    host.directs(1, "1.1.0");
    refused(&host, Code::UpdateUntrusted, "do not belong together").await;
}

#[tokio::test]
async fn attack_11_endless_data_is_refused() {
    let host = Host::new().await;
    host.directs(1, "1.1.0");
    let good = fs::read(host.mirror("metadata/timestamp.json")).unwrap();
    for size in [1 << 20, 9 << 20] {
        let mut endless = good.clone();
        endless.resize(size, b' ');
        fs::write(host.mirror("metadata/timestamp.json"), endless).unwrap();
        refused(&host, Code::UpdateUntrusted, "more bytes than it may").await;
    }
    fs::write(host.mirror("metadata/timestamp.json"), good).unwrap();
    let mut endless = fs::read(archive(&host)).unwrap();
    endless.resize(endless.len() + (1 << 20), 0);
    fs::write(archive(&host), endless).unwrap();
    refused(&host, Code::UpdateBroken, "another digest").await;
}

#[tokio::test]
async fn attack_11_an_unknown_version_in_the_directive_is_refused() {
    let host = Host::new().await;
    host.does(|does| does.directive = Ok(Some(directive(1, "1.7.0", &[(system_name(), release::testing::sha256(b"x"))]))));
    refused(&host, Code::UpdateRefused, "the vendor's metadata does not list 1.7.0").await;
    host.does(|does| does.directive = Ok(Some(directive(1, "1.1.0", &[(system_name(), release::testing::sha256(b"x"))]))));
    refused(&host, Code::UpdateRefused, "lists no archive of 1.1.0 with the digest that the directive names").await;
}

#[tokio::test]
async fn attack_11_a_directive_that_nobody_signed_or_of_an_older_generation_is_refused() {
    let host = Host::new().await;
    let forged = Public::new(Code::UpdateDirective, "the directive is not signed by this cluster");
    host.does(|does| does.directive = Err(forged));
    refused(&host, Code::UpdateDirective, "not signed by this cluster").await;
    host.directs(9, "1.0.0");
    assert_eq!(host.round().await, Outcome::Rest(Rest::AsDirected));
    host.directs(8, "1.1.0");
    refused(&host, Code::UpdateDirective, "generation 8, and 9 was obeyed before").await;
}

#[tokio::test]
async fn attack_11_metadata_that_is_no_metadata_is_refused() {
    let host = Host::new().await;
    host.directs(1, "1.1.0");
    edit(&host.mirror("metadata/timestamp.json"), |timestamp| timestamp["signed"]["version"] = 99.into());
    refused(&host, Code::UpdateUntrusted, "the timestamp metadata is not signed").await;
    fs::write(host.mirror("metadata/timestamp.json"), b"<html>Log in to the hotel's network</html>").unwrap();
    refused(&host, Code::UpdateUntrusted, "cannot be read").await;
}

#[tokio::test]
async fn attack_11_a_network_that_is_absent_for_long_at_boot_marks_nothing_bad() {
    let host = Host::new().await;
    host.directs(1, "1.1.0");
    host.does(|does| does.network = false);
    let before = host.disk();
    assert!(matches!(host.round().await, Outcome::Waits(_)));
    unchanged(&host, before, "1.0.0");
    // It goes away in the moment of the switch, and comes back after ten minutes.
    host.does(|does| {
        does.network = true;
        does.verdict = upgrade::updater::Verdict::Unclear("no Proxy answers".into());
    });
    assert!(matches!(host.round().await, Outcome::Waits(_)));
    assert!(matches!(host.book().state, State::Staged { .. }) && host.book().bad.is_empty());
    host.does(|does| {
        does.now = does.now.plus(Duration::from_secs(60));
        does.verdict = upgrade::updater::Verdict::Passed;
        does.network_after = Some(does.now.plus(Duration::from_secs(580)));
    });
    let Outcome::Done(version) = host.round().await else { panic!() };
    assert_eq!((version.to_string(), host.runs()), ("1.1.0".into(), "1.1.0".into()));
    assert!(host.book().bad.is_empty());
}

#[tokio::test]
async fn attack_11_enabling_the_updater_with_no_target_set_changes_nothing() {
    let host = Host::new().await;
    let before = host.disk();
    assert_eq!(host.round().await, Outcome::Rest(Rest::NoDirective));
    assert_eq!(host.disk(), before);
    assert!(before.is_empty() && host.versions.installed().is_none());
}
