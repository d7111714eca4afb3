//! The reverse tunnel: one control connection to each Proxy, kept up for ever, and a dialled-back connection per session.
//!
//! [`keep`] dials, registers, listens to the Proxy, and comes back by itself with jitter when the connection is lost or the
//! Proxy restarts. A Proxy that drains, or that another process takes the place of, is left only after another connection stands: the
//! old one goes on serving until the Proxy cuts it. When it is this process that is replaced, its successor's tunnels stand before it hangs up. Renewed credentials and changed authorities count from the next dial on. Every dial checks that the other
//! end is a Proxy of this cluster. Messages are `wire::tunnel`'s; the Proxy's half is `proxy::tunnel`.

use crate::{
    proxies::Proxies,
    rescue::{Quarantine, RescueError, Visit},
    ssh::{self, Arrival, Shared},
};
use client::host::HostCredentials;
use net::{
    IoStream,
    backoff::Backoff,
    clock::SharedClock,
    dial::{DialError, dial},
    frame,
    hello::{HelloError, HelloPolicy},
    shutdown::Shutdown,
    swap::Swap,
    task::Group,
    tls::{Authorities, ClientConfig, TlsError, Trust, client_config},
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use types::{Code, Extra, HostId, Public, SystemRole, version::Direction};
use wire::{
    alpn,
    hello::Hello,
    sni,
    tunnel::{DataHello, PING_SECONDS, Start, ToAgent, ToProxy, WANTED, decode, encode},
};

/// For writing one message, and for the Proxy's first.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between the shortest and the longest wait before dialling again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));
/// The longest for a Proxy that others told of: it may be out of reach from here for ever.
const TOLD: Duration = Duration::from_secs(60);
/// After a refusal, which seldom changes soon.
const REFUSED: Duration = Duration::from_secs(30);
/// A connection that lasted so long was a good one.
const SETTLED: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(PING_SECONDS * 3);
/// For a Proxy to see that a tunnel has ended.
const LET_GO: Duration = Duration::from_secs(2);
/// Dial-backs at once.
const MOST: usize = 2000;

/// How to reach Proxies as this host. One TLS configuration per protocol and set of credentials, so that sessions resume.
pub(crate) struct Dialer {
    pub(crate) credentials: watch::Receiver<Arc<HostCredentials>>,
    pub(crate) authorities: Swap<Authorities>,
    pub(crate) clock: SharedClock,
    pub(crate) hello: Hello,
    pub(crate) skip_version_check: bool,
    pub(crate) made: Mutex<Option<Made>>,
}

/// What was made for one set of credentials.
pub(crate) struct Made {
    with: Arc<HostCredentials>,
    control: Arc<ClientConfig>,
    data: Arc<ClientConfig>,
}

/// Why there is no tunnel (any more).
#[derive(Debug, thiserror::Error)]
enum TunnelError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Frame(#[from] frame::FrameError),
    #[error("{0}")]
    Refused(Public),
    #[error("the Proxy sent something else than a welcome")]
    NoWelcome,
}

impl TunnelError {
    fn is_refusal(&self) -> bool {
        match self {
            // Another Proxy answered at a shared address; the next dial may find the right one.
            Self::Refused(public) if public.is(Code::Conflict) => false,
            Self::Refused(_) | Self::Dial(DialError::Hello { source: HelloError::Refused { .. }, .. }) => true,
            Self::Dial(_) | Self::Tls(_) | Self::Frame(_) | Self::NoWelcome => false,
        }
    }

    /// What the Proxy, or this end of the handshake, has against it.
    fn refusal(&self) -> Option<&Public> {
        match self {
            Self::Refused(public) | Self::Dial(DialError::Hello { source: HelloError::Refused { public, .. }, .. }) => Some(public),
            Self::Dial(_) | Self::Tls(_) | Self::Frame(_) | Self::NoWelcome => None,
        }
    }
}

impl Dialer {
    async fn open(&self, addr: &str, data: bool) -> Result<IoStream, TunnelError> {
        let (config, server_name) = self.config(data)?;
        let policy = HelloPolicy { skip_version_check: self.skip_version_check, ..HelloPolicy::default() };
        let connected = dial(addr, config, &server_name, &self.hello, Direction::ServerFirst, policy).await?;
        Ok(Box::new(connected.stream))
    }

    /// A visit at that Proxy's rescue door.
    pub(crate) async fn visit(&self, addr: &str) -> Result<Visit, RescueError> {
        let now = self.credentials.borrow().clone();
        Visit::open(addr, &now, self.authorities.clone(), &self.clock).await
    }

    fn config(&self, data: bool) -> Result<(Arc<ClientConfig>, String), TlsError> {
        let now = self.credentials.borrow().clone();
        let server_name = sni::role_name(&SystemRole::Proxy, now.cluster());
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = match made.take().filter(|made| Arc::ptr_eq(&made.with, &now)) {
            Some(made) => made,
            None => {
                let config = |protocol| client_config(Some(&now.tls), Trust::Cluster(self.authorities.clone()), &[protocol], &self.clock);
                Made { control: config(alpn::TUNNEL)?, data: config(alpn::TUNNEL_DATA)?, with: now }
            }
        };
        let config = if data { fresh.data.clone() } else { fresh.control.clone() };
        *made = Some(fresh);
        Ok((config, server_name))
    }
}

/// One Proxy's tunnel, as its tasks share it.
pub(crate) struct Tunnel {
    /// Tells it from the others of this host.
    pub(crate) number: u64,
    pub(crate) addr: String,
    /// The Proxy that is meant, when it is known.
    pub(crate) wanted: Option<HostId>,
    /// Where the Proxy that answered is reached alone.
    pub(crate) back: Mutex<Option<String>>,
    pub(crate) proxies: Proxies,
    pub(crate) quarantine: Quarantine,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) shared: Arc<Shared>,
    /// Sessions live here, and outlive the tunnel.
    pub(crate) sessions: Group,
    pub(crate) boot_id: String,
    /// Whether the tunnel stands, for health.
    pub(crate) up: watch::Sender<bool>,
    pub(crate) spare: AtomicBool,
    pub(crate) shutdown: Shutdown,
}

