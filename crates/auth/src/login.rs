//! Logging in: a Proxy brings a name, a password and a code; a certificate goes back, or one and the same refusal.
//!
//! The decisions are `rules::login`'s. Here: one hash per attempt whoever asks, attempts and used codes stored under the
//! condition that nothing changed since they were read (so that parallel guesses cannot outrun the counter and a code cannot
//! be used twice), and both outcomes written to the audit log before the answer leaves.

use crate::{
    api::certs::user_credentials,
    ca::issue::Keys,
    core::{Call, Fault},
    metrics::count,
    password,
    vault::{self, Account, Held},
};
use rules::{
    Denied, Permit, RoleSet,
    issue::LoginRequest,
    login::{self as rule, Attempts, Conversation, Evidence, Hash, Tally},
    permit::LoggedIn,
};
use std::{collections::BTreeMap, time::Duration};
use types::{Code, EventKind, Public, Secret, SystemRole, Time, Ttl, UserName, kind::SecondFactor};
use wire::api as pb;
use zeroize::Zeroizing;

/// Sources remembered of one user.
const MAX_SOURCES: usize = 16;
/// Lost races after which a login gives up.
const MAX_RACES: usize = 32;

/// Logs a user in on behalf of a Proxy.
pub(crate) async fn login(call: Call, ask: pb::LoginRequest) -> Result<pb::UserCredentials, Fault> {
    call.only(SystemRole::Proxy, "log users in")?;
    let core = &call.core;
    let (password, code) = (Secret::new(ask.password), Secret::new(ask.otp));
    let keys = Keys::both(&ask.ssh_public_key, &ask.tls_public_key)?;
    let source = source(&ask.client_addr);
    let Some(place) = core.gate.enter(&source, call.now) else {
        count(&core.metrics.logins_shed);
        let event = call
            .event(EventKind::LoginFailed)
            .with("addr.remote", shown(&ask.client_addr))
            .with("success", false)
            .with("error", "too many logins at once");
        core.record_refusal(&format!("shed {source}"), event).await;
        return Err(Public::new(Code::RateLimited, "too many logins at once").hint("try again in a while").into());
    };
    let proven = match UserName::new(&ask.user) {
        Ok(user) => prove(&call, &user, &password::fingerprint(&source), password, &code).await,
        Err(_) => {
            // No name of anybody; it costs the same to hear so.
            core.hasher.verify(password, None).await?;
            let denied = Denied::LoginFailed { user: shown(&ask.user), why: "it is not a user name" };
            Err(Refusal { fault: denied.into(), locked: false })
        }
    };
    drop(place);
    let about = |kind| {
        let event = core.event(kind).with("user", shown(&ask.user)).with("addr.remote", shown(&ask.client_addr)).with("method", "local");
        event.with("client_version", shown(&ask.client_version))
    };
    let proven = match proven {
        Ok(proven) => issue(&call, &proven, &keys, ask.ttl).await,
        Err(refusal) => Err(refusal),
    };
    match proven {
        Ok(reply) => {
            count(&core.metrics.logins);
            core.audit.record(about(EventKind::Login).with("success", true)).await?;
            Ok(reply)
        }
        Err(Refusal { fault, locked }) => {
            count(&core.metrics.login_failures);
            core.gate.failed(&source, call.now);
            let mut events = vec![about(EventKind::LoginFailed).with("success", false).with("error", fault.to_string())];
            if locked {
                events.push(about(EventKind::UserLocked));
            }
            core.audit.record_all(events).await?;
            Err(fault)
        }
    }
}

struct Refusal {
    fault: Fault,
    /// This very failure locked the account.
    locked: bool,
}

impl<E: Into<Fault>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self { fault: error.into(), locked: false }
    }
}

/// What is kept of one name.
struct Kept {
    account: Option<Held<Account>>,
    /// Failures from this source, and from everywhere.
    here: Option<Held<Attempts>>,
    all: Option<Held<Attempts>>,
}

impl Kept {
    async fn read(call: &Call, user: &UserName, source: &str) -> Result<Self, Fault> {
        let vault = &call.core.vault;
        let account = vault.read(&vault::account_key(user).map_err(vault::VaultError::from)?).await?;
        let here = vault.read(&vault::attempts_here_key(user, source).map_err(vault::VaultError::from)?).await?;
        let all = vault.read(&vault::attempts_key(user).map_err(vault::VaultError::from)?).await?;
        Ok(Self { account, here, all })
    }

    /// As `rules` sees it. Proofs without a user document are a deleted user's.
    fn facts(&self, exists: bool) -> rule::Account {
        match &self.account {
            Some(held) if exists => {
                rule::Account { exists, has_password: true, has_otp: held.value.otp.is_some(), last_otp_step: held.value.last_otp_step }
            }
            Some(_) | None => rule::Account { exists, ..rule::Account::unknown() },
        }
    }

    fn tally(&self, source: &str, now: Time) -> Tally {
        let value = |held: &Option<Held<Attempts>>| held.as_ref().map(|held| held.value.clone()).unwrap_or_default();
        let last = self.account.as_ref().and_then(|held| held.value.sources.get(source).copied());
        Tally { here: value(&self.here), all: value(&self.all), familiar: last.is_some_and(|last| now.since(last) < rule::FAMILIAR) }
    }
}

