//! Rule G13: a process of another build takes the place of one that serves, and nobody notices.
//!
//! Sessions count aloud, files are copied, forwarded ports talk, and others come and go, while each process, or the one that is all of
//! them, is replaced: nothing is cut, nothing is lost of a stream or a recording, and nobody who comes is sent away.
//! `LOCKGATE_RESTART_SESSIONS` says how many count (8; 200 in `make soak`).

pub(crate) mod load;
mod unfit;

use harness::{
    Cluster, Setup,
    binary::{self, MINOR_AHEAD},
    cluster::until_ok,
    eventually,
    live::Link,
    person::me,
    run::Run,
};
use load::Load;
use nix::sys::signal::Signal;
use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::Path,
    time::Duration,
};

const SOON: Duration = Duration::from_secs(30);

/// Services that run by links, people that do not.
fn by_link(link: &Link, split: bool) -> Setup {
    let program = link.path();
    Setup {
        split,
        auth: program.clone(),
        proxy: program.clone(),
        node: program,
        clients: Some(binary::current().to_owned()),
        ..Setup::default()
    }
}

/// The process ids above a session of its own, up to the first.
fn ancestors(ssh: Run) -> Vec<u32> {
    ssh.go().ok().split_whitespace().filter_map(|word| word.parse().ok()).collect()
}
const ANCESTORS: &str = "p=$$; while [ $p -gt 1 ]; do echo $p; read -r _ _ _ p _ < /proc/$p/stat; done";

#[test]
fn g13_each_process_is_replaced_while_sessions_copies_and_forwards_run() {
    let link = Link::to(binary::current());
    let cluster = Cluster::with(by_link(&link, true));
    let alice = cluster.person("alice", &["access", "auditor"], &[me()]);
    let target = format!("{}@node1", me());
    until_ok(SOON, || alice.ssh(&target, "true"));
    let load = Load::start(&cluster, &alice);
    for member in [cluster.node(), cluster.proxy(), cluster.auth(), cluster.proxy(), cluster.node()] {
        let begun = std::time::Instant::now();
        let leader = member.reload();
        eprintln!("{} was replaced in {:?}", member.name, begun.elapsed());
        // Five seconds are what design and users allow for.
        let of_the_new = || member.name != "node1" || ancestors(alice.ssh(&target, ANCESTORS)).contains(&leader);
        assert!(of_the_new(), "a new session is the new process's");
        assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
        load.goes_on();
    }
    load.finish(&cluster, &alice);
    // What was replaced ends once its sessions have.
    eventually(SOON, "the first processes end", || cluster.node().has_ended().then_some(()));
    assert_eq!(cluster.node().wait(SOON), 0);
    assert_eq!(cluster.events(&["member.restart"]).iter().filter(|event| event["code"] == "LM001I").count(), 5);
}

#[test]
fn g13_one_process_for_everything_is_replaced_by_another_version() {
    let link = Link::to(binary::current());
    let cluster = Cluster::with(by_link(&link, false));
    let alice = cluster.person("alice", &["access", "auditor"], &[me()]);
    until_ok(SOON, || alice.ssh(&format!("{}@node1", me()), "true"));
    let load = Load::start(&cluster, &alice);
    let newer = binary::claiming(MINOR_AHEAD);
    link.switch(&newer);
    cluster.auth().reload();
    let metrics = cluster.auth().diag("/metrics").unwrap().1;
    for role in ["auth", "proxy", "ssh"] {
        assert!(metrics.contains(&format!("lockgate_build_info{{role=\"{role}\",version=\"{MINOR_AHEAD}\"")), "{metrics}");
    }
    assert!(metrics.contains("\nlockgate_process_before_running 1\n"), "{metrics}");
    load.goes_on();
    let event = cluster.event("member.restart", "LM001I", &[("version", MINOR_AHEAD)]);
    assert_eq!(event["from"], env!("CARGO_PKG_VERSION"));
    // And back again: minors can be swapped both ways (rule G3).
    link.switch(binary::current());
    cluster.auth().reload();
    load.goes_on();
    load.finish(&cluster, &alice);
    eventually(SOON, "the processes before end", || {
        cluster.auth().diag("/metrics")?.1.contains("\nlockgate_process_before_running 0\n").then_some(())
    });
}

