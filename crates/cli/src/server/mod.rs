//! `lockgate …`: the command line of the services. The flow of `start` is in `start.rs`.

mod configure;
mod diag;
mod install;
mod logging;
pub(crate) mod metrics;
pub(crate) mod offline;
mod ports;
mod process;
mod publish;
mod rehearse;
mod releases;
mod rescue;
mod restart;
mod services;
mod settings;
mod signals;
mod start;
mod status;
mod update;
mod walk;

use crate::{
    config::{LogFormat, Severity},
    exit::{Could as _, Outcome},
    output::Format,
};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};
use types::SystemRole;

/// Identity-aware access to SSH hosts: the services.
///
/// `lockgate start` alone runs an Auth Service, a Proxy Service and an SSH Service in one process, with its state in
/// /var/lib/lockgate. `tsh` and `tctl` are the clients; `lockgate tsh …` and `lockgate tctl …` work as well.
#[derive(Parser, Debug)]
#[command(name = "lockgate", version = env!("LOCKGATE_VERSION"), arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs the services until TERM (stop) or QUIT (drain: wait for sessions to end); HUP starts the program anew without a session lost
    #[command(after_help = START_EXAMPLES)]
    Start(Box<StartArgs>),
    /// Prints a configuration file, or checks one
    #[command(
        after_help = "Examples:\n  lockgate configure -o /etc/lockgate.yaml\n  lockgate configure --roles=node --proxy=proxy.example.com:3080 --token=/run/token --ca-pin=sha256:…\n  lockgate configure --test /etc/lockgate.yaml"
    )]
    Configure(Box<ConfigureArgs>),
    /// Says whether this shell is a Lockgate session, and how the local services are
    Status {
        /// Diagnostic address of the services on this host
        #[arg(long, default_value = "127.0.0.1:3000")]
        diag_addr: SocketAddr,
        /// Fails unless the services answer and all are ready
        #[arg(long)]
        check: bool,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Prints the version
    Version {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Asks a Proxy which release this host should run, and fetches it from the Proxy's mirror
    #[command(
        after_help = "For a host that the cluster refuses for its version: `tctl inventory ls` shows it as quarantined, its log names this command.\nNothing is installed. The file is checked against the digest that the Proxy names.\n\nExamples:\n  lockgate rescue\n  lockgate rescue --output /var/tmp"
    )]
    Rescue(Box<RescueArgs>),
    /// This host's updater
    Update {
        #[command(subcommand)]
        what: update::Update,
    },
    /// Runs this release's migrations there and back on a copy of a store, and says what came of it
    #[command(
        hide = true,
        after_help = "The executor of an upgrade runs it from the release that is to come, on what a backup brought back. The store is changed and is no cluster's any more."
    )]
    Rehearse {
        /// The SQLite file of the copy
        #[arg(long)]
        store: PathBuf,
    },
    /// Repositories of releases, for whoever publishes: made, signed, shown
    Release {
        #[command(subcommand)]
        what: publish::Release,
    },
    /// Installs files that the host needs
    Install {
        #[command(subcommand)]
        what: Install,
    },
    /// Prints shell completions, e.g. `lockgate completion bash tsh > /etc/bash_completion.d/tsh`
    Completion {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
        /// Which program: lockgate, tsh or tctl
        #[arg(default_value = "lockgate")]
        program: Program,
    },
    /// Writes man pages of lockgate, tsh and tctl into a directory
    Man {
        /// Made when absent
        dir: PathBuf,
    },
    /// Writes the generated parts of the documentation
    #[command(hide = true)]
    Reference {
        /// Directory to write to
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Program {
    Lockgate,
    Tsh,
    Tctl,
}

impl Program {
    pub(crate) fn command(self) -> clap::Command {
        match self {
            Self::Lockgate => Cli::command(),
            Self::Tsh => crate::tsh::command(),
            Self::Tctl => crate::tctl::command(),
        }
    }
}

#[derive(Subcommand, Debug)]
enum Install {
    /// Prints or writes a systemd unit
    Systemd {
        /// File to write; standard output when absent
        #[arg(short, long)]
        output: Option<PathBuf>,
        /// Environment file that the unit reads when it exists
        #[arg(long, default_value = "/etc/default/lockgate")]
        env_file: PathBuf,
        /// Process id file
        #[arg(long, default_value = "/run/lockgate.pid")]
        pid_file: PathBuf,
        /// Open files allowed
        #[arg(long, default_value_t = 524_288)]
        fd_limit: u32,
        /// Path of the program; the running one when absent
        #[arg(long)]
        lockgate_path: Option<PathBuf>,
    },
}

const START_EXAMPLES: &str = "Examples:
  lockgate start                                       everything in one process
  lockgate start --roles=auth,proxy                    a control plane without an SSH Service
  lockgate start --roles=node --token=/run/token \\
      --proxy-server=proxy.example.com:3080 --ca-pin=sha256:…   an SSH host that joins by tunnel";

/// A service that this program runs.
fn role(text: &str) -> Result<SystemRole, String> {
    let Ok(role) = text.trim().parse::<SystemRole>();
    match role {
        SystemRole::Auth | SystemRole::Proxy | SystemRole::Node => Ok(role),
        _ => Err("roles are auth, proxy and node".into()),
    }
}

/// Flags of `start`; each overrides the file.
#[derive(Args, Debug, Default)]
pub(crate) struct StartArgs {
    /// Configuration file; /etc/lockgate.yaml is read when it exists and this is absent
    #[arg(short, long, env = "LOCKGATE_CONFIG_FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Services to run, of auth, proxy and node (or ssh)
    #[arg(long, value_delimiter = ',', value_parser = role)]
    pub(crate) roles: Vec<SystemRole>,
    /// Directory of state
    #[arg(long, env = "LOCKGATE_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Join token, or the path of a file that holds it; a path keeps the secret out of the process list
    #[arg(long, env = "LOCKGATE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Pin of the cluster's authority, sha256:<hex>; may be repeated
    #[arg(long)]
    pub(crate) ca_pin: Vec<String>,
    /// Auth Service to join directly, host:port; several with commas between
    #[arg(long, conflicts_with = "proxy_server")]
    pub(crate) auth_server: Option<String>,
    /// Proxy to join through, host:port, several with commas between; nothing then listens here
    #[arg(long)]
    pub(crate) proxy_server: Option<String>,
    /// Name of this host
    #[arg(long)]
    pub(crate) nodename: Option<String>,
    /// Labels of this host, key=value,key=value
    #[arg(long)]
    pub(crate) labels: Option<String>,
    /// Name of a new cluster; fixed at its birth
    #[arg(long)]
    pub(crate) cluster_name: Option<String>,
    /// Allows pre-releases on a new cluster: it is then not a production cluster
    #[arg(long)]
    pub(crate) allow_prerelease: bool,
    /// Runs although the Auth Service is on an older major; written to the audit log
    #[arg(long)]
    pub(crate) skip_version_check: bool,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long)]
    pub(crate) diag_addr: Option<SocketAddr>,
    /// File that holds the process id while it runs
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Logs debug messages
    #[arg(short, long)]
    pub(crate) debug: bool,
    /// How to log
    #[arg(long, value_enum)]
    pub(crate) log_format: Option<LogFormat>,
    /// What to log
    #[arg(long, value_enum)]
    pub(crate) log_severity: Option<Severity>,
}

