//! An Auth Service in memory: documents, watches with history, and presence; no rights, no certificates.
//!
//! It speaks the real API over real gRPC, on pipes instead of sockets.

use crate::api::Api;
use futures::{FutureExt, Stream};
use net::{
    IoStream,
    dial::DialError,
    grpc::{Peer, Sender, ServerIo, incoming},
    task::Group,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};
use types::{Code, Document, Public, ResourceName, Version, document::Revision};
use wire::{
    api::{self as pb, auth_server::Auth, watch_event::Event},
    hello::Hello,
};

/// The Auth Service. Clones are the same one.
#[derive(Clone)]
pub struct FakeAuth(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Grows with each change, and when it goes away.
    moved: watch::Sender<u64>,
    connections: Sender,
    _group: Group,
}

struct State {
    documents: BTreeMap<(String, ResourceName), Document>,
    revision: u64,
    /// What happened, by revision.
    log: Vec<(u64, String, Event)>,
    /// History before this is forgotten, of each kind.
    floors: BTreeMap<String, u64>,
    kinds: BTreeSet<String>,
    away: bool,
    /// How often a snapshot of everything was sent, and how often each kind was told whole.
    snapshots: u64,
    whole: BTreeMap<String, u64>,
    /// Watches begun, by when.
    watches: Vec<tokio::time::Instant>,
    heartbeats: Vec<pb::HeartbeatRequest>,
    notices: Vec<String>,
}

impl std::fmt::Debug for FakeAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeAuth")
    }
}

impl Default for FakeAuth {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeAuth {
    /// Serves at once; needs a runtime.
    pub fn new() -> Self {
        let (connections, stream) = incoming(16);
        let kinds = types::kind::KINDS.iter().map(|(kind, _)| (*kind).to_owned()).collect();
        let state = State {
            documents: BTreeMap::new(),
            revision: 0,
            log: Vec::new(),
            floors: BTreeMap::new(),
            kinds,
            away: false,
            snapshots: 0,
            whole: BTreeMap::new(),
            watches: Vec::new(),
            heartbeats: Vec::new(),
            notices: Vec::new(),
        };
        let group = Group::new("fake auth");
        let fake = Self(Arc::new(Inner { state: Mutex::new(state), moved: watch::Sender::new(0), connections, _group: group.clone() }));
        let service = fake.service();
        group.spawn("serve", async move {
            let _ = net::grpc::server().serve_with_incoming(service, stream).await;
        });
        fake
    }

    /// What serves it, for a server of one's own.
    pub fn service(
        &self,
    ) -> impl tonic::codegen::Service<
        http::Request<tonic::body::Body>,
        Response = http::Response<tonic::body::Body>,
        Error = std::convert::Infallible,
        Future: Send,
    >
    + Clone
    + Send
    + 'static
    + use<> {
        pb::auth_server::AuthServer::new(Served(Arc::downgrade(&self.0)))
    }

    /// A client of it.
    pub fn api(&self) -> Api {
        let fake = self.clone();
        Api::over(move || fake.clone().connect().boxed())
    }

    async fn connect(self) -> Result<IoStream, DialError> {
        if self.lock().away {
            return Err(DialError::Unreachable { addr: "auth:3025".into(), source: io::ErrorKind::ConnectionRefused.into() });
        }
        let (near, far) = tokio::io::duplex(64 * 1024);
        let peer = Peer {
            identity: None,
            hello: Arc::new(Hello::ours(&Version::new(1, 0, 0), "tsh")),
            addr: ([127, 0, 0, 1], 1).into(),
            spliced: false,
        };
        self.0.connections.send(ServerIo::new(Box::new(far), peer, ())).await;
        Ok(Box::new(near))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }
    fn wake(&self) {
        self.0.moved.send_modify(|moved| *moved = moved.wrapping_add(1));
    }

