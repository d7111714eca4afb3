//! What may stand in a user's certificate.
//!
//! A first certificate needs a [`LoggedIn`] permit, which only `login` makes. A re-issued certificate never has more than
//! the one it came from (attack table, row 9): roles, logins, traits and life shrink, restrictions stay and may grow; the
//! only way to more is to log in again. The keys and the signing are in `auth::ca`.

use crate::{
    access::{CurrentUser, RoleSet},
    lock,
    permit::{Denied, Issue, LoggedIn, Permit},
    walk,
};
use std::{collections::BTreeSet, net::IpAddr, time::Duration};
use types::{
    ClusterName, Extra, HostId, HostIdentity, Identity, Login, Resource, ResourceName, SystemRole, Time, Ttl, UserIdentity,
    identity::Restrictions,
    identity::Traits,
    kind::{Lock, User},
};

/// No certificate lives shorter: clocks differ and logins take time.
pub const MIN_TTL: Ttl = Ttl::from_secs(60);
/// How far back a certificate's validity begins, for hosts whose clock is behind.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// The life of a new certificate: what was asked for, or the cluster's default, never more than the roles allow.
pub fn login_ttl(requested: Option<Ttl>, roles_max: Ttl, default: Ttl) -> Ttl {
    requested.unwrap_or(default).max(MIN_TTL).min(roles_max)
}

/// What a login asks for.
#[derive(Clone, Copy, Debug)]
pub struct LoginRequest<'a> {
    pub cluster: &'a ClusterName,
    pub user: &'a Resource<User>,
    /// From [`RoleSet::of_user`].
    pub roles: &'a RoleSet,
    pub ttl: Option<Ttl>,
    pub default_ttl: Ttl,
    /// Binds the certificate to this address.
    pub source_ip: Option<IpAddr>,
    pub locks: &'a [Resource<Lock>],
    pub now: Time,
}

/// The certificate of a fresh login.
pub fn login(proof: &Permit<LoggedIn>, request: &LoginRequest<'_>) -> Result<Permit<Issue>, Denied> {
    let user = &proof.user;
    // The document must be the one of the user who proved himself.
    if request.user.name().as_str() != user.as_str() {
        return Err(Denied::LoginFailed { user: user.to_string(), why: "the user document is another's" });
    }
    fresh(user, request, proof.second_factor)
}

/// `tctl auth sign`: the local administrator issues for anybody; the roles' longest life holds for him too.
pub fn sign(caller: &Identity, request: &LoginRequest<'_>) -> Result<Permit<Issue>, Denied> {
    if !caller.has_system_role(&SystemRole::Admin) {
        return Err(Denied::NotAllowed { who: caller.display(), what: "sign certificates for users".into() });
    }
    let user = types::UserName::new(request.user.name())
        .map_err(|_| Denied::NotAllowed { who: caller.display(), what: "sign for this name".into() })?;
    fresh(&user, request, false)
}

fn fresh(user: &types::UserName, request: &LoginRequest<'_>, second_factor: bool) -> Result<Permit<Issue>, Denied> {
    walk::check_name("a certificate for", user.as_str())?;
    let roles = request.roles;
    let ttl = login_ttl(request.ttl, roles.max_ttl(), request.default_ttl);
    if roles.is_empty() || ttl.0.is_zero() {
        return Err(Denied::NotAllowed { who: user.to_string(), what: "log in without a role".into() });
    }
    let identity = UserIdentity {
        cluster: request.cluster.clone(),
        user: user.clone(),
        roles: request.user.spec.roles.clone(),
        traits: request.user.spec.traits.clone(),
        logins: roles.logins(),
        expires: request.now.plus(ttl.0),
        restrictions: Restrictions { source_ip: request.source_ip, second_factor, ..Restrictions::default() },
        extra: Extra::new(),
    };
    lock::check(request.locks, &lock::Subject { identity: &identity, login: None, host: None }, request.now)?;
    Ok(Permit::grant(Issue { identity }))
}

