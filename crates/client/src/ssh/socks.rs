//! SOCKS 5 (RFC 1928), the serving half: what a program on this machine says to a `tsh ssh -D` port.
//!
//! Only the greeting without authentication and CONNECT are offered: the port is on loopback and leads where the user's roles
//! allow. Every length is one byte long, so a request is bounded by its format; the deadline is the caller's
//! ([`super::forward`]), and so is the answer once the host has opened the connection or not. Names are passed on unresolved,
//! so that they mean what they mean to the host.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Where a client wants to be connected to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// A name or an address: printable ASCII, 1 to 255 bytes.
    pub host: String,
    pub port: u16,
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Why a client is sent away.
#[derive(Debug, thiserror::Error)]
pub enum SocksError {
    #[error("the client does not speak SOCKS 5")]
    NotSocks,
    #[error("the client insists on authentication")]
    Authentication,
    #[error("the client asked for SOCKS command {0}; only CONNECT (1) is offered")]
    Command(u8),
    #[error("the client gave an address of type {0}, which is unknown")]
    AddressType(u8),
    #[error("the client gave a host name that is none")]
    BadName,
    #[error("the client's connection: {0}")]
    Io(#[from] std::io::Error),
}

/// RFC 1928, section 6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reply {
    Connected = 0,
    Failed = 1,
    NotAllowed = 2,
    Unreachable = 4,
    NoSuchCommand = 7,
    NoSuchAddressType = 8,
}

impl Reply {
    /// The whole message; the bound address is nobody's business and all zeros.
    pub fn bytes(self) -> [u8; 10] {
        [5, self as u8, 0, 1, 0, 0, 0, 0, 0, 0]
    }
}

/// Greeting and request. Refusals have been answered when this returns; a [`Wanted`] has not.
pub async fn read_request<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<Wanted, SocksError> {
    if stream.read_u8().await? != 5 {
        return Err(SocksError::NotSocks);
    }
    let mut offered = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut offered).await?;
    if !offered.contains(&0) {
        stream.write_all(&[5, 0xff]).await?;
        return Err(SocksError::Authentication);
    }
    stream.write_all(&[5, 0]).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [5, command, _, address_type] = head else { return Err(SocksError::NotSocks) };
    if command != 1 {
        stream.write_all(&Reply::NoSuchCommand.bytes()).await?;
        return Err(SocksError::Command(command));
    }
    let host = match address_type {
        1 => std::net::Ipv4Addr::from(stream.read_u32().await?).to_string(),
        3 => match read_name(stream).await? {
            Some(name) => name,
            None => {
                stream.write_all(&Reply::Failed.bytes()).await?;
                return Err(SocksError::BadName);
            }
        },
        4 => std::net::Ipv6Addr::from(stream.read_u128().await?).to_string(),
        other => {
            stream.write_all(&Reply::NoSuchAddressType.bytes()).await?;
            return Err(SocksError::AddressType(other));
        }
    };
    Ok(Wanted { host, port: stream.read_u16().await? })
}

async fn read_name<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<String>, std::io::Error> {
    let mut name = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut name).await?;
    Ok(String::from_utf8(name).ok().filter(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    async fn ask(bytes: &[u8]) -> (Result<Wanted, SocksError>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(4096);
        far.write_all(bytes).await.unwrap();
        far.shutdown().await.unwrap();
        let result = read_request(&mut near).await;
        drop(near);
        let mut said = Vec::new();
        far.read_to_end(&mut said).await.unwrap();
        (result, said)
    }

    #[tokio::test]
    async fn a_client_is_understood_or_told_why_not() {
        async fn wants(bytes: &[u8], want: &str) {
            let (asked, said) = ask(bytes).await;
            assert_eq!((asked.unwrap().to_string().as_str(), said.as_slice()), (want, &[5, 0][..]), "{bytes:?}");
        }
        wants(b"\x05\x01\x00\x05\x01\x00\x03\x0bexample.com\x00\x50", "example.com:80").await;
        wants(b"\x05\x02\x02\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x01\xbb", "127.0.0.1:443").await;
        wants(b"\x05\x01\x00\x05\x01\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x16", "::1:22").await;
        async fn refuses(bytes: &[u8], why: &str, answer: &[u8]) {
            let (asked, said) = ask(bytes).await;
            let error = asked.unwrap_err().to_string();
            assert!(error.contains(why), "{bytes:?}: {error}");
            assert!(said.starts_with(answer), "{bytes:?} was answered {said:?}");
        }
        refuses(b"GET / HTTP/1.1", "does not speak", b"").await;
        refuses(b"\x04\x01\0\x50\x7f\0\0\x01\0", "does not speak", b"").await;
        refuses(b"\x05\x01\x02", "authentication", &[5, 0xff]).await;
        refuses(b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x01\xbb", "command 2", &[5, 0, 5, 7]).await;
        refuses(b"\x05\x01\x00\x05\x01\x00\x09", "type 9", &[5, 0, 5, 8]).await;
        refuses(b"\x05\x01\x00\x05\x01\x00\x03\x03a\nb\0\x50", "none", &[5, 0, 5, 1]).await;
        refuses(b"\x05\x01\x00\x05\x01\x00\x03\x00\0\x50", "none", &[5, 0, 5, 1]).await;
        refuses(b"\x05\x01\x00\x05\x01\x00\x03\x0bexamp", "connection", &[5, 0]).await;
    }

    proptest! {
        #[test]
        fn attack_row_21_any_bytes_are_a_request_or_a_refusal(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            if let (Ok(wanted), _) = runtime.block_on(ask(&bytes)) {
                prop_assert!((1..=255).contains(&wanted.host.len()) && wanted.host.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
