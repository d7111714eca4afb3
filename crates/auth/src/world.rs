//! What an Auth Service is made from: its settings, the world around it, and why it may not be made.

use crate::{
    audit::{AuditError, SinkError},
    ca::CaError,
    mirror::MirrorError,
    password::HashError,
    password::PasswordCost,
    vault::VaultError,
    walk::Walker,
};
use net::{clock::SharedClock, health::Board, listen::Limits};
use std::{collections::BTreeSet, io, net::SocketAddr, path::PathBuf, sync::Arc};
use store::Store;
use tokio::net::TcpListener;
use types::{ClusterName, Code, HostId, NodeName, Public, Secret, SystemRole, Version, kind::AuthPreference};

/// Settings. [`Config::new`] has the defaults.
pub struct Config {
    /// State lies in `<data_dir>/auth`, the administrator's identity in `<data_dir>/admin`.
    pub data_dir: PathBuf,
    /// Shared with the other services of this process.
    pub host_id: HostId,
    pub node_name: NodeName,
    /// For a new cluster, where it defaults to the node's name; an existing one keeps its name for ever.
    pub cluster_name: Option<ClusterName>,
    pub listen_addr: SocketAddr,
    pub storage: Storage,
    /// From the configuration file: overwrites what is stored.
    pub auth_preference: Option<AuthPreference>,
    /// Tokens of the configuration file; they do not expire.
    pub static_tokens: Vec<(BTreeSet<SystemRole>, Secret)>,
    /// For a new cluster: whether pre-releases are kept out (rule G2).
    pub production: bool,
    /// More names and addresses for the server certificate.
    pub names: Vec<String>,
    /// Cheaper only in tests.
    pub password_cost: PasswordCost,
    pub limits: Limits,
    /// Backups by themselves; none when absent.
    pub backup: Option<crate::backup::Schedule>,
    /// Where recordings are kept. Default: `<data_dir>/auth/recordings`. Several Auth Services of a cluster name one shared directory.
    pub recordings_dir: Option<PathBuf>,
    /// How the audit log is kept. Default: in files, for ever.
    pub audit: crate::AuditSettings,
    /// `host:port` by which others reach this Auth Service, for the inventory. Default: where it listens.
    pub public_addr: Option<String>,
    /// Whether it carries upgrades out. Not where a backup is only tried.
    pub carries_upgrades: bool,
    /// The migrations that this binary knows. Default: those of this release.
    pub migrations: Option<upgrade::migrate::Registry>,
}

impl Config {
    pub fn new(data_dir: PathBuf, host_id: HostId, node_name: NodeName) -> Self {
        let storage = Storage::Sqlite { path: data_dir.join("auth").join("state.db") };
        Self {
            data_dir,
            host_id,
            node_name,
            cluster_name: None,
            listen_addr: SocketAddr::from(([127, 0, 0, 1], 3025)),
            storage,
            auth_preference: None,
            static_tokens: Vec::new(),
            production: true,
            names: Vec::new(),
            password_cost: PasswordCost::default(),
            limits: Limits::default(),
            backup: None,
            recordings_dir: None,
            audit: crate::AuditSettings::default(),
            public_addr: None,
            carries_upgrades: true,
            migrations: None,
        }
    }
}

/// Where the state is kept.
#[derive(Clone)]
pub enum Storage {
    /// Gone with the process.
    Memory,
    Sqlite {
        path: PathBuf,
    },
    /// A database that several Auth Services may share.
    Postgres(Box<store::postgres::Options>),
    /// An etcd that several Auth Services may share.
    Etcd(Box<store::etcd::Options>),
    /// Opened by the caller: what two Auth Services of one test share.
    Open(Arc<dyn Store>),
}

/// What is around the service; tests bring their own.
pub struct World {
    pub clock: SharedClock,
    /// What this process claims to be.
    pub version: Version,
    pub health: Board,
    /// Already bound; else `listen_addr` is.
    pub listener: Option<TcpListener>,
    /// Who walks a user's path; without him nobody does.
    pub walker: Option<Arc<dyn Walker>>,
    /// The releases that this cluster may move to; none where no mirror is known.
    pub releases: Option<Arc<dyn Releases>>,
    /// What this host's updater did last; none where there is no updater.
    pub updater: Option<Arc<dyn Fn() -> Option<types::update::UpdateReport> + Send + Sync>>,
}

