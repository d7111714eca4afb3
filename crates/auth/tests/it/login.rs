//! Logging in: passwords, one-time codes, lock-out, invitations, and that strangers learn nothing.

use crate::fixture::*;
use auth::password::otp_code;
use std::time::Duration;
use types::{Code, Time};
use wire::{
    api as pb,
    identity::{SshCert, SshCertKind, parse_ssh_certificate},
};

async fn login(cluster: &Cluster, user: &str, password: &str, otp: &str) -> Result<pb::UserCredentials, types::Public> {
    let answer = cluster.proxy().await.login(login_request(user, password, otp, &Keys::new())).await;
    answer.map(tonic::Response::into_inner).map_err(|status| pb::from_status(&status))
}

#[tokio::test]
async fn a_login_gives_certificates_for_twelve_hours_with_the_users_logins() {
    let cluster = Cluster::start().await;
    cluster.user("alice", &["access"], &["app", "root"]).await;
    let reply = login(&cluster, "alice", PASSWORD, "").await.unwrap();
    let ends = cluster.now().plus(Duration::from_secs(12 * 3600));
    assert_eq!((reply.user.as_str(), reply.cluster_name.as_str(), reply.expires.parse::<Time>().unwrap()), ("alice", "demo", ends));
    let authority =
        types::Document::from_json(&reply.authorities.iter().find(|json| json.windows(6).any(|w| w == b"\"user\"")).unwrap().clone())
            .unwrap();
    let key = authority.spec["keys"][0]["ssh"].as_str().unwrap().parse().unwrap();
    let certificate = parse_ssh_certificate(&reply.ssh_certificate).unwrap();
    let facts = SshCert::verified(&certificate, SshCertKind::User, &[key], cluster.now()).unwrap();
    assert_eq!((facts.key_id.as_str(), facts.principals), ("alice", vec!["app".to_owned(), "root".to_owned()]));
    assert!(facts.extensions.contains_key("permit-pty") && facts.extensions.contains_key("permit-port-forwarding"));
    assert!(!facts.extensions.contains_key("permit-agent-forwarding"));
    assert_eq!(facts.expires, ends);
    let logins = events(&cluster, "user.login").await;
    assert_eq!(
        (logins.len(), logins[0].text("user"), logins[0].text("addr.remote"), logins[0].code.as_str()),
        (1, "alice", "192.0.2.7:4321", "L1000I")
    );
    assert_eq!(events(&cluster, "cert.create").await.len(), 1);
}

#[tokio::test]
async fn a_role_bounds_the_life_of_a_certificate() {
    let cluster = Cluster::start().await;
    create(
        &mut cluster.admin(),
        &role_document("short", serde_json::json!({"options": {"max_session_ttl": "1h"}, "allow": {"logins": ["app"]}})),
    )
    .await
    .unwrap();
    cluster.user("alice", &["access", "short"], &[]).await;
    let mut request = login_request("alice", PASSWORD, "", &Keys::new());
    request.ttl = 10 * 3600;
    let reply = cluster.proxy().await.login(request).await.unwrap().into_inner();
    assert_eq!(reply.expires.parse::<Time>().unwrap(), cluster.now().plus(Duration::from_secs(3600)));
}

#[tokio::test]
async fn wrong_names_passwords_and_codes_are_refused_alike() {
    let cluster = Cluster::with(|_| {}).await;
    let secret = cluster.user("alice", &["access"], &["app"]).await;
    let code = otp_code(&secret, cluster.now()).unwrap();
    create(&mut cluster.admin(), &user_document("invited", &["access"], &[])).await.unwrap();
    let mut answers = Vec::new();
    for (user, password, otp) in [
        ("alice", "wrong", code.as_str()),
        ("alice", PASSWORD, "000000"),
        ("alice", PASSWORD, ""),
        ("nobody", PASSWORD, code.as_str()),
        ("invited", PASSWORD, code.as_str()),
        ("not a name", PASSWORD, code.as_str()),
        ("alice", &"x".repeat(5000), code.as_str()),
    ] {
        answers.push(login(&cluster, user, password, otp).await.unwrap_err());
    }
    assert!(answers.iter().all(|answer| answer == &answers[0] && answer.is(Code::LoginFailed)), "{answers:?}");
    assert!(login(&cluster, "alice", PASSWORD, &code).await.is_ok());
    let failed = events(&cluster, "user.login").await.into_iter().filter(|event| event.code == "L1000W").count();
    assert_eq!(failed, 7);
}

