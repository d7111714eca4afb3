//! Issuing: the only place where a certificate is signed.
//!
//! User certificates need a `Permit<Issue>` and say exactly what it says. Principals cannot be empty nor a wildcard
//! (attack table, row 2): they are parsed names, or the placeholder that no host accepts. No leaf may sign; users'
//! X.509 certificates are for clients only, hosts' for both, because a host serves and calls.
//!
//! Host certificates live a year and members renew at half-life (`client::host`); not shorter: a host that was switched off
//! over a long holiday still comes back. A stolen host key could renew itself as the host does, so each renewal has a
//! number, and renewing twice from one certificate locks the host ([`crate::hosts`]).

use super::{Authorities, Authority, BACKDATE, names};
use crate::ca::names::{HostName, HostNames};
use rand::Rng as _;
use rcgen::{
    CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rules::{
    Permit,
    permit::{Issue, SessionOptions},
};
use russh::keys::ssh_key::{
    PublicKey,
    certificate::{Builder, CertType},
    public::KeyData,
};
use std::time::Duration;
use types::{HostIdentity, Identity, SystemRole, Time};

/// The life of a member's certificates.
pub(crate) const HOST_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// The life of the local administrator's certificate; renewed three times a day while the Auth Service runs.
pub(crate) const ADMIN_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    #[error("the SSH public key cannot be read, or is of a kind that is not accepted (Ed25519 and ECDSA are)")]
    SshKey,
    #[error("the TLS public key cannot be read, or is of a kind that is not accepted (Ed25519 and ECDSA P-256 or P-384 are)")]
    TlsKey,
    #[error("no public key was sent")]
    NoKey,
    #[error("the identity has {0} bytes; a certificate carries {max} at most", max = wire::identity::MAX_IDENTITY)]
    TooLarge(usize),
    #[error("signing failed: {0}")]
    Sign(String),
}

/// The public keys that certificates are made for.
pub(crate) struct Keys {
    ssh: Option<PublicKey>,
    tls: Option<SubjectPublicKeyInfo>,
}

impl Keys {
    /// Reads both; an empty one is absent.
    pub(crate) fn read(ssh: &str, tls: &[u8]) -> Result<Self, IssueError> {
        let ssh = if ssh.trim().is_empty() { None } else { Some(read_ssh(ssh)?) };
        let tls = if tls.is_empty() { None } else { Some(read_tls(tls)?) };
        if ssh.is_none() && tls.is_none() { Err(IssueError::NoKey) } else { Ok(Self { ssh, tls }) }
    }
    /// Reads both; neither may be absent.
    pub(crate) fn both(ssh: &str, tls: &[u8]) -> Result<Self, IssueError> {
        Ok(Self { ssh: Some(read_ssh(ssh)?), tls: Some(read_tls(tls)?) })
    }
}

fn read_ssh(line: &str) -> Result<PublicKey, IssueError> {
    if line.len() > 4096 {
        return Err(IssueError::SshKey);
    }
    let key = PublicKey::from_openssh(line.trim()).map_err(|_| IssueError::SshKey)?;
    match key.key_data() {
        KeyData::Ed25519(_) | KeyData::Ecdsa(_) | KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_) => {
            Ok(PublicKey::from(key.key_data().clone()))
        }
        // RSA signing has known holes in the libraries of the field; a certificate is no key (attack table, row 1).
        _ => Err(IssueError::SshKey),
    }
}

fn read_tls(spki: &[u8]) -> Result<SubjectPublicKeyInfo, IssueError> {
    if spki.len() > 1024 {
        return Err(IssueError::TlsKey);
    }
    let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| IssueError::TlsKey)?;
    let algorithm = rcgen::PublicKeyData::algorithm(&key);
    let known = [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384];
    if known.contains(&algorithm) { Ok(key) } else { Err(IssueError::TlsKey) }
}

/// What was signed. A text is empty when no key for it was sent.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) ssh: String,
    /// PEM: the leaf, then the authority that signed it.
    pub(crate) tls: String,
    pub(crate) expires: Time,
    /// Hex, for the audit log.
    pub(crate) serial: String,
}

impl Authorities {
    /// Signs what the permit says, for these keys.
    pub(crate) fn issue_user(&self, permit: Permit<Issue>, options: &SessionOptions, keys: &Keys, now: Time) -> Result<Issued, IssueError> {
        let user = permit.into_facts().identity;
        let expires = user.expires;
        let identity = Identity::User(user.clone());
        let json = identity_json(&identity)?;
        let serial = serial();
        let ssh = match &keys.ssh {
            None => String::new(),
            Some(key) => {
                let mut builder = builder(key, &serial, now, expires)?;
                builder.cert_type(CertType::User).map_err(signing)?;
                builder.key_id(user.user.as_str()).map_err(signing)?;
                for principal in rules::cert::user_principals(&user) {
                    builder.valid_principal(principal).map_err(signing)?;
                }
                if let Some(address) = user.restrictions.source_ip {
                    let bits = if address.is_ipv4() { 32 } else { 128 };
                    builder.critical_option("source-address", format!("{address}/{bits}")).map_err(signing)?;
                }
                builder.extension("permit-pty", "").map_err(signing)?;
                if options.port_forwarding {
                    builder.extension("permit-port-forwarding", "").map_err(signing)?;
                }
                if options.forward_agent {
                    builder.extension("permit-agent-forwarding", "").map_err(signing)?;
                }
                builder.extension(wire::identity::SSH_EXTENSION, json).map_err(signing)?;
                self.user.sign_ssh(builder)?
            }
        };
        let tls = match &keys.tls {
            None => String::new(),
            Some(key) => {
                let mut params = leaf(&identity, user.user.as_str(), &serial, now, expires);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                self.user.sign_x509(&params, key)?
            }
        };
        Ok(Issued { ssh, tls, expires, serial: hex(&serial) })
    }