    /// Writes without a condition.
    pub fn put(&self, document: Document) -> Document {
        let written = self.lock().put(document);
        self.wake();
        written
    }
    pub fn remove(&self, kind: &str, name: &ResourceName) {
        self.lock().remove(kind, name);
        self.wake();
    }
    /// Which kinds it knows and serves.
    pub fn serve(&self, kinds: &[&str]) {
        self.lock().kinds = kinds.iter().map(|&kind| kind.to_owned()).collect();
    }
    /// Refuses connections and calls, ends watches.
    pub fn go_away(&self) {
        self.lock().away = true;
        self.wake();
    }
    pub fn come_back(&self) {
        self.lock().away = false;
    }
    /// A watch from the past now gets a snapshot.
    pub fn forget_history(&self) {
        let kinds = self.lock().kinds.clone();
        kinds.iter().for_each(|kind| self.forget_history_of(kind));
    }
    /// A watch from the past is told this kind whole.
    pub fn forget_history_of(&self, kind: &str) {
        let mut state = self.lock();
        let floor = state.revision;
        state.floors.insert(kind.to_owned(), floor.saturating_add(1));
        state.log.retain(|(_, of, _)| of != kind);
    }
    /// How often a kind was told whole.
    pub fn told_whole(&self, kind: &str) -> u64 {
        self.lock().whole.get(kind).copied().unwrap_or_default()
    }
    /// When watches were begun.
    pub fn watches(&self) -> Vec<tokio::time::Instant> {
        self.lock().watches.clone()
    }
    pub fn snapshots(&self) -> u64 {
        self.lock().snapshots
    }
    pub fn heartbeats(&self) -> Vec<pb::HeartbeatRequest> {
        self.lock().heartbeats.clone()
    }
    /// What the next heartbeats are answered with.
    pub fn notify(&self, notices: &[&str]) {
        self.lock().notices = notices.iter().map(|&notice| notice.to_owned()).collect();
    }
    /// Waits for a change of any kind, a heartbeat among them.
    pub fn moved(&self) -> watch::Receiver<u64> {
        self.0.moved.subscribe()
    }

