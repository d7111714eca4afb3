//! The rescue door (ALPN `lockgate-rescue`): tells a host that is refused for its version which release to install next, and hands
//! that release out of the mirror (design 3.2).
//!
//! Whoever comes has shown a host certificate that TLS accepted: still trusted, not expired. Locks are asked for at each message.
//! Advice, files of releases, their metadata and the directive in force (`wire::directive`) are for every
//! member, whose updater comes here too.
//! Nothing here gives access: there is no way from this door to a host, a user or the Auth Service, whatever is said at it. No
//! handshake is spoken, so the two ends may be any number of majors apart. Strangers and users get nothing, not even a word.
//! Visits are bounded in number and time, and each host in how often it asks. What is next is decided in `rules::rescue`; the
//! messages are `wire::rescue`'s, the files [`mirror`]'s, the other end is `agent::rescue`. The Auth Service is told of each
//! visit, for the inventory; while it is away, the last windows that it told of count.

mod directive;
mod guests;
mod mirror;

use crate::Shared;
use guests::Guests;
use mirror::{Mirror, Opened};
use net::{IoStream, frame};
use rules::rescue::{self as decide, Case};
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{io::AsyncWriteExt as _, time::Instant};
use types::{Code, Extra, HostIdentity, Identity, Public, SystemRole, Version, control::Window};
use wire::{
    api as pb,
    rescue::{Action, Advice, CHUNK, Chunk, MAX_FETCH, Status, ToHost, ToProxy, decode, encode, not_known},
};

/// For the next question, and for writing one message.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(30);
/// For a whole visit: a release over a slow line takes some minutes, and can be resumed.
const VISIT_DEADLINE: Duration = Duration::from_secs(900);
/// For the Auth Service to take the report. The host waits so long.
const REPORT_DEADLINE: Duration = Duration::from_secs(4);
/// After which a host should ask again, in seconds; it adds jitter.
const AGAIN: u64 = 60;
/// Bytes read from a file at once.
const PIECE: usize = 16 * CHUNK;
const DOOR: &str = "lockgate-rescue";

/// What the door keeps.
pub(crate) struct Rescue {
    mirror: Option<Arc<Mirror>>,
    guests: Guests,
    /// What hosts may run, as the Auth Service said last.
    known: Mutex<Option<Known>>,
    directive: directive::Held,
}

#[derive(Clone)]
struct Known {
    window: Window,
    production: bool,
}

impl Rescue {
    pub(crate) fn new(mirror_dir: Option<PathBuf>) -> Self {
        Self {
            mirror: mirror_dir.map(|dir| Arc::new(Mirror::new(dir))),
            guests: Guests::default(),
            known: Mutex::new(None),
            directive: directive::Held::default(),
        }
    }
}

/// A member of this cluster in whatever role, not locked: releases are no secret, and a Proxy or Auth Service is fed from the mirror
/// too. Locks are looked up again at each message.
fn identify(shared: &Shared, identity: Option<Identity>) -> Result<HostIdentity, Option<Public>> {
    match identity {
        Some(Identity::Host(host)) if host.roles.iter().any(|role| role.window(false).is_some()) => match may_stay(shared, &host) {
            Ok(()) => Ok(host),
            Err(locked) => Err(Some(locked)),
        },
        Some(Identity::Host(_) | Identity::User(_)) | None => Err(None),
    }
}

fn may_stay(shared: &Shared, host: &HostIdentity) -> Result<(), Public> {
    rules::lock::check_host(&shared.cache.locks(), host.id, shared.clock.now()).map_err(|denied| denied.public())
}

/// Serves one visit to its end.
pub(crate) async fn serve(shared: &Shared, mut stream: IoStream, identity: Option<Identity>, peer: SocketAddr) {
    let host = match identify(shared, identity) {
        Ok(host) => host,
        Err(told) => {
            let error = told.clone().unwrap_or_else(|| Public::new(Code::AccessIdentity, "only members of the cluster are rescued"));
            shared.record.stranger(peer, DOOR, &error);
            if let Some(locked) = told {
                refuse(&mut stream, locked).await;
            }
            return;
        }
    };
    let Some(guest) = shared.rescue.guests.enter(host.id, Instant::now()) else {
        let full = Public::new(Code::AccessLimit, "too many are being rescued at this Proxy, or this host is already")
            .hint("try again in a minute");
        shared.metrics.refused(&full);
        return refuse(&mut stream, full).await;
    };
    tracing::info!(host = %host.id, name = %host.name, %peer, "a host came for rescue");
    let visit = async {
        loop {
            // Slowed down, not refused: who asks too often waits in its own line.
            tokio::time::sleep(guest.wait(Instant::now())).await;
            if let Err(ended) = message(shared, &mut stream, &host).await {
                return ended;
            }
        }
    };
    let ended = tokio::select! {
        ended = tokio::time::timeout(VISIT_DEADLINE, visit) => ended.unwrap_or(Ended::Late),
        () = shared.shutdown.draining() => Ended::Late,
    };
    tracing::debug!(host = %host.id, ?ended, "a rescue visit ended");
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.shutdown()).await;
}

