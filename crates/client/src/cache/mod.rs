//! A copy of what a service must know to decide without asking: roles, users, locks, authorities, nodes. Fed by a watch,
//! read without waiting.
//!
//! It keeps what it knows while every Auth Service is away, so existing certificates still open sessions; it never guesses:
//! before the first [`Cache::synced`] it is empty, and an empty cache allows nothing. A document or a kind that this
//! release cannot read is counted and left out; each kind resumes by itself, and none restarts the rest. Reading takes an `Arc` of a table, so a snapshot
//! of 10,000 nodes costs nothing and holds still. `rules` decides over what is read here; the task that feeds it is in
//! [`feed`].

mod feed;
mod tables;

pub use tables::Table;

use crate::{api::Api, trust::ClusterTrust};
use net::{health::Health, shutdown::Shutdown, task::Group};
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};
use tables::Tables;
use tokio::sync::watch;
use types::{
    ClusterName, Document, HostId, NodeName, Public, Resource, ResourceName,
    document::Spec,
    kind::{AuthPreference, CertAuthority, ClusterInfo, Lock, Member, Node, User},
    role::Role,
};

/// What an agent needs.
pub const AGENT_KINDS: &[&str] = &[ClusterInfo::KIND, AuthPreference::KIND, CertAuthority::KIND, Role::KIND, User::KIND, Lock::KIND];
/// What a Proxy needs. Of members it is shown the Proxies.
pub const PROXY_KINDS: &[&str] =
    &[ClusterInfo::KIND, AuthPreference::KIND, CertAuthority::KIND, Role::KIND, User::KIND, Lock::KIND, Node::KIND, Member::KIND];

/// Counters that grow with each change; a subscriber compares or just wakes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Roles, users, locks, authorities, preference: what a running session's permit depends on.
    pub policy: u64,
    /// Nodes and members.
    pub nodes: u64,
}

/// How well the cache is fed.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Feeding {
    /// Connected and up to date. False after a lost connection until it is caught up.
    pub live: bool,
    /// Everything that existed was seen at least once.
    pub synced: bool,
    /// Why it is not live.
    pub error: Option<Public>,
    /// The store's revision of the last change seen.
    pub revision: u64,
    /// Documents and events that could not be read, since the start.
    pub skipped: u64,
    /// Kinds wanted that the Auth Service does not serve to us.
    pub unserved: Vec<String>,
    /// How often each kind was taken whole; after the first time, a sign that the past was lost.
    pub whole: BTreeMap<String, u64>,
}

impl Feeding {
    /// Why the Auth Service refuses this process for its version, and the cure, in one line.
    pub fn refused(&self) -> Option<String> {
        let error = self.error.as_ref().filter(|error| error.is_about_version())?;
        let hint = error.hint.as_deref().map(|hint| format!("; {hint}")).unwrap_or_default();
        Some(format!("the Auth Service refuses this process for its version: {}{hint} [{}]", error.message, error.code))
    }

    /// What `/readyz` says of it: a copy that is not fed is still used, and gets older.
    pub fn health(&self) -> Health {
        match (self.synced, self.live, &self.error) {
            (false, _, None) => Health::Starting,
            (true, true, _) => Health::Ready,
            (_, _, Some(error)) => Health::Degraded(self.refused().unwrap_or_else(|| error.to_string())),
            (true, false, None) => Health::Degraded("not connected to the Auth Service".into()),
        }
    }
}

/// The copy. Clones share it.
#[derive(Clone)]
pub struct Cache(Arc<Shared>);

struct Shared {
    cluster: ClusterName,
    tables: RwLock<Tables>,
    changes: watch::Sender<Changes>,
    feeding: watch::Sender<Feeding>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cache({}, {:?})", self.0.cluster, *self.0.feeding.borrow())
    }
}

impl Cache {
    /// An empty cache that nothing feeds.
    pub fn empty(cluster: ClusterName) -> Self {
        let tables = RwLock::new(Tables::new(&cluster));
        Self(Arc::new(Shared {
            cluster,
            tables,
            changes: watch::Sender::new(Changes::default()),
            feeding: watch::Sender::new(Feeding::default()),
        }))
    }

    /// A cache fed by `api` with these kinds ([`AGENT_KINDS`], [`PROXY_KINDS`]) until the shutdown stops.
    pub fn start(cluster: ClusterName, api: Api, kinds: &[&str], seed: u64, group: &Group, shutdown: Shutdown) -> Self {
        let cache = Self::empty(cluster);
        let kinds = kinds.iter().map(|&kind| kind.to_owned()).collect();
        group.spawn("cache", feed::run(cache.clone(), api, kinds, seed, shutdown));
        cache
    }

