//! The document API: unknown fields, conditional writes, what lists show to whom.

use crate::fixture::*;
use types::{Code, SystemRole};
use wire::api as pb;

#[tokio::test]
async fn unknown_fields_survive_a_read_change_and_write_through_the_api() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    let newer = document(serde_json::json!({
        "kind": "role", "version": "v1", "colour": "blue",
        "metadata": {"name": "future", "owner": {"team": "x"}},
        "spec": {"options": {"max_session_ttl": "8h", "record": "strict"}, "allow": {"logins": ["app"], "hosts": [1, 2]}, "later": true},
    }));
    let stored = create(&mut admin, &newer).await.unwrap();
    let mut changed = get(&mut admin, "role", "future").await.unwrap();
    assert_eq!(changed, stored);
    changed.metadata.description = Some("changed".into());
    update(&mut admin, &changed).await.unwrap();
    let mut back = get(&mut admin, "role", "future").await.unwrap();
    assert_eq!(
        (back.spec.clone(), back.extra.clone(), back.metadata.extra.clone()),
        (newer.spec.clone(), newer.extra.clone(), newer.metadata.extra.clone())
    );
    back.metadata.revision = None;
    let order = |document: &types::Document| String::from_utf8(document.to_json()).unwrap();
    assert!(order(&back).contains(
        r#""spec":{"options":{"max_session_ttl":"8h","record":"strict"},"allow":{"logins":["app"],"hosts":[1,2]},"later":true}"#
    ));
}

#[tokio::test]
async fn updates_are_conditional_on_the_revision_that_was_read() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    let first = create(&mut admin, &user_document("alice", &["access"], &["app"])).await.unwrap();
    let exists = create(&mut admin, &user_document("alice", &["access"], &[])).await.unwrap_err();
    assert!(exists.is(Code::AlreadyExists), "{exists}");
    let second = update(&mut admin, &first).await.unwrap();
    let stale = update(&mut admin, &first).await.unwrap_err();
    assert!(stale.is(Code::Conflict), "{stale}");
    let mut blind = second.clone();
    blind.metadata.revision = None;
    assert!(update(&mut admin, &blind).await.unwrap_err().is(Code::Malformed));
    let ask = pb::DeleteRequest { kind: "user".into(), name: "alice".into(), revision: first.metadata.revision.unwrap().0 };
    assert!(error(admin.delete(ask).await).is(Code::Conflict));
    delete(&mut admin, "user", "alice").await.unwrap();
    assert!(get(&mut admin, "user", "alice").await.unwrap_err().is(Code::NotFound));
    assert!(delete(&mut admin, "user", "alice").await.unwrap_err().is(Code::NotFound));
}

