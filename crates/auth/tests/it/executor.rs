//! An upgrade as an Auth Service carries it out: planned without a trace, accepted by what was read, proved before anything moves,
//! paused, taken back. What is decided is `upgrade::plan`'s and tested there; whole upgrades with real programs are the harness's.

use crate::fixture::*;
use auth::{Known, Rehearsed, Releases, Storage};
use net::clock::ManualClock;
use sha2::Digest as _;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use store::{Memory, Store};
use types::{Code, ControlRecord, Document, SystemRole, Time, Version};
use upgrade::{
    plan::{Outcome, Release, Verdict},
    render::Status,
};
use wire::api::{self as pb, steer_upgrade_request::Order};

/// A mirror with 8.1.0 and 9.0.0, whose rehearsals end as the test says.
#[derive(Default)]
struct Mirror(Mutex<Rehearsed>);

#[tonic::async_trait]
impl Releases for Mirror {
    async fn known(&self) -> Result<Vec<Known>, String> {
        let release = |version: &str| Release {
            version: version.parse().unwrap(),
            digest: "d".into(),
            verified: true,
            mirrored: true,
            min_source: None,
            denied_sources: Vec::new(),
            visit: false,
            withdrawn: None,
        };
        Ok(["8.1.0", "9.0.0"].map(|version| Known { release: release(version), artifacts: BTreeMap::new() }).into())
    }
    async fn rehearse(&self, version: &Version, store: &Path) -> Result<Rehearsed, String> {
        assert_eq!(version.major(), 9);
        assert!(store.is_file(), "a copy of the store lies there");
        Ok(self.0.lock().unwrap().clone())
    }
}

struct Place {
    cluster: Cluster,
    store: Arc<dyn Store>,
    mirror: Arc<Mirror>,
}

impl Place {
    async fn start() -> Self {
        let (dir, clock) = (Arc::new(tempfile::tempdir().unwrap()), ManualClock::new(Time::from_unix(START)));
        let store: Arc<dyn Store> = Arc::new(Memory::new(Arc::new(Ticks(clock.clone()))));
        let mirror = Arc::new(Mirror::default());
        let mut config = config(dir.path());
        config.storage = Storage::Open(store.clone());
        let around = auth::World { releases: Some(mirror.clone()), ..world(&clock, "8.1.0") };
        let cluster = Cluster::in_world(dir, config, clock, around).await;
        Self { cluster, store, mirror }
    }

    async fn plan(&self, target: &str) -> (Outcome, Status) {
        let ask = pb::PlanUpgradeRequest { target: target.into(), ..Default::default() };
        let reply = self.cluster.admin().plan_upgrade(ask).await.unwrap().into_inner();
        (serde_json::from_slice(&reply.outcome).unwrap(), serde_json::from_slice(&reply.status).unwrap())
    }

    async fn steer(&self, order: Order) -> Result<(), types::Public> {
        let ask = pb::SteerUpgradeRequest { order: Some(order) };
        self.cluster.admin().steer_upgrade(ask).await.map(drop).map_err(|status| pb::from_status(&status))
    }

    async fn apply(&self, plan: &str) -> Result<(), types::Public> {
        self.steer(Order::Apply(pb::ApplyUpgrade { target: "9.0.0".into(), plan: plan.into() })).await
    }

    async fn control(&self) -> ControlRecord {
        store::control::read(self.store.as_ref()).await.unwrap().unwrap().record
    }

