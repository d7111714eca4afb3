//! Hosts that are reached directly: they joined at an Auth Service and listen themselves.
//!
//! The address is the one that the Auth Service observed, as digits (attack table, row 13: nothing is resolved, nothing a peer
//! supplied is dialled), and the certificate must be that host's, by id. Then the host hears a `Dial` for itself.

use super::Visitor;
use crate::tunnel::link::in_our_words;
use client::host::HostCredentials;
use net::{
    IoStream,
    clock::SharedClock,
    dial::dial,
    frame::{read_frame, write_frame},
    hello::HelloPolicy,
    swap::Swap,
    tls::{Authorities, ClientConfig, TlsError, Trust, client_config},
};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use types::{Code, Public, version::Direction};
use wire::{
    alpn,
    hello::Hello,
    route::{Dial, Dialed, Target, decode, encode},
    sni,
};

const DEADLINE: Duration = Duration::from_secs(10);

/// Dials hosts as this Proxy. One TLS configuration per set of credentials, so that sessions resume.
pub(crate) struct Direct {
    credentials: watch::Receiver<Arc<HostCredentials>>,
    clock: SharedClock,
    authorities: Swap<Authorities>,
    made: Mutex<Option<(Arc<HostCredentials>, Arc<ClientConfig>)>>,
}

impl Direct {
    pub(crate) fn new(credentials: watch::Receiver<Arc<HostCredentials>>, clock: SharedClock, authorities: Swap<Authorities>) -> Self {
        Self { credentials, clock, authorities, made: Mutex::new(None) }
    }

    fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let now = self.credentials.borrow().clone();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, config)) = made.as_ref().filter(|(with, _)| Arc::ptr_eq(with, &now)) {
            return Ok(config.clone());
        }
        let config = client_config(Some(&now.tls), Trust::Cluster(self.authorities.clone()), &[alpn::SSH], &self.clock)?;
        *made = Some((now, config.clone()));
        Ok(config)
    }

    pub(crate) async fn open(&self, hello: &Hello, host: &rules::permit::Dial, visitor: &Visitor) -> Result<IoStream, Public> {
        let offline = || {
            Public::new(Code::NodeOffline, "the host is registered but does not answer").hint("check that its agent runs: lockgate status")
        };
        let addr = host
            .addr
            .parse::<SocketAddr>()
            .ok()
            .filter(|addr| !addr.ip().is_unspecified() && !addr.ip().is_multicast() && addr.port() != 0);
        let Some(addr) = addr else {
            tracing::warn!(host = %host.host, addr = %host.addr, "the address of a host is not one that can be dialled");
            return Err(offline());
        };
        let failed = |error: &dyn std::fmt::Display| {
            tracing::info!(host = %host.host, %addr, %error, "a host could not be reached directly");
            offline()
        };
        let config = self.config().map_err(|error| failed(&error))?;
        let direction = wire::edge::find("lockgate-ssh (direct)").map_or(Direction::CallerSpeaksOlder, |edge| edge.direction);
        let policy = HelloPolicy { deadline: DEADLINE, skip_version_check: false };
        let mut stream = match dial(&addr.to_string(), config, &sni::host_name(&host.host), hello, direction, policy).await {
            Ok(connected) => connected.stream,
            Err(net::dial::DialError::Hello { source, .. }) => return Err(source.public()),
            Err(error) => return Err(failed(&error)),
        };
        let mut extra = types::Extra::new();
        extra.insert("client_addr".into(), visitor.peer.to_string().into());
        let ask = Dial { target: Target::Id(host.host), cluster: None, extra };
        write_frame(&mut stream, &encode(&ask), DEADLINE).await.map_err(|error| failed(&error))?;
        let answer = read_frame(&mut stream, DEADLINE).await.map_err(|error| failed(&error))?;
        match decode::<Dialed>(&answer).map_err(|error| failed(&error))? {
            Dialed::Connected { host_id, .. } if host_id == host.host => Ok(Box::new(stream)),
            Dialed::Connected { .. } => Err(failed(&"another host answered")),
            Dialed::Refused(error) => Err(in_our_words(&error)),
        }
    }
}