#[tokio::test]
async fn attack_row_6_a_one_time_code_works_once_and_only_for_its_user() {
    let cluster = Cluster::with(|_| {}).await;
    let alice = cluster.user("alice", &["access"], &["app"]).await;
    let bob = cluster.user("bob", &["access"], &["app"]).await;
    let now = cluster.now();
    let (of_alice, of_bob) = (otp_code(&alice, now).unwrap(), otp_code(&bob, now).unwrap());
    assert!(login(&cluster, "alice", PASSWORD, &of_bob).await.unwrap_err().is(Code::LoginFailed));
    login(&cluster, "alice", PASSWORD, &of_alice).await.unwrap();
    assert!(login(&cluster, "alice", PASSWORD, &of_alice).await.unwrap_err().is(Code::LoginFailed));
    // An earlier step's code is no newer.
    let before = otp_code(&alice, now.minus(Duration::from_secs(30))).unwrap();
    assert!(login(&cluster, "alice", PASSWORD, &before).await.unwrap_err().is(Code::LoginFailed));
    cluster.clock.advance(Duration::from_secs(30));
    let next = otp_code(&alice, cluster.now()).unwrap();
    login(&cluster, "alice", PASSWORD, &next).await.unwrap();
}

#[tokio::test]
async fn attack_row_6_the_same_code_sent_many_times_at_once_works_once() {
    let cluster = Cluster::with(|_| {}).await;
    let secret = cluster.user("alice", &["access"], &["app"]).await;
    let code = otp_code(&secret, cluster.now()).unwrap();
    let tries = (0..4).map(|_| login(&cluster, "alice", PASSWORD, &code));
    let won = futures::future::join_all(tries).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1);
}

#[tokio::test]
async fn five_failures_lock_the_account_for_twenty_minutes_whether_it_exists_or_not() {
    let cluster = Cluster::start().await;
    cluster.user("alice", &["access"], &["app"]).await;
    for user in ["alice", "nobody"] {
        for _ in 0..5 {
            assert!(login(&cluster, user, "wrong password", "").await.unwrap_err().is(Code::LoginFailed), "{user}");
        }
        assert!(login(&cluster, user, PASSWORD, "").await.unwrap_err().is(Code::LoginLocked), "{user}");
    }
    assert_eq!(events(&cluster, "user.lock").await.len(), 2);
    cluster.clock.advance(Duration::from_secs(20 * 60 + 1));
    login(&cluster, "alice", PASSWORD, "").await.unwrap();
    assert!(login(&cluster, "nobody", PASSWORD, "").await.unwrap_err().is(Code::LoginFailed));
}

#[tokio::test]
async fn a_stranger_locks_out_himself_and_not_the_user_wherever_he_comes_from() {
    let cluster = Cluster::start().await;
    cluster.user("alice", &["access"], &["app"]).await;
    let from = |password: &'static str, addr: String| {
        let mut request = login_request("alice", password, "", &Keys::new());
        request.client_addr = addr;
        let cluster = &cluster;
        async move { cluster.proxy().await.login(request).await.map_err(|status| pb::from_status(&status)) }
    };
    from(PASSWORD, "192.0.2.7:1".into()).await.unwrap();
    for number in 0..6 {
        let refused = from("wrong password", format!("198.51.100.66:{number}")).await.unwrap_err();
        assert!(refused.is(if number < 5 { Code::LoginFailed } else { Code::LoginLocked }), "{number}: {refused}");
    }
    from(PASSWORD, "192.0.2.8:1".into()).await.unwrap();
    // A hundred failures from everywhere lock the account, but not where the user logged in before.
    for number in 0..95 {
        from("wrong password", format!("[2001:db8:{number:x}::1]:1")).await.unwrap_err();
    }
    assert!(from(PASSWORD, "203.0.113.5:1".into()).await.unwrap_err().is(Code::LoginLocked));
    from(PASSWORD, "192.0.2.7:2".into()).await.unwrap();
    from(PASSWORD, "192.0.2.8:2".into()).await.unwrap();
    cluster.clock.advance(Duration::from_secs(61));
    from(PASSWORD, "203.0.113.5:1".into()).await.unwrap();
}

