//! The task that feeds the cache: follows the watch, and resumes it kind by kind.
//!
//! After a lost connection it asks of each kind for what it missed. The server says which kinds it must tell from the beginning: those
//! that it did not serve before, those of which it no longer knows what was deleted. Only these are taken anew; the others go on
//! from where they were. While a kind comes in whole, readers keep its old table: they never see half of one. All caches of a lost
//! Auth Service come back at moments of their own ([`SPREAD`]).

use super::{Cache, tables::Tables};
use crate::api::{Api, Watch, WatchItem};
use net::{backoff::Backoff, shutdown::Shutdown};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use types::{Code, Document, Public, ResourceName};

/// Changes that are put in place together at most: what a burst of heartbeats brings while readers read.
const BATCH: usize = 512;
/// The first attempt after a watch was lost is anywhere within this: an Auth Service that stops must not meet its whole fleet at
/// its next start, or another one that of a peer, in one moment. After that the back-off spreads them wider.
const SPREAD: Duration = Duration::from_secs(2);

#[allow(clippy::large_enum_variant, reason = "nearly every change is a document")]
pub(super) enum Change {
    Put(Document),
    Delete { kind: String, name: ResourceName },
}

impl Change {
    fn kind(&self) -> &str {
        match self {
            Self::Put(document) => &document.kind,
            Self::Delete { kind, .. } => kind,
        }
    }
}

/// What the feed knows of the past.
struct Feed {
    cache: Cache,
    kinds: Vec<String>,
    /// Kinds whose every document was seen, and up to which revision.
    have: BTreeMap<String, u64>,
    /// Those that the present watch tells.
    told: BTreeSet<String>,
    backoff: Backoff,
    random: SmallRng,
}

