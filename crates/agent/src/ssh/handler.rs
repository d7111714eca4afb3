//! What the client asks, one callback of russh each: policy first, then the hand-over to whoever acts.
//!
//! Nothing here waits for a program, a disk or another host: the connection's loop runs these callbacks. Requests are
//! named, judged by `rules::channel` and answered; a refusal is written to the audit log (the first [`MOST_DENIALS`] of a
//! connection). russh hands on only requests on channels that are open (attack table, row 7); a channel unknown to
//! [`Door::slots`] is ignored besides. Channel and request types russh does not know are refused by it.

use super::{
    Connection, forward,
    identify::{Entered, identify},
    input::Input,
    limits::Counted,
    pty::Wanted,
    session::{self, Control, Program, Start},
    watch,
};
use bytes::Bytes;
use rules::{
    Permit,
    channel::{Channel as Kind, MAX_COMMAND, MAX_ENV, MAX_ENV_VALUE, Phase, Request, Rights, decide_channel, decide_request},
    permit::{OpenSession, Serve},
};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, Error, Pty, Sig,
    keys::Certificate,
    server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use tokio::sync::mpsc;
use types::{Code, EventKind, Public};

/// Refusals by policy that one connection may write to the audit log.
const MOST_DENIALS: u32 = 50;
/// Forwarded connections at once over one connection.
const MOST_FORWARDS: usize = 100;

/// One connection's callbacks.
pub(crate) struct Door {
    connection: Arc<Connection>,
    access: Access,
    slots: HashMap<ChannelId, Slot>,
    denials: u32,
}

/// What the client may do.
enum Access {
    /// Nothing: not authenticated.
    Stranger,
    /// The certificate was proven just now; the decision follows.
    Proven(Box<Entered>),
    /// Only to learn why.
    Refused(Public),
    Granted(Arc<Granted>),
}

/// Someone who may be here.
pub(crate) struct Granted {
    pub(crate) entered: Entered,
    pub(crate) permit: Permit<OpenSession>,
    pub(crate) rights: Rights,
    _counted: Counted,
}

/// One open channel.
enum Slot {
    /// Of someone refused. Whether he asked for a terminal.
    Notice {
        terminal: bool,
    },
    Fresh(Box<Fresh>),
    Started {
        input: Arc<Input>,
        control: mpsc::Sender<Control>,
    },
    Forward {
        input: Arc<Input>,
        done: mpsc::Sender<()>,
    },
}

/// A session channel on which nothing runs yet.
struct Fresh {
    channel: Channel<Msg>,
    pty: Option<Wanted>,
    env: BTreeMap<String, String>,
    agent: bool,
    input: Arc<Input>,
}

impl Slot {
    /// The session or forwarding has ended, though russh has not said so: it does not when our side closes first.
    fn over(&self) -> bool {
        match self {
            Self::Notice { .. } | Self::Fresh(_) => false,
            Self::Started { control, .. } => control.is_closed(),
            Self::Forward { done, .. } => done.is_closed(),
        }
    }
    fn phase(&self) -> Phase {
        match self {
            Self::Notice { .. } | Self::Fresh(_) | Self::Forward { .. } => Phase::Fresh,
            Self::Started { .. } => Phase::Started,
        }
    }
}

