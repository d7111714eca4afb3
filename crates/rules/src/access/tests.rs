//! Roles, templates, deny before allow, what happens to roles that cannot be judged, and sessions.

use super::*;
use proptest::prelude::*;
use types::{Code, Extra, HostIdentity, Metadata, NodeName, SystemRole, UserName, identity::Restrictions, kind::LockTarget};

pub(crate) fn rn(name: &str) -> ResourceName {
    ResourceName::new(name).unwrap()
}
/// A user's identity that ends at second 100,000.
pub(crate) fn identity(user: &str, roles: &[&str], logins: &[&str]) -> UserIdentity {
    UserIdentity {
        cluster: ClusterName::new("example").unwrap(),
        user: UserName::new(user).unwrap(),
        roles: roles.iter().map(|role| rn(role)).collect(),
        traits: Traits::from([("logins".to_owned(), logins.iter().map(|login| (*login).to_owned()).collect())]),
        logins: logins.iter().map(|login| Login::new(login).unwrap()).collect(),
        expires: Time::from_unix(100_000),
        restrictions: Restrictions::default(),
        extra: Extra::new(),
    }
}
pub(crate) fn host_identity(name: &str) -> HostIdentity {
    HostIdentity {
        cluster: ClusterName::new("example").unwrap(),
        id: host(1),
        name: NodeName::new(name).unwrap(),
        roles: [SystemRole::Node].into(),
        extra: Extra::new(),
    }
}
pub(crate) fn host(id: u128) -> HostId {
    HostId::from_uuid(uuid::Uuid::from_u128(id))
}
pub(crate) fn user(name: &str, roles: &[&str], logins: &[&str]) -> Resource<User> {
    let identity = identity(name, roles, logins);
    let spec = User { roles: identity.roles, traits: identity.traits, ..User::default() };
    Resource::new(Metadata::named(rn(name)), spec)
}
/// A role document from the JSON of its spec.
pub(crate) fn role(name: &str, spec: serde_json::Value) -> Document {
    Document { kind: "role".into(), version: "v1".into(), metadata: Metadata::named(rn(name)), spec, extra: Extra::new() }
}
pub(crate) fn among(documents: Vec<Document>) -> impl Fn(&ResourceName) -> Option<Document> {
    move |name| documents.iter().find(|document| document.metadata.name == *name).cloned()
}
pub(crate) use serde_json::json;

fn labels(text: &str) -> Labels {
    types::label::parse_labels(text).unwrap()
}
fn set(identity: &UserIdentity, specs: &[(&str, serde_json::Value)]) -> RoleSet {
    let documents = specs.iter().map(|(name, spec)| role(name, spec.clone())).collect();
    RoleSet::resolve(identity, among(documents), CurrentUser::Unknown)
}
fn all_labels() -> serde_json::Value {
    json!({"*": "*"})
}

struct World {
    identity: UserIdentity,
    roles: RoleSet,
    locks: Vec<Resource<Lock>>,
    now: i64,
    peer: Option<IpAddr>,
}
impl World {
    fn new(roles: &[(&str, serde_json::Value)]) -> Self {
        let names: Vec<_> = roles.iter().map(|(name, _)| *name).collect();
        let identity = identity("alice", &names, &["alice", "app", "root"]);
        Self { roles: set(&identity, roles), identity, locks: Vec::new(), now: 1000, peer: None }
    }
    fn enter(&self, login: &str, have: &str) -> Result<Permit<OpenSession>, Denied> {
        decide_session(&SessionRequest {
            cluster: &ClusterName::new("example").unwrap(),
            identity: &self.identity,
            roles: &self.roles,
            host: host(1),
            hostname: "node1",
            labels: &labels(have),
            login: &Login::new(login).unwrap(),
            peer: self.peer,
            locks: &self.locks,
            now: Time::from_unix(self.now),
        })
    }
    fn check(&self, login: &str, have: &str, want: Result<(), Code>) {
        match (self.enter(login, have), want) {
            (Ok(_), Ok(())) => {}
            (Err(denied), Err(code)) => assert!(denied.public().is(code), "{login} on {have}: {denied}"),
            (got, want) => panic!("{login} on {have}: {got:?}, not {want:?}"),
        }
    }
}

