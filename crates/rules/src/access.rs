//! Roles at work: which roles a user has now, what they come to, and whether he may enter a host.
//!
//! Deny wins and is greedy: one matching part of one role's `deny` is enough. Allow is conjunctive inside a role (labels
//! *and* login must match in the same one), roles are joined by *or*. The roles in force are those in the certificate that
//! the user still has; traits count for allow only if both certificate and user have them, for deny if either has. A role
//! given after the certificate was issued allows nothing yet, but it denies at once.
//!
//! What this release cannot judge never widens anything: a bad login or selector in `allow` grants nothing by itself; a
//! role of an unknown version, an unknown field or bad text in `deny` refuses its holder everything, since it might deny
//! anything. Each such case stands in [`RoleSet::problems`] for administrators. The contract for later releases: a new
//! condition that *narrows* `allow` or `options` comes with a new version of the role. Documents: `documents`.

use crate::{
    lock,
    permit::{Denied, OpenSession, Permit, SessionOptions},
    selector::{self, Selector},
    walk,
};
use std::{collections::BTreeSet, net::IpAddr};
use types::{
    ClusterName, Document, HostId, Labels, Login, Resource, ResourceName, Time, Ttl, UserIdentity,
    identity::Traits,
    kind::{Lock, User},
    role::{Conditions, Options, Role, Rule},
};

/// Sessions at once over one connection, when no role says otherwise; as OpenSSH's `MaxSessions`.
pub const DEFAULT_MAX_SESSIONS: u32 = 10;
/// How the field calls a condition in a role. None is evaluated here.
const CONDITION: &str = "where";

/// What is known of the user's document at the moment of the decision.
#[derive(Clone, Copy, Debug)]
pub enum CurrentUser<'a> {
    /// Not at hand (no cache yet, another cluster's user): the certificate alone decides.
    Unknown,
    /// Looked up and absent: a deleted user has no roles.
    Deleted,
    Known(&'a Resource<User>),
}

impl<'a> From<Option<&'a Resource<User>>> for CurrentUser<'a> {
    /// For callers with a complete cache: absent means deleted.
    fn from(user: Option<&'a Resource<User>>) -> Self {
        user.map_or(Self::Deleted, Self::Known)
    }
}

/// Something in a role that this release cannot judge, and what it did about it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("role \"{role}\": {why}; {effect}")]
pub struct Problem {
    pub role: ResourceName,
    pub why: String,
    pub effect: Effect,
}

/// What a [`Problem`] leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// The part gives nothing; all else works.
    GrantsNothing,
    /// Holders are refused everything here.
    RefusesAll,
    /// A part of `deny` bites without its condition: more is denied than was meant.
    DeniesMore,
    /// It names what nobody can be or have: it does nothing.
    NoEffect,
    /// Only worth knowing.
    Ignored,
}
impl std::fmt::Display for Effect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::GrantsNothing => "it grants nothing here",
            Self::RefusesAll => "its holders are refused here",
            Self::DeniesMore => "it denies without that",
            Self::NoEffect => "it has no effect",
            Self::Ignored => "it is ignored here",
        })
    }
}

#[derive(Clone, Debug, Default)]
struct Allow {
    logins: BTreeSet<Login>,
    nodes: Selector,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default)]