/// Flags of `rescue`.
#[derive(Args, Debug)]
pub(crate) struct RescueArgs {
    /// Configuration file; /etc/lockgate.yaml is read when it exists and this is absent
    #[arg(short, long, env = "LOCKGATE_CONFIG_FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Directory of state, which has the host's certificate
    #[arg(long, env = "LOCKGATE_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Proxy to ask, host:port; those of the configuration when absent
    #[arg(long)]
    pub(crate) proxy_server: Option<String>,
    /// Directory to put the file in; nothing is fetched when absent
    #[arg(short, long)]
    pub(crate) output: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// Flags of `configure`.
#[derive(Args, Debug)]
pub(crate) struct ConfigureArgs {
    /// Checks this file instead of printing one
    #[arg(long, value_name = "FILE")]
    pub(crate) test: Option<PathBuf>,
    /// File to write; standard output when absent
    #[arg(short, long)]
    pub(crate) output: Option<PathBuf>,
    /// Name of the cluster
    #[arg(long)]
    pub(crate) cluster_name: Option<String>,
    /// Address of the Proxy as users reach it, host:port
    #[arg(long)]
    pub(crate) public_addr: Option<String>,
    /// Web certificate of the Proxy, PEM
    #[arg(long, requires = "key_file")]
    pub(crate) cert_file: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, requires = "cert_file")]
    pub(crate) key_file: Option<PathBuf>,
    /// Directory of state
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Join token, or better the path of a file that holds it
    #[arg(long)]
    pub(crate) token: Option<String>,
    /// Services to run, of auth, proxy and node (or ssh); all when absent
    #[arg(long, value_delimiter = ',', value_parser = role)]
    pub(crate) roles: Vec<SystemRole>,
    /// Auth Service to join directly, host:port
    #[arg(long, conflicts_with = "proxy")]
    pub(crate) auth_server: Option<String>,
    /// Proxy to join through
    #[arg(long)]
    pub(crate) proxy: Option<String>,
    /// Pin of the cluster's authority, sha256:<hex>; may be repeated
    #[arg(long)]
    pub(crate) ca_pin: Vec<String>,
    /// Name of this host
    #[arg(long)]
    pub(crate) node_name: Option<String>,
    /// Labels of this host, key=value,key=value
    #[arg(long)]
    pub(crate) node_labels: Option<String>,
}