#[test]
fn usr2_lets_the_old_process_stand_by_and_come_back() {
    let link = Link::to(binary::current());
    let cluster = Cluster::with(by_link(&link, false));
    let alice = cluster.person("alice", &["access", "auditor"], &[me()]);
    let target = format!("{}@node1", me());
    until_ok(SOON, || alice.ssh(&target, "true"));
    let load = Load::start(&cluster, &alice);
    let member = cluster.auth();
    let old = member.leader();
    member.signal(Signal::SIGUSR2);
    let new = member.wait_taken_over(old);
    assert!(ancestors(alice.ssh(&target, ANCESTORS)).contains(&new));
    load.goes_on();
    // Back: the new one is stopped, and with it what has come to it; the old one has never been away.
    load.quietly(|| {
        member.tell_leader(Signal::SIGTERM);
        assert_eq!(member.wait_taken_over(new), old);
    });
    assert!(ancestors(alice.ssh(&target, ANCESTORS)).contains(&old));
    // Forward: the old one drains.
    member.signal(Signal::SIGUSR2);
    let newest = member.wait_taken_over(old);
    member.signal(Signal::SIGQUIT);
    load.goes_on();
    load.finish(&cluster, &alice);
    assert_eq!(member.wait(SOON), 0);
    assert_eq!(member.leader(), newest);
}

#[test]
fn the_service_manager_is_told_of_the_reload_and_of_the_new_main_process() {
    let dir = tempfile::tempdir().unwrap();
    let ear = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    ear.set_read_timeout(Some(SOON)).unwrap();
    let link = Link::to(binary::current());
    let environment = vec![("NOTIFY_SOCKET".to_owned(), dir.path().join("notify").display().to_string())];
    let pid_file = dir.path().join("pid");
    let general = format!("  pid_file: {}\n", pid_file.display());
    let cluster = Cluster::with(Setup { environment, general, ..by_link(&link, false) });
    let told = |want: &str| {
        let mut bytes = [0; 4096];
        let len = ear.recv(&mut bytes).unwrap_or_else(|error| panic!("{want}: {error}"));
        let text = String::from_utf8_lossy(&bytes[..len]).into_owned();
        assert!(text.contains(want), "{want} in {text}");
        text
    };
    let pid = |path: &Path| fs::read_to_string(path).unwrap().trim().parse::<u32>().unwrap();
    told("READY=1");
    assert_eq!(pid(&pid_file), cluster.auth().leader());
    let new = cluster.auth().reload();
    let reloading = told("RELOADING=1\n");
    assert!(
        reloading.lines().any(|line| line.strip_prefix("MONOTONIC_USEC=").is_some_and(|usec| usec.parse::<u64>().is_ok())),
        "{reloading}"
    );
    let done = told(&format!("MAINPID={new}\n"));
    assert!(done.contains("READY=1"), "{done}");
    assert_eq!(pid(&pid_file), new);
    // One that is not fit: the reload ends, and the status says why.
    cluster.allow("is not fit to take over");
    link.switch(Path::new("/bin/false"));
    cluster.auth().tell_leader(Signal::SIGHUP);
    told("RELOADING=1\n");
    let done = told("READY=1");
    assert!(done.contains("STATUS=serving; a restart failed: ") && !done.contains("MAINPID"), "{done}");
    assert_eq!((pid(&pid_file), cluster.auth().leader()), (new, new));
    // The service as a whole ends with its main process, and says so.
    cluster.auth().tell_leader(Signal::SIGQUIT);
    told("STOPPING=1");
    eventually(SOON, "the PID file goes", || (!pid_file.exists()).then_some(()));
}

/// Holds the Proxy's port as systemd does for a socket unit, and becomes the program.
const ACTIVATE: &str = r#"#!/usr/bin/env python3
import os, re, socket, sys
port = int(re.search(r'web_listen_addr: 127\.0\.0\.1:(\d+)', open(sys.argv[3]).read())[1])
listener = socket.socket()
listener.bind(('127.0.0.1', port))
listener.listen(16)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
environment = dict(os.environ, LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')
os.execve(os.environ['PROGRAM'], [os.environ['PROGRAM'], *sys.argv[1:]], environment)
"#;

#[test]
fn a_listener_of_the_service_manager_is_served_and_handed_on() {
    let dir = tempfile::tempdir().unwrap();
    let activate = dir.path().join("activate");
    fs::write(&activate, ACTIVATE).unwrap();
    fs::set_permissions(&activate, fs::Permissions::from_mode(0o755)).unwrap();
    let program = binary::current().to_owned();
    let environment = vec![("PROGRAM".to_owned(), program.display().to_string())];
    // Bound anew, the address would be refused: it is taken.
    let cluster = Cluster::with(Setup { auth: activate, clients: Some(program), environment, ..Setup::default() });
    let alice = cluster.person("alice", &["access"], &[me()]);
    let target = format!("{}@node1", me());
    until_ok(SOON, || alice.ssh(&target, "true"));
    let leader = cluster.auth().reload();
    assert!(ancestors(alice.ssh(&target, ANCESTORS)).contains(&leader));
    // And no session inherits it.
    let open = alice.ssh(&target, "ls -l /proc/$$/fd").go().ok();
    assert!(!open.contains("socket:"), "{open}");
}
