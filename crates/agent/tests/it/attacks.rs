//! Known mistakes of systems like this one, each as its attack (the rows' list is in the security documentation).

use crate::{
    raw::{FAILURE, Offer, PK_OK, Raw, SUCCESS, in_the_clear, string},
    world::{World, exec, key, own_login, role},
};
use russh::{
    Preferred, cipher,
    client::{self as ssh_client, AuthResult},
    kex,
    keys::{
        PrivateKey, PublicKeyOrCertificate,
        ssh_key::certificate::{Builder, CertType},
    },
};
use std::{borrow::Cow, sync::Arc, time::Duration};
use types::{ClusterName, Login, Time};

async fn enters(world: &World, key: &PrivateKey, certificate: russh::keys::Certificate) -> bool {
    let mut client = world.stranger().await;
    let result = client.authenticate_openssh_cert(own_login().as_str(), Arc::new(key.clone()), certificate).await;
    matches!(result, Ok(AuthResult::Success))
}

#[tokio::test]
async fn attack_row_1_a_users_key_signs_no_certificates() {
    let world = World::new();
    let honest = world.badge("alice");
    let mut forged = world.identity("alice");
    forged.logins.insert(Login::new("root").unwrap());
    let mallory = key();
    // Positive control, then: signed by alice's own key, by a stranger's, and by the host's.
    assert!(enters(&world, &honest.key, honest.certificate.clone()).await);
    for signer in [&*honest.key, &key(), &mallory] {
        assert!(!enters(&world, &mallory, world.sign(&mallory, &forged, signer)).await);
    }
    assert!(world.event("session.rejected").await.text("error").contains("no certificate that this cluster accepts"));
}

#[tokio::test]
async fn attack_row_1_a_certificate_inside_the_authoritys_document_is_not_a_key() {
    let world = World::new();
    let honest = world.badge("alice");
    // An authority whose "key" is alice's certificate: it does not read as a plain key, so nobody is trusted by it.
    let ca_key = types::kind::CaKey {
        algorithm: "ed25519".into(),
        ssh: honest.certificate.to_openssh().unwrap(),
        tls: String::new(),
        pin: String::new(),
        active: true,
        extra: types::Extra::new(),
    };
    let authority = types::kind::CertAuthority {
        cluster: world.cluster.clone(),
        ca_type: "user".into(),
        keys: vec![ca_key],
        extra: types::Extra::new(),
    };
    world.cache.put([types::Resource::new(types::Metadata::named(crate::world::name("user")), authority).to_document()]);
    let mallory = key();
    assert!(!enters(&world, &mallory, world.sign(&mallory, &world.identity("alice"), &honest.key)).await);
}

#[tokio::test]
async fn attack_row_2_a_certificate_for_everyone_is_for_no_one() {
    let world = World::new();
    let now = Time::from(std::time::SystemTime::now()).unix_u64();
    let identity = wire::identity::to_json(&types::Identity::User(world.identity("alice")));
    let certificate = |key: &PrivateKey, principal: Option<&str>| {
        let mut builder =
            Builder::new_with_random_nonce(&mut rand::rng(), key.public_key().key_data().clone(), now - 60, now + 600).unwrap();
        builder.cert_type(CertType::User).unwrap();
        match principal {
            Some(principal) => builder.valid_principal(principal).unwrap(),
            None => builder.all_principals_valid().unwrap(),
        };
        builder.extension(wire::identity::SSH_EXTENSION, identity.clone()).unwrap();
        builder.sign(&world.user_ca).unwrap()
    };
    let mallory = key();
    for principal in [None, Some("*"), Some("root,alice"), Some("ro?t"), Some("")] {
        assert!(!enters(&world, &mallory, certificate(&mallory, principal)).await, "{principal:?}");
    }
}

