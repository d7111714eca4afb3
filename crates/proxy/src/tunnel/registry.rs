//! Which hosts hold a tunnel here, which sessions wait for a dial-back, which spare connections are ready: the pure half.
//!
//! A state machine without a socket or a clock: [`Registry::step`] takes what happened and when, and returns what is to be
//! done. Connections stand in it as numbers; `tunnel/mod.rs` holds the real ones and is its only caller.
//!
//! It promises: one tunnel per host, of the newest process of that host; a ticket opens one session, once, for the host it
//! was sent to, within [`TICKET_LIFE`]; a session that waits always gets an answer. All timers are one [`Input::Tick`], so that
//! an idle tunnel costs a row in a map and nothing else.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};
use types::{Code, HostId, Public};
use wire::tunnel::{PING_SECONDS, ToAgent};

/// How long an agent may take to dial back.
pub(crate) const TICKET_LIFE: Duration = Duration::from_secs(10);
/// A spare connection is given up when no session was opened for so long.
pub(crate) const SPARE_IDLE: Duration = Duration::from_secs(600);
/// Sessions that may wait for one host at once.
pub(crate) const MAX_WAITING: usize = 256;
const PING_EVERY: Duration = Duration::from_secs(PING_SECONDS);
/// Three pings unanswered: the other end is gone.
const SILENCE: Duration = Duration::from_secs(PING_SECONDS * 3);
/// Spares held per host: one is ready, a second may overlap while the first is being taken.
const MAX_SPARES: usize = 2;

/// A control connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct LinkId(pub(crate) u64);
/// A data connection that waits for its session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct StreamId(pub(crate) u64);
/// A session that waits for a data connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct WaitId(pub(crate) u64);

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Input {
    /// An agent registered on a control connection; `host` is its certificate's. `warm`: it can keep a spare.
    Registered { link: LinkId, host: HostId, boot: String, warm: bool },
    /// Anything came in on a control connection.
    Heard { link: LinkId },
    /// A control connection ended.
    Gone { link: LinkId },
    /// The agent cannot take the session of that ticket.
    Failed { link: LinkId, ticket: String, error: Public },
    /// A session wants a connection to a host. The ticket is random, made by the caller.
    Wanted { wait: WaitId, host: HostId, client_addr: String, ticket: String },
    /// The session gave up waiting.
    Abandoned { wait: WaitId },
    /// A data connection with a ticket; `host` is its certificate's.
    Ticket { stream: StreamId, host: HostId, ticket: String },
    /// A data connection to be kept ready.
    Spare { stream: StreamId, host: HostId },
    /// A spare was found dead.
    SpareEnded { stream: StreamId, host: HostId },
    /// Time passes: about once a second.
    Tick,
    /// This Proxy takes no more tunnels.
    Drain,
}

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Output {
    Send(LinkId, ToAgent),
    HangUp(LinkId),
    /// The session gets this connection. `spare`: the agent waits for `Start` on it.
    Give {
        wait: WaitId,
        stream: StreamId,
        spare: bool,
    },
    Fail(WaitId, Public),
    /// The data connection is of no use; `misuse` when its ticket was not valid.
    Drop {
        stream: StreamId,
        misuse: bool,
    },
}

struct Host {
    link: LinkId,
    boot: String,
    warm: bool,
    /// Whether the agent was asked to keep a spare.
    keeps: bool,
    spares: Vec<StreamId>,
    used: Duration,
    heard: Duration,
    ping_due: Duration,
    seq: u64,
}

struct Waiting {
    wait: WaitId,
    host: HostId,
    deadline: Duration,
}

/// All tunnels of one Proxy.
#[derive(Default)]
pub(crate) struct Registry {
    hosts: BTreeMap<HostId, Host>,
    links: HashMap<LinkId, HostId>,
    tickets: BTreeMap<String, Waiting>,
    draining: bool,
}

