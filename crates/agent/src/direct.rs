//! Being reached directly: a port for plain SSH, and for Proxies that come over TLS on behalf of a user.
//!
//! Only for hosts that joined at an Auth Service; one that joined by tunnel never listens. The first byte tells the two
//! apart. A TLS peer must be a Proxy of this cluster and name *this* host (`wire::route`); from then on, and from the first
//! byte of a plain connection, it is SSH and decided there: who the Proxy is gives the user nothing.

use crate::ssh::{self, Arrival, Shared};
use net::{
    clock::SharedClock,
    eager::Eager,
    frame::{FrameError, read_frame, write_frame},
    hello::{self, HelloError},
    listen::{Conn, Permit},
    swap::Swap,
    tls::{self, Authorities, ServerConfig, TlsError},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use types::{Code, Identity, Public, SystemRole, version::Direction};
use wire::{
    hello::Hello,
    route::{Dial, Dialed, Target, decode, encode},
};

const DEADLINE: Duration = Duration::from_secs(10);
/// A TLS client speaks at once. An SSH client may wait for our version line (RFC 4253, section 4.2): silence is SSH.
const PATIENCE: Duration = Duration::from_secs(1);
/// First byte of a TLS handshake record.
const TLS: u8 = 0x16;

/// What the port's connections need.
pub(crate) struct Direct {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) authorities: Swap<Authorities>,
    pub(crate) clock: SharedClock,
    pub(crate) hello: Hello,
}

/// Why a connection did not come to SSH.
#[derive(Debug, thiserror::Error)]
enum DirectError {
    #[error("it failed: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it is not a Proxy of this cluster")]
    NotAProxy,
    #[error("it asked for another host")]
    NotUs,
}

/// Serves one connection to its end.
pub(crate) async fn serve(direct: Arc<Direct>, conn: Conn) {
    let Conn { stream, peer, permit } = conn;
    let local = stream.local_addr().ok();
    let result = async {
        let mut first = [0];
        let seen = match tokio::time::timeout(PATIENCE, stream.peek(&mut first)).await {
            Ok(seen) => Some(seen?),
            Err(_) => None,
        };
        match seen {
            Some(0) => Ok(()),
            Some(_) if first == [TLS] => {
                let (stream, client) = accept(&direct, stream, &permit).await?;
                ssh::serve(direct.shared.clone(), stream, Arrival { client, local }, || ()).await;
                Ok(())
            }
            Some(_) | None => {
                ssh::serve(direct.shared.clone(), stream, Arrival { client: Some(peer), local }, || permit.authenticated()).await;
                Ok(())
            }
        }
    };
    if let Err(error) = result.await {
        let error: DirectError = error;
        tracing::debug!(%peer, %error, "no SSH connection");
    }
}

/// A Proxy's connection, up to where SSH begins; with the address of the user it comes for.
async fn accept(
    direct: &Direct,
    stream: TcpStream,
    permit: &Permit,
) -> Result<(TlsStream<Eager<TcpStream>>, Option<SocketAddr>), DirectError> {
    let accepted = tls::accept(stream, direct.tls.clone(), &direct.authorities, &direct.clock, DEADLINE).await?;
    identify(accepted.identity.as_ref())?;
    permit.authenticated();
    let mut stream = accepted.stream;
    hello::server(&mut stream, &direct.hello, direction(), DEADLINE).await?;
    let asked: Option<Dial> = decode(&read_frame(&mut stream, DEADLINE).await?).ok();
    let us = direct.shared.host().identity.clone();
    match asked {
        Some(Dial { target: Target::Id(id), extra, .. }) if id == us.id => {
            let answer = Dialed::Connected { host_id: us.id, hostname: us.name };
            write_frame(&mut stream, &encode(&answer), DEADLINE).await?;
            let client = extra.get("client_addr").and_then(|text| text.as_str()).and_then(|text| text.parse().ok());
            Ok((stream, client))
        }
        Some(Dial { target: Target::Id(_) | Target::Name(_), .. }) | None => {
            let refusal = Dialed::Refused(Public::new(Code::NodeUnknown, "this is another host"));
            write_frame(&mut stream, &encode(&refusal), DEADLINE).await?;
            Err(DirectError::NotUs)
        }
    }
}

/// Only a Proxy comes over TLS. That it is of this cluster, TLS has checked.
fn identify(identity: Option<&Identity>) -> Result<(), DirectError> {
    if identity.is_some_and(|identity| identity.has_system_role(&SystemRole::Proxy)) { Ok(()) } else { Err(DirectError::NotAProxy) }
}

fn direction() -> Direction {
    wire::edge::find("lockgate-ssh (direct)").map_or(Direction::CallerSpeaksOlder, |edge| edge.direction)
}
