//! The kinds of documents and their specs, roles aside (`role.rs`).
//!
//! A new kind is a struct here with `impl Spec`, and its row in `rules::access` for who may do what. Secrets never stand in
//! these specs: password hashes, second factors and CA private keys live under internal keys that the API does not serve.

use crate::{
    ClusterName, Document, Extra, HostId, Labels, Resource, ResourceName, SystemRole, Time, Ttl, Version,
    document::{BadDocument, Spec},
    identity::Traits,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

macro_rules! kind {
    ($type:ident = $kind:literal) => {
        impl Spec for $type {
            const KIND: &'static str = $kind;
            const VERSION: &'static str = "v1";
        }
    };
}

/// A person or machine that may log in. The password hash and the second factor are elsewhere.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct User {
    #[serde(default)]
    pub roles: BTreeSet<ResourceName>,
    #[serde(default)]
    pub traits: Traits,
    /// Who made the user, for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}
kind!(User = "user");

/// A join token. The document's name is the *hash* of the secret, so that a leaked listing admits nobody.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Token {
    /// What may join with it.
    pub roles: BTreeSet<SystemRole>,
    /// The first characters of the secret, to recognise it in `tctl tokens ls`.
    #[serde(default)]
    pub hint: String,
    /// Labels given to whatever joins with it.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    #[serde(flatten)]
    pub extra: Extra,
}
kind!(Token = "token");

/// An SSH host, kept alive by its agent's heartbeat; the document's name is the host id.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Node {
    pub hostname: crate::NodeName,
    /// `ip:port` when the host is reached directly; empty when by tunnel. The address is what the Auth Service observed,
    /// never what the agent claimed (attack table, row 13).
    #[serde(default)]
    pub addr: String,
    #[serde(default)]
    pub use_tunnel: bool,
    pub version: Version,
    #[serde(flatten)]
    pub extra: Extra,
}
kind!(Node = "node");

/// One process of the cluster in the inventory: any role; the document's name is the host id.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Member {
    pub hostname: String,
    pub roles: BTreeSet<SystemRole>,
    pub version: Version,
    /// Changes at every start of the process.
    pub boot_id: String,
    pub started: Time,
    pub last_seen: Time,
    /// `active`, `draining`, `quarantined`, or what a newer release says.
    #[serde(default)]
    pub state: String,
    /// Set when the process runs with `--skip-version-check` (rule G6).
    #[serde(default)]
    pub skips_version_check: bool,
    #[serde(default)]
    pub labels: Labels,
    /// What it runs on: which file of a release is for this member.
    #[serde(default)]
    pub platform: Platform,
    /// What this process can do when it is upgraded, in short words. Empty in this release; those of another one are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    #[serde(flatten)]
    pub extra: Extra,
}
kind!(Member = "member");

/// The system of a process, in the words of artifacts' names. A field is empty when it was not said.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`
    #[serde(default)]
    pub arch: String,
    /// Who starts processes again: `systemd` or `none`.
    #[serde(default)]
    pub init: String,
    /// What the program was linked with: `gnu` or `musl`.
    #[serde(default)]
    pub libc: String,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Member {
    /// In `extra`: the digest of what its build stores and speaks (`wire::content`).
    pub const CONTENT: &str = "content";
    /// In `extra`, of a host that is refused for its version: a [`Quarantine`].
    pub const QUARANTINE: &str = "quarantine";
    /// The `state` of such a host.
    pub const QUARANTINED: &str = "quarantined";
    /// In `extra`, of a Proxy: what clients call it, `host:port`.
    pub const PROXY_PUBLIC_ADDR: &str = "proxy_public_addr";
    /// In `extra`, of a Proxy: where agents reach it alone, when its public address leads to several.
    pub const PROXY_TUNNEL_ADDR: &str = "proxy_tunnel_addr";

    /// Why and since when this member serves nobody, if it is quarantined.
    pub fn quarantine(&self) -> Option<Quarantine> {
        let told = self.extra.get(Self::QUARANTINE).filter(|_| self.state == Self::QUARANTINED)?;
        serde_json::from_value(told.clone()).ok()
    }

    /// Where agents reach this Proxy, best first; empty for what is none.
    pub fn proxy_addrs(&self) -> Vec<String> {
        let known = [Self::PROXY_TUNNEL_ADDR, Self::PROXY_PUBLIC_ADDR].into_iter().filter_map(|key| self.extra.get(key)?.as_str());
        known.map(str::to_owned).collect()
    }
}

