//! One visit at a Proxy's rescue door: the client's end of `wire::rescue`.
//!
//! Every wait has a deadline; what the Proxy says beyond the protocol is skipped, a bounded number of times. A fetched file is
//! believed by its digest alone, is written beside its name until then, and goes on where an earlier visit broke off. It is written only
//! where nobody else may write: whoever runs this is root, and in a directory of others a link would lead him anywhere, and a file that
//! somebody else holds open could change after its digest was found right.

use client::host::HostCredentials;
use net::{
    IoStream,
    clock::SharedClock,
    dial::{self, DialError},
    frame::{self, FrameError},
    swap::Swap,
    tls::{self, Authorities, TlsError, Trust, client_config},
};
use sha2::Digest as _;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};
use types::{Code, Extra, Public, SystemRole};
use wire::{
    alpn,
    rescue::{Advice, Artifact, BadRescue, Chunk, Fetch, FileName, MAX_FETCH, Metadata, Sha256, Status, ToHost, ToProxy, decode, encode},
    sni,
};

/// For each message. The Proxy may hash a whole release before its first byte.
const DEADLINE: Duration = Duration::from_secs(60);
/// Answers that this release does not know, in a row.
const MAX_UNKNOWN: usize = 16;
/// The largest metadata file that is taken.
const MAX_METADATA: usize = 8 << 20;

/// Why there was no rescue.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Frame(FrameError),
    #[error(transparent)]
    Message(#[from] BadRescue),
    #[error("{0}")]
    Refused(Public),
    #[error("the Proxy answered something else than was asked")]
    Answer,
    #[error("the file {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Place(#[from] BadPlace),
    #[error("{0} has another digest than the Proxy said; it was removed")]
    Digest(FileName),
}

/// Why nothing is written where it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct BadPlace {
    path: PathBuf,
    why: String,
}

impl BadPlace {
    fn at(path: &Path, why: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }
}

impl From<FrameError> for RescueError {
    fn from(error: FrameError) -> Self {
        match error {
            // TLS 1.3: a client hears only now that its certificate was not taken.
            FrameError::Io(source) => match tls::alert(&source) {
                Some(public) => Self::Refused(public),
                None => Self::Frame(FrameError::Io(source)),
            },
            other => Self::Frame(other),
        }
    }
}

impl RescueError {
    /// What an operator may read.
    pub fn public(&self) -> Public {
        let again = "join again with a fresh token: tctl tokens add prints the command";
        match self {
            Self::Refused(public) if public.is(Code::LoginExpired) => {
                Public::new(Code::LoginExpired, "this host's certificate has expired").hint(again)
            }
            Self::Refused(public) if public.is(Code::AccessIdentity) => {
                Public::new(Code::AccessIdentity, "the Proxy does not take this host's certificate").hint(again)
            }
            Self::Refused(public) => public.clone(),
            Self::Dial(error) => error.public(),
            Self::Frame(FrameError::Timeout) => Public::new(Code::Timeout, "the Proxy did not answer in time").hint("try again"),
            Self::Frame(_) => Public::new(Code::Unavailable, "the Proxy closed the connection").hint("try again, then look at its log"),
            Self::Tls(_) => Public::new(Code::Certificate, self.to_string()),
            Self::Message(_) | Self::Answer => Public::new(Code::VersionProtocol, self.to_string()),
            Self::File { .. } => Public::new(Code::Usage, self.to_string()).hint("name another directory with --output"),
            Self::Place(_) => {
                Public::new(Code::Usage, self.to_string()).hint("name a new directory of your own with --output, such as mktemp -d makes")
            }
            Self::Digest(_) => Public::new(Code::MirrorBroken, self.to_string())
                .hint("the mirror or the way to it is damaged: try again, then another Proxy"),
        }
    }
}

/// An open visit.
pub struct Visit {
    stream: IoStream,
}

impl Visit {
    /// Dials a Proxy of the host's own cluster and shows the host's certificate.
    pub async fn open(
        addr: &str,
        credentials: &HostCredentials,
        authorities: Swap<Authorities>,
        clock: &SharedClock,
    ) -> Result<Self, RescueError> {
        let config = client_config(Some(&credentials.tls), Trust::Cluster(authorities), &[alpn::RESCUE], clock)?;
        let name = sni::role_name(&SystemRole::Proxy, credentials.cluster());
        let stream = dial::tls(dial::tcp(addr).await?, addr, config, &name).await?;
        Ok(Self { stream: Box::new(stream) })
    }

    /// Says who asks and hears what to do.
    pub async fn status(&mut self, status: Status) -> Result<Advice, RescueError> {
        self.say(&ToProxy::Status(status)).await?;
        match self.hear().await? {
            (ToHost::Advice(advice), _) => Ok(advice),
            (ToHost::Refused { error, .. }, _) => Err(RescueError::Refused(error)),
            (ToHost::Chunk(_) | ToHost::Unknown, _) => Err(RescueError::Answer),
        }
    }

    /// Fetches a file into the directory, beginning where an earlier try ended; `told` hears how many bytes are there.
    pub async fn fetch(&mut self, artifact: &Artifact, into: &Path, told: &mut (dyn FnMut(u64) + Send)) -> Result<PathBuf, RescueError> {
        let into = own_directory(into)?;
        let part = into.join(format!("{}.part", artifact.name));
        let fetched = self.fetch_part(artifact, into.join(artifact.name.as_str()), part.clone(), told).await;
        // Nothing to go on from next time.
        if fetched.is_err() && fs::metadata(&part).is_ok_and(|left| left.len() == 0) {
            let _ = fs::remove_file(&part);
        }
        fetched
    }

