//! What a document must be to be stored: readable by this release, and not a trap for those who hold it.
//!
//! The store takes any JSON; here a typing error in a role is refused with its place, instead of denying its holders
//! everything an hour later. Kinds of other releases cannot be checked, so they cannot be made here.

use crate::core::{Call, Fault, malformed};
use rules::{
    RoleSet,
    access::Effect,
    documents::{decide_grant, decide_role},
};
use types::{
    Code, Document, Metadata, Public, Resource, ResourceName, UserName,
    document::Spec,
    kind::{AuthPreference, CertAuthority, ClusterInfo, KINDS, Lock, Member, Node, SecondFactor, Token, User, singleton},
    label::check_label,
    role::Role,
    update::UpdateDirective,
    upgrade::Policy,
};

/// Users named in one sentence.
const MAX_NAMED: usize = 10;

pub(super) fn new_document(call: &Call, document: &Document) -> Result<(), Fault> {
    match KINDS.iter().find(|(kind, _)| *kind == document.kind) {
        None => return Err(malformed(format!("\"{}\" is no kind of document here; kinds are {}", shown(&document.kind), writable()))),
        Some((kind, false)) => return Err(by_hand(kind)),
        Some((_, true)) => {}
    }
    let singletons = [
        (AuthPreference::KIND, singleton::AUTH_PREFERENCE),
        (UpdateDirective::KIND, singleton::UPDATE_DIRECTIVE),
        (Policy::KIND, singleton::UPGRADE_POLICY),
    ];
    if let Some((kind, name)) = singletons.iter().find(|(kind, name)| document.kind == *kind && document.metadata.name.as_str() != *name) {
        return Err(malformed(format!("there is one {kind}, named \"{name}\"")));
    }
    metadata(call, &document.metadata)?;
    content(call, document)
}

pub(super) fn changed_document(call: &Call, document: &Document) -> Result<(), Fault> {
    if let Some((kind, false)) = KINDS.iter().find(|(kind, _)| *kind == document.kind) {
        return Err(by_hand(kind));
    }
    metadata(call, &document.metadata)?;
    content(call, document)
}

/// What no right lets anybody delete.
pub(super) fn deleted_document(kind: &str) -> Result<(), Fault> {
    if kind == ClusterInfo::KIND || kind == CertAuthority::KIND || kind == AuthPreference::KIND || kind == UpdateDirective::KIND {
        Err(by_hand(kind))
    } else {
        Ok(())
    }
}

/// A role that somebody has is not deleted: it would end his sessions without a word to whoever deletes it.
pub(super) fn unused(call: &Call, kind: &str, name: &ResourceName) -> Result<(), Fault> {
    if kind != Role::KIND {
        return Ok(());
    }
    let holders: Vec<String> = call
        .core
        .mirror
        .all::<User>()
        .into_iter()
        .filter(|user| user.spec.roles.contains(name))
        .map(|user| user.name().to_string())
        .collect();
    let Some(first) = holders.first() else { return Ok(()) };
    let shown = holders.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
    let more = holders.len().saturating_sub(MAX_NAMED);
    let names = if more > 0 { format!("{shown} and {more} more") } else { shown };
    Err(Public::new(Code::Conflict, format!("role/{name} is in use: users with it are {names}"))
        .hint(format!("give them other roles first: tctl users update {first} --set-roles=<roles>"))
        .into())
}

fn by_hand(kind: &str) -> Fault {
    let public = Public::new(Code::AccessDenied, format!("{kind} documents are not written by hand"));
    match kind {
        ClusterInfo::KIND => public.hint("a cluster's name never changes").into(),
        UpdateDirective::KIND => public.hint("take the targets out of it: tctl update target --clear").into(),
        _ => public.into(),
    }
}

fn writable() -> String {
    KINDS.iter().filter(|(_, writable)| *writable).map(|(kind, _)| *kind).collect::<Vec<_>>().join(", ")
}

fn shown(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_default).collect()
}

