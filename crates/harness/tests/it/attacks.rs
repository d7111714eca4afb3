//! Attacks on the whole system, named after the rows of the attack table. What one crate can prove alone is proven there.

use crate::{
    raw_ssh::{KEX_INIT_ECDH, KEX_REPLY_ECDH, Plain, agree, lists, middle, string},
    talk::{SOON, block_on, claiming, http, name_of, tls},
};
use client::{
    api::{Api, Settings, Via},
    identity_file,
    keys::KeyPair,
};
use futures::StreamExt as _;
use harness::{
    Cluster, Run,
    cluster::{Shared, Way, until_ok},
    person::me,
    process::Running,
};
use net::clock::SystemClock;
use russh::{
    Pty,
    client::{AuthResult, Handle, Handler},
    keys::{Certificate, HashAlg, PrivateKey, agent::AgentIdentity},
};
use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::net::{TcpSocket, TcpStream};
use types::SystemRole;

/// One cluster for these tests: three processes, `node1` by tunnel and `direct1` with a port of its own.
struct Field {
    cluster: Shared,
    direct: Arc<harness::cluster::Member>,
}

fn field() -> Field {
    static FIELD: OnceLock<(Cluster, Arc<harness::cluster::Member>)> = OnceLock::new();
    let (cluster, direct) = FIELD.get_or_init(|| {
        let cluster = Cluster::split();
        let direct = cluster.join("direct1", Way::Direct, &[]);
        (cluster, direct)
    });
    Field { cluster: Shared::of(cluster), direct: direct.clone() }
}

/// Key and certificate of a user as OpenSSH has them.
fn signed(cluster: &Cluster, user: &str, logins: &[&str]) -> PathBuf {
    cluster.person(user, &["access"], logins);
    let stem = cluster.home.join(format!("attack-{user}"));
    cluster.tctl(["auth", "sign", "--format=openssh", &format!("--user={user}"), "--out"]).arg(&stem).go().ok();
    stem
}

fn keygen(words: &[&str], dir: &Path) {
    Run::new("ssh-keygen").arg("-q").args(words).dir(dir).go().ok();
}

/// `ssh` with this key and certificate and nothing else, to the host's own port or through the jump server.
fn ssh_with(field: &Field, key: &Path, certificate: &Path, jump: bool, login: &str) -> Run {
    let option = |name: &str, value: &dyn std::fmt::Display| ["-o".to_owned(), format!("{name}={value}")];
    let mut words = vec!["-F".to_owned(), "/dev/null".to_owned()];
    for (name, value) in [
        ("BatchMode", "yes"),
        ("IdentityAgent", "none"),
        ("IdentitiesOnly", "yes"),
        ("StrictHostKeyChecking", "no"),
        ("UserKnownHostsFile", "/dev/null"),
    ] {
        words.extend(option(name, &value));
    }
    words.extend(option("IdentityFile", &key.display()));
    words.extend(option("CertificateFile", &certificate.display()));
    let run = Run::new("ssh");
    if jump {
        // The jump itself is given the same: `-J` would not pass the options on.
        let inner = format!("ssh {} -p {} -W %h:%p {}@127.0.0.1", words.join(" "), field.cluster.jump_port, me());
        run.args(&words).args(["-o", &format!("ProxyCommand={inner}"), &format!("{login}@direct1"), "id -un"])
    } else {
        run.args(&words).args(["-p", &field.direct.ssh_port.to_string(), &format!("{login}@127.0.0.1"), "id -un"])
    }
}