#[tokio::test]
async fn expired_foreign_and_identityless_certificates_are_refused() {
    let world = World::new();
    let mallory = key();
    let mut expired = world.identity("alice");
    expired.expires = Time::from(std::time::SystemTime::now()).minus(Duration::from_secs(5));
    assert!(!enters(&world, &mallory, world.sign(&mallory, &expired, &world.user_ca)).await);
    let mut foreign = world.identity("alice");
    foreign.cluster = ClusterName::new("other").unwrap();
    assert!(!enters(&world, &mallory, world.sign(&mallory, &foreign, &world.user_ca)).await);
    let now = Time::from(std::time::SystemTime::now()).unix_u64();
    let mut builder =
        Builder::new_with_random_nonce(&mut rand::rng(), mallory.public_key().key_data().clone(), now - 60, now + 600).unwrap();
    builder.cert_type(CertType::User).unwrap().valid_principal(own_login().as_str()).unwrap();
    assert!(!enters(&world, &mallory, builder.sign(&world.user_ca).unwrap()).await);
    // A plain key is nobody's.
    let mut client = world.stranger().await;
    let plain = russh::keys::PrivateKeyWithHashAlg::new(Arc::new(mallory), None);
    assert!(!matches!(client.authenticate_publickey(own_login().as_str(), plain).await, Ok(AuthResult::Success)));
}

#[tokio::test]
async fn attack_row_4_an_offer_without_proof_enters_nowhere() {
    let world = World::with(in_the_clear());
    let (badge, login) = (world.badge("alice"), own_login());
    let offer = Offer::Certificate(&badge.certificate);
    let mut raw = Raw::connect(&world).await;
    raw.auth(login.as_str(), offer, None).await;
    assert_eq!(raw.kind().await, Some(PK_OK));
    // Opening a channel now is answered with nothing at all; then: signed by another key, and for another user.
    let mut open = vec![90];
    string(&mut open, b"session");
    open.extend([0; 12]);
    raw.send(&open).await;
    raw.auth(login.as_str(), offer, Some((&key(), login.as_str()))).await;
    assert_eq!(raw.kind().await, Some(FAILURE));
    raw.auth(login.as_str(), offer, Some((&badge.key, "somebody"))).await;
    assert_eq!(raw.kind().await, Some(FAILURE));
    raw.auth(login.as_str(), offer, Some((&badge.key, login.as_str()))).await;
    assert_eq!(raw.kind().await, Some(SUCCESS), "positive control");
}

#[tokio::test]
async fn attack_row_5_the_identity_is_that_of_the_proven_certificate() {
    let world = World::with(in_the_clear());
    for user in ["bob", "carol"] {
        world.put_user(user, &["dev"]);
    }
    let login = own_login();
    let badges = ["alice", "bob", "carol"].map(|user| (user, world.badge(user)));
    // Every order of offers, every one proven.
    for first in 0..3 {
        for second in 0..3 {
            for proven in 0..3 {
                let mut raw = Raw::connect(&world).await;
                for offered in [first, second] {
                    raw.auth(login.as_str(), Offer::Certificate(&badges[offered].1.certificate), None).await;
                    assert_eq!(raw.kind().await, Some(PK_OK));
                }
                let (user, badge) = &badges[proven];
                raw.auth(login.as_str(), Offer::Certificate(&badge.certificate), Some((&badge.key, login.as_str()))).await;
                assert_eq!(raw.kind().await, Some(SUCCESS));
                let channel = raw.open("session").await.unwrap();
                let mut command = Vec::new();
                string(&mut command, b"true");
                raw.request(channel, "exec", &command).await;
                assert_eq!(world.event("session.start").await.text("user"), *user);
            }
        }
    }
}

