//! `POST /webapi/login`: carries a person's proof to the Auth Service and the certificates back. Nothing of it is kept or
//! logged; `rules::login` decides, over there.

use super::{Failure, body, source};
use crate::Shared;
use axum::{
    Json,
    extract::{Request, State},
};
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{net::IpAddr, sync::Arc};
use types::{Code, Public, Ttl};
use wire::{
    api::LoginRequest,
    hello::{HEADER, Hello},
};

/// What `tsh` sends. Fields of a newer release are ignored.
#[derive(Deserialize)]
struct Login {
    user: String,
    password: String,
    #[serde(default)]
    otp: String,
    /// One line, OpenSSH's format.
    ssh_public_key: String,
    /// SubjectPublicKeyInfo, DER in base64.
    tls_public_key: String,
    #[serde(default)]
    ttl: Option<Life>,
}

/// Seconds, or as people write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Life {
    Seconds(u64),
    Text(Ttl),
}

pub(super) async fn login(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Value>, Failure> {
    let source = source(&request)?;
    let hello = request.headers().get(HEADER).and_then(|value| serde_json::from_slice::<Hello>(value.as_bytes()).ok());
    let body = body(request).await?;
    // Only now: a body that never comes must not use up the attempts of others behind the same address.
    let carried = carry(&shared, source, hello, &body);
    shared.attempts.attempt(source, carried).await
}

async fn carry(shared: &Shared, source: IpAddr, hello: Option<Hello>, body: &[u8]) -> Result<Json<Value>, Failure> {
    // Serde's message may quote what it met, and a password is in there.
    let malformed = |what: &str| Public::new(Code::Malformed, format!("the login request cannot be read: {what}"));
    let asked: Login = serde_json::from_slice(body)
        .map_err(|error| malformed(&format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column())))?;
    let key = BASE64.decode(asked.tls_public_key.as_bytes()).map_err(|_| malformed("tls_public_key is not base64"))?;
    let ttl = match asked.ttl {
        None => 0,
        Some(Life::Seconds(seconds)) => seconds,
        Some(Life::Text(ttl)) => ttl.0.as_secs(),
    };
    let request = LoginRequest {
        user: asked.user,
        password: asked.password,
        otp: asked.otp,
        ssh_public_key: asked.ssh_public_key,
        tls_public_key: key.into(),
        ttl,
        client_addr: source.to_string(),
        client_version: hello.map(|hello| hello.version).unwrap_or_default(),
    };
    let reply = shared.api.login(request).await?;
    let authorities = reply.authorities.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect::<Vec<Value>>();
    shared.metrics.logins.add(1);
    Ok(Json(json!({
        "ssh_certificate": reply.ssh_certificate,
        "tls_certificate": reply.tls_certificate,
        "authorities": authorities,
        "cluster_name": reply.cluster_name,
        "user": reply.user,
        "expires": reply.expires,
    })))
}