impl Door {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, access: Access::Stranger, slots: HashMap::new(), denials: 0 }
    }

    fn granted(&self) -> Option<Arc<Granted>> {
        match &self.access {
            Access::Granted(granted) => Some(granted.clone()),
            Access::Stranger | Access::Proven(_) | Access::Refused(_) => None,
        }
    }

    async fn denied(&mut self, denied: rules::Denied) {
        tracing::info!(%denied, "refused by policy");
        self.denials = self.denials.saturating_add(1);
        if self.denials > MOST_DENIALS {
            return;
        }
        let mut event = self.connection.event(EventKind::RequestDenied).with("error", denied.to_string());
        if let Some(granted) = self.granted() {
            event = event.with("user", granted.entered.identity.user.as_str()).with("login", granted.entered.login.as_str());
        }
        self.connection.shared.audit.emit(event).await;
    }

    /// The permit for a request on a session channel. `None`: answer no.
    async fn decide(&mut self, channel: ChannelId, request: Request) -> Option<Permit<Serve>> {
        let (granted, phase) = (self.granted()?, self.slots.get(&channel)?.phase());
        match decide_request(&granted.rights, request, phase) {
            Ok(permit) => Some(permit),
            Err(denied) => {
                self.denied(denied).await;
                None
            }
        }
    }

    /// For someone refused: the reason, on the channel he opened. Says whether it was one.
    fn tell_why(&mut self, channel: ChannelId, session: &mut Session) -> Result<bool, Error> {
        let (Access::Refused(why), Some(Slot::Notice { terminal })) = (&self.access, self.slots.get(&channel)) else { return Ok(false) };
        let (why, terminal) = (why.clone(), *terminal);
        self.turn_away(channel, &why, terminal, session)?;
        Ok(true)
    }

    /// Gives the reason instead of a program, and closes.
    fn turn_away(&mut self, channel: ChannelId, why: &Public, terminal: bool, session: &mut Session) -> Result<(), Error> {
        let host = self.connection.shared.host();
        let text = session::notice(&format!("could not open a session on \"{}\"", host.identity.name), why, terminal);
        session.channel_success(channel)?;
        session.extended_data(channel, 1, Bytes::from(text))?;
        session.exit_status_request(channel, session::REFUSED)?;
        session.eof(channel)?;
        session.close(channel)?;
        self.slots.remove(&channel);
        Ok(())
    }

    /// Whether the permit of this connection still holds: it may be days old, and the end of it takes a moment to be carried
    /// out. What runs may go on after the certificate's end; nothing new begins.
    async fn still(&mut self, granted: &Granted) -> Result<(), Public> {
        if let Some(why) = self.connection.over.borrow().clone() {
            return Err(why);
        }
        match self.connection.decide(&granted.entered) {
            Ok(_) => Ok(()),
            Err(denied) => {
                let public = denied.public();
                self.denied(denied).await;
                Err(public)
            }
        }
    }

    async fn start(&mut self, channel: ChannelId, request: Request, program: Program, session: &mut Session) -> Result<(), Error> {
        if self.tell_why(channel, session)? {
            return Ok(());
        }
        let Some(permit) = self.decide(channel, request).await else { return session.channel_failure(channel) };
        if let Some(granted) = self.granted()
            && let Err(why) = self.still(&granted).await
        {
            let terminal = matches!(self.slots.get(&channel), Some(Slot::Fresh(fresh)) if fresh.pty.is_some());
            return self.turn_away(channel, &why, terminal, session);
        }
        let (Some(granted), Some(Slot::Fresh(fresh))) = (self.granted(), self.slots.remove(&channel)) else {
            return session.channel_failure(channel);
        };
        let (control, orders) = mpsc::channel(16);
        self.slots.insert(channel, Slot::Started { input: fresh.input.clone(), control });
        // At once: later requests of this channel must not be answered before this one.
        session.channel_success(channel)?;
        let (_reads_by_callback, write) = fresh.channel.split();
        let start = Start {
            connection: self.connection.clone(),
            granted,
            permit,
            program,
            pty: fresh.pty,
            env: fresh.env,
            agent: fresh.agent,
            input: fresh.input,
            write,
            handle: session.handle(),
            orders,
        };
        self.connection.shared.tasks.spawn("session", session::run(start));
        Ok(())
    }

    fn fresh(&mut self, channel: ChannelId) -> Option<&mut Fresh> {
        match self.slots.get_mut(&channel) {
            Some(Slot::Fresh(fresh)) => Some(fresh),
            Some(Slot::Notice { .. } | Slot::Started { .. } | Slot::Forward { .. }) | None => None,
        }
    }

    /// An order to the program of a channel. A full queue means it is flooded with orders: this one is dropped.
    fn order(&self, channel: ChannelId, order: Control) {
        if let Some(Slot::Started { control, .. }) = self.slots.get(&channel) {
            let _dropped = control.try_send(order);
        }
    }

    fn is_notice(&self, channel: ChannelId) -> bool {
        matches!(self.slots.get(&channel), Some(Slot::Notice { .. }))
    }

    async fn refuse_global(&mut self, request: Request) -> Result<bool, Error> {
        if let Some(granted) = self.granted()
            && let Err(denied) = decide_request(&granted.rights, request, Phase::Fresh)
        {
            self.denied(denied).await;
        }
        Ok(false)
    }

    async fn refuse_channel(&mut self, kind: Kind, reply: ChannelOpenHandle) -> Result<(), Error> {
        if let Some(granted) = self.granted()
            && let Err(denied) = decide_channel(&granted.rights, kind)
        {
            let public = denied.public();
            self.denied(denied).await;
            reply.reject(failure(&public)).await;
        }
        Ok(())
    }
}

