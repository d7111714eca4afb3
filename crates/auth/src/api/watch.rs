//! Watching documents: what exists, then every change, filtered by what the watcher may see.
//!
//! Kinds that are unknown here or not his to watch are left out of `confirmed`, never an error, so that one new kind does
//! not stop a cache. A watch resumes each kind behind a revision while it is known what was deleted since, here or in the store's
//! history, and begins anew with the kinds of which it is not, saying which: one kind's trouble is never another's. Changes come from
//! the mirror, read once for all watchers; a slow watcher is told each document once, as it is by then, and is closed with a clear word
//! when it takes nothing for half a minute. Rights are asked again whenever a role, user or lock changes: a watch that has lost one ends.

use crate::{
    core::{Call, Fault, Who},
    metrics::count,
    mirror::{Change, Entry, Lost, Position},
};
use rules::{
    Permit, Verb,
    documents::{Scope, decide_read},
    permit::Read,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    watch,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use types::{Code, Identity, Public, kind::KINDS};
use wire::api::{self as pb, watch_event::Event as Sent};

/// Events on their way to one watcher.
const BUFFER: usize = 128;
/// How long a watcher may take nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most kinds of one watch.
const MAX_KINDS: usize = 64;

pub(crate) type Stream = ReceiverStream<Result<pb::WatchEvent, Status>>;

/// Begins a watch.
pub(crate) async fn watch(call: Call, ask: pb::WatchRequest) -> Result<Stream, Fault> {
    let caller = call.caller()?;
    if ask.kinds.len() > MAX_KINDS || ask.resume.len() > MAX_KINDS {
        return Err(crate::core::malformed(format!("more than {MAX_KINDS} kinds")));
    }
    let mut permits = BTreeMap::new();
    for kind in &ask.kinds {
        // A kind the store may hold but this release does not know is no cache's business.
        if KINDS.iter().any(|(known, _)| known == kind)
            && let Ok(permit) = decide_read(caller, kind, Verb::Watch)
        {
            permits.insert(kind.clone(), permit);
        }
    }
    count(&call.core.metrics.watches);
    let (sender, receiver) = mpsc::channel(BUFFER);
    let watcher = Watcher { call: call.clone(), permits, shown: BTreeSet::new(), sender };
    call.core.group.spawn("watch", watcher.run(ask));
    Ok(ReceiverStream::new(receiver))
}

struct Watcher {
    call: Call,
    permits: BTreeMap<String, Permit<Read>>,
    /// What the watcher has, of kinds he sees only in part: so that losing sight of one is a delete to him.
    shown: BTreeSet<(String, String)>,
    sender: mpsc::Sender<Result<pb::WatchEvent, Status>>,
}

/// Why a watch ends.
enum End {
    /// The watcher is gone.
    Gone,
    Refused(Public),
}

impl From<Public> for End {
    fn from(public: Public) -> Self {
        Self::Refused(public)
    }
}

impl Watcher {
    async fn run(mut self, ask: pb::WatchRequest) {
        let ended = self.follow(ask).await;
        if let Err(End::Refused(public)) = ended {
            let status = wire::api::to_status(&public);
            let _ = tokio::time::timeout(PATIENCE, self.sender.send(Err(status))).await;
        }
    }

    async fn follow(&mut self, ask: pb::WatchRequest) -> Result<(), End> {
        let mirror = self.call.core.mirror.clone();
        let mut rights = mirror.rights();
        rights.borrow_and_update();
        // Before anything is read, so that nothing is missed in between.
        let mut woken = mirror.follow(self.permits.keys().cloned().collect());
        let mut at = self.begin(ask).await?;
        let ends = self.ends();
        let expiry = async move {
            match ends {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(expiry);
        let shutdown = self.call.core.shutdown.clone();
        loop {
            tokio::select! {
                biased;
                () = shutdown.draining() => return Err(Public::new(Code::Unavailable, "the Auth Service is stopping").hint("the watch goes on with another, or after its start").into()),
                () = self.sender.closed() => return Err(End::Gone),
                () = &mut expiry => return Err(Public::new(Code::LoginExpired, "the certificate has expired").hint("log in again: tsh login").into()),
                changed = rights.changed() => {
                    if changed.is_ok() {
                        self.still_allowed()?;
                    }
                }
                changed = woken.changed() => {
                    if changed.is_err() {
                        return Err(Public::new(Code::Unavailable, "the watch ended; begin again").into());
                    }
                    self.catch_up(&mut at, &mut rights).await?;
                }
            }
        }
    }

    /// Tells everything that is new.
    async fn catch_up(&mut self, at: &mut Position, rights: &mut watch::Receiver<u64>) -> Result<(), End> {
        loop {
            let kinds: Vec<String> = self.permits.keys().cloned().collect();
            let (news, reached) = match self.call.core.mirror.news(kinds.iter(), *at) {
                Ok(told) => told,
                Err(Lost::Behind) => return Err(self.too_slow()),
                Err(Lost::Restored) => return Err(Public::new(Code::Unavailable, "the store was restored; begin again").into()),
            };
            if news.is_empty() {
                *at = reached;
                return Ok(());
            }
            // Rights that were lost before this was written are lost for it.
            if rights.has_changed().unwrap_or(false) {
                rights.borrow_and_update();
                self.still_allowed()?;
            }
            let mut news = news.into_iter().peekable();
            while let Some((revision, kind, change)) = news.next() {
                // Whoever resumes behind a revision has all of it: the rest of a commit is not yet told.
                let whole = news.peek().is_none_or(|(next, ..)| *next != revision);
                self.pass(kind, change, if whole { revision } else { revision.saturating_sub(1) }).await?;
            }
            *at = reached;
        }
    }

    /// Says what is confirmed and where each kind begins, and tells all up to the present.
    async fn begin(&mut self, ask: pb::WatchRequest) -> Result<Position, End> {
        let by_kind = !ask.resume.is_empty();
        let mut from: BTreeMap<String, u64> = match by_kind {
            true => ask.resume.into_iter().map(|one| (one.kind, one.from)).collect(),
            false => self.permits.keys().map(|kind| (kind.clone(), ask.from)).collect(),
        };
        // Whoever sees a kind in part may have lost sight of something meanwhile: he begins anew.
        let whole = |permit: &Permit<Read>| matches!(permit.scope, Scope::All | Scope::Named(_) | Scope::InRole(..));
        from.retain(|kind, from| *from > 0 && self.permits.get(kind).is_some_and(whole));
        self.caught_up(from.values().copied().max().unwrap_or_default()).await?;
        let tellable = self.call.core.mirror.tellable(&from).await;
        from.retain(|kind, _| tellable.contains(kind));
        let all = from.len() == self.permits.len();
        if !by_kind && !all {
            // Of before a watch could resume a part.
            from.clear();
        }
        let kinds: BTreeMap<String, Option<u64>> = self.permits.keys().map(|kind| (kind.clone(), from.get(kind).copied())).collect();
        let anew: Vec<String> = kinds.iter().filter(|(_, from)| from.is_none()).map(|(kind, _)| kind.clone()).collect();
        let beginning = self.call.core.mirror.begin(&kinds);
        let (confirmed, at) = (self.permits.keys().cloned().collect(), beginning.at);
        let snapshot = from.is_empty();
        let metrics = &self.call.core.metrics;
        let add = |counter: &AtomicU64, kinds: usize| counter.fetch_add(u64::try_from(kinds).unwrap_or(0), Ordering::Relaxed);
        add(&metrics.watch_kinds_resumed, from.len());
        add(&metrics.watch_kinds_whole, anew.len());
        self.send(Sent::Init(pb::WatchInit { confirmed, snapshot, anew }), 0).await?;
        for entry in beginning.whole {
            if self.permits.get(&entry.document.kind).is_some_and(|permit| permit.shows(&entry.document)) {
                self.note(&entry);
                self.send(Sent::Put(entry.json.clone()), 0).await?;
            }
        }
        for (kind, change) in beginning.changes {
            self.pass(&kind, change, 0).await?;
        }
        self.send(Sent::Synced(pb::WatchSynced {}), at.revision).await?;
        Ok(at)
    }

    /// Another Auth Service may have shown the watcher more than this one knows yet: nobody is told the past again as if it
    /// were the present, or a lock would be gone for a moment. A store that is itself older was restored: that is the present.
    async fn caught_up(&self, from: u64) -> Result<(), End> {
        let mirror = &self.call.core.mirror;
        mirror.reached(from).await;
        if mirror.revision() >= from {
            return Ok(());
        }
        match self.call.core.documents.store().revision().await {
            Ok(stored) if stored < from => Ok(()),
            Ok(_) | Err(_) => {
                Err(Public::new(Code::Unavailable, "this Auth Service is behind the store").hint("another one may not be").into())
            }
        }
    }

    async fn pass(&mut self, kind: &str, change: Change, revision: u64) -> Result<(), End> {
        match change {
            Change::Put(entry) => {
                let Some(permit) = self.permits.get(kind) else { return Ok(()) };
                if permit.shows(&entry.document) {
                    self.note(&entry);
                    self.send(Sent::Put(entry.json.clone()), revision).await
                } else {
                    self.lose(kind, entry.document.metadata.name.as_str(), revision).await
                }
            }
            Change::Gone(name) => self.lose(kind, &name, revision).await,
        }
    }

    /// Remembers what the watcher has, where he does not see everything.
    fn note(&mut self, entry: &Arc<Entry>) {
        let document = &entry.document;
        let partly = self.permits.get(&document.kind).is_some_and(|permit| !matches!(permit.scope, Scope::All));
        if partly {
            self.shown.insert((document.kind.clone(), document.metadata.name.to_string()));
        }
    }

    /// Tells of a document that is gone, or out of sight, if the watcher knew it.
    async fn lose(&mut self, kind: &str, name: &str, revision: u64) -> Result<(), End> {
        let knew = match self.permits.get(kind).map(|permit| &permit.scope) {
            Some(Scope::All) => true,
            // After a resume it is not known what was shown before; only this one name can be.
            Some(Scope::Named(own)) => own.as_str() == name,
            // Few are shown of many that change each minute: only what was shown is taken back. What went while the watcher was
            // away is known by its lease.
            Some(Scope::InRole(..)) => self.shown.remove(&(kind.to_owned(), name.to_owned())),
            Some(Scope::Reachable(_) | Scope::SessionsOf(_)) => self.shown.remove(&(kind.to_owned(), name.to_owned())),
            None => false,
        };
        if !knew {
            return Ok(());
        }
        self.send(Sent::Delete(pb::WatchDelete { kind: kind.to_owned(), name: name.to_owned() }), revision).await
    }

    /// A role, user or lock changed: a member must not be locked, a user must see exactly what he saw.
    fn still_allowed(&self) -> Result<(), End> {
        let again = || -> End { Public::new(Code::Unavailable, "rights have changed; watch again").into() };
        let fresh = self.call.core.identify(Some(self.call.peer.clone())).map_err(|fault| match fault {
            Fault::Denied(denied) => End::Refused(denied.public()),
            _ => again(),
        })?;
        match (&fresh.who, &self.call.who) {
            (Who::Host(_), Who::Host(_)) => Ok(()),
            (Who::User { .. }, Who::User { .. }) => {
                let caller = fresh.caller().map_err(|_| again())?;
                let same = |(kind, permit): (&String, &Permit<Read>)| {
                    decide_read(caller, kind, Verb::Watch).is_ok_and(|new| match (&new.scope, &permit.scope) {
                        (Scope::All, Scope::All) => true,
                        (Scope::Named(new), Scope::Named(old)) => new == old,
                        (Scope::SessionsOf(new), Scope::SessionsOf(old)) => new == old,
                        (Scope::InRole(new, own), Scope::InRole(old, was)) => (new, own) == (old, was),
                        // Which hosts the roles reach may have changed with them.
                        (Scope::Reachable(_), Scope::Reachable(_)) | (_, _) => false,
                    })
                };
                if self.permits.iter().all(same) { Ok(()) } else { Err(again()) }
            }
            (_, _) => Err(again()),
        }
    }

    /// How long the watcher's certificate still lives; members' outlast any connection.
    fn ends(&self) -> Option<Duration> {
        match self.call.peer.identity.as_deref() {
            Some(Identity::User(user)) => Some(user.expires.since(self.call.now)),
            Some(Identity::Host(_)) | None => None,
        }
    }

    async fn send(&self, event: Sent, revision: u64) -> Result<(), End> {
        let event = match self.sender.try_send(Ok(pb::WatchEvent { event: Some(event), revision })) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(_)) => return Err(End::Gone),
            Err(TrySendError::Full(event)) => event,
        };
        match tokio::time::timeout(PATIENCE, self.sender.send(event)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => Err(self.too_slow()),
        }
    }

    fn too_slow(&self) -> End {
        count(&self.call.core.metrics.watches_cut);
        tracing::info!(who = self.call.name(), "closed a watch whose watcher was too slow");
        Public::new(Code::AccessLimit, "the watcher was too slow; begin the watch again").into()
    }
}
