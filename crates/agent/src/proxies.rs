//! Which Proxies this host holds tunnels to: those it was given, and those that they tell of.
//!
//! Each Proxy that a tunnel leads to names the others of its cluster, and says so again when they change. [`keep_peers`] keeps a
//! tunnel to each of them, so that a user who comes to any Proxy reaches this host although it was given one address. A Proxy
//! holds one tunnel of a host: so a tunnel whose Proxy another tunnel reached already waits until that one falls
//! ([`Proxies::alone`]). What was given is tried for ever; what was told is forgotten once nobody tells of it and no tunnel stands.
//! The way to the Auth Service leads through the same Proxies, so it is told of them too: a host whose given Proxies are all away goes
//! on being told of locks and roles, and delivers what it recorded, through the others.
//! The tunnels themselves are `tunnel.rs`; the Proxy's half is `proxy::tunnel::peers`.

use crate::tunnel::{self, Tunnel};
use net::{shutdown::Shutdown, task::Group};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::sync::watch;
use types::HostId;
use wire::tunnel::Peer;

/// More Proxies than a cluster has.
const MOST: usize = 64;

/// What is known of Proxies. Clones share it.
#[derive(Clone)]
pub(crate) struct Proxies(Arc<watch::Sender<State>>);

#[derive(Clone, Default, PartialEq, Debug)]
struct State {
    /// By whoever told it.
    told: BTreeMap<HostId, Vec<Peer>>,
    /// Tunnels that stand, by where they lead.
    up: BTreeMap<HostId, BTreeSet<u64>>,
}

impl State {
    /// Everybody that anybody tells of, with the address to dial.
    fn peers(&self) -> BTreeMap<HostId, String> {
        let all = self.told.values().flatten();
        all.filter_map(|peer| Some((peer.id, peer.addrs.first()?.clone()))).take(MOST).collect()
    }
    fn others(&self, number: u64, id: HostId) -> bool {
        self.up.get(&id).is_some_and(|numbers| numbers.iter().any(|other| *other != number))
    }
}

impl Proxies {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// A Proxy named the others of its cluster.
    pub(crate) fn told(&self, teller: HostId, peers: Vec<Peer>) {
        self.0.send_if_modified(|state| {
            if state.told.len() >= MOST && !state.told.contains_key(&teller) {
                return false;
            }
            state.told.insert(teller, peers.clone()) != Some(peers)
        });
    }

    /// A tunnel stands, until the value is dropped.
    pub(crate) fn stands(&self, number: u64, id: HostId) -> Standing {
        self.0.send_modify(|state| {
            state.up.entry(id).or_default().insert(number);
        });
        Standing { proxies: self.clone(), number, id }
    }

    /// Waits until no other tunnel leads to that Proxy.
    pub(crate) async fn alone(&self, number: u64, id: HostId) {
        // The sender lives in self: waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|state| !state.others(number, id)).await;
    }

    /// How many Proxies a tunnel stands to. Wakes at each change.
    pub(crate) async fn changed(&self, known: usize) -> usize {
        let mut state = self.0.subscribe();
        state.wait_for(|state| state.up.len() != known).await.map_or(known, |state| state.up.len())
    }
    /// Where those are that were told of.
    pub(crate) fn addrs(&self) -> Vec<String> {
        self.0.borrow().peers().into_values().collect()
    }
    pub(crate) fn standing(&self) -> usize {
        self.0.borrow().up.len()
    }
}

/// A tunnel that stands.
pub(crate) struct Standing {
    proxies: Proxies,
    number: u64,
    id: HostId,
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.proxies.0.send_modify(|state| {
            if let Some(numbers) = state.up.get_mut(&self.id) {
                numbers.remove(&self.number);
                if numbers.is_empty() {
                    state.up.remove(&self.id);
                }
            }
        });
    }
}

/// A tunnel to a Proxy that was told of.
struct Kept {
    addr: String,
    number: u64,
    end: Shutdown,
}

/// Keeps a tunnel to each Proxy that is told of, until the service drains. `make` makes one by its number, address and Proxy; `heard` is
/// told of all their addresses whenever something changed.
pub(crate) async fn keep_peers(
    proxies: Proxies,
    group: Group,
    seed: u64,
    shutdown: Shutdown,
    heard: impl Fn(Vec<String>) + Send,
    make: impl Fn(u64, String, HostId, Shutdown) -> Tunnel + Send,
) {
    let mut kept: BTreeMap<HostId, Kept> = BTreeMap::new();
    let mut state = proxies.0.subscribe();
    // Behind those of the addresses that were given.
    let mut next = 1_000_000u64;
    loop {
        let now = state.borrow_and_update().clone();
        let wanted = now.peers();
        heard(wanted.values().cloned().collect());
        kept.retain(|id, tunnel| {
            let stands = now.up.get(id).is_some_and(|numbers| numbers.contains(&tunnel.number));
            let stays = stands || wanted.get(id) == Some(&tunnel.addr);
            if !stays {
                tunnel.end.drain();
            }
            stays
        });
        for (id, addr) in wanted {
            kept.entry(id).or_insert_with(|| {
                next = next.wrapping_add(1);
                let end = shutdown.child();
                tracing::info!(proxy = %id, addr, "told of another Proxy; making a tunnel to it");
                let tunnel = make(next, addr.clone(), id, end.clone());
                group.spawn("tunnel", tunnel::keep(Arc::new(tunnel), seed.wrapping_add(next)));
                Kept { addr, number: next, end }
            });
        }
        tokio::select! {
            () = shutdown.draining() => return,
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Extra;

    fn id(number: u128) -> HostId {
        HostId::from_uuid(uuid::Uuid::from_u128(number))
    }
    fn peer(number: u128, addr: &str) -> Peer {
        Peer { id: id(number), addrs: vec![addr.into()], extra: Extra::new() }
    }

    #[tokio::test]
    async fn a_proxy_is_known_as_long_as_anybody_tells_of_it() {
        let proxies = Proxies::new();
        let known = || proxies.0.borrow().peers().into_values().collect::<Vec<_>>();
        proxies.told(id(1), vec![peer(2, "b:1"), peer(3, "c:1")]);
        proxies.told(id(2), vec![peer(1, "a:1"), peer(3, "c:1")]);
        assert_eq!(known(), ["a:1", "b:1", "c:1"]);
        proxies.told(id(1), vec![peer(2, "b:1")]);
        assert_eq!(known(), ["a:1", "b:1", "c:1"]);
        proxies.told(id(2), vec![peer(1, "a:1")]);
        assert_eq!(known(), ["a:1", "b:1"]);
        (10..500).for_each(|number| proxies.told(id(number), vec![peer(number + 1000, "x:1")]));
        assert!(known().len() <= MOST);
    }

    #[tokio::test]
    async fn a_tunnel_waits_while_another_leads_to_the_same_proxy() {
        let proxies = Proxies::new();
        let first = proxies.stands(1, id(7));
        proxies.alone(1, id(7)).await;
        proxies.alone(2, id(8)).await;
        let waiting = proxies.alone(2, id(7));
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        assert_eq!(proxies.standing(), 1);
        drop(first);
        waiting.await;
        assert_eq!(proxies.standing(), 0);
    }
}
