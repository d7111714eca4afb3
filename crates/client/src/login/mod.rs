//! The Proxy's web API as `tsh` uses it: ping, log in, take an invitation. HTTPS by hand over `net::tls`, no more than that.
//!
//! Passwords go only to a Proxy whose certificate is trusted ([`WebTrust`]) and whose version fits (both are checked on the
//! same connection before the password is written). A certificate that is *not* trusted comes back as
//! [`LoginError::Untrusted`] with what a person needs to decide; deciding is `cli`'s. The other half is `proxy::web`.

mod http;

use crate::{
    credentials::{CredentialsError, UserCredentials},
    keys::{KeyError, KeyPair},
    profile::ProxyAddr,
    trust::ClusterTrust,
};
use data_encoding::{BASE64, HEXLOWER};
use http::{Connection, Request};
use net::{
    clock::SharedClock,
    dial::DialError,
    tls::{CertificateDer, ClientConfig, Pin, PinnedName, TlsError, Trust, client_config},
};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use types::{ClusterName, Code, Document, Public, Secret, Time, Ttl, UserName, Version, version::Direction};
use wire::{
    alpn,
    hello::{Hello, Verdict, decide},
    identity::{pin_of_spki, spki_of},
    web::{InviteTake, InviteTold, Life, LoginAsk, LoginTold},
};

pub use wire::web::Ping;

/// Which Proxy is believed.
#[derive(Clone, Debug)]
pub enum WebTrust {
    /// The chain ends in an authority with one of these pins (`--ca-pin`).
    Pins(Vec<Pin>),
    /// This system's public authorities, and those of a profile that was kept.
    SystemAnd(Vec<CertificateDer<'static>>),
    /// `--insecure`
    Anyone,
}

/// Why nobody was logged in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The certificate is not trusted. `authority` can be pinned, when the Proxy showed one: ask the user, then try again
    /// with [`WebTrust::Pins`].
    #[error("the certificate of {proxy} is not trusted: {why}")]
    Untrusted {
        proxy: String,
        why: String,
        /// `sha256:<hex>` of the certificate itself.
        fingerprint: String,
        authority: Option<Pin>,
    },
    /// What the Proxy said, or what is wrong with it.
    #[error("{0}")]
    Refused(Public),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("{proxy} did not answer in time")]
    Timeout { proxy: String },
    #[error("{proxy} closed the connection: {why}")]
    Closed { proxy: String, why: String },
    #[error("{proxy} does not answer like a Lockgate Proxy: {why}")]
    NotLockgate { proxy: String, why: String },
    #[error("what {proxy} sent cannot be used: {source}")]
    Credentials { proxy: String, source: CredentialsError },
    #[error("\"{0}\" is not an invitation; copy the whole link")]
    BadInvite(String),
}

impl LoginError {
    /// What the user may read.
    pub fn public(&self) -> Public {
        let say = |code| Public::new(code, self.to_string());
        match self {
            Self::Untrusted { authority, .. } => {
                let hint = match authority {
                    Some(pin) => format!("compare with `tctl status` on the Auth Service, then use --ca-pin={pin}"),
                    None => "check the address, or give --ca-pin".into(),
                };
                say(Code::Certificate).hint(hint)
            }
            Self::Refused(public) => public.clone(),
            Self::Dial(error) => error.public(),
            Self::Tls(_) | Self::Key(_) => say(Code::Config),
            Self::Timeout { .. } => say(Code::Timeout).hint("check the address and the network, then try again"),
            Self::Closed { .. } => say(Code::Unavailable).hint("try again; the Proxy may be restarting"),
            Self::NotLockgate { .. } => say(Code::VersionProtocol).hint("check that the address and port are those of a Lockgate Proxy"),
            Self::Credentials { .. } => say(Code::Certificate).hint("compare versions with `tsh version`"),
            Self::BadInvite(_) => say(Code::Usage),
        }
    }
}
impl From<LoginError> for Public {
    fn from(error: LoginError) -> Self {
        error.public()
    }
}

/// Who logs in.
#[derive(Clone, Debug)]
pub struct Login {
    pub user: UserName,
    pub password: Secret,
    /// One-time code, when the cluster asks for one.
    pub otp: Option<Secret>,
    /// Asked for; the cluster may give less.
    pub ttl: Option<Ttl>,
}

/// An invitation, looked at but not taken yet.
#[derive(Clone, PartialEq, Debug)]
pub struct Invite {
    pub user: UserName,
    pub expires: Time,
    /// `otpauth://` link for the authenticator, when a second factor is required.
    pub otp_url: String,
}

