//! The driver that keeps everything in memory: for tests and caches, and deliberately the strictest of all.
//!
//! Where the contract leaves room, it uses it: pages end early at varying places, events come late and one commit at a time,
//! little history is held, and whatever any driver refuses it refuses. Code that works on it works on the others.
//! The same seed repeats the same run. [`Memory::interrupt_next`] makes a commit end as a lost connection would.

use crate::batch::{fence, whole_millis};
use crate::snapshot::{PAGE, Pages};
use crate::watch::{Commit, Hub, Room};
use crate::{
    Batch, BatchError, Clock, CommitError, Committed, Condition, Event, Item, Key, MAX_CHANGES, MAX_PAGE, Op, Page, Snapshot, Store,
    StoreError, Watch, WatchError, WriterEpoch,
};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;
use types::Time;

/// How a memory store behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides where pages end and how late events come.
    pub seed: u64,
    /// Commits held for watches that resume.
    pub history: usize,
    /// Pages and events as prompt as can be: for caches and benches.
    pub easy: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, history: 4096, easy: false }
    }
}

/// One handle; [`Memory::twin`] makes another on the same data.
pub struct Memory {
    shared: Arc<Shared>,
    closed: CancellationToken,
}

struct Shared {
    data: Mutex<Data>,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    easy: bool,
}

struct Data {
    rows: BTreeMap<Key, Row>,
    revision: u64,
    rng: StdRng,
    interrupt: Option<Interrupt>,
}

#[derive(Clone)]
struct Row {
    value: Bytes,
    revision: u64,
    expires: Option<Time>,
}

/// What really happened to a commit that ended without an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupt {
    Before,
    After,
}

