//! A cluster's authorities for tests: certificates in the shape that the Auth Service gives them.

use crate::{credentials::UserCredentials, host::HostCredentials, keys::KeyPair, trust::ClusterTrust};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyUsagePurpose, SanType, SubjectPublicKeyInfo};
use russh::keys::{
    Certificate, PrivateKey, PublicKey,
    ssh_key::certificate::{Builder, CertType},
};
use std::{collections::BTreeSet, time::Duration};
use types::{
    ClusterName, Document, Extra, HostId, HostIdentity, Identity, Labels, Login, Metadata, NodeName, Resource, ResourceName, Secret,
    SystemRole, Time, UserIdentity, UserName,
    identity::Restrictions,
    kind::{CaKey, CertAuthority},
};
use wire::{
    credentials::{FORMAT, HostFile},
    identity::{OID_X509, SSH_EXTENSION, pin_of_spki, spki_of, to_json, to_x509_extension},
    sni,
};

/// How long the certificates made here live.
pub const HOUR: Duration = Duration::from_secs(3600);

/// One authority: an Ed25519 key for SSH, a P-256 key for TLS.
#[derive(Debug)]
struct Authority {
    ssh: KeyPair,
    tls: Issuer<'static, rcgen::KeyPair>,
    pem: String,
    der: Vec<u8>,
}

impl Authority {
    fn new(name: &str, now: Time) -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.not_before = now.minus(HOUR).to_offset();
        params.not_after = now.plus(HOUR * 24 * 3650).to_offset();
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().to_vec());
        Self { ssh: KeyPair::generate().unwrap(), tls: Issuer::new(params, key), pem, der }
    }

    fn document(&self, cluster: &ClusterName, ca_type: &str) -> Document {
        let key = CaKey {
            algorithm: "ed25519".into(),
            ssh: self.ssh.ssh_public().unwrap(),
            tls: self.pem.clone(),
            pin: pin_of_spki(&spki_of(&self.der).unwrap()),
            active: true,
            extra: Extra::new(),
        };
        let spec = CertAuthority { cluster: cluster.clone(), ca_type: ca_type.into(), keys: vec![key], extra: Extra::new() };
        Resource::new(Metadata::named(ResourceName::new(ca_type).unwrap()), spec).to_document()
    }
}

/// A cluster's two authorities.
#[derive(Debug)]
pub struct Cluster {
    pub name: ClusterName,
    pub now: Time,
    user: Authority,
    host: Authority,
}

impl Cluster {
    /// A cluster whose certificates are valid around `now`.
    pub fn new(name: &str, now: Time) -> Self {
        let name = ClusterName::new(name).unwrap();
        let (user, host) = (Authority::new(&format!("{name} user"), now), Authority::new(&format!("{name} host"), now));
        Self { name, now, user, host }
    }

    /// The `cert_authority` documents.
    pub fn authorities(&self) -> Vec<Document> {
        vec![self.user.document(&self.name, "user"), self.host.document(&self.name, "host")]
    }
    pub fn trust(&self) -> ClusterTrust {
        ClusterTrust::from_documents(&self.name, &self.authorities())
    }
    /// Plain key of the host authority.
    pub fn host_ssh(&self) -> PublicKey {
        self.host.ssh.ssh_private().unwrap().public_key().clone()
    }

    pub fn host_identity(&self, id: HostId, name: &str, roles: &[SystemRole]) -> HostIdentity {
        HostIdentity {
            cluster: self.name.clone(),
            id,
            name: NodeName::new(name).unwrap(),
            roles: roles.iter().cloned().collect(),
            extra: Extra::new(),
        }
    }
    pub fn user_identity(&self, user: &str, logins: &[&str]) -> UserIdentity {
        UserIdentity {
            cluster: self.name.clone(),
            user: UserName::new(user).unwrap(),
            roles: BTreeSet::from([ResourceName::new("access").unwrap()]),
            traits: Default::default(),
            logins: logins.iter().map(|login| Login::new(login).unwrap()).collect(),
            expires: self.now.plus(HOUR),
            restrictions: Restrictions::default(),
            extra: Extra::new(),
        }
    }