const UNKNOWN: Result<(), Code> = Err(Code::NodeUnknown);
const DENIED: Result<(), Code> = Err(Code::AccessDenied);

#[test]
fn the_built_in_access_role_lets_users_in_with_their_own_logins() {
    let documents: Vec<_> = crate::presets::roles().iter().map(Resource::to_document).collect();
    let identity = identity("alice", &["access"], &["alice"]);
    let roles = RoleSet::resolve(&identity, among(documents), CurrentUser::Unknown);
    assert_eq!(roles.problems(), []);
    assert_eq!(roles.logins_for(&labels("")).into_iter().map(|login| login.to_string()).collect::<Vec<_>>(), ["alice"]);
    assert_eq!(roles.max_ttl(), Ttl::hours(30));
    let world = World { identity, roles, locks: Vec::new(), now: 1000, peer: None };
    let permit = world.enter("alice", "env=prod").unwrap();
    assert_eq!(
        (permit.options.max_sessions, permit.options.port_forwarding, permit.options.forward_agent, permit.deadline),
        (10, true, false, None)
    );
    world.check("root", "env=prod", DENIED);
}

#[test]
fn allow_is_conjunctive_inside_a_role_and_roles_are_joined_by_or() {
    let world = World::new(&[
        ("dev", json!({"allow": {"logins": ["root"], "node_labels": {"env": "dev"}}})),
        ("prod", json!({"allow": {"logins": ["app"], "node_labels": {"env": "prod"}}})),
    ]);
    world.check("root", "env=dev", Ok(()));
    world.check("app", "env=prod", Ok(()));
    world.check("root", "env=prod", DENIED);
    world.check("app", "env=dev", DENIED);
    world.check("root", "env=test", UNKNOWN);
    world.check("root", "", UNKNOWN);
}

#[test]
fn deny_wins_and_is_greedy() {
    let everything = ("all", json!({"allow": {"logins": ["root", "app"], "node_labels": all_labels()}}));
    let by_label = World::new(&[everything.clone(), ("no-prod", json!({"deny": {"node_labels": {"env": ["prod"]}}}))]);
    by_label.check("root", "env=dev", Ok(()));
    by_label.check("root", "env=prod", UNKNOWN);
    let by_login = World::new(&[everything.clone(), ("no-root", json!({"deny": {"logins": ["root"]}}))]);
    by_login.check("root", "env=dev", DENIED);
    by_login.check("app", "env=dev", Ok(()));
    // One matching part is enough: the login denies although the labels do not match.
    let either = World::new(&[everything.clone(), ("no", json!({"deny": {"logins": ["root"], "node_labels": {"env": "prod"}}}))]);
    either.check("root", "env=dev", DENIED);
    either.check("app", "env=prod", UNKNOWN);
    let star = World::new(&[everything.clone(), ("no", json!({"deny": {"logins": ["*"]}}))]);
    star.check("app", "env=dev", DENIED);
    let hosts = World::new(&[everything, ("no", json!({"deny": {"node_labels": {"*": "*", "env": "prod"}}}))]);
    hosts.check("app", "env=dev", UNKNOWN);
}

#[test]
fn a_forbidden_host_and_an_unknown_one_look_the_same() {
    let world = World::new(&[("dev", json!({"allow": {"logins": ["root"], "node_labels": {"env": "dev"}}}))]);
    let public = world.enter("root", "env=prod").unwrap_err().public();
    let unknown = Denied::Node { asked: "node1".into() }.public();
    assert_eq!(public, unknown);
}

