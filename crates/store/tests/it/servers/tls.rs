//! Certificates for the servers and for a client, of one authority that is made for the test process.

use super::{postgres::USER, scratch};
use std::path::PathBuf;
use std::sync::OnceLock;

/// Files for TLS, one authority for all.
pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    pub(crate) server: (PathBuf, PathBuf),
    /// Of the user [`USER`].
    pub(crate) client: (PathBuf, PathBuf),
    /// An authority that signed nothing.
    pub(crate) other_ca: PathBuf,
}

pub(crate) fn certificates() -> &'static Certificates {
    static FILES: OnceLock<Certificates> = OnceLock::new();
    FILES.get_or_init(|| {
        let dir = scratch("tls-");
        let authority = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let path = dir.join(format!("{name}.pem"));
            std::fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
            (path, rcgen::Issuer::new(params, key))
        };
        let (ca, issuer) = authority("ca");
        let signed = |name: &str, names: &[&str]| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, USER);
            let paths = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
            std::fs::write(&paths.0, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
            std::fs::write(&paths.1, key.serialize_pem()).unwrap();
            paths
        };
        Certificates {
            server: signed("server", &["localhost", "127.0.0.1"]),
            client: signed("client", &[]),
            other_ca: authority("other").0,
            ca,
        }
    })
}
