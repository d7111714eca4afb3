//! Recordings in directories of their own: each Auth Service shows what the others keep, to whom may see it, and says what is missing.

use crate::{
    audit::{Film, chunks, film, read},
    fixture::*,
    several::{Shared, soon},
};
use auth::password::otp_code;
use std::sync::Arc;
use store::Key;
use types::{Code, SystemRole, kind::Recording};
use wire::api as pb;

/// Two Auth Services, and a recording of alice at the first, one of bob at the second.
struct Apart {
    shared: Shared,
    one: Cluster,
    two: Cluster,
    films: [Film; 2],
}

impl Apart {
    async fn new() -> Self {
        let shared = Shared::new();
        let dir = || Arc::new(tempfile::tempdir().unwrap());
        let (one, two) = tokio::join!(Box::pin(shared.start_apart(1, dir())), Box::pin(shared.start_apart(2, dir())));
        let (mut here, _, identity) = one.member(11, SystemRole::Node).await;
        two.auth.caught_up().await;
        let mut there = two.client(Some(&identity), "node");
        let films = [film(1, 11, "alice"), film(2, 11, "bob")];
        here.upload_recording(tokio_stream::iter(chunks(&films[0], 0))).await.unwrap();
        there.upload_recording(tokio_stream::iter(chunks(&films[1], 0))).await.unwrap();
        let apart = Self { shared, one, two, films };
        apart.noted(2, 1).await;
        apart.noted(1, 1).await;
        apart
    }

    /// Waits until an Auth Service has noted that so many recordings lie with it.
    async fn noted(&self, number: u128, count: u64) {
        let key = Key::parse(format!("internal/recordings/{}", host_id(number))).unwrap();
        soon(&self.shared, &[], "the note", || async {
            let item = self.shared.store.get(&key).await.unwrap()?;
            (serde_json::from_slice::<serde_json::Value>(&item.value).unwrap()["recordings"] == count).then_some(())
        })
        .await;
    }
}