impl Memory {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::with(clock, Options::default())
    }

    pub fn with(clock: Arc<dyn Clock>, options: Options) -> Self {
        let data = Data { rows: BTreeMap::new(), revision: 0, rng: StdRng::seed_from_u64(options.seed), interrupt: None };
        let hub = Arc::new(Hub::new(0, Room { commits: options.history, bytes: 64 << 20 }));
        let shared = Shared { data: Mutex::new(data), hub, clock, easy: options.easy };
        Self { shared: Arc::new(shared), closed: CancellationToken::new() }
    }

    /// Another handle on the same data, as another process would have.
    #[must_use]
    pub fn twin(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), closed: CancellationToken::new() }
    }

    /// Lets the next commit that would succeed answer [`CommitError::Ambiguous`].
    pub fn interrupt_next(&self, when: Interrupt) {
        self.lock().interrupt = Some(when);
    }

    fn lock(&self) -> MutexGuard<'_, Data> {
        self.shared.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<(), StoreError> {
        if self.closed.is_cancelled() { Err(StoreError::Closed) } else { Ok(()) }
    }

    fn get_now(&self, key: &Key) -> Result<Option<Item>, StoreError> {
        self.open()?;
        let now = self.shared.clock.now();
        Ok(self.lock().live(key, now).map(|row| row.item(key)))
    }

    fn range_now(&self, from: &Key, to: &Key, limit: usize) -> Result<Page, StoreError> {
        self.open()?;
        let now = self.shared.clock.now();
        let mut data = self.lock();
        let mut limit = limit.clamp(1, MAX_PAGE);
        if !self.shared.easy && data.rng.random_bool(0.3) {
            limit = data.rng.random_range(1..=limit.min(7));
        }
        let mut items = Vec::new();
        let mut next = None;
        if from < to {
            for (key, row) in data.rows.range(from.clone()..to.clone()).filter(|(_, row)| row.lives(now)) {
                if items.len() == limit {
                    next = Some(key.clone());
                    break;
                }
                items.push(row.item(key));
            }
        }
        Ok(Page { items, next, revision: data.revision })
    }

    fn commit_now(&self, batch: Batch) -> Result<Committed, CommitError> {
        self.open()?;
        batch.check()?;
        let now = self.shared.clock.now();
        let mut data = self.lock();
        data.admit(batch.writer)?;
        data.meets(&batch.conditions, now)?;
        let interrupt = data.interrupt.take();
        if interrupt == Some(Interrupt::Before) {
            return Err(CommitError::Ambiguous("interrupted".into()));
        }
        let events = data.plan(&batch.ops)?;
        let revision = self.publish(&mut data, events);
        match interrupt {
            Some(_) => Err(CommitError::Ambiguous("interrupted".into())),
            None => Ok(Committed { revision }),
        }
    }

    fn keep_alive_now(
        &self,
        key: &Key,
        revision: Option<u64>,
        expires: Time,
        writer: Option<WriterEpoch>,
    ) -> Result<Committed, CommitError> {
        self.open()?;
        key.proper().map_err(BatchError::from)?;
        if *key == Key::control() {
            return Err(BatchError::Control.into());
        }
        let now = self.shared.clock.now();
        let mut data = self.lock();
        data.admit(writer)?;
        let Some(row) = data.live(key, now) else { return Err(CommitError::NotFound { key: key.clone() }) };
        if revision.is_some_and(|revision| revision != row.revision) {
            return Err(CommitError::Conflict { key: key.clone() });
        }
        let item = Item { key: key.clone(), value: row.value.clone(), revision: data.revision + 1, expires: Some(whole_millis(expires)) };
        Ok(Committed { revision: self.publish(&mut data, vec![Event::Put(item)]) })
    }

    fn expire_now(&self) -> Result<usize, StoreError> {
        self.open()?;
        let now = self.shared.clock.now();
        let mut data = self.lock();
        let revision = data.revision + 1;
        let mut due: Vec<_> = data.rows.iter().filter(|(_, row)| !row.lives(now)).map(|(key, row)| (row.expires, key.clone())).collect();
        due.sort();
        due.truncate(MAX_CHANGES);
        let count = due.len();
        self.publish(&mut data, due.into_iter().map(|(_, key)| Event::Delete { key, revision }).collect());
        Ok(count)
    }

    /// Carries out planned events and tells the watchers, in one step.
    fn publish(&self, data: &mut Data, events: Vec<Event>) -> u64 {
        if !events.is_empty() {
            data.revision += 1;
            for event in &events {
                data.apply(event);
            }
            self.shared.hub.publish([Arc::new(Commit { revision: data.revision, events })]);
        }
        data.revision
    }
}

impl Row {
    fn lives(&self, now: Time) -> bool {
        self.expires.is_none_or(|expires| expires > now)
    }

    fn item(&self, key: &Key) -> Item {
        Item { key: key.clone(), value: self.value.clone(), revision: self.revision, expires: self.expires }
    }
}

impl Data {
    fn live(&self, key: &Key, now: Time) -> Option<&Row> {
        self.rows.get(key).filter(|row| row.lives(now))
    }

    /// Refuses a fenced writer.
    fn admit(&self, writer: Option<WriterEpoch>) -> Result<(), CommitError> {
        let (Some(WriterEpoch(epoch)), Some(control)) = (writer, self.rows.get(&Key::control())) else { return Ok(()) };
        let min = fence(&control.value)?;
        if epoch < min { Err(CommitError::Fenced { min }) } else { Ok(()) }
    }

    fn meets(&self, conditions: &[Condition], now: Time) -> Result<(), CommitError> {
        let fails = |condition: &&Condition| !condition.holds(self.live(condition.key(), now).map(|row| row.revision));
        match conditions.iter().find(fails) {
            Some(condition) => Err(CommitError::Conflict { key: condition.key().clone() }),
            None => Ok(()),
        }
    }

