//! Reads the control record of a file that may turn out not to be ours to open, and leaves every byte as it is.
//!
//! Opening a file for work already moves what its last process left in the write-ahead log into the file, so a start that a
//! rule refuses (G2, G5) would have changed something. Here the log is read in place, with its index in memory, and stays.

use super::open::{OpenError, check, fault};
use crate::Key;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, config::DbConfig};
use std::path::Path;

/// The bytes of the control record; `None` when there is no file yet, or no record in it. Blocks.
pub fn peek(path: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    if !check(path)? {
        return Ok(None);
    }
    let log = super::open::with_tail(path, "-wal");
    if std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        // Another process that works with the file excludes us from reading the log alone; then nothing is left over in it.
        return match with_log(path) {
            Err(OpenError::Busy { .. }) => shared(path),
            read => read,
        };
    }
    immutable(path)
}

/// Nothing is in the log: the file alone is the store.
fn immutable(path: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    let fault = |error: rusqlite::Error| fault(path, &error);
    let real = path.canonicalize().map_err(|error| super::open::io(path, &error))?;
    // As a URI every byte that means something there is written in hex.
    let text: String = real.as_os_str().as_encoded_bytes().iter().map(|byte| format!("%{byte:02x}")).collect();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(format!("file:{text}?immutable=1"), flags).map_err(fault)?;
    record(&connection).map_err(fault)
}

/// Reads through the log without the file beside it that shares its index, and without moving the log's content on closing.
fn with_log(path: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    let fault = |error: rusqlite::Error| fault(path, &error);
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(fault)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(fault)?;
    // Whoever works with the file does so for longer than anybody would wait.
    connection.busy_timeout(std::time::Duration::ZERO).map_err(fault)?;
    connection.pragma_update_and_check(None, "locking_mode", "exclusive", |_| Ok(())).map_err(fault)?;
    let read = record(&connection).map_err(fault);
    connection.close().map_err(|(_, error)| fault(error))?;
    read
}

fn shared(path: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    let fault = |error: rusqlite::Error| fault(path, &error);
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(fault)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(fault)?;
    connection.busy_timeout(std::time::Duration::from_secs(10)).map_err(fault)?;
    record(&connection).map_err(fault)
}

fn record(connection: &Connection) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut statement = connection.prepare("SELECT value FROM item WHERE key = ?")?;
    statement.query_row([Key::control().as_bytes()], |row| row.get(0)).optional()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Sqlite, Store as _};
    use std::{collections::BTreeMap, sync::Arc};

    fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let all = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        all.map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap())).collect()
    }

    async fn write(path: &Path, value: &'static str) -> Sqlite {
        let store = Sqlite::open(path, Arc::new(crate::System)).unwrap();
        store.commit(Batch::new(None).put(Key::control(), value, None)).await.unwrap();
        store
    }

    #[tokio::test]
    async fn g5_reading_the_control_record_changes_no_byte_whatever_state_the_file_is_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b%?.db");
        assert_eq!(peek(&path).unwrap(), None);
        assert!(files(dir.path()).is_empty());

        let store = write(&path, "one").await;
        assert_eq!(peek(&path).unwrap().unwrap(), b"one", "another process is at work");
        store.close().await;
        drop(store);
        let closed = files(dir.path());
        assert_eq!(peek(&path).unwrap().unwrap(), b"one");
        assert_eq!(files(dir.path()), closed);

        // As a killed process leaves it: the newest is in the log only.
        let store = write(&path, "two").await;
        let killed = tempfile::tempdir().unwrap();
        for (name, bytes) in files(dir.path()).iter().filter(|(name, _)| !name.ends_with("-shm")) {
            std::fs::write(killed.path().join(name), bytes).unwrap();
        }
        drop(store);
        let (path, before) = (killed.path().join("a b%?.db"), files(killed.path()));
        assert!(before.iter().any(|(name, bytes)| name.ends_with("-wal") && !bytes.is_empty()), "{:?}", before.keys());
        assert_eq!(peek(&path).unwrap().unwrap(), b"two");
        assert!(files(killed.path()) == before, "{:?} became {:?}", before.keys(), files(killed.path()).keys());
    }
}
