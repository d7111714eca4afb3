//! The spool: recordings on this host until the cluster has them.
//!
//! One file per session, `<session id>.rec`, locked by the process that writes it. A file nobody has locked is finished or
//! orphaned (its process was killed); either way it is delivered and then deleted. Nothing is added to an orphan: what is
//! torn at its end reads as its end. The session's end is reported for each file found at the start; a repeated report is
//! recognised by its uid, which follows from the session's id. Files that are no recordings are put aside, never deleted. A file whose
//! process was killed before its header was written goes: its session had not begun, and nobody heard of it.
//! Two processes may share the directory (a live restart): each delivers what has no lock, and what the older one left unfinished
//! counts as found once it has ended.

use crate::{events::Audit, world::Upstream};
use net::{backoff::Backoff, turn::Turn};
use rules::walk;
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Notify;
use types::{Event, EventKind, SessionId, Time, kind::Recording};
use wire::recording::{End, Reader, What};

const SUFFIX: &str = "rec";
const ASIDE: &str = "unreadable";
/// Looks again so often even when nobody called.
const SWEEP: Duration = Duration::from_secs(300);

/// A directory of recordings.
#[derive(Clone, Debug)]
pub struct Spool {
    dir: Arc<PathBuf>,
    finished: Arc<Notify>,
}

/// What is in one file.
#[derive(Debug)]
struct Contents {
    recording: Recording,
    end: Option<End>,
    last: u64,
}

impl Spool {
    /// Opens the directory, making it if needed, for this account only.
    pub fn open(dir: &Path) -> io::Result<Self> {
        for dir in [dir.to_owned(), dir.join(ASIDE)] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        Ok(Self { dir: Arc::new(dir.to_owned()), finished: Arc::new(Notify::new()) })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the file of a new session, locked for as long as it is open.
    pub(crate) fn create(&self, session: SessionId) -> io::Result<File> {
        let path = self.dir.join(format!("{session}.{SUFFIX}"));
        // Under its own name only once it is locked: a delivery that looks just then would take it for an orphan.
        let fresh = path.with_extension("new");
        let file = std::fs::OpenOptions::new().append(true).create_new(true).mode(0o600).open(&fresh)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        std::fs::rename(&fresh, &path)?;
        Ok(file)
    }

    /// A session's file is complete.
    pub(crate) fn finished(&self) {
        self.finished.notify_one();
    }

    /// Files that were not delivered yet.
    pub(crate) fn waiting(&self) -> usize {
        self.list().map_or(0, |files| files.len())
    }

    /// Delivers what is finished or orphaned, again and again, until dropped. `alone`: ours once the process before this one, whose
    /// sessions may run on, has ended.
    pub async fn deliver(&self, upstream: Arc<dyn Upstream>, audit: Audit, mut backoff: Backoff, alone: Turn) {
        let mut first = true;
        loop {
            let found = first && alone.is_ours();
            first &= !found;
            let wait = match self.sweep(&*upstream, &audit, found).await {
                Ok(()) => {
                    backoff.reset();
                    SWEEP
                }
                Err(error) => {
                    tracing::warn!(%error, "recordings wait in the spool");
                    backoff.next()
                }
            };
            tokio::select! {
                _woken_or_due = tokio::time::timeout(wait, self.finished.notified()) => {}
                () = alone.ours(), if first => {}
            }
        }
    }

    /// One pass over the directory. `found`: the first one alone, so that a file without a lock may be a dead process's.
    async fn sweep(&self, upstream: &dyn Upstream, audit: &Audit, found: bool) -> io::Result<()> {
        let mut failed = None;
        for path in self.list()? {
            let Some(lock) = unlocked(&path)? else { continue };
            let read = {
                let path = path.clone();
                tokio::task::spawn_blocking(move || contents(&path)).await.map_err(io::Error::other)?
            };
            let contents = match read {
                Ok(Some(contents)) => contents,
                Ok(None) => {
                    tracing::info!(path = %path.display(), "its process was killed before the session began; removed");
                    std::fs::remove_file(&path)?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    tracing::error!(path = %path.display(), %error, "not a recording; put aside");
                    std::fs::rename(&path, self.dir.join(ASIDE).join(path.file_name().unwrap_or_default()))?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if found {
                audit.emit(recovered(&contents)).await;
            }
            // Of a walk only whether it could be recorded was wanted; delivered, each would stand in the list that people look through.
            if contents.recording.user == walk::NAME {
                std::fs::remove_file(&path)?;
                continue;
            }
            match upstream.recording(contents.recording.clone(), path.clone()).await {
                Ok(()) => std::fs::remove_file(&path)?,
                Err(error) => {
                    tracing::warn!(session = %contents.recording.session, %error, "a recording could not be delivered");
                    failed = Some(io::Error::other(error));
                }
            }
            drop(lock);
        }
        failed.map_or(Ok(()), Err)
    }

    fn list(&self) -> io::Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&*self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
                all.push(path);
            }
        }
        // Ids sort by time: oldest first.
        all.sort();
        Ok(all)
    }
}

/// Opens and locks the file, unless a session is writing it.
fn unlocked(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        // Another process may have delivered and deleted it since it was opened.
        Ok(()) => Ok((file.metadata()?.nlink() > 0).then_some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads the header and the end of a recording; `None` when it ends before its header does.
fn contents(path: &Path) -> io::Result<Option<Contents>> {
    let invalid = |error: wire::recording::BadRecording| io::Error::new(io::ErrorKind::InvalidData, error);
    let (mut file, mut reader, mut piece) = (File::open(path)?, Reader::new(), vec![0; 256 * 1024]);
    let (mut recording, mut end, mut last) = (None, None, 0);
    loop {
        let len = file.read(&mut piece)?;
        if len == 0 {
            break;
        }
        reader.push(piece.get(..len).unwrap_or_default());
        while let Some(entry) = reader.next().map_err(invalid)? {
            last = entry.at;
            match entry.what {
                What::Header(header) => recording = Some(header.recording),
                What::End(how) => end = Some(how),
                What::Output(_) | What::Stderr(_) | What::Resize { .. } | What::Omitted { .. } | What::Unknown(_) => {}
            }
        }
    }
    let Some(mut recording) = recording else { return Ok(None) };
    recording.size = file.metadata()?.len();
    recording.ended = Some(recording.started.plus(Duration::from_millis(last)));
    Ok(Some(Contents { recording, end, last }))
}

/// The end of a session whose process did not report it.
fn recovered(contents: &Contents) -> Event {
    let recording = &contents.recording;
    let ended = recording.started.plus(Duration::from_millis(contents.last));
    ended_event(recording, ended, contents.end.as_ref()).with("recovered", true)
}

/// `session.end`, with a uid that every report of the same session has.
pub(crate) fn ended_event(recording: &Recording, at: Time, end: Option<&End>) -> Event {
    let mut event = Event::new(EventKind::SessionEnd, at, EventKind::SessionEnd.once(recording.session))
        .with("sid", recording.session.to_string())
        .with("user", recording.user.as_str())
        .with("login", recording.login.as_str())
        .with("server_id", recording.host_id.to_string())
        .with("server_hostname", recording.hostname.as_str())
        .with("kind", recording.kind.as_str())
        .with("interactive", recording.kind == "shell")
        .with("session_start", recording.started.to_string())
        .with("session_stop", at.to_string());
    if recording.user == walk::NAME {
        event = event.with("walk", true);
    }
    if let Some(end) = end {
        if let Some(status) = end.status {
            event = event.with("exit_status", status);
        }
        if let Some(signal) = &end.signal {
            event = event.with("exit_signal", signal.as_str());
        }
    }
    event
}
