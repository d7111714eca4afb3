//! Sessions by `tsh ssh`: what a user sees of a host, and who sees nothing of it.

use harness::{
    Cluster, Person, Run, Setup,
    cluster::{Way, shared, until_ok},
    eventually,
    person::{me, somebody},
    process::Running,
};
use rexpect::session::{PtySession, spawn_command};
use std::{collections::BTreeSet, fs, path::Path, time::Duration};

const SOON: Duration = Duration::from_secs(20);

/// A process beside the test that is killed with it.
fn beside(run: Run, log: &Path) -> Running {
    Running::start(&run.into_command(), log)
}

/// A terminal on which `tsh ssh` runs, with this size, and the path of its device.
fn terminal(alice: &Person, target: &str, rows: u16, columns: u16) -> (PtySession, String) {
    let words = alice.tsh(["ssh", target]).into_command();
    let program = words.get_program().to_owned();
    let device = alice.home.join("tty");
    let script = format!("stty rows {rows} cols {columns}; tty > {}; exec \"$@\"", device.display());
    let run = Run::new("sh").arg("-c").arg(script).arg("sh").arg(program).args(words.get_args()).env("LOCKGATE_HOME", &alice.home);
    let mut shell = spawn_command(run.into_command(), Some(20_000)).unwrap();
    shell.send_line("PS1=; echo be''gun").unwrap();
    shell.exp_string("begun").unwrap();
    (shell, fs::read_to_string(&device).unwrap().trim().to_owned())
}

#[test]
fn a_shell_has_a_terminal_of_the_right_size_that_follows_and_can_be_interrupted() {
    let alice = shared().person("ssh-shell", &["access"], &[me()]);
    let (mut shell, device) = terminal(&alice, &format!("{}@node1", me()), 33, 101);
    shell.send_line("stty size; test -t 0 && echo is''atty; id -un").unwrap();
    shell.exp_string("33 101").unwrap();
    shell.exp_string("isatty").unwrap();
    shell.exp_string(me()).unwrap();
    Run::new("stty").args(["-F", &device, "rows", "40", "cols", "120"]).go().ok();
    shell.send_line("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.05; done; echo re''sized").unwrap();
    shell.exp_string("resized").unwrap();
    shell.send_line("echo sta''rted; sleep 1000").unwrap();
    shell.exp_string("started").unwrap();
    shell.send_control('c').unwrap();
    shell.send_line("echo status=$?").unwrap();
    shell.exp_string("status=130").unwrap();
    shell.send_line("exit 3").unwrap();
    shell.exp_eof().unwrap();
    let ended = shell.process().wait().unwrap();
    assert!(format!("{ended:?}").ends_with(", 3)"), "{ended:?}");
}

#[test]
fn a_session_is_of_the_account_that_was_asked_for() {
    let cluster = shared();
    let alice = cluster.person("ssh-login", &["access"], &[me(), somebody()]);
    let check = |login: &str| {
        let out = alice.ssh(&format!("{login}@node1"), "id -un; echo $HOME; pwd; id -un").go().ok();
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!((lines[0], lines[1]), (login, lines[2]), "{out}");
    };
    check(me());
    check(somebody());
}

#[test]
fn statuses_signals_and_both_outputs_come_through() {
    let alice = shared().person("ssh-exec", &["access"], &[me()]);
    let run = |command: &str| alice.ssh(&format!("{}@node1", me()), command).go();
    let check = |command: &str, status: i32| assert_eq!(run(command).status, status, "{command}");
    check("true", 0);
    check("exit 7", 7);
    check("exit 255", 255);
    check("kill -TERM $$", 128 + 15);
    check("kill -KILL $$", 128 + 9);
    check("no-such-program-anywhere", 127);
    let both = run("echo to-out; echo to-err >&2");
    assert_eq!((both.ok().as_str(), both.err.contains("to-err"), both.err.contains("to-out")), ("to-out\n", true, false));
    let binary = run(r"printf '\000\001\377\r\n'");
    assert_eq!(binary.out, b"\0\x01\xff\r\n");
}

#[test]
fn a_half_closed_input_still_gets_its_answer() {
    let alice = shared().person("ssh-half", &["access"], &[me()]);
    let target = format!("{}@node1", me());
    assert_eq!(alice.ssh(&target, "cat | wc -c").input("twelve bytes").go().ok().trim(), "12");
    assert_eq!(alice.ssh(&target, "cat >/dev/null; echo after the end").go().ok(), "after the end\n");
    // The other way round: the command closes its input and goes on.
    assert_eq!(alice.ssh(&target, "exec <&-; echo still here").input("not read").go().ok(), "still here\n");
}

