//! Makes, checks and connects to the file.
//!
//! A new file is made under another name, complete, with mode 0600 from its first byte, and then linked into place: the
//! final name never shows half a store, and of two processes that start at once one wins. An existing file is judged by
//! its first hundred bytes before SQLite sees it, because SQLite would already put files beside it.

use rusqlite::{Connection, MAIN_DB, OpenFlags};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `LGST` in the file's header, for `file(1)` and for us.
pub(super) const APPLICATION_ID: u32 = 0x4c47_5354;
/// The layout of the tables. Contents are versioned by the cluster version, not here.
pub(super) const LAYOUT: u32 = 1;

pub(super) const SCHEMA: &str = "
    CREATE TABLE item (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL UNIQUE,
        revision INTEGER NOT NULL,
        expires INTEGER,
        value BLOB NOT NULL
    ) STRICT;
    CREATE INDEX item_expires ON item (expires) WHERE expires IS NOT NULL;
    CREATE TABLE change (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL,
        expires INTEGER,
        value BLOB
    ) STRICT;
";

/// Why a file was not opened. Nothing was written to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("{path:?} is not a Lockgate store: {why}")]
    Foreign { path: PathBuf, why: String },
    #[error("{path:?} was made by a newer Lockgate: its layout is {found}, this release knows {LAYOUT}")]
    Newer { path: PathBuf, found: u32 },
    #[error("{path:?} is damaged: {detail}")]
    Damaged { path: PathBuf, detail: String },
    #[error("{path:?} is read-only")]
    ReadOnly { path: PathBuf },
    #[error("{path:?} is locked by another process")]
    Busy { path: PathBuf },
    #[error("no space left for {path:?}")]
    Full { path: PathBuf },
    #[error("{path:?} cannot be opened: {detail}")]
    Io { path: PathBuf, detail: String },
}

/// Sees to it that a good file is there.
pub(super) fn prepare(path: &Path) -> Result<(), OpenError> {
    match std::fs::File::open(path) {
        Ok(file) => judge(path, file)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            create(path)?;
            let file = std::fs::File::open(path).map_err(|error| io(path, &error))?;
            judge(path, file)?;
        }
        Err(error) => return Err(io(path, &error)),
    }
    tighten(path)
}

/// Whether a file is there, which then is a good one. Nothing is touched.
pub(super) fn check(path: &Path) -> Result<bool, OpenError> {
    match std::fs::File::open(path) {
        Ok(file) => judge(path, file).map(|()| true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io(path, &error)),
    }
}

/// A connection for one thread.
pub(super) fn connect(path: &Path, busy: Duration) -> Result<Connection, OpenError> {
    let fault = |error: rusqlite::Error| fault(path, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let real = path.canonicalize().map_err(|error| io(path, &error))?;
    let connection = Connection::open_with_flags(real, flags).map_err(fault)?;
    connection.busy_timeout(busy).map_err(fault)?;
    if connection.is_readonly(MAIN_DB).map_err(fault)? {
        return Err(OpenError::ReadOnly { path: path.into() });
    }
    // Again, now with what is still in the write-ahead log.
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(fault);
    versions(path, u32::try_from(number("application_id")?).ok(), u32::try_from(number("user_version")?).ok())?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0)).map_err(fault)?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(OpenError::Io { path: path.into(), detail: format!("the file system does not allow a write-ahead log (got {mode})") });
    }
    connection
        .execute_batch(
            "PRAGMA synchronous = FULL; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA temp_store = MEMORY;
             PRAGMA journal_size_limit = 67108864;",
        )
        .map_err(fault)?;
    connection.set_prepared_statement_cache_capacity(32);
    // A table that is not there shows now and not at the first request.
    connection.prepare_cached("SELECT id, key, revision, expires, value FROM item").map_err(fault)?;
    connection.prepare_cached("SELECT id, key, expires, value FROM change").map_err(fault)?;
    Ok(connection)
}

/// Reads the header (sqlite.org/fileformat2.html, section 1.3) without SQLite.
fn judge(path: &Path, mut file: std::fs::File) -> Result<(), OpenError> {
    let foreign = |why: &str| OpenError::Foreign { path: path.into(), why: why.into() };
    if file.metadata().map_err(|error| io(path, &error))?.is_dir() {
        return Err(foreign("it is a directory"));
    }
    let mut header = [0; 100];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(foreign("it is too short")),
        Err(error) => return Err(io(path, &error)),
    }
    if !header.starts_with(b"SQLite format 3\0") {
        return Err(foreign("it is not an SQLite file"));
    }
    let number = |at: usize| header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    versions(path, number(68), number(60))
}

