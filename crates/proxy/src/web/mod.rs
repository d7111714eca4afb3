//! The web: `/webapi` for `tsh`, and the few pages for people.
//!
//! HTTP/1.1 over the TLS that the listener has served. Nobody here is known by a certificate, so everything has a bound:
//! request head and body, the time of a request, the life of a connection, attempts per source. No script anywhere; every
//! answer, errors too, carries the same security headers (attack table, row 26). Request lines are not logged: an
//! invitation's secret stands in its path.
//!
//! What a person may do is decided by the Auth Service; `info`, `login` and `invite` only carry it there.

mod info;
mod invite;
mod login;
mod page;
pub mod read;

use crate::Shared;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use net::{
    IoStream,
    rate::{Buckets, Rate},
    shutdown::Shutdown,
};
use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tower::ServiceExt as _;
use types::{Code, Public, version::Direction};
use wire::hello::{HEADER, Hello};

/// The most bytes of a request's body.
const MAX_BODY: usize = 64 * 1024;
/// The most bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// A little more than the Auth Service is given to answer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(32);
/// A connection takes no further request after so long. Browsers open another.
const CONNECTION_LIFE: Duration = Duration::from_secs(10);

/// Who sent the request; put into each by [`serve`].
#[derive(Clone, Copy, Debug)]
struct Peer(SocketAddr);

/// Attempts per source.
pub(crate) struct Attempts {
    begun: Instant,
    buckets: Mutex<Buckets>,
}

impl Attempts {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { begun: Instant::now(), buckets: Mutex::new(Buckets::new(rate)) }
    }
    /// Takes one attempt for what follows, or says that there were too many; a success gives it back.
    async fn attempt<T, E: From<Public>>(&self, source: IpAddr, what: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let buckets = || self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let free = buckets().take(source, self.begun.elapsed());
        let error = || Public::new(Code::RateLimited, "too many attempts from your address").hint("wait a minute, then try again");
        free.then_some(()).ok_or_else(error)?;
        let done = what.await?;
        buckets().give_back(source);
        Ok(done)
    }
}

/// Every route. A new one gets the headers of [`guard`] by being here.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(info::home))
        .route("/web/style.css", get(info::style))
        .route("/webapi/ping", get(info::ping))
        .route("/webapi/ping/{connector}", get(info::ping_connector))
        .route("/webapi/find", get(info::find))
        .route("/webapi/login", post(login::login))
        .route("/webapi/invite/{secret}", get(invite::show).post(invite::accept))
        .route("/web/invite/{secret}", get(invite::page).post(invite::page_accept))
        .fallback(|| async { Failure(Public::new(Code::NotFound, "there is nothing at this address")) })
        .method_not_allowed_fallback(|| async {
            (StatusCode::METHOD_NOT_ALLOWED, Failure(Public::new(Code::Usage, "this method is not for this address")))
        })
        .layer(from_fn_with_state(shared.clone(), guard))
        .with_state(shared)
}

/// Serves one connection until its life is over. Dropping the future closes it.
pub(crate) async fn serve(stream: IoStream, peer: SocketAddr, router: Router, shutdown: Shutdown) {
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let router = router.clone();
        async move {
            let late = || Failure(Public::new(Code::Timeout, "the request took too long")).into_response();
            let answered = tokio::time::timeout(REQUEST_DEADLINE, router.oneshot(request.map(Body::new))).await;
            answered.unwrap_or_else(|_| Ok(late()))
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(MAX_HEAD).max_headers(64);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        done = connection.as_mut() => return log(done),
        () = shutdown.draining() => {}
        () = tokio::time::sleep(CONNECTION_LIFE) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        done = connection.as_mut() => log(done),
        () = shutdown.stopping() => {}
    }
}

fn log(done: Result<(), hyper::Error>) {
    if let Err(error) = done {
        tracing::debug!(%error, "a web connection ended");
    }
}

/// Around every request: versions before, headers after.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let api = path.starts_with("/webapi/");
    let verdict = if api && !is_info(path) { judge(&shared, request.headers(), path == "/webapi/login") } else { Ok(()) };
    let mut response = match verdict {
        Ok(()) => next.run(request).await,
        Err(refused) => {
            let from = request.extensions().get::<Peer>().map(|peer| peer.0);
            shared.record.version_refused(from, refused.peer.as_ref(), &refused.error, "/webapi");
            Failure(refused.error).into_response()
        }
    };
    protect(response.headers_mut(), shared.certificates.given());
    if api && let Ok(ours) = serde_json::to_string(&shared.hello) {
        response.headers_mut().extend(HeaderValue::try_from(ours).map(|value| (HeaderName::from_static(HEADER), value)));
    }
    response
}

