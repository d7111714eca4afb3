//! A member's credentials: got with a join token, kept in `identity.json` ([`wire::credentials::HostFile`]), renewed long
//! before they end.
//!
//! [`join`] believes an Auth Service only by its pin, because whoever answers gets the token and says which authorities to
//! trust from then on. The file is 0600 from its creation and replaced in one step. Services take a
//! `watch::Receiver<Arc<HostCredentials>>`; [`keep_renewed`] feeds it.

use crate::{
    api::{Access, Api, Settings, Via},
    keys::{KeyError, KeyPair},
    trust::{ClusterTrust, documents},
};
use net::{
    backoff::Backoff,
    clock::SharedClock,
    shutdown::Shutdown,
    tls::{Pin, PinnedName, TlsError, TlsIdentity, Trust, write_private},
};
use russh::keys::{Certificate, PrivateKey};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use types::{
    ClusterName, Code, Document, Extra, HostId, HostIdentity, Identity, Labels, NodeName, Public, Secret, SystemRole, Time, Version,
};
use wire::{
    api as pb,
    credentials::{BadHostFile, FORMAT, HostFile},
    identity::{BadIdentity, from_x509_der, parse_ssh_certificate},
};

/// Why there are no usable credentials.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("the credentials file {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the credentials file {path}: {source}")]
    Format { path: PathBuf, source: BadHostFile },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Identity(#[from] BadIdentity),
    #[error("the certificate is not a host's")]
    NotAHost,
    #[error("the cluster sent no authority that can be used here")]
    NoAuthorities,
    #[error("the cluster's name cannot be read: {0}")]
    Cluster(String),
}

impl HostError {
    /// What an operator may read.
    pub fn public(&self) -> Public {
        Public::new(Code::Certificate, self.to_string()).hint("remove the file and join again with a fresh token")
    }
    /// Whether the file simply is not there yet: the host has not joined.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// What a member needs to prove who it is and to know whom to believe.
#[derive(Clone, Debug)]
pub struct HostCredentials {
    pub identity: HostIdentity,
    pub key: KeyPair,
    /// The same key, for SSH servers.
    pub ssh_private_key: Arc<PrivateKey>,
    /// The host certificate; absent for the local administrator.
    pub ssh_certificate: Option<Certificate>,
    /// The same key, with its X.509 certificate.
    pub tls: TlsIdentity,
    /// `cert_authority` documents, as they came.
    pub authorities: Vec<Document>,
    /// The same, ready to use.
    pub trust: Arc<ClusterTrust>,
    /// Given by the join token.
    pub labels: Labels,
    /// `host:port` of the Auth Service, if it is known.
    pub auth_addr: Option<String>,
    /// When the X.509 certificate began and ends.
    pub issued: Time,
    pub expires: Time,
    ssh_line: String,
    tls_pem: String,
}

impl HostCredentials {
    pub fn cluster(&self) -> &ClusterName {
        &self.identity.cluster
    }
    pub fn id(&self) -> HostId {
        self.identity.id
    }

    /// From what Auth answered to `Join`, `RenewHost` or `issue_local`, and the key that was certified.
    pub fn from_reply(key: KeyPair, reply: &pb::HostCredentials, auth_addr: Option<String>) -> Result<Self, HostError> {
        let (authorities, skipped) = documents(&reply.authorities);
        if skipped > 0 {
            tracing::warn!(skipped, "authorities that cannot be read here are not trusted");
        }
        let labels = reply.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        Self::new(key, reply.ssh_certificate.clone(), reply.tls_certificate.clone(), authorities, labels, auth_addr)
    }

    /// From the file's content.
    pub fn from_file(file: &HostFile) -> Result<Self, HostError> {
        let key = KeyPair::from_pkcs8_pem(file.private_key.expose())?;
        let (ssh, tls) = (file.ssh_certificate.clone(), file.tls_certificate.clone());
        Self::new(key, ssh, tls, file.authorities.clone(), file.labels.clone(), file.auth_addr.clone())
    }

