//! Which certificate the Proxy shows, and whom it asks for one.
//!
//! Members and `tsh` know the Proxy by its host certificate. So does the web unless certificates were given; browsers, which
//! cannot check Ed25519, get a self-signed P-256 one in its place. Where certificates were given a browser gets the given one that fits the name it asked for, and whoever asks for a name of `wire::sni` still gets the host's.
//! Given files are looked at on every handshake and read again when they changed: renewals need no restart. A broken new file
//! leaves the old certificate in use.

use client::host::HostCredentials;
use net::{
    clock::SharedClock,
    swap::Swap,
    tls::{
        Asked, Authorities, Certificates, CertifiedKey, ClientAuth, ServerConfig, TlsError, TlsIdentity,
        identity::{KeyAlgorithm, KeyPair},
        server_config,
    },
};
use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;
use wire::alpn;

/// Files of one web certificate, PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeypairFiles {
    /// The chain, leaf first.
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// What tells one version of a file from the next: replaced in place, or by renaming.
type Stamp = [Option<(u64, i64, i64, u64)>; 2];

struct Keypair {
    files: KeypairFiles,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    stamp: Stamp,
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
}

/// The certificates of the web.
pub(crate) struct WebCertificates {
    given: Vec<Keypair>,
    /// For browsers, when none was given: they cannot check the Ed25519 key of our host certificate.
    browser: TlsIdentity,
    credentials: watch::Receiver<Arc<HostCredentials>>,
}

impl WebCertificates {
    pub(crate) fn new(files: Vec<KeypairFiles>, credentials: watch::Receiver<Arc<HostCredentials>>) -> Result<Self, TlsError> {
        let load = |files: KeypairFiles| {
            let loaded = Mutex::new(load(&files)?);
            Ok(Keypair { files, loaded })
        };
        let names = credentials.borrow().tls.chain().first().map(|leaf| names(leaf)).unwrap_or_default();
        let browser = KeyPair::generate(KeyAlgorithm::EcdsaP256)?.self_signed(names)?;
        Ok(Self { given: files.into_iter().map(load).collect::<Result<_, TlsError>>()?, browser, credentials })
    }

    /// Whether certificates were given.
    pub(crate) fn given(&self) -> bool {
        !self.given.is_empty()
    }

    fn choose(&self, asked: &Asked<'_>) -> Arc<CertifiedKey> {
        let ours = asked.server_name.is_some_and(|name| name.ends_with(".lockgate.internal"));
        let mut first = None;
        for keypair in self.given.iter().filter(|_| !ours) {
            let (certified, names) = keypair.current();
            if asked.server_name.is_some_and(|name| names.iter().any(|pattern| fits(pattern, name))) {
                return certified;
            }
            first.get_or_insert(certified);
        }
        match first {
            Some(certified) => certified,
            None if asked.ed25519 => self.credentials.borrow().tls.certified(),
            None => self.browser.certified(),
        }
    }
}

impl Keypair {
    fn current(&self) -> (Arc<CertifiedKey>, Vec<String>) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.files);
        if loaded.stamp != now {
            match load(&self.files) {
                Ok(fresh) => {
                    tracing::info!(file = %self.files.cert_file.display(), "web certificate read again");
                    *loaded = fresh;
                }
                Err(error) => {
                    tracing::warn!(%error, "the changed web certificate cannot be used; keeping the one before");
                    loaded.stamp = now;
                }
            }
        }
        (loaded.certified.clone(), loaded.names.clone())
    }
}

fn load(files: &KeypairFiles) -> Result<Loaded, TlsError> {
    // Taken before reading: a file that changes meanwhile is read again next time.
    let stamp = stamp(files);
    let identity = TlsIdentity::load(&files.cert_file, &files.key_file)?;
    let names = identity.chain().first().map(|leaf| names(leaf)).unwrap_or_default();
    Ok(Loaded { stamp, certified: identity.certified(), names })
}

fn stamp(files: &KeypairFiles) -> Stamp {
    let one = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()));
    [one(&files.cert_file), one(&files.key_file)]
}

fn names(der: &[u8]) -> Vec<String> {
    use x509_parser::extensions::GeneralName;
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { return Vec::new() };
    let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = alternatives.value.general_names.iter();
    names.filter_map(|name| if let GeneralName::DNSName(name) = name { Some(name.to_ascii_lowercase()) } else { None }).collect()
}

/// RFC 6125: a wildcard stands for exactly the first label.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(domain)),
        None => name.eq_ignore_ascii_case(pattern),
    }
}

/// TLS for those who must show a certificate: users at the gateway, agents.
pub(crate) fn member_config(
    credentials: &watch::Receiver<Arc<HostCredentials>>,
    authorities: &Swap<Authorities>,
    clock: &SharedClock,
) -> Result<Arc<ServerConfig>, TlsError> {
    let credentials = credentials.clone();
    let certificates = Certificates::by(move |_| Some(credentials.borrow().tls.certified()));
    server_config(certificates, ClientAuth::Required, authorities, &[alpn::SSH, alpn::TUNNEL, alpn::TUNNEL_DATA, alpn::RESCUE], clock)
}

/// TLS for the web. No certificate is asked for: browsers would show a dialogue.
pub(crate) fn web_config(
    web: &Arc<WebCertificates>,
    authorities: &Swap<Authorities>,
    clock: &SharedClock,
) -> Result<Arc<ServerConfig>, TlsError> {
    let web = web.clone();
    let certificates = Certificates::by(move |asked| Some(web.choose(asked)));
    server_config(certificates, ClientAuth::None, authorities, &[alpn::HTTP], clock)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        let check = |pattern: &str, name: &str, want: bool| assert_eq!(fits(pattern, name), want, "{pattern} {name}");
        check("proxy.example.com", "Proxy.Example.com", true);
        check("*.example.com", "a.example.com", true);
        check("*.example.com", "a.b.example.com", false);
        check("*.example.com", "example.com", false);
        check("*.example.com", ".example.com", false);
    }
}