    /// What the operations come to. Rows that expired unseen are deleted too: watchers were told of them once.
    fn plan(&self, ops: &[Op]) -> Result<Vec<Event>, CommitError> {
        let revision = self.revision + 1;
        let mut events = Vec::new();
        for op in ops {
            match op {
                Op::Put { key, value, expires } => {
                    let expires = expires.map(whole_millis);
                    // A copy: a caller must not be able to count on sharing its buffer.
                    let value = Bytes::copy_from_slice(value);
                    events.push(Event::Put(Item { key: key.clone(), value, revision, expires }));
                }
                Op::Delete { key } if self.rows.contains_key(key) => events.push(Event::Delete { key: key.clone(), revision }),
                Op::Delete { .. } => {}
                Op::DeleteRange { from, to } => {
                    let keys = self.rows.range(from.clone()..to.clone());
                    events.extend(keys.map(|(key, _)| Event::Delete { key: key.clone(), revision }));
                }
            }
        }
        if events.len() > MAX_CHANGES {
            return Err(BatchError::TooManyChanges.into());
        }
        Ok(events)
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Init { .. } => {}
            Event::Put(Item { key, value, revision, expires }) => {
                self.rows.insert(key.clone(), Row { value: value.clone(), revision: *revision, expires: *expires });
            }
            Event::Delete { key, .. } => {
                self.rows.remove(key);
            }
        }
    }
}

/// The rows of one moment: a copy that shares the values.
struct Held {
    rows: std::collections::btree_map::IntoIter<Key, Row>,
    now: Time,
    closed: CancellationToken,
    /// Pages end where this says.
    rng: Option<StdRng>,
}

impl Held {
    fn next_now(&mut self) -> Result<Vec<Item>, StoreError> {
        if self.closed.is_cancelled() {
            return Err(StoreError::Closed);
        }
        let most = self.rng.as_mut().map_or(PAGE, |rng| rng.random_range(1..=7));
        let now = self.now;
        Ok(self.rows.by_ref().filter(|(_, row)| row.lives(now)).take(most).map(|(key, row)| row.item(&key)).collect())
    }
}

impl Pages for Held {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Item>, StoreError>> {
        async move { self.next_now() }.boxed()
    }
}

impl Store for Memory {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Item>, StoreError>> {
        async move { self.get_now(key) }.boxed()
    }

    fn range<'a>(&'a self, from: &'a Key, to: &'a Key, limit: usize) -> BoxFuture<'a, Result<Page, StoreError>> {
        async move { self.range_now(from, to, limit) }.boxed()
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Committed, CommitError>> {
        async move { self.commit_now(batch) }.boxed()
    }

    fn keep_alive<'a>(
        &'a self,
        key: &'a Key,
        revision: Option<u64>,
        expires: Time,
        writer: Option<WriterEpoch>,
    ) -> BoxFuture<'a, Result<Committed, CommitError>> {
        async move { self.keep_alive_now(key, revision, expires, writer) }.boxed()
    }

    fn expire_due(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        async move { self.expire_now() }.boxed()
    }

    fn watch(&self, prefixes: Vec<Key>, from: Option<u64>) -> BoxFuture<'_, Result<Watch, WatchError>> {
        async move {
            self.open()?;
            let (current, seed) = {
                let mut data = self.lock();
                (data.revision, data.rng.random())
            };
            if from.is_some_and(|from| from > current) {
                return Err(WatchError::Ahead { current });
            }
            let hub = Arc::clone(&self.shared.hub);
            let watch = Watch::start(hub, self.closed.clone(), None, prefixes, from.unwrap_or(current)).await?;
            Ok(if self.shared.easy { watch } else { watch.drowsy(seed) })
        }
        .boxed()
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        async move {
            self.open()?;
            let now = self.shared.clock.now();
            let mut data = self.lock();
            let rng = (!self.shared.easy).then(|| StdRng::seed_from_u64(data.rng.random()));
            let held = Held { rows: data.rows.clone().into_iter(), now, closed: self.closed.clone(), rng };
            Ok(Snapshot::new(data.revision, "memory", held))
        }
        .boxed()
    }

    fn revision(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        async move { self.open().map(|()| self.lock().revision) }.boxed()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.shared.clock)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.closed.cancel();
        ready(()).boxed()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}
