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

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn now() -> Time {
    Time::from_unix(1_900_000_000)
}

pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) der: CertificateDer<'static>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self::living(now().minus(HOUR), now().plus(1000 * HOUR))
    }
    pub(crate) fn living(from: Time, until: Time) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (from.to_offset(), until.to_offset());
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }
    pub(crate) fn issue(&self, leaf: Leaf) -> TlsIdentity {
        let (params, key) = leaf.params();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        TlsIdentity::from_der(vec![certificate.der().clone(), self.der.clone()], key.serialized_der()).unwrap()
    }
    pub(crate) fn pin(&self) -> String {
        identity::pin_of_spki(&identity::spki_of(&self.der).unwrap())
    }
    /// An authority that this one signed for, as if an ordinary holder had become one.
    pub(crate) fn below(&self, leaf: Leaf) -> Self {
        let (mut params, key) = leaf.params();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }
}

pub(crate) struct Leaf {
    pub(crate) identity: Option<Identity>,
    pub(crate) names: Vec<String>,
    pub(crate) from: Time,
    pub(crate) until: Time,
}

impl Leaf {
    pub(crate) fn of(identity: Identity) -> Self {
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

pub(crate) struct Cluster {
    pub(crate) name: ClusterName,
    pub(crate) user_ca: Ca,
    pub(crate) host_ca: Ca,
    pub(crate) trusted: Swap<Authorities>,
    pub(crate) clock: ManualClock,
}

impl Cluster {
    pub(crate) fn new(name: &str) -> Self {
        let (user_ca, host_ca, name) = (Ca::new(), Ca::new(), ClusterName::new(name).unwrap());
        let trusted =
            Swap::new(Authorities::new(name.clone(), std::slice::from_ref(&user_ca.der), std::slice::from_ref(&host_ca.der)).unwrap());
        Self { name, user_ca, host_ca, trusted, clock: ManualClock::new(now()) }
    }
    pub(crate) fn clock(&self) -> SharedClock {
        self.clock.shared()
    }
    pub(crate) fn alice(&self) -> Identity {
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
    pub(crate) fn host(&self, role: SystemRole) -> Identity {
        Identity::Host(HostIdentity {
            cluster: self.name.clone(),
            id: HostId::from_uuid(uuid::Uuid::from_u128(7)),
            name: NodeName::new("node1").unwrap(),
            roles: BTreeSet::from([role]),
            extra: Extra::new(),
        })
    }
    pub(crate) fn alice_cert(&self) -> TlsIdentity {
        self.user_ca.issue(Leaf::of(self.alice()))
    }
    pub(crate) fn host_cert(&self, role: SystemRole) -> TlsIdentity {
        self.host_ca.issue(Leaf::of(self.host(role)))
    }
    pub(crate) fn name_of(&self, role: SystemRole) -> String {
        sni::role_name(&role, &self.name)
    }
}

pub(crate) fn hello(role: &str, version: &str) -> Hello {
    Hello { version: version.into(), ..Hello::ours(&Version::new(0, 0, 0), role) }
}