/// The reason, where the client shows it. Code 1 is "administratively prohibited".
fn failure(public: &Public) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code: 1, reason: public.to_string() }
}

impl Handler for Door {
    type Error = Error;

    async fn auth_publickey_offered(&mut self, _user: &str, _offer: PublicKeyOffer<'_>) -> Result<Auth, Error> {
        // Says nothing about the key: whether it is accepted is decided when it was proven, and only then remembered.
        Ok(Auth::Accept)
    }

    async fn auth_openssh_certificate(&mut self, user: &str, certificate: &Certificate) -> Result<Auth, Error> {
        self.access = Access::Stranger;
        let shared = &self.connection.shared;
        let peer = self.connection.arrival.client.map(|client| client.ip());
        match identify(&shared.trust(), user, certificate, peer, shared.clock.now()) {
            Ok(entered) => {
                self.access = Access::Proven(Box::new(entered));
                Ok(Auth::Accept)
            }
            Err(denied) => {
                tracing::info!(%denied, "a certificate was refused");
                let claimed: String = user.chars().take(80).flat_map(char::escape_default).collect();
                let event = self.connection.event(EventKind::SessionRejected).with("login", claimed).with("error", denied.to_string());
                shared.audit.emit(event).await;
                Ok(Auth::reject())
            }
        }
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Error> {
        let Access::Proven(entered) = std::mem::replace(&mut self.access, Access::Stranger) else { return Err(Error::Inconsistent) };
        self.connection.authenticated.send_replace(true);
        let shared = &self.connection.shared;
        let synced = shared.cache.feeding().borrow().synced;
        let refusal = match self.connection.decide(&entered) {
            _ if !synced => Public::new(Code::Unavailable, "this host does not know the cluster's roles yet").hint("try again in a moment"),
            Ok(_) if shared.shutdown.is_draining() => {
                Public::new(Code::Unavailable, "this host's SSH Service is stopping").hint("try again in a moment")
            }
            Ok(permit) => match shared.present.enter(&permit.user, permit.options.max_connections) {
                Some(counted) => {
                    let rights = Rights::agent(&permit);
                    shared.tasks.spawn("watch", watch(self.connection.clone(), (*entered).clone()));
                    self.access = Access::Granted(Arc::new(Granted { entered: *entered, permit, rights, _counted: counted }));
                    return Ok(());
                }
                None => Public::new(Code::AccessLimit, "you have as many connections to this host as your roles allow")
                    .hint("close one and try again"),
            },
            Err(denied) => {
                tracing::info!(user = %entered.identity.user, login = %entered.login, %denied, "a session was refused");
                denied.public()
            }
        };
        let event = self.connection.event(EventKind::SessionRejected).with("user", entered.identity.user.as_str());
        shared.audit.emit(event.with("login", entered.login.as_str()).with("error", refusal.to_string()).with("success", false)).await;
        self.access = Access::Refused(refusal);
        Ok(())
    }

    async fn channel_open_session(&mut self, channel: Channel<Msg>, reply: ChannelOpenHandle, _session: &mut Session) -> Result<(), Error> {
        self.slots.retain(|_, slot| !slot.over());
        let granted = match &self.access {
            Access::Stranger | Access::Proven(_) => return Ok(()),
            Access::Refused(_) => {
                if self.slots.len() < 4 {
                    self.slots.insert(channel.id(), Slot::Notice { terminal: false });
                    reply.accept().await;
                }
                return Ok(());
            }
            Access::Granted(granted) => granted.clone(),
        };
        if let Err(denied) = decide_channel(&granted.rights, Kind::Session) {
            let public = denied.public();
            self.denied(denied).await;
            reply.reject(failure(&public)).await;
            return Ok(());
        }
        let most = granted.permit.options.max_sessions;
        let sessions = self.slots.values().filter(|slot| !matches!(slot, Slot::Forward { .. })).count();
        if u32::try_from(sessions).unwrap_or(u32::MAX) >= most {
            reply
                .reject(ChannelOpenFailure::Other {
                    code: 4,
                    reason: format!("at most {most} sessions over one connection [{}]", Code::AccessLimit),
                })
                .await;
            return Ok(());
        }
        let input = Input::new(self.connection.flow.clone(), self.connection.shared.spool.dir().to_owned());
        let id = channel.id();
        self.slots.insert(id, Slot::Fresh(Box::new(Fresh { channel, pty: None, env: BTreeMap::new(), agent: false, input })));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Error> {
        self.slots.retain(|_, slot| !slot.over());
        let Some(granted) = self.granted() else { return Ok(()) };
        let permit = match decide_channel(&granted.rights, Kind::DirectTcpip) {
            Ok(permit) => permit,
            Err(denied) => {
                let public = denied.public();
                self.denied(denied).await;
                reply.reject(failure(&public)).await;
                return Ok(());
            }
        };
        if let Err(why) = self.still(&granted).await {
            reply.reject(failure(&why)).await;
            return Ok(());
        }
        let forwards = self.slots.values().filter(|slot| matches!(slot, Slot::Forward { .. })).count();
        let (Ok(port), true) = (u16::try_from(port), forwards < MOST_FORWARDS) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let input = Input::new(self.connection.flow.clone(), self.connection.shared.spool.dir().to_owned());
        let (done, running) = mpsc::channel(1);
        self.slots.insert(channel.id(), Slot::Forward { input: input.clone(), done });
        let forward = forward::Forward {
            connection: self.connection.clone(),
            granted,
            permit,
            host: host.to_owned(),
            port,
            channel,
            reply,
            input,
            running,
        };
        self.connection.shared.tasks.spawn("forward", forward::run(forward));
        Ok(())
    }

    async fn channel_open_x11(&mut self, _: Channel<Msg>, _: &str, _: u32, reply: ChannelOpenHandle, _: &mut Session) -> Result<(), Error> {
        self.refuse_channel(Kind::X11, reply).await
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
    ) -> Result<(), Error> {
        self.refuse_channel(Kind::ForwardedTcpip, reply).await
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        self.refuse_channel(Kind::DirectStreamlocal, reply).await
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Error> {
        if let Some(Slot::Notice { terminal }) = self.slots.get_mut(&channel) {
            *terminal = true;
            return session.channel_success(channel);
        }
        if self.decide(channel, Request::PtyReq).await.is_none() {
            return session.channel_failure(channel);
        }
        let clean = term.len() <= 128 && term.chars().all(|c| c.is_ascii_graphic());
        let term = if clean { term.to_owned() } else { "dumb".to_owned() };
        match self.fresh(channel) {
            Some(fresh) if fresh.pty.is_none() => {
                fresh.pty = Some(Wanted { term, columns, rows, modes: modes.to_vec() });
                session.channel_success(channel)
            }
            Some(_) | None => session.channel_failure(channel),
        }
    }

    async fn env_request(&mut self, channel: ChannelId, name: &str, value: &str, session: &mut Session) -> Result<(), Error> {
        if self.is_notice(channel) || self.decide(channel, Request::env(name)).await.is_none() {
            return session.channel_failure(channel);
        }
        match self.fresh(channel) {
            Some(fresh) if value.len() <= MAX_ENV_VALUE && fresh.env.len() < MAX_ENV && !value.contains('\0') => {
                fresh.env.insert(name.to_owned(), value.to_owned());
                session.channel_success(channel)
            }
            Some(_) | None => session.channel_failure(channel),
        }
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Error> {
        self.start(channel, Request::Shell, Program::Shell, session).await
    }

    async fn exec_request(&mut self, channel: ChannelId, command: &[u8], session: &mut Session) -> Result<(), Error> {
        if command.len() > MAX_COMMAND || command.contains(&0) {
            return session.channel_failure(channel);
        }
        self.start(channel, Request::Exec, Program::Command(command.to_vec()), session).await
    }

    async fn subsystem_request(&mut self, channel: ChannelId, name: &str, session: &mut Session) -> Result<(), Error> {
        self.start(channel, Request::subsystem(name), Program::Sftp, session).await
    }

    async fn agent_request(&mut self, channel: ChannelId, _session: &mut Session) -> Result<bool, Error> {
        if self.is_notice(channel) || self.decide(channel, Request::AuthAgentReq).await.is_none() {
            return Ok(false);
        }
        let Some(fresh) = self.fresh(channel) else { return Ok(false) };
        fresh.agent = true;
        Ok(true)
    }

    async fn x11_request(&mut self, channel: ChannelId, _: bool, _: &str, _: &str, _: u32, session: &mut Session) -> Result<(), Error> {
        let _never = self.decide(channel, Request::X11Req).await;
        session.channel_failure(channel)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Error> {
        if self.is_notice(channel) || self.decide(channel, Request::WindowChange).await.is_none() {
            return session.channel_failure(channel);
        }
        if let Some(Fresh { pty: Some(pty), .. }) = self.fresh(channel) {
            (pty.columns, pty.rows) = (columns, rows);
        }
        self.order(channel, Control::Resize { columns, rows });
        session.channel_success(channel)
    }

    async fn signal(&mut self, channel: ChannelId, signal: Sig, _session: &mut Session) -> Result<(), Error> {
        if self.is_notice(channel) || self.decide(channel, Request::Signal).await.is_none() {
            return Ok(());
        }
        self.order(channel, Control::Signal(signal));
        Ok(())
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Error> {
        let input = match self.slots.get(&channel) {
            Some(Slot::Fresh(fresh)) => &fresh.input,
            Some(Slot::Started { input, .. } | Slot::Forward { input, .. }) => input,
            Some(Slot::Notice { .. }) | None => return Ok(()),
        };
        if let Err(overflow) = input.push(Bytes::copy_from_slice(data)) {
            tracing::warn!(%overflow, "a channel was closed");
            input.abandon();
            self.slots.remove(&channel);
            session.close(channel)?;
        }
        Ok(())
    }

    async fn channel_eof(&mut self, channel: ChannelId, _session: &mut Session) -> Result<(), Error> {
        match self.slots.get(&channel) {
            Some(Slot::Fresh(fresh)) => fresh.input.end(),
            Some(Slot::Started { input, .. } | Slot::Forward { input, .. }) => input.end(),
            Some(Slot::Notice { .. }) | None => {}
        }
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _session: &mut Session) -> Result<(), Error> {
        // Dropping the slot drops the sender of orders: the session sees that its client is gone.
        if let Some(Slot::Started { input, .. } | Slot::Forward { input, .. }) = self.slots.remove(&channel) {
            input.abandon();
        }
        Ok(())
    }

    async fn tcpip_forward(&mut self, _: &str, _: &mut u32, _: &mut Session) -> Result<bool, Error> {
        self.refuse_global(Request::TcpipForward).await
    }
    async fn cancel_tcpip_forward(&mut self, _: &str, _: u32, _: &mut Session) -> Result<bool, Error> {
        self.refuse_global(Request::CancelTcpipForward).await
    }
    async fn streamlocal_forward(&mut self, _: &str, _: &mut Session) -> Result<bool, Error> {
        self.refuse_global(Request::StreamlocalForward).await
    }
    async fn cancel_streamlocal_forward(&mut self, _: &str, _: &mut Session) -> Result<bool, Error> {
        self.refuse_global(Request::CancelStreamlocalForward).await
    }
}
