//! Certificates under attack: forged, wildcard, widened.

use crate::fixture::*;
use net::tls::{TlsIdentity, identity::certificates_from_pem};
use russh::keys::ssh_key::{Certificate, PrivateKey, PublicKey, certificate::Builder, certificate::CertType};
use std::{collections::BTreeSet, time::Duration};
use types::{Code, Identity, Login, SystemRole, Time, UserIdentity};
use wire::{
    api as pb,
    identity::{BadIdentity, SshCert, SshCertKind, from_x509_der, parse_ssh_certificate},
};

fn ca_keys(reply: &[bytes::Bytes], kind: &str) -> Vec<PublicKey> {
    let documents = reply.iter().map(|json| types::Document::from_json(json).unwrap());
    let authority = documents.into_iter().find(|document| document.metadata.name.as_str() == kind).unwrap();
    authority.spec["keys"].as_array().unwrap().iter().map(|key| key["ssh"].as_str().unwrap().parse().unwrap()).collect()
}

fn user_of(pem: &str) -> UserIdentity {
    match from_x509_der(&certificates_from_pem(pem.as_bytes()).unwrap()[0]).unwrap() {
        Identity::User(user) => user,
        Identity::Host(_) => panic!(),
    }
}

fn forged(signer: &PrivateKey, subject: &PrivateKey, kind: CertType, principal: &str) -> Certificate {
    let mut builder = Builder::new([7; 16], subject.public_key().key_data().clone(), 0, u64::MAX / 4).unwrap();
    builder.cert_type(kind).unwrap();
    builder.valid_principal(principal).unwrap();
    builder.sign(signer).unwrap()
}

#[tokio::test]
async fn attack_row_1_a_certificate_is_no_certificate_authority() {
    let cluster = Cluster::start().await;
    let (_, reply, keys) = cluster.logged_in("alice", &["access"], &["app"]).await;
    let (users, hosts) = (ca_keys(&reply.authorities, "user"), ca_keys(&reply.authorities, "host"));
    let attacker = Keys::new();
    for (kind, wanted, trusted) in [(CertType::User, SshCertKind::User, &users), (CertType::Host, SshCertKind::Host, &hosts)] {
        let with_key = forged(&keys.ssh, &attacker.ssh, kind, "root");
        assert_eq!(SshCert::verified(&with_key, wanted, trusted, cluster.now()), Err(BadIdentity::Issuer));
    }
    // The real one counts in its own domain only.
    let real = parse_ssh_certificate(&reply.ssh_certificate).unwrap();
    assert!(SshCert::verified(&real, SshCertKind::User, &users, cluster.now()).is_ok());
    assert_eq!(SshCert::verified(&real, SshCertKind::User, &hosts, cluster.now()), Err(BadIdentity::Issuer));
    assert!(SshCert::verified(&real, SshCertKind::Host, &hosts, cluster.now()).is_err());
}

#[tokio::test]
async fn attack_row_1_an_x509_leaf_signs_nothing_that_the_api_accepts() {
    let cluster = Cluster::start().await;
    let (_, reply, keys) = cluster.logged_in("alice", &["access"], &["app"]).await;
    let leaf = certificates_from_pem(reply.tls_certificate.as_bytes()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf[0]).unwrap();
    assert!(!parsed.basic_constraints().unwrap().unwrap().value.ca);
    let usages = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usages.client_auth && !usages.server_auth && !usages.any);

    // Alice signs an administrator with her own key and certificate.
    let mut admin = admin_file(cluster.dir.path()).identity;
    admin.name = "forged".parse().unwrap();
    let attacker = rcgen::KeyPair::generate().unwrap();
    let alices = rcgen::KeyPair::from_pem(&keys.tls.private_pem()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(&leaf[0], alices).unwrap();
    let mut params = rcgen::CertificateParams::default();
    let extension = wire::identity::to_x509_extension(&Identity::Host(admin));
    params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(wire::identity::OID_X509, extension)];
    let forged = params.signed_by(&attacker, &issuer).unwrap();
    for chain in [
        vec![forged.der().clone()],
        vec![forged.der().clone(), leaf[0].clone()],
        vec![forged.der().clone(), leaf[0].clone(), leaf[1].clone()],
    ] {
        let identity = TlsIdentity::from_der(chain, attacker.serialized_der()).unwrap();
        let refused = error(cluster.client(Some(&identity), "tctl").ping(pb::PingRequest {}).await);
        assert!(!refused.is(Code::Internal) || refused.message.contains("certificate"), "{refused}");
    }
}

