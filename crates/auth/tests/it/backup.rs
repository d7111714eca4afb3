//! Backups: everything comes back, nothing else is accepted, and a moment is a moment. Those made by themselves: `schedule`; into a bucket:
//! `bucket`; large ones: `large`; of other releases: `versions`.

mod bucket;
mod large;
mod schedule;
mod versions;

use crate::fixture::{
    Cluster, Keys, PASSWORD, START, config, create, document, login_request, preference, role_document, sqlite, user_document, world,
};
use auth::{
    Storage,
    backup::{Progress, Restored, Source, Terms, content, drill, make, restore},
    password::otp_code,
};
use backup::{Cost, Origin, PrivateKey, Protection, SeedSigner, Signer as _, Trust, Unlock};
use net::clock::ManualClock;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{Cursor, Write as _},
    path::Path,
    sync::Arc,
    time::Duration,
};
use store::{Batch, CommitError, Condition, Key, Memory, Sqlite, Store, WriterEpoch, scan};
use tokio_stream::StreamExt as _;
use types::{Code, Public, SystemRole, Time, kind::KINDS, kind::SecondFactor};
use wire::api as pb;

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file
}

fn memory(clock: &ManualClock) -> Arc<dyn Store> {
    struct Shared(net::clock::SharedClock);
    impl store::Clock for Shared {
        fn now(&self) -> Time {
            self.0.now()
        }
    }
    Arc::new(Memory::new(Arc::new(Shared(clock.shared()))))
}

/// The bytes of a backup as an administrator gets them, and what the last piece says.
async fn fetch(client: &mut crate::fixture::Client, ask: pb::CreateBackupRequest) -> Result<(Vec<u8>, serde_json::Value), Public> {
    let mut stream = client.create_backup(ask).await.map_err(|status| pb::from_status(&status))?.into_inner();
    let (mut bytes, mut written) = (Vec::new(), None);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|status| pb::from_status(&status))?;
        assert!(written.is_none(), "nothing comes behind the last piece");
        bytes.extend_from_slice(&chunk.data);
        written = (!chunk.written.is_empty()).then(|| serde_json::from_slice(&chunk.written).unwrap());
    }
    Ok((bytes, written.expect("the last piece")))
}

fn plain() -> pb::CreateBackupRequest {
    pb::CreateBackupRequest { unencrypted: true, ..Default::default() }
}

fn terms(unlock: Unlock, trust: Trust) -> Terms {
    Terms { unlock, trust, ca_pin: None, version: "8.1.0".parse().unwrap(), now: Time::from_unix(START) }
}

async fn restored_into(store: &Arc<dyn Store>, bytes: &[u8]) -> Restored {
    let terms = terms(Unlock::Unencrypted, Trust::Any);
    restore(store.clone(), file(bytes), terms, Arc::new(Progress::default())).await.unwrap()
}

type Items = BTreeMap<String, (Vec<u8>, Option<Time>)>;

async fn items(store: &dyn Store) -> Items {
    let all = scan(store, &Key::first(), &Key::last()).await.unwrap();
    all.into_iter().map(|item| (item.key.to_string(), (item.value.to_vec(), item.expires))).collect()
}

/// Without what a restore writes itself, and what no backup carries.
fn comparable(mut items: Items) -> Items {
    items.retain(|key, _| key != "control" && !key.starts_with("internal/audit/") && content::carried(key.as_bytes()));
    items
}

async fn cluster_on(store: Arc<dyn Store>, clock: &ManualClock, version: &str) -> Cluster {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut config = config(dir.path());
    (config.storage, config.cluster_name) = (Storage::Open(store), Some("demo".parse().unwrap()));
    config.auth_preference = Some(preference(SecondFactor::Otp));
    Cluster::from(dir, config, clock.clone(), version).await
}

#[test]
fn the_list_of_internal_families_is_what_the_sources_write() {
    let mut found = BTreeSet::new();
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for rest in text.split("[\"internal\", \"").skip(1) {
                found.insert(rest.split('"').next().unwrap().to_owned());
            }
            for rest in text.split("\"internal/").skip(1) {
                found.insert(rest.split(['/', '"', '<']).next().unwrap().to_owned());
            }
        }
    }
    assert_eq!(found, content::FAMILIES.iter().map(|family| (*family).to_owned()).collect());
}

