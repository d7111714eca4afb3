//! The cluster's certificate authorities: two trust domains, `user` and `host`, each with an Ed25519 and a P-256 key.
//!
//! SSH certificates are signed with Ed25519, X.509 with P-256. The public halves are documents of kind `cert_authority`;
//! the private halves lie under `internal/ca/<type>`, a place the API has no way to name. In memory they are wiped when
//! dropped. Keys are made once, at the cluster's birth (`birth`); issuing is in [`issue`], the names that a certificate
//! may carry in [`names`].

pub(crate) mod issue;
pub(crate) mod names;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use data_encoding::BASE64;
use rand::Rng as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose, PublicKeyData};
use russh::keys::ssh_key::{
    self, PrivateKey, PublicKey,
    private::Ed25519Keypair,
    public::{EcdsaPublicKey, KeyData},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use types::{ClusterName, Extra, Time, kind::CaKey, kind::CertAuthority};
use zeroize::Zeroizing;

/// Certificates begin this long ago, because clocks differ.
pub(crate) const BACKDATE: Duration = rules::issue::BACKDATE;
/// The life of an authority's own certificate: ten years, as there is no rotation yet and a dead authority locks everybody out.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);

pub(crate) const ED25519: &str = "ed25519";
pub(crate) const P256: &str = "ecdsa-p256";

/// Which certificates an authority signs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CaKind {
    User,
    Host,
}

impl CaKind {
    pub(crate) const ALL: [Self; 2] = [Self::User, Self::Host];
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Host => "host",
        }
    }
}

/// Why keys were not made or are not usable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    #[error("the keys of the {0} authority could not be made: {1}")]
    Generate(&'static str, String),
    #[error("the keys of the {0} authority cannot be read: {1}")]
    Load(&'static str, String),
}

/// The private halves as they lie in the store. Never logged, never served.
#[derive(Serialize, Deserialize)]
struct PrivateHalves {
    format: u32,
    keys: Vec<PrivateHalf>,
    #[serde(flatten)]
    extra: Extra,
}

#[derive(Serialize, Deserialize, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
struct PrivateHalf {
    #[zeroize(skip)]
    algorithm: String,
    /// Ed25519: the 32-byte seed; P-256: PKCS #8. Base64.
    secret: String,
}

/// Keys fresh from the generator, before they are stored.
pub(crate) struct Newborn {
    pub(crate) public: CertAuthority,
    /// JSON for the internal key.
    pub(crate) private: Zeroizing<Vec<u8>>,
}

/// Makes the keys of one authority.
pub(crate) fn generate(kind: CaKind, cluster: &ClusterName, now: Time) -> Result<Newborn, CaError> {
    let bad = |why: String| CaError::Generate(kind.as_str(), why);
    let mut seed = Zeroizing::new([0u8; 32]);
    rand::rng().fill_bytes(seed.as_mut_slice());
    let ed = Ed25519Signer::from_seed(&seed).map_err(bad)?;
    let pkcs8 =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new()).map_err(|error| bad(error.to_string()))?;
    let p256 = P256Signer::from_pkcs8(pkcs8.as_ref()).map_err(bad)?;
    let keys = vec![
        public_key(kind, cluster, now, ED25519, ed.ssh_public().map_err(bad)?, &ed).map_err(bad)?,
        public_key(kind, cluster, now, P256, p256.ssh_public().map_err(bad)?, &p256).map_err(bad)?,
    ];
    let halves = PrivateHalves {
        format: 1,
        keys: vec![
            PrivateHalf { algorithm: ED25519.into(), secret: BASE64.encode(seed.as_slice()) },
            PrivateHalf { algorithm: P256.into(), secret: BASE64.encode(pkcs8.as_ref()) },
        ],
        extra: Extra::new(),
    };
    let private = Zeroizing::new(serde_json::to_vec(&halves).map_err(|error| bad(error.to_string()))?);
    let public = CertAuthority { cluster: cluster.clone(), ca_type: kind.as_str().into(), keys, extra: Extra::new() };
    Ok(Newborn { public, private })
}