    fn follow(self, asked: pb::WatchRequest) -> impl Stream<Item = Result<pb::WatchEvent, Status>> + Send {
        let (kinds, first, start) = {
            let mut state = self.lock();
            let kinds: Vec<String> = asked.kinds.into_iter().filter(|kind| state.kinds.contains(kind)).collect();
            let resume = asked.resume.into_iter().map(|one| (one.kind, one.from)).collect();
            state.watches.push(tokio::time::Instant::now());
            let (first, start) = state.begin(&kinds, asked.from, &resume);
            (kinds, first, start)
        };
        let moved = self.0.moved.subscribe();
        futures::stream::unfold((self, moved, first, start, kinds), |(fake, mut moved, mut queue, mut seen, kinds)| async move {
            loop {
                if let Some(event) = queue.pop_front() {
                    return Some((Ok(event), (fake, moved, queue, seen, kinds)));
                }
                moved.borrow_and_update();
                if fake.lock().away {
                    return Some((Err(Status::unavailable("away")), (fake, moved, queue, seen, kinds)));
                }
                {
                    let state = fake.lock();
                    queue.extend(state.since(seen, &kinds));
                    seen = state.revision;
                }
                if queue.is_empty() && moved.changed().await.is_err() {
                    return None;
                }
            }
        })
    }
}

impl State {
    fn put(&mut self, mut document: Document) -> Document {
        self.revision += 1;
        document.metadata.revision = Some(Revision(self.revision.to_string()));
        self.documents.insert((document.kind.clone(), document.metadata.name.clone()), document.clone());
        self.log.push((self.revision, document.kind.clone(), Event::Put(document.to_json().into())));
        document
    }
    fn remove(&mut self, kind: &str, name: &ResourceName) -> bool {
        let gone = self.documents.remove(&(kind.to_owned(), name.clone())).is_some();
        if gone {
            self.revision += 1;
            let event = Event::Delete(pb::WatchDelete { kind: kind.to_owned(), name: name.to_string() });
            self.log.push((self.revision, kind.to_owned(), event));
        }
        gone
    }
    fn since(&self, seen: u64, kinds: &[String]) -> Vec<pb::WatchEvent> {
        let wanted = self.log.iter().filter(|(revision, kind, _)| *revision > seen && kinds.contains(kind));
        wanted.map(|(revision, _, event)| pb::WatchEvent { event: Some(event.clone()), revision: *revision }).collect()
    }
    /// The first events of a watch, and the revision they reach.
    fn begin(&mut self, kinds: &[String], from: u64, resume: &BTreeMap<String, u64>) -> (std::collections::VecDeque<pb::WatchEvent>, u64) {
        let from = |kind: &String| if resume.is_empty() { from } else { resume.get(kind).copied().unwrap_or_default() };
        let lost = |kind: &&String| {
            let floor = self.floors.get(*kind).copied().unwrap_or_default();
            from(kind) == 0 || from(kind) < floor.saturating_sub(1)
        };
        let mut anew: BTreeSet<String> = kinds.iter().filter(lost).cloned().collect();
        if resume.is_empty() && !anew.is_empty() {
            anew = kinds.iter().cloned().collect();
        }
        let snapshot = anew.len() == kinds.len();
        self.snapshots += u64::from(snapshot);
        anew.iter().for_each(|kind| *self.whole.entry(kind.clone()).or_default() += 1);
        let event = |event, revision| pb::WatchEvent { event: Some(event), revision };
        let mut queue = std::collections::VecDeque::new();
        let init = pb::WatchInit { confirmed: kinds.to_vec(), snapshot, anew: anew.iter().cloned().collect() };
        queue.push_back(event(Event::Init(init), 0));
        let wanted = self.documents.iter().filter(|((kind, _), _)| anew.contains(kind));
        queue.extend(wanted.map(|(_, document)| event(Event::Put(document.to_json().into()), 0)));
        for kind in kinds.iter().filter(|kind| !anew.contains(*kind)) {
            let missed = self.since(from(kind), std::slice::from_ref(kind));
            queue.extend(missed.into_iter().map(|told| pb::WatchEvent { revision: 0, ..told }));
        }
        queue.push_back(event(Event::Synced(pb::WatchSynced {}), self.revision));
        (queue, self.revision)
    }
}

/// What tonic holds: not the service itself, or the service would hold itself.
struct Served(std::sync::Weak<Inner>);

impl Served {
    fn fake(&self) -> Result<FakeAuth, Status> {
        let fake = self.0.upgrade().map(FakeAuth).ok_or_else(|| Status::unavailable("gone"))?;
        if fake.lock().away { Err(Status::unavailable("away")) } else { Ok(fake) }
    }
}

fn refuse(code: Code, message: impl Into<String>) -> Status {
    pb::to_status(&Public::new(code, message))
}
fn not_found(kind: &str, name: &str) -> Status {
    refuse(Code::NotFound, format!("no {kind} \"{name}\""))
}
fn name(text: &str) -> Result<ResourceName, Status> {
    ResourceName::new(text).map_err(|error| refuse(Code::Malformed, error.to_string()))
}
fn reply(document: &Document) -> Response<pb::DocumentReply> {
    Response::new(pb::DocumentReply { document: document.to_json().into() })
}
fn unserved<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not served by the fake"))
}

