//! The Auth Service as a value: typed calls over gRPC, with a deadline each and every error a [`Public`].
//!
//! [`Api::new`] connects to nothing; the first call dials, and a later one dials anew when the connection was lost or when
//! this member's own certificates were renewed. The way is direct or through a Proxy, which splices the bytes: TLS and
//! handshake are end to end with the Auth Service either way. Members, `tsh` and `tctl` all call this; the serving half
//! is the crate `auth`. Streams are in [`stream`].

mod spread;
mod stream;

pub use stream::{BackupReader, ExportReader, RecordingReader, Watch, WatchItem};

use crate::{host::HostCredentials, trust::ClusterTrust};
use futures::future::BoxFuture;
use net::{
    IoStream,
    clock::SharedClock,
    dial::DialError,
    hello::HelloPolicy,
    tls::{TlsError, TlsIdentity, Trust, client_config},
};
use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use tonic::{Response, Status, transport::Channel};
use types::{
    ClusterName, Code, Document, Labels, Public, Resource, ResourceName, SystemRole, Version,
    document::{BadDocument, Revision, Spec},
    version::Direction,
};
use wire::{
    alpn,
    api::{self as pb, auth_client::AuthClient},
    hello::Hello,
    sni,
};

/// For a call that only reads, connecting included.
pub const READ_DEADLINE: Duration = Duration::from_secs(20);
/// For a call that changes something, connecting included.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Documents asked for at once.
const PAGE: u32 = 2500;
/// Pages of one list that are followed: more than any cluster has.
const MAX_PAGES: usize = 4000;

/// The way to the Auth Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Via {
    /// `host:port` of an Auth Service.
    Auth(String),
    /// The same of several: each connection goes to one of them, and to another when that does not answer.
    AnyAuth(Vec<String>),
    /// `host:port` of a Proxy.
    Proxy(String),
    /// The same of several, as with several Auth Services.
    AnyProxy(Vec<String>),
}

impl Via {
    /// Auth Services, one or several with commas between.
    pub fn auth(text: &str) -> Self {
        let all: Vec<String> = text.split(',').map(str::trim).filter(|addr| !addr.is_empty()).map(str::to_owned).collect();
        match all.as_slice() {
            [] | [_] => Self::Auth(text.trim().trim_matches(',').to_owned()),
            [..] => Self::AnyAuth(all),
        }
    }
    /// Proxies, one or several.
    pub fn proxies(addrs: &[String]) -> Self {
        match addrs {
            [one] => Self::Proxy(one.clone()),
            [] | [..] => Self::AnyProxy(addrs.to_vec()),
        }
    }
    /// The first of [`Via::addrs`].
    pub fn addr(&self) -> &str {
        self.addrs().first().map_or("", String::as_str)
    }
    pub fn addrs(&self) -> &[String] {
        match self {
            Self::Auth(addr) | Self::Proxy(addr) => std::slice::from_ref(addr),
            Self::AnyAuth(addrs) | Self::AnyProxy(addrs) => addrs,
        }
    }
}
impl std::fmt::Display for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auth(addr) => write!(f, "the Auth Service at {addr}"),
            Self::AnyAuth(addrs) => write!(f, "one of the Auth Services at {}", addrs.join(", ")),
            Self::Proxy(addr) => write!(f, "the Proxy at {addr}"),
            Self::AnyProxy(addrs) => write!(f, "one of the Proxies at {}", addrs.join(", ")),
        }
    }
}

/// Whom the caller trusts, and as whom it calls.
#[derive(Clone, Debug)]
pub enum Access {
    /// A member, with its credentials of the moment; renewing them makes the next call dial anew.
    Host(watch::Receiver<Arc<HostCredentials>>),
    /// A user, an administrator, or a host that has no certificate yet.
    Fixed { trust: Trust, server_name: String, identity: Option<TlsIdentity> },
}