#[test]
fn a_refused_login_names_those_that_work() {
    let world = World::new(&[("dev", json!({"allow": {"logins": ["app", "readonly", "alice"], "node_labels": all_labels()}}))]);
    let public = world.enter("root", "").unwrap_err().public();
    assert_eq!(public.message, "no role allows login \"root\" on \"node1\"");
    assert_eq!(public.hint.as_deref(), Some("logins you may use: alice, app"), "only those in the certificate");
}

#[test]
fn a_revoked_role_and_a_deleted_user_end_access_at_once() {
    let documents = || {
        among(vec![
            role("dev", json!({"allow": {"logins": ["root"], "node_labels": all_labels()}})),
            role("ops", json!({"allow": {"rules": [{"resources": ["role"], "verbs": ["*"]}]}})),
        ])
    };
    let held = identity("alice", &["dev", "ops"], &["root"]);
    let names = |user: CurrentUser<'_>| RoleSet::resolve(&held, documents(), user).names().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(CurrentUser::Unknown), ["dev", "ops"]);
    assert_eq!(names(CurrentUser::Known(&user("alice", &["dev"], &[]))), ["dev"]);
    // A role given since does not count before the next login.
    assert_eq!(names(CurrentUser::Known(&user("alice", &["dev", "editor"], &[]))), ["dev"]);
    assert_eq!(names(CurrentUser::Deleted), Vec::<String>::new());
    assert_eq!(names(CurrentUser::from(None)), Vec::<String>::new());
    let gone = RoleSet::resolve(&held, |_| None, CurrentUser::Unknown);
    assert!(gone.is_empty() && !gone.can_see_node(&labels("")));
    assert!(gone.problems().iter().all(|problem| problem.effect == Effect::GrantsNothing));
}

#[test]
fn attack_row_10_stale_traits_give_no_old_rights() {
    let specs = || {
        vec![
            role("dev", json!({"allow": {"logins": ["{{internal.logins}}"], "node_labels": {"team": "{{external.team}}"}}})),
            role("no", json!({"deny": {"node_labels": {"team": "{{external.banned}}"}}})),
        ]
    };
    let mut held = identity("alice", &["dev", "no"], &["root", "app"]);
    held.traits.insert("team".into(), vec!["db".into()]);
    held.traits.insert("banned".into(), vec!["x".into()]);
    let mut now = user("alice", &["dev", "no"], &["app", "new"]);
    now.spec.traits.insert("team".into(), vec!["db".into(), "web".into()]);
    now.spec.traits.insert("banned".into(), vec!["y".into()]);
    let roles = RoleSet::resolve(&held, among(specs()), CurrentUser::Known(&now));
    assert_eq!(roles.logins_for(&labels("team=db")).into_iter().map(|login| login.to_string()).collect::<Vec<_>>(), ["app"]);
    assert!(!roles.can_see_node(&labels("team=web")), "a trait given since does not widen");
    // For deny, both old and new count.
    held.traits.insert("team".into(), vec!["x".into(), "y".into()]);
    now.spec.traits.insert("team".into(), vec!["x".into(), "y".into()]);
    let roles = RoleSet::resolve(&held, among(specs()), CurrentUser::Known(&now));
    assert!(!roles.can_see_node(&labels("team=x")) && !roles.can_see_node(&labels("team=y")));
}

