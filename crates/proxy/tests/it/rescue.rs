//! The rescue door: who is let in, what is said there, what is handed out, and that nothing else is to be had.

use crate::{
    ca::{Cluster, HOUR, id, now},
    rig::{Rig, SOON, Setup, node},
};
use net::{
    IoStream,
    frame::{read_frame, write_frame},
    tls::TlsIdentity,
};
use proxy::Config;
use sha2::Digest as _;
use std::{fs, path::Path};
use types::{
    Code, Extra, Metadata, Public, Resource, ResourceName, SystemRole,
    kind::{Lock, LockTarget},
};
use wire::{
    alpn,
    rescue::{Action, Advice, CHUNK, Chunk, Fetch, MAX_FETCH, Sha256, Status, ToHost, ToProxy, decode, encode},
};

const ARCHIVE: &str = "lockgate-7.4.0-linux-amd64.tar.gz";

fn content() -> Vec<u8> {
    (0..100_000u32).flat_map(u32::to_le_bytes).collect()
}
fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256::new(sha2::Sha256::digest(bytes).into())
}

fn fill(mirror: &Path) {
    let release = mirror.join("7.4.0");
    fs::create_dir_all(&release).unwrap();
    fs::create_dir_all(mirror.join("metadata")).unwrap();
    fs::write(mirror.join("metadata/root.json"), b"{\"signed\":1}").unwrap();
    fs::write(release.join(ARCHIVE), content()).unwrap();
    fs::write(release.join("SHA256SUMS"), format!("{}  {ARCHIVE}\n", sha256(&content()))).unwrap();
}

async fn rig(mirror: &Path) -> Rig {
    fill(mirror);
    let rig = Rig::with(Setup { config: Config { mirror_dir: Some(mirror.to_owned()), ..Config::default() }, ..Setup::default() }).await;
    rig.auth.admit(7, 8);
    rig
}

fn host(rig: &Rig, number: u128) -> TlsIdentity {
    rig.cluster.member(id(number), "node1", SystemRole::Node, &[]).tls
}

async fn say<T: serde::Serialize>(stream: &mut IoStream, message: &T) {
    write_frame(stream, &encode(message, b"").unwrap(), SOON).await.unwrap();
}
/// `None` when the Proxy hung up.
async fn hear(stream: &mut IoStream) -> Option<(ToHost, Vec<u8>)> {
    let payload = read_frame(stream, SOON).await.ok()?;
    let (head, body) = decode(&payload).unwrap();
    Some((head, body.to_vec()))
}
async fn refused(stream: &mut IoStream) -> Public {
    match hear(stream).await.expect("an answer") {
        (ToHost::Refused { error, .. }, _) => error,
        other => panic!("{other:?}"),
    }
}
async fn advice(stream: &mut IoStream, version: &str) -> Advice {
    let status = Status { version: version.into(), os: "linux".into(), arch: "amd64".into(), ..Status::default() };
    say(stream, &ToProxy::Status(status)).await;
    match hear(stream).await.expect("an answer") {
        (ToHost::Advice(advice), _) => advice,
        other => panic!("{other:?}"),
    }
}
/// One fetch to its last chunk.
async fn fetch(stream: &mut IoStream, offset: u64, length: u64) -> (Vec<u8>, Chunk) {
    say(stream, &ToProxy::Fetch(Fetch { sha256: sha256(&content()), offset, length, extra: Extra::new() })).await;
    let mut all = Vec::new();
    loop {
        let (ToHost::Chunk(chunk), body) = hear(stream).await.expect("a chunk") else { panic!("no chunk") };
        assert_eq!(chunk.offset, offset.min(chunk.size) + u64::try_from(all.len()).unwrap());
        assert!(body.len() <= CHUNK);
        all.extend(body);
        if chunk.last {
            return (all, chunk);
        }
    }
}

