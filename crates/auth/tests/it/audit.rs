//! Events and recordings over the API.

use crate::fixture::*;
use sha2::{Digest as _, Sha256};
use types::{Code, Event, EventKind, Extra, SystemRole, Time, kind::Recording};
use wire::{
    api as pb,
    recording::{End, Header, What, Writer},
};

fn event(kind: EventKind, number: u128) -> Event {
    Event::new(kind, Time::from_unix(START), uuid::Uuid::from_u128(number))
}

fn emit(events: &[Event]) -> pb::EmitEventsRequest {
    pb::EmitEventsRequest { events: events.iter().map(|event| serde_json::to_vec(event).unwrap().into()).collect() }
}

#[tokio::test]
async fn a_member_reports_for_itself_only_and_never_what_only_auth_can_know() {
    let cluster = Cluster::start().await;
    let (mut node, ..) = cluster.member(11, SystemRole::Node).await;
    let start = event(EventKind::SessionStart, 1).with("user", "alice");
    node.emit_events(emit(std::slice::from_ref(&start))).await.unwrap();
    node.emit_events(emit(&[start])).await.unwrap();
    let seen = events(&cluster, "session.start").await;
    assert_eq!((seen.len(), seen[0].text("server_id"), seen[0].text("server_hostname")), (1, host_id(11).to_string().as_str(), "node11"));
    let masked = event(EventKind::Exec, 5).with("server_hostname", "node12").with("cluster_name", "elsewhere");
    node.emit_events(emit(&[masked])).await.unwrap();
    let seen = events(&cluster, "exec").await;
    assert_eq!((seen[0].text("server_hostname"), seen[0].text("cluster_name") == "elsewhere"), ("node11", false));
    let other = event(EventKind::SessionEnd, 2).with("server_id", host_id(12).to_string());
    let ours = [EventKind::Login, EventKind::CertCreate, EventKind::ResourceDelete, EventKind::UserLocked, EventKind::Join];
    let mut mixed = vec![event(EventKind::Exec, 5), other];
    mixed.extend(ours.map(|kind| event(kind, 3)));
    mixed.push(event(EventKind::Exec, 6));
    let before = events(&cluster, "user.login").await.len();
    let refused = node.emit_events(emit(&mixed)).await.unwrap().into_inner().refused;
    assert_eq!(refused.iter().map(|event| event.index).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6], "{refused:?}");
    assert_eq!((events(&cluster, "user.login").await.len(), events(&cluster, "session.end").await.len()), (before, 0));
    assert_eq!(events(&cluster, "exec").await.len(), 2, "what comes with refused ones is taken");
    // An event of a newer release is kept as it is.
    let newer: Event = serde_json::from_value(serde_json::json!({"event": "session.teleported", "code": "L9999I", "time": "2027-01-15T08:00:00Z", "uid": uuid::Uuid::from_u128(4), "x": {"y": 1}})).unwrap();
    node.emit_events(emit(&[newer])).await.unwrap();
    assert_eq!(events(&cluster, "session.teleported").await[0].fields["x"]["y"], 1);
}

#[tokio::test]
async fn attack_row_32_a_changed_log_is_noticed_through_the_api() {
    let cluster = Cluster::start().await;
    cluster.user("alice", &["access"], &["app"]).await;
    let intact = cluster.admin().verify_audit(pb::Empty {}).await.unwrap().into_inner();
    assert!(intact.intact && intact.events > 2 && intact.head.len() == 64);
    let file = std::fs::read_dir(cluster.dir.path().join("auth/audit")).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(&file).unwrap().replacen("\"name\":\"alice\"", "\"name\":\"mallo\"", 1);
    std::fs::write(&file, text).unwrap();
    let broken = cluster.admin().verify_audit(pb::Empty {}).await.unwrap().into_inner();
    assert!(!broken.intact && broken.fault.contains("was changed"), "{}", broken.fault);
}

