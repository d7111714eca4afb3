//! One Ed25519 key pair per login or host, in the two forms it is needed in: PKCS #8 for TLS, OpenSSH's for SSH.
//!
//! The seed is made here, wiped from memory when dropped, and leaves the process only in files that are 0600 from their
//! creation ([`net::tls::write_private`]). It never leaves the machine: what is sent to be signed is
//! [`KeyPair::ssh_public`] and [`KeyPair::spki_der`]. Used by [`crate::host`], [`crate::profile`] and
//! [`crate::identity_file`].

use data_encoding::BASE64;
use net::tls::{TlsError, TlsIdentity, identity::certificates_from_pem};
use rand::{TryRng, rngs::SysRng};
use russh::keys::{PrivateKey, PublicKey, ssh_key};
use ssh_key::{
    LineEnding,
    private::{Ed25519Keypair, KeypairData},
};
use types::Secret;
use zeroize::{Zeroize, Zeroizing};

/// PKCS #8 between the version number and the seed: OID 1.3.101.112 and two OCTET STRING headers (RFC 8410, section 7).
const PKCS8_MIDDLE: [u8; 11] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// SubjectPublicKeyInfo up to the key (RFC 8410, section 4).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why there is no usable key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the operating system gave no random bytes: {0}")]
    Random(String),
    #[error("the private key is not an Ed25519 key in {0}")]
    Malformed(&'static str),
    #[error("the private key cannot be written in OpenSSH's format: {0}")]
    Encode(String),
}

/// An Ed25519 key pair.
#[derive(Clone)]
pub struct KeyPair {
    seed: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl KeyPair {
    /// A fresh key from the operating system's randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        SysRng.try_fill_bytes(&mut *seed).map_err(|error| KeyError::Random(error.to_string()))?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of a seed that was made elsewhere.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let public = Ed25519Keypair::from_seed(seed).public.0;
        Self { seed: Zeroizing::new(*seed), public }
    }

    /// Reads `-----BEGIN PRIVATE KEY-----` (PKCS #8, version 1 or 2).
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, KeyError> {
        let bad = || KeyError::Malformed("PKCS #8");
        let der = Zeroizing::new(pem_body(pem, "PRIVATE KEY").ok_or_else(bad)?);
        Self::from_pkcs8_der(&der)
    }

    /// Reads PKCS #8, version 1 or 2. The public key, if it is in there, is not believed but computed.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let bad = || KeyError::Malformed("PKCS #8");
        let rest = match der {
            [0x30, _, 0x02, 0x01, 0x00 | 0x01, rest @ ..] => rest.strip_prefix(&PKCS8_MIDDLE).ok_or_else(bad)?,
            _ => return Err(bad()),
        };
        rest.first_chunk::<32>().map(Self::from_seed).ok_or_else(bad)
    }

    /// Reads an unencrypted `-----BEGIN OPENSSH PRIVATE KEY-----`.
    pub fn from_openssh(pem: &str) -> Result<Self, KeyError> {
        let bad = || KeyError::Malformed("OpenSSH's format");
        let key = PrivateKey::from_openssh(pem).map_err(|_| bad())?;
        match key.key_data() {
            KeypairData::Ed25519(pair) => Ok(Self::from_seed(&Zeroizing::new(pair.private.to_bytes()))),
            _ => Err(bad()),
        }
    }

    /// PKCS #8, version 1.
    pub fn pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        let mut der = Zeroizing::new(Vec::with_capacity(48));
        der.extend([0x30, 0x2e, 0x02, 0x01, 0x00]);
        der.extend(PKCS8_MIDDLE);
        der.extend(*self.seed);
        der
    }

    /// PKCS #8 in PEM.
    pub fn pkcs8_pem(&self) -> Secret {
        Secret::new(pem("PRIVATE KEY", &self.pkcs8_der()))
    }

    /// The private key for russh.
    pub fn ssh_private(&self) -> Result<PrivateKey, KeyError> {
        PrivateKey::new(KeypairData::Ed25519(Ed25519Keypair::from_seed(&self.seed)), "")
            .map_err(|error| KeyError::Encode(error.to_string()))
    }

    /// `-----BEGIN OPENSSH PRIVATE KEY-----`, unencrypted.
    pub fn openssh_pem(&self) -> Result<Secret, KeyError> {
        let text = self.ssh_private()?.to_openssh(LineEnding::LF).map_err(|error| KeyError::Encode(error.to_string()))?;
        Ok(Secret::new(text.as_str()))
    }

    /// One line in OpenSSH's public key format.
    pub fn ssh_public(&self) -> Result<String, KeyError> {
        PublicKey::from(ssh_key::public::Ed25519PublicKey(self.public)).to_openssh().map_err(|error| KeyError::Encode(error.to_string()))
    }

    /// SubjectPublicKeyInfo in DER: what the Auth Service puts into the X.509 certificate.
    pub fn spki_der(&self) -> Vec<u8> {
        [&SPKI_HEAD[..], &self.public].concat()
    }

    /// Joins the key with the certificate chain that was issued for it, PEM, leaf first.
    pub fn tls_identity(&self, chain_pem: &str) -> Result<TlsIdentity, TlsError> {
        TlsIdentity::from_der(certificates_from_pem(chain_pem.as_bytes())?, &self.pkcs8_der())
    }
}

