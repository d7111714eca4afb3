//! Whether a new process serves as it should, seen from outside: the process before it asks, and believes no word of it.
//!
//! One question for each door, the one that a user's or member's program begins with, and answered by what only a service of this
//! cluster can answer. Where the door is a connection that was given, no user is at risk; the same questions are asked at the ports
//! once the new process listens there alone.

use client::{
    api::{Access, Api, Settings as ApiSettings, Via},
    host::HostCredentials,
    ssh::{ExpectedHost, meet},
};
use net::{
    clock::SharedClock,
    tls::{Pin, PinnedName, Trust, client_config},
};
use serde_json::Value;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use types::{SystemRole, Version};
use wire::{alpn, route::Target, sni};

/// For each answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// More than any answer to these questions.
const MOST_BYTES: u64 = 64 * 1024;

/// What is known of the cluster, and what the new process says it is.
pub(super) struct Judge {
    pub(super) version: Version,
    pub(super) clock: SharedClock,
    pub(super) credentials: Option<Arc<HostCredentials>>,
    /// Of the host authority.
    pub(super) pins: Vec<Pin>,
    /// The Proxy's web certificate is the cluster's.
    pub(super) cluster_web: bool,
}

impl Judge {
    /// Asks at that door over this connection. The error says what was wrong.
    pub(super) async fn door(&self, door: &str, stream: TcpStream) -> Result<(), String> {
        let answer = async {
            match door {
                "proxy" => self.web(stream).await,
                "jump" => ssh_line(stream).await,
                "ssh" => self.ssh(stream).await,
                "diag" => http(stream, "/healthz").await.and_then(|answer| fits(&answer, "status", "ok")),
                other => Err(format!("nobody knows what {other} should answer")),
            }
        };
        timely(answer).await.map_err(|why| format!("{door}: {why}"))
    }

    /// The Proxy as `tsh` first meets it.
    async fn web(&self, stream: TcpStream) -> Result<(), String> {
        let credentials = self.credentials.as_ref().ok_or("there is nothing to check it by")?;
        let trust = match self.cluster_web {
            true => Trust::Cluster(credentials.trust.swap().map_err(text)?),
            false => Trust::Insecure,
        };
        let config = client_config(None, trust, &[alpn::HTTP], &self.clock).map_err(text)?;
        let name = sni::role_name(&SystemRole::Proxy, credentials.cluster());
        let stream = net::dial::tls(stream, "the new process", config, &name).await.map_err(text)?;
        fits(&http(stream, "/webapi/ping").await?, "server_version", &self.version.to_string())
    }

    /// The SSH Service as `tsh ssh` meets it: the host proves its certificate.
    async fn ssh(&self, stream: TcpStream) -> Result<(), String> {
        let credentials = self.credentials.as_ref().ok_or("there is nothing to check it by")?;
        let id = credentials.id();
        let expected = ExpectedHost { trust: credentials.trust.clone(), asked: Target::Id(id), host_id: Some(id) };
        meet(Box::new(stream), expected, self.clock.clone()).await.map_err(text)
    }

    /// The Auth Service that listens there, over TLS, the handshake and the API.
    pub(super) async fn auth(&self, addr: SocketAddr) -> Result<(), String> {
        let api = Api::new(ApiSettings {
            via: Via::Auth(addr.to_string()),
            access: Access::unknown_cluster(Trust::Pins { pins: self.pins.clone(), name: PinnedName::AuthOfUnknownCluster }),
            role: "tctl".into(),
            // What it says it is always fits itself: whether it may serve this cluster is decided by its own start.
            version: self.version.clone(),
            skip_version_check: false,
            clock: self.clock.clone(),
        });
        let asked = async { api.ping().await.map_err(text) };
        let answer = timely(asked).await.map_err(|why| format!("auth: {why}"))?;
        if answer.server_version == self.version.to_string() {
            return Ok(());
        }
        Err(format!("auth: it is {} and says that it is {}", answer.server_version, self.version))
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn timely<T>(answer: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(DEADLINE, answer).await.unwrap_or_else(|_| Err(format!("no answer within {} s", DEADLINE.as_secs())))
}

/// An SSH server's first line.
async fn ssh_line(mut stream: TcpStream) -> Result<(), String> {
    let mut line = [0; 8];
    stream.read_exact(&mut line).await.map_err(text)?;
    if line == *b"SSH-2.0-" { Ok(()) } else { Err("it does not speak SSH".into()) }
}

/// The JSON that a path answers, with status 200.
async fn http(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> Result<Value, String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(text)?;
    stream.flush().await.map_err(text)?;
    let mut answer = Vec::new();
    // A server may close without TLS's good-bye once it has answered: what counts is what came.
    let read = stream.take(MOST_BYTES).read_to_end(&mut answer).await;
    parse(&answer).ok_or_else(|| match read {
        Ok(_) => "its answer is no JSON with status 200".into(),
        Err(error) => text(error),
    })
}

fn parse(answer: &[u8]) -> Option<Value> {
    let answer = std::str::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    if head.split(' ').nth(1) != Some("200") {
        return None;
    }
    serde_json::from_str(body).ok()
}

fn fits(answer: &Value, field: &str, want: &str) -> Result<(), String> {
    match answer.get(field).and_then(Value::as_str) {
        Some(said) if said == want => Ok(()),
        Some(said) => Err(format!("it answers {field} \"{said}\" where \"{want}\" is right")),
        None => Err(format!("its answer has no {field}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_good_when_it_says_what_was_expected() {
        let check = |answer: &str, want: Result<(), &str>| {
            let judged = parse(answer.as_bytes()).ok_or("unreadable".to_owned()).and_then(|value| fits(&value, "v", "1.2.3"));
            assert_eq!(judged.as_ref().map_err(String::as_str).copied(), want, "{answer}");
        };
        check("HTTP/1.1 200 OK\r\nx: y\r\n\r\n{\"v\":\"1.2.3\"}", Ok(()));
        check("HTTP/1.1 200 OK\r\n\r\n{\"v\":\"1.2.4\"}", Err("it answers v \"1.2.4\" where \"1.2.3\" is right"));
        check("HTTP/1.1 200 OK\r\n\r\n{}", Err("its answer has no v"));
        check("HTTP/1.1 500 No\r\n\r\n{\"v\":\"1.2.3\"}", Err("unreadable"));
        check("HTTP/1.1 200 OK\r\n\r\n<html>", Err("unreadable"));
        check("SSH-2.0-x", Err("unreadable"));
    }
}
