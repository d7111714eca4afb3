//! What `tsh ssh` forwards: a port (`-L`), a SOCKS port (`-D`), the SSH agent (`-A`); each where roles allow it, and nowhere else.

use harness::{
    Cluster, Person, Run,
    cluster::{free_port, shared},
    eventually,
    person::me,
    process::Running,
};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(20);

fn target() -> String {
    format!("{}@node1", me())
}

/// `tsh ssh -N` with these flags, beside the test.
fn forwarding(cluster: &Cluster, person: &Person, flags: &[&str]) -> Running {
    let run = person.tsh(["ssh", "-N"]).args(flags).arg(target());
    Running::start(&run.into_command(), &cluster.home.join(format!("forward-{}.log", person.name)))
}

/// Echoes what is sent to it, for ever.
fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    port
}

/// Answers every request with this page.
fn web_server(page: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 1024];
            let _request = stream.read(&mut head);
            let _gone = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}", page.len());
        }
    });
    port
}

fn connect(port: u16) -> Option<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    Some(stream)
}

/// Says something to an echo and hears it again.
fn talk(stream: &mut TcpStream) -> Option<[u8; 18]> {
    stream.write_all(b"through the tunnel").ok()?;
    let mut answer = [0; 18];
    stream.read_exact(&mut answer).ok().map(|()| answer)
}

/// A role that lets in and forwards nothing.
fn nothing_forwarded(cluster: &Cluster) {
    cluster.role(
        "no-forward",
        "{options: {port_forwarding: false, forward_agent: false}, allow: {logins: ['{{internal.logins}}'], node_labels: {'*': '*'}}}",
    );
}

#[test]
fn a_local_port_is_forwarded_where_roles_allow_it() {
    let cluster = shared();
    nothing_forwarded(&cluster);
    let echo = echo_server();
    let forward = |person: &Person, port: u16| forwarding(&cluster, person, &["-L", &format!("{port}:127.0.0.1:{echo}")]);
    let alice = cluster.person("forward-port", &["access"], &[me()]);
    let port = free_port();
    let _forwarding = forward(&alice, port);
    let answer = eventually(SOON, "the port is forwarded", || talk(&mut connect(port)?));
    assert_eq!(&answer, b"through the tunnel");
    cluster.event("port", "L3003I", &[("user", "forward-port")]);
    let bob = cluster.person("forward-no-port", &["no-forward"], &[me()]);
    let port = free_port();
    let refused = forward(&bob, port);
    let mut stream = eventually(SOON, &format!("the port listens: {}", refused.log()), || connect(port));
    assert_eq!(talk(&mut stream), None, "no byte passes");
    eventually(SOON, "the refusal is told", || refused.log().contains("not forwarded").then_some(()));
}

/// SOCKS 5 as a program speaks it: greeting, CONNECT to this name and port; the host's reply code.
fn socks(stream: &mut TcpStream, name: &str, port: u16) -> Option<u8> {
    stream.write_all(&[5, 1, 0]).ok()?;
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).ok()?;
    assert_eq!(greeting, [5, 0]);
    let mut request = vec![5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
    request.extend_from_slice(name.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&request).ok()?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).ok()?;
    Some(reply[1])
}

#[test]
fn a_socks_port_leads_wherever_a_program_says_as_the_host_sees_it() {
    let cluster = shared();
    nothing_forwarded(&cluster);
    let (echo, web) = (echo_server(), web_server("a page behind the host\n"));
    let alice = cluster.person("forward-socks", &["access"], &[me()]);
    let port = free_port();
    let forward = forwarding(&cluster, &alice, &["-D", &port.to_string()]);
    let mut stream = eventually(SOON, &format!("the port listens: {}", forward.log()), || connect(port));
    assert_eq!(socks(&mut stream, "localhost", echo), Some(0));
    assert_eq!(talk(&mut stream).as_ref(), Some(b"through the tunnel"));
    let curl = |flag: &str, host: &str| {
        let run = Run::new("curl").args(["-sS", "--max-time", "20", flag]).arg(format!("127.0.0.1:{port}"));
        run.arg(format!("http://{host}:{web}/")).go().ok()
    };
    // The name goes to the host; with the other flag curl resolves it and sends an address.
    assert_eq!(curl("--socks5-hostname", "localhost"), "a page behind the host\n");
    assert_eq!(curl("--socks5", "127.0.0.1"), "a page behind the host\n");
    cluster.event("port", "L3003I", &[("user", "forward-socks"), ("addr", &format!("localhost:{web}"))]);
    // What does not answer is told, and what is not SOCKS is sent away; both cost the others nothing.
    assert_eq!(socks(&mut connect(port).unwrap(), "127.0.0.1", free_port()), Some(4), "unreachable");
    let mut strange = connect(port).unwrap();
    strange.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut said = Vec::new();
    let _reset_or_end = strange.read_to_end(&mut said);
    assert!(said.is_empty(), "{said:?}");
    assert_eq!(talk(&mut stream).as_ref(), Some(b"through the tunnel"));
    let bob = cluster.person("forward-no-socks", &["no-forward"], &[me()]);
    let port = free_port();
    let refused = forwarding(&cluster, &bob, &["-D", &port.to_string()]);
    let mut stream = eventually(SOON, &format!("the port listens: {}", refused.log()), || connect(port));
    assert_eq!(socks(&mut stream, "localhost", echo), Some(2), "not allowed");
}

