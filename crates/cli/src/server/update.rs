//! `lockgate update …`: this host's updater (docs/updates.md).
//!
//! `agent` makes a round, or one after the other; what a round does is `release::round`'s, what may be done `upgrade::updater`'s, and
//! how this host reaches the world [`world`]'s. `check` is what an older release asks a newer one before it lets it run: its answer is
//! read across releases, so it only grows. Settings are flags and the environment, not keys of the configuration file: a file with
//! keys of this release could not be read by the one before, and the way back must stay open.

mod check;
mod world;

use super::rescue;
use crate::{
    exit::{Could as _, Failure, Outcome, usage},
    output::{Format, Style, show_value, write_out},
};
use clap::{Args, Subcommand};
use client::host::HostCredentials;
use release::{
    EDITION, Versions,
    round::{self, Outcome as Ended, Place},
};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use types::{Code, Public, Ttl, update::UpdateReport};
use upgrade::updater::{Host, Patience, Rest};
use wire::rescue::system;

/// Where releases lie side by side.
const DIR: &str = "/opt/lockgate";
/// The vendor's root file.
const ROOT: &str = "/etc/lockgate/releases-root.json";
/// Statuses for scripts, beside 0 and those of every command.
const WAITING: u8 = 2;
const REFUSED: u8 = 4;
const REVERTED: u8 = 5;

#[derive(Subcommand, Debug)]
pub(crate) enum Update {
    /// Brings this host to the release that the cluster directs, once both the cluster and the vendor allow it
    #[command(
        after_help = "Without a directive of the cluster nothing changes.\n\nExamples:\n  lockgate update agent\n  lockgate update agent --watch=10m\n  lockgate update agent --restart='systemctl reload lockgate'\n\nExit status: 0 as directed or nothing directed, 2 waits for something that comes by itself, 4 refused, 5 the new release does not work here and the one before runs."
    )]
    Agent(Box<AgentArgs>),
    /// Puts the running program among the releases, so that a unit can name the link; changes nothing that runs
    Enable(WhereArgs),
    /// Shows what this host's updater did last, and what is installed
    Status {
        #[command(flatten)]
        place: WhereArgs,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Holds this host at what it runs
    Pin(WhereArgs),
    /// Lets the cluster move this host again
    Unpin(WhereArgs),
    /// Says whether this program could run here: asked by an updater before it lets it
    #[command(hide = true)]
    Check(WhereArgs),
    /// Says how the cluster shows this host
    #[command(hide = true)]
    Seen(WhereArgs),
}

/// Which host.
#[derive(Args, Debug, Clone)]
pub(crate) struct WhereArgs {
    /// Configuration file; /etc/lockgate.yaml is read when it exists and this is absent
    #[arg(short, long, env = "LOCKGATE_CONFIG_FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Directory of state, which has the host's certificate
    #[arg(long, env = "LOCKGATE_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Proxy to ask, host:port; those of the configuration when absent
    #[arg(long)]
    pub(crate) proxy_server: Option<String>,
    /// Directory of releases, side by side, with the link `current`
    #[arg(long, env = "LOCKGATE_UPDATE_DIR", default_value = DIR)]
    pub(crate) dir: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    place: WhereArgs,
    /// The vendor's root file: whose releases are genuine
    #[arg(long, env = "LOCKGATE_UPDATE_ROOT", default_value = ROOT)]
    root: PathBuf,
    /// Command that makes the service run what the link names
    #[arg(long, env = "LOCKGATE_UPDATE_RESTART", default_value = "systemctl restart lockgate")]
    restart: String,
    /// How long a cluster that can be reached may fail to see a new release before it is taken back
    #[arg(long, env = "LOCKGATE_UPDATE_CONFIRM", default_value = "5m")]
    confirm_within: Ttl,
    /// Makes a round each so often, until TERM or until another release was installed
    #[arg(long, value_name = "INTERVAL", env = "LOCKGATE_UPDATE_WATCH")]
    watch: Option<Ttl>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

/// Where this host's state lies, and whom it asks.
struct Settings {
    data_dir: PathBuf,
    proxies: Vec<String>,
}

impl WhereArgs {
    fn settings(&self) -> Result<Settings, Public> {
        let (data_dir, proxies) = rescue::settings(self.config.as_deref(), self.data_dir.as_deref(), self.proxy_server.as_deref())?;
        Ok(Settings { data_dir, proxies })
    }

