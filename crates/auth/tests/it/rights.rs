//! Every RPC of the API without the rights for it: a walk over the edge table.

use crate::fixture::*;
use types::{Code, Public, SystemRole};
use wire::{api as pb, edge::EDGES};

/// Calls an RPC with as little as it takes to be judged.
async fn call(rpc: &str, client: &mut Client) -> Result<(), Public> {
    let text = String::new;
    let role = role_document("made", serde_json::json!({})).to_json();
    let answer = match rpc {
        "Ping" => client.ping(pb::PingRequest {}).await.map(drop),
        "Get" => client.get(pb::GetRequest { kind: "token".into(), name: "x".into() }).await.map(drop),
        "List" => client.list(pb::ListRequest { kind: "token".into(), ..Default::default() }).await.map(drop),
        "Create" => client.create(pb::WriteRequest { document: role.into() }).await.map(drop),
        "Update" => client.update(pb::WriteRequest { document: role.into() }).await.map(drop),
        "Delete" => {
            client.delete(pb::DeleteRequest { kind: "role".into(), name: "access".into(), revision: "999999".into() }).await.map(drop)
        }
        "Watch" => client.watch(pb::WatchRequest { kinds: vec!["token".into()], ..Default::default() }).await.map(drop),
        "Join" => client.join(pb::JoinRequest::default()).await.map(drop),
        "RenewHost" => client.renew_host(pb::RenewHostRequest::default()).await.map(drop),
        "Login" => client.login(pb::LoginRequest::default()).await.map(drop),
        "GetInvite" => client.get_invite(pb::GetInviteRequest { secret: text() }).await.map(drop),
        "AcceptInvite" => client.accept_invite(pb::AcceptInviteRequest::default()).await.map(drop),
        "Reissue" => client.reissue(pb::ReissueRequest::default()).await.map(drop),
        "Sign" => client.sign(pb::SignRequest::default()).await.map(drop),
        "CreateInvite" => client.create_invite(pb::CreateInviteRequest { user: "zed".into(), ttl: 0 }).await.map(drop),
        "CreateToken" => client.create_token(pb::CreateTokenRequest::default()).await.map(drop),
        "CreateBackup" => client.create_backup(pb::CreateBackupRequest::default()).await.map(drop),
        "GetWindows" => client.get_windows(pb::Empty {}).await.map(drop),
        "MoveWindow" => client.move_window(pb::MoveWindowRequest::default()).await.map(drop),
        "EvictMember" => client.evict_member(pb::EvictMemberRequest::default()).await.map(drop),
        "WalkMember" => client.walk_member(pb::WalkMemberRequest::default()).await.map(drop),
        "ListMigrations" => client.list_migrations(pb::Empty {}).await.map(drop),
        "ListBadRows" => client.list_bad_rows(pb::ListBadRowsRequest::default()).await.map(drop),
        "RepairRow" => client.repair_row(pb::RepairRowRequest::default()).await.map(drop),
        "TurnMigration" => client.turn_migration(pb::TurnMigrationRequest::default()).await.map(drop),
        "PlanUpgrade" => client.plan_upgrade(pb::PlanUpgradeRequest::default()).await.map(drop),
        "SteerUpgrade" => client.steer_upgrade(pb::SteerUpgradeRequest::default()).await.map(drop),
        "ListReleases" => client.list_releases(pb::Empty {}).await.map(drop),
        "Heartbeat" => client.heartbeat(pb::HeartbeatRequest::default()).await.map(drop),
        "ReportQuarantine" => client.report_quarantine(pb::ReportQuarantineRequest::default()).await.map(drop),
        "EmitEvents" => client.emit_events(pb::EmitEventsRequest::default()).await.map(drop),
        "SearchEvents" => client.search_events(pb::SearchEventsRequest::default()).await.map(drop),
        "VerifyAudit" => client.verify_audit(pb::Empty {}).await.map(drop),
        "ExportEvents" => client.export_events(pb::ExportEventsRequest::default()).await.map(drop),
        "UploadRecording" => client.upload_recording(tokio_stream::iter([pb::RecordingChunk::default()])).await.map(drop),
        "ListRecordings" => client.list_recordings(pb::ListRecordingsRequest::default()).await.map(drop),
        "ReadRecording" => client.read_recording(pb::ReadRecordingRequest { session: host_id(5).to_string(), offset: 0 }).await.map(drop),
        "ListOwnRecordings" => client.list_own_recordings(pb::ListOwnRecordingsRequest::default()).await.map(drop),
        "ReadOwnRecording" => {
            client.read_own_recording(pb::ReadRecordingRequest { session: host_id(5).to_string(), offset: 0 }).await.map(drop)
        }
        other => panic!("{other} is not in this walk: add it, with who may call it"),
    };
    answer.map_err(|status| pb::from_status(&status))
}

