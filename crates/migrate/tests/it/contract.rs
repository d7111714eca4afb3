//! The mirror is a store: it passes the conformance suite of the drivers, without migrations and with migrations in every state on
//! directories that the suite leaves alone.

use crate::between::{Between, Through};
use crate::crash::everything;
use crate::drivers::{DRIVERS, Driver, FIRST, MEMORY, STEADY_MEMORY, finalize, reset};
use crate::fault::Fault;
use crate::samples::{ALL, old_row, registry};
use futures::future::{BoxFuture, FutureExt, ready};
use migrate::{Limits, Mirror, Runner, journal_key};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::conformance::{World, run_async};
use store::{Batch, Item, Key, Store, StoreError};
use upgrade::migrate::{Goal, Registry};

/// Migrations on the way, in a store that is empty all the same: their journals were there before everything.
#[derive(Clone, Default)]
struct Journals(BTreeMap<Key, Item>);

impl Between for Journals {
    fn get<'a>(&'a self, inner: &'a dyn Store, key: &'a Key) -> BoxFuture<'a, Result<Option<Item>, StoreError>> {
        match self.0.get(key) {
            Some(item) => ready(Ok(Some(item.clone()))).boxed(),
            None => inner.get(key),
        }
    }
}

/// The journals of all migrations in each state that they are ever in, by the state's name.
async fn journals() -> BTreeMap<String, Journals> {
    let store = (STEADY_MEMORY.open)().await.store;
    let mut all: BTreeMap<String, Journals> = BTreeMap::from([("absent".into(), Journals::default())]);
    for migration in ALL {
        reset(store.as_ref(), &[old_row(&migration, "a", 1)]).await;
        let runner = Runner::new(Arc::clone(&store), migration, FIRST, "one", Limits::default()).unwrap();
        let journal = journal_key(migration.id).unwrap();
        for goal in [Goal::Up, Goal::Undo, Goal::Up, Goal::Contract] {
            if goal == Goal::Contract {
                finalize(store.as_ref()).await;
            }
            while runner.step(goal).await.unwrap() != migrate::Outcome::Done {
                let item = store.get(&journal).await.unwrap().unwrap();
                let spec = &serde_json::from_slice::<serde_json::Value>(&item.value).unwrap()["spec"];
                let name = if spec["swept"] == true { "swept" } else { spec["state"].as_str().unwrap() };
                all.entry(name.to_owned()).or_default().0.insert(journal.clone(), Item { revision: 0, ..item });
            }
        }
    }
    all
}

async fn keeps_the_contract(driver: &Driver, registry: &Registry, journals: &Journals) {
    let mirror = |inner: &Arc<dyn Store>| Arc::new(Mirror::new(Through::new(inner, journals.clone()), registry.clone()));
    run_async(|| async {
        let opened = (driver.open)().await;
        let twin = opened.twin().await;
        World { store: mirror(&opened.store), twin: mirror(&twin), clock: Arc::clone(&opened.clock) }
    })
    .await;
}

/// The mirror does not know what is behind it, so in a usual run only memory shows it every state.
async fn on(driver: &Driver) {
    keeps_the_contract(driver, &Registry::default(), &Journals::default()).await;
    let states = journals().await;
    assert_eq!(
        states.keys().collect::<Vec<_>>(),
        ["absent", "contracted", "expanded", "flipped", "shadowing", "swept", "undoing", "verified"]
    );
    for (name, journals) in &states {
        if everything() || driver.name == MEMORY.name || name == "shadowing" {
            keeps_the_contract(driver, &registry(), journals).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_memory_keeps_the_contract_in_every_state() {
    on(&MEMORY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_each_other_driver_keeps_it_too() {
    for driver in DRIVERS.iter().filter(|driver| driver.name != MEMORY.name) {
        on(driver).await;
    }
}

#[tokio::test]
async fn without_migrations_nothing_is_asked_that_was_not_asked_for() {
    let store = (MEMORY.open)().await.store;
    let counted = Fault::none(&store);
    let mirror = Mirror::new(counted.clone(), Registry::default());
    let key = Key::parse("k").unwrap();
    let mut watch = mirror.watch(vec![], None).await.unwrap();
    mirror.commit(Batch::new(None).put(key.clone(), "v", None)).await.unwrap();
    mirror.get(&key).await.unwrap().unwrap();
    mirror.range(&Key::first(), &Key::last(), 9).await.unwrap();
    mirror.keep_alive(&key, None, store.clock().now().plus(std::time::Duration::from_secs(9)), None).await.unwrap();
    watch.next().await.unwrap().unwrap();
    assert_eq!(counted.kinds(), [true, false, false], "one commit, one get, one page, and no look at a journal");
}
