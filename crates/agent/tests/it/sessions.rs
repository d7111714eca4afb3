//! Shells and commands: what a person sees.

use crate::world::{SOON, World, collect, exec, own_login, role};
use russh::{ChannelMsg, Sig};
use std::time::Duration;
use types::role::Options;
use wire::recording::What;

#[tokio::test]
async fn a_command_gives_its_output_its_errors_and_its_status() {
    let world = World::new();
    let client = world.alice().await;
    let output = exec(&client, "printf out; printf err >&2; exit 7", "").await;
    assert_eq!((output.text().as_str(), output.errors().as_str(), output.status), ("out", "err", Some(7)));
    let event = world.event("exec").await;
    assert_eq!((event.code.as_str(), event.text("user"), event.fields["exitCode"].as_u64()), ("L3002E", "alice", Some(7)));
}

#[tokio::test]
async fn a_command_killed_by_a_signal_reports_the_signal() {
    let world = World::new();
    let output = exec(&world.alice().await, "kill -TERM $$", "").await;
    assert_eq!((output.status, output.signal.as_deref()), (None, Some("TERM")));
}

#[tokio::test]
async fn input_ends_where_the_client_ends_it_and_output_goes_on() {
    let world = World::new();
    let output = exec(&world.alice().await, "wc -c; echo done", "12345").await;
    assert_eq!(output.text().split_whitespace().collect::<Vec<_>>(), ["5", "done"]);
}

#[tokio::test]
async fn attack_row_19_nothing_of_the_services_environment_reaches_a_session() {
    let world = World::new();
    let client = world.alice().await;
    let channel = client.channel_open_session().await.unwrap();
    for (name, value) in [("LD_PRELOAD", "/x.so"), ("BASH_ENV", "/x"), ("PATH", "/x"), ("LC_ALL", "C"), ("IFS", "/")] {
        channel.set_env(false, name, value).await.unwrap();
    }
    // What the shell was given, not what its own start-up files make of it.
    channel.exec(true, "tr '\\0' '\\n' </proc/$$/environ").await.unwrap();
    let output = collect(&mut channel.split().0).await.text();
    let names: Vec<&str> = output.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    const EXPECTED: [&str; 12] = [
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "PATH",
        "LC_ALL",
        "SSH_CLIENT",
        "SSH_CONNECTION",
        "LOCKGATE_SESSION",
        "LOCKGATE_CLUSTER",
        "LOCKGATE_USER",
        "LOCKGATE_HOST_ID",
    ];
    assert!(names.len() == EXPECTED.len() && names.iter().all(|name| EXPECTED.contains(name)), "{names:?}");
    assert!(
        output.contains("LC_ALL=C") && output.contains("LOCKGATE_USER=alice") && output.contains("SSH_CLIENT=192.0.2.7 4711 22"),
        "{output}"
    );
    assert!(!output.contains("/x"), "{output}");
}

#[tokio::test]
async fn only_the_three_standard_descriptors_are_open_in_a_session() {
    let world = World::new();
    let output = exec(&world.alice().await, "for n in $(seq 0 300); do [ -e /proc/$$/fd/$n ] && printf '%s ' $n; done", "").await;
    assert_eq!(output.text().trim(), "0 1 2");
}

#[tokio::test]
async fn a_shell_on_a_terminal_knows_its_size_and_hears_of_changes() {
    let world = World::new();
    let client = world.alice().await;
    let channel = client.channel_open_session().await.unwrap();
    channel.request_pty(true, "xterm", 101, 37, 0, 0, &[(russh::Pty::ECHO, 0)]).await.unwrap();
    channel.request_shell(true).await.unwrap();
    let (mut read, write) = channel.split();
    let mut seen = String::new();
    write.data_bytes("echo \"[$(stty size)] $TERM $SSH_TTY\"\n").await.unwrap();
    until(&mut read, &mut seen, "[37 101] xterm /dev/pts/").await;
    write.window_change(90, 30, 0, 0).await.unwrap();
    write.data_bytes("echo \"[$(stty size)]\"; exit 3\n").await.unwrap();
    until(&mut read, &mut seen, "[30 90]").await;
    assert_eq!(collect(&mut read).await.status, Some(3));
    let entries = world.recording().await;
    assert!(matches!(&entries[0].what, What::Header(header) if header.width == 101 && header.recording.kind == "shell"));
    assert!(entries.iter().any(|entry| entry.what == What::Resize { width: 90, height: 30 }));
    assert!(matches!(&entries.last().unwrap().what, What::End(end) if end.status == Some(3)));
}