#[tokio::test]
async fn attack_row_6_a_change_of_user_begins_anew() {
    let world = World::with(in_the_clear());
    let (badge, login) = (world.badge("alice"), own_login());
    let mut raw = Raw::connect(&world).await;
    // A probe as the right account is worth nothing for another one, nor the other way round.
    raw.auth(login.as_str(), Offer::Certificate(&badge.certificate), None).await;
    assert_eq!(raw.kind().await, Some(PK_OK));
    raw.auth("nobody", Offer::Certificate(&badge.certificate), Some((&badge.key, login.as_str()))).await;
    assert_eq!(raw.kind().await, Some(FAILURE));
    raw.auth(login.as_str(), Offer::Key(badge.key.public_key()), Some((&badge.key, login.as_str()))).await;
    assert_eq!(raw.kind().await, Some(FAILURE));
    raw.auth("postgres", Offer::Certificate(&badge.certificate), Some((&badge.key, "postgres"))).await;
    assert_eq!(raw.kind().await, Some(SUCCESS), "a valid certificate; but for a login that no role allows");
    let rejected = world.event("session.rejected").await;
    assert!(rejected.text("error").contains("certificate") || rejected.text("login") == "postgres");
    let channel = raw.open("session").await.unwrap();
    raw.request(channel, "shell", &[]).await;
    let mut text = String::new();
    while let Some(packet) = raw.read().await {
        text.push_str(&String::from_utf8_lossy(&packet));
        if packet.first() == Some(&97) {
            break;
        }
    }
    assert!(text.contains("no role allows login \"postgres\""), "{text}");
}

#[tokio::test]
async fn attack_row_7_requests_on_channels_never_opened_reach_no_handler() {
    let world = World::with(in_the_clear());
    let mut raw = Raw::alice(&world).await;
    assert_eq!(raw.open("x11").await, None, "a denied open leaves no channel behind");
    let marker = world.dir.path().join("ran");
    let mut command = Vec::new();
    string(&mut command, format!("touch {}", marker.display()).as_bytes());
    for channel in 0..32 {
        raw.request(channel, "exec", &command).await;
        raw.request(channel, "shell", &[]).await;
        let mut sftp = Vec::new();
        string(&mut sftp, b"sftp");
        raw.request(channel, "subsystem", &sftp).await;
        for kind in [94u8, 96, 97] {
            let mut packet = vec![kind];
            packet.extend(u32::to_be_bytes(channel));
            if kind == 94 {
                string(&mut packet, b"data");
            }
            raw.send(&packet).await;
        }
    }
    // The connection is alive, nothing ran, and a channel that was opened works.
    assert_eq!(raw.global("keepalive@openssh.com", &[]).await, Some(82));
    assert!(!marker.exists());
    let channel = raw.open("session").await.unwrap();
    raw.request(channel, "exec", &command).await;
    world.event("session.end").await;
    assert!(marker.exists(), "positive control");
}

#[tokio::test]
async fn attack_row_8_every_channel_and_request_type_passes_the_table() {
    use rules::channel::{Channel, Phase, Rights, Verdict, judge_channel, judge_request};
    use types::role::Options;
    for (port_forwarding, forward_agent) in [(false, false), (true, true)] {
        let world = World::with(in_the_clear());
        let options = Options { port_forwarding, forward_agent, ..Options::default() };
        world.put_role("dev", types::role::Role { options: options.clone(), ..role() });
        let rights = Rights::agent(&world.permit());
        let mut raw = Raw::alice(&world).await;
        for kind in Channel::ALL.iter().filter(|kind| {
            !matches!(kind, Channel::DirectTcpip | Channel::DirectStreamlocal | Channel::ForwardedTcpip | Channel::ForwardedStreamlocal)
        }) {
            let allowed = judge_channel(&rights, *kind) == Verdict::Allow;
            let name = if *kind == Channel::Unknown { "teleport@example" } else { kind.as_str() };
            assert_eq!(raw.open(name).await.is_some(), allowed, "{name}");
        }
        for (name, request, rest) in requests() {
            let verdict = judge_request(&rights, request, Phase::Fresh);
            let channel = raw.open("session").await.unwrap();
            raw.request(channel, name, &rest).await;
            // 99 is success, 100 failure.
            let want = if verdict == Verdict::Allow { 99 } else { 100 };
            assert_eq!(raw.kind().await, Some(want), "{name} with {options:?}");
            let mut close = vec![97];
            close.extend(channel.to_be_bytes());
            raw.send(&close).await;
            while raw.kind().await != Some(97) {}
        }
        for name in ["tcpip-forward", "cancel-tcpip-forward"] {
            let mut rest = Vec::new();
            string(&mut rest, b"0.0.0.0");
            rest.extend(0u32.to_be_bytes());
            assert_eq!(raw.global(name, &rest).await, Some(82), "{name}");
        }
        for name in ["streamlocal-forward@openssh.com", "cancel-streamlocal-forward@openssh.com"] {
            let mut rest = Vec::new();
            string(&mut rest, b"/tmp/x");
            assert_eq!(raw.global(name, &rest).await, Some(82), "{name}");
        }
    }
}

