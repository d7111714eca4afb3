//! Backups by themselves: into a directory, every so often, encrypted to recipients, the oldest removed.
//!
//! Files are named `<cluster>-<time>.lgbackup`; only such are ever removed, and only after a newer one is complete. One that fails is
//! tried again soon, shows on the health board (row `backup`) and in the metrics, and removes nothing. A fault here does not take the
//! Auth Service out of service: the board says `attention`. Object storage is not written to: mount or copy the directory.

use super::make::MakeError;
use crate::{
    core::Core,
    metrics::{Metrics, count},
};
use backup::{Protection, Recipient, Trust};
use net::health::Health;
use std::{
    fs,
    io::{self, BufWriter, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use types::{Event, EventKind, Time};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub every: Duration,
    /// Made with mode 0700 if it is not there.
    pub dir: PathBuf,
    /// How many files stay.
    pub keep: usize,
    pub recipients: Vec<Recipient>,
}

/// Behind the time in a file's name.
const SUFFIX: &str = ".lgbackup";
/// Its row on the health board.
const COMPONENT: &str = "backup";
/// How often the clock is looked at.
const TICK: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Make(#[from] MakeError),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the file is not what was written: {0}")]
    Proof(#[from] backup::ReadError),
    #[error("{0}")]
    Core(String),
}

/// Runs until the service stops.
pub(crate) async fn run(core: Arc<Core>, schedule: Schedule) {
    core.health.set(COMPONENT, Health::Ready);
    let mut last = newest(&schedule.dir, core.cluster.as_str());
    tell(&core.metrics, last);
    let mut due = last.map_or(core.now(), |last| last.plus(schedule.every));
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = core.shutdown.stopping() => return,
            _ = tick.tick() => {}
        }
        let now = core.now();
        if now < due {
            continue;
        }
        match once(&core, &schedule, now).await {
            Ok(path) => {
                tracing::info!(path = %path.display(), "made a backup");
                last = Some(now);
                due = now.plus(schedule.every);
                count(&core.metrics.backups);
                core.health.set(COMPONENT, Health::Ready);
            }
            Err(error) => {
                tracing::error!(%error, "the scheduled backup failed");
                count(&core.metrics.backup_failures);
                let age = last.map_or("there is none yet".to_owned(), |last| format!("the last one is of {}", last.whole_seconds()));
                core.health.set(COMPONENT, Health::Attention(format!("the scheduled backup failed: {error}; {age}")));
                due = now.plus((schedule.every / 10).clamp(Duration::from_secs(10), Duration::from_secs(600)));
                let event = core.event(EventKind::BackupFailed).with("error", error.to_string()).with("scheduled", true);
                record(&core, event).await;
            }
        }
        tell(&core.metrics, last);
    }
}

async fn record(core: &Core, event: Event) {
    if let Err(error) = core.audit.record(event).await {
        tracing::error!(%error, "a backup could not be recorded");
    }
}

fn tell(metrics: &Metrics, last: Option<Time>) {
    metrics.backup_last_unix.store(last.map_or(0, Time::unix_u64), Ordering::Relaxed);
}

/// One backup, proven, in its place; then the oldest are removed.
async fn once(core: &Arc<Core>, schedule: &Schedule, now: Time) -> Result<PathBuf, Failed> {
    let names: Vec<String> = schedule.recipients.iter().map(Recipient::short_id).collect();
    let event = core.event(EventKind::BackupCreate).with("scheduled", true).with("recipients", names.join(","));
    core.audit.record(event).await.map_err(|error| Failed::Core(error.to_string()))?;
    let place = schedule.dir.join(format!("{}-{}{SUFFIX}", core.cluster, stamp(now)));
    let fresh = schedule.dir.join(format!(".{}.new", uuid::Uuid::new_v4().simple()));
    let made = write(core, schedule, &fresh, &place).await;
    if made.is_err() {
        // Half a file helps nobody.
        let _gone = fs::remove_file(&fresh);
    }
    made?;
    let (dir, cluster, keep) = (schedule.dir.clone(), core.cluster.to_string(), schedule.keep);
    let pruned = tokio::task::spawn_blocking(move || prune(&dir, &cluster, keep)).await;
    if let Ok(Err(error)) = pruned {
        tracing::warn!(%error, "an old backup could not be removed");
    }
    Ok(place)
}

