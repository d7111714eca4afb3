//! `ssh -A`: a socket on this host that leads to the user's own SSH agent.
//!
//! The socket stands in a fresh directory that only root can change and belongs to the account; both vanish with the
//! session. Offered only with the role option `forward_agent`.

use super::account::Account;
use russh::server::Handle;
use std::{
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tokio::net::UnixListener;

/// The most agent connections at once.
const MOST: usize = 16;

/// A listening socket; removed when dropped.
#[derive(Debug)]
pub(crate) struct AgentSocket {
    dir: PathBuf,
    listener: UnixListener,
}

impl AgentSocket {
    pub(crate) fn open(account: &Account) -> io::Result<Self> {
        let dir = std::env::temp_dir().join(format!("lockgate-agent-{}", uuid::Uuid::new_v4().simple()));
        // Fails when the name is taken, by a link too.
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let listener = UnixListener::bind(dir.join("agent.sock"));
        let socket = Self { dir, listener: listener? };
        std::fs::set_permissions(socket.path(), std::fs::Permissions::from_mode(0o600))?;
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(socket.path(), Some(account.uid), Some(account.gid))?;
            std::fs::set_permissions(&socket.dir, std::fs::Permissions::from_mode(0o711))?;
        }
        Ok(socket)
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::join(&self.dir, "agent.sock")
    }

    /// Leads each connection to the client's agent, until dropped.
    pub(crate) async fn serve(&self, handle: &Handle) {
        let tasks = net::task::Group::new("agent-forward");
        while let Ok((local, _)) = self.listener.accept().await {
            if tasks.len() >= MOST {
                continue;
            }
            match handle.channel_open_agent().await {
                Ok(channel) => tasks.spawn("agent", async move {
                    let _stats = net::copy::splice(local, channel.into_stream(), net::copy::Options::default()).await;
                }),
                Err(error) => tracing::debug!(%error, "the client opens no agent channel"),
            }
        }
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        let _already_gone = std::fs::remove_dir_all(&self.dir);
    }
}
