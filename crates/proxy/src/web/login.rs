//! `POST /webapi/login`: carries a person's proof to the Auth Service and the certificates back. Nothing of it is kept or
//! logged; `rules::login` decides, over there.

use super::{Failure, body, read, source};
use crate::Shared;
use axum::{
    Json,
    extract::{Request, State},
};
use std::{net::IpAddr, sync::Arc};
use wire::{
    api::LoginRequest,
    hello::{HEADER, Hello},
    web::LoginTold,
};

pub(super) async fn login(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<LoginTold>, Failure> {
    let source = source(&request)?;
    let hello = request.headers().get(HEADER).and_then(|value| serde_json::from_slice::<Hello>(value.as_bytes()).ok());
    let body = body(request).await?;
    // Only now: a body that never comes must not use up the attempts of others behind the same address.
    let carried = carry(&shared, source, hello, &body);
    shared.attempts.attempt(source, carried).await
}

async fn carry(shared: &Shared, source: IpAddr, hello: Option<Hello>, body: &[u8]) -> Result<Json<LoginTold>, Failure> {
    let request = LoginRequest {
        client_addr: source.to_string(),
        client_version: hello.map(|hello| hello.version).unwrap_or_default(),
        ..read::login(body)?
    };
    let reply = shared.api.login(request).await?;
    let authorities = reply.authorities.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect();
    shared.metrics.logins.add(1);
    Ok(Json(LoginTold {
        ssh_certificate: reply.ssh_certificate,
        tls_certificate: reply.tls_certificate,
        authorities,
        cluster_name: reply.cluster_name,
        user: reply.user,
        expires: reply.expires,
    }))
}