struct Deny {
    everything: bool,
    every_login: bool,
    logins: BTreeSet<Login>,
    nodes: Selector,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Effective {
    name: ResourceName,
    options: Options,
    allow: Allow,
    deny: Deny,
}

/// The roles in force for one user, with traits filled in and expressions compiled.
#[derive(Clone, Debug, Default)]
pub struct RoleSet {
    roles: Vec<Effective>,
    /// Of roles that the user has but the certificate does not.
    denials: Vec<Deny>,
    /// What the templates were filled with, for allow.
    traits: Traits,
    problems: Vec<Problem>,
}

impl RoleSet {
    /// The roles in force for the holder of a certificate. `roles` looks a role's document up; `None` is "deleted".
    pub fn resolve(identity: &UserIdentity, roles: impl Fn(&ResourceName) -> Option<Document>, user: CurrentUser<'_>) -> Self {
        if walk::is(&identity.user) {
            return Self::of_walker();
        }
        match user {
            CurrentUser::Unknown => Self::build(identity.roles.iter(), &identity.traits, &identity.traits, roles),
            CurrentUser::Deleted => Self::default(),
            // A slip of the caller, and never a way to another's roles.
            CurrentUser::Known(user) if user.name().as_str() != identity.user.as_str() => Self::default(),
            CurrentUser::Known(user) => {
                let allow = intersection(&identity.traits, &user.spec.traits);
                let deny = union(&identity.traits, &user.spec.traits);
                let mut set = Self::build(identity.roles.intersection(&user.spec.roles), &allow, &deny, &roles);
                for name in user.spec.roles.difference(&identity.roles) {
                    set.add_denial(name, roles(name), &deny);
                }
                set
            }
        }
    }

    /// What stands in the store under its name was written by a release that did not know it.
    fn of_walker() -> Self {
        let role = walk::role();
        let names = role.iter().map(Resource::name);
        Self::build(names, &Traits::new(), &Traits::new(), |_| role.as_ref().map(Resource::to_document))
    }

    /// The roles of a user who has no certificate yet: at login, and for `tctl auth sign`.
    pub fn of_user(user: &Resource<User>, roles: impl Fn(&ResourceName) -> Option<Document>) -> Self {
        Self::build(user.spec.roles.iter(), &user.spec.traits, &user.spec.traits, roles)
    }

    fn build<'n>(
        names: impl Iterator<Item = &'n ResourceName>,
        allow: &Traits,
        deny: &Traits,
        roles: impl Fn(&ResourceName) -> Option<Document>,
    ) -> Self {
        let mut set = Self { traits: allow.clone(), ..Self::default() };
        for name in names {
            set.add(name, roles(name), allow, deny);
        }
        set
    }

    fn add(&mut self, name: &ResourceName, document: Option<Document>, allow_traits: &Traits, deny_traits: &Traits) {
        let Some(document) = document else {
            self.problem(name, "it does not exist".into(), Effect::GrantsNothing);
            return;
        };
        match Resource::<Role>::from_document(document) {
            Ok(role) => {
                let spec = role.spec;
                let unknown = spec.extra.keys().chain(spec.options.extra.keys()).chain(spec.allow.extra.keys());
                let unknown: Vec<_> = unknown.cloned().collect();
                let conditional = unknown.iter().any(|field| field == CONDITION);
                for field in unknown {
                    let effect = if field == CONDITION { Effect::GrantsNothing } else { Effect::Ignored };
                    self.problem(name, format!("unknown field \"{field}\""), effect);
                }
                // What holds under a condition that is not evaluated here would hold always.
                let allow = if conditional { Allow::default() } else { self.read_allow(name, &spec.allow, allow_traits) };
                let deny = self.read_deny(name, &spec.deny, deny_traits);
                self.roles.push(Effective { name: name.clone(), options: spec.options, allow, deny });
            }
            Err(error) => {
                self.problem(name, error.to_string(), Effect::RefusesAll);
                let deny = Deny { everything: true, ..Deny::default() };
                self.roles.push(Effective { name: name.clone(), options: Options::default(), allow: Allow::default(), deny });
            }
        }
    }

    /// Of a role given since: only what it denies.
    fn add_denial(&mut self, name: &ResourceName, document: Option<Document>, traits: &Traits) {
        let Some(document) = document else { return };
        let deny = match Resource::<Role>::from_document(document) {
            Ok(role) => self.read_deny(name, &role.spec.deny, traits),
            Err(error) => {
                self.problem(name, error.to_string(), Effect::RefusesAll);
                Deny { everything: true, ..Deny::default() }
            }
        };
        self.denials.push(deny);
    }