/// The link that `tctl users add` prints: `https://proxy:3080/web/invite/<secret>`.
#[derive(Clone, Debug)]
pub struct InviteLink {
    pub proxy: ProxyAddr,
    pub secret: Secret,
}

impl std::str::FromStr for InviteLink {
    type Err = LoginError;
    fn from_str(text: &str) -> Result<Self, LoginError> {
        // The secret is in there: the message shows no more than the beginning.
        let bad = || LoginError::BadInvite(text.chars().take(24).flat_map(char::escape_default).collect::<String>() + "…");
        let rest = text.trim().strip_prefix("https://").ok_or_else(bad)?;
        let (host, path) = rest.split_once('/').ok_or_else(bad)?;
        let secret =
            path.strip_prefix("web/invite/").or_else(|| path.strip_prefix("webapi/invite/")).ok_or_else(bad)?.trim_end_matches('/');
        let fits =
            (8..=128).contains(&secret.len()) && secret.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !fits {
            return Err(bad());
        }
        let proxy = format!("https://{host}").parse().map_err(|_| bad())?;
        Ok(Self { proxy, secret: Secret::new(secret) })
    }
}

/// A Proxy's web API.
#[derive(Clone)]
pub struct Web {
    proxy: ProxyAddr,
    config: Arc<ClientConfig>,
    clock: SharedClock,
    hello: Hello,
    /// Whether an unknown certificate is a question for the user. With a pin it is an answer.
    may_ask: bool,
}

impl std::fmt::Debug for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Web({})", self.proxy)
    }
}

impl Web {
    /// Connects to nothing yet. `version` is what this `tsh` claims to be.
    #[allow(clippy::result_large_err, reason = "made once per command")]
    pub fn new(proxy: ProxyAddr, trust: WebTrust, version: &Version, clock: &SharedClock) -> Result<Self, LoginError> {
        let may_ask = match trust {
            WebTrust::SystemAnd(_) => true,
            WebTrust::Pins(_) | WebTrust::Anyone => false,
        };
        let trust = match trust {
            WebTrust::Pins(pins) => Trust::Pins { pins, name: PinnedName::Checked },
            WebTrust::SystemAnd(extra) => Trust::SystemPlus(extra),
            WebTrust::Anyone => Trust::Insecure,
        };
        let config = match client_config(None, trust, &[alpn::HTTP], clock) {
            // A machine without public authorities trusts nobody by itself: the user will be asked, as for any unknown one.
            Err(TlsError::NoSystemRoots) => client_config(None, nobody(), &[alpn::HTTP], clock)?,
            other => other?,
        };
        Ok(Self { proxy, config, clock: clock.clone(), hello: Hello::ours(version, "tsh"), may_ask })
    }

    pub fn proxy(&self) -> &ProxyAddr {
        &self.proxy
    }

    /// Versions and names; never refused for a version (rule G1).
    pub async fn ping(&self) -> Result<Ping, LoginError> {
        self.connect().await?.get("/webapi/ping").await
    }
    /// The same for a named login connector.
    pub async fn ping_connector(&self, name: &types::ResourceName) -> Result<Ping, LoginError> {
        self.connect().await?.get(&format!("/webapi/ping/{name}")).await
    }
    /// The same without asking the Auth Service.
    pub async fn find(&self) -> Result<Ping, LoginError> {
        self.connect().await?.get("/webapi/find").await
    }

    /// Logs in with a fresh key pair, which never leaves this machine.
    pub async fn login(&self, login: &Login) -> Result<UserCredentials, LoginError> {
        let key = KeyPair::generate()?;
        let body = LoginAsk {
            user: login.user.as_str().into(),
            password: login.password.expose().into(),
            otp: login.otp.as_ref().map(|otp| otp.expose().into()),
            ssh_public_key: key.ssh_public()?,
            tls_public_key: BASE64.encode(&key.spki_der()),
            ttl: login.ttl.map(Life::Text),
        };
        let mut connection = self.connect_checked().await?;
        let reply: LoginTold = connection.ask(Request::post("/webapi/login", &body)).await?;
        let cluster = connection.told(reply.cluster_name.parse::<ClusterName>())?;
        let authorities: Result<Vec<Document>, _> = reply.authorities.into_iter().map(serde_json::from_value).collect();
        let trust = ClusterTrust::from_documents(&cluster, &connection.told(authorities)?);
        let made = UserCredentials::new(key, &reply.ssh_certificate, &reply.tls_certificate, trust);
        made.map_err(|source| LoginError::Credentials { proxy: self.proxy.to_string(), source })
    }

