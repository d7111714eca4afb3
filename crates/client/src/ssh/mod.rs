//! The client's end of an SSH session: host certificate checked, user certificate shown, then shells, commands, forwards.
//!
//! Everything runs over a stream that someone else opened ([`crate::connect`]); nothing here knows a terminal: input and
//! output are streams, window changes and signals come by channel ([`Control`]). A peer without strict key exchange is
//! refused before anything is sent under its keys (attack table, row 20). Whatever the *server* tries to open is refused,
//! except an agent channel where the user asked for agent forwarding. The serving half is `agent::ssh`.

mod drive;
pub mod forward;
mod host;
#[cfg(test)]
mod peer;
mod progress;
pub mod socks;

pub use drive::{Control, Exit, Pty, Request, Streams};
pub use host::{ExpectedHost, HostCheckError};
pub use russh::{Pty as PtyMode, Sig};

use net::{IoStream, clock::SharedClock, elastic::Elastic, task::Group};
use progress::Progress;
use russh::{
    ChannelOpenFailure, Disconnect, Names, Preferred, SshId, cipher,
    client::{self, AuthResult, DisconnectReason, Handle, Msg},
    compression, kex,
    keys::{Algorithm, Certificate, PrivateKey, PublicKeyOrCertificate},
    mac,
};
use std::{borrow::Cow, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;
use types::{Code, Login, Public};

/// For the key exchange, and again for authentication.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(20);
/// For the server's answer to a request that it can answer at once.
pub const REPLY_DEADLINE: Duration = Duration::from_secs(30);
/// What may be under way towards us on one channel: one session on its own, or many forwards together.
const WINDOW: u32 = 2 << 20;
const WINDOW_FORWARDING: u32 = 512 << 10;
/// Data in one packet: with what SSH puts around it, four TLS records, half as many packets as OpenSSH's 32 KiB.
/// russh takes no more than 65,535; a host that sends less is not asked for more.
const PACKET: u32 = 65_490;
/// The most bytes read while a write waits: the windows of 32 channels.
const SOAKED: usize = 16 << 20;
/// Messages that wait for a channel's reader before the connection stops reading. Small ones must fit for as long as a
/// person pauses the terminal, so that keep-alives are still answered.
const CHANNEL_BUFFER: usize = 1024;

/// What opening a session takes.
#[derive(Clone)]
pub struct Connecting {
    pub login: Login,
    pub key: Arc<PrivateKey>,
    pub certificate: Certificate,
    pub expected: ExpectedHost,
    /// Whether ports will be forwarded: smaller windows, because there may be many channels.
    pub forwarding: bool,
    /// The user's SSH agent, when agent forwarding was asked for.
    pub agent_socket: Option<PathBuf>,
    /// Between signs of life; four without an answer, or four without any movement, end the connection.
    pub keep_alive: Duration,
    pub clock: SharedClock,
}

impl std::fmt::Debug for Connecting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connecting({} at {})", self.login, self.expected.asked)
    }
}

