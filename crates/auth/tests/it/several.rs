//! Several Auth Services on one store: what each of them must not decide as if it were alone.

use crate::{
    audit::{chunks, film, read, sessions},
    fixture::*,
};
use auth::{Storage, password::otp_code};
use net::clock::ManualClock;
use std::{sync::Arc, time::Duration};
use store::{Batch, Handle, Key, Memory, Store};
use types::{Code, NodeName, SystemRole, Time};
use wire::api as pb;

struct Hands(ManualClock);
impl store::Clock for Hands {
    fn now(&self) -> Time {
        net::clock::Clock::now(&self.0)
    }
}

/// What the Auth Services of one cluster share.
pub(crate) struct Shared {
    pub(crate) clock: ManualClock,
    pub(crate) store: Arc<dyn Store>,
    recordings: tempfile::TempDir,
}

impl Shared {
    pub(crate) fn new() -> Self {
        let clock = ManualClock::new(Time::from_unix(START));
        let store = Arc::new(Memory::new(Arc::new(Hands(clock.clone()))));
        Self { clock, store, recordings: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn config(&self, number: u128, dir: &std::path::Path) -> auth::Config {
        auth::Config {
            storage: Storage::Open(Arc::new(Handle::on(self.store.clone()))),
            host_id: host_id(number),
            node_name: NodeName::new(format!("auth{number}")).unwrap(),
            recordings_dir: Some(self.recordings.path().to_owned()),
            ..config(dir)
        }
    }

    pub(crate) async fn start(&self, number: u128) -> Cluster {
        self.start_in(number, Arc::new(tempfile::tempdir().unwrap())).await
    }

    /// With recordings in a directory of its own.
    pub(crate) async fn start_apart(&self, number: u128, dir: Arc<tempfile::TempDir>) -> Cluster {
        let config = auth::Config { recordings_dir: None, ..self.config(number, dir.path()) };
        Cluster::from(dir, config, self.clock.clone(), "8.1.0").await
    }

    async fn start_in(&self, number: u128, dir: Arc<tempfile::TempDir>) -> Cluster {
        let config = self.config(number, dir.path());
        Cluster::from(dir, config, self.clock.clone(), "8.1.0").await
    }
}

pub(crate) async fn pair() -> (Shared, Cluster, Cluster) {
    let shared = Shared::new();
    let (one, two) = tokio::join!(Box::pin(shared.start(1)), Box::pin(shared.start(2)));
    (shared, one, two)
}

/// Looks again after each change of the store, once these show it.
pub(crate) async fn soon<T, F: Future<Output = Option<T>>>(
    shared: &Shared,
    auths: &[&Cluster],
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let looking = async {
        let mut changes = shared.store.watch(Vec::new(), None).await.unwrap();
        loop {
            futures::future::join_all(auths.iter().map(|cluster| cluster.auth.caught_up())).await;
            if let Some(found) = look().await {
                return found;
            }
            changes.next().await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looking).await.unwrap_or_else(|_| panic!("not within twenty seconds: {what}"))
}

/// The same for what is outside the store: asks again when the last answer has come.
pub(crate) async fn again<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looking).await.unwrap_or_else(|_| panic!("not within twenty seconds: {what}"))
}

#[tokio::test]
async fn six_started_at_once_on_an_empty_store_are_one_cluster() {
    let shared = Shared::new();
    let dirs: Vec<_> = (0..6).map(|_| tempfile::tempdir().unwrap()).collect();
    let starts = (1..).zip(&dirs).map(|(number, dir)| auth::build(shared.config(number, dir.path()), world(&shared.clock, "8.1.0")));
    let all: Vec<_> = futures::future::join_all(starts).await.into_iter().map(Result::unwrap).collect();
    assert!(all.iter().all(|auth| auth.ca_pins() == all[0].ca_pins() && !auth.ca_pins().is_empty()));
    let files: Vec<_> = dirs.iter().map(|dir| admin_file(dir.path())).collect();
    assert!(files.iter().all(|file| file.authorities == files[0].authorities));
}

#[tokio::test]
async fn what_one_writes_the_other_serves_and_refuses() {
    let (_shared, one, two) = pair().await;
    let secret = one.user("alice", &["access"], &["app"]).await;
    two.auth.caught_up().await;
    get(&mut two.admin(), "user", "alice").await.unwrap();
    assert_eq!(names(&mut two.admin(), "user").await, ["alice"]);
    let keys = Keys::new();
    let code = otp_code(&secret, one.now()).unwrap();
    let reply = two.proxy().await.login(login_request("alice", PASSWORD, &code, &keys)).await.unwrap().into_inner();
    // A certificate of one is good at the other: the authorities are one.
    let mut alice = one.client(Some(&keys.identity(&reply.tls_certificate)), "tsh");
    alice.get(pb::GetRequest { kind: "user".into(), name: "alice".into() }).await.unwrap();
    let lock = serde_json::json!({"kind": "lock", "version": "v1", "metadata": {"name": "l"}, "spec": {"target": {"user": "alice"}}});
    create(&mut two.admin(), &document(lock)).await.unwrap();
    one.auth.caught_up().await;
    assert!(error(alice.get(pb::GetRequest { kind: "user".into(), name: "alice".into() }).await).is(Code::AccessLocked));
}

#[tokio::test]
async fn an_invitation_is_accepted_once_and_a_code_is_used_once_whichever_is_asked() {
    let (shared, one, two) = pair().await;
    create(&mut one.admin(), &user_document("alice", &["access"], &["app"])).await.unwrap();
    two.auth.caught_up().await;
    let invite = one.admin().create_invite(pb::CreateInviteRequest { user: "alice".into(), ttl: 0 }).await.unwrap().into_inner();
    let (mut here, mut there) = (one.proxy().await, two.proxy().await);
    let shown = there.get_invite(pb::GetInviteRequest { secret: invite.secret.clone() }).await.unwrap().into_inner();
    let secret = secret_of(&shown.otp_url);
    let accept = |password: &str| pb::AcceptInviteRequest {
        secret: invite.secret.clone(),
        password: password.into(),
        otp: otp_code(&secret, one.now()).unwrap(),
        client_addr: String::new(),
    };
    let (first, second) = tokio::join!(here.accept_invite(accept(PASSWORD)), there.accept_invite(accept("another long password")));
    assert_eq!([first.is_ok(), second.is_ok()].iter().filter(|done| **done).count(), 1, "{first:?} {second:?}");
    let password = if first.is_ok() { PASSWORD } else { "another long password" };
    for _ in 0..8 {
        shared.clock.advance(Duration::from_secs(60));
        let code = otp_code(&secret, one.now()).unwrap();
        let (first, second) = tokio::join!(
            here.login(login_request("alice", password, &code, &Keys::new())),
            there.login(login_request("alice", password, &code, &Keys::new()))
        );
        assert_eq!([first.is_ok(), second.is_ok()].iter().filter(|done| **done).count(), 1, "{first:?} {second:?}");
    }
}

#[tokio::test]
async fn attack_row_24_wrong_guesses_at_several_auth_services_count_together() {
    let (_shared, one, two) = pair().await;
    one.user("alice", &["access"], &["app"]).await;
    two.auth.caught_up().await;
    let (here, there) = (one.proxy().await, two.proxy().await);
    let guesses = (0..12).map(|number| {
        let mut proxy = if number % 2 == 0 { here.clone() } else { there.clone() };
        async move { proxy.login(login_request("alice", &format!("guess number {number}"), "000000", &Keys::new())).await }
    });
    let answers = futures::future::join_all(guesses).await;
    assert!(answers.iter().all(Result::is_err));
    let both = [one, two];
    let counted = both.iter().map(|cluster| events(cluster, "user.lock"));
    let locked: usize = futures::future::join_all(counted).await.iter().map(Vec::len).sum();
    assert_eq!(locked, 1, "one account is locked once, by whoever counted the last guess");
}

#[tokio::test]
async fn attack_row_28_a_host_id_is_given_once_and_a_copied_key_is_found_out_between_them() {
    let (_shared, one, two) = pair().await;
    let ask = |token: &str, id: u128, keys: &Keys| pb::JoinRequest {
        token: token.into(),
        host_id: host_id(id).to_string(),
        node_name: format!("web-{id}"),
        roles: vec!["node".into()],
        ssh_public_key: keys.ssh_line(),
        tls_public_key: keys.spki().into(),
        names: Vec::new(),
    };
    let make = pb::CreateTokenRequest { roles: vec!["node".into()], ..Default::default() };
    let token = one.admin().create_token(make).await.unwrap().into_inner().token;
    for id in 20..28 {
        let (mut here, mut there) = (one.stranger(), two.stranger());
        let (a, b) = (Keys::new(), Keys::new());
        // Good at the other at once, whether its mirror shows it or not.
        let (first, second) = tokio::join!(here.join(ask(&token, id, &a)), there.join(ask(&token, id, &b)));
        assert_eq!([first.is_ok(), second.is_ok()].iter().filter(|done| **done).count(), 1, "{first:?} {second:?}");
    }
    let renew = |mut client: Client| async move {
        let keys = Keys::new();
        let ask = pb::RenewHostRequest { ssh_public_key: keys.ssh_line(), tls_public_key: keys.spki().into(), names: Vec::new() };
        client.renew_host(ask).await.map(|reply| (keys, reply.into_inner()))
    };
    let (_, _, identity) = one.member(11, SystemRole::Node).await;
    let (keys, reply) = renew(one.client(Some(&identity), "node")).await.unwrap();
    let mut renewed = one.client(Some(&keys.identity(&reply.tls_certificate)), "node");
    renewed.heartbeat(beat(11, "x", &[], 0)).await.unwrap();
    let copy = renew(two.client(Some(&identity), "node")).await;
    assert!(error(copy.map(|_| ())).is(Code::AccessLocked));
}

#[tokio::test]
async fn each_keeps_its_own_audit_log_says_so_and_cannot_show_anothers() {
    let (shared, one, two) = pair().await;
    create(&mut one.admin(), &role_document("at-one", serde_json::json!({}))).await.unwrap();
    let seen = |cluster: &Cluster| {
        let mut admin = cluster.admin();
        async move { admin.verify_audit(pb::Empty {}).await.unwrap().into_inner() }
    };
    let noted = || async { Some(seen(&one).await).filter(|verdict| verdict.note.contains("auth2")) };
    let verdict = soon(&shared, &[&one], "both in the inventory", noted).await;
    assert!(
        verdict.intact && verdict.note.starts_with("this is the log of auth1; other Auth Services keep their own: auth2 (127.0.0.1:"),
        "{}",
        verdict.note
    );
    assert!(seen(&two).await.intact);
    assert_eq!((events(&one, "resource.create").await.len(), events(&two, "resource.create").await.len()), (1, 0));
    for number in 1..=3 {
        create(&mut two.admin(), &role_document(&format!("at-two-{number}"), serde_json::json!({}))).await.unwrap();
    }
    // Whoever puts the longer log of one in place of the other's is found out.
    let anchor = Key::parse(format!("internal/audit/anchor/{}", host_id(1))).unwrap();
    one.shutdown.stop();
    soon(&shared, &[], "its log's end in the store", || async { shared.store.get(&anchor).await.unwrap() }).await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("auth")).unwrap();
    std::fs::rename(two.dir.path().join("auth/audit"), dir.path().join("auth/audit")).unwrap();
    let again = shared.start_in(1, Arc::new(dir)).await;
    let verdict = seen(&again).await;
    assert!(!verdict.intact && verdict.fault.contains("were replaced"), "{verdict:?}");
}

