//! What the SSH Service needs of the cluster, as two traits, and what a test or `cli` brings.
//!
//! [`Cluster`] is what is known here of roles, users, locks and authorities: a local copy, also when every Auth Service is
//! away. [`Upstream`] takes what this host reports. [`crate::cluster`] implements both over `client`; tests bring fakes.

use futures::future::BoxFuture;
use rules::access::CurrentUser;
use std::path::PathBuf;
use tokio::sync::watch;
use types::{ClusterName, Document, Event, HostIdentity, Labels, Public, Resource, ResourceName, UserName, kind::{CertAuthority, Lock, Recording, User}};

/// What the cluster says, as far as it is known here.
pub trait Cluster: Send + Sync + 'static {
    fn name(&self) -> ClusterName;
    /// The `cert_authority` documents.
    fn authorities(&self) -> Vec<CertAuthority>;
    fn role(&self, name: &ResourceName) -> Option<Document>;
    fn user(&self, name: &UserName) -> Lookup;
    fn locks(&self) -> Vec<Resource<Lock>>;
    /// Counts up at each change of any of these.
    fn changed(&self) -> watch::Receiver<u64>;
}

/// A user's document, as far as it is known.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// The copy is not complete yet: the certificate alone decides.
    Unknown,
    Deleted,
    Known(Box<Resource<User>>),
}

impl Lookup {
    pub(crate) fn current(&self) -> CurrentUser<'_> {
        match self {
            Self::Unknown => CurrentUser::Unknown,
            Self::Deleted => CurrentUser::Deleted,
            Self::Known(user) => CurrentUser::Known(user),
        }
    }
}

/// Where reports go.
pub trait Upstream: Send + Sync + 'static {
    /// Delivers events, in order; a repeated event is recognised by its `uid`.
    fn events(&self, events: Vec<Event>) -> BoxFuture<'_, Result<(), Public>>;
    /// Delivers a recording. May be called again for the same file after a failure.
    fn recording(&self, about: Recording, file: PathBuf) -> BoxFuture<'_, Result<(), Public>>;
}

/// Who this host is: changes when its certificates are renewed.
#[derive(Clone, Debug)]
pub struct HostKeys {
    pub identity: HostIdentity,
    /// Labels of the host, static ones and those of its join token.
    pub labels: Labels,
    /// The host's SSH key, and its certificate.
    pub ssh_key: russh::keys::PrivateKey,
    pub ssh_certificate: russh::keys::Certificate,
}