    fn read<T>(&self, read: impl FnOnce(&Tables) -> T) -> T {
        read(&self.0.tables.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn cluster(&self) -> &ClusterName {
        &self.0.cluster
    }

    /// A role as a document: `rules` reads it, and fails closed for one it cannot read.
    pub fn role(&self, name: &ResourceName) -> Option<Arc<Document>> {
        self.read(|tables| tables.roles.get(name).cloned())
    }
    /// The look-up that `rules::access::RoleSet::resolve` takes.
    pub fn roles(&self) -> impl Fn(&ResourceName) -> Option<Document> + use<> {
        let roles = self.read(|tables| tables.roles.clone());
        move |name| roles.get(name).map(|role| Document::clone(role))
    }
    /// A user; `None` also when the user is gone.
    pub fn user(&self, name: &ResourceName) -> Option<Arc<Resource<User>>> {
        self.read(|tables| tables.users.get(name).cloned())
    }
    pub fn users(&self) -> Table<Resource<User>> {
        self.read(|tables| tables.users.clone())
    }
    /// Every lock, also those whose time ran out; `rules::lock` looks at the clock.
    pub fn locks(&self) -> Arc<Vec<Resource<Lock>>> {
        self.read(|tables| tables.lock_list.clone())
    }
    pub fn node(&self, id: &HostId) -> Option<Arc<Resource<Node>>> {
        self.read(|tables| tables.nodes.get(&ResourceName::from(id)).cloned())
    }
    pub fn nodes(&self) -> Table<Resource<Node>> {
        self.read(|tables| tables.nodes.clone())
    }
    /// The nodes that have that host name.
    pub fn nodes_named(&self, hostname: &NodeName) -> Vec<Arc<Resource<Node>>> {
        self.nodes().values().filter(|node| node.spec.hostname == *hostname).cloned().collect()
    }
    pub fn members(&self) -> Table<Resource<Member>> {
        self.read(|tables| tables.members.clone())
    }
    /// The documents of the authorities.
    pub fn authorities(&self) -> Table<Resource<CertAuthority>> {
        self.read(|tables| tables.authorities.clone())
    }
    /// The authorities, ready to use.
    pub fn trust(&self) -> Arc<ClusterTrust> {
        self.read(|tables| tables.trust.clone())
    }
    /// How people log in; the default when none was written.
    pub fn auth_preference(&self) -> Arc<Resource<AuthPreference>> {
        self.read(|tables| tables.preference.clone())
    }
    pub fn cluster_info(&self) -> Option<Arc<Resource<ClusterInfo>>> {
        self.read(|tables| tables.info.clone())
    }

    /// Wakes at each change, after it can be read.
    pub fn changed(&self) -> watch::Receiver<Changes> {
        self.0.changes.subscribe()
    }
    /// How well the cache is fed, for health.
    pub fn feeding(&self) -> watch::Receiver<Feeding> {
        self.0.feeding.subscribe()
    }
    /// Waits until everything that existed was seen once.
    pub async fn synced(&self) {
        // The sender lives in self: waiting cannot fail.
        let _ = self.0.feeding.subscribe().wait_for(|feeding| feeding.synced).await;
    }

    /// Puts documents in, as the feed would: for tests of whoever reads the cache.
    pub fn put(&self, documents: impl IntoIterator<Item = Document>) {
        self.apply(documents.into_iter().map(feed::Change::Put).collect(), 0);
        self.0.feeding.send_modify(|feeding| feeding.synced = true);
    }
    /// Takes a document out, as the feed would: for tests of whoever reads the cache.
    pub fn remove(&self, kind: &str, name: &ResourceName) {
        self.apply(vec![feed::Change::Delete { kind: kind.to_owned(), name: name.clone() }], 0);
    }

    /// Applies changes in order; readers see all or none of them.
    fn apply(&self, changes: Vec<feed::Change>, skipped: u64) {
        let (touched, unreadable) = {
            let mut tables = self.0.tables.write().unwrap_or_else(PoisonError::into_inner);
            tables.apply(changes)
        };
        self.tell(touched, skipped.saturating_add(unreadable));
    }

    /// Puts another set of tables in place; kinds that were not served keep their tables.
    fn replace(&self, fresh: Tables, served: &[String], skipped: u64) {
        let touched = {
            let mut tables = self.0.tables.write().unwrap_or_else(PoisonError::into_inner);
            tables.replace(fresh, served)
        };
        self.0.feeding.send_modify(|feeding| {
            for kind in served {
                let times = feeding.whole.entry(kind.clone()).or_default();
                *times = times.saturating_add(1);
            }
        });
        self.tell(touched, skipped);
    }

    fn tell(&self, touched: tables::Touched, skipped: u64) {
        if skipped > 0 {
            self.0.feeding.send_modify(|feeding| feeding.skipped = feeding.skipped.saturating_add(skipped));
        }
        if touched.policy || touched.nodes {
            self.0.changes.send_modify(|changes| {
                changes.policy = changes.policy.wrapping_add(u64::from(touched.policy));
                changes.nodes = changes.nodes.wrapping_add(u64::from(touched.nodes));
            });
        }
    }
}

#[cfg(test)]
mod tests;