/// Verifies password and code, and settles the attempt.
async fn prove(call: &Call, user: &UserName, source: &str, password: Secret, code: &Secret) -> Result<Permit<LoggedIn>, Refusal> {
    let core = &call.core;
    let _turn = core.gate.turn(user.as_str()).await;
    let mut kept = Kept::read(call, user, source).await?;
    let exists = core.user(user).is_some();
    let against = match rule::hash_for(&kept.facts(exists), &kept.tally(source, call.now), call.now) {
        Hash::Account => kept.account.as_ref().map(|held| Zeroizing::new(held.value.password.clone())),
        Hash::Dummy => None,
    };
    let fits = core.hasher.verify(password, against).await?;
    let step = kept.account.as_ref().and_then(|held| password::otp_step(held.value.otp.as_deref()?, code, call.now));
    let evidence = Conversation::default().shown(user, Evidence::Password(fits)).shown(user, Evidence::Otp { step });
    let policy = core.preference().second_factor;
    for _ in 0..MAX_RACES {
        let outcome = evidence.clone().conclude(user, &kept.facts(exists), policy, kept.tally(source, call.now), call.now);
        if store(call, user, source, &kept, &outcome).await? {
            return outcome.decision.map_err(|denied| Refusal { fault: denied.into(), locked: outcome.locked_now });
        }
        kept = Kept::read(call, user, source).await?;
    }
    Err(Fault::Internal(format!("the attempts of {user} keep changing")).into())
}

/// Stores the attempts, the used code and where it worked, if nothing changed since all was read.
async fn store(call: &Call, user: &UserName, source: &str, kept: &Kept, outcome: &rule::Outcome) -> Result<bool, Fault> {
    let vault = &call.core.vault;
    let (before, after) = (kept.tally(source, call.now), &outcome.attempts);
    let here = (vault::attempts_here_key(user, source).map_err(vault::VaultError::from)?, &kept.here, after.here.stale_at(call.now));
    let all = (vault::attempts_key(user).map_err(vault::VaultError::from)?, &kept.all, after.all_stale_at(call.now));
    let mut batch = vault.batch();
    for ((key, held, until), was, is) in [(here, &before.here, &after.here), (all, &before.all, &after.all)] {
        if was == is {
            continue;
        }
        batch = batch.require(vault::unchanged(&key, held.as_ref()));
        batch = if is.clone().reset() == *is { batch.delete(key) } else { batch.put(key, vault::json(is), Some(until)) };
    }
    if let (Ok(proof), Some(held)) = (&outcome.decision, &kept.account) {
        let mut account = held.value.clone();
        account.last_otp_step = proof.otp_step.or(account.last_otp_step);
        familiarise(&mut account.sources, source, call.now);
        if account.last_otp_step != held.value.last_otp_step || account.sources != held.value.sources {
            let key = vault::account_key(user).map_err(vault::VaultError::from)?;
            batch = batch.require(vault::unchanged(&key, Some(held))).put(key, vault::json(&account), None);
        }
    }
    if batch.ops.is_empty() { Ok(true) } else { Ok(vault.commit(batch).await?) }
}

/// Notes where a user logged in; once a day is enough, and the latest few.
fn familiarise(sources: &mut BTreeMap<String, Time>, source: &str, now: Time) {
    if sources.get(source).is_some_and(|last| now.since(*last) < Duration::from_secs(86_400)) {
        return;
    }
    sources.retain(|_, last| now.since(*last) < rule::FAMILIAR);
    while sources.len() >= MAX_SOURCES {
        let Some(oldest) = sources.iter().min_by_key(|(_, last)| **last).map(|(source, _)| source.clone()) else { break };
        sources.remove(&oldest);
    }
    sources.insert(source.to_owned(), now);
}

/// The certificates of a proven login.
async fn issue(call: &Call, proof: &Permit<LoggedIn>, keys: &Keys, ttl: u64) -> Result<pb::UserCredentials, Refusal> {
    let core = &call.core;
    let Some(user) = core.user(&proof.user) else {
        return Err(Denied::LoginFailed { user: proof.user.to_string(), why: "the user was deleted meanwhile" }.into());
    };
    let roles = RoleSet::of_user(&user, |name| core.mirror.role(name));
    let request = LoginRequest {
        cluster: &core.cluster,
        user: &user,
        roles: &roles,
        ttl: asked_ttl(ttl),
        default_ttl: core.preference().default_session_ttl,
        source_ip: None,
        locks: &core.mirror.locks(),
        now: call.now,
    };
    let permit = rules::issue::login(proof, &request)?;
    Ok(user_credentials(&call.core, call.event(EventKind::CertCreate), permit, &roles.options(), keys).await?)
}

pub(crate) fn asked_ttl(seconds: u64) -> Option<Ttl> {
    (seconds > 0).then(|| Ttl::from_secs(seconds.min(366 * 86_400)))
}

/// The address without its port, or its network: one source, however many connections.
fn source(addr: &str) -> String {
    match addr.parse::<std::net::SocketAddr>() {
        Ok(addr) => crate::limits::source(addr.ip()),
        Err(_) => shown(addr),
    }
}

/// A stranger's text, fit for a log.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(128).flat_map(char::escape_default).collect()
}

/// The step of a code shown to enrol a second factor; `None` when the policy asks for none.
pub(crate) fn enrolment_step(policy: SecondFactor, secret: &str, code: &Secret, now: Time) -> Option<u64> {
    policy.asks_code().then(|| password::otp_step(secret, code, now)).flatten()
}
