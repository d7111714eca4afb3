//! `net::peek`: what a client asks for, found without taking its bytes; what is not TLS, named.
//!
//! The client's first message is made by rustls itself, with its post-quantum key share, and cut in every awkward place.

use crate::world::Cluster;
use net::{
    peek::{MAX_CLIENT_HELLO, PeekError, Rewound, Spoken, peek},
    tls::{Certificates, ClientAuth, Trust, accept, client_config, server_config},
};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use types::SystemRole;
use wire::alpn;

const SOON: Duration = Duration::from_secs(5);

fn client_hello(cluster: &Cluster, protocols: &[&[u8]]) -> Vec<u8> {
    let config = client_config(None, Trust::Cluster(cluster.trusted.clone()), protocols, &cluster.clock()).unwrap();
    let name = cluster.name_of(SystemRole::Auth).try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn a_post_quantum_client_hello_in_two_segments_is_read_and_given_back() {
    let cluster = Cluster::new("prod");
    let bytes = client_hello(&cluster, &[alpn::AUTH, alpn::SSH]);
    assert!(bytes.len() > 1300, "no post-quantum key share in {} bytes", bytes.len());
    for cut in [1, 4, 5, 6, 517, 1200, bytes.len() - 1] {
        let (mut a, b) = duplex(cut);
        let sent = bytes.clone();
        let sender = async {
            a.write_all(&sent).await.unwrap();
            a.write_all(b"and more").await.unwrap();
            drop(a);
        };
        let receiver = async {
            let (wanted, mut stream) = peek(b, SOON).await.unwrap();
            assert_eq!(wanted.server_name, Some(cluster.name_of(SystemRole::Auth)));
            assert_eq!(wanted.alpn, [alpn::AUTH, alpn::SSH]);
            assert!(wanted.offers(alpn::SSH) && !wanted.offers(alpn::HTTP));
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            assert!(all.starts_with(&bytes) && all.ends_with(b"and more"), "cut at {cut}");
        };
        tokio::join!(sender, receiver);
    }
}

#[tokio::test]
async fn tls_can_be_served_on_a_stream_that_was_peeked_at() {
    let cluster = Cluster::new("prod");
    let certificates = Certificates::fixed(&cluster.host_cert(SystemRole::Proxy));
    let serving = server_config(certificates, ClientAuth::Optional, &cluster.trusted, &[alpn::SSH], &cluster.clock()).unwrap();
    let calling =
        client_config(Some(&cluster.alice_cert()), Trust::Cluster(cluster.trusted.clone()), &[alpn::SSH], &cluster.clock()).unwrap();
    let (a, b) = duplex(700);
    let name = cluster.name_of(SystemRole::Proxy);
    let server = async {
        let (_, stream) = peek(b, SOON).await.unwrap();
        let mut accepted = accept(stream, serving, &cluster.trusted, &cluster.clock(), SOON).await.unwrap();
        assert_eq!(accepted.alpn(), Some(alpn::SSH));
        assert_eq!(accepted.identity, Some(cluster.alice()));
        accepted.stream.write_all(b"hi").await.unwrap();
        accepted.stream.flush().await.unwrap();
    };
    let client = async {
        let mut stream = net::dial::tls(a, "pipe", calling, &name).await.unwrap();
        let mut got = [0; 2];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hi");
    };
    tokio::join!(server, client);
}

#[tokio::test(start_paused = true)]
async fn attack_row_24_what_is_not_tls_is_named_and_nothing_is_waited_for_or_held_without_bound() {
    let mut endless = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
    endless.resize(3 * MAX_CLIENT_HELLO, 0);
    type Check = fn(&PeekError) -> bool;
    let table: [(&[u8], bool, Check); 10] = [
        (b"SSH-2.0-OpenSSH_9.9\r\n", false, |e| matches!(e, PeekError::NotTls(Spoken::Ssh))),
        (b"GET / HTTP/1.1\r\n", false, |e| matches!(e, PeekError::NotTls(Spoken::Http))),
        (b"\0\0\0\x08", false, |e| matches!(e, PeekError::NotTls(Spoken::Other))),
        (b"SS", true, |e| matches!(e, PeekError::Closed)),
        (b"SS", false, |e| matches!(e, PeekError::Timeout)),
        (b"", true, |e| matches!(e, PeekError::Closed)),
        (b"", false, |e| matches!(e, PeekError::Timeout)),
        (b"\x16\x03\x01", false, |e| matches!(e, PeekError::Timeout)),
        (b"\x16\x03\x01\x00\x02\x01\x02", true, |e| matches!(e, PeekError::Malformed(_) | PeekError::Closed)),
        (&endless, false, |e| matches!(e, PeekError::TooLong | PeekError::Malformed(_))),
    ];
    for (bytes, close, check) in table {
        let (mut a, b) = duplex(1 << 20);
        a.write_all(bytes).await.unwrap();
        if close {
            a.shutdown().await.unwrap();
        }
        let error = peek(b, SOON).await.unwrap_err();
        assert!(check(&error), "{:?}: {error:?}", bytes.get(..20).unwrap_or(bytes));
    }
}

#[tokio::test]
async fn a_plain_http_client_is_told_to_use_https() {
    let (mut a, b) = duplex(4096);
    a.write_all(b"GET /webapi/ping HTTP/1.1\r\n\r\n").await.unwrap();
    peek(b, SOON).await.unwrap_err();
    let mut answer = String::new();
    a.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 400 ") && head.contains(&format!("Content-Length: {}", body.len())), "{answer}");
    assert!(body.contains("https://"));
}

#[tokio::test]
async fn a_rewound_stream_reads_its_prefix_in_any_pieces_and_then_the_rest() {
    let (mut a, b) = duplex(64);
    a.write_all(b"world").await.unwrap();
    drop(a);
    let mut stream = Rewound::new("hello ".into(), b);
    let mut first = [0; 4];
    stream.read_exact(&mut first).await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!((&first, rest.as_str()), (b"hell", "o world"));
}
