//! Recordings over the API: agents upload, users list and read what is theirs, auditors everything.
//!
//! An upload and a read are streams; each piece is bounded and has a deadline. What makes a recording acceptable is checked
//! in the sink, [`crate::recordings`]. Reading one is itself an event. What lies with other Auth Services is asked of them
//! (`recordings::peers`), and shown by the same permit; `list_own` and `read_own` are the other end of that.

use super::events::time;
use crate::{
    core::{Call, Fault, malformed},
    metrics::count,
    recordings::{
        MAX_RECORDING, RecordingError, Taken, Upload, blocking,
        peers::{self, Fetched},
        read_piece,
    },
};
use rules::{
    Permit, Verb,
    documents::{Scope, decide_read, decide_write},
    permit::Read,
};
use std::{collections::BTreeSet, fs::File, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, Streaming};
use types::{Code, Event, EventKind, HostId, Public, ResourceName, SessionId, SystemRole, Time, kind::Recording};
use wire::api as pb;

/// How long the next piece of an upload may take.
const PATIENCE: Duration = Duration::from_secs(60);
const DEFAULT_LIST: usize = 500;
const MAX_LIST: usize = 10_000;

pub(crate) type ReadStream = ReceiverStream<Result<pb::RecordingChunk, Status>>;

async fn next(stream: &mut Streaming<pb::RecordingChunk>) -> Result<pb::RecordingChunk, Fault> {
    match tokio::time::timeout(PATIENCE, stream.next()).await {
        Ok(Some(Ok(chunk))) => Ok(chunk),
        Ok(Some(Err(status))) => Err(Public::new(Code::Unavailable, format!("the upload broke off: {}", status.code())).into()),
        Ok(None) => Err(malformed("the upload ended without its last piece")),
        Err(_) => Err(Public::new(Code::Timeout, "the next piece of the upload did not come in time").into()),
    }
}

/// Takes a recording.
pub(crate) async fn upload(call: Call, mut stream: Streaming<pb::RecordingChunk>) -> Result<pb::Empty, Fault> {
    let caller = call.caller()?;
    let rules::Caller::Host(host) = caller else {
        return Err(rules::Denied::NotAllowed { who: call.name(), what: "upload recordings".into() }.into());
    };
    let permit = decide_write(caller, "recording", Verb::Create, &ResourceName::from(&host.id))?;
    let mut chunk = next(&mut stream).await?;
    let said: Recording =
        serde_json::from_slice(&chunk.description).map_err(|error| malformed(format!("the description cannot be read: {error}")))?;
    if permit.name != ResourceName::from(&said.host_id) {
        return Err(rules::Denied::NotAllowed { who: call.name(), what: "upload another host's recording".into() }.into());
    }
    let mut upload = begin(&call, said.session, host.id, chunk.offset).await?;
    loop {
        let (offset, data) = (chunk.offset, std::mem::take(&mut chunk.data));
        upload = blocking(move || {
            let mut upload = upload;
            upload.push(offset, &data)?;
            Ok(upload)
        })
        .await?;
        if chunk.last {
            break;
        }
        chunk = next(&mut stream).await?;
    }
    let sha256 = chunk.sha256;
    let size = upload.len();
    let taken = blocking(move || upload.finish(&sha256)).await;
    match taken {
        Ok(Taken { recording, fresh }) => {
            if fresh {
                count(&call.core.metrics.recordings);
            }
            // Also when it was there already: whoever put it there may have died before he could say so.
            let event =
                call.event(EventKind::SessionUpload).with("sid", recording.session.to_string()).with("user", recording.user.as_str());
            let event = Event { uid: EventKind::SessionUpload.once(recording.session), ..event.with("size", size) };
            call.core.audit.record(event).await?;
            Ok(pb::Empty {})
        }
        Err(error) => {
            tracing::warn!(session = %said.session, host = %host.id, %error, "a recording was refused");
            Err(error.into())
        }
    }
}

async fn begin(call: &Call, session: SessionId, host: HostId, offset: u64) -> Result<Upload, Fault> {
    let sink = call.core.recordings.clone();
    Ok(blocking(move || sink.upload(session, host, offset)).await?)
}

/// Which recordings a list is of.
struct Window {
    from: Option<Time>,
    to: Option<Time>,
    limit: usize,
}

