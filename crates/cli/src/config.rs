//! The configuration: YAML file < environment < flag. `--help`, the reference in `docs/` and the reader share these types.
//!
//! Section names are the field's (`auth_service`, `proxy_service`, `ssh_service`); the general section is `lockgate`.
//! Unknown keys and wrong types are errors with line and column; all faults of meaning are reported at once by
//! [`Config::check`]. Relative paths are taken from the file's directory.

mod audit;
mod backup;
mod storage;

pub(crate) use audit::Audit;
pub(crate) use backup::Backup;
pub(crate) use storage::Storage;
#[cfg(feature = "server")]
pub(crate) use storage::StorageType;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use types::{Code, Public};

/// Where the configuration is looked for when none is named.
pub(crate) const DEFAULT_PATH: &str = "/etc/lockgate.yaml";
/// Where state is kept when nothing else is said.
pub(crate) const DEFAULT_DATA_DIR: &str = "/var/lib/lockgate";

/// `lockgate.restart_timeout`, when nothing is said.
pub(crate) const RESTART_TIMEOUT: Duration = Duration::from_secs(60);
/// `lockgate.drain_timeout`, when nothing is said: a certificate lives no longer (`types::role`).
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30 * 3600);

/// A whole configuration file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Format of this file; `v1` is the only one.
    pub(crate) version: Option<String>,
    /// What concerns the process as a whole.
    pub(crate) lockgate: General,
    /// The Auth Service: keeps the cluster's state and issues certificates.
    pub(crate) auth_service: AuthService,
    /// The Proxy Service: the front door.
    pub(crate) proxy_service: ProxyService,
    /// The SSH Service: sessions on this host.
    pub(crate) ssh_service: SshService,
}

/// What concerns the process as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct General {
    /// Name of this host in listings and certificates. Default: the host name.
    pub(crate) nodename: Option<String>,
    /// Directory of state, created with mode 0700. Default: /var/lib/lockgate.
    pub(crate) data_dir: Option<PathBuf>,
    /// Join token, or the path of a file that holds it. Needed once, to join.
    pub(crate) auth_token: Option<String>,
    /// Address of an Auth Service to join directly, `host:port`.
    pub(crate) auth_server: Option<String>,
    /// The same of several Auth Services of one cluster, in place of `auth_server`: connections spread over them, and when one is down the others serve.
    pub(crate) auth_servers: Vec<String>,
    /// Address of a Proxy to join through, `host:port`. The process then opens no port.
    pub(crate) proxy_server: Option<String>,
    /// The same of several Proxies of one cluster, in place of `proxy_server`: each is tried when another does not answer.
    pub(crate) proxy_servers: Vec<String>,
    /// Pins of the cluster's authority, `sha256:<hex>`: who joins checks them before showing its token.
    pub(crate) ca_pin: Vec<String>,
    /// Where `/healthz`, `/readyz` and `/metrics` are served. Default: nowhere.
    pub(crate) diag_addr: Option<SocketAddr>,
    /// File that holds the process id while it runs.
    pub(crate) pid_file: Option<PathBuf>,
    /// How long a new process may take until it is ready to take over from the one that serves (live restart), e.g. `2m`. Default: 1m.
    pub(crate) restart_timeout: Option<String>,
    /// How long sessions may run on once the process drains. Default: 30h, the longest life of a certificate.
    pub(crate) drain_timeout: Option<String>,
    /// What is logged, and how.
    pub(crate) log: Log,
    /// Where the Auth Service keeps the cluster's state.
    pub(crate) storage: Storage,
}

/// What is logged, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`. Default: info.
    pub(crate) severity: Option<Severity>,
    /// `text` or `json`. Default: text.
    pub(crate) format: Option<LogFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// The Auth Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AuthService {
    /// Runs the service. Default: yes, when `--roles` is not given.
    pub(crate) enabled: Option<bool>,
    /// Where it listens. Default: 127.0.0.1:3025 when the Proxy runs in the same process, else 0.0.0.0:3025.
    pub(crate) listen_addr: Option<SocketAddr>,
    /// Names and addresses by which others reach it; put into its certificate.
    pub(crate) public_addr: Vec<String>,
    /// The cluster's name, fixed at its birth. Default: the node's name.
    pub(crate) cluster_name: Option<String>,
    /// Join tokens that always exist: `roles:secret`, e.g. `node,proxy:/run/secrets/token` (a path is read). A secret has 16 characters at least.
    pub(crate) tokens: Vec<String>,
    /// How people log in.
    pub(crate) authentication: Authentication,
    /// Where audit events are kept and for how long.
    pub(crate) audit: Audit,
    /// Backups made by themselves. Default: none.
    pub(crate) backup: Option<Backup>,
    /// Releases that this cluster may be upgraded to: docs/upgrading.md. Default: none.
    pub(crate) releases: Option<Releases>,
    /// Where recordings are kept. Default: `auth/recordings` in the data directory. Several Auth Services of one cluster name one directory that they share.
    pub(crate) recordings_dir: Option<PathBuf>,
    /// Allows pre-releases on this cluster; judged at its birth only (rule G2). Default: no.
    pub(crate) allow_prerelease: Option<bool>,
}

