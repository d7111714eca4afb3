//! Finds old commits: where in etcd's own history a revision of the store is, and the events from there on.
//!
//! `head` read at a revision of etcd says the store's revision then, so the place is found by halving. etcd forgets what was
//! compacted: that `head` can be read just before the place also shows that everything from the place on is still there, deletions too.

use super::client::{Answers, Fault, What};
use super::layout::{Head, deal, parse_item};
use super::proto::{RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest, WatchResponse};
use super::reader::{RANGE, Reader, get};
use crate::remote::Patience;
use crate::watch::{Commit, History};
use crate::{Item, Key, StoreError, WatchError};
use futures::future::{BoxFuture, FutureExt};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// For a stream that certainly has something to say.
const SILENCE: Duration = Duration::from_secs(8);

/// The history as one watch reads it: it remembers where it is.
pub(super) struct Past {
    reader: Arc<Reader>,
    /// A revision of the store and etcd's of the transaction that ended with it.
    position: Mutex<Option<(u64, i64)>>,
}

impl Past {
    pub(super) fn new(reader: Arc<Reader>) -> Self {
        Self { reader, position: Mutex::new(None) }
    }

    async fn commits(&self, after: u64, most: usize) -> Result<Vec<Arc<Commit>>, WatchError> {
        let newest = self.reader.head().await?;
        if newest.revision <= after {
            return Ok(Vec::new());
        }
        let known = *self.position.lock().unwrap_or_else(PoisonError::into_inner);
        let start = match known {
            Some((revision, at)) if revision == after => at + 1,
            _ => self.reader.locate(after, &newest).await?,
        };
        let mut found = Vec::new();
        let mut stream = match Stream::open(&self.reader, start).await {
            Ok(stream) => stream,
            Err(fault) => return Err(self.reader.gone(fault, &newest)),
        };
        let mut last = None;
        while found.len() < most && last.is_none_or(|(revision, _)| revision < newest.revision) {
            let next = tokio::time::timeout(SILENCE, stream.next(&self.reader)).await;
            let (head, commits) = match next {
                Ok(Ok(next)) => next,
                Ok(Err(fault)) => return Err(self.reader.gone(fault, &newest)),
                Err(_) => {
                    let place = self.reader.client.place().into();
                    return Err(StoreError::Unreachable { place, detail: "etcd's watch is silent".into() }.into());
                }
            };
            last = Some((head.revision, head.at));
            found.extend(commits.into_iter().filter(|commit| commit.revision > after).map(Arc::new));
        }
        if found.first().is_some_and(|first| first.revision != after + 1) {
            return Err(WatchError::Lagged { oldest: found.first().map_or(0, |first| first.revision) });
        }
        *self.position.lock().unwrap_or_else(PoisonError::into_inner) = last;
        Ok(found)
    }
}

impl History for Past {
    fn after(&self, revision: u64, most: usize) -> BoxFuture<'_, Result<Vec<Arc<Commit>>, WatchError>> {
        async move {
            let mut patience = Patience::new(self.reader.patience);
            loop {
                match self.commits(revision, most).await {
                    Err(WatchError::Store(StoreError::Unreachable { .. })) if patience.again(&self.reader.closed).await => {}
                    _ if self.reader.closed.is_cancelled() => return Err(WatchError::Store(StoreError::Closed)),
                    done => return done,
                }
            }
        }
        .boxed()
    }
}

impl Reader {
    /// `head` as it was at a revision of etcd; `None` before it was made.
    pub(super) async fn head_at(&self, at: i64) -> Result<Option<Head>, Fault> {
        let answer: RangeResponse = self.read(RANGE, RangeRequest { revision: at, ..get(self.layout.head()) }).await?;
        if answer.kvs.is_empty() {
            return Ok(None);
        }
        self.parse_head(&answer.kvs).map(Some).map_err(|error| Fault { what: What::Store(error), sure: true })
    }

    /// The first revision of etcd at which the store was past `after`.
    async fn locate(&self, after: u64, newest: &Head) -> Result<i64, WatchError> {
        // `high` is past it; `low` is not, or can no longer be read.
        let (mut low, mut high, mut oldest) = (0, newest.at, newest.revision);
        let mut readable = false;
        // Most stores have one commit per revision of etcd, or nearly.
        let mut guess = high - i64::try_from(newest.revision - after).unwrap_or(high);
        while high - low > 1 {
            let middle = if guess > low && guess < high { guess } else { low + (high - low) / 2 };
            guess = 0;
            match self.head_at(middle).await {
                Ok(Some(head)) if head.revision > after => (high, oldest) = (head.at, head.revision),
                Ok(Some(_)) => (low, readable) = (middle, true),
                Ok(None) | Err(Fault { what: What::Compacted, .. }) => (low, readable) = (middle, false),
                Err(fault) => return Err(self.named(fault).into()),
            }
        }
        if readable { Ok(high) } else { Err(WatchError::Lagged { oldest: oldest + 1 }) }
    }

