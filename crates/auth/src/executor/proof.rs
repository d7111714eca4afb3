//! Proof that there is a way back: a backup made for the upgrade, brought back to life in a scratch directory, and the next release's
//! migrations run there and back on it.
//!
//! The backup goes where scheduled ones go, else to `<data_dir>/backups`. It is encrypted to whom the schedule names, and to a key of this
//! Auth Service's own in `<data_dir>/auth/upgrade.key`: without it nothing could be proved, and beside the authorities' keys, which
//! lie in the same directory, it gives nothing away. So a drill is done by who made the backup; when that one is gone, another is made.

use crate::{
    backup::{
        Progress, Schedule,
        drill::{Scratch, drill},
        place::{Opened, Place},
        restore::{RestoreError, Terms, restore},
        schedule::{fill, free_name, remove},
    },
    core::{Core, Fault},
    executor::book::{self, Proof},
    world::StoreClock,
};
use backup::{PrivateKey, Trust, Unlock};
use futures::future::BoxFuture;
use net::clock::SharedClock;
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::Arc,
};
use store::Sqlite;
use types::{Code, EventKind, Extra, Public, Secret, Version};
use upgrade::plan::{Backup, Drill, Rehearsal};

/// Where backups for upgrades go, and where they are tried.
pub(crate) struct Workshop {
    data_dir: PathBuf,
    schedule: Option<Schedule>,
}

impl Workshop {
    pub(crate) fn new(data_dir: PathBuf, schedule: Option<Schedule>) -> Self {
        Self { data_dir, schedule }
    }

    fn place(&self) -> Place {
        self.schedule.as_ref().map_or_else(|| Place::Dir(self.data_dir.join("backups")), |schedule| schedule.place.clone())
    }

    fn scratch(&self) -> PathBuf {
        self.data_dir.join("auth")
    }

