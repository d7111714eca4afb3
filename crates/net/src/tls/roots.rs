//! The public certificate authorities that the operating system trusts: the bundle file that the distributions keep.
//!
//! `SSL_CERT_FILE` names another one, as with OpenSSL and curl.

use super::{CertificateDer, TlsError};
use rustls::{RootCertStore, pki_types::pem::PemObject};
use std::path::PathBuf;

/// Debian and Arch; Fedora; openSUSE; Alpine and macOS.
const BUNDLES: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"];

/// The system's authorities and `extra`. Certificates in the bundle that cannot be used are skipped, as everywhere.
pub(super) fn system_and(extra: Vec<CertificateDer<'static>>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let mut candidates = named.into_iter().chain(BUNDLES.iter().map(PathBuf::from));
    if let Some(bundle) = candidates.find_map(|path| std::fs::read(path).ok()) {
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bundle).flatten());
    }
    for certificate in extra {
        roots.add(certificate).map_err(|error| TlsError::Authority(error.to_string()))?;
    }
    if roots.is_empty() { Err(TlsError::NoSystemRoots) } else { Ok(roots) }
}