type Pinned<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Auth for Served {
    type WatchStream = Pinned<pb::WatchEvent>;
    type ReadRecordingStream = Pinned<pb::RecordingChunk>;
    type CreateBackupStream = Pinned<pb::BackupChunk>;
    type ExportEventsStream = Pinned<pb::ExportChunk>;
    type ReadOwnRecordingStream = Pinned<pb::RecordingChunk>;

    async fn ping(&self, _: Request<pb::PingRequest>) -> Result<Response<pb::PingReply>, Status> {
        self.fake()?;
        Ok(Response::new(pb::PingReply { server_version: "1.0.0".into(), second_factor: "off".into(), ..Default::default() }))
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::DocumentReply>, Status> {
        let (fake, asked) = (self.fake()?, request.into_inner());
        let found = fake.lock().documents.get(&(asked.kind.clone(), name(&asked.name)?)).cloned();
        found.map(|document| reply(&document)).ok_or_else(|| not_found(&asked.kind, &asked.name))
    }

    async fn list(&self, request: Request<pb::ListRequest>) -> Result<Response<pb::ListReply>, Status> {
        let (fake, asked) = (self.fake()?, request.into_inner());
        let limit = usize::try_from(if asked.limit == 0 { 1000 } else { asked.limit.min(10_000) }).unwrap();
        let state = fake.lock();
        let matching = state.documents.values().filter(|document| {
            let labels = &document.metadata.labels;
            document.kind == asked.kind
                && document.metadata.name.as_str() > asked.page.as_str()
                && asked.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        });
        let page: Vec<&Document> = matching.take(limit + 1).collect();
        let next_page = if page.len() > limit { page[limit - 1].metadata.name.to_string() } else { String::new() };
        let documents = page.iter().take(limit).map(|document| document.to_json().into()).collect();
        Ok(Response::new(pb::ListReply { documents, next_page, skipped: 0, revision: state.revision }))
    }

    async fn create(&self, request: Request<pb::WriteRequest>) -> Result<Response<pb::DocumentReply>, Status> {
        let fake = self.fake()?;
        let document = Document::from_json(&request.into_inner().document).map_err(|error| refuse(Code::Malformed, error.to_string()))?;
        if fake.lock().documents.contains_key(&(document.kind.clone(), document.metadata.name.clone())) {
            return Err(refuse(Code::AlreadyExists, format!("{} exists", document.reference())));
        }
        Ok(reply(&fake.put(document)))
    }

    async fn update(&self, request: Request<pb::WriteRequest>) -> Result<Response<pb::DocumentReply>, Status> {
        let fake = self.fake()?;
        let document = Document::from_json(&request.into_inner().document).map_err(|error| refuse(Code::Malformed, error.to_string()))?;
        let key = (document.kind.clone(), document.metadata.name.clone());
        let Some(current) = fake.lock().documents.get(&key).cloned() else { return Err(not_found(&key.0, key.1.as_str())) };
        if current.metadata.revision != document.metadata.revision {
            return Err(refuse(Code::Conflict, format!("{} was changed", document.reference())));
        }
        Ok(reply(&fake.put(document)))
    }

    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Result<Response<pb::Empty>, Status> {
        let (fake, asked) = (self.fake()?, request.into_inner());
        let key = (asked.kind.clone(), name(&asked.name)?);
        let Some(current) = fake.lock().documents.get(&key).cloned() else { return Err(not_found(&asked.kind, &asked.name)) };
        if !asked.revision.is_empty() && current.metadata.revision != Some(Revision(asked.revision)) {
            return Err(refuse(Code::Conflict, format!("{} was changed", current.reference())));
        }
        fake.remove(&key.0, &key.1);
        Ok(Response::new(pb::Empty {}))
    }

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let fake = self.fake()?;
        Ok(Response::new(Box::pin(fake.follow(request.into_inner()))))
    }

    async fn heartbeat(&self, request: Request<pb::HeartbeatRequest>) -> Result<Response<pb::HeartbeatReply>, Status> {
        let fake = self.fake()?;
        let notices = {
            let mut state = fake.lock();
            state.heartbeats.push(request.into_inner());
            state.notices.clone()
        };
        fake.wake();
        Ok(Response::new(pb::HeartbeatReply { interval: Duration::from_secs(60).as_secs(), notices, proxies: vec!["proxy1:3080".into()] }))
    }

    async fn report_quarantine(&self, _: Request<pb::ReportQuarantineRequest>) -> Result<Response<pb::ReportQuarantineReply>, Status> {
        unserved()
    }
    async fn join(&self, _: Request<pb::JoinRequest>) -> Result<Response<pb::HostCredentials>, Status> {
        unserved()
    }
    async fn renew_host(&self, _: Request<pb::RenewHostRequest>) -> Result<Response<pb::HostCredentials>, Status> {
        unserved()
    }
    async fn login(&self, _: Request<pb::LoginRequest>) -> Result<Response<pb::UserCredentials>, Status> {
        unserved()
    }
    async fn get_invite(&self, _: Request<pb::GetInviteRequest>) -> Result<Response<pb::InviteReply>, Status> {
        unserved()
    }
    async fn accept_invite(&self, _: Request<pb::AcceptInviteRequest>) -> Result<Response<pb::Empty>, Status> {
        unserved()
    }
    async fn reissue(&self, _: Request<pb::ReissueRequest>) -> Result<Response<pb::UserCredentials>, Status> {
        unserved()
    }
    async fn sign(&self, _: Request<pb::SignRequest>) -> Result<Response<pb::UserCredentials>, Status> {
        unserved()
    }
    async fn create_invite(&self, _: Request<pb::CreateInviteRequest>) -> Result<Response<pb::CreateInviteReply>, Status> {
        unserved()
    }
    async fn create_token(&self, _: Request<pb::CreateTokenRequest>) -> Result<Response<pb::CreateTokenReply>, Status> {
        unserved()
    }
    async fn emit_events(&self, _: Request<pb::EmitEventsRequest>) -> Result<Response<pb::EmitEventsReply>, Status> {
        self.fake()?;
        Ok(Response::new(pb::EmitEventsReply::default()))
    }
    async fn create_backup(&self, _: Request<pb::CreateBackupRequest>) -> Result<Response<Self::CreateBackupStream>, Status> {
        unserved()
    }
    async fn get_windows(&self, _: Request<pb::Empty>) -> Result<Response<pb::WindowsReply>, Status> {
        unserved()
    }
    async fn move_window(&self, _: Request<pb::MoveWindowRequest>) -> Result<Response<pb::WindowsReply>, Status> {
        unserved()
    }
    async fn evict_member(&self, _: Request<pb::EvictMemberRequest>) -> Result<Response<pb::WindowsReply>, Status> {
        unserved()
    }
    async fn walk_member(&self, _: Request<pb::WalkMemberRequest>) -> Result<Response<pb::WalkMemberReply>, Status> {
        unserved()
    }
    async fn list_migrations(&self, _: Request<pb::Empty>) -> Result<Response<pb::ListMigrationsReply>, Status> {
        unserved()
    }
    async fn list_bad_rows(&self, _: Request<pb::ListBadRowsRequest>) -> Result<Response<pb::ListBadRowsReply>, Status> {
        unserved()
    }
    async fn repair_row(&self, _: Request<pb::RepairRowRequest>) -> Result<Response<pb::Empty>, Status> {
        unserved()
    }
    async fn turn_migration(&self, _: Request<pb::TurnMigrationRequest>) -> Result<Response<pb::MigrationStatus>, Status> {
        unserved()
    }
    async fn plan_upgrade(&self, _: Request<pb::PlanUpgradeRequest>) -> Result<Response<pb::PlanUpgradeReply>, Status> {
        unserved()
    }
    async fn steer_upgrade(&self, _: Request<pb::SteerUpgradeRequest>) -> Result<Response<pb::PlanUpgradeReply>, Status> {
        unserved()
    }
    async fn list_releases(&self, _: Request<pb::Empty>) -> Result<Response<pb::ListReleasesReply>, Status> {
        unserved()
    }
    async fn search_events(&self, _: Request<pb::SearchEventsRequest>) -> Result<Response<pb::SearchEventsReply>, Status> {
        unserved()
    }
    async fn verify_audit(&self, _: Request<pb::Empty>) -> Result<Response<pb::VerifyAuditReply>, Status> {
        unserved()
    }
    async fn export_events(&self, _: Request<pb::ExportEventsRequest>) -> Result<Response<Self::ExportEventsStream>, Status> {
        unserved()
    }
    async fn upload_recording(&self, _: Request<Streaming<pb::RecordingChunk>>) -> Result<Response<pb::Empty>, Status> {
        unserved()
    }
    async fn list_recordings(&self, _: Request<pb::ListRecordingsRequest>) -> Result<Response<pb::ListRecordingsReply>, Status> {
        unserved()
    }
    async fn read_recording(&self, _: Request<pb::ReadRecordingRequest>) -> Result<Response<Self::ReadRecordingStream>, Status> {
        unserved()
    }
    async fn list_own_recordings(&self, _: Request<pb::ListOwnRecordingsRequest>) -> Result<Response<pb::ListRecordingsReply>, Status> {
        unserved()
    }
    async fn read_own_recording(&self, _: Request<pb::ReadRecordingRequest>) -> Result<Response<Self::ReadOwnRecordingStream>, Status> {
        unserved()
    }
}
