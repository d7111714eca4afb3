//! How a service tells how it is, and how it ends.

use harness::{
    Cluster, Run, Setup, binary,
    cluster::{shared, until_ok},
    eventually,
    person::me,
    process::Running,
};
use nix::sys::signal::Signal;
use std::{fs, net::TcpStream, time::Duration};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn health_is_per_component_and_honest() {
    let cluster = Cluster::split();
    let proxy = cluster.proxy();
    assert_eq!(proxy.diag("/healthz").unwrap().0, 200);
    let (status, body) = proxy.readyz().unwrap();
    assert_eq!((status, body["status"].as_str(), body["components"]["proxy"].as_str()), (200, Some("ready"), Some("ready")), "{body}");
    cluster.auth().kill();
    for member in [cluster.proxy(), cluster.node()] {
        let body = eventually(SOON, &format!("{} says that it cannot reach the Auth Service", member.name), || {
            member.readyz().filter(|(status, _)| *status == 503).map(|(_, body)| body)
        });
        assert!(body.to_string().contains("degraded"), "{body}");
        assert_eq!(member.diag("/healthz").unwrap().0, 200, "the process lives");
    }
    cluster.auth().start();
    cluster.auth().wait_ready();
    for member in [cluster.proxy(), cluster.node()] {
        eventually(Duration::from_secs(40), &format!("{} recovers", member.name), || member.readyz().filter(|(status, _)| *status == 200));
    }
}

#[test]
fn g12_metrics_are_prometheus_text_and_tell_the_build_of_each_role() {
    let cluster = shared();
    let (status, text) = cluster.auth().diag("/metrics").unwrap();
    assert_eq!(status, 200);
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let bare = name.split('{').next().unwrap();
        assert!(bare.starts_with("lockgate_") && bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{line}");
        assert!(text.contains(&format!("# TYPE {bare} ")), "{bare} has no type");
    }
    let version = cluster.tctl(["version", "--format=json"]).go().json()["version"].as_str().unwrap().to_owned();
    for role in ["auth", "proxy", "ssh"] {
        assert!(text.contains(&format!("lockgate_build_info{{role=\"{role}\",version=\"{version}\"")), "{role}: {text}");
    }
}

#[test]
fn term_stops_at_once_and_a_second_start_finds_everything() {
    let cluster = Cluster::start();
    let alice = cluster.person("alice", &["access"], &[me()]);
    let target = format!("{}@node1", me());
    let log = cluster.home.join("session.log");
    let mut session = Running::start(&alice.ssh(&target, "echo begun; sleep 1000").into_command(), &log);
    eventually(SOON, "the session begins", || session.log().contains("begun").then_some(()));
    cluster.auth().signal(Signal::SIGTERM);
    assert_eq!(cluster.auth().wait(SOON), 0);
    assert_ne!(session.wait(SOON), 0);
    cluster.auth().start();
    cluster.auth().wait_ready();
    until_ok(SOON, || alice.ssh(&target, "true"));
    let started = cluster.event("session.start", "L2000I", &[("command", "echo begun; sleep 1000")]);
    cluster.event("session.end", "L2004I", &[("sid", started["sid"].as_str().unwrap())]);
}

#[test]
fn quit_waits_for_sessions_and_takes_no_new_ones() {
    let cluster = Cluster::split();
    let alice = cluster.person("alice", &["access"], &[me()]);
    let target = format!("{}@node1", me());
    until_ok(SOON, || alice.ssh(&target, "true"));
    let (log, go) = (cluster.home.join("session.log"), cluster.home.join("go"));
    let command = format!("echo begun; while [ ! -e {} ]; do sleep 0.05; done; echo done", go.display());
    let mut session = Running::start(&alice.ssh(&target, &command).into_command(), &log);
    eventually(SOON, "the session begins", || session.log().contains("begun").then_some(()));
    cluster.node().signal(Signal::SIGQUIT);
    eventually(SOON, "no new session is taken", || (alice.ssh(&target, "true").go().status != 0).then_some(()));
    // A signal that means nothing ends nothing.
    cluster.node().signal(Signal::SIGUSR1);
    eventually(SOON, "it is told", || cluster.node().log().contains("USR1 means nothing").then_some(()));
    assert!(!cluster.node().has_ended() && session.ended().is_none(), "the session goes on");
    fs::write(&go, "").unwrap();
    assert_eq!(session.wait(SOON), 0);
    assert!(session.log().contains("done"));
    assert_eq!(cluster.node().wait(SOON), 0);
}

