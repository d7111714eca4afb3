//! The bytes of every format of this crate, held byte for byte against what was released: handshake, tunnel, routing, rescue,
//! recording, identities in certificates, credentials, audit log; and the names by which ends find each other.
//!
//! A file is one message to a line, bytes that are not plain text escaped as in Rust. A format may grow: with new messages or
//! optional fields in a file of a new name. What stands in a released file is written so for ever; each message is also read back.

use crate::hold::hold;
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::{collections::BTreeSet, fmt::Debug};
use types::{
    ClusterName, Code, Extra, HostId, HostIdentity, Identity, Labels, Login, Metadata, NodeName, Public, Resource, ResourceName, Secret,
    SessionId, SystemRole, Time, UserIdentity, UserName, Version,
    identity::Restrictions,
    kind::{ClusterInfo, Recording},
    name::ClusterId,
    update,
};
use wire::{
    alpn, audit, capability,
    credentials::{self, HostFile},
    directive,
    edge::EDGES,
    frame, hello,
    hello::{Answer, Hello, Verdict},
    identity, recording, rescue, route,
    route::{Dial, Dialed, Target},
    sni, splice, tunnel,
    tunnel::{DataHello, Peer, Start, ToAgent, ToProxy},
    web::{Addresses, Connector, Doors, InviteTake, InviteTold, Life, LoginAsk, LoginTold, Ping, Taken, Ways},
};

fn exactly(name: &str, lines: &[Vec<u8>]) {
    let text: String = lines.iter().map(|line| format!("{}\n", line.escape_ascii())).collect();
    hold(name, text.as_bytes(), |golden, made| {
        assert_eq!(String::from_utf8_lossy(made), String::from_utf8_lossy(golden), "{name}");
    });
}

/// Names that later releases may add to.
fn at_least(name: &str, lines: &[String]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    hold(name, text.as_bytes(), |golden, made| {
        let made = String::from_utf8_lossy(made).into_owned();
        let made: BTreeSet<&str> = made.lines().collect();
        for line in String::from_utf8_lossy(golden).lines() {
            assert!(made.contains(line), "{name}: \"{line}\" is gone");
        }
    });
}

fn host(number: u128) -> HostId {
    HostId::from_uuid(uuid::Uuid::from_u128(number))
}

fn refused() -> Public {
    Public { reference: Some("7f3a".into()), ..Public::new(Code::VersionTooNew, "newer than the server").hint("upgrade the server first") }
}

#[test]
fn the_handshake_is_as_it_was_released() {
    fn said<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T) -> Vec<u8> {
        let bytes = hello::encode(message);
        assert_eq!(hello::decode::<T>(&bytes).as_ref(), Ok(message));
        frame::encode(&bytes).unwrap().to_vec()
    }
    let client = Hello {
        version: "1.0.0".into(),
        role: "node".into(),
        apis: [("auth".into(), (1, 1))].into(),
        capabilities: ["tunnel.warm-spare".into()].into(),
        skips_version_check: true,
        content: Some("sha256:00".into()),
        extra: Extra::new(),
    };
    let server = Hello { role: "auth".into(), skips_version_check: false, content: None, ..client.clone() };
    let answers = [Verdict::Accept, Verdict::Refuse(refused())].map(|verdict| said(&Answer { hello: server.clone(), verdict }));
    let [accepted, refuses] = answers;
    exactly("handshake.txt", &[said(&client), said(&server), accepted, refuses, said(&Verdict::Accept), said(&Verdict::Refuse(refused()))]);
}

fn plain<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T) -> Vec<u8> {
    let bytes = tunnel::encode(message);
    assert_eq!(tunnel::decode::<T>(&bytes).as_ref(), Ok(message));
    bytes
}

