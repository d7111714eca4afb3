//! The jump server: `ssh -J proxy:3023 login@host` with plain OpenSSH. An SSH server that does one thing: it passes a
//! `direct-tcpip` channel on to a registered host.
//!
//! Who comes is known by a certificate of the user authority, for which russh has just seen the proof (attack table, rows 4
//! and 5: offers are never looked at). What he may ask is `rules::channel`'s table, door `Jump`; which host, [`super::decide`].
//! The bytes inside are SSH again, end to end with the host. Windows are small on purpose: two ends of russh that send in bulk
//! both ways at once were seen to stop for ever with large ones.

use super::{Visitor, carry, connect};
use crate::Shared;
use net::{
    listen::{Conn, Limits, Permit as Place, Port, accept_loop},
    task::Group,
};
use rules::{
    Denied, Permit,
    cert::{CertFacts, CertKind, PlainKey, Refused, Trust, accept_user},
    channel::{Channel as Kind, Request, Rights, decide_channel, decide_request},
    permit::Enter,
};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Preferred, Pty, Sig, SshId, cipher, kex,
    keys::{Certificate, PublicKey, ssh_encoding::Encode as _},
    server::{self, Auth, ChannelOpenHandle, Handler, Msg, Session},
};
use std::{borrow::Cow, net::SocketAddr, os::fd::AsFd as _, sync::Arc, time::Duration};
use tokio::{net::TcpStream, sync::Semaphore};
use types::{Code, Identity, Public, Time, UserIdentity};
use wire::identity::{SSH_EXTENSION, from_json};

/// Connections that one user passes through one connection of his at once.
const MAX_CHANNELS: usize = 16;
/// Bytes of a channel's window. See the module's story.
const WINDOW: u32 = 128 * 1024;
const PACKET: u32 = 32 * 1024;
/// Packets that may wait for one host, 4 MiB at most. Russh grants window whether or not anybody reads, so this is what lets
/// a channel whose host stalls leave its neighbours alone; beyond it the whole connection waits.
const WAITING: usize = 128;
/// As on hosts. Nothing over finite fields: no client that we support needs it, and its large groups cost a stranger nothing
/// and us much.
const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];
/// As on hosts: the only kind that is not open to prefix truncation with clients that lack strict key exchange (attack table,
/// row 20; CVE-2023-48795). Russh does not tell a server whether the client has it.
const CIPHERS: &[cipher::Name] = &[cipher::AES_256_GCM, cipher::AES_128_GCM];
const PLAIN: &str = "this is a jump server without a shell; go through it: ssh -J <user>@<proxy>:3023 <login>@<host>";

/// Serves the jump server's port until drained, then until the last connection has ended.
pub(crate) async fn run(port: Port, limits: Limits, shared: Arc<Shared>) {
    let shutdown = shared.shutdown.clone();
    accept_loop(port, limits, shutdown, move |conn| {
        let shared = shared.clone();
        Box::pin(async move { serve(shared, conn).await })
    })
    .await;
}

/// Closes the socket when the handler is dropped: russh runs a connection in a task of its own, which would outlive it.
struct Leash(std::net::TcpStream);

impl Leash {
    fn of(stream: &TcpStream) -> std::io::Result<Self> {
        Ok(Self(stream.as_fd().try_clone_to_owned()?.into()))
    }
}
impl Drop for Leash {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

async fn serve(shared: Arc<Shared>, conn: Conn) {
    let Conn { stream, peer, permit } = conn;
    shared.metrics.jump_connections.add(1);
    let Some(config) = config(&shared) else {
        tracing::error!("the jump server has no SSH host certificate");
        return;
    };
    let Ok(leash) = Leash::of(&stream) else { return };
    let visit = Visit {
        shared: shared.clone(),
        peer,
        place: permit,
        entered: None,
        slots: Arc::new(Semaphore::new(MAX_CHANNELS)),
        group: Group::new("jump"),
    };
    match server::run_stream(config, stream, visit).await {
        Ok(running) => {
            tokio::select! {
                ended = running => if let Err(error) = ended { tracing::debug!(%peer, %error, "jump connection ended") },
                () = shared.shutdown.stopping() => {}
            }
        }
        Err(error) => tracing::debug!(%peer, %error, "no SSH"),
    }
    drop(leash);
}

fn config(shared: &Shared) -> Option<Arc<server::Config>> {
    let credentials = shared.credentials.borrow().clone();
    let certificate = credentials.ssh_certificate.clone()?;
    Some(Arc::new(server::Config {
        server_id: SshId::Standard(Cow::Owned(format!("SSH-2.0-Lockgate_{}", shared.version.major()))),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: Duration::from_secs(1),
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: 20,
        keys: vec![(*credentials.ssh_private_key).clone()],
        certificates: vec![certificate],
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: WAITING,
        preferred: Preferred {
            kex: Cow::Borrowed(KEX),
            cipher: Cow::Borrowed(CIPHERS),
            compression: Cow::Borrowed(&[russh::compression::NONE]),
            ..Preferred::default()
        },
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(60)),
        keepalive_max: 3,
        nodelay: true,
        ..server::Config::default()
    }))
}

