//! Two clusters' worth of certificate authorities and certificates, made anew for each test.

use net::{
    clock::{ManualClock, SharedClock},
    swap::Swap,
    tls::{Authorities, CertificateDer, TlsIdentity},
};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256};
use std::{collections::BTreeSet, time::Duration};
use types::{ClusterName, Extra, HostId, HostIdentity, Identity, NodeName, SystemRole, Time, UserIdentity, UserName, Version};
use wire::{hello::Hello, identity, sni};

pub const HOUR: Duration = Duration::from_secs(3600);

pub fn now() -> Time {
    Time::from_unix(1_900_000_000)
}

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub der: CertificateDer<'static>,
}

impl Ca {
    pub fn new() -> Self {
        Self::living(now().minus(HOUR), now().plus(1000 * HOUR))
    }
    pub fn living(from: Time, until: Time) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (from.to_offset(), until.to_offset());
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }
    pub fn issue(&self, leaf: Leaf) -> TlsIdentity {
        let (params, key) = leaf.params();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        TlsIdentity::from_der(vec![certificate.der().clone(), self.der.clone()], key.serialized_der()).unwrap()
    }
    pub fn pin(&self) -> String {
        identity::pin_of_spki(&identity::spki_of(&self.der).unwrap())
    }
    /// An authority that this one signed for, as if an ordinary holder had become one.
    pub fn below(&self, leaf: Leaf) -> Self {
        let (mut params, key) = leaf.params();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }
}

pub struct Leaf {
    pub identity: Option<Identity>,
    pub names: Vec<String>,
    pub from: Time,
    pub until: Time,
}

impl Leaf {
    pub fn of(identity: Identity) -> Self {
        let names = match &identity {
            Identity::User(_) => vec![],
            Identity::Host(host) => {
                let roles = host.roles.iter().map(|role| sni::role_name(role, &host.cluster));
                roles.chain([sni::host_name(&host.id)]).collect()
            }
        };
        Self { identity: Some(identity), names, from: now().minus(HOUR), until: now().plus(12 * HOUR) }
    }
    fn params(self) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::new(self.names).unwrap();
        (params.not_before, params.not_after) = (self.from.to_offset(), self.until.to_offset());
        if let Some(identity) = &self.identity {
            let content = identity::to_x509_extension(identity);
            params.custom_extensions = vec![CustomExtension::from_oid_content(identity::OID_X509, content)];
        }
        (params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }
}

pub struct Cluster {
    pub name: ClusterName,
    pub user_ca: Ca,
    pub host_ca: Ca,
    pub trusted: Swap<Authorities>,
    pub clock: ManualClock,
}

impl Cluster {
    pub fn new(name: &str) -> Self {
        let (user_ca, host_ca, name) = (Ca::new(), Ca::new(), ClusterName::new(name).unwrap());
        let trusted = Swap::new(Authorities::new(name.clone(), &[user_ca.der.clone()], &[host_ca.der.clone()]).unwrap());
        Self { name, user_ca, host_ca, trusted, clock: ManualClock::new(now()) }
    }
    pub fn clock(&self) -> SharedClock {
        self.clock.shared()
    }
    pub fn alice(&self) -> Identity {
        Identity::User(UserIdentity {
            cluster: self.name.clone(),
            user: UserName::new("alice").unwrap(),
            roles: BTreeSet::new(),
            traits: Default::default(),
            logins: BTreeSet::new(),
            expires: now().plus(12 * HOUR),
            restrictions: Default::default(),
            extra: Extra::new(),
        })
    }
    pub fn host(&self, role: SystemRole) -> Identity {
        Identity::Host(HostIdentity {
            cluster: self.name.clone(),
            id: HostId::from_uuid(uuid::Uuid::from_u128(7)),
            name: NodeName::new("node1").unwrap(),
            roles: BTreeSet::from([role]),
            extra: Extra::new(),
        })
    }
    pub fn alice_cert(&self) -> TlsIdentity {
        self.user_ca.issue(Leaf::of(self.alice()))
    }
    pub fn host_cert(&self, role: SystemRole) -> TlsIdentity {
        self.host_ca.issue(Leaf::of(self.host(role)))
    }
    pub fn name_of(&self, role: SystemRole) -> String {
        sni::role_name(&role, &self.name)
    }
}

pub fn hello(role: &str, version: &str) -> Hello {
    Hello { version: version.into(), ..Hello::ours(&Version::new(0, 0, 0), role) }
}
