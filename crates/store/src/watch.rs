//! Watches: events in revision order, from any revision still held, without loss and without growing.
//!
//! A [`Watch`] pulls. It holds a position and reads on from the [`Hub`]'s ring of recent commits, or from the driver's
//! [`History`] when the ring has moved past it; a hint tells it that there is more. So a slow watcher costs nothing until the
//! history itself has moved past it, and then it is closed with [`WatchError::Lagged`]. Drivers publish each commit
//! to their hub once it is durable; a commit published twice or late is harmless.

use crate::{Item, Key, StoreError};
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a watcher learns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// First, once: what follows happened after this revision.
    Init { revision: u64 },
    /// Written, or its expiry moved.
    Put(Item),
    /// Deleted or expired.
    Delete { key: Key, revision: u64 },
}

impl Event {
    pub fn revision(&self) -> u64 {
        match self {
            Self::Init { revision } | Self::Delete { revision, .. } => *revision,
            Self::Put(item) => item.revision,
        }
    }

    pub fn key(&self) -> Option<&Key> {
        match self {
            Self::Init { .. } => None,
            Self::Put(item) => Some(&item.key),
            Self::Delete { key, .. } => Some(key),
        }
    }

    fn size(&self) -> usize {
        128 + match self {
            Self::Init { .. } => 0,
            Self::Put(item) => item.key.len() + item.value.len(),
            Self::Delete { key, .. } => key.len(),
        }
    }
}