pub(super) async fn run(cache: Cache, api: Api, kinds: Vec<String>, seed: u64, shutdown: Shutdown) {
    let backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30), seed);
    let random = SmallRng::seed_from_u64(seed);
    let mut feed = Feed { cache, kinds, have: BTreeMap::new(), told: BTreeSet::new(), backoff, random };
    loop {
        let (was_live, ended) = tokio::select! {
            () = shutdown.stopping() => return,
            ended = feed.follow(&api) => ended,
        };
        let wait = match ended {
            Ended::Again => Duration::ZERO,
            Ended::Failed(error) => {
                let wait = if was_live { feed.random.random_range(Duration::ZERO..=SPREAD) } else { feed.backoff.next() };
                tracing::warn!(%error, ?wait, "the cache is not being fed; it keeps what it has");
                feed.cache.0.feeding.send_modify(|feeding| {
                    feeding.live = false;
                    feeding.error = Some(error);
                });
                wait
            }
        };
        tokio::select! {
            () = shutdown.stopping() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

enum Ended {
    /// Start over at once: there is a kind to be fetched.
    Again,
    Failed(Public),
}
impl From<Public> for Ended {
    fn from(error: Public) -> Self {
        Self::Failed(error)
    }
}

/// What came in together.
#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    /// Documents and events that cannot be read here.
    skipped: u64,
    /// The server said that all is told.
    synced: bool,
    revision: u64,
}

impl Feed {
    /// Follows one watch to its end. Says whether it was live.
    async fn follow(&mut self, api: &Api) -> (bool, Ended) {
        let mut watch = match self.begin(api).await {
            Ok(watch) => watch,
            Err(ended) => return (false, ended),
        };
        self.backoff.reset();
        self.cache.0.feeding.send_modify(|feeding| {
            (feeding.live, feeding.synced, feeding.error) = (true, true, None);
        });
        loop {
            let (batch, ended) = gather(&mut watch).await;
            self.apply(batch);
            if let Some(error) = ended {
                return (true, error.into());
            }
        }
    }

    /// Begins a watch where each kind stopped, up to the moment when all is told.
    async fn begin(&mut self, api: &Api) -> Result<Watch, Ended> {
        let kinds: Vec<&str> = self.kinds.iter().map(String::as_str).collect();
        let mut watch = api.watch_from(&kinds, &self.have).await?;
        let (first, _) = watch.next().await?;
        let WatchItem::Init { confirmed, snapshot, anew } = first else {
            return Err(Public::new(Code::Malformed, "the Auth Service began a watch without saying what it serves").into());
        };
        let anew: BTreeSet<String> = if snapshot { confirmed.iter().cloned().collect() } else { anew.into_iter().collect() };
        // A server that does not know how to begin with a part: everything, then.
        if confirmed.iter().any(|kind| !self.have.contains_key(kind) && !anew.contains(kind)) {
            self.have.clear();
            return Err(Ended::Again);
        }
        self.cache.0.feeding.send_modify(|feeding| {
            feeding.unserved = self.kinds.iter().filter(|kind| !confirmed.contains(kind)).cloned().collect();
        });
        self.told = confirmed.into_iter().collect();
        self.catch_up(&mut watch, &anew).await?;
        Ok(watch)
    }

    /// What was missed, and all of the kinds that begin anew: those are put in place at once, at the end.
    async fn catch_up(&mut self, watch: &mut Watch, anew: &BTreeSet<String>) -> Result<(), Public> {
        let mut fresh = Tables::new(self.cache.cluster());
        let mut unreadable = 0_u64;
        loop {
            let (mut batch, ended) = gather(watch).await;
            let (of_new, others) = batch.changes.into_iter().partition(|change| anew.contains(change.kind()));
            batch.changes = others;
            let (_, bad) = fresh.apply(of_new);
            unreadable = unreadable.saturating_add(bad);
            let (synced, revision) = (batch.synced, batch.revision);
            // Nothing is reached before everything is told.
            self.apply(Batch { revision: 0, ..batch });
            if synced {
                let anew: Vec<String> = anew.iter().cloned().collect();
                if !anew.is_empty() {
                    self.cache.replace(fresh, &anew, unreadable);
                    self.have.extend(anew.into_iter().map(|kind| (kind, revision)));
                }
                self.seen(revision);
                return Ok(());
            }
            if let Some(error) = ended {
                return Err(error);
            }
        }
    }

    fn apply(&mut self, batch: Batch) {
        if !batch.changes.is_empty() || batch.skipped > 0 {
            self.cache.apply(batch.changes, batch.skipped);
        }
        self.seen(batch.revision);
    }

    fn seen(&mut self, revision: u64) {
        if revision == 0 {
            return;
        }
        for (kind, have) in &mut self.have {
            if self.told.contains(kind) {
                *have = revision.max(*have);
            }
        }
        self.cache.0.feeding.send_if_modified(|feeding| {
            let newer = feeding.revision < revision;
            feeding.revision = feeding.revision.max(revision);
            newer
        });
    }
}

/// Waits for an event and takes those that came along; and why it was the last.
async fn gather(watch: &mut Watch) -> (Batch, Option<Public>) {
    let mut batch = Batch::default();
    let mut next = Some(watch.next().await);
    while let Some(event) = next {
        match event {
            Ok((item, revision)) => {
                batch.revision = batch.revision.max(revision);
                match item {
                    WatchItem::Put(document) => batch.changes.push(Change::Put(document)),
                    WatchItem::Delete { kind, name } => batch.changes.push(Change::Delete { kind, name }),
                    WatchItem::Unreadable => batch.skipped = batch.skipped.saturating_add(1),
                    WatchItem::Synced => batch.synced = true,
                    WatchItem::Init { .. } => {}
                }
            }
            Err(error) => return (batch, Some(error)),
        }
        if batch.synced || batch.changes.len() >= BATCH {
            break;
        }
        // Only what has arrived already.
        next = futures::FutureExt::now_or_never(watch.next());
    }
    (batch, None)
}
