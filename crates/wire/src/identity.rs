//! How an [`Identity`] stands inside a certificate: as JSON, in one extension, the same for SSH and X.509.
//!
//! Reading here means *parsing*; that the certificate is genuine was, or will be, checked by whoever has the CA keys
//! (`net::tls::identify` for X.509, [`SshCert::verified`] for SSH). The certificate *formats* are the libraries'.

use ssh_key::{Certificate, HashAlg, PublicKey, certificate::CertType};
use std::{collections::BTreeMap, net::IpAddr};
use types::{Identity, Time};

/// The X.509 extension: a UTF8String of JSON. An arc outside the registered tree, for private use.
pub const OID_X509: &[u64] = &[1, 3, 9999, 10, 1];
/// The SSH certificate extension, named as RFC-style vendor extensions are (PROTOCOL.certkeys).
pub const SSH_EXTENSION: &str = "identity@lockgate";
/// The most bytes of JSON an identity may have.
pub const MAX_IDENTITY: usize = 32 * 1024;
/// The most bytes of a certificate.
pub const MAX_CERTIFICATE: usize = 64 * 1024;

/// Why an identity cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadIdentity {
    #[error("the certificate is {0} bytes long; the limit is {MAX_CERTIFICATE}")]
    TooLarge(usize),
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    #[error("the certificate carries no Lockgate identity")]
    Missing,
    #[error("the certificate's identity cannot be read: {0}")]
    Json(String),
    #[error("the certificate is not a plain {0} certificate")]
    WrongType(&'static str),
    #[error("the certificate has no principals, or a wildcard")]
    Principals,
    #[error("the certificate is not signed by a certificate authority of this cluster")]
    Issuer,
    #[error("the certificate is not valid now")]
    Validity,
    #[error("the certificate has a critical option that is not known here: {0}")]
    Critical(String),
    #[error("the certificate's signature is wrong")]
    Signature,
}

/// The extension's content for rcgen: DER UTF8String around the JSON.
pub fn to_x509_extension(identity: &Identity) -> Vec<u8> {
    let json = to_json(identity);
    let mut out = vec![0x0c];
    let len = json.len();
    match len {
        0..=0x7f => out.push(len as u8),
        0x80..=0xff => out.extend([0x81, len as u8]),
        _ => out.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    out.extend(json.into_bytes());
    out
}

/// JSON of an identity.
pub fn to_json(identity: &Identity) -> String {
    serde_json::to_string(identity).unwrap_or_default()
}

/// Reads bounded JSON.
pub fn from_json(json: &[u8]) -> Result<Identity, BadIdentity> {
    if json.len() > MAX_IDENTITY {
        return Err(BadIdentity::TooLarge(json.len()));
    }
    serde_json::from_slice(json).map_err(|error| BadIdentity::Json(error.to_string()))
}

/// Reads the identity out of an X.509 certificate in DER. Does not check its signature.
pub fn from_x509_der(der: &[u8]) -> Result<Identity, BadIdentity> {
    if der.len() > MAX_CERTIFICATE {
        return Err(BadIdentity::TooLarge(der.len()));
    }
    let (rest, certificate) = x509_parser::parse_x509_certificate(der).map_err(|error| BadIdentity::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(BadIdentity::Malformed("bytes after the certificate".into()));
    }
    let wanted = OID_X509.iter().map(u64::to_string).collect::<Vec<_>>().join(".");
    let mut found = certificate.extensions().iter().filter(|extension| extension.oid.to_id_string() == wanted);
    let value = found.next().ok_or(BadIdentity::Missing)?.value;
    if found.next().is_some() {
        return Err(BadIdentity::Malformed("two identities".into()));
    }
    from_json(utf8_string(value)?)
}

/// The content of a DER UTF8String that fills `value` exactly.
fn utf8_string(value: &[u8]) -> Result<&[u8], BadIdentity> {
    let bad = || BadIdentity::Malformed("the identity is not a UTF8String".into());
    let (len, content) = match value {
        [0x0c, len @ 0..=0x7f, content @ ..] => (usize::from(*len), content),
        [0x0c, 0x81, len, content @ ..] => (usize::from(*len), content),
        [0x0c, 0x82, high, low, content @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), content),
        _ => return Err(bad()),
    };
    if content.len() == len { Ok(content) } else { Err(bad()) }
}

