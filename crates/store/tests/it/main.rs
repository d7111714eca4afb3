//! The store as its users see it: the conformance suite on each driver, and what only a whole driver can show.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod cluster;
mod conformance;
mod disks;
mod documents;
mod durability;
mod etcd;
mod frozen;
mod load;
mod memory;
mod pool;
mod postgres;
mod proxy;
mod reopen;
mod servers;
mod sizes;
mod zombie;

use std::sync::Arc;
use std::time::Duration;
use store::{Batch, Condition, Event, Key, Manual, Store, Watch, WatchError};
use types::Time;

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

/// A number from the environment, for longer runs than usual.
fn rounds(usual: usize) -> usize {
    std::env::var("LOCKGATE_STORE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn clock() -> Arc<Manual> {
    Arc::new(Manual::at(Time::from_unix(1_800_000_000)))
}

/// A write that is refused when it was done before.
fn create(at: &str) -> Batch {
    Batch::new(None).require(Condition::Absent(key(at))).put(key(at), "v", None)
}

async fn put(store: &Arc<dyn Store>, at: &str) -> u64 {
    store.commit(Batch::new(None).put(key(at), "v", None)).await.unwrap().revision
}

/// Ten writes that a watch has seen, so that it must be told when they are lost.
async fn lose(store: &Arc<dyn Store>, watch: &mut Watch) {
    let mut newest = 0;
    for n in 0..10 {
        newest = put(store, &format!("lost/{n}")).await;
    }
    let seen = async { while watch.next().await.unwrap().unwrap().revision() < newest {} };
    tokio::time::timeout(Duration::from_secs(60), seen).await.unwrap();
}

/// How a watch ends.
async fn end(mut watch: Watch) -> Option<Result<Event, WatchError>> {
    let ended = async {
        loop {
            match watch.next().await {
                Some(Ok(_)) => {}
                ended => return ended,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap()
}
