//! `tsh ssh`: a shell or a command on a host, with what belongs to a terminal: size, raw mode, signals, exit status.
//!
//! The flow: certificates from the profile, one connection to the Proxy, SSH end to end with the host, one channel. One
//! thread decrypts while another writes the output, so that neither waits for the other. The exit status is the command's;
//! 255 says that the session itself failed, as with OpenSSH.

pub(super) mod stdio;
mod target;
mod terminal_modes;

pub(super) use target::{host, split_login};

use super::{Global, SshArgs, ls, profile, terminal};
use crate::{
    connection,
    exit::{Could as _, Failure, Outcome, usage},
};
use client::{
    api::Via,
    connect::{ConnectError, Node},
    profile::ProxyAddr,
    ssh::{self, Connecting, Control, Exit, ExpectedHost, Pty, Request, Session, Sig, SshError, Streams, forward},
};
use net::{clock::SystemClock, shutdown::Shutdown, task::Group};
use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use target::{Forward, default_login};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use types::{ClusterName, Code, Labels, Login, Public, document::Spec as _};
use wire::route::Target;

/// Between signs of life; a connection is given up after four without an answer.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What was asked for, read and decided.
struct Plan {
    target: Target,
    login: Login,
    cluster: Option<ClusterName>,
    command: Option<String>,
    terminal: bool,
    forwards: Vec<Forward>,
    /// `-A`: where the user's SSH agent listens.
    agent: Option<PathBuf>,
    /// `-N`
    forwards_only: bool,
}

/// `tsh ssh`
pub(crate) fn ssh(global: &Global, args: &SshArgs) -> Outcome {
    match attempt(global, args) {
        Err(failure) if !failure.cause().is(Code::Usage) => {
            // The usual lines, but the status that cannot be confused with the command's.
            let _status = failure.report();
            Ok(crate::exit::Status::Session.into())
        }
        other => other,
    }
}

fn attempt(global: &Global, args: &SshArgs) -> Outcome {
    let what = || format!("open a session on \"{}\"", args.target.escape_debug());
    let user = profile::logged_in(global).could(what())?;
    user.hint();
    let plan = plan(global, args, &user).could(what())?;
    let runtime = two_threads().could(what())?;
    let ended = runtime.block_on(Box::pin(run(&user, &plan, global.skip_version_check)));
    // A thread may be stuck reading the terminal; nobody waits for it.
    runtime.shutdown_background();
    ended.map(ExitCode::from).map_err(|public| Failure::new(what(), public))
}

/// This thread for the terminal and the pipes, another for the connection.
fn two_threads() -> Result<Runtime, Public> {
    let built = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    built.or_else(|_| connection::runtime())
}

fn plan(global: &Global, args: &SshArgs, user: &profile::LoggedIn) -> Result<Plan, Public> {
    let (login, host) = split_login(&args.target)?;
    let flag = || global.login.as_deref().map(Login::new).transpose().map_err(|error| usage(error.to_string()));
    let login = match login {
        Some(login) => Some(login),
        None => flag()?,
    };
    let logins = &user.credentials.identity.logins;
    let login = login.or_else(|| default_login(logins, profile::local_user().as_deref()));
    let login = login.ok_or_else(|| usage("no login is given").hint("write it as login@host, or give -l"))?;
    let command = (!args.command.is_empty()).then(|| args.command.join(" "));
    if let (true, Some(command)) = (args.no_remote_exec, &command) {
        let public = usage(format!("-N runs no command, but one is given: \"{}\"", command.escape_debug()));
        return Err(public.hint("leave one of them out"));
    }
    Ok(Plan {
        target: target::host(host)?,
        login,
        cluster: other_cluster(args.cluster.as_deref(), user)?,
        terminal: args.tty || (command.is_none() && std::io::stdin().is_terminal()),
        command,
        forwards: target::forwards(&args.local_forward, &args.dynamic_forward)?,
        agent: args.forward_agent.then(agent_socket).flatten(),
        forwards_only: args.no_remote_exec,
    })
}

/// The cluster that was asked for, unless it is the Proxy's own.
pub(super) fn other_cluster(asked: Option<&str>, user: &profile::LoggedIn) -> Result<Option<ClusterName>, Public> {
    let asked = asked.map(ClusterName::new).transpose().map_err(|error| usage(error.to_string()))?;
    Ok(asked.filter(|cluster| cluster != user.credentials.cluster()))
}

