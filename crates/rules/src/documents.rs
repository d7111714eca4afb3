//! Who may do what to which documents: the API's decisions (design 2.5).
//!
//! Users get what the `rules` of their roles say, plus a few things that every holder of a role needs (his own user
//! document, the hosts he can reach, his own recordings, the public authorities). Members of the cluster get one table,
//! [`host_reach`], matched without a wildcard arm and printed by a snapshot test. The local administrator gets everything.
//! Who writes users without being allowed to write roles gives nobody more than he has ([`decide_grant`]).
//! Nobody but the services writes what only services know (`node`, `member`, authorities); Caller: `auth`'s API.

use crate::{
    access::RoleSet,
    permit::{Denied, Permit, Read, Write},
    walk,
};
use types::{
    Document, HostIdentity, ResourceName, SystemRole, UserIdentity, UserName,
    kind::{Recording, User},
};

/// What may be done to documents. Watching needs `list` and `read`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verb {
    List,
    Read,
    Watch,
    Create,
    Update,
    Delete,
}

impl Verb {
    pub const ALL: [Self; 6] = [Self::List, Self::Read, Self::Watch, Self::Create, Self::Update, Self::Delete];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Read => "read",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
    const fn writes(self) -> bool {
        match self {
            Self::List | Self::Read | Self::Watch => false,
            Self::Create | Self::Update | Self::Delete => true,
        }
    }
    /// What the rules of a role must grant for this.
    const fn needs(self) -> &'static [&'static str] {
        match self {
            Self::List => &["list"],
            Self::Read => &["read"],
            Self::Watch => &["list", "read"],
            Self::Create => &["create"],
            Self::Update => &["update"],
            Self::Delete => &["delete"],
        }
    }
}

/// The kinds this release decides about; `event` and `recording` are served from the audit sinks, not from the store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Role,
    User,
    Token,
    Lock,
    CertAuthority,
    ClusterInfo,
    AuthPreference,
    Node,
    Member,
    Recording,
    Event,
    /// The whole state in one file: made, never listed.
    Backup,
    /// The control record, and what it governs: admission windows, migrations.
    Control,
    /// Who runs which release. Signed by the Auth Service as it is written.
    UpdateDirective,
    /// How carefully the cluster is upgraded.
    UpgradePolicy,
    /// A kind of another release: data.
    Other(String),
}

impl Kind {
    /// Every known kind, for the table.
    pub const ALL: [Self; 15] = [
        Self::Role,
        Self::User,
        Self::Token,
        Self::Lock,
        Self::CertAuthority,
        Self::ClusterInfo,
        Self::AuthPreference,
        Self::Node,
        Self::Member,
        Self::Recording,
        Self::Event,
        Self::Backup,
        Self::Control,
        Self::UpdateDirective,
        Self::UpgradePolicy,
    ];
    pub fn new(kind: &str) -> Self {
        match Self::ALL.into_iter().find(|known| known.as_str() == kind) {
            Some(known) => known,
            None => Self::Other(kind.to_owned()),
        }
    }
    pub fn as_str(&self) -> &str {
        match self {
            Self::Role => "role",
            Self::User => "user",
            Self::Token => "token",
            Self::Lock => "lock",
            Self::CertAuthority => "cert_authority",
            Self::ClusterInfo => "cluster_name",
            Self::AuthPreference => "cluster_auth_preference",
            Self::Node => "node",
            Self::Member => "member",
            Self::Recording => "recording",
            Self::Event => "event",
            Self::Backup => "backup",
            Self::Control => "control",
            Self::UpdateDirective => "update_directive",
            Self::UpgradePolicy => "upgrade_policy",
            Self::Other(text) => text,
        }
    }
    /// What a user's rules can ever reach with this verb; the rest belongs to the services.
    fn open_to_users(&self, verb: Verb) -> bool {
        match self {
            Self::Role | Self::User | Self::Token | Self::Lock | Self::UpgradePolicy => true,
            // Singletons exist from the cluster's birth.
            Self::AuthPreference | Self::Control => !matches!(verb, Verb::Create | Verb::Delete),
            Self::Backup => verb == Verb::Create,
            // Its generation only grows: one that directs nothing is written, not deleted.
            Self::UpdateDirective => verb != Verb::Delete,
            // Taking a dead host out of the list is an administrator's work; making one up is not.
            Self::Node | Self::Member => !matches!(verb, Verb::Create | Verb::Update),
            Self::CertAuthority | Self::ClusterInfo | Self::Recording | Self::Event | Self::Other(_) => !verb.writes(),
        }
    }
}

