//! One connection to any member of an etcd, made when it is needed and made anew, with the next member, when it was lost.
//!
//! Nothing is ever sent twice here: each call says what failed and whether it is sure that nothing was done, and the caller, who
//! knows what may be repeated, decides.

use super::Options;
use super::proto::{AuthenticateRequest, AuthenticateResponse};
use crate::StoreError;
use crate::remote::{OpenError, SILENT, client_config, host_and_port, is_local, password};
use hyper_util::rt::TokioIo;
use prost::Message;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::error::Error as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

const CONNECT: Duration = Duration::from_secs(3);
/// The largest answer that the driver ever asks for, with room.
const MAX_ANSWER: usize = 128 << 20;
/// etcd hangs up on clients that ping more often than every 5 s.
const PING: Duration = Duration::from_secs(10);

/// What failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) what: What,
    /// Nothing was done, nor will be.
    pub(super) sure: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Store(StoreError),
    /// That old revision is gone.
    Compacted,
    /// That revision is yet to come: this etcd is older than what was seen of it.
    Future,
    /// The transaction is too large for this etcd.
    TooLarge,
    /// The answer is larger than [`MAX_ANSWER`].
    LargeAnswer,
}

impl Fault {
    /// For those who ask nothing that could meet the others.
    pub(super) fn store(self, place: &str) -> StoreError {
        let io = |detail: &str| StoreError::Io { place: place.into(), detail: detail.into() };
        match self.what {
            What::Store(error) => error,
            What::Compacted => io("the revision was compacted"),
            What::Future => io("the revision is in the future"),
            What::TooLarge => io("the request is too large"),
            What::LargeAnswer => io("the answer is too large"),
        }
    }

    /// Whether it may pass by itself, or with another member.
    pub(super) fn passes(&self) -> bool {
        matches!(self.what, What::Store(StoreError::Unreachable { .. }))
    }
}

#[derive(Clone)]
struct Wire {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    number: usize,
}

pub(super) struct Client {
    endpoints: Vec<(String, u16)>,
    tls: Option<Arc<ClientConfig>>,
    /// TLS without a client certificate.
    anonymous: bool,
    login: Option<(String, PathBuf)>,
    place: String,
    answer: Duration,
    wire: Mutex<Option<Wire>>,
    /// Connections made, and which member is next.
    made: AtomicUsize,
    connecting: Semaphore,
}

