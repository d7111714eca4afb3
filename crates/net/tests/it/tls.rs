//! `net::tls`: who is believed to be whom. Two clusters, every confusion of authority, holder, cluster, name and time.
//!
//! Attack rows 1 (a certificate as an authority) and 12 (confusion between clusters) on the TLS side; the SSH side is in the
//! services. Handshakes run over pipes with a clock that stands still.

use crate::world::{Ca, Cluster, HOUR, Leaf, now};
use net::{
    clock::SharedClock,
    dial::{self, DialError},
    eager::Eager,
    tls::{
        Accepted, Authorities, Certificates, ClientAuth, ClientConfig, IdentifyError, Pin, PinnedName, ServerConfig, TlsError, TlsIdentity,
        Trust, accept, client_config, identify, server_config,
    },
};
use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::client::TlsStream;
use types::{Code, Identity, SystemRole};
use wire::{alpn, sni};

const SOON: Duration = Duration::from_secs(5);

fn identified(cluster: &Cluster, shown: &TlsIdentity) -> Result<Option<Identity>, IdentifyError> {
    identify(Some(shown.chain()), &cluster.trusted.load(), now())
}

#[test]
fn attack_row_12_a_certificate_counts_only_from_the_right_authority_for_the_right_holder_of_the_right_cluster() {
    let (ours, theirs) = (Cluster::new("prod"), Cluster::new("other"));
    let (alice, node) = (ours.alice(), ours.host(SystemRole::Node));
    assert_eq!(identified(&ours, &ours.alice_cert()), Ok(Some(alice.clone())));
    assert_eq!(identified(&ours, &ours.host_cert(SystemRole::Node)), Ok(Some(node.clone())));
    assert_eq!(identify(None, &ours.trusted.load(), now()), Ok(None));
    assert_eq!(identify(Some(&[]), &ours.trusted.load(), now()), Ok(None));

    let check = |what: &str, shown: TlsIdentity, want: IdentifyError| assert_eq!(identified(&ours, &shown), Err(want), "{what}");
    check("a user signed by the host authority", ours.host_ca.issue(Leaf::of(alice.clone())), IdentifyError::WrongAuthority);
    check("a host signed by the user authority", ours.user_ca.issue(Leaf::of(node.clone())), IdentifyError::WrongAuthority);
    check("a user of another cluster", theirs.alice_cert(), IdentifyError::Untrusted);
    check("a host of another cluster", theirs.host_cert(SystemRole::Auth), IdentifyError::Untrusted);
    check("another cluster's authority for our user", theirs.user_ca.issue(Leaf::of(alice.clone())), IdentifyError::Untrusted);
    check("our authority for another cluster's user", ours.user_ca.issue(Leaf::of(theirs.alice())), IdentifyError::ForeignCluster);
    check(
        "our authority for another cluster's host",
        ours.host_ca.issue(Leaf::of(theirs.host(SystemRole::Node))),
        IdentifyError::ForeignCluster,
    );
}

#[test]
fn a_certificate_out_of_its_time_or_without_an_identity_is_refused() {
    let cluster = Cluster::new("prod");
    let check = |leaf: Leaf, want: fn(&IdentifyError) -> bool| {
        let refused = identified(&cluster, &cluster.user_ca.issue(leaf)).unwrap_err();
        assert!(want(&refused), "{refused:?}");
    };
    let leaf = || Leaf::of(cluster.alice());
    check(Leaf { until: now().minus(HOUR / 2), ..leaf() }, |e| *e == IdentifyError::Expired);
    check(Leaf { from: now().plus(HOUR), ..leaf() }, |e| *e == IdentifyError::NotYet);
    check(Leaf { identity: None, ..leaf() }, |e| matches!(e, IdentifyError::Unreadable(_)));
    let Identity::User(mut user) = cluster.alice() else { panic!() };
    user.expires = now();
    check(Leaf::of(Identity::User(user)), |e| *e == IdentifyError::Expired);
}