#[cfg(test)]
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// Runs `lockgate` with these words.
pub(crate) fn main(words: Vec<std::ffi::OsString>) -> Outcome {
    let Cli { command } = crate::environment::parse(words);
    match command {
        Command::Start(args) => start::start(&args),
        Command::Configure(args) => configure::configure(&args),
        Command::Status { diag_addr, check, format } => status::status(diag_addr, check, format),
        Command::Version { format } => version(format),
        Command::Rescue(args) => rescue::rescue(&args),
        Command::Rehearse { store } => rehearse::rehearse(&store),
        Command::Update { what } => update::run(&what),
        Command::Release { what } => publish::run(&what),
        Command::Install { what: Install::Systemd { output, env_file, pid_file, fd_limit, lockgate_path } } => {
            install::systemd(output.as_deref(), &env_file, &pid_file, fd_limit, lockgate_path)
        }
        Command::Completion { shell, program } => {
            let mut command = program.command();
            let name = command.get_name().to_owned();
            clap_complete::generate(shell, &mut command, name, &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => crate::reference::man(&dir).could("write the man pages").map(|()| ExitCode::SUCCESS),
        Command::Reference { dir } => crate::reference::write(&dir).could("write the reference").map(|()| ExitCode::SUCCESS),
    }
}

fn version(format: Format) -> Outcome {
    let version = crate::version();
    let done = match format {
        Format::Text => crate::output::write_out(&format!(
            "Lockgate v{version} git:{} content:{}\n",
            crate::GITREF,
            wire::content::short(wire::content::digest())
        )),
        Format::Json | Format::Yaml => crate::output::show_value(format, &about(&version)),
    };
    done.could("print the version").map(|()| crate::exit::Status::Done.into())
}

/// What a script or a release's manifest wants to know: which formats and APIs this build works with.
fn about(version: &types::Version) -> serde_json::Value {
    let speaks = wire::hello::Hello::ours(version, "lockgate");
    let last = |major: u64| upgrade::control::final_of(major);
    serde_json::json!({
        "version": version, "gitref": crate::GITREF,
        "content": wire::content::digest(), "apis": speaks.apis, "capabilities": speaks.capabilities,
        "cluster_version": {"from": last(version.major().saturating_sub(1)), "to": last(version.major())},
    })
}
