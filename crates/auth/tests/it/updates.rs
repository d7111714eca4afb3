//! Directives are signed as they are written, and what hosts tell of their updates is recorded once.

use crate::fixture::*;
use serde_json::{Value, json};
use types::{
    Code, Document, SystemRole,
    update::{Directive, UpdateDirective},
};

fn wanted(targets: Value) -> Document {
    document(json!({
        "kind": "update_directive", "version": "v1", "metadata": {"name": "update-directive"},
        "spec": {"targets": targets, "generation": 99_999_999_999u64, "signed": {"directive": "{}", "signature": "AAAA"}},
    }))
}

fn target(version: &str) -> Value {
    json!({"version": version, "artifacts": {"linux/amd64": "ab".repeat(32)}, "roles": ["node"]})
}

/// As a host reads it: with the keys it has from its cluster.
async fn opened(cluster: &Cluster, document: &Document) -> (UpdateDirective, Directive) {
    let spec: UpdateDirective = serde_json::from_value(document.spec.clone()).unwrap();
    let authority = get(&mut cluster.admin(), "cert_authority", "host").await.unwrap();
    let line = |key: &Value| russh::keys::PublicKey::from_openssh(key["ssh"].as_str().unwrap()).unwrap();
    let keys: Vec<_> = authority.spec["keys"].as_array().unwrap().iter().map(line).collect();
    let directive = wire::directive::open(&spec.signed, &keys).unwrap();
    (spec, directive)
}

#[tokio::test]
async fn a_directive_is_signed_by_the_cluster_whatever_was_sent_and_its_generation_only_grows() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    let first = create(&mut admin, &wanted(json!([target("1.1.0")]))).await.unwrap();
    let (spec, directive) = opened(&cluster, &first).await;
    assert_eq!((directive.generation, directive.targets.len()), (spec.generation, 1));
    assert_eq!(directive.generation, cluster.now().unix_u64(), "not lower than the clock, so a restored cluster is obeyed too");
    assert_eq!(directive.targets, spec.targets);
    assert!(directive.expires > cluster.now() && spec.expires == Some(directive.expires));
    let mut changed = first.clone();
    changed.spec["targets"] = json!([]);
    changed.spec["generation"] = 1.into();
    let second = update(&mut admin, &changed).await.unwrap();
    let (_, next) = opened(&cluster, &second).await;
    assert_eq!((next.generation, next.targets.len()), (directive.generation + 1, 0));
    // Two who read the same cannot both win.
    assert!(update(&mut admin, &changed).await.unwrap_err().is(Code::Conflict));
    let told = events(&cluster, "update.directive").await;
    assert!(
        told.iter().any(|event| event.fields["versions"] == json!(["1.1.0"]) && event.fields["generation"] == json!(directive.generation))
    );
}

#[tokio::test]
async fn a_directive_is_written_by_those_who_may_and_never_deleted() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    let mut misnamed = wanted(json!([]));
    misnamed.metadata.name = types::ResourceName::new("another").unwrap();
    assert!(create(&mut admin, &misnamed).await.unwrap_err().is(Code::Malformed));
    let mut ended = wanted(json!([]));
    ended.spec["expires"] = "2001-01-01T00:00:00Z".into();
    assert!(create(&mut admin, &ended).await.unwrap_err().to_string().contains("spec.expires"));
    let (mut node, ..) = cluster.member(7, SystemRole::Node).await;
    assert!(create(&mut node, &wanted(json!([]))).await.unwrap_err().is(Code::AccessDenied));
    let (mut user, ..) = cluster.logged_in("alice", &["access"], &["app"]).await;
    assert!(create(&mut user, &wanted(json!([target("1.1.0")]))).await.unwrap_err().is(Code::AccessDenied));
    let (mut editor, ..) = cluster.logged_in("bob", &["editor"], &["app"]).await;
    create(&mut editor, &wanted(json!([target("1.1.0")]))).await.unwrap();
    let refused = delete(&mut admin, "update_directive", "update-directive").await.unwrap_err();
    assert!(refused.is(Code::AccessDenied), "{refused}");
    // Proxies read it, for hosts; hosts themselves get it there.
    let mut proxy = cluster.proxy().await;
    assert!(get(&mut proxy, "update_directive", "update-directive").await.is_ok());
    assert!(get(&mut node, "update_directive", "update-directive").await.unwrap_err().is(Code::AccessDenied));
}

#[tokio::test]
async fn what_a_host_tells_of_its_update_is_recorded_once() {
    let cluster = Cluster::start().await;
    let (mut node, ..) = cluster.member(11, SystemRole::Node).await;
    let mut tell = async |report: Value| {
        let mut beat = member_only(beat(11, "web-1", &[], 0));
        let mut member = Document::from_json(&beat.member).unwrap();
        member.spec["update"] = report;
        beat.member = member.to_json().into();
        node.heartbeat(beat).await.unwrap();
    };
    let report = |state: &str, why: &str| json!({"state": state, "version": "1.1.0", "generation": 7, "why": why, "at": "2026-11-22T18:00:00Z", "more": "x"});
    for _ in 0..3 {
        tell(report("reverted", "it does not start\u{1b}[2J")).await;
    }
    tell(report("staged", "")).await;
    tell(report("refused", "expired")).await;
    tell(report("confirmed", "")).await;
    tell(json!("nonsense")).await;
    let told: Vec<_> =
        events(&cluster, "update.host").await.iter().map(|event| (event.code.clone(), event.text("error").to_owned())).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.contains(&("LU021W".into(), "it does not start[2J".into())) && told.contains(&("LU021I".into(), String::new())));
    assert_eq!(events(&cluster, "update.refused").await.len(), 1);
    let stored = get(&mut cluster.admin(), "member", &host_id(11).to_string()).await.unwrap();
    assert_eq!(stored.spec.get("update"), None, "what is no report is not kept");
}
