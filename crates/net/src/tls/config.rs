//! The settings of TLS servers and clients, made from what Lockgate knows: certificates, authorities, protocols.
//!
//! TLS 1.2 is spoken only where every protocol offered is the web's. Sessions resume, because agents dial often: servers
//! hand out tickets, clients keep them until the authorities change. Each configuration has its own ticket key, so a
//! session of a port without client certificates can never be resumed on one that wants them.

use super::{
    Authorities, CertificateDer, CertifiedKey, ClientConfig, ServerConfig, TlsError, TlsIdentity, provider, roots,
    verify::{AnyServer, ClientVerifier, ClusterServer, FreshSessions, PinnedServer},
};
use crate::{clock::SharedClock, swap::Swap};
use rustls::{
    SupportedProtocolVersion,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::UnixTime,
    server::{ClientHello, ResolvesServerCert},
    sign::SingleCertAndKey,
    time_provider::TimeProvider,
    version::{TLS12, TLS13},
};
use std::{fmt, sync::Arc};

/// Servers that a client remembers sessions of.
const REMEMBERED_SERVERS: usize = 64;

/// What a client asked for in its first message.
#[derive(Debug)]
pub struct Asked<'a> {
    pub server_name: Option<&'a str>,
    pub alpn: Vec<&'a [u8]>,
    /// Whether the client can check an Ed25519 certificate; browsers cannot.
    pub ed25519: bool,
}

type Choose = dyn Fn(&Asked<'_>) -> Option<Arc<CertifiedKey>> + Send + Sync;

/// Where a server takes its certificate from, at each handshake.
#[derive(Clone)]
pub struct Certificates(Arc<Choose>);

impl Certificates {
    /// Always this one.
    pub fn fixed(identity: &TlsIdentity) -> Self {
        let certified = identity.certified();
        Self::by(move |_| Some(certified.clone()))
    }
    /// The one of the moment: renewals take effect on the next handshake.
    pub fn current(identity: Swap<TlsIdentity>) -> Self {
        Self::by(move |_| Some(identity.load().certified()))
    }
    /// Chosen by name and protocol; `None` refuses the handshake.
    pub fn by(choose: impl Fn(&Asked<'_>) -> Option<Arc<CertifiedKey>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(choose))
    }
}
impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates")
    }
}
impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let alpn = hello.alpn().map(Iterator::collect).unwrap_or_default();
        let ed25519 = hello.signature_schemes().contains(&rustls::SignatureScheme::ED25519);
        (self.0)(&Asked { server_name: hello.server_name(), alpn, ed25519 })
    }
}

/// Whether a server wants a certificate from its clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientAuth {
    /// Never asked for: browsers would show a dialogue.
    None,
    /// Asked for; a client without one is let in as nobody (joining, logging in).
    Optional,
    Required,
}

/// Rustls' view of our clock.
struct Hands(SharedClock);
impl fmt::Debug for Hands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hands")
    }
}
impl TimeProvider for Hands {
    fn current_time(&self) -> Option<UnixTime> {
        Some(super::unix_time(self.0.now()))
    }
}

const WEB: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
const OURS: &[&SupportedProtocolVersion] = &[&TLS13];

fn versions(alpn: &[&[u8]]) -> &'static [&'static SupportedProtocolVersion] {
    let web = |name: &&[u8]| *name == wire::alpn::HTTP || *name == b"h2";
    if alpn.iter().all(web) { WEB } else { OURS }
}

fn owned(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.to_vec()).collect()
}

