//! Backups that lie in a bucket: `tctl backup ls`, and fetching one for the commands that need a file.
//!
//! Fetched is into a file of mode 0600 in the directory for temporary files (`TMPDIR`), which goes when the command ends. It is encrypted
//! as it was; what is not, is as open as it lay in the bucket. A backup is read several times, hence the file.

use super::{Bar, FileArgs, RemoteArgs, size};
use crate::{
    config::Config,
    connection::runtime,
    exit::{Could as _, Failure, Outcome, usage},
    output::{Format, Table, show},
    tctl::Global,
};
use auth::backup::place::{Credentials, Opened, Place, PlaceError};
use serde_json::json;
use std::{
    fs::{self, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};
use types::{Code, Public};

/// Where the configuration sends backups, if there is one that does.
fn configured(global: &Global) -> Result<Option<Place>, Public> {
    let default = Path::new(crate::config::DEFAULT_PATH);
    let path = global.config.as_deref().or_else(|| default.exists().then_some(default));
    let config = path.map(Config::load).transpose()?;
    Ok(config.and_then(|config| config.auth_service.backup).and_then(|backup| backup.schedule()).map(|schedule| schedule.place))
}

/// A place with what was said on the command line, else by the configuration about the same bucket.
fn place(global: &Global, text: &str, remote: &RemoteArgs) -> Result<Place, Public> {
    let mut place: Place = text.parse().map_err(|error: auth::backup::place::BadPlace| usage(error.to_string()))?;
    if let Place::Bucket(bucket) = &mut place {
        if let Some(Place::Bucket(known)) =
            configured(global)?.filter(|known| matches!(known, Place::Bucket(known) if known.name == bucket.name))
        {
            (bucket.region, bucket.endpoint, bucket.credentials) = (known.region, known.endpoint, known.credentials);
        }
        bucket.region = remote.region.clone().or(bucket.region.take());
        bucket.endpoint = remote.endpoint.clone().or(bucket.endpoint.take());
        if let Some(file) = &remote.credentials_file {
            bucket.credentials = Credentials::File(file.clone());
        }
    }
    Ok(place)
}

/// `tctl backup ls`
pub(super) fn ls(global: &Global, text: Option<&str>, remote: &RemoteArgs, format: Format) -> Outcome {
    let could = || "list the backups";
    let place = match text {
        Some(text) => place(global, text, remote).could(could())?,
        None => configured(global)
            .could(could())?
            .ok_or_else(|| Failure::new(could(), usage("no place was named, and no configuration sends backups anywhere")))?,
    };
    let found = runtime().could(could())?.block_on(async { Opened::new(&place).await?.list(None).await });
    let found = found.map_err(|error: PlaceError| error.public()).could(could())?;
    let mut table = Table::new(&["Name", "Made (UTC)", "Size"]);
    for backup in found.iter().rev() {
        table.row([backup.name.clone(), backup.made.to_string(), size(backup.bytes)]);
    }
    let value: Vec<_> = found.iter().rev().map(|backup| json!({"name": backup.name, "made": backup.made, "bytes": backup.bytes})).collect();
    show(format, &table, &format!("No backups in {place}."), &value).could(could())?;
    Ok(ExitCode::SUCCESS)
}

/// A file that goes with this.
pub(super) struct Fetched(PathBuf);

impl Fetched {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.0);
    }
}

/// Brings a backup from its bucket.
pub(super) fn fetch(global: &Global, args: &FileArgs) -> Result<Fetched, Failure> {
    let could = || args.what("fetch");
    let text = args.file.to_string_lossy();
    let (at, name) = text.rsplit_once('/').filter(|(at, _)| at.len() > "s3://".len()).ok_or_else(|| {
        Failure::new(could(), usage("it names a bucket and no file").hint("which there are: tctl backup ls s3://bucket/prefix"))
    })?;
    let place = place(global, at, &args.remote).could(could())?;
    let path = std::env::temp_dir().join(format!("lockgate-{}.lgbackup", uuid::Uuid::new_v4().simple()));
    let unwritten = |error: std::io::Error| {
        Public::new(Code::BackupIo, format!("{}: {error}", path.display()))
            .hint("name a directory with more room: TMPDIR=/somewhere tctl backup ...")
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(unwritten).could(could())?;
    let fetched = Fetched(path.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().could(could())?;
    let opened = runtime.block_on(async { Opened::new(&place).await?.read(name).await });
    let (mut source, bytes) = opened.map_err(|error| error.public()).could(could())?;
    let (mut bar, mut piece, mut done) = (Bar::new("Fetching", Some(bytes)), vec![0; 256 << 10], 0u64);
    loop {
        let unread = |error: std::io::Error| Public::new(Code::BackupIo, error.to_string());
        let count = source.read(&mut piece).map_err(unread).could(could())?;
        if count == 0 {
            break;
        }
        file.write_all(piece.get(..count).unwrap_or_default()).map_err(unwritten).could(could())?;
        done += count as u64;
        bar.show(done, "");
    }
    Ok(fetched)
}
