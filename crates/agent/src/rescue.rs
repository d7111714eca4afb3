//! Quarantine and rescue: what a host does that the cluster refuses for its version (design 3.2).
//!
//! It does not merely retry. [`Quarantine`] gathers what was said against it, by Proxies and by the Auth Service; while that stands,
//! [`keep`] asks a Proxy over the rescue protocol what to install, says so in one line of the log and on `/readyz`, and asks again
//! with jitter. Tunnels and cache go on trying as ever, so that it is back by itself when its version is admitted. Nothing is
//! installed here. [`Visit`] is the client's end of `wire::rescue`; `lockgate rescue` fetches a release with it.

mod visit;

pub use visit::{BadPlace, RescueError, Visit};

use crate::{proxies::Proxies, tunnel::Dialer};
use client::{cache::Cache, known_proxies};
use net::{backoff::Backoff, shutdown::Shutdown};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use types::{Extra, Public};
use wire::rescue::{Action, Advice, Status, system};

/// Before the first question: a whole fleet may be refused in the same second.
const FIRST: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(4));
/// Between two.
const AGAIN: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(240));
/// Characters of a peer's text that are shown.
const MAX_TEXT: usize = 400;

/// What stands against this host. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Quarantine(Arc<watch::Sender<State>>);

#[derive(Clone, Default, PartialEq, Debug)]
struct State {
    /// By tunnel.
    proxies: BTreeMap<u64, Public>,
    auth: Option<Public>,
    /// What was learned from a Proxy.
    advice: String,
}

impl State {
    /// Why nobody is served. A Proxy that refuses does not matter while another, or a port, is there.
    fn cause(&self, reached: bool) -> Option<&Public> {
        self.auth.as_ref().or_else(|| self.proxies.values().next().filter(|_| !reached))
    }
}

impl Quarantine {
    /// A Proxy refused a tunnel; only refusals for the version count.
    pub(crate) fn refused(&self, tunnel: u64, public: &Public) {
        if public.is_about_version() {
            self.0.send_if_modified(|state| state.proxies.insert(tunnel, public.clone()).as_ref() != Some(public));
        }
    }
    /// A tunnel stands, or is tried no more.
    pub(crate) fn admitted(&self, tunnel: u64) {
        self.0.send_if_modified(|state| state.proxies.remove(&tunnel).is_some());
    }

    /// What the Auth Service makes of this host: a refusal holds until it serves us again.
    fn auth(&self, live: bool, error: Option<&Public>) {
        self.0.send_if_modified(|state| {
            let now = match error.filter(|public| public.is_about_version()) {
                Some(public) => Some(public.clone()),
                None if live => None,
                None => return false,
            };
            std::mem::replace(&mut state.auth, now.clone()) != now
        });
    }

    fn advised(&self, advice: String) {
        self.0.send_if_modified(|state| std::mem::replace(&mut state.advice, advice.clone()) != advice);
    }

    /// For `/readyz`: why this host serves nobody and what to do, if it is quarantined.
    pub(crate) fn line(&self, reached: bool) -> Option<String> {
        let state = self.0.borrow();
        let cause = state.cause(reached)?;
        let told = if state.advice.is_empty() { plain(cause) } else { state.advice.clone() };
        Some(format!("quarantined: {told}"))
    }

    fn cause(&self, reached: bool) -> Option<Public> {
        self.0.borrow().cause(reached).cloned()
    }

    /// Wakes at each change.
    pub(crate) fn changes(&self) -> watch::Receiver<impl Sized + use<>> {
        self.0.subscribe()
    }
}

/// What is needed to ask.
pub(crate) struct Rescue {
    pub(crate) quarantine: Quarantine,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) proxies: Proxies,
    /// As configured; those that were told of come after, and those that this host knew when it was last well.
    pub(crate) given: Vec<String>,
    /// Reached by a port of its own.
    pub(crate) listens: bool,
    pub(crate) data_dir: PathBuf,
}

