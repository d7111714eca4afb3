//! Accepts connections so that strangers cannot keep members out (attack table, row 24).
//!
//! A connection is *unauthenticated* until its handler says otherwise on the [`Permit`]; until then it counts against its
//! source and against a pool, and has a deadline. When a bound is reached the newcomer is let in and the oldest
//! unauthenticated connection of the greediest source is cut: whoever opens ten thousand connections competes with
//! himself. Running out of file descriptors slows the loop down and frees one such connection; it does not end it.

use crate::{backoff::Backoff, shutdown::Shutdown, task::Group, turn::Turn};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Connections the kernel holds for us while we are busy.
const BACKLOG: u32 = 4096;

/// Bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Unauthenticated connections at once, from everywhere.
    pub max_unauthenticated: usize,
    /// The same from one address (IPv4) or /64 network (IPv6).
    pub max_unauthenticated_per_ip: usize,
    /// All connections at once.
    pub max_connections: usize,
    /// Until when a connection must be authenticated.
    pub handshake_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_unauthenticated: 4096,
            // A whole site behind one address translation must be able to come back at once.
            max_unauthenticated_per_ip: 1024,
            max_connections: 100_000,
            handshake_deadline: Duration::from_secs(30),
        }
    }
}

/// A fresh connection, handed to the handler.
#[derive(Debug)]
pub struct Conn {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    pub permit: Permit,
}

/// Opens a listener on that address; port 0 takes a free one.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A listener that another process may hold too (a live restart): connections are accepted while it is our turn. Those that the
/// other process hands over are served whoever's turn it is.
#[derive(Debug)]
pub struct Port {
    listener: TcpListener,
    turn: Turn,
    given: Option<mpsc::Receiver<TcpStream>>,
}

impl Port {
    pub fn new(listener: TcpListener, turn: Turn, given: Option<mpsc::Receiver<TcpStream>>) -> Self {
        Self { listener, turn, given }
    }
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection. Safe to cancel.
    pub async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let Self { listener, turn, given } = self;
        let handed = async {
            match given {
                Some(given) => given.recv().await,
                None => None,
            }
        };
        let accepted = async {
            loop {
                turn.ours().await;
                tokio::select! {
                    biased;
                    () = turn.theirs() => {}
                    accepted = listener.accept() => return accepted,
                }
            }
        };
        tokio::select! {
            Some(stream) = handed => {
                let peer = stream.peer_addr()?;
                Ok((stream, peer))
            }
            accepted = accepted => accepted,
        }
    }
}

impl From<TcpListener> for Port {
    fn from(listener: TcpListener) -> Self {
        Self::new(listener, Turn::always(), None)
    }
}

/// What every connection of ours is set to: no delay for small packets; a peer that vanished is noticed in two minutes.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    Ok(())
}

/// Accepts until drained, then waits for the handlers until told to stop. A handler whose connection is cut is dropped.
pub async fn accept_loop<H, F>(port: impl Into<Port>, limits: Limits, shutdown: Shutdown, handler: H)
where
    H: Fn(Conn) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut port = port.into();
    let pool = Arc::new(Pool { limits, state: Mutex::default() });
    let (group, handler) = (Group::new("listen"), Arc::new(handler));
    let seed = port.local_addr().map_or(0, |address| u64::from(address.port()));
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1), seed);
    let mut sweep = tokio::time::interval((limits.handshake_deadline / 4).clamp(Duration::from_millis(10), Duration::from_secs(1)));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.draining() => break,
            _ = sweep.tick() => {
                pool.sweep();
                continue;
            }
            accepted = port.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                backoff.reset();
                if let Some((permit, cut)) = pool.admit(peer) {
                    serve(&group, &handler, Conn { stream, peer, permit }, cut);
                }
            }
            // The peer gave up while it was queued.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
            Err(error) => {
                let wait = backoff.next();
                tracing::warn!(%error, ?wait, "cannot accept connections");
                pool.lock().cut_greediest();
                tokio::select! {
                    () = shutdown.draining() => break,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
    drop(port);
    wait(&group, &pool, &mut sweep, &shutdown).await;
}

/// The time between drain and stop: no new connections, deadlines still hold.
async fn wait(group: &Group, pool: &Pool, sweep: &mut tokio::time::Interval, shutdown: &Shutdown) {
    let ended = group.join(Duration::from_secs(365 * 24 * 3600));
    tokio::pin!(ended);
    loop {
        tokio::select! {
            biased;
            () = shutdown.stopping() => return group.abort(),
            _ = &mut ended => return,
            _ = sweep.tick() => pool.sweep(),
        }
    }
}

fn serve<H, F>(group: &Group, handler: &Arc<H>, conn: Conn, cut: CancellationToken)
where
    H: Fn(Conn) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    if let Err(error) = tune(&conn.stream) {
        tracing::debug!(%error, peer = %conn.peer, "connection gone before it was served");
        return;
    }
    let (peer, work) = (conn.peer, handler(conn));
    group.spawn("connection", async move {
        tokio::select! {
            biased;
            () = cut.cancelled() => tracing::debug!(%peer, "cut: not authenticated, and its place or time was needed"),
            () = work => {}
        }
    });
}

