//! A write on its way to the one task or thread that owns a handle's writes, and the sending end that all callers share.
//!
//! What every driver with a queue asks of a caller is asked here: batches and keys are checked, a closed handle takes nothing more, and
//! an answer that never comes is [`CommitError::Ambiguous`], for it may stand for a write that was done. The other half is `group`.

use crate::{Batch, BatchError, CommitError, Committed, Key, Op, StoreError, WriterEpoch};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use types::Time;

/// Requests that may wait; senders wait when it is full.
const QUEUE: usize = 1024;
/// Expired items deleted in one commit.
pub(crate) const EXPIRE_AT_ONCE: usize = 500;

/// A write. Batches and keys have been checked.
pub(crate) enum Request {
    Commit {
        batch: Batch,
        reply: oneshot::Sender<Result<Committed, CommitError>>,
    },
    KeepAlive {
        key: Key,
        revision: Option<u64>,
        expires: Time,
        writer: Option<WriterEpoch>,
        reply: oneshot::Sender<Result<Committed, CommitError>>,
    },
    /// Always alone in its group.
    Expire {
        reply: oneshot::Sender<Result<usize, CommitError>>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// The sending end.
pub(crate) struct Queue {
    requests: mpsc::Sender<Request>,
    closed: CancellationToken,
    place: String,
}

impl Queue {
    /// And the end that `group::run` takes.
    pub(crate) fn new(closed: CancellationToken, place: String) -> (Self, mpsc::Receiver<Request>) {
        let (requests, queue) = mpsc::channel(QUEUE);
        (Self { requests, closed, place }, queue)
    }

    pub(crate) fn open(&self) -> Result<(), StoreError> {
        if self.closed.is_cancelled() { Err(StoreError::Closed) } else { Ok(()) }
    }

    pub(crate) async fn commit(&self, batch: Batch) -> Result<Committed, CommitError> {
        batch.check()?;
        self.ask(|reply| Request::Commit { batch, reply }).await
    }

    pub(crate) async fn keep_alive(
        &self,
        key: &Key,
        revision: Option<u64>,
        expires: Time,
        writer: Option<WriterEpoch>,
    ) -> Result<Committed, CommitError> {
        key.proper().map_err(BatchError::from)?;
        if *key == Key::control() {
            return Err(BatchError::Control.into());
        }
        self.ask(|reply| Request::KeepAlive { key: key.clone(), revision, expires, writer, reply }).await
    }

    pub(crate) async fn expire_due(&self) -> Result<usize, StoreError> {
        let mut count = 0;
        loop {
            let some = self.ask(|reply| Request::Expire { reply }).await.map_err(|error| match error {
                CommitError::Store(error) => error,
                error => StoreError::Io { place: self.place.clone(), detail: error.to_string() },
            })?;
            count += some;
            if some < EXPIRE_AT_ONCE {
                return Ok(count);
            }
        }
    }

    /// Ends whoever takes the requests, once what was accepted is answered.
    pub(crate) async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        // An error means that it has ended already.
        if self.requests.send(Request::Close { reply }).await.is_ok() {
            answer.await.unwrap_or_default();
        }
    }

    /// An answer that never comes may stand for a write that was done.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T, CommitError>>) -> Request) -> Result<T, CommitError> {
        self.open()?;
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or_else(|_| Err(CommitError::Ambiguous("the writer stopped".into())))
    }
}

impl Request {
    /// Whether it may share a transaction.
    pub(crate) fn social(&self) -> bool {
        matches!(self, Self::Commit { .. } | Self::KeepAlive { .. })
    }

    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Commit { batch, .. } => {
                batch.ops.iter().map(Op::size).sum::<usize>()
                    + batch.conditions.iter().map(|condition| 64 + condition.key().len()).sum::<usize>()
            }
            Self::KeepAlive { key, .. } => 64 + key.len(),
            Self::Expire { .. } | Self::Close { .. } => 0,
        }
    }

    /// The epoch by which it may be fenced.
    pub(crate) fn writer(&self) -> Option<WriterEpoch> {
        match self {
            Self::Commit { batch, .. } => batch.writer,
            Self::KeepAlive { writer, .. } => *writer,
            Self::Expire { .. } | Self::Close { .. } => None,
        }
    }

    /// Nobody need be waiting any more.
    pub(crate) fn answer(self, result: Result<Committed, CommitError>, count: usize) {
        match self {
            Self::Commit { reply, .. } | Self::KeepAlive { reply, .. } => drop(reply.send(result)),
            Self::Expire { reply } => drop(reply.send(result.map(|_| count))),
            Self::Close { reply } => reply.send(()).unwrap_or_default(),
        }
    }
}