/// The kind meant by a word in a role's rules: plural and short forms, and `session` for recordings as the field says.
pub fn rule_kind(text: &str) -> String {
    let kind = types::kind::canonical_kind(text);
    match kind.as_str() {
        "session" | "recordings" | "sessions" => "recording".into(),
        "events" => "event".into(),
        _ => kind,
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum Caller<'a> {
    User { identity: &'a UserIdentity, roles: &'a RoleSet },
    Host(&'a HostIdentity),
}

/// Which documents of the kind a read permit covers.
#[derive(Clone, Debug)]
pub enum Scope {
    All,
    /// The one with this name.
    Named(ResourceName),
    /// Members in this role, and the one with this name.
    InRole(SystemRole, ResourceName),
    /// Hosts that these roles can see.
    Reachable(Box<RoleSet>),
    /// Recordings of this user's sessions.
    SessionsOf(UserName),
}

impl Permit<Read> {
    /// Whether this document may be shown. What may not is left out, as if it were not there.
    pub fn shows(&self, document: &Document) -> bool {
        document.kind == self.kind
            && match &self.scope {
                Scope::All => true,
                Scope::Named(name) => document.metadata.name == *name,
                Scope::InRole(role, own) => document.metadata.name == *own || has_role(document, role),
                Scope::Reachable(roles) => roles.can_see_node(&document.metadata.labels),
                Scope::SessionsOf(_) => false,
            }
    }

    /// Whether this recording may be shown.
    pub fn shows_recording(&self, recording: &Recording) -> bool {
        self.kind == "recording"
            && match &self.scope {
                Scope::All => true,
                Scope::SessionsOf(user) => recording.user == user.as_str(),
                Scope::Named(_) | Scope::InRole(..) | Scope::Reachable(_) => false,
            }
    }
}

/// May the caller list, read or watch documents of this kind, and which of them?
pub fn decide_read(caller: Caller<'_>, kind: &str, verb: Verb) -> Result<Permit<Read>, Denied> {
    let known = Kind::new(kind);
    let scope = if verb.writes() {
        None
    } else {
        match caller {
            Caller::User { identity, roles } => user_scope(identity, roles, &known, verb),
            Caller::Host(host) => match reach(host, &known, verb) {
                Reach::All => Some(Scope::All),
                Reach::Peers => Some(Scope::InRole(SystemRole::Proxy, (&host.id).into())),
                Reach::Own => Some(Scope::Named((&host.id).into())),
                Reach::None => None,
            },
        }
    };
    match scope {
        Some(scope) => Ok(Permit::grant(Read { kind: kind.to_owned(), scope })),
        None => Err(denied(caller, verb, kind, None)),
    }
}

fn user_scope(identity: &UserIdentity, roles: &RoleSet, kind: &Kind, verb: Verb) -> Option<Scope> {
    let needs = verb.needs();
    if roles.is_empty() || needs.iter().any(|need| roles.denies_verb(kind.as_str(), need)) {
        return None;
    }
    // A certificate for one host was made to be taken there: it carries no rights over the cluster.
    let bound = identity.restrictions.host.is_some();
    if !bound && kind.open_to_users(verb) && needs.iter().all(|need| roles.allows_verb(kind.as_str(), need)) {
        return Some(Scope::All);
    }
    match kind {
        Kind::User => Some(Scope::Named((&identity.user).into())),
        Kind::Node => Some(Scope::Reachable(Box::new(roles.clone()))),
        Kind::Recording if !bound => Some(Scope::SessionsOf(identity.user.clone())),
        // Public keys and the cluster's name: what `tsh` needs to trust hosts.
        Kind::CertAuthority | Kind::ClusterInfo => Some(Scope::All),
        Kind::Role
        | Kind::Token
        | Kind::Lock
        | Kind::AuthPreference
        | Kind::Member
        | Kind::Event
        | Kind::Recording
        | Kind::Backup
        | Kind::Control
        | Kind::UpdateDirective
        | Kind::UpgradePolicy
        | Kind::Other(_) => None,
    }
}

/// May the caller write this document? Decided before it is looked up, so that a refusal says nothing about existence.
pub fn decide_write(caller: Caller<'_>, kind: &str, verb: Verb, name: &ResourceName) -> Result<Permit<Write>, Denied> {
    let known = Kind::new(kind);
    let allowed = verb.writes()
        && match caller {
            Caller::User { identity, roles } => {
                identity.restrictions.host.is_none()
                    && known.open_to_users(verb)
                    && verb.needs().iter().all(|need| roles.allows_verb(kind, need))
            }
            Caller::Host(host) => match reach(host, &known, verb) {
                Reach::All => true,
                Reach::Peers | Reach::Own => *name == ResourceName::from(&host.id),
                Reach::None => false,
            },
        };
    if allowed {
        // One that an older release wrote may go.
        if matches!(known, Kind::User | Kind::Role) && verb != Verb::Delete {
            walk::check_name(kind, name.as_str())?;
        }
        Ok(Permit::grant(Write { kind: kind.to_owned(), name: name.clone(), verb }))
    } else {
        Err(denied(caller, verb, kind, Some(name)))
    }
}

/// May the caller leave a user with these roles and traits? Both are rights: traits fill the templates of roles.
///
/// Whoever may create and update roles can give himself anything, and so may give others anything. All others give only what
/// they hold, and do not touch their own document: they could drop a role that denies. `before` is what the user has now.
pub fn decide_grant(caller: Caller<'_>, name: &ResourceName, before: Option<&User>, after: &User) -> Result<(), Denied> {
    let Caller::User { identity, roles } = caller else { return Ok(()) };
    if writes_roles(roles) {
        return Ok(());
    }
    let refused = |what: String| Err(Denied::NotAllowed { who: identity.user.to_string(), what });
    if before.is_some() && name.as_str() == identity.user.as_str() {
        return refused("change your own user document".into());
    }
    let had = |role: &ResourceName| before.is_some_and(|user| user.roles.contains(role));
    if let Some(role) = after.roles.iter().find(|role| !had(role) && !roles.names().any(|held| held == *role)) {
        return refused(format!("give the role \"{role}\", which you do not hold"));
    }
    for (name, values) in &after.traits {
        let had = before.and_then(|user| user.traits.get(name));
        let held = roles.traits().get(name);
        let knows = |side: Option<&Vec<String>>, value: &String| side.is_some_and(|values| values.contains(value));
        if let Some(value) = values.iter().find(|value| !knows(had, value) && !knows(held, value)) {
            let shown = |text: &str| text.chars().take(60).flat_map(char::escape_default).collect::<String>();
            return refused(format!("give \"{}\" as trait \"{}\", which you do not have", shown(value), shown(name)));
        }
    }
    Ok(())
}

/// May the caller give somebody a new password for this user? Only of a user who has no more than himself.
pub fn decide_invite(caller: Caller<'_>, name: &ResourceName, user: &User) -> Result<(), Denied> {
    match caller {
        // For himself it gives nothing that he has not.
        Caller::User { identity, .. } if name.as_str() == identity.user.as_str() => Ok(()),
        Caller::User { .. } | Caller::Host(_) => decide_grant(caller, name, None, user),
    }
}

/// May the caller change this role? Who may only update roles does not change one that he holds.
pub fn decide_role(caller: Caller<'_>, name: &ResourceName) -> Result<(), Denied> {
    match caller {
        Caller::User { identity, roles } if !writes_roles(roles) && identity.roles.contains(name) => {
            Err(Denied::NotAllowed { who: identity.user.to_string(), what: format!("change the role \"{name}\", which you hold") })
        }
        Caller::User { .. } | Caller::Host(_) => Ok(()),
    }
}

fn writes_roles(roles: &RoleSet) -> bool {
    ["create", "update"].iter().all(|verb| roles.allows_verb("role", verb))
}

fn denied(caller: Caller<'_>, verb: Verb, kind: &str, name: Option<&ResourceName>) -> Denied {
    let who = match caller {
        Caller::User { identity, .. } => identity.user.to_string(),
        Caller::Host(host) => format!("{} ({})", host.name, host.id),
    };
    Denied::Document { who, verb: verb.as_str(), what: name.map_or_else(|| format!("{kind} documents"), |name| format!("{kind}/{name}")) }
}

/// How far a member's right goes. `Own`: the document whose name is the member's host id; for events and recordings
/// those that name it as their server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reach {
    None,
    Own,
    /// Own, and what Proxies say of themselves: where they are reached.
    Peers,
    All,
}

/// Whether a member has a role, as its document says.
pub fn has_role(document: &Document, role: &SystemRole) -> bool {
    let roles = document.spec.get("roles").and_then(|roles| roles.as_array());
    roles.is_some_and(|roles| roles.iter().any(|one| one.as_str() == Some(role.as_str())))
}

fn reach(host: &HostIdentity, kind: &Kind, verb: Verb) -> Reach {
    host.roles.iter().map(|role| host_reach(role, kind, verb)).max().unwrap_or(Reach::None)
}

/// THE table of what members may do. Several roles in one process: the farther reach.
pub fn host_reach(role: &SystemRole, kind: &Kind, verb: Verb) -> Reach {
    let (read, write) = match role {
        SystemRole::Admin => (Reach::All, Reach::All),
        SystemRole::Auth => match kind {
            Kind::Role | Kind::User | Kind::Token | Kind::Lock | Kind::CertAuthority | Kind::ClusterInfo | Kind::AuthPreference => {
                (Reach::All, Reach::None)
            }
            Kind::Node | Kind::Event | Kind::Recording | Kind::Control | Kind::UpdateDirective | Kind::UpgradePolicy | Kind::Other(_) => {
                (Reach::All, Reach::None)
            }
            Kind::Member => (Reach::All, Reach::Own),
            // Every key of the cluster is in it: no service asks another for one.
            Kind::Backup => (Reach::None, Reach::None),
        },
        SystemRole::Proxy => match kind {
            Kind::Role | Kind::User | Kind::Lock | Kind::CertAuthority | Kind::ClusterInfo | Kind::AuthPreference => {
                (Reach::All, Reach::None)
            }
            // It hands the directive to hosts, at its rescue door.
            Kind::Node | Kind::UpdateDirective => (Reach::All, Reach::None),
            // It tells its hosts of the other Proxies; of the hosts' own processes it learns nothing here.
            Kind::Member => (Reach::Peers, Reach::Own),
            // It reports refusals at its doors; it never learns what others reported.
            Kind::Event => (Reach::None, Reach::Own),
            Kind::Token | Kind::Recording | Kind::Backup | Kind::Control | Kind::UpgradePolicy | Kind::Other(_) => {
                (Reach::None, Reach::None)
            }
        },
        SystemRole::Node | SystemRole::Db => match kind {
            Kind::Role | Kind::User | Kind::Lock | Kind::CertAuthority | Kind::ClusterInfo | Kind::AuthPreference => {
                (Reach::All, Reach::None)
            }
            // Hosts do not learn of each other.
            Kind::Node | Kind::Member => (Reach::Own, Reach::Own),
            Kind::Event | Kind::Recording => (Reach::None, Reach::Own),
            Kind::Token | Kind::Backup | Kind::Control | Kind::UpdateDirective | Kind::UpgradePolicy | Kind::Other(_) => {
                (Reach::None, Reach::None)
            }
        },
        // A role of another release grants nothing.
        SystemRole::Other(_) => (Reach::None, Reach::None),
    };
    match verb {
        Verb::List | Verb::Read | Verb::Watch => read,
        Verb::Create | Verb::Update => write,
        // What a member reported stays reported.
        Verb::Delete => match kind {
            Kind::Event | Kind::Recording | Kind::Backup | Kind::Control | Kind::UpdateDirective => Reach::None,
            Kind::Role | Kind::User | Kind::Token | Kind::Lock | Kind::CertAuthority | Kind::ClusterInfo => write,
            Kind::AuthPreference | Kind::Node | Kind::Member | Kind::UpgradePolicy | Kind::Other(_) => write,
        },
    }
}

/// The table as text, for the snapshot and the generated reference.
pub fn table() -> String {
    let roles =
        [SystemRole::Admin, SystemRole::Auth, SystemRole::Proxy, SystemRole::Node, SystemRole::Db, SystemRole::Other("future".into())];
    let mut lines = vec![
        format!("{:<24}{:<8}{}", "kind", "role", Verb::ALL.map(|verb| format!("{:<8}", verb.as_str())).concat()).trim_end().to_owned(),
    ];
    for kind in Kind::ALL.into_iter().chain([Kind::Other("future".into())]) {
        for role in &roles {
            let cells = Verb::ALL.map(|verb| match host_reach(role, &kind, verb) {
                Reach::None => format!("{:<8}", "-"),
                Reach::Own => format!("{:<8}", "own"),
                Reach::Peers => format!("{:<8}", "peers"),
                Reach::All => format!("{:<8}", "all"),
            });
            lines.push(format!("{:<24}{:<8}{}", kind.as_str(), role.as_str(), cells.concat()).trim_end().to_owned());
        }
    }
    lines.join("\n")
}

#[cfg(test)]
#[path = "documents/tests.rs"]
mod tests;