/// A connection's place. Dropping it gives the place back.
#[derive(Debug)]
pub struct Permit {
    id: u64,
    pool: Arc<Pool>,
}

impl Permit {
    /// The peer is known: its connection no longer counts as a stranger's and has no deadline any more.
    pub fn authenticated(&self) {
        self.pool.lock().forget(self.id);
    }
}
impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.forget(self.id);
        state.connections = state.connections.saturating_sub(1);
    }
}

#[derive(Debug)]
struct Pool {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    connections: usize,
    /// Unauthenticated, oldest first.
    strangers: BTreeMap<u64, Stranger>,
    sources: HashMap<IpAddr, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Stranger {
    source: IpAddr,
    since: Instant,
    cut: CancellationToken,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for a newcomer. None when every place is taken by authenticated peers.
    fn admit(self: &Arc<Self>, peer: SocketAddr) -> Option<(Permit, CancellationToken)> {
        let (source, limits) = (source(peer.ip()), self.limits);
        let mut state = self.lock();
        if state.connections >= limits.max_connections && !state.cut_greediest() {
            tracing::warn!(%peer, limit = limits.max_connections, "refused: all connections are in use");
            return None;
        }
        if state.sources.get(&source).is_some_and(|ids| ids.len() >= limits.max_unauthenticated_per_ip) {
            state.cut_oldest_of(source);
        } else if state.strangers.len() >= limits.max_unauthenticated {
            state.cut_greediest();
        }
        let (id, cut) = (state.next, CancellationToken::new());
        state.next = state.next.wrapping_add(1);
        state.connections = state.connections.saturating_add(1);
        state.strangers.insert(id, Stranger { source, since: Instant::now(), cut: cut.clone() });
        state.sources.entry(source).or_default().insert(id);
        drop(state);
        Some((Permit { id, pool: self.clone() }, cut))
    }

    /// Cuts those past their deadline.
    fn sweep(&self) {
        let mut state = self.lock();
        while let Some((&id, oldest)) = state.strangers.first_key_value() {
            if oldest.since.elapsed() < self.limits.handshake_deadline {
                break;
            }
            state.cut(id);
        }
    }
}

impl State {
    fn forget(&mut self, id: u64) -> Option<Stranger> {
        let stranger = self.strangers.remove(&id)?;
        if let Some(ids) = self.sources.get_mut(&stranger.source) {
            ids.remove(&id);
            if ids.is_empty() {
                self.sources.remove(&stranger.source);
            }
        }
        Some(stranger)
    }
    fn cut(&mut self, id: u64) {
        if let Some(stranger) = self.forget(id) {
            stranger.cut.cancel();
        }
    }
    fn cut_oldest_of(&mut self, source: IpAddr) {
        if let Some(id) = self.sources.get(&source).and_then(|ids| ids.first().copied()) {
            self.cut(id);
        }
    }
    /// Cuts the oldest of the source with the most; among equals, of the one that has waited longest.
    fn cut_greediest(&mut self) -> bool {
        let greediest = self.sources.iter().max_by_key(|(_, ids)| (ids.len(), Reverse(ids.first().copied()))).map(|(source, _)| *source);
        greediest.map(|source| self.cut_oldest_of(source)).is_some()
    }
}

/// What counts as one source. A subscriber of IPv6 has at least a /64.
pub(crate) fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 @ IpAddr::V4(_) => v4,
    }
}