    fn read_allow(&mut self, role: &ResourceName, side: &Conditions, traits: &Traits) -> Allow {
        let mut allow = Allow::default();
        for text in &side.logins {
            match selector::expand(text, traits) {
                Ok(_) if text.contains('*') => self.problem(role, "a login may not contain \"*\"".into(), Effect::GrantsNothing),
                Ok(_) if selector::login_text(text).is_err() => self.no_login(role, text, Effect::GrantsNothing),
                // Trait values that are no logins are dropped without noise: they come from outside by the hundred.
                Ok(all) => allow.logins.extend(all.iter().filter_map(|expanded| Login::new(&expanded.text).ok())),
                Err(error) => self.problem(role, error.to_string(), Effect::GrantsNothing),
            }
        }
        match Selector::read(&side.node_labels, traits) {
            Ok(nodes) => allow.nodes = nodes,
            Err(error) => self.problem(role, error.to_string(), Effect::GrantsNothing),
        }
        for rule in &side.rules {
            // A rule with a field we do not know (a condition, say) grants nothing.
            match rule.extra.keys().next() {
                None => allow.rules.push(rule.clone()),
                Some(field) => self.problem(role, format!("a rule with the unknown field \"{field}\""), Effect::GrantsNothing),
            }
        }
        allow
    }

    fn read_deny(&mut self, role: &ResourceName, side: &Conditions, traits: &Traits) -> Deny {
        // A deny rule with an unknown condition denies without it.
        let mut deny = Deny { rules: side.rules.clone(), ..Deny::default() };
        for field in side.rules.iter().flat_map(|rule| rule.extra.keys().take(1)) {
            self.problem(role, format!("a rule in deny with the unknown field \"{field}\""), Effect::DeniesMore);
        }
        for field in side.extra.keys() {
            self.problem(role, format!("unknown field \"{field}\" in deny"), Effect::RefusesAll);
            deny.everything = true;
        }
        for text in &side.logins {
            match selector::expand(text, traits) {
                Ok(_) if text == "*" => deny.every_login = true,
                Ok(_) if selector::login_text(text).is_err() => self.no_login(role, text, Effect::NoEffect),
                Ok(all) => deny.logins.extend(all.iter().filter_map(|expanded| Login::new(&expanded.text).ok())),
                Err(error) => {
                    self.problem(role, error.to_string(), Effect::RefusesAll);
                    deny.everything = true;
                }
            }
        }
        match Selector::read(&side.node_labels, traits) {
            Ok(nodes) => deny.nodes = nodes,
            Err(error) => {
                self.problem(role, error.to_string(), Effect::RefusesAll);
                deny.everything = true;
            }
        }
        deny
    }

    fn no_login(&mut self, role: &ResourceName, text: &str, effect: Effect) {
        if let Err(error) = selector::login_text(text) {
            self.problem(role, error.to_string(), effect);
        }
    }

    fn problem(&mut self, role: &ResourceName, why: String, effect: Effect) {
        self.problems.push(Problem { role: role.clone(), why, effect });
    }

    /// What in these roles could not be judged; for logs and administrators.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The traits in force.
    pub fn traits(&self) -> &Traits {
        &self.traits
    }

    /// The names of the roles in force.
    pub fn names(&self) -> impl Iterator<Item = &ResourceName> {
        self.roles.iter().map(|role| &role.name)
    }

    /// No role in force: nothing is allowed, not even to look.
    pub fn is_empty(&self) -> bool {
        self.roles.is_empty()
    }

    fn denials(&self) -> impl Iterator<Item = &Deny> {
        self.roles.iter().map(|role| &role.deny).chain(&self.denials)
    }

    fn refuses_all(&self) -> bool {
        self.denials().any(|deny| deny.everything)
    }

    /// Whether a host with these labels may be listed.
    pub fn can_see_node(&self, labels: &Labels) -> bool {
        !self.refuses_all()
            && !self.denials().any(|deny| deny.nodes.forbids(labels))
            && self.roles.iter().any(|role| role.allow.nodes.matches(labels))
    }

