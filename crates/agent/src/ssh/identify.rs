//! The door's second step: whose certificate was proven.
//!
//! Called only with a certificate for which the client has just shown the private key, by a signature over this very
//! connection (russh checks it; attack table, rows 4 and 5). Offers are never looked at. The certificate's facts are read
//! by `wire`, accepted or refused by `rules::cert`; a stranger learns nothing but "no".

use client::trust::ClusterTrust;
use rules::{
    Denied, Permit,
    cert::{CertFacts, CertKind, PlainKey, Refused, Trust, accept_user},
    permit::Enter,
};
use russh::keys::{Certificate, PublicKey, ssh_encoding::Encode};
use std::net::IpAddr;
use types::{Identity, Login, Time, UserIdentity};
use wire::identity::{BadIdentity, SshCert, SshCertKind};

/// A user whose certificate was accepted, and the account he asks for.
#[derive(Clone, Debug)]
pub(crate) struct Entered {
    pub(crate) identity: UserIdentity,
    pub(crate) login: Login,
}

/// Whose certificate it is; refused unless this cluster's user authority signed it with a plain key.
pub(crate) fn identify(
    trust: &ClusterTrust,
    login: &str,
    certificate: &Certificate,
    peer: Option<IpAddr>,
    now: Time,
) -> Result<Entered, Denied> {
    let login = Login::new(login).map_err(|_| Refused::Name(login.chars().take(80).flat_map(char::escape_default).collect()))?;
    let cert = SshCert::verified(certificate, SshCertKind::User, &trust.user_ssh, now).map_err(refused)?;
    let user_keys = trust.user_ssh.iter().filter_map(plain_blob).collect();
    let trust = Trust { cluster: trust.cluster.clone(), user_keys, host_keys: Default::default() };
    let enter: Permit<Enter> = accept_user(&facts(certificate, cert)?, &trust, peer, now)?;
    match enter.into_facts().identity {
        Identity::User(identity) => Ok(Entered { identity, login }),
        Identity::Host(_) => Err(Refused::Kind { found: "host", wanted: "user" }.into()),
    }
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
