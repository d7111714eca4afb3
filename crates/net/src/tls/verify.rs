//! The certificate checks that rustls calls. Each is a few lines around webpki: signature, life and name are never judged
//! by hand. What is ours is *whose* signature counts: see [`super::Trust`] and [`super::identify`].

use super::{Authorities, CertificateDer, IdentifyError, Pin, PinnedName, provider};
use crate::swap::Swap;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, NamedGroup, OtherError, RootCertStore, SignatureScheme,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::sync::{Arc, Mutex, PoisonError};
use types::{Identity, SystemRole};
use wire::identity::{from_x509_der, pin_of_spki, spki_of};

/// The signature over the handshake: the same for every verifier here, with the provider's algorithms.
macro_rules! handshake_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

/// A server's check of its clients, against the authorities of the moment.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    authorities: Swap<Authorities>,
    required: bool,
}

impl ClientVerifier {
    pub(super) fn new(authorities: Swap<Authorities>, required: bool) -> Self {
        Self { authorities, required }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }
    /// No hints: authorities change while the port is open, and clients have one certificate to show.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(&self, leaf: &CertificateDer<'_>, _: &[CertificateDer<'_>], now: UnixTime) -> Result<ClientCertVerified, Error> {
        match self.authorities.load().identity(leaf, now) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(refused) => {
                tracing::debug!(%refused, "client certificate refused");
                Err(Error::InvalidCertificate(match refused {
                    IdentifyError::Expired => CertificateError::Expired,
                    IdentifyError::NotYet => CertificateError::NotValidYet,
                    IdentifyError::Untrusted => CertificateError::UnknownIssuer,
                    IdentifyError::WrongAuthority
                    | IdentifyError::ForeignCluster
                    | IdentifyError::Unacceptable(_)
                    | IdentifyError::Unreadable(_) => CertificateError::ApplicationVerificationFailure,
                }))
            }
        }
    }
    handshake_signatures!();
}

/// A leaf signed directly by one of `roots` and valid now.
fn signed_by(leaf: &CertificateDer<'_>, roots: &RootCertStore, now: UnixTime) -> Result<(), Error> {
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&ParsedCertificate::try_from(leaf)?, roots, &[], now, algorithms)
}

/// [`super::Trust::Cluster`].
#[derive(Debug)]
pub(super) struct ClusterServer(pub(super) Swap<Authorities>);

impl ServerCertVerifier for ClusterServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        signed_by(leaf, &self.0.load().host_roots, now)?;
        verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
        Ok(ServerCertVerified::assertion())
    }
    handshake_signatures!();
}

/// Why a pinned server is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PinError {
    #[error("the server did not show its certificate authority, so the pin cannot be compared")]
    NoAuthority,
    #[error("the cluster's certificate authority does not match the pin")]
    Mismatch,
    #[error("the server is not an Auth Service")]
    NotAuth,
}
impl From<PinError> for Error {
    fn from(error: PinError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// [`super::Trust::Pins`].
#[derive(Debug)]
pub(super) struct PinnedServer {
    pub(super) pins: Vec<Pin>,
    pub(super) name: PinnedName,
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = rest.last().ok_or(PinError::NoAuthority)?;
        let shown = spki_of(authority).map(|spki| pin_of_spki(&spki)).map_err(|_| Error::from(CertificateError::BadEncoding))?;
        if !self.pins.iter().any(|pin| pin.0 == shown) {
            return Err(PinError::Mismatch.into());
        }
        alive(authority, now)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        signed_by(leaf, &roots, now)?;
        match self.name {
            PinnedName::Checked => verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?,
            PinnedName::AuthOfUnknownCluster => match from_x509_der(leaf) {
                Ok(identity @ Identity::Host(_)) if identity.has_system_role(&SystemRole::Auth) => {}
                Ok(Identity::Host(_) | Identity::User(_)) | Err(_) => return Err(PinError::NotAuth.into()),
            },
        }
        Ok(ServerCertVerified::assertion())
    }
    handshake_signatures!();
}

/// An authority's own life: webpki looks at the leaf's only.
fn alive(authority: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let (_, parsed) = x509_parser::parse_x509_certificate(authority).map_err(|_| CertificateError::BadEncoding)?;
    let (from, until) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    match i64::try_from(now.as_secs()).unwrap_or(i64::MAX) {
        now if now < from => Err(CertificateError::NotValidYet.into()),
        now if now > until => Err(CertificateError::Expired.into()),
        _ => Ok(()),
    }
}

/// [`super::Trust::Insecure`].
#[derive(Debug)]
pub(super) struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    handshake_signatures!();
}

/// Sessions to resume, forgotten when the authorities change: resuming skips the certificate check, so a server whose
/// authority was withdrawn must not be met again by its ticket.
#[derive(Debug)]
pub(super) struct FreshSessions {
    authorities: Swap<Authorities>,
    size: usize,
    cache: Mutex<(Arc<Authorities>, Arc<ClientSessionMemoryCache>)>,
}

impl FreshSessions {
    pub(super) fn new(authorities: Swap<Authorities>, size: usize) -> Self {
        let cache = Mutex::new((authorities.load(), Arc::new(ClientSessionMemoryCache::new(size))));
        Self { authorities, size, cache }
    }
    fn fresh(&self) -> Arc<ClientSessionMemoryCache> {
        let now = self.authorities.load();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&cache.0, &now) {
            *cache = (now, Arc::new(ClientSessionMemoryCache::new(self.size)));
        }
        cache.1.clone()
    }
}

impl ClientSessionStore for FreshSessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.fresh().set_kx_hint(name, group);
    }
    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.fresh().kx_hint(name)
    }
    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.fresh().set_tls12_session(name, value);
    }
    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.fresh().tls12_session(name)
    }
    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.fresh().remove_tls12_session(name);
    }
    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.fresh().insert_tls13_ticket(name, value);
    }
    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.fresh().take_tls13_ticket(name)
    }
}
