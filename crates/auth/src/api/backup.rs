//! Backups over the API: the bytes of one file, made here and streamed to an administrator, who alone writes them down.
//!
//! It is decided and recorded before the first byte leaves. The file is encrypted here, to recipients or a passphrase that came inside
//! the administrator's TLS connection; neither is logged. One backup at a time. The last piece says what was written: a stream
//! without it is not a backup, and the file in it says so too.

use crate::{
    backup::{Made, Source, make, make::MakeError},
    core::{Call, Core, Fault, malformed},
    metrics::count,
};
use backup::{AuditPosition, Cost, Origin, Protection, Recipient, Written};
use bytes::{Bytes, BytesMut};
use rules::{Verb, documents::decide_write};
use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use types::{Code, EventKind, Public, ResourceName, Secret};
use wire::api as pb;

pub(crate) type Stream = ReceiverStream<Result<pb::BackupChunk, Status>>;
type Pieces = mpsc::Sender<Result<pb::BackupChunk, Status>>;

/// A reader that takes nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of one message.
const PIECE: usize = 256 << 10;

pub(crate) async fn create(call: Call, ask: pb::CreateBackupRequest) -> Result<Stream, Fault> {
    let name = ResourceName::new(call.core.cluster.as_str())?;
    let permit = decide_write(call.caller()?, "backup", Verb::Create, &name)?;
    let (protection, how) = protection(ask)?;
    let turn = call.core.backups.clone().try_acquire_owned();
    let turn = turn.map_err(|_| Public::new(Code::RateLimited, "a backup is being made already").hint("wait for it to end"))?;
    let event = call.event(EventKind::BackupCreate).with("kind", permit.kind.as_str()).with("protection", how);
    call.core.audit.record(event).await?;
    let (sender, receiver) = mpsc::channel(4);
    let work = call.clone();
    call.core.group.spawn("backup", async move {
        let _turn = turn;
        send(&work, protection, sender).await;
    });
    Ok(ReceiverStream::new(receiver))
}

/// What protects the file, and how the audit log calls that.
fn protection(ask: pb::CreateBackupRequest) -> Result<(Protection, String), Fault> {
    let (recipients, passphrase) = (ask.recipients, Secret::new(ask.passphrase));
    let given = [!recipients.is_empty(), !passphrase.expose().is_empty(), ask.unencrypted].into_iter().filter(|given| *given).count();
    if given != 1 {
        return Err(malformed("a backup needs recipients, or a passphrase, or to be called unencrypted: one of the three"));
    }
    if ask.unencrypted {
        return Ok((Protection::Unencrypted, "none".into()));
    }
    if !passphrase.expose().is_empty() {
        return Ok((Protection::Passphrase { passphrase, cost: Cost::default() }, "passphrase".into()));
    }
    let recipients: Vec<Recipient> = recipients.iter().map(|text| text.parse()).collect::<Result<_, _>>().map_err(malformed)?;
    let names: Vec<String> = recipients.iter().map(Recipient::short_id).collect();
    Ok((Protection::Recipients(recipients), names.join(",")))
}

async fn send(call: &Call, protection: Protection, pieces: Pieces) {
    let core = &call.core;
    let progress = Arc::default();
    let sink = Sink { pieces: pieces.clone(), waiting: BytesMut::new(), runtime: Handle::current() };
    let last = match core.make_backup(protection, sink, progress).await {
        Ok(made) => {
            count(&core.metrics.backups);
            core.note_backup(&made.written, made.manifest.revision).await;
            let told = serde_json::json!({
                "id": made.written.head.id.to_string(), "bytes": made.written.bytes, "digest": made.written.digest.to_string(),
                "summary": made.written.summary, "manifest": made.manifest, "signer": made.written.head.signer.fingerprint().to_string(),
            });
            Ok(pb::BackupChunk { data: Bytes::new(), written: told.to_string().into() })
        }
        Err(error) => {
            count(&core.metrics.backup_failures);
            tracing::error!(%error, "a backup failed");
            let event = call.event(EventKind::BackupFailed).with("error", error.to_string());
            if let Err(error) = core.audit.record(event).await {
                tracing::error!(%error, "a backup that failed could not be recorded");
            }
            Err(pb::to_status(&error.public()))
        }
    };
    let _gone = tokio::time::timeout(PATIENCE, pieces.send(last)).await;
}

