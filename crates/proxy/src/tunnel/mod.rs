//! Reverse tunnels: the connections behind [`registry`], owned by one task.
//!
//! Agents come in through [`link::serve_control`] and [`link::serve_data`] (the Proxy's listener calls them after TLS); sessions
//! ask with [`Tunnels::open`]. An idle tunnel is one small task, one small queue and its TLS state; it has no timer of its
//! own. The messages are `wire::tunnel`'s, the other end is `agent::tunnel`.

pub(crate) mod link;
pub(crate) mod peers;
pub(crate) mod registry;

use futures::FutureExt as _;
use net::{IoStream, shutdown::Shutdown, task::Group};
use registry::{Input, LinkId, Output, Registry, StreamId, WaitId};
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};
use tokio::{
    io::AsyncReadExt as _,
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use types::{Code, HostId, Public};
use wire::tunnel::{DataHello, Peer, Start, ToAgent, encode};

const TICK: Duration = Duration::from_secs(1);
/// Commands that may wait for the task; whoever sends more waits too.
const QUEUE: usize = 256;
/// Messages that may wait for one agent. An agent that is so far behind is hung up.
const LINK_QUEUE: usize = 64;
/// For writing [`Start`] to a spare connection.
const START_DEADLINE: Duration = Duration::from_secs(5);
/// A spare may die between two looks at it; then the session takes the next way.
const ATTEMPTS: usize = 3;

/// One host's end of its tunnel, as the task that serves the connection holds it. Boxed: a queue allocates its slots in
/// blocks, and two thousand idle tunnels have two thousand queues.
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) orders: mpsc::Receiver<Box<ToAgent>>,
}

enum Command {
    Register { host: HostId, boot: String, warm: bool, reply: oneshot::Sender<Link> },
    Link(Input),
    Data { host: HostId, hello: DataHello, stream: IoStream },
    Open { host: HostId, client_addr: String, reply: oneshot::Sender<Answer> },
    Evict { host: HostId, error: Public },
    Peers(Vec<Peer>),
    Drain,
    Leave(bool),
    Expect(Duration),
}

/// A data connection for one session. `spare`: the agent waits for [`Start`] on it.
struct Given {
    stream: IoStream,
    spare: bool,
}
type Answer = Result<Given, Public>;

/// The way to the task that owns the tunnels. Clones share it.
#[derive(Clone)]
pub(crate) struct Tunnels {
    commands: mpsc::Sender<Command>,
    count: watch::Receiver<usize>,
    proxy_id: HostId,
}

impl Tunnels {
    /// Starts the task; it runs until its group ends. `proxy_id` is told to agents, and where this Proxy alone is reached.
    pub(crate) fn start(group: &Group, proxy_id: HostId, addr: Option<String>, shutdown: Shutdown) -> Self {
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (counter, count) = watch::channel(0);
        let owner = Owner {
            registry: Registry::default(),
            proxy_id,
            addr,
            peers: Vec::new(),
            begun: Instant::now(),
            next: 0,
            links: HashMap::new(),
            streams: HashMap::new(),
            waits: HashMap::new(),
            counter,
        };
        group.spawn("tunnels", owner.run(inbox, shutdown));
        Self { commands, count, proxy_id }
    }

    /// How many hosts hold a tunnel; wakes at each change.
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.count.clone()
    }

    /// A fresh connection to the host's SSH Service. Waits at most a little over [`registry::TICKET_LIFE`].
    pub(crate) async fn open(&self, host: HostId, client_addr: &str) -> Result<IoStream, Public> {
        for _ in 0..ATTEMPTS {
            let (reply, answer) = oneshot::channel();
            self.send(Command::Open { host, client_addr: client_addr.to_owned(), reply }).await?;
            let Given { mut stream, spare } = answer.await.map_err(|_| stopping())??;
            if !spare {
                return Ok(stream);
            }
            let start = Start { client_addr: client_addr.to_owned(), extra: types::Extra::new() };
            match net::frame::write_frame(&mut stream, &encode(&start), START_DEADLINE).await {
                Ok(()) => return Ok(stream),
                Err(error) => tracing::debug!(%host, %error, "a spare connection had died; taking the next way"),
            }
        }
        Err(Public::new(Code::NodeOffline, "the host's connections end at once").hint("look at the log of its agent"))
    }

    /// Ends the tunnel of a host that may no longer have one.
    pub(crate) async fn evict(&self, host: HostId, error: Public) {
        let _ = self.send(Command::Evict { host, error }).await;
    }

    /// The other Proxies: every agent is told when they changed.
    pub(crate) async fn peers(&self, peers: Vec<Peer>) {
        let _ = self.send(Command::Peers(peers)).await;
    }

    /// Tells every agent that this Proxy will stop; takes no new ones.
    pub(crate) async fn drain(&self) {
        let _ = self.send(Command::Drain).await;
    }

    /// Tells every agent that another process listens in this one's place, or that it does no more.
    pub(crate) async fn leave(&self, leaving: bool) {
        let _ = self.send(Command::Leave(leaving)).await;
    }

    /// For so long, sessions wait for hosts that are on their way here.
    pub(crate) async fn expect(&self, length: Duration) {
        let _ = self.send(Command::Expect(length)).await;
    }

    async fn register(&self, host: HostId, boot: String, warm: bool) -> Result<Link, Public> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Register { host, boot, warm, reply }).await?;
        answer.await.map_err(|_| stopping())
    }

    async fn tell(&self, input: Input) {
        let _ = self.send(Command::Link(input)).await;
    }

    async fn data(&self, host: HostId, hello: DataHello, stream: IoStream) {
        let _ = self.send(Command::Data { host, hello, stream }).await;
    }

    async fn send(&self, command: Command) -> Result<(), Public> {
        self.commands.send(command).await.map_err(|_| stopping())
    }
}

