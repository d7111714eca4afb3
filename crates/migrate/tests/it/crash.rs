//! Every crash point of every store operation of a migration's whole life, and what follows it.
//!
//! A run goes up, is finalized and contracts, or goes up and back, while a writer writes through the mirror after each step. It is
//! broken at the k-th operation in each way it can break, and then carried on by the same runner, by another one
//! that has fenced it, or undone. Whatever happened, the rows at the end are those of the run that nothing broke.

use crate::drivers::{DRIVERS, Driver, Dump, FIRST, MEMORY, STEADY_MEMORY, dump, fence, finalize, reset};
use crate::fault::{Fault, Mode};
use crate::samples::{ALL, ENCODING, INDEX, MOVED, RESHAPED, key, new_value, old_row, registry};
use migrate::{Limits, Mirror, Outcome, Runner, StepError};
use std::collections::VecDeque;
use std::sync::Arc;
use store::{Batch, CommitError, Item, Key, Store, StoreError, WriterEpoch, scan};
use types::Time;
use upgrade::migrate::{Goal, Migration, Wait};

const UP: &[Goal] = &[Goal::Up];
const THROUGH: &[Goal] = &[Goal::Up, Goal::Contract];
const AND_BACK: &[Goal] = &[Goal::Up, Goal::Undo];

/// Who carries on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Resume,
    TakeOver,
    Undo,
}

/// A row is put with this size, or deleted.
type Act = (&'static str, Option<u64>);

/// Business code that writes a fixed list of things.
struct Writer {
    mirror: Mirror,
    migration: Migration,
    epoch: WriterEpoch,
    acts: VecDeque<Act>,
}

impl Writer {
    fn new(store: &Arc<dyn Store>, migration: Migration) -> Self {
        let acts = [
            ("a", Some(40)),
            ("new", Some(41)),
            ("b", None),
            ("lapses", Some(42)),
            ("new", Some(45)),
            ("c", Some(43)),
            ("zz", Some(44)),
            ("b", Some(46)),
            ("zz", None),
            ("a", Some(47)),
            ("d", None),
        ];
        Self { mirror: Mirror::new(Arc::clone(store), registry()), migration, epoch: FIRST, acts: acts.into() }
    }

    async fn act(&mut self) -> bool {
        let Some((name, size)) = self.acts.pop_front() else { return false };
        let key = key(&self.migration, name);
        let batch = Batch::new(Some(self.epoch));
        let expires = (name == "lapses").then(|| Time::from_unix(1_900_000_000));
        let batch = match size {
            Some(size) => batch.put(key, new_value(&self.migration, name, size), expires),
            None => batch.delete(key),
        };
        self.mirror.commit(batch).await.unwrap();
        true
    }
}

fn rows(migration: &Migration) -> Vec<(String, Vec<u8>)> {
    ["a", "b", "c", "d"].iter().zip(1..).map(|(name, size)| old_row(migration, name, size)).collect()
}

fn runner(store: Arc<dyn Store>, migration: Migration, writer: WriterEpoch, holder: &str) -> Runner {
    Runner::new(store, migration, writer, holder, Limits { rows: 3, ..Limits::default() }).unwrap()
}

/// Goes to each goal in turn while the writer writes. `Ok(false)`: an answer did not come, and `patient` is false.
async fn drive(runner: &Runner, goals: &[Goal], store: &Arc<dyn Store>, writer: &mut Writer, patient: bool) -> Result<bool, StepError> {
    for goal in goals {
        prepare(*goal, store).await;
        loop {
            match runner.step(*goal).await? {
                Outcome::Done => break,
                Outcome::Unclear(_) if !patient => return Ok(false),
                Outcome::Waiting(wait) => panic!("it waits: {wait}"),
                Outcome::Unclear(_) | Outcome::Lost | Outcome::Moved { .. } | Outcome::Worked { .. } => {}
            }
            writer.act().await;
        }
    }
    while writer.act().await {}
    Ok(true)
}

async fn prepare(goal: Goal, store: &Arc<dyn Store>) {
    if goal == Goal::Contract {
        finalize(store.as_ref()).await;
    }
}

/// A run that nothing breaks: its rows at the end.
async fn unbroken(store: &Arc<dyn Store>, migration: Migration, goals: &[Goal]) -> Dump {
    reset(store.as_ref(), &rows(&migration)).await;
    let mut writer = Writer::new(store, migration);
    let runner = runner(Arc::clone(store), migration, FIRST, "first");
    assert!(drive(&runner, goals, store, &mut writer, true).await.unwrap());
    dump(store.as_ref()).await
}

/// The whole store before a step. Runners remember nothing, so a run may begin at any.
struct Moment {
    items: Vec<Item>,
    acts: VecDeque<Act>,
    /// Where it still goes.
    goals: &'static [Goal],
    /// The operations of this step; of each whether it is a commit.
    kinds: Vec<bool>,
}

/// Every step of a run that nothing breaks, from the goal of that index on.
async fn moments(store: &Arc<dyn Store>, migration: Migration, goals: &'static [Goal], from: usize) -> Vec<Moment> {
    reset(store.as_ref(), &rows(&migration)).await;
    let mut writer = Writer::new(store, migration);
    let mut all = Vec::new();
    for (index, goal) in goals.iter().enumerate() {
        prepare(*goal, store).await;
        loop {
            let items = scan(store.as_ref(), &Key::first(), &Key::last()).await.unwrap();
            let counted = Fault::none(store);
            let acts = writer.acts.clone();
            let outcome = runner(counted.clone(), migration, FIRST, "first").step(*goal).await.unwrap();
            if outcome == Outcome::Done {
                break;
            }
            if index >= from {
                all.push(Moment { items, acts, goals: &goals[index..], kinds: counted.kinds() });
            }
            writer.act().await;
        }
    }
    all
}

struct Broken<'a> {
    store: &'a Arc<dyn Store>,
    migration: Migration,
    moment: &'a Moment,
    at: usize,
    mode: Mode,
    then: Then,
}

