//! What strangers send to the web API, read: bytes in, a value or a [`Public`] error out, nothing else.
//!
//! Bodies are bounded before they come here. No error quotes what was met: a password is in there. Fields of a newer release
//! are ignored. Called by `login` and `invite`, and by the fuzz target `web`.

use axum::{
    Form,
    body::{Body, Bytes},
    extract::FromRequest as _,
    http::Request,
};
use data_encoding::BASE64;
use serde::Deserialize;
use types::{Code, Public};
use wire::{
    api::LoginRequest,
    web::{InviteTake, Life, LoginAsk},
};

/// What sets a password. `again` is the page's: `tsh` compares for itself.
#[derive(Deserialize)]
pub struct Answer {
    pub password: String,
    #[serde(default)]
    pub again: Option<String>,
    #[serde(default)]
    pub otp: String,
}

/// The body of a login, as the Auth Service is asked; who asks is not in it.
pub fn login(body: &[u8]) -> Result<LoginRequest, Public> {
    let malformed = |what: &str| Public::new(Code::Malformed, format!("the login request cannot be read: {what}"));
    let asked: LoginAsk<'_> = serde_json::from_slice(body)
        .map_err(|error| malformed(&format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column())))?;
    let key = BASE64.decode(asked.tls_public_key.as_bytes()).map_err(|_| malformed("tls_public_key is not base64"))?;
    Ok(LoginRequest {
        user: asked.user.into_owned(),
        password: asked.password.into_owned(),
        otp: asked.otp.unwrap_or_default().into_owned(),
        ssh_public_key: asked.ssh_public_key,
        tls_public_key: key.into(),
        ttl: asked.ttl.map_or(0, Life::as_secs),
        client_addr: String::new(),
        client_version: String::new(),
    })
}

/// The body of an answer to an invitation, as `tsh` sends it.
pub fn answer(body: &[u8]) -> Result<Answer, Public> {
    let malformed = |_| Public::new(Code::Malformed, "the answer to the invitation cannot be read; it has \"password\" and \"otp\"");
    let take: InviteTake<'_> = serde_json::from_slice(body).map_err(malformed)?;
    Ok(Answer { password: take.password.into_owned(), again: None, otp: take.otp.unwrap_or_default().into_owned() })
}

/// The same from the page's form, whatever its content type says: there is one form.
pub async fn form(body: Bytes) -> Result<Answer, Public> {
    let malformed = || Public::new(Code::Malformed, "the form cannot be read");
    let form = Request::post("/").header("content-type", "application/x-www-form-urlencoded").body(Body::from(body));
    let Form(answer) = Form::<Answer>::from_request(form.map_err(|_| malformed())?, &()).await.map_err(|_| malformed())?;
    Ok(answer)
}
