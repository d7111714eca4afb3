//! The callbacks of russh, one for each thing a client may ask: judged first, then handed to whoever acts.
//!
//! The order is that of a connection's life: authentication, channels, requests on a session, data and its end, and the
//! global requests, which are all refused.

use super::{Access, Door, Fresh, Granted, Slot, failure};
use crate::ssh::{
    forward,
    identify::identify,
    input::Input,
    pty::Wanted,
    session::{Control, Program},
    watch,
};
use bytes::Bytes;
use rules::channel::{Channel as Kind, MAX_COMMAND, MAX_ENV, MAX_ENV_VALUE, Request, Rights, decide_channel};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, Error, Pty, Sig,
    keys::Certificate,
    server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session},
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::mpsc;
use types::{Code, EventKind, Public};

/// Forwarded connections at once over one connection.
const MOST_FORWARDS: usize = 100;

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
                match shared.refusals.admit(peer) {
                    Some(unwritten) => {
                        tracing::info!(%denied, unwritten, "a certificate was refused");
                        let claimed: String = user.chars().take(80).flat_map(char::escape_default).collect();
                        let event = self.connection.event(EventKind::SessionRejected).with("login", claimed);
                        let event = if unwritten > 0 { event.with("unwritten", unwritten) } else { event };
                        shared.audit.emit(event.with("error", denied.to_string())).await;
                    }
                    None => tracing::debug!(%denied, "a certificate was refused"),
                }
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
        let walks = self.granted().is_some_and(|granted| granted.rights.is_walk());
        let program = if walks { Program::Walk } else { Program::Command(command.to_vec()) };
        self.start(channel, Request::exec(command), program, session).await
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
