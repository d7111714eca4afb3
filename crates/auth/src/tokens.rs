//! Join tokens: making them, and letting a process in by one.
//!
//! A token's document is named by the hash of its secret, so a listing admits nobody and looking one up compares no
//! secret. Unknown, expired and wrong tokens answer alike (`rules::token`), and failures are bounded by source and in all.
//! A token admits new hosts only: whoever holds one cannot become a host that is there already (attack table, row 28);
//! which those are stands in the books ([`crate::hosts`]).

use crate::{
    api::certs::{Wanted, host_credentials},
    core::{Call, Fault, malformed},
    hosts::{self, Occasion},
    metrics::count,
    password::{fingerprint, random_text},
    presence::settle,
};
use rules::{Verb, documents::decide_write};
use std::{collections::BTreeSet, time::Duration};
use types::{
    Code, EventKind, Extra, HostId, HostIdentity, Labels, Metadata, NodeName, Public, Resource, ResourceName, Secret, SystemRole,
    document::Spec, kind::Token, label::check_label,
};
use wire::api as pb;

const DEFAULT_LIFE: Duration = Duration::from_secs(3600);
const MAX_LIFE: Duration = Duration::from_secs(365 * 86_400);

/// Makes a token; its secret is in the answer and nowhere else.
pub(crate) async fn create(call: Call, ask: pb::CreateTokenRequest) -> Result<pb::CreateTokenReply, Fault> {
    let core = &call.core;
    let secret = match ask.value.as_str() {
        "" => random_text(),
        chosen => {
            rules::token::check_chosen(chosen).map_err(malformed)?;
            chosen.to_owned().into()
        }
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
            SystemRole::Proxy | SystemRole::Node => {}
            // No release has a Database Service yet.
            SystemRole::Db | SystemRole::Auth | SystemRole::Admin | SystemRole::Other(_) => {
                return Err(malformed(format!(
                    "no token is for the role \"{}\"; roles are node and proxy",
                    crate::login::shown(role.as_str())
                )));
            }
        }
    }
    if roles.is_empty() { Err(malformed("a token needs a role: node or proxy")) } else { Ok(roles) }
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
    let source = crate::limits::source(call.peer.addr.ip());
    let source = if call.peer.spliced { crate::limits::crowd(&source) } else { source };
    let joined = match core.joins.enter(&source, call.now) {
        Some(_place) => take_in(&call, &ask).await,
        None => Err(Public::new(Code::RateLimited, "too many joins failed").hint("try again in ten minutes").into()),
    };
    match joined {
        Ok((reply, serial)) => {
            core.audit.record(about(EventKind::Join).with("success", true).with("serial", serial)).await?;
            count(&core.metrics.joins);
            Ok(reply)
        }
        Err(fault) => {
            core.joins.failed(&source, call.now);
            let event = about(EventKind::JoinFailed).with("success", false).with("error", fault.to_string());
            core.record_refusal(&format!("join {source} {fault}"), event).await;
            Err(fault)
        }
    }
}

async fn take_in(call: &Call, ask: &pb::JoinRequest) -> Result<(pb::HostCredentials, String), Fault> {
    let (identity, labels) = admitted(call, ask).await?;
    let wanted = Wanted { names: &ask.names, ssh: &ask.ssh_public_key, tls: &ask.tls_public_key, from: call.own_address() };
    if hosts::is_taken(&call.core, identity.id, &wanted.fingerprint()).await? {
        return Err(hosts::taken(identity.id));
    }
    host_credentials(&call.core, &identity, &wanted, Occasion::Join, labels).await
}

async fn admitted(call: &Call, ask: &pb::JoinRequest) -> Result<(HostIdentity, Labels), Fault> {
    let core = &call.core;
    let secret = Secret::new(ask.token.as_str());
    let wanted: BTreeSet<SystemRole> =
        ask.roles.iter().take(16).map(|role| role.parse().unwrap_or(SystemRole::Other(role.clone()))).collect();
    let token = find(call, &secret).await;
    let permit = rules::token::decide_join(token.as_ref(), &wanted, call.now)?;
    // From here on the caller is no stranger: he may learn what is wrong.
    core.register(&permit.roles, &call.peer, false)?;
    let id: HostId = ask.host_id.parse()?;
    let name = NodeName::new(&ask.node_name)?;
    crate::ca::names::check_node_name(&name)?;
    let facts = permit.into_facts();
    Ok((HostIdentity { cluster: core.cluster.clone(), id, name, roles: facts.roles, extra: Extra::new() }, facts.labels))
}

/// The token with that secret, from the configuration file or the store.
async fn find(call: &Call, secret: &Secret) -> Option<Resource<Token>> {
    let name = ResourceName::new(fingerprint(secret.expose())).ok()?;
    // Every static token is compared, in constant time each.
    let fixed = call.core.static_tokens.iter().fold(None, |found, (roles, known)| if known == secret { Some(roles) } else { found });
    if let Some(roles) = fixed {
        let token = Token { roles: roles.clone(), hint: String::new(), labels: Labels::new(), extra: Extra::new() };
        return Some(Resource::new(Metadata::named(name), token));
    }
    if let Some(known) = call.core.mirror.typed(&name) {
        return Some(known);
    }
    // Another Auth Service of this cluster may have made it a moment ago. The name is a hash: the time of this look-up tells nothing.
    let stored = call.core.documents.get(Token::KIND, &name).await.ok().flatten();
    stored.and_then(|document| Resource::from_document(document).ok())
}
