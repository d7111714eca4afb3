//! What happens to sessions while they last: rights that end, clients that go, a service that stops, a process that dies.

use crate::world::{Badge, Reports, SOON, World, collect, exec, name, own_login, read_recording, role};
use agent::spool::Spool;
use std::{sync::Arc, time::Duration};
use types::{
    Metadata, Resource, Time,
    kind::{Lock, LockTarget},
    role::Options,
};

async fn sleeper(world: &World, badge: &Badge) -> (russh::client::Handle<crate::world::Anyone>, russh::ChannelReadHalf) {
    let client = world.enter(own_login().as_str(), badge).await;
    let channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "exec sleep 100").await.unwrap();
    world.event("session.start").await;
    (client, channel.split().0)
}

#[tokio::test]
async fn a_revoked_role_ends_the_session() {
    let world = World::new();
    let (_client, mut read) = sleeper(&world, &world.badge("alice")).await;
    world.put_user("alice", &[]);
    let output = collect(&mut read).await;
    assert!(output.errors().starts_with("error: the session was ended\ncause: "), "{output:?}");
    let end = world.event("session.end").await;
    assert_eq!((end.text("user"), end.text("exit_signal")), ("alice", "HUP"));
}

#[tokio::test]
async fn a_lock_ends_the_session_with_its_message() {
    let world = World::new();
    let (_client, mut read) = sleeper(&world, &world.badge("alice")).await;
    let lock = Lock {
        target: LockTarget { user: Some("alice".into()), ..LockTarget::default() },
        message: "incident 7".into(),
        ..Lock::default()
    };
    world.cache.put([Resource::new(Metadata::named(name("l")), lock).to_document()]);
    assert!(collect(&mut read).await.errors().contains("incident 7"));
}

#[tokio::test]
async fn a_certificates_end_ends_the_session_only_where_a_role_says_so() {
    let world = World::new();
    let mut identity = world.identity("alice");
    identity.expires = Time::from(std::time::SystemTime::now()).plus(Duration::from_millis(2500));
    let badge = world.badge_of(&identity);
    let (_lenient, mut goes_on) = sleeper(&world, &badge).await;
    world.put_role("dev", types::role::Role { options: Options { disconnect_expired_cert: true, ..Options::default() }, ..role() });
    world.put_role("lenient", role());
    let (_strict, mut ends) = sleeper(&world, &badge).await;
    assert!(collect(&mut ends).await.errors().contains("the certificate ended"));
    // The role holds for both; the first shows that a change of roles counts for sessions that run.
    assert!(collect(&mut goes_on).await.errors().contains("the certificate ended"));
}

#[tokio::test]
async fn a_session_outlives_its_certificate_when_no_role_says_otherwise() {
    let world = World::new();
    let mut identity = world.identity("alice");
    identity.expires = Time::from(std::time::SystemTime::now()).plus(Duration::from_millis(2200));
    let client = world.enter(own_login().as_str(), &world.badge_of(&identity)).await;
    let output = exec(&client, "sleep 3; echo still here", "").await;
    assert_eq!(output.text().trim(), "still here");
}

#[tokio::test]
async fn nothing_new_begins_on_a_connection_whose_certificate_has_ended() {
    let world = World::new();
    let mut identity = world.identity("alice");
    identity.expires = Time::from(std::time::SystemTime::now()).plus(Duration::from_millis(2200));
    let client = world.enter(own_login().as_str(), &world.badge_of(&identity)).await;
    // Opened while the certificate was good; what was started then goes on.
    let early = client.channel_open_session().await.unwrap();
    assert_eq!(exec(&client, "sleep 3; echo still here", "").await.text().trim(), "still here");
    early.exec(true, "echo new").await.unwrap();
    let output = collect(&mut early.split().0).await;
    assert!(output.stdout.is_empty() && output.errors().contains("the certificate ended"), "{output:?}");
    assert_eq!(output.status, Some(255));
    assert!(client.channel_open_direct_tcpip("127.0.0.1", 9, "127.0.0.1", 1).await.is_err());
}

