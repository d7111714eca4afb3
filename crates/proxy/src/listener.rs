//! The one TLS port: looks at what a connection asks for, and shows it the right door.
//!
//! Every step before the peer is known has a deadline and a bound, and `net::listen` cuts the oldest of the greediest source
//! when places run out (attack table, row 24). A connection for the Auth Service is never opened here: its bytes, the
//! first ones included, go there as they came. Members are identified by the certificate that TLS checked, then shake
//! hands; only then anything they say is parsed. Whoever comes for rescue shakes no hands, since those would refuse him.

use crate::{Shared, rescue, ssh::gateway, tunnel::link, web};
use axum::Router;
use net::{
    IoStream,
    copy::{self, splice},
    hello::HelloError,
    listen::{Conn, Limits, Permit, Port, accept_loop},
    peek::{PeekError, Rewound, Spoken, Wanted, peek},
    tls::{self, Accepted},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncWriteExt as _, copy_buf},
    net::TcpStream,
};
use types::{Identity, version::Direction};
use wire::{alpn, hello::Hello};

/// For the first message of TLS, for the rest of the TLS handshake, and for our own handshake: each.
const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// For reaching one Auth Service.
const AUTH_DEADLINE: Duration = Duration::from_secs(5);
/// A spliced connection still open after so long has proved itself to the Auth Service, which would have cut it otherwise. The
/// Auth Service sees one source, this Proxy; so here strangers count by their own.
const AUTH_PROBATION: Duration = Duration::from_secs(35);
/// How long one side may stay silent once the other has ended.
const HALF_CLOSED: Duration = Duration::from_secs(60);
/// What an SSH client is told: lines before the version string are shown to its user (RFC 4253, section 4.2).
const TO_SSH: &[u8] =
    b"This port speaks TLS. For plain OpenSSH use the jump server (port 3023): ssh -J <user>@<proxy>:3023 <login>@<host>\r\n";

/// Where a connection goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Door {
    Auth,
    Ssh,
    Tunnel,
    Data,
    Rescue,
    Web,
}

impl Door {
    /// By the first protocol of the client's list that we know; a client without a list speaks HTTP. One that only asks for
    /// what we do not know is answered by the web's TLS: "no application protocol".
    fn choose(wanted: &Wanted) -> Self {
        let known = |name: &Vec<u8>| match name.as_slice() {
            alpn::AUTH => Some(Self::Auth),
            alpn::SSH => Some(Self::Ssh),
            alpn::TUNNEL => Some(Self::Tunnel),
            alpn::TUNNEL_DATA => Some(Self::Data),
            alpn::RESCUE => Some(Self::Rescue),
            alpn::HTTP => Some(Self::Web),
            _ => None,
        };
        wanted.alpn.iter().find_map(known).unwrap_or(Self::Web)
    }
}

/// Serves the port until drained, then until the last session has ended or everything is stopped.
pub(crate) async fn run(port: Port, limits: Limits, shared: Arc<Shared>) {
    let (router, shutdown) = (web::router(shared.clone()), shared.shutdown.clone());
    accept_loop(port, limits, shutdown, move |conn| {
        let (shared, router) = (shared.clone(), router.clone());
        // Boxed: most connections are idle, and the largest door would set the size of all.
        Box::pin(async move { serve(shared, router, conn).await })
    })
    .await;
}

async fn serve(shared: Arc<Shared>, router: Router, conn: Conn) {
    let Conn { mut stream, peer, permit } = conn;
    let (wanted, prefix) = match peek(&mut stream, STEP_DEADLINE).await {
        Ok((wanted, rewound)) => (wanted, rewound.into_parts().0),
        Err(error) => {
            shared.metrics.foreign_connections.add(1);
            tracing::debug!(%peer, %error, "no TLS");
            if let PeekError::NotTls(Spoken::Ssh) = error {
                let _ = tokio::time::timeout(Duration::from_secs(1), async {
                    stream.write_all(TO_SSH).await?;
                    stream.shutdown().await
                })
                .await;
            }
            return;
        }
    };
    let door = Door::choose(&wanted);
    let stream = Rewound::new(prefix, stream);
    match door {
        Door::Auth => {
            shared.metrics.auth_connections.add(1);
            Box::pin(to_auth(shared, stream, peer, permit)).await;
        }
        Door::Web => {
            shared.metrics.web_connections.add(1);
            match tls::accept(stream, shared.web_tls.clone(), &shared.authorities, &shared.clock, STEP_DEADLINE).await {
                Ok(Accepted { stream, .. }) => Box::pin(web::serve(Box::new(stream), peer, router, shared.shutdown.clone())).await,
                Err(error) => tracing::debug!(%peer, %error, "no TLS for the web"),
            }
        }
        Door::Ssh | Door::Tunnel | Door::Data | Door::Rescue => Box::pin(member(shared, door, stream, peer, permit)).await,
    }
}

/// Users at the gateway, and agents.
async fn member(shared: Arc<Shared>, door: Door, stream: Rewound<TcpStream>, peer: SocketAddr, permit: Permit) {
    let accepted = tls::accept(stream, shared.member_tls.clone(), &shared.authorities, &shared.clock, STEP_DEADLINE).await;
    let Accepted { stream, identity } = match accepted {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::debug!(%peer, %error, "no TLS for a member");
            return;
        }
    };
    permit.authenticated();
    let mut stream: IoStream = Box::new(stream);
    match door {
        Door::Ssh => {
            shared.metrics.ssh_connections.add(1);
            if greet(&shared, &mut stream, peer, "lockgate-ssh").await.is_some() {
                gateway::serve(&shared, stream, identity, peer).await;
            }
        }
        Door::Tunnel => {
            shared.metrics.tunnel_connections.add(1);
            if let Some(hello) = greet(&shared, &mut stream, peer, "lockgate-tunnel").await {
                control(&shared, stream, identity, &hello, peer, permit).await;
            }
        }
        Door::Data => {
            shared.metrics.data_connections.add(1);
            if let Some(hello) = greet(&shared, &mut stream, peer, "lockgate-tunnel-data").await {
                match link::identify(&shared, identity, &hello) {
                    Ok(agent) => link::serve_data(stream, &agent, &shared.tunnels).await,
                    Err(error) => shared.record.stranger(peer, "lockgate-tunnel-data", &error),
                }
            }
        }
        Door::Rescue => {
            shared.metrics.rescue_connections.add(1);
            rescue::serve(&shared, stream, identity, peer).await;
        }
        Door::Auth | Door::Web => {}
    }
}

