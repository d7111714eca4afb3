//! An agent as the Proxy sees it: a control connection, and dial-backs when it is told.

use crate::{
    ca::id,
    rig::{Rig, SOON, version},
};
use client::host::HostCredentials;
use net::{
    IoStream,
    frame::{read_frame, write_frame},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use types::{Extra, SystemRole};
use wire::{
    alpn,
    hello::Hello,
    tunnel::{DataHello, Start, ToAgent, ToProxy, decode, encode},
};

pub(crate) struct FakeAgent {
    pub(crate) credentials: HostCredentials,
    pub(crate) control: IoStream,
}

impl FakeAgent {
    /// Registers host `n` and waits for the welcome.
    pub(crate) async fn start(rig: &Rig, n: u128, boot: &str) -> Self {
        let mut agent = Self::connect(rig, n).await;
        agent.register(n, boot).await;
        assert!(matches!(agent.told().await, Some(ToAgent::Welcome { .. })));
        agent
    }

    pub(crate) async fn connect(rig: &Rig, n: u128) -> Self {
        let credentials = rig.cluster.member(id(n), &format!("node{n}"), SystemRole::Node, &[]);
        let control = rig.greet(&credentials.tls, alpn::TUNNEL, &Hello::ours(&version(), "node")).await.unwrap();
        Self { credentials, control }
    }

    pub(crate) async fn register(&mut self, n: u128, boot: &str) {
        self.say(&ToProxy::Register { host_id: id(n), boot_id: boot.into(), extra: Extra::new() }).await;
    }

    pub(crate) async fn say(&mut self, message: &ToProxy) {
        write_frame(&mut self.control, &encode(message), SOON).await.unwrap();
    }

    /// The next message that is not a ping; `None` when the Proxy hung up.
    pub(crate) async fn told(&mut self) -> Option<ToAgent> {
        loop {
            let message = decode(&read_frame(&mut self.control, SOON).await.ok()?).unwrap();
            match message {
                ToAgent::Ping { seq } => self.say(&ToProxy::Pong { seq }).await,
                other => return Some(other),
            }
        }
    }

    /// The ticket of the next session.
    pub(crate) async fn ticket(&mut self) -> String {
        loop {
            match self.told().await.expect("an order") {
                ToAgent::Open { ticket, client_addr } => {
                    assert!(client_addr.starts_with("127.0.0.1:"));
                    return ticket;
                }
                ToAgent::Spare { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// A data connection.
    pub(crate) async fn data(&self, rig: &Rig, hello: &DataHello) -> IoStream {
        dial_back(rig, &self.credentials, hello).await
    }

    /// Keeps a spare connection ready; its session gets an echo.
    pub(crate) async fn spare(&self, rig: &Rig, name: &'static str) {
        let mut stream = self.data(rig, &DataHello::Spare { boot_id: None }).await;
        rig.group.spawn("spare", async move {
            let Ok(start) = read_frame(&mut stream, SOON).await else { return };
            let start: Start = decode(&start).unwrap();
            assert!(start.client_addr.starts_with("127.0.0.1:"));
            echo(stream, name).await;
        });
    }

    /// Serves the session of a ticket.
    pub(crate) async fn answer(&self, rig: &Rig, ticket: &str, name: &'static str) {
        let stream = self.data(rig, &DataHello::Ticket { ticket: ticket.into() }).await;
        rig.group.spawn("session", echo(stream, name));
    }

    /// Serves every session with an echo, from now on.
    pub(crate) fn serve(mut self, rig: &std::sync::Arc<Rig>, name: &'static str) {
        let weak = std::sync::Arc::downgrade(rig);
        let credentials = std::sync::Arc::new(self.credentials.clone());
        rig.group.spawn("agent", async move {
            while let Some(told) = self.told().await {
                let Some(rig) = weak.upgrade() else { return };
                if let ToAgent::Open { ticket, .. } = told {
                    let (group, credentials) = (rig.group.clone(), credentials.clone());
                    group.spawn("session", async move {
                        let stream = dial_back(&rig, &credentials, &DataHello::Ticket { ticket }).await;
                        drop(rig);
                        echo(stream, name).await;
                    });
                }
            }
        });
    }
}

async fn dial_back(rig: &Rig, credentials: &HostCredentials, hello: &DataHello) -> IoStream {
    let mut stream = rig.greet(&credentials.tls, alpn::TUNNEL_DATA, &Hello::ours(&version(), "node")).await.unwrap();
    write_frame(&mut stream, &encode(hello), SOON).await.unwrap();
    stream
}

/// Sends back what comes, with the name in front, until the end.
pub(crate) async fn echo(mut stream: IoStream, name: &str) {
    let mut buffer = vec![0; 65536];
    let mut first = true;
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let head = if std::mem::take(&mut first) { format!("{name}:") } else { String::new() };
        if stream.write_all(&[head.as_bytes(), &buffer[..count]].concat()).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

/// Whether the other end has hung up without a byte.
pub(crate) async fn hung_up(stream: &mut IoStream) -> bool {
    let read = tokio::time::timeout(SOON, stream.read_u8()).await.expect("an end");
    read.is_err()
}
