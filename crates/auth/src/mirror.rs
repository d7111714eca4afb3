//! Every document of the store in memory, fed by the store's own watch: what lists, snapshots and decisions read.
//!
//! A list of ten thousand hosts must not wait for a disk, and each request looks roles up. Whoever wrote waits for
//! [`Mirror::reached`] before answering, so a client reads its own writes. A document that cannot be read is counted, never
//! fatal. Should the watch break, everything is read again; meanwhile the last state serves. The control record is
//! mirrored too, for admission.

use crate::metrics::{Metrics, count};
use bytes::Bytes;
use net::{backoff::Backoff, clock::SharedClock, swap::Swap};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use store::{Event, Item, Key, Store, StoreError, WatchError, documents};
use tokio::sync::watch;
use types::{
    ControlRecord, Document, Resource, ResourceName, Time,
    document::Spec,
    kind::{Lock, Member, User},
    role::Role,
};

/// One document, ready to be sent.
pub(crate) struct Entry {
    pub(crate) document: Document,
    /// As [`Document::to_json`] writes it, revision included.
    pub(crate) json: Bytes,
}

impl Entry {
    fn alive(&self, now: Time) -> bool {
        self.document.metadata.expires.is_none_or(|end| end > now)
    }
}

#[derive(Default)]
struct State {
    kinds: BTreeMap<String, BTreeMap<ResourceName, Arc<Entry>>>,
    /// Keys whose content cannot be read.
    bad: BTreeMap<String, BTreeSet<String>>,
    revision: u64,
}

