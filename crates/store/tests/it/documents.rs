//! Documents through the store: conditional updates, and unknown fields that survive at every level.

use crate::{clock, key};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use store::documents::{PageToken, ReadError, WriteError, decode, reference};
use store::{Batch, Clock as _, Documents, Event, Manual, Memory, Store, WriterEpoch, control};
use types::control::{ClusterVersion, ControlRecord};
use types::document::Revision;
use types::kind::Lock;
use types::{Code, Document, Resource, ResourceName};

fn documents() -> (Documents, Arc<Memory>, Arc<Manual>) {
    let clock = clock();
    let store = Arc::new(Memory::new(clock.clone()));
    (Documents::new(store.clone(), WriterEpoch(1)), store, clock)
}
fn document(kind: &str, name: &str) -> Document {
    serde_json::from_value(json!({"kind": kind, "version": "v1", "metadata": {"name": name}, "spec": {"a": 1}})).unwrap()
}
fn name(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}
async fn stored(store: &Memory, at: &str) -> Value {
    serde_json::from_slice(&store.get(&key(at)).await.unwrap().unwrap().value).unwrap()
}

#[tokio::test]
async fn a_document_is_created_read_updated_and_deleted_under_its_revision() {
    let (documents, store, _) = documents();
    let reference = || "role/x".to_owned();
    let created = documents.create(&document("role", "x")).await.unwrap();
    assert_eq!(created.metadata.revision, Some(Revision("1".into())));
    assert_eq!(documents.create(&document("role", "x")).await, Err(WriteError::Exists(reference())));
    assert_eq!(documents.get("role", &name("x")).await, Ok(Some(created.clone())));
    assert_eq!(stored(&store, "doc/role/x").await["metadata"], json!({"name": "x"}), "the revision is not stored");

    assert_eq!(documents.update(&document("role", "x")).await, Err(WriteError::NoRevision(reference())));
    let mut changed = created.clone();
    changed.spec = json!({"a": 2});
    let updated = documents.update(&changed).await.unwrap();
    assert_eq!(updated.metadata.revision, Some(Revision("2".into())));
    assert_eq!(documents.update(&changed).await, Err(WriteError::Conflict(reference())), "it was read before the update");
    changed.metadata.revision = Some(Revision("not ours".into()));
    assert_eq!(documents.update(&changed).await, Err(WriteError::Conflict(reference())));
    changed.metadata.name = name("y");
    assert_eq!(documents.update(&changed).await, Err(WriteError::NotFound("role/y".into())));

    let stale = documents.delete("role", &name("x"), created.metadata.revision.as_ref()).await;
    assert_eq!(stale, Err(WriteError::Conflict(reference())));
    documents.delete("role", &name("x"), updated.metadata.revision.as_ref()).await.unwrap();
    assert_eq!(documents.delete("role", &name("x"), None).await, Err(WriteError::NotFound(reference())));
    assert_eq!(documents.get("role", &name("x")).await, Ok(None));
}

#[tokio::test]
async fn expiry_is_the_items_and_a_keep_alive_moves_it() {
    let (documents, store, clock) = documents();
    let mut node = document("node", "n");
    node.metadata.expires = Some(clock.now().plus(Duration::from_nanos(1_000_000_001)));
    let created = documents.create(&node).await.unwrap();
    assert_eq!(documents.get("node", &name("n")).await.unwrap().unwrap(), created, "what was written is read, to the nanosecond");
    let later = clock.now().plus(Duration::from_secs(60));
    let revision = documents.keep_alive("node", &name("n"), later).await.unwrap();
    let read = documents.get("node", &name("n")).await.unwrap().unwrap();
    assert_eq!((read.metadata.expires, read.metadata.revision), (Some(later), Some(revision)));
    clock.advance(Duration::from_secs(60));
    assert_eq!(documents.get("node", &name("n")).await, Ok(None));
    assert_eq!(documents.keep_alive("node", &name("n"), later).await, Err(WriteError::NotFound("node/n".into())));
    documents.create(&document("node", "n")).await.expect("an expired one is absent");
    assert_eq!(store.expire_due().await, Ok(0));
}

