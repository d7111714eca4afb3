//! Moving the admission windows while Auth Services live, and many of them starting at once in several versions.

use crate::{
    fixture::*,
    several::{Shared, pair, soon},
};
use auth::Storage;
use futures::future::BoxFuture;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use store::{Batch, Handle, Key, Store};
use types::{Code, ControlRecord, SystemRole, Time, Version};
use upgrade::barrier::Move;
use wire::{api as pb, hello::Hello};

const LONG: Duration = Duration::from_secs(20);

fn narrow(role: &str, lo: u64, hi: u64) -> Move {
    Move::Narrow { role: role.into(), lo, hi }
}
fn widen(role: &str, major: u64) -> Move {
    Move::Widen { role: role.into(), major }
}

/// Everybody at 8, as an upgrade begins.
async fn settle(cluster: &Cluster) -> ControlRecord {
    for role in ["proxy", "agent", "draining"] {
        cluster.auth.move_windows(&narrow(role, 8, 8), LONG).await.unwrap();
    }
    cluster.auth.move_windows(&narrow("leaf", 8, 8), LONG).await.unwrap()
}

#[tokio::test]
async fn the_windows_widen_once_every_auth_service_has_acknowledged_and_those_inside_go_on_writing() {
    let (shared, one, two) = pair().await;
    settle(&one).await;
    let wide = two.auth.move_windows(&widen("auth", 9), LONG).await.unwrap();
    assert_eq!((wide.windows["auth"].lo, wide.windows["auth"].hi), (8, 9));
    // Back again: older writers are fenced, and both of these take the new epoch on.
    let back = one.auth.move_windows(&narrow("auth", 8, 8), LONG).await.unwrap();
    assert!(back.min_writer_epoch > wide.min_writer_epoch);
    for (number, cluster) in [&one, &two].into_iter().enumerate() {
        soon(&shared, &[cluster], "it writes again", || async {
            create(&mut cluster.admin(), &role_document(&format!("after-{number}"), serde_json::json!({}))).await.ok()
        })
        .await;
    }
    two.auth.move_windows(&widen("auth", 9), LONG).await.unwrap();
}

#[tokio::test]
async fn a_widening_waits_for_an_auth_service_that_does_not_acknowledge_until_its_seat_lapses() {
    let (shared, one, _two) = pair().await;
    let record = settle(&one).await;
    let silent = serde_json::json!({"name": "auth3", "address": "10.0.0.3:3025", "version": "8.0.1", "boot_id": "b", "acknowledged": record.window_gen - 1});
    let key = Key::new(["internal", "auth", &host_id(3).to_string()]).unwrap();
    let ends = net::clock::Clock::now(&shared.clock).plus(Duration::from_secs(60));
    shared.store.commit(Batch::new(None).put(key, silent.to_string().into_bytes(), Some(ends))).await.unwrap();
    let refused = one.auth.move_windows(&widen("auth", 9), Duration::from_millis(500)).await.unwrap_err();
    assert!(refused.is(Code::UpgradeWaits) && refused.message.contains("auth3 at 10.0.0.3:3025 (8.0.1)"), "{refused}");
    let up = widen("auth", 9);
    let waiting = one.auth.move_windows(&up, LONG);
    let lapsing = async { shared.clock.advance(Duration::from_secs(61)) };
    let (moved, ()) = tokio::join!(waiting, lapsing);
    assert_eq!(moved.unwrap().windows["auth"].hi, 9);
}

