//! Logging in with a password and a one-time code: a pure state machine with lock-out and replay protection.
//!
//! `auth::login` computes the hashes and codes and asks here. Rules: every attempt computes one password hash, for unknown
//! and locked users over a dummy, so that time tells nothing; failures are counted by name, known or not, so that lock-out
//! tells nothing, and by name and source, so that a stranger locks out himself and not the user ([`Tally`]); a one-time
//! code works once. State proven for one user is flushed by the first word about another (attack
//! table, row 6). The only product is a [`LoggedIn`] permit, without which `issue::login` cannot be called.

use crate::permit::{Denied, LoggedIn, Permit};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use types::{Extra, Time, UserName, kind::SecondFactor};

/// Failures from one source that lock an account for that source.
pub const MAX_FAILURES: u32 = 5;
/// Failures are forgotten when the first of them is so old.
pub const WINDOW: Duration = Duration::from_secs(30 * 60);
/// How long a locked account stays locked; trying meanwhile does not prolong it.
pub const LOCKED_FOR: Duration = Duration::from_secs(20 * 60);
/// Failures from all sources together after which each more locks the account for everybody, a minute first and each time
/// twice as long, up to [`LOCKED_FOR`].
pub const MAX_FAILURES_IN_ALL: u32 = 100;
/// For how long those are counted.
pub const WINDOW_IN_ALL: Duration = Duration::from_secs(24 * 3600);
const FIRST_DELAY: Duration = Duration::from_secs(60);
/// A source from which the user logged in so lately is his: what others do from elsewhere does not lock it.
pub const FAMILIAR: Duration = Duration::from_secs(30 * 86_400);
/// Length of a one-time code's step (RFC 6238).
pub const OTP_STEP: u64 = 30;

/// Failed logins of one name, from one source or from all, kept whether or not there is such a user; may be forgotten after [`Attempts::stale_at`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Attempts {
    pub failures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_until: Option<Time>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Attempts {
    /// The end of the lock in force.
    pub fn locked(&self, now: Time) -> Option<Time> {
        self.locked_until.filter(|until| *until > now)
    }

    /// After one more failure from this source. A failure while locked changes nothing.
    #[must_use]
    pub fn failed(self, now: Time) -> Self {
        if self.locked(now).is_some() {
            return self;
        }
        let recent = self.locked_until.is_none() && self.first.is_some_and(|first| now.since(first) < WINDOW);
        let (failures, first) = if recent { (self.failures.saturating_add(1), self.first) } else { (1, Some(now)) };
        let locked_until = (failures >= MAX_FAILURES).then(|| now.plus(LOCKED_FOR));
        Self { failures, first, locked_until, extra: self.extra }
    }

    /// After one more failure from anywhere. A failure while locked changes nothing.
    #[must_use]
    fn failed_anywhere(self, now: Time) -> Self {
        if self.locked(now).is_some() {
            return self;
        }
        let recent = self.first.is_some_and(|first| now.since(first) < WINDOW_IN_ALL);
        let (failures, first) = if recent { (self.failures.saturating_add(1), self.first) } else { (1, Some(now)) };
        let locked_until = failures.checked_sub(MAX_FAILURES_IN_ALL).map(|beyond| {
            let delay = FIRST_DELAY.saturating_mul(1 << beyond.min(10));
            now.plus(delay.min(LOCKED_FOR))
        });
        Self { failures, first, locked_until, extra: self.extra }
    }

    /// After a success.
    #[must_use]
    pub fn reset(self) -> Self {
        Self { extra: self.extra, ..Self::default() }
    }

    /// When the document may be removed from the store.
    pub fn stale_at(&self, now: Time) -> Time {
        now.plus(WINDOW).max(self.locked_until.unwrap_or(now))
    }
}

/// The failed logins that count for one attempt.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// From this source.
    pub here: Attempts,
    /// From everywhere.
    pub all: Attempts,
    /// The user logged in from this source within [`FAMILIAR`].
    pub familiar: bool,
}

impl Tally {
    /// The end of the lock in force for this attempt.
    pub fn locked(&self, now: Time) -> Option<Time> {
        let all = self.all.locked(now).filter(|_| !self.familiar);
        self.here.locked(now).max(all)
    }

    /// After one more failure. A failure while locked changes nothing: neither lock is prolonged by trying.
    #[must_use]
    pub fn failed(self, now: Time) -> Self {
        if self.locked(now).is_some() {
            return self;
        }
        Self { here: self.here.failed(now), all: self.all.failed_anywhere(now), familiar: self.familiar }
    }

    /// After a success: what others did from elsewhere stays counted.
    #[must_use]
    pub fn succeeded(self) -> Self {
        Self { here: self.here.reset(), ..self }
    }

    /// When the count of everywhere may be removed from the store.
    pub fn all_stale_at(&self, now: Time) -> Time {
        // A few failures of each of a million names that somebody made up are not kept for a day.
        now.plus(if self.all.failures > MAX_FAILURES { WINDOW_IN_ALL } else { WINDOW })
    }
}

/// What the account is like; an unknown user is [`Account::unknown`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    pub exists: bool,
    /// Has set a password (accepted his invitation).
    pub has_password: bool,
    pub has_otp: bool,
    /// The time-step of the last one-time code that was accepted.
    pub last_otp_step: Option<u64>,
}

impl Account {
    pub fn unknown() -> Self {
        Self { exists: false, has_password: false, has_otp: false, last_otp_step: None }
    }
}

