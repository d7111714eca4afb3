//! The web API and the pages.

use crate::{
    ca::now,
    fake_auth::{PASSWORD, SECRET},
    rig::{Rig, SOON, Setup, version},
};
use client::login::{Login, Web, WebTrust};
use proxy::Config;
use types::{Code, Secret, Ttl, UserName, Version};
use wire::hello::{HEADER, Hello};

fn hello(version: &str) -> String {
    serde_json::to_string(&Hello { version: version.into(), ..Hello::ours(&Version::new(0, 0, 0), "tsh") }).unwrap()
}

fn web(rig: &Rig) -> Web {
    let proxy = format!("localhost:{}", rig.addr.port()).parse().unwrap();
    Web::new(proxy, WebTrust::Pins(rig.cluster.trust().pins()), &version(), &rig.clock()).unwrap()
}

#[tokio::test]
async fn g1_a_half_started_proxy_tells_its_version() {
    let setup = Setup { synced: false, ..Setup::default() };
    setup.auth.go_away();
    let rig = Rig::with(setup).await;
    for path in ["/webapi/ping", "/webapi/find", "/webapi/ping/local"] {
        let answer = rig.get(path).await;
        let json = answer.json();
        assert_eq!(
            (answer.status, &json["server_version"], &json["min_client_version"]),
            (200, &"8.3.7".into(), &"7.0.0".into()),
            "{path}"
        );
        assert_eq!((&json["cluster_name"], &json["auth"]["second_factor"]), (&"example".into(), &"otp".into()));
        assert_eq!(json["ca_pins"][0].as_str(), rig.cluster.trust().pins().first().map(ToString::to_string).as_deref());
    }
    let other = rig.get("/webapi/ping/github").await;
    assert!(other.is(404, Code::NotFound) && other.json()["min_client_version"] == "7.0.0");
    // Also to clients that are refused everything else.
    assert_eq!(rig.http("GET", "/webapi/ping", &[(HEADER, &hello("3.0.0"))], "").await.status, 200);
    let denied = rig.dial(&rig.cluster.user("alice", &["access"]), "node1").await.unwrap_err();
    assert!(denied.is(Code::Unavailable));
    assert!(rig.http("POST", "/webapi/login", &[(HEADER, &hello("8.0.0"))], &login_body()).await.is(503, Code::Unreachable));
}

fn login_body() -> String {
    serde_json::json!({ "user": "alice", "password": "x", "ssh_public_key": "", "tls_public_key": "" }).to_string()
}

#[tokio::test]
async fn g4_a_login_names_its_version_and_is_judged_by_it() {
    let rig = Rig::start().await;
    let check = async |headers: &[(&str, &str)], code: Code| {
        let answer = rig.http("POST", "/webapi/login", headers, &login_body()).await;
        assert!(answer.is(426, code) && answer.json()["hint"].is_string(), "{answer:?}");
        assert!(answer.head.contains("lockgate-hello: {\"version\":\"8.3.7\""));
    };
    check(&[], Code::VersionUnreadable).await;
    check(&[(HEADER, "nonsense")], Code::VersionUnreadable).await;
    check(&[(HEADER, &hello("6.0.0"))], Code::VersionTooOld).await;
    check(&[(HEADER, &hello("9.0.0"))], Code::VersionTooNew).await;
    let event = rig.auth.event(|event| event.is(types::EventKind::VersionRefused) && event.text("version") == "9.0.0").await;
    assert_eq!(event.text("edge"), "/webapi");
}

#[tokio::test]
async fn a_refusal_while_auth_is_away_is_reported_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let setup = || Setup { config: Config { spool_dir: Some(dir.path().join("proxy")), ..Config::default() }, ..Setup::default() };
    let mut rig = Rig::with(setup()).await;
    rig.auth.go_away();
    let refused = rig.http("POST", "/webapi/login", &[(HEADER, &hello("6.0.0"))], &login_body()).await;
    assert!(refused.is(426, Code::VersionTooOld));
    rig.shutdown.stop();
    tokio::time::timeout(SOON, rig.ended.wait_for(|ended| *ended)).await.expect("the end").unwrap();
    assert_eq!(rig.metrics.events_lost.value(), 0);
    drop(rig);
    let rig = Rig::with(setup()).await;
    let event = rig.auth.event(|event| event.is(types::EventKind::VersionRefused)).await;
    assert_eq!(event.text("version"), "6.0.0");
    assert!(!dir.path().join("proxy/events.jsonl").exists());
}