#[test]
fn the_tunnel_is_as_it_was_released() {
    let peer = Peer { id: host(2), addrs: vec!["b:3080".into(), "c:3080".into()], extra: Extra::new() };
    let ticket = || "ticket".to_owned();
    exactly(
        "tunnel.txt",
        &[
            plain(&ToAgent::Welcome { proxy_id: host(1), peers: vec![peer.clone()], addr: Some("a:3080".into()) }),
            plain(&ToAgent::Welcome { proxy_id: host(1), peers: Vec::new(), addr: None }),
            plain(&ToAgent::Peers { peers: vec![peer] }),
            plain(&ToAgent::Open { ticket: ticket(), client_addr: "10.0.0.1:5".into() }),
            plain(&ToAgent::Spare { keep: true }),
            plain(&ToAgent::Ping { seq: 7 }),
            plain(&ToAgent::Drain),
            plain(&ToAgent::Refused { error: refused() }),
            plain(&ToProxy::Register { host_id: host(1), boot_id: "boot".into(), extra: Extra::new() }),
            plain(&ToProxy::Pong { seq: 7 }),
            plain(&ToProxy::Failed { ticket: ticket(), error: refused() }),
            plain(&DataHello::Ticket { ticket: ticket() }),
            plain(&DataHello::Spare { boot_id: None }),
            plain(&Start { client_addr: "10.0.0.1:5".into(), extra: Extra::new() }),
        ],
    );
}

#[test]
fn routing_is_as_it_was_released() {
    let name = || NodeName::new("host1").unwrap();
    let dial = |target, cluster: Option<&str>| {
        plain(&Dial { target, cluster: cluster.map(|name| ClusterName::new(name).unwrap()), extra: Extra::new() })
    };
    assert_eq!(route::encode(&Target::Id(host(1))), plain(&Target::Id(host(1))));
    exactly(
        "route.txt",
        &[
            dial(Target::Id(host(1)), None),
            dial(Target::Name(name()), Some("leaf")),
            plain(&Dialed::Connected { host_id: host(1), hostname: name() }),
            plain(&Dialed::Refused(refused())),
            splice::MARK.to_vec(),
        ],
    );
}

#[test]
fn the_rescue_protocol_is_as_it_was_released() {
    let sha: rescue::Sha256 = rescue::Sha256::new([1; 32]);
    let status = rescue::Status {
        version: "1.0.0".into(),
        os: "linux".into(),
        arch: "amd64".into(),
        content: Some("sha256:00".into()),
        refused: Some(refused()),
        extra: Extra::new(),
    };
    let artifact = rescue::Artifact {
        name: "lockgate-2.4.1-linux-amd64.tar.gz".parse().unwrap(),
        os: "linux".into(),
        arch: "amd64".into(),
        sha256: sha,
        size: 3,
        extra: Extra::new(),
    };
    let advice = |action| rescue::Advice {
        action,
        proxy: "3.0.0".into(),
        version: Some("2.4.1".into()),
        major: Some(2),
        why: "too old".into(),
        cure: "install 2.4.1".into(),
        again: 60,
        artifacts: vec![artifact.clone()],
        extra: Extra::new(),
    };
    let chunk = rescue::Chunk { offset: 0, size: 3, last: true, extra: Extra::new() };
    let said = |message: &rescue::ToProxy| {
        let bytes = rescue::encode(message, b"").unwrap();
        assert_eq!(rescue::decode::<rescue::ToProxy>(&bytes), Ok((message.clone(), &b""[..])));
        bytes
    };
    let told = |message: &rescue::ToHost, body: &[u8]| {
        let bytes = rescue::encode(message, body).unwrap();
        assert_eq!(rescue::decode::<rescue::ToHost>(&bytes), Ok((message.clone(), body)));
        bytes
    };
    let name = "timestamp.json".parse().unwrap();
    exactly(
        "rescue.txt",
        &[
            said(&rescue::ToProxy::Status(status)),
            said(&rescue::ToProxy::Fetch(rescue::Fetch { sha256: sha, offset: 5, length: 9, extra: Extra::new() })),
            said(&rescue::ToProxy::Metadata(rescue::Metadata { name, offset: 0, length: 9, extra: Extra::new() })),
            told(&rescue::ToHost::Advice(advice(rescue::Action::Install)), b""),
            told(&rescue::ToHost::Advice(advice(rescue::Action::Wait)), b""),
            told(&rescue::ToHost::Advice(advice(rescue::Action::Retry)), b""),
            told(&rescue::ToHost::Chunk(chunk), &[0, 255, b'\n']),
            told(&rescue::ToHost::Refused { error: refused(), extra: Extra::new() }, b""),
            said(&rescue::ToProxy::Unknown),
            told(&rescue::not_known("10.2.0"), b""),
        ],
    );
}

