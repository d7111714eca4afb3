//! How the process is told to end. TERM and INT stop: sessions get a hang-up, recordings are completed. QUIT drains: no new
//! session, the existing ones run to their end; a second QUIT changes nothing, TERM cuts the drain short. HUP, USR1 and USR2, which
//! would kill a process that does not know them, change nothing: who sends them takes this release for another.

use net::shutdown::Shutdown;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that reach a process.
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

    /// Turns signals into shutdown stages, until the stop.
    pub(super) async fn obey(mut self, shutdown: Shutdown) {
        let unknown = |name| tracing::warn!("{name} means nothing to this release: TERM stops, QUIT drains");
        loop {
            tokio::select! {
                _ = self.term.recv() => { tracing::info!("TERM: stopping"); return shutdown.stop(); }
                _ = self.int.recv() => { tracing::info!("INT: stopping"); return shutdown.stop(); }
                _ = self.quit.recv() => {
                    tracing::info!("QUIT: draining; existing sessions run to their end, TERM cuts this short");
                    shutdown.drain();
                }
                _ = self.hup.recv() => unknown("HUP"),
                _ = self.usr1.recv() => unknown("USR1"),
                _ = self.usr2.recv() => unknown("USR2"),
                () = shutdown.stopping() => return,
            }
        }
    }
}