#[tokio::test]
async fn a_host_of_any_version_is_told_what_is_next_and_the_auth_service_hears_of_it() {
    let mirror = tempfile::tempdir().unwrap();
    let rig = rig(mirror.path()).await;
    let mut stream = rig.tls(Some(&host(&rig, 1)), alpn::RESCUE).await.unwrap();
    let mut check = async |version: &str, action: Action, next: Option<&str>, artifacts: usize| {
        let told = advice(&mut stream, version).await;
        assert_eq!((told.action, told.version.as_deref(), told.artifacts.len()), (action, next, artifacts), "{version}: {told:?}");
        assert_eq!(told.proxy, "8.3.7");
        assert!(told.again > 0 && !told.why.is_empty() && !told.cure.is_empty());
    };
    check("6.1.0", Action::Install, Some("7.4.0"), 1).await;
    check("5.0.0", Action::Install, None, 0).await;
    check("0.1.0", Action::Install, None, 0).await;
    check("12.0.0", Action::Install, Some("8.3.7"), 0).await;
    check("8.3.0", Action::Retry, None, 0).await;
    check("", Action::Install, Some("8.3.7"), 0).await;
    check("soon", Action::Install, Some("8.3.7"), 0).await;
    let reports = rig.auth.quarantines();
    assert_eq!((reports[0].host_id.clone(), reports[0].version.as_str()), (id(1).to_string(), "6.1.0"));
    assert_eq!(reports[0].releases, ["7.4.0"]);
    // The windows close; and while the Auth Service is away, what it said last counts.
    rig.auth.admit(8, 8);
    check("7.0.0", Action::Install, Some("8.3.7"), 0).await;
    rig.auth.go_away();
    check("7.0.0", Action::Install, Some("8.3.7"), 0).await;
    assert_eq!(rig.metrics.rescue_connections.value(), 1);
}

#[tokio::test]
async fn a_proxy_that_is_itself_refused_gives_no_advice_of_yesterday() {
    let mirror = tempfile::tempdir().unwrap();
    let rig = rig(mirror.path()).await;
    let mut stream = rig.tls(Some(&host(&rig, 1)), alpn::RESCUE).await.unwrap();
    advice(&mut stream, "6.1.0").await;
    rig.auth.admit(0, 0);
    say(&mut stream, &ToProxy::Status(Status { version: "8.3.7".into(), ..Status::default() })).await;
    let told = refused(&mut stream).await;
    assert!(told.is(Code::Unavailable) && told.message.contains("itself refused for its version"), "{told}");
}

#[tokio::test]
async fn another_build_of_the_proxys_version_is_sent_to_the_clusters() {
    let mirror = tempfile::tempdir().unwrap();
    let rig = rig(mirror.path()).await;
    let mut stream = rig.tls(Some(&host(&rig, 1)), alpn::RESCUE).await.unwrap();
    let mut status = Status { version: "8.3.7".into(), content: Some("sha256:00".into()), ..Status::default() };
    say(&mut stream, &ToProxy::Status(status.clone())).await;
    let Some((ToHost::Advice(told), _)) = hear(&mut stream).await else { panic!() };
    assert_eq!(
        (told.action, told.version.as_deref(), told.cure.as_str()),
        (Action::Install, Some("8.3.7"), "install the cluster's build of 8.3.7")
    );
    assert!(rig.auth.quarantines()[0].other_build);
    status.content = Some(wire::content::digest().to_owned());
    say(&mut stream, &ToProxy::Status(status)).await;
    let Some((ToHost::Advice(told), _)) = hear(&mut stream).await else { panic!() };
    assert_eq!(told.action, Action::Retry);
}

