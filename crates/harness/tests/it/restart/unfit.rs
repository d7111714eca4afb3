//! New programs that are not fit to take over: the process that serves goes on as if nothing had been, at once.
//!
//! They are small programs that do so much of `wire::handover` and no more: an end, silence, nonsense at a door, an end once the Auth
//! Service's files are theirs, an end once the turn is theirs.

use super::{SOON, by_link};
use crate::restart::load::Load;
use harness::{Cluster, Setup, binary, cluster::until_ok, eventually, live::Link, person::me};
use nix::sys::signal::Signal;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// What every such program begins with: the conversation on its standard input.
const PREAMBLE: &str = r#"#!/usr/bin/env python3
import json, os, socket, sys, time
hand = socket.socket(fileno=os.dup(0))
def hear():
    data, fds, _, _ = socket.recv_fds(hand, 65536, 32)
    if not data:
        sys.exit(9)
    return json.loads(data), fds
def say(**word):
    hand.send(json.dumps(word).encode())
first, inherited = hear()
assert first['type'] == 'inherit' and len(first['descriptors']) == len(inherited)
"#;

/// A program that does this with the conversation.
fn program(place: &Path, name: &str, body: &str) -> PathBuf {
    let path = place.join(name);
    fs::write(&path, format!("{PREAMBLE}{body}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Each of these takes the place of the program, is started by `HUP`, and is found wanting for this reason.
const UNFIT: &[(&str, &str, &str)] = &[
    ("ends", "sys.exit(7)", "it ended: exit status: 7"),
    ("hangs", "time.sleep(1000)", "it was not ready in time"),
    ("talks nonsense", "hand.send(b'ready!'); time.sleep(1000)", "it was not ready in time"),
    ("takes over unasked", "say(type='leading'); time.sleep(1000)", "before it was asked to"),
    ("says why not", "say(type='failed', error={'code': 'LG-CONFIG-001', 'message': 'no such key'}); time.sleep(1000)", "no such key"),
    (
        "serves nonsense",
        r#"
say(type='prepared', version='1.0.0', doors=['proxy'])
word, fds = hear()
assert word['type'] == 'serve' and word['door'] == 'proxy'
stream = socket.socket(fileno=fds[0])
stream.recv(10)
stream.sendall(b'HTTP/1.1 200 OK\r\n\r\n{"status": "ok"}')
stream.close()
time.sleep(1000)
"#,
        "TLS with the new process failed",
    ),
    ("serves nothing", "say(type='prepared', version='1.0.0', doors=['ssh'])\nhear()\ntime.sleep(1000)", "ssh: no answer within"),
    (
        "ends once the turn is its own",
        "say(type='prepared', version='1.0.0', doors=[])\nassert hear()[0]['type'] == 'lead'\nsys.exit(3)",
        "it ended: exit status: 3",
    ),
];

/// As those, with the Auth Service's files in hand.
const WITH_AUTH: &[(&str, &str, &str)] = &[
    ("ends with the files", "say(type='want_auth')\nassert hear()[0]['type'] == 'auth'\nsys.exit(4)", "it ended: exit status: 4"),
    (
        "serves no requests",
        "say(type='want_auth')\nhear()\nsay(type='auth_serves', version='1.0.0')\ntime.sleep(1000)",
        "auth: no answer within",
    ),
];

fn setup(link: &Link, split: bool) -> Setup {
    Setup { general: "  restart_timeout: 6s\n".into(), ..by_link(link, split) }
}

fn each(cluster: &Cluster, link: &Link, unfit: &[(&str, &str, &str)], load: &Load) {
    let member = cluster.auth();
    for (name, body, why) in unfit {
        let (before, failures) = (member.log().len(), cluster.events(&["member.restart"]).len());
        link.switch(&program(&cluster.home, &name.replace(' ', "-"), body));
        member.signal(Signal::SIGHUP);
        eventually(SOON, &format!("a program that {name} is found out: {}", &member.log()[before..]), || {
            let log = member.log();
            let line = log[before..].lines().find(|line| line.contains("is not fit to take over"))?.to_owned();
            assert!(line.contains(why), "a program that {name}: {line}");
            Some(())
        });
        load.goes_on();
        assert!(!member.has_ended());
        assert_eq!(member.leader(), member.pid());
        eventually(SOON, "it is in the audit log", || (cluster.events(&["member.restart"]).len() > failures).then_some(()));
    }
    let metrics = member.diag("/metrics").unwrap().1;
    assert!(metrics.contains(&format!("\nlockgate_restart_failures_total {}\n", unfit.len())), "{metrics}");
}

#[test]
fn g13_a_new_program_that_is_not_fit_leaves_the_old_one_serving() {
    let link = Link::to(binary::current());
    let cluster = Cluster::with(setup(&link, false));
    cluster.allow("is not fit to take over");
    let alice = cluster.person("alice", &["access", "auditor"], &[me()]);
    until_ok(SOON, || alice.ssh(&format!("{}@node1", me()), "true"));
    let load = Load::start(&cluster, &alice);
    each(&cluster, &link, UNFIT, &load);
    // And one that is fit.
    link.switch(binary::current());
    cluster.auth().reload();
    load.goes_on();
    load.finish(&cluster, &alice);
}

#[test]
fn an_auth_service_that_was_given_away_in_vain_is_taken_back() {
    let link = Link::to(binary::current());
    let cluster = Cluster::with(setup(&link, false));
    cluster.allow("is not fit to take over");
    let alice = cluster.person("alice", &["access", "auditor"], &[me()]);
    until_ok(SOON, || alice.ssh(&format!("{}@node1", me()), "true"));
    let load = Load::start(&cluster, &alice);
    each(&cluster, &link, WITH_AUTH, &load);
    load.finish(&cluster, &alice);
    // Its log is one chain through all that.
    cluster.tctl(["audit", "verify"]).go().ok();
}
