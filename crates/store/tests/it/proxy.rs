//! A TCP proxy that does to a connection what networks do: cut, freeze, slow down, lose the answer to what was sent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to bytes.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Weather {
    Fair,
    /// Each piece waits that long.
    Slow(Duration),
    /// Requests of PostgreSQL's extended protocol come in pieces of that size, a little apart.
    Crumbs(usize),
    /// Nothing passes, and nobody is told.
    Frozen,
    /// Connections are closed, and new ones at once.
    Down,
    /// What clients send passes; at the first answer the connection is closed instead, and then it is [`Weather::Down`] if so said.
    NoAnswers {
        then_down: bool,
    },
    /// Passes until a client sends these bytes; they are passed on or not, and the connection is closed before an answer.
    CutAt {
        bytes: Vec<u8>,
        pass: bool,
        then_down: bool,
    },
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    weather: Arc<watch::Sender<Weather>>,
    cuts: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let weather = Arc::new(watch::Sender::new(Weather::Fair));
        let (theirs, mut watching) = (Arc::downgrade(&weather), weather.subscribe());
        let cuts = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&cuts);
        tokio::spawn(async move {
            loop {
                let client = tokio::select! {
                    Ok((client, _)) = listener.accept() => client,
                    Err(_) = watching.wait_for(|_| false) => return,
                };
                let Some(weather) = theirs.upgrade() else { return };
                if *weather.borrow() != Weather::Down {
                    tokio::spawn(carry(client, server, weather.subscribe(), theirs.clone(), Arc::clone(&counted)));
                }
            }
        });
        Self { port, weather, cuts }
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Closes all connections; new ones pass.
    pub(crate) fn cut(&self) {
        self.set(Weather::Down);
        self.set(Weather::Fair);
    }

    /// How many connections were closed for what they carried.
    pub(crate) fn cuts(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

type Theirs = Weak<watch::Sender<Weather>>;

async fn carry(client: TcpStream, server: u16, mut weather: watch::Receiver<Weather>, theirs: Theirs, cuts: Arc<AtomicUsize>) {
    let broken = |then_down: bool| {
        cuts.fetch_add(1, Ordering::SeqCst);
        let next = if then_down { Weather::Down } else { Weather::Fair };
        theirs.upgrade().into_iter().for_each(|weather| drop(weather.send_replace(next.clone())));
    };
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (mut there, mut back) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    weather.mark_unchanged();
    loop {
        let now = weather.borrow().clone();
        tokio::select! {
            biased;
            // A change that came and went, as a cut does, counts too.
            changed = weather.changed() => {
                if changed.is_err() || *weather.borrow() == Weather::Down || now == Weather::Fair && *weather.borrow() == Weather::Fair {
                    return;
                }
            }
            () = std::future::pending(), if now == Weather::Frozen => {}
            read = from_client.read(&mut there), if now != Weather::Frozen => {
                let Ok(length @ 1..) = read else { return };
                if let Weather::Slow(pause) = now {
                    tokio::time::sleep(pause).await;
                }
                let sent = &there[..length];
                if let Weather::CutAt { bytes, pass, then_down } = &now && sent.windows(bytes.len()).any(|window| window == bytes) {
                    if *pass {
                        to_server.write_all(sent).await.unwrap();
                        // The answers are the sign that it was done; they go no further.
                        while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_millis(100), from_server.read(&mut back)).await {}
                    }
                    return broken(*then_down);
                }
                let size = match now {
                    // They end with a Sync; pgbouncer hangs up on a login in pieces.
                    Weather::Crumbs(size) if sent.ends_with(b"S\0\0\0\x04") => size,
                    _ => sent.len(),
                };
                for piece in sent.chunks(size) {
                    if to_server.write_all(piece).await.is_err() {
                        return;
                    }
                    if piece.len() < sent.len() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            }
            read = from_server.read(&mut back), if now != Weather::Frozen => {
                let Ok(length @ 1..) = read else { return };
                match now {
                    Weather::NoAnswers { then_down } => return broken(then_down),
                    Weather::Slow(pause) => tokio::time::sleep(pause).await,
                    _ => {}
                }
                if to_client.write_all(&back[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
