//! Hosts that are refused for their version, in the inventory; and two builds of one version, which do not work together.

use crate::{
    fixture::*,
    several::{Shared, soon},
};
use std::{sync::Arc, time::Duration};
use store::{Batch, Key};
use types::{Code, Document, SystemRole, Version};
use wire::{api as pb, hello::Hello};

fn saying(version: (u64, u64, u64), role: &str) -> Hello {
    Hello::ours(&Version::new(version.0, version.1, version.2), role)
}

async fn member(cluster: &Cluster, id: u128) -> Option<Document> {
    get(&mut cluster.admin(), "member", &host_id(id).to_string()).await.ok()
}

fn report(id: u128, version: &str, releases: &[&str]) -> pb::ReportQuarantineRequest {
    let refused = br#"{"code":"LG-VERSION-001","message":"too old\u001b[2J"}"#;
    let releases = releases.iter().map(|&release| release.to_owned()).collect();
    pb::ReportQuarantineRequest {
        host_id: host_id(id).to_string(),
        version: version.into(),
        refused: refused.to_vec().into(),
        other_build: false,
        releases,
    }
}

#[tokio::test]
async fn a_host_that_is_refused_for_its_version_is_listed_until_it_comes_back() {
    let shared = Shared::new();
    let cluster = shared.start(1).await;
    let (_, _, identity) = cluster.member(11, SystemRole::Node).await;
    let check = async |version: (u64, u64, u64), code: Code, next: &str| {
        let refused =
            error(cluster.client_saying(Some(&identity), saying(version, "node")).heartbeat(member_only(beat(11, "x", &[], 0))).await);
        assert!(refused.is(code), "{refused}");
        let text = format!("{}.{}.{}", version.0, version.1, version.2);
        let listed = soon(&shared, &[&cluster], "the quarantine", || async {
            member(&cluster, 11).await.filter(|listed| listed.spec["version"] == text.as_str())
        })
        .await;
        assert_eq!(
            (listed.spec["state"].as_str(), listed.spec["quarantine"]["next"].as_str()),
            (Some("quarantined"), Some(next)),
            "{listed:?}"
        );
        assert_eq!((&listed.spec["hostname"], &listed.spec["roles"]), (&"node11".into(), &serde_json::json!(["node"])));
        assert!(listed.spec["quarantine"]["why"].as_str().unwrap().contains(&text) && listed.metadata.expires.is_some());
        listed.spec["quarantine"]["since"].clone()
    };
    let since = check((6, 2, 0), Code::VersionTooOld, "the latest 7").await;
    cluster.clock.advance(Duration::from_secs(120));
    assert_eq!(check((3, 0, 0), Code::VersionTooOld, "the latest 4").await, since, "it is one quarantine");
    check((9, 0, 0), Code::VersionAuthOlder, "8.1.0").await;
    check((10, 0, 0), Code::VersionAuthOlder, "8.1.0").await;
    cluster.client(Some(&identity), "node").heartbeat(member_only(beat(11, "x", &[], 0))).await.unwrap();
    let back = member(&cluster, 11).await.unwrap();
    assert_eq!((back.spec["state"].as_str(), back.spec.get("quarantine")), (Some(""), None), "{back:?}");
    assert_eq!(back.spec["content"], wire::content::digest());
    // A heartbeat cannot say of itself that it is quarantined, nor be of a build that the handshake did not name.
    let mut lying = beat(11, "x", &[], 0);
    let mut claimed = Document::from_json(&lying.member).unwrap();
    claimed.spec["state"] = "quarantined".into();
    claimed.spec["quarantine"] = serde_json::json!({"since": "2027-01-15T08:00:00Z"});
    claimed.spec["content"] = "sha256:me".into();
    lying.member = claimed.to_json().into();
    cluster.client(Some(&identity), "node").heartbeat(member_only(lying)).await.unwrap();
    let back = member(&cluster, 11).await.unwrap();
    assert_eq!((back.spec["state"].as_str(), back.spec.get("quarantine")), (Some(""), None));
    assert_eq!(back.spec["content"], wire::content::digest());
}

