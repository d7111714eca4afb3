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
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::sync::Arc;
use types::{ClusterName, Code, Document, Extra, Public, Secret, Time, Ttl, UserName, Version, version::Direction};
use wire::{
    alpn,
    hello::{Hello, Verdict, decide},
    identity::{pin_of_spki, spki_of},
};

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

/// `GET /webapi/ping` and `/webapi/find`. Fields that are not known here are kept.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ping {
    pub server_version: String,
    #[serde(default)]
    pub min_client_version: String,
    #[serde(default)]
    pub cluster_name: String,
    #[serde(default)]
    pub cluster_id: String,
    #[serde(default)]
    pub ca_pins: Vec<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Ping {
    /// `off` or `otp`; empty when the Proxy does not say.
    pub fn second_factor(&self) -> &str {
        self.text("/auth/second_factor")
    }
    /// `host:port` of the SSH jump server, when there is one.
    pub fn ssh_addr(&self) -> Option<&str> {
        ["/proxy/ssh/ssh_public_addr", "/proxy/ssh/listen_addr"].iter().map(|path| self.text(path)).find(|text| !text.is_empty())
    }
    fn text(&self, path: &str) -> &str {
        let mut parts = path.split('/').skip(1);
        let first = parts.next().and_then(|key| self.extra.get(key));
        parts.fold(first, |value, key| value.and_then(|value| value.get(key))).and_then(serde_json::Value::as_str).unwrap_or("")
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
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct Invite {
    pub user: UserName,
    pub expires: Time,
    /// `otpauth://` link for the authenticator, when a second factor is required.
    #[serde(default)]
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

#[derive(Serialize)]
struct LoginBody<'a> {
    user: &'a UserName,
    password: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    otp: Option<&'a str>,
    ssh_public_key: String,
    tls_public_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<Ttl>,
}

#[derive(Deserialize)]
struct LoginReply {
    ssh_certificate: String,
    tls_certificate: String,
    authorities: Vec<Document>,
    cluster_name: ClusterName,
}

#[derive(Serialize)]
struct AcceptBody<'a> {
    password: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    otp: Option<&'a str>,
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
        let body = LoginBody {
            user: &login.user,
            password: login.password.expose(),
            otp: login.otp.as_ref().map(Secret::expose),
            ssh_public_key: key.ssh_public()?,
            tls_public_key: BASE64.encode(&key.spki_der()),
            ttl: login.ttl,
        };
        let mut connection = self.connect_checked().await?;
        let reply: LoginReply = connection.ask(Request::post("/webapi/login", &body)).await?;
        let trust = ClusterTrust::from_documents(&reply.cluster_name, &reply.authorities);
        let made = UserCredentials::new(key, &reply.ssh_certificate, &reply.tls_certificate, trust);
        made.map_err(|source| LoginError::Credentials { proxy: self.proxy.to_string(), source })
    }

    /// Looks at an invitation.
    pub async fn invite(&self, secret: &Secret) -> Result<Invite, LoginError> {
        self.connect_checked().await?.ask(Request::get(&format!("/webapi/invite/{}", secret.expose()))).await
    }

    /// Takes an invitation: sets the password, and proves the second factor when one is required.
    pub async fn accept_invite(&self, secret: &Secret, password: &Secret, otp: Option<&Secret>) -> Result<(), LoginError> {
        let body = AcceptBody { password: password.expose(), otp: otp.map(Secret::expose) };
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
        let not_lockgate = |why: String| LoginError::NotLockgate { proxy: self.proxy().to_owned(), why };
        if (200..300).contains(&status) {
            let body = if body.is_empty() { &b"null"[..] } else { &body };
            return serde_json::from_slice(body).map_err(|error| not_lockgate(format!("its answer cannot be read: {error}")));
        }
        match serde_json::from_slice::<Public>(&body) {
            Ok(public) => Err(LoginError::Refused(public)),
            Err(_) => Err(not_lockgate(format!("HTTP status {status}"))),
        }
    }
}

#[cfg(test)]
mod tests;
