//! The migrations of this product, over what 1.0.0 left behind: two clusters that it backed up, with users, invitations, hosts and keys.
//!
//! `crates/migrate` breaks each of them everywhere; here they run together, over rows that a release wrote, and the service works in
//! every form: emulating the former one, writing both, relying on the new one, and back.

use crate::{
    backup::file,
    fixture::*,
    migrations::{all_are, migrations, step, turn, until},
    several::Shared,
};
use auth::{
    Storage,
    backup::{Terms, restore},
    password::otp_code,
};
use backup::{PrivateKey, Trust, Unlock};
use migrate::{Limits, Outcome, Runner};
use net::clock::ManualClock;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};
use store::{Handle, Key, Memory, Sqlite, Store, WriterEpoch, control, scan};
use types::{Code, Document, Secret, SystemRole, Time, control::Window};
use upgrade::migrate::{Goal, Migration, Row, registry};
use wire::{api as pb, hello::Hello};

/// Where backups that 1.0.0 made lie, without their endings.
const LEFT: [&str; 2] = ["tests/golden/backup-1.0.0", "../harness/tests/golden/1.0.0/cluster"];

fn left(which: &str, ending: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("{which}.{ending}"))).unwrap()
}

/// Restores one of them, as this release does.
async fn restored(store: &Arc<dyn Store>, which: &str) {
    let keys = PrivateKey::read_all(&Secret::new(String::from_utf8(left(which, "key")).unwrap())).unwrap();
    let version = "2.0.0".parse().unwrap();
    let terms = Terms { unlock: Unlock::Keys(keys), trust: Trust::Any, ca_pin: None, version, now: Time::from_unix(START) };
    let restored = restore(store.clone(), file(&left(which, "lgbackup")), terms, Arc::default()).await.unwrap();
    assert!(restored.first.is_none() && restored.pins == known(which)["pins"].as_array().unwrap().clone());
}

fn known(which: &str) -> Value {
    serde_json::from_slice(&left(which, "json")).unwrap()
}

type Rows = BTreeMap<String, (Vec<u8>, Option<Time>)>;

/// All rows but those that upgrades write.
async fn rows(store: &dyn Store) -> Rows {
    let all = scan(store, &Key::first(), &Key::last()).await.unwrap();
    let ours = |key: &str| key == "control" || key.starts_with("migration/") || key.starts_with("retained/");
    let rows = all.into_iter().map(|item| (item.key.to_string(), (item.value.to_vec(), item.expires)));
    rows.filter(|(key, _)| !ours(key)).collect()
}

/// The same rows in the newest form.
fn forward(rows: &Rows) -> Rows {
    let registry = registry().unwrap();
    let mut all = Rows::new();
    for (key, (value, expires)) in rows {
        let old = Row::new(key.clone(), value.clone());
        match registry.iter().find(|migration| key.starts_with(&format!("{}/", migration.old_dir()))) {
            Some(migration) => {
                all.extend(migration.forward(&old).unwrap().into_iter().map(|new| (new.key, (new.value, *expires))));
                if !migration.is_one_to_one() {
                    all.insert(key.clone(), (value.clone(), *expires));
                }
            }
            None => drop(all.insert(key.clone(), (value.clone(), *expires))),
        }
    }
    all
}

/// Changes the control record, and returns the epoch to write with.
async fn govern(store: &dyn Store, change: impl FnOnce(&types::ControlRecord) -> types::ControlRecord) -> WriterEpoch {
    let was = control::read(store).await.unwrap().unwrap();
    let next = change(&was.record);
    let stored = control::update(store, &was, &next, WriterEpoch(was.record.epoch)).await.unwrap();
    WriterEpoch(stored.record.epoch)
}

async fn run(store: &Arc<dyn Store>, epoch: WriterEpoch, goal: Goal) {
    for migration in registry().unwrap().iter() {
        let runner = Runner::new(store.clone(), *migration, epoch, "test", Limits { rows: 2, ..Limits::default() }).unwrap();
        assert_eq!(runner.run(goal).await.unwrap(), Outcome::Done, "{}", migration.id);
    }
}

/// How many rows each migration finds.
fn count(rows: &Rows, migration: &Migration) -> usize {
    rows.keys().filter(|key| key.starts_with(&format!("{}/", migration.old_dir()))).count()
}

