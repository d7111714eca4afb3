//! What every Auth Service must do with documents: run against [`super::FakeAuth`] here, and against the real one in the
//! whole-system tests, so that tests against the fake mean something.
//!
//! It uses kinds that an administrator may write (roles, locks) under names of its own and leaves nothing behind.

use crate::api::{Api, WatchItem};
use std::time::Duration;
use types::{
    Code, Document, Labels, Metadata, Resource, ResourceName,
    document::Spec,
    kind::{Lock, LockTarget},
    role::Role,
};

const SOON: Duration = Duration::from_secs(20);

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}

fn lock(text: &str, env: &str) -> Resource<Lock> {
    let mut metadata = Metadata::named(name(text));
    metadata.labels = Labels::from([("env".to_owned(), env.to_owned())]);
    let target = LockTarget { user: Some("nobody-at-all".into()), ..LockTarget::default() };
    Resource::new(metadata, Lock { target, message: "suite".into(), extra: Default::default() })
}

/// Runs every case. `api` must be allowed to write roles and locks.
pub async fn suite(api: &Api) {
    conditional_writes(api).await;
    unknown_fields_survive(api).await;
    lists_by_label(api).await;
    watches_resume(api).await;
    unknown_kinds_are_not_errors(api).await;
}

async fn conditional_writes(api: &Api) {
    let created = api.create(&lock("suite-one", "a")).await.unwrap();
    let revision = created.metadata.revision.clone().expect("the store's revision");
    assert!(api.create(&lock("suite-one", "a")).await.unwrap_err().is(Code::AlreadyExists));

    let mut changed = created.clone();
    changed.spec.message = "changed".into();
    let updated = api.update(&changed).await.unwrap();
    assert_ne!(updated.metadata.revision, Some(revision.clone()));
    assert_eq!(api.get::<Lock>(&name("suite-one")).await.unwrap().spec.message, "changed");
    assert!(api.update(&changed).await.unwrap_err().is(Code::Conflict), "an update of an old revision must fail");

    assert!(api.delete(Lock::KIND, "suite-one", Some(&revision)).await.unwrap_err().is(Code::Conflict));
    api.delete(Lock::KIND, "suite-one", updated.metadata.revision.as_ref()).await.unwrap();
    assert!(api.get::<Lock>(&name("suite-one")).await.unwrap_err().is(Code::NotFound));
    assert!(api.delete(Lock::KIND, "suite-one", None).await.unwrap_err().is(Code::NotFound));
    assert!(api.find::<Lock>(&name("suite-one")).await.unwrap().is_none());
}

async fn unknown_fields_survive(api: &Api) {
    let text = r#"{"kind":"role","version":"v1","metadata":{"name":"suite-fields","colour":"blue"},
        "spec":{"options":{"new_option":7},"allow":{"new_rule":["x"]},"new_side":{}},"new_top":[1]}"#;
    let document = Document::from_json(text.as_bytes()).unwrap();
    api.create_raw(&document).await.unwrap();
    // Read and written by typed code that knows none of the new fields.
    let mut role = api.get::<Role>(&name("suite-fields")).await.unwrap();
    role.spec.options.forward_agent = true;
    api.update(&role).await.unwrap();
    let kept = api.get_raw(Role::KIND, "suite-fields").await.unwrap();
    assert_eq!(kept.metadata.extra["colour"], "blue");
    assert_eq!(kept.spec["options"]["new_option"], 7);
    assert_eq!(kept.spec["allow"]["new_rule"][0], "x");
    assert!(kept.spec.get("new_side").is_some());
    assert_eq!(kept.extra["new_top"][0], 1);
    api.delete(Role::KIND, "suite-fields", None).await.unwrap();
}

async fn lists_by_label(api: &Api) {
    for number in 0..5 {
        api.create(&lock(&format!("suite-list-{number}"), if number % 2 == 0 { "even" } else { "odd" })).await.unwrap();
    }
    let named = |listed: Vec<Resource<Lock>>| {
        listed.into_iter().map(|lock| lock.metadata.name.to_string()).filter(|name| name.starts_with("suite-list")).count()
    };
    assert_eq!(named(api.list(&Labels::new()).await.unwrap().items), 5);
    assert_eq!(named(api.list(&Labels::from([("env".to_owned(), "odd".to_owned())])).await.unwrap().items), 2);
    assert_eq!(named(api.list(&Labels::from([("env".to_owned(), "none".to_owned())])).await.unwrap().items), 0);
    for number in 0..5 {
        api.delete(Lock::KIND, &format!("suite-list-{number}"), None).await.unwrap();
    }
}

/// The next item about that name; others are passed over.
async fn about(watch: &mut crate::api::Watch, wanted: &str) -> (WatchItem, u64) {
    loop {
        let (item, revision) = tokio::time::timeout(SOON, watch.next()).await.expect("the watch is silent").unwrap();
        let hit = match &item {
            WatchItem::Put(document) => document.metadata.name.as_str() == wanted,
            WatchItem::Delete { name, .. } => name.as_str() == wanted,
            WatchItem::Init { .. } | WatchItem::Synced => wanted.is_empty(),
            WatchItem::Unreadable => false,
        };
        if hit {
            return (item, revision);
        }
    }
}

async fn watches_resume(api: &Api) {
    api.create(&lock("suite-watch", "a")).await.unwrap();
    let mut watch = api.watch(&[Lock::KIND], 0).await.unwrap();
    let (init, _) = about(&mut watch, "").await;
    assert_eq!(init, WatchItem::Init { confirmed: vec![Lock::KIND.to_owned()], snapshot: true, anew: vec![Lock::KIND.to_owned()] });
    assert!(matches!(about(&mut watch, "suite-watch").await.0, WatchItem::Put(_)), "what exists comes first");
    let (synced, seen) = about(&mut watch, "").await;
    assert_eq!(synced, WatchItem::Synced);
    drop(watch);

    // Missed while nobody watched; told on resuming.
    api.delete(Lock::KIND, "suite-watch", None).await.unwrap();
    let mut watch = api.watch(&[Lock::KIND], seen).await.unwrap();
    assert!(matches!(about(&mut watch, "").await.0, WatchItem::Init { snapshot: false, .. }));
    assert!(matches!(about(&mut watch, "suite-watch").await.0, WatchItem::Delete { .. }));
    // What was missed counts as a whole: it may come in any order.
    let (synced, later) = about(&mut watch, "").await;
    assert!(synced == WatchItem::Synced && later > seen);

    // And live.
    api.create(&lock("suite-live", "a")).await.unwrap();
    assert!(matches!(about(&mut watch, "suite-live").await.0, WatchItem::Put(_)));
    api.delete(Lock::KIND, "suite-live", None).await.unwrap();
    assert!(matches!(about(&mut watch, "suite-live").await.0, WatchItem::Delete { .. }));
}

async fn unknown_kinds_are_not_errors(api: &Api) {
    let mut watch = api.watch(&["starship", Lock::KIND], 0).await.unwrap();
    let (init, _) = about(&mut watch, "").await;
    assert!(matches!(init, WatchItem::Init { confirmed, .. } if confirmed == [Lock::KIND]));
}
