//! Logging in at a Proxy that is good, wrong, old, foreign, or not one at all.

use super::*;
use crate::testing::Cluster;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Response, service::service_fn};
use hyper_util::rt::TokioIo;
use net::{
    clock::SystemClock,
    task::Group,
    tls::{self, Certificates, ClientAuth},
};
use std::{convert::Infallible, sync::Mutex};
use types::{HostId, SystemRole};
use wire::hello::HEADER;

/// Method, path, body, and whether the header of versions was there.
type Heard = Arc<Mutex<Vec<(String, Bytes, bool)>>>;
type Answers = dyn Fn(&str, &Bytes) -> (u16, String) + Send + Sync;

struct Proxy {
    addr: ProxyAddr,
    heard: Heard,
    _group: Group,
}

/// Serves HTTPS with a certificate of `cluster`; pings say `version`.
async fn proxy(cluster: &Cluster, version: &'static str, answer: impl Fn(&str, &Bytes) -> (u16, String) + Send + Sync + 'static) -> Proxy {
    let clock = SystemClock::shared();
    let host = cluster.host(HostId::from_uuid(uuid::Uuid::from_u128(2)), "proxy1", &[SystemRole::Proxy]);
    let authorities = cluster.trust().swap().unwrap();
    let config = tls::server_config(Certificates::fixed(&host.tls), ClientAuth::None, &authorities, &[alpn::HTTP], &clock).unwrap();
    let listener = net::listen::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let addr = format!("localhost:{}", listener.local_addr().unwrap().port()).parse().unwrap();
    let (heard, group) = (Heard::default(), Group::new("test proxy"));
    let (record, answer, connections): (_, Arc<Answers>, _) = (heard.clone(), Arc::new(answer), group.clone());
    group.spawn("accept", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(accepted) = tls::accept(stream, config.clone(), &authorities, &clock, tls::DEADLINE).await else { continue };
            let (record, answer) = (record.clone(), answer.clone());
            let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let (record, answer) = (record.clone(), answer.clone());
                async move {
                    let what = format!("{} {}", request.method(), request.uri());
                    let versions = request.headers().contains_key(HEADER);
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let (status, text) = match what.as_str() {
                        "GET /webapi/ping" if !version.is_empty() => {
                            (200, format!(r#"{{"server_version":"{version}","auth":{{"second_factor":"otp"}}}}"#))
                        }
                        other => answer(other, &body),
                    };
                    record.lock().unwrap().push((what, body, versions));
                    Ok::<_, Infallible>(Response::builder().status(status).body(Full::new(Bytes::from(text))).unwrap())
                }
            });
            let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(accepted.stream), service);
            connections.spawn("connection", async move { serving.await.is_ok() });
        }
    });
    Proxy { addr, heard, _group: group }
}

fn now() -> Time {
    std::time::SystemTime::now().into()
}
fn demo() -> Arc<Cluster> {
    Arc::new(Cluster::new("demo", now()))
}
fn web(proxy: &Proxy, trust: WebTrust) -> Web {
    Web::new(proxy.addr.clone(), trust, &Version::new(8, 0, 0), &SystemClock::shared()).unwrap()
}
fn pins(cluster: &Cluster) -> WebTrust {
    WebTrust::Pins(cluster.trust().pins())
}
fn login() -> Login {
    Login {
        user: UserName::new("alice").unwrap(),
        password: Secret::new("correct horse"),
        otp: Some(Secret::new("123456")),
        ttl: Some(Ttl::hours(1)),
    }
}

/// What a good Proxy answers to a login; `other_key` puts another key into the certificates.
fn certify(cluster: &Cluster, body: &Bytes, other_key: Option<&KeyPair>) -> String {
    let asked: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!(
        (asked["user"].as_str(), asked["password"].as_str(), asked["otp"].as_str(), asked["ttl"].as_str()),
        (Some("alice"), Some("correct horse"), Some("123456"), Some("1h"))
    );
    let sent = (
        asked["ssh_public_key"].as_str().unwrap().to_owned(),
        BASE64.decode(asked["tls_public_key"].as_str().unwrap().as_bytes()).unwrap(),
    );
    let (ssh, spki) = other_key.map_or(sent, |key| (key.ssh_public().unwrap(), key.spki_der()));
    let (ssh, tls) = cluster.user_certificates(&ssh, &spki, &cluster.user_identity("alice", &["root"]));
    serde_json::json!({"ssh_certificate": ssh, "tls_certificate": tls, "authorities": cluster.authorities(), "cluster_name": "demo", "user": "alice", "expires": cluster.now, "new_field": 1}).to_string()
}