#[tokio::test]
async fn what_1_0_0_left_behind_goes_up_comes_back_byte_for_byte_and_goes_through() {
    struct Hands(ManualClock);
    impl store::Clock for Hands {
        fn now(&self) -> Time {
            net::clock::Clock::now(&self.0)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut found = BTreeMap::new();
    for (number, which) in LEFT.iter().enumerate() {
        let clock = || Arc::new(Hands(ManualClock::new(Time::from_unix(START))));
        let sqlite = Sqlite::open(&dir.path().join(format!("{number}.db")), clock()).unwrap();
        for store in [Arc::new(Memory::new(clock())) as Arc<dyn Store>, Arc::new(sqlite)] {
            restored(&store, which).await;
            let before = rows(store.as_ref()).await;
            for migration in registry().unwrap().iter() {
                *found.entry(migration.id).or_insert(0) += count(&before, migration);
            }
            let epoch = govern(store.as_ref(), |record| upgrade::adopt(record, &"2.0.0".parse().unwrap(), &[]).unwrap()).await;
            run(&store, epoch, Goal::Up).await;
            let up = rows(store.as_ref()).await;
            assert!(before.iter().all(|(key, row)| up.get(key) == Some(row)), "the former rows are as they were");
            run(&store, epoch, Goal::Undo).await;
            assert_eq!(rows(store.as_ref()).await, before, "undone");
            run(&store, epoch, Goal::Up).await;
            assert_eq!(rows(store.as_ref()).await, up, "up, undo, up is up");
            let epoch = govern(store.as_ref(), |record| upgrade::finalize(record, &"2.0.0".parse().unwrap()).unwrap()).await;
            run(&store, epoch, Goal::Contract).await;
            assert_eq!(rows(store.as_ref()).await, forward(&before), "contracted");
            store.close().await;
        }
    }
    // An invitation that nobody has accepted is in none of them.
    found.retain(|id, rows| *rows == 0 || *id == "2-invite-user");
    assert_eq!(found, BTreeMap::from([("2-invite-user", 0)]), "each has rows to change");
}

/// The administrator of that cluster, as a `tctl` of that version.
fn admin_of(cluster: &Cluster, version: &str) -> Client {
    let file = admin_file(cluster.dir.path());
    let identity = net::tls::TlsIdentity::from_pem(file.tls_certificate.as_bytes(), file.private_key.expose().as_bytes()).unwrap();
    cluster.client_saying(Some(&identity), Hello::ours(&version.parse().unwrap(), "tctl"))
}

/// A cluster of 1.0.0 with the user alice, and Auth Services on it.
struct Place {
    shared: Shared,
    known: Value,
}

impl Place {
    /// Its windows admit Auth Services of both majors, and everybody else is of major 1.
    async fn new() -> Self {
        let shared = Shared::new();
        restored(&shared.store, LEFT[0]).await;
        let both = |record: &types::ControlRecord| {
            let mut next = record.clone();
            for (role, window) in &mut next.windows {
                *window = if role == "auth" { Window::new(1, 2) } else { Window::new(1, 1) };
            }
            next
        };
        govern(shared.store.as_ref(), both).await;
        Self { shared, known: known(LEFT[0]) }
    }

    async fn start(&self) -> Cluster {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut config = self.shared.config(1, dir.path());
        config.storage = Storage::Open(Arc::new(Handle::on(self.shared.store.clone())));
        config.auth_preference = Some(preference(types::kind::SecondFactor::Otp));
        let cluster = Box::pin(Cluster::from(dir, config, self.shared.clock.clone(), "2.0.0")).await;
        Cluster { says: "1.1.0".parse().unwrap(), ..cluster }
    }

    /// Everything that the migrations touch, for somebody who was there before and somebody who is new.
    async fn use_it(&self, cluster: &Cluster, name: &str) {
        self.shared.clock.advance(Duration::from_secs(90));
        let mut proxy = cluster.proxy().await;
        let code = otp_code(self.known["otp"].as_str().unwrap(), cluster.now()).unwrap();
        proxy.login(login_request("alice", PASSWORD, &code, &Keys::new())).await.unwrap();
        // A second invitation replaces the first one.
        let mut admin = admin_of(cluster, "2.0.0");
        let ask = pb::CreateInviteRequest { user: "alice".into(), ttl: 600 };
        let first = admin.create_invite(ask.clone()).await.unwrap().into_inner().secret;
        let second = admin.create_invite(ask).await.unwrap().into_inner().secret;
        let shown = |secret: String| {
            let mut proxy = proxy.clone();
            async move { proxy.get_invite(pb::GetInviteRequest { secret }).await.map_err(|status| pb::from_status(&status)) }
        };
        shown(first).await.unwrap_err();
        shown(second).await.unwrap();
        cluster.user(name, &["access"], &["app"]).await;
        let _joined = cluster.member(u128::from(name.bytes().map(u64::from).sum::<u64>()), SystemRole::Node).await;
        let user = get(&mut admin, "user", name).await.unwrap();
        assert!(user.version == "v2" && user.extra["status"]["created_by"].as_str().unwrap().starts_with("auth1"), "{user:?}");
        // Whoever changes a user does not say who made it.
        let mut forged = user.clone();
        forged.extra.insert("status".into(), json!({"created_by": "eve"}));
        forged.spec["roles"] = json!(["access", "editor"]);
        let written = loop {
            forged.metadata.revision = get(&mut admin, "user", name).await.unwrap().metadata.revision;
            match update(&mut admin, &forged).await {
                Ok(written) => break written,
                // A revision of before a flip.
                Err(public) => assert!(public.is(Code::Conflict), "{public}"),
            }
        };
        assert_eq!(written.extra["status"], user.extra["status"]);
    }

    /// The rows of the migrations, by the beginning of their keys.
    async fn dirs(&self) -> BTreeMap<String, usize> {
        let mut dirs = BTreeMap::new();
        for key in rows(self.shared.store.as_ref()).await.into_keys() {
            let parts: Vec<&str> = key.split('/').collect();
            let dir = if parts[0] == "shadow" { parts[..4].join("/") } else { parts[..2].join("/") };
            *dirs.entry(dir).or_insert(0) += 1;
        }
        dirs
    }
}

/// A directory that major 1 does not know.
fn is_new(dir: &String) -> bool {
    dir.starts_with("secret") || dir.starts_with("shadow") || dir == "internal/invited"
}

async fn turn_all(cluster: &Cluster, back: bool) {
    for migration in registry().unwrap().iter() {
        turn(cluster, migration.id, back).await.unwrap();
    }
    all_are(cluster, if back { "absent" } else { "flipped" }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn users_invitations_hosts_and_keys_work_in_every_form_and_back_and_after_finalize() {
    let place = Place::new().await;
    let two = place.start().await;
    // Beside Auth Services of major 1: everything is written as they write it.
    until("the check", || async { migrations(&two).await.iter().all(|status| status.phase == "checked").then_some(()) }).await;
    place.use_it(&two, "one").await;
    let beside = place.dirs().await;
    assert!(!beside.keys().any(is_new), "{beside:?}");
    step(&two, "auth", pb::move_window_request::Move::Narrow(2)).await.unwrap();
    all_are(&two, "flipped").await;
    place.use_it(&two, "two").await;
    let dirs = place.dirs().await;
    let both = |dirs: &BTreeMap<String, usize>, old: &str, new: &str| (dirs.get(old).copied(), dirs.get(new).copied());
    for (old, new) in [
        ("internal/account", "secret/account"),
        ("internal/ca", "secret/ca"),
        ("internal/invite", "internal/invited"),
        ("internal/host", "shadow/2-host-compact/internal/host"),
        ("doc/user", "shadow/2-user-status/doc/user"),
    ] {
        let (old_rows, new_rows) = both(&dirs, old, new);
        assert!(old_rows.is_some() && old_rows == new_rows, "{old} and {new}: {dirs:?}");
    }
    turn_all(&two, true).await;
    let undone = place.dirs().await;
    assert!(!undone.keys().any(is_new), "{undone:?}");
    place.use_it(&two, "three").await;
    // What major 1 would read.
    let stored = place.shared.store.get(&Key::parse("doc/user/three").unwrap()).await.unwrap().unwrap();
    let stored = Document::from_json(&stored.value).unwrap();
    assert!(stored.version == "v1" && stored.spec["created_by"].as_str().unwrap().starts_with("auth1"), "{stored:?}");
    turn_all(&two, false).await;
    two.auth.finalize().await.unwrap();
    until("the sweep", || async { migrations(&two).await.iter().all(|status| status.phase == "done").then_some(()) }).await;
    place.use_it(&two, "four").await;
    let dirs = place.dirs().await;
    assert!(!dirs.keys().any(|dir| ["internal/account", "internal/ca"].contains(&dir.as_str()) || dir.starts_with("shadow")), "{dirs:?}");
    // Whoever starts now finds it all.
    two.stop().await;
    let again = place.start().await;
    place.use_it(&again, "five").await;
    assert_eq!(again.auth.ca_pins(), place.known["pins"].as_array().unwrap().iter().map(|pin| pin.as_str().unwrap()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_of_major_1_read_and_write_users_in_their_form() {
    let place = Place::new().await;
    let two = place.start().await;
    step(&two, "auth", pb::move_window_request::Move::Narrow(2)).await.unwrap();
    all_are(&two, "flipped").await;
    let mut older = admin_of(&two, "1.1.0");
    let user = json!({"kind": "user", "version": "v1", "metadata": {"name": "bob"}, "spec": {"roles": ["access"], "created_by": "eve"}});
    let made = create(&mut older, &document(user)).await.unwrap();
    assert!(made.version == "v1" && made.extra.is_empty(), "{made:?}");
    assert!(made.spec["created_by"].as_str().unwrap().starts_with("auth1"));
    let mut read = get(&mut older, "user", "bob").await.unwrap();
    assert_eq!(read, made);
    read.spec["roles"] = json!(["access", "editor"]);
    update(&mut older, &read).await.unwrap();
    let listed = older.list(pb::ListRequest { kind: "user".into(), ..Default::default() }).await.unwrap().into_inner();
    assert!(listed.documents.iter().all(|json| Document::from_json(json).unwrap().version == "v1"));
    let mut watch = older.watch(pb::WatchRequest { kinds: vec!["user".into()], ..Default::default() }).await.unwrap().into_inner();
    while let Some(event) = watch.message().await.unwrap() {
        match event.event.unwrap() {
            pb::watch_event::Event::Put(json) => assert_eq!(Document::from_json(&json).unwrap().version, "v1"),
            pb::watch_event::Event::Synced(_) => break,
            _ => {}
        }
    }
    let now = get(&mut admin_of(&two, "2.0.0"), "user", "bob").await.unwrap();
    assert_eq!((now.version.as_str(), &now.spec["roles"]), ("v2", &json!(["access", "editor"])));
}
