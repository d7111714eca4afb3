//! Recordings over the API: agents upload, users list and read what is theirs, auditors everything.
//!
//! An upload and a read are streams; each piece is bounded and has a deadline. What makes a recording acceptable is checked
//! in the sink, [`crate::recordings`]. Reading one is itself an event.

use super::events::time;
use crate::{
    core::{Call, Fault, malformed},
    metrics::count,
    recordings::{RecordingError, Upload, blocking, read_piece},
};
use rules::{
    Verb,
    documents::{decide_read, decide_write},
};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, Streaming};
use types::{Code, EventKind, HostId, Public, ResourceName, SessionId, kind::Recording};
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
        Ok(Some(recording)) => {
            count(&call.core.metrics.recordings);
            let event =
                call.event(EventKind::SessionUpload).with("sid", recording.session.to_string()).with("user", recording.user.as_str());
            call.core.audit.record(event.with("size", size)).await?;
            Ok(pb::Empty {})
        }
        Ok(None) => Ok(pb::Empty {}),
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

pub(crate) async fn list(call: Call, ask: pb::ListRecordingsRequest) -> Result<pb::ListRecordingsReply, Fault> {
    let permit = decide_read(call.caller()?, "recording", Verb::List)?;
    let (from, to) = (time(&ask.from)?, time(&ask.to)?);
    let limit = match usize::try_from(ask.limit) {
        Ok(0) => DEFAULT_LIST,
        Ok(limit) => limit.min(MAX_LIST),
        Err(_) => MAX_LIST,
    };
    let sink = call.core.recordings.clone();
    let found = blocking(move || {
        sink.list(limit, |recording| {
            permit.shows_recording(recording)
                && from.is_none_or(|from| recording.started >= from)
                && to.is_none_or(|to| recording.started < to)
        })
    })
    .await?;
    Ok(pb::ListRecordingsReply {
        recordings: found.iter().map(|recording| serde_json::to_vec(recording).unwrap_or_default().into()).collect(),
    })
}

/// Streams a recording. One that the caller may not see is absent for him.
pub(crate) async fn read(call: Call, ask: pb::ReadRecordingRequest) -> Result<ReadStream, Fault> {
    let permit = decide_read(call.caller()?, "recording", Verb::Read)?;
    let session: SessionId = ask.session.parse()?;
    let sink = call.core.recordings.clone();
    let offset = ask.offset;
    let (recording, file) = blocking(move || {
        let recording = sink.describe(session)?;
        if !permit.shows_recording(&recording) {
            return Err(RecordingError::NotFound);
        }
        let file = sink.open(session, offset)?;
        Ok((recording, file))
    })
    .await?;
    let event = call.event(EventKind::SessionRecordingAccess).with("sid", session.to_string());
    call.core.audit.record(event.with("session_user", recording.user.as_str())).await?;
    let (sender, receiver) = mpsc::channel(4);
    call.core.group.spawn("recording", send(file, recording, offset, sender));
    Ok(ReceiverStream::new(receiver))
}

async fn send(mut file: std::fs::File, recording: Recording, mut offset: u64, sender: mpsc::Sender<Result<pb::RecordingChunk, Status>>) {
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