/// Rule G1: anyone can ask for versions, whatever he is.
fn is_info(path: &str) -> bool {
    path == "/webapi/find" || path == "/webapi/ping" || path.starts_with("/webapi/ping/")
}

/// A version that does not fit, and what its sender said.
struct Refused {
    error: Public,
    peer: Option<Hello>,
}

/// Rule G4 over HTTP. A browser or `curl` sends no version; only a login needs one, since its caller is always `tsh`.
fn judge(shared: &Shared, headers: &HeaderMap, required: bool) -> Result<(), Box<Refused>> {
    let Some(value) = headers.get(HEADER) else {
        let missing = || {
            Public::new(Code::VersionUnreadable, "the request names no version").hint("log in with tsh of this release or the one before")
        };
        return if required { Err(Box::new(Refused { error: missing(), peer: None })) } else { Ok(()) };
    };
    // What cannot be read is judged as a peer without a version.
    let peer: Hello = serde_json::from_slice(value.as_bytes()).unwrap_or_else(|_| Hello { version: String::new(), ..shared.hello.clone() });
    match wire::hello::decide(Direction::ServerFirst, &peer, &shared.hello) {
        wire::hello::Verdict::Accept => Ok(()),
        wire::hello::Verdict::Refuse(error) => Err(Box::new(Refused { error, peer: Some(peer) })),
    }
}

/// The headers of every answer. `given`: a certificate that browsers know was configured; a promise to always use TLS would
/// otherwise lock people out of a cluster that they reach by the same name later.
fn protect(headers: &mut HeaderMap, given: bool) {
    const FIXED: [(HeaderName, &str); 8] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
    ];
    for (name, value) in FIXED {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if given {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
}

/// A whole body, bounded in size and time.
async fn body(request: Request) -> Result<Bytes, Public> {
    let late = |_| Public::new(Code::Timeout, "the request's body did not come in time");
    let read = tokio::time::timeout(BODY_DEADLINE, axum::body::to_bytes(request.into_body(), MAX_BODY)).await.map_err(late)?;
    read.map_err(|_| Public::new(Code::TooLarge, format!("the request's body is longer than {MAX_BODY} bytes, or broke off")))
}

fn source(request: &Request) -> Result<IpAddr, Public> {
    request.extensions().get::<Peer>().map(|peer| peer.0.ip().to_canonical()).ok_or_else(|| Public::internal("no peer"))
}

/// An error as the web sees it: a fitting status and the error as JSON.
struct Failure(Public);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = axum::Json(&self.0).into_response();
        *response.status_mut() = status(&self.0);
        response
    }
}

/// The HTTP status that fits an error. The code inside the body is what programs should look at.
fn status(error: &Public) -> StatusCode {
    let Some(code) = error.known() else { return StatusCode::INTERNAL_SERVER_ERROR };
    match code {
        Code::VersionTooOld | Code::VersionTooNew | Code::VersionUnreadable | Code::VersionProtocol => StatusCode::UPGRADE_REQUIRED,
        Code::VersionPrerelease | Code::VersionAuthOlder | Code::VersionWindow | Code::VersionBuild => StatusCode::UPGRADE_REQUIRED,
        Code::LoginFailed | Code::LoginExpired | Code::LoginRequired => StatusCode::UNAUTHORIZED,
        Code::LoginLocked | Code::RateLimited | Code::AccessLimit => StatusCode::TOO_MANY_REQUESTS,
        Code::AccessDenied | Code::AccessIdentity | Code::AccessLocked | Code::TokenInvalid | Code::CaPin => StatusCode::FORBIDDEN,
        Code::InviteInvalid | Code::NotFound | Code::NodeUnknown => StatusCode::NOT_FOUND,
        Code::PasswordWeak | Code::Malformed | Code::Usage | Code::NodeAmbiguous => StatusCode::BAD_REQUEST,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::AlreadyExists | Code::Conflict | Code::UpgradeWaits | Code::UpgradeRefused | Code::UpgradeRunning | Code::UpdateRefused => {
            StatusCode::CONFLICT
        }
        Code::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Code::Unavailable | Code::Unreachable | Code::NodeOffline | Code::StoreFenced | Code::StoreBroken => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Code::Certificate => StatusCode::BAD_GATEWAY,
        Code::VersionSkip
        | Code::VersionDowngrade
        | Code::Config
        | Code::StoreForeign
        | Code::AuditBroken
        | Code::RecordingBroken
        | Code::BackupForeign
        | Code::BackupNewer
        | Code::BackupTruncated
        | Code::BackupDamaged
        | Code::BackupSigner
        | Code::BackupKey
        | Code::BackupTooLarge
        | Code::BackupIo
        | Code::MirrorBroken
        | Code::RescueUnknown
        | Code::UpdateUntrusted
        | Code::UpdateDirective
        | Code::UpdateBroken
        | Code::UpdateFailed
        | Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