#[tokio::test]
async fn who_stands_outside_the_new_windows_is_cut_off_at_every_auth_service_and_registers_at_none() {
    let (_shared, one, two) = pair().await;
    let (_, _, identity) = one.member(11, SystemRole::Node).await;
    let old = |cluster: &Cluster| cluster.client_saying(Some(&identity), Hello::ours(&Version::new(7, 9, 0), "node"));
    let ask = || pb::WatchRequest { kinds: vec!["role".into()], ..Default::default() };
    let mut watches = Vec::new();
    for cluster in [&one, &two] {
        watches.push(old(cluster).watch(ask()).await.unwrap().into_inner());
    }
    one.auth.move_windows(&narrow("agent", 8, 8), LONG).await.unwrap();
    for watch in &mut watches {
        let ended = async { while watch.message().await.is_ok_and(|event| event.is_some()) {} };
        tokio::time::timeout(LONG, ended).await.expect("the watch goes on");
    }
    for cluster in [&one, &two] {
        let refused = error(old(cluster).heartbeat(member_only(beat(11, "x", &[], 0))).await);
        assert!(refused.is(Code::VersionWindow) && refused.hint.as_ref().is_some_and(|hint| hint.contains("the latest 8")), "{refused}");
        cluster.client(Some(&identity), "node").heartbeat(member_only(beat(11, "x", &[], 0))).await.unwrap();
    }
}

