//! What the drivers behind a network share besides their writes: credentials, TLS, patience, and why they do not open.
//!
//! Passwords and keys come from files and are read again for every new connection, so that they can be changed while an Auth
//! Service runs; they are in no argument, no message and no log. TLS is rustls with aws-lc-rs and always checks the server's name.
//! Without TLS a driver speaks to this machine only, unless it was told that the network may see everything.

use crate::StoreError;
use rand::RngExt as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::Instrument as _;
use types::Secret;

/// What is said when no answer came in time. A driver cannot tell which of the three it is.
pub(crate) const SILENT: &str = "no answer in time: the server, its disk or the network stands still";

/// TLS to the store's servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of the authorities that may have signed the servers', PEM.
    pub ca_file: PathBuf,
    /// This client's certificate and key, PEM, for servers that ask for one.
    pub identity: Option<Identity>,
}

/// A client's certificate and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// Why a store behind a network was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("{0}")]
    Settings(String),
    #[error("the file {} cannot be used: {detail}", path.display())]
    File { path: PathBuf, detail: String },
    #[error("{place} runs {found}; Lockgate needs {needed} or later")]
    TooOld { place: String, found: String, needed: &'static str },
    #[error("the store {place} was written by a newer release: its layout is {found}")]
    Newer { place: String, found: u32 },
    #[error("{place} holds something that is not a store of Lockgate: {detail}")]
    Foreign { place: String, detail: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OpenError {
    fn file(path: &Path, detail: impl ToString) -> Self {
        Self::File { path: path.into(), detail: detail.to_string() }
    }
}

/// The first line of a file.
pub(crate) fn password(path: &Path) -> Result<Secret, OpenError> {
    let text = std::fs::read_to_string(path).map_err(|error| OpenError::file(path, error))?;
    match text.lines().next().filter(|line| !line.is_empty()) {
        Some(line) => Ok(Secret::new(line)),
        None => Err(OpenError::file(path, "its first line should be the password, and is empty")),
    }
}

/// Reads the files of [`Tls`].
pub(crate) fn client_config(tls: &Tls, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, OpenError> {
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, OpenError> {
        let read = CertificateDer::pem_file_iter(path).map_err(|error| OpenError::file(path, error))?;
        let found: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| OpenError::file(path, error))?;
        if found.is_empty() { Err(OpenError::file(path, "it holds no certificate in PEM")) } else { Ok(found) }
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&tls.ca_file)? {
        roots.add(certificate).map_err(|error| OpenError::file(&tls.ca_file, error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| OpenError::Settings(format!("TLS could not be configured: {error}")))?
        .with_root_certificates(roots);
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(Identity { cert_file, key_file }) => {
            let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| OpenError::file(key_file, error))?;
            builder.with_client_auth_cert(certificates(cert_file)?, key).map_err(|error| OpenError::file(key_file, error))?
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Whether a host, without its port, is this machine.
pub(crate) fn is_local(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host.starts_with('/') || host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// A host and its port, which may be left out; IPv6 addresses are written in brackets.
pub(crate) fn host_and_port(text: &str, default: u16) -> Result<(String, u16), OpenError> {
    let bad = |why: &str| OpenError::Settings(format!("\"{text}\" is not an address: {why}"));
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().map_err(|_| bad("what follows the colon is not a port"))?)
        }
        Some(_) if !text.ends_with(']') => return Err(bad("an IPv6 address is written in brackets")),
        _ => (text, default),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '@') {
        Err(bad("the host is missing"))
    } else {
        Ok((host.into(), port))
    }
}

/// The tasks of one handle; they end with it. (Those of services start in `net`, which a store may not use.)
#[derive(Clone, Default)]
pub(crate) struct Tasks(TaskTracker);

impl Tasks {
    /// Starts one under a name for the log.
    pub(crate) fn start(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(self.0.spawn(work.instrument(tracing::debug_span!("store", task = name))))
    }

    /// As [`start`](Self::start), for one that ends by itself when the handle is closed or dropped.
    pub(crate) fn detach(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.start(name, work).detach());
    }

    /// Waits until all have ended.
    pub(crate) async fn end(&self) {
        self.0.close();
        self.0.wait().await;
    }
}

/// How long something is tried again, with a growing random pause in between.
pub(crate) struct Patience {
    until: Instant,
    attempt: u32,
}

impl Patience {
    pub(crate) fn new(length: Duration) -> Self {
        Self { until: Instant::now() + length, attempt: 0 }
    }

    /// As [`again`](Self::again), after at most two milliseconds: for who lost a race, not a server.
    pub(crate) async fn soon(&mut self, closed: &CancellationToken) -> bool {
        if Instant::now() >= self.until || closed.is_cancelled() {
            return false;
        }
        let pause = Duration::from_micros(rand::rng().random_range(0..2000));
        tokio::time::sleep(pause).await;
        true
    }

    /// Waits a little; false when the time is up or the store was closed.
    pub(crate) async fn again(&mut self, closed: &CancellationToken) -> bool {
        if Instant::now() >= self.until || closed.is_cancelled() {
            return false;
        }
        let pause = pause(self.attempt).min(self.until.saturating_duration_since(Instant::now()));
        self.attempt += 1;
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            () = closed.cancelled() => false,
        }
    }
}

/// Random, so that clients which lost a server together do not come back together; at most half a second.
pub(crate) fn pause(attempt: u32) -> Duration {
    let most = 500.min(10_u64 << attempt.min(6));
    Duration::from_millis(rand::rng().random_range(1..=most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_may_have_a_port() {
        let check = |text: &str, expected: Option<(&str, u16)>| {
            let found = host_and_port(text, 9).ok();
            assert_eq!(found.as_ref().map(|(host, port)| (host.as_str(), *port)), expected, "{text}");
        };
        check("db", Some(("db", 9)));
        check("db:1", Some(("db", 1)));
        check("[::1]", Some(("::1", 9)));
        check("[::1]:7", Some(("::1", 7)));
        check("::1", None);
        check("db:x", None);
        check("user:secret@db:1", None);
        check(":1", None);
    }

    #[test]
    fn only_loopback_and_sockets_are_this_machine() {
        for local in ["localhost", "127.0.0.1", "::1", "[::1]", "/run/postgresql"] {
            assert!(is_local(local), "{local}");
        }
        for remote in ["db", "10.0.0.1", "localhost.example.com", "0.0.0.0"] {
            assert!(!is_local(remote), "{remote}");
        }
    }

    #[test]
    fn a_password_is_a_files_first_line_and_faults_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "s3cret\nrest\n").unwrap();
        assert_eq!(password(&path).unwrap().expose(), "s3cret");
        std::fs::write(&path, "\n").unwrap();
        for error in [password(&path).unwrap_err(), password(&dir.path().join("none")).unwrap_err()] {
            assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
        }
        let tls = |ca_file: PathBuf| client_config(&Tls { ca_file, identity: None }, &[]).unwrap_err();
        assert!(tls(path.clone()).to_string().contains("no certificate"), "{}", tls(path));
    }
}