impl Access {
    /// The Auth Service of that cluster, checked against its host authority.
    pub fn cluster(trust: &ClusterTrust, identity: Option<TlsIdentity>) -> Result<Self, TlsError> {
        let server_name = sni::role_name(&SystemRole::Auth, &trust.cluster);
        Ok(Self::Fixed { trust: Trust::Cluster(trust.swap()?), server_name, identity })
    }
    /// An Auth Service of a cluster whose name is not known yet: the pins, or nothing, say whether it is the right one.
    pub fn unknown_cluster(trust: Trust) -> Self {
        Self::Fixed { trust, server_name: UNKNOWN_CLUSTER.into(), identity: None }
    }
}

/// Sent as server name while the cluster's name is not known; what is checked then is the pin.
const UNKNOWN_CLUSTER: &str = "auth.lockgate.internal";

/// How an [`Api`] connects.
#[derive(Clone)]
pub struct Settings {
    pub via: Via,
    pub access: Access,
    /// What this process says it is in the handshake: `tsh`, `tctl`, `proxy`, `node`.
    pub role: String,
    /// What this process claims to be.
    pub version: Version,
    /// `--skip-version-check` (rule G6).
    pub skip_version_check: bool,
    pub clock: SharedClock,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Settings({} as {} {})", self.via, self.role, self.version)
    }
}

/// Dials once; replaced in tests.
type Connect = dyn Fn() -> BoxFuture<'static, Result<IoStream, DialError>> + Send + Sync;

/// A cheap handle to the Auth Service. Clones share the connection.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    source: Source,
    /// Where the next connection goes.
    spread: Arc<spread::Spread>,
    live: Mutex<Option<Live>>,
}

enum Source {
    Dial(Settings),
    Given(Channel),
}

/// The channel in use, and the credentials it was made with.
struct Live {
    channel: Channel,
    made_with: Option<Arc<HostCredentials>>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0.source {
            Source::Dial(settings) => settings.fmt(f),
            Source::Given(_) => f.write_str("Api(given)"),
        }
    }
}

/// Documents of one kind.
#[derive(Clone, Debug)]
pub struct Listed<T> {
    pub items: Vec<T>,
    /// Documents that could not be read, here or at the Auth Service.
    pub skipped: u32,
    /// A watch from here misses nothing.
    pub revision: u64,
}

impl Api {
    /// Connects at the first call.
    pub fn new(settings: Settings) -> Self {
        let spread = Arc::new(spread::Spread::new(settings.via.addrs().to_vec()));
        Self(Arc::new(Inner { source: Source::Dial(settings), spread, live: Mutex::new(None) }))
    }

    /// Over connections that are TLS-checked and handshaken already, or need neither: for tests.
    pub fn over(connect: impl Fn() -> BoxFuture<'static, Result<IoStream, DialError>> + Send + Sync + 'static) -> Self {
        let connect: Box<Connect> = Box::new(connect);
        let (source, spread) = (Source::Given(net::grpc::channel(move || connect())), Arc::new(spread::Spread::new(Vec::new())));
        Self(Arc::new(Inner { source, spread, live: Mutex::new(None) }))
    }

    /// Other Proxies of the cluster, for a caller that goes by Proxies, beside those it was given. Replaces what was told before.
    pub fn told_of_proxies(&self, addrs: Vec<String>) {
        if let Some(Via::Proxy(_) | Via::AnyProxy(_)) = self.via() {
            self.0.spread.told(addrs);
        }
    }

    /// Where it connects to, for messages.
    pub fn via(&self) -> Option<&Via> {
        match &self.0.source {
            Source::Dial(settings) => Some(&settings.via),
            Source::Given(_) => None,
        }
    }

    fn client(&self) -> Result<AuthClient<Channel>, Public> {
        let channel = match &self.0.source {
            Source::Given(channel) => channel.clone(),
            Source::Dial(settings) => self.channel(settings)?,
        };
        Ok(AuthClient::new(channel).max_decoding_message_size(pb::MAX_MESSAGE).max_encoding_message_size(pb::MAX_MESSAGE))
    }

    fn channel(&self, settings: &Settings) -> Result<Channel, Public> {
        let now = match &settings.access {
            Access::Host(credentials) => Some(credentials.borrow().clone()),
            Access::Fixed { .. } => None,
        };
        let mut live = self.0.live.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |live: &Live| match (&live.made_with, &now) {
            (Some(then), Some(now)) => Arc::ptr_eq(then, now),
            (then, now) => then.is_none() && now.is_none(),
        };
        if let Some(live) = live.as_ref().filter(|live| same(live)) {
            return Ok(live.channel.clone());
        }
        let channel =
            open(settings, now.as_deref(), self.0.spread.clone()).map_err(|error| Public::new(Code::Certificate, error.to_string()))?;
        *live = Some(Live { channel: channel.clone(), made_with: now });
        Ok(channel)
    }