/// Why a watch did not start, or ended. All but `Closed` and `Store` mean: read everything again, then watch from there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    #[error("the changes after the asked revision are no longer held; the oldest held is {oldest}")]
    Compacted { oldest: u64 },
    /// The store is older than what the watcher has seen: it was restored from a backup, or is another one.
    #[error("the asked revision is ahead of the store's, which is {current}")]
    Ahead { current: u64 },
    #[error("the watcher was too slow; the oldest change held is {oldest}")]
    Lagged { oldest: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Turns a driver's events into those of a layer above it, in order; one whose answer is `None` is passed over.
pub trait Lens: Send {
    fn see(&mut self, event: Event) -> Result<Option<Event>, WatchError>;
}

/// A running watch. Dropping it ends it.
pub struct Watch {
    hub: Arc<Hub>,
    hint: watch::Receiver<u64>,
    closed: CancellationToken,
    history: Option<Arc<dyn History>>,
    prefixes: Vec<Key>,
    /// Read and not yet handed out; the first may be begun.
    queue: VecDeque<Arc<Commit>>,
    /// How many events of the queue's first have been looked at.
    begun: usize,
    /// All events up to this revision have been handed out.
    done: u64,
    /// Where reading goes on.
    read: u64,
    /// The hub's era at its start.
    era: u64,
    started: bool,
    over: bool,
    drowsy: Option<Drowsy>,
    lens: Option<Box<dyn Lens>>,
}

impl Watch {
    /// Starts behind `from`. Fails if the hub and the history no longer have what follows.
    pub(crate) async fn start(
        hub: Arc<Hub>,
        closed: CancellationToken,
        history: Option<Arc<dyn History>>,
        prefixes: Vec<Key>,
        from: u64,
    ) -> Result<Self, WatchError> {
        let hint = hub.hint.subscribe();
        let era = hub.era();
        let mut watch = Self {
            hub,
            hint,
            closed,
            history,
            prefixes: reduce(prefixes),
            queue: VecDeque::new(),
            begun: 0,
            done: from,
            read: from,
            era,
            started: false,
            over: false,
            drowsy: None,
            lens: None,
        };
        watch.fill().await.map_err(|error| match error {
            WatchError::Lagged { oldest } => WatchError::Compacted { oldest },
            error => error,
        })?;
        Ok(watch)
    }

    /// Begun in that era: when the hub was rewound since, the first step says so.
    pub(crate) fn since(mut self, era: u64) -> Self {
        self.era = era;
        self
    }

    /// Ends with that, in place of the store.
    pub(crate) fn until(mut self, closed: &CancellationToken) -> Self {
        self.closed = closed.clone();
        self
    }

    /// Makes every event late and alone, as the strict driver does.
    pub(crate) fn drowsy(mut self, seed: u64) -> Self {
        self.drowsy = Some(Drowsy { state: seed | 1 });
        self
    }

    /// Shows every event but the first through the lens.
    #[must_use]
    pub fn through(mut self, lens: Box<dyn Lens>) -> Self {
        self.lens = Some(lens);
        self
    }

    /// The next event; after an error, and when the store was closed, `None`. May be dropped while waiting without loss.
    pub async fn next(&mut self) -> Option<Result<Event, WatchError>> {
        if self.over || self.closed.is_cancelled() {
            return None;
        }
        if !self.started {
            self.started = true;
            return Some(Ok(Event::Init { revision: self.done }));
        }
        loop {
            if let Some(drowsy) = &mut self.drowsy {
                drowsy.nod().await;
            }
            if let Some(event) = self.pop() {
                let Some(lens) = &mut self.lens else { return Some(Ok(event)) };
                match lens.see(event) {
                    Ok(Some(event)) => return Some(Ok(event)),
                    Ok(None) => continue,
                    Err(error) => {
                        self.over = true;
                        return Some(Err(error));
                    }
                }
            }
            if let Err(error) = self.fill().await {
                self.over = true;
                return (error != WatchError::Store(StoreError::Closed)).then_some(Err(error));
            }
            if !self.queue.is_empty() {
                continue;
            }
            tokio::select! {
                () = self.closed.cancelled() => return None,
                changed = self.hint.changed() => if changed.is_err() { return None },
            }
        }
    }

    /// The revision to resume from after a break: the highest whose events have all been handed out. Events of one commit
    /// share a revision, so the last event's own revision may be in the middle of one.
    pub fn resume_point(&self) -> u64 {
        self.done
    }

    /// The next matching event of what was read.
    fn pop(&mut self) -> Option<Event> {
        while let Some(commit) = self.queue.front() {
            while let Some(event) = commit.events.get(self.begun) {
                self.begun += 1;
                if wanted(&self.prefixes, event) {
                    let event = event.clone();
                    let rest = commit.events.get(self.begun..).unwrap_or_default();
                    if !rest.iter().any(|event| wanted(&self.prefixes, event)) {
                        self.finish_first();
                    }
                    return Some(event);
                }
            }
            self.finish_first();
        }
        self.done = self.done.max(self.read);
        None
    }

    fn finish_first(&mut self) {
        if let Some(commit) = self.queue.pop_front() {
            self.done = commit.revision;
        }
        self.begun = 0;
    }

    /// Reads on, from the ring or from the history. Nothing changes if it is dropped half way.
    async fn fill(&mut self) -> Result<(), WatchError> {
        self.hint.mark_unchanged();
        if self.hub.era() != self.era {
            return Err(WatchError::Ahead { current: self.hub.latest() });
        }
        let most = if self.drowsy.is_some() { 1 } else { 64 };
        let commits = match (self.hub.after(self.read, most), &self.history) {
            (Ok(commits), _) => commits,
            (Err(oldest), None) => return Err(WatchError::Lagged { oldest }),
            (Err(_), Some(history)) => history.after(self.read, most).await?,
        };
        if let Some(last) = commits.last() {
            self.read = last.revision;
        }
        self.queue.extend(commits);
        Ok(())
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("prefixes", &self.prefixes).field("done", &self.done).finish_non_exhaustive()
    }
}

fn wanted(prefixes: &[Key], event: &Event) -> bool {
    event.key().is_some_and(|key| prefixes.is_empty() || prefixes.iter().any(|prefix| key.starts_with(prefix)))
}

/// Without prefixes that another one covers; an empty prefix covers all.
fn reduce(mut prefixes: Vec<Key>) -> Vec<Key> {
    prefixes.sort();
    prefixes.dedup_by(|later, kept| later.starts_with(kept));
    prefixes
}

/// Everything one revision changed.
pub(crate) struct Commit {
    pub(crate) revision: u64,
    pub(crate) events: Vec<Event>,
}

/// Older commits than the ring holds.
pub(crate) trait History: Send + Sync + 'static {
    /// Up to `most` commits after that revision, whole and without a gap; [`WatchError::Lagged`] if the first is gone.
    fn after(&self, revision: u64, most: usize) -> BoxFuture<'_, Result<Vec<Arc<Commit>>, WatchError>>;
}