#[tokio::test]
async fn a_release_is_fetched_by_its_digest_in_pieces_and_from_where_it_broke_off() {
    let mirror = tempfile::tempdir().unwrap();
    let rig = rig(mirror.path()).await;
    let mut stream = rig.tls(Some(&host(&rig, 1)), alpn::RESCUE).await.unwrap();
    let told = advice(&mut stream, "6.1.0").await;
    let file = &told.artifacts[0];
    assert_eq!((file.name.as_str(), file.sha256, file.size), (ARCHIVE, sha256(&content()), 400_000));
    let (whole, last) = fetch(&mut stream, 0, MAX_FETCH).await;
    assert!(whole == content() && last.size == 400_000);
    // Again on another connection, from the middle, and a length that nobody has.
    let mut again = rig.tls(Some(&host(&rig, 1)), alpn::RESCUE).await.unwrap();
    assert!(fetch(&mut again, 300_000, u64::MAX).await.0 == content()[300_000..]);
    assert!(fetch(&mut again, 7, 20_000).await.0 == content()[7..20_007]);
    assert_eq!(fetch(&mut again, 400_000, 1).await.0, b"");
    assert_eq!(fetch(&mut again, u64::MAX, 1).await.0, b"");
    assert_eq!(fetch(&mut again, 0, 0).await.0, b"");
    say(&mut again, &serde_json::json!({"type": "metadata", "name": "root.json", "length": 100})).await;
    assert_eq!(hear(&mut again).await.unwrap().1, b"{\"signed\":1}");
}

#[tokio::test]
async fn a_damaged_mirror_hands_nothing_out_and_what_it_has_not_is_not_there() {
    let mirror = tempfile::tempdir().unwrap();
    let rig = rig(mirror.path()).await;
    let mut bytes = content();
    bytes[5] ^= 1;
    fs::write(mirror.path().join("7.4.0").join(ARCHIVE), bytes).unwrap();
    let mut stream = rig.tls(Some(&host(&rig, 1)), alpn::RESCUE).await.unwrap();
    say(&mut stream, &ToProxy::Fetch(Fetch { sha256: sha256(&content()), offset: 0, length: 10, extra: Extra::new() })).await;
    assert!(refused(&mut stream).await.is(Code::MirrorBroken));
    say(&mut stream, &ToProxy::Fetch(Fetch { sha256: sha256(b"x"), offset: 0, length: 10, extra: Extra::new() })).await;
    assert!(refused(&mut stream).await.is(Code::NotFound));
    say(&mut stream, &serde_json::json!({"type": "metadata", "name": "timestamp.json", "length": 10})).await;
    assert!(refused(&mut stream).await.is(Code::NotFound));
    // The visit goes on all the while; without a mirror too.
    assert_eq!(advice(&mut stream, "6.1.0").await.version.as_deref(), Some("7.4.0"));
    let bare = Rig::start().await;
    let mut stream = bare.tls(Some(&host(&bare, 1)), alpn::RESCUE).await.unwrap();
    assert_eq!(advice(&mut stream, "6.1.0").await.version, None);
    say(&mut stream, &ToProxy::Fetch(Fetch { sha256: sha256(b"x"), offset: 0, length: 10, extra: Extra::new() })).await;
    assert!(refused(&mut stream).await.hint.unwrap().contains("mirror_dir"));
}

#[tokio::test]
async fn what_a_newer_host_says_is_refused_by_name_and_the_visit_goes_on() {
    let mirror = tempfile::tempdir().unwrap();
    let rig = rig(mirror.path()).await;
    let mut stream = rig.tls(Some(&host(&rig, 1)), alpn::RESCUE).await.unwrap();
    say(&mut stream, &serde_json::json!({"type": "patch", "from": "a", "to": "b"})).await;
    assert!(refused(&mut stream).await.is(Code::RescueUnknown));
    say(&mut stream, &serde_json::json!({"type": "status", "version": "6.1.0", "os": "linux", "arch": "amd64", "mood": {"x": 1}})).await;
    assert!(matches!(hear(&mut stream).await, Some((ToHost::Advice(advice), _)) if advice.artifacts.len() == 1));
}

