//! `~/.tsh`: where `tsh` keeps who is logged in where, in the layout the field knows, so that plain `ssh` can use it too.
//!
//! ```text
//! current-profile                      proxy.example.com
//! proxy.example.com.yaml               the profile
//! known_hosts                          @cert-authority lines: the clusters' host authorities
//! keys/proxy.example.com/alice         private key, OpenSSH's format
//! keys/proxy.example.com/alice.pub
//! keys/proxy.example.com/alice-x509.pem
//! keys/proxy.example.com/alice-ssh/demo-cert.pub
//! keys/proxy.example.com/cas/demo.pem  the cluster's TLS authorities
//! ```
//! Directories are 0700, files 0600 and replaced in one step. Environment variables other than the place itself are read by
//! `cli`. Every command of `tsh` starts by loading this: it reads six small files and no more.

use crate::{
    credentials::{CredentialsError, UserCredentials},
    identity_file::{authority_line, parse_authority_line},
    keys::{KeyError, KeyPair, pem},
    trust::ClusterTrust,
};
use net::tls::{TlsError, identity::certificates_from_pem, write_private};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};
use types::{ClusterName, Extra, UserName};
use zeroize::Zeroizing;

/// The environment variable that names another directory than `~/.tsh`.
pub const HOME_VARIABLE: &str = "LOCKGATE_HOME";
/// The port of a Proxy when none is given.
pub const DEFAULT_PORT: u16 = 3080;

/// A Proxy's address as users type it: `proxy.example.com`, `proxy.example.com:3080`, `https://proxy.example.com`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProxyAddr {
    host: String,
    port: u16,
}

/// A text that is not a Proxy's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an address of a Proxy; write it as host:port")]
pub struct BadProxyAddr(String);

impl ProxyAddr {
    pub fn host(&self) -> &str {
        &self.host
    }
    pub fn port(&self) -> u16 {
        self.port
    }
    /// The name of its files: the host, and the port when it is not one of the usual. `_` stands in no host name.
    pub fn file_name(&self) -> String {
        let host = self.host.replace(':', "-");
        if matches!(self.port, DEFAULT_PORT | 443) { host } else { format!("{host}_{}", self.port) }
    }
}
impl std::str::FromStr for ProxyAddr {
    type Err = BadProxyAddr;
    fn from_str(text: &str) -> Result<Self, BadProxyAddr> {
        let bad = || BadProxyAddr(text.chars().take(80).flat_map(char::escape_default).collect());
        let (rest, default) = match text.trim().strip_prefix("https://") {
            Some(rest) => (rest.split('/').next().unwrap_or_default(), 443),
            None => (text.trim(), DEFAULT_PORT),
        };
        let (host, port) = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((v6, "")) => (v6, default),
            Some((v6, port)) => (v6, port.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or_else(bad)?),
            None => match rest.split_once(':') {
                Some((host, port)) => (host, port.parse().map_err(|_| bad())?),
                None => (rest, default),
            },
        };
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        let fits = host.parse::<std::net::Ipv6Addr>().is_ok()
            || (host.starts_with(|c: char| c.is_ascii_alphanumeric()) && host.chars().all(named));
        if fits && host.len() <= 253 && port != 0 { Ok(Self { host: host.to_ascii_lowercase(), port }) } else { Err(bad()) }
    }
}
impl std::fmt::Display for ProxyAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}
impl Serialize for ProxyAddr {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for ProxyAddr {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Content of `<proxy>.yaml`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Profile {
    pub web_proxy_addr: ProxyAddr,
    pub user: UserName,
    pub cluster: ClusterName,
    /// The SSH jump server for plain OpenSSH, `host:port`, if the Proxy has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_proxy_addr: Option<String>,
    /// Written by a newer release, kept.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Why a profile cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("not logged in")]
    NotLoggedIn,
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: {why}")]
    Malformed { path: PathBuf, why: String },
    #[error(transparent)]
    Write(#[from] TlsError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the credentials in {path} cannot be used: {source}")]
    Credentials { path: PathBuf, source: CredentialsError },
}

impl ProfileError {
    /// What the user may read.
    pub fn public(&self) -> types::Public {
        let code = match self {
            Self::NotLoggedIn | Self::Credentials { .. } => types::Code::LoginRequired,
            Self::File { .. } | Self::Malformed { .. } | Self::Write(_) | Self::Key(_) => types::Code::Config,
        };
        types::Public::new(code, self.to_string()).hint("log in with `tsh login --proxy=<address>`")
    }
}

/// Where the files of one login are.
#[derive(Clone, Debug)]
pub struct Paths {
    pub profile: PathBuf,
    pub known_hosts: PathBuf,
    pub key: PathBuf,
    pub public_key: PathBuf,
    pub tls_certificate: PathBuf,
    pub ssh_certificate: PathBuf,
    pub authorities: PathBuf,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

impl Home {
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
    /// `LOCKGATE_HOME`, or `~/.tsh`.
    pub fn find() -> Result<Self, ProfileError> {
        let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = named(HOME_VARIABLE).or_else(|| named("HOME").map(|home| home.join(".tsh")));
        home.map(Self).ok_or(ProfileError::NotLoggedIn)
    }
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the files of that login are, whether they exist or not.
    pub fn paths(&self, profile: &Profile) -> Paths {
        let (name, user) = (profile.web_proxy_addr.file_name(), &profile.user);
        let keys = self.0.join("keys").join(&name);
        Paths {
            profile: self.profile_path(&name),
            known_hosts: self.0.join("known_hosts"),
            key: keys.join(user.as_str()),
            public_key: keys.join(format!("{user}.pub")),
            tls_certificate: keys.join(format!("{user}-x509.pem")),
            ssh_certificate: keys.join(format!("{user}-ssh")).join(format!("{}-cert.pub", profile.cluster)),
            authorities: keys.join("cas").join(format!("{}.pem", profile.cluster)),
        }
    }
    fn profile_path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.yaml"))
    }
    fn current_path(&self) -> PathBuf {
        self.0.join("current-profile")
    }