fn metadata(call: &Call, metadata: &Metadata) -> Result<(), Fault> {
    for (key, value) in &metadata.labels {
        check_label(key, value).map_err(malformed)?;
    }
    if metadata.labels.len() > 100 {
        return Err(malformed("more than 100 labels"));
    }
    if let Some(end) = metadata.expires.filter(|end| *end <= call.now) {
        return Err(malformed(format!("it would expire at {end}, which is past")));
    }
    Ok(())
}

/// Known kinds must be readable as what they say they are.
fn content(call: &Call, document: &Document) -> Result<(), Fault> {
    match document.kind.as_str() {
        Role::KIND => {
            decide_role(call.caller()?, &document.metadata.name)?;
            role(document)
        }
        User::KIND => user(call, document),
        Token::KIND => readable::<Token>(document).map(|_| ()),
        Lock::KIND => lock(document),
        AuthPreference::KIND => preference(document),
        UpdateDirective::KIND => readable::<UpdateDirective>(document).map(|_| ()),
        Policy::KIND => policy(document),
        Node::KIND => readable::<Node>(document).map(|_| ()),
        Member::KIND => readable::<Member>(document).map(|_| ()),
        _ => Ok(()),
    }
}

fn policy(document: &Document) -> Result<(), Fault> {
    let faults = readable::<Policy>(document)?.spec.faults();
    if faults.is_empty() { Ok(()) } else { Err(malformed(format!("spec.{}", faults.join("; spec.")))) }
}

fn readable<S: Spec>(document: &Document) -> Result<Resource<S>, Fault> {
    Ok(Resource::from_document(document.clone())?)
}

/// A role is judged as its holders would be: what would refuse them, or grant nothing, is a mistake.
fn role(document: &Document) -> Result<(), Fault> {
    let role = readable::<Role>(document)?;
    let holder = Resource::new(Metadata::named(role.name().clone()), User { roles: [role.name().clone()].into(), ..User::default() });
    let set = RoleSet::of_user(&holder, |_| Some(document.clone()));
    match set.problems().iter().find(|problem| problem.effect != Effect::Ignored) {
        Some(problem) => Err(malformed(format!("role/{}: {}", problem.role, problem.why))),
        None => Ok(()),
    }
}

fn user(call: &Call, document: &Document) -> Result<(), Fault> {
    let user = readable::<User>(document)?;
    UserName::new(user.name())?;
    let before = call.core.mirror.user(user.name());
    decide_grant(call.caller()?, user.name(), before.as_ref().map(|user| &user.spec), &user.spec)?;
    if user.spec.roles.is_empty() {
        return Err(malformed(format!("user/{}: a user needs at least one role", user.name())));
    }
    let missing: Vec<&str> =
        user.spec.roles.iter().filter(|role| call.core.mirror.role(role).is_none()).map(ResourceName::as_str).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let known: Vec<String> = call
        .core
        .mirror
        .view(Role::KIND, None, 20, usize::MAX, |_| true)
        .entries
        .iter()
        .map(|entry| entry.document.metadata.name.to_string())
        .collect();
    Err(Public::new(Code::NotFound, format!("user/{}: no such role: {}", user.name(), missing.join(", ")))
        .hint(format!("roles: {}", known.join(", ")))
        .into())
}

fn lock(document: &Document) -> Result<(), Fault> {
    let lock = readable::<Lock>(document)?;
    let target = &lock.spec.target;
    if target.user.is_none() && target.role.is_none() && target.login.is_none() && target.node.is_none() && target.extra.is_empty() {
        return Err(malformed(format!("lock/{}: the target names nothing: give user, role, login or node", lock.name())));
    }
    Ok(())
}

fn preference(document: &Document) -> Result<(), Fault> {
    let preference = readable::<AuthPreference>(document)?.spec;
    if preference.auth_type != "local" {
        return Err(malformed(format!("type \"{}\" is not known; there is \"local\"", shown(&preference.auth_type))));
    }
    if preference.second_factor == SecondFactor::Newer {
        return Err(malformed("second_factor is none that this release knows; there are \"off\" and \"otp\""));
    }
    if preference.default_session_ttl < rules::issue::MIN_TTL {
        return Err(malformed(format!("default_session_ttl is shorter than {}", rules::issue::MIN_TTL)));
    }
    Ok(())
}
