//! Attack rows 1, 2 and 3 at the level of facts; the same rows with real bytes are in `wire` and `harness`.

use super::*;
use crate::access::tests::{host_identity, identity};

fn blob(algorithm: &str, key: u8) -> Vec<u8> {
    let mut out = u32::try_from(algorithm.len()).unwrap().to_be_bytes().to_vec();
    out.extend(algorithm.as_bytes());
    out.extend([0, 0, 0, 32]);
    out.extend([key; 32]);
    out
}
const USER_CA: u8 = 1;
const HOST_CA: u8 = 2;

fn trust() -> Trust {
    let keys = |key| BTreeSet::from([PlainKey::from_blob(&blob("ssh-ed25519", key)).unwrap()]);
    Trust { cluster: ClusterName::new("example").unwrap(), user_keys: keys(USER_CA), host_keys: keys(HOST_CA) }
}
fn user_facts() -> CertFacts {
    CertFacts {
        kind: CertKind::User,
        principals: vec!["app".into(), "root".into()],
        valid_after: Time::from_unix(100),
        valid_before: Time::from_unix(1000),
        critical_options: Vec::new(),
        signing_key: blob("ssh-ed25519", USER_CA),
        signature_holds: true,
        identity: Some(Identity::User(identity("alice", &["access"], &["app", "root"]))),
    }
}
fn host_facts() -> CertFacts {
    let host = host_identity("node1");
    CertFacts {
        kind: CertKind::Host,
        principals: host_names(&host).into_iter().collect(),
        signing_key: blob("ssh-ed25519", HOST_CA),
        identity: Some(Identity::Host(host)),
        ..user_facts()
    }
}
fn now() -> Time {
    Time::from_unix(500)
}
fn user(change: impl FnOnce(&mut CertFacts)) -> Result<Permit<Enter>, Denied> {
    let mut facts = user_facts();
    change(&mut facts);
    accept_user(&facts, &trust(), None, now())
}
fn host(expected: &str, change: impl FnOnce(&mut CertFacts)) -> Result<Permit<Enter>, Denied> {
    let mut facts = host_facts();
    change(&mut facts);
    accept_host(&facts, &trust(), expected, now())
}
fn refused(got: Result<Permit<Enter>, Denied>, want: Refused) {
    assert_eq!(got.unwrap_err(), Denied::Certificate(want));
}

#[test]
fn a_genuine_certificate_is_accepted() {
    assert_eq!(user(|_| ()).unwrap().identity.display(), "alice");
    for name in ["node1", "node1.example", "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000001.example"] {
        assert!(host(name, |_| ()).is_ok(), "{name}");
    }
}

#[test]
fn attack_row_1_a_certificate_is_not_an_authority() {
    // A user's certified key as signing key: the certificate blob, and the bare key.
    refused(user(|facts| facts.signing_key = blob("ssh-ed25519-cert-v01@openssh.com", USER_CA)), Refused::SigningKeyType);
    refused(user(|facts| facts.signing_key = blob("ssh-ed25519", 9)), Refused::SigningKey);
    refused(host("node1", |facts| facts.signing_key = blob("ecdsa-sha2-nistp256-cert-v01@openssh.com", HOST_CA)), Refused::SigningKeyType);
    refused(host("node1", |facts| facts.signing_key = blob("ssh-ed25519", 9)), Refused::SigningKey);
    // Authorities do not stand in for each other, nor algorithms.
    refused(user(|facts| facts.signing_key = blob("ssh-ed25519", HOST_CA)), Refused::SigningKey);
    refused(host("node1", |facts| facts.signing_key = blob("ssh-ed25519", USER_CA)), Refused::SigningKey);
    refused(user(|facts| facts.signing_key = blob("ecdsa-sha2-nistp256", USER_CA)), Refused::SigningKey);
    for weak in ["ssh-rsa", "ssh-dss", "ssh-ed25519,ssh-rsa", "SSH-ED25519", "", "sk-ssh-ed25519@openssh.com"] {
        refused(user(|facts| facts.signing_key = blob(weak, USER_CA)), Refused::SigningKeyType);
    }
    for broken in [vec![], vec![0, 0], vec![255; 4], vec![0, 0, 0, 11]] {
        refused(user(|facts| facts.signing_key = broken), Refused::SigningKeyType);
    }
    refused(user(|facts| facts.signature_holds = false), Refused::Signature);
    refused(user(|facts| facts.signing_key.push(0)), Refused::SigningKey);
}

#[test]
fn attack_row_2_empty_and_wildcard_principals_are_refused_even_when_signed() {
    refused(user(|facts| facts.principals.clear()), Refused::NoPrincipals);
    refused(host("node1", |facts| facts.principals.clear()), Refused::NoPrincipals);
    for bad in ["*", "", "a*", "?"] {
        refused(user(|facts| facts.principals.push(bad.into())), Refused::Principal(bad.into()));
        refused(host("node1", |facts| facts.principals.push(bad.into())), Refused::Principal(bad.into()));
    }
    // A user without logins has a principal that is no login.
    let nobody = identity("bob", &["editor"], &[]);
    assert_eq!(user_principals(&nobody), [NO_LOGIN]);
    assert!(Login::new(NO_LOGIN).is_err());
    let got = user(|facts| {
        facts.principals = user_principals(&nobody);
        facts.identity = Some(Identity::User(nobody.clone()));
    });
    assert!(got.is_ok());
}

