//! The calls that carry a stream: following changes, and moving recordings.
//!
//! A stream may be silent for as long as nothing changes: a dead connection is found by HTTP/2 pings (`net::grpc`). A
//! *transfer* may not: it fails when nothing moved for [`PROGRESS`].

use super::{Api, READ_DEADLINE, public};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tonic::Streaming;
use types::{Code, Document, Public, ResourceName, SessionId, kind::Recording};
use wire::api::{self as pb, watch_event::Event};

/// A transfer in which nothing moves for so long has failed.
const PROGRESS: Duration = Duration::from_secs(60);

/// One thing that a watch says.
#[derive(Clone, PartialEq, Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly every item is a document")]
pub enum WatchItem {
    /// The first item: which kinds the server will send, and whether everything that exists comes first, of all of them or of some.
    Init { confirmed: Vec<String>, snapshot: bool, anew: Vec<String> },
    /// A document exists, in this form.
    Put(Document),
    /// A document that cannot be read here.
    Unreadable,
    /// A document is gone.
    Delete { kind: String, name: ResourceName },
    /// Everything that existed at the start has been sent.
    Synced,
}

/// Changes as they happen.
pub struct Watch {
    stream: Streaming<pb::WatchEvent>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl Watch {
    /// The next item and the store's revision after it; waits for as long as nothing changes. Safe to cancel.
    /// A stream that ends is an error: servers end it only when they stop.
    pub async fn next(&mut self) -> Result<(WatchItem, u64), Public> {
        loop {
            let event = match self.stream.message().await {
                Ok(Some(event)) => event,
                Ok(None) => return Err(Public::new(Code::Unavailable, "the Auth Service ended the watch")),
                Err(status) => return Err(public(&status)),
            };
            let item = match event.event {
                Some(Event::Init(init)) => WatchItem::Init { confirmed: init.confirmed, snapshot: init.snapshot, anew: init.anew },
                Some(Event::Put(bytes)) => Document::from_json(&bytes).map_or(WatchItem::Unreadable, WatchItem::Put),
                Some(Event::Delete(gone)) => match ResourceName::new(&gone.name) {
                    Ok(name) => WatchItem::Delete { kind: gone.kind, name },
                    Err(_) => WatchItem::Unreadable,
                },
                Some(Event::Synced(_)) => WatchItem::Synced,
                // An event of a newer release.
                None => continue,
            };
            return Ok((item, event.revision));
        }
    }
}

/// A recording as it is read from the sink.
pub struct RecordingReader {
    stream: Streaming<pb::RecordingChunk>,
    /// What the recording is of.
    pub description: Option<Recording>,
    first: Option<Bytes>,
}

impl std::fmt::Debug for RecordingReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecordingReader({:?})", self.description.as_ref().map(|recording| recording.session))
    }
}

impl RecordingReader {
    /// The next bytes of the file; `None` at its end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Public> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        Ok(chunk(&mut self.stream).await?.map(|chunk| chunk.data))
    }
}

async fn chunk(stream: &mut Streaming<pb::RecordingChunk>) -> Result<Option<pb::RecordingChunk>, Public> {
    match tokio::time::timeout(PROGRESS, stream.message()).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(status)) => Err(public(&status)),
        Err(_) => Err(Public::new(Code::Timeout, "the recording stopped coming")),
    }
}

/// A backup as it is made.
pub struct BackupReader(Streaming<pb::BackupChunk>);

impl std::fmt::Debug for BackupReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BackupReader")
    }
}

impl BackupReader {
    /// The next piece; the last one says what was written. An end without that is an error.
    pub async fn next(&mut self) -> Result<pb::BackupChunk, Public> {
        match tokio::time::timeout(PROGRESS, self.0.message()).await {
            Ok(Ok(Some(chunk))) => Ok(chunk),
            Ok(Ok(None)) => Err(Public::new(Code::Unavailable, "the Auth Service ended the backup before it was complete")),
            Ok(Err(status)) => Err(public(&status)),
            Err(_) => Err(Public::new(Code::Timeout, "the backup stopped coming")),
        }
    }
}

/// The audit log as it is exported.
pub struct ExportReader(Streaming<pb::ExportChunk>);

impl std::fmt::Debug for ExportReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExportReader")
    }
}

