//! An etcd of three members that lose one another: writes and watches go on, and nothing acknowledged is lost.

use crate::load::Load;
use crate::servers::Cluster;
use crate::{clock, put};
use std::sync::Arc;
use store::{Etcd, Store, etcd};
use tokio::task::block_in_place;

async fn open(options: &etcd::Options) -> Arc<dyn Store> {
    Arc::new(Etcd::open(options.clone(), clock()).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_of_three_loses_members_and_leaders_and_no_write() {
    let mut cluster = block_in_place(Cluster::start);
    let options = cluster.options("/load/");
    let (store, other) = (open(&options).await, open(&options).await);
    let load = Load::start(store, &other).await;
    for round in 0..crate::rounds(4).min(100) {
        load.until(30).await;
        let leader = block_in_place(|| cluster.leader());
        let lost = if round % 2 == 0 { leader } else { (leader + 1) % 3 };
        block_in_place(|| cluster.members[lost].running.kill());
        load.until(30).await;
        block_in_place(|| cluster.revive(lost));
    }
    assert_eq!(load.finish().await, 0, "what happened to each write is known");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoints_are_used_in_turn() {
    let mut cluster = block_in_place(Cluster::start);
    let options = cluster.options("/turn/");
    block_in_place(|| cluster.members[0].running.kill());
    let store = open(&options).await;
    let mut written = put(&store, "k").await;
    block_in_place(|| cluster.revive(0));
    // It has moved on to the second; each is lost while it is in use.
    for lost in [1, 2, 0] {
        block_in_place(|| cluster.members[lost].running.kill());
        written += 1;
        assert_eq!(put(&store, "k").await, written);
        block_in_place(|| cluster.revive(lost));
    }
}
