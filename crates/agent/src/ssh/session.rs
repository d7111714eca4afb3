//! One session on one channel: a program as the target account, its output to the client and the recording, its end.
//!
//! Reads from top to bottom as it happens: [`run`] → [`prepare`] (account, recording, terminal or pipes, process) →
//! [`Running::drive`] (bytes, orders, the watched permit, idleness) → [`tell_end`] → recording and audit. A session ends
//! when its program does and its output was handed on: at once when the output ended too, and after [`QUIET`] of silence
//! when something left behind in the background holds it open. When the client goes, the permit ends or the service
//! stops, the program's group gets `HUP`, and [`HANG_UP`] later `KILL`. `spawn.rs` starts the process; `handler.rs` calls.

use super::{
    Connection,
    account::Account,
    agent::AgentSocket,
    env::{Facts, environment},
    handler::Granted,
    input::Input,
    pty::{self, Master, Wanted},
    spawn::{self, Launch, Streams},
    stream::Flow,
};
use crate::{
    record::{RecordError, Recorder, Tape},
    spool::ended_event,
};
use bytes::{Bytes, BytesMut};
use rules::{Permit, permit::Serve};
use russh::{
    ChannelWriteHalf, Sig,
    server::{Handle, Msg},
};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStringExt, unix::process::ExitStatusExt},
    path::Path,
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    process::Child,
    sync::{mpsc, watch},
    time::Instant,
};
use types::{Code, EventKind, Public, SessionId, kind::Recording};
use wire::recording::{End, Header};

/// From `HUP` to `KILL`.
pub(crate) const HANG_UP: Duration = Duration::from_secs(3);
/// Exit status that says "not the program's": nothing was run. As OpenSSH's client uses it.
pub(crate) const REFUSED: u32 = 255;
/// Silence after the program's end that ends a session whose output something else still holds open: with a terminal,
/// and without.
const QUIET: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// For the client to take the last messages.
const LAST_WORDS: Duration = Duration::from_secs(10);
const PIECE: usize = 64 * 1024;
const LOWEST: usize = 16 * 1024;
/// Where systems keep it.
const SFTP_SERVERS: [&str; 4] =
    ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server", "/usr/libexec/sftp-server"];

/// What to run.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    Shell,
    Command(Vec<u8>),
    Sftp,
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

/// Why nothing was run.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Account(#[from] super::account::AccountError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("this host has no sftp-server program; install OpenSSH's")]
    NoSftp,
    #[error("\"{0}\" cannot be run: {1}")]
    Spawn(String, io::Error),
    #[error("no terminal could be opened: {0}")]
    Terminal(io::Error),
    #[error("no pipes could be opened: {0}")]
    Pipes(io::Error),
}

impl StartError {
    fn public(&self) -> Public {
        let code = match self {
            Self::Account(_) | Self::NoSftp => Code::AccessDenied,
            Self::Record(_) | Self::Spawn(..) | Self::Terminal(_) | Self::Pipes(_) => Code::Unavailable,
        };
        Public::new(code, self.to_string())
    }
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

/// Where output comes from and input goes.
enum Ends {
    Terminal(Arc<Master>),
    Pipes { stdin: pipe::Sender, stdout: pipe::Receiver, stderr: pipe::Receiver },
}

struct Running {
    child: Child,
    group: Option<Pid>,
    ends: Ends,
    recorder: Option<Recorder>,
    agent: Option<AgentSocket>,
    recording: Recording,
    began: Instant,
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
    tell_end(&write, &handle, text, &ended).await;
    drop(agent);
    stop(&mut child, group, &ended).await;
    record_end(&connection, &granted, &program, recording, recorder.map(|recorder| (recorder, began, omitted)), &ended).await;
}

struct Wants<'a> {
    program: &'a Program,
    pty: Option<&'a Wanted>,
    env: &'a BTreeMap<String, String>,
    agent: bool,
}

