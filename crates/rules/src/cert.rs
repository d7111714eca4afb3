//! Whether a certificate is one that this cluster accepts, and for whom it then speaks.
//!
//! A certificate is accepted only if its signing key *equals* a trusted plain CA key of an allowed type (attack table,
//! row 1): a signing key that is itself a certificate has no [`Algorithm`], so it cannot be trusted by construction. It
//! must have principals, none of them empty or a wildcard (row 2) or with a separator inside (row 3), be valid now, and
//! have no critical option that is not enforced here. The identity inside must agree with what is around it.
//!
//! The bytes are read, and the signature computed, in `wire::identity`; this module decides over the facts. Callers: the
//! `identify` step of every service, and the client's host check.

use crate::permit::{Denied, Enter, Permit};
use std::{collections::BTreeSet, net::IpAddr};
use types::{ClusterName, HostIdentity, Identity, Login, Time, UserIdentity};

/// The kinds of plain keys that may sign. A certificate type is not among them and never will be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Algorithm {
    Ed25519,
    EcdsaP256,
}

impl Algorithm {
    /// By its SSH name. `ssh-ed25519-cert-v01@openssh.com` and all others are no algorithm of a CA.
    pub fn from_ssh(name: &str) -> Option<Self> {
        match name {
            "ssh-ed25519" => Some(Self::Ed25519),
            "ecdsa-sha2-nistp256" => Some(Self::EcdsaP256),
            _ => None,
        }
    }
    /// By its name in a `cert_authority` document.
    pub fn from_document(name: &str) -> Option<Self> {
        match name {
            "ed25519" => Some(Self::Ed25519),
            "ecdsa-p256" => Some(Self::EcdsaP256),
            _ => None,
        }
    }
}

/// A plain public key: algorithm and SSH wire bytes. Trusted when the cluster's documents say so.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PlainKey {
    algorithm: Algorithm,
    blob: Vec<u8>,
}

