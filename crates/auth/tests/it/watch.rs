//! Watching: snapshot and changes, resume, unknown kinds, rights that change.

use crate::fixture::*;
use net::clock::ManualClock;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use types::{Code, SystemRole, Time};
use wire::api::{self as pb, watch_event::Event};

const SOON: Duration = Duration::from_secs(10);

struct Watch(tonic::Streaming<pb::WatchEvent>);

impl Watch {
    async fn open(client: &mut Client, kinds: &[&str], from: u64) -> Self {
        let ask = pb::WatchRequest { kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(), from, ..Default::default() };
        Self(client.watch(ask).await.unwrap().into_inner())
    }
    async fn resume(client: &mut Client, kinds: &[&str], known: &BTreeMap<&str, u64>) -> Self {
        let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        let resume = known.iter().map(|(kind, from)| pb::WatchFrom { kind: (*kind).to_owned(), from: *from }).collect();
        Self(client.watch(pb::WatchRequest { kinds, from: 0, resume }).await.unwrap().into_inner())
    }
    async fn next(&mut self) -> Result<(String, u64), tonic::Status> {
        let event = tokio::time::timeout(SOON, self.0.message()).await.unwrap()?.unwrap();
        let text = match event.event.unwrap() {
            Event::Init(init) if init.anew.len() == init.confirmed.len() => format!("init {} {}", init.confirmed.join(","), init.snapshot),
            Event::Init(init) => {
                format!("init {} {} {}", init.confirmed.join(","), init.snapshot, init.anew.join(",")).trim_end().to_owned()
            }
            Event::Put(json) => format!("put {}", types::Document::from_json(&json).unwrap().reference()),
            Event::Delete(gone) => format!("delete {}/{}", gone.kind, gone.name),
            Event::Synced(_) => "synced".into(),
        };
        Ok((text, event.revision))
    }
    async fn text(&mut self) -> String {
        self.next().await.unwrap().0
    }
    async fn until_synced(&mut self) -> (Vec<String>, u64) {
        let mut all = Vec::new();
        loop {
            let (text, revision) = self.next().await.unwrap();
            if text == "synced" {
                return (all, revision);
            }
            all.push(text);
        }
    }
}

#[tokio::test]
async fn a_watch_begins_with_a_snapshot_goes_on_and_resumes() {
    let cluster = Cluster::start().await;
    let (mut proxy, ..) = cluster.member(12, SystemRole::Proxy).await;
    let mut watch = Watch::open(&mut proxy, &["role", "flying_carpet", "token", "lock"], 0).await;
    let (first, revision) = watch.until_synced().await;
    // A kind that is unknown, and one that is not a Proxy's, are left out and harm nothing.
    assert_eq!(first, ["init lock,role true", "put role/access", "put role/auditor", "put role/editor"]);
    let mut admin = cluster.admin();
    create(&mut admin, &role_document("dev", serde_json::json!({}))).await.unwrap();
    assert_eq!(watch.text().await, "put role/dev");
    delete(&mut admin, "role", "dev").await.unwrap();
    let (gone, last) = watch.next().await.unwrap();
    assert_eq!(gone, "delete role/dev");
    drop(watch);
    // What was made and removed in between is told as it is now.
    let mut resumed = Watch::open(&mut proxy, &["role", "lock"], revision).await;
    assert_eq!(resumed.until_synced().await.0, ["init lock,role false", "delete role/dev"]);
    // A revision of another life of the store: everything anew.
    let mut ahead = Watch::open(&mut proxy, &["role"], last + 1_000_000).await;
    assert_eq!(ahead.text().await, "init role true");
}

/// Kinds that resumed, kinds that were told whole, and how often the store's history was asked.
fn counters(cluster: &Cluster) -> (u64, u64, u64) {
    let all = cluster.auth.metrics().snapshot();
    let of = |wanted: &str| all.iter().find(|(name, ..)| *name == wanted).unwrap().2;
    (of("watch_kinds_resumed"), of("watch_kinds_whole"), of("watch_histories"))
}

#[tokio::test]
async fn after_a_restart_watches_go_on_where_they_were_and_the_history_is_asked_once_for_all() {
    let (dir, clock) = (Arc::new(tempfile::tempdir().unwrap()), ManualClock::new(Time::from_unix(START)));
    let make = |dir: &Arc<tempfile::TempDir>| {
        let mut config = config(dir.path());
        config.storage = sqlite(dir.path());
        config
    };
    let cluster = Cluster::from(dir.clone(), make(&dir), clock.clone(), "8.1.0").await;
    let (mut proxy, _, identity) = cluster.member(12, SystemRole::Proxy).await;
    let mut admin = cluster.admin();
    for name in ["stays", "goes"] {
        create(&mut admin, &role_document(name, serde_json::json!({}))).await.unwrap();
    }
    let mut watch = Watch::open(&mut proxy, &["role", "lock", "user"], 0).await;
    let (first, revision) = watch.until_synced().await;
    assert_eq!((first.len(), counters(&cluster)), (6, (0, 3, 0)));
    delete(&mut admin, "role", "goes").await.unwrap();
    create(&mut admin, &role_document("comes", serde_json::json!({}))).await.unwrap();
    cluster.stop().await;

    let cluster = Cluster::from(dir.clone(), make(&dir), clock, "8.1.0").await;
    let mut clients: Vec<Client> = (0..20).map(|_| cluster.client(Some(&identity), "proxy")).collect();
    let resume = BTreeMap::from([("role", revision), ("lock", revision), ("user", revision)]);
    let back = futures::future::join_all(clients.iter_mut().map(|client| Watch::resume(client, &["role", "lock", "user"], &resume)));
    for mut watch in back.await {
        let told = watch.until_synced().await.0;
        assert_eq!(told, ["init lock,role,user false", "delete role/goes", "put role/comes"]);
    }
    assert_eq!(counters(&cluster), (60, 0, 1));
}