/// What is told of a host that is refused for its version and waits for another release (design 3.2).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Quarantine {
    pub since: Time,
    /// The version to install, or `latest 2`; empty when there is nothing to install.
    #[serde(default)]
    pub next: String,
    /// One sentence: what stands against it.
    #[serde(default)]
    pub why: String,
    #[serde(flatten)]
    pub extra: Extra,
}

/// The public half of a certificate authority; the document's name is its type, `user` or `host`.
///
/// An unknown `algorithm` or CA type is data: skipped by whoever looks for keys it can use, never an error.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CertAuthority {
    pub cluster: ClusterName,
    /// `user` or `host`.
    #[serde(rename = "type")]
    pub ca_type: String,
    pub keys: Vec<CaKey>,
    #[serde(flatten)]
    pub extra: Extra,
}
kind!(CertAuthority = "cert_authority");

/// One trusted key of an authority, in the form SSH and in the form TLS needs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CaKey {
    /// `ed25519` or `ecdsa-p256`.
    #[serde(default)]
    pub algorithm: String,
    /// One line in OpenSSH's public key format; empty for a key that signs nothing for SSH.
    #[serde(default)]
    pub ssh: String,
    /// The self-signed CA certificate, PEM; empty for a key that signs nothing for TLS.
    #[serde(default)]
    pub tls: String,
    /// `sha256:<hex of SPKI>`: what `--ca-pin` compares.
    #[serde(default)]
    pub pin: String,
    /// Signs new certificates (one per algorithm), or is only trusted.
    #[serde(default)]
    pub active: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

/// How people log in; a singleton named `cluster-auth-preference`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AuthPreference {
    #[serde(default = "local", rename = "type")]
    pub auth_type: String,
    /// `off` or `otp`; what a newer release has besides is read as `otp`.
    #[serde(default)]
    pub second_factor: SecondFactor,
    /// Life of a certificate when the client asks for none.
    #[serde(default = "twelve_hours")]
    pub default_session_ttl: Ttl,
    #[serde(flatten)]
    pub extra: Extra,
}
kind!(AuthPreference = "cluster_auth_preference");
fn local() -> String {
    "local".into()
}
fn twelve_hours() -> Ttl {
    Ttl::hours(12)
}
impl Default for AuthPreference {
    fn default() -> Self {
        Self { auth_type: local(), second_factor: SecondFactor::default(), default_session_ttl: twelve_hours(), extra: Extra::new() }
    }
}

/// Whether a one-time code is asked for at login.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecondFactor {
    Off,
    #[default]
    Otp,
    /// Of a newer release. Never weaker than what is known here: a code is asked for.
    #[serde(other)]
    Newer,
}

impl SecondFactor {
    /// As clients are told: `off` or `otp`.
    pub fn as_str(self) -> &'static str {
        if self.asks_code() { "otp" } else { "off" }
    }
    pub fn asks_code(self) -> bool {
        match self {
            Self::Off => false,
            Self::Otp | Self::Newer => true,
        }
    }
}

/// Refuses whatever its target names, until it expires or is removed; ends running sessions too.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Lock {
    #[serde(default)]
    pub target: LockTarget,
    #[serde(default)]
    pub message: String,
    #[serde(flatten)]
    pub extra: Extra,
}
kind!(Lock = "lock");

impl Lock {
    /// Reads a lock, if need be only as far as this release can: what it cannot read of a target is left aside, so that the lock bites wider and
    /// never not at all. The error is of one whose target names nothing that is known here.
    pub fn leniently(document: Document) -> Result<Resource<Self>, BadDocument> {
        let strict = match Resource::from_document(document.clone()) {
            Ok(lock) => return Ok(lock),
            Err(error) => error,
        };
        let text = |field: &str| document.spec.get("target")?.get(field)?.as_str().map(str::to_owned);
        let node = text("node").and_then(|node| node.parse().ok());
        let target = LockTarget { user: text("user"), role: text("role"), login: text("login"), node, extra: Extra::new() };
        if target == LockTarget::default() {
            return Err(strict);
        }
        let message = document.spec.get("message").and_then(|message| message.as_str()).unwrap_or_default().to_owned();
        Ok(Resource { metadata: document.metadata, spec: Self { target, message, extra: Extra::new() }, extra: document.extra })
    }
}

/// Every field given must match for the lock to bite; a lock without any field matches nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LockTarget {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<HostId>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// The cluster's name and id: a singleton named `cluster-name`, written once.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClusterInfo {
    pub cluster_name: ClusterName,
    pub cluster_id: crate::name::ClusterId,
    #[serde(flatten)]
    pub extra: Extra,
}
kind!(ClusterInfo = "cluster_name");