#[tokio::test]
async fn what_another_release_says_of_a_host_outlives_its_quarantine() {
    let shared = Shared::new();
    let cluster = shared.start(1).await;
    let (mut host, _, identity) = cluster.member(11, SystemRole::Node).await;
    let mut beats = beat(11, "x", &[], 0);
    let mut says = Document::from_json(&beats.member).unwrap();
    says.spec["rack"] = serde_json::json!({"row": 7});
    says.spec["capabilities"] = serde_json::json!(["hand-over"]);
    says.spec["platform"] = serde_json::json!({"os": "linux", "arch": "amd64", "kernel": "6.1"});
    beats.member = says.to_json().into();
    host.heartbeat(member_only(beats)).await.unwrap();
    let refuse = async |version: (u64, u64, u64)| {
        let refused = cluster.client_saying(Some(&identity), saying(version, "node")).heartbeat(member_only(beat(11, "x", &[], 0))).await;
        assert!(error(refused).is(Code::VersionTooOld));
        let text = format!("{}.{}.{}", version.0, version.1, version.2);
        soon(&shared, &[&cluster], "the quarantine", || async {
            member(&cluster, 11).await.filter(|listed| listed.spec["version"] == text.as_str())
        })
        .await
    };
    let mut listed = refuse((6, 2, 0)).await;
    assert_eq!((&listed.spec["state"], &listed.spec["rack"]["row"]), (&"quarantined".into(), &7.into()));
    assert_eq!((&listed.spec["platform"]["kernel"], &listed.spec["capabilities"][0]), (&"6.1".into(), &"hand-over".into()));
    // An Auth Service of a later release adds to it, inside too.
    listed.spec["quarantine"]["wave"] = 3.into();
    listed.metadata.extra.insert("owner".into(), "team".into());
    let put = store::documents::encode(&listed).unwrap().1;
    let mut batch = Batch::new(None);
    batch.ops.push(put);
    shared.store.commit(batch).await.unwrap();
    soon(&shared, &[&cluster], "what was added", || async {
        member(&cluster, 11).await.filter(|listed| listed.spec["quarantine"]["wave"] == 3)
    })
    .await;
    let listed = refuse((5, 2, 0)).await;
    assert_eq!((&listed.spec["quarantine"]["wave"], &listed.metadata.extra["owner"]), (&3.into(), &"team".into()));
}

#[tokio::test]
async fn a_proxy_reports_hosts_of_the_books_and_hears_what_hosts_may_run() {
    let shared = Shared::new();
    let cluster = shared.start(1).await;
    let (mut host, _, identity) = cluster.member(11, SystemRole::Node).await;
    let mut proxy = cluster.proxy().await;
    let reply = proxy.report_quarantine(report(11, "6.0.0", &["7.2.0", "7.9.0", "8.4.0", "not one"])).await.unwrap().into_inner();
    assert_eq!((reply.lo, reply.hi, reply.production), (7, 8, true));
    let listed = member(&cluster, 11).await.unwrap();
    assert_eq!((listed.spec["state"].as_str(), listed.spec["quarantine"]["next"].as_str()), (Some("quarantined"), Some("7.9.0")));
    assert_eq!(listed.spec["quarantine"]["why"], "too old[2J");
    // Refused here too, which has no mirror: the release that the Proxy found stays.
    cluster.clock.advance(Duration::from_secs(90));
    let old = cluster.client_saying(Some(&identity), saying((6, 0, 0), "node"));
    assert!(error({ old }.heartbeat(member_only(beat(11, "x", &[], 0))).await).is(Code::VersionTooOld));
    let now = cluster.now();
    let here = [&cluster];
    let again = soon(&shared, &here, "noted again", || async {
        member(&cluster, 11).await.filter(|listed| listed.spec["last_seen"] == serde_json::json!(now))
    });
    assert_eq!(again.await.spec["quarantine"]["next"], "7.9.0");
    // An id that nobody has leaves no trace, and neither does one that reports as it should.
    proxy.report_quarantine(report(4711, "6.0.0", &[])).await.unwrap();
    assert!(member(&cluster, 4711).await.is_none());
    host.heartbeat(member_only(beat(11, "x", &[], 0))).await.unwrap();
    proxy.report_quarantine(report(11, "8.1.0", &[])).await.unwrap();
    assert_eq!(member(&cluster, 11).await.unwrap().spec["state"], "");
    // Until it has fallen silent: then no Proxy takes it.
    cluster.clock.advance(Duration::from_secs(300));
    proxy.report_quarantine(report(11, "8.1.0", &[])).await.unwrap();
    assert_eq!(member(&cluster, 11).await.unwrap().spec["state"], "quarantined");
    let many = vec!["7.0.0"; 65];
    assert!(error(proxy.report_quarantine(report(11, "6.0.0", &many)).await).is(Code::Malformed));
    assert!(
        error(proxy.report_quarantine(pb::ReportQuarantineRequest { host_id: "../x".into(), ..report(11, "6.0.0", &[]) }).await)
            .is(Code::Malformed)
    );
}

#[tokio::test]
async fn attack_row_13_only_a_proxy_says_that_a_host_is_quarantined() {
    let cluster = Cluster::start().await;
    let (mut node, ..) = cluster.member(11, SystemRole::Node).await;
    assert!(error(node.report_quarantine(report(11, "6.0.0", &[])).await).is(Code::AccessDenied));
    assert!(error(cluster.admin().report_quarantine(report(11, "6.0.0", &[])).await).is(Code::AccessDenied));
    let (mut user, ..) = cluster.logged_in("alice", &["editor"], &["app"]).await;
    assert!(error(user.report_quarantine(report(11, "6.0.0", &[])).await).is(Code::AccessDenied));
    assert!(error(cluster.stranger().report_quarantine(report(11, "6.0.0", &[])).await).is(Code::LoginRequired));
    assert!(member(&cluster, 11).await.is_none());
}