fn heard_a_password(proxy: &Proxy) -> bool {
    proxy.heard.lock().unwrap().iter().any(|(_, body, _)| body.windows(13).any(|part| part == b"correct horse"))
}

#[tokio::test]
async fn a_login_gives_credentials_for_a_key_that_never_left() {
    let demo = demo();
    let signer = demo.clone();
    let proxy = proxy(&demo, "8.2.0", move |what, body| {
        assert_eq!(what, "POST /webapi/login");
        (200, certify(&signer, body, None))
    })
    .await;
    let web = web(&proxy, pins(&demo));
    assert_eq!(web.ping().await.unwrap().second_factor(), "otp");
    let alice = web.login(&login()).await.unwrap();
    assert_eq!((alice.user().as_str(), alice.cluster().as_str()), ("alice", "demo"));
    assert!(!alice.is_expired(now()) && alice.trust.host_ssh == demo.trust().host_ssh);
    let heard = proxy.heard.lock().unwrap();
    assert!(heard.iter().all(|(_, _, versions)| *versions), "every request says its version");
}

#[tokio::test]
async fn an_unknown_certificate_comes_back_as_a_question_and_nothing_is_said() {
    let demo = demo();
    let signer = demo.clone();
    let proxy = proxy(&demo, "8.0.0", move |_, body| (200, certify(&signer, body, None))).await;
    let unknown = web(&proxy, WebTrust::SystemAnd(Vec::new()));
    let error = unknown.login(&login()).await.unwrap_err();
    let LoginError::Untrusted { fingerprint, authority, .. } = &error else { panic!("{error:?}") };
    assert!(fingerprint.starts_with("sha256:") && fingerprint.len() == 71);
    assert_eq!(Some(authority.clone().unwrap()), demo.trust().pins().into_iter().next());
    assert!(error.public().is(Code::Certificate) && error.public().hint.unwrap().contains("--ca-pin=sha256:"));
    assert!(proxy.heard.lock().unwrap().is_empty());
    // The user compared, and said yes.
    web(&proxy, WebTrust::Pins(authority.clone().into_iter().collect())).login(&login()).await.unwrap();
    // A kept authority is enough the next time.
    web(&proxy, WebTrust::SystemAnd(demo.trust().host_tls)).ping().await.unwrap();
}

#[tokio::test]
async fn a_pin_that_does_not_match_is_refused_before_anything_is_said() {
    let (demo, other) = (demo(), Cluster::new("other", now()));
    let proxy = proxy(&demo, "8.0.0", |_, _| (500, String::new())).await;
    let error = web(&proxy, pins(&other)).login(&login()).await.unwrap_err().public();
    // And the wrong Proxy's own pin is not offered as the cure.
    let theirs = demo.trust().pins().first().unwrap().to_string();
    assert!(error.is(Code::CaPin) && !error.hint.as_ref().unwrap().contains(&theirs), "{error:?}");
    assert!(proxy.heard.lock().unwrap().is_empty());
}

#[tokio::test]
async fn g4_a_password_is_not_told_to_a_proxy_whose_version_does_not_fit() {
    let demo = demo();
    for (version, code) in [("7.9.9", Code::VersionTooNew), ("10.0.0", Code::VersionTooOld), ("eight", Code::VersionUnreadable)] {
        let proxy = proxy(&demo, version, |_, _| (500, String::new())).await;
        let error = web(&proxy, pins(&demo)).login(&login()).await.unwrap_err().public();
        assert!(error.is(code) && error.hint.is_some(), "{version}: {error:?}");
        assert!(!heard_a_password(&proxy));
        // G1: anyone may ask.
        assert_eq!(web(&proxy, pins(&demo)).ping().await.unwrap().server_version, version);
    }
}

