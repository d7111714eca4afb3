//! Backups made by themselves: kept, missed aloud, and of several Auth Services exactly one makes each.

use super::{file, memory, terms};
use crate::{fixture::*, several::Shared};
use auth::{
    Auth,
    backup::{Place, Schedule, restore},
};
use backup::{PrivateKey, Trust, Unlock};
use net::{
    clock::ManualClock,
    health::{Board, Health},
    shutdown::Shutdown,
    task::Group,
};
use rand::Rng as _;
use std::{collections::BTreeMap, fs::File, path::Path, sync::Arc, time::Duration};
use store::{Key, Store, Watch, scan};
use tokio::sync::watch::Receiver;
use types::{HostId, Time};

pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn private_key() -> PrivateKey {
    PrivateKey::generate(&mut |bytes| rand::rng().fill_bytes(bytes))
}

pub(super) fn hourly(place: Place, key: &PrivateKey) -> Schedule {
    Schedule { every: HOUR, place, keep: 2, recipients: vec![key.recipient().unwrap()] }
}

/// An Auth Service with a schedule, and what it says of it.
pub(super) struct Running {
    auth: Arc<Auth>,
    board: Board,
    shutdown: Shutdown,
    tasks: Group,
    _home: tempfile::TempDir,
}

impl Running {
    pub(super) async fn start(shared: &Shared, number: u128, schedule: Schedule) -> Self {
        let home = tempfile::tempdir().unwrap();
        let config = auth::Config { backup: Some(schedule), ..shared.config(number, home.path()) };
        let board = Board::default();
        let around = auth::World { health: board.clone(), ..world(&shared.clock, "8.1.0") };
        let auth = Arc::new(auth::build(config, around).await.unwrap());
        let (running, shutdown, tasks) = (auth.clone(), Shutdown::new(), Group::new("test"));
        let stop = shutdown.clone();
        tasks.spawn("auth", async move { running.run(stop).await });
        Self { auth, board, shutdown, tasks, _home: home }
    }

    pub(super) fn health(&self) -> Option<Health> {
        self.board.snapshot().into_iter().find(|(name, _)| *name == "backup").map(|(_, health)| health)
    }

    pub(super) fn metric(&self, name: &str) -> u64 {
        self.auth.metrics().snapshot().into_iter().find(|(known, _, _)| *known == name).unwrap().2
    }

    pub(super) async fn stop(self) {
        self.shutdown.stop();
        assert!(self.tasks.join(Duration::from_secs(20)).await);
    }
}

/// The cluster is there before the test writes into its store.
pub(super) async fn born() -> Shared {
    let (shared, home) = (Shared::new(), tempfile::tempdir().unwrap());
    auth::build(shared.config(90, home.path()), world(&shared.clock, "8.1.0")).await.unwrap();
    shared
}

/// What the store knows of scheduled backups, and when it changes.
pub(super) struct Notes {
    store: Arc<dyn Store>,
    watch: Watch,
    board: Receiver<BTreeMap<&'static str, Health>>,
}

/// One backup that counts.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Made {
    pub(super) at: Time,
    pub(super) name: String,
    pub(super) by: HostId,
}

impl Notes {
    pub(super) async fn of(shared: &Shared, running: &Running) -> Self {
        let watch = shared.store.watch(vec![Key::dir(["internal", "backup"]).unwrap()], None).await.unwrap();
        Self { store: shared.store.clone(), watch, board: running.board.changes() }
    }

    /// The last one, once nobody is at one any more.
    pub(super) async fn last(&self) -> Option<Made> {
        let dir = Key::dir(["internal", "backup"]).unwrap();
        let items = scan(self.store.as_ref(), &dir, &dir.prefix_end()).await.unwrap();
        if items.iter().any(|item| item.key.to_string().contains("/turn/")) {
            return None;
        }
        let state: serde_json::Value = serde_json::from_slice(&items.first()?.value).unwrap();
        let last = &state["last"];
        Some(Made {
            at: last["at"].as_str()?.parse().unwrap(),
            name: last["name"].as_str()?.to_owned(),
            by: last["by"].as_str()?.parse().unwrap(),
        })
    }

