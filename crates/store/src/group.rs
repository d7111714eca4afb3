//! What all drivers that store something share: groups of writes, and what a group comes to.
//!
//! One task or thread owns a handle's writes. It takes what is queued, asks its [`Engine`] to do it in one transaction, and answers
//! each request. An engine reads what the group [`Needs`], lets [`decide`] say what each request comes to, and writes exactly
//! that, in the same transaction. So the contract (fence, conditions, expiry, order of events) is decided here, once, without
//! a network or a disk, and an engine is only about getting it there whole or not at all. The other half is `request`.
//! (`memory` decides by itself: as long as the two agree in the conformance suite, both are right.)

use crate::batch::{fence, whole_millis};
use crate::request::Request;
use crate::watch::Commit;
use crate::{BatchError, CommitError, Committed, Event, Item, Key, MAX_CHANGES, Op, StoreError, WriterEpoch};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::mpsc;
use types::Time;

/// The most requests and the most bytes in one transaction.
const GROUP: usize = 256;
const GROUP_BYTES: usize = 8 << 20;

/// What one request comes to: its events, none when it changes nothing.
pub(crate) type Outcome = Result<Vec<Event>, CommitError>;

/// A group that was done. The first request with events has revision `base + 1`, the next one `base + 2`.
pub(crate) struct Written {
    pub(crate) base: u64,
    pub(crate) outcomes: Vec<Outcome>,
}

/// What writes a group.
pub(crate) trait Engine: Send + 'static {
    /// Whether the request may be in the same transaction as those gathered before it; the first always is.
    fn gather(&mut self, request: &Request, first: bool) -> bool;

    /// One transaction; an error is that of the whole group, of which nothing was written unless it is [`CommitError::Ambiguous`].
    fn write<'a>(&'a mut self, group: &'a [Request]) -> BoxFuture<'a, Result<Written, CommitError>>;

    /// Between groups: house-keeping.
    fn rest(&mut self) -> BoxFuture<'_, ()>;

    /// Whether each of a group that failed so is tried by itself: what is too much together may fit alone.
    fn alone(&self, error: &CommitError) -> bool {
        matches!(error, CommitError::Invalid(_) | CommitError::Store(StoreError::Full { .. }))
    }
}

/// Until closed, or until all handles are gone.
pub(crate) async fn run(mut engine: impl Engine, mut queue: mpsc::Receiver<Request>) {
    let mut held = None;
    loop {
        let first = match held.take() {
            Some(request) => request,
            None => match queue.recv().await {
                Some(request) => request,
                None => return,
            },
        };
        engine.gather(&first, true);
        let mut group = vec![first];
        let mut bytes = group.iter().map(Request::size).sum::<usize>();
        while held.is_none() && group.len() < GROUP && bytes < GROUP_BYTES {
            let Ok(next) = queue.try_recv() else { break };
            if group.first().is_some_and(Request::social) && next.social() && engine.gather(&next, false) {
                bytes += next.size();
                group.push(next);
            } else {
                held = Some(next);
            }
        }
        if let Some(Request::Close { .. }) = group.first() {
            // Whatever it holds open is gone when the answer comes.
            drop(engine);
            return close(queue, group, held);
        }
        write(&mut engine, group).await;
        engine.rest().await;
    }
}

fn close(mut queue: mpsc::Receiver<Request>, group: Vec<Request>, held: Option<Request>) {
    queue.close();
    let closed = || Err(StoreError::Closed.into());
    held.into_iter().for_each(|request| request.answer(closed(), 0));
    while let Ok(request) = queue.try_recv() {
        request.answer(closed(), 0);
    }
    group.into_iter().for_each(|request| request.answer(closed(), 0));
}

/// Does a group and answers it; what is too much together is tried one by one.
async fn write(engine: &mut impl Engine, group: Vec<Request>) {
    match engine.write(&group).await {
        Ok(written) => {
            let mut revision = written.base;
            for (request, outcome) in group.into_iter().zip(written.outcomes) {
                match outcome {
                    Ok(events) => {
                        revision += u64::from(!events.is_empty());
                        request.answer(Ok(Committed { revision }), events.len());
                    }
                    Err(error) => request.answer(Err(error), 0),
                }
            }
        }
        Err(error) if group.len() > 1 && engine.alone(&error) => {
            for request in group {
                Box::pin(write(engine, vec![request])).await;
            }
        }
        Err(error) => group.into_iter().for_each(|request| request.answer(Err(error.clone()), 0)),
    }
}

