//! A stream that goes on reading while its writer is blocked.
//!
//! russh reads and writes in one loop: while a write waits for the network, nothing is read. When both ends send bulk both
//! ways, both wait for the other to read, for ever (measured with windows of 2 MiB and four channels). Here a blocked write
//! soaks up what arrives and hands it out at the next read, so the other end's writes always go on. What can arrive is
//! bounded by the windows we granted, and by [`CAP`]. Poll methods by hand, because that is where "blocked" can be seen.
//!
//! It also counts the bytes that move: the progress that [`super::drive`] watches.

use bytes::BytesMut;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most bytes soaked up: the windows of 32 channels.
const CAP: usize = 16 << 20;
/// Read at once while soaking.
const CHUNK: usize = 64 << 10;

/// What moved on a connection, and how many of our own consumers it is waiting for.
#[derive(Debug, Default)]
pub(super) struct Progress {
    moved: AtomicU64,
    consumers_blocked: AtomicUsize,
}

impl Progress {
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
    /// Whether the standstill, if there is one, is ours: a terminal that was paused, a full pipe.
    pub(super) fn is_ours(&self) -> bool {
        self.consumers_blocked.load(Ordering::Relaxed) > 0
    }
    /// Held while one of our consumers is being written to.
    pub(super) fn consuming(self: &Arc<Self>) -> Consuming {
        self.consumers_blocked.fetch_add(1, Ordering::Relaxed);
        Consuming(self.clone())
    }
}

/// See [`Progress::consuming`].
pub(super) struct Consuming(Arc<Progress>);
impl Drop for Consuming {
    fn drop(&mut self) {
        self.0.consumers_blocked.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) struct Elastic<S> {
    inner: S,
    soaked: BytesMut,
    /// How reading ended while it was soaking.
    ended: Option<io::Result<()>>,
    progress: Arc<Progress>,
}

impl<S> Elastic<S> {
    pub(super) fn new(inner: S, progress: Arc<Progress>) -> Self {
        Self { inner, soaked: BytesMut::new(), ended: None, progress }
    }
    fn count(&self, bytes: usize) {
        self.progress.moved.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> Elastic<S> {
    /// Reads what has arrived; registers for more while there is room.
    fn soak(&mut self, cx: &mut Context<'_>) {
        while self.soaked.len() < CAP && self.ended.is_none() {
            self.soaked.reserve(CHUNK);
            match tokio_util::io::poll_read_buf(Pin::new(&mut self.inner), cx, &mut self.soaked) {
                Poll::Pending => return,
                Poll::Ready(Ok(0)) => self.ended = Some(Ok(())),
                Poll::Ready(Ok(bytes)) => self.count(bytes),
                Poll::Ready(Err(error)) => self.ended = Some(Err(error)),
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Elastic<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.soaked.is_empty() {
            let now = this.soaked.len().min(into.remaining());
            into.put_slice(&this.soaked.split_to(now));
            if this.soaked.is_empty() {
                this.soaked = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        if let Some(ended) = this.ended.take() {
            // An end stays an end; an error is told once and then is one.
            this.ended = Some(Ok(()));
            return Poll::Ready(ended);
        }
        let before = into.filled().len();
        let polled = Pin::new(&mut this.inner).poll_read(cx, into);
        this.count(into.filled().len().saturating_sub(before));
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Elastic<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        match &polled {
            Poll::Pending => self.soak(cx),
            Poll::Ready(Ok(written)) => self.count(*written),
            Poll::Ready(Err(_)) => {}
        }
        polled
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        if polled.is_pending() {
            self.soak(cx);
        }
        polled
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn two_ends_that_only_write_do_not_block_each_other() {
        const LEN: usize = 1 << 20;
        let (a, b) = tokio::io::duplex(1024);
        let side = |stream| async move {
            let progress = Arc::new(Progress::default());
            let mut stream = Elastic::new(stream, progress.clone());
            // Everything is written before anything is read.
            stream.write_all(&vec![7; LEN]).await.unwrap();
            stream.flush().await.unwrap();
            let mut got = vec![0; LEN];
            stream.read_exact(&mut got).await.unwrap();
            assert_eq!(progress.moved(), 2 * LEN as u64);
            got
        };
        let both = async { tokio::join!(side(a), side(b)) };
        let (one, two) = tokio::time::timeout(std::time::Duration::from_secs(20), both).await.expect("blocked");
        assert_eq!((one.len(), two.len()), (LEN, LEN));
    }

    #[tokio::test]
    async fn what_was_soaked_up_comes_before_the_end() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut near = Elastic::new(near, Arc::default());
        far.write_all(b"last words").await.unwrap();
        // More than fits: the write blocks, and soaks.
        let blocked = tokio::time::timeout(std::time::Duration::from_millis(20), near.write_all(&[0; 64])).await;
        assert!(blocked.is_err());
        drop(far);
        let mut text = Vec::new();
        near.read_to_end(&mut text).await.unwrap();
        assert_eq!(text, b"last words");
        assert!(near.buf_is_released());
    }

    impl<S> Elastic<S> {
        fn buf_is_released(&self) -> bool {
            self.soaked.is_empty() && self.soaked.capacity() == 0
        }
    }
}
