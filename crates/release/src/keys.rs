//! Keys of those who vouch for releases: Ed25519, the private half as PKCS #8 in a file of mode 0600, the public half in one line.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};
use tough::{
    schema::{
        Signature,
        decoded::{Decoded, Hex},
        key::{Ed25519Key, Ed25519Scheme, Key},
    },
    sign::Sign as _,
};
use types::{Code, Public};

/// What a public key's line begins with.
const LABEL: &str = "lockgate-release-ed25519";
const PEM: &str = "PRIVATE KEY";
/// Bits by which somebody else than its owner could read the file.
const OTHERS: u32 = 0o077;

/// Why there is no usable key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the key file {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the key file {0} can be read by others than its owner")]
    Open(PathBuf),
    #[error("the key file {0} is not a key as `lockgate release keygen` makes it")]
    Format(PathBuf),
    #[error("a key could not be made")]
    Generate,
}

impl KeyError {
    pub fn public(&self) -> Public {
        let public = Public::new(Code::Usage, self.to_string());
        match self {
            Self::Open(path) => public.hint(format!("chmod 600 {}, and think about who has read it", path.display())),
            Self::File { .. } | Self::Format(_) | Self::Generate => public,
        }
    }
}

/// The public half of a signer's key.
#[derive(Clone, PartialEq, Debug)]
pub struct Verifier(pub(crate) Key);

impl Verifier {
    pub(crate) fn id(&self) -> Option<Decoded<Hex>> {
        self.0.key_id().ok()
    }

    /// Its name in metadata, for people.
    pub fn name(&self) -> String {
        self.id().map(|id| short(&id)).unwrap_or_default()
    }

    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let text = fs::read_to_string(path).map_err(|source| KeyError::File { path: path.to_owned(), source })?;
        let bytes = text.trim().strip_prefix(LABEL).map(str::trim).and_then(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).ok());
        match bytes {
            Some(bytes) if bytes.len() == 32 => {
                let keyval = Ed25519Key { public: bytes.into(), _extra: HashMap::new() };
                Ok(Self(Key::Ed25519 { keyval, scheme: Ed25519Scheme::Ed25519, _extra: HashMap::new() }))
            }
            _ => Err(KeyError::Format(path.to_owned())),
        }
    }
}

/// The first characters of a key's id.
pub(crate) fn short(id: &Decoded<Hex>) -> String {
    data_encoding::HEXLOWER.encode(id).chars().take(12).collect()
}

/// A key that signs.
pub struct Signer(Ed25519KeyPair);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.verifier().name())
    }
}

impl Signer {
    /// Makes a key: the private half at the path, which must not be there yet, the public half beside it as `.pub`.
    pub fn generate(path: &Path) -> Result<(Self, PathBuf), KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Generate)?;
        let pkcs8 = pair.to_pkcs8().map_err(|_| KeyError::Generate)?;
        let text = pem::encode(&pem::Pem::new(PEM, pkcs8.as_ref()));
        let public = PathBuf::from(format!("{}.pub", path.display()));
        let line = format!("{LABEL} {}\n", data_encoding::HEXLOWER.encode(pair.public_key().as_ref()));
        for (path, text, mode) in [(path, text.as_bytes(), 0o600), (public.as_path(), line.as_bytes(), 0o644)] {
            let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
            let written = made.and_then(|mut file| file.write_all(text).and_then(|()| file.sync_all()));
            written.map_err(|source| KeyError::File { path: path.to_owned(), source })?;
        }
        Ok((Self(pair), public))
    }

    /// Reads a private half; one that others could read too is not used.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File { path: path.to_owned(), source };
        if fs::metadata(path).map_err(failed)?.mode() & OTHERS != 0 {
            return Err(KeyError::Open(path.to_owned()));
        }
        let format = || KeyError::Format(path.to_owned());
        let text = fs::read(path).map_err(failed)?;
        let parsed = pem::parse(&text).ok().filter(|pem| pem.tag() == PEM).ok_or_else(format)?;
        Ed25519KeyPair::from_pkcs8(parsed.contents()).map(Self).map_err(|_| format())
    }

    pub fn verifier(&self) -> Verifier {
        Verifier(self.0.tuf_key())
    }

    /// A signature as metadata has it.
    pub(crate) async fn sign(&self, message: &[u8]) -> Option<Signature> {
        let keyid = self.verifier().id()?;
        let made = tough::sign::Sign::sign(&self.0, message, &SystemRandom::new()).await.ok()?;
        Some(Signature { keyid, sig: made.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_its_owners_alone_and_never_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        let (made, public) = Signer::generate(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Signer::load(&path).unwrap().verifier(), made.verifier());
        assert_eq!(Verifier::load(&public).unwrap(), made.verifier());
        assert!(matches!(Signer::generate(&path), Err(KeyError::File { .. })));
        assert_eq!(Signer::load(&path).unwrap().verifier(), made.verifier());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Signer::load(&path), Err(KeyError::Open(_))));
        assert!(matches!(Verifier::load(&path), Err(KeyError::Format(_))));
    }
}