    /// The same flags, for another program.
    fn words(&self) -> Vec<std::ffi::OsString> {
        let flag = |name: &str, value: Option<&Path>| value.map(|value| [name.into(), value.as_os_str().to_owned()]);
        let paths = [flag("--config", self.config.as_deref()), flag("--data-dir", self.data_dir.as_deref())];
        let proxy = self.proxy_server.as_ref().map(|named| ["--proxy-server".into(), named.into()]);
        paths.into_iter().chain([proxy]).flatten().flatten().collect()
    }
}

impl Settings {
    fn state(&self) -> PathBuf {
        self.data_dir.join("update")
    }
    fn credentials(&self) -> Result<HostCredentials, Public> {
        // A host that is an Auth Service and nothing else never joined; the service makes it one.
        let (host, auth) = (self.data_dir.join("host/identity.json"), self.data_dir.join("auth/host.json"));
        let path = if !host.exists() && auth.exists() { auth } else { host };
        HostCredentials::load(&path).map_err(|error| error.public())
    }
}

pub(crate) fn run(what: &Update) -> Outcome {
    match what {
        Update::Agent(args) => agent(args),
        Update::Enable(place) => enable(place),
        Update::Status { place, format } => status(place, *format),
        Update::Pin(place) => pin(place, true),
        Update::Unpin(place) => pin(place, false),
        Update::Check(place) => check::check(place),
        Update::Seen(place) => world::print_seen(place),
    }
}

fn agent(args: &AgentArgs) -> Outcome {
    const COULD: &str = "update this host";
    super::logging::start(crate::config::Severity::Info, crate::config::LogFormat::Text);
    let settings = args.place.settings().could(COULD)?;
    let restart: Vec<String> = args.restart.split_whitespace().map(str::to_owned).collect();
    if restart.is_empty() {
        return Err(Failure::new(COULD, usage("--restart names no command")));
    }
    let (own, program) = (crate::version(), std::env::current_exe().could(COULD)?);
    let versions = Versions::new(args.place.dir.clone());
    let runtime = crate::connection::runtime().could(COULD)?;
    let patience = Patience { confirm: args.confirm_within.0, ..Patience::default() };
    let round = async || {
        // Read anew for each round: the service renews it.
        let credentials = settings.credentials()?;
        let world = world::Fleet::new(credentials.clone(), settings.proxies.clone(), versions.clone(), &args.place, restart.clone());
        let (os, arch) = system();
        let identity = &credentials.identity;
        let host = Host { id: identity.id, cluster: &identity.cluster, roles: &identity.roles, edition: EDITION, os, arch };
        let state = settings.state();
        let place = Place { host, versions: &versions, state: &state, root: &args.root, own: (&own, &program), patience };
        round::round(&world, &place).await
    };
    let Some(interval) = args.watch else {
        let ended = runtime.block_on(round()).could(COULD)?;
        return tell(&ended, args.format);
    };
    runtime.block_on(async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).could(COULD)?;
        loop {
            match round().await {
                Ok(Ended::Done(version)) => {
                    tracing::info!(%version, "updated; this updater ends, so that the new release's begins");
                    return Ok(ExitCode::SUCCESS);
                }
                Ok(Ended::Rest(rest)) => tracing::debug!(why = rest.why(), "nothing to do"),
                Ok(Ended::Reverted(version, why)) => tracing::error!(%version, "taken back: {why}"),
                Ok(Ended::Refused(why)) => tracing::error!("refused: {why}"),
                Ok(Ended::Waits(why)) => tracing::warn!("waits: {why}"),
                Err(error) => tracing::error!("{error}"),
            }
            let wait = interval.0.mul_f64(rand::random_range(0.8..=1.2)).max(Duration::from_secs(1));
            tokio::select! {
                _ = term.recv() => return Ok(ExitCode::SUCCESS),
                () = tokio::time::sleep(wait) => {}
            }
        }
    })
}