impl PlainKey {
    /// Reads SSH wire bytes; the algorithm named inside them counts, nobody's claim about it.
    pub fn from_blob(blob: &[u8]) -> Result<Self, Refused> {
        let name = blob.split_first_chunk::<4>().and_then(|(len, rest)| {
            let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
            std::str::from_utf8(rest.get(..len)?).ok()
        });
        let algorithm = name.and_then(Algorithm::from_ssh).ok_or(Refused::SigningKeyType)?;
        Ok(Self { algorithm, blob: blob.to_owned() })
    }
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CertKind {
    User,
    Host,
}

/// What was read from an SSH certificate. Nothing in it is believed yet.
#[derive(Clone, Debug)]
pub struct CertFacts {
    pub kind: CertKind,
    pub principals: Vec<String>,
    pub valid_after: Time,
    pub valid_before: Time,
    /// Name and value.
    pub critical_options: Vec<(String, String)>,
    /// The signing key as it stands in the certificate.
    pub signing_key: Vec<u8>,
    /// Whether the signature over the certificate holds under that key.
    pub signature_holds: bool,
    /// The identity in the extension; `None` when there is none or it cannot be read.
    pub identity: Option<Identity>,
}

/// Whom the acceptor trusts: this cluster's plain CA keys, by the kind of certificate they sign.
#[derive(Clone, Debug)]
pub struct Trust {
    pub cluster: ClusterName,
    pub user_keys: BTreeSet<PlainKey>,
    pub host_keys: BTreeSet<PlainKey>,
}

/// Why a certificate is refused; for the log. The other side learns only that it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    #[error("it is a {found} certificate, not a {wanted} one")]
    Kind { found: &'static str, wanted: &'static str },
    #[error("its signing key is not a plain key of an allowed type")]
    SigningKeyType,
    #[error("its signing key is not an authority of this cluster")]
    SigningKey,
    #[error("its signature is wrong")]
    Signature,
    #[error("it has no principals")]
    NoPrincipals,
    #[error("its principal {0} is a wildcard or not a name")]
    Principal(String),
    #[error("it is not valid yet")]
    NotYet,
    #[error("it has ended")]
    Ended,
    #[error("its critical option {0} is not known here")]
    CriticalOption(String),
    #[error("it is bound to another address")]
    Address,
    #[error("it carries no identity that can be read")]
    NoIdentity,
    #[error("it is of cluster {0}")]
    Cluster(String),
    #[error("its identity and the rest of it disagree: {0}")]
    Disagrees(&'static str),
    #[error("it is not for \"{0}\"")]
    Name(String),
    #[error("it is a certificate authority, or not signed by one directly")]
    Chain,
}

/// Accepts a user's SSH certificate, or not.
pub fn accept_user(facts: &CertFacts, trust: &Trust, peer: Option<IpAddr>, now: Time) -> Result<Permit<Enter>, Denied> {
    let identity = accept(facts, CertKind::User, &trust.user_keys, peer, now)?;
    let Identity::User(user) = identity else { return Err(Refused::Disagrees("a user certificate for a host").into()) };
    user_agrees(facts, user)?;
    in_cluster(&user.cluster, trust)?;
    crate::access::known_restrictions(user)?;
    Ok(Permit::grant(Enter { identity: identity.clone() }))
}

/// Accepts a host's SSH certificate for the host the caller meant to reach: by id, by name, or `name.cluster`.
pub fn accept_host(facts: &CertFacts, trust: &Trust, expected: &str, now: Time) -> Result<Permit<Enter>, Denied> {
    let identity = accept(facts, CertKind::Host, &trust.host_keys, None, now)?;
    let Identity::Host(host) = identity else { return Err(Refused::Disagrees("a host certificate for a user").into()) };
    in_cluster(&host.cluster, trust)?;
    // Byte for byte: a principal is a name, never a pattern or a list.
    if !facts.principals.iter().any(|principal| principal == expected) || !host_names(host).contains(expected) {
        return Err(Refused::Name(expected.chars().take(80).flat_map(char::escape_default).collect()).into());
    }
    Ok(Permit::grant(Enter { identity: identity.clone() }))
}

/// The principals of a host's certificate: id and name, each alone and with the cluster's name.
pub fn host_names(host: &HostIdentity) -> BTreeSet<String> {
    let HostIdentity { id, name, cluster, .. } = host;
    [id.to_string(), format!("{id}.{cluster}"), name.to_string(), format!("{name}.{cluster}")].into()
}

fn accept<'f>(
    facts: &'f CertFacts,
    wanted: CertKind,
    keys: &BTreeSet<PlainKey>,
    peer: Option<IpAddr>,
    now: Time,
) -> Result<&'f Identity, Refused> {
    match (facts.kind, wanted) {
        (CertKind::User, CertKind::User) | (CertKind::Host, CertKind::Host) => {}
        (CertKind::Host, CertKind::User) => return Err(Refused::Kind { found: "host", wanted: "user" }),
        (CertKind::User, CertKind::Host) => return Err(Refused::Kind { found: "user", wanted: "host" }),
    }
    if !keys.contains(&PlainKey::from_blob(&facts.signing_key)?) {
        return Err(Refused::SigningKey);
    }
    if !facts.signature_holds {
        return Err(Refused::Signature);
    }
    if facts.principals.is_empty() {
        return Err(Refused::NoPrincipals);
    }
    if let Some(bad) = facts.principals.iter().find(|name| !is_name(name)) {
        return Err(Refused::Principal(bad.chars().take(40).flat_map(char::escape_default).collect()));
    }
    if now < facts.valid_after {
        return Err(Refused::NotYet);
    }
    if now >= facts.valid_before {
        return Err(Refused::Ended);
    }
    for (name, value) in &facts.critical_options {
        match name.as_str() {
            "source-address" => source_address(value, peer)?,
            other => return Err(Refused::CriticalOption(other.chars().take(40).flat_map(char::escape_default).collect())),
        }
    }
    facts.identity.as_ref().ok_or(Refused::NoIdentity)
}

/// The alphabet of every name in the cluster; no separator, wildcard, control character or look-alike.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 400 && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | '+'))
}