#[test]
fn what_cannot_be_judged_in_allow_grants_nothing_and_is_reported() {
    let world = World::new(&[(
        "dev",
        json!({"allow": {
            "logins": ["{{broken", "*", "ro*t", "a,b", "{{internal.missing}}", "app"],
            "node_labels": all_labels(),
            "rules": [{"resources": ["user"], "verbs": ["read"], "where": "x"}, {"resources": ["lock"], "verbs": ["read"]}],
        }}),
    )]);
    world.check("app", "", Ok(()));
    world.check("root", "", DENIED);
    assert!(!world.roles.allows_verb("user", "read"));
    assert!(world.roles.allows_verb("lock", "read"));
    let problems: Vec<_> = world.roles.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 5, "{problems:?}");
    assert!(problems[0].starts_with("role \"dev\": \"{{broken\" is not a template"), "{problems:?}");
    let labels = World::new(&[("dev", json!({"allow": {"logins": ["root"], "node_labels": {"env": "^($"}}}))]);
    labels.check("root", "env=(", UNKNOWN);
    assert_eq!(labels.roles.problems()[0].effect, Effect::GrantsNothing);
}

#[test]
fn attack_row_34_a_role_of_a_newer_release_never_widens_access() {
    let everything = ("all", json!({"allow": {"logins": ["root"], "node_labels": all_labels()}}));
    for deny in [
        json!({"db_names": ["prod"]}),
        json!({"logins": ["{{regexp.replace(external.x)}}"]}),
        json!({"node_labels": {"env": "^($"}}),
        json!({"node_labels": {"*": "prod"}}),
    ] {
        let world = World::new(&[everything.clone(), ("new", json!({"deny": deny}))]);
        world.check("root", "", DENIED);
        assert!(!world.roles.can_see_node(&labels("")));
        assert_eq!(world.roles.problems()[0].effect, Effect::RefusesAll, "{deny}");
        assert_eq!(world.roles.problems()[0].role, rn("new"));
    }
    let mut newer = role("new", json!({}));
    newer.version = "v2".into();
    let held = identity("alice", &["all", "new"], &["root"]);
    let roles = RoleSet::resolve(&held, among(vec![role(everything.0, everything.1.clone()), newer]), CurrentUser::Unknown);
    assert!(!roles.can_see_node(&labels("")) && roles.logins().is_empty() && roles.denies_verb("role", "read"));
    assert!(roles.problems()[0].why.contains("version \"v2\" is not known here"), "{:?}", roles.problems());
    // A deny rule with an unknown condition denies without it; nothing else is touched.
    let world = World::new(&[everything, ("new", json!({"deny": {"rules": [{"resources": ["role"], "verbs": ["read"], "where": "x"}]}}))]);
    world.check("root", "", Ok(()));
    assert!(world.roles.denies_verb("role", "read"));
}

#[test]
fn an_unknown_field_in_allow_or_options_is_reported_and_does_no_harm() {
    let world = World::new(&[(
        "all",
        json!({"options": {"sparkle": true}, "allow": {"logins": ["root"], "node_labels": all_labels(), "db_labels": {"*": "*"}}}),
    )]);
    world.check("root", "", Ok(()));
    assert!(world.roles.problems().iter().all(|problem| problem.effect == Effect::Ignored) && world.roles.problems().len() == 2);
}

#[test]
fn attack_row_34_a_condition_that_is_not_evaluated_widens_nothing() {
    let world = World::new(&[("all", json!({"allow": {"logins": ["root"], "node_labels": all_labels(), "where": "is_monday()"}}))]);
    assert!(!world.roles.can_see_node(&labels("")) && world.roles.logins().is_empty());
    assert_eq!(world.roles.problems()[0].effect, Effect::GrantsNothing);
    let rule = |side: &str| json!({side: {"rules": [{"resources": ["user"], "verbs": ["read"], "where": "is_monday()"}]}});
    let allow = World::new(&[("a", rule("allow"))]);
    assert!(!allow.roles.allows_verb("user", "read"));
    let deny = World::new(&[("d", rule("deny"))]);
    assert!(deny.roles.denies_verb("user", "read"));
    assert_eq!(deny.roles.problems()[0].effect, Effect::DeniesMore);
}

