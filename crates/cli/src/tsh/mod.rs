//! `tsh …`: what a user does with a cluster. Names, flags and columns follow the field's best-known client.

mod config;
mod env;
mod login;
mod ls;
mod play;
pub(crate) mod profile;
mod proxy_ssh;
mod session;
mod terminal;
mod version;

use crate::{exit::Outcome, output::Format};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use std::path::PathBuf;
use types::Ttl;

/// Logs in to a cluster and reaches its hosts.
///
/// Examples:
///   tsh login --proxy=proxy.example.com:3080 --user=alice
///   tsh ls env=prod
///   tsh ssh alice@node1
///   tsh play 0190f0f2-…
#[derive(Parser, Debug)]
#[command(name = "tsh", version = env!("LOCKGATE_VERSION"), arg_required_else_help = true, max_term_width = 100, verbatim_doc_comment)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Args, Debug, Clone)]
pub(crate) struct Global {
    /// Address of the Proxy, host or host:port (port 3080 when absent)
    #[arg(long, global = true, env = "LOCKGATE_PROXY")]
    pub(crate) proxy: Option<String>,
    /// Name of the Lockgate user
    #[arg(long, global = true, env = "LOCKGATE_USER")]
    pub(crate) user: Option<String>,
    /// Operating-system login on the host
    #[arg(short = 'l', long, global = true, env = "LOCKGATE_LOGIN")]
    pub(crate) login: Option<String>,
    /// Identity file in place of the profile, as `tctl auth sign` writes it
    #[arg(short = 'i', long, global = true, env = "LOCKGATE_IDENTITY_FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Accepts any web certificate: for experiments only
    #[arg(long, global = true)]
    pub(crate) insecure: bool,
    /// Pin of the cluster's authority, as `tctl status` prints it
    #[arg(long, global = true)]
    pub(crate) ca_pin: Vec<String>,
    /// Goes on when the Proxy's version does not fit
    #[arg(long, global = true)]
    pub(crate) skip_version_check: bool,
    /// Prints what happens
    #[arg(short, long, global = true)]
    pub(crate) debug: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Gets certificates for a cluster; asks for password and one-time code
    #[command(
        after_help = "Examples:\n  tsh login --proxy=proxy.example.com:3080 --user=alice\n  tsh login --invite=https://proxy.example.com:3080/web/invite/… --ca-pin=sha256:…\n\nWithout a terminal the password is read from standard input, first line, and the code from the second.\nThe file named by LOCKGATE_PASSWORD_FILE and the variable LOCKGATE_OTP serve as well."
    )]
    Login(LoginArgs),
    /// Removes certificates from this machine
    Logout,
    /// Shows who is logged in where, and until when
    Status {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
        /// Certificate details too
        #[arg(short, long)]
        verbose: bool,
    },
    /// Lists the hosts that you may reach
    Ls {
        /// Only hosts with these labels: env=prod,team=db
        labels: Option<String>,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
        /// Host ids too
        #[arg(short, long)]
        verbose: bool,
    },
    /// Opens a shell on a host, or runs a command there
    #[command(
        after_help = "Examples:\n  tsh ssh node1\n  tsh ssh alice@node1 -- df -h\n  tsh ssh -L 5432:localhost:5432 alice@db-7\n  tsh ssh -N -D 1080 alice@node1\n\nThe exit status is the command's; 255 when the session itself fails."
    )]
    Ssh(SshArgs),
    /// Local ends of connections for other programs
    Proxy {
        #[command(subcommand)]
        what: ProxyCommand,
    },
    /// Prints OpenSSH client configuration, so that plain ssh, scp, git and rsync work
    Config {
        /// Port of the SSH Service in the printed configuration
        #[arg(short, long, default_value_t = 3022)]
        port: u16,
    },
    /// Lists clusters
    Clusters {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
        /// Without headings
        #[arg(short, long)]
        quiet: bool,
    },
    /// Recorded sessions
    Recordings {
        #[command(subcommand)]
        what: Recordings,
    },
    /// Plays a recorded session; space pauses, + and - change the speed, q ends
    Play {
        /// Session id, or a recording file
        session: String,
        /// How fast: 2 is twice as fast
        #[arg(long, default_value_t = 1.0)]
        speed: f64,
        /// Shortens pauses to this length
        #[arg(long)]
        max_pause: Option<Ttl>,
        /// `pty` plays; `text` prints all at once; `json` and `yaml` list the entries
        #[arg(short, long, value_enum, default_value_t)]
        format: PlayFormat,
    },
    /// Prints this program's version, and the Proxy's when logged in
    Version {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
        /// This program's version only; asks nobody
        #[arg(long)]
        client: bool,
    },
    /// Prints variables for the shell: eval "$(tsh env)"
    Env {
        /// Prints the commands that unset them
        #[arg(long)]
        unset: bool,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
}