#[tokio::test]
async fn attack_row_12_a_certificate_of_another_cluster_is_refused() {
    let (here, there) = (Cluster::start().await, Cluster::start().await);
    let (_, reply, keys) = there.logged_in("alice", &["access"], &["app"]).await;
    let mut foreign = here.client(Some(&keys.identity(&reply.tls_certificate)), "tsh");
    error(foreign.ping(pb::PingRequest {}).await);
}

#[tokio::test]
async fn attack_row_2_no_certificate_is_without_principals_or_with_a_wildcard() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    let wild = role_document("wild", serde_json::json!({"allow": {"logins": ["{{internal.logins}}"], "node_labels": {"*": "*"}}}));
    create(&mut admin, &wild).await.unwrap();
    let (_, none, _) = cluster.logged_in("nologin", &["editor"], &[]).await;
    let (_, odd, _) = cluster.logged_in("odd", &["wild"], &["*", "a,b", "root ", "", "-x", "app"]).await;
    let principals = |reply: &pb::UserCredentials| parse_ssh_certificate(&reply.ssh_certificate).unwrap().valid_principals().to_vec();
    assert_eq!(principals(&none), [rules::cert::NO_LOGIN]);
    assert!(Login::new(rules::cert::NO_LOGIN).is_err());
    assert_eq!(principals(&odd), ["app"]);
    // Validly signed all the same, such certificates are refused by the verifier.
    let signer = PrivateKey::random(&mut rand::rng(), russh::keys::Algorithm::Ed25519).unwrap();
    for principal in ["*", "", "a,b", "ro?t"] {
        let bad = forged(&signer, &signer, CertType::User, principal);
        let got = SshCert::verified(&bad, SshCertKind::User, &[signer.public_key().clone()], cluster.now());
        assert_eq!(got, Err(BadIdentity::Principals), "{principal:?}");
    }
}

#[tokio::test]
async fn attack_row_3_delimiters_in_names_reach_no_certificate() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    for bad in ["a,b", "a b", "a\0b", "a\nb", "\"a\"", "аlice", "*", "a:b", "a/b"] {
        let json = serde_json::json!({"kind": "user", "version": "v1", "metadata": {"name": bad}, "spec": {"roles": ["access"]}});
        let answer = admin.create(pb::WriteRequest { document: serde_json::to_vec(&json).unwrap().into() }).await;
        assert!(error(answer).is(Code::Malformed), "{bad:?}");
        let keys = Keys::new();
        let sign = pb::SignRequest { host_names: vec![bad.into()], ssh_public_key: keys.ssh_line(), ..Default::default() };
        assert!(error(admin.sign(sign).await).is(Code::Malformed), "{bad:?}");
        let local = cluster
            .auth
            .issue_local(host_id(50), "n".parse().unwrap(), [SystemRole::Proxy].into(), vec![bad.into()], keys.ssh_line(), keys.spki())
            .await;
        assert!(local.unwrap_err().is(Code::Malformed), "{bad:?}");
    }
}

