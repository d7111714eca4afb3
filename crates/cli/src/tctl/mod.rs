//! `tctl …`: what an administrator does with a cluster. On the Auth Service's own host it uses the local administrator's
//! identity from the data directory; elsewhere the identity file given, or the `tsh` profile.

mod audit;
mod auth;
mod backup;
mod connect;
mod inventory;
mod migrations;
mod resources;
mod status;
mod tokens;
mod update;
mod upgrade;
mod users;
mod version;
mod windows;

use crate::{exit::Outcome, output::Format};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use std::path::PathBuf;
use types::Ttl;

/// Administers a cluster.
///
/// Examples:
///   tctl users add alice --roles=access --logins=alice
///   tctl tokens add --type=node
///   tctl get roles/access --format=yaml > access.yaml; tctl create -f access.yaml
///   tctl inventory ls
#[derive(Parser, Debug)]
#[command(name = "tctl", version = env!("LOCKGATE_VERSION"), arg_required_else_help = true, max_term_width = 100, verbatim_doc_comment)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Args, Debug, Clone)]
pub(crate) struct Global {
    /// Configuration file of the Auth Service on this host
    #[arg(short, long, global = true, env = "LOCKGATE_CONFIG_FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Data directory of the Auth Service on this host
    #[arg(long, global = true, env = "LOCKGATE_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address of an Auth Service or a Proxy, host:port
    #[arg(long, global = true, env = "LOCKGATE_AUTH_SERVER")]
    pub(crate) auth_server: Option<String>,
    /// Identity file, as `tctl auth sign` writes it
    #[arg(short = 'i', long, global = true, env = "LOCKGATE_IDENTITY_FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Goes on when the Auth Service's version does not fit
    #[arg(long, global = true)]
    pub(crate) skip_version_check: bool,
    /// Prints what happens
    #[arg(short, long, global = true)]
    pub(crate) debug: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Shows the cluster's name, versions, authorities and pins
    Status {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Users
    Users {
        #[command(subcommand)]
        what: Users,
    },
    /// Join tokens
    Tokens {
        #[command(subcommand)]
        what: Tokens,
    },
    /// SSH hosts
    Nodes {
        #[command(subcommand)]
        what: Nodes,
    },
    /// Prints documents: kind, kind/name, several by commas, or all
    Get {
        /// E.g. roles, role/access, users,roles, all
        resources: String,
        /// How to print; YAML when absent
        #[arg(short, long, value_enum)]
        format: Option<Format>,
        /// Whole tables
        #[arg(short, long)]
        verbose: bool,
    },
    /// Creates documents from a file or standard input, one or many
    Create {
        /// File; standard input when absent or -
        file: Option<PathBuf>,
        /// Replaces what exists
        #[arg(short, long)]
        force: bool,
    },
    /// Opens a document in $EDITOR and writes it back
    Edit {
        /// E.g. role/access
        resource: String,
    },
    /// Removes a document: kind/name
    Rm {
        /// E.g. role/dev
        resource: String,
    },
    /// Certificate authorities and certificates
    Auth {
        #[command(subcommand)]
        what: Auth,
    },
    /// Backups of the cluster's state: make, prove, restore
    Backup {
        #[command(subcommand)]
        what: backup::Backup,
    },
    /// The audit log
    Audit {
        #[command(subcommand)]
        what: audit::Audit,
    },
    /// The members of the cluster and their versions
    Inventory {
        #[command(subcommand)]
        what: Inventory,
    },
    /// The majors that the cluster admits in each role: the steps of an upgrade, and of the way back
    Windows {
        #[command(subcommand)]
        what: windows::Windows,
    },
    /// An upgrade of the whole cluster: planned, carried out, taken back (docs/upgrading.md)
    Upgrade {
        #[command(subcommand)]
        what: upgrade::Upgrade,
    },
    /// Which release hosts should run, and how far they are (docs/updates.md)
    Update {
        #[command(subcommand)]
        what: update::Update,
    },
    /// Changes of how things are stored, while they are in use
    Migrations {
        #[command(subcommand)]
        what: migrations::Migrations,
    },
    /// Prints this program's version, and the cluster's when it answers
    Version {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
}

#[derive(Subcommand, Debug)]
enum Users {
    /// Adds a user and prints an invitation link
    #[command(
        after_help = "Examples:\n  tctl users add alice --roles=access --logins=alice,root\n  tctl users add ci --roles=access --logins=deploy --ttl=10m"
    )]
    Add {
        /// Name of the user
        name: String,
        /// Roles, by commas
        #[arg(long, value_delimiter = ',', required = true)]
        roles: Vec<String>,
        /// Operating-system logins, for {{internal.logins}} in roles
        #[arg(long, value_delimiter = ',')]
        logins: Vec<String>,
        /// Life of the invitation; at most 48h
        #[arg(long, default_value = "1h")]
        ttl: Ttl,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Lists users
    Ls {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Changes roles and logins
    Update {
        /// Name of the user
        name: String,
        /// Roles in place of the old ones, by commas
        #[arg(long, value_delimiter = ',')]
        set_roles: Option<Vec<String>>,
        /// Operating-system logins in place of the old ones, by commas
        #[arg(long, value_delimiter = ',')]
        set_logins: Option<Vec<String>>,
    },
    /// Removes a user; running sessions end
    Rm {
        /// Name of the user
        name: String,
    },
    /// Prints a new invitation link; the old password works until it is used
    Reset {
        /// Name of the user
        name: String,
        /// Life of the invitation; at most 48h
        #[arg(long, default_value = "8h")]
        ttl: Ttl,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
}

#[derive(Subcommand, Debug)]
enum Tokens {
    /// Makes a join token and prints the command that uses it
    Add {
        /// What may join: node, proxy; several by commas
        #[arg(long = "type", value_delimiter = ',', required = true)]
        roles: Vec<String>,
        /// The token itself, in place of a random one
        #[arg(long)]
        value: Option<String>,
        /// Labels for what joins with it
        #[arg(long)]
        labels: Option<String>,
        /// Life of the token
        #[arg(long, default_value = "1h")]
        ttl: Ttl,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Lists join tokens; the secrets themselves are not kept
    Ls {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Removes a join token
    Rm {
        /// The token, or its beginning or its name as `ls` shows them
        name: String,
    },
}

#[derive(Subcommand, Debug)]
enum Nodes {
    /// Makes a join token for an SSH host and prints the command that uses it
    Add {
        /// What may join: node, proxy; several by commas
        #[arg(long, value_delimiter = ',', default_value = "node")]
        roles: Vec<String>,
        /// Life of the token
        #[arg(long, default_value = "30m")]
        ttl: Ttl,
        /// The token itself, in place of a random one
        #[arg(long)]
        token: Option<String>,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Lists SSH hosts
    Ls {
        /// Only hosts with these labels
        labels: Option<String>,
        /// When each would expire, too
        #[arg(short, long)]
        verbose: bool,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
}

#[derive(Subcommand, Debug)]
enum Auth {
    /// Prints the public keys of the authorities
    Export {
        /// `user` and `host` in OpenSSH form, `tls-user` and `tls-host` as PEM
        #[arg(long = "type", value_enum, default_value = "user")]
        kind: ExportType,
        /// Prints fingerprints only
        #[arg(long)]
        fingerprint: bool,
    },
    /// Issues certificates for a user or a host that Lockgate does not run on
    #[command(
        after_help = "Examples:\n  tctl auth sign --user=ci --out=ci.pem --ttl=1h\n  tctl auth sign --host=git.example.com --out=/etc/ssh/git --format=openssh"
    )]
    Sign(SignArgs),
}

/// Flags of `tctl auth sign`.
#[derive(Args, Debug)]
pub(crate) struct SignArgs {
    /// Name of the user
    #[arg(long, conflicts_with = "host", required_unless_present = "host")]
    pub(crate) user: Option<String>,
    /// Names and addresses of the host, by commas
    #[arg(long, value_delimiter = ',')]
    pub(crate) host: Vec<String>,
    /// File, or its stem for formats of several files
    #[arg(short, long)]
    pub(crate) out: PathBuf,
    /// `file`: one identity file for -i; `openssh`: key and certificate for ssh; `tls`: key, certificate and authorities as PEM
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: SignFormat,
    /// Life of the certificates, within what the user's roles allow
    #[arg(long, default_value = "12h")]
    pub(crate) ttl: Ttl,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum SignFormat {
    #[default]
    File,
    Openssh,
    Tls,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum ExportType {
    User,
    Host,
    TlsUser,
    TlsHost,
}

#[derive(Subcommand, Debug)]
enum Inventory {
    /// Counts members by service, version and state, and says what to do next
    Status {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Lists members with their versions, and who should be upgraded
    Ls {
        /// Only members older than this version
        #[arg(long)]
        older_than: Option<String>,
        /// Only members newer than this version
        #[arg(long)]
        newer_than: Option<String>,
        /// Only members with one of these services
        #[arg(long, value_delimiter = ',')]
        services: Vec<String>,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Walks a user's path through a member, and says what does not work
    #[command(
        after_help = "As a user of the cluster's own with a certificate of minutes: an Auth Service is asked for hosts and for a certificate, a Proxy leads to a host, a host runs a command. The audit log has these sessions under lockgate-walk; they are not kept as recordings.\n\nExamples:\n  tctl inventory walk web-17\n\nExit status: 0 the path led to its end, 5 it did not."
    )]
    Walk {
        /// Its name, or its id as `tctl inventory ls` shows it
        member: String,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
}

/// The definitions, for completions, man pages and the reference.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// Runs `tctl` with these words.
pub(crate) fn main(words: Vec<std::ffi::OsString>) -> Outcome {
    let Cli { global, command } = crate::environment::parse(words);
    crate::debug::start(global.debug);
    match command {
        Command::Status { format } => status::status(&global, format),
        Command::Users { what } => match what {
            Users::Add { name, roles, logins, ttl, format } => users::add(&global, &name, &roles, &logins, ttl, format),
            Users::Ls { format } => users::ls(&global, format),
            Users::Update { name, set_roles, set_logins } => users::update(&global, &name, set_roles.as_deref(), set_logins.as_deref()),
            Users::Rm { name } => users::rm(&global, &name),
            Users::Reset { name, ttl, format } => users::reset(&global, &name, ttl, format),
        },
        Command::Tokens { what } => match what {
            Tokens::Add { roles, value, labels, ttl, format } => tokens::add(&global, &roles, value, labels.as_deref(), ttl, format),
            Tokens::Ls { format } => tokens::ls(&global, format),
            Tokens::Rm { name } => tokens::rm(&global, &name),
        },
        Command::Nodes { what } => match what {
            Nodes::Add { roles, ttl, token, format } => tokens::add(&global, &roles, token, None, ttl, format),
            Nodes::Ls { labels, verbose, format } => inventory::nodes(&global, labels.as_deref(), verbose, format),
        },
        Command::Get { resources, format, verbose } => resources::get(&global, &resources, format, verbose),
        Command::Create { file, force } => resources::create(&global, file.as_deref(), force),
        Command::Edit { resource } => resources::edit(&global, &resource),
        Command::Rm { resource } => resources::rm(&global, &resource),
        Command::Auth { what } => match what {
            Auth::Export { kind, fingerprint } => auth::export(&global, kind, fingerprint),
            Auth::Sign(args) => auth::sign(&global, &args),
        },
        Command::Backup { what } => backup::run(&global, &what),
        Command::Audit { what } => audit::run(&global, &what),
        Command::Inventory { what: Inventory::Status { format } } => inventory::status(&global, format),
        Command::Inventory { what: Inventory::Ls { older_than, newer_than, services, format } } => {
            inventory::ls(&global, &inventory::Filter { older_than, newer_than, services }, format)
        }
        Command::Inventory { what: Inventory::Walk { member, format } } => inventory::walk(&global, &member, format),
        Command::Windows { what } => windows::run(&global, &what),
        Command::Upgrade { what } => upgrade::run(&global, &what),
        Command::Update { what } => update::run(&global, &what),
        Command::Migrations { what } => migrations::run(&global, &what),
        Command::Version { format } => version::version(&global, format),
    }
}
