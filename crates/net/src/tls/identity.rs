//! A process's own key and certificate for TLS, in memory and in files.
//!
//! A [`TlsIdentity`] that exists has a key that fits its certificate. Private keys are wiped from memory when dropped, and
//! their files are readable by their owner alone from the moment they exist.

use super::{CertificateDer, CertifiedKey, TlsError, provider};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path, sync::Arc};
use zeroize::Zeroizing;

/// Kinds of TLS keys that Lockgate makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyAlgorithm {
    Ed25519,
    /// For what browsers must be able to read.
    EcdsaP256,
}

/// A fresh key pair, to be signed by an authority.
#[derive(Debug)]
pub struct KeyPair(rcgen::KeyPair);

impl KeyPair {
    pub fn generate(algorithm: KeyAlgorithm) -> Result<Self, TlsError> {
        let algorithm = match algorithm {
            KeyAlgorithm::Ed25519 => &rcgen::PKCS_ED25519,
            KeyAlgorithm::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        };
        rcgen::KeyPair::generate_for(algorithm).map(Self).map_err(|error| TlsError::Generate(error.to_string()))
    }
    /// A certificate that this key signs for itself: for clients that cannot check the cluster's own, and are asked by their
    /// browser whether they trust it.
    pub fn self_signed(&self, names: Vec<String>) -> Result<TlsIdentity, TlsError> {
        let generate = |error: rcgen::Error| TlsError::Generate(error.to_string());
        let mut params = rcgen::CertificateParams::new(names).map_err(generate)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "Lockgate Proxy");
        self.with_chain(vec![params.self_signed(&self.0).map_err(generate)?.der().clone()])
    }
    /// SubjectPublicKeyInfo in DER: what is sent to be signed.
    pub fn public_der(&self) -> Vec<u8> {
        rcgen::PublicKeyData::subject_public_key_info(&self.0)
    }
    /// The private key, PKCS #8 in PEM.
    pub fn private_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }
    /// Joins the key with the certificate chain that was issued for it, leaf first.
    pub fn with_chain(&self, chain: Vec<CertificateDer<'static>>) -> Result<TlsIdentity, TlsError> {
        TlsIdentity::from_der(chain, self.0.serialized_der())
    }
}

/// A certificate chain, leaf first, and its private key.
#[derive(Clone)]
pub struct TlsIdentity {
    certified: Arc<CertifiedKey>,
    key: Arc<Zeroizing<Vec<u8>>>,
}

impl TlsIdentity {
    /// From certificates and a PKCS #8 key, both DER.
    pub fn from_der(chain: Vec<CertificateDer<'static>>, pkcs8: &[u8]) -> Result<Self, TlsError> {
        let key = Arc::new(Zeroizing::new(pkcs8.to_vec()));
        Self::new(chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.to_vec())), key)
    }

    fn new(chain: Vec<CertificateDer<'static>>, der: PrivateKeyDer<'static>, key: Arc<Zeroizing<Vec<u8>>>) -> Result<Self, TlsError> {
        if chain.is_empty() {
            return Err(TlsError::Pem("there is no certificate".into()));
        }
        let certified = CertifiedKey::from_der(chain, der, &provider()).map_err(TlsError::KeyMismatch)?;
        Ok(Self { certified: Arc::new(certified), key })
    }

    /// From PEM: one or more certificates, leaf first, and one private key (PKCS #8, SEC 1 or PKCS #1).
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = certificates_from_pem(chain)?;
        let der = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Pem(format!("the private key cannot be read: {error}")))?;
        let bytes = Arc::new(Zeroizing::new(der.secret_der().to_vec()));
        Self::new(chain, der, bytes)
    }

    /// Reads both files.
    pub fn load(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |path: &Path| fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source });
        let key_pem = Zeroizing::new(read(key)?);
        Self::from_pem(&read(chain)?, &key_pem).map_err(|error| match error {
            TlsError::Pem(why) => TlsError::Pem(format!("{} and {}: {why}", chain.display(), key.display())),
            other => other,
        })
    }

    /// Certificates, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }
    /// The private key in DER, as it was given.
    pub fn key_der(&self) -> &[u8] {
        &self.key
    }
    /// For rustls' resolvers.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TlsIdentity({} certificates)", self.chain().len())
    }
}

/// Reads one or more certificates from PEM.
pub fn certificates_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Pem(format!("a certificate cannot be read: {error}")))?;
    if chain.is_empty() { Err(TlsError::Pem("there is no certificate".into())) } else { Ok(chain) }
}

/// Replaces a file in one step; readable by its owner alone from the moment it exists, on disk before this returns.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), TlsError> {
    let write = || {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.new", uuid::Uuid::new_v4().simple()));
        let fresh = Path::new(&name);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(fresh)?;
        let done = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| fs::rename(fresh, path));
        if done.is_err() {
            let _ = fs::remove_file(fresh);
        }
        done?;
        // The rename itself must survive a power cut too.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(parent)?.sync_all()
    };
    write().map_err(|source| TlsError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn private_files_are_their_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        fs::write(&path, "old and public").unwrap();
        write_private(&path, b"secret").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"secret");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_does_not_fit_its_certificate_is_refused() {
        let one = KeyPair::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let two = KeyPair::generate(KeyAlgorithm::Ed25519).unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["a.example".into()]).unwrap().self_signed(&one.0).unwrap();
        let fits = TlsIdentity::from_pem(certificate.pem().as_bytes(), one.private_pem().as_bytes()).unwrap();
        assert_eq!(fits.chain().len(), 1);
        assert!(!format!("{fits:?}").contains(&format!("{:?}", fits.key_der())));
        assert!(matches!(two.with_chain(vec![certificate.der().clone()]), Err(TlsError::KeyMismatch(_))));
        assert!(matches!(TlsIdentity::from_pem(b"", one.private_pem().as_bytes()), Err(TlsError::Pem(_))));
        assert!(matches!(TlsIdentity::from_pem(certificate.pem().as_bytes(), b"x"), Err(TlsError::Pem(_))));
    }
}