/// How much a ring holds: whichever is reached first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) commits: usize,
    pub(crate) bytes: usize,
}

/// Where a handle's recent commits are, and who is told of them.
pub(crate) struct Hub {
    hint: watch::Sender<u64>,
    ring: Mutex<Ring>,
    room: Room,
}

struct Ring {
    commits: VecDeque<Arc<Commit>>,
    bytes: usize,
    latest: u64,
    era: u64,
}

impl Hub {
    /// Begins at the store's present revision.
    pub(crate) fn new(revision: u64, room: Room) -> Self {
        let ring = Ring { commits: VecDeque::new(), bytes: 0, latest: revision, era: 0 };
        Self { hint: watch::Sender::new(revision), ring: Mutex::new(ring), room }
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn has_watchers(&self) -> bool {
        self.hint.receiver_count() > 0
    }

    /// Adds commits in order; those already here are passed over, and a gap empties the ring.
    pub(crate) fn publish(&self, commits: impl IntoIterator<Item = Arc<Commit>>) {
        let latest = {
            let mut ring = self.lock();
            for commit in commits {
                ring.push(commit);
            }
            while ring.commits.len() > self.room.commits || ring.bytes > self.room.bytes {
                ring.drop_oldest();
            }
            ring.latest
        };
        self.tell(latest);
    }

    fn tell(&self, latest: u64) {
        self.hint.send_if_modified(|seen| std::mem::replace(seen, (*seen).max(latest)) < latest);
    }

    /// Learns that the store is at that revision without having its commits: watches fetch them from the history.
    pub(crate) fn advance(&self, revision: u64) {
        {
            let mut ring = self.lock();
            if revision <= ring.latest {
                return;
            }
            ring.empty();
            ring.latest = revision;
        }
        self.tell(revision);
    }

    /// Adds commits if they follow at once on what is here; says whether they did. For those who can also learn of them later.
    pub(crate) fn publish_next(&self, commits: Vec<Arc<Commit>>) -> bool {
        let latest = {
            let mut ring = self.lock();
            if commits.first().is_none_or(|first| first.revision != ring.latest + 1) {
                return false;
            }
            for commit in commits {
                ring.push(commit);
            }
            while ring.commits.len() > self.room.commits || ring.bytes > self.room.bytes {
                ring.drop_oldest();
            }
            ring.latest
        };
        self.tell(latest);
        true
    }

    /// Learns that the store is another one than it was, or an older copy: it is at that revision, and what was seen of it does not
    /// count. All watches end with [`WatchError::Ahead`].
    pub(crate) fn rewind(&self, revision: u64) {
        {
            let mut ring = self.lock();
            ring.empty();
            ring.latest = revision;
            ring.era += 1;
        }
        self.hint.send_modify(|seen| *seen = revision);
    }

    /// How often the store was rewound.
    pub(crate) fn era(&self) -> u64 {
        self.lock().era
    }

    /// The newest revision heard of.
    pub(crate) fn latest(&self) -> u64 {
        self.lock().latest
    }

    /// Up to `most` commits after that revision, or the oldest revision held.
    fn after(&self, revision: u64, most: usize) -> Result<Vec<Arc<Commit>>, u64> {
        let ring = self.lock();
        if revision >= ring.latest {
            return Ok(Vec::new());
        }
        match ring.commits.front() {
            Some(first) if first.revision <= revision + 1 => {
                let skip = usize::try_from(revision + 1 - first.revision).unwrap_or(usize::MAX);
                Ok(ring.commits.iter().skip(skip).take(most).cloned().collect())
            }
            Some(first) => Err(first.revision),
            None => Err(ring.latest + 1),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn push(&mut self, commit: Arc<Commit>) {
        if commit.revision <= self.latest {
            return;
        }
        if commit.revision != self.latest + 1 {
            self.empty();
        }
        self.latest = commit.revision;
        self.bytes += commit.size();
        self.commits.push_back(commit);
    }

    fn empty(&mut self) {
        self.commits.clear();
        self.bytes = 0;
    }

    fn drop_oldest(&mut self) {
        if let Some(commit) = self.commits.pop_front() {
            self.bytes -= commit.size();
        }
    }
}

impl Commit {
    fn size(&self) -> usize {
        self.events.iter().map(Event::size).sum()
    }
}

/// Gives way to other tasks a varying number of times. Not random: a seed repeats a run.
struct Drowsy {
    state: u64,
}

impl Drowsy {
    async fn nod(&mut self) {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        for _ in 0..(self.state >> 61) {
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(revision: u64, key: &str) -> Arc<Commit> {
        let key = Key::parse(key).unwrap();
        Arc::new(Commit { revision, events: vec![Event::Delete { key, revision }] })
    }
    fn revisions(found: Result<Vec<Arc<Commit>>, u64>) -> Result<Vec<u64>, u64> {
        found.map(|commits| commits.iter().map(|commit| commit.revision).collect())
    }

    #[test]
    fn the_ring_holds_what_fits_and_says_what_is_gone() {
        let hub = Hub::new(10, Room { commits: 3, bytes: 1 << 20 });
        assert_eq!(revisions(hub.after(10, 9)), Ok(vec![]));
        assert_eq!(revisions(hub.after(9, 9)), Err(11));
        hub.publish([commit(11, "a"), commit(12, "b")]);
        hub.publish([commit(12, "b"), commit(13, "c")]);
        assert_eq!(revisions(hub.after(10, 9)), Ok(vec![11, 12, 13]));
        assert_eq!(revisions(hub.after(11, 1)), Ok(vec![12]));
        hub.publish([commit(14, "d")]);
        assert_eq!(revisions(hub.after(10, 9)), Err(12));
        hub.publish([commit(20, "e")]);
        assert_eq!(revisions(hub.after(14, 9)), Err(20));
        assert_eq!(revisions(hub.after(19, 9)), Ok(vec![20]));
    }

    #[tokio::test]
    async fn a_store_that_went_back_ends_its_watches() {
        let hub = Arc::new(Hub::new(10, Room { commits: 9, bytes: 1 << 20 }));
        let start = || Watch::start(Arc::clone(&hub), CancellationToken::new(), None, vec![], 10);
        let (mut before, era) = (start().await.unwrap(), hub.era());
        assert_eq!(before.next().await, Some(Ok(Event::Init { revision: 10 })));
        hub.rewind(7);
        assert_eq!(before.next().await, Some(Err(WatchError::Ahead { current: 7 })));
        assert_eq!(before.next().await, None);
        let mut between = start().await.unwrap().since(era);
        assert_eq!(between.next().await, Some(Ok(Event::Init { revision: 10 })));
        assert_eq!(between.next().await, Some(Err(WatchError::Ahead { current: 7 })));
    }

    #[test]
    fn commits_are_added_early_only_without_a_gap() {
        let hub = Hub::new(10, Room { commits: 9, bytes: 1 << 20 });
        assert!(!hub.publish_next(vec![commit(12, "a")]) && !hub.publish_next(vec![commit(10, "a")]) && !hub.publish_next(vec![]));
        assert!(hub.publish_next(vec![commit(11, "a"), commit(12, "b")]));
        assert_eq!(revisions(hub.after(10, 9)), Ok(vec![11, 12]));
    }

    #[test]
    fn the_ring_is_bounded_in_bytes() {
        let hub = Hub::new(0, Room { commits: 100, bytes: 300 });
        hub.publish((1..=50).map(|revision| commit(revision, "key")));
        assert_eq!(revisions(hub.after(40, 99)), Err(49));
    }

    #[test]
    fn redundant_prefixes_are_merged() {
        let check = |given: &[&str], expected: &[&str]| {
            let keys = |texts: &[&str]| texts.iter().map(|text| Key::stored(text.as_bytes().to_vec())).collect::<Vec<_>>();
            assert_eq!(reduce(keys(given)), keys(expected));
        };
        check(&[], &[]);
        check(&["b/", "a/", "a/x/", "a/"], &["a/", "b/"]);
        check(&["b/", ""], &[""]);
    }
}
