//! The handshake at both ends of a pipe: the version matrix, refusals by one end, and bytes that are no handshake.
//!
//! The table of verdicts itself is tested in `wire::hello`; here it is that both ends reach it and tell each other.

use crate::world::hello;
use net::{
    frame::{read_frame, write_frame},
    hello::{By, HelloError, HelloPolicy, client, server},
};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use types::{Code, version::Direction};
use wire::hello::{Answer, Hello, Verdict, decode, encode, skipped};

const SOON: Duration = Duration::from_secs(10);
const CLIENT_ROLES: [&str; 6] = ["tsh", "tctl", "proxy", "node", "db", "auth"];
const SERVER_ROLES: [&str; 3] = ["auth", "proxy", "node"];

async fn talk(ours: &Hello, theirs: &Hello, direction: Direction, skip: bool) -> [Result<Hello, HelloError>; 2] {
    let (mut a, mut b) = duplex(4096);
    let policy = HelloPolicy { skip_version_check: skip, ..HelloPolicy::default() };
    let (at_client, at_server) = tokio::join!(client(&mut a, ours, direction, policy), server(&mut b, theirs, direction, SOON));
    [at_client, at_server]
}

fn code(result: &Result<Hello, HelloError>) -> Option<Code> {
    result.as_ref().err().map(|error| error.public().known().unwrap())
}

#[tokio::test]
async fn g4_g6_both_ends_reach_the_verdict_of_the_table() {
    for client_role in CLIENT_ROLES {
        for (server_role, skip) in SERVER_ROLES.into_iter().flat_map(|role| [(role, false), (role, true)]) {
            let host = matches!(client_role, "proxy" | "node" | "db");
            let newer = Some(if host && server_role == "auth" { Code::VersionAuthOlder } else { Code::VersionTooNew });
            let table = [
                ("8.3.7", None),
                ("8.9.0-rc.1", None),
                ("7.0.0", None),
                ("6.4.2", Some(Code::VersionTooOld)),
                ("9.0.0", if host && skip { None } else { newer }),
                ("9.0.0-rc.1", if host && skip { None } else { newer }),
                ("10.0.0", newer),
                ("", Some(Code::VersionUnreadable)),
                ("soon", Some(Code::VersionUnreadable)),
            ];
            for (version, want) in table {
                let (ours, theirs) = (hello(client_role, version), hello(server_role, "8.3.7"));
                let ends = talk(&ours, &theirs, Direction::ServerFirst, skip).await;
                for (end, result) in ends.iter().enumerate() {
                    assert_eq!(code(result), want, "end {end}: {client_role} {version} to {server_role}, skip {skip}: {result:?}");
                }
                if let [Ok(seen_by_client), Ok(seen_by_server)] = ends {
                    assert_eq!(seen_by_client, theirs);
                    assert_eq!(seen_by_server, Hello { skips_version_check: skip, ..ours });
                }
            }
        }
    }
}

#[tokio::test]
async fn both_ends_print_the_same_cure_and_know_each_other() {
    let (ours, theirs) = (hello("tsh", "8.3.7"), hello("proxy", "10.2.0"));
    let [at_client, at_server] = talk(&ours, &theirs, Direction::ServerFirst, false).await;
    let (
        HelloError::Refused { public: one, by: By::Us, peer: Some(server) },
        HelloError::Refused { public: two, by: By::Us, peer: Some(client) },
    ) = (at_client.unwrap_err(), at_server.unwrap_err())
    else {
        panic!("not refused by both")
    };
    assert_eq!(one, two);
    assert_eq!(one.message, "server 10.2.0, you 8.3.7: too old by two");
    assert_eq!((*server, *client), (theirs, ours));
}

#[tokio::test]
async fn g6_a_skipped_check_is_seen_by_the_server_for_its_audit_log() {
    let (ours, theirs) = (hello("proxy", "9.0.0"), hello("auth", "8.0.0"));
    let [at_client, at_server] = talk(&ours, &theirs, Direction::ServerFirst, true).await;
    at_client.unwrap();
    assert!(skipped(Direction::ServerFirst, &at_server.unwrap(), &theirs));
    assert!(!skipped(Direction::ServerFirst, &Hello { skips_version_check: true, ..hello("proxy", "8.0.0") }, &theirs));
}

#[tokio::test]
async fn edges_against_the_upgrade_order_accept_one_major_either_way() {
    for (version, want) in
        [("9.0.0", None), ("8.0.0", None), ("7.0.0", None), ("10.0.0", Some(Code::VersionTooNew)), ("6.0.0", Some(Code::VersionTooOld))]
    {
        let ends = talk(&hello("auth", version), &hello("node", "8.3.7"), Direction::CallerSpeaksOlder, false).await;
        assert_eq!(ends.each_ref().map(code), [want, want], "{version}");
    }
}

