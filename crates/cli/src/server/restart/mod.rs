//! Live restart: a new process of this program, which may be another release, takes this one's place (rule G13).
//!
//! This is the old process's end; the new one's is [`before`], what both say is `wire::handover`. The new one gets the listeners and
//! prepares itself beside the old one, which serves on. Then the old one judges it ([`judge`]) by connections that it hands over, gives
//! it the turn (`net::turn`), asks once more at the ports, and only then believes it. Whatever goes wrong before (an end, silence,
//! nonsense) ends the new one and leaves the old one in its place.
//!
//! Two processes of one host never write the same thing:
//!
//! | | who |
//! |---|---|
//! | lock of the data directory | both hold the one lock (its descriptor goes along) until the old one drains |
//! | store, audit log, seat, `admin/` of the Auth Service | one at a time: the old one closes them when asked, meanwhile callers wait in the listener's queue |
//! | Proxy's ports, diagnostics, PID file, systemd, heartbeats, renewal of `host/identity.json` | whose turn it is |
//! | a session, its recording | the process in which it began; recordings are locked files (`agent::spool`) |
//! | audit events of a host | each its own file (`agent::events`); what a dead process left goes to the living one |
//! | tunnels | both hold theirs: Proxies use the newest process's (`proxy::tunnel::registry`) |

pub(super) mod before;
mod judge;

