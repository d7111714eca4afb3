//! A transaction-pooling proxy before PostgreSQL, and requests that reach it in pieces.
//!
//! pgbouncer (issue 759, still in 1.25) lends a server's connection to somebody else when an answer is complete and only a part of the
//! next request has come. Whoever sends requests without waiting for answers then reads what others asked for.

use crate::proxy::{Proxy, Weather};
use crate::{clock, key, servers};
use std::sync::Arc;
use store::{Batch, Postgres, Store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_pool_every_answer_comes_to_who_asked() {
    let proxy = Proxy::start(servers::pgbouncer()).await;
    let options = servers::postgres_options(proxy.port, "pool");
    let store = Arc::new(Postgres::open(options, clock()).await.unwrap());
    for reader in 0..8 {
        store.commit(Batch::new(None).put(key(&format!("k/{reader}")), format!("of {reader}"), None)).await.unwrap();
    }
    proxy.set(Weather::Crumbs(37));
    let readers = (0..8).map(|reader| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for turn in 0..25 {
                let item = store.get(&key(&format!("k/{reader}"))).await.unwrap().unwrap();
                assert_eq!(item.value, format!("of {reader}"));
                if turn % 5 == 0 {
                    store.commit(Batch::new(None).put(key(&format!("w/{reader}/{turn}")), "x", None)).await.unwrap();
                }
                // A read that is given up leaves its answer to nobody.
                let given_up = std::time::Duration::from_millis(turn % 4);
                drop(tokio::time::timeout(given_up, store.get(&key(&format!("k/{}", (reader + 1) % 8)))).await);
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
}