    /// The profile in use, or of that Proxy.
    pub fn profile(&self, proxy: Option<&ProxyAddr>) -> Result<Profile, ProfileError> {
        let name = match proxy {
            Some(proxy) => proxy.file_name(),
            None => self.current()?.ok_or(ProfileError::NotLoggedIn)?,
        };
        read_profile(&self.profile_path(&name))?.ok_or(ProfileError::NotLoggedIn)
    }

    /// Every profile, in order of file names; unreadable ones are skipped.
    pub fn profiles(&self) -> Result<Vec<Profile>, ProfileError> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(ProfileError::File { path: self.0.clone(), source }),
        };
        let mut paths: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
            .collect();
        paths.sort();
        Ok(paths.iter().filter_map(|path| read_profile(path).ok().flatten()).collect())
    }

    fn current(&self) -> Result<Option<String>, ProfileError> {
        let text = read(&self.current_path())?;
        Ok(text.map(|text| text.trim().to_owned()).filter(|name| is_file_name(name)))
    }
    /// Whether that profile is the one in use.
    pub fn is_current(&self, profile: &Profile) -> bool {
        self.current().ok().flatten().is_some_and(|name| name == profile.web_proxy_addr.file_name())
    }
    /// Makes a profile the one in use.
    pub fn set_current(&self, proxy: &ProxyAddr) -> Result<(), ProfileError> {
        Ok(write_private(&self.current_path(), format!("{}\n", proxy.file_name()).as_bytes())?)
    }

    /// The credentials of a profile.
    pub fn credentials(&self, profile: &Profile) -> Result<UserCredentials, ProfileError> {
        let paths = self.paths(profile);
        let need = |path: &Path| read(path)?.ok_or(ProfileError::NotLoggedIn);
        let key = KeyPair::from_openssh(&need(&paths.key)?)?;
        let (ssh, tls) = (need(&paths.ssh_certificate)?, need(&paths.tls_certificate)?);
        let mut trust = ClusterTrust::empty(profile.cluster.clone());
        let (proxy, cluster) = (profile.web_proxy_addr.file_name(), profile.cluster.as_str());
        let known = need(&paths.known_hosts)?;
        for line in known.lines().filter_map(parse_authority_line) {
            if line.names.contains(&proxy.as_str()) && line.names.contains(&cluster) {
                trust.host_ssh.extend(line.usable);
            }
        }
        let bad = |source| ProfileError::Credentials { path: paths.key.clone(), source };
        trust.host_tls = certificates_from_pem(need(&paths.authorities)?.as_bytes()).map_err(|error| bad(error.into()))?;
        UserCredentials::new(key, &ssh, &tls, trust).map_err(bad)
    }

    /// Profile and credentials in one.
    pub fn load(&self, proxy: Option<&ProxyAddr>) -> Result<(Profile, UserCredentials), ProfileError> {
        let profile = self.profile(proxy)?;
        let credentials = self.credentials(&profile)?;
        Ok((profile, credentials))
    }