#[tokio::test]
async fn errors_of_the_proxy_arrive_as_they_were_meant() {
    let demo = demo();
    let check = async |status: u16, body: &'static str, want: Code| {
        let proxy = proxy(&demo, "8.0.0", move |_, _| (status, body.to_owned())).await;
        let error = web(&proxy, pins(&demo)).login(&login()).await.unwrap_err().public();
        assert!(error.is(want), "{status} {body}: {error:?}");
    };
    check(401, r#"{"code":"LG-LOGIN-001","message":"wrong user name, password or code"}"#, Code::LoginFailed).await;
    check(426, r#"{"code":"LG-VERSION-002","message":"newer than the server","hint":"use 7"}"#, Code::VersionTooNew).await;
    check(502, "<html>Bad Gateway</html>", Code::VersionProtocol).await;
    check(200, "<html>Welcome</html>", Code::VersionProtocol).await;
    check(302, "", Code::VersionProtocol).await;
}

#[tokio::test]
async fn a_stranger_on_the_port_is_recognised() {
    let demo = demo();
    let proxy = proxy(&demo, "", |_, _| (404, "nothing here".into())).await;
    assert!(web(&proxy, pins(&demo)).ping().await.unwrap_err().public().is(Code::VersionProtocol));
    let endless = self::proxy(&demo, "8.0.0", |_, _| (200, "x".repeat(2 << 20))).await;
    let error = web(&endless, pins(&demo)).login(&login()).await.unwrap_err();
    assert!(matches!(&error, LoginError::NotLockgate { why, .. } if why.contains("longer than")), "{error:?}");
    let nobody: ProxyAddr = "127.0.0.1:1".parse().unwrap();
    let web = Web::new(nobody, pins(&demo), &Version::new(8, 0, 0), &SystemClock::shared()).unwrap();
    assert!(web.ping().await.unwrap_err().public().is(Code::Unreachable));
}

#[tokio::test]
async fn certificates_for_another_key_are_refused() {
    let demo = demo();
    let signer = demo.clone();
    let other = KeyPair::generate().unwrap();
    let proxy = proxy(&demo, "8.0.0", move |_, body| (200, certify(&signer, body, Some(&other)))).await;
    let error = web(&proxy, pins(&demo)).login(&login()).await.unwrap_err();
    assert!(matches!(error, LoginError::Credentials { .. }), "{error:?}");
}

#[tokio::test]
async fn an_invitation_is_looked_at_and_taken() {
    let demo = demo();
    let proxy = proxy(&demo, "8.0.0", |what, body| match what {
        "GET /webapi/invite/s3cret-s3cret" => {
            (200, r#"{"user":"bob","expires":"2030-01-01T00:00:00Z","otp_url":"otpauth://totp/x"}"#.into())
        }
        "POST /webapi/invite/s3cret-s3cret" => {
            assert_eq!(body.as_ref(), br#"{"password":"new password","otp":"123456"}"#);
            (200, "{}".into())
        }
        other => (404, other.to_owned()),
    })
    .await;
    let web = web(&proxy, pins(&demo));
    let secret = Secret::new("s3cret-s3cret");
    let invite = web.invite(&secret).await.unwrap();
    assert_eq!((invite.user.as_str(), invite.otp_url.as_str()), ("bob", "otpauth://totp/x"));
    web.accept_invite(&secret, &Secret::new("new password"), Some(&Secret::new("123456"))).await.unwrap();
}

#[test]
fn invitation_links_are_read_and_never_repeated() {
    let link: InviteLink = "https://proxy.example.com:3080/web/invite/abcDEF-_123456".parse().unwrap();
    assert_eq!((link.proxy.to_string().as_str(), link.secret.expose()), ("proxy.example.com:3080", "abcDEF-_123456"));
    for bad in [
        "",
        "http://p/web/invite/abcdefghijk",
        "https://p/web/invite/",
        "https://p/web/invite/a b c d e f g",
        "https://p/web/invite/../../etc",
        "https://p/other/abcdefghijk",
    ] {
        let error = bad.parse::<InviteLink>().unwrap_err();
        assert!(!error.to_string().contains("abcdefghijk"), "{error}");
    }
}
