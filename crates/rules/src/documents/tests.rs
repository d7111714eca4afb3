//! The members' table as a snapshot, and what users' rules reach.

use super::*;
use crate::access::{
    CurrentUser,
    tests::{among, host, host_identity, identity, json, rn, role},
};
use types::{Code, Extra, Metadata};

fn roles(identity: &UserIdentity, extra: Option<serde_json::Value>) -> RoleSet {
    let mut documents: Vec<_> = crate::presets::roles().iter().map(types::Resource::to_document).collect();
    documents.extend(extra.map(|spec| role("extra", spec)));
    RoleSet::resolve(identity, among(documents), CurrentUser::Unknown)
}
fn may(held: &[&str], extra: Option<serde_json::Value>, kind: &str, verb: Verb) -> bool {
    let identity = identity("alice", held, &["alice"]);
    let roles = roles(&identity, extra);
    let caller = Caller::User { identity: &identity, roles: &roles };
    if verb.writes() {
        decide_write(caller, kind, verb, &rn("x")).is_ok()
    } else {
        matches!(decide_read(caller, kind, verb).map(Permit::into_facts), Ok(Read { scope: Scope::All, .. }))
    }
}

#[test]
fn what_members_may_do() {
    insta::assert_snapshot!("members", table());
}

#[test]
fn the_presets_do_what_their_names_say() {
    let check = |role: &str, kind: &str, verbs: &[Verb]| {
        for verb in Verb::ALL {
            assert_eq!(may(&[role], None, kind, verb), verbs.contains(&verb), "{role} {} {kind}", verb.as_str());
        }
    };
    let reading = &[Verb::List, Verb::Read, Verb::Watch];
    for kind in ["user", "role", "token", "lock"] {
        check("editor", kind, &Verb::ALL);
        check("auditor", kind, &[]);
        check("access", kind, &[]);
    }
    check("editor", "cluster_auth_preference", &[Verb::List, Verb::Read, Verb::Watch, Verb::Update]);
    check("editor", "member", &[Verb::List, Verb::Read, Verb::Watch, Verb::Delete]);
    check("editor", "event", &[]);
    check("editor", "control", &[Verb::List, Verb::Read, Verb::Watch, Verb::Update]);
    check("editor", "update_directive", &[Verb::List, Verb::Read, Verb::Watch, Verb::Create, Verb::Update]);
    check("access", "update_directive", &[]);
    check("auditor", "control", &[]);
    check("access", "control", &[]);
    check("auditor", "event", reading);
    check("auditor", "recording", reading);
    check("access", "cert_authority", reading);
}

#[test]
fn a_wildcard_rule_still_does_not_make_up_what_only_services_know() {
    let all = Some(json!({"allow": {"rules": [{"resources": ["*"], "verbs": ["*"]}]}}));
    for kind in ["cert_authority", "cluster_name", "recording", "event", "future"] {
        for verb in [Verb::Create, Verb::Update, Verb::Delete] {
            assert!(!may(&["extra"], all.clone(), kind, verb), "{kind}");
        }
        assert!(may(&["extra"], all.clone(), kind, Verb::Read), "{kind}");
    }
    assert!(!may(&["extra"], all.clone(), "node", Verb::Create) && may(&["extra"], all, "node", Verb::Delete));
}

#[test]
fn words_in_rules_are_read_as_people_write_them() {
    for word in ["users", "User", "user"] {
        assert!(
            may(&["extra"], Some(json!({"allow": {"rules": [{"resources": [word], "verbs": ["create"]}]}})), "user", Verb::Create),
            "{word}"
        );
    }
    assert!(may(&["extra"], Some(json!({"allow": {"rules": [{"resources": ["session"], "verbs": ["list"]}]}})), "recording", Verb::List));
}

#[test]
fn list_and_read_are_separate_and_watching_needs_both() {
    let only = |verb: &str| Some(json!({"allow": {"rules": [{"resources": ["role"], "verbs": [verb]}]}}));
    assert!(may(&["extra"], only("list"), "role", Verb::List) && !may(&["extra"], only("list"), "role", Verb::Read));
    assert!(!may(&["extra"], only("list"), "role", Verb::Watch) && !may(&["extra"], only("read"), "role", Verb::Watch));
}

#[test]
fn a_deny_rule_wins_over_every_allow_and_over_what_everybody_has() {
    let deny = Some(json!({"deny": {"rules": [{"resources": ["user", "recording"], "verbs": ["*"]}]}}));
    assert!(!may(&["editor", "extra"], deny.clone(), "user", Verb::Read));
    assert!(may(&["editor", "extra"], deny.clone(), "role", Verb::Read));
    let identity = identity("alice", &["access", "extra"], &["alice"]);
    let roles = roles(&identity, deny);
    assert!(decide_read(Caller::User { identity: &identity, roles: &roles }, "user", Verb::Read).is_err());
    assert!(decide_read(Caller::User { identity: &identity, roles: &roles }, "recording", Verb::List).is_err());
}

