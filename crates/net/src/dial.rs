//! Opens a connection to another Lockgate process: TCP, TLS, handshake, each with its deadline.
//!
//! The addresses of a name are tried side by side, a quarter of a second apart (RFC 8305), so that a dead IPv6 route costs
//! nothing. Every failure is named by step and becomes a [`Public`] with the cure. Used by agents, Proxies and `client`.

use crate::{
    eager::Eager,
    hello::{self, HelloError, HelloPolicy},
    listen::tune,
    tls::{self, ClientConfig},
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use rustls::pki_types::ServerName;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use types::{Code, Identity, Public, version::Direction};
use wire::hello::Hello;

/// For resolving the name and reaching one of its addresses.
pub const TCP_DEADLINE: Duration = Duration::from_secs(10);
/// RFC 8305, "connection attempt delay".
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// A connection that was accepted by both ends.
#[derive(Debug)]
pub struct Connected<S = TcpStream> {
    pub stream: TlsStream<Eager<S>>,
    /// What the server said of itself.
    pub peer: Hello,
}

impl<S> Connected<S> {
    /// The identity in the server's certificate, which TLS has checked; none on a web certificate.
    pub fn server_identity(&self) -> Option<Identity> {
        let leaf = self.stream.get_ref().1.peer_certificates()?.first()?;
        wire::identity::from_x509_der(leaf).ok()
    }
}

/// Which step waited in vain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Tcp,
    Tls,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("\"{addr}\" is not an address; write it as host:port")]
    Address { addr: String },
    #[error("\"{name}\" is not a server name")]
    ServerName { name: String },
    #[error("the name in {addr} cannot be resolved: {source}")]
    Resolve { addr: String, source: io::Error },
    #[error("{addr} does not answer: {source}")]
    Unreachable { addr: String, source: io::Error },
    #[error("{addr} did not answer in time{}", match step { Step::Tcp => "", Step::Tls => " to the TLS handshake" })]
    Timeout { addr: String, step: Step },
    #[error("TLS with {addr} failed: {source}")]
    Tls { addr: String, source: io::Error },
    #[error("{addr}: {source}")]
    Hello { addr: String, source: HelloError },
}

impl DialError {
    /// What the user may read.
    pub fn public(&self) -> Public {
        let text = self.to_string();
        match self {
            Self::Address { .. } | Self::ServerName { .. } => Public::new(Code::Usage, text),
            Self::Resolve { .. } | Self::Unreachable { .. } => {
                Public::new(Code::Unreachable, text).hint("check the address, the network and that the service runs")
            }
            Self::Timeout { .. } => Public::new(Code::Timeout, text).hint("check the address, the network and that the service runs"),
            Self::Tls { source, .. } => tls::alert(source).unwrap_or_else(|| {
                let hint = "check that the address and port are those of a Lockgate service; it may be restarting or overloaded";
                Public::new(Code::Unavailable, text).hint(hint)
            }),
            Self::Hello { source, .. } => source.public(),
        }
    }
}
impl From<DialError> for Public {
    fn from(error: DialError) -> Self {
        error.public()
    }
}

/// Dials `addr` (`host:port`), checks the server against `server_name` (see `wire::sni`), and shakes hands.
pub async fn dial(
    addr: &str,
    config: Arc<ClientConfig>,
    server_name: &str,
    ours: &Hello,
    direction: Direction,
    policy: HelloPolicy,
) -> Result<Connected, DialError> {
    connect(tcp(addr).await?, addr, config, server_name, ours, direction, policy).await
}

/// The same over a stream that is already open; `addr` is for messages.
pub async fn connect<S>(
    stream: S,
    addr: &str,
    config: Arc<ClientConfig>,
    server_name: &str,
    ours: &Hello,
    direction: Direction,
    policy: HelloPolicy,
) -> Result<Connected<S>, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = tls(stream, addr, config, server_name).await?;
    match hello::client(&mut stream, ours, direction, policy).await {
        Ok(peer) => Ok(Connected { stream, peer }),
        Err(source) => Err(DialError::Hello { addr: addr.to_owned(), source }),
    }
}

/// The TLS step alone: for web clients.
pub async fn tls<S>(stream: S, addr: &str, config: Arc<ClientConfig>, server_name: &str) -> Result<TlsStream<Eager<S>>, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(server_name.to_owned()).map_err(|_| DialError::ServerName { name: server_name.to_owned() })?;
    match tokio::time::timeout(tls::DEADLINE, TlsConnector::from(config).connect(name, Eager::new(stream))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(DialError::Tls { addr: addr.to_owned(), source }),
        Err(_) => Err(DialError::Timeout { addr: addr.to_owned(), step: Step::Tls }),
    }
}

/// The TCP step alone.
pub async fn tcp(addr: &str) -> Result<TcpStream, DialError> {
    let late = |_| DialError::Timeout { addr: addr.to_owned(), step: Step::Tcp };
    let stream = tokio::time::timeout(TCP_DEADLINE, reach(addr)).await.map_err(late)??;
    tune(&stream).map_err(|source| DialError::Unreachable { addr: addr.to_owned(), source })?;
    Ok(stream)
}

async fn reach(addr: &str) -> Result<TcpStream, DialError> {
    let unreachable = |source| DialError::Unreachable { addr: addr.to_owned(), source };
    if let Ok(address) = addr.parse::<SocketAddr>() {
        return TcpStream::connect(address).await.map_err(unreachable);
    }
    let well_formed = addr.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !well_formed {
        return Err(DialError::Address { addr: addr.chars().take(80).flat_map(char::escape_default).collect() });
    }
    let resolve = |source| DialError::Resolve { addr: addr.to_owned(), source };
    let addresses = interleave(tokio::net::lookup_host(addr).await.map_err(resolve)?);
    race(addresses).await.map_err(unreachable)
}

/// The two families in turn, in the resolver's order.
fn interleave(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let (first, second): (Vec<_>, Vec<_>) = {
        let all: Vec<_> = addresses.collect();
        let leading = all.first().is_some_and(SocketAddr::is_ipv6);
        all.into_iter().partition(|address| address.is_ipv6() == leading)
    };
    let longest = first.len().max(second.len());
    let pairs = (0..longest).flat_map(|i| [first.get(i).copied(), second.get(i).copied()]);
    pairs.flatten().take(MAX_ADDRESSES).collect()
}

/// The first of the addresses to answer; the next is tried when one fails or is slow.
async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut attempts: FuturesUnordered<BoxFuture<'static, io::Result<TcpStream>>> = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut more = true;
    loop {
        if let Some(address) = waiting.next() {
            attempts.push(Box::pin(TcpStream::connect(address)));
        } else {
            more = false;
        }
        tokio::select! {
            biased;
            done = attempts.next() => match done {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => last = error,
                None => return Err(last),
            },
            () = tokio::time::sleep(STAGGER), if more => {}
        }
    }
}