fn user() -> Identity {
    let restrictions = Restrictions {
        source_ip: Some("10.0.0.1".parse().unwrap()),
        no_reissue: true,
        host: Some(host(1)),
        second_factor: true,
        extra: Extra::new(),
    };
    Identity::User(UserIdentity {
        cluster: ClusterName::new("demo").unwrap(),
        user: UserName::new("alice").unwrap(),
        roles: [ResourceName::new("access").unwrap()].into(),
        traits: [("logins".into(), vec!["root".into()])].into(),
        logins: [Login::new("root").unwrap()].into(),
        expires: Time::from_unix(1_790_000_000),
        restrictions,
        extra: Extra::new(),
    })
}

fn member() -> HostIdentity {
    HostIdentity {
        cluster: ClusterName::new("demo").unwrap(),
        id: host(1),
        name: NodeName::new("host1").unwrap(),
        roles: [SystemRole::Node, SystemRole::Proxy].into(),
        extra: Extra::new(),
    }
}

#[test]
fn identities_in_certificates_are_as_they_were_released() {
    let all = [user(), Identity::Host(member())];
    for one in &all {
        assert_eq!(identity::from_json(identity::to_json(one).as_bytes()).as_ref(), Ok(one));
    }
    exactly("identity.txt", &all.map(|one| [identity::to_json(&one).into_bytes(), identity::to_x509_extension(&one)]).concat());
}

#[test]
fn a_hosts_credentials_are_as_they_were_released() {
    let info = ClusterInfo {
        cluster_name: ClusterName::new("demo").unwrap(),
        cluster_id: ClusterId::from_uuid(uuid::Uuid::from_u128(9)),
        extra: Extra::new(),
    };
    let file = HostFile {
        format: credentials::FORMAT,
        identity: member(),
        private_key: Secret::new("-----BEGIN PRIVATE KEY-----"),
        ssh_certificate: "ssh-ed25519-cert-v01@openssh.com AAAA".into(),
        tls_certificate: "-----BEGIN CERTIFICATE-----".into(),
        authorities: vec![Resource::new(Metadata::named(ResourceName::new("cluster-name").unwrap()), info).to_document()],
        labels: Labels::from([("env".into(), "prod".into())]),
        auth_addr: Some("127.0.0.1:3025".into()),
        extra: Extra::new(),
    };
    let text = file.to_json();
    assert_eq!(HostFile::from_json(text.expose().as_bytes()), Ok(file));
    exactly("credentials.txt", &text.expose().lines().map(|line| line.as_bytes().to_vec()).collect::<Vec<_>>());
}

#[test]
fn a_recording_is_as_it_was_released() {
    let about = Recording {
        session: SessionId::from_uuid(uuid::Uuid::from_u128(3)),
        user: "alice".into(),
        login: "root".into(),
        host_id: host(1),
        hostname: "host1".into(),
        kind: "exec".into(),
        command: "true".into(),
        started: Time::from_unix(1_790_000_000),
        ended: Some(Time::from_unix(1_790_000_060)),
        size: 99,
        extra: Extra::new(),
    };
    let header = recording::Header { recording: about, width: 80, height: 24, term: "xterm".into(), extra: Extra::new() };
    let whats = [
        recording::What::Header(Box::new(header)),
        recording::What::Output(Bytes::from_static(b"hello\r\n")),
        recording::What::Stderr(Bytes::from_static(b"\x1b[31mno\x1b[0m")),
        recording::What::Resize { width: 100, height: 30 },
        recording::What::Omitted { bytes: 1 << 33 },
        recording::What::End(recording::End { status: Some(1), signal: None }),
        recording::What::End(recording::End { status: None, signal: Some("TERM".into()) }),
    ];
    let (mut writer, mut reader) = (recording::Writer::new(), recording::Reader::new());
    let lines: Vec<Vec<u8>> = whats.iter().enumerate().map(|(at, what)| writer.encode(at as u64 * 1000, what).to_vec()).collect();
    reader.push(&lines.concat());
    for (at, what) in whats.into_iter().enumerate() {
        assert_eq!(reader.next().unwrap(), Some(recording::Entry { at: at as u64 * 1000, what }));
    }
    exactly("recording.txt", &lines);
}

