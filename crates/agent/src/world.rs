//! What the SSH Service needs besides the cluster's cache: who the host is, and where reports go.
//!
//! [`Upstream`] is a trait so that tests see what is reported; [`client::api::Api`] implements it here.

use bytes::Bytes;
use client::{api::Api, host::HostCredentials};
use futures::{Stream, StreamExt, future::BoxFuture};
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::io::AsyncReadExt;
use types::{Code, Event, HostIdentity, Labels, Public, kind::Recording};
use wire::api::{RecordingChunk, RefusedEvent};

/// Bytes of a recording sent at once.
const CHUNK: usize = 256 * 1024;

/// Where reports go.
pub trait Upstream: Send + Sync + 'static {
    /// Delivers events, in order; a repeated event is recognised by its `uid`. Returns those that will never be taken.
    fn events(&self, events: Vec<Event>) -> BoxFuture<'_, Result<Vec<RefusedEvent>, Public>>;
    /// Delivers a recording. May be called again for the same file after a failure.
    fn recording(&self, about: Recording, file: PathBuf) -> BoxFuture<'_, Result<(), Public>>;
}

impl Upstream for Api {
    fn events(&self, events: Vec<Event>) -> BoxFuture<'_, Result<Vec<RefusedEvent>, Public>> {
        Box::pin(async move { self.emit_events(&events).await })
    }
    fn recording(&self, about: Recording, file: PathBuf) -> BoxFuture<'_, Result<(), Public>> {
        Box::pin(async move { self.upload_recording(chunks(about, &file).await?).await })
    }
}

/// A recording in pieces, the last one with the digest of all. A file that cannot be read to its end has no last piece, and
/// is refused by the sink.
async fn chunks(about: Recording, path: &Path) -> Result<impl Stream<Item = RecordingChunk> + Send + use<>, Public> {
    let unreadable =
        |error: std::io::Error| Public::new(Code::RecordingBroken, format!("a recording in the spool cannot be read: {error}"));
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let description = serde_json::to_vec(&about).unwrap_or_default();
    let start = Some((file, Sha256::new(), 0u64));
    let pieces = futures::stream::unfold(start, |state| async {
        let (mut file, mut digest, offset) = state?;
        let mut data = vec![0; CHUNK];
        let len = match file.read(&mut data).await {
            Ok(len) => len,
            Err(error) => {
                tracing::error!(%error, "a recording in the spool cannot be read");
                return None;
            }
        };
        data.truncate(len);
        digest.update(&data);
        let chunk = |sha256: Bytes, last| RecordingChunk { description: Bytes::new(), data: Bytes::from(data), offset, last, sha256 };
        if len == 0 {
            return Some((chunk(Bytes::copy_from_slice(&digest.finalize()), true), None));
        }
        let next = offset.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        Some((chunk(Bytes::new(), false), Some((file, digest, next))))
    });
    Ok(pieces.enumerate().map(move |(number, mut chunk)| {
        if number == 0 {
            chunk.description = description.clone().into();
        }
        chunk
    }))
}

/// Who this host is: changes when its certificates are renewed.
#[derive(Clone, Debug)]
pub struct HostKeys {
    pub identity: HostIdentity,
    /// Labels of the host, static ones and those of its join token.
    pub labels: Labels,
    /// The host's SSH key, and its certificate.
    pub ssh_key: Arc<russh::keys::PrivateKey>,
    pub ssh_certificate: russh::keys::Certificate,
}

impl HostKeys {
    /// What these credentials say; `None` when they are not for an SSH host. Labels of the token win over the host's own.
    pub fn new(credentials: &HostCredentials, own: &Labels) -> Option<Self> {
        let mut labels = own.clone();
        labels.extend(credentials.labels.clone());
        let ssh_certificate = credentials.ssh_certificate.clone()?;
        Some(Self { identity: credentials.identity.clone(), labels, ssh_key: credentials.ssh_private_key.clone(), ssh_certificate })
    }
}