impl Broken<'_> {
    /// Runs until it breaks and then to the end; the rows then, and whether the end is that of an undo.
    async fn run(&self) -> (Dump, bool) {
        let (store, goals) = (self.store, self.moment.goals);
        restore(store.as_ref(), &self.moment.items).await;
        let mut writer = Writer { acts: self.moment.acts.clone(), ..Writer::new(store, self.migration) };
        let faulty = Fault::before(store, self.at, self.mode);
        let first = runner(faulty.clone(), self.migration, FIRST, "first");
        let patient = self.then == Then::Resume;
        let ended = drive(&first, goals, store, &mut writer, patient).await;
        assert!(faulty.struck());
        match &ended {
            Ok(over) => assert_eq!(*over, patient, "nothing broke"),
            Err(StepError::Commit(CommitError::Store(StoreError::Closed)) | StepError::Store(StoreError::Closed)) => {}
            Err(StepError::Control(_) | StepError::Journal(_)) => {}
            other => panic!("{other:?}"),
        }
        match self.then {
            Then::Resume => {
                let again = runner(Arc::clone(store), self.migration, FIRST, "first");
                assert!(drive(&again, goals, store, &mut writer, true).await.unwrap());
            }
            Then::TakeOver => {
                let epoch = fence(store.as_ref()).await;
                writer.epoch = epoch;
                let other = runner(Arc::clone(store), self.migration, epoch, "second");
                assert!(drive(&other, goals, store, &mut writer, true).await.unwrap());
                let late = runner(Arc::clone(store), self.migration, FIRST, "first").again().await;
                assert!(matches!(late, Ok(Outcome::Done) | Err(StepError::Commit(CommitError::Fenced { .. }))), "{late:?}");
            }
            Then::Undo => {
                let other = runner(Arc::clone(store), self.migration, FIRST, "second");
                if other.step(Goal::Undo).await.unwrap() != Outcome::Waiting(Wait::Final) {
                    assert!(drive(&other, &[Goal::Undo], store, &mut writer, true).await.unwrap());
                    return (dump(store.as_ref()).await, true);
                }
                assert!(drive(&other, goals, store, &mut writer, true).await.unwrap());
            }
        }
        (dump(store.as_ref()).await, false)
    }
}

/// A point at which a run is broken, and what follows.
struct Crash {
    goals: &'static [Goal],
    step: usize,
    at: usize,
    mode: Mode,
    then: Then,
}

/// Everything that may happen to a commit.
const MODES: [Mode; 4] = [Mode::Before, Mode::After, Mode::LostAnswer, Mode::LostQuestion];
const WAYS: [Then; 3] = [Then::Resume, Then::TakeOver, Then::Undo];

/// Whether the drivers behind a network do everything too. Otherwise each commit there is broken in one of the twelve ways, another
/// one each time, so that every way is met many times.
pub(crate) fn everything() -> bool {
    std::env::var_os("LOCKGATE_MIGRATE_CRASHES").is_some_and(|what| what == "all")
}

