//! One HTTPS connection for a few small requests, one after the other: deadlines and bounds, nothing else of HTTP.
//!
//! No redirects are followed, no proxies of the environment asked, nothing is cached or compressed.

use super::LoginError;
use crate::profile::ProxyAddr;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use net::{
    task::Group,
    tls::{CertificateDer, ClientConfig},
};
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use wire::hello::{HEADER, Hello};
use zeroize::Zeroizing;

/// From a request's first byte to its answer's last: a login waits for a password hash and may queue.
const DEADLINE: Duration = Duration::from_secs(30);
/// The most bytes of an answer: a login's has all authorities.
const MAX_BODY: usize = 1 << 20;

pub(super) struct Connection {
    proxy: String,
    host: String,
    hello: String,
    sender: http1::SendRequest<Full<Bytes>>,
    /// Ends the connection's task with the connection.
    _group: Group,
}

pub(super) struct Request {
    method: http::Method,
    path: String,
    body: Bytes,
}

impl Request {
    pub(super) fn get(path: &str) -> Self {
        Self { method: http::Method::GET, path: path.to_owned(), body: Bytes::new() }
    }
    /// The body may hold secrets: its memory is wiped when it was sent.
    pub(super) fn post(path: &str, body: &impl Serialize) -> Self {
        let json = Zeroizing::new(serde_json::to_vec(body).unwrap_or_default());
        Self { method: http::Method::POST, path: path.to_owned(), body: Bytes::from_owner(json) }
    }
}

impl Connection {
    pub(super) fn proxy(&self) -> &str {
        &self.proxy
    }

    pub(super) async fn open(proxy: &ProxyAddr, config: Arc<ClientConfig>, hello: &Hello) -> Result<Self, LoginError> {
        let name = proxy.to_string();
        let stream = net::dial::tls(net::dial::tcp(&name).await?, &name, config, proxy.host()).await?;
        let closed = |error: hyper::Error| LoginError::Closed { proxy: name.clone(), why: error.to_string() };
        let (sender, connection) = http1::Builder::new().max_buf_size(64 * 1024).handshake(TokioIo::new(stream)).await.map_err(closed)?;
        let group = Group::new("web client");
        group.spawn("connection", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "web connection ended");
            }
        });
        let hello = serde_json::to_string(hello).unwrap_or_default();
        Ok(Self { host: name.clone(), proxy: name, hello, sender, _group: group })
    }

    /// The certificates that the server shows. Says nothing.
    pub(super) async fn chain(proxy: &ProxyAddr, config: Arc<ClientConfig>) -> Result<Vec<CertificateDer<'static>>, LoginError> {
        let name = proxy.to_string();
        let stream = net::dial::tls(net::dial::tcp(&name).await?, &name, config, proxy.host()).await?;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        Ok(shown.iter().map(|certificate| certificate.clone().into_owned()).collect())
    }

    /// One request; its answer's status and body.
    pub(super) async fn send(&mut self, request: Request) -> Result<(u16, Bytes), LoginError> {
        match tokio::time::timeout(DEADLINE, self.talk(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(LoginError::Timeout { proxy: self.proxy.clone() }),
        }
    }

    async fn talk(&mut self, request: Request) -> Result<(u16, Bytes), LoginError> {
        let closed = |proxy: &str, why: String| LoginError::Closed { proxy: proxy.to_owned(), why };
        let built = http::Request::builder()
            .method(request.method)
            .uri(request.path)
            .header(http::header::HOST, &self.host)
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::USER_AGENT, "tsh")
            .header(HEADER, &self.hello)
            .body(Full::new(request.body))
            .map_err(|error| closed(&self.proxy, error.to_string()))?;
        self.sender.ready().await.map_err(|error| closed(&self.proxy, error.to_string()))?;
        let answer = self.sender.send_request(built).await.map_err(|error| closed(&self.proxy, error.to_string()))?;
        let status = answer.status().as_u16();
        let body = self.read(answer.into_body()).await?;
        Ok((status, body))
    }

    async fn read(&self, mut body: Incoming) -> Result<Bytes, LoginError> {
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| LoginError::Closed { proxy: self.proxy.clone(), why: error.to_string() })?;
            if let Some(data) = frame.data_ref() {
                if read.len().saturating_add(data.len()) > MAX_BODY {
                    return Err(LoginError::NotLockgate {
                        proxy: self.proxy.clone(),
                        why: format!("its answer is longer than {MAX_BODY} bytes"),
                    });
                }
                read.extend_from_slice(data);
            }
        }
        Ok(read.freeze())
    }
}