#[test]
fn attack_row_1_a_users_key_signs_certificates_for_nobody() {
    let field = &field();
    let stem = signed(&field.cluster, "forger", &[me()]);
    let certificate = PathBuf::from(format!("{}-cert.pub", stem.display()));
    for jump in [false, true] {
        let proper = until_ok(Duration::from_secs(20), || ssh_with(field, &stem, &certificate, jump, me()));
        assert_eq!(proper.ok().trim(), me(), "positive control");
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    keygen(&["-t", "ed25519", "-N", "", "-f", "evil"], dir.path());
    keygen(&["-t", "ed25519", "-N", "", "-f", "own-ca"], dir.path());
    let identity = Run::new("ssh-keygen").args(["-L", "-f"]).arg(&certificate).go().ok();
    assert!(identity.contains("user certificate"), "{identity}");
    for ca in [stem.as_path(), &at("own-ca")] {
        let ca = ca.to_str().unwrap();
        for (kind, name) in [(&["-n"][..], "user"), (&["-h", "-n"], "host")] {
            let words = [&["-s", ca, "-I", "forger", "-V", "-1m:+1h"], kind, &[me(), "evil.pub"]].concat();
            keygen(&words, dir.path());
            for jump in [false, true] {
                let ran = ssh_with(field, &at("evil"), &at("evil-cert.pub"), jump, me()).go();
                assert_eq!(ran.status, 255, "{name} certificate by {ca}: {ran}");
            }
        }
    }
    // The stolen certificate without its key.
    ssh_with(field, &at("evil"), &certificate, false, me()).go().refused();
    // A bare key, without any certificate.
    ssh_with(field, &stem, Path::new("/dev/null"), false, me()).go().refused();
}

#[test]
fn attack_row_2_who_has_no_login_is_not_everybody() {
    let field = &field();
    field.cluster.tctl(["users", "add", "wild", "--roles=access", "--logins=*"]).go().refused();
    field
        .cluster
        .tctl(["create"])
        .input("kind: user\nversion: v1\nmetadata: {name: wild}\nspec: {roles: [access], traits: {logins: ['*']}}\n")
        .go();
    let nobody = field.cluster.person("loginless", &["access"], &[]);
    let file = field.cluster.home.join("loginless.pem");
    field.cluster.tctl(["auth", "sign", "--user=loginless", "--out"]).arg(&file).go().ok();
    let shown = std::fs::read_to_string(&file).unwrap();
    let line = shown.lines().find(|line| line.contains("-cert-v01@openssh.com")).unwrap();
    let certificate = wire::identity::parse_ssh_certificate(line).unwrap();
    assert!(!certificate.valid_principals().is_empty(), "no principals means everybody to OpenSSH");
    assert!(!certificate.valid_principals().iter().any(|name| name.contains('*') || name == me()), "{:?}", certificate.valid_principals());
    for login in [me(), "nobody", "root"] {
        nobody.ssh(&format!("{login}@node1"), "true").go().refused();
    }
}

#[test]
fn attack_row_3_delimiters_and_look_alikes_are_in_no_name() {
    let cluster = field().cluster;
    const BAD: [&str; 13] =
        ["a,root", "a root", "a\nroot", "a\troot", "a\"root", "a'root", "a;root", "-oProxyCommand=x", "rооt", "a*", "../root", "a/b", ""];
    for bad in BAD {
        let logins = cluster
            .tctl(["users", "add", "delimited", "--roles=access"])
            .arg(format!("--logins={}", if bad == "a,root" { "a b" } else { bad }))
            .go();
        assert!(bad.is_empty() || logins.status != 0, "{bad:?}: {logins}");
        cluster.tctl(["users", "rm", "delimited"]).go();
        cluster.tctl(["users", "add", "--roles=access", "--", bad]).go().refused();
        cluster.tctl(["auth", "sign", "--out=/nonexistent/x", &format!("--user={bad}")]).go().refused();
        cluster.tctl(["auth", "sign", "--format=openssh", "--out=/nonexistent/x", &format!("--host={bad}")]).go().refused();
    }
    // Written into a role they are refused; in a user's traits they have no effect: no certificate carries one.
    let role = |login: &str| serde_json::json!({"kind": "role", "version": "v1", "metadata": {"name": "delimited"}, "spec": {"allow": {"logins": [login, "{{internal.logins}}"], "node_labels": {"*": "*"}}}});
    for bad in BAD {
        for login in [bad.to_owned(), format!("{bad}{{{{internal.logins}}}}")].iter().filter(|login| !login.starts_with("{{")) {
            cluster.tctl(["create", "-f"]).input(role(login).to_string()).go().refused();
        }
        let role = role("fine");
        let user = serde_json::json!({"kind": "user", "version": "v1", "metadata": {"name": "delimited"}, "spec": {"roles": ["access", "delimited"], "traits": {"logins": [bad, "fine"]}}});
        cluster.tctl(["create", "-f"]).input(role.to_string()).go().ok();
        cluster.tctl(["create", "-f"]).input(user.to_string()).go().ok();
        let stem = cluster.home.join("delimited");
        let ran = cluster.tctl(["auth", "sign", "--user=delimited", "--format=openssh", "--out"]).arg(&stem).go();
        if ran.status == 0 {
            let certificate = Certificate::read_file(&PathBuf::from(format!("{}-cert.pub", stem.display()))).unwrap();
            let names = certificate.valid_principals();
            let strange: Vec<_> = names.iter().filter(|name| types::Login::new(name).is_err() && !name.starts_with('-')).collect();
            assert!(strange.is_empty() && !names.iter().any(|name| name == bad), "{bad:?} became {names:?}");
            std::fs::remove_file(&stem).unwrap();
        }
        cluster.tctl(["rm", "user/delimited"]).go();
        cluster.tctl(["rm", "role/delimited"]).go();
    }
}

/// A russh client that believes every host: these tests are about the server.
struct Anyone;
impl Handler for Anyone {
    type Error = russh::Error;
    async fn check_server_key(&mut self, _key: &russh::keys::PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

async fn connect(port: u16) -> Handle<Anyone> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    russh::client::connect_stream(Arc::new(russh::client::Config::default()), stream, Anyone).await.unwrap()
}

/// Signs with some key something that is perhaps not what was to be signed.
struct Signer {
    key: PrivateKey,
    change: Change,
}

type Change = fn(&mut Vec<u8>);

/// No signature, or nobody to send it to.
#[derive(Debug)]
struct NotSigned;
impl From<russh::SendError> for NotSigned {
    fn from(_: russh::SendError) -> NotSigned {
        NotSigned
    }
}

impl russh::Signer for Signer {
    type Error = NotSigned;
    async fn auth_sign(&mut self, _key: &AgentIdentity, _hash: Option<HashAlg>, to_sign: Vec<u8>) -> Result<Vec<u8>, NotSigned> {
        use russh::keys::signature::Signer as _;
        let mut signed = to_sign.clone();
        (self.change)(&mut signed);
        let signature = self.key.try_sign(&signed).map_err(|_| NotSigned)?;
        let blob: Vec<u8> = signature.try_into().map_err(|_| NotSigned)?;
        Ok([to_sign, string(&blob)].concat())
    }
}

/// Key and certificate from the files of [`signed`].
fn load(stem: &Path) -> (PrivateKey, Certificate) {
    let key = PrivateKey::read_openssh_file(stem).unwrap();
    let certificate = Certificate::read_file(&PathBuf::from(format!("{}-cert.pub", stem.display()))).unwrap();
    (key, certificate)
}

#[test]
fn attack_row_4_a_key_that_is_offered_but_not_proven_opens_nothing() {
    let field = &field();
    let (key, certificate) = load(&signed(&field.cluster, "offered", &[me()]));
    let other = load(&signed(&field.cluster, "offered-other", &[me()])).0;
    let changes: [(&str, Change); 3] = [
        // The session's id comes first: string of 32 bytes.
        ("another session", |signed| signed[10] ^= 1),
        // Then the message number and the user's name.
        ("another user", |signed| signed[36 + 1 + 4] ^= 1),
        ("other last bytes", |signed| *signed.last_mut().unwrap() ^= 1),
    ];
    block_on(async {
        for port in [field.direct.ssh_port, field.cluster.jump_port] {
            let attempt = async |signer: Signer| {
                let mut handle = connect(port).await;
                let mut signer = signer;
                // A server that hangs up on a bad signature is as good as one that says no.
                let result = handle.authenticate_certificate_with(me(), certificate.clone(), None, &mut signer).await;
                matches!(result, Ok(AuthResult::Success))
            };
            assert!(attempt(Signer { key: key.clone(), change: |_| {} }).await, "positive control on port {port}");
            assert!(!attempt(Signer { key: other.clone(), change: |_| {} }).await, "signed by another key");
            for (what, change) in changes {
                assert!(!attempt(Signer { key: key.clone(), change }).await, "{what}");
            }
            let mut handle = connect(port).await;
            for _ in 0..2 {
                let none = handle.authenticate_none(me()).await;
                assert!(!matches!(none, Ok(AuthResult::Success)));
            }
            let mut handle = connect(port).await;
            let password = handle.authenticate_password(me(), "correct horse offered").await;
            assert!(!matches!(password, Ok(AuthResult::Success)), "sessions are opened by certificates alone");
        }
    });
}

#[test]
fn attack_row_5_the_identity_is_that_of_the_proven_key_whatever_was_offered_before() {
    let field = &field();
    let people: Vec<_> = ["row5-a", "row5-b", "row5-c"].map(|name| (name, load(&signed(&field.cluster, name, &[me()])))).into();
    block_on(async {
        for (at, (name, (key, certificate))) in people.iter().enumerate() {
            let mut handle = connect(field.direct.ssh_port).await;
            for (_, (_, offered)) in people.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, person)| person) {
                let mut liar = Signer { key: key.clone(), change: |_| {} };
                let result = handle.authenticate_certificate_with(me(), offered.clone(), None, &mut liar).await;
                assert!(matches!(result, Ok(AuthResult::Failure { .. })), "{result:?}");
            }
            let entered = handle.authenticate_openssh_cert(me(), Arc::new(key.clone()), certificate.clone()).await.unwrap();
            assert!(matches!(entered, AuthResult::Success));
            assert_eq!(exec(&handle, "echo $LOCKGATE_USER").await, format!("{name}\n"));
        }
    });
}

