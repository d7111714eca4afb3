//! The books of the members: ids and names that are taken, copies of a host's key, and what a Proxy in between may not do.

use crate::fixture::*;
use std::{sync::Arc, time::Duration};
use types::{Code, SystemRole, Version};
use wire::{api as pb, hello::Hello, identity::parse_ssh_certificate};

fn ask(keys: &Keys, token: &str, id: u128, name: &str, roles: &[&str], names: &[&str]) -> pb::JoinRequest {
    pb::JoinRequest {
        token: token.into(),
        host_id: host_id(id).to_string(),
        node_name: name.into(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        ssh_public_key: keys.ssh_line(),
        tls_public_key: keys.spki().into(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    }
}

async fn token(cluster: &Cluster, roles: &[&str]) -> String {
    let roles = roles.iter().map(|role| (*role).to_owned()).collect();
    let ask = pb::CreateTokenRequest { roles, ttl: 365 * 86_400, ..Default::default() };
    cluster.admin().create_token(ask).await.unwrap().into_inner().token
}

fn principals(reply: &pb::HostCredentials) -> Vec<String> {
    parse_ssh_certificate(&reply.ssh_certificate).unwrap().valid_principals().to_vec()
}

#[tokio::test]
async fn attack_row_28_a_proxy_gets_no_hosts_name_and_a_host_no_proxys() {
    let cluster = Cluster::start().await;
    let token = token(&cluster, &["node", "proxy"]).await;
    let stranger = cluster.stranger();
    let join = |id, name: &'static str, role: &'static str, names: &'static [&'static str]| {
        let (request, mut stranger) = (ask(&Keys::new(), &token, id, name, &[role], names), stranger.clone());
        async move { stranger.join(request).await.map(tonic::Response::into_inner) }
    };
    join(11, "db-7", "node", &[]).await.unwrap();
    for taken in [&["db-7"][..], &["DB-7"], &["db-7.demo"], &["unborn.demo"], &["fine.example.com", "db-7"]] {
        let refused = error(join(20, "proxy1", "proxy", taken).await);
        assert!(refused.is(Code::AlreadyExists), "{taken:?}: {refused}");
    }
    // Its own name would be a principal too.
    for own in ["db-7", "DB-7", "db-7.demo"] {
        assert!(error(join(20, own, "proxy", &[]).await).is(Code::AlreadyExists), "{own}");
    }
    let proxy =
        join(20, "proxy1", "proxy", &["localhost", "127.0.0.1", "proxy.example.com", "proxy1", "proxy1.demo", "demo"]).await.unwrap();
    for name in ["localhost", "127.0.0.1", "proxy.example.com", "proxy1.demo", "demo"] {
        assert!(principals(&proxy).contains(&name.to_owned()), "{name}: {:?}", principals(&proxy));
    }
    join(21, "proxy2", "proxy", &["proxy.example.com"]).await.unwrap();
    for name in ["proxy.example.com", "PROXY.example.com", "proxy1", "proxy2.demo", "localhost"] {
        let refused = error(join(30, name, "node", &[]).await);
        assert!(refused.is(Code::AlreadyExists) && refused.message.contains("a host cannot be called"), "{name}: {refused}");
    }
    // Two hosts may have one name, as before.
    join(12, "db-7", "node", &[]).await.unwrap();
    // What was given back is free.
    let mut admin = cluster.admin();
    for proxy in [20, 21] {
        delete(&mut admin, "member", &host_id(proxy).to_string()).await.unwrap();
    }
    join(30, "proxy.example.com", "node", &[]).await.unwrap();
    assert!(error(join(22, "proxy3", "proxy", &["proxy.example.com"]).await).is(Code::AlreadyExists));
    let failed = events(&cluster, "instance.join").await.into_iter().filter(|event| event.code == "LJ002W").count();
    assert!(failed > 5, "{failed}");
}

#[tokio::test]
async fn a_proxy_gets_no_hosts_name_by_renewal_nor_in_the_auth_services_process() {
    let cluster = Cluster::start().await;
    let (mut node, ..) = cluster.member(11, SystemRole::Node).await;
    let (mut proxy, ..) = cluster.member(12, SystemRole::Proxy).await;
    let renewal = |names: &[&str]| {
        let keys = Keys::new();
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        pb::RenewHostRequest { ssh_public_key: keys.ssh_line(), tls_public_key: keys.spki().into(), names }
    };
    assert!(error(proxy.renew_host(renewal(&["node11"])).await).is(Code::AlreadyExists));
    // An SSH host may ask for what it likes and gets none of it.
    let reply = node.renew_host(renewal(&["proxy.example.com"])).await.unwrap().into_inner();
    assert!(!principals(&reply).contains(&"proxy.example.com".to_owned()));
    let reply = proxy.renew_host(renewal(&["proxy.example.com"])).await.unwrap().into_inner();
    assert!(principals(&reply).contains(&"proxy.example.com".to_owned()));
    let keys = Keys::new();
    let local = |names: Vec<String>| {
        cluster.auth.issue_local(host_id(13), "proxy3".parse().unwrap(), [SystemRole::Proxy].into(), names, keys.ssh_line(), keys.spki())
    };
    for taken in ["node11", "node11.demo"] {
        assert!(local(vec![taken.into()]).await.unwrap_err().is(Code::AlreadyExists), "{taken}");
    }
    // Under the cluster's name what an administrator says in the Auth Service's own file stands, and is then no host's.
    local(vec!["www.demo".into()]).await.unwrap();
    let token = token(&cluster, &["node"]).await;
    assert!(error(cluster.stranger().join(ask(&Keys::new(), &token, 14, "www", &["node"], &[])).await).is(Code::AlreadyExists));
    local(vec!["proxy.example.com".into()]).await.unwrap();
    local(vec!["127.0.0.1".into(), "10.0.0.9".into()]).await.unwrap();
}

#[tokio::test]
async fn a_proxy_gets_neither_the_address_nor_the_name_of_a_host_that_reported_before_there_were_books() {
    struct Hands(net::clock::ManualClock);
    impl store::Clock for Hands {
        fn now(&self) -> types::Time {
            net::clock::Clock::now(&self.0)
        }
    }
    let clock = net::clock::ManualClock::new(types::Time::from_unix(START));
    let store: Arc<dyn store::Store> = Arc::new(store::Memory::new(Arc::new(Hands(clock.clone()))));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut config = config(dir.path());
    config.storage = auth::Storage::Open(store.clone());
    let cluster = Cluster::from(dir, config, clock, "8.1.0").await;
    let node = document(serde_json::json!({"kind": "node", "version": "v1", "metadata": {"name": host_id(9).to_string()},
        "spec": {"hostname": "db-7", "addr": "10.1.2.3:3022", "version": "8.1.0"}}));
    let key = store::Key::new(["doc", "node", &host_id(9).to_string()]).unwrap();
    store.commit(store::Batch::new(None).put(key, node.to_json(), None)).await.unwrap();
    let (token, mut stranger) = (token(&cluster, &["proxy"]).await, cluster.stranger());
    for taken in ["10.1.2.3", "db-7"] {
        let refused = error(stranger.join(ask(&Keys::new(), &token, 20, "proxy1", &["proxy"], &[taken])).await);
        assert!(refused.is(Code::AlreadyExists) && refused.message.contains("it is the host"), "{taken}: {refused}");
    }
    stranger.join(ask(&Keys::new(), &token, 20, "proxy1", &["proxy"], &["10.1.2.4", "127.0.0.1", "db-8"])).await.unwrap();
}

#[tokio::test]
async fn attack_row_28_a_silent_hosts_id_is_not_to_be_had_and_of_two_that_join_at_once_one_gets_it() {
    let cluster = Cluster::start().await;
    let token = token(&cluster, &["node"]).await;
    let keys: Vec<Keys> = (0..6).map(|_| Keys::new()).collect();
    let joins = keys.iter().map(|keys| {
        let (request, mut stranger) = (ask(keys, &token, 11, "web-1", &["node"], &[]), cluster.stranger());
        async move { stranger.join(request).await }
    });
    let answers = futures::future::join_all(joins).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().enumerate().partition(|(_, answer)| answer.is_ok());
    assert_eq!((won.len(), lost.len()), (1, 5));
    assert!(lost.into_iter().all(|(_, answer)| error(answer).is(Code::AlreadyExists)));
    let (winner, reply) = won.into_iter().next().map(|(at, answer)| (at, answer.unwrap().into_inner())).unwrap();
    // The reply was lost on the way: the same key may ask again.
    let again = |keys: &Keys| {
        let (request, mut stranger) = (ask(keys, &token, 11, "web-1", &["node"], &[]), cluster.stranger());
        async move { stranger.join(request).await }
    };
    again(&keys[winner]).await.unwrap();
    cluster.client(Some(&keys[winner].identity(&reply.tls_certificate)), "node").heartbeat(beat(11, "x", &[], 0)).await.unwrap();
    cluster.clock.advance(Duration::from_secs(601));
    let mut admin = cluster.admin();
    assert!(get(&mut admin, "member", &host_id(11).to_string()).await.unwrap_err().is(Code::NotFound), "it fell silent");
    assert!(error(again(&Keys::new()).await).is(Code::AlreadyExists));
    // An administrator frees it, and it ends with its last certificate.
    delete(&mut admin, "member", &host_id(11).to_string()).await.unwrap();
    assert!(delete(&mut admin, "member", &host_id(11).to_string()).await.unwrap_err().is(Code::NotFound));
    again(&Keys::new()).await.unwrap();
    assert!(error(again(&Keys::new()).await).is(Code::AlreadyExists));
    cluster.clock.advance(Duration::from_secs(364 * 86_400));
    assert!(error(again(&Keys::new()).await).is(Code::AlreadyExists));
}

async fn renew(client: &mut Client) -> Result<(Keys, pb::HostCredentials), tonic::Status> {
    let keys = Keys::new();
    let ask = pb::RenewHostRequest { ssh_public_key: keys.ssh_line(), tls_public_key: keys.spki().into(), names: Vec::new() };
    client.renew_host(ask).await.map(|reply| (keys, reply.into_inner()))
}

#[tokio::test]
async fn a_copied_host_key_is_found_out_and_locked_when_both_renew() {
    let cluster = Cluster::start().await;
    let (mut host, ..) = cluster.member(11, SystemRole::Node).await;
    let mut thief = host.clone();
    let mut thiefs = {
        let (keys, reply) = renew(&mut thief).await.unwrap();
        cluster.client(Some(&keys.identity(&reply.tls_certificate)), "node")
    };
    // The host's own renewal looks like one after a lost reply, and makes the thief's void.
    let (keys, reply) = renew(&mut host).await.unwrap();
    let mut renewed = cluster.client(Some(&keys.identity(&reply.tls_certificate)), "node");
    renewed.heartbeat(beat(11, "x", &[], 0)).await.unwrap();
    let caught = error(renew(&mut thiefs).await);
    assert!(caught.is(Code::AccessLocked) && caught.message.contains("another holder of its key"), "{caught}");
    assert!(error(renewed.heartbeat(beat(11, "x", &[], 0)).await).is(Code::AccessLocked), "nobody knows which is the copy");
    let refused: Vec<_> = events(&cluster, "cert.create").await.into_iter().filter(|event| event.code == "LC000W").collect();
    assert_eq!((refused.len(), refused[0].text("server_id")), (1, host_id(11).to_string().as_str()));
    assert_eq!(names(&mut cluster.admin(), "lock").await, [format!("copied-{}", host_id(11))]);
}

#[tokio::test]
async fn a_host_whose_copy_renewed_and_was_used_is_locked_when_it_renews() {
    let cluster = Cluster::start().await;
    let (mut host, ..) = cluster.member(11, SystemRole::Node).await;
    let (keys, reply) = renew(&mut host.clone()).await.unwrap();
    cluster.client(Some(&keys.identity(&reply.tls_certificate)), "node").heartbeat(beat(11, "x", &[], 0)).await.unwrap();
    assert!(error(renew(&mut host).await).is(Code::AccessLocked));
}

#[tokio::test]
async fn lost_replies_lock_nobody_and_a_removed_host_renews_no_more() {
    let cluster = Cluster::start().await;
    let (mut host, ..) = cluster.member(11, SystemRole::Node).await;
    for _ in 0..4 {
        renew(&mut host).await.unwrap();
    }
    let (keys, reply) = renew(&mut host).await.unwrap();
    let mut renewed = cluster.client(Some(&keys.identity(&reply.tls_certificate)), "node");
    renewed.heartbeat(beat(11, "x", &[], 0)).await.unwrap();
    let (keys, reply) = renew(&mut renewed).await.unwrap();
    let mut renewed = cluster.client(Some(&keys.identity(&reply.tls_certificate)), "node");
    renewed.heartbeat(beat(11, "x", &[], 0)).await.unwrap();
    assert!(names(&mut cluster.admin(), "lock").await.is_empty());
    delete(&mut cluster.admin(), "member", &host_id(11).to_string()).await.unwrap();
    assert!(error(renew(&mut renewed).await).is(Code::AccessDenied));
}

#[tokio::test]
async fn attack_row_13_a_host_behind_a_proxy_cannot_make_the_proxys_address_its_own() {
    let cluster = Cluster::start().await;
    let (_, _, identity) = cluster.member(11, SystemRole::Node).await;
    let addr = cluster.splice().await;
    let mut behind = cluster.client_at(&addr, Some(&identity), Hello::ours(&Version::new(8, 1, 0), "node"));
    behind.heartbeat(beat(11, "x", &[], 3022)).await.unwrap();
    let node = get(&mut cluster.admin(), "node", &host_id(11).to_string()).await.unwrap();
    assert_eq!((node.spec["addr"].as_str(), node.spec["use_tunnel"].as_bool()), (Some(""), Some(true)));
}

#[tokio::test]
async fn failed_joins_are_limited_and_the_limit_is_in_the_audit_log() {
    let cluster = Cluster::start().await;
    let token = token(&cluster, &["node"]).await;
    let mut stranger = cluster.stranger();
    let keys = Keys::new();
    for _ in 0..100 {
        assert!(error(stranger.join(ask(&keys, "guess", 11, "x", &["node"], &[])).await).is(Code::TokenInvalid));
    }
    assert!(error(stranger.join(ask(&keys, &token, 11, "x", &["node"], &[])).await).is(Code::RateLimited));
    // A Proxy's callers share its address and are not kept out with it.
    let addr = cluster.splice().await;
    let mut behind = cluster.client_at(&addr, None, Hello::ours(&Version::new(8, 1, 0), "node"));
    behind.join(ask(&keys, &token, 11, "x", &["node"], &[])).await.unwrap();
    let failed: Vec<_> = events(&cluster, "instance.join").await.into_iter().filter(|event| event.code == "LJ002W").collect();
    assert_eq!(failed.len(), 2, "one of the failures, one of the limit: {failed:?}");
    cluster.clock.advance(Duration::from_secs(600));
    stranger.join(ask(&keys, &token, 12, "x", &["node"], &[])).await.unwrap();
}

#[tokio::test]
async fn chosen_tokens_are_long_whoever_chooses_them() {
    let cluster = Cluster::start().await;
    let create = |value: &str| {
        let ask = pb::CreateTokenRequest { roles: vec!["node".into()], value: value.into(), ..Default::default() };
        let mut admin = cluster.admin();
        async move { admin.create_token(ask).await }
    };
    for weak in ["password", "fifteen-chars-x", "aaaaaaaaaaaaaaaaaaaaaaaa", "with a blank in the middle"] {
        assert!(error(create(weak).await).is(Code::Malformed), "{weak}");
    }
    create("sixteen-chars-xy").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.static_tokens = vec![([SystemRole::Node].into(), types::Secret::new("static-secret"))];
    let refused = auth::build(config, world(&cluster.clock, "8.1.0")).await.err().unwrap().public();
    assert!(refused.is(Code::Config) && refused.message.contains("auth_service.tokens"), "{refused}");
}

#[tokio::test]
async fn the_auth_services_own_certificate_is_renewed_while_it_runs() {
    let cluster = Cluster::start().await;
    cluster.stranger().ping(pb::PingRequest {}).await.unwrap();
    cluster.clock.advance(Duration::from_secs(400 * 86_400));
    let mut often = tokio::time::interval(Duration::from_millis(50));
    let renewed = async {
        while cluster.stranger().ping(pb::PingRequest {}).await.is_err() {
            often.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), renewed).await.expect("a new certificate before the old one has ended for ever");
}