/// Who is let through to the handler, of nobody, user, node, proxy and the administrator: `x` is refused for lack of rights.
const TABLE: &[(&str, [char; 5])] = &[
    ("Ping", ['+', '+', '+', '+', '+']),
    ("Get", ['x', 'x', 'x', 'x', '+']),
    ("List", ['x', 'x', 'x', 'x', '+']),
    ("Create", ['x', 'x', 'x', 'x', '+']),
    ("Update", ['x', 'x', 'x', 'x', '+']),
    ("Delete", ['x', 'x', 'x', 'x', '+']),
    // Kinds are left out one by one; the watch itself is for everybody in the cluster.
    ("Watch", ['x', '+', '+', '+', '+']),
    ("Join", ['+', '+', '+', '+', '+']),
    ("RenewHost", ['x', 'x', '+', '+', 'x']),
    ("Login", ['x', 'x', 'x', '+', 'x']),
    ("GetInvite", ['x', 'x', 'x', '+', 'x']),
    ("AcceptInvite", ['x', 'x', 'x', '+', 'x']),
    ("Reissue", ['x', '+', 'x', 'x', 'x']),
    ("Sign", ['x', 'x', 'x', 'x', '+']),
    ("CreateInvite", ['x', 'x', 'x', 'x', '+']),
    ("CreateToken", ['x', 'x', 'x', 'x', '+']),
    ("CreateBackup", ['x', 'x', 'x', 'x', '+']),
    ("GetWindows", ['x', 'x', 'x', 'x', '+']),
    ("MoveWindow", ['x', 'x', 'x', 'x', '+']),
    ("EvictMember", ['x', 'x', 'x', 'x', '+']),
    ("WalkMember", ['x', 'x', 'x', 'x', '+']),
    ("ListMigrations", ['x', 'x', 'x', 'x', '+']),
    ("ListBadRows", ['x', 'x', 'x', 'x', '+']),
    ("RepairRow", ['x', 'x', 'x', 'x', '+']),
    ("TurnMigration", ['x', 'x', 'x', 'x', '+']),
    ("PlanUpgrade", ['x', 'x', 'x', 'x', '+']),
    ("SteerUpgrade", ['x', 'x', 'x', 'x', '+']),
    ("ListReleases", ['x', 'x', 'x', 'x', '+']),
    ("Heartbeat", ['x', 'x', '+', '+', '+']),
    ("ReportQuarantine", ['x', 'x', 'x', '+', 'x']),
    ("EmitEvents", ['x', 'x', '+', '+', 'x']),
    ("SearchEvents", ['x', 'x', 'x', 'x', '+']),
    ("VerifyAudit", ['x', 'x', 'x', 'x', '+']),
    ("ExportEvents", ['x', 'x', 'x', 'x', '+']),
    ("UploadRecording", ['x', 'x', '+', 'x', '+']),
    ("ListRecordings", ['x', '+', 'x', 'x', '+']),
    ("ReadRecording", ['x', '+', 'x', 'x', '+']),
    // Between Auth Services, which are none of these.
    ("ListOwnRecordings", ['x', 'x', 'x', 'x', 'x']),
    ("ReadOwnRecording", ['x', 'x', 'x', 'x', 'x']),
];