#[tokio::test]
async fn the_client_goes_on_without_waiting_and_its_data_follows_its_verdict() {
    let (mut a, mut b) = duplex(4096);
    let (ours, theirs) = (hello("tsh", "8.0.0"), hello("proxy", "8.0.0"));
    let at_client = async {
        client(&mut a, &ours, Direction::ServerFirst, HelloPolicy::default()).await.unwrap();
        a.write_all(b"SSH-2.0-x").await.unwrap();
    };
    let at_server = async {
        server(&mut b, &theirs, Direction::ServerFirst, SOON).await.unwrap();
        let mut data = [0; 9];
        b.read_exact(&mut data).await.unwrap();
        assert_eq!(&data, b"SSH-2.0-x");
    };
    tokio::join!(at_client, at_server);
}

#[tokio::test]
async fn an_end_that_refuses_alone_tells_the_other() {
    let refusal = types::Public::new(Code::VersionWindow, "outside the window");
    let (mut a, mut b) = duplex(4096);
    let ours = hello("tsh", "8.0.0");
    let strict_server = async {
        read_frame(&mut b, SOON).await.unwrap();
        let answer = Answer { hello: hello("auth", "8.0.0"), verdict: Verdict::Refuse(refusal.clone()) };
        write_frame(&mut b, &encode(&answer), SOON).await.unwrap();
        drop(b);
    };
    let (at_client, ()) = tokio::join!(client(&mut a, &ours, Direction::ServerFirst, HelloPolicy::default()), strict_server);
    assert!(matches!(at_client, Err(HelloError::Refused { public, by: By::Peer, peer: Some(_) }) if public == refusal));

    let (mut a, mut b) = duplex(4096);
    let strict_client = async {
        write_frame(&mut a, &encode(&ours), SOON).await.unwrap();
        let answer: Answer = decode(&read_frame(&mut a, SOON).await.unwrap()).unwrap();
        assert_eq!(answer.verdict, Verdict::Accept);
        write_frame(&mut a, &encode(&Verdict::Refuse(refusal.clone())), SOON).await.unwrap();
    };
    let theirs = hello("auth", "8.0.0");
    let (at_server, ()) = tokio::join!(server(&mut b, &theirs, Direction::ServerFirst, SOON), strict_client);
    assert!(matches!(at_server, Err(HelloError::Refused { public, by: By::Peer, peer: Some(_) }) if public == refusal));
}

#[tokio::test(start_paused = true)]
async fn attack_row_24_bytes_that_are_no_handshake_and_silence_end_at_both_ends_with_a_named_error() {
    let frame = |payload: &[u8]| wire::frame::encode(payload).unwrap().to_vec();
    let table = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Code::VersionProtocol),
        (b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), Code::VersionProtocol),
        (frame(b"{}"), Code::VersionProtocol),
        (frame(b"LGH1{\"version\":1}"), Code::VersionProtocol),
        (frame(b"LGH1"), Code::VersionProtocol),
        (frame(b"LGH1{}"), Code::VersionUnreadable),
        (Vec::new(), Code::Timeout),
        (vec![0, 0], Code::Timeout),
    ];
    for (bytes, want) in table {
        let ours = hello("auth", "8.0.0");
        let (mut a, mut b) = duplex(65536);
        a.write_all(&bytes).await.unwrap();
        let at_server = server(&mut b, &ours, Direction::ServerFirst, SOON).await;
        assert_eq!(code(&at_server), Some(want), "server: {bytes:?}");

        // `LGH1{}` is a hello without a version, but no answer.
        let want = if want == Code::VersionUnreadable { Code::VersionProtocol } else { want };
        let (mut a, mut b) = duplex(65536);
        b.write_all(&bytes).await.unwrap();
        let at_client = client(&mut a, &ours, Direction::ServerFirst, HelloPolicy::default()).await;
        assert_eq!(code(&at_client), Some(want), "client: {bytes:?}");
    }
    let (mut a, b) = duplex(64);
    drop(b);
    let gone = client(&mut a, &hello("tsh", "8.0.0"), Direction::ServerFirst, HelloPolicy::default()).await;
    assert_eq!(code(&gone), Some(Code::Unavailable));
}

#[tokio::test]
async fn a_hello_that_cannot_be_read_is_answered_with_the_reason() {
    let (mut a, mut b) = duplex(65536);
    write_frame(&mut a, b"LGH1[]", SOON).await.unwrap();
    let _ = server(&mut b, &hello("auth", "8.0.0"), Direction::ServerFirst, SOON).await.unwrap_err();
    let answer: Answer = decode(&read_frame(&mut a, SOON).await.unwrap()).unwrap();
    assert!(matches!(answer.verdict, Verdict::Refuse(public) if public.is(Code::VersionProtocol)));
}