#[tokio::test]
async fn attack_row_21_names_that_lead_elsewhere_and_bytes_that_are_no_message_end_the_visit() {
    let mirror = tempfile::tempdir().unwrap();
    let rig = rig(mirror.path()).await;
    for head in [
        serde_json::json!({"type": "metadata", "name": "../7.4.0/SHA256SUMS", "length": 10}),
        serde_json::json!({"type": "metadata", "name": "/etc/passwd", "length": 10}),
        serde_json::json!({"type": "fetch", "sha256": "../../etc/passwd", "length": 10}),
        serde_json::json!({"type": "fetch", "length": -1}),
        serde_json::json!([]),
    ] {
        let mut stream = rig.tls(Some(&host(&rig, 1)), alpn::RESCUE).await.unwrap();
        say(&mut stream, &head).await;
        assert!(refused(&mut stream).await.is(Code::Malformed), "{head}");
        assert!(hear(&mut stream).await.is_none(), "{head}");
    }
    // Lockgate's other protocols are not spoken at this door.
    let hello = wire::hello::encode(&wire::hello::Hello::ours(&crate::rig::version(), "node"));
    let register = br#"{"type":"register","host_id":"00000000-0000-0000-0000-000000000001","boot_id":"b"}"#.to_vec();
    let dial = br#"{"target":{"name":"node1"}}"#.to_vec();
    for bytes in [hello, register, dial, b"LGR1\xff\xff".to_vec(), Vec::new()] {
        let mut stream = rig.tls(Some(&host(&rig, 1)), alpn::RESCUE).await.unwrap();
        write_frame(&mut stream, &bytes, SOON).await.unwrap();
        assert!(refused(&mut stream).await.is(Code::Malformed));
        assert!(hear(&mut stream).await.is_none());
    }
    assert_eq!((*rig.tunnels.borrow(), rig.metrics.sessions.value()), (0, 0));
}

#[tokio::test]
async fn members_of_every_role_fetch_from_the_mirror_and_only_resource_services_are_reported() {
    let mirror = tempfile::tempdir().unwrap();
    let rig = rig(mirror.path()).await;
    for (number, role) in (20..).zip([SystemRole::Auth, SystemRole::Proxy, SystemRole::Db, SystemRole::Other("app".into())]) {
        let member = rig.cluster.member(id(number), "m", role, &[]).tls;
        let mut stream = rig.tls(Some(&member), alpn::RESCUE).await.unwrap();
        assert_eq!(advice(&mut stream, "6.1.0").await.artifacts.len(), 1);
        assert!(fetch(&mut stream, 0, 10).await.0 == content()[..10]);
    }
    let reported: Vec<_> = rig.auth.quarantines().into_iter().map(|report| report.host_id).collect();
    assert_eq!(reported, [id(22).to_string(), id(23).to_string()]);
}

#[tokio::test]
async fn strangers_users_and_foreign_or_ended_certificates_get_not_a_word() {
    let mirror = tempfile::tempdir().unwrap();
    let rig = rig(mirror.path()).await;
    let silent = async |identity: Option<&TlsIdentity>, who: &str| {
        if let Ok(mut stream) = rig.tls(identity, alpn::RESCUE).await {
            let _closed_perhaps = write_frame(&mut stream, &encode(&ToProxy::Status(Status::default()), b"").unwrap(), SOON).await;
            assert!(hear(&mut stream).await.is_none(), "{who}");
        }
    };
    let foreign = Cluster::new("example");
    silent(None, "nobody").await;
    silent(Some(&rig.cluster.user("alice", &["admin"]).tls), "a user").await;
    silent(Some(&rig.cluster.member(id(9), "admin", SystemRole::Admin, &[]).tls), "an administrator's certificate").await;
    silent(Some(&foreign.member(id(1), "node1", SystemRole::Node, &[]).tls), "another cluster's host").await;
    let ended = host(&rig, 1);
    rig.clock.advance(30 * HOUR);
    silent(Some(&ended), "a host whose certificate has ended").await;
    assert!(rig.auth.quarantines().is_empty());
    rig.auth.event(|event| serde_json::to_string(event).is_ok_and(|text| text.contains("lockgate-rescue"))).await;
}