/// A stream that is the same each time and does not compress.
fn noise(bytes: u64) -> String {
    format!(
        "head -c {bytes} /dev/zero | openssl enc -aes-128-ctr -nosalt -K 000102030405060708090a0b0c0d0e0f -iv 00000000000000000000000000000000"
    )
}

#[test]
fn a_gibibyte_arrives_whole_both_ways() {
    let alice = shared().person("ssh-bulk", &["access"], &[me()]);
    let target = format!("{}@node1", me());
    let noise = noise(1 << 30);
    let shell = |script: String| {
        Run::new("bash")
            .arg("-o")
            .arg("pipefail")
            .arg("-c")
            .arg(script)
            .arg("sh")
            .env("LOCKGATE_HOME", &alice.home)
            .deadline(Duration::from_secs(300))
    };
    let program = harness::binary::current().display();
    let tsh = format!("{program} tsh ssh {target}");
    let expected = shell(format!("{noise} | sha256sum")).go().text();
    let up = std::time::Instant::now();
    let sent = shell(format!("{noise} | {tsh} sha256sum")).go().ok();
    assert_eq!(sent, expected, "upwards");
    let down = std::time::Instant::now();
    let fetched = shell(format!("{tsh} '{noise}' | sha256sum")).go();
    assert_eq!(fetched.text(), expected, "downwards");
    eprintln!("1 GiB up in {:?}, down in {:?}", down - up, down.elapsed());
}

#[test]
fn fifty_sessions_run_at_once() {
    let cluster = shared();
    let alice = cluster.person("ssh-fifty", &["access"], &[me()]);
    let place = cluster.open();
    let (go, target) = (cluster.home.join("go"), format!("{}@node1", me()));
    std::thread::scope(|scope| {
        let sessions: Vec<_> = (0..50)
            .map(|number| {
                let command =
                    format!("touch {}/fifty-{number}; while [ ! -e {} ]; do sleep 0.1; done; echo {number}", place.display(), go.display());
                let (alice, target) = (&alice, &target);
                scope.spawn(move || alice.ssh(target, &command).deadline(Duration::from_secs(120)).go())
            })
            .collect();
        eventually(Duration::from_secs(100), "fifty sessions are open", || {
            let broken = sessions.iter().any(|session| session.is_finished());
            let begun = (0..50).filter(|number| place.join(format!("fifty-{number}")).exists()).count();
            (broken || begun == 50).then_some(())
        });
        fs::write(&go, "").unwrap();
        for (number, session) in sessions.into_iter().enumerate() {
            assert_eq!(session.join().unwrap().ok(), format!("{number}\n"));
        }
    });
}

#[test]
fn a_login_that_no_role_allows_is_refused_and_recorded() {
    let cluster = shared();
    let alice = cluster.person("ssh-forbidden", &["access"], &["nobody"]);
    let ran = alice.ssh(&format!("{}@node1", me()), "true").go();
    ran.fails(255, "LG-ACCESS-001");
    cluster.event("session.rejected", "L1006W", &[("user", "ssh-forbidden")]);
}

#[test]
fn a_host_that_is_forbidden_and_one_that_does_not_exist_look_alike() {
    let cluster = shared();
    cluster.role("prod-only", "{allow: {logins: ['{{internal.logins}}'], node_labels: {env: prod}}}");
    let alice = cluster.person("ssh-label", &["prod-only"], &[me()]);
    assert!(!alice.tsh(["ls"]).go().ok().contains("node1"), "a list shows only what may be reached");
    let say = |host: &str| {
        let ran = alice.ssh(&format!("{}@{host}", me()), "true").go();
        ran.fails(255, "LG-CONNECT-001");
        ran.err.replace(host, "HOST")
    };
    assert_eq!(say("node1"), say("node9"));
}

#[test]
fn labels_choose_hosts_and_deny_wins() {
    let cluster = Cluster::start();
    cluster.join("db-1", Way::Tunnel, &[("env", "prod"), ("team", "db")]);
    cluster.role(
        "by-pattern",
        "{allow: {logins: ['{{internal.logins}}'], node_labels: {env: ['^(prod|test)$']}}, deny: {node_labels: {team: db}}}",
    );
    let alice = cluster.person("alice", &["by-pattern"], &[me()]);
    let listed = alice.tsh(["ls"]).go().ok();
    assert!(listed.contains("node1") && !listed.contains("db-1"), "{listed}");
    alice.ssh(&format!("{}@node1", me()), "true").go().ok();
    alice.ssh(&format!("{}@db-1", me()), "true").go().fails(255, "LG-CONNECT-001");
    let all = cluster.person("bob", &["access"], &[me()]);
    until_ok(SOON, || all.ssh(&format!("{}@db-1", me()), "true"));
    assert!(!all.tsh(["ls", "team=db"]).go().ok().contains("node1"));
}

