//! The books of the members: which host ids and names are taken, and which of a host's certificates is the newest.
//!
//! A record under `internal/host/<id>` is made when a host joins, under the condition that there is none, so that of two
//! that join with one id one is refused, and a host that fell silent keeps its id. It ends with its last certificate, or
//! when an administrator removes the member. A retry with the same key gets an answer again: it helps only the key's holder.
//!
//! Names: a Proxy's certificates carry names of the open world, and plain OpenSSH believes each of them. So a name is a
//! Proxy's or a host's, never both (`internal/name/<name>`), and everything under the cluster's name is its hosts'.
//!
//! Generations: each renewal counts one up, in the record and in the certificate. Renewing with a certificate that was
//! renewed already means that two hold its key: the host is locked. A lost reply is no such case: while the newest
//! certificate was never used, the one before may renew again, which voids what lies between. Callers: `tokens`, `api::certs`.

use crate::{
    ca::names::{HostName, HostNames},
    core::{Core, Fault},
    presence::settle,
    vault::{self, Held, VaultError},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
};
use store::{Key, documents::WriteError};
use types::{
    ClusterName, Code, EventKind, Extra, HostId, HostIdentity, Metadata, NodeName, Public, Resource, ResourceName, SystemRole, Time,
    document::Spec,
    kind::{Lock, LockTarget, Member, Node},
};

/// Lost races after which a caller is told to try again.
const MAX_RACES: usize = 16;
/// Hosts whose newest certificate is remembered as used.
const REMEMBERED: usize = 100_000;

/// What is kept of one member.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct HostRecord {
    name: NodeName,
    /// Fingerprint of the TLS key of the newest certificate.
    key: String,
    /// What it holds in the books of names.
    #[serde(default)]
    names: BTreeSet<String>,
    /// Generation of the newest certificate.
    newest: u64,
    /// Generation of the newest certificate that was seen in use.
    used: u64,
    #[serde(flatten)]
    extra: Extra,
}

/// Who holds a name: either side may be empty, and a member may be on both.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Holders {
    #[serde(default)]
    proxies: BTreeSet<HostId>,
    #[serde(default)]
    hosts: BTreeSet<HostId>,
    #[serde(flatten)]
    extra: Extra,
}

/// Why a host asks for certificates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Occasion {
    Join,
    /// With the certificate of that generation; 0 when it has none.
    Renewal(u64),
    /// It lives in this process.
    Local,
}

/// What a new certificate says.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) identity: HostIdentity,
    pub(crate) names: HostNames,
}

/// Generations already noted as used, so that a heartbeat costs no read.
#[derive(Default)]
pub(crate) struct Used(Mutex<BTreeMap<HostId, u64>>);

impl Used {
    fn knows(&self, host: HostId, generation: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&host) == Some(&generation)
    }
    fn note(&self, host: HostId, generation: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(host, generation);
    }
}

fn host_key(id: HostId) -> Result<Key, VaultError> {
    Ok(Key::new(["internal", "host", &id.to_string()])?)
}
fn name_key(name: &str) -> Result<Key, VaultError> {
    Ok(Key::new(["internal", "name", name])?)
}

/// Who asks for a certificate, and how.
pub(crate) struct Request<'a> {
    /// Fingerprint of its TLS key.
    pub(crate) key: &'a str,
    pub(crate) occasion: Occasion,
    /// Where it asks from, if that address is its own.
    pub(crate) from: Option<IpAddr>,
    /// When the certificate will end.
    pub(crate) expires: Time,
}

