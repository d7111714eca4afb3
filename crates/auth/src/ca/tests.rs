//! What the authorities sign, and what they refuse to: attack rows 1, 2, 3 and 17 from the signer's side.

use super::*;
use crate::ca::{
    issue::{HOST_LIFE, Keys},
    names::HostNames,
};
use types::{HostIdentity, SystemRole};

fn newborn(kind: CaKind) -> Newborn {
    generate(kind, &ClusterName::new("demo").unwrap(), Time::from_unix(1_800_000_000)).unwrap()
}

#[test]
fn fresh_keys_load_again_and_others_do_not_fit() {
    let (user, host, other) = (newborn(CaKind::User), newborn(CaKind::Host), newborn(CaKind::Host));
    let load = |user: (&CertAuthority, &[u8]), host: (&CertAuthority, &[u8])| Authorities::load(user, host);
    assert!(load((&user.public, &user.private), (&host.public, &host.private)).is_ok());
    let mixed = load((&user.public, &user.private), (&host.public, &other.private)).err().unwrap();
    assert_eq!(mixed.to_string(), "the keys of the host authority cannot be read: public and private halves differ");
    assert!(load((&user.public, b"{}"), (&host.public, &host.private)).is_err());
}

#[test]
fn an_authority_signs_leaves_only_and_its_pin_is_of_its_key() {
    let host = newborn(CaKind::Host);
    for key in &host.public.keys {
        let der = net::tls::identity::certificates_from_pem(key.tls.as_bytes()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der[0]).unwrap();
        let basic = parsed.basic_constraints().unwrap().unwrap().value;
        assert_eq!((basic.ca, basic.path_len_constraint), (true, Some(0)));
        let usage = parsed.key_usage().unwrap().unwrap().value;
        assert!(usage.key_cert_sign() && !usage.digital_signature());
        assert_eq!(key.pin, wire::identity::pin_of_spki(&wire::identity::spki_of(&der[0]).unwrap()));
        assert!(parsed.verify_signature(None).is_ok());
    }
    let algorithms: Vec<&str> = host.public.keys.iter().map(|key| key.algorithm.as_str()).collect();
    assert_eq!(algorithms, [ED25519, P256]);
}

#[test]
fn attack_row_17_a_hosts_certificate_serves_and_calls_and_an_administrators_only_calls() {
    let (user, host) = (newborn(CaKind::User), newborn(CaKind::Host));
    let authorities = Authorities::load((&user.public, &user.private), (&host.public, &host.private)).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let check = |role: SystemRole, serves: bool| {
        let identity = HostIdentity {
            cluster: ClusterName::new("demo").unwrap(),
            id: types::HostId::from_uuid(uuid::Uuid::from_u128(1)),
            name: types::NodeName::new("n").unwrap(),
            roles: [role.clone()].into(),
            extra: Extra::new(),
        };
        let keys = Keys::read("", &key.subject_public_key_info()).unwrap();
        let issued = authorities.issue_host(&identity, &HostNames::default(), &keys, HOST_LIFE, Time::from_unix(1_800_000_000)).unwrap();
        let chain = net::tls::identity::certificates_from_pem(issued.tls.as_bytes()).unwrap();
        assert_eq!(chain.len(), 2);
        let (_, parsed) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert_eq!((usage.client_auth, usage.server_auth, usage.any), (true, serves, false), "{role}");
        assert!(!parsed.basic_constraints().unwrap().unwrap().value.ca);
        assert_eq!(parsed.validity().not_before.timestamp(), 1_800_000_000 - 60);
    };
    check(SystemRole::Node, true);
    check(SystemRole::Auth, true);
    check(SystemRole::Admin, false);
}