    /// Asks until the upgrade stands as it should.
    async fn until(&self, what: &str, there: impl Fn(&Status) -> bool) -> Status {
        let ask = async {
            loop {
                let (_, status) = self.plan("").await;
                if there(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let late = tokio::time::timeout(Duration::from_secs(60), ask).await;
        match late {
            Ok(status) => status,
            Err(_) => panic!("{what}: {:?}", self.plan("").await.1),
        }
    }

    /// Digests of everything that stays but what services write of themselves all the time.
    async fn dump(&self) -> BTreeMap<String, [u8; 32]> {
        let mut all = BTreeMap::new();
        let mut snapshot = self.store.snapshot().await.unwrap();
        while let Some(page) = snapshot.page().await.unwrap() {
            let own = |key: &str| {
                ["internal/auth/", "internal/audit/", "internal/recordings/", "doc/member/"].iter().any(|dir| key.starts_with(dir))
            };
            let kept = page.into_iter().filter(|item| !own(&item.key.to_string()));
            all.extend(kept.map(|item| (item.key.to_string(), sha2::Sha256::digest(&item.value).into())));
        }
        all
    }
}

struct Ticks(ManualClock);
impl store::Clock for Ticks {
    fn now(&self) -> Time {
        net::clock::Clock::now(&self.0)
    }
}

fn waits(status: &Status, code: &str) -> bool {
    status.waits.iter().any(|wait| wait.code.as_str() == code)
}

#[tokio::test]
async fn a_plan_writes_nothing_and_only_the_one_that_was_read_is_accepted() {
    let place = Place::start().await;
    let before = place.dump().await;
    let (outcome, status) = place.plan("9.0.0").await;
    assert_eq!(outcome.decision.verdict(), Verdict::Ready, "{outcome:?}");
    assert!(status.to.is_some());
    assert_eq!(place.plan("9.0.0").await.0.id, outcome.id, "who reads it again reads the same");
    assert_eq!(place.dump().await, before);

    let refused = place.apply("00000000-9").await.unwrap_err();
    assert!(refused.is(Code::UpgradeRefused) && refused.message.contains(&outcome.id), "{refused}");
    assert_eq!(place.control().await.upgrade, None);
    assert_eq!(events(&place.cluster, "upgrade.steer").await[0].code, "LU011W");
    // A major that is two away is led to step by step, and what is not known is refused.
    let ask = pb::PlanUpgradeRequest { target: "10.0.0".into(), ..Default::default() };
    let reply = place.cluster.admin().plan_upgrade(ask).await.unwrap().into_inner();
    assert!(reply.text.contains("BLOCKED"), "{}", reply.text);

    place.apply(&outcome.id).await.unwrap();
    place.apply(&outcome.id).await.unwrap();
    let begun = events(&place.cluster, "upgrade.begin").await;
    assert_eq!((begun.len(), begun[0].text("plan")), (1, outcome.id.as_str()));
}

#[tokio::test]
async fn an_upgrade_is_proved_then_opens_the_first_window_and_goes_back_without_a_trace() {
    let place = Place::start().await;
    let (windows, id) = (place.control().await.windows, place.plan("9.0.0").await.0.id);
    // It has run for a while: who was never moved has nothing to prove on the way back.
    place.cluster.clock.advance(Duration::from_secs(1));
    place.apply(&id).await.unwrap();
    // Nobody has an updater here: it waits for people at the first Auth Service.
    let status = place.until("it waits for people", |status| waits(status, "G-07")).await;
    assert_eq!(status.windows["auth"], (8, 9), "{status:?}");
    let files: Vec<_> = std::fs::read_dir(place.cluster.dir.path().join("backups")).unwrap().collect();
    assert_eq!(files.len(), 1, "the backup that it was proved by");
    let left = std::fs::read_dir(place.cluster.dir.path().join("auth")).unwrap();
    let scratch = left.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("lockgate-drill-"));
    assert_eq!(scratch.count(), 0, "what was restored for the proof is gone");

    place.steer(Order::Pause("incident 4411".into())).await.unwrap();
    let paused = place.until("it is paused", |status| waits(status, "G-18")).await;
    assert!(paused.waits.iter().any(|wait| wait.cause.contains("incident 4411")), "{paused:?}");
    place.steer(Order::Resume(pb::OfUpgrade::default())).await.unwrap();
    place.until("it goes on", |status| waits(status, "G-07")).await;

    let refused = place.steer(Order::Finalize(pb::OfUpgrade::default())).await.unwrap_err();
    assert!(refused.is(Code::UpgradeWaits), "{refused}");
    let other = place.steer(Order::Rollback(pb::OfUpgrade { upgrade: "of last week".into() })).await.unwrap_err();
    assert!(other.is(Code::UpgradeRefused) && other.message.contains("of last week"), "{other}");
    place.steer(Order::Rollback(pb::OfUpgrade::default())).await.unwrap();
    place.until("it is over", |status| status.from.is_none()).await;
    let control = place.control().await;
    assert_eq!(control.upgrade, None);
    assert_eq!((control.windows["auth"].lo, control.windows["auth"].hi), (windows["auth"].lo, windows["auth"].hi));
    assert_eq!(events(&place.cluster, "upgrade.end").await[0].text("to"), "8.1.0");
    assert!(place.steer(Order::Rollback(pb::OfUpgrade::default())).await.unwrap_err().is(Code::UpgradeRefused));
}

#[tokio::test]
async fn rows_that_the_next_release_cannot_hold_stop_an_upgrade_before_anything_moved_until_somebody_mends_or_waives() {
    let place = Place::start().await;
    *place.mirror.0.lock().unwrap() = Rehearsed { bad_rows: vec!["doc/user/bob".into()], ..Rehearsed::default() };
    let id = place.plan("9.0.0").await.0.id;
    place.apply(&id).await.unwrap();
    let stopped = place.until("it stands", |status| !status.blocked.is_empty()).await;
    let block = &stopped.blocked[0];
    assert!(block.code.as_str() == "B-13" && block.cause.contains("doc/user/bob"), "{block:?}");
    assert_eq!(stopped.windows["auth"], (8, 8));

    // Mended, and tried again.
    *place.mirror.0.lock().unwrap() = Rehearsed { failed: "it crashed".into(), ..Rehearsed::default() };
    place.steer(Order::Resume(pb::OfUpgrade::default())).await.unwrap();
    let stopped = place.until("it stands again", |status| status.blocked.iter().any(|block| block.cause.contains("it crashed"))).await;
    assert_eq!(stopped.blocked[0].waiver.as_deref(), Some("rehearsal"));

    let waive = |reason: &str, seconds| Order::Waive(pb::WaiveCheck { check: "rehearsal".into(), reason: reason.into(), seconds });
    for bad in [waive("", 60), waive("no disk", 0), waive("no disk", 90 * 86_400)] {
        assert!(place.steer(bad).await.unwrap_err().is(Code::Malformed));
    }
    place.steer(waive("no disk", 3600)).await.unwrap();
    place.until("it goes on", |status| waits(status, "G-07")).await;
    let said = events(&place.cluster, "upgrade.steer").await;
    assert!(said.iter().any(|event| event.text("detail").contains("no disk")), "{said:?}");
}

#[tokio::test]
async fn who_resumes_a_way_back_goes_on_back() {
    let place = Place::start().await;
    let id = place.plan("9.0.0").await.0.id;
    place.apply(&id).await.unwrap();
    place.until("it waits for people", |status| waits(status, "G-07")).await;
    // The clock stands, so the one Auth Service has to prove itself on the way back, and there is time for another word.
    place.steer(Order::Rollback(pb::OfUpgrade::default())).await.unwrap();
    for _ in 0..2 {
        place.steer(Order::Resume(pb::OfUpgrade::default())).await.unwrap();
        let status = place.plan("").await.1;
        assert_eq!(status.to.map(|to| to.major()), Some(8), "it still goes back");
    }
}

#[tokio::test]
async fn a_cluster_that_takes_releases_by_itself_begins_one_in_its_hours_and_not_again_after_it_was_taken_back() {
    let place = Place::start().await;
    // A host with an updater, which is behind.
    let mut host = place.cluster.member(11, SystemRole::Node).await.0;
    let now = place.cluster.now();
    let updated = move || {
        let mut beats = beat(11, "web-1", &[], 0);
        let mut says = Document::from_json(&beats.member).unwrap();
        says.spec["update"] = serde_json::json!({"state": "idle", "at": now});
        beats.member = says.to_json().into();
        member_only(beats)
    };
    host.heartbeat(updated()).await.unwrap();
    let policy = |from: u8, to: u8| {
        document(serde_json::json!({"kind": "upgrade_policy", "version": "v1", "metadata": {"name": "upgrade-policy"},
            "spec": {"managed": {"minors_only": false, "from_hour": from, "to_hour": to}}}))
    };
    // It is eight o'clock there.
    let mut admin = place.cluster.admin();
    let shut = create(&mut admin, &policy(9, 10)).await.unwrap();
    let clock = place.cluster.clock.clone();
    let begun = async || events(&place.cluster, "upgrade.begin").await.len();
    let mut open = policy(8, 9);
    open.metadata.revision = shut.metadata.revision;
    assert_eq!(begun().await, 0);
    update(&mut admin, &open).await.unwrap();
    // It looks once a minute.
    clock.advance(Duration::from_secs(61));
    let wait = async {
        while begun().await == 0 {
            host.heartbeat(updated()).await.ok();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let begins = tokio::time::timeout(Duration::from_secs(60), wait).await;
    assert!(begins.is_ok(), "it begins by itself: {:#?}", place.plan("9.0.0").await.0.decision);
    assert_eq!(events(&place.cluster, "upgrade.begin").await[0].text("by"), "upgrade_policy");
    place.steer(Order::Rollback(pb::OfUpgrade::default())).await.unwrap();
    place.cluster.clock.advance(Duration::from_secs(700));
    place.until("it is over", |status| status.from.is_none()).await;
    // Three looks later.
    for _ in 0..3 {
        clock.advance(Duration::from_secs(61));
        host.heartbeat(updated()).await.ok();
        tokio::time::sleep(Duration::from_secs(6)).await;
    }
    assert_eq!(begun().await, 1, "what was taken back is not begun again");
}
