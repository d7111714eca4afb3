//! Whom this side of a connection believes: a cluster's certificate authorities, in the form SSH and in the form TLS need.
//!
//! Made from `cert_authority` documents. What cannot be used here — another cluster's document, a type or algorithm of a
//! newer release, a certificate standing where a plain key belongs — is skipped, never an error and never trusted
//! (attack table, rows 1 and 12). `rules` and the services ask this type; nobody else reads keys out of documents.

use net::{
    swap::Swap,
    tls::{Authorities, CertificateDer, Pin, TlsError, identity::certificates_from_pem},
};
use russh::keys::{Algorithm, PublicKey};
use types::{ClusterName, Document, Resource, kind::CertAuthority};
use wire::identity::{pin_of_spki, spki_of};

/// The usable authorities of one cluster.
#[derive(Clone, Debug)]
pub struct ClusterTrust {
    pub cluster: ClusterName,
    /// Plain keys that sign users' SSH certificates.
    pub user_ssh: Vec<PublicKey>,
    /// Plain keys that sign hosts' SSH certificates.
    pub host_ssh: Vec<PublicKey>,
    pub user_tls: Vec<CertificateDer<'static>>,
    pub host_tls: Vec<CertificateDer<'static>>,
}

impl ClusterTrust {
    /// Trusts nobody yet.
    pub fn empty(cluster: ClusterName) -> Self {
        Self { cluster, user_ssh: Vec::new(), host_ssh: Vec::new(), user_tls: Vec::new(), host_tls: Vec::new() }
    }

    /// From documents as they are stored and sent.
    pub fn from_documents<'a>(cluster: &ClusterName, documents: impl IntoIterator<Item = &'a Document>) -> Self {
        let mut trust = Self::empty(cluster.clone());
        for document in documents {
            match Resource::<CertAuthority>::from_document(document.clone()) {
                Ok(authority) => trust.add(&authority.spec),
                Err(error) => tracing::warn!(%error, "an authority that cannot be read here is not trusted"),
            }
        }
        trust
    }

    /// Adds one authority's usable keys; of another cluster, none.
    pub fn add(&mut self, authority: &CertAuthority) {
        if authority.cluster != self.cluster {
            return;
        }
        let (ssh, tls) = match authority.ca_type.as_str() {
            "user" => (&mut self.user_ssh, &mut self.user_tls),
            "host" => (&mut self.host_ssh, &mut self.host_tls),
            _ => return,
        };
        for key in &authority.keys {
            ssh.extend(plain_key(&key.ssh));
            tls.extend(certificates_from_pem(key.tls.as_bytes()).into_iter().flatten());
        }
    }

    /// For TLS connections.
    pub fn tls(&self) -> Result<Authorities, TlsError> {
        Authorities::new(self.cluster.clone(), &self.user_tls, &self.host_tls)
    }

    /// For TLS connections made with `net::tls::Trust::Cluster`.
    pub fn swap(&self) -> Result<Swap<Authorities>, TlsError> {
        self.tls().map(Swap::new)
    }

    /// `sha256:<hex>` of each host authority: what `--ca-pin` takes.
    pub fn pins(&self) -> Vec<Pin> {
        self.host_tls.iter().filter_map(|der| pin_of_spki(&spki_of(der).ok()?).parse().ok()).collect()
    }
}

/// The authorities' documents as they came over the API; unreadable ones are counted.
pub fn documents(bytes: &[impl AsRef<[u8]>]) -> (Vec<Document>, usize) {
    let read: Vec<Document> = bytes.iter().filter_map(|bytes| Document::from_json(bytes.as_ref()).ok()).collect();
    let skipped = bytes.len().saturating_sub(read.len());
    (read, skipped)
}

/// A plain key of an algorithm we sign with. A certificate never stands for a key.
pub(crate) fn plain_key(line: &str) -> Option<PublicKey> {
    let parsed = PublicKey::from_openssh(line.trim()).ok()?;
    match parsed.algorithm() {
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } => Some(parsed),
        _ => None,
    }
}
