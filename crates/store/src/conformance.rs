//! What every driver must do: plain async functions, run against each driver by its tests.
//!
//! A driver's test calls [`run`] with a function that makes a fresh [`World`]: an empty store, a second handle on the same data
//! (another process, as far as the driver can tell), and the hand-moved clock both go by. A case panics where the driver
//! breaks the contract. The cases follow the fourteen of the field's best-known system and add conditional batches,
//! fencing, resuming watches, sizes, and random operations against a reference [`model`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code that lives here because drivers outside this crate run it too"
)]

mod basics;
mod expiry;
pub mod model;
mod watching;
mod whole;
mod writes;

use crate::{Batch, CommitError, Committed, Condition, Event, Item, Key, Manual, Store, Watch, WriterEpoch, scan};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use types::Time;

/// An empty store to be tried.
pub struct World {
    pub store: Arc<dyn Store>,
    /// A second handle on the same data.
    pub twin: Arc<dyn Store>,
    /// The clock of both.
    pub clock: Arc<Manual>,
}

type Case = (&'static str, fn(World) -> BoxFuture<'static, ()>);

macro_rules! cases {
    ($($module:ident::$name:ident),+ $(,)?) => {
        &[$((stringify!($name), |world| Box::pin($module::$name(world)))),+]
    };
}

/// All cases, by name.
pub const CASES: &[Case] = cases![
    basics::crud,
    basics::query_range,
    basics::delete_range,
    basics::put_range,
    basics::compare_and_swap,
    expiry::expiration,
    expiry::keep_alive,
    watching::events,
    watching::watchers_close,
    expiry::locking,
    writes::concurrent_operations,
    watching::mirror,
    basics::fetch_limit,
    expiry::limit,
    writes::batches_are_all_or_nothing,
    writes::limits_are_refused_by_name,
    writes::fencing,
    writes::counters_lose_nothing,
    basics::bytes_are_kept_verbatim,
    basics::closed_is_closed,
    watching::resume,
    watching::resume_inside_a_batch,
    watching::prefixes,
    watching::twin_sees_all,
    model::random_operations,
    whole::snapshot_shows_one_moment,
    whole::snapshot_ends_with_its_store,
    whole::load_fills_an_empty_store,
    whole::load_that_broke_off_is_begun_again,
];

/// Runs every case in a world of its own.
pub async fn run(make: impl Fn() -> World) {
    run_async(|| std::future::ready(make())).await;
}

/// As [`run`], for worlds that take waiting to make.
pub async fn run_async<F: Future<Output = World>>(make: impl Fn() -> F) {
    for (name, case) in CASES {
        let world = make().await;
        let (store, twin) = (Arc::clone(&world.store), Arc::clone(&world.twin));
        let done = tokio::time::timeout(Duration::from_secs(60), case(world)).await;
        assert!(done.is_ok(), "case {name} does not end");
        store.close().await;
        twin.close().await;
    }
}

fn key(text: &str) -> Key {
    Key::parse(text).expect("a proper key")
}

fn dir(text: &str) -> Key {
    Key::dir(text.split('/')).expect("a proper directory")
}

async fn put(store: &dyn Store, at: &str, value: impl Into<Bytes>) -> u64 {
    store.commit(Batch::new(None).put(key(at), value, None)).await.expect("an unconditional put").revision
}

async fn put_until(store: &dyn Store, at: &str, value: impl Into<Bytes>, expires: Time) -> u64 {
    store.commit(Batch::new(None).put(key(at), value, Some(expires))).await.expect("an unconditional put").revision
}

async fn put_if(store: &dyn Store, condition: Condition, at: &str, value: &str) -> Result<Committed, CommitError> {
    store.commit(Batch::new(None).require(condition).put(key(at), value.to_owned(), None)).await
}

async fn delete_if(store: &dyn Store, condition: Condition, at: &str) -> Result<Committed, CommitError> {
    store.commit(Batch::new(None).require(condition).delete(key(at))).await
}

async fn get(store: &dyn Store, at: &str) -> Option<Item> {
    store.get(&key(at)).await.expect("a readable store")
}

async fn text(store: &dyn Store, at: &str) -> Option<String> {
    get(store, at).await.map(|item| String::from_utf8(item.value.to_vec()).expect("text"))
}

async fn keys(store: &dyn Store, prefix: &Key) -> Vec<String> {
    let items = scan(store, prefix, &prefix.prefix_end()).await.expect("a readable store");
    items.iter().map(|item| item.key.to_string()).collect()
}

fn conflict(at: &str) -> Result<Committed, CommitError> {
    Err(CommitError::Conflict { key: key(at) })
}

/// The next event; a watch that stays silent for ten seconds has lost one.
async fn event(watch: &mut Watch) -> Event {
    let next = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
    next.expect("an event before the deadline").expect("an open watch").expect("a healthy watch")
}

async fn started(store: &dyn Store, prefixes: Vec<Key>, from: Option<u64>) -> Watch {
    let mut watch = store.watch(prefixes, from).await.expect("a watch");
    let Event::Init { revision } = event(&mut watch).await else { panic!("the first event is not Init") };
    assert!(from.is_none_or(|from| from == revision));
    watch
}

fn deleted(at: &str, revision: u64) -> Event {
    Event::Delete { key: key(at), revision }
}

fn was_put(at: &str, value: impl Into<Bytes>, revision: u64, expires: Option<Time>) -> Event {
    Event::Put(Item { key: key(at), value: value.into(), revision, expires })
}

const fn epoch(number: u64) -> Option<WriterEpoch> {
    Some(WriterEpoch(number))
}