/// Why a visit is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    /// The host hung up, or does not read or write.
    Gone,
    /// It was locked, or said something that is no message.
    Refused,
    Late,
}

impl From<frame::FrameError> for Ended {
    fn from(_: frame::FrameError) -> Self {
        Self::Gone
    }
}

async fn message(shared: &Shared, stream: &mut IoStream, host: &HostIdentity) -> Result<(), Ended> {
    let payload = frame::read_frame(stream, MESSAGE_DEADLINE).await?;
    if let Err(locked) = may_stay(shared, host) {
        refuse(stream, locked).await;
        return Err(Ended::Refused);
    }
    let asked = match decode::<ToProxy>(&payload) {
        Ok((asked, _)) => asked,
        Err(error) => {
            refuse(stream, Public::new(Code::Malformed, error.to_string())).await;
            return Err(Ended::Refused);
        }
    };
    let mirror = shared.rescue.mirror.clone();
    let opened = match asked {
        ToProxy::Status(status) => return advise(shared, stream, host, status).await,
        ToProxy::Metadata(metadata) if metadata.name.as_str() == wire::directive::FILE => {
            let opened = directive::open(shared).await;
            opened.map(|opened| (opened, metadata.offset, metadata.length))
        }
        ToProxy::Fetch(fetch) => {
            let opened = off_thread(mirror, move |mirror| mirror.artifact(&fetch.sha256)).await;
            opened.map(|opened| (opened, fetch.offset, fetch.length))
        }
        ToProxy::Metadata(metadata) => {
            let opened = off_thread(mirror, move |mirror| mirror.metadata(&metadata.name)).await;
            opened.map(|opened| (opened, metadata.offset, metadata.length))
        }
        ToProxy::Unknown => return write(stream, &not_known(&shared.version.to_string()), &[]).await,
    };
    match opened {
        Ok((opened, offset, length)) => send_file(shared, stream, opened, offset, length).await,
        Err(error) => {
            shared.metrics.refused(&error);
            write(stream, &refusal(error), &[]).await
        }
    }
}

/// Files are read and hashed beside the runtime.
async fn off_thread<T: Send + 'static>(
    mirror: Option<Arc<Mirror>>,
    work: impl FnOnce(&Mirror) -> Result<T, Public> + Send + 'static,
) -> Result<T, Public> {
    let Some(mirror) = mirror else {
        return Err(Public::new(Code::NotFound, "this Proxy has no mirror")
            .hint("set proxy_service.mirror_dir, or take the release from where you have it"));
    };
    let done = tokio::task::spawn_blocking(move || work(&mirror)).await;
    done.unwrap_or_else(|_| Err(Public::new(Code::Unavailable, "the mirror cannot be read").hint("try again")))
}

fn refusal(error: Public) -> ToHost {
    ToHost::Refused { error, extra: Extra::new() }
}

async fn refuse(stream: &mut IoStream, error: Public) {
    if write(stream, &refusal(error), &[]).await.is_ok() {
        let _ = tokio::time::timeout(Duration::from_secs(1), stream.shutdown()).await;
    }
}

async fn write(stream: &mut IoStream, message: &ToHost, body: &[u8]) -> Result<(), Ended> {
    let payload = encode(message, body).map_err(|_| Ended::Refused)?;
    Ok(frame::write_frame(stream, &payload, MESSAGE_DEADLINE).await?)
}

async fn send_file(shared: &Shared, stream: &mut IoStream, opened: Opened, offset: u64, length: u64) -> Result<(), Ended> {
    let opened = Arc::new(opened);
    let size = opened.size;
    let end = offset.saturating_add(length.min(MAX_FETCH)).min(size);
    let mut at = offset.min(size);
    loop {
        let file = opened.clone();
        let piece = u64::try_from(PIECE).map_or(end, |piece| at.saturating_add(piece)).min(end);
        let bytes = match tokio::task::spawn_blocking(move || file.read(at, piece)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(_)) | Err(_) => {
                let error = Public::new(Code::Unavailable, "the file cannot be read any more").hint("try again");
                return write(stream, &refusal(error), &[]).await;
            }
        };
        let mut chunks = bytes.chunks(CHUNK).peekable();
        if chunks.peek().is_none() {
            // Past the end, or nothing was asked for: an answer without bytes.
            let chunk = ToHost::Chunk(Chunk { offset: at, size, last: true, extra: Extra::new() });
            return write(stream, &chunk, &[]).await;
        }
        for body in chunks {
            let next = at.saturating_add(u64::try_from(body.len()).unwrap_or(u64::MAX));
            let chunk = ToHost::Chunk(Chunk { offset: at, size, last: next >= end, extra: Extra::new() });
            write(stream, &chunk, body).await?;
            shared.metrics.rescue_bytes.add(u64::try_from(body.len()).unwrap_or(u64::MAX));
            at = next;
        }
        if at >= end {
            return Ok(());
        }
    }
}