impl ExportReader {
    /// The next piece; the last one says what was sent. An end without that is an error.
    pub async fn next(&mut self) -> Result<pb::ExportChunk, Public> {
        match tokio::time::timeout(PROGRESS, self.0.message()).await {
            Ok(Ok(Some(chunk))) => Ok(chunk),
            Ok(Ok(None)) => Err(Public::new(Code::Unavailable, "the Auth Service ended the export before it was complete")),
            Ok(Err(status)) => Err(public(&status)),
            Err(_) => Err(Public::new(Code::Timeout, "the export stopped coming")),
        }
    }
}

impl Api {
    /// Exports the audit log. Not repeated by itself: each one is recorded.
    pub async fn export_events(&self, request: pb::ExportEventsRequest) -> Result<ExportReader, Public> {
        let stream = self.call(READ_DEADLINE, |mut client| async move { client.export_events(request).await }).await?;
        Ok(ExportReader(stream))
    }

    /// Has a backup made. Not repeated by itself: each one is recorded.
    pub async fn create_backup(&self, request: pb::CreateBackupRequest) -> Result<BackupReader, Public> {
        let stream = self.call(READ_DEADLINE, |mut client| async move { client.create_backup(request).await }).await?;
        Ok(BackupReader(stream))
    }

    /// Follows the documents of these kinds: from the beginning (`from` 0), or from a store revision.
    pub async fn watch(&self, kinds: &[&str], from: u64) -> Result<Watch, Public> {
        let request = pb::WatchRequest { kinds: kinds.iter().map(|&kind| kind.to_owned()).collect(), from, resume: Vec::new() };
        self.open_watch(request).await
    }

    /// Follows the documents of these kinds, each from the revision up to which it is known; those of which nothing is known from the
    /// beginning.
    pub async fn watch_from(&self, kinds: &[&str], known: &BTreeMap<String, u64>) -> Result<Watch, Public> {
        let wanted = |kind: &String| kinds.contains(&kind.as_str());
        let resume: Vec<_> =
            known.iter().filter(|(kind, _)| wanted(kind)).map(|(kind, from)| pb::WatchFrom { kind: kind.clone(), from: *from }).collect();
        // For a server that has one revision for all of them.
        let from = resume.iter().map(|one| one.from).min().unwrap_or_default();
        self.open_watch(pb::WatchRequest { kinds: kinds.iter().map(|&kind| kind.to_owned()).collect(), from, resume }).await
    }

    async fn open_watch(&self, request: pb::WatchRequest) -> Result<Watch, Public> {
        let stream = self.call(READ_DEADLINE, |mut client| async move { client.watch(request).await }).await?;
        Ok(Watch { stream })
    }

    /// Reads a recording from that offset of its file.
    pub async fn read_recording(&self, session: SessionId, offset: u64) -> Result<RecordingReader, Public> {
        let request = pb::ReadRecordingRequest { session: session.to_string(), offset };
        let mut stream = self.call(READ_DEADLINE, |mut client| async move { client.read_recording(request).await }).await?;
        let first = chunk(&mut stream).await?;
        let description = first.as_ref().and_then(|chunk| serde_json::from_slice(&chunk.description).ok());
        Ok(RecordingReader { stream, description, first: first.map(|chunk| chunk.data) })
    }

    /// The recordings that ended or run in a time range (RFC 3339; empty is open), newest first, and what the list may lack, one line
    /// each. Unreadable ones are left out.
    pub async fn recordings(&self, from: &str, to: &str, limit: u32) -> Result<(Vec<Recording>, Vec<String>), Public> {
        let request = pb::ListRecordingsRequest { from: from.into(), to: to.into(), limit };
        let reply = self.list_recordings(request).await?;
        Ok((reply.recordings.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect(), reply.notes))
    }

    /// Sends a recording to the sink. Fails when the server takes nothing for [`PROGRESS`].
    pub async fn upload_recording<S>(&self, chunks: S) -> Result<(), Public>
    where
        S: Stream<Item = pb::RecordingChunk> + Send + 'static,
    {
        let moved = Arc::new(AtomicU64::new(0));
        let counter = moved.clone();
        let counted = chunks.inspect(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let mut client = self.client()?;
        let upload = client.upload_recording(counted);
        tokio::pin!(upload);
        let mut before = u64::MAX;
        loop {
            match tokio::time::timeout(PROGRESS, &mut upload).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(status)) => return Err(public(&status)),
                Err(_) => {
                    let now = moved.load(Ordering::Relaxed);
                    if now == before {
                        return Err(Public::new(Code::Timeout, "the Auth Service stopped taking the recording"));
                    }
                    before = now;
                }
            }
        }
    }
}
