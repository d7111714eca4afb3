//! `lockgate start`: one process, whatever services it runs, from the first look at its settings to its end.
//!
//! Read top to bottom: settings → data directory → services (`services.rs`) → signals: another process takes over (`restart`), or the
//! end: sessions run out, or are told to go. A process that takes another's place comes the same way, and waits where the other decides.

use super::{
    StartArgs, logging, metrics,
    ports::Ports,
    process::{DataLock, PidFile, host_id, make_private, tell_systemd},
    restart::{
        self, Successor,
        before::{self, Before, Inheritance},
    },
    services,
    settings::{self, Settings},
    signals::{Signals, Wish},
};
use crate::exit::{Could as _, Failure, Outcome};
use client::{api::Api, host::HostCredentials};
use net::{
    clock::{SharedClock, SystemClock},
    health::{Board, Health},
    shutdown::Shutdown,
    task::Group,
    tls::Pin,
    turn::{Switch, Turn},
};
use std::{
    collections::BTreeSet,
    os::fd::OwnedFd,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use types::{Event, HostId, Public, SystemRole, Time, Version, name::BootId};
use wire::handover::ToOld;

/// How long services may take to end after a stop, recordings included.
const LAST_DEADLINE: Duration = Duration::from_secs(15);
/// For an event about this process to be taken.
const RECORDING: Duration = Duration::from_secs(60);

/// Runs until a signal ends it.
pub(crate) fn start(args: &StartArgs) -> Outcome {
    let socket = before::find().could("reach the process before this one")?;
    let sockets = super::ports::from_systemd();
    let settings = settings::resolve(args).could("read the configuration")?;
    logging::start(settings.severity, settings.log_format);
    make_private(&settings.data_dir).could(use_it(&settings))?;
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().could("start the runtime")?;
    let ended = runtime.block_on(run(settings, socket, sockets));
    runtime.shutdown_timeout(Duration::from_secs(2));
    ended.map(|()| ExitCode::SUCCESS)
}

fn use_it(settings: &Settings) -> String {
    format!("use the data directory {}", settings.data_dir.display())
}

/// Each connection takes a descriptor, and the limit that most systems start with (1,024) is for programs with few. Sessions get
/// the usual limit back.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// What the parts of this process share.
pub(super) struct Process {
    pub(super) settings: Settings,
    pub(super) clock: SharedClock,
    pub(super) version: Version,
    pub(super) board: Board,
    pub(super) tasks: Group,
    /// Proxy and SSH Service: they end by themselves once drained. The rest ends after them.
    pub(super) services: Group,
    pub(super) shutdown: Shutdown,
    pub(super) host_id: HostId,
    pub(super) boot_id: BootId,
    pub(super) started: Time,
    pub(super) metrics: metrics::Shared,
    switch: Switch,
    pub(super) turn: Turn,
    pub(super) ports: Ports,
    pub(super) before: Option<Before>,
    pub(super) lock: Option<DataLock>,
    pid_file: Option<PidFile>,
    /// While it runs.
    pub(super) auth: Option<AuthRun>,
    /// Of the host authority, when the Auth Service is ours.
    pub(super) pins: Vec<Pin>,
    /// Once it is a member beside an Auth Service.
    pub(super) member: Option<MemberPart>,
}

/// The Auth Service of this process.
pub(super) struct AuthRun {
    pub(super) auth: Arc<auth::Auth>,
    pub(super) end: Shutdown,
    /// Ours once its files are closed.
    pub(super) ended: Turn,
}

/// This process as a member of the cluster.
pub(super) struct MemberPart {
    pub(super) api: Api,
    pub(super) credentials: watch::Sender<Arc<HostCredentials>>,
    pub(super) roles: BTreeSet<SystemRole>,
    /// The credentials come from the Auth Service of this process.
    pub(super) local: bool,
}

async fn run(settings: Settings, socket: Option<OwnedFd>, sockets: Vec<super::ports::Found>) -> Result<(), Failure> {
    let signals = Signals::listen().could("receive signals")?;
    // Listens for as long as this process lives, and to nothing but its end once it leads.
    let conversation = Group::new("live restart");
    let (inheritance, lock) = match socket {
        Some(socket) => {
            let mut inheritance = before::inherit(socket, &conversation).await.could("take over")?;
            let lock = inheritance.lock.take().map(DataLock::inherited);
            (Some(inheritance), lock)
        }
        None => (None, None),
    };
    let lock = match lock {
        Some(lock) => lock,
        None => DataLock::take(&settings.data_dir).could(use_it(&settings))?,
    };
    let (before, found) = match inheritance {
        Some(Inheritance { before, ports, .. }) => (Some(before), ports),
        None => (None, sockets),
    };
    let switch = Switch::new(before.is_none());
    let (turn, clock) = (switch.turn(), SystemClock::shared());
    let sources = metrics::Sources { before: before.as_ref().map(Before::alone), ..metrics::Sources::default() };
    let mut process = Process {
        version: crate::version(),
        board: Board::default(),
        tasks: Group::new("lockgate"),
        services: Group::new("services"),
        shutdown: Shutdown::new(),
        host_id: host_id(&settings.data_dir).could(use_it(&settings))?,
        // Proxies tell the newer of two processes by it.
        boot_id: BootId::from_uuid(uuid::Uuid::now_v7()),
        started: clock.now(),
        metrics: metrics::Shared::new(sources),
        ports: Ports::new(turn.clone(), found),
        lock: Some(lock),
        pid_file: None,
        auth: None,
        pins: Vec::new(),
        member: None,
        switch,
        turn,
        before,
        clock,
        settings,
    };
    live(&mut process, signals).await.could("run the services")
}

async fn live(process: &mut Process, signals: Signals) -> Result<(), Public> {
    if process.before.is_none() {
        process.show_pid()?;
    }
    tracing::info!(version = %process.version, git = crate::GITREF, roles = %shown(&process.settings.roles), "Lockgate starts");
    let (wish, wishes) = mpsc::channel(1);
    process.tasks.spawn("signals", signals.obey(process.shutdown.clone(), wish));
    for role in &process.settings.roles {
        process.board.set(component(role), Health::Starting);
    }
    let shutdown = process.shutdown.clone();
    let before = process.before.as_ref().map(Before::gave_up);
    let gave_up = async {
        match before {
            Some(before) => before.await,
            None => std::future::pending().await,
        }
    };
    let began = tokio::select! {
        began = begin(process) => began,
        // Also when it drains: what has not begun has nothing to finish, and a join may wait for hours.
        () = shutdown.draining() => Ok(()),
        () = gave_up => Err(before::gone()),
    };
    if let Err(error) = began {
        if let Some(before) = &process.before {
            before.say(&ToOld::Failed { error: error.clone() }).await;
        }
        shutdown.stop();
        process.tasks.join(LAST_DEADLINE).await;
        return Err(error);
    }
    let successor = serve(process, wishes).await;
    end(process, successor).await;
    tracing::info!("Lockgate ended");
    Ok(())
}

/// Until users can be served; a process that takes another's place then leads.
async fn begin(process: &mut Process) -> Result<(), Public> {
    services::diagnostics(process)?;
    services::serve(process).await?;
    process.ports.forget_the_rest();
    let Some(mut before) = process.before.take() else {
        process.announce_when_ready();
        return Ok(());
    };
    let led = lead(process, &mut before).await;
    process.before = Some(before);
    led
}

async fn lead(process: &mut Process, before: &mut Before) -> Result<(), Public> {
    // What only a leader does may still be starting: the tunnels of the SSH Service.
    process.until(|name| name == "ssh").await;
    before.be_judged(&process.version, &process.ports).await?;
    process.switch.set(true);
    process.until(|_| false).await;
    before.lead().await?;
    process.show_pid()?;
    process.record(restart::success(process.clock.now(), before.version(), &process.version));
    tracing::info!("ready, in place of the process before");
    Ok(())
}

/// Serves until it is to end. The process that took its place then, if one did.
async fn serve(process: &mut Process, mut wishes: mpsc::Receiver<Wish>) -> Option<Successor> {
    let (shutdown, mut successor) = (process.shutdown.clone(), None);
    loop {
        let wish = tokio::select! {
            () = shutdown.draining() => return successor,
            Some(wish) = wishes.recv() => wish,
            word = word_of(&successor) => {
                match word {
                    Some(ToOld::Drain) => shutdown.drain(),
                    Some(_) => {}
                    None => {
                        if let Some(mut gone) = successor.take() {
                            gone.reap().await;
                        }
                        tracing::warn!("the process that had taken over has ended; this one serves again");
                        process.take_back().await;
                        restart::announce_end(Ok(std::process::id()));
                    }
                }
                continue;
            }
        };
        match (&successor, wish) {
            (Some(_), Wish::Replace) => shutdown.drain(),
            (Some(_), Wish::StandBy) => tracing::info!("this process stands by already"),
            (None, wish) => {
                successor = replace(process).await;
                if successor.is_some() && matches!(wish, Wish::Replace) {
                    tracing::info!("another process has taken over; existing sessions run to their end here");
                    shutdown.drain();
                }
            }
        }
        // Whoever asked twice meant the same.
        while wishes.try_recv().is_ok() {}
    }
}

/// What the successor says next; for ever when there is none.
async fn word_of(successor: &Option<Successor>) -> Option<ToOld> {
    match successor {
        Some(successor) => successor.next().await,
        None => std::future::pending().await,
    }
}

/// Lets another process take over; none when it could not: then everything is as before.
async fn replace(process: &mut Process) -> Option<Successor> {
    // One process may stand by, and that will be this one.
    if let Some(before) = &process.before {
        before.say(&ToOld::Drain).await;
    }
    restart::announce_begin();
    let shutdown = process.shutdown.clone();
    let outcome = tokio::select! {
        outcome = restart::attempt(process) => outcome,
        // A new process that does not lead yet ends with the attempt.
        () = shutdown.draining() => return None,
    };
    restart::announce_end(outcome.as_ref().map(Successor::pid));
    match outcome {
        Ok(successor) => Some(successor),
        Err(error) => {
            tracing::error!("{error}; this process serves on");
            process.metrics.load().restart_failures.fetch_add(1, Ordering::Relaxed);
            process.take_back().await;
            process.record(restart::failure(process.clock.now(), &error));
            None
        }
    }
}

/// Sessions run to their end, here and in the process before; or everything stops.
async fn end(process: &mut Process, successor: Option<Successor>) {
    let shutdown = process.shutdown.clone();
    process.ports.close();
    match successor {
        Some(_) => {
            process.lock = None;
            process.pid_file.take().into_iter().for_each(PidFile::leave);
        }
        None => tell_systemd(&[sd_notify::NotifyState::Stopping]),
    }
    if let Some(before) = process.before.as_ref().filter(|_| !shutdown.is_stopping()) {
        before.say(&ToOld::Drain).await;
    }
    // The service as a whole was told, by way of the process that leads it.
    let told = async {
        loop {
            match word_of(&successor).await {
                Some(ToOld::Stop) => return,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    };
    let before = process.before.as_ref().map_or_else(Turn::always, Before::alone);
    // Heartbeats say "draining"; the services wait for their sessions and then end by themselves, or by a stop.
    let run_out = async {
        process.services.join(Duration::from_secs(365 * 24 * 3600)).await;
        before.ours().await;
    };
    tokio::select! {
        () = run_out => {}
        () = shutdown.stopping() => {}
        () = told => {}
        () = tokio::time::sleep(process.settings.drain_timeout) => {
            tracing::warn!(limit = ?process.settings.drain_timeout, "sessions that are left are ended: the time for draining is over");
        }
    }
    if let Some(before) = process.before.as_ref().filter(|before| !before.alone().is_ours()) {
        before.say(&ToOld::Stop).await;
    }
    shutdown.stop();
    process.services.join(LAST_DEADLINE).await;
    process.tasks.join(LAST_DEADLINE).await;
}

impl Process {
    /// Says so, to the log and to systemd, once users can be served.
    fn announce_when_ready(&self) {
        let (board, shutdown) = (self.board.clone(), self.shutdown.clone());
        self.tasks.spawn("announce", async move {
            let mut changes = board.changes();
            while !board.all_ready() {
                tokio::select! {
                    () = shutdown.draining() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
            }
            tracing::info!("ready");
            tell_systemd(&[sd_notify::NotifyState::Ready]);
        });
    }

    /// Waits until every component works, but for those.
    async fn until(&self, but: impl Fn(&str) -> bool) {
        let works = |(name, health): &(&str, Health)| but(name) || matches!(health, Health::Ready | Health::Attention(_));
        let mut changes = self.board.changes();
        while !self.board.snapshot().iter().all(works) {
            // The board lives as long as this process.
            let _changed = changes.changed().await;
        }
    }

    /// Shows which process this service is: in the lock and in the PID file.
    fn show_pid(&mut self) -> Result<(), Public> {
        if let Some(lock) = &self.lock {
            lock.note();
        }
        self.pid_file = self.settings.pid_file.clone().map(PidFile::write).transpose()?;
        Ok(())
    }

    /// Another process takes new work from now on.
    pub(super) async fn give_turn(&mut self) {
        self.switch.set(false);
        self.stop_auth().await;
    }

    /// It is gone: this one leads again.
    async fn take_back(&mut self) {
        self.switch.set(true);
        if self.settings.roles.contains(&SystemRole::Auth) && self.auth.is_none() {
            self.auth_again().await;
        }
        if let Err(error) = self.show_pid() {
            tracing::warn!(%error, "the PID file stays as it is");
        }
    }

    async fn auth_again(&mut self) {
        let mut backoff = net::backoff::Backoff::new(Duration::from_millis(200), Duration::from_secs(10), rand::random());
        let auth = loop {
            match services::start_auth(self).await {
                Ok(auth) => break auth,
                Err(error) => tracing::error!(%error, "the Auth Service of this process could not be started again"),
            }
            tokio::select! {
                () = self.shutdown.draining() => return,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        };
        let Some(member) = self.member.as_ref().filter(|member| member.local) else { return };
        // The other process had newer ones, which must not be found in two hands.
        match services::credentials(self, Some(&auth), &member.roles).await {
            Ok(fresh) => drop(member.credentials.send_replace(Arc::new(fresh))),
            Err(error) => tracing::error!(%error, "no new certificates for this process"),
        }
    }

    /// Puts an event about this process into the audit log, as soon as that takes it.
    fn record(&self, event: Event) {
        let auth = self.auth.as_ref().map(|run| run.auth.clone());
        let api = self.member.as_ref().map(|member| member.api.clone());
        self.tasks.spawn("record", async move {
            let mut backoff = net::backoff::Backoff::new(Duration::from_millis(200), Duration::from_secs(5), rand::random());
            let recorded = async {
                loop {
                    let done = match (&api, &auth) {
                        (Some(api), _) => api.emit_events(std::slice::from_ref(&event)).await.map(drop),
                        (None, Some(auth)) => auth.record(event.clone()).await,
                        (None, None) => return,
                    };
                    match done {
                        Ok(()) => return,
                        Err(error) => tracing::debug!(%error, "an event about this process waits"),
                    }
                    tokio::time::sleep(backoff.next()).await;
                }
            };
            if tokio::time::timeout(RECORDING, recorded).await.is_err() {
                tracing::warn!(event = event.event, "an event about this process found no place in the audit log");
            }
        });
    }
}

/// What `/readyz` and the metrics call a service.
pub(super) fn component(role: &SystemRole) -> &'static str {
    match role {
        SystemRole::Auth => "auth",
        SystemRole::Proxy => "proxy",
        SystemRole::Node => "ssh",
        SystemRole::Db => "db",
        SystemRole::Admin | SystemRole::Other(_) => "other",
    }
}

pub(super) fn shown(roles: &BTreeSet<SystemRole>) -> String {
    roles.iter().map(SystemRole::as_str).collect::<Vec<_>>().join(",")
}