/// Tells the host what to do, and the Auth Service that it is here.
async fn advise(shared: &Shared, stream: &mut IoStream, host: &HostIdentity, status: Status) -> Result<(), Ended> {
    let version: Option<Version> = status.version.parse().ok();
    let releases = off_thread(shared.rescue.mirror.clone(), |mirror| Ok(mirror.versions())).await.unwrap_or_default();
    let refused_build = status.refused.as_ref().is_some_and(|public| public.is(Code::VersionBuild));
    let same = version.as_ref() == Some(&shared.version);
    let differs = status.content.as_deref().is_some_and(|content| content != wire::content::digest());
    let other_build = refused_build || (same && differs);
    let known = match report(shared, host, &status, other_build, &releases).await {
        Ok(known) => known,
        Err(ours) => {
            let text = format!("this Proxy ({}) is itself refused for its version: {}", shared.version, ours.message);
            let error = Public::new(Code::Unavailable, text).hint("ask another Proxy; this one must be upgraded first");
            return write(stream, &refusal(error), &[]).await;
        }
    };
    let case = Case {
        host: version.as_ref(),
        other_build,
        window: known.as_ref().map(|known| &known.window),
        production: known.as_ref().is_none_or(|known| known.production),
        proxy: &shared.version,
        releases: &releases,
    };
    let advice = decide::next(&case);
    let (why, cure) = decide::explain(&case, &advice);
    let mut told = Advice { proxy: shared.version.to_string(), why, cure, again: AGAIN, ..Advice::default() };
    match advice {
        decide::Advice::Install(target, _) => {
            told.action = Action::Install;
            told.major = Some(target.major);
            told.version = target.version.as_ref().map(ToString::to_string);
            if let Some(version) = target.version {
                let (os, arch) = (status.os, status.arch);
                let listed = off_thread(shared.rescue.mirror.clone(), move |mirror| Ok(mirror.artifacts(&version, &os, &arch))).await;
                told.artifacts = listed.unwrap_or_default();
            }
        }
        decide::Advice::Wait => told.action = Action::Wait,
        decide::Advice::Retry => told.action = Action::Retry,
    }
    tracing::info!(host = %host.id, name = %host.name, why = told.why, cure = told.cure, artifacts = told.artifacts.len(), "advised a host");
    write(stream, &ToHost::Advice(told), &[]).await
}

/// Whether a visit means that the host serves nobody. An Auth Service or a Proxy comes for files alone: how it is, it says itself.
fn is_lost(host: &HostIdentity) -> bool {
    let agent = SystemRole::Node.window(false);
    host.roles.iter().any(|role| role.window(false) == agent)
}

/// Reports the visit; what hosts may run, as the Auth Service says now or said last. An error when this Proxy itself may not serve:
/// then its advice would be of a cluster that is gone.
async fn report(
    shared: &Shared,
    host: &HostIdentity,
    status: &Status,
    other_build: bool,
    releases: &[Version],
) -> Result<Option<Known>, Public> {
    let last = || shared.rescue.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if !is_lost(host) {
        return Ok(last());
    }
    let request = pb::ReportQuarantineRequest {
        host_id: host.id.to_string(),
        version: status.version.chars().take(64).collect(),
        refused: status.refused.as_ref().and_then(|public| serde_json::to_vec(public).ok()).unwrap_or_default().into(),
        other_build,
        releases: releases.iter().map(ToString::to_string).collect(),
    };
    match tokio::time::timeout(REPORT_DEADLINE, shared.api.report_quarantine(request)).await {
        Ok(Ok(reply)) => {
            let known = Known { window: Window::new(reply.lo, reply.hi), production: reply.production };
            *shared.rescue.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known.clone());
            return Ok(Some(known));
        }
        Ok(Err(ours)) if ours.is_about_version() => return Err(ours),
        Ok(Err(error)) => tracing::warn!(host = %host.id, %error, "a host that came for rescue could not be reported"),
        Err(_) => tracing::warn!(host = %host.id, "the Auth Service does not answer; a host that came for rescue is not in the inventory"),
    }
    Ok(last())
}
