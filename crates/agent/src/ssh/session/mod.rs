//! One session on one channel: a program as the target account, its output to the client and the recording, its end.
//!
//! Reads as it happens: [`run`] → `start` (account, recording, terminal or pipes, process) → `drive` (bytes, orders, the
//! watched permit, idleness; output through `pump`) → `end` (the last words, what is left of the program, recording and
//! audit). A session ends when its program does and its output was handed on: at once when the output ended too, and
//! after `drive::QUIET` of silence when something left behind in the background holds it open. When the client goes, the
//! permit ends or the service stops, the program's group gets `HUP`, and [`HANG_UP`] later `KILL`. `super::spawn` starts
//! the process; `super::handler` calls.

mod drive;
mod end;
mod pulse;
mod pump;
mod signals;
mod start;

pub(crate) use pump::send;

use super::{Connection, handler::Granted, input::Input, pty::Wanted};
use drive::Stage;
use end::{record_end, stop, tell_end};
use rules::{Permit, permit::Serve};
use russh::{
    ChannelWriteHalf, Sig,
    server::{Handle, Msg},
};
use start::{Running, Wants, prepare, started};
use std::{collections::BTreeMap, process::ExitStatus, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use types::{Code, EventKind, Public};

/// From `HUP` to `KILL`.
pub(crate) const HANG_UP: Duration = Duration::from_secs(3);
/// Exit status that says "not the program's": nothing was run. As OpenSSH's client uses it.
pub(crate) const REFUSED: u32 = 255;

/// What to run.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    Shell,
    Command(Vec<u8>),
    Sftp,
    /// The walker's, whatever it asked for (`rules::walk`).
    Walk,
}

/// An order to a session that runs.
#[derive(Clone, Debug)]
pub(crate) enum Control {
    Resize { columns: u32, rows: u32 },
    Signal(Sig),
}

/// All that a session begins with.
pub(crate) struct Start {
    pub(crate) connection: Arc<Connection>,
    pub(crate) granted: Arc<Granted>,
    /// Proof that the policy allows this request.
    pub(crate) permit: Permit<Serve>,
    pub(crate) program: Program,
    pub(crate) pty: Option<Wanted>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) agent: bool,
    pub(crate) input: Arc<Input>,
    pub(crate) write: ChannelWriteHalf<Msg>,
    pub(crate) handle: Handle,
    pub(crate) orders: mpsc::Receiver<Control>,
}

/// How a session ended.
enum Ended {
    Exited(ExitStatus),
    /// The client closed the channel or went away.
    Gone,
    /// By us: the permit, idleness, shutdown.
    Told(Public),
    /// Its output could be neither sent nor recorded.
    Fault(String),
}

/// Runs a session from its start to the last event about it.
pub(crate) async fn run(start: Start) {
    let Start { connection, granted, permit, program, pty, env, agent, input, write, handle, mut orders } = start;
    // While it lives, the connection is not closed under us.
    let _last_words = connection.over.subscribe();
    let wants = Wants { program: &program, pty: pty.as_ref(), env: &env, agent };
    let running = match prepare(&connection, &granted, &wants).await {
        Ok(running) => running,
        Err(error) => {
            tracing::warn!(user = %granted.entered.identity.user, login = %granted.entered.login, %error, "a session could not be started");
            input.abandon();
            let event = about(&connection, &granted, EventKind::SessionRejected).with("error", error.to_string());
            connection.shared.audit.emit(event.with("request", permit.request.as_str())).await;
            let host = connection.shared.host();
            let text = notice(&format!("could not open a session on \"{}\"", host.identity.name), &error.public(), pty.is_some());
            return tell_end(&write, &handle, Some(text), &Ended::Gone).await;
        }
    };
    started(&connection, &granted, &program, &running, pty.as_ref()).await;
    let Running { mut child, group, ends, recorder, agent, recording, began } = running;
    let mut stage =
        Stage { connection: &connection, granted: &granted, write: &write, input: &input, group, began, terminal: pty.is_some() };
    let forwarding = async {
        match &agent {
            Some(socket) => socket.serve(&handle).await,
            None => std::future::pending().await,
        }
    };
    let (ended, omitted) = tokio::select! {
        result = stage.drive(&mut child, ends, recorder.as_ref(), &mut orders) => result,
        () = forwarding => (Ended::Fault("agent forwarding failed".into()), 0),
    };
    input.abandon();
    let text = match &ended {
        Ended::Told(why) => Some(notice("the session was ended", why, pty.is_some())),
        Ended::Fault(why) => Some(notice("the session was ended", &Public::new(Code::Unavailable, why.as_str()), pty.is_some())),
        Ended::Exited(_) | Ended::Gone => None,
    };
    // Who reads the exit status may rely on the recording, whatever happens to this process then.
    if let Some(recorder) = &recorder {
        recorder.flush().await;
    }
    tell_end(&write, &handle, text, &ended).await;
    drop(agent);
    stop(&mut child, group, &ended).await;
    if let Some(group) = group {
        connection.shared.guard.remove(group);
    }
    record_end(&connection, &granted, &program, recording, recorder.map(|recorder| (recorder, began, omitted)), &ended).await;
}

fn about(connection: &Connection, granted: &Granted, kind: EventKind) -> types::Event {
    let user = &granted.entered.identity.user;
    let event = connection.event(kind).with("user", user.as_str()).with("login", granted.entered.login.as_str());
    if rules::walk::is(user) { event.with("walk", true) } else { event }
}

/// Three lines: what, why, what next.
pub(crate) fn notice(what: &str, why: &Public, terminal: bool) -> String {
    let end = if terminal { "\r\n" } else { "\n" };
    let mut text = format!("error: {what}{end}cause: {why}{end}");
    if let Some(hint) = &why.hint {
        text.push_str(&format!("hint: {hint}{end}"));
    }
    text
}