/// A recorded session in the Auth's sink; the document's name is the session id. Served by listing, not stored as a document.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Recording {
    pub session: crate::SessionId,
    pub user: String,
    pub login: String,
    pub host_id: HostId,
    pub hostname: String,
    /// `shell` or `exec`.
    pub kind: String,
    /// The command of an exec; empty for a shell.
    #[serde(default)]
    pub command: String,
    pub started: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Time>,
    /// Bytes of the recording file.
    pub size: u64,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Names of the singletons.
pub mod singleton {
    pub const CLUSTER_NAME: &str = "cluster-name";
    pub const AUTH_PREFERENCE: &str = "cluster-auth-preference";
    pub const UPDATE_DIRECTIVE: &str = "update-directive";
    pub const UPGRADE_POLICY: &str = "upgrade-policy";
}

/// Kinds this release knows, in the order `tctl get all` prints them, with whether `tctl create` may write them.
pub const KINDS: &[(&str, bool)] = &[
    (ClusterInfo::KIND, false),
    (AuthPreference::KIND, true),
    (CertAuthority::KIND, false),
    (crate::role::Role::KIND, true),
    (User::KIND, true),
    (Token::KIND, true),
    (Lock::KIND, true),
    (crate::update::UpdateDirective::KIND, true),
    (crate::upgrade::Policy::KIND, true),
    (Node::KIND, false),
    (Member::KIND, false),
];

/// The singular kind for what a user typed: plural, upper case and short forms are accepted.
pub fn canonical_kind(typed: &str) -> String {
    let lower = typed.to_ascii_lowercase();
    let alias = match lower.as_str() {
        "cap" | "cluster-auth-preference" => AuthPreference::KIND,
        "ca" | "cas" | "cert_authorities" => CertAuthority::KIND,
        "cluster-name" => ClusterInfo::KIND,
        "ssh_node" => Node::KIND,
        _ => "",
    };
    if !alias.is_empty() {
        return alias.into();
    }
    let singular = lower.strip_suffix('s').unwrap_or(&lower);
    match KINDS.iter().find(|(kind, _)| *kind == lower || *kind == singular) {
        Some((kind, _)) => (*kind).into(),
        None => lower,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn document(kind: &str, version: &str, spec: Value) -> Document {
        let json = json!({"kind": kind, "version": version, "metadata": {"name": "x"}, "spec": spec});
        Document::from_json(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_lock_of_a_newer_release_bites_as_far_as_it_can_be_read() {
        let check = |version: &str, target: Value, want: Option<LockTarget>| {
            let read = Lock::leniently(document("lock", version, json!({"target": target, "message": "incident"})));
            assert_eq!(read.ok().map(|lock| lock.spec.target), want, "{target}");
        };
        let bob = || LockTarget { user: Some("bob".into()), ..LockTarget::default() };
        check("v1", json!({"user": "bob"}), Some(bob()));
        check("v1", json!({"user": "bob", "login": ["root"]}), Some(bob()));
        check("v2", json!({"user": "bob", "node": {"id": 7}}), Some(bob()));
        check("v2", json!({"devices": ["x"]}), None);
        check("v2", json!(5), None);
    }

    #[test]
    fn an_authority_with_a_key_of_a_newer_form_keeps_its_others() {
        let keys = json!([{"algorithm": "ed25519", "ssh": "k", "tls": "c", "pin": "p"}, {"algorithm": "ml-dsa", "pq": "k"}]);
        let spec = json!({"cluster": "demo", "type": "user", "keys": keys});
        let authority = Resource::<CertAuthority>::from_document(document("cert_authority", "v1", spec.clone())).unwrap();
        assert_eq!((authority.spec.keys[0].ssh.as_str(), authority.spec.keys[1].ssh.as_str()), ("k", ""));
        assert_eq!(authority.spec.keys[1].extra["pq"], "k");
    }

    #[test]
    fn a_second_factor_of_a_newer_release_still_asks_for_a_code() {
        let spec = json!({"second_factor": "webauthn", "default_session_ttl": "1h"});
        let preference = Resource::<AuthPreference>::from_document(document("cluster_auth_preference", "v1", spec)).unwrap().spec;
        assert_eq!((preference.second_factor.as_str(), preference.default_session_ttl), ("otp", Ttl::hours(1)));
    }
}
