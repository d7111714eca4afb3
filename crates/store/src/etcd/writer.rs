//! The transaction: read what the group needs, decide, and put everything if `head` and the control record are still as they were.
//!
//! A group that needs to know nothing but the fence is decided on what the last transaction left behind, in one round trip. When the
//! comparison fails, somebody else wrote: everything is read again. When the answer is lost, `head` tells: while it is unchanged the
//! transaction may still come, so it is shut out by changing `head`; once it was changed, the name on the change tells who did it.

use super::client::{Fault, What};
use super::layout::{Head, item_bytes};
use super::proto::{Ask, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse};
use super::reader::{Reader, TXN, get};
use crate::group::{Engine, Known, Needs, Outcome, Row, Written, decide};
use crate::remote::Patience;
use crate::request::{EXPIRE_AT_ONCE, Request};
use crate::{BatchError, Clock, CommitError, Event, Key, MAX_CHANGES, MAX_REQUEST, Op, StoreError};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use rand::RngExt as _;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use types::Time;

/// Whole items read at once: of the largest size they still fit an answer.
const WHOLE: usize = 64;
/// Operations in a nested transaction; etcd counts at most 128 on the way from the top to any of them.
const NEST: usize = 100;
/// Operations in a group: they nest in one level.
const GROUP_OPS: usize = 1000;
/// Names listed at once.
const NAMES: i64 = 10_000;

pub(super) struct Writer {
    reader: Arc<Reader>,
    clock: Arc<dyn Clock>,
    /// What the last transaction left behind, if it was ours.
    left: Option<Base>,
    gathered: Gathered,
}

/// What a transaction is decided on and compared with.
#[derive(Clone)]
struct Base {
    head: Head,
    /// The control record and etcd's revision of it, 0 when it is absent. Only if it was read.
    control: Option<(Option<Bytes>, i64)>,
}

/// What became of a transaction whose answer was lost.
enum Fate {
    Done,
    NotDone,
    Unknown,
}

impl Writer {
    pub(super) fn new(reader: Arc<Reader>, clock: Arc<dyn Clock>) -> Self {
        Self { reader, clock, left: None, gathered: Gathered::default() }
    }

    async fn group(&mut self, group: &[Request]) -> Result<Written, CommitError> {
        let needs = Needs::of(group);
        let mut patience = Patience::new(self.reader.patience);
        let place = self.reader.client.place().to_owned();
        loop {
            let left = self.left.take().filter(|base| needs.nothing() && (base.control.is_some() || !needs.fence));
            let fresh = left.is_none();
            let now = self.clock.now();
            let (base, known) = match left {
                Some(base) => {
                    let control = base.control.clone().and_then(|(bytes, _)| bytes);
                    (base, Known { control, ..Known::default() })
                }
                None => match self.known(&needs, now).await {
                    Ok(read) => read,
                    Err(fault) if fault.passes() && patience.again(&self.reader.closed).await => continue,
                    Err(fault) => return Err(fault.store(&place).into()),
                },
            };
            let outcomes = decide(group, known.clone(), base.head.revision, now);
            // A refusal, or a revision for what changed nothing, is not given on old knowledge.
            if !fresh && !outcomes.iter().all(|outcome| outcome.as_ref().is_ok_and(|events| !events.is_empty())) {
                continue;
            }
            let written = Written { base: base.head.revision, outcomes };
            if written.outcomes.iter().flatten().all(Vec::is_empty) {
                self.left = Some(base);
                return Ok(written);
            }
            let (head, txn) = self.transaction(group, &base, &known, &written.outcomes);
            let asked: Result<TxnResponse, Fault> = self.reader.client.call(TXN, txn).await;
            let fault = match asked {
                Ok(answer) if answer.succeeded => {
                    self.leave(base, head, answer.header.unwrap_or_default().revision, &written.outcomes);
                    return Ok(written);
                }
                // Somebody else was first.
                Ok(_) if patience.soon(&self.reader.closed).await => continue,
                Ok(_) => return Err(StoreError::Busy { place }.into()),
                Err(fault) => fault,
            };
            match fault.what {
                What::TooLarge => return Err(BatchError::TooLarge(group.iter().map(Request::size).sum()).into()),
                _ if !fault.sure => match self.fate(&base.head, &head.name, &fault, &mut patience).await {
                    Fate::Done => return Ok(written),
                    Fate::NotDone if fault.passes() && patience.again(&self.reader.closed).await => {}
                    Fate::NotDone => return Err(fault.store(&place).into()),
                    Fate::Unknown => return Err(CommitError::Ambiguous(fault.store(&place).to_string())),
                },
                _ if fault.passes() && patience.again(&self.reader.closed).await => {}
                _ => return Err(fault.store(&place).into()),
            }
        }
    }