async fn prepare(connection: &Connection, granted: &Granted, wants: &Wants<'_>) -> Result<Running, StartError> {
    let shared = &connection.shared;
    let account = Account::find(&granted.entered.login).await?;
    let session = SessionId::from_uuid(uuid::Uuid::now_v7());
    let host = shared.host();
    let command = match wants.program {
        Program::Shell => String::new(),
        Program::Command(command) => String::from_utf8_lossy(command).chars().take(8192).collect(),
        Program::Sftp => "sftp".to_owned(),
    };
    let recording = Recording {
        session,
        user: granted.entered.identity.user.to_string(),
        login: granted.entered.login.to_string(),
        host_id: host.identity.id,
        hostname: host.identity.name.to_string(),
        kind: if matches!(wants.program, Program::Shell) { "shell" } else { "exec" }.into(),
        command,
        started: shared.clock.now(),
        ended: None,
        size: 0,
        extra: types::Extra::new(),
    };
    // Files moved by sftp are not a recording's matter; that it was started is an event.
    let (recorder, began) = match wants.program {
        Program::Shell | Program::Command(_) => {
            let (width, height, term) = wants.pty.map_or((0, 0, String::new()), |pty| (pty.columns, pty.rows, pty.term.clone()));
            let header = Header { recording: recording.clone(), width, height, term, extra: types::Extra::new() };
            let (recorder, began) = Recorder::start(&shared.tasks, &shared.spool, header).await?;
            (Some(recorder), began)
        }
        Program::Sftp => (None, Instant::now()),
    };
    let agent =
        if wants.agent { AgentSocket::open(&account).map_err(|error| tracing::warn!(%error, "no agent socket")).ok() } else { None };
    let agent_path = agent.as_ref().map(AgentSocket::path);
    let (ends, streams, device) = open(wants.pty, &account)?;
    let (cluster, user) = (shared.cache.cluster(), &granted.entered.identity.user);
    let facts = Facts {
        session,
        cluster,
        user,
        host: host.identity.id,
        client: connection.arrival.client,
        local: connection.arrival.local,
        terminal: device.as_deref().zip(wants.pty.map(|pty| pty.term.as_str())),
        agent_socket: agent_path.as_deref().map(Path::as_os_str),
    };
    let launch = launch(wants.program, &account, environment(&account, wants.env, &facts))?;
    let child = spawn::spawn(&launch, &account, streams).map_err(|error| StartError::Spawn(launch.program.display().to_string(), error))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    Ok(Running { child, group, ends, recorder, agent, recording, began })
}

/// The account's shell, as a login shell or for one command.
fn launch(program: &Program, account: &Account, env: Vec<(OsString, OsString)>) -> Result<Launch, StartError> {
    let name = account.shell.file_name().map_or_else(|| "sh".into(), OsString::from);
    let (arg0, args) = match program {
        Program::Shell => {
            let mut login = OsString::from("-");
            login.push(&name);
            (login, Vec::new())
        }
        Program::Command(command) => (name, vec!["-c".into(), OsString::from_vec(command.clone())]),
        Program::Sftp => {
            let server = SFTP_SERVERS.iter().find(|path| Path::new(path).exists()).ok_or(StartError::NoSftp)?;
            // Through the shell, so that accounts whose shell refuses logins get no files either.
            (name, vec!["-c".into(), (*server).into()])
        }
    };
    Ok(Launch { program: account.shell.clone(), arg0, args, env })
}

