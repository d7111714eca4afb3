//! The local administrator: an identity file that whoever may read the data directory of the Auth Service may use.
//!
//! `tctl` on the same host finds it at `<data_dir>/admin/identity.json`. Beside it, in `<data_dir>/auth/host.json`, lies what this host's updater
//! shows to Proxies: a member like any other, and no administrator. The certificate lives a day and is made anew every
//! eight hours while the service runs, so that a copied file is soon worth nothing.

use crate::{
    ca::{
        issue::{ADMIN_LIFE, Keys},
        names::HostNames,
    },
    core::Core,
    world::AuthError,
};
use net::tls::{KeyAlgorithm, identity::KeyPair, write_private};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};
use types::{Document, Extra, HostIdentity, Labels, Secret, SystemRole};
use wire::credentials::{FORMAT, HostFile};

pub(crate) const RENEW_EVERY: Duration = Duration::from_secs(8 * 3600);

/// Writes fresh identities: the administrator's, and the one by which this host's updater asks Proxies what to run.
pub(crate) fn write(core: &Core, data_dir: &Path, local_addr: SocketAddr) -> Result<(), AuthError> {
    identity(core, SystemRole::Admin, &data_dir.join("admin").join("identity.json"), local_addr)?;
    identity(core, SystemRole::Auth, &data_dir.join("auth").join("host.json"), local_addr)
}

fn identity(core: &Core, role: SystemRole, path: &Path, local_addr: SocketAddr) -> Result<(), AuthError> {
    let key = KeyPair::generate(KeyAlgorithm::Ed25519)?;
    let identity = HostIdentity {
        cluster: core.cluster.clone(),
        id: core.host_id,
        name: core.node_name.clone(),
        roles: [role].into(),
        extra: Extra::new(),
    };
    let keys = Keys::read("", &key.public_der()).map_err(|error| AuthError::Authorities(error.to_string()))?;
    let issued = core.authorities.issue_host(&identity, &HostNames::default(), &keys, ADMIN_LIFE, core.now());
    let issued = issued.map_err(|error| AuthError::Authorities(error.to_string()))?;
    let authorities = core.authority_documents().iter().filter_map(|json| Document::from_json(json).ok()).collect();
    let file = HostFile {
        format: FORMAT,
        identity,
        private_key: Secret::new(key.private_pem().as_str()),
        ssh_certificate: String::new(),
        tls_certificate: issued.tls,
        authorities,
        labels: Labels::new(),
        auth_addr: Some(reachable(local_addr).to_string()),
        extra: Extra::new(),
    };
    write_private(path, file.to_json().expose().as_bytes())?;
    Ok(())
}

/// A listener on every address is reached on the loopback one.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}
