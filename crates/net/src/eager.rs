//! Reads under TLS in large pieces: rustls by itself asks the kernel for one record at a time, and after a pause for 4 KiB.
//!
//! A read that was filled to the brim means that more is waiting: from then on a block is borrowed, filled in one go and
//! handed out piece by piece. It is given back as soon as nothing waits, so that an idle connection holds none. Put under
//! every TLS connection by [`crate::dial`] and [`crate::tls::accept`]. Hand-written polls, because the block must be given
//! back at the very moment a read would wait.

use crate::block::Block;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that is read in large pieces while much is coming.
#[derive(Debug)]
pub struct Eager<S> {
    stream: S,
    block: Option<Block>,
    /// What of the block is read and not handed out.
    start: usize,
    filled: usize,
    /// The last read left more behind.
    busy: bool,
}

impl<S> Eager<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, block: None, start: 0, filled: 0, busy: false }
    }
    /// The stream underneath; what was read ahead is not in it.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    fn hand_out(&mut self, into: &mut ReadBuf<'_>) -> bool {
        let waiting = self.block.as_deref().and_then(|block| block.get(self.start..self.filled)).unwrap_or_default();
        let now = waiting.len().min(into.remaining());
        match waiting.get(..now) {
            Some(piece) if now > 0 => into.put_slice(piece),
            Some(_) | None => return false,
        }
        self.start = self.start.saturating_add(now);
        true
    }

    fn release(&mut self) {
        (self.start, self.filled) = (0, 0);
        self.block = None;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Eager<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if into.remaining() == 0 || this.hand_out(into) {
            return Poll::Ready(Ok(()));
        }
        if !this.busy {
            this.release();
            let done = Pin::new(&mut this.stream).poll_read(cx, into);
            this.busy = done.is_ready() && into.remaining() == 0;
            return done;
        }
        let block = this.block.get_or_insert_with(Block::borrow);
        let mut room = ReadBuf::new(block);
        let done = Pin::new(&mut this.stream).poll_read(cx, &mut room);
        let (filled, full) = (room.filled().len(), room.remaining() == 0);
        (this.start, this.filled) = (0, filled);
        // The last piece of what was there: the next read waits, and holds nothing while it does.
        this.busy = full;
        if filled == 0 {
            this.release();
        }
        ready!(done)?;
        this.hand_out(into);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Eager<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, pieces)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Says how often it was asked.
    struct Asked<S>(S, usize);
    impl<S: AsyncRead + Unpin> AsyncRead for Asked<S> {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_read(cx, into)
        }
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
    }

    #[tokio::test]
    async fn much_is_read_in_few_pieces_and_arrives_in_order() {
        let sent = pattern(1 << 20);
        let (mut far, near) = tokio::io::duplex(1 << 21);
        far.write_all(&sent).await.unwrap();
        drop(far);
        let mut eager = Eager::new(Asked(near, 0));
        let mut got = Vec::new();
        let mut small = [0; 4096];
        loop {
            let read = eager.read(&mut small).await.unwrap();
            if read == 0 {
                break;
            }
            got.extend_from_slice(&small[..read]);
        }
        assert!(got == sent);
        assert!(eager.stream.1 < 25, "{} reads", eager.stream.1);
    }

    #[tokio::test]
    async fn a_stream_that_waits_holds_no_block() {
        let (mut far, near) = tokio::io::duplex(1 << 20);
        let mut eager = Eager::new(near);
        far.write_all(&pattern(200_000)).await.unwrap();
        let mut got = vec![0; 200_000];
        for piece in got.chunks_mut(4096) {
            eager.read_exact(piece).await.unwrap();
        }
        assert!(got == pattern(200_000));
        assert!(futures::poll!(std::pin::pin!(eager.read_u8())).is_pending());
        assert!(eager.block.is_none());
        far.write_all(b"x").await.unwrap();
        assert_eq!(eager.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn an_error_is_told_after_what_came_before_it() {
        let script = [Ok(pattern(4096)), Ok(vec![1; 10]), Err(io::ErrorKind::ConnectionReset.into())];
        let mut eager = Eager::new(Script(script.into()));
        let mut got = vec![0; 4106];
        for piece in got.chunks_mut(4096) {
            eager.read_exact(piece).await.unwrap();
        }
        assert!(got[..4096] == pattern(4096)[..] && got[4096..] == [1; 10]);
        assert_eq!(eager.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    struct Script(std::collections::VecDeque<io::Result<Vec<u8>>>);
    impl AsyncRead for Script {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(self.0.pop_front().unwrap_or(Ok(Vec::new())).map(|bytes| into.put_slice(&bytes)))
        }
    }
}