/// Enters a host's next certificate.
pub(crate) async fn enter(core: &Core, identity: &HostIdentity, asked: &HostNames, request: &Request<'_>) -> Result<Entry, Fault> {
    let Request { key, occasion, expires, .. } = *request;
    let record_key = host_key(identity.id)?;
    for _ in 0..MAX_RACES {
        let held = core.vault.read::<HostRecord>(&record_key).await?;
        let (newest, used) = match next_generation(held.as_ref().map(|held| &held.value), occasion, key, core.now()) {
            Ok(next) => next,
            Err(Refused::Cloned) => return Err(cloned(core, identity).await),
            Err(Refused::Taken) => return Err(taken(identity.id)),
            Err(Refused::Removed) => return Err(removed(identity)),
        };
        let names = granted(core, identity, asked, request).await?;
        let mut books = Books::read(core, identity, &names, held.as_ref()).await?;
        books.check(identity)?;
        let record = HostRecord {
            name: identity.name.clone(),
            key: key.to_owned(),
            names: books.wanted(),
            newest,
            used,
            extra: held.as_ref().map(|held| held.value.extra.clone()).unwrap_or_default(),
        };
        let batch = books.write(core, identity.id, expires)?;
        let batch =
            batch.require(vault::unchanged(&record_key, held.as_ref())).put(record_key.clone(), vault::json(&record), Some(expires));
        if core.vault.commit(batch).await? {
            return Ok(Entry { identity: identity.clone().with_generation(newest), names });
        }
    }
    Err(Public::new(Code::Unavailable, "too many hosts come at once").hint("try again in a while").into())
}

/// Why there is no next certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refused {
    Taken,
    Removed,
    /// Two hold the key of this host.
    Cloned,
}

/// The generation of the next certificate, and the one that then counts as used.
fn next_generation(held: Option<&HostRecord>, occasion: Occasion, key: &str, now: Time) -> Result<(u64, u64), Refused> {
    // Begins with the time, so that an id that is given anew never counts through the same numbers.
    let first = now.unix_u64().max(1);
    match (occasion, held) {
        (Occasion::Join, Some(held)) if held.key == key => Ok((held.newest, held.used)),
        (Occasion::Join, Some(_)) => Err(Refused::Taken),
        // No certificate has the number before.
        (Occasion::Join | Occasion::Local, None) => Ok((first, first.saturating_sub(1))),
        (Occasion::Local, Some(held)) => Ok((first.max(held.newest.saturating_add(1)), held.newest)),
        // Of before there were generations.
        (Occasion::Renewal(0), None) => Ok((first, 0)),
        (Occasion::Renewal(_), None) => Err(Refused::Removed),
        // Newer than we know: our store was restored from an older copy; the signature is ours.
        (Occasion::Renewal(had), Some(held)) if had >= held.newest => Ok((had.saturating_add(1), had)),
        (Occasion::Renewal(had), Some(held)) if had == held.used => Ok((held.newest.saturating_add(1), held.used)),
        (Occasion::Renewal(_), Some(_)) => Err(Refused::Cloned),
    }
}

pub(crate) fn taken(id: HostId) -> Fault {
    Public::new(Code::AlreadyExists, format!("a host with the id {id} is in the cluster already"))
        .hint(format!("use another data directory, or remove the old one: tctl rm member/{id}"))
        .into()
}

fn removed(identity: &HostIdentity) -> Fault {
    Public::new(Code::AccessDenied, format!("{} ({}) was removed from the cluster", identity.name, identity.id))
        .hint("join again with a token")
        .into()
}

/// Locks a host whose key is held twice, and says so.
async fn cloned(core: &Core, identity: &HostIdentity) -> Fault {
    let why = "its certificate was renewed before by another holder of its key";
    tracing::error!(host = %identity.id, name = %identity.name, "locked a host: {why}");
    let event = core
        .event(EventKind::CertRefused)
        .with("cert_type", "host")
        .with("server_id", identity.id.to_string())
        .with("server_hostname", identity.name.as_str())
        .with("locked", true)
        .with("error", why);
    if let Err(error) = core.audit.record(event).await {
        tracing::error!(%error, "the lock could not be recorded");
    }
    match lock(core, identity).await {
        Ok(()) => {}
        Err(error) => tracing::error!(host = %identity.id, %error, "the host could not be locked"),
    }
    Public::new(Code::AccessLocked, format!("{} ({}) is locked: {why}", identity.name, identity.id))
        .hint("see the security model, \"Hosts\": find the copy, then remove lock and member, and join again")
        .into()
}