fn stopping() -> Public {
    Public::new(Code::Unavailable, "this Proxy is stopping").hint("try again in a moment")
}

struct Owner {
    registry: Registry,
    proxy_id: HostId,
    addr: Option<String>,
    peers: Vec<Peer>,
    begun: Instant,
    next: u64,
    links: HashMap<LinkId, mpsc::Sender<Box<ToAgent>>>,
    streams: HashMap<StreamId, IoStream>,
    waits: HashMap<WaitId, oneshot::Sender<Answer>>,
    counter: watch::Sender<usize>,
}

impl Owner {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.stopping() => return,
                command = inbox.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                _ = ticks.tick() => {
                    let left = self.waits.iter().filter(|(_, reply)| reply.is_closed()).map(|(wait, _)| *wait).collect::<Vec<_>>();
                    for wait in left {
                        self.waits.remove(&wait);
                        self.step(Input::Abandoned { wait });
                    }
                    self.step(Input::Tick);
                }
            }
            let count = self.registry.len();
            self.counter.send_if_modified(|known| std::mem::replace(known, count) != count);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Register { host, boot, warm, reply } => self.register(host, boot, warm, reply),
            Command::Link(input) => {
                if let Input::Gone { link } = &input {
                    self.links.remove(link);
                }
                self.step(input);
            }
            Command::Data { host, hello, stream } => {
                let id = StreamId(self.fresh());
                self.streams.insert(id, stream);
                match hello {
                    DataHello::Ticket { ticket } => self.step(Input::Ticket { stream: id, host, ticket }),
                    DataHello::Spare { boot_id } => self.step(Input::Spare { stream: id, host, boot: boot_id }),
                }
            }
            Command::Open { host, client_addr, reply } => self.open(host, client_addr, reply),
            Command::Evict { host, error } => {
                let links: Vec<_> = self.registry.hosts().filter(|(id, _)| *id == host).map(|(_, link)| link).collect();
                for link in links {
                    self.perform(vec![Output::Send(link, ToAgent::Refused { error: error.clone() }), Output::HangUp(link)]);
                    self.step(Input::Gone { link });
                }
            }
            Command::Peers(peers) if peers == self.peers => {}
            Command::Peers(peers) => {
                let told = self.registry.hosts().map(|(_, link)| Output::Send(link, ToAgent::Peers { peers: peers.clone() })).collect();
                self.peers = peers;
                self.perform(told);
            }
            Command::Drain => self.step(Input::Drain),
            Command::Leave(leaving) => self.step(Input::Leave(leaving)),
            Command::Expect(length) => self.step(Input::Expect(length)),
        }
    }

    fn register(&mut self, host: HostId, boot: String, warm: bool, reply: oneshot::Sender<Link>) {
        let link = LinkId(self.fresh());
        let (orders, queue) = mpsc::channel(LINK_QUEUE);
        self.links.insert(link, orders);
        let mut out = self.registry.step(Input::Registered { link, host, boot, warm }, self.begun.elapsed());
        if self.registry.registered(link).is_some() {
            let welcome = ToAgent::Welcome { proxy_id: self.proxy_id, peers: self.peers.clone(), addr: self.addr.clone() };
            out.insert(0, Output::Send(link, welcome));
        }
        self.perform(out);
        if reply.send(Link { id: link, orders: queue }).is_err() {
            self.links.remove(&link);
            self.step(Input::Gone { link });
        }
    }

    fn open(&mut self, host: HostId, client_addr: String, reply: oneshot::Sender<Answer>) {
        for stream in self.registry.spares(host) {
            // An agent says nothing on a spare: bytes, an end or an error that are there to be read mean that it is no use.
            let dead = self.streams.get_mut(&stream).is_none_or(|open| open.read_u8().now_or_never().is_some());
            if dead {
                self.step(Input::SpareEnded { stream, host });
            }
        }
        let wait = WaitId(self.fresh());
        self.waits.insert(wait, reply);
        let ticket = format!("{:032x}", rand::random::<u128>());
        self.step(Input::Wanted { wait, host, client_addr, ticket });
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn step(&mut self, input: Input) {
        let out = self.registry.step(input, self.begun.elapsed());
        self.perform(out);
    }

    fn perform(&mut self, out: Vec<Output>) {
        let mut todo = VecDeque::from(out);
        while let Some(output) = todo.pop_front() {
            match output {
                Output::Send(link, message) => {
                    let behind = self.links.get(&link).is_some_and(|orders| orders.try_send(Box::new(message)).is_err());
                    if behind {
                        tracing::warn!(host = ?self.registry.registered(link), "an agent does not read its tunnel; hanging up");
                        self.links.remove(&link);
                        todo.extend(self.registry.step(Input::Gone { link }, self.begun.elapsed()));
                    }
                }
                // The task that serves the link writes what is queued, then closes.
                Output::HangUp(link) => drop(self.links.remove(&link)),
                Output::Give { wait, stream, spare } => {
                    let (reply, stream) = (self.waits.remove(&wait), self.streams.remove(&stream));
                    match (reply, stream) {
                        (Some(reply), Some(stream)) => drop(reply.send(Ok(Given { stream, spare }))),
                        (Some(reply), None) => drop(reply.send(Err(stopping()))),
                        (None, _) => {}
                    }
                }
                Output::Fail(wait, error) => drop(self.waits.remove(&wait).map(|reply| reply.send(Err(error)))),
                Output::Drop { stream, misuse } => {
                    if misuse {
                        tracing::warn!("a dial-back with a ticket that is unknown, used, late or another host's was refused");
                    }
                    self.streams.remove(&stream);
                }
            }
        }
    }
}