#[test]
fn the_web_api_is_as_it_was_released() {
    /// What is written, after it was read and written again: requests hold passwords and are not compared otherwise.
    fn said<T: Serialize + DeserializeOwned>(what: &str, message: &T) -> String {
        let text = serde_json::to_string(message).unwrap();
        assert_eq!(serde_json::to_string(&serde_json::from_str::<T>(&text).unwrap()).unwrap(), text);
        format!("{what} {text}")
    }
    let ssh = Addresses {
        listen_addr: "0.0.0.0:3023".into(),
        tunnel_listen_addr: "0.0.0.0:3080".into(),
        web_listen_addr: "0.0.0.0:3080".into(),
        public_addr: "proxy.example.com:3080".into(),
        ssh_public_addr: "proxy.example.com:3023".into(),
    };
    let ping = Ping {
        server_version: "1.0.0".into(),
        min_client_version: "0.0.0".into(),
        cluster_name: "demo".into(),
        cluster_id: ClusterId::from_uuid(uuid::Uuid::from_u128(9)).to_string(),
        ca_pins: vec!["sha256:00".into()],
        auth: Ways { auth_type: "local".into(), second_factor: "otp".into(), local: Connector { name: "local".into() } },
        proxy: Doors { ssh, tls_routing_enabled: true },
        extra: Extra::new(),
    };
    assert_eq!((ping.second_factor(), ping.ssh_addr()), ("otp", Some("proxy.example.com:3023")));
    let login = |otp: Option<&'static str>, ttl| LoginAsk {
        user: "alice".into(),
        password: "correct horse".into(),
        otp: otp.map(Into::into),
        ssh_public_key: "ssh-ed25519 AAAA".into(),
        tls_public_key: "AAAA".into(),
        ttl,
    };
    let told = LoginTold {
        ssh_certificate: "ssh-ed25519-cert-v01@openssh.com AAAA".into(),
        tls_certificate: "-----BEGIN CERTIFICATE-----".into(),
        authorities: vec![serde_json::json!({"kind": "cert_authority"})],
        cluster_name: "demo".into(),
        user: "alice".into(),
        expires: "2026-09-21T14:13:20Z".into(),
    };
    let invite = InviteTold { user: "bob".into(), expires: told.expires.clone(), otp_url: "otpauth://totp/x".into() };
    let take = |otp: Option<&'static str>| InviteTake { password: "correct horse".into(), otp: otp.map(Into::into) };
    let lines = [
        said("GET /webapi/ping", &ping),
        said("GET /webapi/ping", &Ping { cluster_id: String::new(), ca_pins: Vec::new(), ..ping.clone() }),
        said("GET /webapi/find", &ping),
        said("POST /webapi/login <", &login(Some("123456"), Some(Life::Text(types::Ttl::hours(8))))),
        said("POST /webapi/login <", &login(None, Some(Life::Seconds(3600)))),
        said("POST /webapi/login <", &login(None, None)),
        said("POST /webapi/login >", &told),
        said("GET /webapi/invite/<secret>", &invite),
        said("POST /webapi/invite/<secret> <", &take(Some("123456"))),
        said("POST /webapi/invite/<secret> <", &take(None)),
        said("POST /webapi/invite/<secret> >", &Taken {}),
    ];
    exactly("webapi.txt", &lines.map(String::into_bytes));
}

