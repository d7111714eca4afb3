//! Sessions through tunnels and to direct hosts, and everything that must not become one.

use crate::{
    ca::{Cluster, HOUR, id, now},
    fake_agent::{FakeAgent, echo, hung_up},
    rig::{Rig, SOON, node, version},
};
use net::{
    frame::{read_frame, write_frame},
    hello,
    task::Group,
    tls::{self, Certificates, ClientAuth, server_config},
};
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use types::{Code, EventKind, SystemRole, version::Direction};
use wire::{
    alpn,
    hello::Hello,
    route::{Dial, Dialed, decode, encode},
    tunnel::{DataHello, ToAgent, ToProxy},
};

#[tokio::test]
async fn a_session_goes_by_ticket_and_the_next_by_the_spare() {
    let rig = Rig::start().await;
    let mut agent = FakeAgent::start(&rig, 1, "boot").await;
    let alice = rig.cluster.user("alice", &["access"]);
    let dialing = rig.dial(&alice, "node1");
    let answering = async {
        let ticket = agent.ticket().await;
        agent.answer(&rig, &ticket, "by ticket").await;
        assert_eq!(agent.told().await, Some(ToAgent::Spare { keep: true }));
    };
    let (session, ()) = tokio::join!(dialing, answering);
    assert_eq!(session.unwrap().say("hello").await, "by ticket:hello");
    agent.spare(&rig, "by spare").await;
    // The spare is there when the next session takes it; until then there would be a ticket.
    loop {
        let alice = rig.cluster.user("alice", &["access"]);
        let mut session = tokio::select! {
            session = rig.dial(&alice, "node1.example") => session.unwrap(),
            ticket = agent.ticket() => { agent.answer(&rig, &ticket, "by ticket").await; continue }
        };
        assert_eq!(session.say("hello").await, "by spare:hello");
        break;
    }
    assert!(rig.metrics.sessions.value() >= 2);
}

#[tokio::test]
async fn a_spare_that_died_is_not_given_to_anyone() {
    let rig = Rig::start().await;
    let mut agent = FakeAgent::start(&rig, 1, "boot").await;
    let alice = rig.cluster.user("alice", &["access"]);
    let (first, ()) = tokio::join!(rig.dial(&alice, "node1"), async {
        let ticket = agent.ticket().await;
        agent.answer(&rig, &ticket, "a").await;
    });
    first.unwrap();
    let mut dead = agent.data(&rig, &DataHello::Spare { boot_id: None }).await;
    dead.shutdown().await.unwrap();
    drop(dead);
    let (second, ()) = tokio::join!(rig.dial(&alice, "node1"), async {
        let ticket = agent.ticket().await;
        agent.answer(&rig, &ticket, "b").await;
    });
    assert_eq!(second.unwrap().say("x").await, "b:x");
}

#[tokio::test]
async fn a_ticket_is_no_use_to_another_host_nor_twice() {
    let rig = Rig::start().await;
    let (mut agent, other) = (FakeAgent::start(&rig, 1, "boot").await, FakeAgent::start(&rig, 2, "boot").await);
    let alice = rig.cluster.user("alice", &["access"]);
    let (session, ticket) = tokio::join!(rig.dial(&alice, "node1"), async {
        let ticket = agent.ticket().await;
        let mut stolen = other.data(&rig, &DataHello::Ticket { ticket: ticket.clone() }).await;
        assert!(hung_up(&mut stolen).await, "another host");
        agent.answer(&rig, &ticket, "right").await;
        ticket
    });
    assert_eq!(session.unwrap().say("x").await, "right:x");
    let mut again = agent.data(&rig, &DataHello::Ticket { ticket }).await;
    assert!(hung_up(&mut again).await, "second use");
    let mut invented = agent.data(&rig, &DataHello::Ticket { ticket: "0".repeat(32) }).await;
    assert!(hung_up(&mut invented).await, "invented");
}