fn open(pty: Option<&Wanted>, account: &Account) -> Result<(Ends, Streams, Option<OsString>), StartError> {
    if let Some(wanted) = pty {
        let (master, slave, device) = pty::open(wanted, account).map_err(StartError::Terminal)?;
        let copy = || slave.try_clone().map_err(StartError::Terminal);
        let streams = Streams { stdin: copy()?, stdout: copy()?, stderr: slave, terminal: true };
        return Ok((Ends::Terminal(Arc::new(master)), streams, Some(device)));
    }
    let pipes = || -> io::Result<_> {
        let ((stdin_far, stdin), (stdout, stdout_far), (stderr, stderr_far)) = (io::pipe()?, io::pipe()?, io::pipe()?);
        widen(&stdin);
        widen(&stdout);
        let ends = Ends::Pipes {
            stdin: pipe::Sender::from_owned_fd(OwnedFd::from(stdin))?,
            stdout: pipe::Receiver::from_owned_fd(OwnedFd::from(stdout))?,
            stderr: pipe::Receiver::from_owned_fd(OwnedFd::from(stderr))?,
        };
        Ok((ends, Streams { stdin: stdin_far.into(), stdout: stdout_far.into(), stderr: stderr_far.into(), terminal: false }))
    };
    let (ends, streams) = pipes().map_err(StartError::Pipes)?;
    Ok((ends, streams, None))
}

/// A larger pipe makes larger reads; refused by the kernel when the account has many.
fn widen(fd: &impl std::os::fd::AsFd) {
    let _as_it_was = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETPIPE_SZ(256 * 1024));
}

/// What a session's loop works with.
struct Stage<'a> {
    connection: &'a Arc<Connection>,
    granted: &'a Granted,
    write: &'a ChannelWriteHalf<Msg>,
    input: &'a Arc<Input>,
    group: Option<Pid>,
    began: Instant,
    terminal: bool,
}

