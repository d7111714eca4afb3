//! `ssh -L`: a connection from this host to an address the user named.
//!
//! Offered only with the role option `port_forwarding`. It dials as any program the user could run here would, and it is
//! the *user's* wish, after the decision that he may use this host; the Proxy never dials an address so. Each is audited.

use super::{Connection, account::Account, handler::Granted, input::Input, session::send};
use bytes::BytesMut;
use rules::{Permit, permit::OpenChannel};
use russh::{
    Channel, ChannelOpenFailure,
    server::{ChannelOpenHandle, Msg},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use types::EventKind;

const DEADLINE: Duration = Duration::from_secs(10);

/// One forwarded connection to be.
pub(crate) struct Forward {
    pub(crate) connection: Arc<Connection>,
    pub(crate) granted: Arc<Granted>,
    /// Proof that the policy allows this channel.
    pub(crate) permit: Permit<OpenChannel>,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) channel: Channel<Msg>,
    pub(crate) reply: ChannelOpenHandle,
    pub(crate) input: Arc<Input>,
    /// Dropped at the end, or by the handler when the client closed the channel.
    pub(crate) running: mpsc::Receiver<()>,
}

/// Dials, tells the client, and copies until both sides have ended.
pub(crate) async fn run(forward: Forward) {
    let Forward { connection, granted, permit, host, port, channel, reply, input, mut running } = forward;
    // A login without an account here has no programs that could dial, so it dials nothing either (attack table, row 8).
    let dialled = match Account::find(&granted.entered.login).await {
        Err(error) => Err(error.to_string()),
        Ok(_) => match tokio::time::timeout(DEADLINE, TcpStream::connect((host.as_str(), port))).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        },
    };
    let (stream, error) = match dialled {
        Ok(stream) => (Some(stream), None),
        Err(error) => (None, Some(error)),
    };
    let shown: String = host.chars().take(255).flat_map(char::escape_default).collect();
    let mut event = connection
        .event(EventKind::PortForward)
        .with("user", granted.entered.identity.user.as_str())
        .with("login", granted.entered.login.as_str())
        .with("channel", permit.kind.as_str())
        .with("addr", format!("{shown}:{port}"))
        .with("success", stream.is_some());
    if let Some(error) = &error {
        event = event.with("error", error.as_str());
    }
    connection.shared.audit.emit(event).await;
    let Some(mut stream) = stream else {
        return reply.reject(ChannelOpenFailure::Other { code: 2, reason: error.unwrap_or_default() }).await;
    };
    let _slower_without = stream.set_nodelay(true);
    reply.accept().await;
    let (reads, write) = channel.split();
    // Bytes come by callback (`input`). A reader that is kept and not read stops the whole connection after a few messages.
    drop(reads);
    let (mut from, mut to) = stream.split();
    let flow = &connection.flow;
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(32 * 1024);
            if from.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                break;
            }
            if send(&write, None, buffer.split().freeze(), flow).await.is_err() {
                break;
            }
        }
        let _gone = write.eof().await;
    };
    let up = async {
        while let Ok(Some(bytes)) = input.next().await {
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        input.abandon();
        let _gone = to.shutdown().await;
    };
    let mut over = connection.over.subscribe();
    tokio::select! {
        ((), ()) = async { tokio::join!(down, up) } => {}
        _ = running.recv() => {}
        _ = over.wait_for(Option::is_some) => {}
    }
    let _gone = tokio::time::timeout(DEADLINE, write.close()).await;
}
