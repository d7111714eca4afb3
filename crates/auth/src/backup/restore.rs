//! Restores a backup into an empty store, of whatever driver, on the host of the new Auth Service; nothing else runs on the store.
//!
//! First everything is proven, without writing: the file (digests, signature, the order), every record in it, the authority's keys
//! against the pin, and that what is in it is not newer than this release. A backup of any older major is restored as it is, at its own
//! cluster version: which release may start on it is told, and decided again at that start (rule G5). Then the store is filled (`store::Load`: fenced from the first
//! write, a cluster only at the last), read back and compared, and only then made a cluster: its epoch is [`STRIDE`] above the backup's,
//! so that every Auth Service that lived before is fenced, also one that began after the backup was made. The audit log goes on
//! behind the position the backup names. A restore that breaks off leaves a store that refuses to start and can be restored again.

use super::{Progress, Stage, Watched, content};
use crate::{audit, vault};
use backup::{Head, Manifest, ReadError, Summary, Trust, Unlock, Verified};
use bytes::Bytes;
use std::{collections::BTreeMap, fs::File, io::BufReader, sync::Arc};
use store::{Key, Load, LoadError, Store};
use tokio::sync::mpsc;
use types::{Code, ControlRecord, Public, Time, Version};

/// How far the epoch jumps. Epochs count takeovers and finished upgrades, one at a time: no cluster has had so many since its backup.
pub const STRIDE: u64 = 1000;
/// Records that travel together between the two halves.
const PAGE: usize = 200;
const PAGE_BYTES: usize = 1 << 20;

/// What is demanded of a backup.
#[derive(Clone, Debug)]
pub struct Terms {
    pub unlock: Unlock,
    pub trust: Trust,
    /// A pin of the host authority (`sha256:…`), as agents have it: the private key in the backup must belong to it.
    pub ca_pin: Option<String>,
    /// This release.
    pub version: Version,
    pub now: Time,
}