async fn until(read: &mut russh::ChannelReadHalf, seen: &mut String, wanted: &str) {
    let reading = async {
        while !seen.contains(wanted) {
            match read.wait().await {
                Some(ChannelMsg::Data { data }) => seen.push_str(&String::from_utf8_lossy(&data)),
                Some(_) => {}
                None => panic!("ended before {wanted:?}: {seen:?}"),
            }
        }
    };
    tokio::time::timeout(SOON, reading).await.ok();
    assert!(seen.contains(wanted), "no {wanted:?} in {seen:?}");
}

#[tokio::test]
async fn a_terminals_end_of_input_ends_the_shell() {
    let world = World::new();
    let client = world.alice().await;
    let channel = client.channel_open_session().await.unwrap();
    channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
    channel.exec(true, "cat; echo over").await.unwrap();
    let (mut read, write) = channel.split();
    write.data_bytes("hello\n").await.unwrap();
    write.eof().await.unwrap();
    let output = collect(&mut read).await;
    assert!(output.text().contains("hello\r\n") && output.text().contains("over"), "{output:?}");
    assert_eq!(output.status, Some(0));
}

#[tokio::test]
async fn signals_reach_the_whole_process_group_and_only_those_on_the_list() {
    let world = World::new();
    let client = world.alice().await;
    let channel = client.channel_open_session().await.unwrap();
    channel
        .exec(true, "trap 'echo got; exit 5' USR1; trap 'echo bad; exit 6' PIPE; echo ready; while :; do sleep 0.05; done")
        .await
        .unwrap();
    let (mut read, write) = channel.split();
    let mut seen = String::new();
    until(&mut read, &mut seen, "ready").await;
    write.signal(Sig::PIPE).await.unwrap();
    write.signal(Sig::USR1).await.unwrap();
    let output = collect(&mut read).await;
    assert_eq!((output.text().trim(), output.status), ("got", Some(5)));
}

#[tokio::test]
async fn something_left_in_the_background_does_not_hold_the_session() {
    let world = World::new();
    let began = std::time::Instant::now();
    let output = exec(&world.alice().await, "sleep 50 & echo started", "").await;
    assert_eq!((output.text().as_str(), output.status), ("started\n", Some(0)));
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn an_account_that_does_not_exist_is_refused_in_three_lines() {
    let world = World::new();
    let client = world.enter("no-such-account", &world.badge("alice")).await;
    let output = exec(&client, "true", "").await;
    assert_eq!(output.status, Some(255));
    let text = output.errors();
    assert!(
        text.starts_with("error: could not open a session on \"node1\"\ncause: this host has no account \"no-such-account\""),
        "{text}"
    );
}

#[tokio::test]
async fn a_login_that_no_role_allows_is_refused_with_those_that_are() {
    let world = World::new();
    let client = world.enter("postgres", &world.badge("alice")).await;
    let output = exec(&client, "true", "").await;
    assert_eq!(output.status, Some(255));
    let (text, own) = (output.errors(), own_login());
    assert!(text.contains("cause: no role allows login \"postgres\" on \"node1\"") && text.contains(own.as_str()), "{text}");
    assert_eq!(world.event("session.rejected").await.text("user"), "alice");
}

#[tokio::test]
async fn a_connection_has_no_more_sessions_than_its_roles_allow() {
    let world = World::new();
    world.put_role("dev", types::role::Role { options: Options { max_sessions: Some(2), ..Options::default() }, ..role() });
    let client = world.alice().await;
    let first = client.channel_open_session().await.unwrap();
    let _second = client.channel_open_session().await.unwrap();
    assert!(client.channel_open_session().await.is_err());
    first.exec(true, "true").await.unwrap();
    collect(&mut first.split().0).await;
    // A session that ended makes room. Its task may end a moment after its channel.
    world.event("session.end").await;
    assert!(client.channel_open_session().await.is_ok());
}

#[tokio::test]
async fn a_user_has_no_more_connections_than_his_roles_allow() {
    let world = World::new();
    world.put_role("dev", types::role::Role { options: Options { max_connections: Some(1), ..Options::default() }, ..role() });
    let _first = world.alice().await;
    let second = world.alice().await;
    let output = exec(&second, "true", "").await;
    assert!(output.errors().contains("as many connections"), "{output:?}");
}

#[tokio::test]
async fn ports_are_forwarded_only_by_a_role_that_allows_it() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    let world = World::new();
    world.tasks.spawn("echo", async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    let client = world.alice().await;
    let mut stream = client.channel_open_direct_tcpip("127.0.0.1", port, "127.0.0.1", 1).await.unwrap().into_stream();
    stream.write_all(b"there and back").await.unwrap();
    let mut got = [0; 14];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"there and back");
    assert_eq!(world.event("port").await.text("addr"), format!("127.0.0.1:{port}"));

    world.put_role("dev", types::role::Role { options: Options { port_forwarding: false, ..Options::default() }, ..role() });
    let client = world.alice().await;
    assert!(client.channel_open_direct_tcpip("127.0.0.1", port, "127.0.0.1", 1).await.is_err());
    assert!(world.event("ssh.request").await.text("error").contains("direct-tcpip"));
}