impl Client {
    pub(super) fn new(options: &Options) -> Result<Self, OpenError> {
        let bad = |text: String| Err(OpenError::Settings(text));
        if options.endpoints.is_empty() {
            return bad("etcd needs at least one endpoint".into());
        }
        let mut endpoints = Vec::new();
        for endpoint in &options.endpoints {
            let plain = endpoint.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
            let (host, port) = host_and_port(plain, 2379)?;
            if options.tls.is_none() && (endpoint.starts_with("https://") || !(options.insecure || is_local(&host))) {
                return bad(format!(
                    "etcd at {host} needs TLS: give tls_ca_file, or insecure if the network may see and change everything"
                ));
            }
            endpoints.push((host, port));
        }
        let login = match (&options.user, &options.password_file) {
            (Some(user), Some(file)) => {
                // Read now too, so that a missing file is said at the start.
                password(file)?;
                Some((user.clone(), file.clone()))
            }
            (None, None) => None,
            _ => return bad("etcd needs both a user and a password file, or neither".into()),
        };
        let tls = options.tls.as_ref().map(|tls| client_config(tls, &[b"h2"])).transpose()?;
        Ok(Self {
            endpoints,
            tls,
            anonymous: options.tls.as_ref().is_some_and(|tls| tls.identity.is_none()),
            login,
            place: format!("etcd {}{}", options.endpoints.join(","), options.prefix),
            answer: options.answer,
            wire: Mutex::new(None),
            made: AtomicUsize::new(0),
            connecting: Semaphore::new(1),
        })
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn close(&self) {
        *self.wire.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// One question, one answer, one attempt.
    pub(super) async fn call<Q, A>(&self, path: &'static str, question: Q) -> Result<A, Fault>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let wire = self.wire().await?;
        match tokio::time::timeout(self.answer, ask(&wire, path, question)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(self.failed(&wire, &status)),
            Err(_) => {
                self.forget(&wire);
                Err(self.unreachable(SILENT, false))
            }
        }
    }

    /// A stream of answers; `question` is kept open.
    pub(super) async fn stream<Q, A>(&self, path: &'static str, question: Q) -> Result<Answers<A>, Fault>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let wire = self.wire().await?;
        let questions = futures::StreamExt::chain(futures::stream::iter([question]), futures::stream::pending());
        let mut request = Request::new(questions);
        sign(request.metadata_mut(), &wire);
        // A member that has lost its leader ends the stream instead of going silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let mut grpc = tonic::client::Grpc::new(wire.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let started = async {
            ready(&mut grpc).await?;
            grpc.streaming(request, http::uri::PathAndQuery::from_static(path), tonic_prost::ProstCodec::<Q, A>::default()).await
        };
        match tokio::time::timeout(self.answer, started).await {
            Ok(Ok(answers)) => Ok(Answers { answers: answers.into_inner(), wire }),
            Ok(Err(status)) => Err(self.failed(&wire, &status)),
            Err(_) => {
                self.forget(&wire);
                Err(self.unreachable(SILENT, true))
            }
        }
    }

    /// The next of a stream; its end is a fault too, for etcd does not end them.
    pub(super) async fn next<A: Message + Default + 'static>(&self, answers: &mut Answers<A>) -> Result<A, Fault> {
        match answers.answers.message().await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.unreachable("the stream ended", true)),
            Err(status) => Err(self.failed(&answers.wire, &status)),
        }
    }

    fn unreachable(&self, detail: impl Into<String>, sure: bool) -> Fault {
        Fault { what: What::Store(StoreError::Unreachable { place: self.place.clone(), detail: detail.into() }), sure }
    }

    /// Names a failure and forgets the connection if another could do better.
    fn failed(&self, wire: &Wire, status: &Status) -> Fault {
        let fault = self.named(status);
        if fault.passes() {
            self.forget(wire);
        }
        fault
    }

    fn named(&self, status: &Status) -> Fault {
        let mut fault = named(&self.place, status);
        // In TLS 1.3 a server that misses the client's certificate lets the handshake pass, and then hangs up.
        if let (What::Store(StoreError::Unreachable { detail, .. }), true) = (&mut fault.what, self.anonymous) {
            detail.push_str("; if etcd asks for client certificates, give it one");
        }
        fault
    }

    fn forget(&self, wire: &Wire) {
        let mut slot = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|present| present.number == wire.number) {
            *slot = None;
        }
    }

    fn present(&self) -> Option<Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connection, made if there is none: one attempt with one member. Here nothing has been asked yet, so all faults are sure.
    async fn wire(&self) -> Result<Wire, Fault> {
        if let Some(wire) = self.present() {
            return Ok(wire);
        }
        let _turn = self.connecting.acquire().await.map_err(|_| Fault { what: What::Store(StoreError::Closed), sure: true })?;
        if let Some(wire) = self.present() {
            return Ok(wire);
        }
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let Some((host, port)) = self.endpoints.get(number % self.endpoints.len().max(1)) else {
            return Err(self.unreachable("no endpoints", true));
        };
        let failed = |detail: String| self.unreachable(format!("{host}:{port}: {detail}"), true);
        let channel = match tokio::time::timeout(CONNECT, self.channel(host, *port)).await {
            Ok(channel) => channel.map_err(failed)?,
            Err(_) => return Err(failed("no connection in time".into())),
        };
        let mut wire = Wire { channel, token: None, number };
        if let Some((user, file)) = &self.login {
            wire.token = Some(self.log_in(&wire, user, file).await?);
        }
        *self.wire.lock().unwrap_or_else(PoisonError::into_inner) = Some(wire.clone());
        Ok(wire)
    }

    async fn channel(&self, host: &str, port: u16) -> Result<Channel, String> {
        let tcp = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let stream: Box<dyn Both> = match &self.tls {
            None => Box::new(tcp),
            Some(config) => {
                let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name, tcp).await.map_err(|error| format!("TLS: {error}"))?)
            }
        };
        // This connection and no other: when it is lost, the channel fails, and that is what the driver wants to know.
        let mut once = Some(stream);
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = once.take();
            async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("the connection was lost")) }
        });
        Endpoint::from_static("http://etcd.internal")
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .connect_with_connector(connector)
            .await
            .map_err(|error| chain(&error))
    }

    async fn log_in(&self, wire: &Wire, user: &str, file: &std::path::Path) -> Result<MetadataValue<Ascii>, Fault> {
        let refused = |detail: String| Fault { what: What::Store(StoreError::Refused { place: self.place.clone(), detail }), sure: true };
        let secret = password(file).map_err(|error| refused(error.to_string()))?;
        let question = AuthenticateRequest { name: user.into(), password: secret.expose().into() };
        let asked = tokio::time::timeout(self.answer, ask::<_, AuthenticateResponse>(wire, "/etcdserverpb.Auth/Authenticate", question));
        let answer = match asked.await {
            Ok(answer) => answer.map_err(|status| Fault { sure: true, ..self.named(&status) })?,
            Err(_) => return Err(self.unreachable("no answer to the login in time", true)),
        };
        answer.token.parse().map_err(|_| refused("etcd answered the login with something that is not a token".into()))
    }
}