#[tokio::test]
async fn mistakes_in_documents_are_refused_with_their_place() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    let refused = |json: serde_json::Value| {
        let mut admin = admin.clone();
        async move { create(&mut admin, &document(json)).await.unwrap_err().to_string() }
    };
    let check = |got: String, want: &str| assert!(got.contains(want), "{got:?} lacks {want:?}");
    let meta = serde_json::json!({"name": "x"});
    check(refused(serde_json::json!({"kind": "roel", "version": "v1", "metadata": meta})).await, "\"roel\" is no kind of document here");
    check(
        refused(serde_json::json!({"kind": "role", "version": "v9", "metadata": meta, "spec": {}})).await,
        "version \"v9\" is not known here",
    );
    check(
        refused(serde_json::json!({"kind": "role", "version": "v1", "metadata": meta, "spec": {"allow": {"logins": "root"}}})).await,
        "role/x",
    );
    check(
        refused(serde_json::json!({"kind": "role", "version": "v1", "metadata": meta, "spec": {"allow": {"logins": ["*"]}}})).await,
        "a login may not contain",
    );
    check(
        refused(
            serde_json::json!({"kind": "role", "version": "v1", "metadata": meta, "spec": {"allow": {"node_labels": {"env": "^(a$"}}}}),
        )
        .await,
        "role/x",
    );
    check(
        refused(serde_json::json!({"kind": "user", "version": "v1", "metadata": meta, "spec": {"roles": ["nope"]}})).await,
        "no such role: nope",
    );
    check(
        refused(serde_json::json!({"kind": "user", "version": "v1", "metadata": {"name": "_x"}, "spec": {"roles": ["access"]}})).await,
        "not a valid user name",
    );
    check(
        refused(serde_json::json!({"kind": "lock", "version": "v1", "metadata": meta, "spec": {"target": {}}})).await,
        "the target names nothing",
    );
    for login in ["a,root", "a root", "-x", "", "a\nb", "a/b", "{{internal.logins}},root", "-{{internal.logins}}"] {
        for side in ["allow", "deny"] {
            let spec = serde_json::json!({side: {"logins": [login]}});
            check(refused(serde_json::json!({"kind": "role", "version": "v1", "metadata": meta, "spec": spec})).await, "is not a login");
        }
    }
    for (spec, want) in [
        (serde_json::json!({"options": {"max_session_ttl": "soon"}}), "role/x: spec.options.max_session_ttl: "),
        (serde_json::json!({"allow": {"node_labels": {"env": 5}}}), "role/x: spec.allow.node_labels.env: "),
        (serde_json::json!({"allow": {"rules": [{"resources": ["user"], "verbs": "read"}]}}), "role/x: spec.allow.rules[0].verbs: "),
        (
            serde_json::json!({"allow": {"rules": [{"resources": ["user"], "verbs": ["read"], "where": "x"}]}}),
            "the unknown field \"where\"",
        ),
        (serde_json::json!({"deny": {"rules": [{"resources": ["user"], "verbs": ["read"], "where": "x"}]}}), "the unknown field \"where\""),
        (serde_json::json!({"allow": {"logins": ["root"], "where": "x"}}), "unknown field \"where\""),
        (serde_json::json!({"deny": {"logins": ["root"], "where": "x"}}), "unknown field \"where\""),
        (serde_json::json!({"where": "x"}), "unknown field \"where\""),
    ] {
        check(refused(serde_json::json!({"kind": "role", "version": "v1", "metadata": meta, "spec": spec})).await, want);
    }
    let nameless = pb::WriteRequest { document: r#"{"kind":"role","version":"v1","metadata":{"name":"a b"}}"#.into() };
    check(error(admin.clone().create(nameless).await).to_string(), "metadata.name: ");
    check(refused(serde_json::json!({"kind": "cluster_name", "version": "v1", "metadata": meta, "spec": {}})).await, "not written by hand");
    check(refused(serde_json::json!({"kind": "lock", "version": "v1", "metadata": {"name": "x", "expires": "2001-01-01T00:00:00Z"}, "spec": {"target": {"user": "a"}}})).await, "which is past");
    for kind in ["cluster_name", "cert_authority", "cluster_auth_preference"] {
        let name = match kind {
            "cluster_name" => "cluster-name",
            "cert_authority" => "user",
            _ => "cluster-auth-preference",
        };
        assert!(delete(&mut admin, kind, name).await.unwrap_err().is(Code::AccessDenied), "{kind}");
    }
    let too_large = pb::WriteRequest { document: vec![b' '; (1 << 20) + 1].into() };
    assert!(error(admin.create(too_large).await).is(Code::TooLarge));
}

