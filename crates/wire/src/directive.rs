//! The bytes of a directive that the cluster signs, and the check of them (design 3.8; the nouns are `types::update`'s).
//!
//! Signed is the label, a zero byte, and the directive's JSON as it is sent, so nothing is written anew before it is checked. The key
//! is the Ed25519 key of the cluster's *host* authority, not one of its own: every member has it since it joined, renews it with its
//! certificate and follows its rotation, and who holds it can name hosts anyway; a second key would be one more to keep, and to
//! rotate, and to hand out. The label makes a signature that is good for nothing else (certificates begin with a length, backups
//! with their own label). Callers: `auth` signs, `cli` and `proxy`'s guests check.

use crate::rescue::FileName;
use signature::Verifier as _;
use ssh_key::{Algorithm, PublicKey, Signature};
use types::{
    Code, Public,
    update::{Directive, SignedDirective},
};

/// What every signed directive begins with.
pub const LABEL: &[u8] = b"lockgate update directive v1";
/// The most bytes of a directive: a document has no more.
pub const MAX_DIRECTIVE: usize = types::document::MAX_DOCUMENT;
/// The file by which a Proxy hands the directive in force to hosts (`rescue::Metadata`); no mirror's file has its name.
pub const FILE: &str = "directive.json";

/// That name.
pub fn file() -> Option<FileName> {
    FILE.parse().ok()
}

/// Why a directive is not the cluster's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDirective {
    #[error("the directive has {0} bytes; the limit is {MAX_DIRECTIVE}")]
    TooLarge(usize),
    #[error("the directive is not signed by this cluster")]
    Signature,
    #[error("the directive cannot be read: {0}")]
    Malformed(String),
}

impl BadDirective {
    pub fn public(&self) -> Public {
        Public::new(Code::UpdateDirective, self.to_string()).hint("set the target again: tctl update target")
    }
}

/// The bytes over which the signature goes.
pub fn signed_bytes(directive: &str) -> Vec<u8> {
    [LABEL, &[0], directive.as_bytes()].concat()
}

/// As it is sent: `sign` makes 64 bytes over [`signed_bytes`].
pub fn seal<E>(directive: &Directive, sign: impl FnOnce(&[u8]) -> Result<[u8; 64], E>) -> Result<SignedDirective, E> {
    // Types that serialise without failing.
    let text = serde_json::to_string(directive).unwrap_or_default();
    let signature = data_encoding::BASE64.encode(&sign(&signed_bytes(&text))?);
    Ok(SignedDirective { directive: text, signature })
}

/// Reads one that any of these keys signed; keys of other algorithms count for nothing.
pub fn open(signed: &SignedDirective, keys: &[PublicKey]) -> Result<Directive, BadDirective> {
    if signed.directive.len() > MAX_DIRECTIVE {
        return Err(BadDirective::TooLarge(signed.directive.len()));
    }
    let bytes = data_encoding::BASE64.decode(signed.signature.as_bytes()).map_err(|_| BadDirective::Signature)?;
    let signature = Signature::new(Algorithm::Ed25519, bytes).map_err(|_| BadDirective::Signature)?;
    let message = signed_bytes(&signed.directive);
    let ours = keys.iter().filter(|key| key.algorithm() == Algorithm::Ed25519);
    if !ours.map(PublicKey::key_data).any(|key| key.verify(&message, &signature).is_ok()) {
        return Err(BadDirective::Signature);
    }
    serde_json::from_str(&signed.directive).map_err(|error| BadDirective::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use signature::Signer as _;
    use ssh_key::{PrivateKey, private::Ed25519Keypair};
    use types::{ClusterName, Extra, Time, name::ClusterId};

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
    }

    fn directive() -> Directive {
        Directive {
            format: 1,
            cluster: ClusterName::new("acme").unwrap(),
            cluster_id: ClusterId::from_uuid(uuid::Uuid::nil()),
            generation: 7,
            issued: Time::EPOCH,
            expires: Time::EPOCH,
            targets: Vec::new(),
            extra: Extra::new(),
        }
    }

    fn sealed(by: &PrivateKey) -> SignedDirective {
        seal(&directive(), |message| by.try_sign(message).map(|signature| signature.as_bytes().try_into().unwrap())).unwrap()
    }

    #[test]
    fn a_directive_is_believed_when_any_key_of_the_cluster_signed_it() {
        let keys = [key(1).public_key().clone(), key(2).public_key().clone()];
        assert_eq!(open(&sealed(&key(1)), &keys), Ok(directive()));
        assert_eq!(open(&sealed(&key(2)), &keys), Ok(directive()), "a rotation has two keys for a while");
        assert_eq!(open(&sealed(&key(3)), &keys), Err(BadDirective::Signature));
        assert_eq!(open(&sealed(&key(1)), &[]), Err(BadDirective::Signature));
    }

    #[test]
    fn a_directive_that_was_changed_by_one_byte_is_not_believed() {
        let (keys, good) = ([key(1).public_key().clone()], sealed(&key(1)));
        for place in 0..good.directive.len() {
            let mut bytes = good.directive.clone().into_bytes();
            bytes[place] ^= 1;
            let Ok(directive) = String::from_utf8(bytes) else { continue };
            assert_eq!(open(&SignedDirective { directive, ..good.clone() }, &keys), Err(BadDirective::Signature), "byte {place}");
        }
        for signature in ["", "AAAA", "no base64!"] {
            assert_eq!(open(&SignedDirective { signature: signature.into(), ..good.clone() }, &keys), Err(BadDirective::Signature));
        }
        // The same key's signature over the bare text is not one over a directive.
        let bare = data_encoding::BASE64.encode(key(1).try_sign(good.directive.as_bytes()).unwrap().as_bytes());
        assert_eq!(open(&SignedDirective { signature: bare, ..good }, &keys), Err(BadDirective::Signature));
    }
}
