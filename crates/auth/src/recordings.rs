//! The sink of session recordings: one file and one description per session, complete or not there at all.
//!
//! An upload has a file of its own, `<session>.<host>.<auth>-<random>.up`, so that two of one recording never write into each
//! other. Interrupted it rests as `<session>.<host>.part`, where the next may go on at a byte it names. It becomes
//! `<session>.rec` only after the whole file was read back: its digest is what the uploader said, its frames hold
//! (`wire::recording`), its header names the session and the uploading host. An upload that was finished before is
//! acknowledged again, another of that session refused. Who may list and read is decided in `rules::documents`; here are
//! only files, on blocking threads.

pub(crate) mod peers;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};
use tokio::sync::watch;
use types::{HostId, SessionId, Time, kind::Recording};
use wire::recording::{BadRecording, Reader, What};

/// The most bytes of one recording. The agent stops recording an exec's bulk output long before.
pub(crate) const MAX_RECORDING: u64 = 8 << 30;
/// Descriptions kept in memory.
const CACHED: usize = 100_000;
/// Locked by whoever puts a recording in place.
const LOCK: &str = ".publishing";
/// Holds the directory's own name.
const NAME: &str = ".directory";
/// Bytes read at once.
pub(crate) const PIECE: usize = 256 * 1024;

/// Why a recording was not taken or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordingError {
    #[error("no recording of that session")]
    NotFound,
    #[error("the upload goes on at byte {asked}, but {have} are here")]
    Gap { asked: u64, have: u64 },
    #[error("the recording has more than {MAX_RECORDING} bytes")]
    TooLarge,
    #[error("the recording's digest is not the one that was sent")]
    Digest,
    #[error("the recording does not say whose session it is")]
    NoHeader,
    #[error("the recording is of another session or host than its description")]
    Disagrees,
    #[error("another recording of that session is here already")]
    Exists,
    #[error(transparent)]
    Bad(#[from] BadRecording),
    #[error("the recordings' directory failed: {0}")]
    Io(#[from] io::Error),
    #[error("the work was interrupted")]
    Interrupted,
}

/// The directory. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Recordings {
    dir: Arc<PathBuf>,
    cache: Arc<Mutex<BTreeMap<SessionId, Recording>>>,
    /// Held while a recording is put in place; other processes that share the directory are kept out by a lock on a file.
    publishing: Arc<Mutex<()>>,
    /// The Auth Service that writes here, in the names of its uploads.
    owner: HostId,
    name: Arc<OnceLock<uuid::Uuid>>,
    /// How many recordings were here at the start, and those that came since.
    held: Arc<watch::Sender<u64>>,
}

/// An upload in progress.
pub(crate) struct Upload {
    sink: Recordings,
    session: SessionId,
    host: HostId,
    file: File,
    /// Nobody else's.
    path: PathBuf,
    /// Where it rests when it is interrupted.
    resting: PathBuf,
    len: u64,
}

/// A recording that is in its place.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) recording: Recording,
    /// It was not there before.
    pub(crate) fresh: bool,
}