    /// The logins that the roles allow at a host with these labels; the certificate may have fewer.
    pub fn logins_for(&self, labels: &Labels) -> BTreeSet<Login> {
        if !self.can_see_node(labels) {
            return BTreeSet::new();
        }
        let matching = self.roles.iter().filter(|role| role.allow.nodes.matches(labels));
        matching.flat_map(|role| role.allow.logins.iter()).filter(|login| !self.forbids_login(login)).cloned().collect()
    }

    /// Every login that some role allows somewhere: the principals of a new certificate. May be empty.
    pub fn logins(&self) -> BTreeSet<Login> {
        let all = self.roles.iter().flat_map(|role| role.allow.logins.iter());
        all.filter(|login| !self.refuses_all() && !self.forbids_login(login)).cloned().collect()
    }

    fn forbids_login(&self, login: &Login) -> bool {
        self.denials().any(|deny| deny.every_login || deny.logins.contains(login))
    }

    /// Longest life of a certificate: the shortest of all roles'. Zero without a role.
    pub fn max_ttl(&self) -> Ttl {
        self.roles.iter().map(|role| role.options.max_session_ttl).min().unwrap_or_default()
    }

    /// The options of all roles combined: limits take the smallest, permissions any.
    pub fn options(&self) -> SessionOptions {
        let all = || self.roles.iter().map(|role| &role.options);
        SessionOptions {
            max_sessions: all().filter_map(|options| options.max_sessions).filter(|limit| *limit > 0).min().unwrap_or(DEFAULT_MAX_SESSIONS),
            max_connections: all().filter_map(|options| options.max_connections).filter(|limit| *limit > 0).min(),
            port_forwarding: all().any(|options| options.port_forwarding),
            forward_agent: all().any(|options| options.forward_agent),
            idle_timeout: all().filter_map(|options| options.client_idle_timeout).map(|ttl| ttl.0).filter(|length| !length.is_zero()).min(),
            disconnect_expired_cert: all().any(|options| options.disconnect_expired_cert),
        }
    }

    /// Whether the rules allow a verb on a kind: any matching deny rule denies, any matching allow rule grants.
    pub fn allows_verb(&self, kind: &str, verb: &str) -> bool {
        !self.denies_verb(kind, verb) && self.roles.iter().any(|role| role.allow.rules.iter().any(|rule| speaks_of(rule, kind, verb)))
    }

    /// Whether a deny rule forbids a verb on a kind.
    pub fn denies_verb(&self, kind: &str, verb: &str) -> bool {
        self.refuses_all() || self.denials().any(|deny| deny.rules.iter().any(|rule| speaks_of(rule, kind, verb)))
    }
}

fn speaks_of(rule: &Rule, kind: &str, verb: &str) -> bool {
    let kinds = rule.resources.iter().any(|text| text == "*" || crate::documents::rule_kind(text) == kind);
    kinds && rule.verbs.iter().any(|text| text == "*" || text == verb)
}

pub(crate) fn intersection(a: &Traits, b: &Traits) -> Traits {
    let common = |name: &String, values: &Vec<String>| {
        let other = b.get(name)?;
        Some((name.clone(), values.iter().filter(|value| other.contains(value)).cloned().collect()))
    };
    a.iter().filter_map(|(name, values)| common(name, values)).collect()
}

fn union(a: &Traits, b: &Traits) -> Traits {
    let mut all = a.clone();
    for (name, values) in b {
        let have = all.entry(name.clone()).or_default();
        have.extend(values.iter().filter(|value| !a.get(name).is_some_and(|mine| mine.contains(value))).cloned());
    }
    all
}

/// Everything that a decision about a session looks at.
#[derive(Clone, Copy, Debug)]
pub struct SessionRequest<'a> {
    /// This cluster.
    pub cluster: &'a ClusterName,
    pub identity: &'a UserIdentity,
    pub roles: &'a RoleSet,
    pub host: HostId,
    pub hostname: &'a str,
    pub labels: &'a Labels,
    pub login: &'a Login,
    /// Where the user comes from, as far as it is known and not merely claimed.
    pub peer: Option<IpAddr>,
    pub locks: &'a [Resource<Lock>],
    pub now: Time,
}

