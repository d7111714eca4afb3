//! Reads a pipe in few large pieces when much comes through it.
//!
//! The kernel wakes whoever waits for a pipe with `epoll` at *every* write, and programs write 4 or 8 KiB at a time: 131,072
//! wake-ups, small packets and small TLS records for one GiB. So once a pipe carries bulk it is not waited for any more but
//! looked at every millisecond, and what has gathered is taken in large pieces. As soon as little comes it is waited for
//! again: a person at a keyboard never meets the millisecond. Used for the output of sessions (`agent`) and the input of
//! `tsh`. Polled by hand because its callers read it as a stream.

use rustix::io::Errno;
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::unix::pipe,
    time::{Instant, Sleep},
};

/// How large a pipe that carries bulk is made: what may gather in one [`NAP`]; Linux' limit for unprivileged users.
const CAPACITY: usize = 1 << 20;
/// A pipe that cannot be made so large is always waited for: it would be full for most of a nap.
const LEAST: usize = 512 << 10;
const NAP: Duration = Duration::from_millis(1);
/// So much within so long is bulk: 50 MiB/s.
const BULK: (usize, Duration) = (512 << 10, Duration::from_millis(10));
/// Less than this in one nap, so many times one after the other, is no bulk any more.
const LITTLE: (usize, u32) = (16 << 10, 3);

/// The reading end of a pipe.
#[derive(Debug)]
pub struct Reader {
    pipe: Pipe,
    /// Bytes since `since`; while it is looked at, since the last nap.
    moved: usize,
    since: Instant,
    naps_with_little: u32,
    /// Of the pipe; 0 while nobody asked.
    capacity: usize,
    nap: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
enum Pipe {
    Waited(pipe::Receiver),
    /// Not known to `epoll`.
    Looked(OwnedFd),
    /// It could be neither after an error.
    Broken,
}

impl Reader {
    pub fn new(pipe: pipe::Receiver) -> Self {
        Self { pipe: Pipe::Waited(pipe), moved: 0, since: Instant::now(), naps_with_little: 0, capacity: 0, nap: None }
    }

    /// Counts what came while the pipe was waited for; from then on looks at one that carries bulk.
    fn count(&mut self, read: usize) -> io::Result<()> {
        if self.since.elapsed() > BULK.1 {
            (self.moved, self.since) = (0, Instant::now());
        }
        self.moved = self.moved.saturating_add(read);
        if self.moved < BULK.0 {
            return Ok(());
        }
        (self.moved, self.since) = (0, Instant::now());
        self.pipe = match std::mem::replace(&mut self.pipe, Pipe::Broken) {
            Pipe::Waited(pipe) => {
                if self.capacity == 0 {
                    self.capacity = widen(&pipe);
                }
                if self.capacity >= LEAST { Pipe::Looked(pipe.into_nonblocking_fd()?) } else { Pipe::Waited(pipe) }
            }
            other => other,
        };
        Ok(())
    }

    /// The pipe is empty: lets it fill, or waits for it again.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.nap.is_none() {
            let moved = std::mem::take(&mut self.moved);
            self.naps_with_little = if moved < LITTLE.0 { self.naps_with_little.saturating_add(1) } else { 0 };
            if self.naps_with_little > LITTLE.1 {
                self.naps_with_little = 0;
                self.pipe = match std::mem::replace(&mut self.pipe, Pipe::Broken) {
                    Pipe::Looked(fd) => Pipe::Waited(pipe::Receiver::from_owned_fd(fd)?),
                    other => other,
                };
                return Poll::Ready(Ok(()));
            }
            if moved >= self.capacity / 2 {
                // Its writer would have to wait for the end of a nap.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        let nap = self.nap.get_or_insert_with(|| Box::pin(tokio::time::sleep(NAP)));
        ready!(nap.as_mut().poll(cx));
        self.nap = None;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.pipe {
                Pipe::Waited(pipe) => {
                    let before = into.filled().len();
                    ready!(Pin::new(pipe).poll_read(cx, into))?;
                    return Poll::Ready(this.count(into.filled().len().saturating_sub(before)));
                }
                Pipe::Looked(_) if this.nap.is_some() => ready!(this.poll_fill(cx))?,
                Pipe::Looked(fd) => match rustix::io::read(fd, into.initialize_unfilled()) {
                    Ok(read) => {
                        into.advance(read);
                        this.moved = this.moved.saturating_add(read);
                        return Poll::Ready(Ok(()));
                    }
                    Err(Errno::AGAIN) => ready!(this.poll_fill(cx))?,
                    Err(Errno::INTR) => {}
                    Err(error) => return Poll::Ready(Err(error.into())),
                },
                Pipe::Broken => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
    }
}

/// Makes it larger, unless the kernel says that the account has too many; how large it is then.
fn widen(pipe: &impl AsFd) -> usize {
    let _as_it_was = rustix::pipe::fcntl_setpipe_size(pipe, CAPACITY);
    rustix::pipe::fcntl_getpipe_size(pipe).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
    }

    fn pair() -> (pipe::Sender, Reader) {
        let (sender, receiver) = pipe::pipe().unwrap();
        (sender, Reader::new(receiver))
    }

    fn is_looked_at(reader: &Reader) -> bool {
        matches!(reader.pipe, Pipe::Looked(_))
    }

    /// Sends so much that it is bulk; the reader then has everything.
    async fn send_bulk(sender: &mut pipe::Sender, reader: &mut Reader) {
        let (sent, mut got) = (pattern(4 << 20), vec![0; 4 << 20]);
        let (written, read) = tokio::join!(sender.write_all(&sent), reader.read_exact(&mut got));
        written.unwrap();
        read.unwrap();
        assert!(got == sent);
    }

    #[tokio::test(start_paused = true)]
    async fn bulk_is_looked_at_and_arrives_whole() {
        let (mut sender, mut reader) = pair();
        send_bulk(&mut sender, &mut reader).await;
        if reader.capacity >= LEAST {
            assert!(is_looked_at(&reader));
        }
        sender.write_all(b"last").await.unwrap();
        drop(sender);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"last");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipe_in_which_nothing_moves_any_more_is_waited_for_again() {
        let (mut sender, mut reader) = pair();
        send_bulk(&mut sender, &mut reader).await;
        let mut byte = [0];
        let silence = tokio::time::timeout(Duration::from_millis(50), reader.read(&mut byte)).await;
        assert!(silence.is_err() && !is_looked_at(&reader));
        sender.write_all(b"x").await.unwrap();
        assert_eq!(reader.read(&mut byte).await.unwrap(), 1);
        assert_eq!(byte, *b"x");
        send_bulk(&mut sender, &mut reader).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_person_sees_is_never_looked_for() {
        let (mut sender, mut reader) = pair();
        let mut screen = [0; 4096];
        for _ in 0..500 {
            sender.write_all(&[b'.'; 4096]).await.unwrap();
            reader.read_exact(&mut screen).await.unwrap();
            assert!(!is_looked_at(&reader));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
