//! `/webapi`: what `tsh` and a Proxy say to each other over HTTP before there is a certificate, as JSON.
//!
//! Both ends use these types, so an old `tsh` at a new Proxy rests on them, and the other way round: names and their meaning are
//! frozen (`tests/golden`), later releases add optional fields. Versions travel beside it in the header of [`crate::hello`]. Readers skip
//! what they do not know; a [`Ping`] is read even where a part of it has another form, since it is what tells a client that it is too
//! old. Nothing here checks a name or a key: that is done by whoever uses it. Writers: `proxy::web` and `client::login`.

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use std::borrow::Cow;
use types::{Extra, Ttl};

/// `GET /webapi/ping` and `/webapi/find`: versions and names, for anyone (rule G1).
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Ping {
    pub server_version: String,
    #[serde(default)]
    pub min_client_version: String,
    #[serde(default)]
    pub cluster_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cluster_id: String,
    #[serde(default)]
    pub ca_pins: Vec<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub auth: Ways,
    #[serde(default, deserialize_with = "lenient")]
    pub proxy: Doors,
    #[serde(flatten)]
    pub extra: Extra,
}

/// How to log in.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Ways {
    #[serde(default, rename = "type")]
    pub auth_type: String,
    /// `off` or `otp`; empty when the Proxy does not say.
    #[serde(default)]
    pub second_factor: String,
    #[serde(default)]
    pub local: Connector,
}

/// A login connector.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Connector {
    #[serde(default)]
    pub name: String,
}

/// Where the Proxy is reached.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Doors {
    #[serde(default)]
    pub ssh: Addresses,
    #[serde(default)]
    pub tls_routing_enabled: bool,
}

/// `host:port`, or empty.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Addresses {
    #[serde(default)]
    pub listen_addr: String,
    #[serde(default)]
    pub tunnel_listen_addr: String,
    #[serde(default)]
    pub web_listen_addr: String,
    #[serde(default)]
    pub public_addr: String,
    #[serde(default)]
    pub ssh_public_addr: String,
}

impl Ping {
    /// `off` or `otp`; empty when the Proxy does not say.
    pub fn second_factor(&self) -> &str {
        &self.auth.second_factor
    }
    /// `host:port` of the SSH jump server, when there is one.
    pub fn ssh_addr(&self) -> Option<&str> {
        [&self.proxy.ssh.ssh_public_addr, &self.proxy.ssh.listen_addr].into_iter().map(String::as_str).find(|text| !text.is_empty())
    }
}

/// What cannot be read counts as not said.
fn lenient<'de, T: DeserializeOwned + Default, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    serde_json::Value::deserialize(from).map(|value| serde_json::from_value(value).unwrap_or_default())
}

/// `POST /webapi/login`. Holds a password: it has no `Debug`.
#[derive(Serialize, Deserialize)]
pub struct LoginAsk<'a> {
    pub user: Cow<'a, str>,
    pub password: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otp: Option<Cow<'a, str>>,
    /// One line, OpenSSH's format.
    pub ssh_public_key: String,
    /// SubjectPublicKeyInfo, DER in base64.
    pub tls_public_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Life>,
}

/// Seconds, or as people write it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Life {
    Seconds(u64),
    Text(Ttl),
}

impl Life {
    pub fn as_secs(self) -> u64 {
        match self {
            Self::Seconds(seconds) => seconds,
            Self::Text(ttl) => ttl.0.as_secs(),
        }
    }
}

/// The answer to a login.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LoginTold {
    pub ssh_certificate: String,
    /// PEM.
    pub tls_certificate: String,
    /// Documents of kind `cert_authority`.
    pub authorities: Vec<serde_json::Value>,
    pub cluster_name: String,
    #[serde(default)]
    pub user: String,
    #[serde(default)]
    pub expires: String,
}

/// The answer to `GET /webapi/invite/<secret>`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct InviteTold {
    pub user: String,
    pub expires: String,
    /// `otpauth://` link for the authenticator; empty when no second factor is required.
    #[serde(default)]
    pub otp_url: String,
}

/// `POST /webapi/invite/<secret>`, answered by [`Taken`]. Holds a password: it has no `Debug`.
#[derive(Serialize, Deserialize)]
pub struct InviteTake<'a> {
    pub password: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otp: Option<Cow<'a, str>>,
}

/// The invitation was taken; there is nothing more to say.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Taken {}
