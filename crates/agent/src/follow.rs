//! What a running SSH Service follows: renewed credentials, changed authorities, and its own health.
//!
//! Each is a task of `service.rs` that waits for a change and puts the new value where the next session, dial or
//! handshake reads it; what runs goes on as it began.

use crate::{proxies::Proxies, rescue::Quarantine, tunnel::Dialer, world::HostKeys};
use client::{cache::Cache, host::HostCredentials, trust::ClusterTrust};
use net::{
    health::{Board, Health},
    shutdown::Shutdown,
    swap::Swap,
    tls::TlsIdentity,
};
use std::sync::Arc;
use tokio::sync::watch;
use types::Labels;

/// Whom we believe: what the cache says, or what we joined with until it has spoken.
pub(crate) fn trust(cache: &Cache, credentials: &HostCredentials) -> Arc<ClusterTrust> {
    let cached = cache.trust();
    if cached.host_tls.is_empty() { credentials.trust.clone() } else { cached }
}

/// Renewed credentials: new sessions and dials use them.
pub(crate) async fn credentials(
    mut credentials: watch::Receiver<Arc<HostCredentials>>,
    keys: watch::Sender<Arc<HostKeys>>,
    joined_with: watch::Sender<Arc<ClusterTrust>>,
    certificate: Swap<TlsIdentity>,
    labels: Labels,
) {
    while credentials.changed().await.is_ok() {
        let now = credentials.borrow_and_update().clone();
        match HostKeys::new(&now, &labels) {
            Some(fresh) => {
                keys.send_replace(Arc::new(fresh));
            }
            None => tracing::error!("renewed credentials have no SSH certificate; going on with the ones before"),
        }
        joined_with.send_replace(now.trust.clone());
        certificate.store(now.tls.clone());
    }
}

/// Changed authorities: every handshake from now on believes the new ones.
pub(crate) async fn authorities(cache: Cache, dialer: Arc<Dialer>) {
    let (mut changes, mut credentials) = (cache.changed(), dialer.credentials.clone());
    loop {
        let now = credentials.borrow_and_update().clone();
        match trust(&cache, &now).tls() {
            Ok(authorities) => dialer.authorities.store(authorities),
            Err(error) => tracing::error!(%error, "the cluster's authorities cannot be used; keeping the ones before"),
        }
        tokio::select! {
            Ok(()) = changes.changed() => {}
            Ok(()) = credentials.changed() => {}
            else => return,
        }
    }
}

/// Ready when a user could reach it, by port or by at least one tunnel, and the cluster does not refuse its version.
pub(crate) async fn health(board: Board, proxies: Proxies, quarantine: Quarantine, given: usize, listens: bool, shutdown: Shutdown) {
    let mut changes = quarantine.changes();
    loop {
        changes.mark_unchanged();
        let up = proxies.standing();
        let reached = listens || up > 0;
        board.set(
            "ssh",
            match (shutdown.is_draining(), quarantine.line(reached), reached) {
                (true, ..) => Health::Degraded("stopping: takes no new sessions".into()),
                (false, Some(line), _) => Health::Degraded(line),
                (false, None, true) => Health::Ready,
                (false, None, false) => Health::Degraded(format!("no tunnel stands ({given} configured)")),
            },
        );
        if shutdown.is_draining() {
            return;
        }
        tokio::select! {
            _ = proxies.changed(up) => {}
            Ok(()) = changes.changed() => {}
            () = shutdown.draining() => {}
        }
    }
}
