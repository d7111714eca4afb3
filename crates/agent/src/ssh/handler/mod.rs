//! What one connection's client may do, and what is open on it; the callbacks themselves are in `requests`.
//!
//! Nothing here waits for a program, a disk or another host: the connection's loop runs these callbacks. Requests are
//! named, judged by `rules::channel` and answered; a refusal is written to the audit log (the first [`MOST_DENIALS`] of a
//! connection). russh hands on only requests on channels that are open (attack table, row 7); a channel unknown to
//! [`Door::slots`] is ignored besides. Channel types russh does not know, `forwarded-streamlocal` and
//! `auth-agent@openssh.com`, and request types it does not know, are refused by it before any callback (its
//! `server/encrypted.rs`, `server_handle_channel_open` and the arms for requests): those refusals are in no log of ours.

mod requests;

use super::{
    Connection,
    identify::Entered,
    input::Input,
    limits::Counted,
    pty::Wanted,
    session::{self, Control, Program, Start},
};
use bytes::Bytes;
use rules::{
    Permit,
    channel::{Channel as Kind, Phase, Request, Rights, decide_channel, decide_request},
    permit::{OpenSession, Serve},
};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, Error,
    server::{ChannelOpenHandle, Msg, Session},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use tokio::sync::mpsc;
use types::{EventKind, Public};

/// Refusals by policy that one connection may write to the audit log.
const MOST_DENIALS: u32 = 50;

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