#[test]
fn attack_row_1_a_certificate_that_another_certificate_signed_is_no_certificate() {
    let cluster = Cluster::new("prod");
    let upstart = cluster.user_ca.below(Leaf::of(cluster.alice()));
    let forged = upstart.issue(Leaf::of(cluster.alice()));
    assert_eq!(forged.chain().len(), 2, "the upstart's own certificate travels along");
    assert_eq!(identified(&cluster, &forged), Err(IdentifyError::Untrusted));
    let root = [cluster.user_ca.der.clone()];
    assert!(identify(Some(&root), &cluster.trusted.load(), now()).is_err(), "an authority is nobody");
}

#[test]
fn without_authorities_nobody_is_known() {
    let cluster = Cluster::new("prod");
    let none = Authorities::new(cluster.name.clone(), &[], &[]).unwrap();
    assert_eq!(identify(Some(cluster.alice_cert().chain()), &none, now()), Err(IdentifyError::Untrusted));
    assert!(matches!(Authorities::new(cluster.name.clone(), &[vec![1, 2, 3].into()], &[]), Err(TlsError::Authority(_))));
}

type Ends = (Result<(TlsStream<Eager<DuplexStream>>, Vec<u8>), DialError>, Result<Accepted<DuplexStream>, TlsError>);

/// One connection over a pipe; the server says `hi`, which the client waits for: it is how a client learns of a refusal.
async fn meet(cluster: &Cluster, calling: Arc<ClientConfig>, serving: Arc<ServerConfig>, name: &str) -> Ends {
    let (a, b) = duplex(1 << 16);
    let clock = cluster.clock();
    let server = async {
        let mut accepted = accept(b, serving, &cluster.trusted, &clock, SOON).await?;
        accepted.stream.write_all(b"hi").await.map_err(TlsError::Handshake)?;
        accepted.stream.flush().await.map_err(TlsError::Handshake)?;
        Ok(accepted)
    };
    let client = async {
        let mut stream = dial::tls(a, "pipe", calling, name).await?;
        let mut got = vec![0; 2];
        match stream.read_exact(&mut got).await {
            Ok(_) => Ok((stream, got)),
            Err(source) => Err(DialError::Tls { addr: "pipe".into(), source }),
        }
    };
    tokio::join!(client, server)
}

fn serving(cluster: &Cluster, certificate: &TlsIdentity, auth: ClientAuth) -> Arc<ServerConfig> {
    server_config(Certificates::fixed(certificate), auth, &cluster.trusted, &[alpn::AUTH], &cluster.clock()).unwrap()
}

fn calling(cluster: &Cluster, identity: Option<&TlsIdentity>) -> Arc<ClientConfig> {
    client_config(identity, Trust::Cluster(cluster.trusted.clone()), &[alpn::AUTH], &cluster.clock()).unwrap()
}

