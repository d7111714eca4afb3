//! Attack row 9: a re-issued certificate never has more. And what a first one holds.

use super::*;
use crate::access::tests::{among, host, host_identity, identity, json, rn, role, user};
use proptest::prelude::*;
use types::Code;

fn documents() -> impl Fn(&ResourceName) -> Option<types::Document> {
    among(vec![
        role(
            "dev",
            json!({"options": {"max_session_ttl": "8h"}, "allow": {"logins": ["{{internal.logins}}", "app"], "node_labels": {"*": "*"}}}),
        ),
        role("ops", json!({"allow": {"logins": ["root"], "node_labels": {"*": "*"}}})),
    ])
}
fn logins(identity: &UserIdentity) -> Vec<String> {
    identity.logins.iter().map(ToString::to_string).collect()
}

#[test]
fn a_certificate_lives_as_asked_within_what_roles_allow() {
    let check = |asked: Option<u64>, max: u64, default: u64, want: u64| {
        assert_eq!(login_ttl(asked.map(Ttl::from_secs), Ttl::from_secs(max), Ttl::from_secs(default)), Ttl::from_secs(want));
    };
    check(None, 108_000, 43_200, 43_200);
    check(Some(3600), 108_000, 43_200, 3600);
    check(Some(999_999), 108_000, 43_200, 108_000);
    check(None, 3600, 43_200, 3600);
    check(Some(1), 3600, 43_200, 60);
    check(Some(1), 30, 43_200, 30);
    check(None, 0, 43_200, 0);
}

#[test]
fn a_login_yields_the_users_roles_and_logins() {
    let alice = user("alice", &["dev"], &["alice", "bad,login"].map(|login| if login == "bad,login" { "bad" } else { login }));
    let roles = RoleSet::of_user(&alice, documents());
    let request = LoginRequest {
        cluster: &ClusterName::new("example").unwrap(),
        user: &alice,
        roles: &roles,
        ttl: None,
        default_ttl: Ttl::hours(12),
        source_ip: None,
        locks: &[],
        now: Time::from_unix(1000),
    };
    let proof = |name: &str| Permit::grant(LoggedIn { user: types::UserName::new(name).unwrap(), second_factor: true, otp_step: Some(1) });
    let issued = login(&proof("alice"), &request).unwrap();
    assert_eq!(logins(&issued.identity), ["alice", "app", "bad"]);
    assert_eq!(issued.identity.expires, Time::from_unix(1000 + 8 * 3600));
    assert!(issued.identity.restrictions.second_factor);
    // The proof of one user is none for another.
    assert!(login(&proof("bob"), &request).unwrap_err().public().is(Code::LoginFailed));
    let nobody = RoleSet::default();
    assert!(login(&proof("alice"), &LoginRequest { roles: &nobody, ..request }).is_err());
    let admin = HostIdentity { roles: [SystemRole::Admin].into(), ..host_identity("a") };
    assert!(sign(&Identity::Host(admin), &request).is_ok());
    assert!(sign(&Identity::Host(host_identity("n")), &request).is_err());
    assert!(sign(&Identity::User(identity("alice", &["dev"], &[])), &request).is_err());
}

#[test]
fn what_may_not_be_exchanged_is_not() {
    let roles = || RoleSet::resolve(&identity("alice", &["dev"], &["app"]), documents(), CurrentUser::Unknown);
    let try_it = |identity: &UserIdentity, wanted: &Narrower, now: i64| {
        reissue(identity, CurrentUser::Unknown, &roles(), &[], wanted, Time::from_unix(now))
    };
    let held = identity("alice", &["dev"], &["app"]);
    assert!(try_it(&held, &Narrower::default(), 1000).is_ok());
    assert!(try_it(&held, &Narrower::default(), 100_000).unwrap_err().public().is(Code::LoginExpired));
    let mut bound = held.clone();
    bound.restrictions.no_reissue = true;
    assert!(try_it(&bound, &Narrower::default(), 1000).is_err());
    bound.restrictions = Restrictions { host: Some(host(1)), ..Restrictions::default() };
    assert!(try_it(&bound, &Narrower { host: Some(host(2)), ..Narrower::default() }, 1000).is_err());
    assert!(try_it(&held, &Narrower { roles: Some([rn("ops")].into()), ..Narrower::default() }, 1000).is_err(), "no role is left");
    assert!(reissue(&held, CurrentUser::Deleted, &RoleSet::default(), &[], &Narrower::default(), Time::from_unix(1000)).is_err());
}

#[test]
fn a_locked_user_gets_no_certificate() {
    let target = types::kind::LockTarget { user: Some("alice".into()), ..Default::default() };
    let locks = [Resource::new(types::Metadata::named(rn("l")), Lock { target, ..Lock::default() })];
    let alice = user("alice", &["dev"], &["alice"]);
    let roles = RoleSet::of_user(&alice, documents());
    let cluster = ClusterName::new("example").unwrap();
    let request = LoginRequest {
        cluster: &cluster,
        user: &alice,
        roles: &roles,
        ttl: None,
        default_ttl: Ttl::hours(12),
        source_ip: None,
        locks: &locks,
        now: Time::EPOCH,
    };
    let proof = Permit::grant(LoggedIn { user: types::UserName::new("alice").unwrap(), second_factor: false, otp_step: None });
    assert!(login(&proof, &request).unwrap_err().public().is(Code::AccessLocked));
    let held = identity("alice", &["dev"], &["app"]);
    assert!(
        reissue(&held, CurrentUser::Unknown, &roles, &locks, &Narrower::default(), Time::EPOCH)
            .unwrap_err()
            .public()
            .is(Code::AccessLocked)
    );
}

