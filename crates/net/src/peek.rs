//! Looks at the first bytes of a fresh connection without taking them: which name and protocol a TLS client asks for.
//!
//! The Proxy has one port for everything: from the answer it decides whether to splice the untouched bytes to an Auth
//! Service or to serve TLS itself. Reading has a deadline and a bound (attack table, rows 21 and 24); bytes that are not TLS are
//! named, so that a user who points a plain SSH or HTTP client at the port is told so.

use bytes::{Buf, Bytes, BytesMut};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// The most bytes a first message may have. A post-quantum one has about 1.8 KiB, in two TCP segments.
pub const MAX_CLIENT_HELLO: usize = 16 * 1024;

/// What a TLS client asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub server_name: Option<String>,
    /// In the client's order of preference (`wire::alpn`).
    pub alpn: Vec<Vec<u8>>,
}

impl Wanted {
    pub fn offers(&self, alpn: &[u8]) -> bool {
        self.alpn.iter().any(|name| name == alpn)
    }
}

/// What a client spoke that is not TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spoken {
    Ssh,
    Http,
    Other,
}

/// Why there was nothing to route by.
#[derive(Debug, thiserror::Error)]
pub enum PeekError {
    #[error("the client did not say what it wants in time")]
    Timeout,
    #[error("the client closed the connection before it said what it wants")]
    Closed,
    #[error("the client speaks {} to a port that speaks TLS", match .0 { Spoken::Ssh => "SSH", Spoken::Http => "plain HTTP", Spoken::Other => "an unknown protocol" })]
    NotTls(Spoken),
    #[error("the client's first message is longer than {MAX_CLIENT_HELLO} bytes")]
    TooLong,
    #[error("the client's first message is not valid TLS: {0}")]
    Malformed(rustls::Error),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

/// What plain HTTP clients are told.
const TO_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 49\r\n\r\nthis port speaks TLS; use https:// in the address";

/// Reads a TLS ClientHello and gives it back unread.
pub async fn peek<S>(mut stream: S, deadline: Duration) -> Result<(Wanted, Rewound<S>), PeekError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut seen = BytesMut::with_capacity(2048);
    match tokio::time::timeout(deadline, client_hello(&mut stream, &mut seen)).await {
        Ok(Ok(wanted)) => Ok((wanted, Rewound { prefix: seen.freeze(), stream })),
        Ok(Err(error)) => {
            if let PeekError::NotTls(Spoken::Http) = error {
                let _ = tokio::time::timeout(Duration::from_secs(1), async {
                    stream.write_all(TO_HTTP).await?;
                    stream.shutdown().await
                })
                .await;
            }
            Err(error)
        }
        Err(_) => Err(PeekError::Timeout),
    }
}

async fn client_hello<S: AsyncRead + Unpin>(stream: &mut S, seen: &mut BytesMut) -> Result<Wanted, PeekError> {
    let mut parser = rustls::server::Acceptor::default();
    let mut parsed = 0;
    loop {
        if stream.read_buf(seen).await? == 0 {
            return Err(if seen.is_empty() { PeekError::Closed } else { spoken(seen).map_or(PeekError::Closed, PeekError::NotTls) });
        }
        if let Some(spoken) = spoken(seen) {
            return Err(PeekError::NotTls(spoken));
        }
        if seen.first() != Some(&0x16) {
            // The first bytes of a word that `spoken` waits to see whole.
            continue;
        }
        while let Some(mut fresh) = seen.get(parsed..).filter(|fresh| !fresh.is_empty()) {
            let taken = parser.read_tls(&mut fresh)?;
            if taken == 0 {
                return Err(PeekError::TooLong);
            }
            parsed = parsed.saturating_add(taken);
            match parser.accept() {
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    let alpn = hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect()).unwrap_or_default();
                    return Ok(Wanted { server_name: hello.server_name().map(str::to_owned), alpn });
                }
                Ok(None) => {}
                Err((error, _)) => return Err(PeekError::Malformed(error)),
            }
        }
        if seen.len() >= MAX_CLIENT_HELLO {
            return Err(PeekError::TooLong);
        }
    }
}

/// What the bytes are, if they cannot be TLS. A TLS handshake record begins with 0x16.
fn spoken(seen: &[u8]) -> Option<Spoken> {
    const METHODS: [&[u8]; 8] = [b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"CONN", b"PRI ", b"DELE"];
    match seen {
        [] | [0x16, ..] => None,
        _ if seen.starts_with(b"SSH-") => Some(Spoken::Ssh),
        _ if METHODS.iter().any(|method| seen.starts_with(method)) => Some(Spoken::Http),
        // Three bytes may still become any of these.
        _ if seen.len() < 4 && [b"SSH-" as &[u8]].iter().chain(&METHODS).any(|word| word.starts_with(seen)) => None,
        _ => Some(Spoken::Other),
    }
}

/// A stream with bytes put back in front. Costs nothing once they are read.
#[derive(Debug)]
pub struct Rewound<S> {
    prefix: Bytes,
    stream: S,
}

impl<S> Rewound<S> {
    pub fn new(prefix: Bytes, stream: S) -> Self {
        Self { prefix, stream }
    }
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
    /// The bytes put back that were not read yet, and the stream.
    pub fn into_parts(self) -> (Bytes, S) {
        (self.prefix, self.stream)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        }
        let count = self.prefix.len().min(into.remaining());
        into.put_slice(self.prefix.get(..count).unwrap_or_default());
        self.prefix.advance(count);
        if self.prefix.is_empty() {
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
