//! What only SQLite can get wrong: foreign, newer and damaged files, modes, full and read-only databases.

use super::open::{APPLICATION_ID, LAYOUT, SCHEMA};
use super::*;
use crate::{Manual, System, scan};
use rusqlite::Connection;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sqlite.db");
    (dir, path)
}
fn open(path: &Path) -> Result<Sqlite, OpenError> {
    Sqlite::open(path, Arc::new(System))
}
fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

#[test]
fn the_tables_are_as_they_were_released() {
    crate::hold::text("sqlite.txt", &format!("application {APPLICATION_ID}, layout {LAYOUT}\n{SCHEMA}"));
}
fn put(at: &str, value: Vec<u8>) -> Batch {
    Batch::new(None).put(key(at), value, None)
}
impl Options {
    pub(super) fn run_scripts(&self, rows: &Rows) {
        for script in self.scripts.lock().unwrap().drain(..) {
            rows.connection.execute_batch(&script).unwrap();
        }
    }

    fn script(&self, sql: &str) {
        self.scripts.lock().unwrap().push(sql.to_owned());
    }
}
/// And the options with which scripts reach its writer.
fn open_scripted(path: &Path) -> (Sqlite, Options) {
    let options = Options::default();
    (Sqlite::open_with(path, Arc::new(System), options.clone()).unwrap(), options)
}
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn foreign_and_newer_files_are_refused_and_left_alone() {
    let check = |make: &dyn Fn(&Path), expected: &dyn Fn(OpenError) -> bool| {
        let (dir, path) = scratch();
        make(&path);
        let (before, listing) = (std::fs::read(&path).ok(), names(dir.path()));
        let error = open(&path).err().unwrap();
        assert!(error.to_string().contains("sqlite.db"), "{error}");
        assert!(expected(error.clone()), "{error:?}");
        assert_eq!((std::fs::read(&path).ok(), names(dir.path())), (before, listing), "something was written");
    };
    let foreign = |error| matches!(error, OpenError::Foreign { .. });
    let sqlite = |application: u32, layout: u32, wal: bool| {
        move |path: &Path| {
            let connection = Connection::open(path).unwrap();
            let script = format!("PRAGMA application_id = {application}; PRAGMA user_version = {layout}; CREATE TABLE t (a);");
            connection.execute_batch(&script).unwrap();
            if wal {
                connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
            }
        }
    };
    check(&|path| std::fs::write(path, "").unwrap(), &foreign);
    check(&|path| std::fs::write(path, "hello\n".repeat(100)).unwrap(), &foreign);
    check(&|path| std::fs::create_dir(path).unwrap(), &foreign);
    check(&sqlite(0, 0, false), &foreign);
    check(&sqlite(7, LAYOUT, true), &foreign);
    check(&sqlite(APPLICATION_ID, 0, false), &foreign);
    check(&sqlite(APPLICATION_ID, LAYOUT + 1, true), &|error| matches!(error, OpenError::Newer { found: 2, .. }));
}

#[test]
fn a_newer_layout_still_in_the_log_is_refused_too() {
    let (_dir, path) = scratch();
    drop(open(&path).unwrap());
    let newer = Connection::open(&path).unwrap();
    newer.execute_batch("PRAGMA user_version = 9").unwrap();
    assert_eq!(open(&path).err(), Some(OpenError::Newer { path, found: 9 }));
}

#[test]
fn a_store_without_its_tables_is_damaged() {
    let (_dir, path) = scratch();
    drop(open(&path).unwrap());
    Connection::open(&path).unwrap().execute_batch("DROP TABLE change").unwrap();
    assert!(matches!(open(&path), Err(OpenError::Damaged { .. })));
}

#[test]
fn what_cannot_be_opened_is_named() {
    let (dir, path) = scratch();
    let missing = dir.path().join("no/such/dir/sqlite.db");
    assert!(matches!(open(&missing), Err(OpenError::Io { .. })));
    assert!(matches!(open(Path::new("/proc/lockgate.db")), Err(OpenError::Io { .. })));
    drop(path);
}

