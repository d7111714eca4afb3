//! Every document of the store in memory, fed by the store's own watch: what lists, watches and decisions read.
//!
//! A list of a hundred thousand hosts must not wait for a disk, and each request looks roles up. Whoever wrote waits for
//! [`Mirror::reached`] before answering, so a client reads its own writes. A document that cannot be read is counted, never
//! fatal. Should the watch break, everything is read again; meanwhile the last state serves, and watchers are told only what changed.
//! Each document is read once, for lists and all watchers together ([`table`]); a watcher sleeps until one of its own kinds changes.
//! The control record is mirrored too, for admission.

mod follow;
mod table;

pub(crate) use follow::{Lost, Position};
pub(crate) use table::{Change, Entry};

use crate::metrics::{Metrics, count};
use follow::Topics;
use futures::FutureExt as _;
use net::{backoff::Backoff, clock::SharedClock, swap::Swap};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};
use store::{Event, Item, Key, Store, StoreError, WatchError, documents};
use table::{Read, Table};
use tokio::sync::watch;
use types::{
    ControlRecord, Document, Resource, ResourceName,
    document::{BadDocument, Spec},
    kind::{Lock, Member, User},
    role::Role,
};

/// Events that are put in place together at most.
const BATCH: usize = 512;

struct State {
    kinds: BTreeMap<String, Table>,
    revision: u64,
    /// From where on a kind that nobody has seen yet is told.
    floor: u64,
    /// Grows when the store is another one, or an older copy: revisions of before mean nothing.
    life: u64,
}

/// What was read of one kind.
pub(crate) struct View {
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) more: bool,
    pub(crate) skipped: usize,
    pub(crate) revision: u64,
}

/// Why the store is read as a whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    First,
    /// The watch broke; it is the same store.
    Again,
    /// It is older than it was, or another one.
    Restored,
}

/// All locks, as every request asks for them.
type Locks = Arc<Vec<Resource<Lock>>>;

/// The mirror. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Mirror {
    state: Arc<RwLock<State>>,
    control: Swap<Option<ControlRecord>>,
    reached: Arc<watch::Sender<u64>>,
    /// Grows whenever a role, user or lock changes, or the windows do.
    rights: Arc<watch::Sender<u64>>,
    /// Grows with each control record.
    controls: Arc<watch::Sender<u64>>,
    topics: Arc<Mutex<Topics>>,
    /// Made at the first request after a lock changed: every request asks for them.
    locks: Arc<Mutex<Option<Locks>>>,
    /// Held by the one who asks the store's history for all who came back together.
    asking: Arc<tokio::sync::Mutex<()>>,
    store: Arc<dyn Store>,
    clock: SharedClock,
    metrics: Arc<Metrics>,
}

/// Why the mirror could not be filled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MirrorError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Key(#[from] store::BadKey),
}