#[tokio::test]
async fn listings_are_paged_filtered_and_survive_what_cannot_be_read() {
    let (documents, store, _) = documents();
    for n in 0..25 {
        documents.create(&document("role", &format!("r{n:02}"))).await.unwrap();
    }
    documents.create(&document("role-like", "other")).await.unwrap();
    store.commit(Batch::new(None).put(key("doc/role/r07x"), "not json", None)).await.unwrap();
    store.commit(Batch::new(None).put(key("doc/role/r08x"), document("role", "impostor").to_json(), None)).await.unwrap();
    let even = |document: &Document| document.metadata.name.as_str().ends_with(['0', '2', '4', '6', '8']);
    let (mut token, mut names, mut skipped): (Option<PageToken>, Vec<String>, Vec<String>) = (None, vec![], vec![]);
    loop {
        let page = documents.list("role", token.as_ref(), 4, even).await.unwrap();
        assert!(page.documents.len() == 4 || page.next.is_none(), "a page is full unless it is the last");
        names.extend(page.documents.iter().map(|document| document.metadata.name.to_string()));
        skipped.extend(page.skipped);
        match page.next {
            // As it travels through the API; and a deleted name is still a place.
            Some(next) => token = Some(next.to_string().parse().unwrap()),
            None => break,
        }
        documents.delete("role", &name(names.last().unwrap()), None).await.unwrap();
    }
    assert_eq!(names, (0..25).step_by(2).map(|n| format!("r{n:02}")).collect::<Vec<_>>());
    assert_eq!(skipped.len(), 2);
    assert!(skipped[1].contains("doc/role/r08x: it says that it is role/impostor"), "{skipped:?}");
    assert!(matches!(documents.get("role", &name("r07x")).await, Err(ReadError::Bad(_))));
    assert!(documents.list("no/kind", None, 4, |_| true).await.is_err());
}

#[tokio::test]
async fn unknown_kinds_are_data_and_watches_name_documents() {
    let (documents, store, _) = documents();
    let mut watch = documents.watch(&["role", "novelty"], None).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(Event::Init { .. }))));
    store.commit(Batch::new(None).put(key("lock/other"), "x", None)).await.unwrap();
    documents.create(&document("user", "u")).await.unwrap();
    let created = documents.create(&document("novelty", "n")).await.unwrap();
    let Some(Ok(Event::Put(item))) = watch.next().await else { panic!("no event") };
    assert_eq!(decode(&item), Ok(created));
    documents.delete("novelty", &name("n"), None).await.unwrap();
    let Some(Ok(Event::Delete { key, .. })) = watch.next().await else { panic!("no event") };
    assert_eq!(reference(&key), Some(("novelty", "n")));
}

