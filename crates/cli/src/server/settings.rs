//! What `lockgate start` will run, decided before anything is opened: file < environment < flag, and the defaults.
//!
//! Everything is parsed here into types that cannot be wrong; all faults are reported at once.

use super::StartArgs;
use crate::config::{self, Config, LogFormat, Severity, StorageType};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use types::{ClusterName, Code, Labels, NodeName, Public, Secret, SystemRole, Ttl};

/// A checked start.
pub(crate) struct Settings {
    pub(crate) roles: BTreeSet<SystemRole>,
    pub(crate) data_dir: PathBuf,
    pub(crate) nodename: NodeName,
    pub(crate) diag_addr: Option<SocketAddr>,
    pub(crate) pid_file: Option<PathBuf>,
    /// For a new process to be ready to take over.
    pub(crate) restart_timeout: Duration,
    /// For sessions to run to their end.
    pub(crate) drain_timeout: Duration,
    pub(crate) severity: Severity,
    pub(crate) log_format: LogFormat,
    pub(crate) skip_version_check: bool,
    pub(crate) join: Option<Join>,
    pub(crate) auth: AuthSettings,
    pub(crate) proxy: ProxySettings,
    pub(crate) ssh: SshSettings,
}

/// How a process without an Auth Service of its own reaches one.
pub(crate) struct Join {
    pub(crate) by: JoinBy,
    /// Needed until the host has certificates.
    pub(crate) token: Option<Secret>,
    pub(crate) pins: Vec<String>,
}

pub(crate) enum JoinBy {
    /// One of these.
    Auth(Vec<String>),
    /// One of these.
    Proxy(Vec<String>),
}

pub(crate) struct AuthSettings {
    pub(crate) listen_addr: SocketAddr,
    pub(crate) public_addr: Vec<String>,
    /// For a new cluster; an existing one keeps its name.
    pub(crate) cluster_name: Option<ClusterName>,
    pub(crate) storage: auth::Storage,
    pub(crate) tokens: Vec<(BTreeSet<SystemRole>, Secret)>,
    pub(crate) preference: Option<types::kind::AuthPreference>,
    pub(crate) production: bool,
    /// Else in the data directory.
    pub(crate) recordings_dir: Option<PathBuf>,
    pub(crate) backup: Option<auth::backup::Schedule>,
    /// Releases that the cluster may be upgraded to.
    pub(crate) releases: Option<config::Releases>,
    pub(crate) audit: auth::AuditSettings,
}

pub(crate) struct ProxySettings {
    pub(crate) listen_addr: SocketAddr,
    pub(crate) ssh_listen_addr: Option<SocketAddr>,
    pub(crate) public_addr: Vec<String>,
    pub(crate) keypairs: Vec<config::KeyPair>,
    /// Where agents reach this Proxy alone.
    pub(crate) tunnel_addr: Option<String>,
    /// Releases for hosts that come for rescue.
    pub(crate) mirror_dir: Option<PathBuf>,
}

pub(crate) struct SshSettings {
    pub(crate) listen_addr: SocketAddr,
    pub(crate) labels: Labels,
}

/// Reads the file, lays environment and flags over it, and checks the whole.
pub(crate) fn resolve(args: &StartArgs) -> Result<Settings, Public> {
    let config = match &args.config {
        Some(path) => Config::load(path)?,
        None if Path::new(config::DEFAULT_PATH).exists() => Config::load(Path::new(config::DEFAULT_PATH))?,
        None => Config::default(),
    };
    let config = overlay(config, args);
    let faults = config.check();
    if !faults.is_empty() {
        return Err(Public::new(Code::Config, faults.join("; ")));
    }
    settle(&config, args).map_err(|fault| Public::new(Code::Config, fault))
}

/// Flags win over the file; labels are merged key by key.
fn overlay(mut config: Config, args: &StartArgs) -> Config {
    fn put<T: Clone>(into: &mut Option<T>, flag: &Option<T>) {
        if flag.is_some() {
            into.clone_from(flag);
        }
    }
    let general = &mut config.lockgate;
    put(&mut general.data_dir, &args.data_dir);
    put(&mut general.nodename, &args.nodename);
    put(&mut general.auth_token, &args.token);
    put(&mut general.diag_addr, &args.diag_addr);
    put(&mut general.pid_file, &args.pid_file);
    put(&mut general.log.severity, &args.log_severity);
    put(&mut general.log.format, &args.log_format);
    put(&mut config.auth_service.cluster_name, &args.cluster_name);
    // A way to join that is named on the command line replaces the file's.
    if args.auth_server.is_some() || args.proxy_server.is_some() {
        general.auth_server = None;
        general.proxy_server = None;
        general.auth_servers = several(args.auth_server.as_deref());
        general.proxy_servers = several(args.proxy_server.as_deref());
    }
    if !args.ca_pin.is_empty() {
        general.ca_pin.clone_from(&args.ca_pin);
    }
    if args.debug {
        general.log.severity = Some(Severity::Debug);
    }
    if args.allow_prerelease {
        config.auth_service.allow_prerelease = Some(true);
    }
    config
}