#[tokio::test]
async fn tsh_logs_in_and_takes_an_invitation() {
    let rig = Rig::start().await;
    let web = web(&rig);
    let mut login = Login { user: UserName::new("alice").unwrap(), password: Secret::new("wrong"), otp: None, ttl: Some(Ttl::hours(2)) };
    assert!(web.login(&login).await.unwrap_err().public().is(Code::LoginFailed));
    login.password = Secret::new(PASSWORD);
    let credentials = web.login(&login).await.unwrap();
    assert_eq!((credentials.user().as_str(), credentials.expires), ("alice", now().plus(std::time::Duration::from_secs(7200))));
    let ping = web.ping().await.unwrap();
    assert_eq!((ping.cluster_name.as_str(), ping.second_factor()), ("example", "otp"));

    let secret = Secret::new(SECRET);
    let invite = web.invite(&secret).await.unwrap();
    assert!(invite.user.as_str() == "alice" && invite.otp_url.starts_with("otpauth://"));
    let accept = async |password: &str, otp: &str| web.accept_invite(&secret, &Secret::new(password), Some(&Secret::new(otp))).await;
    assert!(accept(PASSWORD, "000000").await.unwrap_err().public().is(Code::LoginFailed));
    accept(PASSWORD, "123456").await.unwrap();
    assert!(web.invite(&Secret::new("f".repeat(32))).await.unwrap_err().public().is(Code::InviteInvalid));
}

#[tokio::test]
async fn an_invitation_is_taken_in_a_browser_without_script() {
    let rig = Rig::start().await;
    let path = format!("/web/invite/{SECRET}");
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let page = rig.get(&path).await;
    assert!(
        page.status == 200 && page.head.contains("content-type: text/html") && page.body.contains("<svg") && page.body.contains("alice")
    );
    assert!(!page.body.contains(SECRET) && !page.body.contains("<script"));
    let post = async |body: &str| rig.http("POST", &path, &form, body).await;
    let unequal = post("password=correct+horse+battery&again=other&otp=123456").await;
    assert!(unequal.status == 400 && unequal.body.contains("not the same") && unequal.body.contains("<form"));
    let weak = post("password=short&again=short&otp=123456").await;
    assert!(weak.status == 400 && weak.body.contains("less than 8") && weak.body.contains("<svg"));
    let wrong = post("password=correct+horse+battery&again=correct+horse+battery&otp=1").await;
    assert!(wrong.status == 401 && !wrong.body.contains("correct horse"));
    let done = post("password=correct+horse+battery&again=correct+horse+battery&otp=123456").await;
    assert!(done.status == 200 && done.body.contains("tsh login --proxy=proxy.example.com:3080 --user=alice"), "{done:?}");
    assert_eq!(rig.get("/web/invite/unknown-secret").await.status, 404);
}

#[tokio::test]
async fn attack_row_26_every_answer_of_every_route_has_the_headers() {
    let rig = Rig::start().await;
    let invite = format!("/web/invite/{SECRET}");
    let api_invite = format!("/webapi/invite/{SECRET}");
    let routes = [
        "/",
        "/web/style.css",
        "/webapi/ping",
        "/webapi/ping/local",
        "/webapi/ping/x",
        "/webapi/find",
        "/webapi/login",
        &invite,
        &api_invite,
        "/web/invite/nobody-knows",
        "/none",
        "/webapi/none",
        "/web/../etc/passwd",
        "/%00",
    ];
    for path in routes {
        for method in ["GET", "POST", "OPTIONS", "DELETE", "HEAD"] {
            let answer = rig.http(method, path, &[], "").await;
            for header in [
                "x-frame-options: deny",
                "frame-ancestors 'none'",
                "default-src 'none'",
                "x-content-type-options: nosniff",
                "referrer-policy: no-referrer",
                "cache-control: no-store",
            ] {
                assert!(answer.head.contains(header), "{method} {path}: no {header} in {}", answer.head);
            }
            assert!(!answer.head.contains("script") && !answer.head.contains("access-control-allow"), "{}", answer.head);
            assert!(!answer.head.contains("strict-transport-security"), "only with a given certificate");
        }
    }
}

#[tokio::test]
async fn what_is_not_there_or_too_large_is_an_error_with_a_code() {
    let rig = Rig::start().await;
    assert!(rig.get("/none").await.is(404, Code::NotFound));
    assert!(rig.http("DELETE", "/webapi/ping", &[], "").await.json()["code"] == Code::Usage.as_str());
    let large = rig.http("POST", "/webapi/login", &[(HEADER, &hello("8.0.0"))], &"x".repeat(70_000)).await;
    assert!(large.is(413, Code::TooLarge));
    let malformed =
        rig.http("POST", "/webapi/login", &[(HEADER, &hello("8.0.0"))], r#"{"user":"a","password":"hunter2","ssh_public_key":7}"#).await;
    assert!(malformed.is(400, Code::Malformed) && !malformed.body.contains("hunter2"), "{malformed:?}");
    let home = rig.get("/").await;
    assert!(home.body.contains("example") && home.body.contains("tsh login --proxy=proxy.example.com:3080"));
}