/// What was read of one kind.
pub(crate) struct View {
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) more: bool,
    pub(crate) skipped: usize,
    pub(crate) revision: u64,
}

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
    clock: SharedClock,
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
            state: Arc::default(),
            control: Swap::new(None),
            reached: Arc::new(watch::Sender::new(0)),
            rights: Arc::new(watch::Sender::new(0)),
            controls: Arc::new(watch::Sender::new(0)),
            clock,
        };
        let watch = mirror.load(store.as_ref()).await?;
        // Weak: the feeder must not keep itself alive through its own mirror.
        let feeder = mirror.clone();
        group.spawn("mirror", async move { feeder.feed(store, watch, metrics).await });
        Ok(mirror)
    }

    async fn load(&self, store: &dyn Store) -> Result<store::Watch, MirrorError> {
        let dir = Key::dir(["doc"])?;
        let end = dir.prefix_end();
        let (mut fresh, mut next, mut revision) = (State::default(), Some(dir.clone()), None);
        while let Some(from) = next {
            let page = store.range(&from, &end, store::MAX_PAGE).await?;
            // What changes while later pages are read is watched from the first page's revision on.
            revision.get_or_insert(page.revision);
            page.items.iter().for_each(|item| fresh.put(item));
            next = page.next;
        }
        let revision = revision.unwrap_or_default();
        fresh.revision = revision;
        let control = store::control::read(store).await.ok().flatten().map(|stored| stored.record);
        let watch = store.watch(vec![dir, Key::control()], Some(revision)).await?;
        self.control.store(control);
        self.controls.send_modify(|generation| *generation = generation.wrapping_add(1));
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        self.advance(revision, true);
        Ok(watch)
    }

    async fn feed(self, store: Arc<dyn Store>, mut watch: store::Watch, metrics: Arc<Metrics>) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5), 0);
        loop {
            match watch.next().await {
                Some(Ok(event)) => {
                    backoff.reset();
                    self.apply(&event);
                }
                None | Some(Err(WatchError::Store(StoreError::Closed))) => return,
                Some(Err(error)) => {
                    tracing::warn!(%error, "the watch of the store broke; reading everything again");
                    count(&metrics.mirror_reloads);
                    loop {
                        tokio::time::sleep(backoff.next()).await;
                        match self.load(store.as_ref()).await {
                            Ok(fresh) => {
                                watch = fresh;
                                break;
                            }
                            Err(MirrorError::Store(StoreError::Closed) | MirrorError::Watch(WatchError::Store(StoreError::Closed))) => {
                                return;
                            }
                            Err(error) => tracing::warn!(%error, "could not read the store again"),
                        }
                    }
                }
            }
        }
    }

    fn apply(&self, event: &Event) {
        let revision = event.revision();
        let mut rights = false;
        match event {
            Event::Init { .. } => {}
            Event::Put(item) if item.key == Key::control() => match store::control::parse(&item.value) {
                Ok(record) => {
                    // Whoever stands outside new windows is cut off before they are acknowledged.
                    let moved = self.control.load().as_ref().as_ref().is_none_or(|old| old.window_gen != record.window_gen);
                    self.control.store(Some(record));
                    if moved {
                        self.rights.send_modify(|generation| *generation = generation.wrapping_add(1));
                    }
                    self.controls.send_modify(|generation| *generation = generation.wrapping_add(1));
                }
                Err(why) => tracing::error!(why, "the control record cannot be read any more; the last one stays in force"),
            },
            Event::Put(item) => {
                rights = touches_rights(&item.key);
                self.state.write().unwrap_or_else(PoisonError::into_inner).put(item);
            }
            Event::Delete { key, .. } => {
                rights = touches_rights(key);
                self.state.write().unwrap_or_else(PoisonError::into_inner).delete(key);
            }
        }
        self.advance(revision, rights);
    }

    fn advance(&self, revision: u64, rights: bool) {
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            state.revision = state.revision.max(revision);
        }
        if rights {
            self.rights.send_modify(|generation| *generation = generation.wrapping_add(1));
        }
        self.reached.send_if_modified(|at| std::mem::replace(at, revision.max(*at)) < revision);
    }

    /// Waits until the mirror shows that revision, but not for ever: behind a broken watch the answer is merely older.
    pub(crate) async fn reached(&self, revision: u64) {
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
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let skipped = state.bad.get(kind).map_or(0, BTreeSet::len);
        let mut view = View { entries: Vec::new(), more: false, skipped, revision: state.revision };
        let Some(all) = state.kinds.get(kind) else { return view };
        let start = after.map_or(Unbounded, Excluded);
        let mut bytes = 0usize;
        for (_, entry) in all.range::<ResourceName, _>((start, Unbounded)) {
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
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.kinds.get(kind)?.get(name).filter(|entry| entry.alive(now)).cloned()
    }

    /// All live documents of a kind that this release can read.
    pub(crate) fn all<S: Spec>(&self) -> Vec<Resource<S>> {
        let view = self.view(S::KIND, None, usize::MAX, usize::MAX, |_| true);
        view.entries.iter().filter_map(|entry| Resource::from_document(entry.document.clone()).ok()).collect()
    }

    pub(crate) fn typed<S: Spec>(&self, name: &ResourceName) -> Option<Resource<S>> {
        Resource::from_document(self.get(S::KIND, name)?.document.clone()).ok()
    }

    pub(crate) fn role(&self, name: &ResourceName) -> Option<Document> {
        self.get(Role::KIND, name).map(|entry| entry.document.clone())
    }

    pub(crate) fn user(&self, name: &ResourceName) -> Option<Resource<User>> {
        self.typed(name)
    }

    pub(crate) fn locks(&self) -> Vec<Resource<Lock>> {
        self.all()
    }

    pub(crate) fn members(&self) -> Vec<Resource<Member>> {
        self.all()
    }
}

fn touches_rights(key: &Key) -> bool {
    documents::reference(key).is_some_and(|(kind, _)| kind == Role::KIND || kind == User::KIND || kind == Lock::KIND)
}

impl State {
    fn put(&mut self, item: &Item) {
        let Some((kind, name)) = documents::reference(&item.key) else { return };
        match documents::decode(item) {
            Ok(document) => {
                self.unmark(kind, name);
                let json = document.to_json().into();
                let name = document.metadata.name.clone();
                self.kinds.entry(kind.to_owned()).or_default().insert(name, Arc::new(Entry { document, json }));
            }
            Err(bad) => {
                tracing::warn!(%bad, "a stored document cannot be read; it is left out");
                self.bad.entry(kind.to_owned()).or_default().insert(name.to_owned());
                self.forget(kind, name);
            }
        }
    }

    fn delete(&mut self, key: &Key) {
        let Some((kind, name)) = documents::reference(key) else { return };
        self.unmark(kind, name);
        self.forget(kind, name);
    }

    fn unmark(&mut self, kind: &str, name: &str) {
        if let Some(bad) = self.bad.get_mut(kind) {
            bad.remove(name);
        }
    }

    fn forget(&mut self, kind: &str, name: &str) {
        if let (Some(all), Ok(name)) = (self.kinds.get_mut(kind), ResourceName::new(name)) {
            all.remove(&name);
        }
    }
}
