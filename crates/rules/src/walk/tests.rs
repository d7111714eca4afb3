//! What the walker may do, and that nobody else becomes him.

use super::*;
use crate::{
    Caller, CurrentUser, RoleSet, Verb,
    access::{
        SessionRequest, decide_session,
        tests::{among, host, host_identity, identity, json, role, user},
    },
    channel::{Channel, Phase, Request, Rights, decide_channel, decide_request},
    documents::{decide_read, decide_write},
    issue::{self, LoginRequest, Narrower},
    permit::{LoggedIn, OpenSession},
};
use types::{HostIdentity, Identity, Labels, SystemRole, kind::User};

fn now() -> Time {
    Time::from_unix(1000)
}
fn cluster() -> ClusterName {
    ClusterName::new("example").unwrap()
}
fn walker() -> UserIdentity {
    certificate(&cluster(), now()).unwrap().into_facts().identity
}
/// His rights in a cluster whose administrator wrote that role and user when the names were not reserved yet.
fn rights(identity: &UserIdentity) -> RoleSet {
    let wide = json!({"allow": {"logins": ["root"], "node_labels": {"*": "*"}, "rules": [{"resources": ["*"], "verbs": ["*"]}]}});
    let known: Resource<User> = user(NAME, &[NAME, "all"], &["root"]);
    RoleSet::resolve(identity, among(vec![role(NAME, wide.clone()), role("all", wide)]), CurrentUser::Known(&known))
}
fn enter(identity: &UserIdentity, login: &str) -> Result<Permit<OpenSession>, Denied> {
    decide_session(&SessionRequest {
        cluster: &cluster(),
        identity,
        roles: &rights(identity),
        host: host(1),
        hostname: "node1",
        labels: &Labels::new(),
        login: &Login::new(login).unwrap(),
        peer: None,
        locks: &[],
        now: now(),
    })
}

#[test]
fn he_enters_every_host_as_himself_and_as_nobody_else() {
    let permit = enter(&walker(), NAME).unwrap();
    assert_eq!(permit.deadline, Some(now().plus(LIFE.0)), "what he left open ends with his certificate");
    assert!(!permit.options.port_forwarding && !permit.options.forward_agent && permit.options.max_sessions == 1);
    assert!(enter(&walker(), "root").is_err());
    // Not even with a certificate that names more.
    let wide = UserIdentity { logins: [Login::new("root").unwrap()].into(), roles: [ResourceName::new("all").unwrap()].into(), ..walker() };
    assert!(enter(&wide, "root").is_err() && enter(&wide, NAME).is_err());
}

#[test]
fn on_a_host_he_runs_his_command_and_nothing_else() {
    let rights = Rights::agent(&enter(&walker(), NAME).unwrap());
    assert!(rights.is_walk());
    let allowed = |wanted: &Request| *wanted == Request::ExecWalk;
    for request in Request::ALL {
        let granted = decide_request(&rights, *request, Phase::Fresh);
        assert!(allowed(request) == granted.as_ref().is_ok_and(|permit| !permit.quietly), "{request:?}: {granted:?}");
    }
    assert!(decide_request(&rights, Request::ExecWalk, Phase::Started).is_err(), "once");
    for channel in Channel::ALL {
        assert_eq!(decide_channel(&rights, *channel).is_ok(), *channel == Channel::Session, "{channel:?}");
    }
    for other in ["", "lockgate-walk ", "lockgate-walk;id", "Lockgate-walk", "sh", "lockgate-walk\n"] {
        assert_eq!(Request::exec(other.as_bytes()), Request::Exec, "{other:?}");
    }
    assert_eq!(Request::exec(NAME.as_bytes()), Request::ExecWalk);
}

#[test]
fn of_the_cluster_he_sees_the_hosts_and_changes_nothing() {
    let (identity, name) = (walker(), ResourceName::new("x").unwrap());
    let roles = rights(&identity);
    let caller = Caller::User { identity: &identity, roles: &roles };
    let reads = |kind: &str| decide_read(caller, kind, Verb::List).is_ok();
    assert!(reads("node") && reads("cert_authority"));
    for kind in ["role", "token", "lock", "member", "event", "backup", "control", "update_directive", "cluster_auth_preference"] {
        assert!(!reads(kind), "{kind}");
        for verb in [Verb::Create, Verb::Update, Verb::Delete] {
            assert!(decide_write(caller, kind, verb, &name).is_err(), "{kind} {verb:?}");
        }
    }
}

#[test]
fn his_certificate_is_exchanged_for_one_that_ends_no_later() {
    let (identity, later) = (walker(), now().plus(LIFE.0 / 2));
    let again = issue::reissue(&identity, CurrentUser::Deleted, &rights(&identity), &[], &Narrower::default(), later).unwrap();
    assert_eq!(again.identity, identity);
}

#[test]
fn nobody_is_given_his_name() {
    let name = ResourceName::new(NAME).unwrap();
    let admin = HostIdentity { roles: [SystemRole::Admin].into(), ..host_identity("a") };
    for kind in ["user", "role"] {
        for verb in [Verb::Create, Verb::Update] {
            let denied = decide_write(Caller::Host(&admin), kind, verb, &name).unwrap_err();
            assert_eq!(denied.to_string(), format!("{kind} \"{NAME}\" is refused: the name is the cluster's own"));
        }
        assert!(decide_write(Caller::Host(&admin), kind, Verb::Delete, &name).is_ok(), "one of an older release goes");
    }
    // A user of that name whom an older release made gets no certificate, by password or by the administrator.
    let old: Resource<User> = user(NAME, &["dev"], &["root"]);
    let roles = RoleSet::of_user(&old, among(vec![role("dev", json!({"allow": {"logins": ["root"], "node_labels": {"*": "*"}}}))]));
    let request = LoginRequest {
        cluster: &cluster(),
        user: &old,
        roles: &roles,
        ttl: None,
        default_ttl: Ttl::hours(12),
        source_ip: None,
        locks: &[],
        now: now(),
    };
    let proof = Permit::grant(LoggedIn { user: UserName::new(NAME).unwrap(), second_factor: true, otp_step: None });
    assert!(issue::login(&proof, &request).is_err());
    assert!(issue::sign(&Identity::Host(admin), &request).is_err());
}

#[test]
fn a_role_that_names_his_login_or_his_role_makes_nobody_him() {
    let alice = identity("alice", &[NAME], &[NAME]);
    let roles = RoleSet::resolve(&alice, among(Vec::new()), CurrentUser::Unknown);
    assert!(roles.is_empty(), "there is no such role");
    let named = json!({"allow": {"logins": [NAME], "node_labels": {"*": "*"}}});
    let alice = identity("alice", &["dev"], &[NAME]);
    let roles = RoleSet::resolve(&alice, among(vec![role("dev", named)]), CurrentUser::Unknown);
    let request = SessionRequest {
        cluster: &cluster(),
        identity: &alice,
        roles: &roles,
        host: host(1),
        hostname: "node1",
        labels: &Labels::new(),
        login: &Login::new(NAME).unwrap(),
        peer: None,
        locks: &[],
        now: now(),
    };
    // An account of that name, if the host has one, is an account like any other.
    assert!(!Rights::agent(&decide_session(&request).unwrap()).is_walk());
}