fn public_key(
    kind: CaKind,
    cluster: &ClusterName,
    now: Time,
    algorithm: &str,
    ssh: PublicKey,
    signer: &impl rcgen::SigningKey,
) -> Result<CaKey, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, cluster.as_str());
    params.distinguished_name.push(DnType::CommonName, format!("Lockgate {} CA {algorithm}", kind.as_str()));
    params.not_before = now.minus(BACKDATE).to_offset();
    params.not_after = now.plus(CA_LIFE).to_offset();
    params.serial_number = Some(issue::serial());
    // It signs leaves and nothing that signs in turn.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(signer).map_err(|error| error.to_string())?;
    Ok(CaKey {
        algorithm: algorithm.to_owned(),
        ssh: ssh.to_openssh().map_err(|error| error.to_string())?,
        tls: certificate.pem(),
        pin: wire::identity::pin_of_spki(&signer.subject_public_key_info()),
        active: true,
        extra: Extra::new(),
    })
}

/// One authority, ready to sign.
pub(crate) struct Authority {
    ssh: PrivateKey,
    x509: Issuer<'static, P256Signer>,
    /// PEM of the certificate that signs X.509; sent after each leaf, so that pins can be checked.
    certificate: String,
}

impl Authority {
    fn load(kind: CaKind, public: &CertAuthority, private: &[u8]) -> Result<Self, CaError> {
        let bad = |why: &str| CaError::Load(kind.as_str(), why.to_owned());
        let halves: PrivateHalves =
            serde_json::from_slice(private).map_err(|_| bad("the private halves are not what this release writes"))?;
        let secret = |algorithm: &str| -> Result<Zeroizing<Vec<u8>>, CaError> {
            let half = halves.keys.iter().find(|half| half.algorithm == algorithm).ok_or_else(|| bad("a private half is missing"))?;
            BASE64.decode(half.secret.as_bytes()).map(Zeroizing::new).map_err(|_| bad("a private half is not base64"))
        };
        let active = |algorithm: &str| {
            public.keys.iter().find(|key| key.active && key.algorithm == algorithm).ok_or_else(|| bad("a public half is missing"))
        };
        let seed = secret(ED25519)?;
        let seed: &[u8; 32] = seed.as_slice().try_into().map_err(|_| bad("the Ed25519 half has another length"))?;
        let ssh = PrivateKey::from(Ed25519Keypair::from_seed(seed));
        let said = PublicKey::from_openssh(&active(ED25519)?.ssh).map_err(|_| bad("a public half cannot be read"))?;
        if said.key_data() != ssh.public_key().key_data() {
            return Err(bad("public and private halves differ"));
        }
        let signer = P256Signer::from_pkcs8(&secret(P256)?).map_err(|why| bad(&why))?;
        let key = active(P256)?;
        if key.pin != wire::identity::pin_of_spki(&signer.subject_public_key_info()) {
            return Err(bad("public and private halves differ"));
        }
        let x509 = Issuer::from_ca_cert_pem(&key.tls, signer).map_err(|error| bad(&error.to_string()))?;
        Ok(Self { ssh, x509, certificate: key.tls.clone() })
    }
}

/// Both authorities of this cluster.
pub(crate) struct Authorities {
    user: Authority,
    host: Authority,
    /// The public documents, as the store has them: what every certificate is delivered with.
    pub(crate) user_public: CertAuthority,
    pub(crate) host_public: CertAuthority,
}

impl Authorities {
    pub(crate) fn load(user: (&CertAuthority, &[u8]), host: (&CertAuthority, &[u8])) -> Result<Self, CaError> {
        Ok(Self {
            user: Authority::load(CaKind::User, user.0, user.1)?,
            host: Authority::load(CaKind::Host, host.0, host.1)?,
            user_public: user.0.clone(),
            host_public: host.0.clone(),
        })
    }