    /// One call within its deadline.
    async fn call<T, F>(&self, deadline: Duration, ask: impl FnOnce(AuthClient<Channel>) -> F + Send) -> Result<T, Public>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let asked = ask(self.client()?);
        match tokio::time::timeout(deadline, asked).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(public(&status)),
            Err(_) => Err(Public::new(Code::Timeout, "the Auth Service did not answer before the deadline")
                .hint("try again; `lockgate status` on its host shows its health")),
        }
    }
}

/// What a failed call means for people: why we could not connect, or what the Auth Service said.
pub(crate) fn public(status: &Status) -> Public {
    // Below gRPC: the connection went while the answer was on its way, as when an Auth Service stops.
    let lost = || {
        std::error::Error::source(status)
            .map(|_| Public::new(Code::Unavailable, "the connection to the Auth Service was lost").hint("try again: another may serve"))
    };
    net::grpc::connect_error(status).or_else(lost).unwrap_or_else(|| pb::from_status(status))
}

/// A channel whose connections are dialled with these credentials. One TLS configuration, so that sessions resume.
fn open(settings: &Settings, host: Option<&HostCredentials>, spread: Arc<spread::Spread>) -> Result<Channel, TlsError> {
    let (trust, server_name, identity) = match (&settings.access, host) {
        (Access::Fixed { trust, server_name, identity }, _) => (trust.clone(), server_name.clone(), identity.clone()),
        (Access::Host(_), Some(host)) => {
            (Trust::Cluster(host.trust.swap()?), sni::role_name(&SystemRole::Auth, host.cluster()), Some(host.tls.clone()))
        }
        (Access::Host(_), None) => return Err(TlsError::Config("there are no credentials".into())),
    };
    let config = client_config(identity.as_ref(), trust, &[alpn::AUTH], &settings.clock)?;
    let hello = Arc::new(Hello::ours(&settings.version, &settings.role));
    let policy = HelloPolicy { skip_version_check: settings.skip_version_check, ..HelloPolicy::default() };
    Ok(net::grpc::channel(move || {
        let (config, hello, spread, server_name) = (config.clone(), hello.clone(), spread.clone(), server_name.clone());
        Box::pin(async move {
            let dial = |addr: String| {
                let (config, server_name, hello) = (config.clone(), &server_name, &hello);
                async move {
                    let connected = net::dial::dial(&addr, config, server_name, hello, Direction::ServerFirst, policy).await?;
                    Ok(Box::new(connected.stream) as IoStream)
                }
            };
            spread.dial(dial, |addr| DialError::Timeout { addr, step: net::dial::Step::Tcp }).await
        })
    }))
}

/// Documents, generic over kinds.
impl Api {
    /// One document; [`Code::NotFound`] when there is none that the caller may see.
    pub async fn get_raw(&self, kind: &str, name: &str) -> Result<Document, Public> {
        let request = pb::GetRequest { kind: kind.into(), name: name.into() };
        let reply = self.call(READ_DEADLINE, |mut client| async move { client.get(request).await }).await?;
        document(&reply.document)
    }

    /// One document of a known kind.
    pub async fn get<S: Spec>(&self, name: &ResourceName) -> Result<Resource<S>, Public> {
        typed(self.get_raw(S::KIND, name.as_str()).await?)
    }

    /// One document, or `None` when there is none that the caller may see.
    pub async fn find<S: Spec>(&self, name: &ResourceName) -> Result<Option<Resource<S>>, Public> {
        match self.get(name).await {
            Ok(found) => Ok(Some(found)),
            Err(public) if public.is(Code::NotFound) => Ok(None),
            Err(public) => Err(public),
        }
    }

