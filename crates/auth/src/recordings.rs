//! The sink of session recordings: one file and one description per session, complete or not there at all.
//!
//! An upload has a file of its own, `<session>.<host>.<auth>-<random>.up`, so that two of one recording never write into each
//! other. Interrupted it rests as `<session>.<host>.part`, where the next may go on at a byte it names. It becomes
//! `<session>.rec` only after the whole file was read back: its digest is what the uploader said, its frames hold
//! (`wire::recording`), its header names the session and the uploading host. An upload that was finished before is
//! acknowledged again, another of that session refused. Who may list and read is decided in `rules::documents`; here are
//! only files, on blocking threads.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use types::{HostId, SessionId, Time, kind::Recording};
use wire::recording::{BadRecording, Reader, What};

/// The most bytes of one recording. The agent stops recording an exec's bulk output long before.
pub(crate) const MAX_RECORDING: u64 = 8 << 30;
/// Descriptions kept in memory.
const CACHED: usize = 100_000;
/// Locked by whoever puts a recording in place.
const LOCK: &str = ".publishing";
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

impl Recordings {
    /// Uses that directory, which must exist and may be shared with other Auth Services. Uploads that the last process of this
    /// one left behind go to rest.
    pub(crate) fn new(dir: &Path, owner: HostId) -> Self {
        for path in fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())) {
            let resting = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".up"));
            if let Some((stem, upload)) = resting.and_then(|name| name.rsplit_once('.'))
                && upload.starts_with(&owner.to_string())
                && let Err(error) = fs::rename(&path, path.with_file_name(format!("{stem}.part")))
            {
                tracing::warn!(file = %path.display(), %error, "an interrupted upload could not be put aside");
            }
        }
        Self { dir: Arc::new(dir.to_owned()), cache: Arc::default(), publishing: Arc::default(), owner }
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

    /// Checks the whole file and puts it in place. `Ok(None)`: the same recording was there already.
    pub(crate) fn finish(mut self, sha256: &[u8]) -> Result<Option<Recording>, RecordingError> {
        let done = self.settle(sha256);
        if !matches!(done, Ok(_) | Err(RecordingError::Io(_))) {
            // Nothing to go on with: what is here is refused.
            self.len = 0;
        }
        done
    }

    fn settle(&mut self, sha256: &[u8]) -> Result<Option<Recording>, RecordingError> {
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
            return Ok(Some(recording));
        }
        let there = examine(&mut File::open(self.sink.file(self.session))?)?;
        if there.digest == checked.digest { Ok(None) } else { Err(RecordingError::Exists) }
    }

    /// Puts it in place, unless another recording of the session is there.
    fn publish(&self, recording: &Recording) -> Result<bool, RecordingError> {
        let _alone = self.sink.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.sink.dir.join(LOCK))?;
        // Ends with the file.
        shared.lock()?;
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
mod tests {
    use super::*;
    use types::Extra;
    use wire::recording::{End, Header, Writer};

