//! Certificates over the API: renewal of members, re-issue for users, signing by the administrator.
//!
//! What may stand in a certificate is `rules::issue`'s decision; the keys are `ca`'s. Every certificate is in the audit log
//! before it is handed out.

use crate::{
    ca::{
        issue::{HOST_LIFE, Issued, Keys},
        names::{HostNames, check_node_name},
    },
    core::{Call, Core, Fault, Who, malformed},
    hosts::{self, Occasion},
    login::asked_ttl,
    metrics::count,
    password::fingerprint_of,
};
use rules::{
    Denied, Permit, RoleSet,
    access::CurrentUser,
    issue::{LoginRequest, Narrower},
    permit::{Issue, SessionOptions},
};
use std::{net::IpAddr, time::Duration};
use types::{Code, Event, EventKind, HostIdentity, Identity, Labels, SystemRole, UserName};
use wire::api as pb;

/// What a member asks to be certified.
pub(crate) struct Wanted<'a> {
    pub(crate) names: &'a [String],
    pub(crate) ssh: &'a str,
    pub(crate) tls: &'a [u8],
    /// Where it asks from, if that address is its own.
    pub(crate) from: Option<IpAddr>,
}

impl Wanted<'_> {
    /// Names the TLS key in the books.
    pub(crate) fn fingerprint(&self) -> String {
        fingerprint_of(self.tls)
    }
}

/// Enters a member's next certificate in the books, signs it and puts the answer together. Returns the serial number too.
pub(crate) async fn host_credentials(
    core: &Core,
    identity: &HostIdentity,
    wanted: &Wanted<'_>,
    occasion: Occasion,
    labels: Labels,
) -> Result<(pb::HostCredentials, String), Fault> {
    check_node_name(&identity.name)?;
    let names = HostNames::read(wanted.names.iter().map(String::as_str))?;
    let keys = Keys::both(wanted.ssh, wanted.tls)?;
    let now = core.now();
    let request = hosts::Request { key: &wanted.fingerprint(), occasion, from: wanted.from, expires: now.plus(HOST_LIFE) };
    let entry = hosts::enter(core, identity, &names, &request).await?;
    let issued = core.authorities.issue_host(&entry.identity, &entry.names, &keys, HOST_LIFE, now)?;
    count(&core.metrics.certificates);
    let reply = pb::HostCredentials {
        ssh_certificate: issued.ssh,
        tls_certificate: issued.tls,
        authorities: core.authority_documents(),
        cluster_name: core.cluster.to_string(),
        labels: labels.into_iter().collect(),
    };
    Ok((reply, issued.serial))
}

/// Signs what the permit says, records it with an event that says who asked, and puts the answer together.
pub(crate) async fn user_credentials(
    core: &Core,
    event: Event,
    permit: Permit<Issue>,
    options: &SessionOptions,
    keys: &Keys,
) -> Result<pb::UserCredentials, Fault> {
    let identity = permit.identity.clone();
    let issued = core.authorities.issue_user(permit, options, keys, core.now())?;
    count(&core.metrics.certificates);
    let roles: Vec<&str> = identity.roles.iter().map(AsRef::as_ref).collect();
    let logins: Vec<&str> = identity.logins.iter().map(AsRef::as_ref).collect();
    let event = event.with("cert_type", "user").with("user", identity.user.as_str()).with("serial", issued.serial.as_str());
    let event = event.with("roles", roles).with("logins", logins).with("expires", issued.expires.to_string());
    core.audit.record(event).await?;
    Ok(reply(core, issued, identity.user.as_str()))
}

fn reply(core: &Core, issued: Issued, user: &str) -> pb::UserCredentials {
    pb::UserCredentials {
        ssh_certificate: issued.ssh,
        tls_certificate: issued.tls,
        authorities: core.authority_documents(),
        cluster_name: core.cluster.to_string(),
        user: user.to_owned(),
        expires: issued.expires.to_string(),
    }
}

