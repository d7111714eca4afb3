//! The ports of this process: opened here, or taken over from the process before it, or from systemd (socket activation).
//!
//! A listener is kept for as long as this process may have to serve on it or hand it on ([`Ports::descriptors`]); [`Ports::close`] is
//! the end of that, also when another process holds the same listener: what is left open here would keep an address taken.

use listenfd::ListenFd;
use net::{listen::Port, turn::Turn};
use std::{
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::{net::TcpStream, sync::mpsc};
use types::{Code, Public};
use wire::handover::Inherited;

/// Connections by which another process judges this one.
const GIVEN: usize = 4;

/// A listener from elsewhere.
pub(super) struct Found {
    pub(super) from: From,
    pub(super) listener: TcpListener,
}

pub(super) enum From {
    /// The process before, which calls it so.
    Before(Inherited),
    Systemd,
}

pub(super) struct Ports {
    turn: Turn,
    found: Mutex<Vec<Found>>,
    open: Mutex<Vec<Open>>,
    /// Where connections are given to, by the name of the door.
    doors: Mutex<Vec<(&'static str, mpsc::Sender<TcpStream>)>>,
}

struct Open {
    name: &'static str,
    addr: SocketAddr,
    listener: TcpListener,
}

/// The listeners of systemd's socket units, if it started this process. To be called before there is a second thread: it reads and clears
/// the environment.
pub(super) fn from_systemd() -> Vec<Found> {
    let mut given = ListenFd::from_env();
    let mut found = Vec::new();
    for at in 0..given.len() {
        match given.take_tcp_listener(at) {
            Ok(Some(listener)) => {
                // No session inherits it.
                if let Err(error) = rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC) {
                    tracing::warn!(%error, "a listener of systemd's is not closed for programs");
                }
                found.push(Found { from: From::Systemd, listener });
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, at, "a descriptor of systemd's is no TCP listener"),
        }
    }
    found
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ports {
    pub(super) fn new(turn: Turn, found: Vec<Found>) -> Self {
        Self { turn, found: Mutex::new(found), open: Mutex::default(), doors: Mutex::default() }
    }

    /// A port that is served in our turn, and at which connections can be given.
    pub(super) fn open(&self, name: &'static str, addr: SocketAddr, setting: &str) -> Result<Port, Public> {
        let listener = self.listener(name, addr, setting)?;
        Ok(Port::new(listener, self.turn.clone(), Some(self.door(name))))
    }

    /// A port that is served as soon as it is there. A second call gives the same listener again.
    pub(super) fn listener(&self, name: &'static str, addr: SocketAddr, setting: &str) -> Result<tokio::net::TcpListener, Public> {
        let failed = |error: std::io::Error| {
            Public::new(Code::Config, format!("the address {addr} cannot be listened on: {error}"))
                .hint(format!("another process may hold the port: set {setting}"))
        };
        let mut open = lock(&self.open);
        let known = open.iter().find(|known| known.name == name && known.addr == addr);
        let listener = match known {
            Some(known) => known.listener.try_clone(),
            None => match self.find(name, addr) {
                Some(found) => Ok(found),
                None => net::listen::bind(addr).and_then(tokio::net::TcpListener::into_std),
            },
        };
        let listener = listener.map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        if known.is_none() {
            open.push(Open { name, addr, listener: listener.try_clone().map_err(failed)? });
        }
        tokio::net::TcpListener::from_std(listener).map_err(failed)
    }

    /// Where connections for this door arrive.
    pub(super) fn door(&self, name: &'static str) -> mpsc::Receiver<TcpStream> {
        let (give, given) = mpsc::channel(GIVEN);
        lock(&self.doors).push((name, give));
        given
    }

    fn find(&self, name: &str, addr: SocketAddr) -> Option<TcpListener> {
        let mut found = lock(&self.found);
        let fits = |found: &Found| match &found.from {
            From::Before(inherited) => inherited.name == name && inherited.addr == addr.to_string(),
            From::Systemd => found.listener.local_addr().is_ok_and(|local| local == addr),
        };
        let at = found.iter().position(fits)?;
        Some(found.remove(at).listener)
    }

    /// What was found and is not wanted is closed.
    pub(super) fn forget_the_rest(&self) {
        for unused in std::mem::take(&mut *lock(&self.found)) {
            tracing::info!(addr = ?unused.listener.local_addr().ok(), "a listener is not used any more");
        }
    }

    /// Every listener, for the next process.
    pub(super) fn descriptors(&self) -> std::io::Result<Vec<(Inherited, OwnedFd)>> {
        let open = lock(&self.open);
        let each = open.iter().map(|open| {
            let inherited = Inherited { name: open.name.into(), addr: open.addr.to_string() };
            Ok((inherited, open.listener.try_clone()?.into()))
        });
        each.collect()
    }

    /// The names of doors at which connections can be given.
    pub(super) fn doors(&self) -> Vec<&'static str> {
        lock(&self.doors).iter().map(|(name, _)| *name).collect()
    }

    /// Gives a connection to whoever serves at that door.
    pub(super) async fn give(&self, name: &str, stream: TcpStream) {
        let door = lock(&self.doors).iter().find(|(known, _)| *known == name).map(|(_, give)| give.clone());
        match door {
            Some(give) => drop(give.send(stream).await),
            None => tracing::warn!(door = name, "a connection was given for a door that is not here"),
        }
    }

    /// Where that port really is.
    pub(super) fn local_addr(&self, name: &str) -> Option<SocketAddr> {
        lock(&self.open).iter().find(|open| open.name == name).and_then(|open| open.listener.local_addr().ok())
    }

    /// Nothing is handed on any more.
    pub(super) fn close(&self) {
        lock(&self.open).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, addr: &str) -> (Found, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let real = listener.local_addr().unwrap();
        (Found { from: From::Before(Inherited { name: name.into(), addr: addr.into() }), listener }, real)
    }

    #[tokio::test]
    async fn a_listener_is_taken_over_when_its_name_and_its_address_are_the_same() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (proxy, at) = found("proxy", "127.0.0.1:0");
        let (ssh, elsewhere) = found("ssh", "127.0.0.9:3022");
        let ports = Ports::new(Turn::always(), vec![proxy, ssh]);
        assert_eq!(ports.listener("proxy", any, "x").unwrap().local_addr().unwrap(), at);
        assert_eq!(ports.listener("proxy", any, "x").unwrap().local_addr().unwrap(), at, "the same one again");
        assert_ne!(ports.listener("ssh", any, "x").unwrap().local_addr().unwrap(), elsewhere, "its address was changed");
        assert!(std::net::TcpStream::connect(elsewhere).is_ok());
        ports.forget_the_rest();
        assert!(std::net::TcpStream::connect(elsewhere).is_err(), "nobody listens there any more");
        let names: Vec<_> = ports.descriptors().unwrap().into_iter().map(|(inherited, _)| inherited.name).collect();
        assert_eq!(names, ["proxy", "ssh"]);
        ports.close();
        assert!(ports.descriptors().unwrap().is_empty());
    }

    #[tokio::test]
    async fn systemd_s_listeners_are_known_by_their_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let ports = Ports::new(Turn::always(), vec![Found { from: From::Systemd, listener }]);
        // Bound anew it would be refused: the address is taken.
        assert_eq!(ports.listener("proxy", addr, "x").unwrap().local_addr().unwrap(), addr);
        let error = Ports::new(Turn::always(), Vec::new()).listener("proxy", addr, "proxy_service.web_listen_addr").unwrap_err();
        assert!(error.message.contains(&addr.to_string()) && error.hint.unwrap().contains("web_listen_addr"));
    }
}