#[tokio::test]
async fn a_user_lists_the_hosts_he_can_reach_and_cannot_tell_forbidden_from_unknown() {
    let cluster = Cluster::start().await;
    for (id, env) in [(11, "dev"), (12, "prod")] {
        let (mut node, ..) = cluster.member(id, SystemRole::Node).await;
        node.heartbeat(beat(id, "ignored", &[("env", env)], 0)).await.unwrap();
    }
    let role = role_document("dev", serde_json::json!({"allow": {"logins": ["app"], "node_labels": {"env": "dev"}}}));
    create(&mut cluster.admin(), &role).await.unwrap();
    let (mut alice, ..) = cluster.logged_in("alice", &["dev"], &[]).await;
    assert_eq!(names(&mut alice, "node").await, [host_id(11).to_string()]);
    assert_eq!(names(&mut cluster.admin(), "node").await.len(), 2);
    let forbidden = get(&mut alice, "node", &host_id(12).to_string()).await.unwrap_err();
    let unknown = get(&mut alice, "node", &host_id(99).to_string()).await.unwrap_err();
    assert_eq!(forbidden.message.replace(&host_id(12).to_string(), "x"), unknown.message.replace(&host_id(99).to_string(), "x"));
    assert_eq!((forbidden.code, forbidden.hint), (unknown.code, unknown.hint));
    assert_eq!(names(&mut alice, "user").await, ["alice"]);
    // Kinds he may not touch answer alike, whether or not a document is there.
    let one = get(&mut alice, "role", "access").await.unwrap_err();
    let none = get(&mut alice, "role", "nonsense").await.unwrap_err();
    assert!(one == none && one.is(Code::AccessDenied));
}