    fn new(
        key: KeyPair,
        ssh_line: String,
        tls_pem: String,
        authorities: Vec<Document>,
        labels: Labels,
        auth_addr: Option<String>,
    ) -> Result<Self, HostError> {
        let tls = key.tls_identity(&tls_pem)?;
        let leaf = tls.chain().first().ok_or(HostError::NotAHost)?;
        let Identity::Host(identity) = from_x509_der(leaf)? else { return Err(HostError::NotAHost) };
        let (issued, expires) = validity(leaf)?;
        let trust = ClusterTrust::from_documents(&identity.cluster, &authorities);
        if trust.host_tls.is_empty() {
            return Err(HostError::NoAuthorities);
        }
        let ssh_certificate = if ssh_line.trim().is_empty() { None } else { Some(parse_ssh_certificate(&ssh_line)?) };
        let ssh_private_key = Arc::new(key.ssh_private()?);
        let trust = Arc::new(trust);
        Ok(Self {
            identity,
            key,
            ssh_private_key,
            ssh_certificate,
            tls,
            authorities,
            trust,
            labels,
            auth_addr,
            issued,
            expires,
            ssh_line,
            tls_pem,
        })
    }

    /// The file's content.
    pub fn to_file(&self) -> HostFile {
        HostFile {
            format: FORMAT,
            identity: self.identity.clone(),
            private_key: self.key.pkcs8_pem(),
            ssh_certificate: self.ssh_line.clone(),
            tls_certificate: self.tls_pem.clone(),
            authorities: self.authorities.clone(),
            labels: self.labels.clone(),
            auth_addr: self.auth_addr.clone(),
            extra: Extra::new(),
        }
    }

    /// Reads the file; [`HostError::is_missing`] tells that there is none.
    pub fn load(path: &Path) -> Result<Self, HostError> {
        let bytes = fs::read(path).map(zeroize::Zeroizing::new).map_err(|source| HostError::File { path: path.to_owned(), source })?;
        let file = HostFile::from_json(&bytes).map_err(|source| HostError::Format { path: path.to_owned(), source })?;
        Self::from_file(&file)
    }

    /// Replaces the file in one step; its directory is made with mode 0700 when it is not there.
    pub fn save(&self, path: &Path) -> Result<(), HostError> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            crate::profile::private_dir(parent).map_err(|source| HostError::File { path: parent.to_owned(), source })?;
        }
        Ok(write_private(path, self.to_file().to_json().expose().as_bytes())?)
    }

    /// When to renew: after half of the certificate's life.
    pub fn renew_at(&self) -> Time {
        self.issued.plus(self.expires.since(self.issued) / 2)
    }
}

/// When a certificate begins and ends.
pub(crate) fn validity(der: &[u8]) -> Result<(Time, Time), BadIdentity> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).map_err(|error| BadIdentity::Malformed(error.to_string()))?;
    Ok((Time::from_unix(parsed.validity().not_before.timestamp()), Time::from_unix(parsed.validity().not_after.timestamp())))
}

/// A host that wants to join.
#[derive(Clone, Debug)]
pub struct Joining {
    pub via: Via,
    pub token: Secret,
    /// At least one, unless `insecure`.
    pub ca_pins: Vec<Pin>,
    /// Believes whoever answers. For tests and demonstrations.
    pub insecure: bool,
    pub host_id: HostId,
    pub node_name: NodeName,
    pub roles: BTreeSet<SystemRole>,
    /// Names and addresses to add to the certificates; the Auth Service checks each.
    pub names: Vec<String>,
    pub version: Version,
    pub skip_version_check: bool,
}

/// Exchanges a token for credentials.
pub async fn join(joining: &Joining, clock: &SharedClock) -> Result<HostCredentials, Public> {
    let key = KeyPair::generate().map_err(|error| HostError::from(error).public())?;
    join_with(joining, key, clock).await
}

