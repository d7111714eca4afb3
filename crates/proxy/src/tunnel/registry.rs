//! Which hosts hold a tunnel here, which sessions wait for a dial-back, which spare connections are ready: the pure half.
//!
//! A state machine without a socket or a clock: [`Registry::step`] takes what happened and when, and returns what is to be
//! done. Connections stand in it as numbers; `tunnel/mod.rs` holds the real ones and is its only caller.
//!
//! It promises: sessions go to the newest process of a host; a ticket opens one session, once, for the host it
//! was sent to, within [`TICKET_LIFE`]; a session that waits always gets an answer. All timers are one [`Input::Tick`], so that
//! an idle tunnel costs a row in a map and nothing else.
//!
//! Live restart, of either end: an older process of a host stands by until it hangs up, and is asked again when the newer one is
//! gone, also for what the newer one left unanswered. A Proxy whose turn has just come ([`Input::Expect`]) lets sessions wait for
//! hosts that are still on their way from the process before it; one whose turn is over ([`Input::Leave`]) sends its hosts there.

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
/// Processes of one host at once: restarts may follow each other while sessions of the ones before run out.
const MAX_PROCESSES: usize = 4;

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
    /// A data connection to be kept ready, of that process if it says so.
    Spare { stream: StreamId, host: HostId, boot: Option<String> },
    /// A spare was found dead.
    SpareEnded { stream: StreamId, host: HostId },
    /// Time passes: about once a second.
    Tick,
    /// This Proxy takes no more tunnels.
    Drain,
    /// Hosts are to make their tunnels anew: another process listens in this one's place; or, when false, it does no more.
    Leave(bool),
    /// For so long, hosts that are not here yet are on their way.
    Expect(Duration),
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

/// A process of a host.
struct Process {
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
    /// Who was asked; none while the host is on its way.
    link: Option<LinkId>,
    client_addr: String,
    deadline: Duration,
}

/// All tunnels of one Proxy.
#[derive(Default)]
pub(crate) struct Registry {
    /// The processes of each, oldest first; never none.
    hosts: BTreeMap<HostId, Vec<Process>>,
    links: HashMap<LinkId, HostId>,
    tickets: BTreeMap<String, Waiting>,
    draining: bool,
    leaving: bool,
    expecting: Duration,
}