/// An agent's control connection: registered here, then carried by a task of its own, which is all that an idle tunnel keeps.
async fn control(shared: &Arc<Shared>, mut stream: IoStream, identity: Option<Identity>, hello: &Hello, peer: SocketAddr, permit: Permit) {
    let agent = match link::identify(shared, identity, hello) {
        Ok(agent) => agent,
        Err(error) => {
            shared.record.stranger(peer, "lockgate-tunnel", &error);
            return link::refuse(&mut stream, &error).await;
        }
    };
    match link::register(&mut stream, &agent, &shared.tunnels).await {
        Ok(link) => {
            tracing::debug!(host = %agent.id, %peer, "tunnel");
            let (tunnels, shutdown) = (shared.tunnels.clone(), shared.shutdown.clone());
            shared.background.spawn("tunnel", async move {
                link::serve_control(stream, link, tunnels, shutdown).await;
                drop(permit);
            });
            // A lock that came after it was looked for found no tunnel to end.
            if let Some((host, error)) = link::locked(shared).into_iter().find(|(host, _)| *host == agent.id) {
                shared.tunnels.evict(host, error).await;
            }
        }
        Err(error) => {
            shared.metrics.refused(&error);
            tracing::info!(host = %agent.id, %peer, %error, "tunnel refused");
        }
    }
}

/// The handshake; what the peer said, if both accept. Refusals are recorded.
async fn greet(shared: &Shared, stream: &mut IoStream, peer: SocketAddr, edge: &str) -> Option<Hello> {
    let direction = wire::edge::find(edge).map_or(Direction::ServerFirst, |edge| edge.direction);
    match net::hello::server(stream, &shared.hello, direction, STEP_DEADLINE).await {
        Ok(hello) => {
            if wire::hello::skipped(direction, &hello, &shared.hello) {
                shared.record.version_skipped(peer, &hello, edge);
            }
            Some(hello)
        }
        Err(HelloError::Refused { public, peer: hello, .. }) => {
            shared.record.version_refused(Some(peer), hello.as_deref(), &public, edge);
            // The refusal has been written; let it be read before the connection goes.
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.shutdown()).await;
            None
        }
        Err(error) => {
            tracing::debug!(%peer, %error, edge, "no handshake");
            None
        }
    }
}

/// Passes the connection, unopened, to an Auth Service: TLS is end to end, and join tokens are never seen here.
async fn to_auth(shared: Arc<Shared>, stream: Rewound<TcpStream>, peer: SocketAddr, permit: Permit) {
    let (prefix, stream) = stream.into_parts();
    let Some(mut auth) = reach_auth(&shared).await else {
        tracing::warn!(%peer, "no Auth Service can be reached for a connection that asks for it");
        return;
    };
    // Or the Auth Service would take our address for the caller's.
    if auth.write_all(&wire::splice::MARK).await.is_err() || copy_buf(&mut prefix.as_ref(), &mut auth).await.is_err() {
        return;
    }
    // An agent's connection for its whole life: it must not keep a draining Proxy from ending.
    let options = copy::Options { idle: None, half_close_grace: Some(HALF_CLOSED), shutdown: Some(shared.shutdown.clone()) };
    shared.background.spawn("to auth", async move {
        let carried = splice(stream, auth, options);
        tokio::pin!(carried);
        tokio::select! {
            _ = &mut carried => return,
            () = tokio::time::sleep(AUTH_PROBATION) => permit.authenticated(),
        }
        carried.await;
        drop(permit);
    });
}

/// The first Auth Service that answers, beginning with another one each time.
async fn reach_auth(shared: &Shared) -> Option<TcpStream> {
    let servers = &shared.auth_servers;
    let first = usize::try_from(shared.metrics.auth_connections.value()).unwrap_or(0) % servers.len().max(1);
    for addr in servers.iter().cycle().skip(first).take(servers.len()) {
        match tokio::time::timeout(AUTH_DEADLINE, net::dial::tcp(addr)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => tracing::debug!(%error, "an Auth Service cannot be reached"),
            Err(_) => tracing::debug!(addr, "an Auth Service does not answer"),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_where_its_first_known_protocol_says() {
        let check = |alpn: &[&str], want: Door| {
            let wanted = Wanted { server_name: None, alpn: alpn.iter().map(|name| name.as_bytes().to_vec()).collect() };
            assert_eq!(Door::choose(&wanted), want, "{alpn:?}");
        };
        check(&["lockgate-auth"], Door::Auth);
        check(&["lockgate-ssh"], Door::Ssh);
        check(&["lockgate-tunnel"], Door::Tunnel);
        check(&["lockgate-tunnel-data"], Door::Data);
        check(&["lockgate-rescue"], Door::Rescue);
        check(&["h2", "http/1.1"], Door::Web);
        check(&[], Door::Web);
        check(&["lockgate-future", "lockgate-ssh"], Door::Ssh);
        check(&["lockgate-future"], Door::Web);
    }
}
