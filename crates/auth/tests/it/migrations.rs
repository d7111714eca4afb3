//! Made-up migrations of every class in running Auth Services: users write, read, log in and watch, and notice nothing.
//!
//! The cluster is of major 8; Auth Services of major 9 know four migrations, those of major 8 none. `crates/migrate` tries every crash
//! and every driver; here is what the service makes of it.

use crate::{fixture::*, several::Shared};
use auth::{Config, Storage};
use futures::future::BoxFuture;
use net::health::{Board, Health};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use store::{Batch, Handle, Key, Store};
use tokio::sync::watch;
use types::{Code, Document, Event, Public, control::ClusterVersion};
use upgrade::migrate::{Change, Fix, Form, Migration, Registry, Row};
use wire::api as pb;

fn unit_up(mut document: Document) -> Result<Document, String> {
    let spec = document.spec.as_object_mut().ok_or("it has no spec")?;
    if spec.get("message").is_some_and(|message| !message.is_string()) {
        return Err("its message is no text".into());
    }
    match spec.insert("form".into(), 2.into()) {
        None => Ok(document),
        Some(_) => Err("it has a form already".into()),
    }
}
fn unit_down(mut document: Document) -> Result<Document, String> {
    let form = document.spec.as_object_mut().and_then(|spec| spec.remove("form"));
    form.filter(|form| *form == 2).map(|_| document).ok_or_else(|| "it has no form".into())
}
fn message_repair(row: &Row) -> Option<Fix> {
    let mut document = Document::from_json(&row.value).ok()?;
    let message = document.spec.get("message")?.as_i64()?;
    document.spec["message"] = message.to_string().into();
    Some(Fix::Replace(document.to_json()))
}
fn user(mut document: Document) -> Result<Document, String> {
    document.kind = "user".into();
    Ok(document)
}
fn person(mut document: Document) -> Result<Document, String> {
    document.kind = "person".into();
    Ok(document)
}
fn by_login(row: &Row) -> Result<Vec<Row>, String> {
    let document = Document::from_json(&row.value).map_err(|error| error.to_string())?;
    let logins = document.spec["allow"]["logins"].as_array().cloned().unwrap_or_default();
    let key = |login: &serde_json::Value| {
        let login: String = login.as_str().unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).collect();
        Row::new(format!("index/role/{login}/{}", document.metadata.name), "")
    };
    Ok(logins.iter().map(key).collect())
}
fn role_of(key: &str) -> Option<String> {
    Some(format!("doc/role/{}", key.rsplit_once('/')?.1))
}
/// JSON with a blank behind it: another encoding that business can read.
fn blank_up(bytes: &[u8]) -> Result<Vec<u8>, String> {
    if bytes.ends_with(b" ") { Err("it is encoded already".into()) } else { Ok([bytes, b" "].concat()) }
}
fn blank_down(bytes: &[u8]) -> Result<Vec<u8>, String> {
    Ok(bytes.strip_suffix(b" ").unwrap_or(bytes).to_vec())
}

const LOCKS: Migration = Migration {
    id: "9-lock-form",
    about: "locks say their form",
    from: ClusterVersion { major: 8, step: 0 },
    to: ClusterVersion { major: 9, step: 0 },
    floor: 8,
    change: Change::InPlace { dir: "doc/lock", form: Form::Document { up: unit_up, down: unit_down } },
    repair: Some(message_repair),
    source: "made up",
};
const USERS: Migration = Migration {
    id: "9-person-user",
    about: "persons are called users",
    change: Change::Moved { from: "doc/person", to: "doc/user", form: Form::Document { up: user, down: person } },
    repair: None,
    ..LOCKS
};
const ROLES: Migration = Migration {
    id: "9-role-index",
    about: "roles are found by login",
    change: Change::Index { source: "doc/role", into: "index/role", derive: by_login, source_of: role_of },
    repair: None,
    ..LOCKS
};
const ACCOUNTS: Migration = Migration {
    id: "9-account-blank",
    about: "accounts end with a blank",
    change: Change::InPlace { dir: "internal/account", form: Form::Bytes { up: blank_up, down: blank_down } },
    repair: None,
    ..LOCKS
};
const ALL: [Migration; 4] = [LOCKS, USERS, ROLES, ACCOUNTS];

