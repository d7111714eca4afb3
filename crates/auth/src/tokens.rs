//! Join tokens: making them, and letting a process in by one.
//!
//! A token's document is named by the hash of its secret, so a listing admits nobody and looking one up compares no
//! secret. Unknown, expired and wrong tokens answer alike (`rules::token`). A token admits new hosts only: whoever holds
//! one cannot become a host that is there already (attack table, row 28).

use crate::{
    api::certs::host_credentials,
    core::{Call, Fault, malformed},
    metrics::count,
    password::{fingerprint, random_text},
    presence::settle,
};
use rules::{Verb, documents::decide_write};
use std::{collections::BTreeSet, time::Duration};
use types::{
    Code, EventKind, Extra, HostId, HostIdentity, Labels, Metadata, NodeName, Public, Resource, ResourceName, Secret, SystemRole,
    document::Spec,
    kind::{Member, Token},
    label::check_label,
};
use wire::api as pb;

const DEFAULT_LIFE: Duration = Duration::from_secs(3600);
const MAX_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// A chosen token has at least so many characters.
const MIN_CHOSEN: usize = 8;

/// Makes a token; its secret is in the answer and nowhere else.
pub(crate) async fn create(call: Call, ask: pb::CreateTokenRequest) -> Result<pb::CreateTokenReply, Fault> {
    let core = &call.core;
    let secret = match ask.value.as_str() {
        "" => random_text(),
        chosen if chosen.len() < MIN_CHOSEN || chosen.len() > 256 || chosen.chars().any(|c| !c.is_ascii_graphic()) => {
            return Err(malformed(format!("a token has {MIN_CHOSEN} to 256 printable characters")));
        }
        chosen => chosen.to_owned().into(),
    };
    let name = ResourceName::new(fingerprint(&secret))?;
    let permit = decide_write(call.caller()?, Token::KIND, Verb::Create, &name)?;
    let roles = roles(&ask.roles)?;
    let labels: Labels = ask.labels.into_iter().collect();
    for (key, value) in &labels {
        check_label(key, value).map_err(malformed)?;
    }
    let life = if ask.ttl == 0 { DEFAULT_LIFE } else { Duration::from_secs(ask.ttl) };
    if life > MAX_LIFE {
        return Err(malformed("a token lives a year at most"));
    }
    let mut metadata = Metadata::named(permit.name.clone());
    let expires = call.now.plus(life);
    metadata.expires = Some(expires);
    let hint: String = secret.chars().take(if ask.value.is_empty() { 6 } else { 2 }).collect();
    let token = Resource::new(metadata, Token { roles: roles.clone(), hint, labels, extra: Extra::new() });
    let written = core.documents.create(&token.to_document()).await?;
    settle(core, &written).await;
    let event = call.event(EventKind::ResourceCreate).with("kind", Token::KIND).with("name", name.as_str());
    core.audit.record(event.with("roles", joined(&roles)).with("expires", expires.to_string())).await?;
    Ok(pb::CreateTokenReply { token: secret.to_string(), expires: expires.to_string(), name: name.to_string() })
}

/// The roles a token may have.
fn roles(texts: &[String]) -> Result<BTreeSet<SystemRole>, Fault> {
    let roles: BTreeSet<SystemRole> = texts.iter().map(|text| text.parse().unwrap_or(SystemRole::Other(text.clone()))).collect();
    for role in &roles {
        match role {
            SystemRole::Proxy | SystemRole::Node | SystemRole::Db => {}
            SystemRole::Auth | SystemRole::Admin | SystemRole::Other(_) => {
                return Err(malformed(format!(
                    "no token is for the role \"{}\"; roles are node, proxy and db",
                    crate::login::shown(role.as_str())
                )));
            }
        }
    }
    if roles.is_empty() { Err(malformed("a token needs a role: node, proxy or db")) } else { Ok(roles) }
}

fn joined(roles: &BTreeSet<SystemRole>) -> String {
    roles.iter().map(SystemRole::as_str).collect::<Vec<_>>().join(",")
}

/// Lets a process in that has a token and no certificate yet.
pub(crate) async fn join(call: Call, ask: pb::JoinRequest) -> Result<pb::HostCredentials, Fault> {
    let core = &call.core;
    let about = |kind| {
        let event = core.event(kind).with("addr.remote", call.peer.addr.to_string()).with("host_id", crate::login::shown(&ask.host_id));
        let event =
            event.with("hostname", crate::login::shown(&ask.node_name)).with("version", crate::login::shown(&call.peer.hello.version));
        event.with("roles", ask.roles.iter().take(8).map(|role| crate::login::shown(role)).collect::<Vec<_>>().join(","))
    };
    match admitted(&call, &ask) {
        Ok((identity, labels)) => {
            let (reply, serial) = host_credentials(core, &identity, &ask.names, &ask.ssh_public_key, &ask.tls_public_key, labels)?;
            core.audit.record(about(EventKind::Join).with("success", true).with("serial", serial)).await?;
            count(&core.metrics.joins);
            Ok(reply)
        }
        Err(fault) => {
            let event = about(EventKind::JoinFailed).with("success", false).with("error", fault.to_string());
            core.record_refusal(&format!("join {} {fault}", call.peer.addr.ip()), event).await;
            Err(fault)
        }
    }
}

fn admitted(call: &Call, ask: &pb::JoinRequest) -> Result<(HostIdentity, Labels), Fault> {
    let core = &call.core;
    let secret = Secret::new(ask.token.as_str());
    let wanted: BTreeSet<SystemRole> =
        ask.roles.iter().take(16).map(|role| role.parse().unwrap_or(SystemRole::Other(role.clone()))).collect();
    let token = find(call, &secret);
    let permit = rules::token::decide_join(token.as_ref(), &wanted, call.now)?;
    // From here on the caller is no stranger: he may learn what is wrong.
    core.admit(&permit.roles, &call.peer, false)?;
    let id: HostId = ask.host_id.parse()?;
    let name = NodeName::new(&ask.node_name)?;
    crate::ca::names::check_node_name(&name)?;
    if id == core.host_id || core.mirror.get(Member::KIND, &(&id).into()).is_some() {
        let message = format!("a host with the id {id} is in the cluster already");
        return Err(Public::new(Code::AlreadyExists, message)
            .hint("use another data directory, or remove the old one: tctl rm member/<id>")
            .into());
    }
    let facts = permit.into_facts();
    Ok((HostIdentity { cluster: core.cluster.clone(), id, name, roles: facts.roles, extra: Extra::new() }, facts.labels))
}

/// The token with that secret, from the configuration file or the store.
fn find(call: &Call, secret: &Secret) -> Option<Resource<Token>> {
    let name = ResourceName::new(fingerprint(secret.expose())).ok()?;
    // Every static token is compared, in constant time each.
    let fixed = call.core.static_tokens.iter().fold(None, |found, (roles, known)| if known == secret { Some(roles) } else { found });
    if let Some(roles) = fixed {
        let token = Token { roles: roles.clone(), hint: String::new(), labels: Labels::new(), extra: Extra::new() };
        return Some(Resource::new(Metadata::named(name), token));
    }
    call.core.mirror.typed(&name)
}