    async fn fetch_part(
        &mut self,
        artifact: &Artifact,
        path: PathBuf,
        part: PathBuf,
        told: &mut (dyn FnMut(u64) + Send),
    ) -> Result<PathBuf, RescueError> {
        let failed = |source| RescueError::File { path: part.clone(), source };
        let mut file = open_part(&part)?;
        let mut have = file.metadata().map_err(failed)?.len();
        if have > artifact.size {
            file.set_len(0).map_err(failed)?;
            have = 0;
        }
        while have < artifact.size {
            let length = MAX_FETCH.min(artifact.size.saturating_sub(have));
            self.say(&ToProxy::Fetch(Fetch { sha256: artifact.sha256, offset: have, length, extra: Extra::new() })).await?;
            loop {
                let (chunk, body) = self.chunk(have).await?;
                if chunk.size != artifact.size || (body.is_empty() && chunk.last) {
                    return Err(RescueError::Answer);
                }
                file.write_all(&body).map_err(failed)?;
                have = have.saturating_add(u64::try_from(body.len()).unwrap_or(u64::MAX));
                told(have);
                if chunk.last {
                    break;
                }
                if have >= artifact.size {
                    return Err(RescueError::Answer);
                }
            }
        }
        file.sync_all().map_err(failed)?;
        if digest_of(&mut file).map_err(failed)? != artifact.sha256 {
            let _ = fs::remove_file(&part);
            return Err(RescueError::Digest(artifact.name.clone()));
        }
        fs::rename(&part, &path).map_err(failed)?;
        Ok(path)
    }

    /// A metadata file, whole.
    pub async fn metadata(&mut self, name: FileName) -> Result<Vec<u8>, RescueError> {
        let mut all = Vec::new();
        loop {
            let have = u64::try_from(all.len()).unwrap_or(u64::MAX);
            self.say(&ToProxy::Metadata(Metadata { name: name.clone(), offset: have, length: MAX_FETCH, extra: Extra::new() })).await?;
            let size = loop {
                let (chunk, body) = self.chunk(u64::try_from(all.len()).unwrap_or(u64::MAX)).await?;
                all.extend(body);
                if all.len() > MAX_METADATA {
                    return Err(RescueError::Answer);
                }
                if chunk.last {
                    break chunk.size;
                }
            };
            let now = u64::try_from(all.len()).unwrap_or(u64::MAX);
            if now >= size {
                return Ok(all);
            }
            if now == have {
                return Err(RescueError::Answer);
            }
        }
    }

    /// The next chunk, which must begin there.
    async fn chunk(&mut self, offset: u64) -> Result<(Chunk, Vec<u8>), RescueError> {
        match self.hear().await? {
            (ToHost::Chunk(chunk), body) if chunk.offset == offset => Ok((chunk, body)),
            (ToHost::Refused { error, .. }, _) => Err(RescueError::Refused(error)),
            (ToHost::Chunk(_) | ToHost::Advice(_) | ToHost::Unknown, _) => Err(RescueError::Answer),
        }
    }

    async fn say(&mut self, message: &ToProxy) -> Result<(), RescueError> {
        Ok(frame::write_frame(&mut self.stream, &encode(message, &[])?, DEADLINE).await?)
    }

    async fn hear(&mut self) -> Result<(ToHost, Vec<u8>), RescueError> {
        for _ in 0..MAX_UNKNOWN {
            let payload = frame::read_frame(&mut self.stream, DEADLINE).await?;
            match decode::<ToHost>(&payload)? {
                // A newer Proxy's words are not for us.
                (ToHost::Unknown, _) => {}
                (known, body) => return Ok((known, body.to_vec())),
            }
        }
        Err(RescueError::Answer)
    }
}

/// The directory itself, without links that somebody may turn; refused if somebody else could change what is written there.
fn own_directory(path: &Path) -> Result<PathBuf, BadPlace> {
    let failed = |error: io::Error| BadPlace::at(path, error);
    let itself = fs::canonicalize(path).map_err(failed)?;
    let about = fs::symlink_metadata(&itself).map_err(failed)?;
    if !about.is_dir() {
        return Err(BadPlace::at(path, "it is no directory"));
    }
    if about.uid() != rustix::process::geteuid().as_raw() {
        return Err(BadPlace::at(path, "the directory belongs to another user"));
    }
    if about.mode() & 0o022 != 0 {
        return Err(BadPlace::at(path, "other users may write in the directory"));
    }
    Ok(itself)
}

/// The file as far as it is there: a plain file of our own under this name alone.
fn open_part(path: &Path) -> Result<File, BadPlace> {
    let failed = |error: io::Error| BadPlace::at(path, error);
    let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).create(true).append(true).mode(0o600).custom_flags(flags).open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() || about.nlink() != 1 || about.uid() != rustix::process::geteuid().as_raw() {
        return Err(BadPlace::at(path, "it is no plain file of this user's own"));
    }
    Ok(file)
}

/// Of the very file that was written, whatever its name leads to by now.
fn digest_of(file: &mut File) -> io::Result<Sha256> {
    file.seek(SeekFrom::Start(0))?;
    let (mut hash, mut block) = (sha2::Sha256::new(), vec![0; 256 * 1024]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(Sha256::new(hash.finalize().into())),
            read => hash.update(block.get(..read).unwrap_or_default()),
        }
    }
}
