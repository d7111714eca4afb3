//! Joins two streams until both are done: the Proxy's hot path, where every byte of every session passes.
//!
//! Half-close is kept: an end in one direction is passed on after its last byte, and the other direction goes on. Nothing
//! is buffered beyond one block per direction, so a slow reader slows its writer down and nobody else. An idle pair holds no
//! block at all: blocks are borrowed from a small pool of the worker thread for as long as data is on its way.
//! Written as a `poll` because that borrowing cannot be said with `read().await`, which holds its buffer while it waits.

use crate::{block::Block, shutdown::Shutdown};
use std::{
    future::{Future, pending, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// Rounds in one go before other tasks of the thread get their turn.
const ROUNDS: usize = 16;
/// How long the surviving direction may go on in silence once the other failed.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// How a pair behaves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Ends a pair that moved nothing for so long.
    pub idle: Option<Duration>,
    /// The same, once one direction has ended.
    pub half_close_grace: Option<Duration>,
    /// Ends the pair at its second stage.
    pub shutdown: Option<Shutdown>,
}

/// Why a pair ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Both directions ran to their end.
    Closed,
    /// Nothing moved for too long.
    Idle,
    /// Told to stop.
    Stopped,
    /// A stream failed.
    Failed(io::ErrorKind),
}

/// What a pair carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Bytes from the first stream to the second.
    pub up: u64,
    /// Bytes from the second stream to the first.
    pub down: u64,
    pub end: End,
}

/// Carries bytes both ways until both directions ended, one failed, or the options say so. Drops both streams.
pub async fn splice<A, B>(mut a: A, mut b: B, options: Options) -> Stats
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Flow::default(), Flow::default());
    let mut quiet = Quiet { since: Instant::now(), moved: 0, sleep: None };
    let stopped = async {
        match &options.shutdown {
            Some(shutdown) => shutdown.stopping().await,
            None => pending().await,
        }
    };
    let carried = poll_fn(|cx| {
        let _ = up.poll(cx, &mut a, &mut b);
        let _ = down.poll(cx, &mut b, &mut a);
        if let Some(end) = end(&up, &down) {
            return Poll::Ready(end);
        }
        let limit = match (up.end, down.end) {
            (None, None) => options.idle,
            (Some(Ended::CannotWrite(_)), _) | (_, Some(Ended::CannotWrite(_))) => {
                Some(options.half_close_grace.unwrap_or(AFTER_FAILURE).min(AFTER_FAILURE))
            }
            _ => options.half_close_grace,
        };
        quiet.poll(cx, limit, up.moved.saturating_add(down.moved)).map(|()| match (up.end, down.end) {
            (Some(Ended::CannotWrite(kind)), _) | (_, Some(Ended::CannotWrite(kind))) => End::Failed(kind),
            _ => End::Idle,
        })
    });
    let end = tokio::select! {
        biased;
        end = carried => end,
        () = stopped => End::Stopped,
    };
    Stats { up: up.moved, down: down.moved, end }
}

/// The pair's end, once nothing more can come of it.
fn end(up: &Flow, down: &Flow) -> Option<End> {
    match (up.end?, down.end) {
        (Ended::CannotRead(kind), _) | (_, Some(Ended::CannotRead(kind))) => Some(End::Failed(kind)),
        (Ended::CannotWrite(kind), Some(_)) | (_, Some(Ended::CannotWrite(kind))) => Some(End::Failed(kind)),
        (Ended::Orderly, Some(Ended::Orderly)) => Some(End::Closed),
        (Ended::Orderly | Ended::CannotWrite(_), None) => None,
    }
}

/// How one direction ended.
#[derive(Clone, Copy, Debug)]
enum Ended {
    Orderly,
    /// The source is gone, and so is whoever would have read the other direction.
    CannotRead(io::ErrorKind),
    /// The sink takes no more, but what it said before may still be on its way to us.
    CannotWrite(io::ErrorKind),
}

/// One direction.
#[derive(Default)]
struct Flow {
    block: Option<Block>,
    /// What of the block is read and not yet written.
    start: usize,
    filled: usize,
    moved: u64,
    /// Written but not flushed.
    dirty: bool,
    /// No more will be read.
    last: Option<Ended>,
    end: Option<Ended>,
}

impl Flow {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.end.is_some() {
            return Poll::Ready(());
        }
        for _ in 0..ROUNDS {
            if let Err(error) = ready!(self.poll_drain(cx, to)) {
                self.end = Some(Ended::CannotWrite(error.kind()));
                self.release();
                return Poll::Ready(());
            }
            if let Some(last) = self.last {
                self.release();
                let closed = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                self.end = Some(match (last, closed) {
                    (Ended::Orderly, Err(error)) => Ended::CannotWrite(error.kind()),
                    (last, _) => last,
                });
                return Poll::Ready(());
            }
            if self.poll_fill(cx, from).is_pending() {
                self.release();
                if self.dirty {
                    match ready!(Pin::new(&mut *to).poll_flush(cx)) {
                        Ok(()) => self.dirty = false,
                        Err(error) => {
                            self.end = Some(Ended::CannotWrite(error.kind()));
                            return Poll::Ready(());
                        }
                    }
                }
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_drain<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>> {
        while let Some(rest) = self.block.as_deref().and_then(|block| block.get(self.start..self.filled)).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut *to).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => {
                    self.start = self.start.saturating_add(count);
                    self.moved = self.moved.saturating_add(count as u64);
                    self.dirty = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads until the block is full or nothing more is there: a read of TLS yields one record, a write takes many.
    fn poll_fill<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, from: &mut R) -> Poll<()> {
        let block = self.block.get_or_insert_with(Block::borrow);
        let mut into = ReadBuf::new(block);
        let mut before = usize::MAX;
        while into.remaining() > 0 && into.filled().len() != before {
            before = into.filled().len();
            match Pin::new(&mut *from).poll_read(cx, &mut into) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.last = Some(Ended::CannotRead(error.kind()));
                    break;
                }
                Poll::Pending if into.filled().is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
            if into.filled().len() == before {
                self.last = Some(Ended::Orderly);
            }
        }
        (self.start, self.filled) = (0, into.filled().len());
        Poll::Ready(())
    }

    fn release(&mut self) {
        (self.start, self.filled) = (0, 0);
        self.block = None;
    }
}

/// Notices silence. The timer is not moved at every byte: it fires, looks, and is set again.
struct Quiet {
    since: Instant,
    moved: u64,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Quiet {
    fn poll(&mut self, cx: &mut Context<'_>, limit: Option<Duration>, moved: u64) -> Poll<()> {
        let Some(limit) = limit else { return Poll::Pending };
        if moved != self.moved {
            (self.since, self.moved) = (Instant::now(), moved);
        }
        let due = self.since + limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if sleep.deadline() > due {
            sleep.as_mut().reset(due);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= due {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due);
        }
        Poll::Pending
    }
}
