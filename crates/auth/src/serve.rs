//! The door: TCP, TLS with an optional client certificate, the handshake, then gRPC.
//!
//! Whoever shows no certificate may ask for versions and join; his connection stays under the listener's bounds for
//! strangers all its life and has a deadline. Refused versions are written to the audit log, the first of a crash loop
//! each; so are processes that run with `--skip-version-check`.

use crate::{
    api::Service,
    ca::{
        issue::{HOST_LIFE, Keys},
        names::HostNames,
    },
    core::{Core, by},
    metrics::count,
    quarantine,
    world::AuthError,
};
use net::{
    hello::HelloError,
    listen::{Conn, Limits, accept_loop},
    shutdown::Shutdown,
    swap::Swap,
    tls::{self, Authorities, CertificateDer, Certificates, ClientAuth, KeyAlgorithm, TlsError, TlsIdentity, identity::KeyPair},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
};
use types::{EventKind, HostIdentity, SystemRole, Time, kind::CertAuthority, version::Direction};
use wire::{api::MAX_MESSAGE, api::auth_server::AuthServer, hello::Hello};

/// How long a peer without a certificate may keep its connection.
const STRANGER: Duration = Duration::from_secs(60);
/// A certificate in use for so long is replaced by a new one.
pub(crate) const RENEW_AFTER: Duration = Duration::from_secs(HOST_LIFE.as_secs() / 2);
/// How long connections that were accepted before the end may take to come to the server: who was let in is answered.
const LAST_ARRIVALS: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_millis(20);
const STRANGER_BUFFER: usize = 64 * 1024;
/// Accepted connections that wait for the gRPC server.
const WAITING: usize = 256;

/// What is needed to accept connections.
pub(crate) struct Serving {
    identity: HostIdentity,
    config: Arc<tls::ServerConfig>,
    authorities: Swap<Authorities>,
    limits: Limits,
    own: OwnCertificate,
}

/// The certificate by which this service is known, renewed at half-life while it runs.
#[derive(Clone)]
pub(crate) struct OwnCertificate {
    identity: HostIdentity,
    names: HostNames,
    made: Time,
    current: Swap<TlsIdentity>,
}

impl OwnCertificate {
    fn new(core: &Core, identity: &HostIdentity, names: HostNames) -> Result<Self, AuthError> {
        let current = Swap::new(Self::make(core, identity, &names)?);
        Ok(Self { identity: identity.clone(), names, made: core.now(), current })
    }

    fn make(core: &Core, identity: &HostIdentity, names: &HostNames) -> Result<TlsIdentity, AuthError> {
        let fail = |error: &dyn std::fmt::Display| AuthError::Authorities(error.to_string());
        let key = KeyPair::generate(KeyAlgorithm::EcdsaP256)?;
        let keys = Keys::read("", &key.public_der()).map_err(|error| fail(&error))?;
        let issued = core.authorities.issue_host(identity, names, &keys, HOST_LIFE, core.now()).map_err(|error| fail(&error))?;
        Ok(key.with_chain(tls::identity::certificates_from_pem(issued.tls.as_bytes())?)?)
    }

    pub(crate) fn is_due(&self, now: Time) -> bool {
        now.since(self.made) >= HOST_LIFE / 2
    }

    /// Shown from the next handshake on; connections in use go on.
    pub(crate) fn renew(&mut self, core: &Core) -> Result<(), AuthError> {
        self.current.store(Self::make(core, &self.identity, &self.names)?);
        self.made = core.now();
        Ok(())
    }
}

impl Serving {
    pub(crate) fn new(core: &Core, names: &[String], limits: Limits) -> Result<Self, AuthError> {
        let identity = own_identity(core);
        let names = HostNames::read(names.iter().map(String::as_str)).map_err(|error| AuthError::Authorities(error.to_string()))?;
        let own = OwnCertificate::new(core, &identity, names)?;
        let authorities = Swap::new(trusted(core)?);
        let config = tls::server_config(
            Certificates::current(own.current.clone()),
            ClientAuth::Optional,
            &authorities,
            &[wire::alpn::AUTH],
            &core.clock,
        )?;
        Ok(Self { identity, config, authorities, limits, own })
    }