#[tokio::test]
async fn an_agent_registers_as_itself_only() {
    let rig = Rig::start().await;
    let mut liar = FakeAgent::connect(&rig, 1).await;
    liar.register(2, "boot").await;
    assert!(matches!(liar.told().await, Some(ToAgent::Refused { error }) if error.is(Code::AccessIdentity)));
    assert_eq!(liar.told().await, None);
    // Nor does a user, or a Proxy, hold a tunnel.
    let alice = rig.cluster.user("alice", &["access"]);
    let proxy = rig.cluster.member(id(9), "proxy2", SystemRole::Proxy, &[]);
    for identity in [&alice.tls, &proxy.tls] {
        let mut control = rig.greet(identity, alpn::TUNNEL, &Hello::ours(&version(), "node")).await.unwrap();
        let told = decode(&read_frame(&mut control, SOON).await.unwrap()).unwrap();
        assert!(matches!(told, ToAgent::Refused { error } if error.is(Code::AccessIdentity)));
    }
    assert_eq!(*rig.tunnels.borrow(), 0);
}

#[tokio::test]
async fn the_newest_process_of_a_host_takes_its_tunnel_over() {
    let rig = Rig::start().await;
    let mut old = FakeAgent::start(&rig, 1, "one").await;
    let mut new = FakeAgent::start(&rig, 1, "two").await;
    assert!(matches!(old.told().await, Some(ToAgent::Refused { error }) if error.is(Code::Conflict)));
    assert_eq!(old.told().await, None);
    let alice = rig.cluster.user("alice", &["access"]);
    let (session, ()) = tokio::join!(rig.dial(&alice, "node1"), async {
        let ticket = new.ticket().await;
        new.answer(&rig, &ticket, "new").await;
    });
    assert_eq!(session.unwrap().say("x").await, "new:x");
    assert_eq!(*rig.tunnels.borrow(), 1);
}

#[tokio::test]
async fn unknown_forbidden_and_ambiguous_names_tell_no_more_than_they_should() {
    let rig = Rig::start().await;
    let alice = rig.cluster.user("alice", &["access"]);
    let unknown = rig.dial(&alice, "nothere").await.unwrap_err();
    let forbidden = rig.dial(&alice, "secret").await.unwrap_err();
    assert!(unknown.is(Code::NodeUnknown));
    assert_eq!(format!("{unknown:?}").replace("nothere", "secret"), format!("{forbidden:?}"));
    let by_id = rig.dial(&alice, &id(4).to_string()).await.unwrap_err();
    assert!(by_id.is(Code::NodeUnknown));
    let ambiguous = rig.dial(&alice, "db").await.unwrap_err();
    assert!(ambiguous.is(Code::NodeAmbiguous));
    let hint = ambiguous.hint.unwrap();
    assert!(hint.contains(&id(2).to_string()) && hint.contains(&id(3).to_string()) && !hint.contains(&id(4).to_string()));
    let offline = rig.dial(&alice, "node1").await.unwrap_err();
    assert!(offline.is(Code::NodeOffline));
    let event = rig.auth.event(|event| event.is(EventKind::AccessDenied) && event.text("server") == "secret").await;
    assert_eq!((event.text("user"), event.text("error_code")), ("alice", "LG-CONNECT-001"));
}