#[test]
fn a_member_renews_itself_and_nobody_else() {
    let me = host_identity("node1");
    assert_eq!(renew_host(&me, &me).unwrap(), me);
    for other in [
        HostIdentity { id: host(2), ..me.clone() },
        host_identity("node2"),
        HostIdentity { roles: [SystemRole::Node, SystemRole::Proxy].into(), ..me.clone() },
        HostIdentity { roles: [SystemRole::Admin].into(), ..me.clone() },
        HostIdentity { roles: BTreeSet::new(), ..me.clone() },
        HostIdentity { cluster: ClusterName::new("other").unwrap(), ..me.clone() },
    ] {
        assert!(renew_host(&me, &other).is_err(), "{other:?}");
    }
}

fn from_last(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}
prop_compose! {
    fn any_identity()(roles in proptest::collection::btree_set("(dev|ops|gone)", 0..3), logins in proptest::collection::btree_set("(app|root|alice)", 0..3),
        expires in 0i64..100_000, ip in proptest::option::of(0u8..3), host_id in proptest::option::of(0u128..3), no_reissue in any::<bool>(), second_factor in any::<bool>(), future in any::<bool>()) -> UserIdentity {
        let mut held = identity("alice", &[], &["alice"]);
        held.roles = roles.iter().map(|role| rn(role)).collect();
        held.logins = logins.iter().map(|login| Login::new(login).unwrap()).collect();
        held.expires = Time::from_unix(expires);
        held.restrictions = Restrictions { source_ip: ip.map(from_last), no_reissue, host: host_id.map(host), second_factor, extra: Extra::new() };
        if future {
            held.restrictions.extra.insert("device".into(), "laptop-7".into());
        }
        held
    }
}
prop_compose! {
    fn any_wish()(ttl in proptest::option::of(0u64..200_000), roles in proptest::option::of(proptest::collection::btree_set("(dev|ops|editor)", 0..3)),
        logins in proptest::option::of(proptest::collection::btree_set("(app|root|admin)", 0..3)), host_id in proptest::option::of(0u128..3),
        ip in proptest::option::of(0u8..3), no_reissue in any::<bool>(), drop_second_factor in any::<bool>()) -> Narrower {
        Narrower {
            ttl: ttl.map(Ttl::from_secs),
            roles: roles.map(|roles| roles.iter().map(|role| rn(role)).collect()),
            logins: logins.map(|logins| logins.iter().map(|login| Login::new(login).unwrap()).collect()),
            host: host_id.map(host),
            source_ip: ip.map(from_last),
            no_reissue,
            drop_second_factor,
        }
    }
}

#[test]
fn attack_row_34_a_certificate_with_an_unknown_restriction_is_not_exchanged() {
    let mut held = identity("alice", &["dev"], &["alice"]);
    let roles = RoleSet::resolve(&held, documents(), CurrentUser::Unknown);
    let exchange =
        |held: &UserIdentity| reissue(held, CurrentUser::Unknown, &roles, &[], &Narrower::default(), Time::from_unix(1)).map(|_| ());
    exchange(&held).unwrap();
    held.restrictions.extra.insert("device".into(), "laptop-7".into());
    assert!(matches!(exchange(&held), Err(Denied::Restricted(_))));
}

proptest! {
    #[test]
    fn attack_row_9_a_reissued_certificate_is_a_subset_of_the_one_it_came_from(
        held in any_identity(), wish in any_wish(), now in 0i64..100_000, known in 0u8..3, has in proptest::collection::btree_set("(dev|ops|editor)", 0..4),
    ) {
        let mut document = user("alice", &[], &["alice", "root"]);
        document.spec.roles = has.iter().map(|role| rn(role)).collect();
        let current = match known {
            0 => CurrentUser::Unknown,
            1 => CurrentUser::Deleted,
            _ => CurrentUser::Known(&document),
        };
        let roles = RoleSet::resolve(&held, documents(), current);
        if let Ok(issue) = reissue(&held, current, &roles, &[], &wish, Time::from_unix(now)) {
            let new = &issue.identity;
            let (old, got) = (&held.restrictions, &new.restrictions);
            prop_assert!(!old.no_reissue);
            prop_assert_eq!((&new.user, &new.cluster), (&held.user, &held.cluster));
            prop_assert!(new.roles.is_subset(&held.roles) && !new.roles.is_empty());
            prop_assert!(new.logins.is_subset(&held.logins));
            prop_assert!(new.expires <= held.expires);
            prop_assert!(new.traits.iter().all(|(name, values)| held.traits.get(name).is_some_and(|had| values.iter().all(|value| had.contains(value)))));
            prop_assert!(old.source_ip.is_none() || got.source_ip == old.source_ip);
            prop_assert!(old.host.is_none() || got.host == old.host);
            prop_assert!(old.second_factor || !got.second_factor);
            prop_assert_eq!(&got.extra, &old.extra);
            prop_assert_eq!(&new.extra, &held.extra);
            // And it honours what was asked for.
            prop_assert!(wish.host.is_none() || got.host == wish.host);
            prop_assert!(wish.source_ip.is_none() || got.source_ip == wish.source_ip);
            prop_assert_eq!(got.no_reissue, wish.no_reissue);
        }
    }
}