/// The connection to the host's SSH Service.
pub(super) async fn dial(user: &profile::LoggedIn, target: &Target, cluster: Option<&ClusterName>) -> Result<Node, ConnectError> {
    let proxy: &ProxyAddr = &user.proxy;
    let dialer = user.credentials.dialer(&proxy.to_string(), "tsh", &crate::version(), &SystemClock::shared())?;
    dialer.dial(target, cluster).await
}

async fn run(user: &profile::LoggedIn, plan: &Plan, skip_version_check: bool) -> Result<u8, Public> {
    if plan.agent.is_some() || !plan.forwards.is_empty() {
        // What the host does not allow is told while the session goes on.
        crate::debug::warnings();
    }
    let listeners = listen(&plan.forwards).await?;
    let node = match dial(user, &plan.target, plan.cluster.as_ref()).await {
        Err(ConnectError::Refused(public)) if public.is(Code::NodeAmbiguous) => {
            return Err(ambiguous(user, plan, public, skip_version_check).await);
        }
        other => other?,
    };
    let session = open(user, plan, node).await?;
    let shutdown = Shutdown::new();
    let group = Group::new("forwards");
    for (listener, to) in listeners {
        group.spawn("listener", forward::forward(session.clone(), listener, to.to, shutdown.clone()));
    }
    let ended = if plan.forwards_only { wait(&session).await } else { talk(&session, plan).await };
    shutdown.stop();
    drop(group);
    if let Some(session) = Arc::into_inner(session) {
        session.close().await;
    }
    match ended {
        // Whoever read our output has enough: `| head`.
        Err(SshError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(128 + 13),
        other => Ok(other?),
    }
}

async fn open(user: &profile::LoggedIn, plan: &Plan, node: Node) -> Result<Arc<Session>, Public> {
    let credentials = &user.credentials;
    let key = credentials.key.ssh_private().map_err(|error| Public::new(Code::Config, error.to_string()))?;
    let connecting = Connecting {
        login: plan.login.clone(),
        key: Arc::new(key),
        certificate: credentials.ssh_certificate.clone(),
        expected: ExpectedHost { trust: credentials.trust.clone(), asked: plan.target.clone(), host_id: Some(node.host_id) },
        forwarding: !plan.forwards.is_empty(),
        agent_socket: plan.agent.clone(),
        keep_alive: KEEP_ALIVE,
        clock: SystemClock::shared(),
    };
    let session = ssh::connect(node.stream, connecting).await.map_err(|error| with_logins(error.public(), user))?;
    Ok(Arc::new(session))
}

/// A refused login is most often a wrong one: says which there are.
fn with_logins(public: Public, user: &profile::LoggedIn) -> Public {
    let logins = &user.credentials.identity.logins;
    if !public.is(Code::AccessDenied) || logins.is_empty() {
        return public;
    }
    let logins = logins.iter().take(10).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    public.hint(format!("logins you may use: {logins}"))
}

/// Several hosts have that name: shows them, so that the user can name one by its id.
async fn ambiguous(user: &profile::LoggedIn, plan: &Plan, public: Public, skip_version_check: bool) -> Public {
    let via = Via::Proxy(user.proxy.to_string());
    let Ok(api) = user.api(via, "tsh", skip_version_check) else { return public };
    if let Ok(mut listed) = api.list_raw(types::kind::Node::KIND, &Labels::new()).await {
        eprint!("{}", ls::candidates(&mut listed.items, &plan.target.to_string()));
    }
    public.hint(format!("name the host by its id: tsh ssh {}@<node id>", plan.login))
}

async fn listen(forwards: &[Forward]) -> Result<Vec<(TcpListener, Forward)>, Public> {
    let mut listeners = Vec::new();
    for forward in forwards {
        let failed = |error: std::io::Error| {
            Public::new(Code::Usage, format!("port {} on {} cannot be opened: {error}", forward.port, forward.bind))
        };
        let listener = TcpListener::bind((forward.bind, forward.port)).await.map_err(failed)?;
        if forward.port == 0 {
            eprintln!("Forwarding {} to {}", listener.local_addr().map_err(failed)?, forward.to);
        }
        listeners.push((listener, forward.clone()));
    }
    Ok(listeners)
}

/// `-A` without an agent is told, and the session opens without.
fn agent_socket() -> Option<PathBuf> {
    let socket = std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty());
    if socket.is_none() {
        eprintln!("warning: -A: no SSH agent to forward; SSH_AUTH_SOCK is not set (start one: eval \"$(ssh-agent)\")");
    }
    socket.map(PathBuf::from)
}

