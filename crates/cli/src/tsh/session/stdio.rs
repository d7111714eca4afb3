//! Standard input and output as asynchronous streams that neither hold the program at its end nor disturb its neighbours.
//!
//! A pipe is opened anew through `/proc`, which gives it a non-blocking mode of its own: the mode of descriptor 0 itself is
//! shared with the shell and every other process of the pipeline. A regular file, and `/dev/null`, never wait for a person or
//! another program: they are read and written in place, which spares a change of thread and a copy for each piece. Everything
//! else (terminals, sockets) is read and written by a thread of the runtime; that thread may be stuck in `read` at the end,
//! so whoever uses this ends the runtime with `shutdown_background`.

use net::pipe::Reader;
use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt as _, MetadataExt as _},
    },
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, stderr, stdin, stdout},
    net::unix::pipe,
};

pub(in crate::tsh) type Input = Box<dyn AsyncRead + Send + Unpin>;
pub(in crate::tsh) type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// Standard input. Inside a runtime.
pub(in crate::tsh) fn input() -> Input {
    match (pipe::OpenOptions::new().open_receiver("/proc/self/fd/0"), InPlace::of(io::stdin())) {
        (Ok(pipe), _) => Box::new(Reader::new(pipe)),
        (Err(_), Some(file)) => Box::new(file),
        (Err(_), None) => Box::new(stdin()),
    }
}

/// Standard output.
pub(in crate::tsh) fn output() -> Output {
    match (pipe::OpenOptions::new().open_sender("/proc/self/fd/1"), InPlace::of(io::stdout())) {
        (Ok(pipe), _) => Box::new(pipe),
        (Err(_), Some(file)) => Box::new(file),
        (Err(_), None) => Box::new(stdout()),
    }
}

/// Standard error.
pub(in crate::tsh) fn errors() -> Output {
    match (pipe::OpenOptions::new().open_sender("/proc/self/fd/2"), InPlace::of(io::stderr())) {
        (Ok(pipe), _) => Box::new(pipe),
        (Err(_), Some(file)) => Box::new(file),
        (Err(_), None) => Box::new(stderr()),
    }
}

/// A descriptor that never waits for anybody; position and mode stay shared with whoever opened it.
struct InPlace(File);

impl InPlace {
    fn of(descriptor: impl AsFd) -> Option<Self> {
        /// `/dev/null` on Linux: major 1, minor 3.
        const NULL: u64 = 0x0103;
        let file = File::from(descriptor.as_fd().try_clone_to_owned().ok()?);
        let about = file.metadata().ok()?;
        let is_null = about.file_type().is_char_device() && about.rdev() == NULL;
        (about.is_file() || is_null).then_some(Self(file))
    }
}

/// Until it was not interrupted.
fn whole<T>(mut act: impl FnMut() -> io::Result<T>) -> Poll<io::Result<T>> {
    loop {
        match act() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return Poll::Ready(done),
        }
    }
}

impl AsyncRead for InPlace {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = into.initialize_unfilled();
        whole(|| self.0.read(room)).map_ok(|read| into.advance(read))
    }
}

impl AsyncWrite for InPlace {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        whole(|| self.0.write(bytes))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_file_is_written_and_read_in_place_and_from_where_it_stands() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before ").unwrap();
        let mut out = InPlace::of(&file).unwrap();
        out.write_all(&vec![b'x'; 300_000]).await.unwrap();
        file.write_all(b"after").unwrap();
        assert_eq!(file.metadata().unwrap().len(), 7 + 300_000 + 5);
        file.seek(io::SeekFrom::Start(7)).unwrap();
        let mut read = Vec::new();
        InPlace::of(&file).unwrap().read_to_end(&mut read).await.unwrap();
        assert!(read.len() == 300_005 && read.ends_with(b"xafter"));
    }

    #[test]
    fn what_may_wait_for_somebody_is_not_used_in_place() {
        let (read, write) = io::pipe().unwrap();
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(InPlace::of(&read).is_none() && InPlace::of(&write).is_none() && InPlace::of(&one).is_none());
        assert!(InPlace::of(File::open("/dev/zero").unwrap()).is_none());
        assert!(InPlace::of(File::options().write(true).open("/dev/null").unwrap()).is_some());
    }
}