#[test]
fn everybody_sees_himself_his_hosts_and_his_sessions_and_nothing_else() {
    let identity = identity("alice", &["extra"], &["alice"]);
    let roles = roles(&identity, Some(json!({"allow": {"logins": ["alice"], "node_labels": {"env": "dev"}}})));
    let caller = Caller::User { identity: &identity, roles: &roles };
    let document = |kind: &str, name: &str, labels: &str| {
        let mut metadata = Metadata::named(rn(name));
        metadata.labels = types::label::parse_labels(labels).unwrap();
        Document { kind: kind.into(), version: "v1".into(), metadata, spec: json!({}), extra: Extra::new() }
    };
    let users = decide_read(caller, "user", Verb::Read).unwrap();
    assert!(users.shows(&document("user", "alice", "")) && !users.shows(&document("user", "bob", "")));
    assert!(!users.shows(&document("role", "alice", "")), "a permit is for its kind");
    let nodes = decide_read(caller, "node", Verb::List).unwrap();
    assert!(nodes.shows(&document("node", "n", "env=dev")) && !nodes.shows(&document("node", "n", "env=prod")));
    let sessions = decide_read(caller, "recording", Verb::List).unwrap();
    let recording = |user: &str| Recording {
        session: types::SessionId::from_uuid(uuid::Uuid::nil()),
        user: user.into(),
        login: "alice".into(),
        host_id: host(1),
        hostname: "n".into(),
        kind: "shell".into(),
        command: String::new(),
        started: types::Time::EPOCH,
        ended: None,
        size: 0,
        extra: Extra::new(),
    };
    assert!(sessions.shows_recording(&recording("alice")) && !sessions.shows_recording(&recording("bob")));
    for kind in ["role", "token", "lock", "member", "event", "cluster_auth_preference", "future"] {
        assert!(decide_read(caller, kind, Verb::List).is_err(), "{kind}");
    }
    let nobody = RoleSet::default();
    for kind in Kind::ALL {
        assert!(
            decide_read(Caller::User { identity: &identity, roles: &nobody }, kind.as_str(), Verb::Read).is_err(),
            "{kind:?} without a role"
        );
    }
}

#[test]
fn a_member_writes_its_own_documents_only() {
    let me = host_identity("node1");
    let own: ResourceName = (&me.id).into();
    let other: ResourceName = (&host(2)).into();
    let check = |kind: &str, name: &ResourceName, want: bool| {
        assert_eq!(decide_write(Caller::Host(&me), kind, Verb::Update, name).is_ok(), want, "{kind}/{name}")
    };
    check("node", &own, true);
    check("member", &own, true);
    check("node", &other, false);
    check("member", &other, false);
    check("role", &own, false);
    check("future", &own, false);
    let denied = decide_write(Caller::Host(&me), "role", Verb::Update, &rn("access")).unwrap_err();
    assert!(denied.public().is(Code::AccessDenied));
    let seen = decide_read(Caller::Host(&me), "node", Verb::Watch).unwrap();
    assert!(matches!(&seen.scope, Scope::Named(name) if *name == own));
}

#[test]
fn reading_verbs_never_write_and_writing_verbs_never_read() {
    let me = HostIdentity { roles: [SystemRole::Admin].into(), ..host_identity("admin") };
    for verb in Verb::ALL {
        assert_eq!(decide_read(Caller::Host(&me), "role", verb).is_ok(), !verb.writes());
        assert_eq!(decide_write(Caller::Host(&me), "role", verb, &rn("x")).is_ok(), verb.writes());
    }
}

#[test]
fn a_certificate_for_one_host_has_no_rights_over_the_cluster() {
    let mut identity = identity("alice", &["editor", "auditor"], &["alice"]);
    let roles = roles(&identity, None);
    for bound in [false, true] {
        identity.restrictions.host = bound.then(|| host(1));
        let caller = Caller::User { identity: &identity, roles: &roles };
        assert_eq!(decide_write(caller, "user", Verb::Update, &rn("alice")).is_err(), bound);
        assert_eq!(decide_write(caller, "token", Verb::Create, &rn("x")).is_err(), bound);
        assert_eq!(decide_read(caller, "event", Verb::List).is_err(), bound);
        assert_eq!(decide_read(caller, "recording", Verb::Read).is_err(), bound);
        assert!(decide_read(caller, "cert_authority", Verb::Watch).is_ok());
    }
}
