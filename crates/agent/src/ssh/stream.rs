//! The byte stream under one SSH connection: read while writing, and not read while programs are behind.
//!
//! *Reading while writing* is [`net::elastic`]'s: russh's loop does not, and two such ends that both send in bulk would wait
//! for each other for ever.
//!
//! *Not reading.* russh grants window whether or not the program reads. [`Flow`] counts what waits for programs and stops
//! reading the network when that is much, unless output waits for window that only a message of the client can grant.
//! Every [`BREATH`] it reads a little all the same, so that the client's keep-alives are answered.
//! [`Guarded`] is polled by hand because it sits below a library that polls.

use futures::task::AtomicWaker;
use net::elastic::Elastic;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::{Instant, Sleep},
};

/// The most bytes read ahead while a write waits: above the sum of the windows granted.
const AHEAD: usize = 64 << 20;
/// Bytes that may wait for the one program of a connection before reading stops.
const ONE: usize = 2 << 20;
/// The same for a connection with several: one that reads slowly must not stop its neighbours.
const SEVERAL: usize = 256 << 20;
/// While reading is stopped, so often so many bytes are read: more than one channel's window, behind which a keep-alive is.
const BREATH: Duration = Duration::from_secs(5);
const BREATH_LEN: usize = 1 << 20;

/// How much of one connection's input waits, and whether to read more.
#[derive(Debug)]
pub(crate) struct Flow {
    waiting: AtomicUsize,
    channels: AtomicUsize,
    starved: AtomicUsize,
    reader: AtomicWaker,
    writer: AtomicWaker,
    paused: AtomicBool,
    cut: AtomicBool,
    /// When bytes last came, or reading was last stopped on purpose.
    heard: watch::Sender<Instant>,
}

impl Flow {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: AtomicUsize::new(0),
            channels: AtomicUsize::new(0),
            starved: AtomicUsize::new(0),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            paused: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            heard: watch::Sender::new(Instant::now()),
        })
    }
    pub(crate) fn opened(&self) {
        self.channels.fetch_add(1, SeqCst);
        self.reader.wake();
    }
    pub(crate) fn closed(&self) {
        self.channels.fetch_sub(1, SeqCst);
    }
    pub(crate) fn queued(&self, bytes: usize) {
        self.waiting.fetch_add(bytes, SeqCst);
    }
    pub(crate) fn taken(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, SeqCst);
        if self.paused.load(SeqCst) && self.may_read() {
            self.reader.wake();
        }
    }
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }
    /// Output waits for window; reading goes on until the guard is dropped.
    pub(crate) fn starve(self: &Arc<Self>) -> Starved {
        self.starved.fetch_add(1, SeqCst);
        self.reader.wake();
        Starved(self.clone())
    }
    /// Ends the connection at once: every read and write fails from now on.
    pub(crate) fn cut(&self) {
        self.cut.store(true, SeqCst);
        self.reader.wake();
        self.writer.wake();
    }
    fn is_cut(&self) -> bool {
        self.cut.load(SeqCst)
    }
    fn may_read(&self) -> bool {
        let limit = if self.channels.load(SeqCst) <= 1 { ONE } else { SEVERAL };
        self.waiting.load(SeqCst) < limit || self.starved.load(SeqCst) > 0
    }
    /// The caller has put its waker in place.
    fn poll_may_read(&self) -> Poll<()> {
        if !self.may_read() {
            self.paused.store(true, SeqCst);
            // Looked at again: it may have changed before the pause was seen.
            if !self.may_read() {
                return Poll::Pending;
            }
        }
        if self.paused.swap(false, SeqCst) {
            self.heard.send_replace(Instant::now());
        }
        Poll::Ready(())
    }
    /// Ends when nothing was heard of the peer for so long, although it was listened to.
    pub(crate) async fn silent_for(&self, limit: Duration) {
        loop {
            let since = *self.heard.borrow();
            let end = since + limit;
            if Instant::now() >= end {
                if !self.paused.load(SeqCst) {
                    return;
                }
                self.heard.send_replace(Instant::now());
                continue;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was ended here")
}

/// While it lives, reading is not stopped.
#[derive(Debug)]
pub(crate) struct Starved(Arc<Flow>);
impl Drop for Starved {
    fn drop(&mut self) {
        self.0.starved.fetch_sub(1, SeqCst);
    }
}

/// The stream handed to russh.
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    stream: Elastic<S>,
    flow: Arc<Flow>,
    /// Runs while reading is stopped.
    breath: Option<Pin<Box<Sleep>>>,
    /// Bytes that may be read although reading is stopped.
    credit: usize,
}

impl<S> Guarded<S> {
    pub(crate) fn new(stream: S, flow: Arc<Flow>) -> Self {
        Self { stream: Elastic::new(stream, AHEAD), flow, breath: None, credit: 0 }
    }

    fn poll_may_read(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.flow.poll_may_read().is_ready() {
            self.breath = None;
            return Poll::Ready(());
        }
        let breath = self.breath.get_or_insert_with(|| Box::pin(tokio::time::sleep(BREATH)));
        ready!(breath.as_mut().poll(context));
        self.breath = None;
        self.credit = BREATH_LEN;
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.flow.reader.register(context.waker());
        if this.flow.is_cut() {
            return Poll::Ready(Err(cut()));
        }
        if this.credit == 0 {
            ready!(this.poll_may_read(context));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        this.credit = this.credit.saturating_sub(buffer.filled().len().saturating_sub(before));
        this.flow.heard.send_replace(Instant::now());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.flow.writer.register(context.waker());
        if this.flow.is_cut() {
            return Poll::Ready(Err(cut()));
        }
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn two_ends_that_only_write_do_not_wait_for_each_other() {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut near = Guarded::new(near, Flow::new());
        let near = async move {
            near.write_all(&[1; 100_000]).await.unwrap();
            let mut got = vec![0; 100_000];
            near.read_exact(&mut got).await.unwrap();
            got
        };
        let far = async move {
            far.write_all(&[2; 100_000]).await.unwrap();
            let mut got = vec![0; 100_000];
            far.read_exact(&mut got).await.unwrap();
            got
        };
        let (near, far) = tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(near, far) }).await.unwrap();
        assert!(near == vec![2; 100_000] && far == vec![1; 100_000]);
    }

    #[tokio::test]
    async fn reading_stops_while_much_waits_and_goes_on_when_it_was_taken() {
        let (near, mut far) = tokio::io::duplex(64);
        let flow = Flow::new();
        let mut near = Guarded::new(near, flow.clone());
        far.write_all(b"x").await.unwrap();
        flow.opened();
        flow.queued(ONE);
        let mut byte = [0];
        let mut reading = tokio_test_poll(near.read_exact(&mut byte));
        assert!(futures::poll!(&mut reading).is_pending());
        let starved = flow.starve();
        assert!(futures::poll!(&mut reading).is_ready(), "output that waits for window lets reading go on");
        drop((reading, starved));
        flow.taken(1);
        assert!(flow.may_read());
    }

    fn tokio_test_poll<F: Future>(future: F) -> Pin<Box<F>> {
        Box::pin(future)
    }
}
