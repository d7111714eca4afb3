//! Runs one command or shell over one channel, to its exit status.
//!
//! Three things go on at once and none waits for another: the host's output to ours, our input to the host, and window
//! changes and signals. Nothing is lost: the exit status is reported only after the channel's end, and output is flushed
//! before that. Input may end (half-close) long before the command does. A command whose connection vanished is an error,
//! never an exit status.

use super::{REPLY_DEADLINE, Session, SshError};
use bytes::BytesMut;
use futures::FutureExt;
use net::block::make_room;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig, client::Msg};
use std::{collections::VecDeque, future::pending, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::Instant,
};

/// Read from our input at once: two packets, so that no split leaves a packet of a few bytes behind.
const INPUT: usize = 2 * super::PACKET as usize;
/// How long a host may take to close a channel whose command has ended.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// A command for the login's shell; `None` is an interactive shell.
    pub command: Option<String>,
    /// A subsystem instead (`sftp`); then `command` is not looked at.
    pub subsystem: Option<String>,
    /// Offered to the host, which takes what it likes (`LANG`, `LC_*`).
    pub environment: Vec<(String, String)>,
    pub pty: Option<Pty>,
    /// Asks for agent forwarding, when the connection was opened with an agent.
    pub forward_agent: bool,
}

/// A terminal.
#[derive(Clone, Debug, Default)]
pub struct Pty {
    /// `TERM`
    pub term: String,
    pub columns: u32,
    pub rows: u32,
    /// Pixels; 0 when not known.
    pub width: u32,
    pub height: u32,
    /// RFC 4254, section 8.
    pub modes: Vec<(russh::Pty, u32)>,
}

/// Where input comes from and output goes to.
#[derive(Debug)]
pub struct Streams<I, O, E> {
    pub stdin: I,
    pub stdout: O,
    pub stderr: E,
    /// Window changes and signals. Its end means that there will be no more.
    pub control: mpsc::Receiver<Control>,
}

/// What happens on our side while a command runs.
#[derive(Clone, Debug)]
pub enum Control {
    Window { columns: u32, rows: u32, width: u32, height: u32 },
    Signal(Sig),
}

/// How a command ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exit {
    /// 0 is success.
    Status(u32),
    /// Ended by a signal: its name without `SIG`.
    Signal { name: String, core_dumped: bool, message: String },
}

impl Exit {
    /// What a shell would report: the status, or 128 and the signal's number where it has one, else 255.
    pub fn code(&self) -> u8 {
        const NUMBERS: [(&str, u8); 12] = [
            ("HUP", 1),
            ("INT", 2),
            ("QUIT", 3),
            ("ILL", 4),
            ("ABRT", 6),
            ("FPE", 8),
            ("KILL", 9),
            ("USR1", 10),
            ("SEGV", 11),
            ("PIPE", 13),
            ("ALRM", 14),
            ("TERM", 15),
        ];
        match self {
            Self::Status(status) => u8::try_from(status & 0xff).unwrap_or(255),
            Self::Signal { name, .. } => {
                NUMBERS.iter().find(|(known, _)| known == name).map_or(255, |(_, number)| number.saturating_add(128))
            }
        }
    }
}

pub(super) async fn run<I, O, E>(session: &Session, request: Request, streams: Streams<I, O, E>) -> Result<Exit, SshError>
where
    I: AsyncRead + Unpin + Send,
    O: AsyncWrite + Unpin + Send,
    E: AsyncWrite + Unpin + Send,
{
    let opening = tokio::time::timeout(REPLY_DEADLINE, session.handle.channel_open_session());
    let channel: Channel<Msg> =
        opening.await.map_err(|_| SshError::Timeout("opening of a channel"))?.map_err(|error| session.because(error))?;
    let (mut read, write) = channel.split();
    let asked = ask(&write, &request).await.map_err(|error| session.because(error))?;
    let Streams { mut stdin, stdout, stderr, control } = streams;
    // Boxed: the buffers of these futures would make every caller's future large.
    let output = Box::pin(output(session, &mut read, stdout, stderr, asked));
    let input = Box::pin(input(&mut stdin, &write));
    let control = Box::pin(steer(control, &write));
    tokio::select! {
        exit = output => exit,
        never = input => match never {},
        never = control => match never {},
        error = session.watchdog() => Err(error),
    }
}

/// Sends every request at once, the answers come in order: one round trip instead of one for each.
async fn ask(write: &ChannelWriteHalf<Msg>, request: &Request) -> Result<VecDeque<&'static str>, russh::Error> {
    let mut asked = VecDeque::new();
    if request.forward_agent {
        write.agent_forward(true).await?;
        asked.push_back(AGENT);
    }
    if let Some(pty) = &request.pty {
        write.request_pty(true, &pty.term, pty.columns, pty.rows, pty.width, pty.height, &pty.modes).await?;
        asked.push_back("terminal");
    }
    for (name, value) in &request.environment {
        write.set_env(false, name.as_str(), value.as_str()).await?;
    }
    match (&request.subsystem, &request.command) {
        (Some(subsystem), _) => {
            write.request_subsystem(true, subsystem.as_str()).await?;
            asked.push_back("subsystem");
        }
        (None, Some(command)) => {
            write.exec(true, command.as_str()).await?;
            asked.push_back("command");
        }
        (None, None) => {
            write.request_shell(true).await?;
            asked.push_back("shell");
        }
    }
    Ok(asked)
}