async fn list(client: &mut Client) -> (Vec<String>, Vec<String>) {
    let reply = client.list_recordings(pb::ListRecordingsRequest::default()).await.unwrap().into_inner();
    let users = reply.recordings.iter().map(|bytes| serde_json::from_slice::<Recording>(bytes).unwrap().user);
    (users.collect(), reply.notes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recordings_of_both_are_listed_and_read_at_each() {
    let apart = Apart::new().await;
    for cluster in [&apart.one, &apart.two] {
        let mut admin = cluster.admin();
        assert_eq!(list(&mut admin).await, (vec!["bob".to_owned(), "alice".to_owned()], Vec::new()));
        for (number, film) in (1..).zip(&apart.films) {
            assert_eq!(read(&mut admin, number, 0).await.unwrap(), film.bytes);
            assert_eq!(read(&mut admin, number, 500_000).await.unwrap(), film.bytes[500_000..]);
        }
        assert!(read(&mut admin, 3, 0).await.unwrap_err().is(Code::NotFound));
        let windowed = pb::ListRecordingsRequest { limit: 1, ..Default::default() };
        assert_eq!(admin.list_recordings(windowed).await.unwrap().into_inner().recordings.len(), 1);
    }
    // An upload that the host had to repeat at the other lies at both and is one recording.
    let (_, _, identity) = apart.one.member(12, SystemRole::Node).await;
    apart.two.auth.caught_up().await;
    let again = film(3, 12, "carol");
    for cluster in [&apart.one, &apart.two] {
        cluster.client(Some(&identity), "node").upload_recording(tokio_stream::iter(chunks(&again, 0))).await.unwrap();
    }
    assert_eq!(list(&mut apart.one.admin()).await.0, ["carol", "bob", "alice"]);
    // Reading one is an event where it was asked for.
    let asked = events(&apart.one, "session.recording.access").await;
    assert!(asked.iter().any(|event| event.text("session_user") == "bob"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_shown_his_own_wherever_they_lie_and_cannot_tell_anothers_from_none() {
    let apart = Apart::new().await;
    for (user, own) in [("bob", Some(2)), ("mallory", None)] {
        let (secret, keys) = (apart.one.user(user, &["access"], &["app"]).await, Keys::new());
        let code = otp_code(&secret, apart.one.now()).unwrap();
        let reply = apart.one.proxy().await.login(login_request(user, PASSWORD, &code, &keys)).await.unwrap().into_inner();
        let identity = keys.identity(&reply.tls_certificate);
        apart.two.auth.caught_up().await;
        for cluster in [&apart.one, &apart.two] {
            let mut client = cluster.client(Some(&identity), "tsh");
            let shown: Vec<String> = own.iter().map(|_| user.to_owned()).collect();
            assert_eq!(list(&mut client).await, (shown, Vec::new()));
            let none = read(&mut client, 77, 0).await.unwrap_err();
            assert!(none.is(Code::NotFound));
            for number in [1, 2] {
                match read(&mut client, number, 0).await {
                    Ok(bytes) => assert_eq!((own, &bytes), (Some(number), &apart.films[1].bytes)),
                    Err(refused) => assert_eq!((own == Some(number), &refused), (false, &none)),
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_down_is_named_with_what_lies_there_until_it_is_back() {
    let apart = Apart::new().await;
    let (address, mut admin) = (apart.two.auth.local_addr(), apart.one.admin());
    let dir = apart.two.stop().await;
    let (users, notes) = list(&mut admin).await;
    let want = format!("auth2 ({address}) does not answer: recordings that lie only there (1 when last heard of) are missing here");
    assert_eq!((users, notes), (vec!["alice".to_owned()], vec![want]));
    // It may be there: this is not "there is none".
    let missing = read(&mut admin, 2, 0).await.unwrap_err();
    assert!(missing.is(Code::Unavailable) && missing.message.contains(&format!("auth2 ({address})")), "{missing}");
    assert_eq!(read(&mut admin, 77, 0).await.unwrap_err(), missing);
    assert_eq!(read(&mut admin, 1, 0).await.unwrap(), apart.films[0].bytes);
    // Back, on another port.
    let two = apart.shared.start_apart(2, dir).await;
    let again = two.auth.local_addr().to_string();
    let note = Key::parse(format!("internal/recordings/{}", host_id(2))).unwrap();
    soon(&apart.shared, &[], "the new note", || async {
        let item = apart.shared.store.get(&note).await.unwrap()?;
        String::from_utf8_lossy(&item.value).contains(&again).then_some(())
    })
    .await;
    assert_eq!(list(&mut admin).await, (vec!["bob".to_owned(), "alice".to_owned()], Vec::new()));
    assert_eq!(read(&mut admin, 2, 0).await.unwrap(), apart.films[1].bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_had_a_recording_leaves_no_note() {
    let shared = Shared::new();
    let one = shared.start_apart(1, Arc::new(tempfile::tempdir().unwrap())).await;
    let two = shared.start_apart(2, Arc::new(tempfile::tempdir().unwrap())).await;
    let note = Key::parse(format!("internal/recordings/{}", host_id(2))).unwrap();
    soon(&shared, &[], "the note", || async { shared.store.get(&note).await.unwrap() }).await;
    two.stop().await;
    assert_eq!(shared.store.get(&note).await.unwrap(), None);
    assert_eq!(list(&mut one.admin()).await, (Vec::new(), Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_auth_service_is_given_what_one_keeps() {
    let apart = Apart::new().await;
    let list = |mut client: Client| async move { client.list_own_recordings(pb::ListOwnRecordingsRequest::default()).await };
    let one = uuid::Uuid::from_u128(1).to_string();
    let ask = move || pb::ReadRecordingRequest { session: one.clone(), offset: 0 };
    for role in [SystemRole::Proxy, SystemRole::Node, SystemRole::Db] {
        let (mut member, ..) = apart.one.member(100, role).await;
        assert!(error(list(member.clone()).await).is(Code::AccessDenied));
        assert!(error(member.read_own_recording(ask()).await).is(Code::AccessDenied));
    }
    let mut admin = apart.one.admin();
    assert!(error(list(admin.clone()).await).is(Code::AccessDenied));
    assert!(error(admin.read_own_recording(ask()).await).is(Code::AccessDenied));
    assert!(error(list(apart.one.stranger()).await).is(Code::LoginRequired));
    let (peer, _, _) = apart.one.member(3, SystemRole::Auth).await;
    let own = list(peer).await.unwrap().into_inner();
    assert_eq!(own.recordings.len(), 1, "its own, not those of the other");
}
