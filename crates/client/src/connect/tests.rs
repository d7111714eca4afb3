//! A Proxy that answers, refuses, or is not one.

use super::*;
use crate::testing::Cluster;
use net::{
    clock::SystemClock,
    task::Group,
    tls::{self, Certificates, ClientAuth},
};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use types::Time;

fn host_id() -> HostId {
    HostId::from_uuid(uuid::Uuid::from_u128(9))
}

/// Answers every dial with what `answer` makes of it, then echoes one byte.
async fn proxy(cluster: &Cluster, answer: fn(Dial) -> Dialed) -> (SocketAddr, Group) {
    let clock = SystemClock::shared();
    let host = cluster.host(HostId::from_uuid(uuid::Uuid::from_u128(2)), "proxy1", &[SystemRole::Proxy]);
    let authorities = cluster.trust().swap().unwrap();
    let config = tls::server_config(Certificates::fixed(&host.tls), ClientAuth::Required, &authorities, &[alpn::SSH], &clock).unwrap();
    let listener = net::listen::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let addr = listener.local_addr().unwrap();
    let group = Group::new("test proxy");
    group.spawn("accept", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut accepted) = tls::accept(stream, config.clone(), &authorities, &clock, tls::DEADLINE).await else { continue };
            let ours = Hello::ours(&Version::new(8, 0, 0), "proxy");
            let Ok(_) = net::hello::server(&mut accepted.stream, &ours, Direction::ServerFirst, tls::DEADLINE).await else { continue };
            let mut stream = accepted.stream;
            let dial: Dial = decode(&read_frame(&mut stream, DIAL_DEADLINE).await.unwrap()).unwrap();
            write_frame(&mut stream, &encode(&answer(dial)), DIAL_DEADLINE).await.unwrap();
            if let Ok(byte) = stream.read_u8().await {
                stream.write_u8(byte).await.unwrap();
                stream.flush().await.unwrap();
            }
        }
    });
    (addr, group)
}

fn now() -> Time {
    std::time::SystemTime::now().into()
}

async fn dial(cluster: &Cluster, addr: SocketAddr) -> Result<Node, Public> {
    let alice = cluster.user("alice", &["root"]);
    let dialer = alice.dialer(&addr.to_string(), "tsh", &Version::new(8, 0, 0), &SystemClock::shared()).unwrap();
    Ok(dialer.dial(&"node1".parse().unwrap(), None).await?)
}

#[tokio::test]
async fn after_the_answer_the_stream_is_the_hosts() {
    let demo = Cluster::new("demo", now());
    let (addr, _group) = proxy(&demo, |dial| match dial.target {
        Target::Name(hostname) => Dialed::Connected { host_id: host_id(), hostname },
        Target::Id(_) => panic!("a name was asked for"),
    })
    .await;
    let mut node = dial(&demo, addr).await.unwrap();
    assert_eq!((node.host_id, node.hostname.as_str()), (host_id(), "node1"));
    node.stream.write_u8(7).await.unwrap();
    node.stream.flush().await.unwrap();
    assert_eq!(node.stream.read_u8().await.unwrap(), 7);
}

#[tokio::test]
async fn a_refusal_arrives_whole() {
    let demo = Cluster::new("demo", now());
    let (addr, _group) = proxy(&demo, |_| Dialed::Refused(Public::new(Code::NodeUnknown, "no host \"node1\"").hint("see tsh ls"))).await;
    assert_eq!(dial(&demo, addr).await.unwrap_err(), Public::new(Code::NodeUnknown, "no host \"node1\"").hint("see tsh ls"));
}

#[tokio::test]
async fn attack_row_12_a_proxy_of_another_cluster_hears_nothing() {
    let (demo, evil) = (Cluster::new("demo", now()), Cluster::new("demo", now()));
    let (addr, _group) = proxy(&evil, |_| panic!("it was asked")).await;
    assert!(dial(&demo, addr).await.unwrap_err().is(Code::Certificate));
}
