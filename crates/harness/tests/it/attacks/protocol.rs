//! Rows 13 to 24: addresses, packets and connections that no well-behaved peer makes.
//!
//! Targets that are not registered, packets before the keys, sizes and modes beyond reason, bad values in the key exchange, and
//! ten thousand peers that fall silent. The packets made by hand have a positive control.

use super::*;

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
