//! Everything that is read: single items, pages, `head`, and what a group of writes must know.

use super::client::{Client, Fault, What};
use super::layout::{Head, Layout, Unreadable, parse_item};
use super::proto::{
    Answer, Ask, Compare, KeyValue, Nothing, PutRequest, RangeRequest, RangeResponse, RequestOp, StatusResponse, TxnRequest, TxnResponse,
};
use crate::remote::{OpenError, Patience};
use crate::{Item, Key, MAX_PAGE, Page, StoreError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use types::Time;

pub(super) const RANGE: &str = "/etcdserverpb.KV/Range";
pub(super) const TXN: &str = "/etcdserverpb.KV/Txn";

/// Items asked for at once before their size is known; all of the largest size they still fit an answer.
const FEW: usize = 64;
/// Items asked for at once at most, and the bytes aimed at. Few large pieces: etcd 3.4 counts all that follows for each of them.
const MANY: usize = 10_000;
const AIM: usize = 8 << 20;
/// Soft limit in bytes for one page.
const PAGE_BYTES: usize = 16 << 20;

pub(super) struct Reader {
    pub(super) client: Client,
    pub(super) layout: Layout,
    pub(super) patience: Duration,
    pub(super) closed: CancellationToken,
}

pub(super) fn get(key: Vec<u8>) -> RangeRequest {
    RangeRequest { key, ..RangeRequest::default() }
}

impl Reader {
    /// Reads, again if the connection was lost meanwhile.
    pub(super) async fn read<A>(&self, path: &'static str, question: impl prost::Message + Clone + 'static) -> Result<A, Fault>
    where
        A: prost::Message + Default + 'static,
    {
        let mut patience = Patience::new(self.patience);
        loop {
            let closed = || Err(Fault { what: What::Store(StoreError::Closed), sure: true });
            if self.closed.is_cancelled() {
                return closed();
            }
            match self.client.call(path, question.clone()).await {
                Err(fault) if fault.passes() && patience.again(&self.closed).await => {}
                _ if self.closed.is_cancelled() => return closed(),
                done => return done,
            }
        }
    }

    pub(super) fn unreadable(&self, why: &Unreadable) -> StoreError {
        StoreError::Corrupt { place: self.client.place().into(), detail: why.to_string() }
    }

    pub(super) fn named(&self, fault: Fault) -> StoreError {
        fault.store(self.client.place())
    }

    pub(super) fn parse_item(&self, kv: &KeyValue) -> Result<Item, StoreError> {
        let item = self.layout.key(&kv.key).ok_or(Unreadable::Foreign).and_then(|key| parse_item(key, &kv.value));
        item.map_err(|why| self.unreadable(&why))
    }

    pub(super) fn parse_head(&self, kvs: &[KeyValue]) -> Result<Head, StoreError> {
        let kv = kvs.first().ok_or_else(|| self.headless())?;
        Head::parse(&kv.value, kv.mod_revision).map_err(|why| self.unreadable(&why))
    }

    fn headless(&self) -> StoreError {
        StoreError::Corrupt { place: self.client.place().into(), detail: "its key \"head\" is gone".into() }
    }

    /// The newest.
    pub(super) async fn head(&self) -> Result<Head, StoreError> {
        let answer: RangeResponse = self.read(RANGE, get(self.layout.head())).await.map_err(|fault| self.named(fault))?;
        self.parse_head(&answer.kvs)
    }

    pub(super) async fn item(&self, key: &Key) -> Result<Option<Item>, StoreError> {
        let answer: RangeResponse = self.read(RANGE, get(self.layout.item(key))).await.map_err(|fault| self.named(fault))?;
        answer.kvs.first().map(|kv| self.parse_item(kv)).transpose()
    }

    /// Looks at the server and makes `head` if there is none.
    pub(super) async fn prepare(&self) -> Result<Head, OpenError> {
        let status: StatusResponse = self.read("/etcdserverpb.Maintenance/Status", Nothing {}).await.map_err(|fault| self.named(fault))?;
        let mut parts = status.version.split('.').map_while(|part| part.parse::<u32>().ok());
        if (parts.next(), parts.next()) < (Some(3), Some(4)) {
            let found = format!("etcd {}", status.version);
            return Err(OpenError::TooOld { place: self.client.place().into(), found, needed: "etcd 3.4" });
        }
        let first = Head { revision: 0, name: [0; 16], counts: Vec::new(), at: 0 };
        let put = Ask::Put(PutRequest { key: self.layout.head(), value: first.to_bytes() });
        // Only if there is none: repeating it does no harm.
        let create =
            TxnRequest { compare: vec![Compare::unchanged(self.layout.head(), 0)], success: vec![RequestOp { request: Some(put) }] };
        let answer: RangeResponse = self.read(RANGE, get(self.layout.head())).await.map_err(|fault| self.named(fault))?;
        let kvs = if answer.kvs.is_empty() {
            let _created: TxnResponse = self.read(TXN, create).await.map_err(|fault| self.named(fault))?;
            let answer: RangeResponse = self.read(RANGE, get(self.layout.head())).await.map_err(|fault| self.named(fault))?;
            answer.kvs
        } else {
            answer.kvs
        };
        let place = || self.client.place().to_owned();
        let kv = kvs.first().ok_or_else(|| self.headless())?;
        Head::parse(&kv.value, kv.mod_revision).map_err(|why| match why {
            Unreadable::Newer(found) => OpenError::Newer { place: place(), found: found.into() },
            Unreadable::Foreign => OpenError::Foreign { place: place(), detail: "its key \"head\" was written by something else".into() },
        })
    }

    /// Items and `head` as they were at one moment. Expired ones do not count, however many there are.
    pub(super) async fn page(&self, from: &Key, to: &Key, limit: usize, now: Time) -> Result<Page, StoreError> {
        let page = self.page_at(from, to, limit, now, 0).await;
        page.map(|(page, _)| page).map_err(|fault| self.named(fault))
    }

    /// The same at a revision of etcd (0 is the newest), which is also returned.
    pub(super) async fn page_at(&self, from: &Key, to: &Key, limit: usize, now: Time, at: i64) -> Result<(Page, i64), Fault> {
        let limit = limit.clamp(1, MAX_PAGE);
        let broken = |error| Fault { what: What::Store(error), sure: true };
        let mut page = Page { items: Vec::new(), next: None, revision: 0 };
        let (mut start, mut pinned, mut bytes, mut read) = (from.clone(), at, 0_usize, false);
        let mut count = FEW.min(limit + 1);
        loop {
            let piece = self.piece(&start, to, count, pinned).await;
            let (head, revision, range) = match piece {
                Ok(piece) => piece,
                // Guessed too high: items got larger.
                Err(Fault { what: What::LargeAnswer, .. }) if count > 1 => {
                    count = (count / 8).max(1);
                    continue;
                }
                // Compacted under way: what was read is a page too.
                Err(Fault { what: What::Compacted, .. }) if !page.items.is_empty() => {
                    page.next = Some(start);
                    return Ok((page, pinned));
                }
                Err(fault) => return Err(fault),
            };
            if !std::mem::replace(&mut read, true) {
                page.revision = self.parse_head(&head).map_err(broken)?.revision;
                pinned = if at == 0 { revision } else { at };
            }
            let size: usize = range.kvs.iter().map(|kv| kv.value.len() + kv.key.len()).sum();
            for kv in &range.kvs {
                let item = self.parse_item(kv).map_err(broken)?;
                start = item.key.successor();
                if item.expired(now) {
                    continue;
                }
                if page.items.len() == limit || bytes > PAGE_BYTES {
                    page.next = Some(item.key);
                    return Ok((page, pinned));
                }
                bytes += item.value.len();
                page.items.push(item);
            }
            if !range.more || range.kvs.is_empty() {
                return Ok((page, pinned));
            }
            let average = size / range.kvs.len().max(1) + 1;
            count = (AIM / average).clamp(FEW, MANY).min(limit + FEW);
        }
    }

    /// `head` and some items: the newest, or as of a revision of etcd. Returns the revision they are of.
    async fn piece(&self, from: &Key, to: &Key, count: usize, at: i64) -> Result<(Vec<KeyValue>, i64, RangeResponse), Fault> {
        if from >= to {
            let head: RangeResponse = self.read(RANGE, get(self.layout.head())).await?;
            return Ok((head.kvs, head.header.unwrap_or_default().revision, RangeResponse::default()));
        }
        let range = RangeRequest {
            key: self.layout.item(from),
            range_end: self.layout.item(to),
            limit: i64::try_from(count).unwrap_or(i64::MAX),
            revision: at,
            keys_only: false,
        };
        let head = RangeRequest { revision: at, ..get(self.layout.head()) };
        let (revision, mut answers) = self.ranges(vec![head, range]).await?;
        let items = answers.pop().unwrap_or_default();
        let head = answers.pop().unwrap_or_default();
        Ok((head.kvs, revision, items))
    }

    /// Several ranges in one transaction, and etcd's revision that they show.
    pub(super) async fn ranges(&self, ranges: Vec<RangeRequest>) -> Result<(i64, Vec<RangeResponse>), Fault> {
        let success = ranges.into_iter().map(|range| RequestOp { request: Some(Ask::Range(range)) }).collect();
        let answer: TxnResponse = self.read(TXN, TxnRequest { compare: Vec::new(), success }).await?;
        let ranges = answer.responses.into_iter().map(|response| match response.response {
            Some(Answer::Range(range)) => range,
            _ => RangeResponse::default(),
        });
        Ok((answer.header.unwrap_or_default().revision, ranges.collect()))
    }
}