/// A real `ssh-agent` with one key in it.
struct Agent {
    _process: Running,
    socket: PathBuf,
    /// The public key, where any account may read it.
    public: PathBuf,
}

fn agent(cluster: &Cluster, name: &str) -> Agent {
    let dir = cluster.home.join(format!("agent-{name}"));
    fs::create_dir(&dir).unwrap();
    let (socket, key) = (dir.join("agent.sock"), dir.join("key"));
    let process = Running::start(&Run::new("ssh-agent").args(["-D", "-a"]).arg(&socket).into_command(), &dir.join("log"));
    eventually(SOON, "the agent listens", || socket.exists().then_some(()));
    Run::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&key).go().ok();
    Run::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &socket).go().ok();
    let public = cluster.open().join(format!("{name}.pub"));
    fs::copy(key.with_extension("pub"), &public).unwrap();
    fs::set_permissions(&public, fs::Permissions::from_mode(0o644)).unwrap();
    Agent { _process: process, socket, public }
}

#[test]
fn the_users_agent_is_forwarded_where_asked_for_and_allowed() {
    let cluster = shared();
    nothing_forwarded(&cluster);
    cluster.role("forward-agent", "{options: {forward_agent: true}, allow: {logins: ['{{internal.logins}}'], node_labels: {'*': '*'}}}");
    let agent = agent(&cluster, "key-of-alice");
    let alice = cluster.person("forward-agent", &["forward-agent"], &[me()]);
    let ssh = |person: &Person, flags: &[&str], command: &str| {
        person.tsh(["ssh"]).args(flags).args([&target(), command]).env("SSH_AUTH_SOCK", &agent.socket).go()
    };
    // The key is seen and used over there; it stays here. `-T` signs with it and verifies.
    let shown = ssh(&alice, &["-A"], &format!("ssh-add -l && ssh-add -T {} && echo $SSH_AUTH_SOCK", agent.public.display())).ok();
    assert!(shown.contains("key-of-alice") && shown.contains("(ED25519)"), "{shown}");
    let socket = shown.lines().last().unwrap();
    assert!(socket.starts_with('/') && socket != agent.socket.to_str().unwrap(), "{shown}");
    eventually(SOON, "the socket goes with the session", || (!Path::new(socket).exists()).then_some(()));
    // Also beside a terminal, and several at once.
    let tty = ssh(&alice, &["-A", "-t"], "ssh-add -l & ssh-add -l & ssh-add -l & wait").ok();
    assert_eq!(tty.matches("key-of-alice").count(), 3, "{tty}");
    // Not without the flag.
    assert_eq!(ssh(&alice, &[], "echo \"<$SSH_AUTH_SOCK>\"").ok(), "<>\n");
    // Not where no role allows it: the session goes on, and the user is told.
    let bob = cluster.person("forward-no-agent", &["no-forward"], &[me()]);
    let without = ssh(&bob, &["-A"], "echo \"<$SSH_AUTH_SOCK>\"");
    assert_eq!(without.ok(), "<>\n");
    assert!(without.err.contains("the host does not allow agent forwarding"), "{without}");
    // Nor where there is none, or where it does not answer.
    let none = alice.tsh(["ssh", "-A", &target(), "echo \"<$SSH_AUTH_SOCK>\""]).go();
    assert_eq!(none.ok(), "<>\n");
    assert!(none.err.contains("SSH_AUTH_SOCK is not set"), "{none}");
    let dead = alice.tsh(["ssh", "-A", &target(), "ssh-add -l"]).env("SSH_AUTH_SOCK", "/nowhere/agent.sock").go();
    dead.refused();
    assert!(dead.err.contains("the SSH agent does not answer"), "{dead}");
}