    /// What signs backups: the host authority's Ed25519 key.
    pub(crate) fn backup_signer(&self) -> Result<backup::SeedSigner, CaError> {
        let bad = |why: String| CaError::Load(CaKind::Host.as_str(), why);
        let pair = self.host.ssh.key_data().ed25519().ok_or_else(|| bad("it is of another algorithm".into()))?;
        let seed = Zeroizing::new(pair.private.to_bytes());
        backup::SeedSigner::new(&seed).map_err(|error| bad(error.to_string()))
    }

    /// The host authority's Ed25519 signature over a message that says by its first bytes what it is.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<[u8; 64], CaError> {
        let bad = |why: String| CaError::Load(CaKind::Host.as_str(), why);
        backup::Signer::sign(&self.backup_signer()?, message).map_err(|error| bad(error.0))
    }

    /// `sha256:<hex>` of each host key, for `--ca-pin`.
    pub(crate) fn pins(&self) -> Vec<String> {
        // A pin is compared with the end of a TLS chain, and only the P-256 key signs those.
        self.host_public.keys.iter().filter(|key| key.active && key.algorithm == P256).map(|key| key.pin.clone()).collect()
    }
}

/// The pin of the X.509 key in an authority's private halves, as a backup holds them: whoever has the halves is the authority.
pub(crate) fn pins_of_private(private: &[u8]) -> Result<Vec<String>, CaError> {
    let bad = |why: &str| CaError::Load(CaKind::Host.as_str(), why.to_owned());
    let halves: PrivateHalves = serde_json::from_slice(private).map_err(|_| bad("the private halves are not what this release writes"))?;
    let mut pins = Vec::new();
    for half in halves.keys.iter().filter(|half| half.algorithm == P256) {
        let der = BASE64.decode(half.secret.as_bytes()).map(Zeroizing::new).map_err(|_| bad("a private half is not base64"))?;
        let signer = P256Signer::from_pkcs8(&der).map_err(|why| bad(&why))?;
        pins.push(wire::identity::pin_of_spki(&signer.subject_public_key_info()));
    }
    Ok(pins)
}

/// A P-256 key inside the crypto library, which wipes it when freed.
pub(crate) struct P256Signer(EcdsaKeyPair);

impl P256Signer {
    fn from_pkcs8(der: &[u8]) -> Result<Self, String> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der).map(Self).map_err(|error| error.to_string())
    }
    fn ssh_public(&self) -> Result<PublicKey, String> {
        let point = EcdsaPublicKey::from_sec1_bytes(self.0.public_key().as_ref()).map_err(|error| error.to_string())?;
        Ok(PublicKey::from(KeyData::Ecdsa(point)))
    }
}
impl PublicKeyData for P256Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}
impl rcgen::SigningKey for P256Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.0.sign(&SystemRandom::new(), message).map_err(|_| rcgen::Error::RingUnspecified)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// An Ed25519 key as an X.509 signer: only to sign its own CA certificate at birth.
struct Ed25519Signer(Ed25519KeyPair);

impl Ed25519Signer {
    fn from_seed(seed: &[u8; 32]) -> Result<Self, String> {
        Ed25519KeyPair::from_seed_unchecked(seed).map(Self).map_err(|error| error.to_string())
    }
    fn ssh_public(&self) -> Result<PublicKey, String> {
        let bytes: [u8; 32] = self.0.public_key().as_ref().try_into().map_err(|_| "an Ed25519 key of another length".to_owned())?;
        Ok(PublicKey::from(KeyData::Ed25519(ssh_key::public::Ed25519PublicKey(bytes))))
    }
}
impl PublicKeyData for Ed25519Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}
impl rcgen::SigningKey for Ed25519Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.0.sign(message).as_ref().to_vec())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