fn lock(name: &str, form: Option<u64>) -> Document {
    let mut json = serde_json::json!({"kind": "lock", "version": "v1", "metadata": {"name": name}, "spec": {"target": {"user": format!("nobody-{name}")}, "message": "out"}});
    if let Some(form) = form {
        json["spec"]["form"] = form.into();
    }
    document(json)
}

/// A store that holds everything up while it is closed: the process is paused.
struct Paused {
    own: Handle,
    open: watch::Receiver<bool>,
}

impl Paused {
    async fn gate(&self) {
        let mut open = self.open.clone();
        let _ended = open.wait_for(|open| *open).await;
    }
}

impl Store for Paused {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<store::Item>, store::StoreError>> {
        Box::pin(async move {
            self.gate().await;
            self.own.get(key).await
        })
    }
    fn range<'a>(&'a self, from: &'a Key, to: &'a Key, limit: usize) -> BoxFuture<'a, Result<store::Page, store::StoreError>> {
        Box::pin(async move {
            self.gate().await;
            self.own.range(from, to, limit).await
        })
    }
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<store::Committed, store::CommitError>> {
        Box::pin(async move {
            self.gate().await;
            self.own.commit(batch).await
        })
    }
    fn keep_alive<'a>(
        &'a self,
        key: &'a Key,
        revision: Option<u64>,
        expires: types::Time,
        writer: Option<store::WriterEpoch>,
    ) -> BoxFuture<'a, Result<store::Committed, store::CommitError>> {
        Box::pin(async move {
            self.gate().await;
            self.own.keep_alive(key, revision, expires, writer).await
        })
    }
    fn expire_due(&self) -> BoxFuture<'_, Result<usize, store::StoreError>> {
        Box::pin(async move {
            self.gate().await;
            self.own.expire_due().await
        })
    }
    fn watch(&self, prefixes: Vec<Key>, from: Option<u64>) -> BoxFuture<'_, Result<store::Watch, store::WatchError>> {
        self.own.watch(prefixes, from)
    }
    fn snapshot(&self) -> BoxFuture<'_, Result<store::Snapshot, store::StoreError>> {
        self.own.snapshot()
    }
    fn revision(&self) -> BoxFuture<'_, Result<u64, store::StoreError>> {
        self.own.revision()
    }
    fn clock(&self) -> Arc<dyn store::Clock> {
        self.own.clock()
    }
    fn close(&self) -> BoxFuture<'_, ()> {
        self.own.close()
    }
}

/// A cluster's store, and Auth Services that come and go on it.
struct Place {
    shared: Shared,
}

impl Place {
    fn new() -> Self {
        Self { shared: Shared::new() }
    }

    async fn start(&self, number: u128, version: &str, registry: &[Migration]) -> Cluster {
        self.start_with(number, version, registry, Arc::new(tempfile::tempdir().unwrap()), |_| ()).await
    }

    async fn start_with(
        &self,
        number: u128,
        version: &str,
        registry: &[Migration],
        dir: Arc<tempfile::TempDir>,
        change: impl FnOnce(&mut Config),
    ) -> Cluster {
        let mut config = self.shared.config(number, dir.path());
        config.auth_preference = Some(preference(types::kind::SecondFactor::Off));
        config.migrations = Some(Registry::new(registry).unwrap());
        change(&mut config);
        Box::pin(Cluster::from(dir, config, self.shared.clock.clone(), version)).await
    }

    async fn rows(&self, dir: &str) -> BTreeMap<String, Vec<u8>> {
        let dir = Key::dir(dir.split('/')).unwrap();
        let items = store::scan(self.shared.store.as_ref(), &dir, &dir.prefix_end()).await.unwrap();
        items.into_iter().map(|item| (item.key.to_string(), item.value.to_vec())).collect()
    }

    async fn put(&self, key: &str, value: &[u8]) {
        self.shared.store.commit(Batch::new(None).put(Key::parse(key).unwrap(), value.to_vec(), None)).await.unwrap();
    }