/// What became of a control connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    Up,
    /// The Proxy drains: find another.
    Leaving,
    Gone,
}

impl Tunnel {
    fn data_addr(&self) -> String {
        self.back.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_else(|| self.addr.clone())
    }
}

/// Keeps the tunnel up until the service drains.
pub(crate) async fn keep(tunnel: Arc<Tunnel>, seed: u64) {
    let links = Group::new("tunnel links");
    let longest = if tunnel.wanted.is_some() { TOLD } else { BACKOFF.1 };
    let mut backoff = Backoff::new(BACKOFF.0, longest, seed);
    let mut leads_to = tunnel.wanted;
    loop {
        if let Some(id) = leads_to {
            tokio::select! {
                () = tunnel.shutdown.draining() => break,
                () = tunnel.proxies.alone(tunnel.number, id) => {}
            }
        }
        let wait = tokio::select! {
            () = tunnel.shutdown.draining() => break,
            established = establish(&tunnel) => match established {
                Ok((stream, proxy)) => {
                    tracing::info!(proxy = %tunnel.addr, "tunnel established");
                    leads_to = Some(proxy);
                    tunnel.quarantine.admitted(tunnel.number);
                    let _standing = tunnel.proxies.stands(tunnel.number, proxy);
                    let since = tokio::time::Instant::now();
                    let (state, mut seen) = watch::channel(Link::Up);
                    links.spawn("control", control(tunnel.clone(), stream, proxy, state));
                    tunnel.up.send_replace(true);
                    let end = tokio::select! {
                        () = tunnel.shutdown.draining() => break,
                        end = seen.wait_for(|link| *link != Link::Up) => end.map_or(Link::Gone, |link| *link),
                    };
                    tunnel.up.send_replace(false);
                    if since.elapsed() >= SETTLED || end == Link::Leaving {
                        backoff.reset();
                    }
                    tracing::info!(proxy = %tunnel.addr, leaving = end == Link::Leaving, "tunnel ended; making another");
                    // Users may be waiting at the process that takes the Proxy's place.
                    if end == Link::Leaving { backoff.next() / 4 } else { backoff.next() }
                }
                Err(error) => {
                    if let Some(public) = error.refusal() {
                        tunnel.quarantine.refused(tunnel.number, public);
                    }
                    let wait = if error.is_refusal() { REFUSED / 2 + backoff.next() } else { backoff.next() };
                    tracing::warn!(proxy = %tunnel.addr, %error, ?wait, "no tunnel");
                    wait
                }
            },
        };
        tokio::select! {
            () = tunnel.shutdown.draining() => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    // Dropping the links hangs up: the Proxy sends no more sessions here. Those that run have connections of their own.
    tunnel.up.send_replace(false);
    tunnel.quarantine.admitted(tunnel.number);
    links.abort();
}

/// Dials, says who speaks, and hears the welcome.
async fn establish(tunnel: &Tunnel) -> Result<(IoStream, HostId), TunnelError> {
    let mut stream = tunnel.dialer.open(&tunnel.addr, false).await?;
    let host_id = tunnel.shared.host().identity.id;
    let mut extra = Extra::new();
    if let Some(wanted) = tunnel.wanted {
        extra.insert(WANTED.into(), wanted.to_string().into());
    }
    let register = ToProxy::Register { host_id, boot_id: tunnel.boot_id.clone(), extra };
    frame::write_frame(&mut stream, &encode(&register), DEADLINE).await?;
    match decode(&frame::read_frame(&mut stream, DEADLINE).await?) {
        Ok(ToAgent::Welcome { proxy_id, peers, addr }) => {
            *tunnel.back.lock().unwrap_or_else(PoisonError::into_inner) = addr;
            tunnel.proxies.told(proxy_id, peers);
            Ok((stream, proxy_id))
        }
        Ok(ToAgent::Refused { error }) => Err(TunnelError::Refused(error)),
        Ok(
            ToAgent::Open { .. } | ToAgent::Spare { .. } | ToAgent::Ping { .. } | ToAgent::Peers { .. } | ToAgent::Drain | ToAgent::Unknown,
        )
        | Err(_) => Err(TunnelError::NoWelcome),
    }
}

/// Obeys one Proxy until the connection ends.
async fn control(tunnel: Arc<Tunnel>, stream: IoStream, proxy: HostId, state: watch::Sender<Link>) {
    let (reading, mut writing) = tokio::io::split(stream);
    let mut reader = frame::Reader::new(reading);
    let (say, mut words) = mpsc::channel::<ToProxy>(64);
    loop {
        let message = tokio::select! {
            word = words.recv() => {
                let Some(word) = word else { break };
                if frame::write_frame(&mut writing, &encode(&word), DEADLINE).await.is_err() {
                    break;
                }
                continue;
            }
            frame = reader.next(SILENCE) => match frame {
                Ok(payload) => decode::<ToAgent>(&payload),
                Err(error) => {
                    tracing::info!(proxy = %tunnel.addr, %error, "the tunnel's connection ended");
                    break;
                }
            },
        };
        match message {
            Ok(ToAgent::Open { ticket, client_addr }) => open(&tunnel, ticket, &client_addr, &say),
            Ok(ToAgent::Spare { keep }) => {
                if !tunnel.spare.swap(keep, SeqCst) && keep {
                    tunnel.sessions.spawn("spare", spare(tunnel.clone()));
                }
            }
            Ok(ToAgent::Ping { seq }) => {
                // A full queue means that the Proxy does not read: it will hear nothing, and that is right.
                let _dropped = say.try_send(ToProxy::Pong { seq });
            }
            Ok(ToAgent::Peers { peers }) => tunnel.proxies.told(proxy, peers),
            Ok(ToAgent::Drain) => {
                state.send_replace(Link::Leaving);
            }
            Ok(ToAgent::Refused { error }) => {
                tracing::warn!(proxy = %tunnel.addr, %error, "the Proxy ends the tunnel");
                break;
            }
            // A newer Proxy's words are not for us.
            Ok(ToAgent::Welcome { .. } | ToAgent::Unknown) => {}
            Err(error) => {
                tracing::warn!(proxy = %tunnel.addr, %error, "hanging up");
                break;
            }
        }
    }
    state.send_replace(Link::Gone);
}

/// Dials back for one session.
fn open(tunnel: &Arc<Tunnel>, ticket: String, client_addr: &str, say: &mpsc::Sender<ToProxy>) {
    if tunnel.sessions.len() >= MOST || tunnel.shutdown.is_draining() {
        let error = Public::new(Code::AccessLimit, "the host has as many connections as it takes").hint("try again in a moment");
        let _dropped = say.try_send(ToProxy::Failed { ticket, error });
        return;
    }
    let (task, say, client) = (tunnel.clone(), say.clone(), client_addr.parse().ok());
    tunnel.sessions.spawn("dial back", async move {
        let dialled = async {
            let mut stream = task.dialer.open(&task.data_addr(), true).await?;
            frame::write_frame(&mut stream, &encode(&DataHello::Ticket { ticket: ticket.clone() }), DEADLINE).await?;
            Ok::<_, TunnelError>(stream)
        };
        match dialled.await {
            Ok(stream) => serve(&task, stream, client).await,
            Err(error) => {
                tracing::warn!(proxy = %task.addr, %error, "could not dial back for a session");
                let error = Public::new(Code::NodeOffline, "the host could not dial back").hint("look at the log of its agent");
                let _gone = say.send(ToProxy::Failed { ticket, error }).await;
            }
        }
    });
}

/// Keeps one connection dialled ahead; when a session takes it, the next one is dialled.
async fn spare(tunnel: Arc<Tunnel>) {
    let seed = u64::try_from(tunnel.sessions.len()).unwrap_or(0);
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1, seed);
    let mut up = tunnel.up.subscribe();
    while tunnel.spare.load(SeqCst) && !tunnel.shutdown.is_draining() {
        let waiting = async {
            // Only beside a tunnel: a Proxy takes spares of registered hosts.
            if up.wait_for(|up| *up).await.is_err() {
                return Err(TunnelError::NoWelcome);
            }
            let mut stream = tunnel.dialer.open(&tunnel.data_addr(), true).await?;
            frame::write_frame(&mut stream, &encode(&DataHello::Spare { boot_id: Some(tunnel.boot_id.clone()) }), DEADLINE).await?;
            // As long as no session comes; the connection's own keep-alive finds a dead Proxy.
            let start = frame::read_frame(&mut stream, Duration::from_secs(3600)).await?;
            Ok((stream, decode::<Start>(&start).ok()))
        };
        // The Proxy lets go of it when the tunnel ends: a session that it gave this moment is still served.
        let ending = async {
            tunnel.shutdown.draining().await;
            tokio::time::sleep(LET_GO).await;
        };
        let taken = tokio::select! {
            () = ending => return,
            taken = waiting => taken,
        };
        match taken {
            Ok((stream, Some(start))) => {
                backoff.reset();
                let (task, client) = (tunnel.clone(), start.client_addr.parse().ok());
                tunnel.sessions.spawn("warm session", async move { serve(&task, stream, client).await });
            }
            Ok((_, None)) => tracing::warn!(proxy = %tunnel.addr, "a spare connection was taken with words that cannot be read"),
            Err(error) => {
                tracing::debug!(proxy = %tunnel.addr, %error, "a spare connection ended");
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

async fn serve(tunnel: &Tunnel, stream: IoStream, client: Option<std::net::SocketAddr>) {
    ssh::serve(tunnel.shared.clone(), stream, Arrival { client, local: None }, || ()).await;
}