fn requests() -> Vec<(&'static str, rules::channel::Request, Vec<u8>)> {
    use rules::channel::Request;
    let text = |parts: &[&str]| {
        let mut all = Vec::new();
        parts.iter().for_each(|part| string(&mut all, part.as_bytes()));
        all
    };
    let mut pty = text(&["xterm"]);
    pty.extend([0; 16]);
    string(&mut pty, &[0]);
    let mut x11 = vec![0];
    x11.extend(text(&["MIT-MAGIC-COOKIE-1", "00"]));
    x11.extend([0; 4]);
    vec![
        ("pty-req", Request::PtyReq, pty),
        ("env", Request::EnvAllowed, text(&["LC_ALL", "C"])),
        ("env", Request::EnvOther, text(&["LD_PRELOAD", "x"])),
        ("subsystem", Request::SubsystemOther, text(&["netconf"])),
        ("auth-agent-req@openssh.com", Request::AuthAgentReq, Vec::new()),
        ("x11-req", Request::X11Req, x11),
        ("window-change", Request::WindowChange, vec![0; 16]),
        ("xon-xoff", Request::XonXoff, vec![1]),
        ("exit-status", Request::ExitStatus, vec![0; 4]),
    ]
}

/// Remembers the cipher of its connection.
struct Agreed(tokio::sync::watch::Sender<Option<cipher::Name>>);
impl ssh_client::Handler for Agreed {
    type Error = russh::Error;
    async fn check_server_key(&mut self, _key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
    async fn kex_done(&mut self, _: Option<&[u8]>, names: &russh::Names, _: &mut ssh_client::Session) -> Result<(), Self::Error> {
        self.0.send_replace(Some(names.cipher));
        Ok(())
    }
}

#[tokio::test]
async fn attack_row_20_no_cipher_that_needs_strict_key_exchange_is_agreed_on() {
    let world = World::new();
    let agree = async |kex: &'static [kex::Name], ciphers: &'static [cipher::Name]| {
        let preferred = Preferred { kex: Cow::Borrowed(kex), cipher: Cow::Borrowed(ciphers), ..Preferred::default() };
        let (noted, agreed) = tokio::sync::watch::channel(None);
        let config = ssh_client::Config { preferred, ..ssh_client::Config::default() };
        let connected = ssh_client::connect_stream(Arc::new(config), world.stream(), Agreed(noted)).await;
        let now = *agreed.borrow();
        assert_eq!(connected.is_ok(), now.is_some());
        now
    };
    // OpenSSH 7.4's, in its order: it has no strict key exchange. Later ones differ in nothing that matters here.
    const OLD: &[kex::Name] = &[kex::CURVE25519_PRE_RFC_8731];
    const NEW: &[kex::Name] = &[kex::CURVE25519, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT];
    const ALL: &[cipher::Name] = &[
        cipher::CHACHA20_POLY1305,
        cipher::AES_128_CTR,
        cipher::AES_192_CTR,
        cipher::AES_256_CTR,
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
    ];
    for kex in [OLD, NEW] {
        assert_eq!(agree(kex, ALL).await, Some(cipher::AES_128_GCM));
        assert_eq!(agree(kex, &ALL[..4]).await, None);
    }
}

#[tokio::test]
async fn attack_row_24_refused_certificates_do_not_fill_the_audit_log() {
    let world = World::new();
    let knock = async |client: &str| {
        let config = Arc::new(ssh_client::Config::default());
        let stream = world.stream_from(client, 64 * 1024);
        let mut handle = ssh_client::connect_stream(config, stream, crate::world::Anyone).await.unwrap();
        let mallory = key();
        let forged = world.sign(&mallory, &world.identity("alice"), &mallory);
        assert!(!handle.authenticate_openssh_cert("root", Arc::new(mallory), forged).await.unwrap().success());
    };
    futures::future::join_all((0..60).map(|_| knock("192.0.2.66:1"))).await;
    // Somebody else's mistake is still written down, with how many were not.
    knock("192.0.2.77:1").await;
    let events = world.events().await;
    let from = |address: &str| events.iter().filter(|event| event.text("addr.remote").starts_with(address)).collect::<Vec<_>>();
    let flood = from("192.0.2.66").len();
    assert!((20..30).contains(&flood), "{flood}");
    let other = from("192.0.2.77");
    assert_eq!(other.len(), 1);
    assert_eq!(other[0].fields["unwritten"], 60 - flood);
}

#[tokio::test]
async fn attack_row_22_a_hundred_and_thirty_first_terminal_mode_ends_that_connection_only() {
    let world = World::with(in_the_clear());
    let (mut attacker, mut neighbour) = (Raw::alice(&world).await, Raw::alice(&world).await);
    let channel = attacker.open("session").await.unwrap();
    let mut rest = Vec::new();
    string(&mut rest, b"xterm");
    rest.extend([0; 16]);
    let modes: Vec<u8> = (0..131).flat_map(|_| [53, 0, 0, 0, 1]).collect();
    string(&mut rest, &modes);
    attacker.request(channel, "pty-req", &rest).await;
    assert_eq!(attacker.read().await, None, "hung up");
    let channel = neighbour.open("session").await.unwrap();
    let mut fits = Vec::new();
    string(&mut fits, b"xterm");
    fits.extend([0; 16]);
    let modes: Vec<u8> = (0..130).flat_map(|_| [53, 0, 0, 0, 1]).collect();
    string(&mut fits, &modes);
    neighbour.request(channel, "pty-req", &fits).await;
    assert_eq!(neighbour.kind().await, Some(99));
}

#[tokio::test]
async fn attack_row_29_undefined_types_are_refused_and_nothing_breaks() {
    let world = World::with(in_the_clear());
    let mut raw = Raw::alice(&world).await;
    let channel = raw.open("session").await.unwrap();
    for name in ["", "EXEC", "shell\0", "exec2", "signal@x", "\u{1f600}", "puppet@puppet.com"] {
        raw.request(channel, name, b"xyz").await;
        assert_eq!(raw.kind().await, Some(100), "{name:?}");
        assert_eq!(raw.open(name).await, None, "{name:?}");
        assert_eq!(raw.global(name, b"xyz").await, Some(82), "{name:?}");
    }
    // Message numbers that mean nothing are ignored.
    for kind in [3u8, 8, 54, 79, 83, 101, 127, 192, 255] {
        raw.send(&[kind, 1, 2, 3]).await;
    }
    assert_eq!(raw.global("keepalive@openssh.com", &[]).await, Some(82));
}

#[tokio::test]
async fn a_second_program_on_one_channel_is_refused() {
    let world = World::with(in_the_clear());
    let mut raw = Raw::alice(&world).await;
    let channel = raw.open("session").await.unwrap();
    let mut command = Vec::new();
    string(&mut command, b"exec sleep 20");
    raw.request(channel, "exec", &command).await;
    assert_eq!(raw.kind().await, Some(99));
    raw.request(channel, "shell", &[]).await;
    assert_eq!(raw.kind().await, Some(100));
    assert!(world.event("ssh.request").await.text("error").contains("already started"));
}

#[tokio::test]
async fn nobody_enters_before_the_roles_are_known() {
    let world = World::new();
    let client = world.alice().await;
    drop(client);
    let output = exec(&world.alice().await, "echo in", "").await;
    assert_eq!(output.text().trim(), "in");
    // The trust a host joined with lets it verify before its cache has spoken, and grants nothing.
    world.trust_later(client::trust::ClusterTrust::empty(world.cluster.clone()));
}