/// The same with a given key. Whoever tries again after an answer that did not come must use the same: an id is given to one
/// key only.
pub async fn join_with(joining: &Joining, key: KeyPair, clock: &SharedClock) -> Result<HostCredentials, Public> {
    let trust = match (joining.ca_pins.as_slice(), joining.insecure) {
        ([_, ..], _) => Trust::Pins { pins: joining.ca_pins.clone(), name: PinnedName::AuthOfUnknownCluster },
        ([], true) => Trust::Insecure,
        ([], false) => {
            return Err(Public::new(Code::CaPin, "a host joins only a cluster whose certificate authority it can check")
                .hint("give --ca-pin; `tctl status` and `tctl tokens add` print it"));
        }
    };
    let role = joining.roles.first().map_or("node", SystemRole::as_str).to_owned();
    let api = Api::new(Settings {
        via: joining.via.clone(),
        access: Access::unknown_cluster(trust),
        role,
        version: joining.version.clone(),
        skip_version_check: joining.skip_version_check,
        clock: clock.clone(),
    });
    let request = pb::JoinRequest {
        token: joining.token.expose().to_owned(),
        host_id: joining.host_id.to_string(),
        node_name: joining.node_name.to_string(),
        roles: joining.roles.iter().map(ToString::to_string).collect(),
        ssh_public_key: key.ssh_public().map_err(|error| HostError::from(error).public())?,
        tls_public_key: key.spki_der().into(),
        names: joining.names.clone(),
    };
    let reply = api.join(request).await?;
    let auth_addr = match &joining.via {
        Via::Auth(_) | Via::AnyAuth(_) => Some(joining.via.addr().to_owned()),
        Via::Proxy(_) | Via::AnyProxy(_) => None,
    };
    let joined = HostCredentials::from_reply(key, &reply, auth_addr).map_err(|error| error.public())?;
    if joined.identity.id != joining.host_id {
        return Err(Public::new(Code::AccessIdentity, "the cluster answered with another host's certificate"));
    }
    Ok(joined)
}

/// Renews with a fresh key. The new credentials are for the same host, or this is an error.
pub async fn renew(api: &Api, old: &HostCredentials, names: &[String]) -> Result<HostCredentials, Public> {
    let key = KeyPair::generate().map_err(|error| HostError::from(error).public())?;
    let request = pb::RenewHostRequest {
        ssh_public_key: key.ssh_public().map_err(|error| HostError::from(error).public())?,
        tls_public_key: key.spki_der().into(),
        names: names.to_vec(),
    };
    let reply = api.renew_host(request).await?;
    let mut renewed = HostCredentials::from_reply(key, &reply, old.auth_addr.clone()).map_err(|error| error.public())?;
    if renewed.identity.id != old.identity.id || renewed.identity.cluster != old.identity.cluster {
        return Err(Public::new(Code::AccessIdentity, "the cluster answered with another host's certificate"));
    }
    if renewed.labels.is_empty() {
        renewed.labels = old.labels.clone();
    }
    Ok(renewed)
}

/// Renews after half of each certificate's life, saves, and tells the services, until the shutdown.
pub async fn keep_renewed(
    credentials: watch::Sender<Arc<HostCredentials>>,
    api: Api,
    path: PathBuf,
    names: Vec<String>,
    clock: SharedClock,
    seed: u64,
    shutdown: Shutdown,
) {
    let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(600), seed);
    loop {
        let now = credentials.borrow().clone();
        // Looked at often, because wall time may jump and the sleep's clock does not.
        let wait = now.renew_at().since(clock.now()).min(Duration::from_secs(60));
        if wait > Duration::ZERO {
            tokio::select! {
                () = shutdown.stopping() => return,
                () = tokio::time::sleep(wait) => continue,
            }
        }
        match renew(&api, &now, &names).await {
            Ok(renewed) => {
                // Once the new ones were used the old ones are no longer good for a renewal: a restart must find the new ones.
                if let Err(error) = renewed.save(&path) {
                    let wait = backoff.next();
                    tracing::error!(%error, ?wait, "renewed credentials could not be saved, so the old ones stay in use");
                    tokio::select! {
                        () = shutdown.stopping() => return,
                        () = tokio::time::sleep(wait) => continue,
                    }
                }
                tracing::info!(expires = %renewed.expires, "certificates renewed");
                credentials.send_replace(Arc::new(renewed));
                backoff.reset();
            }
            Err(error) => {
                let wait = backoff.next();
                tracing::warn!(%error, ?wait, expires = %now.expires, "certificates could not be renewed");
                tokio::select! {
                    () = shutdown.stopping() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