/// Which side of a session an SSH certificate is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SshCertKind {
    User,
    Host,
}

/// The facts of an SSH certificate whose signature by a trusted CA key was verified.
#[derive(Clone, PartialEq, Debug)]
pub struct SshCert {
    pub kind: SshCertKind,
    pub key_id: String,
    pub principals: Vec<String>,
    pub expires: Time,
    /// `source-address` of the critical options, if present.
    pub source_addresses: Vec<IpAddr>,
    pub extensions: BTreeMap<String, String>,
    /// Absent for certificates that Lockgate did not make.
    pub identity: Option<Identity>,
}

impl SshCert {
    /// Accepts a certificate only if its signing key *equals* a trusted plain CA key, its signature holds, it is valid
    /// now, is of the wanted kind, has principals without a wildcard, and no critical option that we do not enforce
    /// (attack table, rows 1 and 2). `trusted` are plain public keys: a certificate cannot stand there by type.
    pub fn verified(certificate: &Certificate, wanted: SshCertKind, trusted: &[PublicKey], now: Time) -> Result<Self, BadIdentity> {
        match (wanted, certificate.cert_type()) {
            (SshCertKind::User, CertType::User) | (SshCertKind::Host, CertType::Host) => {}
            (SshCertKind::User, CertType::Host) => return Err(BadIdentity::WrongType("user")),
            (SshCertKind::Host, CertType::User) => return Err(BadIdentity::WrongType("host")),
        }
        if !trusted.iter().any(|key| key.key_data() == certificate.signature_key()) {
            return Err(BadIdentity::Issuer);
        }
        certificate.verify_signature().map_err(|_| BadIdentity::Signature)?;
        let now = now.unix_u64();
        if now < certificate.valid_after() || now >= certificate.valid_before() {
            return Err(BadIdentity::Validity);
        }
        let principals = certificate.valid_principals();
        if principals.is_empty() || principals.iter().any(|name| name.is_empty() || name.contains(['*', '?', ','])) {
            return Err(BadIdentity::Principals);
        }
        let mut source_addresses = Vec::new();
        for (name, value) in certificate.critical_options().iter() {
            if name != "source-address" {
                return Err(BadIdentity::Critical(name.chars().take(40).flat_map(char::escape_default).collect()));
            }
            source_addresses = addresses(value)?;
        }
        let extensions: BTreeMap<String, String> = certificate.extensions().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let identity = extensions.get(SSH_EXTENSION).map(|json| from_json(json.as_bytes())).transpose()?;
        Ok(Self {
            kind: wanted,
            key_id: certificate.key_id().to_owned(),
            principals: principals.to_vec(),
            expires: Time::from_unix(i64::try_from(certificate.valid_before()).unwrap_or(i64::MAX)),
            source_addresses,
            extensions,
            identity,
        })
    }
}

/// Reads an OpenSSH certificate line, bounded.
pub fn parse_ssh_certificate(line: &str) -> Result<Certificate, BadIdentity> {
    if line.len() > MAX_CERTIFICATE {
        return Err(BadIdentity::TooLarge(line.len()));
    }
    Certificate::from_openssh(line.trim()).map_err(|error| BadIdentity::Malformed(error.to_string()))
}

/// `10.0.0.1/32,::1/128`: single addresses only, which is all that Lockgate issues.
fn addresses(value: &str) -> Result<Vec<IpAddr>, BadIdentity> {
    let one = |text: &str| {
        let (address, bits) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address.parse().ok()?;
        let whole = if address.is_ipv4() { "32" } else { "128" };
        (bits.is_empty() || bits == whole).then_some(address)
    };
    value.split(',').map(|text| one(text).ok_or_else(|| BadIdentity::Critical("source-address".into()))).collect()
}

/// `sha256:<hex>`: the pin of a public key, over its SubjectPublicKeyInfo in DER.
pub fn pin_of_spki(spki_der: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let hex: String = Sha256::digest(spki_der).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The SubjectPublicKeyInfo of an X.509 certificate, DER.
pub fn spki_of(der: &[u8]) -> Result<Vec<u8>, BadIdentity> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|error| BadIdentity::Malformed(error.to_string()))?;
    Ok(certificate.public_key().raw.to_vec())
}

/// The SSH fingerprint of a public key, as OpenSSH prints it.
pub fn ssh_fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}