async fn export(client: &mut Client, from: &str) -> Result<(String, wire::audit::Runs), types::Public> {
    let ask = pb::ExportEventsRequest { from: from.into(), to: String::new() };
    let mut stream = client.export_events(ask).await.map_err(|status| pb::from_status(&status))?.into_inner();
    let mut text = String::new();
    loop {
        let chunk = stream.message().await.map_err(|status| pb::from_status(&status))?.expect("the last piece says that it is the last");
        text.push_str(std::str::from_utf8(&chunk.lines).unwrap());
        if !chunk.done.is_empty() {
            break;
        }
    }
    let mut runs = wire::audit::Runs::default();
    text.lines().for_each(|line| runs.take(line.as_bytes()).unwrap());
    Ok((text, runs))
}

#[tokio::test]
async fn an_export_proves_itself_and_is_for_auditors_alone() {
    let cluster = Cluster::start().await;
    let (mut alice, ..) = cluster.logged_in("alice", &["access"], &["app"]).await;
    let (mut auditor, ..) = cluster.logged_in("ann", &["auditor"], &[]).await;
    assert!(export(&mut alice, "").await.unwrap_err().is(Code::AccessDenied));
    let (text, runs) = export(&mut auditor, "").await.unwrap();
    let run = runs.runs()[&host_id(1)];
    let verified = cluster.admin().verify_audit(pb::Empty {}).await.unwrap().into_inner();
    assert_eq!((run.begin.events, run.end.events, run.end.hash.to_string()), (0, verified.events, verified.head));
    // It tells of itself.
    assert!(text.lines().last().unwrap().contains("\"audit.export\"") && text.lines().last().unwrap().contains("\"ann\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_postgresql_every_auth_service_finds_exports_and_proves_the_events_of_all() {
    let shared = crate::several::Shared::new();
    let options = crate::servers::postgres_options(crate::servers::postgres().port, "api");
    let start = async |number: u128| {
        let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
        let mut config = shared.config(number, dir.path());
        config.audit.shared = Some(auth::SharedAudit::new(options.clone()));
        Cluster::from(dir, config, shared.clock.clone(), "8.1.0").await
    };
    let (one, two) = (start(1).await, start(2).await);
    create(&mut one.admin(), &user_document("alice", &["access"], &["app"])).await.unwrap();
    create(&mut two.admin(), &user_document("bob", &["access"], &["app"])).await.unwrap();
    for cluster in [&one, &two] {
        let seen = crate::several::again("the events of both", || async {
            let names: Vec<_> = events(cluster, "resource.create").await.iter().map(|event| event.text("name").to_owned()).collect();
            (names.contains(&"alice".into()) && names.contains(&"bob".into())).then_some(names)
        });
        seen.await;
        let verdict = cluster.admin().verify_audit(pb::Empty {}).await.unwrap().into_inner();
        assert!(verdict.intact, "{}", verdict.fault);
        let mut kept: Vec<_> = verdict.chains.iter().map(|chain| (chain.sink.as_str(), chain.name.as_str())).collect();
        kept.sort_unstable();
        let own = if verdict.chains[0].name == "auth1" { "auth1" } else { "auth2" };
        assert_eq!(kept, [("files", own), ("postgres", "auth1"), ("postgres", "auth2")]);
        let (_, runs) = export(&mut cluster.admin(), "").await.unwrap();
        assert_eq!(runs.runs().len(), 2);
        let reply = cluster.admin().search_events(pb::SearchEventsRequest::default()).await.unwrap().into_inner();
        assert_eq!(reply.note, "");
    }
    // An event of one that the other's table lost is noticed by the other.
    crate::servers::postgres().sql(&format!("DELETE FROM {}.event WHERE instance = '{}' AND index = 1", options.schema, host_id(1)));
    let verdict = two.admin().verify_audit(pb::Empty {}).await.unwrap().into_inner();
    assert!(verdict.fault.starts_with("event 1 is missing (the log of auth1 in postgres)"), "{}", verdict.fault);
}

pub(crate) struct Film {
    description: Vec<u8>,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn film(session: u128, host: u128, user: &str) -> Film {
    let recording = Recording {
        session: types::SessionId::from_uuid(uuid::Uuid::from_u128(session)),
        user: user.into(),
        login: "app".into(),
        host_id: host_id(host),
        hostname: "node11".into(),
        kind: "shell".into(),
        command: String::new(),
        started: Time::from_unix(START),
        ended: None,
        size: 0,
        extra: Extra::new(),
    };
    let description = serde_json::to_vec(&recording).unwrap();
    let mut writer = Writer::new();
    let mut bytes = writer
        .encode(0, &What::Header(Box::new(Header { recording, width: 80, height: 24, term: "xterm".into(), extra: Extra::new() })))
        .to_vec();
    for at in 1..40u64 {
        bytes.extend(writer.encode(at, &What::Output(vec![b'x'; 20_000].into())));
    }
    bytes.extend(writer.encode(5000, &What::End(End { status: Some(0), signal: None })));
    Film { description, bytes }
}

pub(crate) fn chunks(film: &Film, from: usize) -> Vec<pb::RecordingChunk> {
    let mut all: Vec<pb::RecordingChunk> = film.bytes[from..]
        .chunks(100_000)
        .enumerate()
        .map(|(number, data)| pb::RecordingChunk {
            data: data.to_vec().into(),
            offset: (from + number * 100_000) as u64,
            ..Default::default()
        })
        .collect();
    all[0].description = film.description.clone().into();
    let last = all.last_mut().unwrap();
    last.last = true;
    last.sha256 = Sha256::digest(&film.bytes).to_vec().into();
    all
}

pub(crate) async fn read(client: &mut Client, session: u128, offset: u64) -> Result<Vec<u8>, types::Public> {
    let ask = pb::ReadRecordingRequest { session: uuid::Uuid::from_u128(session).to_string(), offset };
    let mut stream = client.read_recording(ask).await.map_err(|status| pb::from_status(&status))?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await.unwrap() {
        assert_eq!(chunk.offset, offset + bytes.len() as u64);
        bytes.extend_from_slice(&chunk.data);
        if chunk.last {
            return Ok(bytes);
        }
    }
    panic!("no last chunk")
}

pub(crate) async fn sessions(client: &mut Client) -> Vec<String> {
    let reply = client.list_recordings(pb::ListRecordingsRequest::default()).await.unwrap().into_inner();
    reply.recordings.iter().map(|json| serde_json::from_slice::<Recording>(json).unwrap().user).collect()
}

#[tokio::test]
async fn recordings_are_uploaded_resumed_listed_and_read_by_whom_they_concern() {
    let cluster = Cluster::start().await;
    let (mut node, ..) = cluster.member(11, SystemRole::Node).await;
    let (alices, bobs) = (film(1, 11, "alice"), film(2, 11, "bob"));
    node.upload_recording(tokio_stream::iter(chunks(&alices, 0))).await.unwrap();
    // Again, as after a lost answer.
    node.upload_recording(tokio_stream::iter(chunks(&alices, 0))).await.unwrap();
    // Bob's breaks off and goes on.
    let mut broken = chunks(&bobs, 0);
    broken.truncate(2);
    assert!(error(node.upload_recording(tokio_stream::iter(broken)).await).is(Code::Malformed));
    node.upload_recording(tokio_stream::iter(chunks(&bobs, 150_000))).await.unwrap();

    let (mut alice, ..) = cluster.logged_in("alice", &["access"], &["app"]).await;
    assert_eq!(sessions(&mut alice).await, ["alice"]);
    assert_eq!(read(&mut alice, 1, 0).await.unwrap(), alices.bytes);
    assert_eq!(read(&mut alice, 1, 7).await.unwrap(), alices.bytes[7..]);
    let (forbidden, unknown) = (read(&mut alice, 2, 0).await.unwrap_err(), read(&mut alice, 3, 0).await.unwrap_err());
    assert!(forbidden == unknown && forbidden.is(Code::NotFound));
    let (mut auditor, ..) = cluster.logged_in("ann", &["auditor"], &[]).await;
    assert_eq!(sessions(&mut auditor).await, ["bob", "alice"]);
    assert_eq!(read(&mut auditor, 2, 0).await.unwrap(), bobs.bytes);
    assert!(error(node.list_recordings(pb::ListRecordingsRequest::default()).await).is(Code::AccessDenied));
    assert_eq!(events(&cluster, "session.upload").await.len(), 2);
    let reads: Vec<_> = events(&cluster, "session.recording.access")
        .await
        .iter()
        .map(|event| (event.text("user").to_owned(), event.text("session_user").to_owned()))
        .collect();
    assert_eq!(reads, [("alice".into(), "alice".into()), ("alice".into(), "alice".into()), ("ann".into(), "bob".into())]);
}

#[tokio::test]
async fn a_host_uploads_only_what_happened_on_it() {
    let cluster = Cluster::start().await;
    let (mut node, ..) = cluster.member(11, SystemRole::Node).await;
    assert!(error(node.upload_recording(tokio_stream::iter(chunks(&film(1, 12, "alice"), 0))).await).is(Code::AccessDenied));
    let mut lying = film(1, 12, "alice");
    lying.description = film(1, 11, "alice").description;
    assert!(error(node.upload_recording(tokio_stream::iter(chunks(&lying, 0))).await).is(Code::RecordingBroken));
    let mut damaged = film(2, 11, "alice");
    damaged.bytes[5000] ^= 1;
    assert!(error(node.upload_recording(tokio_stream::iter(chunks(&damaged, 0))).await).is(Code::RecordingBroken));
}

#[tokio::test]
async fn health_says_that_the_audit_log_cannot_be_written() {
    use net::health::{Board, Health};
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let clock = net::clock::ManualClock::new(Time::from_unix(START));
    let board = Board::default();
    let world = auth::World { health: board.clone(), ..world(&clock, "8.1.0") };
    let auth = std::sync::Arc::new(auth::build(config(dir.path()), world).await.unwrap());
    let (tasks, stop) = (net::task::Group::new("test"), net::shutdown::Shutdown::new());
    let (running, until) = (auth.clone(), stop.clone());
    tasks.spawn("auth", async move { running.run(until).await });
    let is = |want: fn(&Health) -> bool| {
        let mut changes = board.changes();
        async move {
            let reached = changes.wait_for(|rows| rows.get("audit").is_some_and(want));
            tokio::time::timeout(std::time::Duration::from_secs(20), reached).await.expect("the health changes").unwrap();
        }
    };
    is(|health| *health == Health::Ready).await;
    // A new day begins a new file, and its directory is away.
    let (there, away) = (dir.path().join("auth/audit"), dir.path().join("auth/away"));
    std::fs::rename(&there, &away).unwrap();
    clock.advance(std::time::Duration::from_secs(2 * 86_400));
    let keys = Keys::new();
    let issued = auth.issue_local(host_id(5), "n".parse().unwrap(), [SystemRole::Node].into(), Vec::new(), keys.ssh_line(), keys.spki());
    let identity = keys.identity(&issued.await.unwrap().tls_certificate);
    let file = admin_file(dir.path());
    let roots = |kind: &str| {
        let of_kind = file.authorities.iter().find(|document| document.metadata.name.as_str() == kind).unwrap();
        let authority: types::Resource<types::kind::CertAuthority> = types::Resource::from_document(of_kind.clone()).unwrap();
        let keys = authority.spec.keys.iter();
        keys.flat_map(|key| net::tls::identity::certificates_from_pem(key.tls.as_bytes()).unwrap()).collect::<Vec<_>>()
    };
    let trust = net::tls::Authorities::new(file.identity.cluster.clone(), &roots("user"), &roots("host")).unwrap();
    let trust = net::swap::Swap::new(trust);
    let cluster = Cluster { auth, dir, clock, trust, shutdown: stop, tasks, says: types::Version::new(8, 1, 0) };
    let mut node = cluster.client(Some(&identity), "node");
    // A refusal is recorded, or tried to.
    let recording = tokio::spawn(async move { node.search_events(pb::SearchEventsRequest::default()).await });
    is(|health| matches!(health, Health::Degraded(why) if why.contains("audit log"))).await;
    std::fs::rename(&away, &there).unwrap();
    is(|health| *health == Health::Ready).await;
    recording.await.unwrap().unwrap_err();
}