/// May this user, as this login, enter this host now? Asked again whenever roles, user, locks or time change: a permit
/// that outlives its request is watched (style 7).
pub fn decide_session(request: &SessionRequest<'_>) -> Result<Permit<OpenSession>, Denied> {
    let SessionRequest { identity, roles, labels, login, .. } = *request;
    in_force(request.cluster, identity, request.peer, request.now)?;
    if let Some(problem) = roles.problems.iter().find(|problem| problem.effect == Effect::RefusesAll) {
        return Err(Denied::Unreadable { user: identity.user.to_string(), why: problem.to_string() });
    }
    // Before everything that would tell a stranger that the host exists.
    if !roles.can_see_node(labels) {
        return Err(Denied::Node { asked: request.hostname.to_owned() });
    }
    if identity.restrictions.host.is_some_and(|only| only != request.host) {
        return Err(Denied::Restricted("it is for another host".into()));
    }
    lock::check(request.locks, &lock::Subject { identity, login: Some(login), host: Some(request.host) }, request.now)?;
    let allowed = roles.logins_for(labels);
    if !allowed.contains(login) || !identity.logins.contains(login) {
        return Err(Denied::Login {
            user: identity.user.to_string(),
            login: login.to_string(),
            host: request.hostname.to_owned(),
            allowed: allowed.intersection(&identity.logins).map(Login::to_string).collect(),
        });
    }
    let options = roles.options();
    Ok(Permit::grant(OpenSession {
        user: identity.user.clone(),
        login: login.clone(),
        host: request.host,
        deadline: options.disconnect_expired_cert.then_some(identity.expires),
        options,
    }))
}

impl SessionOptions {
    /// May one more session be opened on a connection that has `open`?
    pub fn another_session(&self, open: u32) -> Result<(), Denied> {
        if open < self.max_sessions {
            Ok(())
        } else {
            Err(Denied::Limit { what: "sessions over one connection", limit: self.max_sessions })
        }
    }

    /// May this user make one more connection to a host where he has `open`?
    pub fn another_connection(&self, open: u32) -> Result<(), Denied> {
        match self.max_connections {
            Some(limit) if open >= limit => Err(Denied::Limit { what: "connections to one host", limit }),
            Some(_) | None => Ok(()),
        }
    }
}

/// Whether a user's identity may be used at all: right cluster, not ended, from the right address. Asked for each request,
/// since connections outlive certificates.
pub fn in_force(cluster: &ClusterName, identity: &UserIdentity, peer: Option<IpAddr>, now: Time) -> Result<(), Denied> {
    if identity.cluster != *cluster {
        return Err(Denied::Cluster { found: identity.cluster.to_string(), here: cluster.to_string() });
    }
    if identity.expires <= now {
        return Err(Denied::Expired { who: identity.user.to_string(), at: identity.expires });
    }
    known_restrictions(identity)?;
    match identity.restrictions.source_ip {
        Some(bound) if peer.map(|peer| peer.to_canonical()) != Some(bound.to_canonical()) => Err(Denied::Address { peer, bound }),
        Some(_) | None => Ok(()),
    }
}

/// A restriction that this release does not know cannot be kept to, so its certificate opens nothing (attack table, row 34).
pub(crate) fn known_restrictions(identity: &UserIdentity) -> Result<(), Denied> {
    match identity.restrictions.extra.keys().next() {
        None => Ok(()),
        Some(field) => {
            let field: String = field.chars().take(40).flat_map(char::escape_default).collect();
            Err(Denied::Restricted(format!("\"{field}\" is not known to this release")))
        }
    }
}

#[cfg(test)]
#[path = "access/tests.rs"]
pub(crate) mod tests;
