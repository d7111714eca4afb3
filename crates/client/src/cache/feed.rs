//! The task that feeds the cache: follows the watch, resumes it by revision, and begins again only when it must.
//!
//! After a lost connection it asks for what it missed. It takes everything anew only when the server says that it cannot
//! tell (a snapshot), or when the server now serves a kind that it did not serve before (an upgraded Auth Service). While a
//! snapshot comes in, readers keep the old tables: they never see half of one.

use super::{Cache, tables::Tables};
use crate::api::{Api, Watch, WatchItem};
use net::{backoff::Backoff, shutdown::Shutdown};
use std::time::Duration;
use types::{Code, Document, Public, ResourceName};

/// Changes that are put in place together at most: what a burst of heartbeats brings while readers read.
const BATCH: usize = 512;

#[allow(clippy::large_enum_variant, reason = "nearly every change is a document")]
pub(super) enum Change {
    Put(Document),
    Delete { kind: String, name: ResourceName },
}

/// What the feed knows of the past.
struct Feed {
    cache: Cache,
    kinds: Vec<String>,
    /// Kinds whose every document was seen.
    have: Vec<String>,
    /// Resume here; 0 is from the beginning.
    revision: u64,
}

pub(super) async fn run(cache: Cache, api: Api, kinds: Vec<String>, seed: u64, shutdown: Shutdown) {
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30), seed);
    let mut feed = Feed { cache, kinds, have: Vec::new(), revision: 0 };
    loop {
        let error = tokio::select! {
            () = shutdown.stopping() => return,
            error = feed.follow(&api, &mut backoff) => error,
        };
        let wait = match error {
            Ended::Again => Duration::ZERO,
            Ended::Failed(error) => {
                let wait = backoff.next();
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

impl Feed {
    /// Follows one watch to its end.
    async fn follow(&mut self, api: &Api, backoff: &mut Backoff) -> Ended {
        match self.follow_to_error(api, backoff).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn follow_to_error(&mut self, api: &Api, backoff: &mut Backoff) -> Result<std::convert::Infallible, Ended> {
        let kinds: Vec<&str> = self.kinds.iter().map(String::as_str).collect();
        let mut watch = api.watch(&kinds, self.revision).await?;
        let (first, _) = watch.next().await?;
        let WatchItem::Init { confirmed, snapshot } = first else {
            return Err(Public::new(Code::Malformed, "the Auth Service began a watch without saying what it serves").into());
        };
        let late = confirmed.iter().any(|kind| !self.have.contains(kind));
        if !snapshot && late {
            self.revision = 0;
            self.have.clear();
            return Err(Ended::Again);
        }
        self.cache.0.feeding.send_modify(|feeding| {
            feeding.unserved = self.kinds.iter().filter(|kind| !confirmed.contains(kind)).cloned().collect();
        });
        if snapshot {
            self.take_all(&mut watch, &confirmed).await?;
        } else {
            self.catch_up(&mut watch).await?;
        }
        backoff.reset();
        self.cache.0.feeding.send_modify(|feeding| {
            (feeding.live, feeding.synced, feeding.error) = (true, true, None);
        });
        loop {
            self.change(&mut watch).await?;
        }
    }

    /// Everything that exists, put in place at once.
    async fn take_all(&mut self, watch: &mut Watch, confirmed: &[String]) -> Result<(), Public> {
        let mut fresh = Tables::new(self.cache.cluster());
        let mut skipped = 0u64;
        loop {
            let (item, revision) = watch.next().await?;
            let change = match item {
                WatchItem::Put(document) => Change::Put(document),
                WatchItem::Delete { kind, name } => Change::Delete { kind, name },
                WatchItem::Unreadable | WatchItem::Init { .. } => {
                    skipped = skipped.saturating_add(1);
                    continue;
                }
                WatchItem::Synced => {
                    self.cache.replace(fresh, confirmed, skipped);
                    self.have = confirmed.to_vec();
                    self.seen(revision);
                    return Ok(());
                }
            };
            let (_, unreadable) = fresh.apply(vec![change]);
            skipped = skipped.saturating_add(unreadable);
        }
    }

    /// What was missed since the revision.
    async fn catch_up(&mut self, watch: &mut Watch) -> Result<(), Public> {
        while !self.change(watch).await? {}
        Ok(())
    }

    /// Waits for a change and applies it with those that came along. True when the server said that all is told.
    async fn change(&mut self, watch: &mut Watch) -> Result<bool, Public> {
        let (mut changes, mut skipped, mut synced, mut last) = (Vec::new(), 0u64, false, 0);
        let mut next = Some(watch.next().await);
        let mut failed = None;
        while let Some(event) = next {
            match event {
                Ok((item, revision)) => {
                    last = last.max(revision);
                    match item {
                        WatchItem::Put(document) => changes.push(Change::Put(document)),
                        WatchItem::Delete { kind, name } => changes.push(Change::Delete { kind, name }),
                        WatchItem::Unreadable => skipped = skipped.saturating_add(1),
                        WatchItem::Synced => synced = true,
                        WatchItem::Init { .. } => {}
                    }
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            if changes.len() >= BATCH {
                break;
            }
            // Only what has arrived already.
            next = futures::FutureExt::now_or_never(watch.next());
        }
        if !changes.is_empty() || skipped > 0 {
            self.cache.apply(changes, skipped);
        }
        self.seen(last);
        failed.map_or(Ok(synced), Err)
    }

    fn seen(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
        self.cache.0.feeding.send_if_modified(|feeding| {
            let newer = feeding.revision != self.revision;
            feeding.revision = self.revision;
            newer
        });
    }
}