    /// Remembers what is there now, for the next group.
    fn leave(&mut self, base: Base, head: Head, at: i64, outcomes: &[Outcome]) {
        let mut control = base.control;
        for event in outcomes.iter().flatten().flatten() {
            if let Event::Put(item) = event
                && item.key == Key::control()
            {
                control = Some((Some(item.value.clone()), at));
            }
        }
        self.left = Some(Base { head: Head { at, ..head }, control });
    }

    /// Reads `head` first: whatever changes after it makes the comparison fail, so the rest may be read piece by piece.
    async fn known(&self, needs: &Needs, now: Time) -> Result<(Base, Known), Fault> {
        let reader = &self.reader;
        let broken = |error| Fault { what: What::Store(error), sure: true };
        let mut first = vec![get(reader.layout.head())];
        if needs.fence {
            first.push(get(reader.layout.item(&Key::control())));
        }
        let (_, answers) = reader.ranges(first).await?;
        let mut answers = answers.into_iter();
        let head = reader.parse_head(&answers.next().unwrap_or_default().kvs).map_err(broken)?;
        let mut known = Known::default();
        let mut base = Base { head, control: None };
        if let Some(answer) = answers.next() {
            let found = answer.kvs.first().map(|kv| Ok((reader.parse_item(kv)?.value, kv.mod_revision))).transpose().map_err(broken)?;
            known.control = found.as_ref().map(|(bytes, _)| bytes.clone());
            base.control = Some((known.control.clone(), found.map_or(0, |(_, at)| at)));
        }
        let whole: Vec<&Key> = needs.heads.iter().chain(&needs.whole).collect();
        self.rows(&mut known, &whole, false).await?;
        self.rows(&mut known, &needs.names.iter().collect::<Vec<_>>(), true).await?;
        for (from, to) in &needs.ranges {
            self.names(&mut known, from, to).await?;
        }
        if needs.due {
            known.due = self.due(&mut known, &base.head, now).await?;
        }
        Ok((base, known))
    }

    async fn rows(&self, known: &mut Known, keys: &[&Key], keys_only: bool) -> Result<(), Fault> {
        for some in keys.chunks(WHOLE) {
            let ranges = some.iter().map(|key| RangeRequest { keys_only, ..get(self.reader.layout.item(key)) }).collect();
            let (_, answers) = self.reader.ranges(ranges).await?;
            for (key, answer) in some.iter().zip(answers) {
                let Some(kv) = answer.kvs.first() else { continue };
                let row = if keys_only {
                    Row { revision: 0, expires: None, value: None }
                } else {
                    let item = self.reader.parse_item(kv).map_err(|error| Fault { what: What::Store(error), sure: true })?;
                    Row { revision: item.revision, expires: item.expires, value: Some(item.value) }
                };
                known.rows.insert((*key).clone(), row);
            }
        }
        Ok(())
    }

    /// What is in a range; more than may be deleted at once is not listed to its end.
    async fn names(&self, known: &mut Known, from: &Key, to: &Key) -> Result<(), Fault> {
        let (mut start, end) = (self.reader.layout.item(from), self.reader.layout.item(to));
        loop {
            let range = RangeRequest { key: start.clone(), range_end: end.clone(), limit: NAMES, keys_only: true, revision: 0 };
            let (_, mut answers) = self.reader.ranges(vec![range]).await?;
            let Some(answer) = answers.pop() else { return Ok(()) };
            for kv in &answer.kvs {
                start = [kv.key.as_ref(), &[0]].concat();
                if let Some(key) = self.reader.layout.key(&kv.key) {
                    known.rows.entry(key).or_insert(Row { revision: 0, expires: None, value: None });
                }
            }
            if !answer.more || answer.kvs.is_empty() || known.rows.len() > MAX_CHANGES {
                return Ok(());
            }
        }
    }