/// A member renews its own certificates: same identity, fresh life, the next generation.
pub(crate) async fn renew_host(call: Call, ask: pb::RenewHostRequest) -> Result<pb::HostCredentials, Fault> {
    let host = match &call.who {
        // The administrator's certificate is renewed by its file alone: over the network it would never end.
        Who::Host(host) if !host.roles.contains(&SystemRole::Admin) => host,
        Who::Host(_) | Who::User { .. } => {
            return Err(Denied::NotAllowed { who: call.name(), what: "renew a host's certificate".into() }.into());
        }
        Who::Nobody => return Err(call.caller().err().unwrap_or_else(|| Fault::Internal("nobody was somebody".into()))),
    };
    let identity = rules::issue::renew_host(host, host)?;
    let wanted = Wanted { names: &ask.names, ssh: &ask.ssh_public_key, tls: &ask.tls_public_key, from: call.own_address() };
    let occasion = Occasion::Renewal(host.generation());
    let done = host_credentials(&call.core, &identity, &wanted, occasion, Labels::new()).await;
    if let Err(fault @ Fault::Public(public)) = &done
        && !public.is(Code::AccessLocked)
    {
        let event = call.event(EventKind::CertRefused).with("cert_type", "host").with("error", fault.to_string());
        call.core.record_refusal(&format!("renewal {} {fault}", host.id), event).await;
    }
    let (reply, serial) = done?;
    let event = call.event(EventKind::CertCreate).with("cert_type", "host").with("serial", serial);
    call.core.audit.record(event).await?;
    Ok(reply)
}

/// A logged-in user's certificate in exchange for one with less.
pub(crate) async fn reissue(call: Call, ask: pb::ReissueRequest) -> Result<pb::UserCredentials, Fault> {
    let Who::User { identity, roles } = &call.who else {
        call.caller()?;
        return Err(Denied::NotAllowed { who: call.name(), what: "re-issue a user's certificate".into() }.into());
    };
    let keys = Keys::read(&ask.ssh_public_key, &ask.tls_public_key)?;
    let host = if ask.host_id.is_empty() { None } else { Some(ask.host_id.parse()?) };
    let wanted = Narrower { ttl: asked_ttl(ask.ttl), host, ..Narrower::default() };
    let user = call.core.user(&identity.user);
    let permit =
        match rules::issue::reissue(identity, CurrentUser::from(user.as_ref()), roles, &call.core.mirror.locks(), &wanted, call.now) {
            Ok(permit) => permit,
            Err(denied) => {
                let event = call.event(EventKind::CertRefused).with("cert_type", "user").with("error", denied.to_string());
                call.core.record_refusal(&format!("reissue {} {denied}", identity.user), event).await;
                return Err(denied.into());
            }
        };
    user_credentials(&call.core, call.event(EventKind::CertCreate), permit, &roles.options(), &keys).await
}

/// `tctl auth sign`: the administrator, for a user or for the names of a host.
pub(crate) async fn sign(call: Call, ask: pb::SignRequest) -> Result<pb::UserCredentials, Fault> {
    let admin = call.only(SystemRole::Admin, "sign certificates")?;
    let core = &call.core;
    let keys = Keys::read(&ask.ssh_public_key, &ask.tls_public_key)?;
    if ask.user.is_empty() {
        let names = HostNames::read(ask.host_names.iter().map(String::as_str))?;
        if names.iter().next().is_none() {
            return Err(malformed("name a user, or the names of a host"));
        }
        let life = asked_ttl(ask.ttl).map_or(HOST_LIFE, |ttl| ttl.0).clamp(Duration::from_secs(60), HOST_LIFE);
        let issued = core.authorities.issue_names(&names, &keys, life, call.now)?;
        count(&core.metrics.certificates);
        let event = call.event(EventKind::CertCreate).with("cert_type", "host").with("serial", issued.serial.as_str());
        let shown: Vec<String> = names.iter().map(|name| name.text()).collect();
        core.audit.record(event.with("names", shown).with("expires", issued.expires.to_string())).await?;
        return Ok(reply(core, issued, ""));
    }
    if !ask.host_names.is_empty() {
        return Err(malformed("a certificate is for a user or for a host, not both"));
    }
    let user = UserName::new(&ask.user)?;
    let user = core.user(&user).ok_or_else(|| store::documents::WriteError::NotFound(format!("user/{user}")))?;
    let roles = RoleSet::of_user(&user, |name| core.mirror.role(name));
    let request = LoginRequest {
        cluster: &core.cluster,
        user: &user,
        roles: &roles,
        ttl: asked_ttl(ask.ttl),
        default_ttl: core.preference().default_session_ttl,
        source_ip: None,
        locks: &core.mirror.locks(),
        now: call.now,
    };
    let permit = rules::issue::sign(&Identity::Host(admin.clone()), &request)?;
    user_credentials(core, call.event(EventKind::CertCreate), permit, &roles.options(), &keys).await
}
