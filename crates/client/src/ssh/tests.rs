//! Sessions against a server that behaves, and against some that do not.

use super::{host::HostCheckError, peer::Server, *};
use crate::{
    keys::KeyPair,
    testing::{Cluster, HOUR},
};
use net::clock::ManualClock;
use russh::keys::{PublicKey, ssh_key::certificate::CertType};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
};
use types::{HostId, HostIdentity, SystemRole, Time};
use wire::identity::BadIdentity;

const SOON: Duration = Duration::from_secs(60);

struct World {
    demo: Cluster,
    key: KeyPair,
    host: HostIdentity,
}

fn world() -> World {
    // russh looks at the machine's clock when it reads a user certificate.
    let demo = Cluster::new("demo", Time::from(std::time::SystemTime::now()));
    let host = demo.host_identity(HostId::from_uuid(uuid::Uuid::from_u128(5)), "node1", &[SystemRole::Node]);
    World { demo, key: KeyPair::generate().unwrap(), host }
}

impl World {
    fn server(&self) -> Server {
        self.server_with(self.demo.host_ssh_certificate(&self.key, &self.host))
    }
    fn server_with(&self, certificate: Certificate) -> Server {
        Server { key: Some(self.key.ssh_private().unwrap()), certificate: Some(certificate), ..Server::default() }
    }
    fn public(&self) -> PublicKey {
        self.key.ssh_private().unwrap().public_key().clone()
    }
    fn connecting(&self, asked: &str) -> Connecting {
        let alice = self.demo.user("alice", &["root"]);
        Connecting {
            login: Login::new("root").unwrap(),
            key: Arc::new(alice.key.ssh_private().unwrap()),
            certificate: alice.ssh_certificate.clone(),
            expected: ExpectedHost { trust: alice.trust, asked: asked.parse().unwrap(), host_id: Some(self.host.id) },
            forwarding: false,
            agent_socket: None,
            keep_alive: Duration::from_secs(15),
            clock: ManualClock::new(self.demo.now).shared(),
        }
    }
    async fn connect(&self, server: Server, connecting: Connecting) -> Result<Session, SshError> {
        let (near, far) = tokio::io::duplex(256 * 1024);
        #[allow(clippy::disallowed_methods, reason = "the test's server")]
        tokio::spawn(server.serve(far));
        tokio::time::timeout(SOON, connect(Box::new(near), connecting)).await.expect("no answer")
    }
    async fn session(&self) -> Session {
        self.connect(self.server(), self.connecting("node1")).await.unwrap()
    }
}

fn exec(command: &str) -> Request {
    Request { command: Some(command.into()), ..Request::default() }
}

/// Runs with this input; what came out, and how it ended.
async fn run(session: &Session, request: Request, input: &[u8]) -> (Vec<u8>, Vec<u8>, Result<Exit, SshError>) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (_keep, control) = mpsc::channel(1);
    let streams = Streams { stdin: input, stdout: &mut out, stderr: &mut err, control };
    let exit = tokio::time::timeout(SOON, session.run(request, streams)).await.expect("it did not end");
    (out, err, exit)
}

#[tokio::test]
async fn output_errors_and_status_arrive_apart() {
    let world = world();
    let session = world.session().await;
    let (out, err, exit) = run(&session, exec("fail"), b"").await;
    assert_eq!((out.as_slice(), err.as_slice(), exit.unwrap()), (&b"out"[..], &b"err"[..], Exit::Status(3)));
    let (out, _, exit) = run(&session, exec("early"), b"").await;
    assert_eq!((out.len(), exit.unwrap()), (300_000, Exit::Status(7)));
    let (_, _, exit) = run(&session, exec("die"), b"").await;
    let exit = exit.unwrap();
    assert_eq!(exit, Exit::Signal { name: "KILL".into(), core_dumped: true, message: "killed\u{fffd}".into() });
    assert_eq!(exit.code(), 137);
}

