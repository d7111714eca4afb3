//! What the memory driver does on purpose to find callers that assume too much.

use crate::{clock, key};
use std::sync::Arc;
use store::memory::{Interrupt, Options};
use store::{Batch, CommitError, Documents, Event, Key, Memory, Store, WatchError, WriterEpoch, documents};

async fn put(store: &Memory, at: &str) -> u64 {
    store.commit(Batch::new(None).put(key(at), "v", None)).await.unwrap().revision
}

#[tokio::test]
async fn a_slow_watcher_is_closed_and_the_others_go_on() {
    let store = Memory::with(clock(), Options { history: 16, ..Options::default() });
    let mut slow = store.watch(vec![], None).await.unwrap();
    let mut quick = store.watch(vec![], None).await.unwrap();
    assert_eq!(quick.next().await, Some(Ok(Event::Init { revision: 0 })));
    for n in 0..100 {
        put(&store, &format!("k/{n}")).await;
        assert_eq!(quick.next().await.unwrap().unwrap().revision(), n + 1);
    }
    assert_eq!(slow.next().await, Some(Ok(Event::Init { revision: 0 })));
    assert_eq!(slow.next().await, Some(Err(WatchError::Lagged { oldest: 85 })));
    assert_eq!(slow.next().await, None);
    assert_eq!(store.watch(vec![], Some(0)).await.err(), Some(WatchError::Compacted { oldest: 85 }));
}

#[tokio::test]
async fn an_interrupted_commit_is_ambiguous_whether_or_not_it_was_done() {
    let store = Memory::new(clock());
    let ambiguous = Err(CommitError::Ambiguous("interrupted".into()));
    store.interrupt_next(Interrupt::Before);
    assert_eq!(store.commit(Batch::new(None).put(key("k"), "v", None)).await, ambiguous);
    assert_eq!(store.get(&key("k")).await, Ok(None));
    store.interrupt_next(Interrupt::After);
    assert_eq!(store.commit(Batch::new(None).put(key("k"), "v", None)).await, ambiguous);
    assert!(store.get(&key("k")).await.unwrap().is_some());
    assert_eq!(put(&store, "k").await, 2);
}

#[tokio::test]
async fn the_strict_driver_cuts_pages_short() {
    let store = Memory::new(clock());
    for n in 0..50 {
        put(&store, &format!("k/{n:02}")).await;
    }
    let mut short = 0;
    for _ in 0..50 {
        let page = store.range(&Key::first(), &Key::last(), 40).await.unwrap();
        assert!(page.next.is_some() && !page.items.is_empty());
        short += usize::from(page.items.len() < 40);
    }
    assert!(short > 0);
}

#[tokio::test]
async fn an_ambiguous_write_reaches_the_caller_as_such() {
    let store = Arc::new(Memory::new(clock()));
    let documents = Documents::new(store.clone(), WriterEpoch(1));
    let document = serde_json::from_str(r#"{"kind":"role","version":"v1","metadata":{"name":"x"},"spec":{}}"#).unwrap();
    store.interrupt_next(Interrupt::After);
    let error = documents.create(&document).await.unwrap_err();
    assert!(matches!(error, documents::WriteError::Commit(CommitError::Ambiguous(_))));
    assert_eq!(error.public("7f3a").reference.as_deref(), Some("7f3a"));
}