/// Whose certificate was proven; refused unless this cluster's user authority signed it with a plain key (attack table, row 1).
fn identify(shared: &Shared, certificate: &Certificate, peer: SocketAddr) -> Result<(UserIdentity, Rights), Denied> {
    let trust = shared.trust();
    let blob = |key: &PublicKey| PlainKey::from_blob(&key.to_bytes().ok()?).ok();
    let trusted = Trust {
        cluster: trust.cluster.clone(),
        user_keys: trust.user_ssh.iter().filter_map(blob).collect(),
        host_keys: trust.host_ssh.iter().filter_map(blob).collect(),
    };
    let enter: Permit<Enter> = accept_user(&facts(certificate)?, &trusted, Some(peer.ip()), shared.clock.now())?;
    let rights = Rights::jump(&enter);
    match enter.into_facts().identity {
        Identity::User(user) => Ok((user, rights)),
        Identity::Host(_) => Err(Refused::Kind { found: "host", wanted: "user" }.into()),
    }
}

/// What stands in the certificate; `rules::cert` believes none of it before the signature.
fn facts(certificate: &Certificate) -> Result<CertFacts, Denied> {
    let mut signing_key = Vec::new();
    certificate.signature_key().encode(&mut signing_key).map_err(|_| Refused::SigningKeyType)?;
    let at = |seconds: u64| Time::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX));
    Ok(CertFacts {
        kind: if certificate.cert_type().is_user() { CertKind::User } else { CertKind::Host },
        principals: certificate.valid_principals().to_vec(),
        valid_after: at(certificate.valid_after()),
        valid_before: at(certificate.valid_before()),
        critical_options: certificate.critical_options().iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        signature_holds: certificate.verify_signature().is_ok(),
        signing_key,
        identity: certificate.extensions().get(SSH_EXTENSION).and_then(|json| from_json(json.as_bytes()).ok()),
    })
}

/// One connection of one user.
struct Visit {
    shared: Arc<Shared>,
    peer: SocketAddr,
    place: Place,
    entered: Option<(UserIdentity, Rights)>,
    slots: Arc<Semaphore>,
    group: Group,
}

impl Visit {
    /// The table's answer about a channel. Before authentication russh opens none; if it did, it would be refused here.
    fn channel(&self, kind: Kind) -> Result<(), Public> {
        let (_, rights) = self.entered.as_ref().ok_or_else(|| Denied::from(Refused::NoIdentity).public())?;
        decide_channel(rights, kind).map(|_| ()).map_err(|denied| denied.public())
    }

    async fn refuse(&self, kind: Kind, reply: ChannelOpenHandle) {
        let error = self.channel(kind).err().unwrap_or_else(|| Public::new(Code::AccessDenied, PLAIN));
        self.shared.metrics.refused(&error);
        let reason = if kind == Kind::Session { PLAIN.to_owned() } else { error.message };
        reply.reject(ChannelOpenFailure::Other { code: 1, reason }).await;
    }

    /// The table's answer about a request. There are no session channels, so nothing is ever served.
    fn request(&self, request: Request) -> bool {
        let Some((_, rights)) = &self.entered else { return false };
        decide_request(rights, request, rules::channel::Phase::Fresh).is_ok_and(|permit| permit.quietly)
    }
    fn answer(&self, channel: ChannelId, request: Request, session: &mut Session) -> Result<(), russh::Error> {
        if self.request(request) { session.channel_success(channel) } else { session.channel_failure(channel) }
    }