#[tokio::test]
async fn a_forwarded_connection_carries_any_number_of_small_messages() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    let world = World::new();
    world.tasks.spawn("echo", async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    let client = world.alice().await;
    let mut stream = client.channel_open_direct_tcpip("127.0.0.1", port, "127.0.0.1", 1).await.unwrap().into_stream();
    let talk = async {
        for number in 0..200u32 {
            stream.write_all(&number.to_be_bytes()).await.unwrap();
            assert_eq!(stream.read_u32().await.unwrap(), number);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), talk).await.unwrap();
}

#[tokio::test]
async fn attack_row_8_a_login_without_an_account_forwards_nothing() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    let world = World::new();
    let client = world.enter("no-such-account", &world.badge("alice")).await;
    assert!(client.channel_open_direct_tcpip("127.0.0.1", port, "127.0.0.1", 1).await.is_err());
    let event = world.event("port").await;
    assert_eq!((event.fields["success"].as_bool(), event.text("error")), (Some(false), "this host has no account \"no-such-account\""));
    let came = tokio::select! { biased; _ = listener.accept() => true, () = std::future::ready(()) => false };
    assert!(!came, "it was dialled");
}

#[tokio::test]
async fn sftp_is_served_by_the_hosts_own_program() {
    let world = World::new();
    let client = world.alice().await;
    let channel = client.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "sftp").await.unwrap();
    let (mut read, write) = channel.split();
    // SSH_FXP_INIT, version 3.
    write.data_bytes(&[0, 0, 0, 5, 1, 0, 0, 0, 3][..]).await.unwrap();
    if std::path::Path::new("/usr/lib/openssh/sftp-server").exists() {
        let mut seen = String::new();
        // SSH_FXP_VERSION, version 3.
        until(&mut read, &mut seen, "\u{2}\0\0\0\u{3}").await;
    }
    write.eof().await.unwrap();
    let output = collect(&mut read).await;
    if std::path::Path::new("/usr/lib/openssh/sftp-server").exists() {
        assert_eq!(world.event("subsystem").await.text("command"), "sftp");
    } else {
        assert!(output.errors().contains("no sftp-server program"), "{output:?}");
    }
}

#[tokio::test]
async fn a_forwarded_agent_is_reached_over_a_socket_of_the_session() {
    let world = World::new();
    let client = world.alice().await;
    let channel = client.channel_open_session().await.unwrap();
    channel.agent_forward(true).await.unwrap();
    channel.exec(true, "test -S \"$SSH_AUTH_SOCK\" && stat -c %a \"$SSH_AUTH_SOCK\"").await.unwrap();
    let output = collect(&mut channel.split().0).await;
    assert_eq!((output.text().trim(), output.status), ("600", Some(0)));
}
