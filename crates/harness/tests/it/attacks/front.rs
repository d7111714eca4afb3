//! Rows 26 to 31: pages, unknown names and messages, and a service that is flooded while it starts.

use super::*;

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