/// Which hash to compute. Always one: skipping it would tell that the user is unknown or locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hash {
    /// Verify against the account's own.
    Account,
    /// Verify against a fixed dummy of the same cost, and discard the result.
    Dummy,
}

/// The hash to compute before judging.
pub fn hash_for(account: &Account, attempts: &Tally, now: Time) -> Hash {
    if account.exists && account.has_password && attempts.locked(now).is_none() { Hash::Account } else { Hash::Dummy }
}

/// Time-steps whose codes are accepted at `now`: this one and its neighbours, for clocks that differ.
pub fn otp_steps(now: Time) -> [u64; 3] {
    let step = now.unix_u64() / OTP_STEP;
    [step, step.saturating_sub(1), step.saturating_add(1)]
}

/// What was shown for one user. `otp_step` is the step among [`otp_steps`] whose code the user sent, if any.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Evidence {
    /// Whether the password fits (of a dummy hash: `false`).
    Password(bool),
    Otp {
        step: Option<u64>,
    },
}

/// One login in progress: who it is about and what he proved. Consumed by each step.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Conversation {
    about: Option<(UserName, Proven)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Proven {
    password: Option<bool>,
    otp: Option<Option<u64>>,
}

impl Conversation {
    /// Adds evidence about `user`. Evidence about anybody else before is gone, whatever it was.
    #[must_use]
    pub fn shown(self, user: &UserName, evidence: Evidence) -> Self {
        let mut proven = match self.about {
            Some((about, proven)) if about == *user => proven,
            Some(_) | None => Proven::default(),
        };
        match evidence {
            // Whatever was wrong once stays wrong in this conversation: no retries around the counter.
            Evidence::Password(fits) => proven.password = Some(fits && proven.password.unwrap_or(true)),
            Evidence::Otp { step } => proven.otp = Some(if proven.otp.is_none() { step } else { proven.otp.flatten().and(step) }),
        }
        Self { about: Some((user.clone(), proven)) }
    }

    /// Concludes the login of `user`; evidence about others is not looked at.
    ///
    /// Returns the decision and the attempts to store: before answering, and on success together with the code's step.
    pub fn conclude(self, user: &UserName, account: &Account, policy: SecondFactor, attempts: Tally, now: Time) -> Outcome {
        if let Some(until) = attempts.locked(now) {
            return Outcome { decision: Err(Denied::LoginLocked { user: user.to_string(), until }), attempts, locked_now: false };
        }
        let proven = match self.about {
            Some((about, proven)) if about == *user => proven,
            Some(_) | None => Proven::default(),
        };
        match judge(proven, account, policy) {
            Ok(otp_step) => {
                let permit = Permit::grant(LoggedIn { user: user.clone(), second_factor: otp_step.is_some(), otp_step });
                Outcome { decision: Ok(permit), attempts: attempts.succeeded(), locked_now: false }
            }
            Err(why) => {
                let attempts = attempts.failed(now);
                let locked_now = attempts.locked(now).is_some();
                Outcome { decision: Err(Denied::LoginFailed { user: user.to_string(), why }), attempts, locked_now }
            }
        }
    }
}

/// What a login came to.
#[derive(Debug)]
pub struct Outcome {
    pub decision: Result<Permit<LoggedIn>, Denied>,
    /// To be stored under the name, whether or not the user exists.
    pub attempts: Tally,
    /// This failure locked the account: for the audit log.
    pub locked_now: bool,
}

/// The code's step, if one was needed and fits.
fn judge(proven: Proven, account: &Account, policy: SecondFactor) -> Result<Option<u64>, &'static str> {
    if !account.exists {
        return Err("there is no such user");
    }
    if !account.has_password {
        return Err("no password is set yet");
    }
    if proven.password != Some(true) {
        return Err("the password is wrong");
    }
    match policy {
        SecondFactor::Off => Ok(None),
        SecondFactor::Otp | SecondFactor::Newer if !account.has_otp => Err("no second factor is enrolled"),
        SecondFactor::Otp | SecondFactor::Newer => fresh_step(proven.otp.flatten(), account.last_otp_step).map(Some),
    }
}

/// A code's step counts only if it is later than the last one used (RFC 6238, section 5.2).
fn fresh_step(step: Option<u64>, last: Option<u64>) -> Result<u64, &'static str> {
    match step {
        None => Err("the one-time code is wrong or missing"),
        Some(step) if last.is_some_and(|last| step <= last) => Err("the one-time code was used before"),
        Some(step) => Ok(step),
    }
}

/// A user who accepted an invitation: he set a password, showed a code of his new second factor, and is thereby logged in.
///
/// `invite_ends` is the end of the invitation that was found for this user by its secret.
pub fn enrolled(
    user: &UserName,
    invite_ends: Option<Time>,
    policy: SecondFactor,
    otp_step: Option<u64>,
    now: Time,
) -> Result<Permit<LoggedIn>, Denied> {
    crate::token::decide_invite(invite_ends, now)?;
    let otp_step = match policy {
        SecondFactor::Off => None,
        SecondFactor::Otp | SecondFactor::Newer => {
            Some(fresh_step(otp_step, None).map_err(|why| Denied::LoginFailed { user: user.to_string(), why })?)
        }
    };
    Ok(Permit::grant(LoggedIn { user: user.clone(), second_factor: otp_step.is_some(), otp_step }))
}

#[cfg(test)]
#[path = "login/tests.rs"]
mod tests;