impl Registry {
    /// Takes what happened at `now` (since any fixed moment, never going back) and says what to do, in order.
    pub(crate) fn step(&mut self, input: Input, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Registered { link, host, boot, warm } => self.register(link, host, boot, warm, now, &mut out),
            Input::Heard { link } => {
                if let Some(process) = self.process_of(link) {
                    process.heard = now;
                }
            }
            Input::Gone { link } => self.gone(link, &mut out),
            Input::Failed { link, ticket, error } => self.failed(link, &ticket, error, &mut out),
            Input::Wanted { wait, host, client_addr, ticket } => self.wanted(wait, host, client_addr, ticket, now, &mut out),
            Input::Abandoned { wait } => self.tickets.retain(|_, waiting| waiting.wait != wait),
            Input::Ticket { stream, host, ticket } => self.ticket(stream, host, &ticket, now, &mut out),
            Input::Spare { stream, host, boot } => match self.newest(host) {
                // One of an older process would lead a new session there.
                Some(newest) if newest.keeps && newest.spares.len() < MAX_SPARES && boot.is_none_or(|boot| boot == newest.boot) => {
                    newest.spares.push(stream);
                }
                Some(_) | None => out.push(Output::Drop { stream, misuse: false }),
            },
            Input::SpareEnded { stream, host } => {
                if let Some(newest) = self.newest(host) {
                    newest.spares.retain(|spare| *spare != stream);
                }
                out.push(Output::Drop { stream, misuse: false });
            }
            Input::Tick => self.tick(now, &mut out),
            Input::Drain => {
                self.draining = true;
                out.extend(self.hosts().map(|(_, link)| Output::Send(link, ToAgent::Drain)));
            }
            Input::Leave(leaving) => {
                if leaving && !self.leaving {
                    out.extend(self.hosts().map(|(_, link)| Output::Send(link, ToAgent::Drain)));
                }
                self.leaving = leaving;
            }
            Input::Expect(length) => self.expecting = now + length,
        }
        out
    }

    /// How many hosts hold a tunnel.
    pub(crate) fn len(&self) -> usize {
        self.hosts.len()
    }
    /// The spare connections of a host, oldest first.
    pub(crate) fn spares(&self, host: HostId) -> Vec<StreamId> {
        self.hosts.get(&host).and_then(|processes| processes.last()).map(|newest| newest.spares.clone()).unwrap_or_default()
    }
    /// The host that registered on a control connection, while it is a tunnel of the host's.
    pub(crate) fn registered(&self, link: LinkId) -> Option<HostId> {
        self.links.get(&link).copied()
    }
    /// Every host with its control connections.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = (HostId, LinkId)> {
        self.hosts.iter().flat_map(|(id, processes)| processes.iter().map(|process| (*id, process.link)))
    }

    fn process_of(&mut self, link: LinkId) -> Option<&mut Process> {
        let processes = self.links.get(&link).and_then(|id| self.hosts.get_mut(id))?;
        processes.iter_mut().find(|process| process.link == link)
    }
    fn newest(&mut self, id: HostId) -> Option<&mut Process> {
        self.hosts.get_mut(&id).and_then(|processes| processes.last_mut())
    }

    fn register(&mut self, link: LinkId, id: HostId, boot: String, warm: bool, now: Duration, out: &mut Vec<Output>) {
        if self.draining {
            let error = Public::new(Code::Unavailable, "this Proxy is stopping").hint("connect to another Proxy, or again in a moment");
            out.push(Output::Send(link, ToAgent::Refused { error }));
            out.push(Output::HangUp(link));
            return;
        }
        let mut processes = self.hosts.remove(&id).unwrap_or_default();
        let (stay, replaced): (Vec<_>, Vec<_>) = std::mem::take(&mut processes).into_iter().partition(|known| ordered(&boot, &known.boot));
        // The first ping comes early and not in step with the others': ten thousand agents came in the same second.
        let first = Duration::from_millis(link.0.wrapping_mul(7919) % (PING_SECONDS * 1000));
        let own = boot.clone();
        let process = Process { link, boot, warm, keeps: false, spares: Vec::new(), used: now, heard: now, ping_due: now + first, seq: 0 };
        processes = stay;
        let place = processes.partition_point(|known| known.boot < process.boot);
        processes.insert(place, process);
        let too_many: Vec<_> = processes.drain(..processes.len().saturating_sub(MAX_PROCESSES)).collect();
        // Only the newest keeps spares: a session on the spare of another would begin in a process that is about to end.
        for older in processes.iter_mut().rev().skip(1).filter(|older| older.keeps) {
            older.keeps = false;
            out.push(Output::Send(older.link, ToAgent::Spare { keep: false }));
            out.extend(older.spares.drain(..).map(|stream| Output::Drop { stream, misuse: false }));
        }
        self.links.insert(link, id);
        self.hosts.insert(id, processes);
        for gone in replaced.into_iter().chain(too_many) {
            self.links.remove(&gone.link);
            out.extend(gone.spares.into_iter().map(|stream| Output::Drop { stream, misuse: false }));
            if gone.boot != own {
                let error = Public::new(Code::Conflict, "a newer process of this host holds the tunnel");
                out.push(Output::Send(gone.link, ToAgent::Refused { error }));
            }
            out.push(Output::HangUp(gone.link));
            self.ask_again(id, Some(gone.link), out);
        }
        if self.leaving {
            out.push(Output::Send(link, ToAgent::Drain));
        }
        self.ask_again(id, None, out);
    }

    fn gone(&mut self, link: LinkId, out: &mut Vec<Output>) {
        let Some(id) = self.links.remove(&link) else { return };
        if let Some(processes) = self.hosts.get_mut(&id) {
            let gone: Vec<_> = processes.extract_if(.., |process| process.link == link).collect();
            out.extend(gone.into_iter().flat_map(|process| process.spares).map(|stream| Output::Drop { stream, misuse: false }));
            if processes.is_empty() {
                self.hosts.remove(&id);
            }
        }
        self.ask_again(id, Some(link), out);
    }

    /// Asks the host's newest process for the sessions that another was asked for, or nobody yet. Without any process they fail.
    fn ask_again(&mut self, id: HostId, asked: Option<LinkId>, out: &mut Vec<Output>) {
        let orphans = self.tickets.iter().filter(|(_, waiting)| waiting.host == id && waiting.link == asked);
        let orphans: Vec<String> = orphans.map(|(ticket, _)| ticket.clone()).collect();
        let newest = self.newest(id).map(|newest| newest.link);
        for ticket in orphans {
            match (newest, self.tickets.get_mut(&ticket)) {
                (Some(link), Some(waiting)) => {
                    waiting.link = Some(link);
                    out.push(Output::Send(link, ToAgent::Open { ticket, client_addr: waiting.client_addr.clone() }));
                }
                (None, _) => out.extend(self.tickets.remove(&ticket).map(|waiting| Output::Fail(waiting.wait, offline()))),
                (Some(_), None) => {}
            }
        }
    }

    fn failed(&mut self, link: LinkId, ticket: &str, error: Public, out: &mut Vec<Output>) {
        let sender = self.links.get(&link).copied();
        let Some(id) = self
            .tickets
            .get(ticket)
            .filter(|waiting| waiting.link == Some(link) && Some(waiting.host) == sender)
            .map(|waiting| waiting.host)
        else {
            return;
        };
        let newest = self.newest(id).map(|newest| newest.link);
        match (newest.filter(|newest| *newest != link), self.tickets.get_mut(ticket)) {
            // It was asked before the newer one came, and is on its way out.
            (Some(newest), Some(waiting)) => {
                waiting.link = Some(newest);
                let client_addr = waiting.client_addr.clone();
                out.push(Output::Send(newest, ToAgent::Open { ticket: ticket.to_owned(), client_addr }));
            }
            _ => out.extend(self.tickets.remove(ticket).map(|waiting| Output::Fail(waiting.wait, error))),
        }
    }

    fn wanted(&mut self, wait: WaitId, id: HostId, client_addr: String, ticket: String, now: Duration, out: &mut Vec<Output>) {
        let full = self.tickets.values().filter(|waiting| waiting.host == id).count() >= MAX_WAITING;
        let expected = now < self.expecting;
        let found = self.newest(id).map(|newest| {
            newest.used = now;
            let spare = (!newest.spares.is_empty()).then(|| newest.spares.remove(0));
            let keep = newest.warm && !newest.keeps && (spare.is_some() || !full);
            newest.keeps |= keep;
            (newest.link, spare, keep)
        });
        match found {
            None if !expected => return out.push(Output::Fail(wait, offline())),
            Some((_, Some(stream), _)) => out.push(Output::Give { wait, stream, spare: true }),
            Some(_) | None if full => {
                let error = Public::new(Code::AccessLimit, "too many sessions wait for this host").hint("try again in a moment");
                return out.push(Output::Fail(wait, error));
            }
            Some(_) | None => {
                let link = found.map(|(link, ..)| link);
                out.extend(link.map(|link| Output::Send(link, ToAgent::Open { ticket: ticket.clone(), client_addr: client_addr.clone() })));
                self.tickets.insert(ticket, Waiting { wait, host: id, link, client_addr, deadline: now + TICKET_LIFE });
            }
        }
        if let Some((link, _, true)) = found {
            out.push(Output::Send(link, ToAgent::Spare { keep: true }));
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
            let error = match waiting.link {
                Some(_) => Public::new(Code::Timeout, "the host did not answer in time").hint("it is connected but slow; try again"),
                None => offline(),
            };
            out.push(Output::Fail(waiting.wait, error));
        }
        let mut silent = Vec::new();
        for host in self.hosts.values_mut().flatten() {
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

/// Whether one is provably older than the other: both ids are of version 7, which sort by time.
fn ordered(one: &str, other: &str) -> bool {
    let timed = |text: &str| uuid::Uuid::try_parse(text).is_ok_and(|id| id.get_version_num() == 7);
    one != other && timed(one) && timed(other)
}

#[cfg(test)]
#[path = "registry/tests.rs"]
mod tests;
