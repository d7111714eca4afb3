//! Frames over a stream: the asynchronous ends of `wire::frame`.
//!
//! [`read_frame`] takes exactly one frame and not a byte more, so the stream can be handed on afterwards; it must not be
//! cancelled half-way. [`Reader`] may be cancelled (in a `select!`) and keeps no memory between frames: the end for
//! connections that live long and say little.

use bytes::{Bytes, BytesMut};
use std::{future::Future, io, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use wire::frame::{BadFrame, checked_len, decode, encode};

/// Why a frame was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the peer did not answer in time")]
    Timeout,
    #[error("the peer closed the connection")]
    Closed,
    #[error(transparent)]
    TooLong(#[from] BadFrame),
    #[error("the connection failed: {0}")]
    Io(io::Error),
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Resets and brokenness are how a peer's end is heard when it did not say goodbye.
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, FrameError>>) -> Result<T, FrameError> {
    tokio::time::timeout(deadline, work).await.unwrap_or(Err(FrameError::Timeout))
}

/// Reads one frame's payload, and nothing after it. Not safe to cancel.
pub async fn read_frame<S: AsyncRead + Unpin>(stream: &mut S, deadline: Duration) -> Result<Bytes, FrameError> {
    within(deadline, async {
        let mut header = [0; 4];
        stream.read_exact(&mut header).await?;
        let mut payload = BytesMut::zeroed(checked_len(header)?);
        stream.read_exact(&mut payload).await?;
        Ok(payload.freeze())
    })
    .await
}

/// Writes one frame and flushes. Not safe to cancel.
pub async fn write_frame<S: AsyncWrite + Unpin>(stream: &mut S, payload: &[u8], deadline: Duration) -> Result<(), FrameError> {
    within(deadline, async {
        stream.write_all(&encode(payload)?).await?;
        Ok(stream.flush().await?)
    })
    .await
}

/// Reads frame after frame. Bytes read ahead stay in the reader, so it owns its half of the stream.
#[derive(Debug)]
pub struct Reader<S> {
    stream: S,
    buffer: BytesMut,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// The next frame's payload. Safe to cancel: nothing is lost.
    pub async fn next(&mut self, deadline: Duration) -> Result<Bytes, FrameError> {
        within(deadline, async {
            loop {
                if let Some(frame) = decode(&mut self.buffer)? {
                    if self.buffer.is_empty() {
                        self.buffer = BytesMut::new();
                    }
                    return Ok(frame);
                }
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    return Err(FrameError::Closed);
                }
            }
        })
        .await
    }
}