/// A session that has begun and goes on; returns once it runs.
fn long_session(cluster: &Cluster, alice: &Person, name: &str) -> Running {
    let begun = cluster.open().join(format!("begun-{name}"));
    let log = cluster.home.join(format!("session-{name}.log"));
    let running = beside(alice.ssh(&format!("{}@node1", me()), &format!("touch {}; sleep 1000", begun.display())), &log);
    eventually(SOON, &format!("the session of {name} begins: {}", running.log()), || begun.exists().then_some(()));
    running
}

#[test]
fn a_role_that_is_taken_away_ends_sessions_and_opens_none() {
    let cluster = Cluster::start();
    cluster.role("team", "{allow: {logins: ['{{internal.logins}}'], node_labels: {'*': '*'}}}");
    let (alice, bob, carol) = (
        cluster.person("alice", &["team"], &[me()]),
        cluster.person("bob", &["team"], &[me()]),
        cluster.person("carol", &["access"], &[me()]),
    );
    let (mut of_bob, mut of_carol) = (long_session(&cluster, &bob, "bob"), long_session(&cluster, &carol, "carol"));
    let mut of_alice = long_session(&cluster, &alice, "alice");
    // The role itself changes: both holders are out.
    cluster.role("team", "{allow: {logins: ['{{internal.logins}}'], node_labels: {env: elsewhere}}}");
    assert_ne!(of_alice.wait(SOON), 0);
    assert_ne!(of_bob.wait(SOON), 0);
    alice.ssh(&format!("{}@node1", me()), "true").go().refused();
    assert!(of_carol.ended().is_none(), "a session that the change does not concern goes on");
    // A user who is removed is out as well, with his certificate still in his hands.
    cluster.tctl(["users", "rm", "carol"]).go().ok();
    assert_ne!(of_carol.wait(SOON), 0);
    carol.ssh(&format!("{}@node1", me()), "true").go().refused();
}

#[test]
fn a_lock_ends_sessions_at_once() {
    let cluster = Cluster::start();
    let alice = cluster.person("alice", &["access"], &[me()]);
    let mut session = long_session(&cluster, &alice, "alice");
    cluster.create("kind: lock\nversion: v1\nmetadata: {name: stop-alice}\nspec: {target: {user: alice}, message: 'gone fishing'}\n");
    assert_ne!(session.wait(SOON), 0);
    alice.ssh(&format!("{}@node1", me()), "true").go().refused();
    cluster.tctl(["rm", "lock/stop-alice"]).go().ok();
    until_ok(SOON, || alice.ssh(&format!("{}@node1", me()), "true"));
}

#[test]
fn attack_row_12_a_certificate_of_another_cluster_opens_nothing() {
    let ours = shared();
    // The same names everywhere: only the authority differs.
    let other = Cluster::with(Setup { with_node: false, ..Setup::default() });
    ours.person("ssh-twin", &["access"], &[me()]);
    other.person("ssh-twin", &["access"], &[me()]);
    let foreign = other.home.join("foreign.pem");
    other.tctl(["auth", "sign", "--user=ssh-twin", "--out"]).arg(&foreign).go().ok();
    let stranger = Person::invite(&ours, "ssh-stranger", &["access"], &[me()]);
    let with = |words: &[&str]| stranger.tsh(["--proxy", &ours.proxy_addr(), "-i"]).arg(&foreign).args(words).go();
    with(&["ls"]).refused();
    with(&["ssh", &format!("{}@node1", me()), "true"]).refused();
    let direct = ours.tctl(["--auth-server", &ours.auth_addr(), "-i"]).arg(&foreign).args(["get", "users"]).go();
    direct.refused();
}

#[test]
fn hosts_come_back_by_themselves_when_the_proxy_does() {
    let cluster = Cluster::split();
    let alice = cluster.person("alice", &["access"], &[me()]);
    let target = format!("{}@node1", me());
    until_ok(SOON, || alice.ssh(&target, "true"));
    let mut cut = long_session(&cluster, &alice, "alice");
    cluster.proxy().kill();
    assert_ne!(cut.wait(SOON), 0, "a session does not hang when the Proxy is gone");
    alice.ssh(&target, "true").go().refused();
    cluster.proxy().start();
    cluster.proxy().wait_ready();
    until_ok(Duration::from_secs(40), || alice.ssh(&target, "echo back"));
}

