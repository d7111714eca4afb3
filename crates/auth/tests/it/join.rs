//! Joining: tokens and their misuse, versions at the door, renewal.

use crate::fixture::*;
use std::time::Duration;
use types::{Code, SystemRole, Version};
use wire::{api as pb, hello::Hello, identity::parse_ssh_certificate};

fn ask(token: &str, id: u128, roles: &[&str]) -> pb::JoinRequest {
    let keys = Keys::new();
    pb::JoinRequest {
        token: token.into(),
        host_id: host_id(id).to_string(),
        node_name: "web-1".into(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        ssh_public_key: keys.ssh_line(),
        tls_public_key: keys.spki().into(),
        names: Vec::new(),
    }
}

async fn token(cluster: &Cluster, roles: &[&str], ttl: u64) -> pb::CreateTokenReply {
    let roles = roles.iter().map(|role| (*role).to_owned()).collect();
    let labels = [("env".to_owned(), "prod".to_owned())].into();
    cluster.admin().create_token(pb::CreateTokenRequest { roles, ttl, value: String::new(), labels }).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_host_joins_with_a_token_and_gets_its_names_and_labels() {
    let cluster = Cluster::start().await;
    let token = token(&cluster, &["node"], 0).await;
    assert!(token.name != token.token && !token.name.contains(&token.token));
    let reply = cluster.stranger().join(ask(&token.token, 11, &["node"])).await.unwrap().into_inner();
    assert_eq!((reply.cluster_name.as_str(), reply.labels["env"].as_str(), reply.authorities.len()), ("demo", "prod", 2));
    let mut principals = parse_ssh_certificate(&reply.ssh_certificate).unwrap().valid_principals().to_vec();
    principals.sort();
    let id = host_id(11).to_string();
    assert_eq!(principals, [id.clone(), format!("{id}.demo"), "web-1".into(), "web-1.demo".into()]);
    let joined = events(&cluster, "instance.join").await;
    assert_eq!((joined.len(), joined[0].code.as_str(), joined[0].text("hostname")), (1, "LJ002I", "web-1"));
    let all = String::from_utf8(
        std::fs::read(std::fs::read_dir(cluster.dir.path().join("auth/audit")).unwrap().next().unwrap().unwrap().path()).unwrap(),
    )
    .unwrap();
    assert!(!all.contains(&token.token), "the secret is in the audit log");
}

#[tokio::test]
async fn attack_row_30_a_token_is_good_for_nothing_but_what_it_was_made_for() {
    let cluster = Cluster::start().await;
    let node = token(&cluster, &["node"], 600).await;
    let mut stranger = cluster.stranger();
    let mut answers = Vec::new();
    let mut misuse = Vec::from([
        ask("", 11, &["node"]),
        ask("wrong", 11, &["node"]),
        ask(&node.name, 11, &["node"]),
        ask(&node.token, 11, &["proxy"]),
        ask(&node.token, 11, &["node", "proxy"]),
        ask(&node.token, 11, &["auth"]),
        ask(&node.token, 11, &["admin"]),
        ask(&node.token, 11, &["future"]),
        ask(&node.token, 11, &[]),
    ]);
    for request in misuse.drain(..) {
        answers.push(error(stranger.join(request).await));
    }
    stranger.join(ask(&node.token, 11, &["node"])).await.unwrap();
    cluster.clock.advance(Duration::from_secs(600));
    answers.push(error(stranger.join(ask(&node.token, 12, &["node"])).await));
    assert!(answers.iter().all(|answer| answer == &answers[0] && answer.is(Code::TokenInvalid)), "{answers:?}");
    // No login, no invitation is made with it either.
    let mut proxy = cluster.proxy().await;
    assert!(error(proxy.get_invite(pb::GetInviteRequest { secret: node.token.clone() }).await).is(Code::InviteInvalid));
    for roles in [vec!["admin"], vec!["auth"], vec!["what"], vec![]] {
        let roles = roles.into_iter().map(str::to_owned).collect();
        let answer = cluster.admin().create_token(pb::CreateTokenRequest { roles, ..Default::default() }).await;
        assert!(error(answer).is(Code::Malformed));
    }
}

#[tokio::test]
async fn attack_row_28_a_token_does_not_make_a_host_that_is_there_already_nor_a_trusted_name() {
    let cluster = Cluster::start().await;
    let (mut node, ..) = cluster.member(11, SystemRole::Node).await;
    node.heartbeat(beat(11, "x", &[], 0)).await.unwrap();
    let token = token(&cluster, &["node", "proxy"], 0).await;
    let mut stranger = cluster.stranger();
    assert!(error(stranger.join(ask(&token.token, 11, &["node"])).await).is(Code::AlreadyExists));
    assert!(error(stranger.join(ask(&token.token, 1, &["node"])).await).is(Code::AlreadyExists));
    let posing = pb::JoinRequest { node_name: host_id(11).to_string(), ..ask(&token.token, 20, &["node"]) };
    assert!(error(stranger.join(posing).await).is(Code::Malformed));
    let auth_name = wire::sni::role_name(&SystemRole::Auth, cluster.auth.cluster());
    let posing = pb::JoinRequest { names: vec![auth_name], ..ask(&token.token, 20, &["proxy"]) };
    assert!(error(stranger.join(posing).await).is(Code::Malformed));
    // An SSH host's TLS certificate carries no name of the open world: it could stand in for the Proxy.
    let posing = pb::JoinRequest { names: vec!["proxy.example.com".into()], ..ask(&token.token, 21, &["node"]) };
    let reply = stranger.join(posing).await.unwrap().into_inner();
    let leaf = net::tls::identity::certificates_from_pem(reply.tls_certificate.as_bytes()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf[0]).unwrap();
    let names: Vec<String> =
        parsed.subject_alternative_name().unwrap().unwrap().value.general_names.iter().map(ToString::to_string).collect();
    assert!(names.iter().all(|name| name.contains("lockgate.internal")), "{names:?}");
    let principals = parse_ssh_certificate(&reply.ssh_certificate).unwrap().valid_principals().to_vec();
    assert!(!principals.contains(&"proxy.example.com".to_owned()), "{principals:?}");
}

#[tokio::test]
async fn tokens_of_the_configuration_file_admit_their_roles() {
    let cluster =
        Cluster::with(|config| config.static_tokens = vec![([SystemRole::Node].into(), types::Secret::new("static-secret-0123"))]).await;
    let mut stranger = cluster.stranger();
    stranger.join(ask("static-secret-0123", 11, &["node"])).await.unwrap();
    assert!(error(stranger.join(ask("static-secret-0123", 12, &["proxy"])).await).is(Code::TokenInvalid));
    assert!(names(&mut cluster.admin(), "token").await.is_empty());
}

#[tokio::test]
async fn g4_versions_are_judged_at_the_door_and_refusals_are_audited_once_per_crash_loop() {
    let cluster = Cluster::start().await;
    let say = |version: &str, role: &str| Hello { version: version.into(), ..Hello::ours(&Version::new(8, 0, 0), role) };
    let mut check = Vec::new();
    for (version, want) in [
        ("8.1.0", None),
        ("7.9.0", None),
        ("6.9.9", Some(Code::VersionTooOld)),
        ("9.0.0", Some(Code::VersionTooNew)),
        ("", Some(Code::VersionUnreadable)),
        ("eight", Some(Code::VersionUnreadable)),
    ] {
        let got = cluster.client_saying(None, say(version, "tsh")).ping(pb::PingRequest {}).await;
        check.push((version, want, got.map(|_| ()).map_err(|status| net::grpc::connect_error(&status))));
    }
    for (version, want, got) in check {
        match want {
            None => assert!(got.is_ok(), "{version}: {got:?}"),
            Some(code) => {
                assert!(got.as_ref().is_err_and(|public| public.as_ref().is_some_and(|public| public.is(code))), "{version}: {got:?}")
            }
        }
    }
    for _ in 0..5 {
        let _ = cluster.client_saying(None, say("6.9.9", "tsh")).ping(pb::PingRequest {}).await;
    }
    let refused: Vec<String> = events(&cluster, "version.refused").await.iter().map(|event| event.text("version").to_owned()).collect();
    assert_eq!(refused, ["6.9.9", "9.0.0", "", "eight"]);
}

#[tokio::test]
async fn g2_a_member_on_a_pre_release_is_not_admitted_to_a_production_cluster() {
    let cluster = Cluster::start().await;
    let token = token(&cluster, &["node"], 0).await;
    let hello = Hello::ours(&"8.2.0-rc.1".parse().unwrap(), "node");
    let refused = error(cluster.client_saying(None, hello.clone()).join(ask(&token.token, 11, &["node"])).await);
    assert!(refused.is(Code::VersionPrerelease), "{refused}");
    let (_, _, identity) = cluster.member(12, SystemRole::Node).await;
    let refused = error(cluster.client_saying(Some(&identity), hello).heartbeat(beat(12, "x", &[], 0)).await);
    assert!(refused.is(Code::VersionPrerelease), "{refused}");
}

#[tokio::test]
async fn g6_a_skipped_version_check_is_admitted_and_audited() {
    let cluster = Cluster::start().await;
    let (_, _, identity) = cluster.member(12, SystemRole::Node).await;
    let newer = Hello::ours(&Version::new(9, 0, 0), "node");
    let refused = error(cluster.client_saying(Some(&identity), newer.clone()).heartbeat(beat(12, "x", &[], 0)).await);
    assert!(refused.is(Code::VersionAuthOlder), "{refused}");
    let skipping = Hello { skips_version_check: true, ..newer };
    cluster.client_saying(Some(&identity), skipping).heartbeat(beat(12, "x", &[], 0)).await.unwrap();
    let member = get(&mut cluster.admin(), "member", &host_id(12).to_string()).await.unwrap();
    assert_eq!((member.spec["version"].as_str(), member.spec["skips_version_check"].as_bool()), (Some("9.0.0"), Some(true)));
    let skipped = events(&cluster, "version.check_skipped").await;
    assert_eq!((skipped.len(), skipped[0].text("version")), (1, "9.0.0"));
}

#[tokio::test]
async fn g12_heartbeats_tell_proxies_which_hosts_are_behind() {
    let cluster = Cluster::start().await;
    let (_, _, identity) = cluster.member(12, SystemRole::Node).await;
    let older = cluster
        .client_saying(Some(&identity), Hello::ours(&Version::new(7, 3, 0), "node"))
        .heartbeat(beat(12, "x", &[], 0))
        .await
        .unwrap()
        .into_inner();
    assert!(older.notices.iter().any(|line| line.contains("7.3.0") && line.contains("one major behind")), "{:?}", older.notices);
    cluster.clock.advance(Duration::from_secs(31));
    let (mut proxy, ..) = cluster.member(13, SystemRole::Proxy).await;
    let notices = proxy.heartbeat(member_only(beat(13, "x", &[], 0))).await.unwrap().into_inner().notices;
    assert!(notices.iter().any(|line| line.contains("node12 (7.3.0)")), "{notices:?}");
}

#[tokio::test]
async fn heartbeats_tell_every_member_where_the_proxies_are_that_serve() {
    let cluster = Cluster::start().await;
    let saying = |id: u128, addr: &str, state: &str| {
        let mut beats = beat(id, "x", &[], 0);
        let mut says = types::Document::from_json(&beats.member).unwrap();
        says.spec["proxy_public_addr"] = addr.into();
        says.spec["state"] = state.into();
        beats.member = says.to_json().into();
        member_only(beats)
    };
    cluster.member(13, SystemRole::Proxy).await.0.heartbeat(saying(13, "one:3080", "active")).await.unwrap();
    cluster.member(14, SystemRole::Proxy).await.0.heartbeat(saying(14, "two:3080", "draining")).await.unwrap();
    // No host says of itself that it is one.
    cluster.member(15, SystemRole::Node).await.0.heartbeat(saying(15, "me:3080", "active")).await.unwrap();
    cluster.clock.advance(Duration::from_secs(31));
    let told = cluster.member(12, SystemRole::Node).await.0.heartbeat(member_only(beat(12, "x", &[], 0))).await.unwrap().into_inner();
    assert_eq!(told.proxies, ["one:3080"]);
}

#[tokio::test]
async fn a_member_renews_its_own_certificates_and_a_locked_one_does_nothing() {
    let cluster = Cluster::start().await;
    let (mut node, ..) = cluster.member(11, SystemRole::Node).await;
    let keys = Keys::new();
    let renew = pb::RenewHostRequest { ssh_public_key: keys.ssh_line(), tls_public_key: keys.spki().into(), names: Vec::new() };
    let reply = node.renew_host(renew.clone()).await.unwrap().into_inner();
    let mut renewed = cluster.client(Some(&keys.identity(&reply.tls_certificate)), "node");
    renewed.heartbeat(beat(11, "x", &[], 0)).await.unwrap();
    let lock = document(
        serde_json::json!({"kind": "lock", "version": "v1", "metadata": {"name": "l"}, "spec": {"target": {"node": host_id(11).to_string()}}}),
    );
    create(&mut cluster.admin(), &lock).await.unwrap();
    assert!(error(renewed.heartbeat(beat(11, "x", &[], 0)).await).is(Code::AccessLocked));
    assert!(error(node.renew_host(renew).await).is(Code::AccessLocked));
}