/// Addresses with commas between.
fn several(flag: Option<&str>) -> Vec<String> {
    flag.iter().flat_map(|all| all.split(',')).map(|addr| addr.trim().to_owned()).collect()
}

fn settle(config: &Config, args: &StartArgs) -> Result<Settings, String> {
    let general = &config.lockgate;
    let roles = roles(config, &args.roles)?;
    let has_auth = roles.contains(&SystemRole::Auth);
    let auths: Vec<String> = general.auth_server.iter().chain(&general.auth_servers).cloned().collect();
    let proxies: Vec<String> = general.proxy_server.iter().chain(&general.proxy_servers).cloned().collect();
    let join = match (auths.is_empty(), proxies.is_empty()) {
        (false, _) => Some(JoinBy::Auth(auths)),
        (true, false) => Some(JoinBy::Proxy(proxies)),
        (true, true) => None,
    };
    if !has_auth && join.is_none() {
        return Err("this process runs no Auth Service, so it must know one: give --auth-server or --proxy-server, with --token and --ca-pin at the first start".into());
    }
    if roles.contains(&SystemRole::Proxy) && !has_auth && matches!(join, Some(JoinBy::Proxy(_))) {
        return Err("a Proxy joins an Auth Service directly: give --auth-server in place of --proxy-server".into());
    }
    let token = general.auth_token.as_deref().map(secret_or_file).transpose()?;
    let nodename = match &general.nodename {
        Some(name) => NodeName::new(name).map_err(|error| error.to_string())?,
        None => host_name()?,
    };
    let mut labels: Labels = config.ssh_service.labels.clone();
    labels.extend(
        args.labels
            .as_deref()
            .map(types::label::parse_labels)
            .transpose()
            .map_err(|error| format!("--labels: {error}"))?
            .unwrap_or_default(),
    );
    let data_dir = general.data_dir.clone().unwrap_or_else(|| config::DEFAULT_DATA_DIR.into());
    Ok(Settings {
        auth: auth(config, &data_dir, roles.contains(&SystemRole::Proxy))?,
        proxy: proxy(config)?,
        ssh: SshSettings { listen_addr: config.ssh_service.listen_addr.unwrap_or(any(3022)), labels },
        join: if has_auth { None } else { join.map(|by| Join { by, token, pins: general.ca_pin.clone() }) },
        diag_addr: general.diag_addr,
        pid_file: general.pid_file.clone(),
        restart_timeout: length(general.restart_timeout.as_deref(), config::RESTART_TIMEOUT),
        drain_timeout: length(general.drain_timeout.as_deref(), config::DRAIN_TIMEOUT),
        severity: general.log.severity.unwrap_or(Severity::Info),
        log_format: general.log.format.unwrap_or(LogFormat::Text),
        skip_version_check: args.skip_version_check,
        roles,
        data_dir,
        nodename,
    })
}

/// As written; what cannot be read was told by [`Config::check`].
fn length(written: Option<&str>, usual: Duration) -> Duration {
    written.and_then(|text| text.parse::<Ttl>().ok()).map_or(usual, |length| length.0)
}

