//! How the process is told to end. TERM and INT stop: sessions get a hang-up, recordings are completed. QUIT drains: no new
//! session, the existing ones run to their end; a second QUIT changes nothing, TERM cuts the drain short.

use net::shutdown::Shutdown;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end a process.
pub(super) struct Signals {
    term: Signal,
    int: Signal,
    quit: Signal,
}

impl Signals {
    /// From here on the signals no longer kill the process.
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())?, quit: signal(SignalKind::quit())? })
    }

    /// Turns signals into shutdown stages, until the stop.
    pub(super) async fn obey(mut self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                _ = self.term.recv() => { tracing::info!("TERM: stopping"); return shutdown.stop(); }
                _ = self.int.recv() => { tracing::info!("INT: stopping"); return shutdown.stop(); }
                _ = self.quit.recv() => {
                    tracing::info!("QUIT: draining; existing sessions run to their end, TERM cuts this short");
                    shutdown.drain();
                }
                () = shutdown.stopping() => return,
            }
        }
    }
}
