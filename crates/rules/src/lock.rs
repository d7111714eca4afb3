//! Locks: refusing whatever their target names, now, until they expire or are removed.
//!
//! Every field of a target that is given must match; a target without any field that this release knows matches nothing.
//! A field of a newer release is left aside, so that such a lock bites wider here and never narrower. A role locks whoever
//! has it in the certificate, whether or not the user still has it. Callers: `access`, `auth` at login and issue.

use crate::permit::Denied;
use types::{HostId, Login, Resource, Time, UserIdentity, kind::Lock};

/// What a lock may speak of.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub identity: &'a UserIdentity,
    /// `None` where no login is chosen yet: a lock on a login then does not bite.
    pub login: Option<&'a Login>,
    pub host: Option<HostId>,
}

/// Refuses when a lock in force names the subject.
pub fn check(locks: &[Resource<Lock>], subject: &Subject<'_>, now: Time) -> Result<(), Denied> {
    match locks.iter().find(|lock| in_force(lock, now) && names(lock, subject)) {
        Some(lock) => Err(Denied::Locked { message: lock.spec.message.clone() }),
        None => Ok(()),
    }
}

/// Refuses a member when a lock names its host and nothing else.
pub fn check_host(locks: &[Resource<Lock>], host: HostId, now: Time) -> Result<(), Denied> {
    let bites = |lock: &&Resource<Lock>| {
        let target = &lock.spec.target;
        in_force(lock, now) && target.node == Some(host) && target.user.is_none() && target.role.is_none() && target.login.is_none()
    };
    match locks.iter().find(bites) {
        Some(lock) => Err(Denied::Locked { message: lock.spec.message.clone() }),
        None => Ok(()),
    }
}

/// A lock whose time has not run out.
pub fn in_force(lock: &Resource<Lock>, now: Time) -> bool {
    lock.metadata.expires.is_none_or(|end| end > now)
}

fn names(lock: &Resource<Lock>, subject: &Subject<'_>) -> bool {
    let target = &lock.spec.target;
    let parts = [
        target.user.as_ref().map(|user| user == subject.identity.user.as_str()),
        target.role.as_ref().map(|role| subject.identity.roles.iter().any(|have| have.as_str() == role)),
        target.login.as_ref().map(|login| subject.login.is_some_and(|have| have.as_str() == login)),
        target.node.map(|node| subject.host == Some(node)),
    ];
    let mut given = parts.into_iter().flatten().peekable();
    given.peek().is_some() && given.all(|holds| holds)
}

#[cfg(test)]
mod tests {
    use super::{check as check_lock, *};
    use crate::access::tests::identity;
    use types::{Extra, Metadata, kind::LockTarget};

    fn lock(target: LockTarget, expires: Option<i64>) -> Vec<Resource<Lock>> {
        let mut metadata = Metadata::named(types::ResourceName::new("l").unwrap());
        metadata.expires = expires.map(Time::from_unix);
        vec![Resource::new(metadata, Lock { target, message: "incident 7".into(), extra: Extra::new() })]
    }

    #[test]
    fn every_field_given_must_match() {
        let identity = identity("alice", &["access"], &["root"]);
        let (root, host) = (Login::new("root").unwrap(), HostId::from_uuid(uuid_of(1)));
        let check = |target: LockTarget, want: bool| {
            let subject = Subject { identity: &identity, login: Some(&root), host: Some(host) };
            assert_eq!(check_lock(&lock(target.clone(), None), &subject, Time::EPOCH).is_err(), want, "{target:?}");
        };
        let target = LockTarget::default;
        check(target(), false);
        check(LockTarget { user: Some("alice".into()), ..target() }, true);
        check(LockTarget { user: Some("bob".into()), ..target() }, false);
        check(LockTarget { role: Some("access".into()), ..target() }, true);
        check(LockTarget { login: Some("root".into()), ..target() }, true);
        check(LockTarget { node: Some(host), ..target() }, true);
        check(LockTarget { user: Some("alice".into()), login: Some("app".into()), ..target() }, false);
        check(LockTarget { extra: Extra::from_iter([("device".to_owned(), "x".into())]), ..target() }, false);
        check(LockTarget { user: Some("alice".into()), extra: Extra::from_iter([("device".to_owned(), "x".into())]), ..target() }, true);
    }

    fn uuid_of(last: u128) -> uuid::Uuid {
        uuid::Uuid::from_u128(last)
    }

    #[test]
    fn a_lock_ends_when_it_says() {
        let identity = identity("alice", &[], &[]);
        let subject = Subject { identity: &identity, login: None, host: None };
        let locks = lock(LockTarget { user: Some("alice".into()), ..LockTarget::default() }, Some(100));
        assert!(check(&locks, &subject, Time::from_unix(99)).is_err());
        assert!(check(&locks, &subject, Time::from_unix(100)).is_ok());
    }

    #[test]
    fn a_host_lock_refuses_the_member_but_a_lock_on_a_user_there_does_not() {
        let host = HostId::from_uuid(uuid_of(1));
        let whole = lock(LockTarget { node: Some(host), ..LockTarget::default() }, None);
        let user = lock(LockTarget { node: Some(host), user: Some("alice".into()), ..LockTarget::default() }, None);
        assert!(check_host(&whole, host, Time::EPOCH).is_err());
        assert!(check_host(&user, host, Time::EPOCH).is_ok());
    }
}