    /// Opens the way on the side: this connection's other channels go on meanwhile.
    fn pass(&self, channel: Channel<Msg>, asked: String, reply: ChannelOpenHandle) {
        let (shared, peer, slots) = (self.shared.clone(), self.peer, self.slots.clone());
        let Some((user, _)) = self.entered.clone() else { return };
        self.group.spawn("jump channel", async move {
            let Ok(_slot) = slots.try_acquire() else {
                return reply.reject(ChannelOpenFailure::ResourceShortage).await;
            };
            let visitor = Visitor { user, peer };
            match connect(&shared, &visitor, &asked).await {
                Ok(way) => {
                    reply.accept().await;
                    carry(&shared, Box::new(channel.into_stream()), way).await;
                }
                Err(error) => {
                    shared.record.access_denied(&visitor.user, peer, &asked, &error);
                    let hint = error.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
                    reply.reject(ChannelOpenFailure::Other { code: 2, reason: format!("{}{hint} [{}]", error.message, error.code) }).await;
                }
            }
        });
    }
}

/// Every method of the trait that a peer can reach, so that nothing is answered by a default.
impl Handler for Visit {
    type Error = russh::Error;

    async fn auth_openssh_certificate(&mut self, _user: &str, certificate: &Certificate) -> Result<Auth, Self::Error> {
        match identify(&self.shared, certificate, self.peer) {
            Ok(entered) => {
                self.entered = Some(entered);
                self.place.authenticated();
                Ok(Auth::Accept)
            }
            Err(denied) => {
                self.entered = None;
                tracing::info!(peer = %self.peer, why = %denied, "jump: certificate refused");
                self.shared.record.stranger(self.peer, "ssh-jump", &denied.public());
                Ok(Auth::reject())
            }
        }
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        _port: u32,
        _from: &str,
        _from_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.channel(Kind::DirectTcpip) {
            // A name or an id: which port the host's SSH Service has is not the user's business.
            Ok(()) => self.pass(channel, host.chars().take(400).collect(), reply),
            Err(_) => self.refuse(Kind::DirectTcpip, reply).await,
        }
        Ok(())
    }
    async fn channel_open_session(&mut self, _: Channel<Msg>, reply: ChannelOpenHandle, _: &mut Session) -> Result<(), Self::Error> {
        self.refuse(Kind::Session, reply).await;
        Ok(())
    }
    async fn channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse(Kind::X11, reply).await;
        Ok(())
    }
    async fn channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse(Kind::ForwardedTcpip, reply).await;
        Ok(())
    }
    async fn channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse(Kind::DirectStreamlocal, reply).await;
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.answer(channel, Request::PtyReq, session)
    }
    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.answer(channel, Request::X11Req, session)
    }
    async fn env_request(&mut self, channel: ChannelId, name: &str, _: &str, session: &mut Session) -> Result<(), Self::Error> {
        self.answer(channel, Request::env(name), session)
    }
    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.answer(channel, Request::Shell, session)
    }
    async fn exec_request(&mut self, channel: ChannelId, _: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        self.answer(channel, Request::Exec, session)
    }
    async fn subsystem_request(&mut self, channel: ChannelId, name: &str, session: &mut Session) -> Result<(), Self::Error> {
        self.answer(channel, Request::subsystem(name), session)
    }
    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.answer(channel, Request::WindowChange, session)
    }
    async fn signal(&mut self, _: ChannelId, _: Sig, _: &mut Session) -> Result<(), Self::Error> {
        Ok(())
    }
    async fn agent_request(&mut self, _: ChannelId, _: &mut Session) -> Result<bool, Self::Error> {
        Ok(self.request(Request::AuthAgentReq))
    }
    async fn tcpip_forward(&mut self, _: &str, _: &mut u32, _: &mut Session) -> Result<bool, Self::Error> {
        Ok(self.request(Request::TcpipForward))
    }
    async fn cancel_tcpip_forward(&mut self, _: &str, _: u32, _: &mut Session) -> Result<bool, Self::Error> {
        Ok(self.request(Request::CancelTcpipForward))
    }
    async fn streamlocal_forward(&mut self, _: &str, _: &mut Session) -> Result<bool, Self::Error> {
        Ok(self.request(Request::StreamlocalForward))
    }
    async fn cancel_streamlocal_forward(&mut self, _: &str, _: &mut Session) -> Result<bool, Self::Error> {
        Ok(self.request(Request::CancelStreamlocalForward))
    }
}