impl PartialEq for KeyPair {
    fn eq(&self, other: &Self) -> bool {
        // The public half says it all, and comparing it leaks nothing.
        self.public == other.public
    }
}
impl Eq for KeyPair {}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyPair(***)")
    }
}

/// Wraps DER in PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let mut base64 = BASE64.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    base64.zeroize();
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// The bytes of the first PEM block with that label.
fn pem_body(pem: &str, label: &str) -> Option<Vec<u8>> {
    let (_, rest) = pem.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let base64: Zeroizing<Vec<u8>> = Zeroizing::new(body.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect());
    BASE64.decode(&base64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_has_the_same_public_key_in_every_form() {
        // RFC 8032, section 7.1, test 1.
        let seed: [u8; 32] = data_encoding::HEXLOWER
            .decode(b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
            .unwrap()
            .try_into()
            .unwrap();
        let key = KeyPair::from_seed(&seed);
        assert_eq!(data_encoding::HEXLOWER.encode(&key.public), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        assert_eq!(key.ssh_private().unwrap().public_key().to_openssh().unwrap(), key.ssh_public().unwrap());
        let parsed = rcgen::KeyPair::try_from(key.pkcs8_der().as_slice()).unwrap();
        assert_eq!(rcgen::PublicKeyData::subject_public_key_info(&parsed), key.spki_der());
    }

    #[test]
    fn a_key_survives_each_of_its_formats() {
        let key = KeyPair::generate().unwrap();
        assert_eq!(KeyPair::from_pkcs8_pem(key.pkcs8_pem().expose()).unwrap(), key);
        assert_eq!(KeyPair::from_openssh(key.openssh_pem().unwrap().expose()).unwrap(), key);
        // Version 2, as other programs write it.
        let theirs = net::tls::identity::KeyPair::generate(net::tls::KeyAlgorithm::Ed25519).unwrap();
        assert_eq!(KeyPair::from_pkcs8_pem(&theirs.private_pem()).unwrap().spki_der(), theirs.public_der());
    }

    #[test]
    fn a_broken_key_is_an_error_and_a_good_one_never_shows_itself() {
        for bad in
            ["", "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\nMAAA\n-----END PRIVATE KEY-----"]
        {
            assert_eq!(KeyPair::from_pkcs8_pem(bad), Err(KeyError::Malformed("PKCS #8")));
            assert!(KeyPair::from_openssh(bad).is_err());
        }
        assert_eq!(format!("{:?}", KeyPair::from_seed(&[7; 32])), "KeyPair(***)");
    }
}