#[tokio::test]
async fn after_a_restore_one_log_goes_on_behind_the_backups_and_the_others_begin_anew() {
    let shared = Shared::new();
    drop(auth::build(shared.config(9, tempfile::tempdir().unwrap().path()), world(&shared.clock, "8.1.0")).await.unwrap());
    let head = serde_json::json!({"events": 41, "hash": "ab".repeat(32)});
    let mut origin = head.clone();
    origin["restored"] = "2027-01-15T08:00:00Z".into();
    let batch = Batch::new(None).put(Key::parse("internal/audit/anchor").unwrap(), head.to_string().into_bytes(), None).put(
        Key::parse("internal/audit/origin").unwrap(),
        origin.to_string().into_bytes(),
        None,
    );
    shared.store.commit(batch).await.unwrap();
    let (one, two) = tokio::join!(Box::pin(shared.start(1)), Box::pin(shared.start(2)));
    let mut going_on = 0;
    for cluster in [&one, &two] {
        let verdict = cluster.admin().verify_audit(pb::Empty {}).await.unwrap().into_inner();
        assert!(verdict.intact, "{}", verdict.fault);
        if verdict.note.contains("continues an earlier log behind event 40") {
            assert!(verdict.events > 41);
            going_on += 1;
        }
    }
    assert_eq!(going_on, 1);
    assert_eq!(shared.store.get(&Key::parse("internal/audit/origin").unwrap()).await.unwrap(), None);
}

