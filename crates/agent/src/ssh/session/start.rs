//! The beginning of a session: the account, the recording, a terminal or pipes, and the process.
//!
//! [`prepare`] does all of it or nothing: what fails is a [`StartError`], told to the client and to the audit log by
//! `super::run`. The process itself is started by `ssh::spawn`, its environment made by `ssh::env`.

use super::{Program, about};
use crate::{
    record::{RecordError, Recorder},
    ssh::{
        Connection,
        account::{Account, AccountError},
        agent::AgentSocket,
        env::{Facts, environment},
        handler::Granted,
        pty::{self, Master, Wanted},
        spawn::{self, Launch, Streams},
    },
};
use rules::walk;
use rustix::process::Pid;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::Path,
    sync::Arc,
};
use tokio::{net::unix::pipe, process::Child, time::Instant};
use types::{Code, EventKind, Public, SessionId, kind::Recording};
use wire::recording::Header;

/// Where systems keep it.
const SFTP_SERVERS: [&str; 4] =
    ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server", "/usr/libexec/sftp-server"];

/// Why nothing was run.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Account(#[from] AccountError),
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
    pub(super) fn public(&self) -> Public {
        let code = match self {
            Self::Account(_) | Self::NoSftp => Code::AccessDenied,
            Self::Record(_) | Self::Spawn(..) | Self::Terminal(_) | Self::Pipes(_) => Code::Unavailable,
        };
        Public::new(code, self.to_string())
    }
}

/// Where output comes from and input goes.
pub(super) enum Ends {
    Terminal(Arc<Master>),
    Pipes { stdin: pipe::Sender, stdout: pipe::Receiver, stderr: pipe::Receiver },
}

pub(super) struct Running {
    pub(super) child: Child,
    pub(super) group: Option<Pid>,
    pub(super) ends: Ends,
    pub(super) recorder: Option<Recorder>,
    pub(super) agent: Option<AgentSocket>,
    pub(super) recording: Recording,
    pub(super) began: Instant,
}

pub(super) struct Wants<'a> {
    pub(super) program: &'a Program,
    pub(super) pty: Option<&'a Wanted>,
    pub(super) env: &'a BTreeMap<String, String>,
    pub(super) agent: bool,
}

pub(super) async fn prepare(connection: &Connection, granted: &Granted, wants: &Wants<'_>) -> Result<Running, StartError> {
    let shared = &connection.shared;
    let account = match wants.program {
        Program::Walk => Account::of_walker().await?,
        Program::Shell | Program::Command(_) | Program::Sftp => Account::find(&granted.entered.login).await?,
    };
    let session = SessionId::from_uuid(uuid::Uuid::now_v7());
    let host = shared.host();
    let command = match wants.program {
        Program::Shell => String::new(),
        Program::Command(command) => String::from_utf8_lossy(command).chars().take(8192).collect(),
        Program::Sftp => "sftp".to_owned(),
        Program::Walk => walk::NAME.to_owned(),
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
        Program::Shell | Program::Command(_) | Program::Walk => {
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
    if let Some(group) = group {
        shared.guard.add(group);
    }
    Ok(Running { child, group, ends, recorder, agent, recording, began })
}

/// The account's shell, as a login shell or for one command. The walker's account has none that takes commands.
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
        Program::Walk => {
            return Ok(Launch { program: "/bin/sh".into(), arg0: "sh".into(), args: vec!["-c".into(), walk::SCRIPT.into()], env });
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

pub(super) async fn started(connection: &Connection, granted: &Granted, program: &Program, running: &Running, pty: Option<&Wanted>) {
    let mut event = about(connection, granted, EventKind::SessionStart)
        .with("sid", running.recording.session.to_string())
        .with("kind", running.recording.kind.as_str())
        .with("interactive", matches!(program, Program::Shell))
        // The walker's recording is made and thrown away (`spool`).
        .with("recorded", running.recorder.is_some() && !matches!(program, Program::Walk));
    if let Some(pty) = pty {
        event = event.with("terminal_size", format!("{}:{}", pty.columns, pty.rows));
    }
    if !running.recording.command.is_empty() {
        event = event.with("command", running.recording.command.as_str());
    }
    connection.shared.audit.emit(event).await;
}
