//! The client's half of a walk: what a user does at an Auth Service, a Proxy or a host, with the code that `tsh` has.
//!
//! Which steps there are, and for whom, is `auth::walk`'s to say; here each is made over the real network, TLS, handshake and SSH, and
//! nothing is believed that was not checked: the name of the very host in the certificates of TLS and SSH, and a line that goes there and
//! comes back. The key lives as long as the step.

use auth::{Pass, Place, Step};
use client::{
    api::{Access, Api, Settings as ApiSettings, Via},
    connect::Dialer,
    credentials::UserCredentials,
    keys::KeyPair,
    ssh::{self, Connecting, Exit, ExpectedHost, Request, Streams},
    trust::{self, ClusterTrust},
};
use futures::future::BoxFuture;
use net::{clock::SharedClock, tls::Trust};
use rules::walk::NAME;
use std::{fmt::Display, io::Cursor, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use types::{ClusterName, Labels, Login, SystemRole, Version, kind::Node};
use wire::{
    api::{ReissueRequest, UserCredentials as Told},
    route::Target,
    sni,
};

/// For a session at one of several hosts, or through one of several Proxies: the others have a turn before the walk must end.
const EACH: Duration = Duration::from_secs(6);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The most that is read of what a host says.
const MAX_OUTPUT: usize = 4096;

/// Walks as a client of this version, or of the other side's where that is older: rule G4 lets no client go ahead of its server, and this
/// program speaks the major before its own too.
pub(super) struct Walker {
    pub(super) version: Version,
    pub(super) clock: SharedClock,
}

impl auth::Walker for Walker {
    fn step<'a>(&'a self, pass: Pass<'a>, step: &'a Step) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let key = KeyPair::generate().map_err(told)?;
            let reply = pass.certify(&key.ssh_public().map_err(told)?, &key.spki_der()).await?;
            let user = credentials(key, &reply)?;
            match step {
                Step::Auth(auth) => self.ask(&user, auth).await,
                Step::Proxy { proxy, hosts } => self.pass(&user, proxy, hosts).await,
                Step::Host { host, proxies } => self.enter(&user, host, proxies).await,
            }
        })
    }
}

fn credentials(key: KeyPair, reply: &Told) -> Result<UserCredentials, String> {
    let cluster: ClusterName = reply.cluster_name.parse().map_err(told)?;
    let (documents, _) = trust::documents(&reply.authorities);
    let trust = ClusterTrust::from_documents(&cluster, &documents);
    UserCredentials::new(key, &reply.ssh_certificate, &reply.tls_certificate, trust).map_err(told)
}

fn told(error: impl Display) -> String {
    error.to_string()
}

impl Walker {
    /// Hosts and a certificate, of that Auth Service and no other.
    async fn ask(&self, user: &UserCredentials, auth: &Place) -> Result<(), String> {
        let api = self.api(user, auth, Via::Auth(auth.addr.clone()), sni::host_name(&auth.id))?;
        if !auth.knows {
            return api.ping().await.map(drop).map_err(told);
        }
        api.list::<Node>(&Labels::new()).await.map_err(|error| format!("hosts are not listed: {error}"))?;
        let key = KeyPair::generate().map_err(told)?;
        let wanted =
            ReissueRequest { ssh_public_key: key.ssh_public().map_err(told)?, tls_public_key: key.spki_der().into(), ..Default::default() };
        let reply = api.reissue(wanted).await.map_err(|error| format!("no certificate is issued: {error}"))?;
        credentials(key, &reply).map(drop).map_err(|error| format!("the certificate that it issued cannot be used: {error}"))
    }

    /// The Auth Service and a host, by way of that Proxy and no other.
    async fn pass(&self, user: &UserCredentials, proxy: &Place, hosts: &[Place]) -> Result<(), String> {
        let api = self.api(user, proxy, Via::Proxy(proxy.addr.clone()), sni::role_name(&SystemRole::Auth, user.cluster()))?;
        api.trust(user.cluster()).await.map_err(|error| format!("no Auth Service is reached through it: {error}"))?;
        let mut last = Ok(());
        for host in hosts {
            last = self.session(user, proxy, host).await.map_err(|why| format!("no session on {} through it: {why}", host.name));
            if last.is_ok() {
                break;
            }
        }
        last
    }

    async fn enter(&self, user: &UserCredentials, host: &Place, proxies: &[Place]) -> Result<(), String> {
        let mut last = Ok(());
        for proxy in proxies {
            last = self.session(user, proxy, host).await.map_err(|why| format!("no session through the Proxy {}: {why}", proxy.name));
            if last.is_ok() {
                break;
            }
        }
        last
    }

