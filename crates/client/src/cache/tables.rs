//! The tables behind the cache: one map per kind, each shared by reference.
//!
//! A reader clones an `Arc`; a writer changes the map in place when nobody holds it, and copies the map (pointers, not
//! documents) when somebody does. So 170 heartbeats a second from 10,000 hosts cost 170 map updates, not 170 copies.

use super::feed::Change;
use crate::trust::ClusterTrust;
use std::{collections::BTreeMap, sync::Arc};
use types::{
    ClusterName, Document, Metadata, Resource, ResourceName,
    document::{BadDocument, Spec},
    kind::{AuthPreference, CertAuthority, ClusterInfo, Lock, Member, Node, User, singleton},
    role::Role,
};

/// All documents of one kind, by name.
pub type Table<T> = Arc<BTreeMap<ResourceName, Arc<T>>>;

/// Which counters of `Changes` grow.
#[derive(Clone, Copy, Default)]
pub(super) struct Touched {
    pub(super) policy: bool,
    pub(super) nodes: bool,
}

impl Touched {
    fn kind(&mut self, kind: &str) {
        if kind == Node::KIND || kind == Member::KIND {
            self.nodes = true;
        } else {
            self.policy = true;
        }
    }
}

pub(super) struct Tables {
    cluster: ClusterName,
    pub(super) roles: Table<Document>,
    pub(super) users: Table<Resource<User>>,
    pub(super) nodes: Table<Resource<Node>>,
    pub(super) members: Table<Resource<Member>>,
    pub(super) authorities: Table<Resource<CertAuthority>>,
    locks: Table<Resource<Lock>>,
    pub(super) preference: Arc<Resource<AuthPreference>>,
    pub(super) info: Option<Arc<Resource<ClusterInfo>>>,
    /// Derived: the locks as `rules` wants them.
    pub(super) lock_list: Arc<Vec<Resource<Lock>>>,
    /// Derived: the authorities as connections want them.
    pub(super) trust: Arc<ClusterTrust>,
}

fn default_preference() -> Arc<Resource<AuthPreference>> {
    // The name is a constant of ours and well-formed; `unwrap_or` cannot be reached but costs nothing.
    let name = ResourceName::new(singleton::AUTH_PREFERENCE).ok();
    Arc::new(Resource::new(
        Metadata::named(name.unwrap_or_else(|| ResourceName::from(&types::HostId::from_uuid(uuid::Uuid::nil())))),
        AuthPreference::default(),
    ))
}

/// What became of one document.
enum Stored {
    Yes,
    /// Not of a kind that is kept, or not readable here.
    No,
}

impl Tables {
    pub(super) fn new(cluster: &ClusterName) -> Self {
        Self {
            cluster: cluster.clone(),
            roles: Table::default(),
            users: Table::default(),
            nodes: Table::default(),
            members: Table::default(),
            authorities: Table::default(),
            locks: Table::default(),
            preference: default_preference(),
            info: None,
            lock_list: Arc::default(),
            trust: Arc::new(ClusterTrust::empty(cluster.clone())),
        }
    }

    /// Applies in order; says what was touched and how many could not be read.
    pub(super) fn apply(&mut self, changes: Vec<Change>) -> (Touched, u64) {
        let (mut touched, mut unreadable) = (Touched::default(), 0u64);
        let (mut locks, mut authorities) = (false, false);
        for change in changes {
            let kind = match change {
                Change::Put(document) => {
                    let (kind, name) = (document.kind.clone(), document.metadata.name.clone());
                    if let Stored::No = self.put(document) {
                        unreadable = unreadable.saturating_add(1);
                        // What we had is no longer true, and what is true we cannot read. A lock stays: better one too many.
                        if kind != Lock::KIND {
                            self.delete(&kind, &name);
                        }
                    }
                    kind
                }
                Change::Delete { kind, name } => {
                    self.delete(&kind, &name);
                    kind
                }
            };
            locks |= kind == Lock::KIND;
            authorities |= kind == CertAuthority::KIND;
            touched.kind(&kind);
        }
        self.derive(locks, authorities);
        (touched, unreadable)
    }

    fn derive(&mut self, locks: bool, authorities: bool) {
        if locks {
            self.lock_list = Arc::new(self.locks.values().map(|lock| Resource::clone(lock)).collect());
        }
        if authorities {
            let mut trust = ClusterTrust::empty(self.cluster.clone());
            for authority in self.authorities.values() {
                trust.add(&authority.spec);
            }
            self.trust = Arc::new(trust);
        }
    }

    fn put(&mut self, document: Document) -> Stored {
        fn insert<S: Spec>(table: &mut Table<Resource<S>>, document: Document) -> Stored {
            keep(table, Resource::from_document(document))
        }
        fn keep<S: Spec>(table: &mut Table<Resource<S>>, read: Result<Resource<S>, BadDocument>) -> Stored {
            match read {
                Ok(resource) => {
                    Arc::make_mut(table).insert(resource.name().clone(), Arc::new(resource));
                    Stored::Yes
                }
                Err(error) => {
                    tracing::warn!(%error, "left out of the cache");
                    Stored::No
                }
            }
        }
        match document.kind.as_str() {
            Role::KIND => {
                Arc::make_mut(&mut self.roles).insert(document.metadata.name.clone(), Arc::new(document));
                Stored::Yes
            }
            User::KIND => insert(&mut self.users, document),
            Node::KIND => insert(&mut self.nodes, document),
            Member::KIND => insert(&mut self.members, document),
            CertAuthority::KIND => insert(&mut self.authorities, document),
            Lock::KIND => keep(&mut self.locks, Lock::leniently(document)),
            AuthPreference::KIND => match Resource::from_document(document) {
                Ok(preference) => {
                    self.preference = Arc::new(preference);
                    Stored::Yes
                }
                Err(_) => Stored::No,
            },
            ClusterInfo::KIND => match Resource::from_document(document) {
                Ok(info) => {
                    self.info = Some(Arc::new(info));
                    Stored::Yes
                }
                Err(_) => Stored::No,
            },
            _ => Stored::No,
        }
    }

    fn delete(&mut self, kind: &str, name: &ResourceName) {
        match kind {
            Role::KIND => drop(Arc::make_mut(&mut self.roles).remove(name)),
            User::KIND => drop(Arc::make_mut(&mut self.users).remove(name)),
            Node::KIND => drop(Arc::make_mut(&mut self.nodes).remove(name)),
            Member::KIND => drop(Arc::make_mut(&mut self.members).remove(name)),
            CertAuthority::KIND => drop(Arc::make_mut(&mut self.authorities).remove(name)),
            Lock::KIND => drop(Arc::make_mut(&mut self.locks).remove(name)),
            // A preference or a name that cannot be read leaves the last good one in force.
            _ => {}
        }
    }

    /// Takes over the tables of the kinds that were served.
    pub(super) fn replace(&mut self, fresh: Self, served: &[String]) -> Touched {
        let mut touched = Touched::default();
        for kind in served {
            touched.kind(kind);
            match kind.as_str() {
                Role::KIND => self.roles = fresh.roles.clone(),
                User::KIND => self.users = fresh.users.clone(),
                Node::KIND => self.nodes = fresh.nodes.clone(),
                Member::KIND => self.members = fresh.members.clone(),
                CertAuthority::KIND => self.authorities = fresh.authorities.clone(),
                Lock::KIND => self.locks = fresh.locks.clone(),
                AuthPreference::KIND => self.preference = fresh.preference.clone(),
                ClusterInfo::KIND => self.info = fresh.info.clone(),
                _ => {}
            }
        }
        self.derive(true, true);
        touched
    }
}