fn any(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

/// `--roles`, else the sections' `enabled`; a section that says nothing is on unless another is switched on by name.
fn roles(config: &Config, flags: &[SystemRole]) -> Result<BTreeSet<SystemRole>, String> {
    if !flags.is_empty() {
        return Ok(flags.iter().cloned().collect());
    }
    let known = [SystemRole::Auth, SystemRole::Proxy, SystemRole::Node];
    let enabled = [config.auth_service.enabled, config.proxy_service.enabled, config.ssh_service.enabled];
    let roles: BTreeSet<SystemRole> = known.into_iter().zip(enabled).filter(|(_, on)| on.unwrap_or(true)).map(|(role, _)| role).collect();
    if roles.is_empty() { Err("every service is switched off".into()) } else { Ok(roles) }
}

fn auth(config: &Config, data_dir: &Path, with_proxy: bool) -> Result<AuthSettings, String> {
    let service = &config.auth_service;
    let cluster_name = service.cluster_name.as_deref().map(ClusterName::new).transpose();
    let authentication = &service.authentication;
    let preference = (authentication != &config::Authentication::default()).then(|| {
        let mut preference = types::kind::AuthPreference::default();
        if let Some(factor) = authentication.second_factor {
            preference.second_factor = match factor {
                config::SecondFactor::Off => types::kind::SecondFactor::Off,
                config::SecondFactor::Otp => types::kind::SecondFactor::Otp,
            };
        }
        if let Some(ttl) = authentication.default_session_ttl.as_deref().and_then(|text| text.parse::<Ttl>().ok()) {
            preference.default_session_ttl = ttl;
        }
        preference
    });
    let tokens = service.tokens.iter().map(|line| {
        let (roles, secret) = line.split_once(':').ok_or("auth_service.tokens: a token is written as roles:secret")?;
        let roles = roles.split(',').map(|role| {
            let Ok(role) = role.trim().parse::<SystemRole>();
            role
        });
        Ok::<_, String>((roles.collect(), secret_or_file(secret)?))
    });
    let default_listen = if with_proxy { (Ipv4Addr::LOCALHOST, 3025).into() } else { any(3025) };
    Ok(AuthSettings {
        listen_addr: service.listen_addr.unwrap_or(default_listen),
        public_addr: service.public_addr.clone(),
        cluster_name: cluster_name.map_err(|error| error.to_string())?,
        storage: storage(&config.lockgate.storage, data_dir),
        tokens: tokens.collect::<Result<_, _>>()?,
        preference,
        production: !service.allow_prerelease.unwrap_or(false),
        recordings_dir: service.recordings_dir.clone(),
        backup: service.backup.as_ref().and_then(config::Backup::schedule),
        releases: service.releases.clone(),
        audit: service.audit.settings(&config.lockgate.storage, postgres),
    })
}

fn storage(storage: &config::Storage, data_dir: &Path) -> auth::Storage {
    match storage.kind.unwrap_or_default() {
        StorageType::Memory => auth::Storage::Memory,
        StorageType::Sqlite => auth::Storage::Sqlite { path: storage.path.clone().unwrap_or_else(|| data_dir.join("auth/state.db")) },
        StorageType::Postgres => auth::Storage::Postgres(Box::new(postgres(storage))),
        StorageType::Etcd => {
            let options = store::etcd::Options::new(local(&storage.peers));
            let prefix = storage.prefix.clone().unwrap_or_else(|| options.prefix.clone());
            let (user, password_file) = (storage.username.clone(), storage.password_file.clone());
            let (tls, insecure) = (tls(storage), storage.insecure.unwrap_or(false));
            auth::Storage::Etcd(Box::new(store::etcd::Options { prefix, user, password_file, tls, insecure, ..options }))
        }
    }
}

/// A connection to PostgreSQL, for the store or the audit log.
fn postgres(storage: &config::Storage) -> store::postgres::Options {
    let named = |text: &Option<String>| text.clone().unwrap_or_else(|| "lockgate".into());
    let options = store::postgres::Options::new(local(&storage.hosts), named(&storage.database), named(&storage.username));
    let (schema, password_file) = (named(&storage.schema), storage.password_file.clone());
    let (tls, insecure) = (tls(storage), storage.insecure.unwrap_or(false));
    store::postgres::Options { schema, password_file, tls, insecure, ..options }
}

fn local(hosts: &[String]) -> Vec<String> {
    if hosts.is_empty() { vec!["localhost".to_owned()] } else { hosts.to_vec() }
}

fn tls(storage: &config::Storage) -> Option<store::remote::Tls> {
    let identity = match (&storage.tls_cert_file, &storage.tls_key_file) {
        (Some(cert), Some(key)) => Some(store::remote::Identity { cert_file: cert.clone(), key_file: key.clone() }),
        _ => None,
    };
    storage.tls_ca_file.clone().map(|ca_file| store::remote::Tls { ca_file, identity })
}

fn proxy(config: &Config) -> Result<ProxySettings, String> {
    let service = &config.proxy_service;
    let ssh_listen_addr = match service.listen_addr.as_deref() {
        None => Some(any(3023)),
        Some("off") => None,
        Some(text) => Some(text.parse().map_err(|_| format!("proxy_service.listen_addr: \"{text}\" is not an address"))?),
    };
    Ok(ProxySettings {
        listen_addr: service.web_listen_addr.unwrap_or(any(3080)),
        ssh_listen_addr,
        public_addr: service.public_addr.clone(),
        keypairs: service.https_keypairs.clone(),
        tunnel_addr: service.tunnel_addr.clone(),
        mirror_dir: service.mirror_dir.clone(),
    })
}

/// A secret written out, or the absolute path of a file whose first line is the secret.
fn secret_or_file(text: &str) -> Result<Secret, String> {
    if !text.starts_with('/') {
        return Ok(Secret::new(text));
    }
    let content = std::fs::read_to_string(text).map_err(|error| format!("the token file {text} cannot be read: {error}"))?;
    match content.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(Secret::new(line)),
        None => Err(format!("the token file {text} is empty")),
    }
}