#[tokio::test]
async fn attack_row_9_a_reissued_certificate_never_has_more() {
    let cluster = Cluster::start().await;
    let (mut alice, first, _) = cluster.logged_in("alice", &["access", "auditor"], &["app", "root"]).await;
    let old = user_of(&first.tls_certificate);
    // The user gets more meanwhile, and loses something.
    let mut admin = cluster.admin();
    let mut user = get(&mut admin, "user", "alice").await.unwrap();
    user.spec["roles"] = serde_json::json!(["access", "editor"]);
    user.spec["traits"]["logins"] = serde_json::json!(["app", "postgres"]);
    update(&mut admin, &user).await.unwrap();
    cluster.clock.advance(Duration::from_secs(3600));
    let keys = Keys::new();
    let ask = |ttl, host: &str| pb::ReissueRequest {
        ssh_public_key: keys.ssh_line(),
        tls_public_key: keys.spki().into(),
        ttl,
        host_id: host.into(),
    };
    let reply = alice.reissue(ask(100 * 3600, "")).await.unwrap().into_inner();
    let new = user_of(&reply.tls_certificate);
    assert!(new.roles.is_subset(&old.roles) && new.logins.is_subset(&old.logins) && new.expires <= old.expires);
    assert_eq!((new.roles.len(), new.logins), (1, BTreeSet::from([Login::new("app").unwrap()])));

    let bound = alice.reissue(ask(60, &host_id(11).to_string())).await.unwrap().into_inner();
    let bound_user = user_of(&bound.tls_certificate);
    assert_eq!((bound_user.restrictions.host, bound_user.expires), (Some(host_id(11)), cluster.now().plus(Duration::from_secs(60))));
    // From a bound certificate there is no way to another host, nor to a longer life.
    let mut again = cluster.client(Some(&keys.identity(&bound.tls_certificate)), "tsh");
    assert!(error(again.reissue(ask(0, &host_id(12).to_string())).await).is(Code::AccessIdentity));
    let same = user_of(&again.reissue(ask(9000, "")).await.unwrap().into_inner().tls_certificate);
    assert_eq!((same.restrictions.host, same.expires), (Some(host_id(11)), bound_user.expires));
    assert_eq!(events(&cluster, "cert.create").await.iter().filter(|event| event.code == "LC000W").count(), 1);
}

#[tokio::test]
async fn the_administrator_signs_for_users_and_for_names_of_hosts() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    create(&mut admin, &user_document("bot", &["access"], &["app"])).await.unwrap();
    let keys = Keys::new();
    let ask = pb::SignRequest {
        user: "bot".into(),
        ssh_public_key: keys.ssh_line(),
        tls_public_key: keys.spki().into(),
        ttl: 3600,
        ..Default::default()
    };
    let reply = admin.sign(ask.clone()).await.unwrap().into_inner();
    assert_eq!(reply.expires.parse::<Time>().unwrap(), cluster.now().plus(Duration::from_secs(3600)));
    let mut bot = cluster.client(Some(&keys.identity(&reply.tls_certificate)), "tsh");
    assert_eq!(names(&mut bot, "user").await, ["bot"]);
    assert!(error(admin.sign(pb::SignRequest { user: "nobody".into(), ..ask }).await).is(Code::NotFound));

    let ask = pb::SignRequest {
        host_names: vec!["git.example.com".into(), "10.0.0.7".into()],
        ssh_public_key: keys.ssh_line(),
        tls_public_key: keys.spki().into(),
        ..Default::default()
    };
    let host = admin.sign(ask).await.unwrap().into_inner();
    let certificate = parse_ssh_certificate(&host.ssh_certificate).unwrap();
    assert_eq!(
        (certificate.cert_type(), certificate.valid_principals()),
        (CertType::Host, &["git.example.com".to_owned(), "10.0.0.7".to_owned()][..])
    );
    // It has no identity: nobody lets its holder in.
    let stranger = keys.identity(&host.tls_certificate);
    error(cluster.client(Some(&stranger), "node").ping(pb::PingRequest {}).await);
}

#[tokio::test]
async fn rsa_keys_certificates_and_garbage_are_no_public_keys() {
    let cluster = Cluster::start().await;
    let (_, reply, _) = cluster.logged_in("alice", &["access"], &["app"]).await;
    cluster.user("bob", &["access"], &[]).await;
    let good = Keys::new();
    let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7 x";
    for (ssh, tls) in [
        (rsa, good.spki()),
        (reply.ssh_certificate.as_str(), good.spki()),
        ("", good.spki()),
        (&good.ssh_line(), vec![0; 40]),
        (&good.ssh_line(), Vec::new()),
    ] {
        let mut request = login_request("bob", PASSWORD, "", &good);
        request.ssh_public_key = ssh.into();
        request.tls_public_key = tls.into();
        assert!(error(cluster.proxy().await.login(request).await).is(Code::Malformed), "{ssh}");
    }
}
