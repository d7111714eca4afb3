//! Which names and addresses a host's certificates may carry beyond its own id and name.
//!
//! A name in a certificate is a right: whoever holds it is believed to be that name. So nobody gets a name inside
//! `lockgate.internal` (those say "Auth Service of this cluster"), nor one that looks like another host's id, nor a
//! wildcard. Names of the open world go to Proxies and Auth Services only: an SSH host with the Proxy's public name could
//! stand in for the Proxy. That no Proxy gets a host's name, nor a host a Proxy's, is seen to in [`crate::hosts`].

use crate::hosts::is_public;
use std::{collections::BTreeSet, net::IpAddr};
use types::{HostId, HostIdentity, NodeName};

/// The most extra names that one certificate carries.
pub(crate) const MAX: usize = 20;
const INTERNAL: &str = "lockgate.internal";

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHostName {
    #[error("more than {MAX} names for one certificate")]
    TooMany,
    #[error("\"{0}\" is not a host name or address")]
    Malformed(String),
    #[error("\"{0}\" is a name of Lockgate's own")]
    Reserved(String),
    #[error("\"{0}\" looks like a host id")]
    LooksLikeId(String),
}

/// One checked name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum HostName {
    Dns(String),
    Ip(IpAddr),
}

impl HostName {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Dns(name) => name.clone(),
            Self::Ip(address) => address.to_string(),
        }
    }
}

/// Checked extra names of one host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct HostNames(BTreeSet<HostName>);

impl HostNames {
    pub(crate) fn read<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, BadHostName> {
        let mut names = BTreeSet::new();
        for text in texts.into_iter().filter(|text| !text.is_empty()) {
            names.insert(read(text)?);
            if names.len() > MAX {
                return Err(BadHostName::TooMany);
            }
        }
        Ok(Self(names))
    }
    pub(crate) fn iter(&self) -> impl Iterator<Item = &HostName> {
        self.0.iter()
    }
    pub(crate) fn insert(&mut self, name: HostName) {
        self.0.insert(name);
    }
}

fn read(text: &str) -> Result<HostName, BadHostName> {
    let shown = || text.chars().take(60).flat_map(char::escape_default).collect::<String>();
    if let Ok(address) = text.parse::<IpAddr>() {
        let usable = !address.is_unspecified() && !address.is_multicast();
        return if usable { Ok(HostName::Ip(address)) } else { Err(BadHostName::Malformed(shown())) };
    }
    let lower = text.to_ascii_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if lower.len() > 253 || !lower.split('.').all(label) {
        return Err(BadHostName::Malformed(shown()));
    }
    // Digits and dots alone would be read as an address by some.
    if lower.rsplit('.').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit())) {
        return Err(BadHostName::Malformed(shown()));
    }
    if lower == INTERNAL || lower.ends_with(".lockgate.internal") {
        return Err(BadHostName::Reserved(shown()));
    }
    if looks_like_id(&lower) {
        return Err(BadHostName::LooksLikeId(shown()));
    }
    Ok(HostName::Dns(lower))
}

fn looks_like_id(lower: &str) -> bool {
    lower.split('.').any(|label| label.parse::<HostId>().is_ok())
}

/// Checks the name a host gives itself: it becomes a principal beside the host's id, so it must not be another's id.
pub(crate) fn check_node_name(name: &NodeName) -> Result<(), BadHostName> {
    let lower = name.as_str().to_ascii_lowercase();
    if lower == INTERNAL || lower.ends_with(".lockgate.internal") {
        return Err(BadHostName::Reserved(lower));
    }
    if looks_like_id(&lower) { Err(BadHostName::LooksLikeId(lower)) } else { Ok(()) }
}

/// The names of a host's X.509 certificate.
pub(crate) fn x509(host: &HostIdentity, extra: &HostNames) -> BTreeSet<HostName> {
    let mut names: BTreeSet<HostName> = host.roles.iter().map(|role| HostName::Dns(wire::sni::role_name(role, &host.cluster))).collect();
    names.insert(HostName::Dns(wire::sni::host_name(&host.id)));
    if is_public(host) {
        names.extend(extra.iter().cloned());
        names.extend(read(host.name.as_str()).ok());
    }
    names
}

/// The principals of a host's SSH certificate.
pub(crate) fn principals(host: &HostIdentity, extra: &HostNames) -> BTreeSet<String> {
    let mut names = rules::cert::host_names(host);
    if is_public(host) {
        names.extend(extra.iter().map(HostName::text));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_make_a_host_somebody_else_are_refused() {
        let check = |text: &str, ok: bool| assert_eq!(read(text).is_ok(), ok, "{text:?}: {:?}", read(text));
        check("proxy.example.com", true);
        check("localhost", true);
        check("10.0.0.7", true);
        check("2001:db8::1", true);
        check("0.0.0.0", false);
        check("*.example.com", false);
        check("*", false);
        check("a,b", false);
        check("a b", false);
        check("a\nb", false);
        check("", false);
        check("1.2.3", false);
        check("auth.2a52adbe67af26ce1eadc5b3b7fcffaa.lockgate.internal", false);
        check("AUTH.x.LOCKGATE.internal", false);
        check("lockgate.internal", false);
        check("0190a6e6-7d0c-7000-8000-000000000001", false);
        check("0190A6E6-7D0C-7000-8000-000000000001.prod", false);
    }

    #[test]
    fn a_node_may_not_be_called_like_another_hosts_id() {
        let check = |text: &str, ok: bool| assert_eq!(check_node_name(&NodeName::new(text).unwrap()).is_ok(), ok, "{text}");
        check("db-7", true);
        check("web_1.eu", true);
        check("0190a6e6-7d0c-7000-8000-000000000001", false);
        check("0190A6E6-7D0C-7000-8000-000000000001", false);
        check("x.lockgate.internal", false);
    }
}
