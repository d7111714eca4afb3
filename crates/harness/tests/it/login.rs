//! Getting in and out: password, second factor, invitation, lock-out, expiry, and what `tsh` says about it.

use harness::{Cluster, Person, Setup, cluster::shared, eventually, person::me};
use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

#[test]
fn a_user_takes_an_invitation_logs_in_and_sees_himself() {
    let cluster = shared();
    let alice = cluster.person("login-alice", &["access"], &[me()]);
    let status = alice.tsh(["status"]).go().ok();
    for word in ["login-alice", "access", me(), cluster.name.as_str()] {
        assert!(status.contains(word), "no {word} in {status}");
    }
    alice.login().go().ok();
    let seen = alice.tsh(["status", "--format=json"]).go().json();
    assert!(seen.to_string().contains("login-alice"), "{seen}");
    assert!(alice.tsh(["ls"]).go().ok().contains("node1"));
    assert!(alice.tsh(["clusters"]).go().ok().contains(&cluster.name));
    assert!(alice.tsh(["env"]).go().ok().contains("LOCKGATE_"));
    cluster.event("user.login", "L1000I", &[("user", "login-alice")]);
    cluster.event("cert.create", "LC000I", &[("user", "login-alice")]);
}

#[test]
fn keys_are_for_their_owner_alone() {
    let alice = shared().person("login-private", &["access"], &[me()]);
    let mut seen = 0;
    let mut visit = vec![alice.home.clone()];
    while let Some(path) = visit.pop() {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o077;
        assert_eq!(mode, 0, "{}", path.display());
        seen += 1;
        if path.is_dir() {
            visit.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert!(seen > 5);
}

#[test]
fn an_invitation_works_once() {
    let cluster = shared();
    let alice = cluster.person("login-once", &["access"], &[me()]);
    let again = alice.elsewhere("again");
    let ran = again
        .tsh(["login"])
        .args(again.where_to())
        .arg(format!("--invite={}", again.invite))
        .env("LOCKGATE_PASSWORD_FILE", again.password_file("another password"));
    ran.go().fails(1, "LG-LOGIN-005");
    alice.login().go().ok();
    cluster.event("user.password_change", "L1005I", &[("user", "login-once")]);
}

#[test]
fn a_weak_password_is_refused_and_the_invitation_stays() {
    let cluster = shared();
    let bob = Person::invite(&cluster, "login-weak", &["access"], &[me()]);
    let weak = bob
        .tsh(["login"])
        .args(bob.where_to())
        .arg(format!("--invite={}", bob.invite))
        .env("LOCKGATE_PASSWORD_FILE", bob.password_file("short"));
    weak.go().fails(1, "LG-LOGIN-006");
    bob.accept();
}

#[test]
fn a_password_can_come_from_standard_input() {
    let cluster = shared();
    let alice = cluster.person("login-stdin", &["access"], &[me()]);
    let other = alice.elsewhere("stdin");
    other.tsh(["login"]).args(other.where_to()).input(format!("{}\n", alice.password)).go().ok();
    other.tsh(["status"]).go().ok();
}

#[test]
fn logging_out_leaves_nothing_to_use() {
    let alice = shared().person("login-out", &["access"], &[me()]);
    alice.tsh(["logout"]).go().ok();
    assert_eq!(alice.tsh(["status"]).go().status, 1);
    alice.tsh(["ls"]).go().fails(1, "LG-LOGIN-004");
    let left = harness::Run::new("grep").args(["-rl", "PRIVATE KEY"]).arg(&alice.home).go();
    assert_eq!(left.text(), "", "a key was left behind");
}

/// Wrong passwords bound the source too, so this has a cluster of its own.
#[test]
fn a_wrong_password_says_no_more_than_an_unknown_user_and_five_lock_the_account() {
    let cluster = Cluster::with(Setup { with_node: false, ..Setup::default() });
    let alice = cluster.person("alice", &["access"], &[me()]);
    let wrong = alice.login_with("not this one").go();
    wrong.fails(1, "LG-LOGIN-001");
    let mut nobody = alice.elsewhere("nobody");
    nobody.name = "no-such-user".into();
    let unknown = nobody.login_with("not this one").go();
    unknown.fails(1, "LG-LOGIN-001");
    assert_eq!(wrong.err.replace("alice", "NAME"), unknown.err.replace("no-such-user", "NAME"));
    for _ in 0..4 {
        alice.login_with("not this one").go().refused();
    }
    // The right password does not open a locked account. That it is locked is told to nobody who has not proven the password.
    let locked = alice.login().go();
    assert!(["LG-LOGIN-001", "LG-LOGIN-002"].contains(&locked.refused().code().unwrap_or_default()), "{locked}");
    cluster.event("user.login", "L1000W", &[("user", "alice")]);
    cluster.event("user.lock", "L1008W", &[("user", "alice")]);
}

#[test]
fn an_expired_certificate_opens_nothing() {
    let cluster = shared();
    cluster.role("brief", "{options: {max_session_ttl: 3s}, allow: {logins: ['{{internal.logins}}'], node_labels: {'*': '*'}}}");
    let alice = cluster.person("login-brief", &["brief"], &[me()]);
    alice.login().go().ok();
    let status = eventually(Duration::from_secs(15), "the certificate expires", || {
        let ran = alice.tsh(["status"]).go();
        (ran.status == 1).then_some(ran)
    });
    assert!((status.text() + &status.err).to_lowercase().contains("expired"), "{status}");
    alice.ssh("node1", "true").go().fails(255, "LG-LOGIN-003");
    alice.tsh(["ls"]).go().fails(1, "LG-LOGIN-003");
}

#[test]
fn the_life_of_a_certificate_is_what_was_asked_for_within_the_roles_bound() {
    let cluster = shared();
    cluster.role("two-hours", "{options: {max_session_ttl: 2h}, allow: {logins: [nobody], node_labels: {'*': '*'}}}");
    let alice = cluster.person("login-life", &["two-hours"], &[]);
    let left = |asked: &str| {
        alice.login().arg(format!("--ttl={asked}")).go().ok();
        expiry_minutes(&alice.tsh(["status", "--format=json"]).go().ok())
    };
    let check = |asked: &str, minutes: std::ops::RangeInclusive<i64>| {
        let got = left(asked);
        assert!(minutes.contains(&got), "{asked}: {got} minutes");
    };
    check("10m", 8..=10);
    check("30", 28..=30);
    check("9h", 117..=120);
}

/// Minutes until the latest RFC 3339 time in a text.
fn expiry_minutes(text: &str) -> i64 {
    let times = text.split('"').filter_map(|word| word.parse::<types::Time>().ok());
    let latest = times.max().unwrap_or_else(|| panic!("no time in {text}"));
    (latest.unix() - types::Time::from(std::time::SystemTime::now()).unix()) / 60
}

#[test]
fn a_second_factor_is_set_with_the_invitation_and_asked_for_at_every_login() {
    let cluster = Cluster::with(Setup { with_node: false, otp: true, ..Setup::default() });
    let alice = Person::invite(&cluster, "alice", &["access"], &[me()]);
    // What the page and `tsh` show to a person: the secret for the authenticator.
    let secret = alice.invite.rsplit('/').next().unwrap();
    let shown = crate::talk::web_get(&cluster, &format!("/webapi/invite/{secret}"));
    assert_eq!(shown.0, 200, "{}", shown.1);
    let otp_url = serde_json::from_str::<serde_json::Value>(&shown.1).unwrap()["otp_url"].as_str().unwrap().to_owned();
    let kept = alice.home.with_extension("otp");
    let accept = alice
        .tsh(["login"])
        .args(alice.where_to())
        .arg(format!("--invite={}", alice.invite))
        .env("LOCKGATE_PASSWORD_FILE", alice.password_file(&alice.password));
    // The code after the one that accepted the invitation logs in at once.
    accept.env("LOCKGATE_OTP_SECRET_FILE", &kept).go().ok();
    let step = otp_step();
    alice.tsh(["status"]).go().ok();
    assert!(otp_url.contains(fs::read_to_string(&kept).unwrap().trim()), "the secret of the link is the one that was kept");
    alice.tsh(["logout"]).go().ok();
    let login = |otp: &str| alice.login().env("LOCKGATE_OTP", otp);
    login("000000").go().fails(1, "LG-LOGIN-001");
    let wrong = alice.login_with("not this one").env("LOCKGATE_OTP", otp_code(&otp_url, 1)).go();
    wrong.fails(1, "LG-LOGIN-001");
    // A code that is computed here, of the first step that was not used yet; it too works once.
    eventually(Duration::from_secs(35), "the next step of the clock", || (otp_step() > step).then_some(()));
    let fresh = otp_code(&otp_url, 1);
    login(&fresh).go().ok();
    login(&fresh).go().fails(1, "LG-LOGIN-001");
}

/// The code of an `otpauth://` link, so many steps from now (RFC 6238).
pub(crate) fn otp_code(url: &str, steps: i64) -> String {
    let query = url.split_once('?').unwrap().1;
    let get = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)).map(str::to_owned);
    let secret = data_encoding::BASE32_NOPAD.decode(get("secret=").unwrap().trim_end_matches('=').as_bytes()).unwrap();
    let digits: usize = get("digits=").map_or(6, |text| text.parse().unwrap());
    assert!(get("algorithm=").is_none_or(|name| name == "SHA1"), "{url}");
    let counter = otp_step().checked_add_signed(steps).unwrap();
    let mac = hmac_sha1(&secret, &counter.to_be_bytes());
    let at = usize::from(mac[19] & 15);
    let number = u32::from_be_bytes([mac[at] & 0x7f, mac[at + 1], mac[at + 2], mac[at + 3]]);
    format!("{:0width$}", number % 10u32.pow(u32::try_from(digits).unwrap()), width = digits)
}

pub(crate) fn otp_step() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 30
}

/// By the tool that everybody has, so that both sides do not share one library's mistake.
fn hmac_sha1(key: &[u8], message: &[u8]) -> Vec<u8> {
    let key = data_encoding::HEXLOWER.encode(key);
    harness::Run::new("openssl")
        .args(["dgst", "-sha1", "-mac", "HMAC", "-macopt", &format!("hexkey:{key}"), "-binary"])
        .input(message)
        .go()
        .out
}