/// A stream of answers.
pub(super) struct Answers<A> {
    answers: Streaming<A>,
    wire: Wire,
}

trait Both: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Both for T {}

async fn ready(grpc: &mut tonic::client::Grpc<Channel>) -> Result<(), Status> {
    grpc.ready().await.map_err(|error| Status::unavailable(chain(&error)))
}

async fn ask<Q: Message + 'static, A: Message + Default + 'static>(wire: &Wire, path: &'static str, question: Q) -> Result<A, Status> {
    let mut grpc = tonic::client::Grpc::new(wire.channel.clone()).max_decoding_message_size(MAX_ANSWER);
    ready(&mut grpc).await?;
    let mut request = Request::new(question);
    sign(request.metadata_mut(), wire);
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    grpc.unary(request, http::uri::PathAndQuery::from_static(path), codec).await.map(tonic::Response::into_inner)
}

fn sign(metadata: &mut tonic::metadata::MetadataMap, wire: &Wire) {
    if let Some(token) = &wire.token {
        metadata.insert("token", token.clone());
    }
}

/// An error with its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        let more = deeper.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = deeper.source();
    }
    text
}

/// Names what etcd said. Its own words begin with `etcdserver:` and are the same in every 3.x.
fn named(place: &str, status: &Status) -> Fault {
    let place = place.to_owned();
    let said = status.message();
    let sure = |what| Fault { what, sure: true };
    let store = |error| sure(What::Store(error));
    let says = |words: &str| said.contains(words);
    if says("database space exceeded") {
        // The very write that first passes the quota is done, and yet answered with this.
        return Fault { what: What::Store(StoreError::Quota { place }), sure: false };
    }
    if says("revision has been compacted") {
        return sure(What::Compacted);
    }
    if says("is a future revision") {
        return sure(What::Future);
    }
    if says("request is too large") || says("too many operations in txn") {
        return sure(What::TooLarge);
    }
    if says("decoded message length too large") {
        return Fault { what: What::LargeAnswer, sure: false };
    }
    if says("invalid user ID or password") {
        return store(StoreError::Refused { place, detail: "etcd refuses the user or the password".into() });
    }
    if says("user name is empty") || says("user name not found") {
        return store(StoreError::Refused { place, detail: "etcd asks for a user and a password, or a client certificate".into() });
    }
    if says("authentication is not enabled") {
        return store(StoreError::Refused { place, detail: "a user is configured, but this etcd has no authentication enabled".into() });
    }
    if says("permission denied") {
        return store(StoreError::Refused { place, detail: "etcd refuses this user the keys under the prefix".into() });
    }
    if says("corrupt cluster") {
        return store(StoreError::Corrupt { place, detail: said.into() });
    }
    if says("invalid auth token") || says("revision in header is old") || says("too many requests") {
        return store(StoreError::Unreachable { place, detail: said.into() });
    }
    let cause = status.source().map(chain).filter(|cause| !said.contains(cause.as_str()));
    let detail = cause.map_or(said.to_owned(), |cause| format!("{said}: {cause}"));
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::NotFound if said.starts_with("etcdserver:") => {
            store(StoreError::Io { place, detail })
        }
        Code::Unimplemented => store(StoreError::Io { place, detail: format!("this is not an etcd 3.4 or later: {detail}") }),
        _ => Fault { what: What::Store(StoreError::Unreachable { place, detail }), sure: false },
    }
}