impl Recordings {
    /// Uses that directory, which must exist and may be shared with other Auth Services. Uploads that the last process of this
    /// one left behind go to rest.
    pub(crate) fn new(dir: &Path, owner: HostId) -> Self {
        let mut held = 0u64;
        for path in fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().and_then(|name| name.to_str());
            held = held.saturating_add(u64::from(name.is_some_and(|name| name.ends_with(".rec"))));
            let resting = name.and_then(|name| name.strip_suffix(".up"));
            if let Some((stem, upload)) = resting.and_then(|name| name.rsplit_once('.'))
                && upload.starts_with(&owner.to_string())
                && let Err(error) = fs::rename(&path, path.with_file_name(format!("{stem}.part")))
            {
                tracing::warn!(file = %path.display(), %error, "an interrupted upload could not be put aside");
            }
        }
        let held = Arc::new(watch::Sender::new(held));
        Self { dir: Arc::new(dir.to_owned()), cache: Arc::default(), publishing: Arc::default(), owner, name: Arc::default(), held }
    }

    /// How many recordings are here, as far as this process knows.
    pub(crate) fn held(&self) -> watch::Receiver<u64> {
        self.held.subscribe()
    }

    /// The directory's name, by which those who share it know that they do: a random one, made by the first. Blocks.
    pub(crate) fn directory(&self) -> Result<uuid::Uuid, RecordingError> {
        if let Some(known) = self.name.get() {
            return Ok(*known);
        }
        let _alone = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let _shared = self.alone()?;
        let path = self.dir.join(NAME);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (fresh, made) = (self.dir.join(format!("{NAME}.new")), uuid::Uuid::new_v4().to_string());
                let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
                file.write_all(made.as_bytes())?;
                file.sync_all()?;
                fs::rename(&fresh, &path)?;
                made
            }
            Err(error) => return Err(error.into()),
        };
        let unreadable = |_| io::Error::other(format!("{} does not hold the directory's name", path.display()));
        let name = text.trim().parse::<uuid::Uuid>().map_err(unreadable)?;
        Ok(*self.name.get_or_init(|| name))
    }

    /// Keeps other processes that share the directory out, until the file is dropped.
    fn alone(&self) -> io::Result<File> {
        let shared = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.dir.join(LOCK))?;
        shared.lock()?;
        Ok(shared)
    }

    fn file(&self, session: SessionId) -> PathBuf {
        self.dir.join(format!("{session}.rec"))
    }
    fn sidecar(&self, session: SessionId) -> PathBuf {
        self.dir.join(format!("{session}.json"))
    }

    /// Whether this session's recording is complete.
    pub(crate) fn has(&self, session: SessionId) -> bool {
        self.file(session).exists()
    }

    /// Begins or continues an upload at that byte. Blocks.
    pub(crate) fn upload(&self, session: SessionId, host: HostId, offset: u64) -> Result<Upload, RecordingError> {
        let resting = self.dir.join(format!("{session}.{host}.part"));
        let path = self.dir.join(format!("{session}.{host}.{}-{}.up", self.owner, uuid::Uuid::new_v4().simple()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        if offset == 0 {
            let file = options.create_new(true).open(&path)?;
            return Ok(Upload { sink: self.clone(), session, host, file, path, resting, len: 0 });
        }
        // Of two that go on with the same rest one has it, and the other begins anew.
        match fs::rename(&resting, &path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(RecordingError::Gap { asked: offset, have: 0 }),
            Err(error) => return Err(error.into()),
        }
        let file = options.open(&path)?;
        let have = file.metadata()?.len();
        let upload = Upload { sink: self.clone(), session, host, file, path, resting, len: have };
        if offset > have {
            return Err(RecordingError::Gap { asked: offset, have });
        }
        upload.file.set_len(offset)?;
        let mut upload = upload;
        upload.len = offset;
        Ok(upload)
    }

    /// The description of a finished recording.
    pub(crate) fn describe(&self, session: SessionId) -> Result<Recording, RecordingError> {
        if let Some(known) = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&session) {
            return Ok(known.clone());
        }
        let bytes = match fs::read(self.sidecar(session)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(RecordingError::NotFound),
            Err(error) => return Err(error.into()),
        };
        if !self.has(session) {
            return Err(RecordingError::NotFound);
        }
        let recording: Recording = serde_json::from_slice(&bytes).map_err(|error| BadRecording::Header(error.to_string()))?;
        self.remember(&recording);
        Ok(recording)
    }

    fn remember(&self, recording: &Recording) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.insert(recording.session, recording.clone());
        if cache.len() > CACHED {
            cache.pop_first();
        }
    }

    /// Finished recordings that pass, newest first. Session ids sort by time.
    pub(crate) fn list(&self, limit: usize, passes: impl Fn(&Recording) -> bool) -> Result<Vec<Recording>, RecordingError> {
        let mut sessions: Vec<SessionId> = Vec::new();
        for entry in fs::read_dir(&*self.dir)? {
            let name = entry?.file_name();
            sessions.extend(name.to_str().and_then(|name| name.strip_suffix(".rec")).and_then(|stem| stem.parse::<SessionId>().ok()));
        }
        sessions.sort_unstable_by(|a, b| b.cmp(a));
        let mut found = Vec::new();
        for session in sessions {
            match self.describe(session) {
                Ok(recording) if passes(&recording) => found.push(recording),
                Ok(_) => {}
                Err(error) => tracing::warn!(%session, %error, "a recording cannot be listed"),
            }
            if found.len() >= limit {
                break;
            }
        }
        Ok(found)
    }

    /// Opens a finished recording at that byte.
    pub(crate) fn open(&self, session: SessionId, offset: u64) -> Result<File, RecordingError> {
        let mut file = match File::open(self.file(session)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(RecordingError::NotFound),
            Err(error) => return Err(error.into()),
        };
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    }
}

/// The next piece of a file; empty at its end.
pub(crate) fn read_piece(file: &mut File) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(PIECE);
    file.take(u64::try_from(PIECE).unwrap_or(u64::MAX)).read_to_end(&mut piece)?;
    Ok(piece.into())
}

