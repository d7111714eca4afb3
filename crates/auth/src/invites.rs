//! Invitations: a link by which a person sets his password and second factor, once.
//!
//! The secret is 128 random bits; only its hash is kept, with an end (an hour, two days at most). A new invitation for a
//! user replaces the older ones. Accepting writes password and second factor and removes the invitation in one
//! conditional batch. The code shown then proves that the authenticator has the secret; it admits nobody, so the first
//! login may use it.

use crate::{
    core::{Call, Fault, malformed},
    login::{enrolment_step, shown},
    password,
    vault::{self, Account, Held, Invite, VaultError},
};
use rules::{Denied, Verb, documents::decide_write, token::decide_invite};
use std::time::Duration;
use store::Key;
use types::{EventKind, Extra, Public, Secret, SystemRole, UserName, document::Spec, kind::User};
use wire::api as pb;

const DEFAULT_LIFE: Duration = Duration::from_secs(3600);
const MAX_LIFE: Duration = Duration::from_secs(48 * 3600);

/// Makes an invitation for a user that exists.
pub(crate) async fn create(call: Call, ask: pb::CreateInviteRequest) -> Result<pb::CreateInviteReply, Fault> {
    let core = &call.core;
    let user = UserName::new(&ask.user)?;
    let permit = decide_write(call.caller()?, User::KIND, Verb::Update, &(&user).into())?;
    let Some(document) = core.user(&user) else {
        return Err(store::documents::WriteError::NotFound(format!("user/{}", permit.name)).into());
    };
    rules::documents::decide_invite(call.caller()?, &permit.name, &document.spec)?;
    let life = if ask.ttl == 0 { DEFAULT_LIFE } else { Duration::from_secs(ask.ttl) };
    if life > MAX_LIFE {
        return Err(malformed("an invitation lives 48 hours at most"));
    }
    let secret = password::random_text();
    let expires = call.now.plus(life);
    let invite = Invite { user: user.clone(), otp: password::new_otp_secret(), created_by: call.name(), extra: Extra::new() };
    let mut batch = core.vault.batch();
    for old in core.vault.invites_of(&user).await?.into_iter().take(100) {
        batch = batch.delete(old);
    }
    let key = key(&secret)?;
    batch = batch.require(store::Condition::Absent(key.clone())).put(key, vault::json(&invite), Some(expires));
    if !core.vault.commit(batch).await? {
        return Err(Fault::Internal("two invitations with one secret".into()));
    }
    core.audit.record(call.event(EventKind::InviteCreate).with("name", user.as_str()).with("expires", expires.to_string())).await?;
    Ok(pb::CreateInviteReply { secret: secret.to_string(), expires: expires.to_string() })
}

fn key(secret: &str) -> Result<Key, Fault> {
    Ok(vault::invite_key(&password::fingerprint(secret)).map_err(VaultError::from)?)
}

/// Finds an invitation that may be used, of a user that still exists.
async fn find(call: &Call, secret: &str) -> Result<Held<Invite>, Fault> {
    let held = if secret.len() > 256 { None } else { call.core.vault.read::<Invite>(&key(secret)?).await? };
    let held = held.filter(|held| call.core.user(&held.value.user).is_some());
    decide_invite(held.as_ref().and_then(|held| held.expires), call.now)?;
    held.ok_or_else(|| Denied::Invite { why: "it is unknown or was used" }.into())
}

/// What the page shows.
pub(crate) async fn show(call: Call, ask: pb::GetInviteRequest) -> Result<pb::InviteReply, Fault> {
    call.only(SystemRole::Proxy, "show invitations")?;
    let held = find(&call, &ask.secret).await?;
    let otp_url = if call.core.preference().second_factor.asks_code() {
        password::otp_url(&held.value.otp, &held.value.user, &call.core.cluster)
            .ok_or_else(|| Fault::Internal("no link for an authenticator could be made".into()))?
    } else {
        String::new()
    };
    let expires = held.expires.map(|end| end.to_string()).unwrap_or_default();
    Ok(pb::InviteReply { user: held.value.user.to_string(), expires, otp_url })
}

/// Sets password and second factor.
pub(crate) async fn accept(call: Call, ask: pb::AcceptInviteRequest) -> Result<pb::Empty, Fault> {
    call.only(SystemRole::Proxy, "accept invitations")?;
    let core = &call.core;
    let (password, code) = (Secret::new(ask.password), Secret::new(ask.otp));
    let held = find(&call, &ask.secret).await?;
    let user = held.value.user.clone();
    rules::password::check_new(&password, &user).map_err(Public::from)?;
    let policy = core.preference().second_factor;
    let step = enrolment_step(policy, &held.value.otp, &code, call.now);
    let permit = rules::login::enrolled(&user, held.expires, policy, step, call.now)?;
    let hash = core.hasher.hash(password).await?;
    let account_key = vault::account_key(&permit.user).map_err(VaultError::from)?;
    let old = core.vault.read::<Account>(&account_key).await?;
    let otp = policy.asks_code().then(|| held.value.otp.clone());
    // A reset replaces every proof, also those that a later release keeps beside these: whoever enrolled one of them may be the reason.
    let account = Account { password: hash, otp, last_otp_step: None, sources: Default::default(), extra: Extra::new() };
    let invite = key(&ask.secret)?;
    let batch = core
        .vault
        .batch()
        .require(vault::unchanged(&invite, Some(&held)))
        .require(vault::unchanged(&account_key, old.as_ref()))
        .delete(invite)
        .put(account_key, vault::json(&account), None);
    let batch = vault::forget_attempts(batch, &user).map_err(VaultError::from)?;
    // Lost to another acceptance of the same invitation: it was used.
    if !core.vault.commit(batch).await? {
        return Err(Denied::Invite { why: "it was used at the same moment" }.into());
    }
    let event = core.event(EventKind::PasswordChange).with("user", user.as_str()).with("addr.remote", shown(&ask.client_addr));
    core.audit.record(event.with("second_factor", policy.asks_code())).await?;
    Ok(pb::Empty {})
}

/// Removes everything secret of a name: it was deleted, or somebody new gets it.
pub(crate) async fn purge(call: &Call, user: &UserName) -> Result<(), Fault> {
    let vault = &call.core.vault;
    let mut batch = vault.batch();
    for invite in vault.invites_of(user).await?.into_iter().take(100) {
        batch = batch.delete(invite);
    }
    batch = batch.delete(vault::account_key(user).map_err(VaultError::from)?);
    let batch = vault::forget_attempts(batch, user).map_err(VaultError::from)?;
    vault.commit(batch).await?;
    Ok(())
}
