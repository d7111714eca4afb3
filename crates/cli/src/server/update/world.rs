//! How an updater reaches the world: a Proxy's rescue door for the directive, the metadata and the archives; the program that the
//! link names for how the cluster shows this host; a command for the service.
//!
//! The rescue door is spoken by every release to every other, so an updater works also on a host that the cluster refuses for its
//! version. How the cluster shows this host is asked by the program that is to be judged: it is the one whose version the cluster
//! takes. When it does not answer, whether a Proxy does tells a broken release from a broken network.

use super::{Settings, WhereArgs, silent};
use crate::exit::{Could as _, Outcome};
use agent::rescue::{RescueError, Visit};
use client::{
    api::{Access, Api, Settings as ApiSettings, Via},
    host::HostCredentials,
};
use net::clock::{Clock as _, SystemClock};
use release::{
    Source, SourceError, Versions,
    round::{Seen, World},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitCode, Output, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::process::Command;
use types::{
    Code, Extra, Public, ResourceName, Time, Version,
    kind::Member,
    update::{Directive, SignedDirective},
};
use upgrade::updater::{Job, Verdict};
use wire::rescue::{Artifact, FileName, system};

/// For a program that is asked something.
const ANSWER: Duration = Duration::from_secs(45);
/// For the service to run another release: it drains first.
const RESTART: Duration = Duration::from_secs(600);

/// Whom to ask, and as whom.
#[derive(Clone)]
pub(super) struct Door {
    credentials: HostCredentials,
    proxies: Vec<String>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Door({})", self.proxies.join(","))
    }
}

impl Door {
    pub(super) fn new(credentials: HostCredentials, proxies: Vec<String>) -> Self {
        Self { credentials, proxies }
    }

    /// The first Proxy that opens.
    pub(super) async fn open(&self) -> Result<Visit, RescueError> {
        let mut failed = RescueError::Refused(Public::new(Code::Unreachable, "this host's configuration names no Proxy"));
        for proxy in &self.proxies {
            let trust = self.credentials.trust.swap()?;
            match Visit::open(proxy, &self.credentials, trust, &SystemClock::shared()).await {
                Ok(visit) => return Ok(visit),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn file(&self, name: &str) -> Result<Vec<u8>, Public> {
        let name: FileName = name.parse().map_err(|_| Public::new(Code::NotFound, format!("\"{name}\" is no file of a mirror")))?;
        let mut visit = self.open().await.map_err(|error| error.public())?;
        visit.metadata(name).await.map_err(|error| error.public())
    }
}

#[release::async_trait]
impl Source for Door {
    async fn metadata(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        self.file(name).await.map_err(|error| {
            if error.is(Code::NotFound) { SourceError::Missing(name.to_owned()) } else { SourceError::Unreachable(error.to_string()) }
        })
    }
}

/// The world of one round.
pub(super) struct Fleet {
    door: Door,
    versions: Versions,
    /// Flags by which other programs find this host.
    words: Vec<OsString>,
    restart: Vec<String>,
}

impl Fleet {
    pub(super) fn new(
        credentials: HostCredentials,
        proxies: Vec<String>,
        versions: Versions,
        place: &WhereArgs,
        restart: Vec<String>,
    ) -> Self {
        Self { door: Door::new(credentials, proxies), versions, words: place.words(), restart }
    }

    /// What a program says, asked `update <word>`.
    async fn ask(&self, program: &Path, word: &str) -> Result<Output, Public> {
        let mut command = Command::new(program);
        command.args(["update", word]).args(&self.words).stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(ANSWER, command.output()).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(error)) => Err(silent(program, error)),
            Err(_) => Err(silent(program, "it does not answer in time")),
        }
    }
}

/// What `lockgate update check` prints. Read by other releases: it only grows.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Checked {
    pub(super) version: Version,
    /// `passed`, `failed` or `unclear`.
    pub(super) verdict: String,
    #[serde(default)]
    pub(super) why: String,
}

/// What `lockgate update seen` prints.
#[derive(Debug, Serialize, Deserialize)]
struct Shown {
    seen: Option<ShownHost>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ShownHost {
    version: Version,
    boot_id: String,
}

#[release::async_trait]
impl World for Fleet {
    fn now(&self) -> Time {
        SystemClock.now()
    }

    async fn pause(&self, length: Duration) {
        tokio::time::sleep(length).await;
    }

