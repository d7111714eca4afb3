//! `net::listen`: fairness among strangers, deadlines, drain and stop.
//!
//! Linux answers on all of 127.0.0.0/8, so one test can be many sources. A handler echoes, which shows that a connection lives.

use net::{
    listen::{Conn, Limits, Port, accept_loop, bind},
    shutdown::Shutdown,
    turn::Switch,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

const SOON: Duration = Duration::from_secs(10);

struct Server {
    addr: SocketAddr,
    shutdown: Shutdown,
    task: JoinHandle<()>,
}

/// Authenticates whoever sends `k` and then echoes.
async fn echo(conn: Conn) {
    let Conn { mut stream, permit, .. } = conn;
    while let Ok(byte) = stream.read_u8().await {
        if byte == b'k' {
            permit.authenticated();
        }
        if stream.write_u8(byte).await.is_err() {
            break;
        }
    }
}

fn start(limits: Limits) -> Server {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (addr, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
    let task = tokio::spawn(accept_loop(listener, limits, shutdown.clone(), echo));
    Server { addr, shutdown, task }
}

async fn dial_from(server: &Server, source: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(server.addr).await.unwrap()
}

async fn echoes(stream: &mut TcpStream, byte: u8) -> bool {
    let talk = async {
        stream.write_u8(byte).await.ok()?;
        stream.read_u8().await.ok()
    };
    timeout(SOON, talk).await.unwrap() == Some(byte)
}

/// A connection that works before authentication.
async fn stranger(server: &Server, source: [u8; 4]) -> TcpStream {
    let mut stream = dial_from(server, source).await;
    assert!(echoes(&mut stream, b'x').await);
    stream
}

const LIMITS: Limits =
    Limits { max_unauthenticated: 8, max_unauthenticated_per_ip: 6, max_connections: 100, handshake_deadline: Duration::from_secs(60) };

#[tokio::test]
async fn attack_row_24_a_full_pool_cuts_the_oldest_of_the_greediest_and_never_the_newcomer() {
    let server = start(LIMITS);
    let mut modest = stranger(&server, [127, 0, 0, 2]).await;
    let mut other = stranger(&server, [127, 0, 0, 3]).await;
    let mut greedy = Vec::new();
    for _ in 0..6 {
        greedy.push(stranger(&server, [127, 0, 0, 9]).await);
    }
    let mut newcomer = stranger(&server, [127, 0, 0, 4]).await;
    assert!(!echoes(&mut greedy[0], b'x').await, "the oldest of the greediest was not cut");
    for stream in greedy[1..].iter_mut().chain([&mut modest, &mut other, &mut newcomer]) {
        assert!(echoes(stream, b'x').await);
    }
}

#[tokio::test]
async fn attack_row_24_a_thousand_silent_strangers_do_not_keep_a_member_out() {
    let server = start(LIMITS);
    let mut member = dial_from(&server, [127, 0, 0, 2]).await;
    assert!(echoes(&mut member, b'k').await);
    let mut crowd = Vec::new();
    for i in 0..1000u16 {
        crowd.push(dial_from(&server, [127, 0, 1, (i % 20) as u8 + 1]).await);
        if i % 100 == 99 {
            let mut latecomer = dial_from(&server, [127, 0, 0, 3]).await;
            assert!(timeout(Duration::from_secs(1), echoes(&mut latecomer, b'k')).await.unwrap());
        }
    }
    assert!(echoes(&mut member, b'x').await, "an authenticated connection was cut");
}

#[tokio::test]
async fn one_source_cannot_fill_the_pool() {
    let server = start(LIMITS);
    let mut first = stranger(&server, [127, 0, 0, 9]).await;
    let mut rest = Vec::new();
    for _ in 0..6 {
        rest.push(stranger(&server, [127, 0, 0, 9]).await);
    }
    assert!(!echoes(&mut first, b'x').await);
    assert!(echoes(&mut rest[0], b'x').await);
}

#[tokio::test]
async fn attack_row_24_who_is_not_authenticated_by_the_deadline_is_cut() {
    let server = start(Limits { handshake_deadline: Duration::from_millis(300), ..LIMITS });
    let (mut slow, mut member) = (stranger(&server, [127, 0, 0, 2]).await, stranger(&server, [127, 0, 0, 2]).await);
    assert!(echoes(&mut member, b'k').await);
    let cut = timeout(SOON, slow.read_u8()).await.unwrap();
    assert!(cut.is_err());
    assert!(echoes(&mut member, b'x').await);
}

#[tokio::test]
async fn when_all_connections_are_members_a_newcomer_is_refused_and_gets_the_next_free_place() {
    let server = start(Limits { max_connections: 2, ..LIMITS });
    let mut members = Vec::new();
    for _ in 0..2 {
        let mut stream = dial_from(&server, [127, 0, 0, 2]).await;
        assert!(echoes(&mut stream, b'k').await);
        members.push(stream);
    }
    assert!(!echoes(&mut dial_from(&server, [127, 0, 0, 3]).await, b'x').await);
    let mut leaver = members.pop().unwrap();
    leaver.shutdown().await.unwrap();
    assert!(leaver.read_u8().await.is_err());
    timeout(SOON, async { while !echoes(&mut dial_from(&server, [127, 0, 0, 3]).await, b'x').await {} }).await.unwrap();
}

#[tokio::test]
async fn a_drained_listener_takes_nothing_new_and_lets_sessions_end_until_it_is_stopped() {
    let server = start(LIMITS);
    let (mut one, mut two) = (stranger(&server, [127, 0, 0, 2]).await, stranger(&server, [127, 0, 0, 2]).await);
    server.shutdown.drain();
    timeout(SOON, async { while TcpStream::connect(server.addr).await.is_ok() {} }).await.unwrap();
    assert!(echoes(&mut one, b'x').await);
    drop(one);
    assert!(echoes(&mut two, b'x').await);
    server.shutdown.stop();
    timeout(SOON, server.task).await.unwrap().unwrap();
    assert!(!echoes(&mut two, b'x').await);
}

#[tokio::test]
async fn a_drained_listener_ends_by_itself_when_the_last_session_does() {
    let server = start(LIMITS);
    let one = stranger(&server, [127, 0, 0, 2]).await;
    server.shutdown.drain();
    drop(one);
    timeout(SOON, server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_handler_that_panics_does_not_end_the_listener() {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let handler = move |conn: Conn| {
        let first = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
        async move {
            assert!(!first, "on purpose");
            echo(conn).await;
        }
    };
    tokio::spawn(accept_loop(listener, LIMITS, Shutdown::new(), handler));
    assert!(TcpStream::connect(addr).await.unwrap().read_u8().await.is_err());
    assert!(echoes(&mut TcpStream::connect(addr).await.unwrap(), b'x').await);
}

#[tokio::test]
async fn a_port_is_served_in_its_turn_and_what_is_given_at_any_time() {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (addr, shutdown, switch) = (listener.local_addr().unwrap(), Shutdown::new(), Switch::new(false));
    let (give, given) = mpsc::channel(1);
    let port = Port::new(listener, switch.turn(), Some(given));
    let task = tokio::spawn(accept_loop(port, Limits::default(), shutdown.clone(), echo));
    let answers = async |stream: &mut TcpStream, sent: u8| {
        stream.write_u8(sent).await.unwrap();
        timeout(SOON, stream.read_u8()).await.unwrap().unwrap() == sent
    };
    // It waits in the listener's queue; what another process hands over is served meanwhile.
    let mut waiting = TcpStream::connect(addr).await.unwrap();
    waiting.write_u8(b'w').await.unwrap();
    let elsewhere = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut near = TcpStream::connect(elsewhere.local_addr().unwrap()).await.unwrap();
    give.send(elsewhere.accept().await.unwrap().0).await.unwrap();
    assert!(answers(&mut near, b'g').await);
    assert!(waiting.try_read(&mut [0]).is_err(), "it is not our turn");
    switch.set(true);
    assert_eq!(timeout(SOON, waiting.read_u8()).await.unwrap().unwrap(), b'w');
    // Not ours again: those that are served go on.
    switch.set(false);
    let mut late = TcpStream::connect(addr).await.unwrap();
    late.write_u8(b'l').await.unwrap();
    assert!(answers(&mut waiting, b'x').await && answers(&mut near, b'y').await);
    assert!(late.try_read(&mut [0]).is_err());
    shutdown.stop();
    task.await.unwrap();
}