/// Where the Auth Service learns of releases.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Releases {
    /// The mirror that the Proxies serve too: `metadata/`, and one directory per version.
    pub(crate) mirror_dir: PathBuf,
    /// The vendor's root file: which keys sign releases.
    pub(crate) root_file: PathBuf,
}

/// How people log in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Authentication {
    /// `local` is the only type.
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    /// `off` or `otp`. Default: otp.
    pub(crate) second_factor: Option<SecondFactor>,
    /// Life of a certificate when the client asks for none, e.g. `12h`. Default: 12h.
    pub(crate) default_session_ttl: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SecondFactor {
    Off,
    Otp,
}

/// The Proxy Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ProxyService {
    /// Runs the service. Default: yes, when `--roles` is not given.
    pub(crate) enabled: Option<bool>,
    /// The one TLS port. Default: 0.0.0.0:3080.
    pub(crate) web_listen_addr: Option<SocketAddr>,
    /// The jump server for plain OpenSSH (`ssh -J`); `off` for none. Default: 0.0.0.0:3023.
    pub(crate) listen_addr: Option<String>,
    /// What clients call this Proxy, `host:port`; goes into links and certificates. Default: the node's name and port.
    pub(crate) public_addr: Vec<String>,
    /// Where agents reach this Proxy and no other, `host:port`, when `public_addr` leads to several (a load balancer, a shared name). Default: the first `public_addr`.
    pub(crate) tunnel_addr: Option<String>,
    /// Releases for hosts that are refused for their version, as `make release` writes them: one directory per version, each with its SHA256SUMS. Default: none.
    pub(crate) mirror_dir: Option<PathBuf>,
    /// Web certificates in place of the cluster's own; re-read when the files change.
    pub(crate) https_keypairs: Vec<KeyPair>,
}

/// A certificate and its key, PEM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyPair {
    pub(crate) key_file: PathBuf,
    pub(crate) cert_file: PathBuf,
}

/// The SSH Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SshService {
    /// Runs the service. Default: yes, when `--roles` is not given.
    pub(crate) enabled: Option<bool>,
    /// Where it listens when it joined an Auth Service directly. By tunnel it never listens. Default: 0.0.0.0:3022.
    pub(crate) listen_addr: Option<SocketAddr>,
    /// Labels that roles select hosts by.
    pub(crate) labels: BTreeMap<String, String>,
}