    /// Every document of a kind whose labels have these, all pages of it. Unreadable ones are counted.
    pub async fn list_raw(&self, kind: &str, labels: &Labels) -> Result<Listed<Document>, Public> {
        let mut listed = Listed { items: Vec::new(), skipped: 0, revision: 0 };
        let mut page = String::new();
        for number in 0..MAX_PAGES {
            let labels = labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            let request = pb::ListRequest { kind: kind.into(), limit: PAGE, page, labels };
            let reply = self.call(READ_DEADLINE, |mut client| async move { client.list(request).await }).await?;
            if number == 0 {
                listed.revision = reply.revision;
            }
            let before = listed.items.len();
            listed.items.extend(reply.documents.iter().filter_map(|bytes| Document::from_json(bytes).ok()));
            let unreadable = reply.documents.len().saturating_sub(listed.items.len().saturating_sub(before));
            listed.skipped = listed.skipped.saturating_add(reply.skipped).saturating_add(u32::try_from(unreadable).unwrap_or(u32::MAX));
            page = reply.next_page;
            if page.is_empty() {
                return Ok(listed);
            }
        }
        Err(Public::new(Code::TooLarge, format!("the list of {kind} documents does not end")))
    }

    /// The same, of a known kind.
    pub async fn list<S: Spec>(&self, labels: &Labels) -> Result<Listed<Resource<S>>, Public> {
        let raw = self.list_raw(S::KIND, labels).await?;
        let total = raw.items.len();
        let items: Vec<_> = raw.items.into_iter().filter_map(|document| Resource::from_document(document).ok()).collect();
        let unreadable = u32::try_from(total.saturating_sub(items.len())).unwrap_or(u32::MAX);
        Ok(Listed { items, skipped: raw.skipped.saturating_add(unreadable), revision: raw.revision })
    }

    /// Creates; [`Code::AlreadyExists`] when there is one of that kind and name.
    pub async fn create_raw(&self, document: &Document) -> Result<Document, Public> {
        let request = pb::WriteRequest { document: document.to_json().into() };
        let reply = self.call(WRITE_DEADLINE, |mut client| async move { client.create(request).await }).await?;
        self::document(&reply.document)
    }

    /// Creates a document of a known kind.
    pub async fn create<S: Spec>(&self, resource: &Resource<S>) -> Result<Resource<S>, Public> {
        typed(self.create_raw(&resource.to_document()).await?)
    }

    /// Replaces what has the revision inside; [`Code::Conflict`] when it was changed since.
    pub async fn update_raw(&self, document: &Document) -> Result<Document, Public> {
        let request = pb::WriteRequest { document: document.to_json().into() };
        let reply = self.call(WRITE_DEADLINE, |mut client| async move { client.update(request).await }).await?;
        self::document(&reply.document)
    }

    /// Replaces a document of a known kind.
    pub async fn update<S: Spec>(&self, resource: &Resource<S>) -> Result<Resource<S>, Public> {
        typed(self.update_raw(&resource.to_document()).await?)
    }

    /// Deletes; with a revision only when nothing was written since.
    pub async fn delete(&self, kind: &str, name: &str, revision: Option<&Revision>) -> Result<(), Public> {
        let revision = revision.map(|revision| revision.0.clone()).unwrap_or_default();
        let request = pb::DeleteRequest { kind: kind.into(), name: name.into(), revision };
        self.call(WRITE_DEADLINE, |mut client| async move { client.delete(request).await }).await.map(|_| ())
    }
}

/// Verbs that are not documents: each is the RPC of that name.
macro_rules! verbs {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $reply:ident, $deadline:ident;)+) => {
        impl Api {
            $($(#[$doc])*
            pub async fn $name(&self, request: pb::$request) -> Result<pb::$reply, Public> {
                self.call($deadline, |mut client| async move { client.$name(request).await }).await
            })+
        }
    };
}

