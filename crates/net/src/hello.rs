//! The handshake on a stream: moves the messages of `wire::hello` and tells both ends the verdict.
//!
//! C: Hello → S: Answer (hello and verdict) → C: Verdict. The client does not wait for anything after its verdict; the
//! server reads the verdict before it hands the stream on. Both ends decide with the same function, so both know the cure
//! that the other prints. Called by [`crate::dial`] and by every listener, inside TLS and before anything else.
//! A refusal carries the peer's hello so that servers can write it to the audit log.

use crate::frame::{FrameError, read_frame, write_frame};
use std::{io, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};
use types::{Code, Public, version::Direction};
use wire::hello::{Answer, BadHello, Hello, Verdict, decide, decode, encode, of_another_build, skipped};

/// How long each side waits for the whole handshake, unless told otherwise.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// How a client shakes hands.
#[derive(Clone, Copy, Debug)]
pub struct HelloPolicy {
    /// For the whole handshake.
    pub deadline: Duration,
    /// `--skip-version-check` (rule G6): a Proxy or resource service goes on with a server one major behind.
    pub skip_version_check: bool,
}

impl Default for HelloPolicy {
    fn default() -> Self {
        Self { deadline: DEADLINE, skip_version_check: false }
    }
}

/// Who refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    Us,
    Peer,
}

/// Why a handshake did not end in an accepted connection.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    #[error("{public}")]
    Refused { public: Public, by: By, peer: Option<Box<Hello>> },
    #[error("the peer does not speak Lockgate's handshake")]
    NotLockgate,
    #[error("the peer did not finish the handshake in time")]
    Timeout,
    #[error("the peer closed the connection during the handshake")]
    Closed,
    #[error("the connection failed during the handshake: {0}")]
    Io(io::Error),
}

impl HelloError {
    /// What the user or the peer may read.
    pub fn public(&self) -> Public {
        match self {
            Self::Refused { public, .. } => public.clone(),
            Self::NotLockgate => no_handshake("the peer does not speak Lockgate's handshake"),
            Self::Timeout => Public::new(Code::Timeout, "the peer did not finish the handshake in time"),
            Self::Closed => Public::new(Code::Unavailable, "the peer closed the connection during the handshake")
                .hint("it may be restarting or overloaded; try again, then look at its log"),
            Self::Io(error) => crate::tls::alert(error)
                .unwrap_or_else(|| Public::new(Code::Unavailable, format!("the connection failed during the handshake: {error}"))),
        }
    }
}
impl From<HelloError> for Public {
    fn from(error: HelloError) -> Self {
        error.public()
    }
}

impl From<FrameError> for HelloError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Timeout => Self::Timeout,
            FrameError::Closed => Self::Closed,
            // `GET ` or `SSH-` read as a length is far over the bound.
            FrameError::TooLong(_) => Self::NotLockgate,
            FrameError::Io(error) => Self::Io(error),
        }
    }
}

impl From<BadHello> for HelloError {
    fn from(error: BadHello) -> Self {
        match error {
            BadHello::NotLockgate => Self::NotLockgate,
            BadHello::Malformed(why) => {
                Self::Refused { public: no_handshake(&format!("the handshake cannot be read: {why}")), by: By::Us, peer: None }
            }
        }
    }
}

fn no_handshake(message: &str) -> Public {
    Public::new(Code::VersionProtocol, message).hint("check that the address and port are those of a Lockgate service")
}

/// The calling end; returns the server's hello. Writes its own verdict and does not wait for what the server makes of it.
pub async fn client<S>(stream: &mut S, ours: &Hello, direction: Direction, policy: HelloPolicy) -> Result<Hello, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match tokio::time::timeout(policy.deadline, client_talk(stream, ours, direction, policy)).await {
        Ok(result) => result,
        Err(_) => Err(HelloError::Timeout),
    }
}

async fn client_talk<S>(stream: &mut S, ours: &Hello, direction: Direction, policy: HelloPolicy) -> Result<Hello, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let flagged;
    let ours = if policy.skip_version_check && !ours.skips_version_check {
        flagged = Hello { skips_version_check: true, ..ours.clone() };
        &flagged
    } else {
        ours
    };
    write_frame(stream, &encode(ours), policy.deadline).await?;
    let Answer { hello: peer, verdict: theirs } = decode(&read_frame(stream, policy.deadline).await?)?;
    let verdict = decide(direction, ours, &peer);
    let told = write_frame(stream, &encode(&verdict), policy.deadline).await;
    match (verdict, theirs) {
        (Verdict::Refuse(public), _) => Err(HelloError::Refused { public, by: By::Us, peer: Some(Box::new(peer)) }),
        // A server that refused may be gone before our verdict arrives; its reason is the better one.
        (Verdict::Accept, Verdict::Refuse(public)) => Err(HelloError::Refused { public, by: By::Peer, peer: Some(Box::new(peer)) }),
        (Verdict::Accept, Verdict::Accept) => {
            told?;
            if skipped(direction, ours, &peer) {
                tracing::warn!(ours = %ours.version, server = %peer.version, role = %peer.role, "going on with an older server: --skip-version-check");
            }
            if of_another_build(ours, &peer) {
                tracing::info!(version = %peer.version, role = %peer.role, "hint: this program is another build of the server's version; compare with: lockgate version");
            }
            Ok(peer)
        }
    }
}

/// The serving end; returns the client's hello. `wire::hello::skipped` tells whether to write a skipped check to the audit log.
pub async fn server<S>(stream: &mut S, ours: &Hello, direction: Direction, deadline: Duration) -> Result<Hello, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match tokio::time::timeout(deadline, server_talk(stream, ours, direction, deadline)).await {
        Ok(result) => result,
        Err(_) => Err(HelloError::Timeout),
    }
}

async fn server_talk<S>(stream: &mut S, ours: &Hello, direction: Direction, deadline: Duration) -> Result<Hello, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let first = read_frame(stream, deadline).await?;
    let (result, verdict) = match decode::<Hello>(&first).map_err(HelloError::from) {
        Ok(peer) => match decide(direction, &peer, ours) {
            Verdict::Accept => (Ok(peer), Verdict::Accept),
            Verdict::Refuse(public) => {
                (Err(HelloError::Refused { public: public.clone(), by: By::Us, peer: Some(Box::new(peer)) }), Verdict::Refuse(public))
            }
        },
        // It spoke our framing and our magic: tell it what is wrong.
        Err(HelloError::Refused { public, by, peer }) => {
            (Err(HelloError::Refused { public: public.clone(), by, peer }), Verdict::Refuse(public))
        }
        Err(other) => return Err(other),
    };
    let told = write_frame(stream, &encode(&Answer { hello: ours.clone(), verdict }), deadline).await;
    let peer = result?;
    told?;
    match decode(&read_frame(stream, deadline).await?)? {
        Verdict::Accept => Ok(peer),
        Verdict::Refuse(public) => Err(HelloError::Refused { public, by: By::Peer, peer: Some(Box::new(peer)) }),
    }
}
