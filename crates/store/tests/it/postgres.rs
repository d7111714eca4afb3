//! PostgreSQL under harm: restarts, cut and frozen connections, uncertain commits, pruned history, a promoted standby, wrong credentials.

use crate::load::Load;
use crate::proxy::{Proxy, Weather};
use crate::servers::{self, Pg};
use crate::{clock, create, end, key, lose, put};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::remote::{Identity, OpenError, Tls};
use store::{CommitError, Event, Postgres, Store, StoreError, WatchError, postgres};

fn options(port: u16) -> postgres::Options {
    let mut options = servers::postgres_options(port, "faults");
    options.poll = Duration::from_millis(10);
    options.stall = Duration::from_millis(500);
    options
}

async fn open(options: &postgres::Options) -> Arc<dyn Store> {
    Arc::new(Postgres::open(options.clone(), clock()).await.unwrap())
}

async fn refused(options: postgres::Options) -> OpenError {
    Postgres::open(options, clock()).await.err().expect("it must not open")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_that_restarts_loses_nothing_and_repeats_nothing() {
    let mut server = Pg::start();
    let options = options(server.port);
    let (store, other) = (open(&options).await, open(&options).await);
    let load = Load::start(store, &other).await;
    for signal in [rustix::process::Signal::QUIT, rustix::process::Signal::INT] {
        load.until(50).await;
        server.running.stop(signal);
        server.restart();
    }
    load.until(50).await;
    assert_eq!(load.finish().await, 0, "what happened to each write is known");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_to_postgres_lose_nothing_and_repeat_nothing() {
    let proxy = Proxy::start(servers::postgres().port).await;
    let mut through = options(proxy.port);
    through.hosts = vec![format!("127.0.0.1:{}", proxy.port)];
    let (store, watched) = (open(&through).await, open(&through).await);
    let load = Load::start(store, &watched).await;
    for round in 0..crate::rounds(30) {
        load.until(1 + round % 7).await;
        match round % 3 {
            0 => proxy.cut(),
            // In the transaction, before or after the server has it.
            _ => proxy.set(Weather::CutAt { bytes: b"COMMIT\0".to_vec(), pass: round % 2 == 0, then_down: false }),
        }
    }
    load.until(20).await;
    assert_eq!(load.finish().await, 0, "what happened to each write is known");
    assert!(proxy.cuts() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_an_answer_is_looked_up_and_never_repeated_blindly() {
    let proxy = Proxy::start(servers::postgres().port).await;
    let mut options = options(proxy.port);
    let store = open(&options).await;
    for (round, pass) in [true, false, true].into_iter().enumerate() {
        proxy.set(Weather::CutAt { bytes: b"COMMIT\0".to_vec(), pass, then_down: false });
        let done = store.commit(create(&format!("k/{round}"))).await;
        assert_eq!(done.map(|done| done.revision), Ok(u64::try_from(round).unwrap() + 1), "pass: {pass}");
        assert_eq!(proxy.cuts(), round + 1);
    }
    options.patience = Duration::from_millis(300);
    let hasty = open(&options).await;
    for (round, pass) in [true, false].into_iter().enumerate() {
        proxy.set(Weather::CutAt { bytes: b"COMMIT\0".to_vec(), pass, then_down: true });
        let answer = hasty.commit(create(&format!("a/{round}"))).await;
        assert!(matches!(answer, Err(CommitError::Ambiguous(_))), "{pass} {answer:?}");
        proxy.set(Weather::Fair);
        assert_eq!(store.get(&key(&format!("a/{round}"))).await.unwrap().is_some(), pass);
    }
    // While it is down nothing is sent, so nothing is unclear.
    proxy.set(Weather::Down);
    let answer = hasty.commit(create("b")).await;
    assert!(matches!(answer, Err(CommitError::Store(StoreError::Unreachable { .. }))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_frozen_connections_end_in_an_answer_and_hold_up_nobody() {
    let proxy = Proxy::start(servers::postgres().port).await;
    let mut options = options(proxy.port);
    options.patience = Duration::from_millis(200);
    let through = open(&options).await;
    options.hosts = vec![format!("127.0.0.1:{}", servers::postgres().port)];
    let direct = open(&options).await;
    proxy.set(Weather::Slow(Duration::from_millis(3)));
    through.commit(create("slow")).await.unwrap();
    assert!(through.get(&key("slow")).await.unwrap().is_some());
    // Frozen in the middle of a transaction, which holds the lock that all writers need: the server ends it.
    proxy.set(Weather::Fair);
    let writing = {
        let through = Arc::clone(&through);
        tokio::spawn(async move {
            for n in 0.. {
                if let Err(error) = through.commit(create(&format!("frozen/{n}"))).await {
                    return error;
                }
            }
            unreachable!()
        })
    };
    for _ in 0..50 {
        direct.get(&key("slow")).await.unwrap();
    }
    proxy.set(Weather::Frozen);
    let begun = Instant::now();
    direct.commit(create("others")).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let error = writing.await.unwrap();
    assert!(matches!(error, CommitError::Ambiguous(_) | CommitError::Store(StoreError::Unreachable { .. })), "{error:?}");
    let read = through.get(&key("slow")).await;
    assert!(matches!(read, Err(StoreError::Unreachable { .. })), "{read:?}");
    proxy.set(Weather::Fair);
    through.commit(create("after")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_of_postgres_that_needs_what_was_pruned_is_told() {
    let mut options = options(servers::postgres().port);
    options.history = 8;
    let writer = open(&options).await;
    for n in 0..100 {
        writer.commit(create(&format!("k/{n}"))).await.unwrap();
    }
    // One that did not see it all and has it in memory.
    let store = open(&options).await;
    let late = store.watch(vec![], Some(3)).await;
    let Err(WatchError::Compacted { oldest }) = late else { panic!("{late:?}") };
    assert!((4..=94).contains(&oldest), "{oldest}");
    let mut recent = store.watch(vec![], Some(99)).await.unwrap();
    assert_eq!(recent.next().await, Some(Ok(Event::Init { revision: 99 })));
    assert_eq!(recent.next().await.unwrap().unwrap().revision(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_takes_over_with_everything_that_was_acknowledged() {
    let mut first = Pg::start();
    let second = first.standby();
    first.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
    first.sql("SELECT pg_reload_conf()");
    let mut options = options(first.port);
    options.hosts = vec![format!("127.0.0.1:{}", first.port), format!("127.0.0.1:{}", second.port)];
    let (store, other) = (open(&options).await, open(&options).await);
    let load = Load::start(Arc::clone(&store), &other).await;
    load.until(50).await;
    first.running.stop(rustix::process::Signal::QUIT);
    second.promote();
    load.until(50).await;
    assert_eq!(load.finish().await, 0, "what happened to each write is known");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_lacked_commits_ends_the_watches() {
    let mut first = Pg::start();
    let mut second = first.standby();
    let mut options = options(first.port);
    let store = open(&options).await;
    store.commit(create("both")).await.unwrap();
    second.running.stop(rustix::process::Signal::INT);
    drop(second.running);
    // The same place, an older database.
    options.hosts = vec![format!("127.0.0.1:{}", first.port)];
    let store = open(&options).await;
    let mut watch = store.watch(vec![], None).await.unwrap();
    lose(&store, &mut watch).await;
    first.running.stop(rustix::process::Signal::QUIT);
    let mut promoted = Pg { dir: second.dir, port: first.port, running: first.running };
    promoted.restart();
    promoted.promote();
    let ended = end(watch).await;
    assert!(matches!(ended, Some(Err(WatchError::Ahead { .. }))), "{ended:?}");
    assert!(store.get(&key("lost/9")).await.unwrap().is_none());
    store.commit(create("lost/9")).await.expect("life goes on from what is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_over_tls_with_a_password_or_a_certificate() {
    let files = servers::certificates();
    let mut options = options(servers::postgres().port);
    options.hosts = vec![format!("localhost:{}", servers::postgres().port)];
    options.tls = Some(Tls { ca_file: files.ca.clone(), identity: None });
    open(&options).await.commit(create("k")).await.unwrap();
    let client = Identity { cert_file: files.client.0.clone(), key_file: files.client.1.clone() };
    let tls = Tls { ca_file: files.ca.clone(), identity: Some(client) };
    let by_certificate = postgres::Options { user: "by_certificate".into(), password_file: None, tls: Some(tls), ..options.clone() };
    servers::postgres().sql("CREATE ROLE by_certificate LOGIN SUPERUSER");
    open(&by_certificate).await.get(&key("k")).await.unwrap().unwrap();

    options.tls = Some(Tls { ca_file: files.other_ca.clone(), identity: None });
    let error = refused(options).await.to_string();
    assert!(error.contains("TLS") && error.contains("certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_postgres_refuses_is_said_by_name_and_never_with_the_password() {
    let good = || postgres::Options { patience: Duration::from_millis(300), ..options(servers::postgres().port) };
    let wrong = servers::scratch("wrong-").join("password");
    std::fs::write(&wrong, "sesame\n").unwrap();
    servers::postgres().sql(&format!("CREATE ROLE guest LOGIN PASSWORD '{}'", servers::PASSWORD));
    let cases: Vec<(postgres::Options, &[&str])> = vec![
        (postgres::Options { password_file: Some(wrong), ..good() }, &["refuses the login", "password authentication failed"]),
        (postgres::Options { password_file: None, ..good() }, &["refuses the login", "password"]),
        (postgres::Options { database: "nowhere".into(), ..good() }, &["no such thing", "nowhere"]),
        (postgres::Options { user: "guest".into(), ..good() }, &["refuses the right", "permission denied"]),
        (postgres::Options { hosts: vec![format!("127.0.0.1:{}", servers::free_port())], ..good() }, &["cannot be reached", "refused"]),
        (postgres::Options { hosts: vec!["db.example.com".into()], ..good() }, &["tls_ca_file"]),
        (postgres::Options { hosts: vec![], ..good() }, &["at least one host"]),
        (postgres::Options { schema: "a\"; DROP".into(), ..good() }, &["not a schema's name"]),
        (postgres::Options { password_file: Some("/nowhere/password".into()), ..good() }, &["/nowhere/password"]),
    ];
    for (options, words) in cases {
        let error = refused(options).await.to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(!error.contains("sesame") && !error.contains(servers::PASSWORD), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_and_foreign_databases_are_refused_and_left_alone() {
    let server = servers::postgres();
    let options = options(server.port);
    open(&options).await.close().await;
    server.sql(&format!("UPDATE {}.head SET layout = 2", options.schema));
    assert!(matches!(refused(options.clone()).await, OpenError::Newer { found: 2, .. }));
    server.sql(&format!("ALTER TABLE {}.head RENAME COLUMN layout TO other", options.schema));
    assert!(matches!(refused(options.clone()).await, OpenError::Foreign { .. }));
    // Read-only, as a standby is.
    server.sql(&format!("ALTER TABLE {}.head RENAME COLUMN other TO layout", options.schema));
    server.sql(&format!("UPDATE {}.head SET layout = 1", options.schema));
    let store = open(&postgres::Options { patience: Duration::from_millis(200), ..options.clone() }).await;
    server.sql(&format!("DROP TABLE {}.item", options.schema));
    let error = store.get(&key("k")).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    let error = store.commit(create("k")).await.unwrap_err();
    assert!(matches!(error, CommitError::Store(StoreError::Corrupt { .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_under_a_snapshot_that_is_held_leave_the_row_of_the_lock_as_it_was() {
    let options = options(servers::postgres().port);
    let store = open(&options).await;
    let look = || servers::postgres().sql(&format!("SELECT ctid, layout FROM {}.head", options.schema));
    put(&store, "k").await;
    let before = look();
    let mut held = store.snapshot().await.unwrap();
    for _ in 0..100 {
        put(&store, "k").await;
    }
    // A new version for each commit, none of which could go before the snapshot does, would be in everybody's way.
    assert_eq!(look(), before);
    let items = held.page().await.unwrap().unwrap();
    assert_eq!((items.len(), items[0].revision, held.revision()), (1, 1, 1));
    assert_eq!(store.revision().await, Ok(101));
}