/// Why there is no session, or why it ended early.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    #[error("the host did not finish the {0} in time")]
    Timeout(&'static str),
    #[error(transparent)]
    Host(#[from] HostCheckError),
    #[error("the host does not offer strict key exchange")]
    NotStrict,
    #[error("the host refused the login: {}", .0.message)]
    Denied(Public),
    #[error("the host refused the {0}")]
    Refused(&'static str),
    #[error("the host refused to open a channel: {0:?}")]
    ChannelRefused(ChannelOpenFailure),
    #[error("the connection ended before the command did{}", .0.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Ended(Option<String>),
    #[error("the connection stopped moving")]
    Stalled,
    #[error("output could not be written: {0}")]
    Output(std::io::Error),
    #[error("the SSH protocol failed: {0}")]
    Protocol(#[from] russh::Error),
}

impl SshError {
    /// What the user may read.
    pub fn public(&self) -> Public {
        let say = |code| Public::new(code, self.to_string());
        match self {
            Self::Denied(public) => public.clone(),
            Self::Timeout(_) | Self::Stalled => say(Code::Timeout).hint("try again; look at `tsh ls`"),
            Self::Host(_) => {
                say(Code::Certificate).hint("do not go on: another machine may be in the way; if the cluster was rebuilt, log in again")
            }
            Self::NotStrict => say(Code::VersionProtocol).hint("the host's SSH server is too old to be safe; upgrade it"),
            Self::Refused(_) | Self::ChannelRefused(ChannelOpenFailure::AdministrativelyProhibited) => {
                say(Code::AccessDenied).hint("your roles may not allow this; `tsh status` shows them")
            }
            Self::ChannelRefused(_) => say(Code::AccessLimit),
            Self::Ended(_) => say(Code::Unavailable).hint("try again; the host or a Proxy may have restarted"),
            Self::Output(_) => say(Code::Internal),
            Self::Protocol(russh::Error::NoCommonAlgo { .. }) => {
                say(Code::VersionProtocol).hint("the host's SSH server offers no algorithm that is accepted here")
            }
            Self::Protocol(_) => say(Code::Unavailable).hint("try again; if it stays, look at the log of the host's SSH Service"),
        }
    }
}
impl From<SshError> for Public {
    fn from(error: SshError) -> Self {
        error.public()
    }
}

/// An authenticated connection to a host. Dropping it ends it.
pub struct Session {
    handle: Arc<Handle<Handler>>,
    notes: watch::Receiver<Notes>,
    progress: Arc<Progress>,
    keep_alive: Duration,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session(closed: {})", self.handle.is_closed())
    }
}

/// Opens a session over `stream`: key exchange, host check, authentication.
pub async fn connect(stream: IoStream, connecting: Connecting) -> Result<Session, SshError> {
    let stream = Elastic::new(stream, SOAKED);
    let progress = Progress::new(stream.moved());
    let (noted, notes) = watch::channel(Notes::default());
    let config = Arc::new(config(&connecting));
    let handler = Handler {
        expected: connecting.expected,
        clock: connecting.clock,
        agent_socket: connecting.agent_socket,
        noted,
        group: Group::new("ssh client"),
    };
    let exchange = client::connect_stream(config, stream, handler);
    let mut handle = tokio::time::timeout(HANDSHAKE_DEADLINE, exchange).await.map_err(|_| SshError::Timeout("key exchange"))??;
    let login = connecting.login.to_string();
    let proof = handle.authenticate_openssh_cert(login.clone(), connecting.key, connecting.certificate);
    match tokio::time::timeout(HANDSHAKE_DEADLINE, proof).await.map_err(|_| SshError::Timeout("login"))?? {
        AuthResult::Success => {}
        AuthResult::Failure { .. } => return Err(denied(&login, &notes.borrow())),
    }
    Ok(Session { handle: Arc::new(handle), notes, progress, keep_alive: connecting.keep_alive })
}

/// The key exchange and the host check alone: whether it is that host that serves here. Nobody logs in.
pub async fn meet(stream: IoStream, expected: ExpectedHost, clock: SharedClock) -> Result<(), SshError> {
    let (noted, _) = watch::channel(Notes::default());
    let handler = Handler { expected, clock, agent_socket: None, noted, group: Group::new("ssh client") };
    let config = client::Config { preferred: preferred(), ..client::Config::default() };
    let exchange = client::connect_stream(Arc::new(config), stream, handler);
    let handle = tokio::time::timeout(HANDSHAKE_DEADLINE, exchange).await.map_err(|_| SshError::Timeout("key exchange"))??;
    let _gone = handle.disconnect(Disconnect::ByApplication, "", "").await;
    Ok(())
}

/// The host may have said why in a banner or in its goodbye: a [`Public`] as JSON, or a sentence.
fn denied(login: &str, notes: &Notes) -> SshError {
    let said = notes.banner.as_deref().or(notes.goodbye.as_deref()).map(str::trim).filter(|text| !text.is_empty());
    if let Some(public) = said.and_then(|text| serde_json::from_str(text).ok()) {
        return SshError::Denied(public);
    }
    let message = said.map_or_else(|| format!("access denied for login \"{login}\""), |text| printable(text, 500));
    SshError::Denied(Public::new(Code::AccessDenied, message).hint("`tsh status` shows the logins you may use"))
}

/// Text of a peer that may be shown on a terminal.
fn printable(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

impl Session {
    /// Runs a command or a shell to its end. See [`Request`] and [`Streams`].
    pub async fn run<I, O, E>(&self, request: Request, streams: Streams<I, O, E>) -> Result<Exit, SshError>
    where
        I: tokio::io::AsyncRead + Unpin + Send,
        O: tokio::io::AsyncWrite + Unpin + Send,
        E: tokio::io::AsyncWrite + Unpin + Send,
    {
        drive::run(self, request, streams).await
    }

    /// A connection from the host to `host:port`, as `ssh -L` and `-D` make them.
    pub async fn open_direct(&self, host: &str, port: u16, from: std::net::SocketAddr) -> Result<IoStream, SshError> {
        let opening = self.handle.channel_open_direct_tcpip(host, u32::from(port), from.ip().to_string(), u32::from(from.port()));
        let opened = tokio::time::timeout(REPLY_DEADLINE, opening).await.map_err(|_| SshError::Timeout("forwarding"))?;
        Ok(Box::new(opened.map_err(|error| self.because(error))?.into_stream()))
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Waits until the connection has ended, or stopped moving.
    pub async fn closed(&self) -> SshError {
        let mut notes = self.notes.clone();
        tokio::select! {
            _ = notes.wait_for(|notes| notes.over) => self.ended(),
            error = self.watchdog() => error,
        }
    }

    /// Says goodbye. Dropping does the same without waiting.
    pub async fn close(self) {
        let goodbye = self.handle.disconnect(Disconnect::ByApplication, "", "en");
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    }

    /// Ends when nothing moved for four keep-alives and the standstill is not ours: both ends of a healthy connection
    /// exchange keep-alives, so silence means that one of them is stuck.
    async fn watchdog(&self) -> SshError {
        let mut before = self.progress.moved();
        loop {
            tokio::time::sleep(self.keep_alive.saturating_mul(4)).await;
            let now = self.progress.moved();
            if now == before && !self.progress.is_ours() {
                return SshError::Stalled;
            }
            before = now;
        }
    }

    fn ended(&self) -> SshError {
        let notes = self.notes.borrow();
        SshError::Ended(notes.goodbye.as_deref().filter(|text| !text.is_empty()).map(|text| printable(text, 500)))
    }

    fn because(&self, error: russh::Error) -> SshError {
        match error {
            russh::Error::ChannelOpenFailure(why) => SshError::ChannelRefused(why),
            russh::Error::Disconnect | russh::Error::SendError | russh::Error::HUP => self.ended(),
            other => SshError::Protocol(other),
        }
    }
}

/// Whether this machine has AES instructions: then AES-GCM is 2.5 times as fast as ChaCha20 (measured), else slower.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// The algorithms we speak: AEAD ciphers, modern exchanges, Ed25519 and ECDSA host certificates, strict key exchange.
fn preferred() -> Preferred {
    const FAST_AES: &[cipher::Name] = &[cipher::AES_256_GCM, cipher::AES_128_GCM, cipher::CHACHA20_POLY1305];
    const NO_AES: &[cipher::Name] = &[cipher::CHACHA20_POLY1305, cipher::AES_256_GCM, cipher::AES_128_GCM];
    Preferred {
        kex: Cow::Borrowed(&[
            kex::MLKEM768X25519_SHA256,
            kex::CURVE25519,
            kex::CURVE25519_PRE_RFC_8731,
            kex::EXTENSION_SUPPORT_AS_CLIENT,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
        ]),
        // Offered so that a server without a certificate is refused by name and not by "no common algorithm".
        key: Cow::Borrowed(&[Algorithm::Ed25519]),
        host_key_certificates: Cow::Borrowed(&[Algorithm::Ed25519, Algorithm::Ecdsa { curve: russh::keys::EcdsaCurve::NistP256 }]),
        cipher: Cow::Borrowed(if has_aes() { FAST_AES } else { NO_AES }),
        mac: Cow::Borrowed(&[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM]),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

fn config(connecting: &Connecting) -> client::Config {
    client::Config {
        client_id: SshId::Standard(Cow::Borrowed("SSH-2.0-Lockgate")),
        window_size: if connecting.forwarding { WINDOW_FORWARDING } else { WINDOW },
        maximum_packet_size: PACKET,
        channel_buffer_size: CHANNEL_BUFFER,
        preferred: preferred(),
        keepalive_interval: Some(connecting.keep_alive),
        keepalive_max: 4,
        ..client::Config::default()
    }
}

/// What the server said outside of channels.
#[derive(Clone, Debug, Default)]
struct Notes {
    banner: Option<String>,
    goodbye: Option<String>,
    over: bool,
}

/// The most bytes of a banner that are kept.
const MAX_BANNER: usize = 8 * 1024;

/// Called by russh.
struct Handler {
    expected: ExpectedHost,
    clock: SharedClock,
    agent_socket: Option<PathBuf>,
    noted: watch::Sender<Notes>,
    group: Group,
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.noted.send_modify(|notes| notes.over = true);
    }
}

type Channel = russh::Channel<Msg>;
type Open = client::ChannelOpenHandle;
type Answer = Result<(), SshError>;

/// What a server may not open. One line each: a new kind of channel in russh is accepted unless it stands here.
async fn refuse(open: Open) -> Answer {
    open.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
    Ok(())
}

impl client::Handler for Handler {
    type Error = SshError;

    async fn auth_banner(&mut self, banner: &str, _: &mut client::Session) -> Answer {
        let banner = banner.chars().take(MAX_BANNER).collect();
        self.noted.send_modify(|notes| notes.banner = Some(banner));
        Ok(())
    }

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, SshError> {
        self.expected.check(shown, self.clock.now())?;
        Ok(true)
    }

    async fn kex_done(&mut self, _: Option<&[u8]>, names: &Names, _: &mut client::Session) -> Answer {
        if names.strict_kex() { Ok(()) } else { Err(SshError::NotStrict) }
    }

    async fn disconnected(&mut self, reason: DisconnectReason<SshError>) -> Answer {
        let (text, result) = match reason {
            DisconnectReason::ReceivedDisconnect(info) => (info.message, Ok(())),
            DisconnectReason::Error(error) => (error.to_string(), Err(error)),
        };
        self.noted.send_modify(|notes| notes.goodbye = Some(text.chars().take(MAX_BANNER).collect()));
        result
    }

    async fn server_channel_open_agent_forward(&mut self, channel: Channel, open: Open, _: &mut client::Session) -> Answer {
        let Some(path) = self.agent_socket.clone() else { return refuse(open).await };
        // Not awaited here: this callback holds the whole connection up.
        self.group.spawn("agent forward", async move {
            match tokio::net::UnixStream::connect(&path).await {
                Ok(agent) => {
                    open.accept().await;
                    net::copy::splice(channel.into_stream(), agent, net::copy::Options::default()).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "the SSH agent does not answer");
                    open.reject(ChannelOpenFailure::ConnectFailed).await;
                }
            }
        });
        Ok(())
    }

    async fn server_channel_open_session(&mut self, _: Channel, open: Open, _: &mut client::Session) -> Answer {
        refuse(open).await
    }
    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        open: Open,
        _: &mut client::Session,
    ) -> Answer {
        refuse(open).await
    }
    async fn server_channel_open_forwarded_streamlocal(&mut self, _: Channel, _: &str, open: Open, _: &mut client::Session) -> Answer {
        refuse(open).await
    }
    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        open: Open,
        _: &mut client::Session,
    ) -> Answer {
        refuse(open).await
    }
    async fn server_channel_open_direct_streamlocal(&mut self, _: Channel, _: &str, open: Open, _: &mut client::Session) -> Answer {
        refuse(open).await
    }
    async fn server_channel_open_x11(&mut self, _: Channel, _: &str, _: u32, open: Open, _: &mut client::Session) -> Answer {
        refuse(open).await
    }
    async fn server_channel_open_unknown(&mut self, _: Channel, open: Open, _: &mut client::Session) -> Answer {
        refuse(open).await
    }
}

#[cfg(test)]
mod tests;
