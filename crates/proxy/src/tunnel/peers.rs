//! The other Proxies of the cluster, as agents are told of them: so that each keeps a tunnel to every Proxy.
//!
//! They are read from the cache: each Proxy's `member` document says where agents reach it. One that drains, is quarantined, or whose heartbeats
//! stopped, is no longer told of. The agent's half is `agent::proxies`.

use crate::Shared;
use client::cache::Cache;
use std::{sync::Arc, time::Duration};
use types::{Extra, HostId, SystemRole, Time, kind::Member};
use wire::tunnel::Peer;

/// Changes are told together when they come so close.
const SETTLE: Duration = Duration::from_millis(200);
/// A lease ends without a word.
const LOOK: Duration = Duration::from_secs(30);

/// Who can be reached, besides ourselves.
fn others(cache: &Cache, own: HostId, now: Time) -> Vec<Peer> {
    let members = cache.members();
    let proxies = members.values().filter(|member| {
        let alive = member.metadata.expires.is_none_or(|end| end > now);
        let serves = !matches!(member.spec.state.as_str(), "draining" | Member::QUARANTINED);
        alive && member.spec.roles.contains(&SystemRole::Proxy) && serves
    });
    let peers = proxies.filter_map(|member| {
        let id: HostId = member.name().as_str().parse().ok()?;
        let addrs = member.spec.proxy_addrs();
        (id != own && !addrs.is_empty()).then_some(Peer { id, addrs, extra: Extra::new() })
    });
    peers.collect()
}

/// Tells agents until the Proxy stops.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut changed = shared.cache.changed();
    let own = shared.credentials.borrow().id();
    loop {
        changed.borrow_and_update();
        shared.tunnels.peers(others(&shared.cache, own, shared.clock.now())).await;
        tokio::select! {
            () = shared.shutdown.stopping() => return,
            changed = changed.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
        tokio::time::sleep(SETTLE).await;
    }
}