    pub(crate) fn own(&self) -> OwnCertificate {
        self.own.clone()
    }

    pub(crate) fn identity(&self) -> HostIdentity {
        self.identity.clone()
    }

    /// Accepts and serves until stopped; while draining, requests in progress are finished.
    pub(crate) async fn serve(&self, core: Arc<Core>, listener: TcpListener, shutdown: Shutdown) {
        let (sender, incoming) = net::grpc::incoming(WAITING);
        let service =
            AuthServer::new(Service::new(core.clone())).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
        let arriving = Arc::<AtomicUsize>::default();
        let door = Door {
            core: core.clone(),
            config: self.config.clone(),
            authorities: self.authorities.clone(),
            sender,
            arriving: arriving.clone(),
        };
        let accepting = accept_loop(listener, self.limits, shutdown.clone(), move |conn| door.clone().handle(conn));
        let draining = shutdown.clone();
        let ending = async move {
            draining.draining().await;
            let arrived = async {
                while arriving.load(SeqCst) > 0 {
                    tokio::time::sleep(SETTLE).await;
                }
            };
            let _in_time = tokio::time::timeout(LAST_ARRIVALS, arrived).await;
            // The server takes what has arrived.
            tokio::time::sleep(SETTLE).await;
        };
        let serving = net::grpc::server().serve_with_incoming_shutdown(service, incoming, ending);
        let both = async {
            let ((), served) = tokio::join!(accepting, serving);
            if let Err(error) = served {
                tracing::error!(%error, "the API server ended");
            }
        };
        tokio::select! {
            () = both => {}
            () = shutdown.stopping() => {}
        }
    }
}

fn own_identity(core: &Core) -> HostIdentity {
    HostIdentity {
        cluster: core.cluster.clone(),
        id: core.host_id,
        name: core.node_name.clone(),
        roles: [SystemRole::Auth].into(),
        extra: types::Extra::new(),
    }
}

/// What this Auth Service shows when it calls another; good for [`HOST_LIFE`].
pub(crate) fn calling(core: &Core) -> Result<TlsIdentity, AuthError> {
    OwnCertificate::make(core, &own_identity(core), &HostNames::default())
}

/// The cluster's authorities.
pub(crate) fn trusted(core: &Core) -> Result<Authorities, TlsError> {
    Authorities::new(core.cluster.clone(), &roots(&core.authorities.user_public), &roots(&core.authorities.host_public))
}

/// Its certificates; a key of a form that only a newer release knows is not trusted here.
fn roots(authority: &CertAuthority) -> Vec<CertificateDer<'static>> {
    authority.keys.iter().filter_map(|key| tls::identity::certificates_from_pem(key.tls.as_bytes()).ok()).flatten().collect()
}

#[derive(Clone)]
struct Door {
    core: Arc<Core>,
    config: Arc<tls::ServerConfig>,
    authorities: Swap<Authorities>,
    sender: net::grpc::Sender,
    /// Connections that are accepted and not yet with the server.
    arriving: Arc<AtomicUsize>,
}

/// Counts one connection for as long as it lives.
struct Arriving(Arc<AtomicUsize>);

