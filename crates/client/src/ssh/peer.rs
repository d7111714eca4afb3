//! An SSH server for the client's tests: it does what the command's name says.

use net::task::Group;
use russh::{
    Channel, ChannelMsg, Sig,
    keys::{Certificate, PrivateKey},
    server::{self, Auth, ChannelOpenHandle, Handle, Msg, Session},
};
use std::{borrow::Cow, sync::Arc, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};

/// How the server differs from a good one.
#[derive(Clone, Default)]
pub(super) struct Server {
    pub(super) key: Option<PrivateKey>,
    pub(super) certificate: Option<Certificate>,
    pub(super) not_strict: bool,
    /// Refuses the login, with these words.
    pub(super) refuses: Option<&'static str>,
    pub(super) window: u32,
}

pub(super) struct Handler {
    server: Server,
    group: Group,
}

impl Server {
    fn config(&self) -> server::Config {
        let mut preferred = super::preferred();
        let strict = [russh::kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER];
        let exchanges = [russh::kex::MLKEM768X25519_SHA256, russh::kex::CURVE25519];
        preferred.kex = Cow::Owned(exchanges.into_iter().chain(strict.into_iter().filter(|_| !self.not_strict)).collect());
        server::Config {
            keys: self.key.iter().cloned().collect(),
            certificates: self.certificate.iter().cloned().collect(),
            preferred,
            auth_rejection_time: Duration::ZERO,
            window_size: if self.window == 0 { 2 << 20 } else { self.window },
            ..server::Config::default()
        }
    }

    /// Serves one connection to its end.
    pub(super) async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let config = Arc::new(self.config());
        if let Ok(running) = server::run_stream(config, stream, Handler { server: self, group: Group::new("test ssh server") }).await {
            let _ = running.await;
        }
    }
}

impl server::Handler for Handler {
    type Error = russh::Error;

    async fn authentication_banner(&mut self) -> Result<Option<String>, russh::Error> {
        Ok(self.server.refuses.map(str::to_owned))
    }

    async fn auth_publickey_offered(&mut self, _: &str, _: server::PublicKeyOffer<'_>) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn auth_openssh_certificate(&mut self, user: &str, certificate: &Certificate) -> Result<Auth, russh::Error> {
        let fits = certificate.valid_principals().iter().any(|principal| principal == user);
        Ok(if fits && self.server.refuses.is_none() { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        open: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        open.accept().await;
        let handle = session.handle();
        self.group.spawn("session", async move { run(channel, handle).await });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        _: u32,
        _: &str,
        _: u32,
        open: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        if host != "echo" {
            open.reject(russh::ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        }
        open.accept().await;
        self.group.spawn("echo", async move {
            let (mut read, mut write) = tokio::io::split(channel.into_stream());
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
        });
        Ok(())
    }

    async fn exec_request(&mut self, channel: russh::ChannelId, command: &[u8], session: &mut Session) -> Result<(), russh::Error> {
        if command == b"refuse" { session.channel_failure(channel) } else { session.channel_success(channel) }
    }
    async fn shell_request(&mut self, channel: russh::ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
    async fn pty_request(
        &mut self,
        channel: russh::ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(russh::Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
}

/// Waits for what is run, then does it.
async fn run(mut channel: Channel<Msg>, handle: Handle) {
    let mut seen = Vec::new();
    let command = loop {
        match channel.wait().await {
            Some(ChannelMsg::Exec { command, .. }) => break String::from_utf8(command).unwrap(),
            Some(ChannelMsg::RequestShell { .. }) => break "shell".to_owned(),
            Some(ChannelMsg::SetEnv { variable_name, variable_value, .. }) => seen.push(format!("{variable_name}={variable_value}")),
            Some(ChannelMsg::RequestPty { term, col_width, row_height, .. }) => seen.push(format!("{term} {col_width}x{row_height}")),
            Some(_) => {}
            None => return,
        }
    };
    let id = channel.id();
    match command.as_str() {
        "cat" => {
            while let Some(message) = channel.wait().await {
                match message {
                    ChannelMsg::Data { data } => channel.data_bytes(data).await.unwrap(),
                    ChannelMsg::Eof => break,
                    _ => {}
                }
            }
            channel.exit_status(0).await.unwrap();
        }
        "fail" => {
            channel.data_bytes(&b"out"[..]).await.unwrap();
            channel.extended_data_bytes(1, &b"err"[..]).await.unwrap();
            channel.exit_status(3).await.unwrap();
        }
        // Status first, output after: the status must not cut the output off.
        "early" => {
            channel.exit_status(7).await.unwrap();
            channel.data_bytes(vec![b'x'; 300_000]).await.unwrap();
        }
        "die" => handle.exit_signal_request(id, Sig::KILL, true, "killed\u{7}".into(), String::new()).await.unwrap(),
        "shell" => {
            channel.data_bytes(seen.join(",").into_bytes()).await.unwrap();
            while let Some(message) = channel.wait().await {
                match message {
                    ChannelMsg::WindowChange { col_width, .. } => channel.data_bytes(format!(" {col_width}").into_bytes()).await.unwrap(),
                    ChannelMsg::Signal { signal } => {
                        handle.exit_signal_request(id, signal, false, String::new(), String::new()).await.unwrap();
                        break;
                    }
                    _ => {}
                }
            }
        }
        "vanish" => {
            channel.data_bytes(&b"half"[..]).await.unwrap();
            handle.disconnect(russh::Disconnect::ByApplication, "a lock is in force".into(), String::new()).await.unwrap();
            return;
        }
        "intrude" => {
            let opened = handle.channel_open_forwarded_tcpip("a", 1, "b", 2).await.is_ok();
            let agent = handle.channel_open_agent().await.is_ok();
            let session = handle.channel_open_session().await.is_ok();
            let x11 = handle.channel_open_x11("a", 1).await.is_ok();
            let direct = handle.channel_open_direct_tcpip("a", 1, "b", 2).await.is_ok();
            channel.exit_status(u32::from(opened || agent || session || x11 || direct)).await.unwrap();
        }
        _ => {}
    }
    let _ = channel.eof().await;
    let _ = channel.close().await;
}