/// `-N`: until the connection ends or the user has enough.
async fn wait(session: &Session) -> Result<u8, SshError> {
    let (control, _never_read) = mpsc::channel(1);
    tokio::select! {
        error = session.closed() => Err(error),
        status = signals(control, true) => Ok(status),
    }
}

/// One channel, from the request to the exit status.
async fn talk(session: &Session, plan: &Plan) -> Result<u8, SshError> {
    let request = request(plan);
    let (sender, control) = mpsc::channel(16);
    let raw = plan.terminal.then(terminal::Raw::enter).flatten();
    let streams = Streams { stdin: stdio::input(), stdout: stdio::output(), stderr: stdio::errors(), control };
    let ended = tokio::select! {
        exit = session.run(request, streams) => exit.map(|exit: Exit| exit.code()),
        status = signals(sender, plan.terminal) => Ok(status),
    };
    drop(raw);
    ended
}

fn request(plan: &Plan) -> Request {
    let pty = plan.terminal.then(|| {
        let (columns, rows) = terminal::size();
        let term = std::env::var("TERM").ok().filter(|term| !term.is_empty()).unwrap_or_else(|| "vt100".into());
        Pty { term, columns, rows, width: 0, height: 0, modes: terminal_modes::of_stdin() }
    });
    Request {
        command: plan.command.clone(),
        subsystem: None,
        environment: environment(std::env::vars()),
        pty,
        forward_agent: plan.agent.is_some(),
    }
}

/// Language and formats, as OpenSSH's usual configuration sends them.
fn environment(variables: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    variables.filter(|(name, value)| (name == "LANG" || name.starts_with("LC_")) && value.len() <= 256).take(20).collect()
}

/// Passes window changes on, and signals to a command that has no terminal. Returns, with the status, when a signal ends
/// this program: at once when nothing far away can take it, else the second time.
async fn signals(control: mpsc::Sender<Control>, ends_at_once: bool) -> u8 {
    let open = |kind| signal(kind).ok();
    let mut window = open(SignalKind::window_change());
    let mut interrupt = open(SignalKind::interrupt());
    let mut terminate = open(SignalKind::terminate());
    let mut hangup = open(SignalKind::hangup());
    let mut passed_on = false;
    loop {
        let (number, name) = tokio::select! {
            () = next(&mut window) => {
                let (columns, rows) = terminal::size();
                // A full channel has a newer size behind it or a dead connection before it.
                let _full = control.try_send(Control::Window { columns, rows, width: 0, height: 0 });
                continue;
            }
            () = next(&mut interrupt) => (2, Sig::INT),
            () = next(&mut terminate) => (15, Sig::TERM),
            () = next(&mut hangup) => return 128 + 1,
        };
        if ends_at_once || passed_on || control.try_send(Control::Signal(name)).is_err() {
            return 128 + number;
        }
        passed_on = true;
    }
}

async fn next(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_language_and_formats_are_sent_to_the_host() {
        let variables = [("LANG", "C.UTF-8"), ("LC_TIME", "de_DE"), ("PATH", "/bin"), ("SECRET", "x"), ("LC_LONG", &"x".repeat(300))];
        let sent = environment(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        assert_eq!(sent.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["LANG", "LC_TIME"]);
    }

    #[test]
    fn flags_before_the_command_are_ours_and_those_after_it_are_not() {
        use clap::Parser as _;
        let parse = |words: &[&str]| match super::super::Cli::try_parse_from(words).unwrap().command {
            super::super::Command::Ssh(args) => (args.target, args.command, args.tty),
            other => panic!("{other:?}"),
        };
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(parse(&["tsh", "ssh", "-t", "alice@node1"]), ("alice@node1".into(), vec![], true));
        assert_eq!(parse(&["tsh", "ssh", "node1", "df", "-h"]), ("node1".into(), words(&["df", "-h"]), false));
        assert_eq!(parse(&["tsh", "ssh", "node1", "--", "df", "-t"]), ("node1".into(), words(&["df", "-t"]), false));
        assert_eq!(parse(&["tsh", "ssh", "-l", "bob", "node1", "ls", "-l"]), ("node1".into(), words(&["ls", "-l"]), false));
    }
}