/// All crashes in the run whose moments these are. A read that is cut off, before or after, leaves what the commit before it left: in
/// a usual run only the quickest driver does those, once.
fn crashes(driver: &Driver, goals: &'static [Goal], moments: &[Moment]) -> Vec<Crash> {
    let mut all = Vec::new();
    let mut point = 0;
    for (step, moment) in moments.iter().enumerate() {
        for (at, is_commit) in moment.kinds.iter().copied().enumerate() {
            let modes = match is_commit {
                true => &MODES[..],
                false if everything() => &MODES[..2],
                false if driver.name == STEADY_MEMORY.name => &MODES[..1],
                false => &[],
            };
            let ways = modes.iter().flat_map(|mode| WAYS.iter().map(|then| (*mode, *then))).enumerate();
            let chosen = ways.filter(|(number, _)| everything() || !driver.remote || (number + 5 * point) % 12 == 0);
            all.extend(chosen.map(|(_, (mode, then))| Crash { goals, step, at, mode, then }));
            point += usize::from(is_commit);
        }
    }
    all
}

/// Breaks a run everywhere, several stores of the driver at a time where each waits for a server.
async fn break_everywhere(driver: &Driver, migration: Migration) {
    let lanes: Vec<_> = futures::future::join_all((0..if driver.remote { 4 } else { 1 }).map(|_| (driver.open)())).await;
    let store = &lanes[0].store;
    let undone = unbroken(store, migration, AND_BACK).await;
    let quickest = (STEADY_MEMORY.open)().await.store;
    // A way up that is broken and then undone is among those that go through.
    for (goals, from) in [(THROUGH, 0), (AND_BACK, 1)] {
        let expected = unbroken(store, migration, goals).await;
        assert_eq!(expected, unbroken(&quickest, migration, goals).await, "{} ends otherwise than memory", driver.name);
        let moments = moments(store, migration, goals, from).await;
        let crashes = crashes(driver, goals, &moments);
        let lane = async |number: usize| {
            for Crash { goals, step, at, mode, then } in crashes.iter().skip(number).step_by(lanes.len()) {
                let moment = &moments[*step];
                let broken = Broken { store: &lanes[number].store, migration, moment, at: *at, mode: *mode, then: *then };
                let (found, was_undone) = Box::pin(broken.run()).await;
                let expected = if was_undone { &undone } else { &expected };
                assert_eq!(&found, expected, "{}: {} {goals:?} step {step} at {at} {mode:?} {then:?}", driver.name, migration.id);
            }
        };
        futures::future::join_all((0..lanes.len()).map(lane)).await;
    }
    for lane in lanes {
        lane.store.close().await;
    }
}

/// Makes the store what it was.
async fn restore(store: &dyn Store, items: &[Item]) {
    reset(store, &[]).await;
    let put = |batch: Batch, item: &Item| batch.put(item.key.clone(), item.value.clone(), item.expires);
    store.commit(items.iter().fold(Batch::new(None), put)).await.unwrap();
}

macro_rules! everywhere {
    ($($name:ident: $migration:expr),+ $(,)?) => {
        $(#[tokio::test]
        async fn $name() {
            for driver in DRIVERS {
                let driver = if driver.name == MEMORY.name { &STEADY_MEMORY } else { driver };
                break_everywhere(driver, $migration).await;
            }
        })+
    };
}

everywhere! {
    a_reshaped_document_survives_every_crash: RESHAPED,
    moved_rows_survive_every_crash: MOVED,
    an_index_survives_every_crash: INDEX,
    a_changed_encoding_survives_every_crash: ENCODING,
}

#[tokio::test]
async fn up_undo_up_is_up() {
    for driver in DRIVERS {
        let opened = (driver.open)().await;
        for migration in ALL {
            let once = unbroken(&opened.store, migration, UP).await;
            let twice = unbroken(&opened.store, migration, &[Goal::Up, Goal::Undo, Goal::Up]).await;
            assert_eq!(once, twice, "{}: {}", driver.name, migration.id);
            let back = unbroken(&opened.store, migration, AND_BACK).await;
            let dirs: Vec<&str> = back.iter().map(|(key, ..)| key.rsplit_once('/').unwrap().0).collect();
            assert!(dirs.iter().all(|dir| *dir == migration.old_dir()), "{dirs:?}");
            let through = unbroken(&opened.store, migration, THROUGH).await;
            let new_only = through.iter().all(|(key, ..)| key.starts_with(migration.new_dir()) || !migration.is_one_to_one());
            assert!(new_only, "{}: {through:?}", migration.id);
        }
        opened.store.close().await;
    }
}