    /// Writes a login and makes it the one in use. Files of another user of the same Proxy are removed.
    pub fn save(&self, profile: &Profile, credentials: &UserCredentials) -> Result<(), ProfileError> {
        private_dir(&self.0).map_err(|source| ProfileError::File { path: self.0.clone(), source })?;
        if let Some(old) =
            read_profile(&self.profile_path(&profile.web_proxy_addr.file_name())).ok().flatten().filter(|old| old.user != profile.user)
        {
            self.remove_files(&old)?;
        }
        let paths = self.paths(profile);
        for path in [&paths.key, &paths.ssh_certificate, &paths.authorities] {
            if let Some(parent) = path.parent() {
                private_dir(parent).map_err(|source| ProfileError::File { path: parent.to_owned(), source })?;
            }
        }
        let authorities: String = credentials.trust.host_tls.iter().map(|der| pem("CERTIFICATE", der)).collect();
        write_private(&paths.key, credentials.key.openssh_pem()?.expose().as_bytes())?;
        write_private(&paths.public_key, format!("{}\n", credentials.key.ssh_public()?).as_bytes())?;
        write_private(&paths.tls_certificate, credentials.tls_pem().as_bytes())?;
        write_private(&paths.ssh_certificate, format!("{}\n", credentials.ssh_line()).as_bytes())?;
        write_private(&paths.authorities, authorities.as_bytes())?;
        self.write_known_hosts(profile, Some(credentials))?;
        let yaml = serde_saphyr::to_string(profile)
            .map_err(|error| ProfileError::Malformed { path: paths.profile.clone(), why: error.to_string() })?;
        write_private(&paths.profile, yaml.as_bytes())?;
        self.set_current(&profile.web_proxy_addr)
    }

    /// Forgets a login: its keys, certificates and authorities. Not being logged in is no error.
    pub fn logout(&self, profile: &Profile) -> Result<(), ProfileError> {
        let was_current = self.is_current(profile);
        self.remove_files(profile)?;
        remove(&self.paths(profile).profile)?;
        if was_current {
            remove(&self.current_path())?;
        }
        Ok(())
    }

    fn remove_files(&self, profile: &Profile) -> Result<(), ProfileError> {
        let paths = self.paths(profile);
        for path in [&paths.key, &paths.public_key, &paths.tls_certificate, &paths.ssh_certificate, &paths.authorities] {
            remove(path)?;
        }
        for directory in [paths.ssh_certificate.parent(), paths.authorities.parent(), paths.key.parent()].into_iter().flatten() {
            // Stays when another login's files are in it.
            let _ = fs::remove_dir(directory);
        }
        self.write_known_hosts(profile, None)
    }

    /// Replaces this login's lines in `known_hosts`; others' stay.
    fn write_known_hosts(&self, profile: &Profile, credentials: Option<&UserCredentials>) -> Result<(), ProfileError> {
        let path = self.0.join("known_hosts");
        let (proxy, cluster) = (profile.web_proxy_addr.file_name(), profile.cluster.as_str());
        let before = read(&path)?;
        if before.is_none() && credentials.is_none() {
            return Ok(());
        }
        let ours = |line: &&str| {
            parse_authority_line(line).is_some_and(|line| line.names.contains(&proxy.as_str()) && line.names.contains(&cluster))
        };
        let mut text: String =
            before.as_ref().map_or("", |text| text.as_str()).lines().filter(|line| !ours(line)).map(|line| format!("{line}\n")).collect();
        for key in credentials.iter().flat_map(|credentials| &credentials.trust.host_ssh) {
            // The bare host is what plain OpenSSH looks for at the jump server, whatever the web port.
            let host = profile.web_proxy_addr.host();
            let names = [&proxy, host, cluster];
            text.push_str(&authority_line(names.get(usize::from(proxy == host)..).unwrap_or(&names), &profile.cluster, key));
        }
        Ok(write_private(&path, text.as_bytes())?)
    }
}

/// A name that stays inside its directory.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name.len() < 300 && !name.starts_with('.') && !name.contains(['/', '\0'])
}

fn read(path: &Path) -> Result<Option<Zeroizing<String>>, ProfileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ProfileError::File { path: path.to_owned(), source }),
    }
}

fn read_profile(path: &Path) -> Result<Option<Profile>, ProfileError> {
    let Some(text) = read(path)? else { return Ok(None) };
    serde_saphyr::from_str(&text).map(Some).map_err(|error| ProfileError::Malformed { path: path.to_owned(), why: error.to_string() })
}

fn remove(path: &Path) -> Result<(), ProfileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ProfileError::File { path: path.to_owned(), source }),
    }
}

/// Makes a directory and those above it, for its owner alone.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests;