#[test]
fn a_login_in_a_role_is_one_or_a_template_of_one() {
    for (login, want) in [
        ("root", true),
        ("a.b_c@d+e-f", true),
        ("{{internal.logins}}", true),
        ("adm-{{ internal.logins }}.x", true),
        ("a,root", false),
        ("a root", false),
        ("-x", false),
        ("", false),
        ("a\tb", false),
        ("{{internal.logins}},root", false),
        (" {{internal.logins}}", false),
        ("-{{internal.logins}}", false),
    ] {
        for (side, effect) in [("allow", Effect::GrantsNothing), ("deny", Effect::NoEffect)] {
            let world = World::new(&[("r", json!({side: {"logins": [login]}}))]);
            let found: Vec<_> = world.roles.problems().iter().map(|problem| problem.effect).collect();
            assert_eq!(found, if want { vec![] } else { vec![effect] }, "{login:?} {side}");
        }
    }
    let long = World::new(&[("r", json!({"allow": {"logins": ["x".repeat(65)]}}))]);
    assert_eq!(long.roles.problems().len(), 1);
}

#[test]
fn options_combine_to_the_shortest_life_and_any_permission() {
    let identity = identity("alice", &["a", "b"], &[]);
    let roles = set(
        &identity,
        &[
            (
                "a",
                json!({"options": {"max_session_ttl": "8h", "port_forwarding": false, "max_sessions": 5, "client_idle_timeout": "0", "max_connections": 3}}),
            ),
            (
                "b",
                json!({"options": {"max_session_ttl": "4h", "port_forwarding": false, "forward_agent": true, "max_sessions": 3, "client_idle_timeout": "30m"}}),
            ),
        ],
    );
    assert_eq!(roles.max_ttl(), Ttl::hours(4));
    let options = roles.options();
    assert_eq!(options.idle_timeout, Some(std::time::Duration::from_secs(1800)));
    assert_eq!((options.max_sessions, options.max_connections, options.port_forwarding, options.forward_agent), (3, Some(3), false, true));
}

#[test]
fn certificates_that_ended_or_are_bound_elsewhere_open_nothing() {
    let mut world = World::new(&[(
        "all",
        json!({"options": {"disconnect_expired_cert": true}, "allow": {"logins": ["root"], "node_labels": all_labels()}}),
    )]);
    assert_eq!(world.enter("root", "").unwrap().deadline, Some(Time::from_unix(100_000)));
    world.now = 100_000;
    world.check("root", "", Err(Code::LoginExpired));
    world.now = 1000;
    world.identity.restrictions.host = Some(host(2));
    world.check("root", "", Err(Code::AccessIdentity));
    world.identity.restrictions.host = Some(host(1));
    world.check("root", "", Ok(()));
    world.identity.restrictions.source_ip = Some("10.0.0.1".parse().unwrap());
    world.check("root", "", Err(Code::AccessIdentity));
    world.peer = Some("10.0.0.2".parse().unwrap());
    world.check("root", "", Err(Code::AccessIdentity));
    world.peer = Some("::ffff:10.0.0.1".parse().unwrap());
    world.check("root", "", Ok(()));
    world.identity.cluster = ClusterName::new("other").unwrap();
    world.check("root", "", Err(Code::AccessIdentity));
}

#[test]
fn limits_count_what_is_open() {
    let roles = set(&identity("alice", &["a"], &[]), &[("a", json!({"options": {"max_sessions": 2, "max_connections": 1}}))]);
    let options = roles.options();
    assert!(options.another_session(1).is_ok() && options.another_connection(0).is_ok());
    assert!(options.another_session(2).unwrap_err().public().is(Code::AccessLimit));
    assert!(options.another_connection(1).unwrap_err().public().is(Code::AccessLimit));
    let free = set(&identity("alice", &["a"], &[]), &[("a", json!({}))]).options();
    assert!(free.another_session(9).is_ok() && free.another_session(10).is_err() && free.another_connection(u32::MAX).is_ok());
}