impl Stage<'_> {
    /// Moves bytes and obeys orders until the session has ended; also says how many bytes were not recorded.
    async fn drive(
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
                            pump(Source::Pipe(stdout), out(None), out_tape.as_mut()),
                            pump(Source::Pipe(stderr), out(Some(1)), err_tape.as_mut())
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

/// Signals a client may send: those of RFC 4254 that a person at a terminal could cause.
fn allowed(signal: &Sig) -> Option<Signal> {
    Some(match signal {
        Sig::HUP => Signal::HUP,
        Sig::INT => Signal::INT,
        Sig::QUIT => Signal::QUIT,
        Sig::TERM => Signal::TERM,
        Sig::KILL => Signal::KILL,
        Sig::USR1 => Signal::USR1,
        Sig::ALRM => Signal::ALARM,
        Sig::Custom(name) if name == "USR2" => Signal::USR2,
        Sig::ABRT | Sig::FPE | Sig::ILL | Sig::PIPE | Sig::SEGV | Sig::Custom(_) => return None,
    })
}

/// When bytes last moved, and whether some are just being handed on.
struct Pulse {
    last: watch::Sender<Instant>,
    busy: AtomicUsize,
}

impl Pulse {
    fn new() -> Self {
        Self { last: watch::Sender::new(Instant::now()), busy: AtomicUsize::new(0) }
    }
    fn beat(&self) {
        self.last.send_replace(Instant::now());
    }
    /// Ends after so much silence from now on, with nothing on its way.
    async fn quiet(&self, length: Duration) {
        let from = Instant::now();
        loop {
            let end = (*self.last.borrow()).max(from) + length;
            if Instant::now() >= end {
                if self.busy.load(SeqCst) == 0 {
                    return;
                }
                self.beat();
                continue;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// Ends when the roles' idle time has passed without a byte either way.
async fn idle(granted: &Granted, pulse: &Pulse) {
    let Some(limit) = granted.permit.options.idle_timeout else { return std::future::pending().await };
    loop {
        let end = *pulse.last.borrow() + limit;
        if Instant::now() >= end {
            return;
        }
        tokio::time::sleep_until(end).await;
    }
}

enum Source {
    Terminal(Arc<Master>),
    Pipe(pipe::Receiver),
}

struct Out<'a> {
    write: &'a ChannelWriteHalf<Msg>,
    /// `1` is standard error.
    ext: Option<u32>,
    flow: &'a Arc<Flow>,
    pulse: &'a Pulse,
}

/// From the program to recording and client, in pieces of up to 64 KiB that are never copied again.
async fn pump(mut source: Source, out: Out<'_>, mut tape: Option<&mut Tape>) -> Result<(), String> {
    let mut buffer = BytesMut::with_capacity(PIECE);
    loop {
        if buffer.capacity() < LOWEST {
            buffer.reserve(PIECE);
        }
        let read = match &mut source {
            Source::Terminal(master) => master.read(&mut buffer).await,
            Source::Pipe(pipe) => pipe.read_buf(&mut buffer).await,
        };
        if read.map_err(|error| format!("its output cannot be read: {error}"))? == 0 {
            return Ok(());
        }
        let bytes = buffer.split().freeze();
        out.pulse.busy.fetch_add(1, SeqCst);
        out.pulse.beat();
        if let Some(tape) = &mut tape {
            tape.write(bytes.clone()).await.map_err(|error| error.to_string())?;
        }
        send(out.write, out.ext, bytes, out.flow).await.map_err(|()| "its output cannot be sent".to_owned())?;
        out.pulse.busy.fetch_sub(1, SeqCst);
        out.pulse.beat();
    }
}

/// Sends data within the channel's window. While it waits for window, the connection must read: only a message of the
/// client can grant it.
pub(crate) async fn send(write: &ChannelWriteHalf<Msg>, ext: Option<u32>, bytes: Bytes, flow: &Arc<Flow>) -> Result<(), ()> {
    const LOOK: Duration = Duration::from_millis(20);
    let sending = async {
        match ext {
            None => write.data_bytes(bytes).await,
            Some(ext) => write.extended_data_bytes(ext, bytes).await,
        }
    };
    tokio::pin!(sending);
    let mut starved = None;
    loop {
        tokio::select! {
            biased;
            result = &mut sending => return result.map_err(|_| ()),
            () = tokio::time::sleep(LOOK) => {
                let without = write.writable_packet_size().await == 0;
                if without != starved.is_some() {
                    starved = without.then(|| flow.starve());
                }
            }
        }
    }
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

/// The last messages on the channel: notice, end of data, exit status or signal, close.
async fn tell_end(write: &ChannelWriteHalf<Msg>, handle: &Handle, text: Option<String>, ended: &Ended) {
    let words = async {
        if let Some(text) = &text {
            let _gone = write.extended_data_bytes(1, Bytes::from(text.clone())).await;
        }
        let _gone = write.eof().await;
        match ended {
            Ended::Exited(status) => match (status.code(), status.signal()) {
                (Some(code), _) => {
                    let _gone = write.exit_status(u32::try_from(code).unwrap_or(REFUSED)).await;
                }
                (None, signal) => {
                    let name = signal_name(signal.unwrap_or(0));
                    let _gone = handle.exit_signal_request(write.id(), name, status.core_dumped(), String::new(), String::new()).await;
                }
            },
            Ended::Gone | Ended::Told(_) | Ended::Fault(_) if text.is_some() => {
                let _gone = write.exit_status(REFUSED).await;
            }
            Ended::Gone | Ended::Told(_) | Ended::Fault(_) => {}
        }
        let _gone = write.close().await;
    };
    let _in_time =
        tokio::time::timeout(if matches!(ended, Ended::Gone) && text.is_none() { Duration::ZERO } else { LAST_WORDS }, words).await;
}

/// Ends what is left of the program, unless it ended by itself.
async fn stop(child: &mut Child, group: Option<Pid>, ended: &Ended) {
    if matches!(ended, Ended::Exited(_)) {
        return;
    }
    let Some(group) = group else { return };
    let _gone = kill_process_group(group, Signal::HUP);
    // A stopped program must run to hear it.
    let _gone = kill_process_group(group, Signal::CONT);
    if matches!(ended, Ended::Gone) {
        // As when a terminal is hung up: a program that means to go on may.
        let _exited = tokio::time::timeout(HANG_UP, child.wait()).await;
        return;
    }
    let exited = tokio::time::timeout(HANG_UP, child.wait()).await;
    let _gone = kill_process_group(group, Signal::KILL);
    if exited.is_err() {
        let _exited = tokio::time::timeout(HANG_UP, child.wait()).await;
    }
}

/// Completes the recording and reports the end.
async fn record_end(
    connection: &Connection,
    granted: &Granted,
    program: &Program,
    mut recording: Recording,
    recorder: Option<(Recorder, Instant, u64)>,
    ended: &Ended,
) {
    let shared = &connection.shared;
    let end = match ended {
        Ended::Exited(status) => End {
            status: status.code().and_then(|code| u32::try_from(code).ok()),
            signal: status.signal().map(|signal| name(&signal_name(signal)).to_owned()),
        },
        Ended::Gone | Ended::Told(_) | Ended::Fault(_) => End { status: None, signal: Some("HUP".into()) },
    };
    recording.ended = Some(shared.clock.now());
    if !matches!(program, Program::Shell) {
        let success = end.status == Some(0);
        let kind = match program {
            Program::Sftp => EventKind::Subsystem,
            Program::Command(_) | Program::Shell if success => EventKind::Exec,
            Program::Command(_) | Program::Shell => EventKind::ExecFailed,
        };
        let mut event =
            about(connection, granted, kind).with("sid", recording.session.to_string()).with("command", recording.command.as_str());
        if let Some(status) = end.status {
            event = event.with("exitCode", status);
        }
        if let Some(signal) = &end.signal {
            event = event.with("exit_signal", signal.as_str());
        }
        shared.audit.emit(event.with("success", success)).await;
    }
    let mut event = ended_event(&recording, shared.clock.now(), Some(&end));
    match ended {
        Ended::Told(why) => event = event.with("reason", why.to_string()),
        Ended::Fault(why) => event = event.with("error", why.as_str()),
        Ended::Gone => event = event.with("reason", "the client went away"),
        Ended::Exited(_) => {}
    }
    if let Some((recorder, began, omitted)) = recorder {
        if let Err(error) = recorder.finish(began, omitted, end).await {
            event = event.with("recording_error", error.to_string());
        }
        shared.spool.finished();
    }
    shared.audit.emit(event).await;
}

async fn started(connection: &Connection, granted: &Granted, program: &Program, running: &Running, pty: Option<&Wanted>) {
    let mut event = about(connection, granted, EventKind::SessionStart)
        .with("sid", running.recording.session.to_string())
        .with("kind", running.recording.kind.as_str())
        .with("interactive", matches!(program, Program::Shell))
        .with("recorded", running.recorder.is_some());
    if let Some(pty) = pty {
        event = event.with("terminal_size", format!("{}:{}", pty.columns, pty.rows));
    }
    if !running.recording.command.is_empty() {
        event = event.with("command", running.recording.command.as_str());
    }
    connection.shared.audit.emit(event).await;
}

fn about(connection: &Connection, granted: &Granted, kind: EventKind) -> types::Event {
    connection.event(kind).with("user", granted.entered.identity.user.as_str()).with("login", granted.entered.login.as_str())
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

fn signal_name(number: i32) -> Sig {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => match signal.as_str().strip_prefix("SIG").unwrap_or_default() {
            "ABRT" => Sig::ABRT,
            "ALRM" => Sig::ALRM,
            "FPE" => Sig::FPE,
            "HUP" => Sig::HUP,
            "ILL" => Sig::ILL,
            "INT" => Sig::INT,
            "KILL" => Sig::KILL,
            "PIPE" => Sig::PIPE,
            "QUIT" => Sig::QUIT,
            "SEGV" => Sig::SEGV,
            "TERM" => Sig::TERM,
            "USR1" => Sig::USR1,
            // RFC 4254, section 6.10: local names carry their owner's.
            other => Sig::Custom(format!("{other}@lockgate")),
        },
        Err(_) => Sig::Custom(format!("{number}@lockgate")),
    }
}

fn name(signal: &Sig) -> &str {
    match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(text) => text.strip_suffix("@lockgate").unwrap_or(text),
    }
}
