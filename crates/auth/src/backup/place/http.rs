//! The connections that `object_store` speaks over: ours, with the system's authorities, deadlines and no redirects.
//!
//! One connection for each request: parts are large, so that a handshake costs nothing beside them, and a connection that stalls harms no
//! other. Who calls: `bucket`, and through it the crate's own requests for credentials (plain HTTP to the machine's metadata service).

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use http::{HeaderValue, Uri, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use net::{
    clock::SystemClock,
    task::Group,
    tls::{ClientConfig, TlsError, Trust, client_config},
};
use object_store::{
    ClientOptions,
    client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService},
};
use std::{io, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// From a request's first byte to its answer's head: a part of 16 MiB at 150 KiB/s, or a server that puts hundreds of parts together.
const ANSWER: Duration = Duration::from_secs(120);
/// Between two pieces of an answer's body.
const PIECE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub(super) struct Connections {
    tls: Arc<ClientConfig>,
}

impl Connections {
    pub(super) fn new() -> Result<Self, TlsError> {
        Ok(Self { tls: client_config(None, Trust::System, &[b"http/1.1"], &SystemClock::shared())? })
    }

    async fn talk(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (mut parts, body) = request.into_parts();
        let uri = std::mem::take(&mut parts.uri);
        let unusable = |why: &str| HttpError::new(HttpErrorKind::Unknown, io::Error::other(format!("{uri}: {why}")));
        let host = uri.host().ok_or_else(|| unusable("it names no host"))?;
        let secure = uri.scheme_str() == Some("https");
        let addr = format!("{host}:{}", uri.port_u16().unwrap_or(if secure { 443 } else { 80 }));
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = path.parse::<Uri>().map_err(|error| unusable(&error.to_string()))?;
        if !parts.headers.contains_key(header::HOST)
            && let Some(authority) = uri.authority()
        {
            let value = HeaderValue::from_str(authority.as_str()).map_err(|error| unusable(&error.to_string()))?;
            parts.headers.insert(header::HOST, value);
        }
        let request = http::Request::from_parts(parts, body);
        let connect = |error| HttpError::new(HttpErrorKind::Connect, error);
        let stream = net::dial::tcp(&addr).await.map_err(connect)?;
        if secure {
            let name = host.trim_start_matches('[').trim_end_matches(']');
            let stream = net::dial::tls(stream, &addr, self.tls.clone(), name).await.map_err(connect)?;
            exchange(TokioIo::new(stream), request).await
        } else {
            exchange(TokioIo::new(stream), request).await
        }
    }
}

impl HttpConnector for Connections {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl HttpService for Connections {
    // As the crate's trait reads once its attribute has turned it into a boxed future.
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> BoxFuture<'b, Result<HttpResponse, HttpError>>
    where
        'a: 'b,
        Self: 'b,
    {
        self.talk(request).boxed()
    }
}

fn broken(error: hyper::Error) -> HttpError {
    let kind = if error.is_timeout() { HttpErrorKind::Timeout } else { HttpErrorKind::Interrupted };
    HttpError::new(kind, error)
}

fn late(what: &str) -> HttpError {
    HttpError::new(HttpErrorKind::Timeout, io::Error::new(io::ErrorKind::TimedOut, format!("the server {what} in time")))
}

async fn exchange<S>(stream: S, request: HttpRequest) -> Result<HttpResponse, HttpError>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
    let group = Group::new("object storage");
    group.spawn("connection", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to object storage ended");
        }
    });
    let answer = tokio::time::timeout(ANSWER, sender.send_request(request)).await;
    let (head, body) = answer.map_err(|_| late("gave no answer"))?.map_err(broken)?.into_parts();
    let (pieces, queue) = mpsc::channel(1);
    group.spawn("answer", pass_on(body, pieces));
    // The connection lives as long as its answer is read.
    let pieces = ReceiverStream::new(queue).map(move |piece| {
        let _held = &group;
        piece
    });
    Ok(HttpResponse::from_parts(head, HttpResponseBody::new(StreamBody::new(pieces))))
}

async fn pass_on(mut body: Incoming, pieces: mpsc::Sender<Result<Frame<Bytes>, HttpError>>) {
    loop {
        let piece = match tokio::time::timeout(PIECE, body.frame()).await {
            Ok(None) => return,
            Ok(Some(frame)) => frame.map_err(broken),
            Err(_) => Err(late("sent nothing more")),
        };
        let last = piece.is_err();
        if pieces.send(piece).await.is_err() || last {
            return;
        }
    }
}