#[tokio::test]
async fn attack_row_29_every_rpc_is_refused_to_whoever_has_no_right_to_it() {
    let cluster = Cluster::start().await;
    let mut callers = [
        ("nobody", cluster.stranger()),
        ("user", cluster.logged_in("alice", &["access"], &["app"]).await.0),
        ("node", cluster.member(11, SystemRole::Node).await.0),
        ("proxy", cluster.member(12, SystemRole::Proxy).await.0),
        ("admin", cluster.admin()),
    ];
    let rpcs: Vec<&str> =
        EDGES.iter().filter(|edge| edge.server == "auth" && edge.name.starts_with(char::is_uppercase)).map(|edge| edge.name).collect();
    assert_eq!(rpcs, TABLE.iter().map(|(rpc, _)| *rpc).collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for (rpc, want) in TABLE {
        for ((who, client), want) in callers.iter_mut().zip(want) {
            let got = call(rpc, client).await;
            let refused = got.as_ref().is_err_and(|public| public.is(Code::AccessDenied) || public.is(Code::LoginRequired));
            if refused != (*want == 'x') {
                wrong.push(format!("{rpc} by {who}: {got:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Refusals of known callers are in the audit log.
    let denied = events(&cluster, "access.denied").await;
    assert!(denied.iter().any(|event| event.text("user") == "alice" && event.text("method") == "Sign"), "{denied:?}");
}

#[tokio::test]
async fn attack_row_18_an_editor_cannot_make_an_authority_a_host_or_a_cluster_name() {
    let cluster = Cluster::start().await;
    let (mut editor, ..) = cluster.logged_in("eve", &["editor"], &[]).await;
    for kind in ["cert_authority", "node", "member", "cluster_name"] {
        let json = serde_json::json!({"kind": kind, "version": "v1", "metadata": {"name": "x"}, "spec": {}});
        assert!(create(&mut editor, &document(json)).await.unwrap_err().is(Code::AccessDenied), "{kind}");
    }
    assert!(get(&mut editor, "cert_authority", "user").await.is_ok());
    // Nothing internal has a name in the API.
    for kind in ["internal", "ca", "account", "../internal/ca", "doc"] {
        assert!(get(&mut cluster.admin(), kind, "user").await.is_err(), "{kind}");
    }
}

#[tokio::test]
async fn who_writes_users_but_no_roles_gives_nobody_more_than_he_has() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    let desk = serde_json::json!({"allow": {"rules": [{"resources": ["user"], "verbs": ["list", "read", "create", "update", "delete"]}, {"resources": ["role"], "verbs": ["update", "read"]}]}});
    create(&mut admin, &role_document("desk", desk)).await.unwrap();
    let (mut helper, ..) = cluster.logged_in("helper", &["desk", "access"], &["app", "web"]).await;
    cluster.user("eve", &["editor"], &[]).await;
    let refused = |answer: Result<types::Document, Public>| {
        let public = answer.unwrap_err();
        assert!(public.is(Code::AccessDenied), "{public}");
    };
    create(&mut helper, &user_document("new", &["access"], &["app"])).await.unwrap();
    refused(create(&mut helper, &user_document("sock", &["editor"], &[])).await);
    refused(create(&mut helper, &user_document("sock", &["access"], &["root"])).await);
    let changed = |user: &'static str, roles: serde_json::Value, logins: serde_json::Value| {
        let mut admin = admin.clone();
        async move {
            let mut document = get(&mut admin, "user", user).await.unwrap();
            document.spec["roles"] = roles;
            document.spec["traits"]["logins"] = logins;
            document
        }
    };
    refused(update(&mut helper, &changed("new", serde_json::json!(["access", "editor"]), serde_json::json!(["app"])).await).await);
    refused(update(&mut helper, &changed("new", serde_json::json!(["access"]), serde_json::json!(["app", "root"])).await).await);
    update(&mut helper, &changed("new", serde_json::json!(["access", "desk"]), serde_json::json!(["app", "web"])).await).await.unwrap();
    // What somebody has already he may keep, and nobody changes himself.
    update(&mut helper, &changed("eve", serde_json::json!(["editor", "access"]), serde_json::json!(["app"])).await).await.unwrap();
    refused(update(&mut helper, &changed("helper", serde_json::json!(["desk"]), serde_json::json!(["app", "web"])).await).await);
    // A new password for an editor would make an editor of him; a role that he holds is not his to widen.
    let invite = |user: &str| pb::CreateInviteRequest { user: user.into(), ttl: 0 };
    assert!(error(helper.create_invite(invite("eve")).await).is(Code::AccessDenied));
    helper.create_invite(invite("new")).await.unwrap();
    let mut own = get(&mut admin, "role", "desk").await.unwrap();
    own.metadata.description = Some("wider".into());
    refused(update(&mut helper, &own).await);
    // Who writes roles has all power, and says so by that.
    let (mut editor, ..) = cluster.logged_in("ed", &["editor"], &[]).await;
    create(&mut editor, &user_document("more", &["auditor", "editor"], &["root"])).await.unwrap();
}

#[tokio::test]
async fn a_revoked_role_takes_effect_on_the_next_request() {
    let cluster = Cluster::start().await;
    let (mut auditor, ..) = cluster.logged_in("ann", &["auditor"], &[]).await;
    auditor.search_events(pb::SearchEventsRequest::default()).await.unwrap();
    let mut admin = cluster.admin();
    let mut user = get(&mut admin, "user", "ann").await.unwrap();
    user.spec["roles"] = serde_json::json!(["access"]);
    update(&mut admin, &user).await.unwrap();
    assert!(error(auditor.search_events(pb::SearchEventsRequest::default()).await).is(Code::AccessDenied));
}
