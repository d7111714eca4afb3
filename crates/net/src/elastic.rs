//! A stream that goes on reading while its writer is blocked.
//!
//! russh reads and writes in one loop: while a write waits for the network, nothing is read. When both ends send bulk both
//! ways, both wait for the other to read, for ever (measured with windows of 2 MiB and four channels). Here a blocked write
//! soaks up what arrives and hands it out at the next read, so the other end's writes always go on. What can arrive is
//! bounded by the windows that were granted, and by a cap. Used under SSH at both ends, by `client` and `agent`; they add
//! what is theirs. Poll methods by hand, because that is where "blocked" can be seen.

use crate::block;
use bytes::BytesMut;
use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Read at once while soaking.
const CHUNK: usize = 64 << 10;
/// A piece with less room than this is full.
const LEAST_ROOM: usize = 4 << 10;

/// Counts the bytes that moved on a stream, both ways. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Moved(Arc<AtomicU64>);

impl Moved {
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn add(&self, bytes: usize) {
        self.0.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Elastic<S> {
    inner: S,
    /// The most bytes soaked up.
    cap: usize,
    soaked: VecDeque<BytesMut>,
    soaked_len: usize,
    /// How reading ended while it was soaking.
    ended: Option<io::Result<()>>,
    moved: Moved,
}

impl<S> Elastic<S> {
    pub fn new(inner: S, cap: usize) -> Self {
        Self { inner, cap, soaked: VecDeque::new(), soaked_len: 0, ended: None, moved: Moved::default() }
    }
    /// Goes on counting when the stream was given away.
    pub fn moved(&self) -> Moved {
        self.moved.clone()
    }

    /// Hands out what was soaked up; whether there was any.
    fn hand_out(&mut self, into: &mut ReadBuf<'_>) -> bool {
        let Some(piece) = self.soaked.front_mut() else { return false };
        let part = piece.split_to(piece.len().min(into.remaining()));
        into.put_slice(&part);
        self.soaked_len = self.soaked_len.saturating_sub(part.len());
        if piece.is_empty() {
            self.soaked.pop_front();
        }
        true
    }
}

impl<S: AsyncRead + Unpin> Elastic<S> {
    /// Reads what has arrived; registers for more while there is room.
    fn soak(&mut self, cx: &mut Context<'_>) {
        while self.soaked_len < self.cap && self.ended.is_none() {
            let mut piece = match self.soaked.pop_back() {
                Some(piece) if piece.capacity().saturating_sub(piece.len()) >= LEAST_ROOM => piece,
                full => {
                    self.soaked.extend(full);
                    BytesMut::with_capacity(CHUNK)
                }
            };
            let polled = tokio_util::io::poll_read_buf(Pin::new(&mut self.inner), cx, &mut piece);
            if !piece.is_empty() {
                self.soaked.push_back(piece);
            }
            match polled {
                Poll::Pending => return,
                Poll::Ready(Ok(0)) => self.ended = Some(Ok(())),
                Poll::Ready(Ok(bytes)) => {
                    self.soaked_len = self.soaked_len.saturating_add(bytes);
                    self.moved.add(bytes);
                }
                Poll::Ready(Err(error)) => self.ended = Some(Err(error)),
            }
        }
    }

    fn soak_while<T>(&mut self, cx: &mut Context<'_>, polled: Poll<T>) -> Poll<T> {
        if polled.is_pending() {
            self.soak(cx);
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Elastic<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.hand_out(into) {
            return Poll::Ready(Ok(()));
        }
        if let Some(ended) = this.ended.take() {
            // An end stays an end; an error is told once and then is one.
            this.ended = Some(Ok(()));
            return Poll::Ready(ended);
        }
        let before = into.filled().len();
        let polled = Pin::new(&mut this.inner).poll_read(cx, into);
        this.moved.add(into.filled().len().saturating_sub(before));
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Elastic<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write(cx, block::first_part(bytes));
        if let Poll::Ready(Ok(written)) = &polled {
            this.moved.add(*written);
        }
        this.soak_while(cx, polled)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_flush(cx);
        this.soak_while(cx, polled)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
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
        let side = |stream, byte| async move {
            let mut stream = Elastic::new(stream, 16 << 20);
            let moved = stream.moved();
            // Everything is written before anything is read.
            stream.write_all(&vec![byte; LEN]).await.unwrap();
            stream.flush().await.unwrap();
            let mut got = vec![0; LEN];
            stream.read_exact(&mut got).await.unwrap();
            assert_eq!(moved.bytes(), 2 * LEN as u64);
            got
        };
        let both = async { tokio::join!(side(a, 1), side(b, 2)) };
        let (one, two) = tokio::time::timeout(std::time::Duration::from_secs(20), both).await.expect("blocked");
        assert!(one == vec![2; LEN] && two == vec![1; LEN]);
    }

    #[tokio::test]
    async fn what_was_soaked_up_comes_in_order_and_before_the_end() {
        let sent: Vec<u8> = (0..200_000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let (near, mut far) = tokio::io::duplex(200_000);
        let mut near = Elastic::new(near, 16 << 20);
        far.write_all(&sent).await.unwrap();
        // More than fits: the write blocks, and soaks.
        assert!(futures::poll!(std::pin::pin!(near.write_all(&[0; 300_000]))).is_pending());
        assert_eq!(near.soaked_len, sent.len());
        drop(far);
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        assert!(got == sent);
        assert!(near.soaked.is_empty() && near.soaked_len == 0);
    }

    #[tokio::test]
    async fn no_more_is_soaked_up_than_the_cap_and_one_piece() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut near = Elastic::new(near, 100_000);
        far.write_all(&vec![1; 1 << 20]).await.unwrap();
        assert!(futures::poll!(std::pin::pin!(near.write_all(&vec![0; 2 << 20]))).is_pending());
        assert!((100_000..100_000 + CHUNK).contains(&near.soaked_len), "{}", near.soaked_len);
    }
}