    fn ids() -> (SessionId, HostId) {
        (
            SessionId::from_uuid(uuid::Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001)),
            HostId::from_uuid(uuid::Uuid::from_u128(9)),
        )
    }

    fn recording(session: SessionId, host: HostId) -> (Vec<u8>, Vec<u8>) {
        recording_of(session, host, 5000)
    }

    fn recording_of(session: SessionId, host: HostId, output: usize) -> (Vec<u8>, Vec<u8>) {
        let description = Recording {
            session,
            user: "alice".into(),
            login: "root".into(),
            host_id: host,
            hostname: "node1".into(),
            kind: "shell".into(),
            command: String::new(),
            started: Time::from_unix(100),
            ended: None,
            size: 0,
            extra: Extra::new(),
        };
        let header = Header { recording: description, width: 80, height: 24, term: "xterm".into(), extra: Extra::new() };
        let mut writer = Writer::new();
        let mut bytes = writer.encode(0, &What::Header(Box::new(header))).to_vec();
        bytes.extend(writer.encode(10, &What::Output(Bytes::from(vec![b'x'; output]))));
        bytes.extend(writer.encode(7000, &What::End(End { status: Some(0), signal: None })));
        let digest = Sha256::digest(&bytes).to_vec();
        (bytes, digest)
    }

    #[test]
    fn an_upload_resumes_is_checked_and_may_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let (sink, (session, host)) = (Recordings::new(dir.path(), HostId::from_uuid(uuid::Uuid::nil())), ids());
        let (bytes, digest) = recording(session, host);
        let mut upload = sink.upload(session, host, 0).unwrap();
        upload.push(0, &bytes[..1000]).unwrap();
        assert!(matches!(upload.push(0, b"x"), Err(RecordingError::Gap { asked: 0, have: 1000 })));
        drop(upload);
        assert!(!sink.has(session) && sink.list(10, |_| true).unwrap().is_empty());
        assert!(matches!(sink.upload(session, host, 1001), Err(RecordingError::Gap { asked: 1001, have: 1000 })));
        let mut upload = sink.upload(session, host, 900).unwrap();
        upload.push(900, &bytes[900..]).unwrap();
        let done = upload.finish(&digest).unwrap().unwrap();
        assert_eq!((done.size, done.ended), (bytes.len() as u64, Some(Time::from_unix(107))));

        let mut again = sink.upload(session, host, 0).unwrap();
        again.push(0, &bytes).unwrap();
        assert!(again.finish(&digest).unwrap().is_none());
        // A restart finds it.
        let sink = Recordings::new(dir.path(), HostId::from_uuid(uuid::Uuid::nil()));
        assert_eq!(sink.list(10, |_| true).unwrap(), [done]);
        assert_eq!(read_piece(&mut sink.open(session, 5).unwrap()).unwrap(), bytes[5..]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "the recording, its description, the lock");
    }

    #[test]
    fn two_uploads_of_one_recording_do_not_write_into_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let (sink, (session, host)) = (Recordings::new(dir.path(), HostId::from_uuid(uuid::Uuid::nil())), ids());
        let (bytes, digest) = recording(session, host);
        let (mut one, mut two) = (sink.upload(session, host, 0).unwrap(), sink.upload(session, host, 0).unwrap());
        one.push(0, &bytes[..700]).unwrap();
        two.push(0, &vec![0; 900]).unwrap();
        one.push(700, &bytes[700..]).unwrap();
        assert!(one.finish(&digest).unwrap().is_some());
        assert!(two.finish(&digest).is_err());
        // The same once more is fine, another is not, and the first stands.
        let send = |bytes: &[u8]| {
            let mut upload = sink.upload(session, host, 0).unwrap();
            upload.push(0, bytes).unwrap();
            upload.finish(&Sha256::digest(bytes))
        };
        assert!(send(&bytes).unwrap().is_none());
        let (longer, _) = recording_of(session, host, 6000);
        assert!(matches!(send(&longer), Err(RecordingError::Exists)));
        assert_eq!(fs::read(dir.path().join(format!("{session}.rec"))).unwrap(), bytes);
        assert_eq!(sink.describe(session).unwrap().size, bytes.len() as u64);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing else is left");
    }

    #[test]
    fn an_upload_that_a_killed_process_left_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (sink, (session, host)) = (Recordings::new(dir.path(), HostId::from_uuid(uuid::Uuid::nil())), ids());
        let (bytes, digest) = recording(session, host);
        let mut upload = sink.upload(session, host, 0).unwrap();
        upload.push(0, &bytes[..1000]).unwrap();
        std::mem::forget(upload);
        let sink = Recordings::new(dir.path(), HostId::from_uuid(uuid::Uuid::nil()));
        let mut upload = sink.upload(session, host, 1000).unwrap();
        // Nobody else may go on where this one does.
        assert!(matches!(sink.upload(session, host, 1000), Err(RecordingError::Gap { asked: 1000, have: 0 })));
        upload.push(1000, &bytes[1000..]).unwrap();
        assert!(upload.finish(&digest).unwrap().is_some());
    }

    #[test]
    fn a_recording_that_is_not_what_it_says_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (sink, (session, host)) = (Recordings::new(dir.path(), HostId::from_uuid(uuid::Uuid::nil())), ids());
        let (bytes, digest) = recording(session, host);
        let send = |session, host, bytes: &[u8], digest: &[u8]| {
            let mut upload = sink.upload(session, host, 0).unwrap();
            upload.push(0, bytes).unwrap();
            upload.finish(digest)
        };
        assert!(matches!(send(session, host, &bytes, &[0; 32]), Err(RecordingError::Digest)));
        let mut flipped = bytes.clone();
        flipped[600] ^= 1;
        assert!(matches!(send(session, host, &flipped, &digest), Err(RecordingError::Bad(BadRecording::Damaged(_)))));
        assert!(matches!(send(session, HostId::from_uuid(uuid::Uuid::from_u128(10)), &bytes, &digest), Err(RecordingError::Disagrees)));
        let other = SessionId::from_uuid(uuid::Uuid::from_u128(1));
        assert!(matches!(send(other, host, &bytes, &digest), Err(RecordingError::Disagrees)));
        assert!(matches!(send(session, host, b"GIF89a", &Sha256::digest(b"GIF89a")), Err(RecordingError::Bad(BadRecording::Foreign))));
        assert!(matches!(send(session, host, b"", &Sha256::digest(b"")), Err(RecordingError::NoHeader)));
        assert!(!sink.has(session));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing of them is kept");
    }
}
