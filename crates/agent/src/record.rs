//! Recording one session while it runs.
//!
//! What the user saw goes to a bounded queue and from there, in batches of at most `BATCH` bytes or `PAUSE`, into a
//! file under the spool: killing this process loses no more than the last batch, and nothing of a session whose end the user was
//! told of ([`Recorder::flush`]). When the queue is full the session waits;
//! when the file cannot be written the session ends (recording is strict). Input is never recorded: it has passwords in
//! it. A command without terminal may move gigabytes: of each of its two streams the first `KEEP` bytes are kept, and
//! how many were left out is written at the end. The format is `wire::recording`; delivery is `spool.rs`.

use crate::spool::Spool;
use bytes::{Bytes, BytesMut};
use std::{fs::File, io, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use wire::recording::{End, Header, What, Writer};

/// Bytes kept of each stream of a command without terminal.
pub const KEEP: u64 = 16 << 20;
const BATCH: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_millis(50);
const QUEUE: usize = 64;

/// Why a session cannot be recorded (any more).
#[derive(Debug, Clone, thiserror::Error)]
#[error("the session cannot be recorded: {0}")]
pub struct RecordError(String);
impl From<io::Error> for RecordError {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Takes what appears in one session. [`Recorder::finish`] completes the file; without it the file is an orphan.
#[derive(Debug)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Order>,
    done: oneshot::Receiver<Result<File, RecordError>>,
}

/// What the file's task does next.
#[derive(Debug)]
enum Order {
    Entry(u64, What),
    /// Write what was said so far, and say when it is written.
    Flush(oneshot::Sender<()>),
}

/// A clonable end for the pumps of one session.
#[derive(Clone, Debug)]
pub(crate) struct Tape {
    queue: mpsc::Sender<Order>,
    began: Instant,
    /// Bytes still kept, per stream; `None` keeps all.
    left: Option<u64>,
    stderr: bool,
    omitted: u64,
}

impl Recorder {
    /// Opens the file and writes its header; returns when that is on its way to the disk.
    pub(crate) async fn start(tasks: &net::task::Group, spool: &Spool, header: Header) -> Result<(Self, Instant), RecordError> {
        let session = header.recording.session;
        let file = spool.create(session).map_err(RecordError::from)?;
        let mut writer = Writer::new();
        let first = writer.encode(0, &What::Header(Box::new(header)));
        let file = append(file, first).await?;
        let (queue, entries) = mpsc::channel(QUEUE);
        let (done_tx, done) = oneshot::channel();
        tasks.spawn("record", async move {
            let result = write(file, writer, entries).await;
            if let Err(error) = &result {
                tracing::error!(%session, %error, "recording failed");
            }
            let _receiver_may_be_gone = done_tx.send(result);
        });
        Ok((Self { queue, done }, Instant::now()))
    }

    /// For one stream of the session. `limited`: a command without terminal.
    pub(crate) fn tape(&self, began: Instant, stderr: bool, limited: bool) -> Tape {
        Tape { queue: self.queue.clone(), began, left: limited.then_some(KEEP), stderr, omitted: 0 }
    }

    /// Returns when what was shown so far is in the file, where it outlives this process. Of a recording that fails [`Recorder::finish`] tells.
    pub(crate) async fn flush(&self) {
        let (written, told) = oneshot::channel();
        if self.queue.send(Order::Flush(written)).await.is_ok() {
            let _written_or_failed = told.await;
        }
    }

    /// Writes the end and completes the file. All tapes must have ended. While the returned file is open nobody delivers it.
    pub(crate) async fn finish(self, began: Instant, omitted: u64, end: End) -> Result<File, RecordError> {
        let at = millis(began);
        if omitted > 0 {
            let _fails_below = self.queue.send(Order::Entry(at, What::Omitted { bytes: omitted })).await;
        }
        let _fails_below = self.queue.send(Order::Entry(at, What::End(end))).await;
        drop(self.queue);
        self.done.await.unwrap_or(Err(RecordError("it was cut off".into())))
    }
}

impl Tape {
    /// Records output. Waits when the disk is slower than the program.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), RecordError> {
        let mut kept = bytes;
        if let Some(left) = &mut self.left {
            let len = u64::try_from(kept.len()).unwrap_or(u64::MAX);
            if len > *left {
                self.omitted = self.omitted.saturating_add(len.saturating_sub(*left));
                kept.truncate(usize::try_from(*left).unwrap_or(0));
            }
            *left = left.saturating_sub(len);
        }
        if kept.is_empty() {
            return Ok(());
        }
        let what = if self.stderr { What::Stderr(kept) } else { What::Output(kept) };
        self.send(what).await
    }

    /// Records a new size of the terminal.
    pub(crate) async fn resize(&self, width: u32, height: u32) -> Result<(), RecordError> {
        self.send(What::Resize { width, height }).await
    }

    async fn send(&self, what: What) -> Result<(), RecordError> {
        self.queue.send(Order::Entry(millis(self.began), what)).await.map_err(|_| RecordError("the recording stopped".into()))
    }

    /// Bytes that were not kept.
    pub(crate) fn omitted(&self) -> u64 {
        self.omitted
    }
}

fn millis(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Collects entries into batches until all senders are gone.
async fn write(mut file: File, mut writer: Writer, mut orders: mpsc::Receiver<Order>) -> Result<File, RecordError> {
    while let Some(first) = orders.recv().await {
        let (mut batch, mut order) = (BytesMut::new(), Some(first));
        let until = Instant::now() + PAUSE;
        let waits = loop {
            match order {
                Some(Order::Entry(at, what)) => batch.extend_from_slice(&writer.encode(at, &what)),
                Some(Order::Flush(written)) => break Some(written),
                None => break None,
            }
            if batch.len() >= BATCH {
                break None;
            }
            order = tokio::time::timeout_at(until, orders.recv()).await.unwrap_or(None);
        };
        file = append(file, batch.freeze()).await?;
        if let Some(written) = waits {
            let _asker_may_be_gone = written.send(());
        }
    }
    let synced = tokio::task::spawn_blocking(move || file.sync_data().map(|()| file));
    Ok(synced.await.map_err(|_| RecordError("the disk's thread ended".into()))??)
}

async fn append(mut file: File, bytes: Bytes) -> Result<File, RecordError> {
    let written = tokio::task::spawn_blocking(move || io::Write::write_all(&mut file, &bytes).map(|()| file));
    Ok(written.await.map_err(|_| RecordError("the disk's thread ended".into()))??)
}