impl Upload {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Appends bytes that begin at `offset`.
    pub(crate) fn push(&mut self, offset: u64, bytes: &[u8]) -> Result<(), RecordingError> {
        if offset != self.len {
            return Err(RecordingError::Gap { asked: offset, have: self.len });
        }
        let len = self.len.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if len > MAX_RECORDING {
            return Err(RecordingError::TooLarge);
        }
        self.file.seek(SeekFrom::Start(self.len))?;
        self.file.write_all(bytes)?;
        self.len = len;
        Ok(())
    }

    /// Checks the whole file and puts it in place, unless the same recording is there already.
    pub(crate) fn finish(mut self, sha256: &[u8]) -> Result<Taken, RecordingError> {
        let done = self.settle(sha256);
        if !matches!(done, Ok(_) | Err(RecordingError::Io(_))) {
            // Nothing to go on with: what is here is refused.
            self.len = 0;
        }
        done
    }

    fn settle(&mut self, sha256: &[u8]) -> Result<Taken, RecordingError> {
        self.file.seek(SeekFrom::Start(0))?;
        let checked = examine(&mut self.file)?;
        if checked.digest.as_slice() != sha256 {
            return Err(RecordingError::Digest);
        }
        let recording = checked.recording;
        if recording.session != self.session || recording.host_id != self.host {
            return Err(RecordingError::Disagrees);
        }
        self.file.sync_all()?;
        if self.publish(&recording)? {
            self.sink.remember(&recording);
            self.sink.held.send_modify(|held| *held = held.saturating_add(1));
            return Ok(Taken { recording, fresh: true });
        }
        let there = examine(&mut File::open(self.sink.file(self.session))?)?;
        if there.digest == checked.digest { Ok(Taken { recording, fresh: false }) } else { Err(RecordingError::Exists) }
    }

    /// Puts it in place, unless another recording of the session is there.
    fn publish(&self, recording: &Recording) -> Result<bool, RecordingError> {
        let _alone = self.sink.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let _shared = self.sink.alone()?;
        let place = self.sink.file(self.session);
        if place.exists() {
            return Ok(false);
        }
        let sidecar = serde_json::to_vec(recording).map_err(|error| io::Error::other(error.to_string()))?;
        let fresh = self.path.with_extension("json.new");
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&fresh)?;
        file.write_all(&sidecar)?;
        file.sync_all()?;
        // The description first: a recording is there from the moment its own name is.
        fs::rename(&fresh, self.sink.sidecar(self.session))?;
        fs::rename(&self.path, &place)?;
        File::open(&*self.sink.dir)?.sync_all()?;
        Ok(true)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Finished: it has another name now.
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let longer = fs::metadata(&self.resting).is_ok_and(|rest| rest.len() > self.len);
        let put = if longer || self.len == 0 || self.sink.has(self.session) {
            fs::remove_file(&self.path)
        } else {
            fs::rename(&self.path, &self.resting)
        };
        if let Err(error) = put.as_ref()
            && !gone(error)
        {
            tracing::warn!(file = %self.path.display(), %error, "an interrupted upload could not be put aside");
        }
        if self.sink.has(self.session) {
            let _rest = fs::remove_file(&self.resting);
        }
    }
}

struct Checked {
    recording: Recording,
    digest: [u8; 32],
}

/// Reads a whole recording: every frame, the digest, and what its header says with end and size filled in.
fn examine(file: &mut File) -> Result<Checked, RecordingError> {
    let (mut reader, mut digest) = (Reader::new(), Sha256::new());
    let mut header: Option<Recording> = None;
    let (mut size, mut last, mut first) = (0u64, 0u64, true);
    loop {
        let piece = read_piece(file)?;
        if piece.is_empty() {
            break;
        }
        size = size.saturating_add(u64::try_from(piece.len()).unwrap_or_default());
        digest.update(&piece);
        reader.push(&piece);
        while let Some(entry) = reader.next()? {
            last = last.max(entry.at);
            match entry.what {
                What::Header(found) if first => header = Some(found.recording),
                // A second header could only contradict the first.
                What::Header(_) => return Err(RecordingError::Disagrees),
                What::Output(_) | What::Stderr(_) | What::Resize { .. } | What::Omitted { .. } | What::End(_) | What::Unknown(_) => {}
            }
            first = false;
        }
    }
    let mut recording = header.ok_or(RecordingError::NoHeader)?;
    let ended: Time = recording.started.plus(std::time::Duration::from_millis(last));
    recording.ended = Some(recording.ended.unwrap_or(ended));
    recording.size = size;
    Ok(Checked { recording, digest: digest.finalize().into() })
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RecordingError> + Send + 'static,
) -> Result<T, RecordingError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RecordingError::Interrupted)?
}

#[cfg(test)]
mod tests;