/// An authenticated connection.
async fn enter(port: u16, key: &PrivateKey, certificate: &Certificate) -> Handle<Anyone> {
    let mut handle = connect(port).await;
    let entered = handle.authenticate_openssh_cert(me(), Arc::new(key.clone()), certificate.clone()).await.unwrap();
    assert!(matches!(entered, AuthResult::Success), "{entered:?}");
    handle
}

/// What a command prints.
async fn exec(handle: &Handle<Anyone>, command: &str) -> String {
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, command).await.unwrap();
    let mut out = Vec::new();
    let read = async {
        while let Some(message) = channel.wait().await {
            if let russh::ChannelMsg::Data { data } = message {
                out.extend_from_slice(&data);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("an end");
    String::from_utf8(out).unwrap()
}

#[test]
fn attack_row_9_a_renewed_certificate_has_no_more_than_the_one_before() {
    let cluster = field().cluster;
    let alice = cluster.person("renewer", &["access"], &[me()]);
    let file = cluster.home.join("renewer.pem");
    alice.login().arg("--ttl=5m").arg("--out").arg(&file).go().ok();
    let before = identity_file::load(&file).unwrap();
    block_on(async {
        let api = Api::new(Settings {
            via: Via::Proxy(cluster.proxy_addr()),
            access: before.access().unwrap(),
            role: "tsh".into(),
            version: current_version(),
            skip_version_check: false,
            clock: SystemClock::shared(),
        });
        let key = KeyPair::generate().unwrap();
        let ask = |ttl: u64| wire::api::ReissueRequest {
            ssh_public_key: key.ssh_public().unwrap(),
            tls_public_key: key.spki_der().into(),
            ttl,
            ..Default::default()
        };
        for ttl in [0, 60, 30 * 3600, u64::MAX] {
            let reply = api.reissue(ask(ttl)).await.unwrap();
            let expires: types::Time = reply.expires.parse().unwrap();
            assert!(expires.unix() <= before.expires.unix(), "asked for {ttl} s: {expires} is after {}", before.expires);
            let old = wire::identity::parse_ssh_certificate(before.ssh_line()).unwrap();
            let new = wire::identity::parse_ssh_certificate(&reply.ssh_certificate).unwrap();
            assert!(new.valid_principals().iter().all(|name| old.valid_principals().contains(name)));
            assert!(new.extensions().iter().all(|(name, _)| old.extensions().iter().any(|(known, _)| known == name)));
            assert!(new.valid_before() <= old.valid_before());
        }
        // More roles since then are not in a renewal of the old certificate.
        cluster.tctl(["users", "update", "renewer", "--set-roles=access,editor"]).go().ok();
        let reply = api.reissue(ask(60)).await.unwrap();
        let leaf = crate::talk::chain(&reply.tls_certificate).remove(0);
        let roles = serde_json::to_string(&wire::identity::from_x509_der(&leaf).unwrap()).unwrap();
        assert!(!roles.contains("editor"), "{roles}");
    });
}

/// What the program under test is.
fn current_version() -> types::Version {
    let shown = Run::new(harness::binary::current()).args(["version", "--format=json"]).go().json();
    shown["version"].as_str().unwrap().parse().unwrap()
}

#[test]
fn attack_row_13_nothing_is_dialled_but_registered_hosts() {
    let field = &field();
    let alice = field.cluster.person("row13", &["access"], &[me()]);
    let trap = TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let port = trap.local_addr().unwrap().port();
    let stem = signed(&field.cluster, "row13-plain", &[me()]);
    let certificate = PathBuf::from(format!("{}-cert.pub", stem.display()));
    for target in ["127.0.0.1", "localhost", "169.254.169.254", "[::1]", "0.0.0.0"] {
        for port in [port, field.cluster.auth_port, field.cluster.node().diag_port] {
            alice.tsh(["proxy", "ssh", &format!("{}@{target}:{port}", me())]).input("SSH-2.0-x\r\n").go().refused();
            let option = |text: &str| ["-o".to_owned(), text.to_owned()];
            let ran = Run::new("ssh")
                .args(["-F", "/dev/null", "-p", &field.cluster.jump_port.to_string()])
                .args(
                    ["BatchMode=yes", "IdentityAgent=none", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
                        .iter()
                        .flat_map(|text| option(text)),
                )
                .args(option(&format!("IdentityFile={}", stem.display())))
                .args(option(&format!("CertificateFile={}", certificate.display())))
                .args(["-W", &format!("{target}:{port}"), &format!("{}@127.0.0.1", me())])
                .go();
            ran.refused();
        }
    }
    assert!(trap.accept().is_err(), "somebody was sent here");
}

#[test]
fn attack_row_20_a_packet_that_was_slipped_in_before_the_keys_ends_the_connection() {
    let field = &field();
    let stem = signed(&field.cluster, "row20", &[me()]);
    let certificate = PathBuf::from(format!("{}-cert.pub", stem.display()));
    for port in [field.direct.ssh_port, field.cluster.jump_port] {
        let mut plain = Plain::open(port);
        let offered = plain.packet().unwrap();
        assert!(lists(&offered)[0].split(',').any(|name| name == "kex-strict-s-v00@openssh.com"), "{:?}", lists(&offered));
    }
    let through = |port: u16| {
        let words = ["-p".to_owned(), port.to_string(), format!("{}@127.0.0.1", me()), "id -un".to_owned()];
        let option = |name: &str, value: &dyn std::fmt::Display| ["-o".to_owned(), format!("{name}={value}")];
        Run::new("ssh")
            .args([
                "-F",
                "/dev/null",
                "-o",
                "BatchMode=yes",
                "-o",
                "IdentityAgent=none",
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args(option("IdentityFile", &stem.display()))
            .args(option("CertificateFile", &certificate.display()))
            .args(words)
            .go()
    };
    assert_eq!(through(middle(field.direct.ssh_port, false)).ok().trim(), me(), "positive control");
    assert_eq!(through(middle(field.direct.ssh_port, true)).status, 255);
}

#[test]
fn attack_row_22_sizes_and_modes_beyond_reason_end_no_other_session() {
    let field = &field();
    let (key, certificate) = load(&signed(&field.cluster, "row22", &[me()]));
    let port = field.direct.ssh_port;
    block_on(async {
        let bystander = enter(port, &key, &certificate).await;
        for (columns, rows, modes) in [(u32::MAX, u32::MAX, 0), (0, 0, 131), (80, 24, 1000), (u32::MAX, 0, 130)] {
            let handle = enter(port, &key, &certificate).await;
            let channel = handle.channel_open_session().await.unwrap();
            let modes = vec![(Pty::VINTR, u32::MAX); modes];
            let _answered_or_not = channel.request_pty(true, &"x".repeat(2000), columns, rows, u32::MAX, u32::MAX, &modes).await;
            let _answered_or_not = channel.exec(true, "true").await;
            for _ in 0..20 {
                let _still_open_or_not = channel.window_change(u32::MAX, u32::MAX, u32::MAX, 0).await;
            }
            assert_eq!(exec(&bystander, "echo untouched").await, "untouched\n");
        }
    });
    assert!(!field.direct.has_ended() && !field.direct.log().contains("panicked"), "{}", field.direct.log());
}

/// Public values that no X25519 may accept: they force the shared secret to zero (RFC 7748, section 6.1).
const LOW_ORDER: [&str; 5] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

#[test]
fn attack_row_23_bad_values_in_the_key_exchange_get_no_reply_and_stop_nobody() {
    let field = &field();
    let low = |hex: &&str| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
    for port in [field.direct.ssh_port, field.cluster.jump_port] {
        let mut plain = Plain::open(port);
        let offered = plain.packet().unwrap();
        drop(plain);
        let mut tried = 0;
        for method in lists(&offered)[0]
            .split(',')
            .filter(|name| !name.starts_with("kex-strict") && !name.starts_with("ext-info") && !name.contains("group-exchange"))
        {
            let began = Instant::now();
            let mut values: Vec<Vec<u8>> = vec![vec![], vec![0; 31], vec![0; 33], vec![0xff; 4000]];
            if method.contains("25519") && !method.contains("mlkem") {
                values.extend(LOW_ORDER.iter().map(low));
            } else if method.contains("mlkem") {
                values.extend([vec![0; 1184], vec![0; 1184 + 31], [vec![0; 1184], vec![0; 32]].concat(), vec![0xff; 1216]]);
            } else if method.contains("diffie-hellman") {
                // One, and its negative: both leave nothing secret (RFC 4253, section 8).
                values.extend([vec![1], vec![0xff]]);
                values.retain(|value| value.len() != 33 && value.len() != 31);
            } else {
                values.extend([vec![0; 65], [vec![4], vec![0; 64]].concat(), [vec![4], vec![0xff; 64]].concat(), vec![2; 33]]);
            }
            for value in values {
                let mut plain = Plain::open(port);
                let server = plain.packet().unwrap();
                plain.send(&agree(&server, method));
                plain.send(&[&[KEX_INIT_ECDH][..], &string(&value)].concat());
                while let Some(answer) = plain.packet() {
                    assert_ne!(answer[0], KEX_REPLY_ECDH, "{method} with {} bytes {:02x?}…", value.len(), value.get(..4));
                }
                tried += 1;
            }
            assert!(began.elapsed() < SOON, "{method} on port {port} took {:?}: a clean end is a quick one", began.elapsed());
        }
        assert!(tried >= 5, "{:?}", lists(&offered));
    }
    let alice = field.cluster.person("row23", &["access"], &[me()]);
    alice.ssh(&format!("{}@direct1", me()), "true").go().ok();
}

/// How far a slow peer goes before it falls silent.
#[derive(Clone, Copy, Debug)]
enum Silent {
    AtOnce,
    InTheClientHello,
    AfterTls,
    AfterTheVersionLine,
}

/// From an address of its own, as strangers are.
async fn slow_peer(number: u32, port: u16, silent: Silent, alpn: &'static [u8], name: String) -> Option<Box<dyn Send>> {
    use tokio::io::AsyncWriteExt as _;
    let socket = TcpSocket::new_v4().unwrap();
    let source = std::net::Ipv4Addr::from(0x7f01_0000 + number % 5000 + 2);
    socket.bind((source, 0).into()).unwrap();
    let mut stream = tokio::time::timeout(SOON, socket.connect(([127, 0, 0, 1], port).into())).await.ok()?.ok()?;
    match silent {
        Silent::AtOnce => {}
        Silent::InTheClientHello => stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).await.ok()?,
        Silent::AfterTheVersionLine => stream.write_all(b"SSH-2.0-slow\r\n").await.ok()?,
        Silent::AfterTls => {
            let config = net::tls::client_config(None, net::tls::Trust::Insecure, &[alpn], &SystemClock::shared()).unwrap();
            let stream = tokio::time::timeout(SOON, net::dial::tls(stream, "the server", config, &name)).await.ok()?.ok()?;
            return Some(Box::new(stream));
        }
    }
    Some(Box::new(stream))
}

/// Opens them a few hundred at a time, as many machines would, and says how many stand.
async fn slow_peers(port: u16, alpn: &'static [u8], name: &str, steps: &[(Silent, u32)]) -> Vec<Box<dyn Send>> {
    let all = steps.iter().flat_map(|(silent, count)| std::iter::repeat_n(*silent, usize::try_from(*count).unwrap()));
    let opening = (0u32..).zip(all).map(|(number, silent)| slow_peer(number, port, silent, alpn, name.to_owned()));
    futures::stream::iter(opening).buffer_unordered(300).filter_map(std::future::ready).collect().await
}

/// The attack table's number, on each listener. This process may have 20,000 open files here and one listener's peers are
/// half of that, so the listeners take their turns. Each keeps 4,096 of them and cuts the oldest for newcomers.
#[test]
fn attack_row_24_ten_thousand_slow_peers_on_each_listener_keep_nobody_out() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const PEERS: usize = 10_000;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    assert!(maximum.is_none_or(|most| most > 12_000), "this test needs 12,000 open files: {maximum:?}");
    // A cluster of its own: the peers would be in the way of other tests.
    let cluster = Cluster::split();
    let direct = cluster.join("direct1", Way::Direct, &[]);
    let alice = cluster.person("alice", &["access"], &[me()]);
    let target = format!("{}@node1", me());
    until_ok(Duration::from_secs(20), || alice.ssh(&target, "true"));
    let (key, certificate) = load(&signed(&cluster, "row24", &[me()]));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let before = runtime.block_on(enter(direct.ssh_port, &key, &certificate));
    let (auth, proxy) = (name_of(SystemRole::Auth, &cluster), name_of(SystemRole::Proxy, &cluster));
    let tls = [(Silent::AtOnce, 6000), (Silent::InTheClientHello, 3900), (Silent::AfterTls, 100)];
    let ssh = [(Silent::AtOnce, 5000), (Silent::AfterTheVersionLine, 5000)];
    for (port, alpn, name, steps) in [
        (cluster.auth_port, &b"lockgate-auth"[..], &auth, &tls[..]),
        (cluster.web_port, b"http/1.1", &proxy, &tls),
        (cluster.jump_port, b"", &proxy, &ssh),
        (direct.ssh_port, b"", &proxy, &ssh),
    ] {
        let peers = runtime.block_on(slow_peers(port, alpn, name, steps));
        assert!(peers.len() > PEERS * 99 / 100, "only {} peers are there", peers.len());
        let time = |work: &dyn Fn() -> Run| {
            let mut all: Vec<Duration> = (0..5)
                .map(|_| {
                    let begun = Instant::now();
                    work().go().ok();
                    begun.elapsed()
                })
                .collect();
            all.sort();
            all[2]
        };
        let times = [
            ("a login", time(&|| alice.login())),
            ("a session through the tunnel", time(&|| alice.ssh(&target, "true"))),
            ("a direct session", time(&|| alice.ssh(&format!("{}@direct1", me()), "true"))),
        ];
        for (what, took) in times {
            assert!(took < Duration::from_secs(1), "{what} took {took:?} while {name} had {} peers on port {port}", peers.len());
        }
        assert_eq!(runtime.block_on(exec(&before, "echo untouched")), "untouched\n");
    }
}

#[test]
fn attack_row_26_no_page_can_be_framed() {
    let cluster = field().cluster;
    let secret = "a".repeat(40);
    for path in [
        "/",
        "/webapi/ping",
        "/webapi/find",
        "/webapi/ping/local",
        "/webapi/ping/other",
        "/web/style.css",
        "/nowhere",
        "/webapi/login",
        &format!("/web/invite/{secret}"),
        &format!("/webapi/invite/{secret}"),
    ] {
        for method in ["GET", "POST", "OPTIONS", "DELETE"] {
            let (_, head, _) = block_on(http(&cluster, method, path, &[], ""));
            for header in
                ["x-frame-options: deny", "frame-ancestors 'none'", "x-content-type-options: nosniff", "referrer-policy: no-referrer"]
            {
                assert!(head.contains(header), "{method} {path} lacks {header}:\n{head}");
            }
            assert!(!head.contains("script-src") || head.contains("script-src 'none'"), "{head}");
        }
    }
}

#[test]
fn attack_row_29_what_nobody_knows_is_refused_and_the_rest_goes_on() {
    let field = &field();
    field.cluster.role(
        "row29-none",
        "{options: {port_forwarding: false, forward_agent: false}, allow: {logins: ['{{internal.logins}}'], node_labels: {'*': '*'}}}",
    );
    field.cluster.person("row29", &["row29-none"], &[me()]);
    let stem = field.cluster.home.join("attack-row29");
    field.cluster.tctl(["auth", "sign", "--format=openssh", "--user=row29", "--out"]).arg(&stem).go().ok();
    let (key, certificate) = load(&stem);
    block_on(async {
        let handle = enter(field.direct.ssh_port, &key, &certificate).await;
        assert!(handle.channel_open_x11("127.0.0.1", 6000).await.is_err(), "x11");
        assert!(
            handle.channel_open_direct_tcpip("127.0.0.1", u32::from(field.cluster.auth_port), "127.0.0.1", 1).await.is_err(),
            "direct-tcpip"
        );
        assert!(handle.channel_open_direct_streamlocal("/run/dbus/system_bus_socket").await.is_err(), "direct-streamlocal");
        assert!(handle.tcpip_forward("127.0.0.1", 0).await.is_err(), "tcpip-forward");
        let mut channel = handle.channel_open_session().await.unwrap();
        channel.request_subsystem(true, "no-such-subsystem").await.unwrap();
        let answered = async {
            loop {
                match channel.wait().await {
                    Some(russh::ChannelMsg::Failure) | None => return true,
                    Some(russh::ChannelMsg::Success) => return false,
                    Some(_) => {}
                }
            }
        };
        assert!(tokio::time::timeout(SOON, answered).await.unwrap(), "a subsystem that does not exist");
        drop(channel);
        assert_eq!(exec(&handle, "echo still here").await, "still here\n");
    });
    field.cluster.event("ssh.request", "L3007W", &[("user", "row29")]);
}

#[test]
fn attack_row_29_a_protocol_name_or_message_that_nobody_knows_is_refused() {
    let cluster = field().cluster;
    block_on(async {
        assert!(tls(cluster.web_port, b"lockgate-of-tomorrow", "127.0.0.1", None).await.is_err(), "an unknown protocol name");
        // Without a certificate nothing is said on the protocols of members and users.
        for alpn in [&b"lockgate-ssh"[..], b"lockgate-tunnel", b"lockgate-tunnel-data"] {
            let name = name_of(SystemRole::Proxy, &cluster);
            let Ok(mut stream) = tls(cluster.web_port, alpn, &name, None).await else { continue };
            let answer = crate::talk::hello(&mut stream, &claiming("tsh", &current_version().to_string())).await;
            assert!(answer.is_err() || crate::talk::refusal(answer.as_ref().unwrap()).is_some(), "{answer:?}");
        }
    });
}

#[test]
fn attack_row_31_a_service_that_is_flooded_while_it_starts_answers_when_it_is_ready() {
    let cluster = Cluster::start();
    let alice = cluster.person("alice", &["access"], &[me()]);
    let log = cluster.home.join("flood.log");
    cluster.auth().kill();
    let script = format!(
        "while :; do for p in {} {} {} {}; do (exec 3<>/dev/tcp/127.0.0.1/$p && printf 'GET / HTTP/1.1\\r\\n\\r\\n' >&3) 2>/dev/null; done; done",
        cluster.auth_port,
        cluster.web_port,
        cluster.jump_port,
        cluster.auth().diag_port
    );
    let flood = Running::start(&Run::new("bash").arg("-c").arg(script).into_command(), &log);
    cluster.auth().start();
    cluster.auth().wait_ready();
    until_ok(Duration::from_secs(30), || alice.ssh(&format!("{}@node1", me()), "true"));
    drop(flood);
}

/// The positive control of the packets made by hand, so that a test that expects a refusal cannot pass for a wrong reason.
#[test]
fn the_packets_made_by_hand_are_read_by_the_server() {
    let mut plain = Plain::open(field().direct.ssh_port);
    let server = plain.packet().unwrap();
    let method = lists(&server)[0].split(',').find(|name| name.starts_with("curve25519-sha256")).unwrap_or("curve25519-sha256").to_owned();
    plain.send(&agree(&server, &method));
    // The base point: an honest public value.
    let base = [&[9][..], &[0; 31]].concat();
    plain.send(&[&[KEX_INIT_ECDH][..], &string(&base)].concat());
    let answer = plain.packet().unwrap();
    assert_eq!(answer[0], KEX_REPLY_ECDH);
    let mut rest = std::net::TcpStream::connect(("127.0.0.1", field().direct.ssh_port)).unwrap();
    rest.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    rest.set_read_timeout(Some(SOON)).unwrap();
    let mut said = Vec::new();
    let _closed = rest.read_to_end(&mut said);
    assert!(said.len() < 1000, "a stranger gets a version line and no more");
}