fn host_name() -> Result<NodeName, String> {
    let name = nix::unistd::gethostname().map_err(|error| format!("this host's name cannot be read: {error}"))?;
    let name = name.to_string_lossy();
    NodeName::new(&*name).map_err(|error| format!("{error}; give --nodename"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(yaml: &str, args: &StartArgs) -> Result<Settings, String> {
        settle(&overlay(Config::parse(yaml).unwrap(), args), args)
    }

    #[test]
    fn without_anything_all_three_services_run() {
        let settings = settled("", &StartArgs::default()).unwrap();
        assert_eq!(settings.roles, BTreeSet::from([SystemRole::Auth, SystemRole::Proxy, SystemRole::Node]));
        assert_eq!(settings.auth.listen_addr.to_string(), "127.0.0.1:3025");
        assert_eq!(settings.proxy.ssh_listen_addr.unwrap().port(), 3023);
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let args = StartArgs { nodename: Some("flag".into()), labels: Some("env=dev".into()), ..StartArgs::default() };
        let settings = settled("lockgate: {nodename: file}\nssh_service: {labels: {env: prod, team: a}}\n", &args).unwrap();
        assert_eq!(settings.nodename.as_str(), "flag");
        assert_eq!(types::label::show_labels(&settings.ssh.labels), "env=dev,team=a");
    }

    #[test]
    fn an_agent_without_a_way_to_join_is_told_which_flags_to_give() {
        let args = StartArgs { roles: vec![SystemRole::Node], ..StartArgs::default() };
        let fault = settled("", &args).err().unwrap();
        assert!(fault.contains("--proxy-server") && fault.contains("--token"), "{fault}");
    }

    #[test]
    fn several_auth_services_are_given_in_the_file_or_with_commas_on_the_command_line() {
        let check = |yaml: &str, flag: Option<&str>, want: &[&str]| {
            let args = StartArgs { roles: vec![SystemRole::Proxy], auth_server: flag.map(str::to_owned), ..StartArgs::default() };
            let Some(Join { by: JoinBy::Auth(found), .. }) = settled(yaml, &args).unwrap().join else { panic!("{yaml}") };
            assert_eq!(found, want, "{yaml}");
        };
        check("lockgate: {auth_server: 'a:1'}\n", None, &["a:1"]);
        check("lockgate: {auth_servers: ['a:1', 'b:2']}\n", None, &["a:1", "b:2"]);
        check("lockgate: {auth_servers: ['a:1', 'b:2']}\n", Some("c:3, d:4"), &["c:3", "d:4"]);
        check("", Some("c:3"), &["c:3"]);
    }

    #[test]
    fn several_proxies_are_given_in_the_file_or_with_commas_on_the_command_line() {
        let check = |yaml: &str, flag: Option<&str>, want: &[&str]| {
            let args = StartArgs { roles: vec![SystemRole::Node], proxy_server: flag.map(str::to_owned), ..StartArgs::default() };
            let Some(Join { by: JoinBy::Proxy(found), .. }) = settled(yaml, &args).unwrap().join else { panic!("{yaml}") };
            assert_eq!(found, want, "{yaml}");
        };
        check("lockgate: {proxy_server: 'a:1'}\n", None, &["a:1"]);
        check("lockgate: {proxy_servers: ['a:1', 'b:2']}\n", None, &["a:1", "b:2"]);
        check("lockgate: {proxy_servers: ['a:1', 'b:2']}\n", Some("c:3, d:4"), &["c:3", "d:4"]);
        check("lockgate: {auth_server: 'a:1'}\n", Some("c:3"), &["c:3"]);
    }

    #[test]
    fn the_store_is_the_one_that_the_section_names() {
        let check = |yaml: &str, expected: &dyn Fn(&auth::Storage) -> bool| {
            let settings = settled(&format!("lockgate: {{data_dir: /d, storage: {yaml}}}\n"), &StartArgs::default()).unwrap();
            assert!(expected(&settings.auth.storage), "{yaml}");
        };
        check("{}", &|storage| matches!(storage, auth::Storage::Sqlite { path } if path == Path::new("/d/auth/state.db")));
        check("{type: memory}", &|storage| matches!(storage, auth::Storage::Memory));
        check("{type: postgres, hosts: [a, b], tls_ca_file: /ca, schema: s}", &|storage| {
            matches!(storage, auth::Storage::Postgres(options)
                if options.hosts == ["a", "b"] && options.database == "lockgate" && options.schema == "s" && options.tls.is_some())
        });
        check("{type: etcd, username: u, password_file: /p}", &|storage| {
            matches!(storage, auth::Storage::Etcd(options)
                if options.endpoints == ["localhost"] && options.prefix == "/lockgate/" && options.user.as_deref() == Some("u"))
        });
    }
}