#[tokio::test]
async fn attack_row_13_a_locked_host_is_told_so_and_gets_nothing_also_in_the_middle_of_a_visit() {
    let mirror = tempfile::tempdir().unwrap();
    let rig = rig(mirror.path()).await;
    rig.cache.put([node(1, "node1", "env=dev", "")]);
    let mut open = rig.tls(Some(&host(&rig, 1)), alpn::RESCUE).await.unwrap();
    advice(&mut open, "6.1.0").await;
    let lock = Lock { target: LockTarget { node: Some(id(1)), ..LockTarget::default() }, message: "stolen".into(), extra: Extra::new() };
    let mut metadata = Metadata::named(ResourceName::new("stolen").unwrap());
    metadata.expires = Some(now().plus(HOUR));
    rig.cache.put([Resource::new(metadata, lock).to_document()]);
    say(&mut open, &ToProxy::Fetch(Fetch { sha256: sha256(&content()), offset: 0, length: 10, extra: Extra::new() })).await;
    assert!(refused(&mut open).await.is(Code::AccessLocked));
    assert!(hear(&mut open).await.is_none());
    let mut fresh = rig.tls(Some(&host(&rig, 1)), alpn::RESCUE).await.unwrap();
    assert!(refused(&mut fresh).await.is(Code::AccessLocked));
    assert!(hear(&mut fresh).await.is_none());
    // Another host is served as before.
    let mut other = rig.tls(Some(&host(&rig, 2)), alpn::RESCUE).await.unwrap();
    assert_eq!(advice(&mut other, "6.1.0").await.artifacts.len(), 1);
}

#[tokio::test]
async fn the_directive_in_force_is_handed_to_members_as_the_cluster_signed_it_also_while_the_auth_service_is_away() {
    let mirror = tempfile::tempdir().unwrap();
    let rig = rig(mirror.path()).await;
    let ask = ToProxy::Metadata(wire::rescue::Metadata {
        name: wire::directive::FILE.parse().unwrap(),
        offset: 0,
        length: MAX_FETCH,
        extra: Extra::new(),
    });
    // A mirror cannot put one in its place.
    fs::write(mirror.path().join("metadata").join(wire::directive::FILE), b"forged").unwrap();
    let mut stream = rig.tls(Some(&host(&rig, 1)), alpn::RESCUE).await.unwrap();
    say(&mut stream, &ask).await;
    assert!(refused(&mut stream).await.is(Code::NotFound), "the cluster directs nothing");
    let signed = types::update::SignedDirective { directive: "{\"generation\":7}".into(), signature: "c2lnbmVk".into() };
    let spec = types::update::UpdateDirective { signed: signed.clone(), ..Default::default() };
    let name = ResourceName::new(types::kind::singleton::UPDATE_DIRECTIVE).unwrap();
    rig.auth.directs(Resource::new(Metadata::named(name), spec).to_document());
    // What was asked a moment ago is not asked again: another Proxy's guest would cost the Auth Service nothing.
    say(&mut stream, &ask).await;
    assert!(refused(&mut stream).await.is(Code::NotFound));
    rig.clock.advance(std::time::Duration::from_secs(21));
    let mut told = async || {
        say(&mut stream, &ask).await;
        let (ToHost::Chunk(chunk), body) = hear(&mut stream).await.expect("a chunk") else { panic!("no chunk") };
        assert!(chunk.last);
        serde_json::from_slice::<types::update::SignedDirective>(&body).unwrap()
    };
    assert_eq!(told().await, signed);
    rig.auth.go_away();
    assert_eq!(told().await, signed);
}