impl Registry {
    /// Takes what happened at `now` (since any fixed moment, never going back) and says what to do, in order.
    pub(crate) fn step(&mut self, input: Input, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Registered { link, host, boot, warm } => self.register(link, host, boot, warm, now, &mut out),
            Input::Heard { link } => {
                if let Some(host) = self.host_of(link) {
                    host.heard = now;
                }
            }
            Input::Gone { link } => self.gone(link, &mut out),
            Input::Failed { link, ticket, error } => {
                let sender = self.links.get(&link).copied();
                if self.tickets.get(&ticket).is_some_and(|waiting| Some(waiting.host) == sender)
                    && let Some(waiting) = self.tickets.remove(&ticket)
                {
                    out.push(Output::Fail(waiting.wait, error));
                }
            }
            Input::Wanted { wait, host, client_addr, ticket } => self.wanted(wait, host, client_addr, ticket, now, &mut out),
            Input::Abandoned { wait } => self.tickets.retain(|_, waiting| waiting.wait != wait),
            Input::Ticket { stream, host, ticket } => self.ticket(stream, host, &ticket, now, &mut out),
            Input::Spare { stream, host } => match self.hosts.get_mut(&host) {
                Some(found) if found.keeps && found.spares.len() < MAX_SPARES => found.spares.push(stream),
                Some(_) | None => out.push(Output::Drop { stream, misuse: false }),
            },
            Input::SpareEnded { stream, host } => {
                if let Some(found) = self.hosts.get_mut(&host) {
                    found.spares.retain(|spare| *spare != stream);
                }
                out.push(Output::Drop { stream, misuse: false });
            }
            Input::Tick => self.tick(now, &mut out),
            Input::Drain => {
                self.draining = true;
                out.extend(self.hosts.values().map(|host| Output::Send(host.link, ToAgent::Drain)));
            }
        }
        out
    }

    /// How many hosts hold a tunnel.
    pub(crate) fn len(&self) -> usize {
        self.hosts.len()
    }
    /// The spare connections of a host, oldest first.
    pub(crate) fn spares(&self, host: HostId) -> Vec<StreamId> {
        self.hosts.get(&host).map(|host| host.spares.clone()).unwrap_or_default()
    }
    /// The host that registered on a control connection, while it is the host's tunnel.
    pub(crate) fn registered(&self, link: LinkId) -> Option<HostId> {
        self.links.get(&link).copied()
    }
    /// Every host with its control connection.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = (HostId, LinkId)> {
        self.hosts.iter().map(|(id, host)| (*id, host.link))
    }

    fn host_of(&mut self, link: LinkId) -> Option<&mut Host> {
        self.links.get(&link).and_then(|id| self.hosts.get_mut(id))
    }

    fn register(&mut self, link: LinkId, id: HostId, boot: String, warm: bool, now: Duration, out: &mut Vec<Output>) {
        let refuse = |error: Public, out: &mut Vec<Output>| {
            out.push(Output::Send(link, ToAgent::Refused { error }));
            out.push(Output::HangUp(link));
        };
        if self.draining {
            refuse(Public::new(Code::Unavailable, "this Proxy is stopping").hint("connect to another Proxy, or again in a moment"), out);
            return;
        }
        let replaced = || Public::new(Code::Conflict, "a newer process of this host holds the tunnel");
        if self.hosts.get(&id).is_some_and(|host| older(&boot, &host.boot)) {
            refuse(replaced(), out);
            return;
        }
        if let Some(old) = self.hosts.remove(&id) {
            self.links.remove(&old.link);
            out.extend(old.spares.into_iter().map(|stream| Output::Drop { stream, misuse: false }));
            if old.boot != boot {
                out.push(Output::Send(old.link, ToAgent::Refused { error: replaced() }));
            }
            out.push(Output::HangUp(old.link));
        }
        // The first ping comes early and not in step with the others': ten thousand agents came in the same second.
        let first = Duration::from_millis(link.0.wrapping_mul(7919) % (PING_SECONDS * 1000));
        let host = Host { link, boot, warm, keeps: false, spares: Vec::new(), used: now, heard: now, ping_due: now + first, seq: 0 };
        self.hosts.insert(id, host);
        self.links.insert(link, id);
    }

    fn gone(&mut self, link: LinkId, out: &mut Vec<Output>) {
        let Some(id) = self.links.remove(&link) else { return };
        if let Some(host) = self.hosts.remove(&id) {
            out.extend(host.spares.into_iter().map(|stream| Output::Drop { stream, misuse: false }));
        }
        let orphans = self.tickets.iter().filter(|(_, waiting)| waiting.host == id).map(|(ticket, _)| ticket.clone()).collect::<Vec<_>>();
        for waiting in orphans.iter().filter_map(|ticket| self.tickets.remove(ticket)) {
            out.push(Output::Fail(waiting.wait, offline()));
        }
    }

    fn wanted(&mut self, wait: WaitId, id: HostId, client_addr: String, ticket: String, now: Duration, out: &mut Vec<Output>) {
        let waiting = self.tickets.values().filter(|waiting| waiting.host == id).count();
        let Some(host) = self.hosts.get_mut(&id) else {
            out.push(Output::Fail(wait, offline()));
            return;
        };
        host.used = now;
        if host.spares.is_empty() {
            if waiting >= MAX_WAITING {
                out.push(Output::Fail(
                    wait,
                    Public::new(Code::AccessLimit, "too many sessions wait for this host").hint("try again in a moment"),
                ));
                return;
            }
            out.push(Output::Send(host.link, ToAgent::Open { ticket: ticket.clone(), client_addr }));
            self.tickets.insert(ticket, Waiting { wait, host: id, deadline: now + TICKET_LIFE });
        } else {
            out.push(Output::Give { wait, stream: host.spares.remove(0), spare: true });
        }
        if host.warm && !host.keeps {
            host.keeps = true;
            out.push(Output::Send(host.link, ToAgent::Spare { keep: true }));
        }
    }

    fn ticket(&mut self, stream: StreamId, host: HostId, ticket: &str, now: Duration, out: &mut Vec<Output>) {
        // A ticket shown by another host is left as it is: the right host may still come. A late one is answered by the tick.
        let fits = self.tickets.get(ticket).is_some_and(|waiting| waiting.host == host && now <= waiting.deadline);
        match fits.then(|| self.tickets.remove(ticket)).flatten() {
            Some(waiting) => out.push(Output::Give { wait: waiting.wait, stream, spare: false }),
            None => out.push(Output::Drop { stream, misuse: true }),
        }
    }

    fn tick(&mut self, now: Duration, out: &mut Vec<Output>) {
        let late = self.tickets.iter().filter(|(_, waiting)| now > waiting.deadline).map(|(ticket, _)| ticket.clone()).collect::<Vec<_>>();
        for waiting in late.iter().filter_map(|ticket| self.tickets.remove(ticket)) {
            let error = Public::new(Code::Timeout, "the host did not answer in time").hint("it is connected but slow; try again");
            out.push(Output::Fail(waiting.wait, error));
        }
        let mut silent = Vec::new();
        for host in self.hosts.values_mut() {
            if now.saturating_sub(host.heard) > SILENCE {
                silent.push(host.link);
                continue;
            }
            if now >= host.ping_due {
                host.ping_due = now + PING_EVERY;
                host.seq += 1;
                out.push(Output::Send(host.link, ToAgent::Ping { seq: host.seq }));
            }
            if host.keeps && now.saturating_sub(host.used) > SPARE_IDLE {
                host.keeps = false;
                out.push(Output::Send(host.link, ToAgent::Spare { keep: false }));
                out.extend(host.spares.drain(..).map(|stream| Output::Drop { stream, misuse: false }));
            }
        }
        for link in silent {
            out.push(Output::HangUp(link));
            self.gone(link, out);
        }
    }
}

fn offline() -> Public {
    Public::new(Code::NodeOffline, "the host is registered but not connected").hint("check that its agent runs: lockgate status")
}

/// Whether `new` is provably an older process than `current`: both ids are of version 7, which sort by time. The tunnel of a
/// process that drains must not push out that of its successor.
fn older(new: &str, current: &str) -> bool {
    let time = |text: &str| uuid::Uuid::try_parse(text).ok().filter(|id| id.get_version_num() == 7);
    matches!((time(new), time(current)), (Some(new), Some(current)) if new < current)
}

#[cfg(test)]
#[path = "registry/tests.rs"]
mod tests;