use super::{
    process::{loopback, tell_systemd},
    start::Process,
};
use judge::Judge;
use net::hand::{Hand, Handed};
use std::{
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use types::{Code, Event, EventKind, Public, Time, Version};
use wire::handover::{Inherited, ON_STDIN, ToNew, ToOld, VARIABLE, decode, encode};

/// From the order to lead until hosts are reached through the new process.
const LEADING: Duration = Duration::from_secs(30);

/// The process that takes this one's place.
pub(super) struct Successor {
    hand: Hand,
    child: Child,
    pub(super) version: Version,
    /// Until it leads it ends with this value.
    leads: bool,
}

impl Drop for Successor {
    fn drop(&mut self) {
        if self.leads {
            // Its end, if it has ended, is noted; a living one is nobody's child from now on.
            let _running = self.child.try_wait();
            return;
        }
        // The files that it may have opened must be closed before this process opens them again.
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Starts a successor and lets it take over. An error says why it did not; then it has ended, and `process` may have to take back
/// what it gave ([`Process::take_back`]).
pub(super) async fn attempt(process: &mut Process) -> Result<Successor, Public> {
    let mut successor = Successor::start(process).await?;
    let ready_by = Instant::now() + process.settings.restart_timeout;
    let doors = successor.prepare(process, ready_by).await?;
    let judge = process.judge(&successor.version);
    for door in process.ports.doors().into_iter().filter(|door| doors.iter().any(|theirs| theirs == door)) {
        let (near, far) = connection().await.map_err(|error| failed(format!("no connection could be made to judge it by: {error}")))?;
        successor.say(&ToNew::Serve { door: door.into() }, &[far]).await?;
        judge.door(door, near).await.map_err(failed)?;
    }
    process.give_turn().await;
    successor.say(&ToNew::Lead, &[]).await?;
    while !matches!(successor.hear(Instant::now() + LEADING).await?, ToOld::Leading) {}
    if let Some(addr) = process.ports.local_addr("proxy").filter(|_| doors.iter().any(|door| door == "proxy")) {
        let stream = TcpStream::connect(loopback(addr)).await.map_err(|error| failed(format!("proxy: {error}")))?;
        judge.door("proxy", stream).await.map_err(failed)?;
    }
    successor.say(&ToNew::Leads, &[]).await?;
    successor.leads = true;
    Ok(successor)
}

impl Process {
    fn judge(&self, version: &Version) -> Judge {
        Judge {
            version: version.clone(),
            clock: self.clock.clone(),
            credentials: self.member.as_ref().map(|member| member.credentials.borrow().clone()),
            pins: self.pins.clone(),
            cluster_web: self.settings.proxy.keypairs.is_empty(),
        }
    }
}

impl Successor {
    /// The program is found anew by the name this process was started by: where a link or a package has been changed, that is another.
    async fn start(process: &Process) -> Result<Self, Public> {
        let (hand, theirs) = Hand::pair().map_err(|error| failed(error.to_string()))?;
        let mut words = std::env::args_os();
        let program = words.next().ok_or_else(|| failed("this process does not know its own program".into()))?;
        tracing::info!(program = %program.display(), "starting a new process to take over");
        let mut command = Command::new(&program);
        command.args(words).env(VARIABLE, ON_STDIN).stdin(Stdio::from(theirs));
        let child = command.spawn().map_err(|error| failed(format!("{} cannot be started: {error}", program.display())))?;
        // The command keeps the other end open; its end must be the child's.
        drop(command);
        let successor = Self { hand, child, version: process.version.clone(), leads: false };
        let mut all = process.ports.descriptors().map_err(|error| failed(error.to_string()))?;
        if let Some(lock) = &process.lock {
            let lock = lock.descriptor().map_err(|error| failed(error.to_string()))?;
            all.push((Inherited { name: "lock".into(), addr: String::new() }, lock));
        }
        let (descriptors, open): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        successor.say(&ToNew::Inherit { version: process.version.clone(), descriptors }, &open).await?;
        Ok(successor)
    }

    /// Waits until it is ready at the doors that it names; meanwhile the Auth Service moves, if both have one.
    async fn prepare(&mut self, process: &mut Process, ready_by: Instant) -> Result<Vec<String>, Public> {
        loop {
            match self.hear(ready_by).await? {
                ToOld::WantAuth => {
                    process.stop_auth().await;
                    self.say(&ToNew::Auth, &[]).await?;
                }
                ToOld::AuthServes { version } => {
                    if let Some(addr) = process.ports.local_addr("auth").filter(|_| !process.pins.is_empty()) {
                        process.judge(&version).auth(loopback(addr)).await.map_err(failed)?;
                    }
                }
                ToOld::Prepared { version, doors } => {
                    self.version = version;
                    return Ok(doors);
                }
                ToOld::Leading => return Err(failed("it took over before it was asked to".into())),
                ToOld::Failed { .. } | ToOld::Drain | ToOld::Stop | ToOld::Unknown => {}
            }
        }
    }

    async fn say(&self, word: &ToNew, descriptors: &[OwnedFd]) -> Result<(), Public> {
        let open: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        self.hand.send(&encode(word), &open).await.map_err(|error| failed(format!("it does not listen: {error}")))
    }

    async fn hear(&mut self, by: Instant) -> Result<ToOld, Public> {
        let Ok(word) = tokio::time::timeout_at(by, self.next()).await else {
            return Err(failed("it was not ready in time".into()));
        };
        match word {
            Some(ToOld::Failed { error }) => Err(failed(error.to_string())),
            Some(word) => Ok(word),
            None => {
                // It closed its end; what it made of itself follows at once, if it has ended.
                let status = tokio::time::timeout(Duration::from_secs(1), self.ended()).await;
                Err(failed(status.map_or_else(|_| "it hung up".into(), |status| format!("it ended: {status}"))))
            }
        }
    }

    /// Waits a moment for its end to be complete: it has hung up.
    pub(super) async fn reap(&mut self) {
        if tokio::time::timeout(Duration::from_secs(1), self.ended()).await.is_err() {
            tracing::warn!(pid = self.pid(), "the process that hung up has not ended yet");
        }
    }

    async fn ended(&mut self) -> String {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.to_string(),
                Ok(None) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => return error.to_string(),
            }
        }
    }

    /// What it says next; none when it has ended. Safe to cancel.
    pub(super) async fn next(&self) -> Option<ToOld> {
        let Handed { bytes, .. } = self.hand.receive().await.ok().flatten()?;
        Some(decode(&bytes).unwrap_or(ToOld::Unknown))
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// Two ends of a connection, as if somebody had come to a port.
async fn connection() -> std::io::Result<(TcpStream, OwnedFd)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let near = TcpStream::connect(listener.local_addr()?).await?;
    loop {
        let (far, peer) = listener.accept().await?;
        // Anybody on this host might have come first.
        if peer == near.local_addr()? {
            return Ok((near, far.into_std()?.into()));
        }
    }
}

fn failed(why: String) -> Public {
    Public::new(Code::Unavailable, format!("the new process is not fit to take over: {why}"))
        .hint("this one serves on; look at what the new one logged, and try again: systemctl reload lockgate")
}

/// Says that a restart begins.
pub(super) fn announce_begin() {
    use sd_notify::NotifyState;
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell_systemd(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "systemd was not told"),
    }
}

/// Says that there is a new main process, or why not.
pub(super) fn announce_end(outcome: Result<u32, &Public>) {
    use sd_notify::NotifyState;
    match outcome {
        Ok(pid) => tell_systemd(&[NotifyState::MainPid(pid), NotifyState::Ready, NotifyState::Status("serving")]),
        Err(error) => {
            let status = format!("serving; a restart failed: {}", error.message);
            tell_systemd(&[NotifyState::Ready, NotifyState::Status(&status)]);
        }
    }
}

/// The audit event of a restart, from the new process.
pub(super) fn success(at: Time, from: &Version, to: &Version) -> Event {
    let event = Event::new(EventKind::Restart, at, uuid::Uuid::now_v7()).with("success", true);
    event.with("from", from.to_string()).with("version", to.to_string())
}

/// The audit event of a restart that failed, from the process that serves on.
pub(super) fn failure(at: Time, error: &Public) -> Event {
    Event::new(EventKind::RestartFailed, at, uuid::Uuid::now_v7()).with("success", false).with("error", error.to_string())
}