impl Window {
    fn read(from: &str, to: &str, limit: u32) -> Result<Self, Fault> {
        let limit = match usize::try_from(limit) {
            Ok(0) => DEFAULT_LIST,
            Ok(limit) => limit.min(MAX_LIST),
            Err(_) => MAX_LIST,
        };
        Ok(Self { from: time(from)?, to: time(to)?, limit })
    }
    fn holds(&self, recording: &Recording) -> bool {
        self.from.is_none_or(|from| recording.started >= from) && self.to.is_none_or(|to| recording.started < to)
    }
}

/// Recordings that lie here and pass.
async fn here(call: &Call, limit: usize, passes: impl Fn(&Recording) -> bool + Send + 'static) -> Result<Vec<Recording>, Fault> {
    let sink = call.core.recordings.clone();
    Ok(blocking(move || sink.list(limit, passes)).await?)
}

fn listed(recordings: &[Recording], notes: Vec<String>) -> pb::ListRecordingsReply {
    let recordings = recordings.iter().map(|recording| serde_json::to_vec(recording).unwrap_or_default().into()).collect();
    pb::ListRecordingsReply { recordings, notes }
}

/// What lies here and with other Auth Services, newest first; and what is missing.
pub(crate) async fn list(call: Call, ask: pb::ListRecordingsRequest) -> Result<pb::ListRecordingsReply, Fault> {
    let permit = Arc::new(decide_read(call.caller()?, "recording", Verb::List)?);
    let window = Arc::new(Window::read(&ask.from, &ask.to, ask.limit)?);
    let user = match &permit.scope {
        Scope::SessionsOf(user) => user.to_string(),
        Scope::All | Scope::Named(_) | Scope::InRole(..) | Scope::Reachable(_) => String::new(),
    };
    let limit = u32::try_from(window.limit).unwrap_or(u32::MAX);
    let of_others = pb::ListOwnRecordingsRequest { from: ask.from, to: ask.to, limit, user };
    let passes = {
        let (permit, window) = (permit.clone(), window.clone());
        move |recording: &Recording| permit.shows_recording(recording) && window.holds(recording)
    };
    let (ours, theirs) = tokio::join!(here(&call, window.limit, passes.clone()), peers::list(&call.core, &of_others));
    let (mut all, theirs) = (ours?, theirs?);
    // An upload that was repeated elsewhere lies at both.
    let known: BTreeSet<SessionId> = all.iter().map(|recording| recording.session).collect();
    all.extend(theirs.recordings.into_iter().filter(|recording| passes(recording) && !known.contains(&recording.session)));
    all.sort_unstable_by_key(|recording| std::cmp::Reverse(recording.session));
    all.dedup_by_key(|recording| recording.session);
    all.truncate(window.limit);
    Ok(listed(&all, theirs.notes))
}

/// For another Auth Service: what lies here.
pub(crate) async fn list_own(call: Call, ask: pb::ListOwnRecordingsRequest) -> Result<pb::ListRecordingsReply, Fault> {
    call.only(SystemRole::Auth, "list what one Auth Service keeps")?;
    let permit = decide_read(call.caller()?, "recording", Verb::List)?;
    let window = Window::read(&ask.from, &ask.to, ask.limit)?;
    let (limit, user) = (window.limit, ask.user);
    let passes = move |recording: &Recording| {
        permit.shows_recording(recording) && window.holds(recording) && (user.is_empty() || recording.user == user)
    };
    Ok(listed(&here(&call, limit, passes).await?, Vec::new()))
}

/// Opens a recording that lies here and that the permit shows.
async fn open(call: &Call, permit: Arc<Permit<Read>>, session: SessionId, offset: u64) -> Result<(Recording, File), RecordingError> {
    let sink = call.core.recordings.clone();
    blocking(move || {
        let recording = sink.describe(session)?;
        if !permit.shows_recording(&recording) {
            return Err(RecordingError::NotFound);
        }
        Ok((recording, sink.open(session, offset)?))
    })
    .await
}