impl Mirror {
    /// Reads everything, and begins to watch from there.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        clock: SharedClock,
        group: &net::task::Group,
        metrics: Arc<Metrics>,
    ) -> Result<Self, MirrorError> {
        let mirror = Self {
            state: Arc::new(RwLock::new(State { kinds: BTreeMap::new(), revision: 0, floor: 0, life: 0 })),
            control: Swap::new(None),
            reached: Arc::new(watch::Sender::new(0)),
            rights: Arc::new(watch::Sender::new(0)),
            controls: Arc::new(watch::Sender::new(0)),
            topics: Arc::default(),
            locks: Arc::default(),
            asking: Arc::default(),
            store,
            clock,
            metrics,
        };
        let watch = mirror.load(Reading::First).await?;
        // Weak: the feeder must not keep itself alive through its own mirror.
        let feeder = mirror.clone();
        group.spawn("mirror", async move { feeder.feed(watch).await });
        Ok(mirror)
    }

    async fn load(&self, reading: Reading) -> Result<store::Watch, MirrorError> {
        let dir = Key::dir(["doc"])?;
        let (fresh, revision) = self.read_all(&dir).await?;
        let control = store::control::read(self.store.as_ref()).await.ok().flatten().map(|stored| stored.record);
        let watch = self.store.watch(vec![dir, Key::control()], Some(revision)).await?;
        self.control.store(control);
        grow(&self.controls);
        let restored = self.write(|state| state.take(fresh, revision, reading));
        if restored {
            self.reached.send_replace(revision);
        }
        self.tell(revision, None);
        Ok(watch)
    }

    /// All documents by kind, and the revision from which what changes meanwhile is watched. One page is read while another is parsed.
    async fn read_all(&self, dir: &Key) -> Result<(BTreeMap<String, Table>, u64), MirrorError> {
        let end = dir.prefix_end();
        let (mut kinds, mut revision, mut next, mut parsing) = (BTreeMap::new(), None, Some(dir.clone()), None);
        while let Some(from) = next {
            let page = self.store.range(&from, &end, store::MAX_PAGE).await?;
            revision.get_or_insert(page.revision);
            next = page.next;
            let parse = move || page.items.iter().filter_map(Read::of).collect::<Vec<_>>();
            let before = parsing.replace(tokio::task::spawn_blocking(parse));
            put_all(&mut kinds, before, revision).await?;
        }
        put_all(&mut kinds, parsing, revision).await?;
        Ok((kinds, revision.unwrap_or_default()))
    }

    async fn feed(self, mut watch: store::Watch) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5), 0);
        loop {
            let (mut next, mut events) = (watch.next().await, Vec::new());
            while let Some(Ok(event)) = next {
                events.push(event);
                // With what has arrived already.
                next = if events.len() < BATCH { watch.next().now_or_never().flatten() } else { None };
            }
            if !events.is_empty() {
                backoff.reset();
                self.apply(&events);
            }
            match next {
                None if events.is_empty() => return,
                None | Some(Ok(_)) => {}
                Some(Err(WatchError::Store(StoreError::Closed))) => return,
                Some(Err(error)) => {
                    tracing::warn!(%error, "the watch of the store broke; reading everything again");
                    count(&self.metrics.mirror_reloads);
                    let reading = if matches!(error, WatchError::Ahead { .. }) { Reading::Restored } else { Reading::Again };
                    match self.load_again(reading, &mut backoff).await {
                        Some(fresh) => watch = fresh,
                        None => return,
                    }
                }
            }
        }
    }

    /// Until it is read, or the store is closed.
    async fn load_again(&self, reading: Reading, backoff: &mut Backoff) -> Option<store::Watch> {
        loop {
            tokio::time::sleep(backoff.next()).await;
            match self.load(reading).await {
                Ok(fresh) => return Some(fresh),
                Err(MirrorError::Store(StoreError::Closed) | MirrorError::Watch(WatchError::Store(StoreError::Closed))) => return None,
                Err(error) => tracing::warn!(%error, "could not read the store again"),
            }
        }
    }

    fn apply(&self, events: &[Event]) {
        enum Step {
            Put(Read),
            Delete { kind: String, name: String, revision: u64 },
        }
        let (mut steps, mut touched, mut revision) = (Vec::new(), BTreeSet::new(), 0);
        for event in events {
            revision = revision.max(event.revision());
            match event {
                Event::Init { .. } => {}
                Event::Put(item) if item.key == Key::control() => self.admit_by(item),
                Event::Put(item) => steps.extend(Read::of(item).map(Step::Put)),
                Event::Delete { key, revision } => steps.extend(documents::reference(key).map(|(kind, name)| Step::Delete {
                    kind: kind.to_owned(),
                    name: name.to_owned(),
                    revision: *revision,
                })),
            }
        }
        self.write(|state| {
            for step in steps {
                let kind = match &step {
                    Step::Put(read) => read.kind(),
                    Step::Delete { kind, .. } => kind,
                };
                if !touched.contains(kind) {
                    touched.insert(kind.to_owned());
                }
                let table = table_of(&mut state.kinds, kind, state.floor);
                match step {
                    Step::Put(read) => table.put(read),
                    Step::Delete { name, revision, .. } => table.delete(&name, revision),
                }
            }
            state.revision = state.revision.max(revision);
        });
        self.tell(revision, Some(&touched));
    }

    fn admit_by(&self, item: &Item) {
        match store::control::parse(&item.value) {
            Ok(record) => {
                // Whoever stands outside new windows is cut off before they are acknowledged.
                let moved = self.control.load().as_ref().as_ref().is_none_or(|old| old.window_gen != record.window_gen);
                self.control.store(Some(record));
                if moved {
                    grow(&self.rights);
                }
                grow(&self.controls);
            }
            Err(why) => tracing::error!(why, "the control record cannot be read any more; the last one stays in force"),
        }
    }

    /// Wakes who waits: rights first, since nobody is told more by rights he has lost. `None` is every kind.
    fn tell(&self, revision: u64, touched: Option<&BTreeSet<String>>) {
        let is = |kind: &str| touched.is_none_or(|touched| touched.contains(kind));
        if is(Lock::KIND) {
            *self.locks.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        if is(Lock::KIND) || is(Role::KIND) || is(User::KIND) {
            grow(&self.rights);
        }
        self.reached.send_if_modified(|at| std::mem::replace(at, revision.max(*at)) < revision);
        for (kinds, sleepers) in self.topics.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if kinds.iter().any(|kind| is(kind)) {
                sleepers.send_replace(revision);
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write<T>(&self, write: impl FnOnce(&mut State) -> T) -> T {
        write(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The revision that lists show.
    pub(crate) fn revision(&self) -> u64 {
        self.read().revision
    }

    /// Shows a document as it was read from the store at that revision: after a flip of a migration, which gives documents other revisions
    /// and is no event. What changed or went since stays.
    pub(crate) fn renew(&self, item: &Item, at: u64) {
        let name = documents::reference(&item.key).and_then(|(_, name)| ResourceName::new(name).ok());
        let (Some(name), Some(read)) = (name, Read::of(item)) else { return };
        self.write(|state| {
            if let Some(table) = state.kinds.get_mut(read.kind())
                && table.entries().get(&name).is_some_and(|((shown, _), _)| *shown <= at && *shown != item.revision)
            {
                table.put(read);
            }
        });
    }

    /// Waits until the mirror shows that revision, but not for ever: behind a broken watch the answer is merely older.
    pub(crate) async fn reached(&self, revision: u64) {
        if *self.reached.borrow() >= revision {
            return;
        }
        let mut at = self.reached.subscribe();
        let _ = tokio::time::timeout(Duration::from_secs(2), at.wait_for(|at| *at >= revision)).await;
    }

    /// Changes with every role, user and lock.
    pub(crate) fn rights(&self) -> watch::Receiver<u64> {
        self.rights.subscribe()
    }

    /// Wakes at each control record.
    pub(crate) fn controls(&self) -> watch::Receiver<u64> {
        self.controls.subscribe()
    }

    pub(crate) fn control(&self) -> Arc<Option<ControlRecord>> {
        self.control.load()
    }
}

/// Reading.
impl Mirror {
    /// Up to `limit` live documents of the kind behind `after` that pass.
    pub(crate) fn view(
        &self,
        kind: &str,
        after: Option<&ResourceName>,
        limit: usize,
        max_bytes: usize,
        mut passes: impl FnMut(&Document) -> bool,
    ) -> View {
        use std::ops::Bound::{Excluded, Unbounded};
        let now = self.clock.now();
        let state = self.read();
        let mut view = View { entries: Vec::new(), more: false, skipped: 0, revision: state.revision };
        let Some(table) = state.kinds.get(kind) else { return view };
        view.skipped = table.unreadable();
        let start = after.map_or(Unbounded, Excluded);
        let mut bytes = 0usize;
        for (_, (_, entry)) in table.entries().range::<ResourceName, _>((start, Unbounded)) {
            if !entry.alive(now) || !passes(&entry.document) {
                continue;
            }
            bytes = bytes.saturating_add(entry.json.len());
            if view.entries.len() >= limit || (bytes > max_bytes && !view.entries.is_empty()) {
                view.more = true;
                break;
            }
            view.entries.push(entry.clone());
        }
        view
    }

    /// One live document.
    pub(crate) fn get(&self, kind: &str, name: &ResourceName) -> Option<Arc<Entry>> {
        let now = self.clock.now();
        let state = self.read();
        state.kinds.get(kind)?.entries().get(name).map(|(_, entry)| entry).filter(|entry| entry.alive(now)).cloned()
    }

    /// All live documents of a kind that this release can read.
    pub(crate) fn all<S: Spec>(&self) -> Vec<Resource<S>> {
        self.all_as(Resource::from_document)
    }

    fn all_as<S: Spec>(&self, as_one: impl Fn(Document) -> Result<Resource<S>, BadDocument>) -> Vec<Resource<S>> {
        let view = self.view(S::KIND, None, usize::MAX, usize::MAX, |_| true);
        let read = |document| as_one(document).inspect_err(|error| tracing::warn!(%error, "a document is not heeded")).ok();
        view.entries.iter().filter_map(|entry| read(entry.full()?)).collect()
    }

    pub(crate) fn typed<S: Spec>(&self, name: &ResourceName) -> Option<Resource<S>> {
        Resource::from_document(self.get(S::KIND, name)?.full()?).ok()
    }

    pub(crate) fn role(&self, name: &ResourceName) -> Option<Document> {
        self.get(Role::KIND, name).map(|entry| entry.document.clone())
    }

    pub(crate) fn user(&self, name: &ResourceName) -> Option<Resource<User>> {
        self.typed(name)
    }

    /// Every lock; `rules::lock` looks at the clock.
    pub(crate) fn locks(&self) -> Arc<Vec<Resource<Lock>>> {
        let mut held = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        held.get_or_insert_with(|| Arc::new(self.all_as(Lock::leniently))).clone()
    }

    pub(crate) fn members(&self) -> Vec<Resource<Member>> {
        self.all()
    }
}

impl State {
    fn knows_since(&self, kind: &str, revision: u64) -> bool {
        self.kinds.get(kind).map_or(self.floor <= revision, |table| table.knows_since(revision))
    }

    /// Takes a reading of the whole store for the present. Says whether revisions of before mean nothing any more.
    fn take(&mut self, mut fresh: BTreeMap<String, Table>, revision: u64, reading: Reading) -> bool {
        if reading != Reading::Again || revision < self.revision {
            *self = Self { kinds: fresh, revision, floor: revision, life: self.life.wrapping_add(1) };
            return true;
        }
        for (kind, table) in &mut self.kinds {
            table.replace(fresh.remove(kind).unwrap_or_else(|| Table::new(revision)), self.revision, revision);
        }
        self.kinds.extend(fresh);
        self.revision = revision;
        false
    }
}

/// Takes in what was parsed meanwhile.
async fn put_all(
    kinds: &mut BTreeMap<String, Table>,
    parsed: Option<tokio::task::JoinHandle<Vec<Read>>>,
    floor: Option<u64>,
) -> Result<(), StoreError> {
    let Some(parsed) = parsed else { return Ok(()) };
    let documents = parsed.await.map_err(|error| StoreError::Io { place: "of documents".into(), detail: error.to_string() })?;
    for read in documents {
        table_of(kinds, read.kind(), floor.unwrap_or_default()).put(read);
    }
    Ok(())
}

fn table_of<'a>(kinds: &'a mut BTreeMap<String, Table>, kind: &str, floor: u64) -> &'a mut Table {
    kinds.entry(kind.to_owned()).or_insert_with(|| Table::new(floor))
}

fn grow(counter: &watch::Sender<u64>) {
    counter.send_modify(|generation| *generation = generation.wrapping_add(1));
}

#[cfg(test)]
#[path = "mirror/tests.rs"]
mod tests;
