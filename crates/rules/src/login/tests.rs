//! Attack row 6 as a model test, lock-out, replay, and that strangers learn nothing.

use super::*;
use proptest::prelude::*;
use types::Code;

fn name(text: &str) -> UserName {
    UserName::new(text).unwrap()
}
fn at(seconds: i64) -> Time {
    Time::from_unix(seconds)
}
fn account() -> Account {
    Account { exists: true, has_password: true, has_otp: true, last_otp_step: None }
}
fn here(here: Attempts) -> Tally {
    Tally { here, ..Tally::default() }
}
fn log_in(account: &Account, password: bool, step: Option<u64>, attempts: Tally, now: i64) -> Outcome {
    Conversation::default().shown(&name("alice"), Evidence::Password(password)).shown(&name("alice"), Evidence::Otp { step }).conclude(
        &name("alice"),
        account,
        SecondFactor::Otp,
        attempts,
        at(now),
    )
}

#[test]
fn password_and_code_log_in() {
    let outcome = log_in(&account(), true, Some(7), here(Attempts { failures: 4, first: Some(at(0)), ..Attempts::default() }), 100);
    let permit = outcome.decision.unwrap();
    assert_eq!((permit.user.as_str(), permit.second_factor, permit.otp_step), ("alice", true, Some(7)));
    assert_eq!(outcome.attempts, Tally::default(), "a success resets");
    for (password, step) in [(false, Some(7)), (true, None), (false, None)] {
        assert!(log_in(&account(), password, step, Tally::default(), 100).decision.is_err());
    }
    let off = Conversation::default().shown(&name("alice"), Evidence::Password(true)).conclude(
        &name("alice"),
        &account(),
        SecondFactor::Off,
        Tally::default(),
        at(0),
    );
    assert!(!off.decision.unwrap().second_factor);
    let no_otp = Account { has_otp: false, ..account() };
    assert!(log_in(&no_otp, true, Some(7), Tally::default(), 100).decision.is_err(), "a missing second factor is not a pass");
    let invited = Account { has_password: false, ..account() };
    assert!(log_in(&invited, true, Some(7), Tally::default(), 100).decision.is_err());
}

#[test]
fn a_code_works_once() {
    let used = Account { last_otp_step: Some(7), ..account() };
    for (step, want) in [(6, false), (7, false), (8, true)] {
        assert_eq!(log_in(&used, true, Some(step), Tally::default(), 0).decision.is_ok(), want, "{step}");
    }
    assert_eq!(otp_steps(at(95)), [3, 2, 4]);
    assert_eq!(otp_steps(at(0)), [0, 0, 1]);
}

#[test]
fn five_failures_lock_for_twenty_minutes() {
    let mut attempts = Tally::default();
    for n in 1..=5 {
        let outcome = log_in(&account(), false, Some(9), attempts, n);
        assert!(outcome.decision.unwrap_err().public().is(Code::LoginFailed));
        assert_eq!(outcome.locked_now, n == 5);
        attempts = outcome.attempts;
    }
    // Locked: the right password does not help, and trying does not prolong the lock.
    let outcome = log_in(&account(), true, Some(9), attempts.clone(), 6);
    assert!(outcome.decision.unwrap_err().public().is(Code::LoginLocked));
    assert_eq!(outcome.attempts, attempts);
    assert!(log_in(&account(), true, Some(9), attempts.clone(), 5 + 1199).decision.is_err());
    assert!(log_in(&account(), true, Some(9), attempts.clone(), 5 + 1200).decision.is_ok());
    // After the lock the count begins anew.
    let again = log_in(&account(), false, None, attempts, 5 + 1200);
    assert_eq!((again.attempts.here.failures, again.locked_now), (1, false));
}

#[test]
fn a_stranger_locks_out_himself_and_not_the_user() {
    let mut all = Attempts::default();
    // He tries from ninety-nine sources, five times each at most: none of it locks another source.
    for n in 0..99 {
        let tally = Tally { all: all.clone(), ..Tally::default() };
        all = log_in(&account(), false, None, tally, n).attempts.all;
    }
    assert!(log_in(&account(), true, Some(9), Tally { all: all.clone(), ..Tally::default() }, 99).decision.is_ok());
    // From a hundred on every failure locks for everybody, longer each time.
    let mut now = 100;
    for minutes in [1, 2, 4, 8, 16, 20, 20] {
        let outcome = log_in(&account(), false, None, Tally { all, ..Tally::default() }, now);
        assert!(outcome.locked_now);
        all = outcome.attempts.all;
        assert_eq!(all.locked_until, Some(at(now + minutes * 60)));
        assert!(log_in(&account(), true, Some(9), Tally { all: all.clone(), ..Tally::default() }, now + 1).decision.is_err());
        // Where he logged in lately the user gets in all the same, and wrong passwords there still lock there.
        let mut tally = Tally { all: all.clone(), familiar: true, ..Tally::default() };
        assert!(log_in(&account(), true, Some(9), tally.clone(), now + 1).decision.is_ok());
        for n in 1..=5 {
            tally = log_in(&account(), false, None, tally, now + n).attempts;
        }
        assert!(log_in(&account(), true, Some(9), tally, now + 6).decision.is_err());
        now += minutes * 60;
    }
    // A day later it begins anew.
    let later = log_in(&account(), false, None, Tally { all, ..Tally::default() }, 100 + 86_400);
    assert_eq!((later.attempts.all.failures, later.locked_now), (1, false));
}