/// Streams a recording, wherever it lies. One that the caller may not see is absent for him: it takes the same way.
pub(crate) async fn read(call: Call, ask: pb::ReadRecordingRequest) -> Result<ReadStream, Fault> {
    let permit = Arc::new(decide_read(call.caller()?, "recording", Verb::Read)?);
    let session: SessionId = ask.session.parse()?;
    let (sender, receiver) = mpsc::channel(4);
    match open(&call, permit.clone(), session, ask.offset).await {
        Ok((recording, file)) => {
            accessed(&call, &recording).await?;
            call.core.group.spawn("recording", send(file, recording, ask.offset, sender));
        }
        Err(RecordingError::NotFound) => {
            let fetched = peers::fetch(&call.core, session, ask.offset, |recording| permit.shows_recording(recording)).await?;
            accessed(&call, &fetched.recording).await?;
            call.core.group.spawn("recording of another", relay(fetched, ask.offset, sender));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(ReceiverStream::new(receiver))
}

/// For another Auth Service: a recording that lies here. Who reads it is recorded where he asked.
pub(crate) async fn read_own(call: Call, ask: pb::ReadRecordingRequest) -> Result<ReadStream, Fault> {
    call.only(SystemRole::Auth, "read what one Auth Service keeps")?;
    let permit = Arc::new(decide_read(call.caller()?, "recording", Verb::Read)?);
    let (recording, file) = open(&call, permit, ask.session.parse()?, ask.offset).await?;
    let (sender, receiver) = mpsc::channel(4);
    call.core.group.spawn("recording for another", send(file, recording, ask.offset, sender));
    Ok(ReceiverStream::new(receiver))
}

async fn accessed(call: &Call, recording: &Recording) -> Result<(), Fault> {
    let event = call.event(EventKind::SessionRecordingAccess).with("sid", recording.session.to_string());
    Ok(call.core.audit.record(event.with("session_user", recording.user.as_str())).await?)
}

/// Passes on what another Auth Service sends, as long as it is one recording in one piece.
async fn relay(fetched: Fetched, mut offset: u64, sender: mpsc::Sender<Result<pb::RecordingChunk, Status>>) {
    let Fetched { recording, first, mut rest } = fetched;
    let broken = |what: &str| Err(wire::api::to_status(&Public::new(Code::RecordingBroken, what)));
    let mut next = Some(first);
    while let Some(chunk) = next.take() {
        let (last, len) = (chunk.last, u64::try_from(chunk.data.len()).unwrap_or(u64::MAX));
        let fits = chunk.offset == offset && offset.saturating_add(len) <= MAX_RECORDING;
        offset = offset.saturating_add(len);
        let passed = if fits { Ok(chunk) } else { broken("the recording came in the wrong order from the Auth Service that keeps it") };
        let sent = tokio::time::timeout(PATIENCE, sender.send(passed)).await;
        if last || !fits || !matches!(sent, Ok(Ok(()))) {
            return;
        }
        match tokio::time::timeout(PATIENCE, rest.message()).await {
            Ok(Ok(Some(chunk))) => next = Some(chunk),
            Ok(Ok(None) | Err(_)) | Err(_) => {
                tracing::warn!(session = %recording.session, offset, "a recording broke off on its way from another Auth Service");
                let gone = broken("the recording broke off on its way from the Auth Service that keeps it");
                let _told = tokio::time::timeout(PATIENCE, sender.send(gone)).await;
            }
        }
    }
}

async fn send(mut file: File, recording: Recording, mut offset: u64, sender: mpsc::Sender<Result<pb::RecordingChunk, Status>>) {
    let mut description = serde_json::to_vec(&recording).unwrap_or_default();
    loop {
        let read = blocking(move || {
            let piece = read_piece(&mut file)?;
            Ok((file, piece))
        })
        .await;
        let (back, data) = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(session = %recording.session, %error, "a recording could not be read");
                let status = wire::api::to_status(&Public::new(Code::RecordingBroken, "the recording cannot be read"));
                let _ = tokio::time::timeout(PATIENCE, sender.send(Err(status))).await;
                return;
            }
        };
        file = back;
        let last = data.is_empty();
        let len = u64::try_from(data.len()).unwrap_or_default();
        let chunk =
            pb::RecordingChunk { description: std::mem::take(&mut description).into(), data, offset, last, sha256: Default::default() };
        offset = offset.saturating_add(len);
        // A reader that takes nothing for so long has gone.
        let sent = tokio::time::timeout(PATIENCE, sender.send(Ok(chunk))).await;
        if last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}