/// Settings of a server that speaks the protocols of `alpn`.
pub fn server_config(
    certificates: Certificates,
    client_auth: ClientAuth,
    authorities: &Swap<Authorities>,
    alpn: &[&[u8]],
    clock: &SharedClock,
) -> Result<Arc<ServerConfig>, TlsError> {
    let bad = |error: rustls::Error| TlsError::Config(error.to_string());
    let builder = ServerConfig::builder_with_details(provider(), Arc::new(Hands(clock.clone())))
        .with_protocol_versions(versions(alpn))
        .map_err(bad)?;
    let builder = match client_auth {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Optional => builder.with_client_cert_verifier(Arc::new(ClientVerifier::new(authorities.clone(), false))),
        ClientAuth::Required => builder.with_client_cert_verifier(Arc::new(ClientVerifier::new(authorities.clone(), true))),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = owned(alpn);
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(bad)?;
    Ok(Arc::new(config))
}

/// A pinned public key of a certificate authority: `sha256:<hex>` over its SubjectPublicKeyInfo.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pin(pub(super) String);

impl std::str::FromStr for Pin {
    type Err = TlsError;
    fn from_str(text: &str) -> Result<Self, TlsError> {
        let text = text.trim().to_ascii_lowercase();
        match text.strip_prefix("sha256:") {
            Some(hex) if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => Ok(Self(text)),
            _ => Err(TlsError::Pin(text.chars().take(80).flat_map(char::escape_default).collect())),
        }
    }
}
impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the name of a pinned server is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PinnedName {
    /// As everywhere.
    Checked,
    /// The cluster's name is not known yet (joining): the certificate must be an Auth Service's instead.
    AuthOfUnknownCluster,
}

/// Which servers a client trusts.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Members of the cluster: the host authority of the moment, and the name asked for.
    Cluster(Swap<Authorities>),
    /// The chain's last certificate has one of these keys and signed the first (`--ca-pin`).
    Pins { pins: Vec<Pin>, name: PinnedName },
    /// The public authorities of this system.
    System,
    /// Those and these.
    SystemPlus(Vec<CertificateDer<'static>>),
    /// Anyone. Warns each time it is set up.
    Insecure,
}

/// Settings of a client that shows `identity` and offers the protocols of `alpn`.
pub fn client_config(
    identity: Option<&TlsIdentity>,
    trust: Trust,
    alpn: &[&[u8]],
    clock: &SharedClock,
) -> Result<Arc<ClientConfig>, TlsError> {
    let bad = |error: rustls::Error| TlsError::Config(error.to_string());
    let sessions = match &trust {
        Trust::Cluster(authorities) => Resumption::store(Arc::new(FreshSessions::new(authorities.clone(), REMEMBERED_SERVERS))),
        Trust::Pins { .. } | Trust::System | Trust::SystemPlus(_) => Resumption::in_memory_sessions(REMEMBERED_SERVERS),
        Trust::Insecure => Resumption::disabled(),
    };
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(Hands(clock.clone())))
        .with_protocol_versions(versions(alpn))
        .map_err(bad)?
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(trust)?);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = owned(alpn);
    config.resumption = sessions;
    Ok(Arc::new(config))
}

fn server_verifier(trust: Trust) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let public = |extra: Vec<CertificateDer<'static>>| -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
        let roots = Arc::new(roots::system_and(extra)?);
        let built = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
        Ok(built.map_err(|error| TlsError::Config(error.to_string()))?)
    };
    match trust {
        Trust::Cluster(authorities) => Ok(Arc::new(ClusterServer(authorities))),
        Trust::Pins { pins, name } => Ok(Arc::new(PinnedServer { pins, name })),
        Trust::System => public(Vec::new()),
        Trust::SystemPlus(extra) => public(extra),
        Trust::Insecure => {
            tracing::warn!("the server's certificate will not be checked: anyone on the way can read and change what is sent");
            Ok(Arc::new(AnyServer))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_a_digest_or_a_clear_refusal() {
        let good = format!("SHA256:{}", "Ab".repeat(32));
        assert_eq!(good.parse::<Pin>().unwrap().to_string(), good.to_ascii_lowercase());
        for bad in ["", "sha256:", "sha256:zz", "md5:00", &"ab".repeat(32), &format!("sha256:{}", "g".repeat(64))] {
            assert!(matches!(bad.parse::<Pin>(), Err(TlsError::Pin(_))), "{bad:?}");
        }
    }

    #[test]
    fn tls_1_2_is_for_the_web_alone() {
        let check = |alpn: &[&[u8]], want: usize| assert_eq!(versions(alpn).len(), want, "{alpn:?}");
        check(&[], 2);
        check(&[wire::alpn::HTTP], 2);
        check(&[wire::alpn::HTTP, wire::alpn::SSH], 1);
        check(&[wire::alpn::TUNNEL], 1);
    }
}