/// The blocking writer's way into the stream.
struct Sink {
    pieces: Pieces,
    waiting: BytesMut,
    runtime: Handle,
}

impl Sink {
    fn pass_on(&mut self) -> io::Result<()> {
        let data = self.waiting.split().freeze();
        let piece = pb::BackupChunk { data, written: Bytes::new() };
        let sent = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.pieces.send(Ok(piece))).await });
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "whoever asked for it has gone")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "whoever asked for it takes nothing")),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= PIECE {
            self.pass_on()?;
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() { Ok(()) } else { self.pass_on() }
    }
}

impl Core {
    /// A backup of this cluster into any sink.
    pub(crate) async fn make_backup<W: Write + Send + 'static>(
        &self,
        protection: Protection,
        sink: W,
        progress: Arc<crate::backup::Progress>,
    ) -> Result<Made<W>, MakeError> {
        let head = self.audit.head();
        let audit = head.events.checked_sub(1).map(|index| AuditPosition { index, hash: head.hash.to_string() });
        let signer = self.authorities.backup_signer().map_err(|error| backup::WriteError::Sign(backup::SignError(error.to_string())))?;
        let origin =
            Origin { cluster: self.cluster.clone(), cluster_id: self.cluster_id, product: self.version.clone(), created: self.now() };
        let source = Source { store: self.store.clone(), origin, audit, signer: Box::new(signer) };
        make(source, protection, sink, progress).await
    }

    /// Records that the cluster goes on from a backup: the first Auth Service that starts on it does, once.
    pub(crate) async fn record_restore(&self) {
        let store = &self.store;
        let Ok(Some(was)) = store::control::read(store.as_ref()).await else { return };
        let mut next = was.record.clone();
        let noted = next.backup.as_mut().and_then(|noted| noted.get_mut("restored")).and_then(serde_json::Value::as_object_mut);
        let Some(restored) = noted.filter(|restored| !restored.contains_key("recorded")) else { return };
        let field = |name: &str| restored.get(name).cloned().unwrap_or_default();
        let event =
            self.event(EventKind::BackupRestore).with("backup", field("id")).with("made", field("made")).with("restored", field("at"));
        if let Err(error) = self.audit.record(event).await {
            return tracing::error!(%error, "the restore could not be recorded");
        }
        restored.insert("recorded".into(), true.into());
        // Whoever lost this race recorded it too: twice is better than never.
        if let Err(error) = store::control::update(store.as_ref(), &was, &next, self.documents.writer()).await {
            tracing::warn!(%error, "the restore may be recorded again");
        }
    }

    /// Notes in the control record that there is a backup. What cannot be noted is no reason to do without the backup.
    pub(crate) async fn note_backup(&self, written: &Written, revision: u64) {
        let store = &self.store;
        for _ in 0..8 {
            let was = match store::control::read(store.as_ref()).await {
                Ok(Some(was)) => was,
                Ok(None) => return,
                Err(error) => return tracing::warn!(%error, "the backup could not be noted"),
            };
            let mut next = was.record.clone();
            let last = serde_json::json!({
                "id": written.head.id.to_string(), "at": written.head.created, "revision": revision, "bytes": written.bytes,
                "records": written.summary.records, "digest": written.digest.to_string(), "by": written.head.product,
            });
            let mut noted = next.backup.take().filter(serde_json::Value::is_object).unwrap_or_else(|| serde_json::json!({}));
            if let Some(noted) = noted.as_object_mut() {
                noted.insert("last".into(), last);
            }
            next.backup = Some(noted);
            match store::control::update(store.as_ref(), &was, &next, self.documents.writer()).await {
                Ok(_) => return,
                Err(store::control::WriteControlError::Conflict) => {}
                Err(error) => return tracing::warn!(%error, "the backup could not be noted"),
            }
        }
    }
}