/// Flags of `tsh login`.
#[derive(Args, Debug)]
pub(crate) struct LoginArgs {
    /// Cluster to log in to, when the Proxy knows several
    pub(crate) cluster: Option<String>,
    /// Life of the certificates: 8h, 30m; a bare number is minutes
    #[arg(long)]
    pub(crate) ttl: Option<String>,
    /// Invitation link: sets the password and the second factor, then logs in
    #[arg(long)]
    pub(crate) invite: Option<String>,
    /// Writes one identity file in place of the profile
    #[arg(short, long)]
    pub(crate) out: Option<PathBuf>,
}

/// Flags of `tsh ssh`, OpenSSH's where they mean the same.
#[derive(Args, Debug)]
pub(crate) struct SshArgs {
    /// [login@]host, by name or id
    pub(crate) target: String,
    /// Command; a shell when absent
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
    /// Accepted for OpenSSH's sake; hosts are found by name
    #[arg(short, long)]
    pub(crate) port: Option<u16>,
    /// Forwards a local port: [bind:]port:host:hostport
    #[arg(short = 'L', value_name = "FORWARD")]
    pub(crate) local_forward: Vec<String>,
    /// Forwards where each program says, by SOCKS 5: [bind:]port
    #[arg(short = 'D', value_name = "FORWARD")]
    pub(crate) dynamic_forward: Vec<String>,
    /// Lets programs on the host use your SSH agent (SSH_AUTH_SOCK), where your roles allow it
    #[arg(short = 'A', long)]
    pub(crate) forward_agent: bool,
    /// Asks for a terminal although a command is given
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
    /// No command: forwards ports only
    #[arg(short = 'N', long)]
    pub(crate) no_remote_exec: bool,
    /// Cluster of the host
    #[arg(short = 'c', long, env = "LOCKGATE_CLUSTER")]
    pub(crate) cluster: Option<String>,
}

#[derive(Subcommand, Debug)]
enum ProxyCommand {
    /// Connects standard input and output to a host's SSH Service: OpenSSH's ProxyCommand
    Ssh {
        /// [login@]host[:port]
        target: String,
        /// Cluster of the host
        #[arg(short = 'c', long, env = "LOCKGATE_CLUSTER")]
        cluster: Option<String>,
    },
}

#[derive(Subcommand, Debug)]
enum Recordings {
    /// Lists recorded sessions, newest first
    Ls {
        /// From this time on, RFC 3339
        #[arg(long)]
        from_utc: Option<String>,
        /// Until this time
        #[arg(long)]
        to_utc: Option<String>,
        /// Within this length of time, e.g. 24h
        #[arg(long, conflicts_with_all = ["from_utc", "to_utc"])]
        last: Option<Ttl>,
        /// How many at most
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Writes a recording in another format
    Export {
        /// Session id, or a recording file
        session: String,
        /// Of what format
        #[arg(short, long, value_enum, default_value_t)]
        format: ExportFormat,
        /// File to write; standard output when absent
        #[arg(short, long)]
        out: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum PlayFormat {
    #[default]
    Pty,
    Text,
    Json,
    Yaml,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum ExportFormat {
    /// asciicast v2, for asciinema and its players
    #[default]
    Asciicast,
}

/// The definitions, for completions, man pages and the reference.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// Runs `tsh` with these words.
pub(crate) fn main(words: Vec<std::ffi::OsString>) -> Outcome {
    let Cli { global, command } = crate::environment::parse(words);
    crate::debug::start(global.debug);
    match command {
        Command::Login(args) => login::login(&global, &args),
        Command::Logout => login::logout(&global),
        Command::Status { format, verbose } => profile::status(&global, format, verbose),
        Command::Ls { labels, format, verbose } => ls::hosts(&global, labels.as_deref(), format, verbose),
        Command::Ssh(args) => session::ssh(&global, &args),
        Command::Proxy { what: ProxyCommand::Ssh { target, cluster } } => proxy_ssh::proxy_ssh(&global, &target, cluster.as_deref()),
        Command::Config { port } => config::config(&global, port),
        Command::Clusters { format, quiet } => ls::clusters(&global, format, quiet),
        Command::Recordings { what: Recordings::Ls { from_utc, to_utc, last, limit, format } } => {
            play::recordings(&global, &play::Window { from_utc, to_utc, last, limit }, format)
        }
        Command::Recordings { what: Recordings::Export { session, format: ExportFormat::Asciicast, out } } => {
            play::export(&global, &session, out.as_deref())
        }
        Command::Play { session, speed, max_pause, format } => play::play(&global, &session, speed, max_pause, format),
        Command::Version { format, client } => version::version(&global, format, client),
        Command::Env { unset, format } => env::env(&global, unset, format),
    }
}