    /// Opens what this Auth Service made; made when there is none.
    fn key(&self) -> io::Result<PrivateKey> {
        let path = self.data_dir.join("auth").join("upgrade.key");
        let unreadable = || io::Error::other(format!("{} holds no key", path.display()));
        match fs::read_to_string(&path) {
            Ok(text) => PrivateKey::read_all(&Secret::new(text)).ok().and_then(|keys| keys.into_iter().next()).ok_or_else(unreadable),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = PrivateKey::generate(&mut |bytes: &mut [u8]| rand::Rng::fill_bytes(&mut rand::rng(), bytes));
                net::tls::write_private(&path, key.to_text().expose().as_bytes()).map_err(io::Error::other)?;
                Ok(key)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes what a process that was killed left of its trials: it holds keys.
    pub(crate) fn sweep(&self) {
        let left = fs::read_dir(self.scratch()).into_iter().flatten().flatten();
        for entry in left.filter(|entry| Scratch::is_one(&entry.file_name())) {
            match fs::remove_dir_all(entry.path()) {
                Ok(()) => tracing::warn!(path = %entry.path().display(), "removed what a killed trial of a backup had left"),
                Err(error) => {
                    tracing::error!(path = %entry.path().display(), %error, "a scratch directory could not be removed; it holds keys")
                }
            }
        }
    }

    /// Makes a backup and reads it again. What failed is noted, for the plan to say.
    pub(crate) async fn backup(&self, core: &Arc<Core>) -> Result<(), Fault> {
        let (now, place) = (core.now(), self.place());
        let level = crate::windows::read(core).await?.record.cluster_version;
        let made = self.make(core, &place).await;
        let backup = |id: String, failed| Backup { id, at: now, cluster_version: level, failed, drill: None, rehearsal: None };
        let proof = |backup, name, signer| Proof { backup, by: core.host_id, name, place: place.to_string(), signer, extra: Extra::new() };
        let proof = match made {
            Ok((name, written)) => {
                crate::metrics::count(&core.metrics.backups);
                proof(backup(written.head.id.to_string(), None), name, written.head.signer.fingerprint().to_string())
            }
            Err(why) => {
                tracing::error!(why, "the backup for the upgrade failed");
                core.audit.record(core.event(EventKind::BackupFailed).with("error", why.as_str()).with("upgrade", true)).await?;
                // Of long ago, so that it is none that would do.
                let none = Backup { at: types::Time::from_unix(0), ..backup(String::new(), Some(why)) };
                proof(none, String::new(), String::new())
            }
        };
        Ok(book::prove(core, &proof).await?)
    }

    async fn make(&self, core: &Arc<Core>, place: &Place) -> Result<(String, backup::Written), String> {
        let own = self.key().map_err(|error| error.to_string())?;
        let mut recipients = self.schedule.as_ref().map(|schedule| schedule.recipients.clone()).unwrap_or_default();
        recipients.extend(own.recipient());
        let names: Vec<String> = recipients.iter().map(backup::Recipient::short_id).collect();
        let event =
            core.event(EventKind::BackupCreate).with("upgrade", true).with("recipients", names.join(",")).with("to", place.to_string());
        core.audit.record(event).await.map_err(|error| error.to_string())?;
        let opened = Opened::new(place).await.map_err(|error| error.to_string())?;
        let name = free_name(&opened, core.cluster.as_str(), core.now()).await.map_err(|error| error.to_string())?;
        let written = async {
            let upload = opened.begin(&name).await.map_err(|error| error.to_string())?;
            fill(core, &opened, &name, upload, recipients).await.map_err(|error| error.to_string())
        };
        match written.await {
            Ok(written) => Ok((name, written)),
            Err(why) => {
                remove(&opened, &name).await;
                Err(why)
            }
        }
    }

    /// Brings the backup back to life, and logs in there.
    pub(crate) async fn drill(&self, core: &Arc<Core>, proof: &Proof) -> Result<(), Fault> {
        let tried = async {
            let (scratch, file) = self.fetch(proof).await?;
            let drilled = drilled(scratch.0.clone(), file, self.terms(core, proof)?, core.clock.clone()).await;
            drop(scratch);
            drilled.map_err(|error| error.public().to_string())
        };
        let failed = tried.await.err();
        if let Some(why) = &failed {
            tracing::error!(why, backup = proof.backup.id, "the drill of the backup failed");
        }
        Ok(book::proved(core, &proof.backup.id, Some(Drill { at: core.now(), failed }), None).await?)
    }

    /// Runs the target's migrations there and back on what the backup brings back.
    pub(crate) async fn rehearse(&self, core: &Arc<Core>, proof: &Proof, target: &Version) -> Result<(), Fault> {
        let tried = async {
            let releases = core.releases.as_ref().ok_or("no mirror of releases is known to this Auth Service: auth_service.releases")?;
            let (scratch, file) = self.fetch(proof).await?;
            let path = scratch.0.join("state.db");
            let (at, time): (_, Arc<dyn store::Clock>) = (path.clone(), Arc::new(StoreClock(core.clock.clone())));
            let opened = tokio::task::spawn_blocking(move || Sqlite::open(&at, time)).await.map_err(|error| error.to_string())?;
            let scratch_store: Arc<dyn store::Store> = Arc::new(opened.map_err(|error| error.to_string())?);
            let restored = restore(scratch_store.clone(), file, self.terms(core, proof)?, Arc::new(Progress::default())).await;
            scratch_store.close().await;
            restored.map_err(|error| error.public().to_string())?;
            // What says that this store is nobody's: a rehearsal would ruin any other.
            fs::write(path.with_file_name(crate::REHEARSAL), b"").map_err(|error| error.to_string())?;
            releases.rehearse(target, &path).await
        };
        let (at, target) = (core.now(), target.clone());
        let rehearsal = match tried.await {
            Ok(said) => {
                let failed = Some(said.failed).filter(|why| !why.is_empty());
                Rehearsal { at, target, failed, bad_rows: said.bad_rows, rows: said.rows, seconds: said.seconds }
            }
            Err(why) => Rehearsal { at, target, failed: Some(why), bad_rows: Vec::new(), rows: 0, seconds: 0 },
        };
        if let Some(why) = &rehearsal.failed {
            tracing::error!(why, backup = proof.backup.id, "the rehearsal of the upgrade failed");
        }
        Ok(book::proved(core, &proof.backup.id, None, Some(rehearsal)).await?)
    }

    fn terms(&self, core: &Core, proof: &Proof) -> Result<Terms, String> {
        let signer = proof.signer.parse().map_err(|_| "the signer of the backup cannot be read".to_owned())?;
        Ok(Terms {
            unlock: Unlock::Keys(vec![self.key().map_err(|error| error.to_string())?]),
            trust: Trust::Pinned(vec![signer]),
            ca_pin: None,
            version: core.version.clone(),
            now: core.now(),
        })
    }

    /// The backup as a file of its own, which goes with its directory.
    async fn fetch(&self, proof: &Proof) -> Result<(Scratch, File), String> {
        let scratch = Scratch::new(&self.scratch()).map_err(|error| error.to_string())?;
        let opened = Opened::new(&self.place()).await.map_err(|error| error.to_string())?;
        let (mut source, _) = opened.read(&proof.name).await.map_err(|error| error.to_string())?;
        let path = scratch.0.join("backup");
        let copied = tokio::task::spawn_blocking(move || {
            let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            io::copy(&mut source, &mut file)?;
            File::open(&path)
        });
        let file = copied.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        Ok((scratch, file))
    }
}

/// The drill as a value of a named type: it starts an Auth Service, which carries upgrades out, which drills.
fn drilled(base: PathBuf, file: File, terms: Terms, clock: SharedClock) -> BoxFuture<'static, Result<(), RestoreError>> {
    Box::pin(async move {
        let drilled = drill(&base, file, terms, clock, Arc::new(Progress::default())).await?;
        if drilled.certificate.is_none() && drilled.users > 0 {
            let why = Public::new(Code::StoreBroken, "no user could log in to what the backup brought back");
            return Err(why.hint("see the log of this Auth Service; users that are locked or have no role cannot").into());
        }
        Ok(())
    })
}