#[test]
fn the_file_is_private_from_its_creation_and_is_made_so() {
    let (dir, path) = scratch();
    let store = open(&path).unwrap();
    let modes = || {
        names(dir.path()).into_iter().map(|name| {
            let mode = std::fs::metadata(dir.path().join(&name)).unwrap().permissions().mode() & 0o777;
            (name, mode)
        })
    };
    let expected = ["sqlite.db", "sqlite.db-shm", "sqlite.db-wal"].map(|name| (name.to_owned(), 0o600));
    assert_eq!(modes().collect::<Vec<_>>(), expected, "nothing else is left beside it");
    drop(store);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let _store = open(&path).unwrap();
    assert!(modes().all(|(_, mode)| mode == 0o600));
}

#[test]
fn of_many_first_starts_at_once_one_makes_the_file() {
    let (dir, path) = scratch();
    let stores: Vec<Sqlite> = std::thread::scope(|scope| {
        let opening: Vec<_> = (0..8).map(|_| scope.spawn(|| open(&path))).collect();
        opening.into_iter().map(|one| one.join().unwrap().unwrap()).collect()
    });
    assert_eq!(names(dir.path()), ["sqlite.db", "sqlite.db-shm", "sqlite.db-wal"]);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        for (n, store) in stores.iter().enumerate() {
            store.commit(put(&format!("k/{n}"), vec![])).await.unwrap();
        }
        assert_eq!(scan(&stores[0], &Key::first(), &Key::last()).await.unwrap().len(), 8);
    });
}

#[tokio::test]
async fn a_full_disk_refuses_what_does_not_fit_and_nothing_else() {
    let (_dir, path) = scratch();
    let (store, options) = open_scripted(&path);
    store.commit(put("old", vec![1; 100])).await.unwrap();
    options.script("PRAGMA max_page_count = 60");
    let (one, big, two) = futures::join!(
        store.commit(put("one", vec![1; 10])),
        store.commit(put("big", vec![2; 1 << 20])),
        store.commit(put("two", vec![3; 10]))
    );
    assert_eq!(big, Err(CommitError::Store(StoreError::Full { place: path.display().to_string() })));
    assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
    assert_eq!(store.get(&key("big")).await, Ok(None));
    options.script("PRAGMA max_page_count = 100000");
    store.commit(put("big", vec![2; 1 << 20])).await.unwrap();
    assert_eq!(store.revision().await, Ok(4));
}

#[tokio::test]
async fn a_read_only_store_says_so_and_can_be_read() {
    let (_dir, path) = scratch();
    let (store, options) = open_scripted(&path);
    store.commit(put("k", vec![1])).await.unwrap();
    options.script("PRAGMA query_only = 1");
    let refused = store.commit(put("k", vec![2])).await;
    assert_eq!(refused, Err(CommitError::Store(StoreError::ReadOnly { place: path.display().to_string() })));
    assert_eq!(store.get(&key("k")).await.unwrap().unwrap().value, vec![1]);
}

#[tokio::test]
async fn a_lock_held_elsewhere_is_busy_and_nothing_is_written() {
    let (_dir, path) = scratch();
    let options = Options { busy: Duration::from_millis(20), ..Options::default() };
    let store = Sqlite::open_with(&path, Arc::new(System), options).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(store.commit(put("k", vec![1])).await, Err(CommitError::Store(StoreError::Busy { place: path.display().to_string() })));
    assert_eq!(store.get(&key("k")).await, Ok(None), "readers do not wait for a writer");
    other.execute_batch("ROLLBACK").unwrap();
    store.commit(put("k", vec![1])).await.unwrap();
}

#[tokio::test]
async fn history_is_bounded_and_what_it_forgot_is_answered() {
    for (history, history_bytes, size) in [(8, 1 << 30, 1), (1 << 30, 4096, 400)] {
        let (_dir, path) = scratch();
        let options = Options { history, history_bytes, ..Options::default() };
        let store = Sqlite::open_with(&path, Arc::new(System), options).unwrap();
        for n in 0..60_u8 {
            store.commit(put("k", vec![n; size])).await.unwrap();
        }
        store.close().await;
        let store = open(&path).unwrap();
        let Err(WatchError::Compacted { oldest }) = store.watch(vec![], Some(0)).await else { panic!("not compacted") };
        assert!((45..=60).contains(&oldest), "{oldest}");
        let mut watch = store.watch(vec![], Some(oldest - 1)).await.unwrap();
        assert!(matches!(watch.next().await, Some(Ok(crate::Event::Init { .. }))));
        for revision in oldest..=60 {
            assert_eq!(watch.next().await.unwrap().unwrap().revision(), revision);
        }
        assert!(matches!(store.watch(vec![], Some(oldest - 2)).await, Err(WatchError::Compacted { .. })));
        assert_eq!(store.revision().await, Ok(60));
    }
}