#[tokio::test]
async fn what_a_stranger_learns_of_a_failed_write() {
    let (documents, store, _) = documents();
    let code = |error: WriteError| error.public("7f3a").known();
    let created = documents.create(&document("role", "x")).await.unwrap();
    assert_eq!(code(documents.create(&document("role", "x")).await.unwrap_err()), Some(Code::AlreadyExists));
    let mut large = document("role", "large");
    large.spec = json!("x".repeat(1 << 20));
    assert_eq!(code(documents.create(&large).await.unwrap_err()), Some(Code::TooLarge));
    let mut odd = document("role", "x");
    odd.kind = "../etc".into();
    assert_eq!(code(documents.create(&odd).await.unwrap_err()), Some(Code::Malformed));
    store.commit(Batch::new(None).put(key("control"), r#"{"min_writer_epoch":2}"#, None)).await.unwrap();
    assert_eq!(code(documents.update(&created).await.unwrap_err()), Some(Code::StoreFenced));
    store.close().await;
    let closed = documents.update(&created).await.unwrap_err().public("7f3a");
    assert_eq!((closed.known(), closed.reference.as_deref()), (Some(Code::StoreBroken), Some("7f3a")));
}

#[tokio::test]
async fn the_control_record_is_made_once_changed_conditionally_and_never_goes_back() {
    let store = Memory::new(clock());
    let mut record: ControlRecord = serde_json::from_value(json!({
        "format": 1, "cluster_id": "0197a3f0-0000-7000-8000-000000000001", "epoch": 3, "min_writer_epoch": 3,
        "cluster_version": {"major": 1, "step": 0}, "windows": {"auth": {"lo": 1, "hi": 1, "later": true}}, "window_gen": 1, "novelty": {"a": [1]},
    }))
    .unwrap();
    assert_eq!(control::read(&store).await, Ok(None));
    let first = control::create(&store, &record).await.unwrap();
    assert_eq!(control::create(&store, &record).await, Err(control::WriteControlError::Exists));
    assert_eq!(control::read(&store).await, Ok(Some(first.clone())));

    record.cluster_version = ClusterVersion { major: 2, step: 1 };
    record.min_writer_epoch = 5;
    let second = control::update(&store, &first, &record, WriterEpoch(3)).await.unwrap();
    let raw = stored(&store, "control").await;
    assert_eq!((&raw["novelty"], &raw["windows"]["auth"]["later"]), (&json!({"a": [1]}), &json!(true)), "unknown keys stay");
    assert_eq!(control::update(&store, &first, &record, WriterEpoch(5)).await, Err(control::WriteControlError::Conflict));
    let fenced = control::update(&store, &second, &record, WriterEpoch(4)).await;
    assert!(matches!(fenced, Err(control::WriteControlError::Commit(store::CommitError::Fenced { min: 5 }))), "{fenced:?}");
    record.min_writer_epoch = 4;
    let back = control::update(&store, &second, &record, WriterEpoch(5)).await;
    assert!(matches!(back, Err(control::WriteControlError::Backwards { field: "min_writer_epoch", .. })), "{back:?}");

    store.commit(Batch::new(None).put(key("control"), r#"{"format":2}"#, None)).await.unwrap();
    assert!(matches!(control::read(&store).await, Err(control::ReadControlError::Unreadable(_))), "never taken for a missing one");
}

/// Any JSON that survives as it is: floats are halves, which binary holds exactly.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i32>().prop_map(|n| Value::from(f64::from(n) / 2.0)),
        "[^\u{0}]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let list = prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from);
        prop_oneof![list, unknown(inner).prop_map(Value::Object)]
    })
}
/// Fields with names that no release knows.
fn unknown(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::vec(("x_[a-z]{1,6}", value), 0..4).prop_map(|fields| fields.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn unknown_fields_survive_read_change_write_at_every_level(
        top in unknown(value()), metadata in unknown(value()), spec in unknown(value()), target in unknown(value())
    ) {
        let check = async {
            let (documents, store, _) = documents();
            let mut raw = json!({"kind": "lock", "version": "v1", "metadata": {"name": "l"}, "spec": {"target": {"user": "u"}, "message": "old"}});
            for (place, fields) in [("", &top), ("/metadata", &metadata), ("/spec", &spec), ("/spec/target", &target)] {
                raw.pointer_mut(place).unwrap().as_object_mut().unwrap().extend(fields.clone());
            }
            store.commit(Batch::new(None).put(key("doc/lock/l"), raw.to_string(), None)).await.unwrap();

            let read = documents.get("lock", &name("l")).await.unwrap().unwrap();
            let mut lock = Resource::<Lock>::from_document(read).unwrap();
            lock.spec.message = "new".into();
            documents.update(&lock.to_document()).await.unwrap();
            raw["spec"]["message"] = json!("new");
            assert_eq!(stored(&store, "doc/lock/l").await, raw);
        };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(check);
    }
}