    /// What a watch that cannot go on says.
    fn gone(&self, fault: Fault, newest: &Head) -> WatchError {
        match fault.what {
            What::Compacted => WatchError::Lagged { oldest: newest.revision + 1 },
            _ => self.named(fault).into(),
        }
    }

    /// The transaction that first changed `head` after that revision of etcd, which somebody has.
    pub(super) async fn successor(&self, at: i64) -> Result<[u8; 16], Fault> {
        let mut stream = Stream::of_head(self, at + 1).await?;
        match tokio::time::timeout(SILENCE, stream.next_head(self)).await {
            Ok(found) => found.map(|head| head.name),
            Err(_) => {
                let place = self.client.place().into();
                Err(Fault { what: What::Store(StoreError::Unreachable { place, detail: "etcd's watch is silent".into() }), sure: true })
            }
        }
    }
}

/// A watch of etcd, put together again into transactions.
pub(super) struct Stream {
    answers: Answers<WatchResponse>,
    /// Received and not yet looked at.
    waiting: VecDeque<super::proto::Event>,
    /// Of the transaction that is being received.
    items: Vec<(i64, Key, Option<Item>)>,
}

impl Stream {
    /// All transactions of the store from a revision of etcd on.
    pub(super) async fn open(reader: &Reader, start: i64) -> Result<Self, Fault> {
        let (key, range_end) = reader.layout.watched();
        Self::start(reader, WatchCreateRequest { key, range_end, start_revision: start, fragment: true }).await
    }

    async fn of_head(reader: &Reader, start: i64) -> Result<Self, Fault> {
        let create = WatchCreateRequest { key: reader.layout.head(), range_end: Vec::new(), start_revision: start, fragment: true };
        Self::start(reader, create).await
    }

    async fn start(reader: &Reader, create: WatchCreateRequest) -> Result<Self, Fault> {
        let answers = reader.client.stream(WATCH, WatchRequest { create_request: Some(create) }).await?;
        Ok(Self { answers, waiting: VecDeque::new(), items: Vec::new() })
    }

    async fn event(&mut self, reader: &Reader) -> Result<super::proto::Event, Fault> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(event);
            }
            let answer = reader.client.next(&mut self.answers).await?;
            if answer.compact_revision != 0 {
                return Err(Fault { what: What::Compacted, sure: true });
            }
            if answer.canceled {
                let place = reader.client.place().to_owned();
                let detail = format!("etcd ended the watch: {}", answer.cancel_reason);
                let refused = answer.cancel_reason.contains("permission denied");
                let error = if refused { StoreError::Refused { place, detail } } else { StoreError::Unreachable { place, detail } };
                return Err(Fault { what: What::Store(error), sure: true });
            }
            self.waiting.extend(answer.events);
        }
    }

    async fn next_head(&mut self, reader: &Reader) -> Result<Head, Fault> {
        let event = self.event(reader).await?;
        let unreadable = |error| Fault { what: What::Store(error), sure: true };
        reader.parse_head(&event.kv.into_iter().collect::<Vec<_>>()).map_err(unreadable)
    }

    /// The next transaction. Events that came without one (somebody wrote by hand) are passed over; a transaction that lacks some
    /// was compacted. Nothing is lost if it is dropped half way.
    pub(super) async fn next(&mut self, reader: &Reader) -> Result<(Head, Vec<Commit>), Fault> {
        let broken = |error| Fault { what: What::Store(error), sure: true };
        let name = reader.layout.head();
        loop {
            let event = self.event(reader).await?;
            let Some(kv) = event.kv else { continue };
            if kv.key.as_ref() == name.as_slice() {
                let head = reader.parse_head(if event.kind == 0 { std::slice::from_ref(&kv) } else { &[] }).map_err(broken)?;
                let items = std::mem::take(&mut self.items);
                let ours = items.into_iter().filter(|(at, ..)| *at == kv.mod_revision).map(|(_, key, item)| (key, item)).collect();
                let commits = deal(&head, ours).ok_or(Fault { what: What::Compacted, sure: true })?;
                return Ok((head, commits));
            }
            let Some(key) = reader.layout.key(&kv.key) else { continue };
            let item = match event.kind {
                0 => Some(parse_item(key.clone(), &kv.value).map_err(|why| broken(reader.unreadable(&why)))?),
                _ => None,
            };
            self.items.push((kv.mod_revision, key, item));
        }
    }
}
