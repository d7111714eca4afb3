//! Password hashes and one-time codes: Argon2id and RFC 6238, off the asynchronous threads and never too many at once.
//!
//! Parameters are the OWASP minimum (19 MiB, two passes, one lane). Every login computes exactly one hash: for unknown,
//! locked and password-less users over a dummy of the same cost (`rules::login::hash_for`), so that time tells nothing.

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher as _, PasswordVerifier as _},
};
use rand::Rng as _;
use std::sync::Arc;
use tokio::sync::Semaphore;
use types::{ClusterName, Secret, Time, UserName};
use zeroize::Zeroizing;

/// What one hash costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PasswordCost {
    /// KiB of memory.
    pub memory_kib: u32,
    pub passes: u32,
}

impl Default for PasswordCost {
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, passes: 2 }
    }
}

impl PasswordCost {
    /// As cheap as the algorithm allows; for tests.
    pub fn cheapest() -> Self {
        Self { memory_kib: 8, passes: 1 }
    }
}

/// Why a hash was not computed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HashError {
    #[error("password hashing failed: {0}")]
    Argon(String),
    #[error("password hashing was interrupted")]
    Interrupted,
}

/// Computes hashes, as many at once as there are processors.
#[derive(Clone)]
pub(crate) struct Hasher {
    argon: Argon2<'static>,
    dummy: Arc<str>,
    turns: Arc<Semaphore>,
}

impl Hasher {
    /// Computes the dummy hash: blocks for one hash's time.
    pub(crate) fn new(cost: PasswordCost) -> Result<Self, HashError> {
        let params = Params::new(cost.memory_kib, cost.passes, 1, None).map_err(|error| HashError::Argon(error.to_string()))?;
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let dummy = hash(&argon, random_text().as_bytes())?.into();
        let turns = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16);
        Ok(Self { argon, dummy, turns: Arc::new(Semaphore::new(turns)) })
    }

    /// The PHC string of a new password.
    pub(crate) async fn hash(&self, password: Secret) -> Result<String, HashError> {
        let argon = self.argon.clone();
        self.turn(move || hash(&argon, password.expose().as_bytes())).await?
    }

    /// Whether the password fits the hash; without one, a dummy is computed and the answer is no.
    pub(crate) async fn verify(&self, password: Secret, against: Option<Zeroizing<String>>) -> Result<bool, HashError> {
        let (argon, dummy) = (self.argon.clone(), self.dummy.clone());
        self.turn(move || {
            // A longer text never was accepted as a password; hashing it as it is would cost a stranger's choice of time.
            let text = if rules::password::hashable(&password) { password.expose() } else { "" };
            let fits = argon.verify_password(text.as_bytes(), against.as_ref().map_or(&*dummy, |own| own.as_str())).is_ok();
            fits && against.is_some() && rules::password::hashable(&password)
        })
        .await
    }

    async fn turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, HashError> {
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| HashError::Interrupted)?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(turn);
            result
        });
        done.await.map_err(|_| HashError::Interrupted)
    }
}

fn hash(argon: &Argon2<'_>, password: &[u8]) -> Result<String, HashError> {
    argon.hash_password(password).map(|hash| hash.to_string()).map_err(|error| HashError::Argon(error.to_string()))
}

/// 128 random bits as text: tokens, invitations.
pub(crate) fn random_text() -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0u8; 16]);
    rand::rng().fill_bytes(bytes.as_mut_slice());
    Zeroizing::new(data_encoding::HEXLOWER.encode(bytes.as_slice()))
}

/// The name under which a secret is kept: SHA-256 in hex. Strong secrets need no salt.
pub(crate) fn fingerprint(secret: &str) -> String {
    fingerprint_of(secret.as_bytes())
}

/// The same of bytes: public keys.
pub(crate) fn fingerprint_of(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))
}

/// A fresh second factor: 160 bits, base32.
pub(crate) fn new_otp_secret() -> String {
    let mut bytes = Zeroizing::new([0u8; 20]);
    rand::rng().fill_bytes(bytes.as_mut_slice());
    data_encoding::BASE32_NOPAD.encode(bytes.as_slice())
}

fn totp(secret: &str) -> Option<totp_rs::Builder> {
    Some(totp_rs::Builder::new().with_secret(totp_rs::Secret::try_from_base32(secret).ok()?))
}

/// The time-step whose code this is, if it is one of those accepted now (this one and its neighbours).
pub(crate) fn otp_step(secret: &str, code: &Secret, now: Time) -> Option<u64> {
    let digits: Zeroizing<String> = Zeroizing::new(code.expose().chars().filter(|c| !c.is_whitespace()).take(16).collect());
    totp(secret)?.build().ok()?.check(&digits, now.unix_u64())
}

/// The code of that moment. What an authenticator application shows; for tests and demonstrations.
pub fn otp_code(secret: &str, at: Time) -> Option<String> {
    Some(totp(secret)?.build().ok()?.generate(at.unix_u64()).to_string())
}

/// `otpauth://` for authenticator applications.
pub(crate) fn otp_url(secret: &str, user: &UserName, cluster: &ClusterName) -> Option<String> {
    let builder = totp(secret)?.with_account_name(user.as_str()).with_issuer(Some(cluster.as_str()));
    builder.build().ok()?.to_url().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_fits_its_own_hash_only_and_a_dummy_never() {
        let hasher = Hasher::new(PasswordCost::cheapest()).unwrap();
        let own = hasher.hash(Secret::new("correct horse")).await.unwrap();
        assert!(own.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{own}");
        let check = |password: &str, against: Option<&str>| {
            let (hasher, password, against) = (hasher.clone(), Secret::new(password), against.map(|text| Zeroizing::new(text.to_owned())));
            async move { hasher.verify(password, against).await.unwrap() }
        };
        assert!(check("correct horse", Some(&own)).await);
        assert!(!check("wrong horse", Some(&own)).await);
        assert!(!check("correct horse", None).await);
        assert!(!check(&"x".repeat(10_000), Some(&own)).await);
        assert!(!check("correct horse", Some("garbage")).await);
    }

    #[test]
    fn the_default_cost_is_the_owasp_minimum() {
        assert_eq!(PasswordCost::default(), PasswordCost { memory_kib: 19_456, passes: 2 });
    }

    #[test]
    fn a_code_belongs_to_one_step_and_its_neighbours_accept_it() {
        let secret = new_otp_secret();
        let now = Time::from_unix(1_800_000_000);
        let code = Secret::new(otp_code(&secret, now).unwrap());
        let step = now.unix_u64() / 30;
        let at = |seconds: i64| otp_step(&secret, &code, Time::from_unix(now.unix() + seconds));
        assert_eq!((at(0), at(-30), at(30)), (Some(step), Some(step), Some(step)));
        assert_eq!((at(-60), at(90)), (None, None));
        for bad in ["", "12345", "abcdef", "+12345", "1234567"] {
            assert_eq!(otp_step(&secret, &Secret::new(bad), now), None, "{bad}");
        }
        let url = otp_url(&secret, &UserName::new("alice@example.com").unwrap(), &ClusterName::new("demo").unwrap()).unwrap();
        assert!(url.starts_with("otpauth://totp/demo:alice") && url.contains(&secret), "{url}");
    }
}
