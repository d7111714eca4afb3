//! TLS the way Lockgate uses it: who is trusted, who is on the other end, and which versions and ciphers are spoken.
//!
//! aws-lc-rs throughout, post-quantum key exchange preferred; Lockgate's own protocols (`wire::alpn`) speak TLS 1.3 only,
//! the web may speak 1.2. Certificates of members carry the names of `wire::sni`, so servers are checked by the ordinary
//! name check; clients are checked by [`identify`], after *every* handshake: a resumed session skips the certificate check
//! inside TLS, and its certificate may have expired, or its authority may be gone, since.
//! [`authorities`] has the doors, [`config`] the settings, [`identity`] a process's own key and certificate.

pub mod authorities;
pub mod config;
pub mod identity;
mod roots;
mod verify;

pub use authorities::{Authorities, IdentifyError, identify};
pub use config::{Asked, Certificates, ClientAuth, Pin, PinnedName, Trust, client_config, server_config};
pub use identity::{KeyAlgorithm, TlsIdentity, write_private};
pub use rustls::{ClientConfig, ServerConfig, pki_types::CertificateDer, sign::CertifiedKey};

use crate::{clock::SharedClock, eager::Eager, swap::Swap};
use rustls::{AlertDescription, crypto::CryptoProvider, pki_types::UnixTime};
use std::{io, path::PathBuf, sync::Arc, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::server::TlsStream;
use types::{Code, Identity, Public, Time};

/// How long a TLS handshake may take.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How long the failed end of a handshake is kept so that the peer can read why.
const LINGER: Duration = Duration::from_millis(500);

/// Why TLS could not be set up or spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the file {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Pem(String),
    #[error("the key and the certificate do not belong together: {0}")]
    KeyMismatch(rustls::Error),
    #[error("a key could not be made: {0}")]
    Generate(String),
    #[error("a certificate authority's certificate cannot be used: {0}")]
    Authority(String),
    #[error("no certificates of public authorities were found on this system")]
    NoSystemRoots,
    #[error("\"{0}\" is not a pin; write it as sha256: and 64 hexadecimal digits")]
    Pin(String),
    #[error("TLS could not be configured: {0}")]
    Config(String),
    #[error("the peer did not finish the TLS handshake in time")]
    Timeout,
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
    #[error(transparent)]
    Identify(#[from] IdentifyError),
}

/// The one provider of cryptography. Prefers X25519MLKEM768 (the crate feature `prefer-post-quantum`).
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(crate) fn unix_time(at: Time) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(at.unix_u64()))
}

/// A connection whose TLS handshake is done and whose holder is known.
#[derive(Debug)]
pub struct Accepted<S> {
    pub stream: TlsStream<Eager<S>>,
    /// Absent when the client showed no certificate, which the configuration must have allowed.
    pub identity: Option<Identity>,
}

impl<S> Accepted<S> {
    /// The protocol that both sides agreed on (`wire::alpn`), if the client named any.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.stream.get_ref().1.alpn_protocol()
    }
}

/// Serves a TLS handshake within the deadline and identifies the client against the authorities of this moment.
pub async fn accept<S>(
    stream: S,
    config: Arc<ServerConfig>,
    authorities: &Swap<Authorities>,
    clock: &SharedClock,
    deadline: Duration,
) -> Result<Accepted<S>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = tokio_rustls::TlsAcceptor::from(config).accept(Eager::new(stream)).into_fallible();
    let stream = match tokio::time::timeout(deadline, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, stream))) => {
            linger(stream).await;
            return Err(TlsError::Handshake(error));
        }
        Err(_) => return Err(TlsError::Timeout),
    };
    let identity = identify(stream.get_ref().1.peer_certificates(), &authorities.load(), clock.now())?;
    Ok(Accepted { stream, identity })
}

/// Lets the peer read the alert: closing with its bytes unread would reset the connection and destroy it on the way.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let _ = tokio::time::timeout(LINGER, async {
        stream.shutdown().await?;
        let mut scrap = [0; 1024];
        for _ in 0..64 {
            if stream.read(&mut scrap).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    })
    .await;
}

/// What an error under TLS means for the user, when it is TLS's own and not the network's.
pub fn alert(error: &io::Error) -> Option<Public> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => {
            Public::new(Code::LoginExpired, "the server refused the client certificate: it has expired").hint("log in again")
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            Public::new(Code::LoginRequired, "the server wants a client certificate").hint("log in")
        }
        rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            Public::new(Code::VersionProtocol, "the server does not offer this service on that port")
                .hint("check that the address and port are those of a Lockgate service")
        }
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError,
        ) => Public::new(Code::AccessIdentity, "the server refused the client certificate").hint("log in again, or join the cluster again"),
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) if other.0.is::<verify::PinError>() => {
            Public::new(Code::CaPin, other.0.to_string()).hint("compare the pin with `tctl status` on the Auth Service")
        }
        rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => {
            Public::new(Code::Certificate, "the server's certificate is signed by an authority that is not known here")
                .hint("check the address; if the cluster was rebuilt, log in or join again")
        }
        rustls::Error::InvalidCertificate(why) => Public::new(Code::Certificate, format!("the server's certificate is not trusted: {why}"))
            .hint("check the address; if the cluster was rebuilt, log in or join again"),
        rustls::Error::InvalidMessage(_) => Public::new(Code::VersionProtocol, "the server does not speak TLS on that port")
            .hint("check that the address and port are those of a Lockgate service"),
        other => Public::new(Code::Unavailable, format!("TLS failed: {other}")),
    })
}
