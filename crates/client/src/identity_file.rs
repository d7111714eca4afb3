//! One file that holds everything a program needs to act as a user: `tctl auth sign --out`, `tsh login --out`, `tsh -i`.
//!
//! Text, in this order: the private key (`PRIVATE KEY`, PKCS #8, Ed25519), the SSH certificate as one line, the X.509
//! certificate (leaf first), then the cluster's authorities: one `@cert-authority` line for each SSH host key, and the TLS
//! host authorities. Lines that begin with `#` are comments. Everything before the first `@cert-authority` line is the
//! user's, everything from there on is what the user trusts. Mode 0600 from its creation.

use crate::{
    credentials::{CredentialsError, UserCredentials},
    keys::{KeyError, KeyPair, pem},
    trust::ClusterTrust,
};
use net::tls::{TlsError, identity::certificates_from_pem, write_private};
use russh::keys::PublicKey;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use types::{ClusterName, Secret};
use zeroize::Zeroizing;

/// The most bytes of the file.
const MAX: u64 = 1 << 20;

/// Why a file is not an identity file, or was not written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFileError {
    #[error("the identity file {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the identity file has no {0}")]
    Missing(&'static str),
    #[error("the identity file's key: {0}")]
    Key(#[from] KeyError),
    #[error("the identity file: {0}")]
    Tls(#[from] TlsError),
    #[error("the identity file: {0}")]
    Credentials(#[from] CredentialsError),
    #[error("the identity file: line {line} is not an authority's key")]
    Authority { line: usize },
}

/// The file's text.
pub fn to_text(credentials: &UserCredentials) -> Result<Secret, IdentityFileError> {
    let cluster = credentials.cluster();
    let mut text = Zeroizing::new(String::with_capacity(8192));
    text.push_str(&format!("# Lockgate identity: {} in {cluster}, until {}\n", credentials.user(), credentials.expires));
    text.push_str(credentials.key.pkcs8_pem().expose());
    text.push_str(credentials.ssh_line());
    text.push('\n');
    text.push_str(credentials.tls_pem().trim_end());
    text.push('\n');
    for key in &credentials.trust.host_ssh {
        text.push_str(&authority_line(&[cluster.as_str()], cluster, key));
    }
    for authority in &credentials.trust.host_tls {
        text.push_str(&pem("CERTIFICATE", authority));
    }
    Ok(Secret::new(text.as_str()))
}

/// Writes the file, mode 0600, in one step.
pub fn save(path: &Path, credentials: &UserCredentials) -> Result<(), IdentityFileError> {
    Ok(write_private(path, to_text(credentials)?.expose().as_bytes())?)
}

/// Reads a file.
pub fn load(path: &Path) -> Result<UserCredentials, IdentityFileError> {
    let file = |source| IdentityFileError::File { path: path.to_owned(), source };
    if fs::metadata(path).map_err(file)?.len() > MAX {
        return Err(file(io::Error::new(io::ErrorKind::InvalidData, "too large for an identity file")));
    }
    from_text(&fs::read_to_string(path).map(Zeroizing::new).map_err(file)?)
}

/// Reads a file's text.
pub fn from_text(text: &str) -> Result<UserCredentials, IdentityFileError> {
    const MARK: &str = "@cert-authority ";
    let at = if text.starts_with(MARK) { Some(0) } else { text.find(&format!("\n{MARK}")).map(|at| at.saturating_add(1)) };
    let (own, trusted) = text.split_at_checked(at.unwrap_or(text.len())).ok_or(IdentityFileError::Missing("authorities"))?;
    let key = KeyPair::from_pkcs8_pem(own)?;
    let ssh = own.lines().find(|line| line.contains("-cert-v01@openssh.com ")).ok_or(IdentityFileError::Missing("SSH certificate"))?;
    let tls_pem = certificate_blocks(own);
    if tls_pem.is_empty() {
        return Err(IdentityFileError::Missing("X.509 certificate"));
    }
    let mut trust = ClusterTrust::empty(cluster_of(&key, &tls_pem)?);
    for (number, line) in trusted.lines().enumerate().filter(|(_, line)| line.starts_with(MARK)) {
        let parsed = parse_authority_line(line).ok_or(IdentityFileError::Authority { line: number.saturating_add(1) })?;
        trust.host_ssh.extend(parsed.usable);
    }
    trust.host_tls = certificates_from_pem(trusted.as_bytes())?;
    Ok(UserCredentials::new(key, ssh, &tls_pem, trust)?)
}

fn cluster_of(key: &KeyPair, tls_pem: &str) -> Result<ClusterName, IdentityFileError> {
    let tls = key.tls_identity(tls_pem)?;
    let leaf = tls.chain().first().ok_or(IdentityFileError::Missing("X.509 certificate"))?;
    Ok(wire::identity::from_x509_der(leaf).map_err(CredentialsError::from)?.cluster().clone())
}

/// The `CERTIFICATE` blocks of a text, as text.
fn certificate_blocks(text: &str) -> String {
    let (mut inside, mut out) = (false, String::new());
    for line in text.lines() {
        inside |= line.starts_with("-----BEGIN CERTIFICATE-----");
        if inside {
            out.push_str(line);
            out.push('\n');
        }
        inside &= !line.starts_with("-----END CERTIFICATE-----");
    }
    out
}

/// `@cert-authority demo,*.demo ssh-ed25519 AAAA… type=host`: what OpenSSH reads in `known_hosts` (sshd(8)).
pub(crate) fn authority_line(names: &[&str], cluster: &ClusterName, key: &PublicKey) -> String {
    let key = PublicKey::from(key.key_data().clone()).to_openssh().unwrap_or_default();
    format!("@cert-authority {},*.{cluster} {key} type=host\n", names.join(","))
}

/// A `@cert-authority` line.
pub(crate) struct AuthorityLine<'a> {
    pub(crate) names: Vec<&'a str>,
    /// Absent when the key is of an algorithm that we do not use.
    pub(crate) usable: Option<PublicKey>,
}

/// Reads one; `None` when it is not one.
pub(crate) fn parse_authority_line(line: &str) -> Option<AuthorityLine<'_>> {
    let mut words = line.split_ascii_whitespace();
    if words.next()? != "@cert-authority" {
        return None;
    }
    let names = words.next()?.split(',').collect();
    let key = format!("{} {}", words.next()?, words.next()?);
    Some(AuthorityLine { names, usable: crate::trust::plain_key(&key) })
}