fn versions(path: &Path, application: Option<u32>, layout: Option<u32>) -> Result<(), OpenError> {
    if application != Some(APPLICATION_ID) {
        return Err(OpenError::Foreign { path: path.into(), why: "another program made this SQLite file".into() });
    }
    match layout {
        Some(LAYOUT) => Ok(()),
        Some(found) if found > LAYOUT => Err(OpenError::Newer { path: path.into(), found }),
        _ => Err(OpenError::Foreign { path: path.into(), why: "its layout has no number".into() }),
    }
}

/// Makes a complete file beside the final name and links it there; somebody else's that came first stands.
fn create(path: &Path) -> Result<(), OpenError> {
    let scratch = reserve(path)?;
    let made = fill(&scratch, path).and_then(|()| link(&scratch, path));
    for tail in ["", "-wal", "-shm", "-journal"] {
        // Whatever is left of it is in nobody's way.
        let _gone = std::fs::remove_file(with_tail(&scratch, tail));
    }
    made
}

/// An empty file that only this call has.
fn reserve(path: &Path) -> Result<PathBuf, OpenError> {
    let name = path.file_name().ok_or_else(|| OpenError::Io { path: path.into(), detail: "it has no file name".into() })?;
    for number in 0..1000 {
        let scratch = path.with_file_name(format!(".{}.{}-{number}.new", name.to_string_lossy(), std::process::id()));
        match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&scratch) {
            Ok(_) => return Ok(scratch),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io(path, &error)),
        }
    }
    Err(OpenError::Io { path: path.into(), detail: "the directory is full of unfinished stores".into() })
}

fn fill(scratch: &Path, path: &Path) -> Result<(), OpenError> {
    let fault = |error: rusqlite::Error| fault(path, &error);
    let connection = Connection::open_with_flags(scratch, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(fault)?;
    let script = format!(
        "PRAGMA synchronous = FULL; BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {LAYOUT}; {SCHEMA} COMMIT;"
    );
    connection.execute_batch(&script).map_err(fault)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).map_err(fault)?;
    connection.close().map_err(|(_, error)| fault(error))
}

fn link(scratch: &Path, path: &Path) -> Result<(), OpenError> {
    match std::fs::hard_link(scratch, path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        // A file system without links; here two first starts at the same instant are not told apart.
        Err(_) => std::fs::rename(scratch, path).map_err(|error| io(path, &error))?,
    }
    // The name must survive a power cut too.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(parent).and_then(|directory| directory.sync_all()).map_err(|error| io(path, &error))
}

/// It holds the cluster's keys: nobody else may read it, whoever copied it here.
fn tighten(path: &Path) -> Result<(), OpenError> {
    let mode = std::fs::metadata(path).map_err(|error| io(path, &error))?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o777), "the store could be read by others; its mode is now 0600");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(|error| io(path, &error))
}

pub(super) fn with_tail(path: &Path, tail: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(tail);
    name.into()
}

pub(super) fn io(path: &Path, error: &std::io::Error) -> OpenError {
    match error.kind() {
        ErrorKind::StorageFull => OpenError::Full { path: path.into() },
        ErrorKind::ReadOnlyFilesystem => OpenError::ReadOnly { path: path.into() },
        _ => OpenError::Io { path: path.into(), detail: error.to_string() },
    }
}

/// Names what SQLite found while opening.
pub(super) fn fault(path: &Path, error: &rusqlite::Error) -> OpenError {
    use crate::StoreError;
    let path = PathBuf::from(path);
    match super::rows::named("", error) {
        StoreError::Busy { .. } => OpenError::Busy { path },
        StoreError::Full { .. } => OpenError::Full { path },
        StoreError::ReadOnly { .. } => OpenError::ReadOnly { path },
        StoreError::Corrupt { detail, .. } => OpenError::Damaged { path, detail },
        StoreError::Io { detail, .. } => OpenError::Io { path, detail },
        StoreError::Closed
        | StoreError::Unreachable { .. }
        | StoreError::Refused { .. }
        | StoreError::Quota { .. }
        | StoreError::SnapshotLost { .. } => OpenError::Io { path, detail: error.to_string() },
    }
}