impl Rescue {
    fn reached(&self) -> bool {
        self.listens || self.proxies.standing() > 0
    }

    /// Waits until it is quarantined, or not any more.
    async fn until(&self, quarantined: bool) {
        let mut changes = self.quarantine.changes();
        loop {
            changes.borrow_and_update();
            let up = self.proxies.standing();
            if self.quarantine.cause(self.reached()).is_some() == quarantined {
                return;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                _ = self.proxies.changed(up) => {}
            }
        }
    }

    /// Asks one Proxy after the other.
    async fn ask(&self, cause: &Public) -> Result<(Advice, String), Option<RescueError>> {
        let (os, arch) = system();
        let hello = &self.dialer.hello;
        let status = Status {
            version: hello.version.clone(),
            os: os.into(),
            arch: arch.into(),
            content: hello.content.clone(),
            refused: Some(cause.clone()),
            extra: Extra::new(),
        };
        let mut failed = None;
        let mut asked_already = BTreeSet::new();
        let known = known_proxies::load(&self.data_dir);
        for addr in self.given.iter().cloned().chain(self.proxies.addrs()).chain(known) {
            if !asked_already.insert(addr.clone()) {
                continue;
            }
            let asked = async {
                let mut visit = self.dialer.visit(&addr).await?;
                visit.status(status.clone()).await
            };
            match asked.await {
                Ok(advice) => return Ok((advice, addr)),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed)
    }
}

/// Follows what the Auth Service makes of this host, by what the cache hears.
pub(crate) async fn follow_auth(cache: Cache, quarantine: Quarantine) {
    let mut feeding = cache.feeding();
    loop {
        {
            let now = feeding.borrow_and_update();
            quarantine.auth(now.live, now.error.as_ref());
        }
        if feeding.changed().await.is_err() {
            return;
        }
    }
}

/// Asks for rescue whenever this host is quarantined, until the service drains.
pub(crate) async fn keep(rescue: Rescue, seed: u64, shutdown: Shutdown) {
    let kept = async {
        loop {
            rescue.until(true).await;
            tokio::time::sleep(Backoff::new(FIRST.0, FIRST.1, seed).next()).await;
            quarantined(&rescue, seed).await;
            if rescue.quarantine.cause(rescue.reached()).is_none() {
                rescue.quarantine.advised(String::new());
                tracing::info!(version = rescue.dialer.hello.version, "the quarantine is over: this version is admitted");
            }
        }
    };
    tokio::select! {
        () = shutdown.draining() => {}
        () = kept => {}
    }
}

/// One quarantine, to its end.
async fn quarantined(rescue: &Rescue, seed: u64) {
    let mut backoff = Backoff::new(AGAIN.0, AGAIN.1, seed);
    let mut said = String::new();
    while let Some(cause) = rescue.quarantine.cause(rescue.reached()) {
        let (line, again) = match rescue.ask(&cause).await {
            Ok((advice, proxy)) => (advised(&advice, &proxy, &rescue.data_dir), advice.again),
            Err(Some(error)) => (format!("{}; no Proxy could be asked for the release to install: {}", plain(&cause), error.public()), 0),
            Err(None) => (plain(&cause), 0),
        };
        if line != said {
            tracing::warn!(
                version = rescue.dialer.hello.version,
                "quarantined: {line}; until then this host serves nobody new, and it goes on asking"
            );
            said.clone_from(&line);
        }
        rescue.quarantine.advised(line);
        let wait = backoff.next().max(Duration::from_secs(again.min(600)) / 2);
        tokio::select! {
            () = rescue.until(false) => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// The line for whoever runs this host: what stands against it, what to install, and how to get it.
fn advised(advice: &Advice, proxy: &str, data_dir: &Path) -> String {
    let mut line = format!("{}; {}", tame(&advice.why), tame(&advice.cure));
    let archive = advice.artifacts.iter().find(|artifact| artifact.name.as_str().ends_with(".tar.gz")).or(advice.artifacts.first());
    match (advice.action, archive) {
        (Action::Install, Some(file)) => line.push_str(&format!(
            "; {} ({} bytes, sha256 {}) is at the Proxy {proxy}, get it with: lockgate rescue --data-dir {}",
            file.name,
            file.size,
            file.sha256,
            data_dir.display()
        )),
        (Action::Install, None) => line.push_str(&format!("; the Proxy {proxy} holds no file of it, take it from where you have releases")),
        (Action::Wait | Action::Retry | Action::Unknown, _) => {}
    }
    line
}

fn plain(public: &Public) -> String {
    let hint = public.hint.as_deref().map(|hint| format!("; {}", tame(hint))).unwrap_or_default();
    format!("{}{hint} [{}]", tame(&public.message), tame(&public.code))
}

/// A peer's text, fit for one line.
fn tame(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;
    use wire::rescue::{Artifact, Sha256};

    fn too_old() -> Public {
        Public::new(Code::VersionTooOld, "server 3.0.0, you 1.0.0: too old by two").hint("upgrade to the latest 2, then 3")
    }

    #[test]
    fn only_a_refusal_for_the_version_is_a_quarantine_and_only_while_nobody_takes_this_host() {
        let quarantine = Quarantine::default();
        quarantine.refused(1, &Public::new(Code::AccessLocked, "locked"));
        assert_eq!(quarantine.line(false), None);
        quarantine.refused(1, &too_old());
        assert_eq!(
            quarantine.line(false).unwrap(),
            "quarantined: server 3.0.0, you 1.0.0: too old by two; upgrade to the latest 2, then 3 [LG-VERSION-001]"
        );
        assert_eq!(quarantine.line(true), None, "another Proxy has a tunnel");
        quarantine.admitted(1);
        assert_eq!(quarantine.line(false), None);
        // A code of a release that is not written yet.
        quarantine.refused(1, &Public { code: "LG-VERSION-042".into(), ..too_old() });
        assert!(quarantine.line(false).is_some());
    }

    #[test]
    fn the_auth_services_word_holds_until_it_serves_this_host_again() {
        let quarantine = Quarantine::default();
        quarantine.auth(false, Some(&too_old()));
        assert!(quarantine.line(true).is_some());
        quarantine.auth(false, Some(&Public::new(Code::Unreachable, "away")));
        assert!(quarantine.line(true).is_some(), "that it is away says nothing of the version");
        quarantine.auth(true, None);
        assert_eq!(quarantine.line(true), None);
    }

    #[test]
    fn the_line_names_what_to_install_and_the_command_that_gets_it() {
        let artifact = Artifact {
            name: "lockgate-2.1.0-linux-amd64.tar.gz".parse().unwrap(),
            os: "linux".into(),
            arch: "amd64".into(),
            sha256: Sha256::new([0xab; 32]),
            size: 7,
            extra: Extra::new(),
        };
        let advice = Advice {
            action: Action::Install,
            why: "this host runs 1.0.0\n, the cluster takes major 3".into(),
            cure: "install 2.1.0, then 3".into(),
            artifacts: vec![artifact],
            ..Advice::default()
        };
        let line = advised(&advice, "proxy:3080", Path::new("/var/lib/lockgate"));
        let want = "this host runs 1.0.0, the cluster takes major 3; install 2.1.0, then 3; lockgate-2.1.0-linux-amd64.tar.gz (7 bytes, sha256 abab";
        assert!(line.starts_with(want) && line.ends_with("get it with: lockgate rescue --data-dir /var/lib/lockgate"), "{line}");
        let bare = Advice { artifacts: Vec::new(), ..advice };
        assert!(
            advised(&bare, "proxy:3080", Path::new("/d"))
                .ends_with("the Proxy proxy:3080 holds no file of it, take it from where you have releases")
        );
    }
}
