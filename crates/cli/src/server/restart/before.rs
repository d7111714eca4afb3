//! The new process's end: what it takes over from the one before it, and when.
//!
//! It finds the way there on its standard input ([`wire::handover::VARIABLE`]) and gives that back at once: no session inherits it.
//! Until it leads it changes nothing, and when the other hangs up it ends. Afterwards the connection stays: its end is the end of the
//! process before, whose sessions ran on ([`Before::alone`]), and that one hears when the service as a whole drains or stops.

use super::super::ports::{Found, From, Ports};
use net::{
    hand::{Hand, Handed},
    task::Group,
    turn::{Switch, Turn},
};
use std::{fs::File, net::TcpListener, os::fd::OwnedFd, sync::Arc, time::Duration};
use tokio::{net::TcpStream, sync::mpsc};
use types::{Code, Public, Version};
use wire::handover::{ON_STDIN, ToNew, ToOld, VARIABLE, decode, encode};

/// For the first message, which was sent before this process was there.
const FIRST: Duration = Duration::from_secs(10);

/// The process before this one.
pub(in super::super) struct Before {
    hand: Arc<Hand>,
    version: Version,
    words: mpsc::Receiver<(ToNew, Vec<OwnedFd>)>,
    leads: Turn,
    alone: Turn,
}

/// What it leaves to us.
pub(in super::super) struct Inheritance {
    pub(in super::super) before: Before,
    pub(in super::super) lock: Option<File>,
    pub(in super::super) ports: Vec<Found>,
}

/// The way to the process before, if there is one. To be called before anything else uses the standard input.
pub(in super::super) fn find() -> std::io::Result<Option<OwnedFd>> {
    if std::env::var_os(VARIABLE).is_none_or(|value| value != ON_STDIN) {
        return Ok(None);
    }
    let socket = rustix::stdio::stdin().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(Some(socket))
}

/// Takes over what comes with the first message.
pub(in super::super) async fn inherit(socket: OwnedFd, group: &Group) -> Result<Inheritance, Public> {
    let failed = |why: String| Public::new(Code::Internal, format!("the process before this one cannot be understood: {why}"));
    let hand = Arc::new(Hand::new(socket).map_err(|error| failed(error.to_string()))?);
    let first = tokio::time::timeout(FIRST, hand.receive()).await.map_err(|_| failed("it says nothing".into()))?;
    let Handed { bytes, descriptors: open } =
        first.map_err(|error| failed(error.to_string()))?.ok_or_else(|| failed("it hung up".into()))?;
    let Some(ToNew::Inherit { version, descriptors }) = decode(&bytes) else { return Err(failed("its first message is another".into())) };
    let (mut lock, mut ports) = (None, Vec::new());
    for (what, descriptor) in descriptors.into_iter().zip(open) {
        if what.name == "lock" {
            lock = Some(File::from(descriptor));
        } else {
            ports.push(Found { from: From::Before(what), listener: TcpListener::from(descriptor) });
        }
    }
    tracing::info!(before = %version, "taking over from the process before");
    let (tell, words) = mpsc::channel(16);
    let (led, end) = (Switch::new(false), Switch::new(false));
    let (leads, alone) = (led.turn(), end.turn());
    group.spawn("the process before", listen(hand.clone(), tell, led, end));
    Ok(Inheritance { before: Before { hand, version, words, leads, alone }, lock, ports })
}

async fn listen(hand: Arc<Hand>, tell: mpsc::Sender<(ToNew, Vec<OwnedFd>)>, led: Switch, end: Switch) {
    // Once it leads nobody reads words any more; only the end counts.
    while let Ok(Some(Handed { bytes, descriptors })) = hand.receive().await {
        if let Some(word) = decode(&bytes) {
            if word == ToNew::Leads {
                led.set(true);
            }
            let _nobody_listens = tell.send((word, descriptors)).await;
        }
    }
    end.set(true);
}

impl Before {
    /// Ours once that process has ended.
    pub(in super::super) fn alone(&self) -> Turn {
        self.alone.clone()
    }

    /// Waits until it has hung up before this process was to lead. What it hangs up afterwards is its end, and may come at once.
    pub(in super::super) fn gave_up(&self) -> impl Future<Output = ()> + use<> {
        let (leads, alone) = (self.leads.clone(), self.alone.clone());
        async move {
            alone.ours().await;
            if leads.is_ours() {
                std::future::pending::<()>().await;
            }
        }
    }

    pub(in super::super) fn version(&self) -> &Version {
        &self.version
    }

    pub(in super::super) async fn say(&self, word: &ToOld) {
        if let Err(error) = self.hand.send(&encode(word), &[]).await {
            tracing::debug!(%error, "the process before does not listen");
        }
    }

    async fn next(&mut self) -> Result<(ToNew, Vec<OwnedFd>), Public> {
        self.words.recv().await.ok_or_else(gone)
    }

    /// Waits until the Auth Service's files are ours.
    pub(in super::super) async fn auth(&mut self) -> Result<(), Public> {
        self.say(&ToOld::WantAuth).await;
        while !matches!(self.next().await?.0, ToNew::Auth) {}
        Ok(())
    }

    /// Says that everything is ready, serves what it is judged by, and waits for the order to lead.
    pub(in super::super) async fn be_judged(&mut self, version: &Version, ports: &Ports) -> Result<(), Public> {
        let doors = ports.doors().into_iter().map(str::to_owned).collect();
        self.say(&ToOld::Prepared { version: version.clone(), doors }).await;
        loop {
            match self.next().await? {
                (ToNew::Serve { door }, descriptors) => {
                    for descriptor in descriptors {
                        let stream = std::net::TcpStream::from(descriptor);
                        match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                            Ok(stream) => ports.give(&door, stream).await,
                            Err(error) => tracing::warn!(door, %error, "a connection that was given cannot be used"),
                        }
                    }
                }
                (ToNew::Lead, _) => return Ok(()),
                (ToNew::Inherit { .. } | ToNew::Auth | ToNew::Leads | ToNew::Unknown, _) => {}
            }
        }
    }

    /// Says that it takes work, and waits until that is believed.
    pub(in super::super) async fn lead(&mut self) -> Result<(), Public> {
        self.say(&ToOld::Leading).await;
        while !matches!(self.next().await?.0, ToNew::Leads) {}
        Ok(())
    }
}

/// Why this process ends when the other hangs up before it leads.
pub(in super::super) fn gone() -> Public {
    Public::new(Code::Unavailable, "the process before this one hung up: it has ended, or serves on by itself").hint("look at its log")
}
