//! From a client to a host: one TLS connection to the Proxy, one question, and the stream is the host's.
//!
//! Steps on the wire: TCP, TLS 1.3, hello and answer, verdict together with `Dial`, `Dialed`; then SSH, end to end. The
//! Proxy is believed because the cluster's host authority signed it; the host is checked again inside SSH
//! ([`crate::ssh`]). The serving half is `proxy::ssh`.

use crate::trust::ClusterTrust;
use net::{
    IoStream,
    clock::SharedClock,
    dial::DialError,
    frame::{FrameError, read_frame, write_frame},
    hello::HelloPolicy,
    swap::Swap,
    tls::{Authorities, ClientConfig, TlsError, TlsIdentity, Trust, client_config},
};
use std::{sync::Arc, time::Duration};
use types::{ClusterName, Code, HostId, NodeName, Public, SystemRole, Version, version::Direction};
use wire::{
    alpn,
    hello::Hello,
    route::{Dial, Dialed, Target, decode, encode},
    sni,
};

/// For the Proxy's answer: it may have to wait for the agent's dial-back.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(30);

/// Why there is no stream to the host.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{0}")]
    Refused(Public),
    #[error("the Proxy did not answer: {0}")]
    Frame(#[from] FrameError),
    #[error("the Proxy's answer cannot be read")]
    Malformed,
}

impl ConnectError {
    /// What the user may read.
    pub fn public(&self) -> Public {
        match self {
            Self::Tls(error) => Public::new(Code::Certificate, error.to_string()).hint("log in again"),
            Self::Dial(error) => error.public(),
            Self::Refused(public) => public.clone(),
            Self::Frame(FrameError::Timeout) => {
                Public::new(Code::Timeout, "the Proxy did not reach the host in time").hint("look at `tsh ls`; the host may be offline")
            }
            Self::Frame(FrameError::Closed | FrameError::Io(_)) => {
                Public::new(Code::Unavailable, "the Proxy closed the connection").hint("try again; it may be restarting")
            }
            Self::Frame(FrameError::TooLong(_)) | Self::Malformed => {
                Public::new(Code::VersionProtocol, "the Proxy's answer cannot be read")
            }
        }
    }
}
impl From<ConnectError> for Public {
    fn from(error: ConnectError) -> Self {
        error.public()
    }
}

/// A way to a cluster's hosts. Cheap to clone; clones resume each other's TLS sessions.
#[derive(Clone)]
pub struct Dialer {
    proxy: Arc<str>,
    server_name: Arc<str>,
    config: Arc<ClientConfig>,
    hello: Arc<Hello>,
    /// Kept because the configuration's session store looks at it.
    _authorities: Swap<Authorities>,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dialer({})", self.proxy)
    }
}

impl Dialer {
    /// `proxy` is `host:port`; `role` and `version` are what this process says of itself (`tsh`).
    pub fn new(
        proxy: &str,
        trust: &ClusterTrust,
        identity: &TlsIdentity,
        role: &str,
        version: &Version,
        clock: &SharedClock,
    ) -> Result<Self, TlsError> {
        let authorities = trust.swap()?;
        let config = client_config(Some(identity), Trust::Cluster(authorities.clone()), &[alpn::SSH], clock)?;
        Ok(Self {
            proxy: proxy.into(),
            server_name: sni::role_name(&SystemRole::Proxy, &trust.cluster).into(),
            config,
            hello: Arc::new(Hello::ours(version, role)),
            _authorities: authorities,
        })
    }

    /// The same, if it is that Proxy and no other of the cluster that answers.
    #[must_use]
    pub fn only_by(self, proxy: &HostId) -> Self {
        Self { server_name: sni::host_name(proxy).into(), ..self }
    }

    /// A stream to the host's SSH Service, and which host it is.
    pub async fn dial(&self, target: &Target, cluster: Option<&ClusterName>) -> Result<Node, ConnectError> {
        let (config, policy) = (self.config.clone(), HelloPolicy::default());
        let connected = net::dial::dial(&self.proxy, config, &self.server_name, &self.hello, Direction::ServerFirst, policy).await?;
        let mut stream = connected.stream;
        let dial = Dial { target: target.clone(), cluster: cluster.cloned(), extra: types::Extra::new() };
        write_frame(&mut stream, &encode(&dial), DIAL_DEADLINE).await?;
        let answer = read_frame(&mut stream, DIAL_DEADLINE).await?;
        match decode::<Dialed>(&answer).map_err(|_| ConnectError::Malformed)? {
            Dialed::Connected { host_id, hostname } => Ok(Node { stream: Box::new(stream), host_id, hostname }),
            Dialed::Refused(public) => Err(ConnectError::Refused(public)),
        }
    }
}

/// A stream to a host.
pub struct Node {
    pub stream: IoStream,
    pub host_id: HostId,
    pub hostname: NodeName,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({}, {})", self.hostname, self.host_id)
    }
}

#[cfg(test)]
mod tests;