    /// What has expired. Entries whose items have another expiry by now are removed first: they hide what comes behind them.
    async fn due(&self, known: &mut Known, head: &Head, now: Time) -> Result<Vec<Key>, Fault> {
        let (key, range_end) = self.reader.layout.due_until(now);
        let most = i64::try_from(EXPIRE_AT_ONCE).unwrap_or(i64::MAX);
        loop {
            let range = RangeRequest { key: key.clone(), range_end: range_end.clone(), limit: most, keys_only: true, revision: 0 };
            let (_, answers) = self.reader.ranges(vec![range]).await?;
            let names: Vec<_> = answers.into_iter().flat_map(|answer| answer.kvs).map(|kv| kv.key).collect();
            let entries: Vec<_> = names.iter().filter_map(|name| Some((name, self.reader.layout.parse_due(name)?))).collect();
            let keys: BTreeSet<&Key> = entries.iter().map(|(_, (_, key))| key).collect();
            known.rows.clear();
            self.rows(known, &keys.into_iter().collect::<Vec<_>>(), false).await?;
            let (mut due, mut stale) = (Vec::new(), Vec::new());
            for (name, (expires, key)) in &entries {
                if known.rows.get(key).is_some_and(|row| row.expires == Some(*expires)) {
                    due.push(key.clone());
                } else {
                    stale.push(name.to_vec());
                }
            }
            if stale.is_empty() {
                return Ok(due);
            }
            let ops = stale.into_iter().map(|key| Ask::DeleteRange(DeleteRangeRequest { key, range_end: Vec::new() })).collect();
            let txn = TxnRequest { compare: vec![Compare::unchanged(self.reader.layout.head(), head.at)], success: nested(ops, None) };
            // Somebody wrote meanwhile: what is decided on this reading will be refused, and all is read again.
            let answer: TxnResponse = self.reader.client.call(TXN, txn).await?;
            if !answer.succeeded {
                return Ok(due);
            }
        }
    }

    /// The operations of a group in the order of its events, the entries of `due/`, and `head`.
    fn transaction(&self, group: &[Request], base: &Base, known: &Known, outcomes: &[Outcome]) -> (Head, TxnRequest) {
        let layout = &self.reader.layout;
        let mut compare = vec![Compare::unchanged(layout.head(), base.head.at)];
        if let Some((_, at)) = base.control {
            compare.push(Compare::unchanged(layout.item(&Key::control()), at));
        }
        let (mut ops, mut counts) = (Vec::new(), Vec::new());
        let (mut gone, mut entries) = (BTreeSet::new(), BTreeSet::new());
        for (request, events) in group.iter().zip(outcomes) {
            let Ok(events) = events else { continue };
            if events.is_empty() {
                continue;
            }
            counts.push(u32::try_from(events.len()).unwrap_or(u32::MAX));
            let ranges = ranges(request);
            let mut begun = None;
            for event in events {
                let Some(key) = event.key() else { continue };
                if let Some(expires) = known.rows.get(key).and_then(|row| row.expires) {
                    gone.insert(layout.due(expires, key));
                }
                match event {
                    Event::Put(item) => {
                        ops.push(Ask::Put(PutRequest { key: layout.item(key), value: item_bytes(item) }));
                        entries.extend(item.expires.map(|expires| layout.due(expires, key)));
                    }
                    Event::Delete { .. } => {
                        // A range goes in one operation, at its first event; etcd tells of it key by key, in order.
                        let range = ranges.range::<&Key, _>(..=key).next_back().filter(|(_, to)| key < *to);
                        let same = range.is_some() && begun == range.map(|(from, _)| *from);
                        begun = range.map(|(from, _)| *from);
                        match range {
                            Some(_) if same => {}
                            Some((from, to)) => ops.push(delete(layout.item(from), layout.item(to))),
                            None => ops.push(delete(layout.item(key), Vec::new())),
                        }
                    }
                    Event::Init { .. } => {}
                }
            }
        }
        ops.extend(gone.difference(&entries).map(|entry| delete(entry.clone(), Vec::new())));
        ops.extend(entries.into_iter().map(|key| Ask::Put(PutRequest { key, value: Vec::new() })));
        let revision = base.head.revision + u64::try_from(counts.len()).unwrap_or(0);
        let head = Head { revision, name: rand::rng().random(), counts, at: 0 };
        let last = Ask::Put(PutRequest { key: layout.head(), value: head.to_bytes() });
        (head, TxnRequest { compare, success: nested(ops, Some(last)) })
    }

    /// Finds out what became of a transaction, for as long as there is patience.
    async fn fate(&self, base: &Head, name: &[u8; 16], fault: &Fault, patience: &mut Patience) -> Fate {
        let refused = matches!(fault.what, What::Store(StoreError::Quota { .. }));
        loop {
            match self.look_up(base, name, refused).await {
                Ok(fate) => return fate,
                Err(Fault { what: What::Compacted, .. }) => return Fate::Unknown,
                Err(fault) => tracing::debug!(?fault, "could not look up a lost transaction yet"),
            }
            if !patience.again(&self.reader.closed).await {
                return Fate::Unknown;
            }
        }
    }