#[tokio::test]
async fn a_kind_that_must_begin_anew_is_told_whole_and_the_others_only_what_is_new() {
    let cluster = Cluster::start().await;
    let (mut proxy, ..) = cluster.member(12, SystemRole::Proxy).await;
    let mut admin = cluster.admin();
    let (_, revision) = Watch::open(&mut proxy, &["role"], 0).await.until_synced().await;
    create(&mut admin, &role_document("new", serde_json::json!({}))).await.unwrap();
    create(&mut admin, &user_document("alice", &["access"], &[])).await.unwrap();
    // It has never had users.
    let resume = BTreeMap::from([("role", revision)]);
    let told = Watch::resume(&mut proxy, &["role", "user", "flying_carpet"], &resume).await.until_synced().await.0;
    assert_eq!(told, ["init role,user false user", "put user/alice", "put role/new"]);
    // A revision of another life of the store.
    let resume = BTreeMap::from([("role", revision + 1_000_000)]);
    let told = Watch::resume(&mut proxy, &["role"], &resume).await.until_synced().await.0;
    assert_eq!(told[0], "init role true");
}

#[tokio::test]
async fn an_unreadable_document_of_one_kind_is_gone_for_watchers_and_disturbs_no_other() {
    let store = Arc::new(store::Memory::new(Arc::new(store::System)));
    let cluster = Cluster::with(|config| config.storage = auth::Storage::Open(store.clone())).await;
    let (mut proxy, ..) = cluster.member(12, SystemRole::Proxy).await;
    let mut admin = cluster.admin();
    create(&mut admin, &role_document("dev", serde_json::json!({}))).await.unwrap();
    let mut watch = Watch::open(&mut proxy, &["role", "user"], 0).await;
    watch.until_synced().await;
    let broken = store::Batch::new(None).put(store::Key::new(["doc", "role", "dev"]).unwrap(), "{", None);
    store::Store::commit(store.as_ref(), broken).await.unwrap();
    create(&mut admin, &user_document("alice", &["access"], &[])).await.unwrap();
    assert_eq!((watch.text().await, watch.text().await), ("delete role/dev".into(), "put user/alice".into()));
    assert_eq!(counters(&cluster).1, 2, "nothing began anew");
}

#[tokio::test]
async fn a_users_watch_shows_what_he_reaches_and_ends_with_his_rights() {
    let cluster = Cluster::start().await;
    create(&mut cluster.admin(), &role_document("dev", serde_json::json!({"allow": {"logins": ["app"], "node_labels": {"env": "dev"}}})))
        .await
        .unwrap();
    let (mut alice, ..) = cluster.logged_in("alice", &["dev"], &[]).await;
    let mut watch = Watch::open(&mut alice, &["node", "role"], 0).await;
    assert_eq!(watch.until_synced().await.0, ["init node true"]);
    let (mut hidden, ..) = cluster.member(12, SystemRole::Node).await;
    hidden.heartbeat(beat(12, "x", &[("env", "prod")], 0)).await.unwrap();
    let (mut node, ..) = cluster.member(11, SystemRole::Node).await;
    node.heartbeat(beat(11, "x", &[("env", "dev")], 0)).await.unwrap();
    assert_eq!(watch.text().await, format!("put node/{}", host_id(11)));
    // Losing sight of a host is its end.
    node.heartbeat(beat(11, "x", &[("env", "prod")], 0)).await.unwrap();
    assert_eq!(watch.text().await, format!("delete node/{}", host_id(11)));
    delete(&mut cluster.admin(), "user", "alice").await.unwrap();
    let ended = pb::from_status(&watch.next().await.unwrap_err());
    assert!(ended.is(Code::Unavailable), "{ended}");
    assert!(error(alice.list(pb::ListRequest { kind: "node".into(), ..Default::default() }).await).is(Code::AccessDenied));
}

#[tokio::test]
async fn a_locked_members_watch_ends() {
    let cluster = Cluster::start().await;
    let (mut node, ..) = cluster.member(11, SystemRole::Node).await;
    let mut watch = Watch::open(&mut node, &["role"], 0).await;
    watch.until_synced().await;
    let lock = document(
        serde_json::json!({"kind": "lock", "version": "v1", "metadata": {"name": "l"}, "spec": {"target": {"node": host_id(11).to_string()}}}),
    );
    create(&mut cluster.admin(), &lock).await.unwrap();
    assert!(pb::from_status(&watch.next().await.unwrap_err()).is(Code::AccessLocked));
}

#[tokio::test]
async fn a_stopping_service_ends_its_watches_with_a_word() {
    let cluster = Cluster::start().await;
    let (mut node, ..) = cluster.member(11, SystemRole::Node).await;
    let mut watch = Watch::open(&mut node, &["role"], 0).await;
    watch.until_synced().await;
    cluster.shutdown.drain();
    assert!(pb::from_status(&watch.next().await.unwrap_err()).is(Code::Unavailable));
}
