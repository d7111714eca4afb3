//! While a session runs: output and input, orders of the client, the program's end, the permit's end, idleness.
//!
//! [`Stage::drive`] is one loop that waits for all of them and returns how the session [`Ended`]. Output goes through
//! `super::pump`, input comes from `ssh::input`; what follows the end is `super::end`.

use super::{
    Control, Ended,
    pulse::{Pulse, idle},
    pump::{Out, Source, pump},
    signals::allowed,
    start::Ends,
};
use crate::{
    record::{Recorder, Tape},
    ssh::{Connection, handler::Granted, input::Input, pty::Master},
};
use net::pipe::Reader;
use russh::{ChannelWriteHalf, server::Msg};
use rustix::process::{Pid, kill_process_group};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe,
    process::Child,
    sync::{mpsc, watch},
    time::Instant,
};
use types::{Code, Public};

/// Silence after the program's end that ends a session whose output something else still holds open: with a terminal,
/// and without.
const QUIET: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What a session's loop works with.
pub(super) struct Stage<'a> {
    pub(super) connection: &'a Arc<Connection>,
    pub(super) granted: &'a Granted,
    pub(super) write: &'a ChannelWriteHalf<Msg>,
    pub(super) input: &'a Arc<Input>,
    pub(super) group: Option<Pid>,
    pub(super) began: Instant,
    pub(super) terminal: bool,
}

impl Stage<'_> {
    /// Moves bytes and obeys orders until the session has ended; also says how many bytes were not recorded.
    pub(super) async fn drive(
        &mut self,
        child: &mut Child,
        ends: Ends,
        recorder: Option<&Recorder>,
        orders: &mut mpsc::Receiver<Control>,
    ) -> (Ended, u64) {
        let (pulse, limited) = (Pulse::new(), !self.terminal);
        let mut tapes = [false, true].map(|stderr| recorder.map(|recorder| recorder.tape(self.began, stderr, limited)));
        let resize = tapes.first().cloned().flatten();
        let master = match &ends {
            Ends::Terminal(master) => Some(master.clone()),
            Ends::Pipes { .. } => None,
        };
        let ended = {
            let [out_tape, err_tape] = &mut tapes;
            let out = |ext| Out { write: self.write, ext, flow: &self.connection.flow, pulse: &pulse };
            match ends {
                Ends::Terminal(terminal) => {
                    let outputs = pump(Source::Terminal(terminal.clone()), out(None), out_tape.as_mut());
                    let input = feed_terminal(self.input, terminal, &pulse);
                    self.wait(child, outputs, input, orders, master, resize, &pulse).await
                }
                Ends::Pipes { stdin, stdout, stderr } => {
                    let outputs = async {
                        let (first, second) = tokio::join!(
                            pump(Source::Pipe(Reader::new(stdout)), out(None), out_tape.as_mut()),
                            pump(Source::Pipe(Reader::new(stderr)), out(Some(1)), err_tape.as_mut())
                        );
                        first.and(second)
                    };
                    let input = feed_pipe(self.input, stdin, &pulse);
                    self.wait(child, outputs, input, orders, master, resize, &pulse).await
                }
            }
        };
        let omitted = tapes.iter().flatten().map(Tape::omitted).fold(0, u64::saturating_add);
        (ended, omitted)
    }

    #[allow(clippy::too_many_arguments, reason = "the loop's parts, each borrowed from its own place")]
    async fn wait(
        &self,
        child: &mut Child,
        outputs: impl Future<Output = Result<(), String>>,
        input: impl Future<Output = ()>,
        orders: &mut mpsc::Receiver<Control>,
        master: Option<Arc<Master>>,
        resize: Option<Tape>,
        pulse: &Pulse,
    ) -> Ended {
        tokio::pin!(outputs, input);
        let mut over = self.connection.over.subscribe();
        let (mut exit, mut all_out, mut all_in) = (None, false, false);
        let grace = if self.terminal { QUIET.0 } else { QUIET.1 };
        loop {
            if let (Some(status), true) = (exit, all_out) {
                return Ended::Exited(status);
            }
            tokio::select! {
                result = &mut outputs, if !all_out => match result {
                    Ok(()) => all_out = true,
                    Err(_) if orders.is_closed() => return Ended::Gone,
                    Err(why) => return Ended::Fault(why),
                },
                () = &mut input, if !all_in => all_in = true,
                status = child.wait(), if exit.is_none() => match status {
                    Ok(status) => exit = Some(status),
                    Err(error) => return Ended::Fault(format!("its program cannot be waited for: {error}")),
                },
                () = pulse.quiet(grace), if exit.is_some() => all_out = true,
                order = orders.recv() => match order {
                    Some(Control::Signal(_)) if exit.is_some() => {
                        // Its process id may be somebody else's by now, and we may signal anybody.
                    }
                    Some(order) => self.obey(order, master.as_deref(), resize.as_ref()).await,
                    None => return Ended::Gone,
                },
                Some(why) = reason(&mut over) => return Ended::Told(why),
                () = idle(self.granted, pulse) => {
                    return Ended::Told(Public::new(Code::AccessLimit, "nothing was sent or received for longer than your roles allow"));
                }
            }
        }
    }

    async fn obey(&self, order: Control, master: Option<&Master>, resize: Option<&Tape>) {
        match order {
            Control::Resize { columns, rows } => {
                let Some(master) = master else { return };
                let _kept_as_it_was = master.resize(columns, rows);
                if let Some(tape) = resize {
                    let _noticed_by_the_pump = tape.resize(columns, rows).await;
                }
            }
            Control::Signal(signal) => {
                if let (Some(signal), Some(group)) = (allowed(&signal), self.group) {
                    let _gone = kill_process_group(group, signal);
                }
            }
        }
    }
}

/// Why everything on the connection ends, when it does.
async fn reason(over: &mut watch::Receiver<Option<Public>>) -> Option<Public> {
    over.wait_for(Option::is_some).await.ok().and_then(|why| why.clone())
}

async fn feed_pipe(input: &Input, mut stdin: pipe::Sender, pulse: &Pulse) {
    while let Ok(Some(bytes)) = input.next().await {
        pulse.beat();
        if stdin.write_all(&bytes).await.is_err() {
            // The program reads no more; what still comes is dropped.
            input.abandon();
            return;
        }
    }
    // Dropping our end is the half-close.
}

async fn feed_terminal(input: &Input, terminal: Arc<Master>, pulse: &Pulse) {
    while let Ok(Some(bytes)) = input.next().await {
        pulse.beat();
        if terminal.write_all(&bytes).await.is_err() {
            input.abandon();
            return;
        }
    }
    // A terminal has no half-close; its end-of-input character says the same.
    if let Some(character) = terminal.end_of_input() {
        let _hung_up = terminal.write_all(&[character]).await;
    }
}
