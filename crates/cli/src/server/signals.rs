//! How the process is told to end, or to let another take its place. TERM and INT stop: sessions get a hang-up, recordings are
//! completed. QUIT drains: no new session, the existing ones run to their end; a second QUIT changes nothing, TERM cuts the drain short.
//! USR2 starts the program anew and lets that process take over, while this one stands by; HUP does the same and then drains this one.
//! USR1, which would kill a process that does not know it, changes nothing.

use net::shutdown::Shutdown;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// What is to become of this process once another has taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    /// It comes back when the other ends.
    StandBy,
    /// It ends when its sessions have.
    Replace,
}

/// The signals that this process obeys.
pub(super) struct Signals {
    term: Signal,
    int: Signal,
    quit: Signal,
    hup: Signal,
    usr1: Signal,
    usr2: Signal,
}

impl Signals {
    /// From here on the signals no longer kill the process.
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
            usr2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Turns signals into shutdown stages and wishes, until the stop.
    pub(super) async fn obey(mut self, shutdown: Shutdown, wishes: mpsc::Sender<Wish>) {
        let ask = |wish| {
            if wishes.try_send(wish).is_err() {
                tracing::info!("another process is taking over already");
            }
        };
        loop {
            tokio::select! {
                _ = self.term.recv() => { tracing::info!("TERM: stopping"); return shutdown.stop(); }
                _ = self.int.recv() => { tracing::info!("INT: stopping"); return shutdown.stop(); }
                _ = self.quit.recv() => {
                    tracing::info!("QUIT: draining; existing sessions run to their end, TERM cuts this short");
                    shutdown.drain();
                }
                _ = self.hup.recv() => { tracing::info!("HUP: another process is to take over, then this one drains"); ask(Wish::Replace); }
                _ = self.usr2.recv() => { tracing::info!("USR2: another process is to take over, and this one stands by"); ask(Wish::StandBy); }
                _ = self.usr1.recv() => tracing::warn!("USR1 means nothing to this release: TERM stops, QUIT drains, HUP replaces"),
                () = shutdown.stopping() => return,
            }
        }
    }
}