/// What a round came to, for people and for scripts.
fn tell(ended: &Ended, format: Format) -> Outcome {
    let (word, version, why, status) = match ended {
        Ended::Rest(rest) => ("rest", None, Some(rest.why().to_owned()), if *rest == Rest::Marked { REVERTED } else { 0 }),
        Ended::Done(version) => ("done", Some(version), None, 0),
        Ended::Reverted(version, why) => ("reverted", Some(version), Some(why.to_string()), REVERTED),
        Ended::Refused(why) => ("refused", None, Some(why.to_string()), REFUSED),
        Ended::Waits(why) => ("waits", None, Some(why.to_string()), WAITING),
    };
    if format != Format::Text {
        show_value(format, &json!({"outcome": word, "version": version, "why": why})).could("print the outcome")?;
        return Ok(ExitCode::from(status));
    }
    let style = Style::of_stdout();
    let line = match ended {
        Ended::Rest(rest) => format!("Nothing to do: {}.", rest.why()),
        Ended::Done(version) => format!("{} This host runs {version}, and the cluster has seen it.", style.green("Done.")),
        Ended::Reverted(version, why) => format!("{} {version} does not work on this host: {why}", style.red("Taken back.")),
        Ended::Refused(why) => format!("{} {why}", style.red("Refused.")),
        Ended::Waits(why) => format!("Waits: {why}"),
    };
    let hint = match ended {
        Ended::Reverted(_, why) | Ended::Refused(why) | Ended::Waits(why) => why.hint.as_deref().map(|hint| format!("\nhint: {hint}")),
        Ended::Rest(_) | Ended::Done(_) => None,
    };
    write_out(&format!("{line}{}\n", hint.unwrap_or_default())).could("print the outcome")?;
    Ok(ExitCode::from(status))
}

fn enable(place: &WhereArgs) -> Outcome {
    const COULD: &str = "put this release among the others";
    let versions = Versions::new(place.dir.clone());
    let _held = versions.lock().map_err(|error| error.public()).could(COULD)?;
    if let Some(installed) = versions.installed() {
        write_out(&format!("{} names {} already.\n", versions.current().display(), installed.version)).could("print")?;
        return Ok(ExitCode::SUCCESS);
    }
    let program = std::env::current_exe().could(COULD)?;
    let installed = versions.adopt(&crate::version(), &program).map_err(|error| error.public()).could(COULD)?;
    let text = format!(
        "{} names {}. Let the service run it: lockgate install systemd --lockgate-path={}\n",
        versions.current().display(),
        installed.version,
        versions.program().display()
    );
    write_out(&text).could("print").map(|()| ExitCode::SUCCESS)
}

fn status(place: &WhereArgs, format: Format) -> Outcome {
    const COULD: &str = "show this host's updater";
    let (data_dir, _) = rescue::place(place.config.as_deref(), place.data_dir.as_deref()).could(COULD)?;
    let versions = Versions::new(place.dir.clone());
    let book = round::book(&data_dir.join("update")).could(COULD)?;
    let (installed, report) = (versions.installed(), report(&data_dir));
    if format != Format::Text {
        let value =
            json!({"installed": installed, "report": report, "pinned": book.pinned, "generation": book.generation, "bad": book.bad});
        return show_value(format, &value).could(COULD).map(|()| ExitCode::SUCCESS);
    }
    let mut text = match &installed {
        Some(installed) => format!("{} names {}.\n", versions.current().display(), installed.version),
        None => format!("There is no {}: no release was installed by an updater yet.\n", versions.current().display()),
    };
    if let Some(report) = &report {
        let version = report.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        let why = if report.why.is_empty() { String::new() } else { format!(": {}", report.why) };
        text.push_str(&format!("Last: {}{version} at {}{why}\n", report.state, report.at.whole_seconds()));
    }
    for bad in book.bad.values() {
        text.push_str(&format!("Does not work here: {} ({})\n", bad.version, bad.why));
    }
    if book.pinned {
        text.push_str("Pinned: the cluster does not move this host.\n");
    }
    write_out(&text).could(COULD).map(|()| ExitCode::SUCCESS)
}

fn pin(place: &WhereArgs, pinned: bool) -> Outcome {
    const COULD: &str = "change whether this host is pinned";
    let (data_dir, _) = rescue::place(place.config.as_deref(), place.data_dir.as_deref()).could(COULD)?;
    let state = data_dir.join("update");
    let _held = Versions::new(place.dir.clone()).lock().map_err(|error| error.public()).could(COULD)?;
    let mut book = round::book(&state).could(COULD)?;
    book.pinned = pinned;
    round::keep(&state, &book, None, net::clock::Clock::now(&net::clock::SystemClock)).could(COULD)?;
    let told =
        if pinned { "This host stays at what it runs until: lockgate update unpin\n" } else { "The cluster moves this host again.\n" };
    write_out(told).could("print").map(|()| ExitCode::SUCCESS)
}

/// What the updater of this host did last, if there is one: for the heartbeat and for people.
pub(super) fn report(data_dir: &Path) -> Option<UpdateReport> {
    let bytes = std::fs::read(data_dir.join("update").join(round::REPORT)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// A program that was asked and did not answer as it should.
fn silent(program: &Path, why: impl std::fmt::Display) -> Public {
    Public::new(Code::Unavailable, format!("{}: {why}", program.display()))
}
