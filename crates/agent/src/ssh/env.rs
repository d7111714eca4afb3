//! The environment of a session: an allow-list, and nothing of the service's own (attack table, row 19).
//!
//! Names that a client may set are decided by `rules::channel`; here they are merged below what only the host may say.

use super::account::Account;
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    net::SocketAddr,
};
use types::{ClusterName, HostId, SessionId, UserName};

const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games";
const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Facts of the session that its environment tells.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) session: SessionId,
    pub(crate) cluster: &'a ClusterName,
    pub(crate) user: &'a UserName,
    pub(crate) host: HostId,
    pub(crate) client: Option<SocketAddr>,
    pub(crate) local: Option<SocketAddr>,
    /// Name of the terminal device and `TERM`, when there is one.
    pub(crate) terminal: Option<(&'a OsStr, &'a str)>,
    /// Where the forwarded agent listens.
    pub(crate) agent_socket: Option<&'a OsStr>,
}

/// The whole environment of the child. `asked` are the client's variables that the policy let through.
pub(crate) fn environment(account: &Account, asked: &BTreeMap<String, String>, facts: &Facts<'_>) -> Vec<(OsString, OsString)> {
    let mut all: BTreeMap<OsString, OsString> = asked.iter().map(|(name, value)| (name.into(), value.into())).collect();
    let mut set = |name: &str, value: &OsStr| {
        all.insert(name.into(), value.to_owned());
    };
    set("HOME", account.home.as_os_str());
    set("USER", account.name.as_ref());
    set("LOGNAME", account.name.as_ref());
    set("SHELL", account.shell.as_os_str());
    set("PATH", if account.uid == 0 { ROOT_PATH } else { PATH }.as_ref());
    set("LOCKGATE_SESSION", facts.session.to_string().as_ref());
    set("LOCKGATE_CLUSTER", facts.cluster.as_str().as_ref());
    set("LOCKGATE_USER", facts.user.as_str().as_ref());
    set("LOCKGATE_HOST_ID", facts.host.to_string().as_ref());
    if let Some(client) = facts.client {
        let local = facts.local.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        set("SSH_CLIENT", format!("{} {} {}", client.ip(), client.port(), local.port()).as_ref());
        set("SSH_CONNECTION", format!("{} {} {} {}", client.ip(), client.port(), local.ip(), local.port()).as_ref());
    }
    if let Some((device, term)) = facts.terminal {
        set("SSH_TTY", device);
        set("TERM", term.as_ref());
    }
    if let Some(socket) = facts.agent_socket {
        set("SSH_AUTH_SOCK", socket);
    }
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_the_last_word_on_its_own_names() {
        let account =
            Account { name: "app".into(), uid: 1000, gid: 1000, groups: vec![], home: "/home/app".into(), shell: "/bin/sh".into() };
        let (cluster, user) = (ClusterName::new("c").unwrap(), UserName::new("alice").unwrap());
        let facts = Facts {
            session: SessionId::from_uuid(uuid::Uuid::nil()),
            cluster: &cluster,
            user: &user,
            host: HostId::from_uuid(uuid::Uuid::nil()),
            client: Some("192.0.2.1:5".parse().unwrap()),
            local: None,
            terminal: None,
            agent_socket: None,
        };
        let asked = [("LOCKGATE_USER", "root"), ("LC_ALL", "C")].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let all: BTreeMap<_, _> = environment(&account, &asked, &facts).into_iter().collect();
        let at = |name: &str| all.get(OsStr::new(name)).and_then(|value| value.to_str());
        assert_eq!(at("LOCKGATE_USER"), Some("alice"));
        assert_eq!(at("LC_ALL"), Some("C"));
        assert_eq!(at("SSH_CLIENT"), Some("192.0.2.1 5 0"));
        assert_eq!(at("SSH_TTY"), None);
    }
}