/// Single addresses only, which is all that Lockgate issues; an unknown peer matches none.
fn source_address(value: &str, peer: Option<IpAddr>) -> Result<(), Refused> {
    let peer = peer.ok_or(Refused::Address)?.to_canonical();
    let is_peer = |text: &str| {
        let (address, bits) = text.split_once('/').unwrap_or((text, ""));
        address.parse::<IpAddr>().is_ok_and(|address| {
            address.to_canonical() == peer && (bits.is_empty() || bits == if address.is_ipv4() { "32" } else { "128" })
        })
    };
    if value.split(',').any(is_peer) { Ok(()) } else { Err(Refused::Address) }
}

fn user_agrees(facts: &CertFacts, user: &UserIdentity) -> Result<(), Refused> {
    // The principal of a user without logins is the one that no host has; see [`NO_LOGIN`].
    let principals: BTreeSet<&str> = facts.principals.iter().map(String::as_str).filter(|name| *name != NO_LOGIN).collect();
    if principals != user.logins.iter().map(Login::as_str).collect() {
        return Err(Refused::Disagrees("principals and logins differ"));
    }
    // Certificates count in seconds.
    if facts.valid_before.unix() > user.expires.unix() {
        return Err(Refused::Disagrees("it ends later than its identity"));
    }
    Ok(())
}

/// Stands in for an empty list of principals, which some verifiers read as "everyone". Never a [`Login`]: it begins with `-`.
pub const NO_LOGIN: &str = "-lockgate-nologin";

/// The principals of a user's certificate: never empty.
pub fn user_principals(user: &UserIdentity) -> Vec<String> {
    if user.logins.is_empty() { vec![NO_LOGIN.into()] } else { user.logins.iter().map(Login::to_string).collect() }
}

fn in_cluster(cluster: &ClusterName, trust: &Trust) -> Result<(), Refused> {
    if *cluster == trust.cluster { Ok(()) } else { Err(Refused::Cluster(cluster.to_string())) }
}

/// What was read from an X.509 client or server certificate whose chain the TLS library verified.
#[derive(Clone, Debug)]
pub struct TlsFacts {
    /// Which of the cluster's authorities signed it; `None` when it is neither.
    pub issuer: Option<CertKind>,
    /// Basic constraints of the leaf say that it may sign.
    pub is_ca: bool,
    /// Certificates between the leaf and the authority. Lockgate has none.
    pub intermediates: usize,
    pub valid_after: Time,
    pub valid_before: Time,
    pub identity: Option<Identity>,
}

/// Accepts the identity of a TLS peer, or not.
pub fn accept_tls(facts: &TlsFacts, cluster: &ClusterName, peer: Option<IpAddr>, now: Time) -> Result<Permit<Enter>, Denied> {
    if facts.is_ca || facts.intermediates > 0 {
        return Err(Refused::Chain.into());
    }
    if now < facts.valid_after {
        return Err(Refused::NotYet.into());
    }
    if now >= facts.valid_before {
        return Err(Refused::Ended.into());
    }
    let identity = facts.identity.as_ref().ok_or(Refused::NoIdentity)?;
    match (facts.issuer, identity) {
        (None, _) => return Err(Refused::SigningKey.into()),
        (Some(CertKind::Host), Identity::User(_)) => return Err(Refused::Kind { found: "host", wanted: "user" }.into()),
        (Some(CertKind::User), Identity::Host(_)) => return Err(Refused::Kind { found: "user", wanted: "host" }.into()),
        (Some(CertKind::User), Identity::User(user)) if facts.valid_before.unix() > user.expires.unix() => {
            return Err(Refused::Disagrees("it ends later than its identity").into());
        }
        (Some(CertKind::User), Identity::User(user)) => crate::access::in_force(cluster, user, peer, now)?,
        (Some(CertKind::Host), Identity::Host(_)) => {}
    }
    if identity.cluster() != cluster {
        return Err(Refused::Cluster(identity.cluster().to_string()).into());
    }
    Ok(Permit::grant(Enter { identity: identity.clone() }))
}

#[cfg(test)]
#[path = "cert/tests.rs"]
mod tests;