/// What a re-issue may ask for: only less.
#[derive(Clone, Debug, Default)]
pub struct Narrower {
    pub ttl: Option<Ttl>,
    /// Only these roles, of those in the certificate.
    pub roles: Option<BTreeSet<ResourceName>>,
    /// Only these logins, of those in the certificate.
    pub logins: Option<BTreeSet<Login>>,
    pub host: Option<HostId>,
    pub source_ip: Option<IpAddr>,
    pub no_reissue: bool,
    pub drop_second_factor: bool,
}

/// A certificate in exchange for one in force. `user` and `roles` are what the user has now.
pub fn reissue(
    identity: &UserIdentity,
    user: CurrentUser<'_>,
    roles: &RoleSet,
    locks: &[Resource<Lock>],
    wanted: &Narrower,
    now: Time,
) -> Result<Permit<Issue>, Denied> {
    if identity.expires <= now {
        return Err(Denied::Expired { who: identity.user.to_string(), at: identity.expires });
    }
    crate::access::known_restrictions(identity)?;
    lock::check(locks, &lock::Subject { identity, login: None, host: identity.restrictions.host }, now)?;
    let old = &identity.restrictions;
    if old.no_reissue {
        return Err(Denied::Restricted("it may not be exchanged for another".into()));
    }
    // Both may be bound, but only to the same.
    if wanted.host.is_some() && old.host.is_some() && wanted.host != old.host {
        return Err(Denied::Restricted("it is for another host".into()));
    }
    if wanted.source_ip.is_some() && old.source_ip.is_some() && wanted.source_ip != old.source_ip {
        return Err(Denied::Restricted("it is for another address".into()));
    }
    let current: BTreeSet<ResourceName> = match user {
        _ if walk::is(&identity.user) => identity.roles.clone(),
        CurrentUser::Unknown => identity.roles.clone(),
        CurrentUser::Deleted => BTreeSet::new(),
        CurrentUser::Known(user) => identity.roles.intersection(&user.spec.roles).cloned().collect(),
    };
    let kept = match &wanted.roles {
        None => current,
        Some(only) => current.intersection(only).cloned().collect(),
    };
    if kept.is_empty() || roles.is_empty() {
        return Err(Denied::NotAllowed { who: identity.user.to_string(), what: "hold a certificate without a role".into() });
    }
    let allowed = roles.logins();
    let keep = |login: &&Login| allowed.contains(*login) && wanted.logins.as_ref().is_none_or(|only| only.contains(*login));
    let ttl = wanted.ttl.map_or(roles.max_ttl(), |ttl| ttl.max(MIN_TTL).min(roles.max_ttl()));
    Ok(Permit::grant(Issue {
        identity: UserIdentity {
            cluster: identity.cluster.clone(),
            user: identity.user.clone(),
            roles: kept,
            traits: traits_now(identity, user),
            logins: identity.logins.iter().filter(keep).cloned().collect(),
            expires: identity.expires.min(now.plus(ttl.0)),
            restrictions: Restrictions {
                source_ip: old.source_ip.or(wanted.source_ip),
                no_reissue: wanted.no_reissue,
                host: old.host.or(wanted.host),
                second_factor: old.second_factor && !wanted.drop_second_factor,
                // Empty: what is not known here was refused.
                extra: old.extra.clone(),
            },
            extra: identity.extra.clone(),
        },
    }))
}

fn traits_now(identity: &UserIdentity, user: CurrentUser<'_>) -> Traits {
    match user {
        CurrentUser::Unknown => identity.traits.clone(),
        CurrentUser::Deleted => Traits::new(),
        CurrentUser::Known(user) => crate::access::intersection(&identity.traits, &user.spec.traits),
    }
}

/// A member renews its own certificate: same id, name and roles, nothing else.
pub fn renew_host(caller: &HostIdentity, wanted: &HostIdentity) -> Result<HostIdentity, Denied> {
    let same =
        caller.cluster == wanted.cluster && caller.id == wanted.id && caller.name == wanted.name && wanted.roles.is_subset(&caller.roles);
    if same && !wanted.roles.is_empty() {
        return Ok(HostIdentity { roles: wanted.roles.clone(), ..caller.clone() });
    }
    Err(Denied::NotAllowed { who: format!("{} ({})", caller.name, caller.id), what: "renew another's certificate or add roles".into() })
}

#[cfg(test)]
#[path = "issue/tests.rs"]
mod tests;