#[tokio::test]
async fn large_input_comes_back_whole_and_its_end_is_passed_on() {
    let world = world();
    let session = world.session().await;
    let input: Vec<u8> = (0..24u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (out, _, exit) = run(&session, exec("cat"), &input).await;
    assert_eq!(exit.unwrap(), Exit::Status(0));
    assert!(out == input, "{} of {} bytes", out.len(), input.len());
}

#[tokio::test]
async fn a_shell_has_a_terminal_window_changes_and_signals() {
    let world = world();
    let session = world.session().await;
    let pty = Pty { term: "xterm".into(), columns: 80, rows: 24, ..Pty::default() };
    let request = Request { pty: Some(pty), environment: vec![("LANG".into(), "C".into())], ..Request::default() };
    let (mut seen, stdout) = tokio::io::duplex(1024);
    let (steer, control) = mpsc::channel(4);
    let (stdin, _open) = tokio::io::duplex(16);
    let streams: Streams<DuplexStream, _, _> = Streams { stdin, stdout, stderr: tokio::io::sink(), control };
    let user = async {
        let mut text = vec![0; b"xterm 80x24,LANG=C".len()];
        seen.read_exact(&mut text).await.unwrap();
        assert_eq!(text, b"xterm 80x24,LANG=C");
        steer.send(Control::Window { columns: 132, rows: 50, width: 0, height: 0 }).await.unwrap();
        let mut text = [0; 4];
        seen.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b" 132");
        steer.send(Control::Signal(Sig::INT)).await.unwrap();
    };
    let both = async { tokio::join!(session.run(request, streams), user) };
    let (exit, ()) = tokio::time::timeout(SOON, both).await.unwrap();
    assert_eq!(exit.unwrap().code(), 130);
}

#[tokio::test]
async fn a_connection_that_is_cut_is_an_error_and_not_a_status() {
    let world = world();
    let session = world.session().await;
    let (out, _, exit) = run(&session, exec("vanish"), b"").await;
    assert_eq!(out, b"half");
    assert!(matches!(&exit, Err(SshError::Ended(Some(why))) if why == "a lock is in force"), "{exit:?}");
    let session = world.session().await;
    assert!(matches!(run(&session, exec("refuse"), b"").await.2, Err(SshError::Refused("command"))));
}

#[tokio::test]
async fn a_refused_login_says_what_the_host_said() {
    let world = world();
    let check = async |said: &'static str, code: Code, message: &str| {
        let error = world.connect(Server { refuses: Some(said), ..world.server() }, world.connecting("node1")).await.unwrap_err().public();
        assert_eq!((error.known(), error.message.as_str()), (Some(code), message));
    };
    check(r#"{"code":"LG-ACCESS-003","message":"locked"}"#, Code::AccessLocked, "locked").await;
    check("go away\u{1b}[2J", Code::AccessDenied, "go away\u{fffd}[2J").await;
    let mut wrong = world.connecting("node1");
    wrong.login = Login::new("nobody").unwrap();
    let error = world.connect(world.server(), wrong).await.unwrap_err().public();
    assert!(error.is(Code::AccessDenied) && error.message.contains("nobody"), "{error:?}");
}

#[tokio::test]
async fn a_host_proves_the_name_and_the_id_it_was_dialled_by() {
    let world = world();
    let id = world.host.id.to_string();
    for asked in ["node1", "NODE1", "node1.demo", &id] {
        world.connect(world.server(), world.connecting(asked)).await.unwrap();
    }
    let error = world.connect(world.server(), world.connecting("node2")).await.unwrap_err();
    assert!(matches!(error, SshError::Host(HostCheckError::OtherHost { .. })), "{error}");
    // Names beyond its own are what a member asked for itself: a Proxy's certificate does not stand for a host, nor does
    // another host's, whatever its principals and whoever the Proxy says it is.
    let proxy = world.demo.host_identity(world.host.id, "proxy", &[SystemRole::Proxy]);
    let posing = world.demo.host_identity(world.host.id, "node2", &[SystemRole::Node]);
    for holder in [proxy, posing, HostIdentity { roles: [SystemRole::Proxy].into(), ..world.host.clone() }] {
        let names = [world.host.id.to_string(), "node1".to_owned()];
        let holder = types::Identity::Host(holder);
        let certificate =
            world.demo.ssh_certificate(&world.demo.host_signer(), &world.public(), CertType::Host, &names, Some(&holder), &[]);
        assert!(matches!(shown(&world, certificate).await, HostCheckError::OtherHost { .. }));
    }
    // The right name, but not the host that the Proxy claims to have reached.
    let mut other = world.connecting("node1");
    other.expected.host_id = Some(HostId::from_uuid(uuid::Uuid::from_u128(6)));
    assert!(matches!(world.connect(world.server(), other).await, Err(SshError::Host(HostCheckError::OtherHost { .. }))));
    let bare = Server { certificate: None, ..world.server() };
    assert!(matches!(world.connect(bare, world.connecting("node1")).await, Err(SshError::Host(HostCheckError::BareKey))));
}