#[tokio::test]
async fn what_lapses_goes_once_however_many_look_after_it() {
    let (shared, one, two) = pair().await;
    let mut watch = shared.store.watch(vec![Key::dir(["doc", "token"]).unwrap()], None).await.unwrap();
    watch.next().await.unwrap().unwrap();
    // Housekeeping of both looks each second; by the third token's end everybody had looked after the first's.
    for _ in 0..3 {
        let make = pb::CreateTokenRequest { roles: vec!["node".into()], ttl: 60, ..Default::default() };
        let name = one.admin().create_token(make).await.unwrap().into_inner().name;
        shared.clock.advance(Duration::from_secs(61));
        let mut next = async || tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap().unwrap();
        let (made, gone) = (next().await, next().await);
        assert!(matches!(&made, store::Event::Put(item) if item.key.to_string().ends_with(&name)), "{made:?}");
        assert!(matches!(&gone, store::Event::Delete { key, .. } if key.to_string().ends_with(&name)), "{gone:?}");
        for cluster in [&one, &two] {
            assert!(!names(&mut cluster.admin(), "token").await.contains(&name));
        }
    }
}

#[tokio::test]
async fn recordings_in_a_shared_directory_are_listed_and_read_at_each_and_taken_once() {
    let (_shared, one, two) = pair().await;
    let (mut here, _, identity) = one.member(11, SystemRole::Node).await;
    let mut there = two.client(Some(&identity), "node");
    let alices = film(1, 11, "alice");
    here.upload_recording(tokio_stream::iter(chunks(&alices, 0))).await.unwrap();
    assert_eq!(sessions(&mut two.admin()).await, ["alice"]);
    assert_eq!(read(&mut two.admin(), 1, 0).await.unwrap(), alices.bytes);
    // The agent's connection moved on before it heard the answer.
    there.upload_recording(tokio_stream::iter(chunks(&alices, 0))).await.unwrap();
    // The first may have died before it could write that down, so both do, as one event.
    let (first, second) = (events(&one, "session.upload").await, events(&two, "session.upload").await);
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_eq!(first[0].uid, second[0].uid);
    // Two different ones of one session at once: one stands, whole.
    let (bobs, forged) = (film(2, 11, "bob"), film(2, 11, "mallory"));
    let (first, second) = tokio::join!(
        here.upload_recording(tokio_stream::iter(chunks(&bobs, 0))),
        there.upload_recording(tokio_stream::iter(chunks(&forged, 0)))
    );
    assert_eq!([first.is_ok(), second.is_ok()].iter().filter(|done| **done).count(), 1, "{first:?} {second:?}");
    let stands = if first.is_ok() { &bobs } else { &forged };
    for cluster in [&one, &two] {
        assert_eq!(&read(&mut cluster.admin(), 2, 0).await.unwrap(), &stands.bytes);
        assert_eq!(sessions(&mut cluster.admin()).await.len(), 2);
    }
    // What broke off at one goes on at the other.
    let carols = film(3, 11, "carol");
    let mut broken = chunks(&carols, 0);
    broken.truncate(2);
    assert!(here.upload_recording(tokio_stream::iter(broken)).await.is_err());
    there.upload_recording(tokio_stream::iter(chunks(&carols, 200_000))).await.unwrap();
    assert_eq!(read(&mut one.admin(), 3, 0).await.unwrap(), carols.bytes);
}

#[tokio::test]
async fn every_auth_service_stands_in_the_inventory_with_its_address_and_says_when_it_leaves() {
    let (shared, one, two) = pair().await;
    let all = || async {
        let mut found = Vec::new();
        for name in names(&mut one.admin(), "member").await {
            found.push(get(&mut one.admin(), "member", &name).await.unwrap());
        }
        found
    };
    let found = soon(&shared, &[&one], "both", || async { Some(all().await).filter(|found| found.len() == 2) }).await;
    for (document, cluster) in found.iter().zip([&one, &two]) {
        assert_eq!(document.spec["auth_addr"], cluster.auth.local_addr().to_string());
        assert_eq!((&document.spec["state"], &document.spec["roles"][0]), (&"active".into(), &"auth".into()));
    }
    two.shutdown.drain();
    let drains = || async { all().await.iter().any(|document| document.spec["state"] == "draining").then_some(()) };
    soon(&shared, &[&one], "it drains", drains).await;
}