    /// With `refused`, etcd itself has answered, so nothing is under way any more.
    async fn look_up(&self, base: &Head, name: &[u8; 16], refused: bool) -> Result<Fate, Fault> {
        let reader = &self.reader;
        let (_, answers) = reader.ranges(vec![get(reader.layout.head())]).await?;
        let kvs = answers.into_iter().next().unwrap_or_default().kvs;
        let head = reader.parse_head(&kvs).map_err(|error| Fault { what: What::Store(error), sure: true })?;
        if head.name == *name {
            return Ok(Fate::Done);
        }
        if head.at != base.at {
            return Ok(if reader.successor(base.at).await? == *name { Fate::Done } else { Fate::NotDone });
        }
        if refused {
            return Ok(Fate::NotDone);
        }
        let shut = Head { name: rand::rng().random(), counts: Vec::new(), ..head };
        let put = Ask::Put(PutRequest { key: reader.layout.head(), value: shut.to_bytes() });
        let compare = vec![Compare::unchanged(reader.layout.head(), base.at)];
        let txn = TxnRequest { compare, success: vec![RequestOp { request: Some(put) }] };
        let answer: TxnResponse = reader.client.call(TXN, txn).await?;
        if answer.succeeded {
            return Ok(Fate::NotDone);
        }
        Ok(if reader.successor(base.at).await? == *name { Fate::Done } else { Fate::NotDone })
    }
}

fn delete(key: Vec<u8>, range_end: Vec<u8>) -> Ask {
    Ask::DeleteRange(DeleteRangeRequest { key, range_end })
}

/// The ranges that a request deletes, by their start.
fn ranges(request: &Request) -> BTreeMap<&Key, &Key> {
    let Request::Commit { batch, .. } = request else { return BTreeMap::new() };
    let ranges = batch.ops.iter().filter_map(|op| match op {
        Op::DeleteRange { from, to } => Some((from, to)),
        Op::Put { .. } | Op::Delete { .. } => None,
    });
    ranges.collect()
}

/// As one level of operations, or as transactions within the transaction when they are too many for one.
fn nested(ops: Vec<Ask>, last: Option<Ask>) -> Vec<RequestOp> {
    let op = |request| RequestOp { request: Some(request) };
    let mut level: Vec<RequestOp> = if ops.len() < NEST {
        ops.into_iter().map(op).collect()
    } else {
        let mut ops = ops.into_iter().map(op).peekable();
        let mut level = Vec::new();
        while ops.peek().is_some() {
            level.push(op(Ask::Txn(TxnRequest { compare: Vec::new(), success: ops.by_ref().take(NEST).collect() })));
        }
        level
    };
    level.extend(last.map(op));
    level
}

/// What a group has so far: etcd takes no key twice in a transaction, and no more bytes than the largest batch has.
#[derive(Default)]
struct Gathered {
    keys: HashSet<Key>,
    ops: usize,
    bytes: usize,
    alone: bool,
}

impl Gathered {
    /// Adds a request, whether or not it fits.
    fn takes(&mut self, request: &Request) -> bool {
        self.bytes += request.size();
        let mut new = true;
        match request {
            Request::Commit { batch, .. } => {
                for op in &batch.ops {
                    match op {
                        Op::Put { key, .. } | Op::Delete { key } => new &= self.keys.insert(key.clone()),
                        Op::DeleteRange { .. } => self.alone = true,
                    }
                }
                self.ops += batch.ops.len();
            }
            Request::KeepAlive { key, .. } => {
                new = self.keys.insert(key.clone());
                self.ops += 1;
            }
            Request::Expire { .. } | Request::Close { .. } => self.alone = true,
        }
        new && !self.alone && self.ops <= GROUP_OPS && self.bytes <= MAX_REQUEST / 2
    }
}

impl Engine for Writer {
    fn gather(&mut self, request: &Request, first: bool) -> bool {
        if first {
            self.gathered = Gathered::default();
        }
        self.gathered.takes(request)
    }

    fn write<'a>(&'a mut self, group: &'a [Request]) -> BoxFuture<'a, Result<Written, CommitError>> {
        self.group(group).boxed()
    }

    fn rest(&mut self) -> BoxFuture<'_, ()> {
        futures::future::ready(()).boxed()
    }
}
