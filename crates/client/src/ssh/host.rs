//! Which SSH servers we talk to: those that prove a host certificate of the cluster, for the host that was asked for.
//!
//! A bare host key is never enough, and there is no "yes/no" question: the cluster signed the host or it did not. The key
//! exchange's signature is checked by russh before this; what is checked here is whose key it was.

use crate::trust::ClusterTrust;
use russh::keys::{Certificate, PublicKeyOrCertificate};
use std::sync::Arc;
use types::{HostId, HostIdentity, Identity, SystemRole, Time};
use wire::{
    identity::{BadIdentity, SshCert, SshCertKind},
    route::Target,
};

/// The host that must be on the other end.
#[derive(Clone, Debug)]
pub struct ExpectedHost {
    pub trust: Arc<ClusterTrust>,
    /// What the user asked for: the certificate must be for it.
    pub asked: Target,
    /// Which host the Proxy said it is: the certificate must be that host's too.
    pub host_id: Option<HostId>,
}

/// Why a host is not the one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostCheckError {
    #[error("the host showed a bare key instead of a certificate")]
    BareKey,
    #[error(transparent)]
    Certificate(#[from] BadIdentity),
    #[error("the host's certificate is for {}, not for \"{asked}\"", shown(.principals))]
    OtherHost { asked: String, principals: Vec<String> },
    #[error("the host's certificate does not say that it is a host of this cluster")]
    Foreign,
}

fn shown(principals: &[String]) -> String {
    principals.iter().take(4).map(|name| name.chars().take(80).flat_map(char::escape_default).collect()).collect::<Vec<String>>().join(", ")
}

impl ExpectedHost {
    /// Accepts what the server proved, or says why not.
    pub(super) fn check(&self, shown: &PublicKeyOrCertificate, now: Time) -> Result<(), HostCheckError> {
        match shown {
            PublicKeyOrCertificate::PublicKey { .. } => Err(HostCheckError::BareKey),
            PublicKeyOrCertificate::Certificate(certificate) => self.check_certificate(certificate, now),
        }
    }

    /// The certificate is signed by a plain host authority key of the cluster, alive, and for the host that was asked for.
    pub fn check_certificate(&self, certificate: &Certificate, now: Time) -> Result<(), HostCheckError> {
        let facts = SshCert::verified(certificate, SshCertKind::Host, &self.trust.host_ssh, now)?;
        let has = |name: &str| facts.principals.iter().any(|principal| principal.eq_ignore_ascii_case(name));
        let asked = self.asked.to_string();
        let id = self.host_id.map(|id| id.to_string());
        if !has(&asked) || id.is_some_and(|id| !has(&id)) {
            return Err(HostCheckError::OtherHost { asked, principals: facts.principals });
        }
        // Certificates of hosts that do not run Lockgate carry no identity; one that is there must agree.
        match facts.identity {
            None => Ok(()),
            Some(Identity::Host(host)) if self.is_asked(&host, &asked) => Ok(()),
            Some(Identity::Host(host)) if host.cluster == self.trust.cluster => {
                Err(HostCheckError::OtherHost { asked, principals: vec![host.name.to_string(), host.id.to_string()] })
            }
            Some(Identity::Host(_) | Identity::User(_)) => Err(HostCheckError::Foreign),
        }
    }

    /// An SSH host of the cluster, by its own id or name. Further principals are names it asked for itself, and a Proxy's
    /// certificate is no host's: otherwise the Proxy on the way could answer in the place of the host.
    fn is_asked(&self, host: &HostIdentity, asked: &str) -> bool {
        let own = [host.id.to_string(), host.name.to_string()];
        let named = own.iter().any(|own| asked.eq_ignore_ascii_case(own) || asked.eq_ignore_ascii_case(&format!("{own}.{}", host.cluster)));
        named
            && host.cluster == self.trust.cluster
            && host.roles.contains(&SystemRole::Node)
            && self.host_id.is_none_or(|expected| expected == host.id)
    }
}
