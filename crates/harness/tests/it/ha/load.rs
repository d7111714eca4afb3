//! Sessions under load, and the account of them afterwards: every session's events and its recording, counted one by one.
//!
//! A session that the user saw end well is *acknowledged*: its id and the digest of what it showed are kept here, and what the cluster
//! has of it must agree. Recordings are read with the format's own reader, all of them; a few also as a user would, with `tsh play`.

use harness::{Cluster, Person, cluster::Member};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Mutex,
};
use wire::recording::{Reader, What};

/// What was tried, and what came of it.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) tried: usize,
    pub(super) failed: Vec<String>,
    /// Acknowledged sessions, with the digest of what they showed.
    pub(super) opened: BTreeMap<String, Vec<u8>>,
}

const LINES: usize = 3000;

/// One session after the other until it is enough; each names itself, then shows some lines.
pub(super) fn open_sessions(person: &Person, target: impl Fn() -> String, tally: &Mutex<Tally>, enough: impl Fn() -> bool) {
    while !enough() {
        let ran = person.ssh(&target(), &format!("echo $LOCKGATE_SESSION; seq 1 {LINES}")).go();
        let mut tally = tally.lock().unwrap();
        tally.tried += 1;
        if ran.status == 0 {
            let text = ran.text();
            assert!(text.ends_with(&format!("\n{}\n{LINES}\n", LINES - 1)), "a session's output is cut: {ran}");
            tally.opened.insert(text.lines().next().unwrap().to_owned(), Sha256::digest(text.as_bytes()).to_vec());
        } else {
            tally.failed.push(ran.to_string());
        }
    }
}

/// The audit logs of all Auth Services together: by event and session, the uids under which it was reported.
pub(super) struct Books(BTreeMap<(String, String), BTreeSet<String>>);

impl Books {
    pub(super) fn of(auths: &[&Member]) -> Self {
        let mut found: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for line in auths.iter().flat_map(|auth| lines_under(&auth.data_dir.join("auth/audit"))) {
            let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
            let text = |field: &str| [&line[field], &line["event"][field]].into_iter().find_map(|value| value.as_str().map(str::to_owned));
            if let (Some(event), Some(session), Some(uid)) = (text("event"), text("sid"), text("uid")) {
                found.entry((event, session)).or_default().insert(uid);
            }
        }
        Self(found)
    }
    /// Sessions that have such an event.
    pub(super) fn with(&self, event: &str) -> BTreeSet<String> {
        self.0.keys().filter(|(name, _)| name == event).map(|(_, session)| session.clone()).collect()
    }
    /// Under how many uids this event of the session was reported.
    pub(super) fn times(&self, event: &str, session: &str) -> usize {
        self.0.get(&(event.to_owned(), session.to_owned())).map_or(0, BTreeSet::len)
    }
}

fn lines_under(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            all.extend(lines_under(&path));
        } else {
            all.extend(fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned));
        }
    }
    all
}

/// The digest of what a recording shows; none when it is not there. One that is there must be whole in its form.
pub(super) fn shown(dirs: &[std::path::PathBuf], session: &str) -> Option<Vec<u8>> {
    let bytes = dirs.iter().find_map(|dir| fs::read(dir.join(format!("{session}.rec"))).ok())?;
    let (mut reader, mut digest) = (Reader::new(), Sha256::new());
    reader.push(&bytes);
    while let Some(entry) = reader.next().unwrap_or_else(|error| panic!("the recording of {session}: {error}")) {
        if let What::Output(bytes) | What::Stderr(bytes) = entry.what {
            digest.update(&bytes);
        }
    }
    Some(digest.finalize().to_vec())
}

/// Every acknowledged session has a recording that shows what the user saw, and a user reads some of them so.
pub(super) fn recorded(cluster: &Cluster, auths: &[&Member], reader: &Person, opened: &BTreeMap<String, Vec<u8>>, played: usize) {
    let dirs: Vec<_> = auths.iter().map(|auth| cluster.recordings(auth)).collect();
    for (session, digest) in opened {
        assert_eq!(shown(&dirs, session).as_ref(), Some(digest), "the recording of {session} shows something else");
    }
    for (session, digest) in opened.iter().step_by(opened.len().div_ceil(played).max(1)) {
        let text = reader.tsh(["play", session, "--format=text"]).go().ok();
        assert_eq!(&Sha256::digest(text.as_bytes()).to_vec(), digest, "tsh play of {session} shows something else");
    }
}
