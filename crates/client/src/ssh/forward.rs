//! Ports of this machine that lead to the host's network: `-L` (one destination) and `-D` (where each SOCKS client says).
//!
//! Listeners are opened by the caller, on loopback unless the user says otherwise. The host's policy decides whether a
//! destination may be reached; here a refusal ends that one connection and nothing else.

use super::{
    Session, SshError,
    socks::{self, Reply, SocksError, Wanted},
};
use net::{IoStream, copy, shutdown::Shutdown, task::Group};
use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

/// For a SOCKS client to say what it wants.
const SOCKS_DEADLINE: Duration = Duration::from_secs(20);
/// Connections at once through one listener.
const MAX_CONNECTIONS: usize = 256;

/// Where connections to a listener lead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// `-L`: always there, as seen from the host.
    Fixed { host: String, port: u16 },
    /// `-D`: where each client says.
    Socks,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed { host, port } => write!(f, "{host}:{port}"),
            Self::Socks => f.write_str("wherever a SOCKS client says"),
        }
    }
}

/// Why a connection was not forwarded.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    #[error("the client did not say in time where to")]
    Timeout,
    #[error(transparent)]
    Socks(#[from] SocksError),
    #[error("the client's connection: {0}")]
    Io(#[from] std::io::Error),
    #[error("{wanted}: {error}")]
    Ssh { wanted: Wanted, error: SshError },
}

/// Forwards until the connection ends or the shutdown stops; returns why.
pub async fn forward(session: Arc<Session>, listener: TcpListener, destination: Destination, shutdown: Shutdown) {
    let group = Group::new("forward");
    loop {
        let accepted = tokio::select! {
            () = shutdown.stopping() => return,
            _ = session.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a forwarded port cannot accept");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        if group.len() >= MAX_CONNECTIONS {
            tracing::warn!(limit = MAX_CONNECTIONS, "too many forwarded connections; one was refused");
            continue;
        }
        let (session, destination) = (session.clone(), destination.clone());
        group.spawn("forward", async move {
            if let Err(error) = one(&session, stream, from, destination).await {
                tracing::warn!("a connection was not forwarded: {error}");
            }
        });
    }
}

async fn one(session: &Session, mut stream: TcpStream, from: SocketAddr, destination: Destination) -> Result<(), ForwardError> {
    let far = match destination {
        Destination::Fixed { host, port } => open(session, Wanted { host, port }, from).await?,
        Destination::Socks => {
            let asked = tokio::time::timeout(SOCKS_DEADLINE, socks::read_request(&mut stream));
            let opened = open(session, asked.await.map_err(|_| ForwardError::Timeout)??, from).await;
            stream.write_all(&reply(&opened).bytes()).await?;
            opened?
        }
    };
    copy::splice(stream, far, copy::Options::default()).await;
    Ok(())
}

async fn open(session: &Session, wanted: Wanted, from: SocketAddr) -> Result<IoStream, ForwardError> {
    session.open_direct(&wanted.host, wanted.port, from).await.map_err(|error| ForwardError::Ssh { wanted, error })
}

fn reply(opened: &Result<IoStream, ForwardError>) -> Reply {
    match opened {
        Ok(_) => Reply::Connected,
        Err(ForwardError::Ssh { error: SshError::ChannelRefused(russh::ChannelOpenFailure::AdministrativelyProhibited), .. }) => {
            Reply::NotAllowed
        }
        Err(_) => Reply::Unreachable,
    }
}
