//! Who is on the other end of a TLS connection: the cluster's authorities, and [`identify`].
//!
//! A client certificate counts only when it is signed *directly* by the user authority and says `Identity::User`, or by
//! the host authority and says `Identity::Host`, and names our cluster. There are no intermediates: a certificate that
//! another certificate signed is no certificate, whatever the peer sends along (attack table, rows 1 and 12).

use super::{TlsError, provider, unix_time};
use rustls::{
    CertificateError, RootCertStore,
    pki_types::{CertificateDer, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use std::sync::Arc;
use types::{ClusterName, Identity, Time};
use wire::identity::{BadIdentity, from_x509_der};

/// The certificate authorities that one cluster trusts at one moment; kept in a [`crate::swap::Swap`] so that a rotation
/// takes effect on the next connection.
#[derive(Debug)]
pub struct Authorities {
    cluster: ClusterName,
    user: Option<Arc<dyn ClientCertVerifier>>,
    host: Option<Arc<dyn ClientCertVerifier>>,
    pub(super) host_roots: Arc<RootCertStore>,
}

impl Authorities {
    /// Trusts these X.509 authorities; an empty list means that nobody of that sort is known.
    pub fn new(cluster: ClusterName, user: &[CertificateDer<'static>], host: &[CertificateDer<'static>]) -> Result<Self, TlsError> {
        let host_roots = store(host)?;
        Ok(Self { cluster, user: verifier(&store(user)?)?, host: verifier(&host_roots)?, host_roots })
    }
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The identity of a leaf, with its signature, life and cluster checked.
    pub(super) fn identity(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Result<Identity, IdentifyError> {
        let check = |verifier: &Option<Arc<dyn ClientCertVerifier>>| match verifier {
            Some(verifier) => verifier.verify_client_cert(leaf, &[], now).map(|_| ()).map_err(refusal),
            None => Err(IdentifyError::Untrusted),
        };
        let (by_user_ca, by_host_ca) = (check(&self.user), check(&self.host));
        let identity = match (&by_user_ca, &by_host_ca) {
            (Ok(()), _) | (_, Ok(())) => from_x509_der(leaf)?,
            (Err(IdentifyError::Untrusted), Err(other)) | (Err(other), Err(_)) => return Err(other.clone()),
        };
        match &identity {
            Identity::User(user) => {
                by_user_ca.map_err(|_| IdentifyError::WrongAuthority)?;
                if user.expires.unix_u64() <= now.as_secs() {
                    return Err(IdentifyError::Expired);
                }
            }
            Identity::Host(_) => by_host_ca.map_err(|_| IdentifyError::WrongAuthority)?,
        }
        if *identity.cluster() == self.cluster { Ok(identity) } else { Err(IdentifyError::ForeignCluster) }
    }
}

fn store(authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in authorities {
        store.add(certificate.clone()).map_err(|error| TlsError::Authority(error.to_string()))?;
    }
    Ok(Arc::new(store))
}

fn verifier(roots: &Arc<RootCertStore>) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    if roots.is_empty() {
        return Ok(None);
    }
    let built = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build();
    built.map(Some).map_err(|error| TlsError::Authority(error.to_string()))
}

/// Why a client certificate is not accepted. For the log and the audit; the peer learns less.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentifyError {
    #[error("the certificate is not signed by an authority of this cluster")]
    Untrusted,
    #[error("the certificate has expired")]
    Expired,
    #[error("the certificate is not valid yet")]
    NotYet,
    #[error("the certificate names a sort of holder that its authority does not sign for")]
    WrongAuthority,
    #[error("the certificate names another cluster")]
    ForeignCluster,
    #[error("the certificate is not acceptable: {0}")]
    Unacceptable(String),
    #[error(transparent)]
    Unreadable(#[from] BadIdentity),
}

fn refusal(error: rustls::Error) -> IdentifyError {
    match error {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => IdentifyError::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => IdentifyError::NotYet,
            CertificateError::UnknownIssuer | CertificateError::BadSignature => IdentifyError::Untrusted,
            other => IdentifyError::Unacceptable(other.to_string()),
        },
        other => IdentifyError::Unacceptable(other.to_string()),
    }
}

/// The holder of the certificate chain that a TLS peer showed; `None` when it showed none.
///
/// Call it with the authorities and the time of now after every handshake, resumed ones too.
pub fn identify(chain: Option<&[CertificateDer<'_>]>, authorities: &Authorities, now: Time) -> Result<Option<Identity>, IdentifyError> {
    match chain.and_then(<[_]>::first) {
        Some(leaf) => authorities.identity(leaf, unix_time(now)).map(Some),
        None => Ok(None),
    }
}
