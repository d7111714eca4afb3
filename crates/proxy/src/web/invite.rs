//! Invitations: `/webapi/invite/{secret}` for `tsh login --invite`, `/web/invite/{secret}` for people with a browser.
//!
//! The secret in the path is the whole authority, so it goes nowhere but to the Auth Service: not into a log, not into a
//! page, not into a `Referer` (the headers see to that). There is no cookie, hence nothing for another site to ride on.

use super::{
    Failure, body, info, page,
    read::{self, Answer},
    source, status,
};
use crate::Shared;
use axum::{
    Json,
    extract::{Path, Request, State},
    response::{Html, IntoResponse, Response},
};
use std::sync::Arc;
use types::{Code, Public};
use wire::{
    api::{AcceptInviteRequest, GetInviteRequest, InviteReply},
    web::{InviteTold, Taken},
};

/// `GET /webapi/invite/{secret}`
pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Path(secret): Path<String>,
    request: Request,
) -> Result<Json<InviteTold>, Failure> {
    let invite = shared.attempts.attempt(source(&request)?, look_up(&shared, &secret)).await?;
    Ok(Json(InviteTold { user: invite.user, expires: invite.expires, otp_url: invite.otp_url }))
}

/// `POST /webapi/invite/{secret}`
pub(super) async fn accept(
    State(shared): State<Arc<Shared>>,
    Path(secret): Path<String>,
    request: Request,
) -> Result<Json<Taken>, Failure> {
    let source = source(&request)?;
    let body = body(request).await?;
    let accept = async { carry(&shared, &secret, read::answer(&body)?, source.to_string()).await };
    shared.attempts.attempt(source, accept).await?;
    Ok(Json(Taken {}))
}

/// `GET /web/invite/{secret}`
pub(super) async fn page(State(shared): State<Arc<Shared>>, Path(secret): Path<String>, request: Request) -> Response {
    let found = match source(&request) {
        Ok(source) => shared.attempts.attempt(source, look_up(&shared, &secret)).await,
        Err(error) => Err(error),
    };
    match found {
        Ok(invite) => Html(page::invite(&invite.user, &invite.expires, &invite.otp_url, None)).into_response(),
        Err(error) => failed(&error),
    }
}

/// `POST /web/invite/{secret}`: on a fault the form comes again, with what was wrong.
pub(super) async fn page_accept(State(shared): State<Arc<Shared>>, Path(secret): Path<String>, request: Request) -> Response {
    let headers = request.headers().clone();
    let read = async {
        let source = source(&request)?;
        Ok((source, read::form(body(request).await?).await?))
    };
    let (source, answer) = match read.await {
        Ok(read) => read,
        Err(error) => return failed(&error),
    };
    let invite = match shared.attempts.attempt(source, look_up(&shared, &secret)).await {
        Ok(invite) => invite,
        Err(error) => return failed(&error),
    };
    let accepted = match answer.again.as_ref().is_some_and(|again| *again != answer.password) {
        true => Err(Public::new(Code::PasswordWeak, "the two passwords are not the same")),
        false => shared.attempts.attempt(source, carry(&shared, &secret, answer, source.to_string())).await,
    };
    match accepted {
        Ok(()) => Html(page::accepted(&invite.user, &info::proxy_name(&shared, &headers))).into_response(),
        Err(error) => (status(&error), Html(page::invite(&invite.user, &invite.expires, &invite.otp_url, Some(&error)))).into_response(),
    }
}

async fn look_up(shared: &Shared, secret: &str) -> Result<InviteReply, Public> {
    let secret = well_formed(secret)?;
    shared.api.get_invite(GetInviteRequest { secret }).await
}

async fn carry(shared: &Shared, secret: &str, answer: Answer, client_addr: String) -> Result<(), Public> {
    let secret = well_formed(secret)?;
    let request = AcceptInviteRequest { secret, password: answer.password, otp: answer.otp.trim().to_owned(), client_addr };
    shared.api.accept_invite(request).await.map(|_| ())
}

/// What cannot be an invitation's secret does not travel further.
fn well_formed(secret: &str) -> Result<String, Public> {
    let fits = (8..=256).contains(&secret.len()) && secret.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    let error =
        || Public::new(Code::InviteInvalid, "the invitation is unknown, used or expired").hint("ask an administrator for a new one");
    if fits { Ok(secret.to_owned()) } else { Err(error()) }
}

fn failed(error: &Public) -> Response {
    (status(error), Html(page::error(error))).into_response()
}