/// What the client says to a server that shows this certificate.
#[tokio::test]
async fn whether_a_host_serves_is_seen_without_a_login() {
    let world = world();
    let meets = async |server: Server, asked: &str| {
        let (near, far) = tokio::io::duplex(256 * 1024);
        #[allow(clippy::disallowed_methods, reason = "the test's server")]
        tokio::spawn(server.serve(far));
        let Connecting { expected, clock, .. } = world.connecting(asked);
        tokio::time::timeout(SOON, meet(Box::new(near), expected, clock)).await.expect("no answer")
    };
    meets(world.server(), "node1").await.unwrap();
    assert!(matches!(meets(world.server(), "node2").await, Err(SshError::Host(HostCheckError::OtherHost { .. }))));
    let bare = Server { certificate: None, ..world.server() };
    assert!(matches!(meets(bare, "node1").await, Err(SshError::Host(HostCheckError::BareKey))));
}

async fn shown(world: &World, certificate: Certificate) -> HostCheckError {
    match world.connect(world.server_with(certificate), world.connecting("node1")).await {
        Err(SshError::Host(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn principals(world: &World) -> Vec<String> {
    vec![world.host.id.to_string(), "node1".into()]
}

#[tokio::test]
async fn attack_row_1_a_certificate_is_no_authority_for_hosts() {
    let world = world();
    let holder = types::Identity::Host(world.host.clone());
    // A real host, and a real user, sign a certificate for the host that is asked for, with the keys they have certificates for.
    let real_host = world.demo.host(HostId::from_uuid(uuid::Uuid::from_u128(8)), "node8", &[SystemRole::Node]);
    let real_user = world.demo.user("mallory", &["root"]);
    for signer in [real_host.key.ssh_private().unwrap(), real_user.key.ssh_private().unwrap()] {
        let forged = world.demo.ssh_certificate(&signer, &world.public(), CertType::Host, &principals(&world), Some(&holder), &[]);
        assert_eq!(shown(&world, forged).await, HostCheckError::Certificate(BadIdentity::Issuer));
    }
    // The certificate itself standing where the signing key belongs does not parse: there is no such key.
    let line = real_user.ssh_line();
    assert!(crate::trust::plain_key(line).is_none());
}

#[tokio::test]
async fn attack_row_2_3_principals_are_names_and_not_patterns() {
    let world = world();
    let holder = types::Identity::Host(world.host.clone());
    let id = world.host.id.to_string();
    let sign = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        world.demo.ssh_certificate(&world.demo.host_signer(), &world.public(), CertType::Host, &names, Some(&holder), &[])
    };
    for bad in [&[][..], &["*"], &[&id, "node*"], &[&id, "node1,node2"], &[&id, "node?"]] {
        assert_eq!(shown(&world, sign(bad)).await, HostCheckError::Certificate(BadIdentity::Principals), "{bad:?}");
    }
    assert!(matches!(shown(&world, sign(&[&id, "node1 "])).await, HostCheckError::OtherHost { .. }));
}

#[tokio::test]
async fn attack_row_12_users_other_clusters_and_the_past_are_not_hosts() {
    let world = world();
    let signer = world.demo.host_signer();
    let own = types::Identity::Host(world.host.clone());
    let as_user = world.demo.ssh_certificate(&signer, &world.public(), CertType::User, &principals(&world), Some(&own), &[]);
    assert_eq!(shown(&world, as_user).await, HostCheckError::Certificate(BadIdentity::WrongType("host")));
    let elsewhere = Cluster::new("demo", world.demo.now);
    assert_eq!(
        shown(&world, elsewhere.host_ssh_certificate(&world.key, &world.host)).await,
        HostCheckError::Certificate(BadIdentity::Issuer)
    );
    let mut foreign = world.host.clone();
    foreign.cluster = types::ClusterName::new("other").unwrap();
    let foreign = world.demo.ssh_certificate(
        &signer,
        &world.public(),
        CertType::Host,
        &principals(&world),
        Some(&types::Identity::Host(foreign)),
        &[],
    );
    assert_eq!(shown(&world, foreign).await, HostCheckError::Foreign);
    let critical =
        world.demo.ssh_certificate(&signer, &world.public(), CertType::Host, &principals(&world), Some(&own), &[("new-rule", "x")]);
    assert!(matches!(shown(&world, critical).await, HostCheckError::Certificate(BadIdentity::Critical(_))));
    let mut late = world.connecting("node1");
    late.clock = ManualClock::new(world.demo.now.plus(HOUR)).shared();
    let error = world.connect(world.server(), late).await.unwrap_err();
    assert!(matches!(error, SshError::Host(HostCheckError::Certificate(BadIdentity::Validity))), "{error}");
}

#[tokio::test]
async fn attack_row_20_a_server_without_strict_key_exchange_is_refused_before_the_login() {
    let world = world();
    let error = world.connect(Server { not_strict: true, ..world.server() }, world.connecting("node1")).await.unwrap_err();
    assert!(matches!(error, SshError::NotStrict), "{error}");
}

#[tokio::test]
async fn attack_row_29_whatever_the_server_opens_is_refused() {
    let world = world();
    let session = world.session().await;
    let (_, _, exit) = run(&session, exec("intrude"), b"").await;
    assert_eq!(exit.unwrap(), Exit::Status(0));
}

/// One SSH packet without encryption.
fn packet(payload: &[u8]) -> Vec<u8> {
    let padding = 8 - (payload.len() + 5) % 8 + 8;
    let mut out = u32::try_from(payload.len() + 1 + padding).unwrap().to_be_bytes().to_vec();
    out.push(u8::try_from(padding).unwrap());
    out.extend(payload);
    out.extend(vec![0; padding]);
    out
}
fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}
async fn read_packet(stream: &mut DuplexStream) -> Vec<u8> {
    let length = stream.read_u32().await.unwrap();
    let mut packet = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut packet).await.unwrap();
    packet
}

/// A server that answers the key exchange with this public value.
async fn exchange_with(value: &[u8]) -> Result<Session, SshError> {
    let world = world();
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let (host_key, value) = (world.demo.host_ssh_certificate(&world.key, &world.host).to_bytes().unwrap(), value.to_vec());
    let server = async move {
        far.write_all(b"SSH-2.0-Evil\r\n").await.unwrap();
        while far.read_u8().await.unwrap() != b'\n' {}
        let lists = [
            "curve25519-sha256,kex-strict-s-v00@openssh.com",
            "ssh-ed25519-cert-v01@openssh.com",
            "aes256-gcm@openssh.com",
            "aes256-gcm@openssh.com",
            "hmac-sha2-256-etm@openssh.com",
            "hmac-sha2-256-etm@openssh.com",
            "none",
            "none",
            "",
            "",
        ];
        let mut init = vec![20];
        init.extend([9; 16]);
        init.extend(lists.iter().flat_map(|list| string(list.as_bytes())));
        init.extend([0; 5]);
        far.write_all(&packet(&init)).await.unwrap();
        read_packet(&mut far).await;
        read_packet(&mut far).await;
        let signature = [string(b"ssh-ed25519"), string(&[1; 64])].concat();
        let reply = [&[31][..], &string(&host_key), &string(&value), &string(&signature)].concat();
        far.write_all(&packet(&reply)).await.unwrap();
        let mut rest = Vec::new();
        let _ = far.read_to_end(&mut rest).await;
    };
    let both = async { tokio::join!(connect(Box::new(near), world.connecting("node1")), server) };
    tokio::time::timeout(SOON, both).await.expect("it hangs").0
}

#[tokio::test]
async fn attack_row_23_bad_values_in_the_key_exchange_end_it_cleanly() {
    // Points of small order (RFC 7748, section 6.1, and the list on cr.yp.to/ecdh.html): 0, 1, of order 8, p - 1, p.
    let small = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    let small = small.map(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap());
    let wrong_length = [vec![], vec![9; 31], vec![9; 33]];
    for value in small.iter().chain(&wrong_length) {
        let error = exchange_with(value).await.unwrap_err();
        assert!(matches!(error, SshError::Protocol(russh::Error::Kex)), "{value:?}: {error:?}");
    }
    // The control: a good value gets as far as the signature, which is no signature.
    let mut base_point = [0; 32];
    base_point[0] = 9;
    let error = exchange_with(&base_point).await.unwrap_err();
    assert!(matches!(error, SshError::Protocol(russh::Error::WrongServerSig)), "{error:?}");
}

#[tokio::test]
async fn many_forwards_with_bulk_both_ways_do_not_lock_each_other_up() {
    const CHANNELS: usize = 8;
    const LEN: usize = 4 << 20;
    let world = world();
    let connecting = Connecting { forwarding: true, ..world.connecting("node1") };
    let session = world.connect(Server { window: 2 << 20, ..world.server() }, connecting).await.unwrap();
    let one = async |session: &Session| {
        let stream = session.open_direct("echo", 7, ([127, 0, 0, 1], 1).into()).await.unwrap();
        let (mut read, mut write) = tokio::io::split(stream);
        let send = async {
            write.write_all(&vec![5; LEN]).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (read, ()) = tokio::join!(read.read_to_end(&mut got), send);
        read.unwrap();
        got.len()
    };
    let all = futures::future::join_all((0..CHANNELS).map(|_| one(&session)));
    assert_eq!(tokio::time::timeout(SOON, all).await.expect("locked up"), [LEN; CHANNELS]);
    let refused = session.open_direct("metadata", 80, ([127, 0, 0, 1], 1).into()).await.err().unwrap();
    assert!(refused.public().is(Code::AccessDenied), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_moves_is_given_up() {
    let world = world();
    let (near, far) = tokio::io::duplex(256 * 1024);
    let (gate, mut stuck) = watch::channel(false);
    let (near_far, far_near) = tokio::io::duplex(256 * 1024);
    #[allow(clippy::disallowed_methods, reason = "the test's server")]
    tokio::spawn(world.server().serve(far_near));
    // A wire that stops carrying, without a sound, when the gate is shut.
    #[allow(clippy::disallowed_methods, reason = "the test's wire")]
    tokio::spawn(async move {
        let (mut a, mut b) = (far, near_far);
        let shut = async { stuck.wait_for(|stuck| *stuck).await.is_ok() };
        let shut = tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut a, &mut b) => false,
            shut = shut => shut,
        };
        if shut {
            std::future::pending().await
        }
    });
    let session = connect(Box::new(near), world.connecting("node1")).await.unwrap();
    let (stdin, mut typed) = tokio::io::duplex(16);
    let (mut seen, stdout) = tokio::io::duplex(16);
    let (_keep, control) = mpsc::channel(1);
    let streams = Streams { stdin, stdout, stderr: tokio::io::sink(), control };
    let user = async {
        typed.write_all(b"x").await.unwrap();
        assert_eq!(seen.read_u8().await.unwrap(), b'x');
        gate.send_replace(true);
    };
    let (exit, ()) = tokio::join!(session.run(exec("cat"), streams), user);
    let error = exit.unwrap_err();
    assert!(matches!(error, SshError::Stalled | SshError::Ended(_)), "{error:?}");
}