#[tokio::test]
async fn attack_row_13_no_peer_supplied_address_is_dialled() {
    let rig = Rig::start().await;
    let trap = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bob = rig.cluster.user("bob", &["admin"]);
    // Names that look like addresses are names of hosts that do not exist.
    for target in ["127.0.0.1", "localhost", "169.254.169.254", "proxy.example.com"] {
        assert!(rig.dial(&bob, target).await.unwrap_err().is(Code::NodeUnknown), "{target}");
    }
    // What is no name or id is no target: the frame is refused whole.
    let port = trap.local_addr().unwrap();
    for raw in [
        format!(r#"{{"target":{{"name":"{port}"}}}}"#),
        format!(r#"{{"target":{{"addr":"{port}"}}}}"#),
        format!(r#"{{"target":{{"name":"node1"}},"addr":"{port}","cluster":"evil"}}"#),
    ] {
        let mut stream = rig.greet(&bob.tls, alpn::SSH, &Hello::ours(&version(), "tsh")).await.unwrap();
        write_frame(&mut stream, raw.as_bytes(), SOON).await.unwrap();
        let answer: Dialed = decode(&read_frame(&mut stream, SOON).await.unwrap()).unwrap();
        assert!(matches!(answer, Dialed::Refused(error) if error.is(Code::Malformed) || error.is(Code::NodeUnknown)), "{raw}");
    }
    // A registered host whose address is not digits, or whose listener is not that host, is not reached.
    rig.cache.put([
        node(7, "named", "", &format!("localhost:{}", port.port())),
        node(8, "impostor", "", &port.to_string()),
        node(9, "nowhere", "", "0.0.0.0:22"),
    ]);
    let other = Cluster::new("example").member(id(8), "impostor", SystemRole::Node, &[]);
    assert!(rig.dial(&bob, "named").await.unwrap_err().is(Code::NodeOffline));
    assert!(rig.dial(&bob, "nowhere").await.unwrap_err().is(Code::NodeOffline));
    let trap = Arc::new(trap);
    rig.group.spawn("impostor", direct_host(trap.clone(), other, rig.clock(), rig.group.clone()));
    assert!(rig.dial(&bob, "impostor").await.unwrap_err().is(Code::NodeOffline));
}

/// A host that listens itself.
async fn direct_host(
    listener: Arc<tokio::net::TcpListener>,
    credentials: client::host::HostCredentials,
    clock: net::clock::SharedClock,
    group: Group,
) {
    let authorities = credentials.trust.swap().unwrap();
    let config = server_config(Certificates::fixed(&credentials.tls), ClientAuth::Required, &authorities, &[alpn::SSH], &clock).unwrap();
    while let Ok((tcp, _)) = listener.accept().await {
        let Ok(accepted) = tls::accept(tcp, config.clone(), &authorities, &clock, SOON).await else { continue };
        assert!(accepted.identity.unwrap().has_system_role(&SystemRole::Proxy));
        let mut stream: net::IoStream = Box::new(accepted.stream);
        hello::server(&mut stream, &Hello::ours(&version(), "node"), Direction::CallerSpeaksOlder, SOON).await.unwrap();
        let dial: Dial = decode(&read_frame(&mut stream, SOON).await.unwrap()).unwrap();
        assert_eq!(dial.target.to_string(), credentials.id().to_string());
        let answer = Dialed::Connected { host_id: credentials.id(), hostname: credentials.identity.name.clone() };
        write_frame(&mut stream, &encode(&answer), SOON).await.unwrap();
        group.spawn("direct session", async move { echo(stream, "direct").await });
    }
}

#[tokio::test]
async fn a_host_that_listens_itself_is_dialled_where_auth_saw_it() {
    let rig = Rig::start().await;
    let listener = Arc::new(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    rig.cache.put([node(5, "direct", "env=dev", &listener.local_addr().unwrap().to_string())]);
    let host = rig.cluster.member(id(5), "direct", SystemRole::Node, &[]);
    rig.group.spawn("direct", direct_host(listener, host, rig.clock(), rig.group.clone()));
    let alice = rig.cluster.user("alice", &["access"]);
    for _ in 0..2 {
        assert_eq!(rig.dial(&alice, "direct").await.unwrap().say("x").await, "direct:x");
    }
}

#[tokio::test]
async fn certificates_that_ended_or_are_another_clusters_or_a_hosts_reach_nothing() {
    let rig = Rig::start().await;
    FakeAgent::start(&rig, 1, "boot").await;
    let short = rig.cluster.user_with(rig.cluster.identity("alice", &["access"], now().plus(HOUR)));
    rig.clock.advance(2 * HOUR);
    let ended = rig.dial(&short, "node1").await.unwrap_err();
    assert!(ended.is(Code::LoginExpired) || ended.is(Code::AccessIdentity), "{ended}");
    let foreign = Cluster::new("example");
    let tls = rig.greet(&foreign.user("alice", &["access"]).tls, alpn::SSH, &Hello::ours(&version(), "tsh")).await;
    assert!(tls.err().unwrap().is(Code::AccessIdentity));
    let host = rig.cluster.member(id(1), "node1", SystemRole::Node, &[]);
    let mut stream = rig.greet(&host.tls, alpn::SSH, &Hello::ours(&version(), "node")).await.unwrap();
    let answer: Dialed = decode(&read_frame(&mut stream, SOON).await.unwrap()).unwrap();
    assert!(matches!(answer, Dialed::Refused(error) if error.is(Code::AccessIdentity)));
    assert!(rig.tls(None, alpn::SSH).await.is_err() || hung_up(&mut rig.tls(None, alpn::SSH).await.unwrap()).await);
}

#[tokio::test]
async fn a_user_who_was_deleted_a_role_that_was_taken_and_a_lock_close_the_way() {
    let rig = Rig::start().await;
    let alice = rig.cluster.user("alice", &["access"]);
    assert!(rig.dial(&alice, "node1").await.unwrap_err().is(Code::NodeOffline));
    let lock = types::kind::Lock {
        target: types::kind::LockTarget { user: Some("alice".into()), ..Default::default() },
        message: "incident 7".into(),
        extra: types::Extra::new(),
    };
    let name = types::ResourceName::new("l1").unwrap();
    rig.cache.put([types::Resource::new(types::Metadata::named(name.clone()), lock).to_document()]);
    assert!(rig.dial(&alice, "node1").await.unwrap_err().is(Code::AccessLocked));
    rig.cache.remove("lock", &name);
    rig.cache.remove("role", &types::ResourceName::new("access").unwrap());
    assert!(rig.dial(&alice, "node1").await.unwrap_err().is(Code::NodeUnknown));
    rig.cache.remove("user", &types::ResourceName::new("bob").unwrap());
    assert!(rig.dial(&rig.cluster.user("bob", &["admin"]), "node1").await.unwrap_err().is(Code::NodeUnknown));
}

#[tokio::test]
async fn a_lock_on_a_host_ends_its_tunnel() {
    let rig = Rig::start().await;
    let mut agent = FakeAgent::start(&rig, 1, "boot").await;
    let lock = types::kind::Lock {
        target: types::kind::LockTarget { node: Some(id(1)), ..Default::default() },
        message: String::new(),
        extra: types::Extra::new(),
    };
    rig.cache.put([types::Resource::new(types::Metadata::named(types::ResourceName::new("l1").unwrap()), lock).to_document()]);
    assert!(matches!(agent.told().await, Some(ToAgent::Refused { error }) if error.is(Code::AccessLocked)));
    rig.until_tunnels(0).await;
}

#[tokio::test]
async fn an_agent_that_cannot_take_a_session_or_goes_away_is_reported_at_once() {
    let rig = Rig::start().await;
    let mut agent = FakeAgent::start(&rig, 1, "boot").await;
    let alice = rig.cluster.user("alice", &["access"]);
    let (full, ()) = tokio::join!(rig.dial(&alice, "node1"), async {
        let ticket = agent.ticket().await;
        agent.say(&ToProxy::Failed { ticket, error: types::Public::new(Code::AccessLimit, "full") }).await;
    });
    let full = full.unwrap_err();
    assert!(full.is(Code::AccessLimit) && full.message != "full", "in the Proxy's words: {full}");
    let (gone, ()) = tokio::join!(rig.dial(&alice, "node1"), async move {
        agent.ticket().await;
        drop(agent);
    });
    assert!(gone.unwrap_err().is(Code::NodeOffline));
    rig.until_tunnels(0).await;
}

#[tokio::test]
async fn a_draining_proxy_tells_agents_and_lets_sessions_run_out() {
    let rig = Rig::start().await;
    let mut agent = FakeAgent::start(&rig, 1, "boot").await;
    let alice = rig.cluster.user("alice", &["access"]);
    let (session, ()) = tokio::join!(rig.dial(&alice, "node1"), async {
        let ticket = agent.ticket().await;
        agent.answer(&rig, &ticket, "a").await;
    });
    let mut session = session.unwrap();
    assert_eq!(session.say("before").await, "a:before");
    assert_eq!(agent.told().await, Some(ToAgent::Spare { keep: true }));
    rig.shutdown.drain();
    assert_eq!(agent.told().await, Some(ToAgent::Drain));
    assert_eq!(session.say("after").await, "after");
    assert!(!*rig.ended.borrow());
    session.0.shutdown().await.unwrap();
    let mut rest = Vec::new();
    session.0.read_to_end(&mut rest).await.unwrap();
    let mut ended = rig.ended.clone();
    tokio::time::timeout(SOON, ended.wait_for(|ended| *ended)).await.expect("the end").unwrap();
    assert!(tokio::net::TcpStream::connect(rig.addr).await.is_err());
    assert_eq!(agent.told().await, None);
}

#[tokio::test]
async fn fifty_sessions_at_once_do_not_mix() {
    let rig = Arc::new(Rig::start().await);
    FakeAgent::start(&rig, 1, "boot").await.serve(&rig, "one");
    let alice = rig.cluster.user("alice", &["access"]);
    let all = (0..50).map(|n| {
        let (rig, alice) = (&rig, &alice);
        async move {
            let mut session = rig.dial(alice, "node1").await.unwrap();
            assert_eq!(session.say(&format!("{n}")).await, format!("one:{n}"));
        }
    });
    futures::future::join_all(all).await;
}

#[tokio::test]
async fn g4_every_door_judges_versions_and_tells_the_cure() {
    let rig = Rig::start().await;
    let alice = rig.cluster.user("alice", &["access"]);
    let agent = rig.cluster.member(id(1), "node1", SystemRole::Node, &[]);
    let check = async |version: &str, want: Option<Code>| {
        for (identity, protocol) in [(&alice.tls, alpn::SSH), (&agent.tls, alpn::TUNNEL), (&agent.tls, alpn::TUNNEL_DATA)] {
            let hello = Hello { version: version.into(), ..Hello::ours(&types::Version::new(0, 0, 0), "x") };
            let mut stream = rig.tls(Some(identity), protocol).await.unwrap();
            write_frame(&mut stream, &wire::hello::encode(&hello), SOON).await.unwrap();
            let answer: wire::hello::Answer = wire::hello::decode(&read_frame(&mut stream, SOON).await.unwrap()).unwrap();
            match (answer.verdict, want) {
                (wire::hello::Verdict::Accept, None) => {}
                (wire::hello::Verdict::Refuse(error), Some(code)) => {
                    assert!(error.is(code) && error.hint.is_some(), "{version}: {error:?}")
                }
                (other, want) => panic!("{version}: {other:?}, not {want:?}"),
            }
        }
    };
    check("8.0.0", None).await;
    check("7.9.9", None).await;
    check("8.9.0-rc.1", None).await;
    check("6.9.9", Some(Code::VersionTooOld)).await;
    check("9.0.0", Some(Code::VersionTooNew)).await;
    check("eight", Some(Code::VersionUnreadable)).await;
    let event = rig.auth.event(|event| event.is(EventKind::VersionRefused) && event.text("edge") == "lockgate-tunnel").await;
    assert_eq!(event.text("role"), "x");
}