verbs! {
    /// A host with a token and without a certificate. Use [`crate::host::join`].
    join(JoinRequest) -> HostCredentials, WRITE_DEADLINE;
    /// A host renews its certificates. Use [`crate::host::renew`].
    renew_host(RenewHostRequest) -> HostCredentials, WRITE_DEADLINE;
    /// The Proxy, on behalf of a person.
    login(LoginRequest) -> UserCredentials, WRITE_DEADLINE;
    get_invite(GetInviteRequest) -> InviteReply, READ_DEADLINE;
    accept_invite(AcceptInviteRequest) -> Empty, WRITE_DEADLINE;
    /// A user, for itself: never more than it has.
    reissue(ReissueRequest) -> UserCredentials, WRITE_DEADLINE;
    sign(SignRequest) -> UserCredentials, WRITE_DEADLINE;
    create_invite(CreateInviteRequest) -> CreateInviteReply, WRITE_DEADLINE;
    create_token(CreateTokenRequest) -> CreateTokenReply, WRITE_DEADLINE;
    /// The admission windows, and which Auth Services admit by them.
    get_windows(Empty) -> WindowsReply, READ_DEADLINE;
    move_window(MoveWindowRequest) -> WindowsReply, WRITE_DEADLINE;
    evict_member(EvictMemberRequest) -> WindowsReply, WRITE_DEADLINE;
    /// Whether users can connect at a member.
    walk_member(WalkMemberRequest) -> WalkMemberReply, WRITE_DEADLINE;
    list_migrations(Empty) -> ListMigrationsReply, READ_DEADLINE;
    list_bad_rows(ListBadRowsRequest) -> ListBadRowsReply, READ_DEADLINE;
    repair_row(RepairRowRequest) -> Empty, WRITE_DEADLINE;
    turn_migration(TurnMigrationRequest) -> MigrationStatus, WRITE_DEADLINE;
    plan_upgrade(PlanUpgradeRequest) -> PlanUpgradeReply, WRITE_DEADLINE;
    steer_upgrade(SteerUpgradeRequest) -> PlanUpgradeReply, WRITE_DEADLINE;
    list_releases(Empty) -> ListReleasesReply, WRITE_DEADLINE;
    heartbeat(HeartbeatRequest) -> HeartbeatReply, READ_DEADLINE;
    /// The Proxy, of a host that came for rescue.
    report_quarantine(ReportQuarantineRequest) -> ReportQuarantineReply, READ_DEADLINE;
    search_events(SearchEventsRequest) -> SearchEventsReply, READ_DEADLINE;
    list_recordings(ListRecordingsRequest) -> ListRecordingsReply, READ_DEADLINE;
}

impl Api {
    /// Names and versions of the cluster; needs no certificate.
    pub async fn ping(&self) -> Result<pb::PingReply, Public> {
        self.call(READ_DEADLINE, |mut client| async move { client.ping(pb::PingRequest {}).await }).await
    }

    /// Hands audit events over; repeated ones are recognised by their uid. Returns those that will never be taken, by their place.
    pub async fn emit_events(&self, events: &[types::Event]) -> Result<Vec<pb::RefusedEvent>, Public> {
        let bytes = |event| serde_json::to_vec(event).map(Into::into).map_err(|error| Public::new(Code::Malformed, error.to_string()));
        let request = pb::EmitEventsRequest { events: events.iter().map(bytes).collect::<Result<_, _>>()? };
        self.call(WRITE_DEADLINE, |mut client| async move { client.emit_events(request).await }).await.map(|reply| reply.refused)
    }

    /// Checks the audit log's hash chain; reads all of it.
    pub async fn verify_audit(&self) -> Result<pb::VerifyAuditReply, Public> {
        self.call(Duration::from_secs(600), |mut client| async move { client.verify_audit(pb::Empty {}).await }).await
    }

    /// The cluster's authorities, to trust.
    pub async fn trust(&self, cluster: &ClusterName) -> Result<ClusterTrust, Public> {
        let listed = self.list_raw(types::kind::CertAuthority::KIND, &Labels::new()).await?;
        Ok(ClusterTrust::from_documents(cluster, &listed.items))
    }
}

fn document(bytes: &[u8]) -> Result<Document, Public> {
    Document::from_json(bytes).map_err(|error| unreadable(&error))
}
fn typed<S: Spec>(document: Document) -> Result<Resource<S>, Public> {
    Resource::from_document(document).map_err(|error| unreadable(&error))
}
fn unreadable(error: &BadDocument) -> Public {
    Public::new(Code::Malformed, format!("the Auth Service's answer cannot be read: {error}"))
}

#[cfg(test)]
mod tests;