#[tokio::test]
async fn many_commits_at_once_share_transactions_and_keep_their_own_revisions() {
    let (_dir, path) = scratch();
    let store = open(&path).unwrap();
    let refused = |n: usize| n.is_multiple_of(5);
    let commits = (0..300).map(|n| {
        let batch = put(&format!("k/{n}"), vec![0]);
        store.commit(if refused(n) { batch.require(crate::Condition::Exists(key("never"))) } else { batch })
    });
    let outcomes = futures::future::join_all(commits).await;
    let mut revisions = Vec::new();
    for (n, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(done) => revisions.push((done.revision, n)),
            Err(error) => assert_eq!((error, refused(n)), (CommitError::Conflict { key: key("never") }, true)),
        }
    }
    revisions.sort_unstable();
    assert!(revisions.iter().map(|(revision, _)| *revision).eq(1..=240));
    for (revision, n) in revisions {
        assert_eq!(store.get(&key(&format!("k/{n}"))).await.unwrap().unwrap().revision, revision);
    }
}

#[tokio::test]
async fn a_damaged_file_gives_named_errors_and_no_panic() {
    let (dir, path) = scratch();
    let clock = Arc::new(Manual::at(Time::EPOCH));
    let store = Sqlite::open(&path, clock.clone()).unwrap();
    for n in 0..200 {
        store.commit(put(&format!("k/{n}"), vec![7; 700])).await.unwrap();
    }
    store.close().await;
    drop(store);
    let good = std::fs::read(&path).unwrap();
    let mut named = 0;
    for seed in 0..24_usize {
        let mut bad = good.clone();
        let at = 100 + seed * (bad.len() - 100) / 24;
        let end = (at + 3000 + seed * 97).min(bad.len());
        for (n, byte) in bad[at..end].iter_mut().enumerate() {
            *byte = ((n * (seed + 3) * 31) >> 2) as u8;
        }
        let path = dir.path().join(format!("bad-{seed}.db"));
        std::fs::write(&path, &bad).unwrap();
        let store = match Sqlite::open(&path, clock.clone()) {
            Ok(store) => store,
            Err(error) => {
                assert!(matches!(error, OpenError::Damaged { .. } | OpenError::Foreign { .. } | OpenError::Io { .. }), "{error:?}");
                named += 1;
                continue;
            }
        };
        let read = scan(&store, &Key::first(), &Key::last()).await;
        let write = store.commit(put("k/1", vec![1; 5000])).await;
        let watch = store.watch(vec![], Some(0)).await;
        if let Err(error) = read {
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
            named += 1;
        }
        if let Err(error) = write {
            assert!(matches!(error, CommitError::Store(StoreError::Corrupt { .. })), "{error:?}");
        }
        assert!(!matches!(watch, Err(WatchError::Store(StoreError::Closed))), "a thread died");
        store.close().await;
    }
    assert!(named > 5, "only {named} of 24 were noticed");
}

#[test]
fn sqlite_errors_have_names() {
    use rusqlite::ffi;
    let check = |code: i32, expected: &str| {
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let named = format!("{:?}", rows::named("x", &error));
        assert_eq!(named.split(' ').next(), Some(expected), "{code}");
    };
    check(ffi::SQLITE_BUSY, "Busy");
    check(ffi::SQLITE_LOCKED, "Busy");
    check(ffi::SQLITE_FULL, "Full");
    check(ffi::SQLITE_READONLY, "ReadOnly");
    check(ffi::SQLITE_READONLY_DIRECTORY, "ReadOnly");
    check(ffi::SQLITE_CORRUPT, "Corrupt");
    check(ffi::SQLITE_NOTADB, "Corrupt");
    check(ffi::SQLITE_IOERR_FSYNC, "Io");
    check(ffi::SQLITE_NOMEM, "Io");
    check(ffi::SQLITE_CANTOPEN, "Io");
}