/// Refused agent forwarding is a warning; everything else that was asked for and refused ends the session.
const AGENT: &str = "agent forwarding";

/// The host's side, to the channel's end.
async fn output<O, E>(
    session: &Session,
    read: &mut ChannelReadHalf,
    mut stdout: O,
    mut stderr: E,
    mut asked: VecDeque<&'static str>,
) -> Result<Exit, SshError>
where
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    let (mut exit, mut eof, mut dirty) = (None, false, false);
    let answer_by = Instant::now().checked_add(REPLY_DEADLINE);
    loop {
        let message = match read.wait().now_or_never() {
            Some(message) => message,
            None => {
                // Nothing more for now: let the user see what there is. Not after each packet, which costs throughput.
                if std::mem::take(&mut dirty) {
                    let _ours = session.progress.consuming();
                    stdout.flush().await.map_err(SshError::Output)?;
                    stderr.flush().await.map_err(SshError::Output)?;
                }
                let over = exit.is_some() && eof;
                tokio::select! {
                    message = read.wait() => message,
                    () = overdue(!asked.is_empty(), over, answer_by) => return exit.ok_or(SshError::Timeout("request")),
                }
            }
        };
        match message {
            Some(ChannelMsg::Data { data }) => {
                let _ours = session.progress.consuming();
                stdout.write_all(&data).await.map_err(SshError::Output)?;
                dirty = true;
            }
            // 1 is standard error; other numbers have no meaning (RFC 4254, section 5.2).
            Some(ChannelMsg::ExtendedData { data, ext: 1 }) => {
                let _ours = session.progress.consuming();
                stderr.write_all(&data).await.map_err(SshError::Output)?;
                dirty = true;
            }
            Some(ChannelMsg::ExitStatus { exit_status }) => exit = Some(Exit::Status(exit_status)),
            Some(ChannelMsg::ExitSignal { signal_name, core_dumped, error_message, .. }) => {
                exit = Some(Exit::Signal { name: signal(&signal_name), core_dumped, message: super::printable(&error_message, 500) });
            }
            Some(ChannelMsg::Eof) => eof = true,
            Some(ChannelMsg::Success) => drop(asked.pop_front()),
            Some(ChannelMsg::Failure) => match asked.pop_front() {
                Some(AGENT) => tracing::warn!("the host does not allow agent forwarding"),
                Some(what) => return Err(SshError::Refused(what)),
                None => {}
            },
            Some(ChannelMsg::Close) | None => break,
            Some(_) => {}
        }
    }
    stdout.flush().await.map_err(SshError::Output)?;
    stderr.flush().await.map_err(SshError::Output)?;
    exit.ok_or_else(|| session.ended())
}

/// Comes when the host should have answered a request, or closed a channel that has nothing more to say.
async fn overdue(asked: bool, over: bool, answer_by: Option<Instant>) {
    match (asked, over) {
        (true, _) => tokio::time::sleep_until(answer_by.unwrap_or_else(Instant::now)).await,
        (false, true) => tokio::time::sleep(CLOSE_DEADLINE).await,
        (false, false) => pending().await,
    }
}

fn signal(signal: &Sig) -> String {
    let name = match signal {
        Sig::Custom(name) => name.chars().filter(char::is_ascii_alphanumeric).take(20).collect(),
        known => format!("{known:?}"),
    };
    name.strip_prefix("SIG").map(str::to_owned).unwrap_or(name)
}

/// Our input, then its end. Never returns: when input is over, or the channel is, output decides.
async fn input<I: AsyncRead + Unpin>(stdin: &mut I, write: &ChannelWriteHalf<Msg>) -> std::convert::Infallible {
    let mut buffer = BytesMut::new();
    loop {
        make_room(&mut buffer, INPUT);
        let read = match stdin.read_buf(&mut buffer).await {
            Ok(read) => read,
            Err(error) => {
                tracing::debug!(%error, "input failed; taken as its end");
                0
            }
        };
        if read == 0 {
            let _ = write.eof().await;
            return pending().await;
        }
        if write.data_bytes(buffer.split().freeze()).await.is_err() {
            return pending().await;
        }
    }
}

async fn steer(mut control: mpsc::Receiver<Control>, write: &ChannelWriteHalf<Msg>) -> std::convert::Infallible {
    while let Some(control) = control.recv().await {
        let sent = match control {
            Control::Window { columns, rows, width, height } => write.window_change(columns, rows, width, height).await,
            Control::Signal(signal) => write.signal(signal).await,
        };
        if sent.is_err() {
            break;
        }
    }
    pending().await
}