#[test]
fn attack_row_3_delimiters_inside_a_principal_are_refused() {
    for bad in ["app,root", "app root", "app\0", "app\n", "\"app\"", "app;", "аpp", "app\u{200b}"] {
        let got = user(|facts| facts.principals = vec![bad.into()]);
        assert!(matches!(got, Err(Denied::Certificate(Refused::Principal(_)))), "{bad:?}");
    }
    assert!(host("NODE1", |_| ()).is_err(), "names compare byte by byte");
    assert!(host("node", |_| ()).is_err());
    assert!(host("node1,node2", |_| ()).is_err());
}

#[test]
fn kind_time_options_cluster_and_identity_must_fit() {
    refused(user(|facts| facts.kind = CertKind::Host), Refused::Kind { found: "host", wanted: "user" });
    refused(host("node1", |facts| facts.kind = CertKind::User), Refused::Kind { found: "user", wanted: "host" });
    refused(user(|facts| facts.valid_after = Time::from_unix(501)), Refused::NotYet);
    refused(user(|facts| facts.valid_before = Time::from_unix(500)), Refused::Ended);
    refused(
        user(|facts| facts.critical_options = vec![("force-command".into(), "true".into())]),
        Refused::CriticalOption("force-command".into()),
    );
    refused(
        user(|facts| facts.critical_options = vec![("verify-required".into(), String::new())]),
        Refused::CriticalOption("verify-required".into()),
    );
    refused(user(|facts| facts.identity = None), Refused::NoIdentity);
    refused(user(|facts| facts.identity = Some(Identity::Host(host_identity("x")))), Refused::Disagrees("a user certificate for a host"));
    refused(user(|facts| facts.principals = vec!["root".into()]), Refused::Disagrees("principals and logins differ"));
    refused(user(|facts| facts.valid_before = Time::from_unix(1_000_000_000_000)), Refused::Disagrees("it ends later than its identity"));
    let mut stranger = identity("alice", &["access"], &["app", "root"]);
    stranger.cluster = ClusterName::new("other").unwrap();
    refused(user(|facts| facts.identity = Some(Identity::User(stranger.clone()))), Refused::Cluster("other".into()));
}

#[test]
fn a_bound_address_must_be_the_peers() {
    let check = |bound: &str, peer: Option<&str>, want: bool| {
        let mut facts = user_facts();
        facts.critical_options = vec![("source-address".into(), bound.into())];
        let got = accept_user(&facts, &trust(), peer.map(|text| text.parse().unwrap()), now());
        assert_eq!(got.is_ok(), want, "{bound} from {peer:?}");
    };
    check("10.0.0.1/32", Some("10.0.0.1"), true);
    check("10.0.0.1", Some("::ffff:10.0.0.1"), true);
    check("10.0.0.1/32,::1/128", Some("::1"), true);
    check("10.0.0.1/32", Some("10.0.0.2"), false);
    check("10.0.0.1/32", None, false);
    check("10.0.0.0/8", Some("10.0.0.1"), false);
    check("0.0.0.0/0", Some("10.0.0.1"), false);
    check("", Some("10.0.0.1"), false);
}

#[test]
fn a_tls_peer_must_chain_directly_to_the_right_authority() {
    let cluster = ClusterName::new("example").unwrap();
    let facts = || TlsFacts {
        issuer: Some(CertKind::User),
        is_ca: false,
        intermediates: 0,
        valid_after: Time::from_unix(100),
        valid_before: Time::from_unix(1000),
        identity: user_facts().identity,
    };
    let check = |facts: TlsFacts, want: bool| assert_eq!(accept_tls(&facts, &cluster, None, now()).is_ok(), want, "{facts:?}");
    check(facts(), true);
    check(TlsFacts { issuer: Some(CertKind::Host), identity: host_facts().identity, ..facts() }, true);
    check(TlsFacts { issuer: None, ..facts() }, false);
    check(TlsFacts { issuer: Some(CertKind::Host), ..facts() }, false);
    check(TlsFacts { identity: host_facts().identity, ..facts() }, false);
    check(TlsFacts { is_ca: true, ..facts() }, false);
    check(TlsFacts { intermediates: 1, ..facts() }, false);
    check(TlsFacts { identity: None, ..facts() }, false);
    check(TlsFacts { valid_before: now(), ..facts() }, false);
    let other = ClusterName::new("other").unwrap();
    assert!(accept_tls(&facts(), &other, None, now()).is_err());
}

#[test]
fn attack_row_34_a_restriction_that_is_not_known_here_is_kept_by_refusing() {
    let restricted = |facts: &mut CertFacts| {
        let mut held = identity("alice", &["access"], &["app", "root"]);
        held.restrictions.extra.insert("device".into(), "laptop-7".into());
        facts.identity = Some(Identity::User(held));
    };
    let denied = user(restricted).unwrap_err();
    assert_eq!(denied, Denied::Restricted("\"device\" is not known to this release".into()));
    let Some(Identity::User(held)) = &({
        let mut facts = user_facts();
        restricted(&mut facts);
        facts.identity
    }) else {
        panic!()
    };
    assert!(crate::access::in_force(&held.cluster, held, None, now()).is_err());
    let facts = TlsFacts {
        issuer: Some(CertKind::User),
        is_ca: false,
        intermediates: 0,
        valid_after: Time::from_unix(100),
        valid_before: Time::from_unix(1000),
        identity: Some(Identity::User(held.clone())),
    };
    assert!(accept_tls(&facts, &held.cluster, None, now()).is_err());
    // What says more about its holder, and restricts nothing, does no harm.
    assert!(
        user(|facts| {
            let mut held = identity("alice", &["access"], &["app", "root"]);
            held.extra.insert("department".into(), "x".into());
            facts.identity = Some(Identity::User(held));
        })
        .is_ok()
    );
}