/// A store that was restored.
#[derive(Debug)]
pub struct Restored {
    pub head: Head,
    pub manifest: Manifest,
    pub summary: Summary,
    /// Sections of a newer release that were left out.
    pub skipped: BTreeMap<u8, u64>,
    /// The pins of the host authority.
    pub pins: Vec<String>,
    /// The new epoch; whoever is below may no longer write.
    pub epoch: u64,
    /// Items written.
    pub items: u64,
    /// Items that had expired since the backup was made, and were left out.
    pub expired: u64,
    /// What was compared between file and store: everything that does not expire.
    pub compared: Summary,
    /// Why this release cannot start on it yet, and which must come first: the backup is more than one major older.
    pub first: Option<Public>,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error(transparent)]
    Content(#[from] content::BadContent),
    #[error("{0}")]
    Load(#[from] LoadError),
    /// A rule says no.
    #[error("{0}")]
    Refused(Public),
    #[error("the store does not hold what was written to it")]
    Differs,
    #[error("the reader of the backup broke")]
    Broke,
}

impl RestoreError {
    pub fn public(&self) -> Public {
        let text = self.to_string();
        match self {
            Self::Read(error) => error.public(),
            Self::Content(_) => Public::new(Code::BackupNewer, text).hint("restore with the release that wrote the backup, or a newer one"),
            Self::Load(LoadError::NotEmpty { .. }) => Public::new(Code::StoreForeign, text)
                .hint("a backup is restored only into an empty store: give another place, or move this one away"),
            Self::Load(_) | Self::Differs => {
                Public::new(Code::StoreBroken, text).hint("the store cannot be used as it is; the restore can be run again as it was")
            }
            Self::Refused(public) => public.clone(),
            Self::Broke => Public::new(Code::Internal, text),
        }
    }
}

impl From<Public> for RestoreError {
    fn from(public: Public) -> Self {
        Self::Refused(public)
    }
}

type Source = BufReader<Watched<File>>;

/// What was learned of a file before anything was written.
pub struct Proven {
    verified: Verified<Source>,
    control: ControlRecord,
    pub pins: Vec<String>,
}

impl Proven {
    pub fn head(&self) -> &Head {
        self.verified.head()
    }
    pub fn manifest(&self) -> &Manifest {
        self.verified.manifest()
    }
    pub fn summary(&self) -> &Summary {
        self.verified.summary()
    }
    /// The length of the file.
    pub fn bytes(&self) -> u64 {
        self.verified.bytes()
    }
    pub fn digest(&self) -> backup::Digest {
        self.verified.digest()
    }
    pub fn skipped(&self) -> &BTreeMap<u8, u64> {
        self.verified.skipped()
    }
    /// The control record in the backup.
    pub fn control(&self) -> &ControlRecord {
        &self.control
    }
}

/// Proves everything that can be proven of a file. Blocks.
pub fn prove(file: File, terms: &Terms, progress: &Arc<Progress>) -> Result<Proven, RestoreError> {
    progress.begin(Stage::Proving, file.metadata().map(|about| about.len()).unwrap_or_default());
    let source = BufReader::with_capacity(1 << 20, Watched { inner: file, progress: progress.clone() });
    let authority = vault::authority_key(crate::ca::CaKind::Host).map_err(LoadError::Key)?;
    let mut looked = Looked { authority, control: None, pins: Vec::new(), fault: None };
    let verified = backup::verify_each(source, &terms.unlock, &terms.trust, &mut |key, value| looked.at(key, value))?;
    if let Some(fault) = looked.fault {
        return Err(fault);
    }
    let (control, pins) = (looked.control.ok_or_else(|| malformed("the backup holds no control record"))?, looked.pins);
    if let Some(pin) = terms.ca_pin.as_ref().filter(|pin| !pins.contains(&pin.trim().to_ascii_lowercase())) {
        let message = format!("the backup's authority has the pin {}, not {pin}", pins.join(" or "));
        return Err(Public::new(Code::BackupSigner, message).hint("it is of another cluster").into());
    }
    Ok(Proven { verified, control, pins })
}

fn malformed(why: &str) -> Public {
    Public::new(Code::BackupDamaged, why).hint("use another backup")
}

/// What the records say while a file is proven; the first that cannot be restored is kept as the fault.
struct Looked {
    authority: Key,
    control: Option<ControlRecord>,
    pins: Vec<String>,
    fault: Option<RestoreError>,
}

impl Looked {
    fn at(&mut self, key: &[u8], record: &[u8]) {
        if self.fault.is_none() {
            self.fault = self.judge(key, record).err();
        }
    }

    fn judge(&mut self, bytes: &[u8], record: &[u8]) -> Result<(), RestoreError> {
        let (value, _) = content::decode(bytes, record)?;
        let key = key(bytes)?;
        if value.len() > store::MAX_VALUE {
            return Err(malformed(&format!("the record {key} of the backup is larger than a store takes")).into());
        }
        if key == Key::control() {
            let parsed = store::control::parse(value);
            self.control = Some(parsed.map_err(|why| malformed(&format!("the backup's control record cannot be read: {why}")))?);
        }
        if key == self.authority {
            self.pins = crate::ca::pins_of_private(value).map_err(|error| malformed(&error.to_string()))?;
        }
        Ok(())
    }
}

fn key(bytes: &[u8]) -> Result<Key, RestoreError> {
    let text = std::str::from_utf8(bytes).unwrap_or("\0");
    Ok(Key::parse(text).map_err(LoadError::Key)?)
}

/// Fills the store from the file.
pub async fn restore(store: Arc<dyn Store>, file: File, terms: Terms, progress: Arc<Progress>) -> Result<Restored, RestoreError> {
    store::check_empty(store.as_ref()).await?;
    let (asked, seen) = (terms.clone(), progress.clone());
    let proving = tokio::task::spawn_blocking(move || prove(file, &asked, &seen));
    let proven = proving.await.map_err(|_| RestoreError::Broke)??;
    restore_proven(store, proven, &terms, progress).await
}

/// The same with a file that was proven.
pub async fn restore_proven(
    store: Arc<dyn Store>,
    proven: Proven,
    terms: &Terms,
    progress: Arc<Progress>,
) -> Result<Restored, RestoreError> {
    let Proven { verified, control, pins } = proven;
    let first = startable(&control, &terms.version)?;
    let (head, manifest) = (verified.head().clone(), verified.manifest().clone());
    let (summary, skipped) = (verified.summary().clone(), verified.skipped().clone());
    let before = manifest.epoch.max(control.epoch).max(control.min_writer_epoch);
    let epoch = before.saturating_add(STRIDE);
    let what = format!("backup {} of cluster \"{}\", made {}", head.id, head.cluster, head.created);
    let mut load = Load::begin(store.clone(), epoch, &what).await?;
    progress.begin(Stage::Writing, summary.bytes);
    // A restore that broke off may have raised the fence further.
    let epoch = load.epoch().max(epoch);
    let (pages, mut queue) = mpsc::channel(2);
    let reading = tokio::task::spawn_blocking(move || read(verified, &pages));
    let mut sums = content::Sums::default();
    let (mut items, mut expired) = (0, 0);
    while let Some(page) = queue.recv().await {
        for Loaded { key, value, expires } in page {
            progress.add(key.len() + value.len());
            if key == Key::control() || key.as_bytes().starts_with(content::AUDIT.as_bytes()) {
                continue;
            }
            if expires.is_some_and(|expires| expires <= terms.now) {
                expired += 1;
                continue;
            }
            sums.add(key.as_bytes(), &value, expires).map_err(|_| RestoreError::Differs)?;
            load.add(key, value, expires).await?;
            items += 1;
        }
    }
    // Only when the second pass has ended well is what it gave the backup.
    reading.await.map_err(|_| RestoreError::Broke)??;
    if let Some(position) = &manifest.audit {
        let origin = audit::Origin::behind(position, terms.now)
            .ok_or_else(|| Public::new(Code::BackupDamaged, "the backup's position of the audit log cannot be read"))?;
        load.add(vault::anchor_key().map_err(LoadError::Key)?, vault::json(origin.head()).into(), None).await?;
        load.add(vault::origin_key().map_err(LoadError::Key)?, vault::json(&origin).into(), None).await?;
    }
    load.settle().await?;
    let compared = sums.finish();
    progress.begin(Stage::Comparing, compared.bytes);
    if sums_of(store.as_ref(), &progress).await? != compared {
        return Err(RestoreError::Differs);
    }
    load.finish(&next_control(control, epoch, before, &head, terms)).await?;
    Ok(Restored { head, manifest, summary, skipped, pins, epoch, items, expired, compared, first })
}

/// Whether this release may start on what the backup holds. An older one it may not start on is restored all the same, and the way is told:
/// the stored formats of every major stay what they were. A newer one is refused.
fn startable(control: &ControlRecord, version: &Version) -> Result<Option<Public>, Public> {
    match upgrade::control::may_start(Some(control), version) {
        Ok(_) => Ok(None),
        Err(public) if public.is(Code::VersionSkip) => Ok(Some(public)),
        Err(public) => Err(public),
    }
}

/// The sums of a store as it is now.
pub async fn sums_of(store: &dyn Store, progress: &Progress) -> Result<Summary, RestoreError> {
    let mut sums = content::Sums::default();
    let mut snapshot = store.snapshot().await.map_err(LoadError::Store)?;
    while let Some(page) = snapshot.page().await.map_err(LoadError::Store)? {
        for item in &page {
            sums.add_item(item).map_err(|_| RestoreError::Differs)?;
            progress.add(item.key.len() + item.value.len());
        }
    }
    Ok(sums.finish())
}

struct Loaded {
    key: Key,
    value: Bytes,
    expires: Option<Time>,
}

/// The pass that is written to the store.
fn read(mut verified: Verified<Source>, pages: &mpsc::Sender<Vec<Loaded>>) -> Result<(), RestoreError> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    for record in verified.pass()? {
        let record = record?;
        let (value, expires) = content::decode(&record.key, &record.value)?;
        bytes += value.len();
        page.push(Loaded { key: key(&record.key)?, value: Bytes::copy_from_slice(value), expires });
        if page.len() == PAGE || bytes > PAGE_BYTES {
            bytes = 0;
            if pages.blocking_send(std::mem::take(&mut page)).is_err() {
                // Whoever loads has failed, and says why.
                return Ok(());
            }
        }
    }
    let _failed = pages.blocking_send(page);
    Ok(())
}

/// The record that makes the store a cluster again.
fn next_control(mut record: ControlRecord, epoch: u64, before: u64, head: &Head, terms: &Terms) -> ControlRecord {
    record.epoch = epoch;
    record.min_writer_epoch = epoch;
    // It belonged to a runner that is fenced.
    record.migration_lease = None;
    // An upgrade that was under way then goes on only when somebody says so now.
    if let Some(upgrade) = record.upgrade.as_mut().and_then(serde_json::Value::as_object_mut) {
        let reason = format!("restored from backup {}", head.id);
        upgrade.insert("paused".into(), serde_json::json!({"by": "restore", "at": terms.now, "reason": reason}));
    }
    let mut noted = record.backup.take().filter(serde_json::Value::is_object).unwrap_or_else(|| serde_json::json!({}));
    if let Some(noted) = noted.as_object_mut() {
        let restored = serde_json::json!({"id": head.id.to_string(), "made": head.created, "at": terms.now, "epoch_before": before});
        noted.insert("restored".into(), restored);
    }
    record.backup = Some(noted);
    record.written_by = Some(terms.version.to_string());
    record.written_at = Some(terms.now);
    record
}