async fn write(core: &Arc<Core>, schedule: &Schedule, fresh: &Path, place: &Path) -> Result<(), Failed> {
    let file_error = |path: &Path| {
        let path = path.to_owned();
        move |source| Failed::File { path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&schedule.dir).map_err(file_error(&schedule.dir))?;
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(fresh).map_err(file_error(fresh))?;
    let sink = BufWriter::with_capacity(1 << 20, file);
    let protection = Protection::Recipients(schedule.recipients.clone());
    let made = core.make_backup(protection, sink, Arc::default()).await?;
    let (fresh, place) = (fresh.to_owned(), place.to_owned());
    let (written, mut sink) = (made.written.clone(), made.sink);
    let settled = tokio::task::spawn_blocking(move || {
        sink.flush().and_then(|()| sink.get_ref().sync_all()).map_err(file_error(&fresh))?;
        // What lies on the disk now is read again: signature and digests, without a key.
        let file = fs::File::open(&fresh).map_err(file_error(&fresh))?;
        backup::check(io::BufReader::new(file), &Trust::Pinned(vec![written.head.signer.fingerprint()]))?;
        fs::rename(&fresh, &place).map_err(file_error(&place))?;
        let dir = place.parent().unwrap_or(Path::new("."));
        fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(file_error(dir))
    });
    settled.await.map_err(|error| Failed::Core(error.to_string()))??;
    core.note_backup(&made.written, made.manifest.revision).await;
    Ok(())
}

/// `20261122T180000Z`
fn stamp(time: Time) -> String {
    time.whole_seconds().to_string().replace(['-', ':'], "")
}

fn time_of(name: &str, cluster: &str) -> Option<Time> {
    let stamp = name.strip_prefix(cluster)?.strip_prefix('-')?.strip_suffix(SUFFIX)?;
    let part = |from: usize, to: usize| stamp.get(from..to);
    if stamp.len() != 16 {
        return None;
    }
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(9, 11)?, part(11, 13)?, part(13, 15)?);
    format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z").parse().ok()
}

/// Our files, oldest first.
fn ours(dir: &Path, cluster: &str) -> io::Result<Vec<(Time, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let time = path.file_name().and_then(|name| name.to_str()).and_then(|name| time_of(name, cluster));
        if let Some(time) = time.filter(|_| path.is_file()) {
            found.push((time, path));
        }
    }
    found.sort();
    Ok(found)
}

fn newest(dir: &Path, cluster: &str) -> Option<Time> {
    ours(dir, cluster).ok()?.last().map(|(time, _)| *time)
}

fn prune(dir: &Path, cluster: &str, keep: usize) -> io::Result<()> {
    let all = ours(dir, cluster)?;
    let surplus = all.len().saturating_sub(keep.max(1));
    all.iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_this_cluster_and_form_are_counted_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let times: Vec<Time> = (0..5).map(|day| Time::from_unix(1_800_000_000 + day * 86_400)).collect();
        let named = |cluster: &str, time: Time| format!("{cluster}-{}{SUFFIX}", stamp(time));
        for time in &times {
            fs::write(dir.path().join(named("demo", *time)), "x").unwrap();
        }
        let others =
            ["demo-notes.lgbackup".to_owned(), named("demo2", times[0]), "demo-20270115T080000Z.txt".into(), named("other", times[0])];
        for name in &others {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!(newest(dir.path(), "demo"), Some(times[4]));
        prune(dir.path(), "demo", 2).unwrap();
        assert_eq!(ours(dir.path(), "demo").unwrap().iter().map(|(time, _)| *time).collect::<Vec<_>>(), times[3..]);
        assert!(others.iter().all(|name| dir.path().join(name).exists()));
        prune(dir.path(), "demo", 0).unwrap();
        assert_eq!(ours(dir.path(), "demo").unwrap().len(), 1, "the newest always stays");
    }
}