    /// Everything that the migrations touch, as it lies.
    async fn dump(&self) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        for dir in ["doc/lock", "doc/person", "doc/user", "doc/role", "index/role", "internal/account", "shadow"] {
            all.extend(self.rows(dir).await);
        }
        all
    }

    /// A cluster of 8 with something in it, its windows ready for an upgrade; nobody serves.
    async fn old(&self) -> BTreeMap<String, Vec<u8>> {
        let one = self.start(1, "8.1.0", &[]).await;
        for number in 0..30 {
            create(&mut one.admin(), &lock(&format!("l{number:02}"), None)).await.unwrap();
            let name = format!("p{number:02}");
            let json = user_document(&name, &["access"], &["app"]);
            self.put(&format!("doc/person/{name}"), &person(json).unwrap().to_json()).await;
            self.put(&format!("internal/account/{name}"), br#"{"password":"$none"}"#).await;
        }
        for role in ["proxy", "agent", "draining", "leaf"] {
            step(&one, role, pb::move_window_request::Move::Narrow(8)).await.unwrap();
        }
        step(&one, "auth", pb::move_window_request::Move::Widen(9)).await.unwrap();
        one.stop().await;
        self.dump().await
    }
}

async fn step(cluster: &Cluster, role: &str, wanted: pb::move_window_request::Move) -> Result<pb::WindowsReply, Public> {
    let ask = pb::MoveWindowRequest { role: role.into(), r#move: Some(wanted), patience: 20, during_upgrade: false };
    cluster.admin().move_window(ask).await.map(tonic::Response::into_inner).map_err(|status| pb::from_status(&status))
}

async fn narrow(cluster: &Cluster, major: u64) -> Result<pb::WindowsReply, Public> {
    step(cluster, "auth", pb::move_window_request::Move::Narrow(major)).await
}

async fn migrations(cluster: &Cluster) -> Vec<pb::MigrationStatus> {
    cluster.admin().list_migrations(pb::Empty {}).await.unwrap().into_inner().migrations
}

async fn turn(cluster: &Cluster, id: &str, back: bool) -> Result<pb::MigrationStatus, Public> {
    let ask = pb::TurnMigrationRequest { migration: id.into(), back };
    cluster.admin().turn_migration(ask).await.map(tonic::Response::into_inner).map_err(|status| pb::from_status(&status))
}

/// Looks again and again, at most for a minute.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let looking = async {
        let mut again = tokio::time::interval(Duration::from_millis(20));
        loop {
            again.tick().await;
            if let Some(found) = look().await {
                return found;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looking).await.unwrap_or_else(|_| panic!("not within a minute: {what}"))
}

async fn all_are(cluster: &Cluster, state: &str) {
    until(state, || async { migrations(cluster).await.iter().all(|status| status.state == state).then_some(()) }).await;
}

/// Whoever uses the cluster meanwhile: each write is read back at once, each reader sees it.
async fn use_it(cluster: &Cluster, name: &str, round: usize) {
    let mut admin = cluster.admin();
    let own = format!("{name}-{round}");
    create(&mut admin, &lock(&own, Some(2))).await.unwrap();
    // A revision from before a flip conflicts once; whoever reads again goes on.
    for tries in 0.. {
        let mut read = get(&mut admin, "lock", &own).await.unwrap();
        read.spec["message"] = format!("again {tries}").into();
        match update(&mut admin, &read).await {
            Ok(_) => break,
            Err(public) => assert!(public.is(Code::Conflict) && tries < 5, "{public}"),
        }
    }
    assert!(names(&mut admin, "lock").await.contains(&own));
    if round.is_multiple_of(2) {
        delete(&mut admin, "lock", &own).await.unwrap();
        assert!(!names(&mut admin, "lock").await.contains(&own));
    }
    if round.is_multiple_of(4) {
        let (mut client, ..) = cluster.logged_in(&format!("{name}-u{round}"), &["access"], &["app"]).await;
        client.get(pb::GetRequest { kind: "user".into(), name: format!("{name}-u{round}") }).await.unwrap();
        create(&mut admin, &role_document(&own, serde_json::json!({"allow": {"logins": [format!("login{round}")]}}))).await.unwrap();
    }
}

/// The old form of what the API shows now, with the directories that must be empty.
async fn expected(cluster: &Cluster) -> BTreeMap<String, serde_json::Value> {
    let mut admin = cluster.admin();
    let mut all = BTreeMap::new();
    for (kind, old, down) in
        [("lock", "lock", unit_down as fn(Document) -> Result<Document, String>), ("user", "person", person), ("role", "role", Ok)]
    {
        for name in names(&mut admin, kind).await {
            let mut document = down(get(&mut admin, kind, &name).await.unwrap()).unwrap();
            document.metadata.revision = None;
            all.insert(format!("doc/{old}/{name}"), serde_json::to_value(&document).unwrap());
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_migration_of_each_class_goes_all_the_way_while_users_write_read_log_in_and_watch_and_goes_back() {
    let place = Place::new();
    place.old().await;
    let two = place.start(2, "9.0.0", &ALL).await;
    // Both majors may write: rows are looked at, and nothing else.
    until("the check", || async { migrations(&two).await.iter().all(|status| status.phase == "checked").then_some(()) }).await;
    for status in migrations(&two).await {
        assert!(status.state == "expanded" && status.waiting.contains("narrow the window of auth to 9") && !status.held, "{status:?}");
        assert!(status.total >= 3 && status.attempt == 1 && status.holder.contains("auth2"), "{status:?}");
    }
    let watch = pb::WatchRequest { kinds: vec!["lock".into(), "user".into()], ..Default::default() };
    let mut stream = two.admin().watch(watch).await.unwrap().into_inner();
    let (stop, mut stopped) = watch::channel(false);
    let told = tokio::spawn(async move {
        let (mut seen, mut ended) = (BTreeSet::new(), None);
        loop {
            tokio::select! {
                _ = stopped.changed() => ended = Some(tokio::time::Instant::now() + Duration::from_secs(2)),
                event = stream.message() => match event.unwrap().unwrap().event.unwrap() {
                    pb::watch_event::Event::Put(json) => drop(seen.insert(Document::from_json(&json).unwrap().reference())),
                    pb::watch_event::Event::Delete(gone) => drop(seen.remove(&format!("{}/{}", gone.kind, gone.name))),
                    pb::watch_event::Event::Init(_) | pb::watch_event::Event::Synced(_) => {}
                },
                () = async { match ended { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => return seen,
            }
        }
    });
    let two = Arc::new(two);
    let (user, done) = (two.clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let over = done.clone();
    let busy = tokio::spawn(async move {
        let mut round = 0;
        while !over.load(std::sync::atomic::Ordering::Relaxed) {
            use_it(&user, "w", round).await;
            round += 1;
        }
        round
    });
    narrow(&two, 9).await.unwrap();
    all_are(&two, "flipped").await;
    let back = step(&two, "auth", pb::move_window_request::Move::Widen(8)).await.unwrap_err();
    assert!(back.is(Code::UpgradeRefused) && back.message.contains("9-lock-form (flipped)"), "{back}");
    assert!(back.hint.as_ref().unwrap().contains("tctl migrations undo 9-lock-form"), "{back:?}");
    assert!(place.rows("index/role").await.contains_key("index/role/internallogins/access"));
    for id in ALL.map(|migration| migration.id) {
        turn(&two, id, true).await.unwrap();
    }
    all_are(&two, "absent").await;
    assert!(migrations(&two).await.iter().all(|status| status.undo));
    for id in ALL.map(|migration| migration.id) {
        turn(&two, id, false).await.unwrap();
    }
    all_are(&two, "flipped").await;
    for id in ALL.map(|migration| migration.id) {
        turn(&two, id, true).await.unwrap();
    }
    all_are(&two, "absent").await;
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(busy.await.unwrap() > 4, "they were busy all the time");
    // Nothing of the new form is left, and all that was written meanwhile is there in the old one.
    let dump = place.dump().await;
    let wanted = expected(&two).await;
    let documents: BTreeMap<String, serde_json::Value> = dump
        .iter()
        .filter(|(key, _)| key.starts_with("doc/"))
        .map(|(key, value)| (key.clone(), serde_json::from_slice(value).unwrap()))
        .collect();
    assert_eq!(documents.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (key, value) in &documents {
        assert_eq!(value["spec"], wanted[key]["spec"], "{key}");
    }
    assert!(
        !dump.keys().any(|key| key.starts_with("shadow/") || key.starts_with("index/") || key.starts_with("doc/user/")),
        "{:?}",
        dump.keys()
    );
    assert!(dump.iter().filter(|(key, _)| key.starts_with("internal/account/")).all(|(_, value)| !value.ends_with(b" ")));
    stop.send(true).unwrap();
    let mut shown = BTreeSet::new();
    for kind in ["lock", "user"] {
        shown.extend(names(&mut two.admin(), kind).await.into_iter().map(|name| format!("{kind}/{name}")));
    }
    assert_eq!(told.await.unwrap(), shown, "the watch went through every state");
    // Every move is in the audit log, and so is who wanted it back.
    let moved: Vec<String> = events(&two, "upgrade.migration").await.iter().map(|event: &Event| event.text("to").to_owned()).collect();
    for state in ["expanded", "shadowing", "verified", "flipped", "undoing", "absent"] {
        assert!(moved.iter().filter(|to| *to == state).count() >= 4, "{state}: {moved:?}");
    }
    assert_eq!(events(&two, "upgrade.migration.turn").await.len(), 12);
    // Now the older major may come back, and finds its own.
    step(&two, "auth", pb::move_window_request::Move::Widen(8)).await.unwrap();
    let one = place.start(1, "8.1.0", &[]).await;
    let found = get(&mut one.admin(), "lock", "l07").await.unwrap();
    assert_eq!(found.spec.get("form"), None);
    assert!(names(&mut one.admin(), "person").await.contains(&"p07".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn undo_without_writers_gives_the_same_dump_and_finalize_ends_the_way_back() {
    let place = Place::new();
    let before = place.old().await;
    let two = place.start(2, "9.0.0", &ALL).await;
    narrow(&two, 9).await.unwrap();
    let early = two.auth.finalize().await.unwrap_err();
    assert!(early.is(Code::UpgradeWaits) && early.message.contains("not flipped yet"), "{early}");
    all_are(&two, "flipped").await;
    for id in ALL.map(|migration| migration.id) {
        turn(&two, id, true).await.unwrap();
    }
    all_are(&two, "absent").await;
    assert_eq!(place.dump().await, before);
    let early = two.auth.finalize().await.unwrap_err();
    assert!(early.is(Code::UpgradeWaits), "{early}");
    for id in ALL.map(|migration| migration.id) {
        turn(&two, id, false).await.unwrap();
    }
    all_are(&two, "flipped").await;
    let waiting = migrations(&two).await;
    assert!(waiting.iter().all(|status| status.waiting.contains("not finalized") && !status.held), "{waiting:?}");
    let record = two.auth.finalize().await.unwrap();
    assert_eq!(record.cluster_version, ClusterVersion { major: 9, step: 0 });
    all_are(&two, "contracted").await;
    until("the sweep", || async {
        migrations(&two).await.iter().all(|status| status.phase == "done" && status.waiting.is_empty()).then_some(())
    })
    .await;
    // It took the new epoch on, writes, and the former rows are in retention.
    use_it(&two, "after", 0).await;
    let dump = place.dump().await;
    assert!(!dump.keys().any(|key| key.starts_with("shadow/") || key.starts_with("doc/person/")), "{:?}", dump.keys());
    assert!(dump["internal/account/p03"].ends_with(b" "));
    assert!(place.rows("retained/9-person-user").await.contains_key("retained/9-person-user/doc/person/p03"));
    let late = turn(&two, LOCKS.id, true).await.unwrap_err();
    assert!(late.is(Code::UpgradeRefused) && late.message.contains("only a backup leads back"), "{late}");
    let back = step(&two, "auth", pb::move_window_request::Move::Widen(8)).await.unwrap_err();
    assert!(back.is(Code::UpgradeRefused), "{back}");
    assert_eq!(two.auth.finalize().await.unwrap().window_gen, record.window_gen, "twice is once");
    assert_eq!(events(&two, "upgrade.finalize").await.len(), 1);
    // Whoever starts now finds nothing to do, and the same documents.
    two.stop().await;
    let three = place.start(3, "9.0.1", &ALL).await;
    assert_eq!(get(&mut three.admin(), "lock", "l03").await.unwrap().spec["form"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_older_writer_that_slept_through_the_change_of_windows_wakes_up_and_cannot_write() {
    let place = Place::new();
    place.old().await;
    let (gate, open) = watch::channel(true);
    let sleeper = {
        let own = Handle::on(place.shared.store.clone());
        let storage = Storage::Open(Arc::new(Paused { own, open }));
        place.start_with(1, "8.1.0", &[], Arc::new(tempfile::tempdir().unwrap()), |config| config.storage = storage).await
    };
    let two = place.start(2, "9.0.0", &ALL).await;
    // Side by side they serve each other's writes.
    create(&mut sleeper.admin(), &lock("by-8", None)).await.unwrap();
    create(&mut two.admin(), &lock("by-9", Some(2))).await.unwrap();
    assert_eq!(get(&mut sleeper.admin(), "lock", "by-9").await.unwrap().spec.get("form"), None);
    assert_eq!(get(&mut two.admin(), "lock", "by-8").await.unwrap().spec["form"], 2);
    let present = narrow(&two, 9).await.unwrap_err();
    assert!(present.is(Code::UpgradeRefused) && present.message.contains("auth1") && present.hint.unwrap().contains("tctl windows evict"));
    let gone = |host: u128| pb::EvictMemberRequest { host_id: host_id(host).to_string(), reason: "it hangs".into(), during_upgrade: false };
    assert!(error(two.admin().evict_member(gone(1)).await).is(Code::UpgradeRefused), "it reported just now");
    gate.send(false).unwrap();
    // What it had begun comes to the store when the process wakes.
    let mut client = sleeper.admin();
    let begun = tokio::spawn(async move { create(&mut client, &lock("late", None)).await });
    place.shared.clock.advance(Duration::from_secs(230));
    until("its seat lapses", || async {
        let reply = two.admin().evict_member(gone(1)).await;
        reply.is_ok().then_some(())
    })
    .await;
    let reply = until("the window closes", || async { narrow(&two, 9).await.ok() }).await;
    let control: types::ControlRecord = serde_json::from_slice(&reply.control).unwrap();
    assert_eq!((control.windows["auth"].lo, control.evictions.len()), (9, 1));
    all_are(&two, "flipped").await;
    let flipped = place.dump().await;
    gate.send(true).unwrap();
    let refused = begun.await.unwrap().unwrap_err();
    assert!(refused.is(Code::StoreFenced), "{refused}");
    for name in ["later", "much-later"] {
        let refused = create(&mut sleeper.admin(), &lock(name, None)).await.unwrap_err();
        assert!(refused.is(Code::StoreFenced), "{refused}");
    }
    let (old, new) = (flipped.len(), place.dump().await);
    assert!(!new.keys().any(|key| key.contains("late")) && new.len() == old, "nothing of it reached the store");
    // And the other goes on.
    use_it(&two, "on", 0).await;
    assert_eq!(events(&two, "upgrade.evict").await[0].text("reason"), "it hangs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_restart_in_the_middle_goes_on_and_another_auth_service_takes_over_what_a_dead_one_left() {
    let place = Place::new();
    place.old().await;
    for number in 0..3000 {
        place.put(&format!("doc/lock/m{number:04}"), &lock(&format!("m{number:04}"), None).to_json()).await;
    }
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let two = place.start_with(2, "9.0.0", &[LOCKS], dir.clone(), |_| ()).await;
    narrow(&two, 9).await.unwrap();
    let copying = |status: &pb::MigrationStatus| status.phase == "copy" && status.done > 0;
    until("the copy", || async { migrations(&two).await.iter().any(copying).then_some(()) }).await;
    two.stop().await;
    let half = place.rows("shadow/9-lock-form/doc/lock").await.len();
    assert!(half > 0 && half < 3000, "it was stopped in the middle: {half}");
    let (gate, open) = watch::channel(true);
    let storage = Storage::Open(Arc::new(Paused { own: Handle::on(place.shared.store.clone()), open }));
    let _two = place.start_with(2, "9.0.0", &[LOCKS], dir, |config| config.storage = storage).await;
    let three = place.start(3, "9.0.0", &[LOCKS]).await;
    let comparing = |status: &pb::MigrationStatus| status.phase.starts_with("compare") && status.done > 0;
    until("the comparison", || async { migrations(&three).await.iter().any(comparing).then_some(()) }).await;
    assert!(migrations(&three).await[0].holder.contains("auth2"), "the first by its id works, the other looks on");
    // It hangs, and gives no seat back.
    gate.send(false).unwrap();
    place.shared.clock.advance(Duration::from_secs(61));
    all_are(&three, "flipped").await;
    let status = &migrations(&three).await[0];
    assert!(status.attempt == 1 && status.holder.contains("auth3"), "{status:?}");
    // On the first page of the list.
    use_it(&three, "a", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bad_row_is_named_and_repaired_by_name_with_consent_and_the_service_stays_up() {
    let place = Place::new();
    place.old().await;
    let mut broken = lock("broken", None);
    broken.spec["message"] = 7.into();
    place.put("doc/lock/broken", &broken.to_json()).await;
    place.put("doc/lock/zz", b"no document").await;
    place.put("internal/account/odd", b"{} ").await;
    let board = Board::default();
    let two = {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut config = place.shared.config(2, dir.path());
        config.auth_preference = Some(preference(types::kind::SecondFactor::Off));
        config.migrations = Some(Registry::new(&ALL).unwrap());
        let around = auth::World { health: board.clone(), ..world(&place.shared.clock, "9.0.0") };
        Box::pin(Cluster::in_world(dir, config, place.shared.clock.clone(), around)).await
    };
    narrow(&two, 9).await.unwrap();
    // Two are held, and the others of the major go on.
    let of = |all: &[pb::MigrationStatus], id: &str| all.iter().find(|status| status.id == id).unwrap().clone();
    let held = until("both wait", || async {
        let all = migrations(&two).await;
        let waits = [LOCKS.id, ACCOUNTS.id].map(|id| of(&all, id)).iter().all(|status| status.held);
        (waits && [USERS.id, ROLES.id].map(|id| of(&all, id)).iter().all(|status| status.state == "flipped")).then_some(all)
    })
    .await;
    assert!(of(&held, LOCKS.id).waiting.contains("2 rows cannot be changed, first of all doc/lock/broken"), "{held:?}");
    let row = || board.snapshot().into_iter().find(|(name, _)| *name == "migrations").map(|(_, health)| health);
    let attention = until("the board", || async { row().filter(|health| matches!(health, Health::Attention(_))) }).await;
    assert!(format!("{attention:?}").contains("9-lock-form") && board.all_ready(), "{attention:?}");
    let levels = two.auth.metrics().levels();
    let level = |name: &str, id: &str| levels.iter().find(|one| one.name == name && one.label.1 == id).unwrap().value;
    assert_eq!((level("lockgate_migration_bad_rows", LOCKS.id), level("lockgate_migration_held", LOCKS.id)), (2, 1));
    assert_eq!(level("lockgate_migration_state", USERS.id), 4);
    use_it(&two, "up", 0).await;

    let bad = |id: &'static str| {
        let mut admin = two.admin();
        async move { admin.list_bad_rows(pb::ListBadRowsRequest { migration: id.into() }).await.unwrap().into_inner() }
    };
    let rows = bad(LOCKS.id).await;
    assert_eq!(
        rows.rows.iter().map(|row| (row.key.as_str(), row.fix.as_str())).collect::<Vec<_>>(),
        [("doc/lock/broken", "replace"), ("doc/lock/zz", "remove")]
    );
    let shown = &rows.rows[0];
    assert!(
        shown.why.contains("no text") && !shown.now.is_empty() && String::from_utf8_lossy(&shown.then).contains("\"message\":\"7\""),
        "{shown:?}"
    );
    // A row of the vault is named, and not shown.
    let secret = &bad(ACCOUNTS.id).await.rows[0];
    assert!(secret.key == "internal/account/odd" && secret.now.is_empty() && secret.then.is_empty() && !secret.proposal.is_empty());

    let repair = |key: &str, proposal: &str| {
        let ask = pb::RepairRowRequest { migration: LOCKS.id.into(), key: key.into(), proposal: proposal.into() };
        let mut admin = two.admin();
        async move { admin.repair_row(ask).await.map(drop).map_err(|status| pb::from_status(&status)) }
    };
    assert!(repair("doc/lock/broken", "").await.unwrap_err().is(Code::Conflict), "nobody consented");
    assert!(repair("doc/lock/l03", &shown.proposal).await.unwrap_err().is(Code::Conflict), "it is not bad");
    assert!(repair("doc/role/access", &shown.proposal).await.is_err() && repair("control", &shown.proposal).await.is_err());
    broken.spec["message"] = 8.into();
    place.put("doc/lock/broken", &broken.to_json()).await;
    assert!(repair("doc/lock/broken", &shown.proposal).await.unwrap_err().is(Code::Conflict), "consent was for another value");
    let again = bad(LOCKS.id).await;
    for row in &again.rows {
        until("the repair", || async { repair(&row.key, &row.proposal).await.ok() }).await;
    }
    until("it goes on", || async { (of(&migrations(&two).await, LOCKS.id).state == "flipped").then_some(()) }).await;
    assert_eq!(get(&mut two.admin(), "lock", "broken").await.unwrap().spec["message"], "8");
    assert!(place.rows("retained/9-lock-form").await.contains_key("retained/9-lock-form/doc/lock/zz"));
    let repaired = events(&two, "upgrade.migration.repair").await;
    assert_eq!(
        repaired.iter().map(|event| (event.text("key"), event.text("how"))).collect::<Vec<_>>(),
        [("doc/lock/broken", "replaced"), ("doc/lock/zz", "removed")]
    );
    assert!(repaired.iter().all(|event| event.text("user").starts_with("admin@")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_writes_by_a_list_goes_on_after_a_flip_and_so_do_heartbeats() {
    let place = Place::new();
    place.old().await;
    let two = place.start(2, "9.0.0", &[LOCKS]).await;
    let mut admin = two.admin();
    let listed = |admin: &mut Client| {
        let mut admin = admin.clone();
        async move {
            let reply = admin.list(pb::ListRequest { kind: "lock".into(), ..Default::default() }).await.unwrap().into_inner();
            Document::from_json(&reply.documents[0]).unwrap()
        }
    };
    let before = listed(&mut admin).await;
    narrow(&two, 9).await.unwrap();
    all_are(&two, "flipped").await;
    assert!(update(&mut admin, &before).await.unwrap_err().is(Code::Conflict), "a revision from before the flip");
    until("the list has the new revision", || async { update(&mut admin.clone(), &listed(&mut admin.clone()).await).await.ok() }).await;
    turn(&two, LOCKS.id, true).await.unwrap();
    all_are(&two, "absent").await;
    until("and the old one", || async { update(&mut admin.clone(), &listed(&mut admin.clone()).await).await.ok() }).await;
}

#[tokio::test]
async fn a_cluster_that_is_born_with_migrations_is_in_the_new_form_and_has_its_indices() {
    let place = Place::new();
    let one = place.start(1, "9.0.0", &ALL).await;
    assert!(migrations(&one).await.iter().all(|status| status.state == "contracted" && status.waiting.is_empty()));
    assert!(place.rows("index/role").await.contains_key("index/role/internallogins/access"));
    assert!(place.rows("migration").await.is_empty());
    use_it(&one, "n", 0).await;
    assert!(place.rows("shadow").await.is_empty());
    let unknown = turn(&one, "9-nothing", true).await.unwrap_err();
    assert!(unknown.is(Code::NotFound), "{unknown}");
}