    async fn directive(&self) -> Result<Option<Directive>, Public> {
        let bytes = match self.door.file(wire::directive::FILE).await {
            Ok(bytes) => bytes,
            Err(error) if error.is(Code::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        let unreadable = |_| Public::new(Code::UpdateDirective, "the Proxy's directive cannot be read");
        let signed: SignedDirective = serde_json::from_slice(&bytes).map_err(unreadable)?;
        wire::directive::open(&signed, &self.door.credentials.trust.host_ssh).map(Some).map_err(|error| error.public())
    }

    fn source(&self) -> Arc<dyn Source> {
        Arc::new(self.door.clone())
    }

    async fn fetch(&self, job: &Job, into: &Path) -> Result<PathBuf, Public> {
        let name: FileName =
            job.file.parse().map_err(|_| Public::new(Code::UpdateRefused, format!("\"{}\" is no name of an archive", job.file)))?;
        let (os, arch) = system();
        let artifact = Artifact { name, os: os.into(), arch: arch.into(), sha256: job.archive, size: job.size, extra: Extra::new() };
        let mut visit = self.door.open().await.map_err(|error| error.public())?;
        tracing::info!(version = %job.version, bytes = job.size, "fetching");
        visit.fetch(&artifact, into, &mut |_| {}).await.map_err(|error| error.public())
    }

    async fn test(&self, program: &Path, version: &Version) -> Verdict {
        let output = match self.ask(program, "check").await {
            Ok(output) => output,
            Err(error) => return Verdict::Failed(error.message),
        };
        let checked: Option<Checked> = serde_json::from_slice(&output.stdout).ok();
        match checked {
            None => Verdict::Failed(format!("it does not answer as a release should: {}", first_line(&output))),
            Some(checked) if checked.version != *version => Verdict::Failed(format!("it says that it is {}", checked.version)),
            Some(checked) if checked.verdict == "passed" => Verdict::Passed,
            Some(checked) if checked.verdict == "unclear" => Verdict::Unclear(checked.why),
            Some(checked) => Verdict::Failed(checked.why),
        }
    }

    async fn restart(&self) -> Result<(), Public> {
        restart(&self.restart).await
    }

    async fn seen(&self) -> Result<Option<Seen>, Public> {
        let program = if self.versions.installed().is_some() { Ok(self.versions.program()) } else { std::env::current_exe() };
        let program = program.map_err(|error| silent(Path::new("lockgate"), error))?;
        let shown: Option<Shown> = match self.ask(&program, "seen").await {
            Ok(output) if output.status.success() => serde_json::from_slice(&output.stdout).ok(),
            Ok(_) | Err(_) => None,
        };
        match shown {
            Some(shown) => Ok(shown.seen.map(|seen| Seen { version: seen.version, boot_id: seen.boot_id })),
            // It could not say: is it the program, or the network?
            None => self.door.open().await.map(|_| None).map_err(|error| error.public()),
        }
    }
}

/// Makes the service run what the link names. The one place for it: a live restart is another command.
async fn restart(words: &[String]) -> Result<(), Public> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    tracing::info!(command = words.join(" "), "restarting the service");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(RESTART, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(silent(Path::new(program), format!("{}, {}", output.status, first_line(&output)))),
        Ok(Err(error)) => Err(silent(Path::new(program), error)),
        Err(_) => Err(silent(Path::new(program), "it does not end")),
    }
}

/// What a program said last on its standard error, fit for one line.
fn first_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// `lockgate update seen`
pub(super) fn print_seen(place: &WhereArgs) -> Outcome {
    const COULD: &str = "ask how the cluster shows this host";
    let settings: Settings = place.settings().could(COULD)?;
    let credentials = settings.credentials().could(COULD)?;
    let runtime = crate::connection::runtime().could(COULD)?;
    let found = runtime.block_on(async {
        let access = Access::cluster(&credentials.trust, Some(credentials.tls.clone()))
            .map_err(|error| Public::new(Code::Certificate, error.to_string()))?;
        let role = credentials.identity.roles.first().map_or("node", types::SystemRole::as_str);
        let api = Api::new(ApiSettings {
            via: Via::proxies(&settings.proxies),
            access,
            role: role.into(),
            version: crate::version(),
            skip_version_check: false,
            clock: SystemClock::shared(),
        });
        api.find::<Member>(&ResourceName::from(&credentials.id())).await
    });
    let member = found.could(COULD)?;
    let seen = member.map(|member| ShownHost { version: member.spec.version, boot_id: member.spec.boot_id });
    let text = serde_json::to_string(&Shown { seen }).unwrap_or_default();
    crate::output::write_out(&format!("{text}\n")).could(COULD).map(|()| ExitCode::SUCCESS)
}