#[test]
fn another_users_document_gives_no_roles() {
    let documents = among(vec![role("dev", json!({"allow": {"logins": ["root"], "node_labels": all_labels()}}))]);
    assert!(
        RoleSet::resolve(&identity("alice", &["dev"], &["root"]), documents, CurrentUser::Known(&user("bob", &["dev"], &["root"])))
            .is_empty()
    );
}

#[test]
fn a_login_must_stand_in_the_certificate_too() {
    let mut world = World::new(&[("all", json!({"allow": {"logins": ["root"], "node_labels": all_labels()}}))]);
    world.identity.logins.clear();
    world.check("root", "", DENIED);
}

#[test]
fn a_lock_refuses_what_it_names() {
    let mut world = World::new(&[("all", json!({"allow": {"logins": ["root"], "node_labels": all_labels()}}))]);
    let target = LockTarget { role: Some("all".into()), ..LockTarget::default() };
    world.locks = vec![Resource::new(Metadata::named(rn("l")), Lock { target, message: "incident 7".into(), extra: Extra::new() })];
    world.check("root", "", Err(Code::AccessLocked));
    assert_eq!(world.enter("root", "").unwrap_err().public().message, "a lock is in force: incident 7");
}

proptest! {
    #[test]
    fn adding_a_deny_never_widens_and_a_permit_is_always_backed(
        allow_logins in proptest::collection::vec("[a-c]", 0..3), deny_logins in proptest::collection::vec("[a-c*]", 0..3),
        allow_env in proptest::collection::vec("(prod|dev|\\*|p\\*)", 0..3), deny_env in proptest::collection::vec("(prod|dev|\\*|p\\*|\\^x)", 0..2),
        login in "[a-c]", env in "(prod|dev|test)",
    ) {
        let allow = json!({"allow": {"logins": allow_logins, "node_labels": {"env": allow_env}}});
        let deny = json!({"deny": {"logins": deny_logins, "node_labels": if deny_env.is_empty() { json!({}) } else { json!({"env": deny_env}) }}});
        let held = identity("alice", &["a", "d"], &["a", "b", "c"]);
        let (without, with) = (set(&held, &[("a", allow.clone())]), set(&held, &[("a", allow), ("d", deny)]));
        let labels = labels(&format!("env={env}"));
        let login = Login::new(&login).unwrap();
        let may = |roles: &RoleSet| roles.logins_for(&labels).contains(&login);
        prop_assert!(!may(&with) || may(&without));
        if may(&with) {
            prop_assert!(allow_logins.iter().any(|text| text == login.as_str()));
            prop_assert!(!deny_logins.iter().any(|text| text == login.as_str() || text == "*"));
            prop_assert!(!deny_env.iter().any(|text| *text == env || text == "*" || (text == "p*" && env == "prod")));
        }
    }
}

#[test]
fn a_role_given_after_the_login_denies_at_once_and_allows_nothing_yet() {
    let everywhere = json!({"allow": {"logins": ["app"], "node_labels": all_labels()}});
    let keep_out = json!({
        "allow": {"logins": ["root"], "node_labels": all_labels(), "rules": [{"resources": ["*"], "verbs": ["*"]}]},
        "deny": {"node_labels": {"env": "prod"}, "rules": [{"resources": ["node"], "verbs": ["read"]}]},
    });
    let identity = identity("alice", &["dev"], &["app", "root"]);
    let now = user("alice", &["dev", "keep-out"], &["app", "root"]);
    let documents = vec![role("dev", everywhere), role("keep-out", keep_out)];
    let roles = RoleSet::resolve(&identity, among(documents), CurrentUser::Known(&now));
    assert!(!roles.allows_verb("user", "create") && roles.denies_verb("node", "read"));
    let world = World { identity, roles, locks: Vec::new(), now: 1000, peer: None };
    world.check("app", "env=dev", Ok(()));
    world.check("app", "env=prod", UNKNOWN);
    world.check("root", "env=dev", DENIED);
}