#[test]
fn sessions_open_while_the_auth_service_is_away() {
    let cluster = Cluster::split();
    let alice = cluster.person("alice", &["access"], &[me()]);
    let target = format!("{}@node1", me());
    until_ok(SOON, || alice.ssh(&target, "true"));
    cluster.auth().kill();
    until_ok(SOON, || alice.ssh(&target, "true"));
    cluster.auth().start();
    cluster.auth().wait_ready();
    until_ok(SOON, || alice.login());
}

#[test]
fn attack_row_19_a_session_sees_its_own_environment_and_none_of_the_service() {
    let alice = shared().person("ssh-env", &["access"], &[me()]);
    // What the shell was given, before its own start files.
    let out = alice
        .ssh(&format!("{}@node1", me()), r"tr '\0' '\n' </proc/$$/environ")
        .env("LD_PRELOAD", "/nowhere.so")
        .env("SECRET_OF_MINE", "x")
        .go();
    let names: BTreeSet<String> = out.text().lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name.to_owned()).collect();
    assert!(names.contains("LOCKGATE_SESSION") && names.contains("HOME"), "{out}");
    let known = ["HOME", "USER", "LOGNAME", "SHELL", "PATH", "PWD", "SHLVL", "_", "TERM", "LANG", "OLDPWD", "MAIL"];
    let strange: Vec<_> =
        names.iter().filter(|name| !known.contains(&name.as_str()) && !name.starts_with("LC_") && !name.starts_with("SSH_")).collect();
    let own = ["LOCKGATE_SESSION", "LOCKGATE_CLUSTER", "LOCKGATE_USER", "LOCKGATE_HOST_ID"];
    assert!(strange.iter().all(|name| own.contains(&name.as_str())), "{strange:?}");
}

#[test]
fn language_and_formats_travel_with_tsh_and_nothing_else_does() {
    let alice = shared().person("ssh-lang", &["access"], &[me()]);
    let out = alice
        .ssh(&format!("{}@node1", me()), r"tr '\0' '\n' </proc/$$/environ")
        .env("LANG", "de_DE.UTF-8")
        .env("LC_TIME", "en_GB.UTF-8")
        .env("LC_OF_MINE", "x y'\"$(id)")
        .env("LC_lower", "no")
        .env("LC_LONG", "x".repeat(300))
        // The host would take these from OpenSSH; `tsh` does not offer them.
        .env("GIT_PROTOCOL", "version=2")
        .env("EDITOR", "x")
        .go();
    let all: BTreeSet<String> = out.ok().lines().map(str::to_owned).collect();
    for line in ["LANG=de_DE.UTF-8", "LC_TIME=en_GB.UTF-8", "LC_OF_MINE=x y'\"$(id)"] {
        assert!(all.contains(line), "no {line} in {out}");
    }
    for name in ["LC_lower", "LC_LONG", "GIT_PROTOCOL", "EDITOR"] {
        assert!(!all.iter().any(|line| line.starts_with(&format!("{name}="))), "{name} in {out}");
    }
    // A terminal's session gets them too.
    let (mut shell, _) = terminal(&alice, &format!("{}@node1", me()), 24, 80);
    shell.send_line("echo \"<$LC_ALL>\"").unwrap();
    shell.exp_string("<C.UTF-8>").unwrap();
    shell.send_line("exit").unwrap();
    shell.exp_eof().unwrap();
}

#[test]
fn debug_shows_the_ssh_layer_and_no_secret() {
    let alice = shared().person("ssh-debug", &["access"], &[me()]);
    let target = format!("{}@node1", me());
    assert!(!alice.ssh(&target, "true").go().err.contains("russh"));
    // All that there is, asked for by name.
    let ran = alice.tsh(["--debug", "ssh", &target, "cat"]).env("LOCKGATE_LOG", "trace").input("a secret that is typed").go();
    assert_eq!(ran.ok(), "a secret that is typed");
    for said in ["russh: ", "negotiated algorithms", "userauth_success", "rustls: "] {
        assert!(ran.err.contains(said), "no {said} in {ran}");
    }
    assert!(!ran.err.contains("a secret that is typed") && !ran.err.contains("PRIVATE KEY"), "{ran}");
    let usual = alice.tsh(["--debug", "ssh", &target, "true"]).go();
    assert!(usual.err.contains("DEBUG") && !usual.err.contains("msg type"), "one line for each packet is too much: {usual}");
    alice.tsh(["ssh", "-N", &target, "true"]).go().fails(2, "-N runs no command");
}