impl Arriving {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(count.clone())
    }
}
impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Door {
    async fn handle(self, conn: Conn) {
        let arriving = Arriving::new(&self.arriving);
        let Conn { mut stream, peer: addr, permit } = conn;
        let spliced = match tokio::time::timeout(tls::DEADLINE, is_spliced(&mut stream)).await {
            Ok(Ok(spliced)) => spliced,
            Ok(Err(_)) | Err(_) => return,
        };
        let mut accepted = match tls::accept(stream, self.config.clone(), &self.authorities, &self.core.clock, tls::DEADLINE).await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%addr, %error, "no TLS session");
                return;
            }
        };
        let ours = Hello::ours(&self.core.version, "auth");
        let direction = direction(accepted.identity.as_ref());
        let hello = match net::hello::server(&mut accepted.stream, &ours, direction, net::hello::DEADLINE).await {
            Ok(hello) => hello,
            Err(error) => return self.refused(addr, accepted.identity.as_ref(), error).await,
        };
        if hello.skips_version_check {
            self.skipping(addr, accepted.identity.as_ref(), &hello).await;
        }
        let peer = net::grpc::Peer { identity: accepted.identity.map(Arc::new), hello: Arc::new(hello), addr, spliced };
        if peer.identity.is_some() {
            permit.authenticated();
            self.sender.send(net::grpc::ServerIo::new(Box::new(accepted.stream), peer, permit)).await;
            return;
        }
        // A stranger's bytes pass through here, so that the listener can cut him when his place or time is needed.
        let (mut near, far) = tokio::io::duplex(STRANGER_BUFFER);
        let taken = self.sender.send(net::grpc::ServerIo::new(Box::new(far), peer, ())).await;
        drop(arriving);
        if taken {
            let _ = tokio::time::timeout(STRANGER, tokio::io::copy_bidirectional(&mut accepted.stream, &mut near)).await;
        }
        drop(permit);
    }

    async fn refused(&self, addr: std::net::SocketAddr, identity: Option<&types::Identity>, error: HelloError) {
        let HelloError::Refused { public, peer, .. } = &error else {
            tracing::debug!(%addr, %error, "no handshake");
            return;
        };
        count(&self.core.metrics.version_refusals);
        let (version, role) = peer.as_ref().map(|hello| (shown(&hello.version), shown(&hello.role))).unwrap_or_default();
        let who = identity.map(types::Identity::display).unwrap_or_default();
        tracing::info!(%addr, version, role, who, refusal = %public, "refused a version");
        let event = self.core.event(EventKind::VersionRefused).with("addr.remote", addr.to_string()).with("version", version.as_str());
        let event =
            event.with("role", role.as_str()).with("error", public.to_string()).with("server_version", self.core.version.to_string());
        let event = by(event, identity);
        self.core.record_refusal(&format!("version {} {version} {role}", addr.ip()), event).await;
        quarantine::refused(&self.core, identity, peer.as_deref(), public).await;
    }

    async fn skipping(&self, addr: std::net::SocketAddr, identity: Option<&types::Identity>, hello: &Hello) {
        let who = identity.map(types::Identity::display).unwrap_or_default();
        let event = self.core.event(EventKind::VersionSkipped).with("addr.remote", addr.to_string()).with("version", shown(&hello.version));
        let event = event.with("role", shown(&hello.role)).with("server_version", self.core.version.to_string());
        let event = by(event, identity);
        self.core.record_refusal(&format!("skip {} {who} {}", addr.ip(), shown(&hello.version)), event).await;
    }
}

/// Auth Services call each other while some are newer than others; everybody else is upgraded after them.
fn direction(identity: Option<&types::Identity>) -> Direction {
    match identity {
        Some(types::Identity::Host(host)) if host.roles.contains(&SystemRole::Auth) => Direction::CallerSpeaksOlder,
        Some(types::Identity::Host(_) | types::Identity::User(_)) | None => Direction::ServerFirst,
    }
}

/// Whether a Proxy passes this connection on: then its address is the Proxy's. Nothing of TLS is taken from the stream.
async fn is_spliced(stream: &mut TcpStream) -> std::io::Result<bool> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 || !wire::splice::MARK.starts_with(&first) {
        return Ok(false);
    }
    let mut mark = [0; wire::splice::MARK.len()];
    stream.read_exact(&mut mark).await?;
    if mark == wire::splice::MARK { Ok(true) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// A peer's text, fit for a log.
fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_default).collect()
}