#[tokio::test]
async fn an_idle_session_is_ended() {
    let world = World::new();
    let options = Options { client_idle_timeout: Some("300ms".parse().unwrap()), ..Options::default() };
    world.put_role("dev", types::role::Role { options, ..role() });
    let (_client, mut read) = sleeper(&world, &world.badge("alice")).await;
    assert!(collect(&mut read).await.errors().contains("nothing was sent or received"));
}

#[tokio::test]
async fn a_client_that_goes_hangs_its_program_up() {
    let world = World::new();
    let (client, read) = sleeper(&world, &world.badge("alice")).await;
    drop((client, read));
    assert_eq!(world.event("session.end").await.text("reason"), "the client went away");
}

#[tokio::test]
async fn stopping_ends_sessions_and_completes_their_recordings() {
    let world = World::new();
    let (_client, mut read) = sleeper(&world, &world.badge("alice")).await;
    world.shutdown.stop();
    assert!(collect(&mut read).await.errors().contains("SSH Service stops"));
    let entries = world.recording().await;
    assert!(matches!(&entries.last().unwrap().what, wire::recording::What::End(_)));
}

#[tokio::test]
async fn a_draining_service_takes_no_new_sessions_and_lets_the_old_ones_run() {
    let world = World::new();
    let client = world.alice().await;
    world.shutdown.drain();
    assert_eq!(exec(&client, "echo old", "").await.text().trim(), "old");
    assert!(exec(&world.alice().await, "echo new", "").await.errors().contains("is stopping"));
}

#[tokio::test]
async fn a_stranger_has_a_deadline() {
    use tokio::io::AsyncReadExt;
    let settings = agent::ssh::Settings { auth_deadline: Duration::from_millis(200), ..Default::default() };
    let world = World::with(settings);
    let mut stream = world.stream();
    let mut all = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut all)).await.expect("still open").unwrap();
    assert!(all.starts_with(b"SSH-2.0-Lockgate"));
}

#[tokio::test]
async fn a_killed_agents_recording_is_delivered_by_the_next_and_its_end_reported() {
    let world = World::new();
    let (_client, _read) = sleeper(&world, &world.badge("alice")).await;
    let live = std::fs::read_dir(world.dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|s| s == "rec"))
        .unwrap();
    // What a kill leaves: the file as it is at that moment, torn, and nobody's lock.
    let bytes = std::fs::read(&live).unwrap();
    let dead = tempfile::tempdir().unwrap();
    let spool = Spool::open(dead.path()).unwrap();
    let mut torn = bytes.clone();
    torn.extend_from_slice(&[0, 0, 0]);
    std::fs::write(dead.path().join(live.file_name().unwrap()), torn).unwrap();
    // One whose process was killed before the session began.
    let unbegun = dead.path().join(format!("{}.rec", uuid::Uuid::nil()));
    std::fs::write(&unbegun, &bytes[..20]).unwrap();
    let (audit, mut events) = agent::events::Audit::new();
    let reports = Arc::new(Reports::default());
    let delivery = spool.deliver(
        reports.clone(),
        audit,
        net::backoff::Backoff::new(Duration::from_millis(1), Duration::from_millis(5), 1),
        net::turn::Turn::always(),
    );
    let event = tokio::select! {
        () = delivery => unreachable!(),
        event = async {
            let event = events.recv().await.unwrap();
            while dead.path().join(live.file_name().unwrap()).exists() {
                tokio::task::yield_now().await;
            }
            event
        } => event,
    };
    assert_eq!((event.event.as_str(), event.fields["recovered"].as_bool(), event.text("user")), ("session.end", Some(true), "alice"));
    let delivered = reports.recordings.lock().unwrap();
    assert_eq!((delivered.len(), delivered[0].0.session.to_string()), (1, event.text("sid").to_owned()));
    assert_eq!(read_recording(&delivered[0].1).len(), read_recording(&bytes).len());
    assert!(!unbegun.exists() && std::fs::read_dir(dead.path().join("unreadable")).unwrap().next().is_none());
    // The one that runs is left alone.
    assert!(live.exists());
}
