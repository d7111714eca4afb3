//! Makes one backup: a snapshot of the bare store, page by page, through the file's writer into any sink.
//!
//! Two halves run side by side: one reads pages, the other compresses, encrypts and writes them on a blocking thread; at most two pages
//! wait in between, so that memory stays bounded whatever the store's size. The position of the audit log is taken before the
//! snapshot: what is recorded between the two is in the log and not counted as covered by the backup.

use super::{Progress, Stage, content};
use backup::{AuditPosition, Manifest, Origin, Protection, Signer, Writer, Written};
use rand::Rng as _;
use std::{collections::VecDeque, io::Write, sync::Arc};
use store::{Item, Key, Snapshot, Store, StoreError};
use tokio::sync::mpsc;
use types::{Code, Extra, Public};

/// What a backup is made of.
pub struct Source {
    /// The bare store, not a view of it.
    pub store: Arc<dyn Store>,
    pub origin: Origin,
    pub audit: Option<AuditPosition>,
    pub signer: Box<dyn Signer>,
}

/// A backup that is complete.
#[derive(Debug)]
pub struct Made<W> {
    pub written: Written,
    pub manifest: Manifest,
    pub sink: W,
}

/// Why no backup was made. What the sink holds then is not one.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error("the store has no readable control record: {0}")]
    Control(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Write(#[from] backup::WriteError),
    #[error("the writer of the backup broke")]
    Broke,
}

impl MakeError {
    /// For the administrator who asked for the backup.
    pub fn public(&self) -> Public {
        match self {
            Self::Control(_) | Self::Store(_) => Public::new(Code::StoreBroken, self.to_string()),
            Self::Write(error) => error.public(),
            Self::Broke => Public::new(Code::Internal, self.to_string()),
        }
    }
}

type Page = Result<Vec<Item>, StoreError>;

/// Writes a backup of the store as it is now.
pub async fn make<W>(source: Source, protection: Protection, sink: W, progress: Arc<Progress>) -> Result<Made<W>, MakeError>
where
    W: Write + Send + 'static,
{
    let mut snapshot = source.store.snapshot().await?;
    let (begun, manifest) = begin(&mut snapshot, source.audit).await?;
    let (pages, queue) = mpsc::channel::<Page>(2);
    let told = manifest.clone();
    let work = move || write(queue, &source.origin, &told, &protection, source.signer, sink, &progress);
    let writing = tokio::task::spawn_blocking(work);
    for page in begun {
        // A writer that has ended says why below.
        let _ended = pages.send(Ok(page)).await;
    }
    loop {
        let page = snapshot.page().await;
        let last = !matches!(page, Ok(Some(_)));
        let taken = match page {
            Ok(Some(page)) => pages.send(Ok(page)).await,
            Ok(None) => Ok(()),
            Err(error) => pages.send(Err(error)).await,
        };
        if last || taken.is_err() {
            break;
        }
    }
    drop((pages, snapshot));
    let (written, sink) = writing.await.map_err(|_| MakeError::Broke)??;
    Ok(Made { written, manifest, sink })
}

/// Reads on until the control record, which the manifest tells of.
async fn begin(snapshot: &mut Snapshot, audit: Option<AuditPosition>) -> Result<(VecDeque<Vec<Item>>, Manifest), MakeError> {
    let missing = || MakeError::Control("there is none".into());
    let mut pages = VecDeque::new();
    loop {
        let page = snapshot.page().await?.ok_or_else(missing)?;
        let control = page.iter().find(|item| item.key == Key::control()).map(|item| store::control::parse(&item.value));
        let past = page.last().is_none_or(|item| item.key > Key::control());
        pages.push_back(page);
        match control {
            Some(record) => {
                let record = record.map_err(MakeError::Control)?;
                let manifest = Manifest {
                    revision: snapshot.revision(),
                    epoch: record.epoch,
                    cluster_version: Some(record.cluster_version),
                    driver: snapshot.driver().into(),
                    audit,
                    extra: Extra::new(),
                };
                return Ok((pages, manifest));
            }
            None if past => return Err(missing()),
            None => {}
        }
    }
}

fn write<W: Write>(
    mut queue: mpsc::Receiver<Page>,
    origin: &Origin,
    manifest: &Manifest,
    protection: &Protection,
    signer: Box<dyn Signer>,
    sink: W,
    progress: &Progress,
) -> Result<(Written, W), MakeError> {
    let mut entropy = |bytes: &mut [u8]| rand::rng().fill_bytes(bytes);
    let mut writer = Writer::create(sink, origin, manifest, protection, signer, &mut entropy)?;
    let mut value = Vec::new();
    progress.begin(Stage::Writing, 0);
    while let Some(page) = queue.blocking_recv() {
        for item in page? {
            if content::carried(item.key.as_bytes()) {
                content::encode(&item.value, item.expires, &mut value);
                writer.record(item.key.as_bytes(), &value)?;
                progress.add(item.key.len() + value.len());
            }
        }
    }
    Ok(writer.finish()?)
}
