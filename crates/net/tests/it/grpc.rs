//! `net::grpc`: tonic over connections of ours, without TLS in the way.
//!
//! The service answers every call with a status that names the caller; that is all that is needed to see whether the peer
//! of the connection reaches the handler, and it needs no generated server.

use crate::world::{Cluster, hello};
use futures::future::BoxFuture;
use net::{
    IoStream,
    dial::DialError,
    grpc::{self, Incoming, Peer, Sender, ServerIo},
};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tonic::{Code, Status, body::Body, server::NamedService, transport::Channel};
use tower::Service;
use types::SystemRole;
use wire::api::{PingRequest, auth_client::AuthClient};

const SOON: Duration = Duration::from_secs(5);

/// Answers every call with a status that says who called.
#[derive(Clone)]
struct WhoAmI;

impl NamedService for WhoAmI {
    const NAME: &'static str = "lockgate.v1.Auth";
}
impl Service<http::Request<Body>> for WhoAmI {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().unwrap();
        let name = peer.identity.as_ref().map_or("nobody".into(), |identity| identity.display());
        std::future::ready(Ok(
            Status::already_exists(format!("{name}, {} {}, {}", peer.hello.role, peer.hello.version, peer.addr)).into_http()
        ))
    }
}

async fn ping(channel: &Channel) -> Status {
    AuthClient::new(channel.clone()).max_decoding_message_size(grpc::MAX_MESSAGE).ping(PingRequest::default()).await.unwrap_err()
}

async fn serve(incoming: Incoming) {
    grpc::server().serve_with_incoming(WhoAmI, incoming).await.unwrap();
}

#[tokio::test]
async fn a_handler_finds_the_peer_of_its_connection_and_a_lost_connection_is_dialled_anew() {
    let cluster = Cluster::new("prod");
    let (sender, incoming) = grpc::incoming(4);
    tokio::spawn(serve(incoming));
    let relays: Arc<Mutex<Vec<tokio::task::AbortHandle>>> = Arc::default();
    let (links, identity) = (relays.clone(), Arc::new(cluster.host(SystemRole::Proxy)));
    let channel = grpc::channel(move || connect(sender.clone(), identity.clone(), links.clone()));
    let said = ping(&channel).await;
    assert_eq!(said.code(), Code::AlreadyExists, "{said:?}");
    assert!(said.message().starts_with("node1 (") && said.message().ends_with("proxy 8.0.0, 192.0.2.1:7"), "{said:?}");

    relays.lock().unwrap().pop().unwrap().abort();
    // Until the channel has noticed, a call may fail; it must not stay broken.
    let healed = async { while ping(&channel).await.code() != Code::AlreadyExists {} };
    tokio::time::timeout(SOON, healed).await.unwrap();
    assert_eq!(relays.lock().unwrap().len(), 1);
}

/// A connection through a relay that the test can cut.
fn connect(
    sender: Sender,
    identity: Arc<types::Identity>,
    relays: Arc<Mutex<Vec<tokio::task::AbortHandle>>>,
) -> BoxFuture<'static, Result<IoStream, DialError>> {
    Box::pin(async move {
        let ((client, near), (far, server)) = (tokio::io::duplex(4096), tokio::io::duplex(4096));
        let relay = tokio::spawn(net::copy::splice(near, far, net::copy::Options::default()));
        relays.lock().unwrap().push(relay.abort_handle());
        let addr: SocketAddr = "192.0.2.1:7".parse().unwrap();
        let peer = Peer { identity: Some(identity), hello: Arc::new(hello("proxy", "8.0.0")), addr, spliced: false };
        assert!(sender.send(ServerIo::new(Box::new(server), peer, ())).await);
        Ok(Box::new(client) as IoStream)
    })
}

#[tokio::test]
async fn a_call_that_cannot_connect_says_why() {
    let refuse = || -> BoxFuture<'static, Result<IoStream, DialError>> {
        Box::pin(async {
            let source = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            Err(DialError::Unreachable { addr: "192.0.2.1:3025".into(), source })
        })
    };
    let status = ping(&grpc::channel(refuse)).await;
    let public = grpc::connect_error(&status).unwrap();
    assert!(public.is(types::Code::Unreachable) && public.message.contains("192.0.2.1:3025"), "{public:?}");
    assert!(grpc::connect_error(&Status::unavailable("something else")).is_none());
}