#[tokio::test]
async fn parallel_guesses_do_not_outrun_the_counter() {
    let cluster = Cluster::start().await;
    cluster.user("alice", &["access"], &["app"]).await;
    let guesses = (0..30).map(|number| {
        let password = format!("guess {number}");
        let cluster = &cluster;
        async move { login(cluster, "alice", &password, "").await.unwrap_err() }
    });
    let answers = futures::future::join_all(guesses).await;
    let judged = answers.iter().filter(|answer| answer.is(Code::LoginFailed)).count();
    assert_eq!(judged, 5, "{answers:?}");
    assert!(login(&cluster, "alice", PASSWORD, "").await.unwrap_err().is(Code::LoginLocked));
}

#[tokio::test]
async fn a_lock_keeps_a_user_out_and_ends_what_his_certificate_may() {
    let cluster = Cluster::start().await;
    let (mut alice, ..) = cluster.logged_in("alice", &["access"], &["app"]).await;
    assert_eq!(names(&mut alice, "user").await, ["alice"]);
    let lock = document(
        serde_json::json!({"kind": "lock", "version": "v1", "metadata": {"name": "l"}, "spec": {"target": {"user": "alice"}, "message": "incident 7"}}),
    );
    create(&mut cluster.admin(), &lock).await.unwrap();
    let refused = error(alice.list(pb::ListRequest { kind: "user".into(), ..Default::default() }).await);
    assert_eq!((refused.code.as_str(), refused.message.as_str()), (Code::AccessLocked.as_str(), "a lock is in force: incident 7"));
    assert!(login(&cluster, "alice", PASSWORD, "").await.unwrap_err().is(Code::AccessLocked));
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_an_open_connection() {
    let cluster = Cluster::start().await;
    let (mut alice, ..) = cluster.logged_in("alice", &["access"], &["app"]).await;
    names(&mut alice, "user").await;
    cluster.clock.advance(Duration::from_secs(12 * 3600));
    assert!(error(alice.list(pb::ListRequest { kind: "user".into(), ..Default::default() }).await).is(Code::LoginExpired));
}

#[tokio::test]
async fn an_invitation_works_once_until_it_ends_and_is_replaced_by_the_next() {
    let cluster = Cluster::with(|_| {}).await;
    let mut admin = cluster.admin();
    create(&mut admin, &user_document("alice", &["access"], &["app"])).await.unwrap();
    let invite = |ttl| {
        let mut admin = admin.clone();
        async move { admin.create_invite(pb::CreateInviteRequest { user: "alice".into(), ttl }).await }
    };
    assert!(error(invite(49 * 3600).await).is(Code::Malformed));
    let old = invite(0).await.unwrap().into_inner();
    let new = invite(0).await.unwrap().into_inner();
    let mut proxy = cluster.proxy().await;
    let show = |secret: &str| pb::GetInviteRequest { secret: secret.to_owned() };
    assert!(error(proxy.get_invite(show(&old.secret)).await).is(Code::InviteInvalid));
    let first = proxy.get_invite(show(&new.secret)).await.unwrap().into_inner();
    assert_eq!(proxy.get_invite(show(&new.secret)).await.unwrap().into_inner(), first);
    let otp = otp_code(&secret_of(&first.otp_url), cluster.now()).unwrap();
    let accept = |password: &str, otp: &str| pb::AcceptInviteRequest {
        secret: new.secret.clone(),
        password: password.into(),
        otp: otp.into(),
        client_addr: "192.0.2.7:1".into(),
    };
    assert!(error(proxy.accept_invite(accept("short", &otp)).await).is(Code::PasswordWeak));
    assert!(error(proxy.accept_invite(accept(PASSWORD, "000000")).await).is(Code::LoginFailed));
    proxy.accept_invite(accept(PASSWORD, &otp)).await.unwrap();
    assert!(error(proxy.accept_invite(accept(PASSWORD, &otp)).await).is(Code::InviteInvalid));
    assert!(error(proxy.get_invite(show(&new.secret)).await).is(Code::InviteInvalid));
    login(&cluster, "alice", PASSWORD, &otp).await.unwrap();

    let late = invite(60).await.unwrap().into_inner();
    cluster.clock.advance(Duration::from_secs(60));
    assert!(error(proxy.get_invite(show(&late.secret)).await).is(Code::InviteInvalid));
    assert_eq!((events(&cluster, "user.invite.create").await.len(), events(&cluster, "user.password_change").await.len()), (3, 1));
}

#[tokio::test]
async fn attack_row_10_a_deleted_users_password_and_invitation_are_not_the_next_ones() {
    let cluster = Cluster::start().await;
    cluster.user("alice", &["access"], &["app"]).await;
    let mut admin = cluster.admin();
    let invite = admin.create_invite(pb::CreateInviteRequest { user: "alice".into(), ttl: 0 }).await.unwrap().into_inner();
    delete(&mut admin, "user", "alice").await.unwrap();
    assert!(login(&cluster, "alice", PASSWORD, "").await.unwrap_err().is(Code::LoginFailed));
    create(&mut admin, &user_document("alice", &["editor"], &[])).await.unwrap();
    assert!(login(&cluster, "alice", PASSWORD, "").await.unwrap_err().is(Code::LoginFailed));
    assert!(error(cluster.proxy().await.get_invite(pb::GetInviteRequest { secret: invite.secret }).await).is(Code::InviteInvalid));
}

#[tokio::test]
async fn the_second_factor_follows_the_preference_of_the_moment() {
    let cluster = Cluster::start().await;
    cluster.user("alice", &["access"], &["app"]).await;
    login(&cluster, "alice", PASSWORD, "").await.unwrap();
    let mut admin = cluster.admin();
    let mut preference = get(&mut admin, "cluster_auth_preference", "cluster-auth-preference").await.unwrap();
    assert_eq!(preference.metadata.labels["lockgate/origin"], "config-file");
    preference.spec["second_factor"] = "otp".into();
    let changed = update(&mut admin, &preference).await.unwrap();
    assert_eq!(changed.metadata.labels["lockgate/origin"], "dynamic");
    // Nothing is enrolled: the password alone is no longer enough.
    assert!(login(&cluster, "alice", PASSWORD, "").await.unwrap_err().is(Code::LoginFailed));
    let ping = cluster.stranger().ping(pb::PingRequest {}).await.unwrap().into_inner();
    assert_eq!(ping.second_factor, "otp");
}

#[tokio::test]
async fn attack_row_24_a_flood_of_logins_is_shed_and_others_get_through() {
    let cluster = Cluster::start().await;
    cluster.user("alice", &["access"], &["app"]).await;
    let mut proxy = cluster.proxy().await;
    for number in 0..200 {
        let mut request = login_request(&format!("guess{number}"), "wrong password", "", &Keys::new());
        request.client_addr = format!("198.51.100.66:{}", 1000 + number);
        assert!(error(proxy.login(request).await).is(Code::LoginFailed), "{number}");
    }
    let mut flood = login_request("alice", PASSWORD, "", &Keys::new());
    flood.client_addr = "198.51.100.66:9999".into();
    assert!(error(proxy.login(flood).await).is(Code::RateLimited));
    login(&cluster, "alice", PASSWORD, "").await.unwrap();
}
