//! A logged-in user's credentials, from wherever they came: a login, `~/.tsh`, or an identity file.
//!
//! A value that exists is consistent: the key fits both certificates' cluster and user, and there is an authority to check
//! the other side by. Whether it has *expired* is for the caller, who has the clock and the words.

use crate::{
    api::Access,
    connect::Dialer,
    host::validity,
    keys::{KeyError, KeyPair},
    trust::ClusterTrust,
};
use net::{
    clock::SharedClock,
    tls::{TlsError, TlsIdentity},
};
use russh::keys::Certificate;
use std::sync::Arc;
use types::{ClusterName, Identity, Time, UserIdentity, UserName, Version};
use wire::identity::{BadIdentity, from_x509_der, parse_ssh_certificate};

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Identity(#[from] BadIdentity),
    #[error("the certificate is not a user's")]
    NotAUser,
    #[error("the SSH certificate is for another key")]
    OtherKey,
    #[error("the certificates are of cluster {0}, the authorities of another")]
    OtherCluster(ClusterName),
    #[error("there is no certificate authority to check the cluster by")]
    NoAuthorities,
}

/// A user's key, both certificates, and whom to believe.
#[derive(Clone, Debug)]
pub struct UserCredentials {
    /// As the X.509 certificate says; the server checks, we only show it.
    pub identity: UserIdentity,
    pub key: KeyPair,
    pub ssh_certificate: Certificate,
    pub tls: TlsIdentity,
    pub trust: Arc<ClusterTrust>,
    /// When the first of the certificates ends.
    pub expires: Time,
    ssh_line: String,
    tls_pem: String,
}

impl UserCredentials {
    /// Joins the parts.
    pub fn new(key: KeyPair, ssh_line: &str, tls_pem: &str, trust: ClusterTrust) -> Result<Self, CredentialsError> {
        let tls = key.tls_identity(tls_pem)?;
        let leaf = tls.chain().first().ok_or(CredentialsError::NotAUser)?;
        let Identity::User(identity) = from_x509_der(leaf)? else { return Err(CredentialsError::NotAUser) };
        let (_, tls_end) = validity(leaf)?;
        let ssh_certificate = parse_ssh_certificate(ssh_line)?;
        if *ssh_certificate.public_key() != *key.ssh_private()?.public_key().key_data() {
            return Err(CredentialsError::OtherKey);
        }
        if identity.cluster != trust.cluster {
            return Err(CredentialsError::OtherCluster(identity.cluster));
        }
        if trust.host_tls.is_empty() || trust.host_ssh.is_empty() {
            return Err(CredentialsError::NoAuthorities);
        }
        let ssh_end = Time::from_unix(i64::try_from(ssh_certificate.valid_before()).unwrap_or(i64::MAX));
        Ok(Self {
            identity,
            key,
            ssh_certificate,
            tls,
            trust: Arc::new(trust),
            expires: tls_end.min(ssh_end),
            ssh_line: ssh_line.trim().to_owned(),
            tls_pem: tls_pem.to_owned(),
        })
    }

    pub fn user(&self) -> &UserName {
        &self.identity.user
    }
    pub fn cluster(&self) -> &ClusterName {
        &self.identity.cluster
    }
    pub fn is_expired(&self, now: Time) -> bool {
        self.expires <= now
    }
    /// The SSH certificate, one line in OpenSSH's format.
    pub fn ssh_line(&self) -> &str {
        &self.ssh_line
    }
    /// The X.509 certificate, PEM, leaf first.
    pub fn tls_pem(&self) -> &str {
        &self.tls_pem
    }

    /// For calls to the Auth Service as this user.
    pub fn access(&self) -> Result<Access, TlsError> {
        Access::cluster(&self.trust, Some(self.tls.clone()))
    }
    /// For connections to hosts as this user; `proxy` is `host:port`.
    pub fn dialer(&self, proxy: &str, role: &str, version: &Version, clock: &SharedClock) -> Result<Dialer, TlsError> {
        Dialer::new(proxy, &self.trust, &self.tls, role, version, clock)
    }
}