    /// Waits for what the store or the health board says.
    pub(super) async fn until<T>(&mut self, what: &str, mut met: impl AsyncFnMut(&Self) -> Option<T>) -> T {
        let wait = async {
            loop {
                if let Some(found) = met(self).await {
                    return found;
                }
                tokio::select! {
                    event = self.watch.next() => drop(event.unwrap().unwrap()),
                    changed = self.board.changed() => changed.unwrap(),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("not within time: {what}"))
    }

    pub(super) async fn made_at(&mut self, at: Time) -> Made {
        self.until("a backup that counts", async |notes| notes.last().await.filter(|made| made.at == at)).await
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn now(clock: &ManualClock) -> Time {
    net::clock::Clock::now(clock)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduled_backups_are_made_kept_and_missed_aloud() {
    let (folder, key_of, shared) = (tempfile::tempdir().unwrap(), private_key(), Shared::new());
    let dir = folder.path().join("backups");
    let running = Running::start(&shared, 1, hourly(Place::Dir(dir.clone()), &key_of)).await;
    let (clock, mut notes) = (shared.clock.clone(), Notes::of(&shared, &running).await);
    for _ in 0..3 {
        notes.made_at(now(&clock)).await;
        clock.advance(HOUR);
    }
    let fourth = notes.made_at(now(&clock)).await;
    let kept = names(&dir);
    assert_eq!((kept.len(), kept.last()), (2, Some(&fourth.name)), "{kept:?}");
    assert!(kept.iter().all(|name| name.starts_with("demo-2027") && name.ends_with(".lgbackup")), "{kept:?}");
    let asked = terms(Unlock::Keys(vec![key_of]), Trust::Any);
    restore(memory(&clock), File::open(dir.join(&kept[1])).unwrap(), asked, Arc::default()).await.unwrap();

    std::fs::rename(&dir, folder.path().join("away")).unwrap();
    std::fs::write(&dir, "a file where the directory was").unwrap();
    clock.advance(HOUR);
    let why = notes.until("the failure shows", async |_| match running.health() {
        Some(Health::Attention(why)) => Some(why),
        _ => None,
    });
    let why = why.await;
    assert!(why.contains("the last one is of") && why.contains(&dir.display().to_string()), "{why}");
    assert!(running.metric("backup_failures") >= 1 && running.board.all_ready(), "a service without backups still serves");
    assert_eq!(running.metric("backup_last_unix"), fourth.at.unix_u64());
    std::fs::remove_file(&dir).unwrap();
    std::fs::rename(folder.path().join("away"), &dir).unwrap();
    clock.advance(Duration::from_secs(601));
    notes.until("it works again", async |_| (running.health() == Some(Health::Ready)).then_some(())).await;
    assert_eq!(names(&dir).len(), 2);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_auth_services_exactly_one_makes_each_and_the_other_takes_over() {
    let (folder, key_of, shared) = (tempfile::tempdir().unwrap(), private_key(), Shared::new());
    let dir = folder.path().join("backups");
    let schedule = Schedule { keep: 100, ..hourly(Place::Dir(dir.clone()), &key_of) };
    // One is there before two, so that who makes the first is known.
    let one = Running::start(&shared, 1, schedule.clone()).await;
    let (clock, mut notes) = (shared.clock.clone(), Notes::of(&shared, &one).await);
    notes.made_at(now(&clock)).await;
    let two = Running::start(&shared, 2, schedule).await;
    for round in 1..=6 {
        // Far enough that both find it due at once.
        clock.advance(HOUR * 2);
        notes.made_at(now(&clock)).await;
        assert_eq!(names(&dir).len(), 1 + round, "{:?}", names(&dir));
        assert_eq!(one.metric("backups") + two.metric("backups"), 1 + round as u64);
    }
    let before = notes.last().await.unwrap();
    let (left, gone) = if before.by == host_id(1) { (two, one) } else { (one, two) };
    gone.stop().await;
    let mut notes = Notes::of(&shared, &left).await;
    clock.advance(HOUR);
    assert_eq!(notes.last().await, Some(before.clone()), "not yet: the other would be first");
    clock.advance(Duration::from_secs(30));
    let after = notes.made_at(now(&clock)).await;
    assert_ne!(after.by, before.by);
    assert_eq!(names(&dir).len(), 8);
    left.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_nobody_renews_lapses_and_what_its_holder_left_is_removed() {
    let (folder, key_of, shared) = (tempfile::tempdir().unwrap(), private_key(), born().await);
    let dir = folder.path().join("backups");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join(".demo-20270115T070000Z.lgbackup.new"), "half a file").unwrap();
    let place = Place::Dir(dir.clone());
    let (state, turn) = keys(&place);
    let left = serde_json::json!({"place": place.to_string(), "running":
        {"by": host_id(9), "name": "demo-20270115T070000Z.lgbackup", "upload": "", "began": "2027-01-15T07:00:00Z"}});
    let until = now(&shared.clock).plus(Duration::from_secs(60));
    let dead = store::Batch::new(None).put(state, left.to_string(), None).put(turn, "{}", Some(until));
    shared.store.commit(dead).await.unwrap();
    let running = Running::start(&shared, 1, hourly(place, &key_of)).await;
    let mut notes = Notes::of(&shared, &running).await;
    shared.clock.set(until);
    let made = notes.made_at(until).await;
    assert_eq!(names(&dir), [made.name]);
    running.stop().await;
}

/// Where the store keeps the state and the turn of a place; frozen, since releases share them.
pub(super) fn keys(place: &Place) -> (Key, Key) {
    use sha2::Digest as _;
    let digest: String = data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(place.to_string().as_bytes())).chars().take(32).collect();
    let key = |what: &str| Key::new(["internal", "backup", what, digest.as_str()]).unwrap();
    (key("made"), key("turn"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_gone_from_its_place_is_made_again_at_the_next_start() {
    let (folder, key_of, shared) = (tempfile::tempdir().unwrap(), private_key(), Shared::new());
    let dir = folder.path().join("backups");
    let schedule = hourly(Place::Dir(dir.clone()), &key_of);
    let running = Running::start(&shared, 1, schedule.clone()).await;
    let first = Notes::of(&shared, &running).await.made_at(now(&shared.clock)).await;
    running.stop().await;
    // While it is there, the next one comes when the hour is over, whoever starts in between.
    shared.clock.advance(Duration::from_secs(60));
    let running = Running::start(&shared, 1, schedule.clone()).await;
    let mut notes = Notes::of(&shared, &running).await;
    shared.clock.set(first.at.plus(HOUR));
    let second = notes.made_at(first.at.plus(HOUR)).await;
    running.stop().await;
    std::fs::remove_file(dir.join(&second.name)).unwrap();
    shared.clock.advance(Duration::from_secs(60));
    let running = Running::start(&shared, 1, schedule).await;
    let third = Notes::of(&shared, &running).await.made_at(now(&shared.clock)).await;
    running.stop().await;
    assert_eq!(names(&dir), [first.name, third.name]);
    let bytes = std::fs::read(dir.join(&names(&dir)[0])).unwrap();
    assert!(backup::check(file(&bytes), &Trust::Any).is_ok());
}