#[test]
fn old_failures_are_forgotten() {
    let mut attempts = Attempts::default();
    for n in 0..4 {
        attempts = attempts.failed(at(n));
    }
    let late = attempts.clone().failed(at(1800));
    assert_eq!((late.failures, late.locked_until), (1, None));
    assert!(attempts.failed(at(1799)).locked(at(1799)).is_some());
}

#[test]
fn unknown_users_and_locked_ones_cost_and_count_the_same() {
    let (mut known, mut unknown) = (Tally::default(), Tally::default());
    for n in 0..8 {
        let a = log_in(&account(), false, None, known, n);
        let b = log_in(&Account::unknown(), false, None, unknown, n);
        assert_eq!(a.decision.unwrap_err().public(), b.decision.unwrap_err().public(), "attempt {n}");
        assert_eq!(a.attempts, b.attempts);
        (known, unknown) = (a.attempts, b.attempts);
    }
    // One hash each time, whatever the account.
    assert_eq!(hash_for(&account(), &Tally::default(), at(0)), Hash::Account);
    assert_eq!(hash_for(&account(), &known, at(8)), Hash::Dummy);
    assert_eq!(hash_for(&Account::unknown(), &Tally::default(), at(0)), Hash::Dummy);
    assert!(log_in(&Account::unknown(), true, Some(9), Tally::default(), 0).decision.is_err(), "a dummy hash that fits is no login");
}

#[test]
fn a_wrong_answer_is_not_mended_by_a_second_one() {
    let conversation =
        Conversation::default().shown(&name("alice"), Evidence::Password(false)).shown(&name("alice"), Evidence::Password(true));
    assert!(conversation.conclude(&name("alice"), &account(), SecondFactor::Off, Tally::default(), at(0)).decision.is_err());
    let conversation = Conversation::default()
        .shown(&name("alice"), Evidence::Password(true))
        .shown(&name("alice"), Evidence::Otp { step: None })
        .shown(&name("alice"), Evidence::Otp { step: Some(3) });
    assert!(conversation.conclude(&name("alice"), &account(), SecondFactor::Otp, Tally::default(), at(0)).decision.is_err());
}

#[test]
fn accepting_an_invitation_logs_in() {
    let user = name("alice");
    assert!(enrolled(&user, Some(at(10)), SecondFactor::Otp, Some(3), at(5)).unwrap().second_factor);
    assert!(enrolled(&user, Some(at(10)), SecondFactor::Otp, None, at(5)).is_err());
    assert!(enrolled(&user, Some(at(10)), SecondFactor::Otp, Some(3), at(10)).is_err());
    assert!(enrolled(&user, None, SecondFactor::Off, None, at(5)).is_err());
}

#[test]
fn attempts_keep_unknown_fields_and_outlive_their_lock() {
    let json = r#"{"failures":1,"first":"1970-01-01T00:00:00Z","future":true}"#;
    let attempts: Attempts = serde_json::from_str(json).unwrap();
    assert_eq!(serde_json::to_string(&attempts).unwrap(), json);
    assert_eq!(serde_json::to_string(&attempts.clone().failed(at(1)).reset()).unwrap(), r#"{"failures":0,"future":true}"#);
    let locked = (0..5).fold(Attempts::default(), |attempts, n| attempts.failed(at(n)));
    assert!(locked.stale_at(at(4)) >= locked.locked_until.unwrap());
}

proptest! {
    /// The model keeps the evidence since the last mention of anybody else, and demands that all of it is right.
    #[test]
    fn attack_row_6_changing_the_user_flushes_all_partial_state(steps in proptest::collection::vec((0usize..3, any::<bool>(), any::<bool>()), 0..12), last in 0usize..3) {
        let names = ["alice", "bob", "root"].map(name);
        let mut conversation = Conversation::default();
        let mut model: (Option<usize>, Vec<bool>, Vec<bool>) = (None, Vec::new(), Vec::new());
        for (who, is_password, right) in steps {
            if model.0 != Some(who) {
                model = (Some(who), Vec::new(), Vec::new());
            }
            if is_password { model.1.push(right) } else { model.2.push(right) }
            let evidence = if is_password { Evidence::Password(right) } else { Evidence::Otp { step: right.then_some(5) } };
            conversation = conversation.shown(&names[who], evidence);
        }
        let outcome = conversation.conclude(&names[last], &account(), SecondFactor::Otp, Tally::default(), at(0));
        let all_right = |shown: &[bool]| !shown.is_empty() && shown.iter().all(|right| *right);
        let want = model.0 == Some(last) && all_right(&model.1) && all_right(&model.2);
        prop_assert_eq!(outcome.decision.is_ok(), want);
        if let Ok(permit) = outcome.decision {
            prop_assert_eq!(&permit.user, &names[last]);
        }
    }
}
