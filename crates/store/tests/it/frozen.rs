//! SQLite files that earlier releases left behind: `tests/golden/<version>/state.db`, opened by what is here today.
//!
//! Beside each stands what has to be found in it, `state.txt`: every item, and the changes that a watch resumes with. `cargo xtask freeze`
//! makes both for the version to come, when there are none yet. Tables and keys of the other drivers are held as text by tests
//! of those drivers; what the values mean, by `types` and `harness`.

use crate::{clock, key};
use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};
use store::{Batch, Event, Key, Sqlite, Store, WriterEpoch, scan};

/// Behind which revision the watch begins.
const SEEN: u64 = 3;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Items of every kind: changed, removed, large, binary, expired and to expire, and the record that fences.
async fn leave_behind(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let path = folder.join("state.db");
    let store = Sqlite::open(&path, clock()).unwrap();
    let later = |seconds| Some(store.clock().now().plus(Duration::from_secs(seconds)));
    let epoch = Some(WriterEpoch(3));
    let batches = [
        Batch::new(None).put(key("control"), r#"{"format":1,"min_writer_epoch":2}"#, None),
        Batch::new(epoch).put(key("doc/role/access"), r#"{"kind":"role"}"#, None).put(key("doc/user/alice"), "{}", None),
        Batch::new(epoch).put(key("doc/user/alice"), r#"{"kind":"user"}"#, None),
        Batch::new(epoch).put(key("doc/node/gone"), "x", None).put(key("internal/auth/seat"), "s", later(60)),
        Batch::new(epoch).delete(key("doc/node/gone")),
        Batch::new(epoch).put(key("internal/bytes"), (0..=255).collect::<Vec<u8>>(), None),
        Batch::new(epoch).put(key("doc/large/one"), "0123456789".repeat(1000), later(86_400 * 365 * 100)),
    ];
    for batch in batches {
        store.commit(batch).await.unwrap();
    }
    store.keep_alive(&key("internal/auth/seat"), None, store.clock().now().plus(Duration::from_secs(90)), epoch).await.unwrap();
    let listed = listing(&store).await;
    store.close().await;
    fs::write(folder.join("state.txt"), listed).unwrap();
}

/// All that is in it, as text.
async fn listing(store: &Sqlite) -> String {
    let mut text = format!("revision {}\n", store.revision().await.unwrap());
    for item in scan(store, &Key::first(), &Key::last()).await.unwrap() {
        let expires = item.expires.map(|at| format!(" until {at}")).unwrap_or_default();
        text += &format!("{} at {}{expires}: {}\n", item.key, item.revision, item.value.escape_ascii());
    }
    let (newest, mut watch) = (store.revision().await.unwrap(), store.watch(vec![], Some(SEEN)).await.unwrap());
    loop {
        let event = watch.next().await.unwrap().unwrap();
        match &event {
            Event::Init { revision } => text += &format!("watch from {revision}\n"),
            Event::Put(item) => text += &format!("watch: {} at {}\n", item.key, item.revision),
            Event::Delete { key, revision } => text += &format!("watch: no {key} at {revision}\n"),
        }
        if event.revision() >= newest {
            return text;
        }
    }
}

async fn comes_back(folder: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    fs::copy(folder.join("state.db"), &path).unwrap();
    let store = Sqlite::open(&path, clock()).unwrap();
    assert_eq!(listing(&store).await, fs::read_to_string(folder.join("state.txt")).unwrap(), "{}", folder.display());
    let newest = store.revision().await.unwrap();
    let write = |epoch| Batch::new(Some(WriterEpoch(epoch))).put(key("doc/user/bob"), "{}", None);
    assert!(store.commit(write(1)).await.is_err(), "the fence of the file holds");
    assert_eq!(store.commit(write(3)).await.unwrap().revision, newest + 1);
    store.close().await;
    assert_eq!(Sqlite::open(&path, clock()).unwrap().revision().await, Ok(newest + 1));
}

#[tokio::test]
async fn files_of_every_release_are_found_as_they_were_released() {
    let own = golden().join(env!("CARGO_PKG_VERSION"));
    if env::var_os("LOCKGATE_FREEZE").is_some() && !own.join("state.db").exists() {
        leave_behind(&own).await;
    }
    let mut folders: Vec<PathBuf> = fs::read_dir(golden()).expect("tests/golden").map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("state.db").exists());
    folders.sort();
    assert!(!folders.is_empty());
    for folder in folders {
        comes_back(&folder).await;
    }
}