    fn as_old_as(&self, place: &Place) -> Version {
        if place.version.release_order(&self.version).is_lt() { place.version.clone() } else { self.version.clone() }
    }

    fn api(&self, user: &UserCredentials, place: &Place, via: Via, server_name: String) -> Result<Api, String> {
        let trust = Trust::Cluster(user.trust.swap().map_err(told)?);
        let access = Access::Fixed { trust, server_name, identity: Some(user.tls.clone()) };
        let (version, clock) = (self.as_old_as(place), self.clock.clone());
        Ok(Api::new(ApiSettings { via, access, role: "tsh".into(), version, skip_version_check: false, clock }))
    }

    async fn session(&self, user: &UserCredentials, proxy: &Place, host: &Place) -> Result<(), String> {
        let dialer = user.dialer(&proxy.addr, "tsh", &self.as_old_as(proxy), &self.clock).map_err(told)?.only_by(&proxy.id);
        let talk = self.talk(user, &dialer, host);
        tokio::time::timeout(EACH, talk).await.unwrap_or_else(|_| Err(format!("not open within {} seconds", EACH.as_secs())))
    }

    async fn talk(&self, user: &UserCredentials, dialer: &Dialer, host: &Place) -> Result<(), String> {
        let asked = Target::Id(host.id);
        let node = dialer.dial(&asked, None).await.map_err(|error| told(error.public()))?;
        let expected = ExpectedHost { trust: user.trust.clone(), asked, host_id: Some(node.host_id) };
        if !host.knows {
            return ssh::meet(node.stream, expected, self.clock.clone()).await.map_err(told);
        }
        let connecting = Connecting {
            login: Login::new(NAME).map_err(told)?,
            key: Arc::new(user.key.ssh_private().map_err(told)?),
            certificate: user.ssh_certificate.clone(),
            expected,
            forwarding: false,
            agent_socket: None,
            keep_alive: KEEP_ALIVE,
            clock: self.clock.clone(),
        };
        let session = ssh::connect(node.stream, connecting).await.map_err(told)?;
        let line = format!("{}\n", uuid::Uuid::new_v4());
        let (mut out, mut err) = (vec![0; MAX_OUTPUT], vec![0; MAX_OUTPUT]);
        let (mut stdout, mut stderr) = (Cursor::new(&mut out[..]), Cursor::new(&mut err[..]));
        let (_no_orders, control) = mpsc::channel(1);
        let request = Request { command: Some(NAME.into()), ..Request::default() };
        let streams = Streams { stdin: line.as_bytes(), stdout: &mut stdout, stderr: &mut stderr, control };
        let exit = session.run(request, streams).await.map_err(told)?;
        session.close().await;
        judge(&line, &exit, &written(&stdout), &written(&stderr))
    }
}

fn written(cursor: &Cursor<&mut [u8]>) -> String {
    let end = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
    String::from_utf8_lossy(cursor.get_ref().get(..end).unwrap_or_default()).into_owned()
}

/// A host that opens no session says why on its standard error, in lines that begin `error:`, `cause:` and `hint:`.
fn judge(line: &str, exit: &Exit, out: &str, err: &str) -> Result<(), String> {
    let ended = match exit {
        Exit::Status(0) if out == line => return Ok(()),
        Exit::Status(0) => return Err("a command ran, but what it said did not come through whole".into()),
        Exit::Status(status) => format!("its command ended with status {status}"),
        Exit::Signal { name, .. } => format!("its command was ended by the signal {name}"),
    };
    let cause = err.lines().find_map(|line| line.strip_prefix("cause: ")).or_else(|| err.lines().next());
    Err(cause.map_or(ended, str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_counts_only_if_the_line_came_back_and_the_command_succeeded() {
        let check = |exit: Exit, out: &str, err: &str, want: Result<(), &str>| {
            assert_eq!(judge("7f3a\n", &exit, out, err), want.map_err(str::to_owned));
        };
        check(Exit::Status(0), "7f3a\n", "", Ok(()));
        check(Exit::Status(0), "7f3a\n", "a warning", Ok(()));
        check(Exit::Status(0), "7f3a", "", Err("a command ran, but what it said did not come through whole"));
        check(Exit::Status(1), "7f3a\n", "", Err("its command ended with status 1"));
        check(Exit::Status(127), "", "sh: not found\nmore", Err("sh: not found"));
        let refused = "error: could not open a session on \"node1\"\ncause: this host has no account \"nobody\" [LG-ACCESS-001]\nhint: x\n";
        check(Exit::Status(255), "", refused, Err("this host has no account \"nobody\" [LG-ACCESS-001]"));
        let killed = Exit::Signal { name: "KILL".into(), core_dumped: false, message: String::new() };
        check(killed, "", "", Err("its command was ended by the signal KILL"));
    }
}