/// What an engine must read before a group can be decided.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Needs {
    /// The control record.
    pub(crate) fence: bool,
    /// Revision and expiry.
    pub(crate) heads: BTreeSet<Key>,
    /// Only whether it is there; not in `heads` too.
    pub(crate) names: BTreeSet<Key>,
    /// With the value; in neither of the others.
    pub(crate) whole: BTreeSet<Key>,
    /// The names of what is in them.
    pub(crate) ranges: Vec<(Key, Key)>,
    /// What has expired.
    pub(crate) due: bool,
}

impl Needs {
    pub(crate) fn of(group: &[Request]) -> Self {
        let mut needs = Self::default();
        for request in group {
            needs.fence |= request.writer().is_some();
            match request {
                Request::Commit { batch, .. } => {
                    needs.heads.extend(batch.conditions.iter().map(|condition| condition.key().clone()));
                    for op in &batch.ops {
                        match op {
                            Op::Put { .. } => {}
                            Op::Delete { key } => drop(needs.names.insert(key.clone())),
                            Op::DeleteRange { from, to } => needs.ranges.push((from.clone(), to.clone())),
                        }
                    }
                }
                Request::KeepAlive { key, .. } => drop(needs.whole.insert(key.clone())),
                Request::Expire { .. } => needs.due = true,
                Request::Close { .. } => {}
            }
        }
        let Self { heads, names, whole, .. } = &mut needs;
        heads.retain(|key| !whole.contains(key));
        names.retain(|key| !whole.contains(key) && !heads.contains(key));
        needs
    }

    /// Whether nothing but the fence must be known.
    pub(crate) fn nothing(&self) -> bool {
        self.heads.is_empty() && self.names.is_empty() && self.whole.is_empty() && self.ranges.is_empty() && !self.due
    }
}

/// What is stored under a key, expired or not.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// 0 when only its name was read.
    pub(crate) revision: u64,
    pub(crate) expires: Option<Time>,
    /// Only if it was read whole.
    pub(crate) value: Option<Bytes>,
}

/// What an engine read.
#[derive(Clone, Default)]
pub(crate) struct Known {
    /// The bytes of the control record.
    pub(crate) control: Option<Bytes>,
    pub(crate) rows: BTreeMap<Key, Row>,
    /// Keys that have expired, in the order of their expiry.
    pub(crate) due: Vec<Key>,
}

/// What each request of a group comes to, one after another, upon a store at revision `base`.
pub(crate) fn decide(group: &[Request], mut known: Known, base: u64, now: Time) -> Vec<Outcome> {
    let mut revision = base;
    group
        .iter()
        .map(|request| {
            let outcome = known.one(request, revision + 1, now);
            if let Ok(events) = &outcome {
                revision += u64::from(!events.is_empty());
                known.apply(events);
            }
            outcome
        })
        .collect()
}

/// The commits of a group, for watchers.
pub(crate) fn commits(outcomes: &[Outcome]) -> Vec<Arc<Commit>> {
    let done = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok());
    done.filter_map(|events| Some(Arc::new(Commit { revision: events.first()?.revision(), events: events.clone() }))).collect()
}

impl Known {
    fn one(&self, request: &Request, revision: u64, now: Time) -> Outcome {
        self.admit(request.writer())?;
        match request {
            Request::Commit { batch, .. } => {
                for condition in &batch.conditions {
                    let live = self.live(condition.key(), now).map(|row| row.revision);
                    if !condition.holds(live) {
                        return Err(CommitError::Conflict { key: condition.key().clone() });
                    }
                }
                self.plan(&batch.ops, revision)
            }
            Request::KeepAlive { key, revision: wanted, expires, .. } => {
                let Some(row) = self.live(key, now) else { return Err(CommitError::NotFound { key: key.clone() }) };
                if wanted.is_some_and(|wanted| wanted != row.revision) {
                    return Err(CommitError::Conflict { key: key.clone() });
                }
                let value = row.value.clone().unwrap_or_default();
                Ok(vec![Event::Put(Item { key: key.clone(), value, revision, expires: Some(whole_millis(*expires)) })])
            }
            Request::Expire { .. } => {
                let due = self.due.iter().filter(|key| self.rows.get(*key).is_some_and(|row| !row.lives(now)));
                Ok(due.map(|key| Event::Delete { key: key.clone(), revision }).collect())
            }
            Request::Close { .. } => Ok(Vec::new()),
        }
    }

    fn live(&self, key: &Key, now: Time) -> Option<&Row> {
        self.rows.get(key).filter(|row| row.lives(now))
    }