    /// A member's credentials, as a join gives them.
    pub fn host(&self, id: HostId, name: &str, roles: &[SystemRole]) -> HostCredentials {
        let (key, identity) = (KeyPair::generate().unwrap(), self.host_identity(id, name, roles));
        let mut names: Vec<String> = roles.iter().map(|role| sni::role_name(role, &self.name)).collect();
        names.extend([sni::host_name(&id), "localhost".to_owned()]);
        let file = HostFile {
            format: FORMAT,
            ssh_certificate: self.host_ssh_certificate(&key, &identity).to_openssh().unwrap(),
            tls_certificate: self.host_tls_certificate(&key, &identity, &names),
            identity,
            private_key: Secret::new(key.pkcs8_pem().expose()),
            authorities: self.authorities(),
            labels: Labels::new(),
            auth_addr: None,
            extra: Extra::new(),
        };
        HostCredentials::from_file(&file).unwrap()
    }

    /// A user's credentials, as a login gives them.
    pub fn user(&self, user: &str, logins: &[&str]) -> UserCredentials {
        let (key, identity) = (KeyPair::generate().unwrap(), self.user_identity(user, logins));
        let (ssh, tls) = self.user_certificates(&key.ssh_public().unwrap(), &key.spki_der(), &identity);
        UserCredentials::new(key, &ssh, &tls, self.trust()).unwrap()
    }

    /// Both certificates of a user, for keys that are elsewhere: what a login answers.
    pub fn user_certificates(&self, ssh_public: &str, spki: &[u8], identity: &UserIdentity) -> (String, String) {
        let holder = Identity::User(identity.clone());
        let principals: Vec<String> = identity.logins.iter().map(ToString::to_string).collect();
        let key = PublicKey::from_openssh(ssh_public).unwrap();
        let ssh = self.ssh_certificate(&self.user.ssh.ssh_private().unwrap(), &key, CertType::User, &principals, Some(&holder), &[]);
        let tls = self.x509(&self.user, spki, &holder, &["localhost".to_owned()]);
        (ssh.to_openssh().unwrap(), tls)
    }

    /// A host's SSH certificate with the principals the Auth Service gives.
    pub fn host_ssh_certificate(&self, key: &KeyPair, identity: &HostIdentity) -> Certificate {
        let HostIdentity { id, name, cluster, .. } = identity;
        let principals = [id.to_string(), format!("{id}.{cluster}"), name.to_string(), format!("{name}.{cluster}")];
        let public = key.ssh_private().unwrap().public_key().clone();
        let holder = Identity::Host(identity.clone());
        self.ssh_certificate(&self.host.ssh.ssh_private().unwrap(), &public, CertType::Host, &principals, Some(&holder), &[])
    }

    /// Any SSH certificate, signed by any key: for attacks.
    pub fn ssh_certificate(
        &self,
        signer: &PrivateKey,
        key: &PublicKey,
        cert_type: CertType,
        principals: &[String],
        identity: Option<&Identity>,
        critical: &[(&str, &str)],
    ) -> Certificate {
        let (from, until) = (self.now.minus(HOUR).unix_u64(), self.now.plus(HOUR).unix_u64());
        let mut builder = Builder::new(vec![7; 32], key.key_data().clone(), from, until).unwrap();
        builder.serial(1).unwrap().cert_type(cert_type).unwrap().key_id("test").unwrap();
        if principals.is_empty() {
            builder.all_principals_valid().unwrap();
        }
        for principal in principals {
            builder.valid_principal(principal).unwrap();
        }
        for (name, value) in critical {
            builder.critical_option(*name, *value).unwrap();
        }
        if let Some(identity) = identity {
            builder.extension(SSH_EXTENSION, to_json(identity)).unwrap();
        }
        builder.sign(signer).unwrap()
    }

    /// The host authority's private key: for attacks.
    pub fn host_signer(&self) -> PrivateKey {
        self.host.ssh.ssh_private().unwrap()
    }

    fn host_tls_certificate(&self, key: &KeyPair, identity: &HostIdentity, names: &[String]) -> String {
        self.x509(&self.host, &key.spki_der(), &Identity::Host(identity.clone()), names)
    }

    /// Leaf and authority, PEM.
    fn x509(&self, authority: &Authority, spki: &[u8], identity: &Identity, names: &[String]) -> String {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.iter().map(|name| SanType::DnsName(name.clone().try_into().unwrap())).collect();
        params.subject_alt_names.push(SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()));
        params.not_before = self.now.minus(HOUR).to_offset();
        params.not_after = self.now.plus(HOUR).to_offset();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.custom_extensions = vec![CustomExtension::from_oid_content(OID_X509, to_x509_extension(identity))];
        let key = SubjectPublicKeyInfo::from_der(spki).unwrap();
        let leaf = params.signed_by(&key, &authority.tls).unwrap();
        format!("{}{}", leaf.pem(), authority.pem)
    }
}
