//! gRPC over connections that did TLS and the handshake already: the glue between tonic and the rest of this crate.
//!
//! The calling end is a lazy [`channel`] that dials anew when its connection is gone; the serving end is a stream of
//! [`ServerIo`], so that a handler finds the [`Peer`] in its request's extensions and cannot be reached without one.

use crate::{IoStream, dial::DialError};
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use std::{
    error::Error as StdError,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server, server::Connected};
use types::{Identity, Public};
use wire::hello::Hello;

/// The most bytes of one message; the channel does not know it, so set it on generated clients and services.
pub use wire::api::MAX_MESSAGE;
/// A dead connection is found after these two.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_ANSWER: Duration = Duration::from_secs(10);
/// One large list must not wait for window updates, and several together must not stop the watch beside them.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// Requests at once over one connection.
const MAX_STREAMS: u32 = 1024;
/// For TCP, TLS and handshake together, which have their own deadlines.
const CONNECT_DEADLINE: Duration = Duration::from_secs(35);

/// A channel that calls `connect` when it first needs a connection and whenever it lost one.
pub fn channel<C>(connect: C) -> Channel
where
    C: Fn() -> BoxFuture<'static, Result<IoStream, DialError>> + Send + Sync + 'static,
{
    let connector = tower::service_fn(move |_: http::Uri| {
        let connecting = connect();
        async move { connecting.await.map(TokioIo::new) }
    });
    // The name is for HTTP/2's :authority only: who the server is was decided under TLS.
    Endpoint::from_static("http://lockgate.internal")
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect_timeout(CONNECT_DEADLINE)
        .connect_with_connector_lazy(connector)
}

/// Why the channel could not connect, when that is what failed a call.
pub fn connect_error(status: &tonic::Status) -> Option<Public> {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(dial) = error.downcast_ref::<DialError>() {
            return Some(dial.public());
        }
        cause = error.source();
    }
    None
}

/// A server with the settings that match [`channel`].
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_ANSWER))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
}

/// Who is on the other end; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Absent for those who may only join or log in.
    pub identity: Option<Arc<Identity>>,
    pub hello: Arc<Hello>,
    pub addr: SocketAddr,
    /// A Proxy passes the connection on: `addr` is the Proxy's.
    pub spliced: bool,
}

/// A connection for the gRPC server, with its peer. `keep` lives as long as the connection (a listener's permit).
pub struct ServerIo {
    stream: IoStream,
    peer: Peer,
    _keep: Box<dyn std::any::Any + Send>,
}

impl ServerIo {
    pub fn new(stream: IoStream, peer: Peer, keep: impl Send + 'static) -> Self {
        Self { stream, peer, _keep: Box::new(keep) }
    }
}
impl std::fmt::Debug for ServerIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.peer.fmt(f)
    }
}

impl Connected for ServerIo {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// What [`Server::serve_with_incoming`] wants.
pub type Incoming = ReceiverStream<io::Result<ServerIo>>;

/// The listener's end of [`Incoming`].
#[derive(Clone, Debug)]
pub struct Sender(mpsc::Sender<io::Result<ServerIo>>);

impl Sender {
    /// Hands a connection over; waits while the server is behind. False when the server has ended.
    pub async fn send(&self, connection: ServerIo) -> bool {
        self.0.send(Ok(connection)).await.is_ok()
    }
}

/// A way to feed a gRPC server with connections.
pub fn incoming(capacity: usize) -> (Sender, Incoming) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    (Sender(sender), ReceiverStream::new(receiver))
}

impl AsyncRead for ServerIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}
impl AsyncWrite for ServerIo {
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
