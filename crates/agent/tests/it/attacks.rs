//! Known mistakes of systems like this one, each as its attack (the rows' list is in the security documentation).

use crate::{
    raw::{FAILURE, Offer, PK_OK, Raw, SUCCESS, in_the_clear, string},
    world::{World, exec, key, own_login, role},
};
use russh::{
    client::AuthResult,
    keys::{
        PrivateKey,
        ssh_key::certificate::{Builder, CertType},
    },
};
use std::{sync::Arc, time::Duration};
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