/// Whoever leaves something out says so here too: it is gone after a restore.
#[test]
fn nothing_is_left_out_but_what_is_told_anew_by_whoever_lives() {
    let left: Vec<&str> = content::LEFT_OUT.iter().map(|(prefix, _)| *prefix).collect();
    assert_eq!(
        left,
        ["doc/member/", "doc/node/", "internal/auth/", "internal/backup/made/", "internal/backup/turn/", "internal/recordings/"]
    );
    for key in ["control", "migration/1/journal", "migration/1/cursor", "shadow/1/doc/user/x", "internal/account/x", "of/the/future"] {
        assert!(content::carried(key.as_bytes()), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_and_every_secret_comes_back_as_it_was() {
    let clock = ManualClock::new(Time::from_unix(START));
    let store = memory(&clock);
    let cluster = cluster_on(store.clone(), &clock, "8.1.0").await;
    let otp = cluster.user("alice", &["access"], &["root"]).await;
    let mut admin = cluster.admin();
    create(&mut admin, &user_document("bob", &["access"], &["bob"])).await.unwrap();
    admin.create_invite(pb::CreateInviteRequest { user: "bob".into(), ttl: 3600 }).await.unwrap();
    admin.create_token(pb::CreateTokenRequest { roles: vec!["node".into()], ttl: 600, ..Default::default() }).await.unwrap();
    create(&mut admin, &role_document("dev", serde_json::json!({"allow": {"logins": ["app"]}, "of_the_future": [1, 2]}))).await.unwrap();
    let lock = serde_json::json!({"kind": "lock", "version": "v1", "metadata": {"name": "l", "expires": "2028-01-01T00:00:00Z"}, "spec": {"target": {"user": "eve"}}});
    create(&mut admin, &document(lock)).await.unwrap();
    let (_, _, agent) = cluster.member(7, SystemRole::Node).await;
    let code = otp_code(&otp, cluster.now()).unwrap();
    cluster.proxy().await.login(login_request("alice", PASSWORD, &code, &Keys::new())).await.unwrap();
    cluster.proxy().await.login(login_request("alice", "wrong", "", &Keys::new())).await.unwrap_err();
    // What nobody has written of its own accord, and what only a newer release knows.
    let mut given: Vec<String> = KINDS.iter().map(|(kind, _)| format!("doc/{kind}/made-up")).collect();
    given.extend(content::FAMILIES.iter().filter(|family| **family != "ca").map(|family| format!("internal/{family}/made-up")));
    given.extend(["future/thing/x".into(), "doc/of-the-future/x".into(), "migration/m1/journal".into(), "shadow/m1/doc/x/y".into()]);
    for (number, at) in given.iter().enumerate() {
        let expires = (number % 3 == 0).then(|| Time::from_unix(START + 86_400));
        store.commit(Batch::new(None).put(key(at), format!("value {number}"), expires)).await.unwrap();
    }

    let (bytes, written) = fetch(&mut admin, plain()).await.unwrap();
    let before = items(store.as_ref()).await;
    let mut carried = BTreeSet::new();
    let mut verified = backup::verify(Cursor::new(&bytes), &Unlock::Unencrypted, &Trust::Any).unwrap();
    for record in verified.pass().unwrap() {
        carried.insert(String::from_utf8(record.unwrap().key).unwrap());
    }
    for (kind, _) in KINDS {
        let dir = format!("doc/{kind}/");
        let left_out = content::LEFT_OUT.iter().any(|(prefix, _)| *prefix == dir);
        assert_eq!(carried.iter().any(|key| key.starts_with(&dir)), !left_out, "{kind}: every kind is carried, or left out by name");
    }
    for family in content::FAMILIES {
        let dir = format!("internal/{family}/");
        let left_out = content::LEFT_OUT.iter().any(|(prefix, _)| *prefix == dir);
        assert_eq!(carried.iter().any(|key| key.starts_with(&dir)), !left_out, "{family}: carried, or left out by name");
    }
    assert_eq!(written["summary"]["records"], carried.len());

    let pins = cluster.auth.ca_pins();
    let (spent, head) = (cluster.clock.clone(), admin.verify_audit(pb::Empty {}).await.unwrap().into_inner());
    cluster.stop().await;
    let fresh = memory(&clock);
    let restored = restored_into(&fresh, &bytes).await;
    assert_eq!(comparable(items(fresh.as_ref()).await), comparable(before));
    assert_eq!((restored.pins.clone(), restored.expired), (pins.clone(), 0));
    assert!(restored.epoch > 1);
    let old = Batch::new(Some(WriterEpoch(1))).put(key("zombie"), "x", None);
    assert_eq!(fresh.commit(old).await, Err(CommitError::Fenced { min: restored.epoch }));

    let cluster = cluster_on(fresh, &spent, "8.1.0").await;
    assert_eq!(cluster.auth.ca_pins(), pins);
    let (keys, mut proxy) = (Keys::new(), cluster.proxy().await);
    let code = otp_code(&otp, cluster.now()).unwrap();
    let reply = proxy.login(login_request("alice", PASSWORD, &code, &keys)).await;
    // That code was used before the backup; the next one is good.
    assert!(reply.is_err());
    cluster.clock.advance(Duration::from_secs(30));
    let code = otp_code(&otp, cluster.now()).unwrap();
    proxy.login(login_request("alice", PASSWORD, &code, &keys)).await.unwrap();
    cluster.client(Some(&agent), "node").get(pb::GetRequest { kind: "cert_authority".into(), name: "host".into() }).await.unwrap();
    // The log goes on: its first event has the number behind the last one that the backup knew of.
    let verdict = cluster.admin().verify_audit(pb::Empty {}).await.unwrap().into_inner();
    assert!(verdict.intact && verdict.events > head.events.saturating_sub(2), "{verdict:?}");
    let position = restored.manifest.audit.unwrap();
    assert!(verdict.note.contains(&format!("behind event {}, hash {}", position.index, position.hash)), "{}", verdict.note);
    let search = pb::SearchEventsRequest { oldest_first: true, limit: 1, ..Default::default() };
    let first = cluster.admin().search_events(search).await.unwrap().into_inner();
    let first: serde_json::Value = serde_json::from_slice(&first.events[0]).unwrap();
    assert_eq!((first["code"].as_str(), first["ei"].as_u64()), (Some("LB002I"), Some(position.index + 1)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_continues_is_whole_and_cutting_its_first_file_off_is_noticed() {
    let cluster = Cluster::start().await;
    let (bytes, _) = fetch(&mut cluster.admin(), plain()).await.unwrap();
    let clock = cluster.clock.clone();
    cluster.stop().await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let start = |storage| {
        let mut config = config(dir.path());
        config.storage = storage;
        Cluster::from(dir.clone(), config, clock.clone(), "8.1.0")
    };
    std::fs::create_dir_all(dir.path().join("auth")).unwrap();
    let store = auth::open_storage(&sqlite(dir.path()), clock.shared()).await.unwrap();
    restored_into(&store, &bytes).await;
    store.close().await;
    let cluster = start(sqlite(dir.path())).await;
    let verify = |cluster: &Cluster| {
        let mut admin = cluster.admin();
        async move { admin.verify_audit(pb::Empty {}).await.unwrap().into_inner() }
    };
    // Its start is recorded before it answers.
    assert!(verify(&cluster).await.intact);
    clock.advance(Duration::from_secs(86_400));
    create(&mut cluster.admin(), &user_document("next-day", &["access"], &[])).await.unwrap();
    assert!(verify(&cluster).await.intact);
    cluster.stop().await;
    let cluster = start(sqlite(dir.path())).await;
    let verdict = verify(&cluster).await;
    assert!(verdict.intact && !verdict.note.is_empty(), "{verdict:?}");
    let mut files: Vec<_> = std::fs::read_dir(dir.path().join("auth/audit")).unwrap().map(|entry| entry.unwrap().path()).collect();
    // Beside a file lies a hint about its times, which nobody believes.
    files.retain(|path| path.extension().is_some_and(|kind| kind == "jsonl"));
    files.sort();
    assert_eq!(files.len(), 2);
    std::fs::remove_file(&files[0]).unwrap();
    let verdict = verify(&cluster).await;
    assert!(!verdict.intact && verdict.fault.contains("is missing"), "{verdict:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_not_be_restored_is_refused_before_anything_is_written() {
    let cluster = Cluster::start().await;
    let key_of = PrivateKey::generate(&mut |bytes| rand::rng().fill_bytes(bytes));
    let ask = pb::CreateBackupRequest { recipients: vec![key_of.recipient().unwrap().to_string()], ..Default::default() };
    let (good, written) = fetch(&mut cluster.admin(), ask).await.unwrap();
    let signer = written["signer"].as_str().unwrap().parse().unwrap();
    let pinned = Trust::Pinned(vec![signer]);
    let terms = |change: &dyn Fn(&mut Terms)| {
        let mut terms = terms(Unlock::Keys(vec![key_of.clone()]), pinned.clone());
        change(&mut terms);
        terms
    };
    let clock = cluster.clock.clone();
    let refused = async |bytes: &[u8], terms: Terms, code: Code| {
        let store = memory(&clock);
        let error = restore(store.clone(), file(bytes), terms, Arc::default()).await.unwrap_err().public();
        assert_eq!(error.known(), Some(code), "{error}");
        assert_eq!(store.revision().await, Ok(0), "{error}: nothing was written");
    };
    let same = |_: &mut Terms| {};
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    refused(&flipped, terms(&same), Code::BackupDamaged).await;
    refused(&good[..good.len() - 1], terms(&same), Code::BackupTruncated).await;
    refused(b"PK\x03\x04 something else", terms(&same), Code::BackupForeign).await;
    refused(&[good.as_slice(), b"x"].concat(), terms(&same), Code::BackupDamaged).await;
    let mut newer = good.clone();
    newer[9] = 2;
    refused(&newer, terms(&same), Code::BackupDamaged).await;
    let stranger = SeedSigner::new(&[9; 32]).unwrap().public_key().fingerprint();
    refused(&good, terms(&|terms| terms.trust = Trust::Pinned(vec![stranger.clone()])), Code::BackupSigner).await;
    refused(&good, terms(&|terms| terms.ca_pin = Some(format!("sha256:{}", "0".repeat(64)))), Code::BackupSigner).await;
    let other = PrivateKey::generate(&mut |bytes| rand::rng().fill_bytes(bytes));
    refused(&good, terms(&|terms| terms.unlock = Unlock::Keys(vec![other.clone()])), Code::BackupKey).await;
    refused(&good, terms(&|terms| terms.unlock = Unlock::Unencrypted), Code::BackupKey).await;
    refused(&good, terms(&|terms| terms.version = "7.9.0".parse().unwrap()), Code::VersionDowngrade).await;

    let store = memory(&clock);
    store.commit(Batch::new(None).put(key("something"), "x", None)).await.unwrap();
    let error = restore(store.clone(), file(&good), terms(&same), Arc::default()).await.unwrap_err().public();
    assert!(error.is(Code::StoreForeign) && error.message.contains("\"something\""), "{error}");
    assert_eq!(store.revision().await, Ok(1));

    let store = memory(&clock);
    let pin = cluster.auth.ca_pins().remove(0);
    restore(store.clone(), file(&good), terms(&|terms| terms.ca_pin = Some(pin.clone())), Arc::default()).await.unwrap();
    let error = restore(store, file(&good), terms(&same), Arc::default()).await.unwrap_err().public();
    assert!(error.is(Code::StoreForeign), "{error}");
    cluster.stop().await;
}

#[tokio::test]
async fn a_half_restored_store_refuses_to_start_says_why_and_is_restored_again() {
    let cluster = Cluster::start().await;
    let (bytes, _) = fetch(&mut cluster.admin(), plain()).await.unwrap();
    let clock = cluster.clock.clone();
    cluster.stop().await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let store = auth::open_storage(&sqlite(dir.path()), clock.shared()).await.unwrap();
    let mut load = store::Load::begin(store.clone(), 1001, "backup x").await.unwrap();
    load.add(key("doc/user/rest"), "{}".into(), None).await.unwrap();
    load.settle().await.unwrap();
    drop(load);
    store.close().await;
    let mut half = config(dir.path());
    half.storage = sqlite(dir.path());
    let error = auth::build(half, world(&clock, "8.1.0")).await.err().unwrap().public();
    assert!(error.message.contains("the restore of backup x did not end; run it again: tctl backup restore"), "{error}");
    let store = auth::open_storage(&sqlite(dir.path()), clock.shared()).await.unwrap();
    let restored = restored_into(&store, &bytes).await;
    assert!(restored.epoch >= 1001);
    assert_eq!(store.get(&key("doc/user/rest")).await, Ok(None));
    store.close().await;
    let mut whole = config(dir.path());
    whole.storage = sqlite(dir.path());
    Cluster::from(dir, whole, clock, "8.1.0").await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_may_make_backups_gets_one_and_each_is_recorded() {
    let cluster = Cluster::start().await;
    let check = async |mut client: crate::fixture::Client, allowed: bool| {
        let got = fetch(&mut client, plain()).await;
        assert_eq!(got.as_ref().map(|_| ()).map_err(|error| error.known()), if allowed { Ok(()) } else { Err(Some(Code::AccessDenied)) });
    };
    let (editor, _, _) = cluster.logged_in("ed", &["editor"], &["x"]).await;
    let (auditor, _, _) = cluster.logged_in("au", &["auditor", "access"], &["x"]).await;
    check(editor, true).await;
    check(auditor, false).await;
    check(cluster.member(9, SystemRole::Node).await.0, false).await;
    check(cluster.proxy().await, false).await;
    check(cluster.member(10, SystemRole::Auth).await.0, false).await;
    let stranger = fetch(&mut cluster.stranger(), plain()).await.unwrap_err();
    assert!(stranger.is(Code::LoginRequired), "{stranger}");

    let nothing = fetch(&mut cluster.admin(), pb::CreateBackupRequest::default()).await.unwrap_err();
    assert!(nothing.is(Code::Malformed), "{nothing}");
    let two = pb::CreateBackupRequest { passphrase: "long enough to be one".into(), unencrypted: true, ..Default::default() };
    assert!(fetch(&mut cluster.admin(), two).await.unwrap_err().is(Code::Malformed));
    let weak = pb::CreateBackupRequest { passphrase: "hunter2".into(), ..Default::default() };
    assert!(fetch(&mut cluster.admin(), weak).await.unwrap_err().is(Code::Usage));

    let search = pb::SearchEventsRequest { names: vec!["backup.create".into()], ..Default::default() };
    let events = cluster.admin().search_events(search).await.unwrap().into_inner().events;
    let codes: Vec<String> = events.iter().map(|json| serde_json::from_slice::<types::Event>(json).unwrap().code).collect();
    assert_eq!(codes, ["LB001E", "LB001I", "LB001I"]);
    assert!(events.iter().all(|json| !String::from_utf8_lossy(json).contains("hunter2")), "a passphrase is never recorded");
    let control = cluster.admin().get(pb::GetRequest { kind: "control".into(), name: "control".into() }).await.unwrap().into_inner();
    let control: serde_json::Value = serde_json::from_slice(&control.document).unwrap();
    assert!(control["spec"]["backup"]["last"]["digest"].is_string(), "{control}");
    cluster.stop().await;
}

/// Everything that a source needs but the store.
fn source(store: &Arc<dyn Store>) -> Source {
    let origin = Origin {
        cluster: "demo".parse().unwrap(),
        cluster_id: "00000000-0000-0000-0000-000000000007".parse().unwrap(),
        product: "8.1.0".parse().unwrap(),
        created: Time::from_unix(START),
    };
    Source { store: store.clone(), origin, audit: None, signer: Box::new(SeedSigner::new(&[7; 32]).unwrap()) }
}

async fn bytes_of(store: &Arc<dyn Store>) -> Vec<u8> {
    make(source(store), Protection::Unencrypted, Vec::new(), Arc::default()).await.unwrap().sink
}

async fn with_control(store: &Arc<dyn Store>) {
    let record = upgrade::control::birth("00000000-0000-0000-0000-000000000007".parse().unwrap(), &"8.1.0".parse().unwrap(), true).unwrap();
    store::control::create(store.as_ref(), &record).await.unwrap();
}

/// A writer moves amounts between two documents, far apart in the order of keys, so that their sum never changes.
async fn sums_hold(store: Arc<dyn Store>, fresh: impl Fn() -> Arc<dyn Store>) {
    with_control(&store).await;
    let (one, two) = (key("doc/aaa/one"), key("zzz/two"));
    for n in 0..2500 {
        store.commit(Batch::new(None).put(key(&format!("doc/between/{n:05}")), vec![b'x'; 200], None)).await.unwrap();
    }
    store.commit(Batch::new(None).put(one.clone(), "500", None).put(two.clone(), "500", None)).await.unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (writing, stopped) = (store.clone(), stop.clone());
    let (from, to) = (one.clone(), two.clone());
    let writer = tokio::task::spawn(async move {
        let mut moved = 0u32;
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            let amount = moved % 400;
            let batch = Batch::new(None).require(Condition::Exists(from.clone())).put(from.clone(), (500 + amount).to_string(), None).put(
                to.clone(),
                (500 - amount).to_string(),
                None,
            );
            writing.commit(batch).await.unwrap();
            moved += 1;
            tokio::task::yield_now().await;
        }
        moved
    });
    let mut seen = BTreeSet::new();
    for _ in 0..8 {
        let bytes = bytes_of(&store).await;
        let target = fresh();
        restored_into(&target, &bytes).await;
        let amount = async |key: &Key| {
            let item = target.get(key).await.unwrap().unwrap();
            std::str::from_utf8(&item.value).unwrap().parse::<u32>().unwrap()
        };
        let (first, second) = (amount(&one).await, amount(&two).await);
        assert_eq!(first + second, 1000);
        seen.insert(first);
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(writer.await.unwrap() > 8 && seen.len() > 1, "the writer wrote meanwhile: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_one_moment_while_writes_go_on() {
    let clock = ManualClock::new(Time::from_unix(START));
    sums_hold(memory(&clock), || memory(&clock)).await;
    let dir = tempfile::tempdir().unwrap();
    let file: Arc<dyn Store> =
        Arc::new(Sqlite::open(&dir.path().join("s.db"), Arc::new(store::Manual::at(Time::from_unix(START)))).unwrap());
    sums_hold(file, || memory(&clock)).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_backup_of_a_restored_backup_has_equal_content(
        items in prop::collection::btree_map("[a-y]{1,3}(/[a-z]{1,3}){0,3}", (prop::collection::vec(any::<u8>(), 0..300), prop::option::of(1u32..1_000_000)), 0..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let clock = ManualClock::new(Time::from_unix(START));
            let (one, two) = (memory(&clock), memory(&clock));
            with_control(&one).await;
            for (at, (value, expires)) in &items {
                let expires = expires.map(|seconds| Time::from_unix(START + i64::from(seconds)));
                one.commit(Batch::new(None).put(key(at), value.clone(), expires)).await.unwrap();
            }
            let first = bytes_of(&one).await;
            restored_into(&two, &first).await;
            let second = bytes_of(&two).await;
            let records = |bytes: &[u8]| {
                let mut verified = backup::verify(Cursor::new(bytes), &Unlock::Unencrypted, &Trust::Any).unwrap();
                let all: Vec<_> = verified.pass().unwrap().map(|record| record.unwrap()).filter(|record| record.key != b"control").collect();
                all
            };
            let (first, second) = (records(&first), records(&second));
            assert_eq!(first.len(), items.len());
            assert!(first == second);
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_uses_what_comes_back_and_leaves_nothing() {
    let cluster = Cluster::start().await;
    cluster.user("alice", &["access"], &["root"]).await;
    let ask = pb::CreateBackupRequest { passphrase: "correct horse battery staple".into(), ..Default::default() };
    let (bytes, written) = fetch(&mut cluster.admin(), ask).await.unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let trust = Trust::Pinned(vec![written["signer"].as_str().unwrap().parse().unwrap()]);
    let asked = terms(Unlock::Passphrase("correct horse battery staple".parse().unwrap()), trust);
    let drilled = drill(scratch.path(), file(&bytes), asked.clone(), cluster.clock.shared(), Arc::default()).await.unwrap();
    assert_eq!((drilled.users, drilled.roles, drilled.certificate.as_deref()), (1, 3, Some("alice")));
    assert!(drilled.audit.contains("continues an earlier log"), "{}", drilled.audit);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    let bad = drill(scratch.path(), file(&bytes[..100]), asked, cluster.clock.shared(), Arc::default()).await.unwrap_err();
    assert!(bad.public().is(Code::BackupTruncated), "{bad}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    cluster.stop().await;
}

#[tokio::test]
async fn a_passphrase_costs_what_it_should() {
    let clock = ManualClock::new(Time::from_unix(START));
    let store = memory(&clock);
    with_control(&store).await;
    let cost = Cost { memory_kib: 64, passes: 1, lanes: 1 };
    let protection = Protection::Passphrase { passphrase: "a long passphrase".parse().unwrap(), cost };
    let made = make(source(&store), protection, Vec::new(), Arc::default()).await.unwrap();
    assert!(backup::verify(Cursor::new(&made.sink), &Unlock::Passphrase("another passphrase".parse().unwrap()), &Trust::Any).is_err());
    assert!(backup::verify(Cursor::new(&made.sink), &Unlock::Passphrase("a long passphrase".parse().unwrap()), &Trust::Any).is_ok());
}