    /// Looks at an invitation.
    pub async fn invite(&self, secret: &Secret) -> Result<Invite, LoginError> {
        let mut connection = self.connect_checked().await?;
        let told: InviteTold = connection.ask(Request::get(&format!("/webapi/invite/{}", secret.expose()))).await?;
        Ok(Invite { user: connection.told(told.user.parse())?, expires: connection.told(told.expires.parse())?, otp_url: told.otp_url })
    }

    /// Takes an invitation: sets the password, and proves the second factor when one is required.
    pub async fn accept_invite(&self, secret: &Secret, password: &Secret, otp: Option<&Secret>) -> Result<(), LoginError> {
        let body = InviteTake { password: password.expose().into(), otp: otp.map(|otp| otp.expose().into()) };
        let path = format!("/webapi/invite/{}", secret.expose());
        let _: serde_json::Value = self.connect_checked().await?.ask(Request::post(&path, &body)).await?;
        Ok(())
    }

    async fn connect(&self) -> Result<Connection, LoginError> {
        match Connection::open(&self.proxy, self.config.clone(), &self.hello).await {
            Err(LoginError::Dial(DialError::Tls { source, .. })) if self.may_ask && is_untrusted(&source) => {
                Err(self.untrusted(&source).await)
            }
            other => other,
        }
    }

    /// A connection to a Proxy whose version fits (rule G4): secrets may be said on it.
    async fn connect_checked(&self) -> Result<Connection, LoginError> {
        let mut connection = self.connect().await?;
        let ping: Ping = connection.get("/webapi/ping").await?;
        let theirs = Hello { version: ping.server_version, role: "proxy".into(), ..self.hello.clone() };
        match decide(Direction::ServerFirst, &self.hello, &theirs) {
            Verdict::Accept => Ok(connection),
            Verdict::Refuse(public) => Err(LoginError::Refused(public)),
        }
    }

    /// Looks at the certificate that was refused. Nothing is said on that connection.
    async fn untrusted(&self, why: &std::io::Error) -> LoginError {
        let (proxy, why) = (self.proxy.to_string(), net::tls::alert(why).map_or_else(|| why.to_string(), |public| public.message));
        let chain = match client_config(None, Trust::Insecure, &[alpn::HTTP], &self.clock) {
            Ok(config) => Connection::chain(&self.proxy, config).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let fingerprint = chain.first().map(|leaf| format!("sha256:{}", HEXLOWER.encode(&digest(leaf)))).unwrap_or_default();
        let authority = match chain.as_slice() {
            [_, .., last] => spki_of(last).ok().and_then(|spki| pin_of_spki(&spki).parse().ok()),
            _ => None,
        };
        LoginError::Untrusted { proxy, why, fingerprint, authority }
    }
}

/// Trusts no one: no certificate has this pin.
fn nobody() -> Trust {
    Trust::Pins { pins: Vec::new(), name: PinnedName::Checked }
}

fn is_untrusted(error: &std::io::Error) -> bool {
    matches!(error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()), Some(rustls::Error::InvalidCertificate(_)))
}

fn digest(bytes: &[u8]) -> Vec<u8> {
    // `pin_of_spki` is SHA-256 of whatever bytes it gets, in hex.
    let pin = pin_of_spki(bytes);
    HEXLOWER.decode(pin.trim_start_matches("sha256:").as_bytes()).unwrap_or_default()
}

/// A connection's typed requests.
impl Connection {
    async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, LoginError> {
        self.ask(Request::get(path)).await
    }

    async fn ask<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, LoginError> {
        let (status, body) = self.send(request).await?;
        if (200..300).contains(&status) {
            let body = if body.is_empty() { &b"null"[..] } else { &body };
            return self.told(serde_json::from_slice(body));
        }
        match serde_json::from_slice::<Public>(&body) {
            Ok(public) => Err(LoginError::Refused(public)),
            Err(_) => Err(LoginError::NotLockgate { proxy: self.proxy().to_owned(), why: format!("HTTP status {status}") }),
        }
    }

    /// A part of an answer.
    #[allow(clippy::result_large_err, reason = "made once per command")]
    fn told<T, E: std::fmt::Display>(&self, read: Result<T, E>) -> Result<T, LoginError> {
        let why = |error| format!("its answer cannot be read: {error}");
        read.map_err(|error| LoginError::NotLockgate { proxy: self.proxy().to_owned(), why: why(error) })
    }
}

#[cfg(test)]
mod tests;