#[tokio::test]
async fn lists_page_filter_by_label_and_count_what_cannot_be_read() {
    let clock = net::clock::ManualClock::new(types::Time::from_unix(START));
    struct Hands(net::clock::ManualClock);
    impl store::Clock for Hands {
        fn now(&self) -> types::Time {
            net::clock::Clock::now(&self.0)
        }
    }
    let store: std::sync::Arc<dyn store::Store> = std::sync::Arc::new(store::Memory::new(std::sync::Arc::new(Hands(clock.clone()))));
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let mut config = config(dir.path());
    config.storage = auth::Storage::Open(store.clone());
    let cluster = Cluster::from(dir, config, clock, "8.1.0").await;
    let mut admin = cluster.admin();
    for number in 0..25 {
        let mut lock = document(
            serde_json::json!({"kind": "lock", "version": "v1", "metadata": {"name": format!("l{number:02}")}, "spec": {"target": {"user": "x"}}}),
        );
        lock.metadata.labels.insert("half".into(), if number % 2 == 0 { "even" } else { "odd" }.into());
        create(&mut admin, &lock).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut page = String::new();
    loop {
        let reply = admin.list(pb::ListRequest { kind: "lock".into(), limit: 10, page, ..Default::default() }).await.unwrap().into_inner();
        seen.extend(reply.documents.iter().map(|json| types::Document::from_json(json).unwrap().metadata.name.to_string()));
        page = reply.next_page;
        if page.is_empty() {
            break;
        }
    }
    assert_eq!(seen, (0..25).map(|number| format!("l{number:02}")).collect::<Vec<_>>());
    let even = pb::ListRequest { kind: "lock".into(), labels: [("half".to_owned(), "even".to_owned())].into(), ..Default::default() };
    assert_eq!(admin.list(even).await.unwrap().into_inner().documents.len(), 13);

    let bad = store::Batch::new(None).put(store::Key::parse("doc/lock/torn").unwrap(), &b"{\"kind\":"[..], None);
    store.commit(bad).await.unwrap();
    // Another write waits until the mirror has seen what came before it.
    create(
        &mut admin,
        &document(serde_json::json!({"kind": "lock", "version": "v1", "metadata": {"name": "zz"}, "spec": {"target": {"user": "x"}}})),
    )
    .await
    .unwrap();
    let reply = admin.list(pb::ListRequest { kind: "lock".into(), ..Default::default() }).await.unwrap().into_inner();
    assert_eq!((reply.documents.len(), reply.skipped), (26, 1));
}

#[tokio::test]
async fn changes_are_in_the_audit_log_with_who_made_them() {
    let cluster = Cluster::start().await;
    let (mut editor, ..) = cluster.logged_in("eve", &["editor"], &[]).await;
    let user = create(&mut editor, &user_document("bob", &["access"], &["app"])).await.unwrap();
    assert_eq!(user.spec["created_by"], "eve");
    update(&mut editor, &user).await.unwrap();
    delete(&mut editor, "user", "bob").await.unwrap();
    for event in ["resource.create", "resource.update", "resource.delete"] {
        let all = events(&cluster, event).await;
        let last = all.last().unwrap();
        assert_eq!((last.text("user"), last.text("kind"), last.text("name")), ("eve", "user", "bob"), "{event}");
    }
}

#[tokio::test]
async fn a_heartbeat_cannot_claim_an_address_another_host_or_another_role() {
    let cluster = Cluster::start().await;
    let (mut node, ..) = cluster.member(11, SystemRole::Node).await;
    let reply = node.heartbeat(beat(11, "auth1", &[("env", "dev")], 3022)).await.unwrap().into_inner();
    assert!((48..=72).contains(&reply.interval), "{}", reply.interval);
    let mut admin = cluster.admin();
    let stored = get(&mut admin, "node", &host_id(11).to_string()).await.unwrap();
    assert_eq!((stored.spec["addr"].as_str(), stored.spec["hostname"].as_str()), (Some("127.0.0.1:3022"), Some("node11")));
    let member = get(&mut admin, "member", &host_id(11).to_string()).await.unwrap();
    assert_eq!(member.spec["roles"], serde_json::json!(["node"]));
    assert!(error(node.heartbeat(beat(12, "x", &[], 0)).await).is(Code::AccessDenied));
    // A Proxy is no SSH host.
    let (mut proxy, ..) = cluster.member(13, SystemRole::Proxy).await;
    assert!(error(proxy.heartbeat(beat(13, "x", &[], 0)).await).is(Code::AccessDenied));
    proxy.heartbeat(member_only(beat(13, "x", &[], 0))).await.unwrap();
    // Ten minutes of silence remove both.
    cluster.clock.advance(std::time::Duration::from_secs(601));
    assert!(get(&mut admin, "node", &host_id(11).to_string()).await.unwrap_err().is(Code::NotFound));
    assert!(names(&mut admin, "node").await.is_empty());
}

#[tokio::test]
async fn ten_thousand_hosts_are_listed_in_one_page() {
    let clock = net::clock::ManualClock::new(types::Time::from_unix(START));
    struct Hands(net::clock::ManualClock);
    impl store::Clock for Hands {
        fn now(&self) -> types::Time {
            net::clock::Clock::now(&self.0)
        }
    }
    let store: std::sync::Arc<dyn store::Store> = std::sync::Arc::new(store::Memory::new(std::sync::Arc::new(Hands(clock.clone()))));
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let mut config = config(dir.path());
    config.auth_preference = Some(preference(types::kind::SecondFactor::Off));
    config.storage = auth::Storage::Open(store.clone());
    let cluster = Cluster::from(dir, config, clock, "8.1.0").await;
    for group in 0..100u128 {
        let mut batch = store::Batch::new(None);
        for number in 0..100u128 {
            let id = host_id(1000 + group * 100 + number);
            let node = document(
                serde_json::json!({"kind": "node", "version": "v1", "metadata": {"name": id.to_string(), "labels": {"env": "prod", "team": "db"}},
                "spec": {"hostname": format!("node{group}-{number}"), "use_tunnel": true, "version": "8.1.0"}}),
            );
            batch = batch.put(store::Key::new(["doc", "node", &id.to_string()]).unwrap(), node.to_json(), None);
        }
        store.commit(batch).await.unwrap();
    }
    let (mut alice, ..) = cluster.logged_in("alice", &["access"], &["app"]).await;
    let ask = pb::ListRequest { kind: "node".into(), limit: 10_000, ..Default::default() };
    let reply = alice.list(ask).await.unwrap().into_inner();
    assert_eq!((reply.documents.len(), reply.next_page.as_str()), (10_000, ""));
}
