//! A cluster's authorities, and certificates for whoever a test needs.

use client::{credentials::UserCredentials, host::HostCredentials, keys::KeyPair, trust::ClusterTrust};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SubjectPublicKeyInfo,
};
use russh::keys::{
    Certificate, PrivateKey, PublicKey,
    ssh_key::certificate::{Builder, CertType},
};
use std::{
    collections::BTreeSet,
    sync::OnceLock,
    time::{Duration, SystemTime},
};
use types::{
    ClusterName, Document, Extra, HostId, HostIdentity, Identity, Login, Metadata, NodeName, Resource, ResourceName, SystemRole, Time,
    UserIdentity, UserName,
    kind::{CaKey, CertAuthority},
};
use wire::{api as pb, identity, sni};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// When the tests began: russh looks at the machine's clock besides ours.
pub(crate) fn now() -> Time {
    static NOW: OnceLock<Time> = OnceLock::new();
    *NOW.get_or_init(|| Time::from_unix(Time::from(SystemTime::now()).unix()))
}
pub(crate) fn id(n: u128) -> HostId {
    HostId::from_uuid(uuid::Uuid::from_u128(n))
}

struct Authority {
    issuer: Issuer<'static, rcgen::KeyPair>,
    der: Vec<u8>,
    pem: String,
    ssh: PrivateKey,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (now().minus(HOUR).to_offset(), now().plus(1000 * HOUR).to_offset());
        let certificate = params.self_signed(&key).unwrap();
        let ssh = KeyPair::generate().unwrap().ssh_private().unwrap();
        Self { der: certificate.der().to_vec(), pem: certificate.pem(), issuer: Issuer::new(params, key), ssh }
    }

    fn x509(&self, identity: &Identity, names: Vec<String>, spki: &[u8], until: Time) -> String {
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) = (now().minus(HOUR).to_offset(), until.to_offset());
        params.custom_extensions = vec![CustomExtension::from_oid_content(identity::OID_X509, identity::to_x509_extension(identity))];
        let leaf = params.signed_by(&SubjectPublicKeyInfo::from_der(spki).unwrap(), &self.issuer).unwrap();
        leaf.pem() + &self.pem
    }

    fn ssh(&self, identity: &Identity, kind: CertType, principals: &[String], key: &PublicKey, until: Time) -> Certificate {
        let mut builder = Builder::new([7; 16], key.key_data().clone(), now().minus(HOUR).unix_u64(), until.unix_u64()).unwrap();
        builder.cert_type(kind).unwrap().key_id("test").unwrap();
        for principal in principals {
            builder.valid_principal(principal).unwrap();
        }
        builder.extension(identity::SSH_EXTENSION, identity::to_json(identity)).unwrap();
        builder.sign(&self.ssh).unwrap()
    }

    fn document(&self, cluster: &ClusterName, ca_type: &str) -> Document {
        let key = CaKey {
            algorithm: "ecdsa-p256".into(),
            ssh: self.ssh.public_key().to_openssh().unwrap(),
            tls: self.pem.clone(),
            pin: identity::pin_of_spki(&identity::spki_of(&self.der).unwrap()),
            active: true,
            extra: Extra::new(),
        };
        let spec = CertAuthority { cluster: cluster.clone(), ca_type: ca_type.into(), keys: vec![key], extra: Extra::new() };
        Resource::new(Metadata::named(ResourceName::new(ca_type).unwrap()), spec).to_document()
    }
}

/// One cluster's authorities.
pub(crate) struct Cluster {
    pub(crate) name: ClusterName,
    user: Authority,
    host: Authority,
}

impl Cluster {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: ClusterName::new(name).unwrap(), user: Authority::new(), host: Authority::new() }
    }

    pub(crate) fn authorities(&self) -> Vec<Document> {
        vec![self.user.document(&self.name, "user"), self.host.document(&self.name, "host")]
    }
    pub(crate) fn trust(&self) -> ClusterTrust {
        ClusterTrust::from_documents(&self.name, &self.authorities())
    }

    /// A member's credentials; `names` are added to the certificate.
    pub(crate) fn member(&self, host: HostId, name: &str, role: SystemRole, names: &[&str]) -> HostCredentials {
        let identity = HostIdentity {
            cluster: self.name.clone(),
            id: host,
            name: NodeName::new(name).unwrap(),
            roles: BTreeSet::from([role.clone()]),
            extra: Extra::new(),
        };
        let key = KeyPair::generate().unwrap();
        let mut all = vec![sni::role_name(&role, &self.name), sni::host_name(&host)];
        all.extend(names.iter().map(|name| (*name).to_owned()));
        let principals: Vec<String> = rules::cert::host_names(&identity).into_iter().collect();
        let identity = Identity::Host(identity);
        let until = now().plus(24 * HOUR);
        let public = key.ssh_private().unwrap().public_key().clone();
        let reply = pb::HostCredentials {
            ssh_certificate: self.host.ssh(&identity, CertType::Host, &principals, &public, until).to_openssh().unwrap(),
            tls_certificate: self.host.x509(&identity, all, &key.spki_der(), until),
            authorities: self.authorities().iter().map(|document| document.to_json().into()).collect(),
            cluster_name: self.name.to_string(),
            labels: Default::default(),
        };
        HostCredentials::from_reply(key, &reply, None).unwrap()
    }

    pub(crate) fn identity(&self, user: &str, roles: &[&str], expires: Time) -> UserIdentity {
        UserIdentity {
            cluster: self.name.clone(),
            user: UserName::new(user).unwrap(),
            roles: roles.iter().map(|role| ResourceName::new(role).unwrap()).collect(),
            traits: Default::default(),
            logins: BTreeSet::from([Login::new("app").unwrap()]),
            expires,
            restrictions: Default::default(),
            extra: Extra::new(),
        }
    }

    /// What a login gives.
    pub(crate) fn user(&self, user: &str, roles: &[&str]) -> UserCredentials {
        self.user_with(self.identity(user, roles, now().plus(12 * HOUR)))
    }

    pub(crate) fn user_with(&self, identity: UserIdentity) -> UserCredentials {
        let key = KeyPair::generate().unwrap();
        let (ssh, tls) = self.user_certificates(identity, &key.ssh_public().unwrap(), &key.spki_der());
        UserCredentials::new(key, &ssh, &tls, self.trust()).unwrap()
    }

    /// SSH certificate line, X.509 chain.
    pub(crate) fn user_certificates(&self, identity: UserIdentity, ssh_public: &str, spki: &[u8]) -> (String, String) {
        let principals: Vec<String> = identity.logins.iter().map(ToString::to_string).collect();
        let until = identity.expires;
        let identity = Identity::User(identity);
        let public = PublicKey::from_openssh(ssh_public).unwrap();
        let ssh = self.user.ssh(&identity, CertType::User, &principals, &public, until).to_openssh().unwrap();
        (ssh, self.user.x509(&identity, vec![], spki, until))
    }
}