#[tokio::test]
async fn members_meet_over_post_quantum_tls_1_3_and_know_each_other() {
    let cluster = Cluster::new("prod");
    let serving = serving(&cluster, &cluster.host_cert(SystemRole::Auth), ClientAuth::Required);
    let calling = calling(&cluster, Some(&cluster.host_cert(SystemRole::Proxy)));
    let (client, server) = meet(&cluster, calling, serving, &cluster.name_of(SystemRole::Auth)).await;
    let (stream, accepted) = (client.unwrap().0, server.unwrap());
    assert_eq!(accepted.identity, Some(cluster.host(SystemRole::Proxy)));
    assert_eq!(accepted.alpn(), Some(alpn::AUTH));
    let session = stream.get_ref().1;
    assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(session.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn a_refused_client_certificate_reaches_both_ends_as_a_named_reason() {
    let (cluster, other) = (Cluster::new("prod"), Cluster::new("other"));
    let serving = |auth| serving(&cluster, &cluster.host_cert(SystemRole::Auth), auth);
    let expired = cluster.user_ca.issue(Leaf { until: now().minus(HOUR / 2), ..Leaf::of(cluster.alice()) });
    let crossed = cluster.host_ca.issue(Leaf::of(cluster.alice()));
    let table = [
        (None, ClientAuth::Required, Some(Code::LoginRequired)),
        (None, ClientAuth::Optional, None),
        (Some(cluster.alice_cert()), ClientAuth::Optional, None),
        (Some(cluster.alice_cert()), ClientAuth::None, None),
        (Some(expired.clone()), ClientAuth::Required, Some(Code::LoginExpired)),
        (Some(expired), ClientAuth::Optional, Some(Code::LoginExpired)),
        (Some(other.alice_cert()), ClientAuth::Optional, Some(Code::AccessIdentity)),
        (Some(crossed), ClientAuth::Required, Some(Code::AccessIdentity)),
    ];
    for (shown, auth, want) in table {
        let (client, server) = meet(&cluster, calling(&cluster, shown.as_ref()), serving(auth), &cluster.name_of(SystemRole::Auth)).await;
        let told = client.err().map(|error| error.public().known().unwrap());
        assert_eq!(told, want, "{shown:?} where {auth:?}");
        assert_eq!(server.is_ok(), want.is_none());
        if let Ok(accepted) = server {
            assert_eq!(accepted.identity.is_some(), shown.is_some() && auth != ClientAuth::None);
        }
    }
}

#[tokio::test]
async fn attack_row_12_a_client_talks_only_to_the_member_it_asked_for() {
    let (cluster, other) = (Cluster::new("prod"), Cluster::new("other"));
    let auth = cluster.name_of(SystemRole::Auth);
    let expired = cluster.host_ca.issue(Leaf { until: now().minus(HOUR / 2), ..Leaf::of(cluster.host(SystemRole::Auth)) });
    let as_auth = Leaf { names: vec![auth.clone()], ..Leaf::of(cluster.alice()) };
    let upstart = cluster.host_ca.below(Leaf::of(cluster.host(SystemRole::Node))).issue(Leaf::of(cluster.host(SystemRole::Auth)));
    let table = [
        ("the Auth Service", cluster.host_cert(SystemRole::Auth), auth.clone(), true),
        (
            "a host by its id",
            cluster.host_cert(SystemRole::Node),
            sni::host_name(&types::HostId::from_uuid(uuid::Uuid::from_u128(7))),
            true,
        ),
        (
            "another host's id",
            cluster.host_cert(SystemRole::Node),
            sni::host_name(&types::HostId::from_uuid(uuid::Uuid::from_u128(8))),
            false,
        ),
        ("a Proxy as Auth Service", cluster.host_cert(SystemRole::Proxy), auth.clone(), false),
        ("another cluster's Auth Service", other.host_cert(SystemRole::Auth), other.name_of(SystemRole::Auth), false),
        ("a name that the user authority signed", cluster.user_ca.issue(as_auth), auth.clone(), false),
        ("an expired certificate", expired, auth.clone(), false),
        ("a certificate that a host signed", upstart, auth, false),
    ];
    for (what, shown, name, good) in table {
        let serving = serving(&cluster, &shown, ClientAuth::None);
        let (client, _) = meet(&cluster, calling(&cluster, None), serving, &name).await;
        match client {
            Ok(_) => assert!(good, "{what} was trusted"),
            Err(error) => assert!(!good && error.public().is(Code::Certificate), "{what}: {error}"),
        }
    }
}

#[tokio::test]
async fn sessions_resume_and_still_know_their_holder() {
    let cluster = Cluster::new("prod");
    let serving = serving(&cluster, &cluster.host_cert(SystemRole::Auth), ClientAuth::Required);
    let calling = calling(&cluster, Some(&cluster.alice_cert()));
    for want in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let (client, server) = meet(&cluster, calling.clone(), serving.clone(), &cluster.name_of(SystemRole::Auth)).await;
        assert_eq!(client.unwrap().0.get_ref().1.handshake_kind(), Some(want));
        assert_eq!(server.unwrap().identity, Some(cluster.alice()));
    }
}

#[tokio::test]
async fn a_resumed_session_is_refused_once_its_certificate_expired_or_its_authority_is_gone() {
    async fn resumed(cluster: &Cluster, change: impl FnOnce(&Cluster)) -> Result<Accepted<DuplexStream>, TlsError> {
        let serving = serving(cluster, &cluster.host_cert(SystemRole::Auth), ClientAuth::Required);
        // A client that does not notice the change: its own view of the cluster stays as it was.
        let view = net::swap::Swap::new(Authorities::new(cluster.name.clone(), &[], std::slice::from_ref(&cluster.host_ca.der)).unwrap());
        let clock: SharedClock = net::clock::ManualClock::new(now()).shared();
        let calling = client_config(Some(&cluster.alice_cert()), Trust::Cluster(view), &[alpn::AUTH], &clock).unwrap();
        meet(cluster, calling.clone(), serving.clone(), &cluster.name_of(SystemRole::Auth)).await.1.unwrap();
        change(cluster);
        meet(cluster, calling, serving, &cluster.name_of(SystemRole::Auth)).await.1
    }
    let cluster = Cluster::new("prod");
    assert!(resumed(&cluster, |_| {}).await.is_ok());

    let rotate = |cluster: &Cluster| {
        let authorities = Authorities::new(cluster.name.clone(), &[Ca::new().der], std::slice::from_ref(&cluster.host_ca.der));
        cluster.trusted.store(authorities.unwrap());
    };
    assert!(matches!(resumed(&cluster, rotate).await, Err(TlsError::Identify(IdentifyError::Untrusted))));

    let cluster = Cluster::new("prod");
    // A ticket of rustls outlives this certificate by far.
    let short = Leaf { until: now().plus(Duration::from_secs(60)), ..Leaf::of(cluster.alice()) };
    let serving = serving(&cluster, &cluster.host_cert(SystemRole::Auth), ClientAuth::Required);
    let calling = calling(&cluster, Some(&cluster.user_ca.issue(short)));
    meet(&cluster, calling.clone(), serving.clone(), &cluster.name_of(SystemRole::Auth)).await.1.unwrap();
    cluster.clock.advance(Duration::from_secs(120));
    let late = meet(&cluster, calling, serving, &cluster.name_of(SystemRole::Auth)).await.1;
    assert!(matches!(late, Err(TlsError::Identify(IdentifyError::Expired))), "{late:?}");
}

#[tokio::test]
async fn a_change_of_authorities_takes_effect_on_the_next_connection_of_both_ends() {
    let cluster = Cluster::new("prod");
    let old = serving(&cluster, &cluster.host_cert(SystemRole::Auth), ClientAuth::Optional);
    let calling = calling(&cluster, None);
    let name = cluster.name_of(SystemRole::Auth);
    meet(&cluster, calling.clone(), old.clone(), &name).await.0.unwrap();

    let next = Ca::new();
    cluster.trusted.store(
        Authorities::new(cluster.name.clone(), std::slice::from_ref(&cluster.user_ca.der), std::slice::from_ref(&next.der)).unwrap(),
    );
    let refused = meet(&cluster, calling.clone(), old, &name).await.0.map(|_| ());
    assert!(refused.unwrap_err().public().is(Code::Certificate), "the ticket of a withdrawn authority was honoured");
    let renewed = serving(&cluster, &next.issue(Leaf::of(cluster.host(SystemRole::Auth))), ClientAuth::Optional);
    meet(&cluster, calling, renewed, &name).await.0.unwrap();
}

#[tokio::test]
async fn attack_row_12_a_pin_admits_the_authority_that_has_it_and_what_that_signed() {
    let (cluster, other) = (Cluster::new("prod"), Cluster::new("other"));
    let auth = cluster.host_cert(SystemRole::Auth);
    let key_of = |identity: &TlsIdentity| identity.key_der().to_vec();
    let chain = |parts: &[&TlsIdentity], last: Option<&Ca>| {
        let mut chain = vec![parts[0].chain()[0].clone()];
        chain.extend(last.map(|ca| ca.der.clone()));
        TlsIdentity::from_der(chain, &key_of(parts[0])).unwrap()
    };
    let dead = Ca::living(now().minus(10 * HOUR), now().minus(HOUR));
    let dead_auth = dead.issue(Leaf::of(cluster.host(SystemRole::Auth)));
    let expired = cluster.host_ca.issue(Leaf { until: now().minus(HOUR / 2), ..Leaf::of(cluster.host(SystemRole::Auth)) });
    let (known, joining) = (PinnedName::Checked, PinnedName::AuthOfUnknownCluster);
    let table = [
        ("the Auth Service, by name", auth.clone(), cluster.host_ca.pin(), known, None),
        ("the Auth Service, joining", auth.clone(), cluster.host_ca.pin(), joining, None),
        ("another pin", auth.clone(), other.host_ca.pin(), joining, Some(Code::CaPin)),
        ("no authority shown", chain(&[&auth], None), cluster.host_ca.pin(), joining, Some(Code::CaPin)),
        (
            "a foreign leaf below the pinned authority",
            chain(&[&other.host_cert(SystemRole::Auth)], Some(&cluster.host_ca)),
            cluster.host_ca.pin(),
            joining,
            Some(Code::Certificate),
        ),
        ("a Proxy, joining", cluster.host_cert(SystemRole::Proxy), cluster.host_ca.pin(), joining, Some(Code::CaPin)),
        ("a user, joining", cluster.alice_cert(), cluster.user_ca.pin(), joining, Some(Code::CaPin)),
        ("a Proxy, by name", cluster.host_cert(SystemRole::Proxy), cluster.host_ca.pin(), known, Some(Code::Certificate)),
        ("an expired leaf", expired, cluster.host_ca.pin(), joining, Some(Code::Certificate)),
        ("an expired authority", dead_auth, dead.pin(), joining, Some(Code::Certificate)),
    ];
    for (what, shown, pin, name, want) in table {
        let pins: Vec<Pin> = vec![format!("sha256:{}", "0".repeat(64)).parse().unwrap(), pin.parse().unwrap()];
        let calling = client_config(None, Trust::Pins { pins, name }, &[alpn::AUTH], &cluster.clock()).unwrap();
        let (client, _) = meet(&cluster, calling, serving(&cluster, &shown, ClientAuth::None), &cluster.name_of(SystemRole::Auth)).await;
        assert_eq!(client.err().map(|error| error.public().known().unwrap()), want, "{what}");
    }
}

#[tokio::test]
async fn own_protocols_are_not_spoken_over_tls_1_2_and_unknown_ones_not_at_all() {
    let cluster = Cluster::new("prod");
    let name = cluster.name_of(SystemRole::Auth);
    let web = client_config(None, Trust::Insecure, &[alpn::HTTP], &cluster.clock()).unwrap();
    let (client, _) = meet(&cluster, web, serving(&cluster, &cluster.host_cert(SystemRole::Auth), ClientAuth::None), &name).await;
    assert!(client.unwrap_err().public().is(Code::VersionProtocol));

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cluster.host_ca.der.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS12]).unwrap();
    let mut old = builder.with_root_certificates(roots).with_no_client_auth();
    old.alpn_protocols = vec![alpn::AUTH.to_vec()];
    let (client, server) =
        meet(&cluster, Arc::new(old), serving(&cluster, &cluster.host_cert(SystemRole::Auth), ClientAuth::None), &name).await;
    assert!(client.is_err() && server.is_err());
}

#[tokio::test]
async fn a_renewed_server_certificate_is_shown_on_the_next_handshake() {
    let cluster = Cluster::new("prod");
    let current = net::swap::Swap::new(cluster.host_cert(SystemRole::Auth));
    let certificates = Certificates::current(current.clone());
    let serving = server_config(certificates, ClientAuth::None, &cluster.trusted, &[alpn::AUTH], &cluster.clock()).unwrap();
    let shown = async || {
        let (client, _) = meet(&cluster, calling(&cluster, None), serving.clone(), &cluster.name_of(SystemRole::Auth)).await;
        client.unwrap().0.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let before = shown().await;
    current.store(cluster.host_cert(SystemRole::Auth));
    let after = shown().await;
    assert_eq!(BTreeSet::from([before.to_vec(), after.to_vec()]).len(), 2);
    assert_eq!(after, current.load().chain()[0]);
}