    /// Signs a member's certificates. The identity was decided by a join, a renewal, or is this process's own.
    pub(crate) fn issue_host(
        &self,
        host: &HostIdentity,
        extra: &HostNames,
        keys: &Keys,
        life: Duration,
        now: Time,
    ) -> Result<Issued, IssueError> {
        let expires = now.plus(life);
        let identity = Identity::Host(host.clone());
        let json = identity_json(&identity)?;
        let serial = serial();
        let ssh = match &keys.ssh {
            None => String::new(),
            Some(key) => {
                let mut builder = builder(key, &serial, now, expires)?;
                builder.cert_type(CertType::Host).map_err(signing)?;
                builder.key_id(host.id.to_string()).map_err(signing)?;
                for principal in names::principals(host, extra) {
                    builder.valid_principal(principal).map_err(signing)?;
                }
                builder.extension(wire::identity::SSH_EXTENSION, json).map_err(signing)?;
                self.host.sign_ssh(builder)?
            }
        };
        let tls = match &keys.tls {
            None => String::new(),
            Some(key) => {
                let mut params = leaf(&identity, &host.id.to_string(), &serial, now, expires);
                params.subject_alt_names = names::x509(host, extra).into_iter().filter_map(san).collect();
                // The administrator's certificate serves nothing.
                params.extended_key_usages = if host.roles.iter().all(|role| *role == SystemRole::Admin) {
                    vec![ExtendedKeyUsagePurpose::ClientAuth]
                } else {
                    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
                };
                self.host.sign_x509(&params, key)?
            }
        };
        Ok(Issued { ssh, tls, expires, serial: hex(&serial) })
    }

    /// `tctl auth sign --host`: certificates for names, without a place in the cluster: no identity, so nobody lets it in.
    pub(crate) fn issue_names(&self, extra: &HostNames, keys: &Keys, life: Duration, now: Time) -> Result<Issued, IssueError> {
        let Some(first) = extra.iter().next() else { return Err(IssueError::Sign("no name was given".into())) };
        let expires = now.plus(life);
        let serial = serial();
        let ssh = match &keys.ssh {
            None => String::new(),
            Some(key) => {
                let mut builder = builder(key, &serial, now, expires)?;
                builder.cert_type(CertType::Host).map_err(signing)?;
                builder.key_id(first.text()).map_err(signing)?;
                for name in extra.iter() {
                    builder.valid_principal(name.text()).map_err(signing)?;
                }
                self.host.sign_ssh(builder)?
            }
        };
        let tls = match &keys.tls {
            None => String::new(),
            Some(key) => {
                let mut params = bare(&first.text(), &serial, now, expires);
                params.subject_alt_names = extra.iter().cloned().filter_map(san).collect();
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                self.host.sign_x509(&params, key)?
            }
        };
        Ok(Issued { ssh, tls, expires, serial: hex(&serial) })
    }
}

impl Authority {
    fn sign_ssh(&self, builder: Builder) -> Result<String, IssueError> {
        let certificate = builder.sign(&self.ssh).map_err(signing)?;
        certificate.to_openssh().map_err(signing)
    }
    fn sign_x509(&self, params: &CertificateParams, key: &SubjectPublicKeyInfo) -> Result<String, IssueError> {
        let leaf = params.signed_by(key, &self.x509).map_err(|error| IssueError::Sign(error.to_string()))?;
        Ok(format!("{}{}", leaf.pem(), self.certificate))
    }
}

fn identity_json(identity: &Identity) -> Result<String, IssueError> {
    let json = wire::identity::to_json(identity);
    if json.len() > wire::identity::MAX_IDENTITY { Err(IssueError::TooLarge(json.len())) } else { Ok(json) }
}

fn builder(key: &PublicKey, serial: &SerialNumber, now: Time, expires: Time) -> Result<Builder, IssueError> {
    let mut nonce = vec![0u8; Builder::RECOMMENDED_NONCE_SIZE];
    rand::rng().fill_bytes(&mut nonce);
    let mut builder = Builder::new(nonce, key.key_data().clone(), now.minus(BACKDATE).unix_u64(), expires.unix_u64()).map_err(signing)?;
    let bytes = serial.to_bytes();
    let number = bytes.first_chunk::<8>().map_or(0, |head| u64::from_be_bytes(*head));
    builder.serial(number).map_err(signing)?;
    Ok(builder)
}

fn bare(common_name: &str, serial: &SerialNumber, now: Time, expires: Time) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = now.minus(BACKDATE).to_offset();
    params.not_after = expires.to_offset();
    params.serial_number = Some(serial.clone());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn leaf(identity: &Identity, common_name: &str, serial: &SerialNumber, now: Time, expires: Time) -> CertificateParams {
    let mut params = bare(common_name, serial, now, expires);
    params.custom_extensions =
        vec![CustomExtension::from_oid_content(wire::identity::OID_X509, wire::identity::to_x509_extension(identity))];
    params
}

fn san(name: HostName) -> Option<SanType> {
    match name {
        HostName::Dns(name) => name.try_into().ok().map(SanType::DnsName),
        HostName::Ip(address) => Some(SanType::IpAddress(address)),
    }
}

/// 16 random bytes, positive and not zero (RFC 5280, 4.1.2.2).
pub(super) fn serial() -> SerialNumber {
    let mut bytes = [0u8; 16];
    rand::rng().fill_bytes(&mut bytes);
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    SerialNumber::from_slice(&bytes)
}

fn hex(serial: &SerialNumber) -> String {
    serial.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn signing(error: russh::keys::ssh_key::Error) -> IssueError {
    IssueError::Sign(error.to_string())
}
