//! Ports of this machine that lead to the host's network: `-L` (one destination) and `-D` (SOCKS 5, RFC 1928).
//!
//! Listeners are opened by the caller, on loopback unless the user says otherwise. The host's policy decides whether a
//! destination may be reached; here a refusal ends that one connection and nothing else.

use super::{Session, SshError};
use net::{copy, shutdown::Shutdown, task::Group};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
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

/// Why a connection was not forwarded.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    #[error("the client did not say in time where to")]
    Timeout,
    #[error("the client does not speak SOCKS 5")]
    NotSocks,
    #[error("only SOCKS connections to a host are offered")]
    Unsupported,
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Ssh(#[from] SshError),
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
            if let Err(error) = one(&session, stream, from, &destination).await {
                tracing::warn!(%error, ?destination, "a connection was not forwarded");
            }
        });
    }
}

async fn one(session: &Session, mut stream: TcpStream, from: SocketAddr, destination: &Destination) -> Result<(), ForwardError> {
    let far = match destination {
        Destination::Fixed { host, port } => session.open_direct(host, *port, from).await?,
        Destination::Socks => {
            let asked = tokio::time::timeout(SOCKS_DEADLINE, socks_request(&mut stream)).await.map_err(|_| ForwardError::Timeout)??;
            match session.open_direct(&asked.0, asked.1, from).await {
                Ok(far) => {
                    stream.write_all(&socks_reply(0)).await?;
                    far
                }
                Err(error) => {
                    // 2: not allowed; 4: not reachable.
                    let code = if matches!(error, SshError::ChannelRefused(russh::ChannelOpenFailure::AdministrativelyProhibited)) {
                        2
                    } else {
                        4
                    };
                    stream.write_all(&socks_reply(code)).await?;
                    return Err(error.into());
                }
            }
        }
    };
    copy::splice(stream, far, copy::Options::default()).await;
    Ok(())
}

fn socks_reply(code: u8) -> [u8; 10] {
    [5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// RFC 1928: greeting without authentication, then a CONNECT. Returns host and port.
async fn socks_request<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<(String, u16), ForwardError> {
    let (version, methods) = (stream.read_u8().await?, stream.read_u8().await?);
    if version != 5 {
        return Err(ForwardError::NotSocks);
    }
    let mut offered = vec![0; usize::from(methods)];
    stream.read_exact(&mut offered).await?;
    if !offered.contains(&0) {
        stream.write_all(&[5, 0xff]).await?;
        return Err(ForwardError::Unsupported);
    }
    stream.write_all(&[5, 0]).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [5, command, _, address] = head else { return Err(ForwardError::NotSocks) };
    let host = match address {
        1 => {
            let mut v4 = [0; 4];
            stream.read_exact(&mut v4).await?;
            std::net::Ipv4Addr::from(v4).to_string()
        }
        3 => {
            let mut name = vec![0; usize::from(stream.read_u8().await?)];
            stream.read_exact(&mut name).await?;
            String::from_utf8(name).ok().filter(|name| !name.is_empty() && name.is_ascii()).ok_or(ForwardError::NotSocks)?
        }
        4 => {
            let mut v6 = [0; 16];
            stream.read_exact(&mut v6).await?;
            std::net::Ipv6Addr::from(v6).to_string()
        }
        _ => {
            stream.write_all(&socks_reply(8)).await?;
            return Err(ForwardError::Unsupported);
        }
    };
    let port = stream.read_u16().await?;
    if command != 1 {
        stream.write_all(&socks_reply(7)).await?;
        return Err(ForwardError::Unsupported);
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    async fn ask(bytes: &[u8]) -> (Result<(String, u16), ForwardError>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(4096);
        far.write_all(bytes).await.unwrap();
        far.shutdown().await.unwrap();
        let result = socks_request(&mut near).await;
        drop(near);
        let mut said = Vec::new();
        far.read_to_end(&mut said).await.unwrap();
        (result, said)
    }

    #[tokio::test]
    async fn socks_clients_are_understood_or_told_why_not() {
        let (asked, said) = ask(b"\x05\x01\x00\x05\x01\x00\x03\x0bexample.com\x00\x50").await;
        assert_eq!((asked.unwrap(), said), (("example.com".to_owned(), 80), vec![5, 0]));
        let (asked, _) = ask(b"\x05\x02\x02\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x01\xbb").await;
        assert_eq!(asked.unwrap(), ("127.0.0.1".to_owned(), 443));
        let (asked, said) = ask(b"\x05\x01\x02").await;
        assert!(matches!(asked, Err(ForwardError::Unsupported)) && said == [5, 0xff]);
        let (asked, said) = ask(b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x01\xbb").await;
        assert!(matches!(asked, Err(ForwardError::Unsupported)) && said[2..4] == [5, 7]);
        assert!(matches!(ask(b"GET / HTTP/1.1").await.0, Err(ForwardError::NotSocks)));
    }

    proptest! {
        #[test]
        fn attack_row_21_any_bytes_are_a_request_or_a_refusal(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            if let (Ok((host, _)), _) = runtime.block_on(ask(&bytes)) {
                prop_assert!(host.len() <= 255);
            }
        }
    }
}