/// The file beside a store that says that it is there to be tried on, and nobody's.
pub const REHEARSAL: &str = "rehearsal";

/// What is known of releases, and how one is tried. The way to them is for the process around the service.
#[tonic::async_trait]
pub trait Releases: Send + Sync {
    /// What the vendor vouches for, and whether its files are in the mirror. The error is one line.
    async fn known(&self) -> Result<Vec<Known>, String>;

    /// Runs that release's migrations there and back in a store that is nobody's: a SQLite file. The error is one line.
    async fn rehearse(&self, version: &Version, store: &std::path::Path) -> Result<Rehearsed, String>;
}

/// A release, with the digest of its archive for each system, as directives name them.
#[derive(Clone, PartialEq, Debug)]
pub struct Known {
    pub release: upgrade::plan::Release,
    pub artifacts: std::collections::BTreeMap<String, types::Sha256>,
}

/// What a release said of its own migrations: `lockgate rehearse` prints it. Read by other releases: it only grows.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Rehearsed {
    /// Why it did not come there and back; empty when it did.
    pub failed: String,
    /// Rows that the next format cannot hold, by key.
    pub bad_rows: Vec<String>,
    pub rows: u64,
    pub seconds: u64,
}

/// The store's clock is ours.
pub(crate) struct StoreClock(pub(crate) SharedClock);
impl store::Clock for StoreClock {
    fn now(&self) -> types::Time {
        self.0.now()
    }
}

/// Why the service was not made, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A rule says no; nothing was written.
    #[error("{0}")]
    Refused(Public),
    #[error("could not use {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("could not listen on {addr}: {source}")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error("could not open the store: {0}")]
    Open(String),
    #[error("could not use the store: {0}")]
    Store(String),
    #[error("could not use the certificate authorities: {0}")]
    Authorities(String),
    #[error("could not open the audit log: {0}")]
    Audit(String),
    #[error("could not serve: {0}")]
    Serve(String),
}

impl AuthError {
    /// For the user, with a code.
    pub fn public(&self) -> Public {
        match self {
            Self::Refused(public) => public.clone(),
            Self::File { .. } => {
                Public::new(Code::Config, self.to_string()).hint("check that the data directory exists and belongs to this user")
            }
            Self::Listen { .. } => {
                Public::new(Code::Config, self.to_string()).hint("another process may hold the port: set auth_service.listen_addr")
            }
            Self::Open(_) | Self::Store(_) | Self::Authorities(_) => Public::new(Code::StoreBroken, self.to_string()),
            Self::Audit(_) => Public::new(Code::AuditBroken, self.to_string()),
            Self::Serve(_) => Public::new(Code::Internal, self.to_string()),
        }
    }
}

impl From<Public> for AuthError {
    fn from(public: Public) -> Self {
        Self::Refused(public)
    }
}
impl From<CaError> for AuthError {
    fn from(error: CaError) -> Self {
        Self::Authorities(error.to_string())
    }
}
impl From<VaultError> for AuthError {
    fn from(error: VaultError) -> Self {
        Self::Store(error.to_string())
    }
}
impl From<MirrorError> for AuthError {
    fn from(error: MirrorError) -> Self {
        Self::Store(error.to_string())
    }
}
impl From<AuditError> for AuthError {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Settings(_) | AuditError::Sink(SinkError::Refused { .. }) => {
                Self::Refused(Public::new(Code::Config, error.to_string()).hint("see auth_service.audit in docs/audit.md"))
            }
            other => Self::Audit(other.to_string()),
        }
    }
}
impl From<HashError> for AuthError {
    fn from(error: HashError) -> Self {
        Self::Serve(error.to_string())
    }
}
impl From<net::tls::TlsError> for AuthError {
    fn from(error: net::tls::TlsError) -> Self {
        Self::Serve(error.to_string())
    }
}
