//! etcd under harm: restarts, cut and frozen connections, uncertain writes, compaction, a full database, an older copy, wrong credentials.

use crate::load::Load;
use crate::proxy::{Proxy, Weather};
use crate::servers::{self, Etcd as Server};
use crate::{clock, create, end, key, lose, put};
use std::sync::Arc;
use std::time::Duration;
use store::remote::{Identity, OpenError, Tls};
use store::{Batch, CommitError, Etcd, Event, Store, StoreError, WatchError, etcd};

fn options(port: u16) -> etcd::Options {
    servers::etcd_options(port, "/faults/")
}

async fn open(options: &etcd::Options) -> Arc<dyn Store> {
    Arc::new(Etcd::open(options.clone(), clock()).await.unwrap())
}

async fn refused(options: etcd::Options) -> OpenError {
    Etcd::open(options, clock()).await.err().expect("it must not open")
}

/// The revision that etcd's own tool speaks of.
fn native(server: &Server) -> String {
    let json = server.ctl(&["get", "x", "-w", "json"]);
    let json: serde_json::Value = serde_json::from_str(json.trim()).unwrap_or_else(|_| panic!("{json}"));
    json["header"]["revision"].to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_that_restarts_loses_nothing_and_repeats_nothing() {
    let mut server = Server::start(&[]);
    let options = options(server.port);
    let (store, other) = (open(&options).await, open(&options).await);
    let load = Load::start(store, &other).await;
    for _ in 0..2 {
        load.until(50).await;
        server.running.kill();
        server.restart();
    }
    load.until(50).await;
    assert_eq!(load.finish().await, 0, "what happened to each write is known");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_to_etcd_lose_nothing_and_repeat_nothing() {
    let proxy = Proxy::start(servers::etcd().port).await;
    let options = options(proxy.port);
    let (store, watched) = (open(&options).await, open(&options).await);
    let load = Load::start(store, &watched).await;
    for round in 0..crate::rounds(30) {
        load.until(1 + round % 7).await;
        match round % 2 {
            0 => proxy.cut(),
            _ => proxy.set(Weather::NoAnswers { then_down: false }),
        }
    }
    load.until(20).await;
    assert_eq!(load.finish().await, 0, "what happened to each write is known");
    assert!(proxy.cuts() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_without_an_answer_is_looked_up_and_never_repeated_blindly() {
    let proxy = Proxy::start(servers::etcd().port).await;
    let mut options = options(proxy.port);
    let direct = open(&etcd::Options { endpoints: vec![format!("127.0.0.1:{}", servers::etcd().port)], ..options.clone() }).await;
    let store = open(&options).await;
    put(&store, "first").await;
    // Nothing need be read before an unconditional write that follows one: what passes without an answer is the write itself.
    proxy.set(Weather::NoAnswers { then_down: false });
    assert_eq!(put(&store, "k").await, 2, "done once");
    assert_eq!((proxy.cuts(), direct.revision().await), (1, Ok(2)));
    // The same while another writes: its writes must not be taken for the lost one, nor hide it.
    let busy = tokio::spawn({
        let direct = Arc::clone(&direct);
        async move {
            for n in 0..200 {
                put(&direct, &format!("other/{}", n % 7)).await;
            }
        }
    });
    for round in 0..20 {
        proxy.set(Weather::NoAnswers { then_down: false });
        store.commit(create(&format!("mine/{round}"))).await.expect("done once");
    }
    busy.await.unwrap();
    assert_eq!(direct.revision().await, Ok(222), "nothing was done twice");
    options.patience = Duration::from_millis(300);
    let hasty = open(&options).await;
    put(&hasty, "warm").await;
    proxy.set(Weather::NoAnswers { then_down: true });
    let answer = hasty.commit(Batch::new(None).put(key("a"), "v", None)).await;
    assert!(matches!(answer, Err(CommitError::Ambiguous(_))), "{answer:?}");
    let answer = hasty.commit(create("b")).await;
    assert!(matches!(answer, Err(CommitError::Store(StoreError::Unreachable { .. }))), "{answer:?}");
    proxy.set(Weather::Fair);
    hasty.commit(create("b")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_frozen_connections_end_in_an_answer() {
    let proxy = Proxy::start(servers::etcd().port).await;
    let mut options = options(proxy.port);
    options.patience = Duration::from_millis(200);
    options.answer = Duration::from_secs(1);
    let through = open(&options).await;
    proxy.set(Weather::Slow(Duration::from_millis(3)));
    through.commit(create("slow")).await.unwrap();
    assert!(through.get(&key("slow")).await.unwrap().is_some());
    proxy.set(Weather::Frozen);
    let (read, written) = futures::join!(async { through.get(&key("slow")).await }, async { through.commit(create("frozen")).await });
    assert!(matches!(read, Err(StoreError::Unreachable { .. })), "{read:?}");
    assert!(matches!(written, Err(CommitError::Ambiguous(_) | CommitError::Store(StoreError::Unreachable { .. }))), "{written:?}");
    proxy.set(Weather::Down);
    proxy.set(Weather::Fair);
    through.commit(create("after")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_of_etcd_that_needs_what_was_compacted_is_told_and_the_others_go_on() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port).await;
    let options = options(server.port);
    let direct = open(&options).await;
    let through = open(&etcd::Options { endpoints: vec![format!("127.0.0.1:{}", proxy.port)], ..options }).await;
    for n in 0..20 {
        put(&direct, &format!("k/{n}")).await;
    }
    let mut behind = through.watch(vec![], None).await.unwrap();
    let mut live = direct.watch(vec![], None).await.unwrap();
    assert_eq!(behind.next().await, Some(Ok(Event::Init { revision: 20 })));
    assert_eq!(live.next().await, Some(Ok(Event::Init { revision: 20 })));
    proxy.set(Weather::Down);
    for n in 0..20 {
        put(&direct, &format!("k/{n}")).await;
        direct.commit(Batch::new(None).delete(key(&format!("k/{n}")))).await.unwrap();
    }
    let now = native(&server);
    let said = server.ctl(&["compact", &now]);
    assert!(said.contains("compacted"), "{said}");
    for revision in 21..=60 {
        assert_eq!(live.next().await.unwrap().unwrap().revision(), revision, "who was not behind goes on");
    }
    proxy.set(Weather::Fair);
    let told = tokio::time::timeout(Duration::from_secs(20), behind.next()).await.unwrap();
    assert!(matches!(told, Some(Err(WatchError::Lagged { .. }))), "{told:?}");
    assert_eq!(put(&direct, "new").await, 61);
    let late = through.watch(vec![], Some(30)).await;
    let Err(WatchError::Compacted { oldest }) = late else { panic!("{late:?}") };
    assert!(oldest > 30 && oldest <= 62, "{oldest}");
    let mut fresh = through.watch(vec![], Some(60)).await.unwrap();
    assert_eq!(fresh.next().await, Some(Ok(Event::Init { revision: 60 })));
    assert_eq!(fresh.next().await.unwrap().unwrap().revision(), 61);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_is_named_reads_go_on_and_nothing_is_half_done() {
    let server = Server::start(&["--quota-backend-bytes=4194304"]);
    let store = open(&options(server.port)).await;
    let mut done = 0;
    let error = loop {
        match store.commit(Batch::new(None).put(key("f"), vec![1; 256 << 10], None)).await {
            Ok(committed) => done = committed.revision,
            Err(error) => break error,
        }
        assert!(done < 100);
    };
    assert!(matches!(error, CommitError::Store(StoreError::Quota { .. })), "{error:?}");
    assert!(error.to_string().contains("etcd is over its space quota"), "{error}");
    assert_eq!(store.revision().await, Ok(done), "what was refused was not done, and what was done was said");
    assert_eq!(store.get(&key("f")).await.unwrap().unwrap().revision, done);
    // As the message says.
    let now = native(&server);
    for args in [&["compact", now.as_str()][..], &["defrag"], &["alarm", "disarm"]] {
        server.ctl(args);
    }
    assert_eq!(put(&store, "after").await, done + 1, "there is room again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_restored_from_an_older_copy_ends_the_watches() {
    let mut server = Server::start(&[]);
    let store = open(&options(server.port)).await;
    put(&store, "kept").await;
    let copy = servers::scratch("copy-").join("snapshot");
    let said = server.ctl(&["snapshot", "save", copy.to_str().unwrap()]);
    assert!(copy.exists(), "{said}");
    let mut watch = store.watch(vec![], None).await.unwrap();
    lose(&store, &mut watch).await;
    server.restore(&copy);
    assert_eq!(end(watch).await, Some(Err(WatchError::Ahead { current: 1 })));
    assert_eq!(put(&store, "new").await, 2);
    assert!(store.get(&key("lost/0")).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_over_tls_with_a_certificate_and_a_password() {
    let mut server = Server::start_with(&[], true);
    for args in [
        &["user", "add", &format!("root:{}", servers::PASSWORD)][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", &format!("guest:{}", servers::PASSWORD)],
        &["auth", "enable"],
    ] {
        server.ctl(args);
    }
    let files = servers::certificates();
    let client = Identity { cert_file: files.client.0.clone(), key_file: files.client.1.clone() };
    let good = || etcd::Options {
        tls: Some(Tls { ca_file: files.ca.clone(), identity: Some(client.clone()) }),
        user: Some("root".into()),
        password_file: Some(servers::password_file()),
        patience: Duration::from_secs(5),
        ..options(server.port)
    };
    let options = good();
    let store = open(&options).await;
    put(&store, "k").await;

    let wrong = servers::scratch("wrong-").join("password");
    std::fs::write(&wrong, "sesame\n").unwrap();
    let quick = || etcd::Options { patience: Duration::from_millis(200), ..good() };
    let cases: Vec<(etcd::Options, &[&str])> = vec![
        (etcd::Options { password_file: Some(wrong), ..quick() }, &["refuses the user or the password"]),
        (etcd::Options { user: Some("guest".into()), ..quick() }, &["refuses this user the keys"]),
        (
            etcd::Options { tls: Some(Tls { ca_file: files.other_ca.clone(), identity: Some(client.clone()) }), ..quick() },
            &["TLS", "certificate"],
        ),
        (etcd::Options { tls: Some(Tls { ca_file: files.ca.clone(), identity: None }), ..quick() }, &["ertificate"]),
        (etcd::Options { tls: None, ..quick() }, &["cannot be reached"]),
        (etcd::Options { user: None, ..quick() }, &["both a user and a password file"]),
        (etcd::Options { endpoints: vec!["https://db.example.com".into()], tls: None, ..quick() }, &["needs TLS"]),
        (etcd::Options { endpoints: vec![], ..quick() }, &["at least one endpoint"]),
        (etcd::Options { endpoints: vec![format!("127.0.0.1:{}", servers::free_port())], ..quick() }, &["cannot be reached", "refused"]),
    ];
    for (options, words) in cases {
        let error = refused(options).await.to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error} should say {words:?}");
        assert!(!error.contains("sesame") && !error.contains(servers::PASSWORD), "{error}");
    }
    // A restart forgets the tokens: the driver logs in again.
    server.running.kill();
    server.restart();
    assert_eq!(put(&store, "k").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_and_foreign_keys_are_refused_and_left_alone() {
    let options = options(servers::etcd().port);
    let head = format!("{}/head", options.prefix);
    servers::etcd().ctl(&["put", &head, "\u{2}something newer"]);
    assert!(matches!(refused(options.clone()).await, OpenError::Newer { found: 2, .. }));
    servers::etcd().ctl(&["put", &head, "hello"]);
    assert!(matches!(refused(options.clone()).await, OpenError::Foreign { .. }));
    servers::etcd().ctl(&["del", &head]);
    let store = open(&options).await;
    put(&store, "k").await;
    servers::etcd().ctl(&["put", &format!("{}/item/k", options.prefix), "by hand"]);
    let error = store.get(&key("k")).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    servers::etcd().ctl(&["del", &head]);
    let error = store.commit(create("other")).await.unwrap_err();
    assert!(matches!(error, CommitError::Store(StoreError::Corrupt { .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_that_write_at_the_same_time_all_get_their_turn() {
    let options = options(servers::etcd().port);
    let stores = [open(&options).await, open(&options).await, open(&options).await];
    let (stop, stopped) = tokio::sync::watch::channel(false);
    // Two never pause; the third wants to write now and then, under a condition, which takes it longer.
    let busy = stores.iter().take(2).map(|store| {
        let (store, stopped) = (Arc::clone(store), stopped.clone());
        tokio::spawn(async move {
            while !*stopped.borrow() {
                put(&store, "busy").await;
            }
        })
    });
    let busy: Vec<_> = busy.collect();
    for n in 0..30 {
        let turn = tokio::time::timeout(Duration::from_secs(5), stores[2].commit(create(&format!("turn/{n}")))).await;
        turn.expect("a turn within five seconds").unwrap();
    }
    stop.send(true).unwrap();
    for task in busy {
        task.await.unwrap();
    }
}
