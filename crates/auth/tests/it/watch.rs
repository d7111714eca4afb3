//! Watching: snapshot and changes, resume, unknown kinds, rights that change.

use crate::fixture::*;
use std::time::Duration;
use types::{Code, SystemRole};
use wire::api::{self as pb, watch_event::Event};

const SOON: Duration = Duration::from_secs(10);

struct Watch(tonic::Streaming<pb::WatchEvent>);

impl Watch {
    async fn open(client: &mut Client, kinds: &[&str], from: u64) -> Self {
        let ask = pb::WatchRequest { kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(), from };
        Self(client.watch(ask).await.unwrap().into_inner())
    }
    async fn next(&mut self) -> Result<(String, u64), tonic::Status> {
        let event = tokio::time::timeout(SOON, self.0.message()).await.unwrap()?.unwrap();
        let text = match event.event.unwrap() {
            Event::Init(init) => format!("init {} {}", init.confirmed.join(","), init.snapshot),
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
    let mut resumed = Watch::open(&mut proxy, &["role", "lock"], revision).await;
    assert_eq!(resumed.text().await, "init lock,role false");
    assert_eq!(
        (resumed.text().await, resumed.text().await, resumed.text().await),
        ("synced".into(), "put role/dev".into(), "delete role/dev".into())
    );
    // A revision of another life of the store: everything anew.
    let mut ahead = Watch::open(&mut proxy, &["role"], last + 1_000_000).await;
    assert_eq!(ahead.text().await, "init role true");
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