    /// Refuses a fenced writer (design 3.4).
    fn admit(&self, writer: Option<WriterEpoch>) -> Result<(), CommitError> {
        let (Some(WriterEpoch(epoch)), Some(control)) = (writer, &self.control) else { return Ok(()) };
        let min = fence(control)?;
        if epoch < min { Err(CommitError::Fenced { min }) } else { Ok(()) }
    }

    fn plan(&self, ops: &[Op], revision: u64) -> Outcome {
        let mut events = Vec::new();
        for op in ops {
            match op {
                Op::Put { key, value, expires } => {
                    let expires = expires.map(whole_millis);
                    events.push(Event::Put(Item { key: key.clone(), value: value.clone(), revision, expires }));
                }
                Op::Delete { key } if self.rows.contains_key(key) => events.push(Event::Delete { key: key.clone(), revision }),
                Op::Delete { .. } => {}
                Op::DeleteRange { from, to } => {
                    let keys = self.rows.range(from.clone()..to.clone());
                    events.extend(keys.map(|(key, _)| Event::Delete { key: key.clone(), revision }));
                }
            }
            if events.len() > MAX_CHANGES {
                return Err(BatchError::TooManyChanges.into());
            }
        }
        Ok(events)
    }

    /// Later requests of the group see what earlier ones did.
    fn apply(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Init { .. } => {}
                Event::Put(item) => {
                    if item.key == Key::control() {
                        self.control = Some(item.value.clone());
                    }
                    let row = Row { revision: item.revision, expires: item.expires, value: Some(item.value.clone()) };
                    self.rows.insert(item.key.clone(), row);
                }
                Event::Delete { key, .. } => drop(self.rows.remove(key)),
            }
        }
    }
}

impl Row {
    fn lives(&self, now: Time) -> bool {
        self.expires.is_none_or(|expires| expires > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Condition};
    use tokio::sync::oneshot;

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }
    fn commit(batch: Batch) -> Request {
        Request::Commit { batch, reply: oneshot::channel().0 }
    }
    fn keep(at: &str) -> Request {
        Request::KeepAlive { key: key(at), revision: None, expires: Time::EPOCH, writer: None, reply: oneshot::channel().0 }
    }

    #[test]
    fn a_key_is_read_once_and_in_the_fullest_way_that_is_needed() {
        let all = ["a", "b", "c"].iter().fold(Batch::new(None), |batch, at| batch.delete(key(at)));
        let group = [commit(all.require(Condition::Exists(key("a"))).require(Condition::Exists(key("b")))), keep("a")];
        let set = |at: &str| BTreeSet::from([key(at)]);
        let expected = Needs { heads: set("b"), names: set("c"), whole: set("a"), ..Needs::default() };
        assert_eq!(Needs::of(&group), expected);
        assert!(Needs::of(&[commit(Batch::new(Some(WriterEpoch(1))).put(key("a"), "", None))]).nothing());
    }

    #[test]
    fn later_requests_of_a_group_see_earlier_ones() {
        let put = |at: &str| Batch::new(None).require(Condition::Absent(key(at))).put(key(at), "v", None);
        let group = [
            commit(put("a")),
            commit(put("a")),
            commit(Batch::new(None).require(Condition::RevisionIs(key("a"), 8)).delete(key("a"))),
            commit(Batch::new(None).delete(key("a"))),
            commit(put("a")),
        ];
        let revisions: Vec<_> = decide(&group, Known::default(), 7, Time::EPOCH)
            .into_iter()
            .map(|outcome| outcome.map(|events| events.first().map(Event::revision)))
            .collect();
        assert_eq!(revisions, [Ok(Some(8)), Err(CommitError::Conflict { key: key("a") }), Ok(Some(9)), Ok(None), Ok(Some(10))]);
    }

    #[test]
    fn a_fence_set_in_a_group_holds_for_the_rest_of_it() {
        let by = |epoch: u64| Batch::new(Some(WriterEpoch(epoch)));
        let group = [
            commit(by(1).put(key("a"), "", None)),
            commit(by(1).put(Key::control(), r#"{"min_writer_epoch":2}"#, None)),
            commit(by(1).put(key("a"), "", None)),
            commit(by(2).put(key("a"), "", None)),
        ];
        let outcomes = decide(&group, Known::default(), 0, Time::EPOCH);
        assert!(outcomes[0].is_ok() && outcomes[1].is_ok() && outcomes[3].is_ok());
        assert_eq!(outcomes[2], Err(CommitError::Fenced { min: 2 }));
    }
}
