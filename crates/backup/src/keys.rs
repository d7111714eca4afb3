//! Keys that open a backup: X25519 pairs, written as `age` writes them (`age1…`, `AGE-SECRET-KEY-1…`), so that `age-keygen`
//! and what people already keep for it can be used. Only the texts are age's; the file is our own.
//!
//! A private key prints `***`. Wrapping a file's key for a recipient is in `crypt`.

use crate::bech32;
use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use std::fmt;
use types::Secret;
use zeroize::Zeroizing;

/// Fills the slice with random bytes, good enough for keys: `&mut |bytes| rng.fill_bytes(bytes)`.
pub type Entropy<'a> = &'a mut dyn FnMut(&mut [u8]);

const PUBLIC_PREFIX: &str = "age";
const PRIVATE_PREFIX: &str = "age-secret-key-";
/// `age1` and twelve letters: sixty bits, enough to tell keys apart by eye and by accident.
const SHORT_ID: usize = 16;

/// Why a text is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAgeKey {
    #[error("not an age recipient: it looks like age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p")]
    Recipient,
    #[error("this is a private key where a recipient (age1…) belongs; keep it out of configuration and shell history")]
    PrivateInstead,
    #[error("no private key of age in it: a line that begins with AGE-SECRET-KEY-1")]
    Private,
    #[error("the recipient's key is one that encrypts for everybody")]
    Degenerate,
}

/// Whom a backup is encrypted to: the public half of a [`PrivateKey`].
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient([u8; 32]);

impl Recipient {
    /// What `inspect` shows and a wrong key is told by: the first sixteen characters.
    pub fn short_id(&self) -> String {
        self.to_string().chars().take(SHORT_ID).collect()
    }
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bech32::encode(PUBLIC_PREFIX, &self.0))
    }
}
impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
impl std::str::FromStr for Recipient {
    type Err = BadAgeKey;
    fn from_str(text: &str) -> Result<Self, BadAgeKey> {
        let text = text.trim();
        if text.get(..PRIVATE_PREFIX.len()).is_some_and(|head| head.eq_ignore_ascii_case(PRIVATE_PREFIX)) {
            return Err(BadAgeKey::PrivateInstead);
        }
        let bytes = bech32::decode(PUBLIC_PREFIX, text).ok_or(BadAgeKey::Recipient)?;
        let recipient = Self(bytes.try_into().map_err(|_| BadAgeKey::Recipient)?);
        // A point of small order gives the same shared secret to whoever knows it: refuse it here, not at the next backup.
        let probe = PrivateKey(Zeroizing::new([0x40; 32]));
        probe.agree(&recipient.0, |_| ()).map(|()| recipient).ok_or(BadAgeKey::Degenerate)
    }
}

/// Opens what is encrypted to its [`Recipient`].
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<[u8; 32]>);

impl PrivateKey {
    /// A new key out of the caller's random numbers.
    pub fn generate(entropy: Entropy<'_>) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        entropy(bytes.as_mut_slice());
        Self(bytes)
    }

    /// All keys of a file as `age-keygen` writes it: comments, empty lines and `AGE-SECRET-KEY-1…`, one per line.
    pub fn read_all(text: &Secret) -> Result<Vec<Self>, BadAgeKey> {
        let lines = text.expose().lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.map(Self::read_one).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(BadAgeKey::Private) } else { Ok(keys) }
    }

    fn read_one(line: &str) -> Result<Self, BadAgeKey> {
        let bytes = Zeroizing::new(bech32::decode(PRIVATE_PREFIX, line).ok_or(BadAgeKey::Private)?);
        bytes.as_slice().try_into().map(|bytes| Self(Zeroizing::new(bytes))).map_err(|_| BadAgeKey::Private)
    }

    /// The text to keep somewhere safe.
    pub fn to_text(&self) -> Secret {
        Secret::new(bech32::encode(PRIVATE_PREFIX, self.0.as_slice()).to_ascii_uppercase())
    }

    /// The public half, to give away. `None` only if the library of cryptography fails.
    pub fn recipient(&self) -> Option<Recipient> {
        let public = self.key()?.compute_public_key().ok()?;
        public.as_ref().try_into().ok().map(Recipient)
    }

    /// What both sides of an exchange know; `None` for a peer whose point is of small order.
    pub(crate) fn agree<T>(&self, peer: &[u8; 32], use_it: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let peer = UnparsedPublicKey::new(&X25519, peer);
        agreement::agree(&self.key()?, peer, (), |shared| Ok(use_it(shared))).ok()
    }

    fn key(&self) -> Option<agreement::PrivateKey> {
        agreement::PrivateKey::from_private_key(&X25519, self.0.as_slice()).ok()
    }
}
impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the age specification: 32 bytes 0x42, and their public key.
    const PRIVATE: &str = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
    const PUBLIC: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

    #[test]
    fn the_example_of_the_age_specification_reads_and_prints() {
        let keys = PrivateKey::read_all(&Secret::new(format!("# created: 2026\n# public key: {PUBLIC}\n\n{PRIVATE}\n"))).unwrap();
        let [key] = keys.as_slice() else { panic!("{keys:?}") };
        assert_eq!(key.0.as_slice(), [0x42; 32]);
        assert_eq!(key.recipient().unwrap().to_string(), PUBLIC);
        assert_eq!(key.to_text().expose(), PRIVATE);
        assert_eq!(PUBLIC.parse::<Recipient>().unwrap().short_id(), "age1zvkyg2lqzraa");
        assert_eq!(format!("{key:?}"), "***");
    }

    #[test]
    fn texts_that_are_no_keys_say_what_was_expected() {
        let recipient = |text: &str| text.parse::<Recipient>().unwrap_err();
        assert_eq!(recipient("age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwk"), BadAgeKey::Recipient);
        assert_eq!(recipient(""), BadAgeKey::Recipient);
        assert_eq!(recipient(PRIVATE), BadAgeKey::PrivateInstead);
        assert_eq!(recipient(&bech32::encode("age", &[7; 31])), BadAgeKey::Recipient);
        let private = |text: &str| PrivateKey::read_all(&Secret::new(text)).unwrap_err();
        assert_eq!(private(PUBLIC), BadAgeKey::Private);
        assert_eq!(private("# nothing here\n"), BadAgeKey::Private);
        assert_eq!(private(&format!("{PRIVATE}\nrubbish")), BadAgeKey::Private);
    }

    #[test]
    fn a_recipient_whose_shared_secret_everybody_knows_is_refused() {
        for point in [[0; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }] {
            assert_eq!(bech32::encode("age", &point).parse::<Recipient>().unwrap_err(), BadAgeKey::Degenerate);
        }
    }
}