impl Config {
    /// Reads a file; the error names file, line and column.
    pub(crate) fn load(path: &Path) -> Result<Self, Public> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| {
            Public::new(Code::Config, format!("{shown}: {error}"))
                .hint("name another file with --config, or write one with `lockgate configure`")
        })?;
        let mut config = Self::parse(&text).map_err(|fault| {
            Public::new(Code::Config, format!("{shown}:{fault}"))
                .hint("`lockgate configure` prints a valid file; docs/reference/config.md has every key")
        })?;
        if let Some(directory) = path.parent() {
            config.resolve_paths(directory);
        }
        Ok(config)
    }

    /// Parses YAML; the error is `line:column: what`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() || text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| {
            let what = plain(&error);
            match error.location() {
                Some(at) => format!("{}:{}: {what}", at.line(), at.column()),
                None => format!(" {what}"),
            }
        })
    }

    fn resolve_paths(&mut self, directory: &Path) {
        let pairs = self.proxy_service.https_keypairs.iter_mut().flat_map(|pair| [&mut pair.key_file, &mut pair.cert_file]);
        let general = &mut self.lockgate;
        if let Some(backup) = &mut self.auth_service.backup {
            backup.resolve_paths(directory);
        }
        for path in pairs
            .chain(general.data_dir.iter_mut())
            .chain(general.storage.paths_mut())
            .chain(self.auth_service.recordings_dir.iter_mut())
            .chain(self.auth_service.audit.paths_mut())
            .chain(general.pid_file.iter_mut())
            .chain(self.proxy_service.mirror_dir.iter_mut())
            .chain(self.auth_service.releases.iter_mut().flat_map(|releases| [&mut releases.mirror_dir, &mut releases.root_file]))
        {
            if path.is_relative() {
                *path = directory.join(&*path);
            }
        }
    }

    /// Every fault of meaning, each one line that names its key.
    pub(crate) fn check(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, why: String| faults.push(format!("{key}: {why}"));
        if let Some(version) = self.version.as_deref().filter(|&version| version != "v1") {
            fault("version", format!("\"{version}\" is not known; the only format is v1"));
        }
        let general = &self.lockgate;
        if let Some(Err(error)) = general.nodename.as_deref().map(types::NodeName::new) {
            fault("lockgate.nodename", error.to_string());
        }
        for (key, length) in [("restart_timeout", &general.restart_timeout), ("drain_timeout", &general.drain_timeout)] {
            if let Some(Err(error)) = length.as_deref().map(str::parse::<types::Ttl>) {
                fault(&format!("lockgate.{key}"), error.to_string());
            }
        }
        let ways = [
            ("auth_server", general.auth_server.is_some()),
            ("auth_servers", !general.auth_servers.is_empty()),
            ("proxy_server", general.proxy_server.is_some()),
            ("proxy_servers", !general.proxy_servers.is_empty()),
        ];
        let mut given = ways.iter().filter(|(_, given)| *given).map(|(key, _)| *key);
        if let (Some(first), Some(second)) = (given.next(), given.next()) {
            fault(&format!("lockgate.{first}"), format!("given together with {second}; a process joins by one of them"));
        }
        for (key, address) in [("lockgate.auth_server", &general.auth_server), ("lockgate.proxy_server", &general.proxy_server)] {
            if let Some(Err(why)) = address.as_deref().map(check_address) {
                fault(key, why);
            }
        }
        for (key, addresses) in [("lockgate.auth_servers", &general.auth_servers), ("lockgate.proxy_servers", &general.proxy_servers)] {
            for why in addresses.iter().filter_map(|address| check_address(address).err()) {
                fault(key, why);
            }
        }
        for (key, why) in general.storage.check() {
            fault(key, why);
        }
        for (key, why) in self.auth_service.audit.check() {
            fault(key, why);
        }
        for (key, why) in self.auth_service.backup.iter().flat_map(Backup::check) {
            fault(key, why);
        }
        for pin in &general.ca_pin {
            if pin.strip_prefix("sha256:").is_none_or(|hex| hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit())) {
                fault(
                    "lockgate.ca_pin",
                    format!("\"{pin}\" is not a pin; write it as sha256: and 64 hexadecimal digits, as `tctl status` prints it"),
                );
            }
        }
        if let Some(Err(error)) = self.auth_service.cluster_name.as_deref().map(types::ClusterName::new) {
            fault("auth_service.cluster_name", error.to_string());
        }
        if let Some(kind) = self.auth_service.authentication.kind.as_deref().filter(|&kind| kind != "local") {
            fault("auth_service.authentication.type", format!("\"{kind}\" is not known; the only type is local"));
        }
        if let Some(Err(error)) = self.auth_service.authentication.default_session_ttl.as_deref().map(str::parse::<types::Ttl>) {
            fault("auth_service.authentication.default_session_ttl", error.to_string());
        }
        for token in &self.auth_service.tokens {
            if token.split_once(':').is_none_or(|(roles, secret)| roles.is_empty() || secret.is_empty()) {
                fault("auth_service.tokens", "a token is written as roles:secret, e.g. node,proxy:0123456789abcdef".into());
            }
        }
        if let Some(address) = self.proxy_service.listen_addr.as_deref()
            && address != "off"
            && address.parse::<SocketAddr>().is_err()
        {
            fault("proxy_service.listen_addr", format!("\"{address}\" is not an address like 0.0.0.0:3023, nor off"));
        }
        for address in &self.proxy_service.public_addr {
            if let Err(why) = check_address(address) {
                fault("proxy_service.public_addr", why);
            }
        }
        if let Some(Err(why)) = self.proxy_service.tunnel_addr.as_deref().map(check_address) {
            fault("proxy_service.tunnel_addr", why);
        }
        for (key, value) in &self.ssh_service.labels {
            if let Err(error) = types::label::check_label(key, value) {
                fault("ssh_service.labels", error.to_string());
            }
        }
        faults
    }
}

/// `host:port` with a name, an IPv4 address or a bracketed IPv6 address.
pub(crate) fn check_address(text: &str) -> Result<(), String> {
    let bad = || format!("\"{text}\" is not an address like proxy.example.com:3080");
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(());
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    if port.parse::<u16>().is_ok() && types::NodeName::new(host).is_ok() { Ok(()) } else { Err(bad()) }
}

/// The library's message without the position, which is said first, and on one line.
fn plain(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("cannot be read");
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let line = match line.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((position, message)) if position.starts_with(|c: char| c.is_ascii_digit()) => message,
        _ => line,
    };
    line.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_an_error_with_line_and_column() {
        let error = Config::parse("version: v1\nssh_service:\n  enabled: true\n  lables:\n    env: prod\n").unwrap_err();
        assert!(error.starts_with("4:3: ") && error.contains("lables"), "{error}");
    }

    #[test]
    fn a_wrong_type_is_an_error_with_line_and_column() {
        let error = Config::parse("proxy_service:\n  enabled: sometimes\n").unwrap_err();
        assert!(error.starts_with("2:12: ") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn all_faults_of_meaning_are_reported_at_once() {
        let config =
            Config::parse("version: v9\nlockgate:\n  nodename: 'a b'\n  ca_pin: [abc]\nauth_service:\n  tokens: [secret]\n").unwrap();
        let faults = config.check();
        assert_eq!(faults.len(), 4, "{faults:#?}");
        assert!(faults.iter().any(|fault| fault.starts_with("lockgate.nodename: ")));
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(Config::parse("# nothing\n\n").unwrap(), Config::default());
        assert!(Config::default().check().is_empty());
    }

    #[test]
    fn addresses_are_names_or_numbers_with_a_port() {
        for good in ["a:1", "proxy.example.com:3080", "127.0.0.1:1", "[::1]:22"] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in ["a", "a:", ":1", "a:99999", "a b:1", "http://a:1"] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }
}
