//! Watching documents: a snapshot, then every change, filtered by what the watcher may see.
//!
//! Kinds that are unknown here or not his to watch are left out of `confirmed`, never an error, so that one new kind does
//! not stop a cache. A watch resumes behind a revision while the store still holds what followed, and otherwise begins anew
//! with a snapshot, saying so. The store's watch pulls and the channel is short: a slow watcher costs nothing, and is
//! closed with a clear word when it takes nothing for half a minute. Rights are asked again whenever a role, user or lock
//! changes: a watch that has lost one ends.

use crate::{
    core::{Call, Fault, Who},
    metrics::count,
};
use rules::{
    Permit, Verb,
    documents::{Scope, decide_read},
    permit::Read,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use store::{Event, Watch, WatchError, documents};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use types::{Code, Document, Identity, Public, kind::KINDS};
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
    if ask.kinds.len() > MAX_KINDS {
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
    call.core.group.spawn("watch", watcher.run(ask.from));
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
    async fn run(mut self, from: u64) {
        let ended = self.follow(from).await;
        if let Err(End::Refused(public)) = ended {
            let status = wire::api::to_status(&public);
            let _ = tokio::time::timeout(PATIENCE, self.sender.send(Err(status))).await;
        }
    }

    async fn follow(&mut self, from: u64) -> Result<(), End> {
        let mut rights = self.call.core.mirror.rights();
        rights.borrow_and_update();
        let mut watch = self.begin(from).await?;
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
                event = watch.next() => match event {
                    Some(Ok(event)) => self.pass(event).await?,
                    Some(Err(WatchError::Lagged { .. } | WatchError::Compacted { .. })) => return Err(self.too_slow()),
                    Some(Err(_)) | None => return Err(Public::new(Code::Unavailable, "the watch ended; begin again").into()),
                },
            }
        }
    }

    /// Says what is confirmed and sends what exists, unless the watch resumes.
    async fn begin(&mut self, from: u64) -> Result<Watch, End> {
        self.caught_up(from).await?;
        let confirmed: Vec<String> = self.permits.keys().cloned().collect();
        // Whoever sees a kind in part may have lost sight of something meanwhile: he begins anew.
        let whole = self.permits.values().all(|permit| matches!(permit.scope, Scope::All | Scope::Named(_) | Scope::InRole(..)));
        if from > 0
            && whole
            && let Ok(watch) = self.open(from).await
        {
            self.send(Sent::Init(pb::WatchInit { confirmed, snapshot: false }), from).await?;
            self.send(Sent::Synced(pb::WatchSynced {}), from).await?;
            return Ok(watch);
        }
        let mut views = Vec::new();
        for (kind, permit) in &self.permits {
            views.push(self.call.core.mirror.view(kind, None, usize::MAX, usize::MAX, |document| permit.shows(document)));
        }
        // Later views may show a little more than the first's revision; what comes twice is the same.
        let revision = match views.iter().map(|view| view.revision).min() {
            Some(revision) => revision,
            None => self.call.core.mirror.view("", None, 0, 0, |_| false).revision,
        };
        let unreadable = |error: WatchError| -> End {
            tracing::warn!(%error, "a watch could not begin");
            Public::new(Code::Unavailable, "the watch could not begin").hint("try again").into()
        };
        let watch = self.open(revision).await.map_err(unreadable)?;
        self.send(Sent::Init(pb::WatchInit { confirmed, snapshot: true }), revision).await?;
        for entry in views.into_iter().flat_map(|view| view.entries) {
            self.note(&entry.document);
            self.send(Sent::Put(entry.json.clone()), revision).await?;
        }
        self.send(Sent::Synced(pb::WatchSynced {}), revision).await?;
        Ok(watch)
    }

    /// Another Auth Service may have shown the watcher more than this one knows yet: nobody is told the past again as if it
    /// were the present, or a lock would be gone for a moment. A store that is itself older was restored: that is the present.
    async fn caught_up(&self, from: u64) -> Result<(), End> {
        let mirror = &self.call.core.mirror;
        mirror.reached(from).await;
        if mirror.view("", None, 0, 0, |_| false).revision >= from {
            return Ok(());
        }
        match self.call.core.documents.store().revision().await {
            Ok(stored) if stored < from => Ok(()),
            Ok(_) | Err(_) => {
                Err(Public::new(Code::Unavailable, "this Auth Service is behind the store").hint("another one may not be").into())
            }
        }
    }

    async fn open(&self, from: u64) -> Result<Watch, WatchError> {
        let mut prefixes = Vec::new();
        for kind in self.permits.keys() {
            prefixes.extend(store::Key::dir(["doc", kind]));
        }
        if prefixes.is_empty() {
            // Nothing was confirmed: a watch of what never is.
            prefixes.extend(store::Key::dir(["doc", "-"]));
        }
        self.call.core.documents.store().watch(prefixes, Some(from)).await
    }

    async fn pass(&mut self, event: Event) -> Result<(), End> {
        let revision = event.revision();
        match event {
            Event::Init { .. } => Ok(()),
            Event::Put(item) => {
                let Ok(document) = documents::decode(&item) else { return Ok(()) };
                let Some(permit) = self.permits.get(&document.kind) else { return Ok(()) };
                if permit.shows(&document) {
                    self.note(&document);
                    self.send(Sent::Put(document.to_json().into()), revision).await
                } else {
                    self.lose(&document.kind, document.metadata.name.as_str(), revision).await
                }
            }
            Event::Delete { key, .. } => match documents::reference(&key) {
                Some((kind, name)) => self.lose(kind, name, revision).await,
                None => Ok(()),
            },
        }
    }

    /// Remembers what the watcher has, where he does not see everything.
    fn note(&mut self, document: &Document) {
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
        let event = pb::WatchEvent { event: Some(event), revision };
        match tokio::time::timeout(PATIENCE, self.sender.send(Ok(event))).await {
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