#[test]
fn a_ping_of_another_form_still_tells_the_version() {
    let ping: Ping = serde_json::from_str(r#"{"server_version":"9.0.0","auth":["sso"],"proxy":{"ssh":7},"new":{"x":1}}"#).unwrap();
    assert_eq!((ping.server_version.as_str(), ping.second_factor(), ping.ssh_addr()), ("9.0.0", "", None));
    assert_eq!(ping.extra["new"]["x"], 1);
}

#[test]
fn the_audit_log_and_its_chain_are_as_they_were_released() {
    let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(9));
    let (mut head, begin) = (audit::Head::genesis(&cluster), audit::Head::genesis(&cluster));
    let events = ["{\"event\":\"user.login\",\"code\":\"L1000I\"}", "{}"].map(|text| Bytes::from_static(text.as_bytes()));
    let lines = events.map(|event| audit::Line::chained(&mut head, event));
    let mut again = begin;
    let mut all = Vec::new();
    for line in &lines {
        let bytes = line.parts().encode();
        again.follow(audit::decode(bytes.strip_suffix(b"\n").unwrap()).unwrap()).unwrap();
        all.push(bytes);
    }
    assert_eq!(again, head);
    let mut runs = audit::Runs::default();
    for (line, prev) in lines.iter().zip([Some(begin.hash), None]) {
        let bytes = line.parts().export(host(1), prev);
        runs.take(bytes.strip_suffix(b"\n").unwrap()).unwrap();
        all.push(bytes);
    }
    exactly("audit.txt", &all);
}

#[test]
fn a_directive_and_its_signature_are_as_they_were_released() {
    let key = ssh_key::PrivateKey::from(ssh_key::private::Ed25519Keypair::from_seed(&[7; 32]));
    let sign =
        |message: &[u8]| signature::Signer::try_sign(&key, message).map(|made: ssh_key::Signature| made.as_bytes().try_into().unwrap());
    let target = update::Target {
        hosts: [host(1)].into(),
        roles: [SystemRole::Node].into(),
        wave: Some(update::Wave { salt: "u1".into(), below: 500 }),
        version: Version::new(1, 1, 0),
        artifacts: [("linux/amd64".to_owned(), rescue::Sha256::new([1; 32]))].into(),
        retry: true,
        extra: Extra::new(),
    };
    let directive = update::Directive {
        format: update::FORMAT,
        cluster: ClusterName::new("demo").unwrap(),
        cluster_id: ClusterId::from_uuid(uuid::Uuid::from_u128(9)),
        generation: 7,
        issued: Time::from_unix(1_790_000_000),
        expires: Time::from_unix(1_790_086_400),
        targets: vec![target],
        extra: Extra::new(),
    };
    let sealed = directive::seal(&directive, sign).unwrap();
    assert_eq!(directive::open(&sealed, &[key.public_key().clone()]), Ok(directive));
    let json = serde_json::to_vec(&sealed).unwrap();
    exactly("directive.txt", &[directive::signed_bytes(&sealed.directive), json, directive::FILE.into()]);
}

#[test]
fn names_by_which_ends_find_each_other_stay() {
    let cluster = ClusterName::new("demo").unwrap();
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let mut names: Vec<String> = [alpn::AUTH, alpn::SSH, alpn::TUNNEL, alpn::TUNNEL_DATA, alpn::RESCUE, alpn::HTTP]
        .map(|name| format!("alpn {}", text(name)))
        .into();
    names.extend(capability::OURS.iter().map(|name| format!("capability {name}")));
    names.extend(EDGES.iter().map(|edge| format!("edge {} to {}: {:?}", edge.name, edge.server, edge.direction)));
    names.extend([SystemRole::Auth, SystemRole::Proxy, SystemRole::Node].map(|role| format!("name {}", sni::role_name(&role, &cluster))));
    names.push(format!("name {}", sni::host_name(&host(1))));
    names.push(format!("header {}", hello::HEADER));
    names.push(format!("ssh extension {}", identity::SSH_EXTENSION));
    names.push(format!("x509 extension {:?}", identity::OID_X509));
    names.push(format!("pin {}", identity::pin_of_spki(b"key")));
    names.push(format!("frame at most {}", frame::MAX_FRAME));
    names.push(format!("tunnel ping every {} s", tunnel::PING_SECONDS));
    at_least("names.txt", &names);
}

#[test]
fn what_this_release_says_of_itself_can_be_read_by_those_before() {
    let ours = Hello::ours(&Version::new(1, 0, 0), "node");
    assert_eq!(hello::decode::<Hello>(&hello::encode(&ours)), Ok(ours.clone()));
    assert_eq!(ours.apis.get(hello::API).map(|(lowest, _)| *lowest), Some(1), "API 1 is spoken as long as 1.x may call");
}
