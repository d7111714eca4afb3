//! What `tsh ssh` was asked for, read: `[login@]host`, `-L [bind:]port:host:hostport`, `-D [bind:]port`.

use crate::exit::usage;
use client::ssh::forward::Destination;
use std::{collections::BTreeSet, net::IpAddr};
use types::{Login, Public};
use wire::route::Target;

/// `login@host`; the last `@` divides, because logins may have one.
pub(in crate::tsh) fn split_login(text: &str) -> Result<(Option<Login>, &str), Public> {
    match text.rsplit_once('@') {
        None => Ok((None, text)),
        Some((login, host)) => Ok((Some(Login::new(login).map_err(|error| usage(error.to_string()))?), host)),
    }
}

pub(in crate::tsh) fn host(text: &str) -> Result<Target, Public> {
    text.parse().map_err(|error: types::name::BadName| usage(error.to_string()))
}

/// The login when none was given: this machine's user name if the certificate has it, else the certificate's first.
pub(super) fn default_login(logins: &BTreeSet<Login>, local: Option<&str>) -> Option<Login> {
    let local = local.and_then(|name| Login::new(name).ok());
    local.clone().filter(|name| logins.contains(name)).or_else(|| logins.first().cloned()).or(local)
}

/// `-L` or `-D`: a port of this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Forward {
    pub(super) bind: IpAddr,
    pub(super) port: u16,
    pub(super) to: Destination,
}

/// All ports that are to be forwarded.
pub(super) fn forwards(local: &[String], dynamic: &[String]) -> Result<Vec<Forward>, Public> {
    let local = local.iter().map(|text| Forward::local(text));
    local.chain(dynamic.iter().map(|text| Forward::dynamic(text))).collect()
}

impl Forward {
    fn local(text: &str) -> Result<Self, Public> {
        let bad = || usage(format!("\"{text}\" is not a forward; write it as [bind:]port:host:hostport"));
        let parts = parts(text).ok_or_else(bad)?;
        let (bind, [port, host, host_port]) = match parts.as_slice() {
            [port, host, host_port] => ("localhost", [port, host, host_port]),
            [bind, port, host, host_port] => (*bind, [port, host, host_port]),
            _ => return Err(bad()),
        };
        let host_port = host_port.parse().ok().filter(|&port| port != 0).ok_or_else(bad)?;
        if host.is_empty() || host.len() > 255 || !host.chars().all(|c| c.is_ascii_graphic()) {
            return Err(bad());
        }
        let to = Destination::Fixed { host: (*host).to_owned(), port: host_port };
        Ok(Self { bind: bind_address(bind).ok_or_else(bad)?, port: port.parse().map_err(|_| bad())?, to })
    }

    fn dynamic(text: &str) -> Result<Self, Public> {
        let bad = || usage(format!("\"{text}\" is not a dynamic forward; write it as [bind:]port"));
        let parts = parts(text).ok_or_else(bad)?;
        let (bind, port) = match parts.as_slice() {
            [port] => ("localhost", port),
            [bind, port] => (*bind, port),
            _ => return Err(bad()),
        };
        Ok(Self { bind: bind_address(bind).ok_or_else(bad)?, port: port.parse().map_err(|_| bad())?, to: Destination::Socks })
    }
}

fn bind_address(text: &str) -> Option<IpAddr> {
    match text {
        "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
        "" | "*" => Some(IpAddr::from([0, 0, 0, 0])),
        address => address.parse().ok(),
    }
}

/// Divided by colons, except inside brackets; the brackets are taken off.
fn parts(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut rest) = (Vec::new(), text);
    loop {
        let part = match rest.strip_prefix('[') {
            Some(inner) => {
                let (part, tail) = inner.split_once(']')?;
                rest = tail;
                part
            }
            None => {
                let (part, tail) = rest.split_at(rest.find(':').unwrap_or(rest.len()));
                rest = tail;
                part
            }
        };
        parts.push(part);
        if rest.is_empty() {
            return Some(parts);
        }
        rest = rest.strip_prefix(':')?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_login_and_a_host() {
        let check = |text: &str, login: Option<&str>, host: &str| {
            let (got, rest) = split_login(text).unwrap();
            assert_eq!((got.map(|login| login.to_string()).as_deref(), rest), (login, host), "{text}");
        };
        check("node1", None, "node1");
        check("alice@node1", Some("alice"), "node1");
        check("alice@corp@node1", Some("alice@corp"), "node1");
        assert!(split_login("@node1").is_err());
        assert!(split_login("-oProxyCommand=x@node1").is_err());
        assert!(host("10.0.0.1 ").is_err() && host("").is_err() && host("-x").is_err());
    }

    #[test]
    fn the_login_is_ones_own_if_allowed_and_else_the_first() {
        let logins = |names: &[&str]| names.iter().map(|name| Login::new(name).unwrap()).collect::<BTreeSet<_>>();
        let check = |names: &[&str], local: Option<&str>, want: Option<&str>| {
            assert_eq!(default_login(&logins(names), local).map(|login| login.to_string()).as_deref(), want);
        };
        check(&["alice", "root"], Some("root"), Some("root"));
        check(&["app", "root"], Some("alice"), Some("app"));
        check(&[], Some("alice"), Some("alice"));
        check(&[], None, None);
    }

    #[test]
    fn forwards_are_read_as_openssh_reads_them() {
        let check = |text: &str, want: Option<(&str, u16, &str, u16)>| {
            let got = Forward::local(text).ok().map(|forward| (forward.bind.to_string(), forward.port, forward.to));
            let fixed = |host: &str, port| Destination::Fixed { host: host.to_owned(), port };
            assert_eq!(got, want.map(|(bind, port, host, to)| (bind.to_owned(), port, fixed(host, to))), "{text}");
        };
        check("5432:localhost:5432", Some(("127.0.0.1", 5432, "localhost", 5432)));
        check("0:db:5432", Some(("127.0.0.1", 0, "db", 5432)));
        check("*:8080:web:80", Some(("0.0.0.0", 8080, "web", 80)));
        check("[::1]:8080:[2001:db8::1]:80", Some(("::1", 8080, "2001:db8::1", 80)));
        check("127.0.0.2:1:h:2", Some(("127.0.0.2", 1, "h", 2)));
        for bad in ["", "5432", "1:h", "1:h:0", "x:h:1", "1::1", "1:h:70000", "[::1:1:h:1", "1:h:1:1:1", "evil:1:h:1"] {
            check(bad, None);
        }
    }

    #[test]
    fn a_dynamic_forward_listens_on_loopback_unless_told_otherwise() {
        let check = |text: &str, want: Option<(&str, u16)>| {
            let got = Forward::dynamic(text).ok().map(|forward| (forward.bind.to_string(), forward.port, forward.to));
            assert_eq!(got, want.map(|(bind, port)| (bind.to_owned(), port, Destination::Socks)), "{text}");
        };
        check("1080", Some(("127.0.0.1", 1080)));
        check("localhost:0", Some(("127.0.0.1", 0)));
        check("*:1080", Some(("0.0.0.0", 1080)));
        check("[::1]:1080", Some(("::1", 1080)));
        for bad in ["", "x", "1080:host", "1:2:3", "70000", "evil:1080", "[::1:1080"] {
            check(bad, None);
        }
    }
}