async fn step(client: &mut Client, role: &str, wanted: pb::move_window_request::Move) -> Result<ControlRecord, types::Public> {
    let ask = pb::MoveWindowRequest { role: role.into(), r#move: Some(wanted), patience: 1, during_upgrade: false };
    let reply = client.move_window(ask).await.map_err(|status| pb::from_status(&status))?;
    Ok(serde_json::from_slice(&reply.into_inner().control).unwrap())
}
#[tokio::test]
async fn hand_moves_are_refused_while_an_upgrade_of_a_later_release_is_under_way_unless_somebody_insists_and_that_is_audited() {
    let (shared, one, _two) = pair().await;
    one.member(11, SystemRole::Node).await.0.heartbeat(member_only(beat(11, "web-17", &[], 0))).await.unwrap();
    let plan = serde_json::json!({"plan": 7, "stages": [{"later": "release"}]});
    let was = store::control::read(shared.store.as_ref()).await.unwrap().unwrap();
    let next = ControlRecord { upgrade: Some(plan.clone()), ..was.record.clone() };
    store::control::update(shared.store.as_ref(), &was, &next, store::WriterEpoch(was.record.epoch)).await.unwrap();
    shared.clock.advance(Duration::from_secs(230));
    let mut admin = one.admin();
    let refused = step(&mut admin, "agent", to(8)).await.unwrap_err();
    assert!(refused.is(Code::UpgradeRunning) && refused.hint.unwrap().contains("--force-during-upgrade"));
    assert!(step(&mut admin, "agent", and(9)).await.unwrap_err().is(Code::UpgradeRunning));
    let evict = |during_upgrade| pb::EvictMemberRequest { host_id: host_id(11).to_string(), reason: "gone".into(), during_upgrade };
    assert!(error(admin.evict_member(evict(false)).await).is(Code::UpgradeRunning));
    assert_eq!(store::control::read(shared.store.as_ref()).await.unwrap().unwrap().record, next, "nothing was written");
    let insists = |role: &str, wanted| pb::MoveWindowRequest { role: role.into(), r#move: Some(wanted), patience: 1, during_upgrade: true };
    let moved = admin.move_window(insists("agent", to(8))).await.unwrap().into_inner();
    let moved: ControlRecord = serde_json::from_slice(&moved.control).unwrap();
    assert_eq!((moved.windows["agent"].lo, moved.upgrade), (8, Some(plan)), "the plan is kept as it was");
    admin.evict_member(evict(true)).await.unwrap();
    let told = events(&one, "upgrade.window").await;
    let done = told.iter().find(|event| event.code == "LU001I").unwrap();
    assert_eq!(done.fields["during_upgrade"], true);
    assert!(told.iter().filter(|event| event.code == "LU001W").all(|event| event.fields.get("during_upgrade").is_none()));
    assert_eq!(events(&one, "upgrade.evict").await[0].fields["during_upgrade"], true);
}

fn to(major: u64) -> pb::move_window_request::Move {
    pb::move_window_request::Move::Narrow(major)
}
fn and(major: u64) -> pb::move_window_request::Move {
    pb::move_window_request::Move::Widen(major)
}

#[tokio::test]
async fn windows_are_moved_over_the_api_one_legal_step_at_a_time_and_every_refusal_names_the_cure() {
    let (shared, one, _two) = pair().await;
    let mut admin = one.admin();
    // The other takes its seat soon after it serves.
    let both = async {
        loop {
            let seen = admin.get_windows(pb::Empty {}).await.unwrap().into_inner();
            if seen.seats.len() == 2 {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let seen = tokio::time::timeout(LONG, both).await.expect("two seats");
    assert!(seen.seats.iter().all(|seat| seat.acknowledged == 1 && seat.version == "8.1.0") && seen.seats.len() == 2, "{:?}", seen.seats);
    let check = async |role: &str, wanted, cure: &str| {
        let refused = step(&mut one.admin(), role, wanted).await.unwrap_err();
        assert!(refused.is(Code::UpgradeRefused), "{role}: {refused}");
        assert!(refused.hint.as_ref().is_some_and(|hint| hint.contains(cure)), "{role}: {refused:?}");
    };
    // At rest members one behind may join: that ends first.
    check("auth", and(9), "tctl windows narrow proxy 8").await;
    check("proxy", to(9), "tctl windows widen proxy 9").await;
    check("gateway", and(9), "roles are auth, proxy, agent, draining, leaf").await;
    for role in ["proxy", "agent", "draining", "leaf"] {
        step(&mut admin, role, to(8)).await.unwrap();
    }
    check("proxy", and(9), "tctl windows narrow auth 9").await;
    check("auth", and(10), "one major at a time: 7 or 9").await;
    check("auth", and(7), "only a backup").await;
    // A member that is there.
    one.member(11, SystemRole::Node).await.0.heartbeat(member_only(beat(11, "web-17", &[], 0))).await.unwrap();
    let wide = step(&mut admin, "auth", and(9)).await.unwrap();
    assert_eq!((wide.windows["auth"].lo, wide.windows["auth"].hi), (8, 9));
    check("auth", to(9), "tctl windows evict").await;
    let evict = |reason: &str| pb::EvictMemberRequest { host_id: host_id(11).to_string(), reason: reason.into(), during_upgrade: false };
    let present = error(admin.evict_member(evict("x")).await);
    assert!(present.is(Code::UpgradeRefused) && present.message.contains("node11 reported"), "{present}");
    shared.clock.advance(Duration::from_secs(230));
    let record = admin.evict_member(evict("scrapped")).await.unwrap().into_inner();
    let record: ControlRecord = serde_json::from_slice(&record.control).unwrap();
    assert_eq!((&record.evictions[0]["hostname"], &record.evictions[0]["reason"]), (&"node11".into(), &"scrapped".into()));
    assert!(
        error(admin.evict_member(pb::EvictMemberRequest { host_id: host_id(44).to_string(), ..Default::default() }).await)
            .is(Code::NotFound)
    );
    // Back as it was.
    let back = step(&mut admin, "auth", to(8)).await.unwrap();
    assert_eq!(back.windows["auth"].shut, Some(9));
    assert!(back.min_writer_epoch > wide.min_writer_epoch);
    let moved = events(&one, "upgrade.window").await;
    let told = |code: &str| moved.iter().filter(|event| event.code == code).count();
    assert_eq!((told("LU001I"), moved[0].text("role")), (6, "auth"), "{moved:?}");
    assert!(told("LU001W") >= 6 && moved.iter().all(|event| event.text("user").starts_with("admin@")));
    assert_eq!(events(&one, "upgrade.evict").await.len(), 1);
    assert_eq!(events(&one, "version.refused").await.len(), 0, "no version was refused to anybody");
}

#[tokio::test]
async fn moving_windows_is_a_right_of_its_own() {
    let cluster = Cluster::start().await;
    let rule = |verbs: serde_json::Value| serde_json::json!({"allow": {"rules": [{"resources": ["control"], "verbs": verbs}]}});
    create(&mut cluster.admin(), &role_document("looks", rule(serde_json::json!(["read"])))).await.unwrap();
    create(&mut cluster.admin(), &role_document("moves", rule(serde_json::json!(["read", "update"])))).await.unwrap();
    let check = async |user: &str, role: &str, (reads, writes)| {
        let (mut client, ..) = cluster.logged_in(user, &[role], &[]).await;
        let seen = client.get_windows(pb::Empty {}).await.is_ok() && client.list_migrations(pb::Empty {}).await.is_ok();
        let moved = step(&mut client, "proxy", to(8)).await;
        let denied = moved.as_ref().is_err_and(|public| public.is(Code::AccessDenied));
        assert_eq!((seen, !denied), (reads, writes), "{role}: {moved:?}");
        let rows = client.list_bad_rows(pb::ListBadRowsRequest { migration: "x".into() }).await.map_err(|status| pb::from_status(&status));
        assert!(rows.unwrap_err().is(if writes { Code::NotFound } else { Code::AccessDenied }), "{role}");
    };
    check("ann", "access", (false, false)).await;
    check("aud", "auditor", (false, false)).await;
    check("liz", "looks", (true, false)).await;
    check("mo", "moves", (true, true)).await;
    check("ed", "editor", (true, true)).await;
}

#[tokio::test]
async fn a_newer_auth_service_that_was_shut_out_again_neither_follows_nor_comes_back_by_itself() {
    let (shared, one, two) = pair().await;
    settle(&one).await;
    two.stop().await;
    one.auth.move_windows(&widen("auth", 9), LONG).await.unwrap();
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let nine = Box::pin(Cluster::from(dir.clone(), shared.config(9, dir.path()), shared.clock.clone(), "9.0.0")).await;
    create(&mut nine.admin(), &role_document("by-nine", serde_json::json!({}))).await.unwrap();
    let refused = one.auth.move_windows(&narrow("auth", 8, 8), LONG).await.unwrap_err();
    assert!(refused.is(Code::UpgradeRefused) && refused.message.contains("auth9"), "{refused}");
    // It hangs, as far as the others can see: no seat, no document.
    let seat = Key::new(["internal", "auth", &host_id(9).to_string()]).unwrap();
    let member = Key::new(["doc", "member", &host_id(9).to_string()]).unwrap();
    let narrowed = soon(&shared, &[&one], "auth9 is away", || async {
        shared.store.commit(Batch::new(None).delete(seat.clone()).delete(member.clone())).await.unwrap();
        one.auth.move_windows(&narrow("auth", 8, 8), Duration::ZERO).await.ok()
    })
    .await;
    assert_eq!(narrowed.windows["auth"].shut, Some(9));
    // It lives all the time, and hears of it: it is fenced, takes no new epoch, and admits nobody.
    nine.auth.caught_up().await;
    let name = |n: usize| role_document(&format!("late-{n}"), serde_json::json!({}));
    for n in 0..3 {
        let late = create(&mut nine.admin(), &name(n)).await.unwrap_err();
        assert!(late.is(Code::StoreFenced), "{late}");
    }
    soon(&shared, &[&one], "the other goes on", || async { create(&mut one.admin(), &name(9)).await.ok() }).await;
    nine.stop().await;
    // Nor does its next start take the cluster over.
    let again = auth::build(shared.config(9, dir.path()), world(&shared.clock, "9.0.1")).await;
    let again = again.err().expect("it took over").public();
    assert!(again.is(Code::VersionWindow) && again.hint.as_ref().unwrap().contains("tctl windows widen auth 9"), "{again:?}");
    one.auth.move_windows(&widen("auth", 9), LONG).await.unwrap();
    drop(auth::build(shared.config(9, dir.path()), world(&shared.clock, "9.0.1")).await.unwrap());
}

/// The store as one Auth Service of that major sees it: judges each of its writes by the record at that moment.
struct Judged {
    own: Handle,
    major: u64,
    gate: Arc<tokio::sync::Mutex<()>>,
    broken: Arc<Mutex<Vec<String>>>,
}

impl Judged {
    async fn window(&self) -> Option<types::control::Window> {
        store::control::read(&self.own).await.unwrap().map(|stored| stored.record.windows["auth"].clone())
    }
}

impl Store for Judged {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<store::Item>, store::StoreError>> {
        self.own.get(key)
    }
    fn range<'a>(&'a self, from: &'a Key, to: &'a Key, limit: usize) -> BoxFuture<'a, Result<store::Page, store::StoreError>> {
        self.own.range(from, to, limit)
    }
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<store::Committed, store::CommitError>> {
        Box::pin(async move {
            let _one_at_a_time = self.gate.lock().await;
            let before = self.window().await;
            let done = self.own.commit(batch).await;
            if done.is_ok() {
                let after = self.window().await;
                // A birth and a take-over admit whoever makes them.
                let inside = |window: &Option<types::control::Window>| window.as_ref().is_some_and(|window| window.contains(self.major));
                if !inside(&before) && !inside(&after) {
                    self.broken.lock().unwrap().push(format!("a {} wrote beside {before:?}", self.major));
                }
            }
            done
        })
    }
    fn keep_alive<'a>(
        &'a self,
        key: &'a Key,
        revision: Option<u64>,
        expires: Time,
        writer: Option<store::WriterEpoch>,
    ) -> BoxFuture<'a, Result<store::Committed, store::CommitError>> {
        self.own.keep_alive(key, revision, expires, writer)
    }
    fn expire_due(&self) -> BoxFuture<'_, Result<usize, store::StoreError>> {
        self.own.expire_due()
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

fn asked(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// `LOCKGATE_MANY_AUTHS=50 LOCKGATE_ROUNDS=100` for a long run.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g5_many_auth_services_of_three_majors_at_once_with_kills_never_write_a_forbidden_version_and_say_the_next_legal_one() {
    let (many, rounds) = (asked("LOCKGATE_MANY_AUTHS", 9), asked("LOCKGATE_ROUNDS", 6));
    let (mut served, mut refused) = (0, 0);
    for round in 0..rounds {
        let shared = Arc::new(Shared::new());
        let (gate, broken) = (Arc::new(tokio::sync::Mutex::new(())), Arc::new(Mutex::new(Vec::new())));
        let starts = (0..many).map(|number| {
            let (shared, gate, broken) = (shared.clone(), gate.clone(), broken.clone());
            tokio::spawn(async move {
                let (major, dir) = (7 + rand::random_range(0..3u64), tempfile::tempdir().unwrap());
                let own = Handle::on(shared.store.clone());
                let config = auth::Config {
                    storage: Storage::Open(Arc::new(Judged { own, major, gate, broken })),
                    ..shared.config(u128::from(number) + 1, dir.path())
                };
                // Half of them are killed somewhere between the first read and a second of service.
                let life = Duration::from_millis(if rand::random() { rand::random_range(0..60) } else { 600 });
                let stop = net::shutdown::Shutdown::new();
                let life = tokio::time::timeout(life, async {
                    let built = auth::build(config, world(&shared.clock, &format!("{major}.0.0"))).await?;
                    built.run(stop.clone()).await;
                    Ok::<_, auth::AuthError>(())
                });
                match life.await {
                    Ok(Err(error)) => Some(error.public()),
                    Ok(Ok(())) | Err(_) => None,
                }
            })
        });
        for ended in futures::future::join_all(starts).await {
            match ended.unwrap() {
                None => served += 1,
                Some(refusal) => {
                    refused += 1;
                    let line = refusal.to_string();
                    let named = refusal.hint.as_deref().is_some_and(|hint| hint.contains("the latest"));
                    assert!(refusal.is(Code::VersionSkip) || refusal.is(Code::VersionDowngrade), "round {round}: {line}");
                    assert!(named && !line.contains('\n'), "round {round}: {line}");
                }
            }
        }
        assert_eq!(*broken.lock().unwrap(), Vec::<String>::new(), "round {round}");
        // Whoever comes next finds a cluster that one major serves.
        let record = store::control::read(shared.store.as_ref()).await.unwrap();
        if let Some(stored) = record {
            assert_eq!(upgrade::control::faults(&stored.record), Vec::<String>::new(), "round {round}");
        }
    }
    assert!(served > 0 && refused > 0, "{served} served, {refused} were refused");
}