#[test]
fn a_configuration_is_printed_checked_and_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let lockgate = |words: &[&str]| Run::new(binary::current()).args(words).dir(dir.path()).go();
    lockgate(&["configure", "-o", "good.yaml", "--roles=node", "--proxy=p.example.com:3080", "--node-labels=env=prod"]).ok();
    assert!(lockgate(&["configure", "--test", "good.yaml"]).ok().contains("ok"));
    lockgate(&["configure", "-o", "good.yaml"]).refused();
    let check = |text: &str, place: &str| {
        fs::write(dir.path().join("bad.yaml"), text).unwrap();
        for words in [&["configure", "--test", "bad.yaml"][..], &["start", "--config", "bad.yaml", "--data-dir", "data"]] {
            let ran = lockgate(words);
            ran.fails(1, "LG-CONFIG-001");
            assert!(ran.err.contains(place), "no {place} in {ran}");
        }
    };
    check("version: v1\nlockgate:\n  nodenam: a\n", "bad.yaml:3:");
    check("ssh_service:\n  enabled: perhaps\n", "bad.yaml:2:");
    check("version: v9\nlockgate:\n  nodename: 'a b'\n", "v9");
    check("lockgate: [\n", "bad.yaml:");
    assert!(!dir.path().join("data").exists(), "nothing is made for a configuration that is refused");
}

#[test]
fn the_systemd_unit_is_accepted_by_its_reader() {
    let unit = Run::new(binary::current()).args(["install", "systemd", "--lockgate-path=/bin/true"]).go().ok();
    for word in ["[Unit]", "[Service]", "ExecStart=/bin/true start", "KillSignal=SIGQUIT", "WantedBy=multi-user.target"] {
        assert!(unit.contains(word), "no {word} in {unit}");
    }
}

#[test]
fn an_address_that_is_taken_is_named() {
    let cluster = shared();
    let second = Cluster::with(Setup { with_node: false, ..Setup::default() });
    second.auth().signal(Signal::SIGTERM);
    second.auth().wait(SOON);
    let yaml = fs::read_to_string(&second.auth().config).unwrap();
    fs::write(&second.auth().config, yaml.replace(&second.web_port.to_string(), &cluster.web_port.to_string())).unwrap();
    let ran = second.auth().command().go();
    ran.refused();
    assert!(ran.err.contains(&cluster.web_port.to_string()), "{ran}");
    assert!(TcpStream::connect(("127.0.0.1", cluster.web_port)).is_ok());
}

#[test]
fn status_and_version_answer_without_a_cluster() {
    let lockgate = |words: &[&str]| Run::new(binary::current()).args(words).go();
    assert!(lockgate(&["version"]).ok().starts_with("Lockgate v"));
    assert!(lockgate(&["version", "--format=json"]).json()["version"].is_string());
    assert!(lockgate(&["tsh", "version", "--client"]).ok().contains('.'));
    lockgate(&["status", "--diag-addr=127.0.0.1:1"]).ok();
    let cluster = shared();
    lockgate(&["status", "--check", &format!("--diag-addr=127.0.0.1:{}", cluster.auth().diag_port)]).ok();
    let shown = lockgate(&["status", &format!("--diag-addr=127.0.0.1:{}", cluster.auth().diag_port)]).ok();
    assert!(shown.contains("auth") && shown.contains("ready"), "{shown}");
    for shell in ["bash", "zsh", "fish"] {
        for program in ["lockgate", "tsh", "tctl"] {
            assert!(lockgate(&["completion", shell, program]).ok().contains(program));
        }
    }
    let man = tempfile::tempdir().unwrap();
    lockgate(&["man", man.path().to_str().unwrap()]).ok();
    assert!(fs::read_dir(man.path()).unwrap().count() >= 3);
}
