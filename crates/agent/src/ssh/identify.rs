//! The door's second step: whose certificate was proven.
//!
//! Called only with a certificate for which the client has just shown the private key, by a signature over this very
//! connection (russh checks it; attack table, rows 4 and 5). Offers are never looked at. The certificate's facts are read
//! by `wire`, accepted or refused by `rules::cert`; a stranger learns nothing but "no".

use crate::world::Cluster;
use russh::keys::{
    Certificate, PublicKey,
    ssh_encoding::Encode,
};
use rules::{
    Denied, Permit,
    cert::{Algorithm, CertFacts, CertKind, PlainKey, Refused, Trust, accept_user},
    permit::Enter,
};
use std::net::IpAddr;
use types::{Identity, Login, Time, UserIdentity, kind::CaKey};
use wire::identity::{BadIdentity, SshCert, SshCertKind};

/// A user whose certificate was accepted, and the account he asks for.
#[derive(Clone, Debug)]
pub(crate) struct Entered {
    pub(crate) identity: UserIdentity,
    pub(crate) login: Login,
}

/// Whose certificate it is; refused unless this cluster's user authority signed it with a plain key.
pub(crate) fn identify(cluster: &dyn Cluster, login: &str, certificate: &Certificate, peer: Option<IpAddr>, now: Time) -> Result<Entered, Denied> {
    let login = Login::new(login).map_err(|_| Refused::Name(login.chars().take(80).flat_map(char::escape_default).collect()))?;
    let authorities = cluster.authorities();
    let user_keys: Vec<PublicKey> = plain_keys(authorities.iter().filter(|ca| ca.ca_type == "user" && ca.cluster == cluster.name()).flat_map(|ca| &ca.keys));
    let cert = SshCert::verified(certificate, SshCertKind::User, &user_keys, now).map_err(refused)?;
    let trust = Trust { cluster: cluster.name(), user_keys: user_keys.iter().filter_map(plain_blob).collect(), host_keys: Default::default() };
    let enter: Permit<Enter> = accept_user(&facts(certificate, cert)?, &trust, peer, now)?;
    match enter.into_facts().identity {
        Identity::User(identity) => Ok(Entered { identity, login }),
        Identity::Host(_) => Err(Refused::Kind { found: "host", wanted: "user" }.into()),
    }
}

/// Keys of types that may sign. An entry that is itself a certificate does not read as a public key.
fn plain_keys<'k>(keys: impl Iterator<Item = &'k CaKey>) -> Vec<PublicKey> {
    let plain = keys.filter(|key| Algorithm::from_document(&key.algorithm).is_some());
    plain.filter_map(|key| PublicKey::from_openssh(&key.ssh).ok()).filter(|key| Algorithm::from_ssh(key.algorithm().as_str()).is_some()).collect()
}

fn plain_blob(key: &PublicKey) -> Option<PlainKey> {
    PlainKey::from_blob(&key.to_bytes().ok()?).ok()
}

fn facts(certificate: &Certificate, cert: SshCert) -> Result<CertFacts, Denied> {
    let mut signing_key = Vec::new();
    certificate.signature_key().encode(&mut signing_key).map_err(|_| Refused::SigningKeyType)?;
    Ok(CertFacts {
        kind: CertKind::User,
        principals: cert.principals,
        valid_after: Time::from_unix(i64::try_from(certificate.valid_after()).unwrap_or(i64::MAX)),
        valid_before: cert.expires,
        critical_options: certificate.critical_options().iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        signing_key,
        signature_holds: certificate.verify_signature().is_ok(),
        identity: cert.identity,
    })
}

fn refused(bad: BadIdentity) -> Denied {
    let why = match bad {
        BadIdentity::WrongType(wanted) => Refused::Kind { found: "other", wanted },
        BadIdentity::Principals => Refused::NoPrincipals,
        BadIdentity::Issuer => Refused::SigningKey,
        BadIdentity::Validity => Refused::Ended,
        BadIdentity::Critical(name) => Refused::CriticalOption(name),
        BadIdentity::Signature => Refused::Signature,
        BadIdentity::TooLarge(_) | BadIdentity::Malformed(_) | BadIdentity::Missing | BadIdentity::Json(_) => Refused::NoIdentity,
    };
    why.into()
}