async fn lock(core: &Core, identity: &HostIdentity) -> Result<(), Fault> {
    let name = format!("copied-{}", identity.id);
    let target = LockTarget { node: Some(identity.id), ..LockTarget::default() };
    let message = "two hold the key of this host".to_owned();
    let lock = Resource::new(Metadata::named(ResourceName::new(&name)?), Lock { target, message, extra: Extra::new() });
    match core.documents.create(&lock.to_document()).await {
        Ok(written) => settle(core, &written).await,
        Err(WriteError::Exists(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let event = core.event(EventKind::ResourceCreate).with("kind", Lock::KIND).with("name", name);
    Ok(core.audit.record(event).await?)
}

/// The names of the open world that the certificate will carry, of those that were asked for.
async fn granted(core: &Core, identity: &HostIdentity, asked: &HostNames, request: &Request<'_>) -> Result<HostNames, Fault> {
    if !is_public(identity) {
        return Ok(HostNames::default());
    }
    let own = canonical(identity.name.as_str(), &core.cluster);
    let nodes = core.mirror.all::<Node>();
    let others: Vec<&Resource<Node>> = nodes.iter().filter(|node| node.name().as_str() != identity.id.to_string()).collect();
    let mut names = HostNames::default();
    for name in asked.iter() {
        match name {
            // Its own machine's, whoever else lives there; and this process is trusted to know its own.
            HostName::Ip(ip) if ip.is_loopback() || request.from == Some(*ip) || request.occasion == Occasion::Local => {}
            HostName::Ip(ip) => {
                let at = |node: &&&Resource<Node>| node.spec.addr.parse::<SocketAddr>().is_ok_and(|addr| addr.ip() == *ip);
                if let Some(node) = others.iter().find(at) {
                    return Err(of_a_host(&ip.to_string(), node.spec.hostname.as_str()));
                }
            }
            HostName::Dns(name) => {
                let known = canonical(name, &core.cluster);
                // A host's to be, even if there is none yet; but what stands in the Auth Service's own file is an administrator's.
                if known != *name && known != own && request.occasion != Occasion::Local {
                    return Err(under_the_cluster(name, &known));
                }
                let called = |node: &&&Resource<Node>| canonical(node.spec.hostname.as_str(), &core.cluster) == known;
                match others.iter().find(called) {
                    // Every Proxy asks for it, and nobody is impersonated to himself.
                    Some(_) if name == "localhost" => continue,
                    Some(node) => return Err(of_a_host(name, node.spec.hostname.as_str())),
                    None if name == "localhost" && is_a_hosts(core, identity.id, name).await? => continue,
                    None => {}
                }
            }
        }
        names.insert(name.clone());
    }
    Ok(names)
}

async fn is_a_hosts(core: &Core, own: HostId, name: &str) -> Result<bool, Fault> {
    let held = core.vault.read::<Holders>(&name_key(name)?).await?;
    Ok(held.is_some_and(|held| held.value.hosts.iter().any(|host| *host != own)))
}

fn of_a_host(name: &str, host: &str) -> Fault {
    Public::new(Code::AlreadyExists, format!("a Proxy cannot have the name \"{name}\": it is the host \"{host}\""))
        .hint("give the Proxy another public_addr or nodename")
        .into()
}

fn under_the_cluster(name: &str, head: &str) -> Fault {
    Public::new(Code::AlreadyExists, format!("a Proxy cannot have the name \"{name}\": names under the cluster's own are its hosts'"))
        .hint(format!("give the Proxy the nodename \"{head}\", or a public_addr outside the cluster's name"))
        .into()
}

/// Whether strangers reach it by names of the open world.
pub(crate) fn is_public(host: &HostIdentity) -> bool {
    host.roles.iter().any(|role| matches!(role, SystemRole::Proxy | SystemRole::Auth))
}

/// The names one certificate takes, and those that it gives back.
struct Books {
    /// The member's own name, without the cluster's behind it: both forms are principals.
    own: String,
    as_proxy: BTreeSet<String>,
    as_host: bool,
    held: BTreeMap<String, Option<Held<Holders>>>,
}

impl Books {
    async fn read(core: &Core, identity: &HostIdentity, names: &HostNames, record: Option<&Held<HostRecord>>) -> Result<Self, Fault> {
        let own = canonical(identity.name.as_str(), &identity.cluster);
        let mut as_proxy: BTreeSet<String> = names
            .iter()
            .filter_map(|name| match name {
                HostName::Dns(name) => Some(canonical(name, &identity.cluster)),
                // Hosts have no addresses in their certificates.
                HostName::Ip(_) => None,
            })
            .collect();
        if is_public(identity) {
            as_proxy.insert(own.clone());
        }
        let as_host = identity.roles.contains(&SystemRole::Node) || identity.roles.contains(&SystemRole::Db);
        let mut all = as_proxy.clone();
        if as_host {
            all.insert(own.clone());
        }
        all.extend(record.iter().flat_map(|held| held.value.names.iter().cloned()));
        let mut held = BTreeMap::new();
        for name in all {
            let found = core.vault.read::<Holders>(&name_key(&name)?).await?;
            held.insert(name, found);
        }
        Ok(Self { own, as_proxy, as_host, held })
    }

    /// What the member holds from now on.
    fn wanted(&self) -> BTreeSet<String> {
        let own = self.as_host.then(|| self.own.clone());
        self.as_proxy.iter().cloned().chain(own).collect()
    }

    fn check(&self, identity: &HostIdentity) -> Result<(), Fault> {
        let other = |ids: &BTreeSet<HostId>| ids.iter().find(|id| **id != identity.id).copied();
        for (name, held) in self.held.iter().filter_map(|(name, held)| Some((name, &held.as_ref()?.value))) {
            if self.as_proxy.contains(name)
                && let Some(host) = other(&held.hosts)
            {
                return Err(of_a_host(name, &host.to_string()));
            }
            if self.as_host
                && *name == self.own
                && let Some(proxy) = other(&held.proxies)
            {
                let message = format!("a host cannot be called \"{name}\": it is a name of the Proxy {proxy}");
                return Err(Public::new(Code::AlreadyExists, message).hint("give this host another name: --nodename").into());
            }
        }
        Ok(())
    }

    fn write(&mut self, core: &Core, id: HostId, expires: Time) -> Result<store::Batch, Fault> {
        let mut batch = core.vault.batch();
        for (name, held) in &self.held {
            let key = name_key(name)?;
            let mut holders = held.as_ref().map(|held| held.value.clone()).unwrap_or_default();
            set(&mut holders.proxies, id, self.as_proxy.contains(name));
            set(&mut holders.hosts, id, self.as_host && *name == self.own);
            let until = held.as_ref().and_then(|held| held.expires).unwrap_or(expires).max(expires);
            batch = batch.require(vault::unchanged(&key, held.as_ref()));
            batch = if holders.proxies.is_empty() && holders.hosts.is_empty() {
                batch.delete(key)
            } else {
                batch.put(key, vault::json(&holders), Some(until))
            };
        }
        Ok(batch)
    }
}

fn set(ids: &mut BTreeSet<HostId>, id: HostId, holds: bool) {
    if holds {
        ids.insert(id);
    } else {
        ids.remove(&id);
    }
}

/// `db-7` of `db-7` and of `db-7.cluster` alike: both forms are principals of the host `db-7`.
fn canonical(name: &str, cluster: &ClusterName) -> String {
    let lower = name.to_ascii_lowercase();
    let suffix = format!(".{}", cluster.as_str().to_ascii_lowercase());
    match lower.strip_suffix(&suffix) {
        Some(head) if !head.is_empty() => head.to_owned(),
        Some(_) | None => lower,
    }
}

/// Whether the id is taken, for a clear word before anything else is looked at.
pub(crate) async fn is_taken(core: &Core, id: HostId, key: &str) -> Result<bool, Fault> {
    if id == core.host_id || core.mirror.get(Member::KIND, &(&id).into()).is_some() {
        return Ok(true);
    }
    Ok(core.vault.read::<HostRecord>(&host_key(id)?).await?.is_some_and(|held| held.value.key != key))
}

/// What a host in the books is called.
pub(crate) async fn name_of(core: &Core, id: HostId) -> Result<Option<NodeName>, Fault> {
    Ok(core.vault.read::<HostRecord>(&host_key(id)?).await?.map(|held| held.value.name))
}

/// Notes that a host's newest certificate arrived where it belongs.
pub(crate) async fn seen(core: &Core, host: &HostIdentity) -> Result<(), Fault> {
    let generation = host.generation();
    if generation == 0 || core.used.knows(host.id, generation) {
        return Ok(());
    }
    let key = host_key(host.id)?;
    for _ in 0..MAX_RACES {
        let Some(held) = core.vault.read::<HostRecord>(&key).await? else { return Ok(()) };
        if held.value.newest != generation || held.value.used == generation {
            break;
        }
        let record = HostRecord { used: generation, ..held.value.clone() };
        let batch = core.vault.batch().require(vault::unchanged(&key, Some(&held))).put(key.clone(), vault::json(&record), held.expires);
        if core.vault.commit(batch).await? {
            break;
        }
    }
    core.used.note(host.id, generation);
    Ok(())
}

/// Strikes a host off the books: its id and names are free, and its certificates cannot be renewed. Says whether it was there.
pub(crate) async fn remove(core: &Core, id: HostId) -> Result<bool, Fault> {
    let key = host_key(id)?;
    for _ in 0..MAX_RACES {
        let Some(held) = core.vault.read::<HostRecord>(&key).await? else { return Ok(false) };
        let mut batch = core.vault.batch().require(vault::unchanged(&key, Some(&held))).delete(key.clone());
        for name in &held.value.names {
            let key = name_key(name)?;
            let Some(holders) = core.vault.read::<Holders>(&key).await? else { continue };
            let mut left = holders.value.clone();
            left.proxies.remove(&id);
            left.hosts.remove(&id);
            batch = batch.require(vault::unchanged(&key, Some(&holders)));
            batch = if left.proxies.is_empty() && left.hosts.is_empty() {
                batch.delete(key)
            } else {
                batch.put(key, vault::json(&left), holders.expires)
            };
        }
        if core.vault.commit(batch).await? {
            return Ok(true);
        }
    }
    Err(Public::new(Code::Conflict, format!("the host {id} keeps changing")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(newest: u64, used: u64) -> HostRecord {
        HostRecord { name: NodeName::new("n").unwrap(), key: "k".into(), names: BTreeSet::new(), newest, used, extra: Extra::new() }
    }

    #[test]
    fn a_renewal_counts_up_a_lost_reply_may_be_asked_for_again_and_an_older_certificate_is_a_copy() {
        let now = Time::from_unix(500);
        let check = |held: Option<(u64, u64)>, had: u64, want: Result<(u64, u64), Refused>| {
            let held = held.map(|(newest, used)| record(newest, used));
            assert_eq!(next_generation(held.as_ref(), Occasion::Renewal(had), "x", now), want, "{held:?} {had}");
        };
        check(Some((10, 10)), 10, Ok((11, 10)));
        // The reply with 11 was lost: 10 asks again, and 11 is void.
        check(Some((11, 10)), 10, Ok((12, 10)));
        check(Some((12, 10)), 10, Ok((13, 10)));
        check(Some((12, 10)), 11, Err(Refused::Cloned));
        check(Some((12, 10)), 12, Ok((13, 12)));
        // Once the newest was used, nobody renews with what came before.
        check(Some((12, 12)), 11, Err(Refused::Cloned));
        check(Some((12, 12)), 10, Err(Refused::Cloned));
        check(Some((12, 12)), 0, Err(Refused::Cloned));
        // Certificates of before there were generations are taken on once.
        check(None, 0, Ok((500, 0)));
        check(Some((500, 0)), 0, Ok((501, 0)));
        check(Some((500, 500)), 0, Err(Refused::Cloned));
        check(None, 10, Err(Refused::Removed));
        // A store restored from an older copy knows less than the certificate.
        check(Some((10, 10)), 14, Ok((15, 14)));
    }

    #[test]
    fn an_id_is_given_once_unless_the_same_key_asks_again() {
        let now = Time::from_unix(500);
        let check = |held: Option<HostRecord>, key: &str, want: Result<(u64, u64), Refused>| {
            assert_eq!(next_generation(held.as_ref(), Occasion::Join, key, now), want, "{held:?} {key}");
        };
        check(None, "k", Ok((500, 499)));
        check(Some(record(400, 0)), "k", Ok((400, 0)));
        check(Some(record(400, 0)), "other", Err(Refused::Taken));
    }
}