#[tokio::test]
async fn another_build_of_the_auth_services_version_is_refused_and_listed() {
    let shared = Shared::new();
    let cluster = shared.start(1).await;
    let (_, _, identity) = cluster.member(11, SystemRole::Node).await;
    // It was there a moment ago, with the right build.
    cluster.client(Some(&identity), "node").heartbeat(member_only(beat(11, "x", &[], 0))).await.unwrap();
    let other = Hello { content: Some("sha256:0011".into()), ..saying((8, 1, 0), "node") };
    let refused = error(cluster.client_saying(Some(&identity), other).heartbeat(member_only(beat(11, "x", &[], 0))).await);
    assert!(refused.is(Code::VersionBuild) && refused.message.contains("content 0011"), "{refused}");
    let here = [&cluster];
    let listed = soon(&shared, &here, "the quarantine", || async {
        member(&cluster, 11).await.filter(|listed| listed.spec["state"] == "quarantined")
    });
    let listed = listed.await;
    assert_eq!((&listed.spec["quarantine"]["next"], &listed.spec["content"]), (&"8.1.0".into(), &"sha256:0011".into()));
    // A release of before says nothing of its build; another patch of this major differs by right; people are not refused.
    for hello in
        [Hello { content: None, ..saying((8, 1, 0), "node") }, Hello { content: Some("sha256:0011".into()), ..saying((8, 1, 1), "node") }]
    {
        cluster.client_saying(Some(&identity), hello).heartbeat(member_only(beat(11, "x", &[], 0))).await.unwrap();
    }
    let person = Hello { content: Some("sha256:0011".into()), ..saying((8, 1, 0), "tsh") };
    cluster.client_saying(None, person).ping(pb::PingRequest {}).await.unwrap();
}

#[tokio::test]
async fn two_auth_services_of_one_version_and_two_builds_do_not_serve_one_cluster() {
    let shared = Shared::new();
    let seat = |content: Option<&str>, version: &str| {
        let mut seat =
            serde_json::json!({"name": "auth3", "address": "10.0.0.3:3025", "version": version, "boot_id": "b", "acknowledged": 1});
        if let Some(content) = content {
            seat["content"] = content.into();
        }
        seat.to_string().into_bytes()
    };
    let key = || Key::new(["internal", "auth", &host_id(3).to_string()]).unwrap();
    let ends = net::clock::Clock::now(&shared.clock).plus(Duration::from_secs(60));
    // The cluster lives, and its first Auth Service has gone.
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Cluster::from(dir.clone(), shared.config(1, dir.path()), shared.clock.clone(), "8.1.0").await.stop().await;
    let start = async |content: Option<&str>, version: &str| {
        shared.store.commit(Batch::new(None).put(key(), seat(content, version), Some(ends))).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let before = shared.store.revision().await.unwrap();
        let built = auth::build(shared.config(2, dir.path()), world(&shared.clock, "8.1.0")).await;
        (built.err().map(|error| error.public()), shared.store.revision().await.unwrap() == before)
    };
    let (refused, untouched) = start(Some("sha256:00112233445566778899"), "8.1.0").await;
    let refused = refused.unwrap();
    assert!(refused.is(Code::VersionBuild) && untouched, "{refused}");
    assert!(
        refused.message.contains("auth3 at 10.0.0.3:3025") && refused.message.contains("8.1.0") && refused.message.contains("001122334455"),
        "{refused}"
    );
    assert!(refused.hint.unwrap().contains("lockgate version"));
    for (content, version) in [(None, "8.1.0"), (Some(wire::content::digest()), "8.1.0"), (Some("sha256:00"), "8.1.1")] {
        let (refused, _) = start(content, version).await;
        assert_eq!(refused, None, "{content:?} {version}");
    }
}

#[tokio::test]
async fn a_role_that_somebody_has_is_not_deleted() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    for user in ["alice", "bob"] {
        create(&mut admin, &user_document(user, &["access"], &["app"])).await.unwrap();
    }
    let refused = delete(&mut admin, "role", "access").await.unwrap_err();
    assert!(refused.is(Code::Conflict), "{refused}");
    assert_eq!(refused.message, "role/access is in use: users with it are alice, bob");
    assert_eq!(refused.hint.as_deref(), Some("give them other roles first: tctl users update alice --set-roles=<roles>"));
    for user in ["alice", "bob"] {
        delete(&mut admin, "user", user).await.unwrap();
    }
    delete(&mut admin, "role", "access").await.unwrap();
}
