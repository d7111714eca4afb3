//! Writers under which a store is harmed, and what must be true afterwards whatever happened: nothing acknowledged is lost, nothing
//! is done twice, and a watcher saw every change once and in order.

use crate::key;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use store::{Batch, CommitError, Condition, Event, Key, Store, StoreError, WatchError, scan};

/// Several writers, each making keys that nobody else makes; and a watcher.
pub(crate) struct Load {
    store: Arc<dyn Store>,
    stop: Arc<AtomicBool>,
    pub(crate) acknowledged: Arc<AtomicUsize>,
    writers: Vec<tokio::task::JoinHandle<Said>>,
    watcher: tokio::task::JoinHandle<Vec<u64>>,
}

/// What one writer was told.
#[derive(Default)]
struct Said {
    done: BTreeSet<String>,
    unknown: BTreeSet<String>,
    not_done: BTreeSet<String>,
}

impl Load {
    /// `watched` may be another handle than the one that writes.
    pub(crate) async fn start(store: Arc<dyn Store>, watched: &Arc<dyn Store>) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let from = store.revision().await.unwrap();
        let watcher = tokio::spawn(watch(Arc::clone(watched), from));
        let writers = (0..4).map(|writer| tokio::spawn(write(Arc::clone(&store), writer, Arc::clone(&stop), Arc::clone(&acknowledged))));
        Self { writers: writers.collect(), store, stop, acknowledged, watcher }
    }

    /// Until that many more were acknowledged.
    pub(crate) async fn until(&self, more: usize) {
        let goal = self.acknowledged.load(Ordering::SeqCst) + more;
        let wait = async {
            while self.acknowledged.load(Ordering::SeqCst) < goal {
                tokio::task::yield_now().await;
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), wait).await.expect("the writers go on");
    }

    /// Stops and checks. Returns how many ended unknown.
    pub(crate) async fn finish(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Said::default();
        for writer in self.writers {
            let said = writer.await.unwrap();
            all.done.extend(said.done);
            all.unknown.extend(said.unknown);
            all.not_done.extend(said.not_done);
        }
        let end = self.store.commit(Batch::new(None).put(key("load-end"), "x", None)).await.unwrap().revision;
        let items = scan(&*self.store, &Key::dir(["load"]).unwrap(), &Key::dir(["load"]).unwrap().prefix_end()).await.unwrap();
        let there: BTreeSet<String> = items.iter().map(|item| item.key.to_string()).collect();
        assert!(all.done.is_subset(&there), "lost: {:?}", all.done.difference(&there).collect::<Vec<_>>());
        assert!(all.not_done.is_disjoint(&there), "done though refused: {:?}", all.not_done.intersection(&there).collect::<Vec<_>>());
        assert!(there.iter().all(|name| all.done.contains(name) || all.unknown.contains(name)), "out of nowhere");
        let seen = tokio::time::timeout(std::time::Duration::from_secs(20), self.watcher).await.expect("the watcher arrives").unwrap();
        let mut expected: Vec<u64> = items.iter().map(|item| item.revision).collect();
        expected.sort_unstable();
        expected.push(end);
        assert_eq!(seen, expected, "a watcher sees every change once, in order");
        all.unknown.len()
    }
}

async fn write(store: Arc<dyn Store>, writer: usize, stop: Arc<AtomicBool>, acknowledged: Arc<AtomicUsize>) -> Said {
    let mut said = Said::default();
    for number in 0_usize.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let name = format!("load/{writer}/{number:06}");
        // A write that was done and is repeated blindly would be refused.
        let batch = Batch::new(None).require(Condition::Absent(key(&name))).put(key(&name), vec![7; 200], None);
        match store.commit(batch).await {
            Ok(_) => {
                said.done.insert(name);
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            Err(CommitError::Ambiguous(_)) => drop(said.unknown.insert(name)),
            Err(CommitError::Store(StoreError::Unreachable { .. } | StoreError::Busy { .. } | StoreError::ReadOnly { .. })) => {
                said.not_done.insert(name);
            }
            Err(error) => panic!("{error}"),
        }
    }
    said
}

/// The revisions of all events up to the end of the load.
async fn watch(store: Arc<dyn Store>, from: u64) -> Vec<u64> {
    let mut seen = Vec::new();
    let mut at = from;
    'again: loop {
        let mut watch = match store.watch(vec![], Some(at)).await {
            Ok(watch) => watch,
            Err(WatchError::Store(StoreError::Unreachable { .. })) => continue,
            Err(error) => panic!("{error}"),
        };
        while let Some(event) = watch.next().await {
            match event {
                Ok(Event::Init { .. }) => {}
                Ok(event) => {
                    seen.push(event.revision());
                    at = watch.resume_point();
                    if event.key() == Some(&key("load-end")) {
                        return seen;
                    }
                }
                Err(WatchError::Store(StoreError::Unreachable { .. })) => continue 'again,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the watch ended");
    }
}
