//! From the files into a real PostgreSQL: servers that restart, connections cut at every point, processes killed in between,
//! machines that come back from an older image, rows changed by hand, and several Auth Services in one table.

use super::*;
use proxy::{Proxy, Weather};
use servers::Pg;

/// PostgreSQL's rows of one chain, as an administrator of the database would change them.
fn sql(options: &Options, text: &str) {
    servers::postgres().sql(&text.replace("@", &format!("{}.", options.schema)));
}

fn backlog(log: &Log) -> u64 {
    log.metrics.audit_backlog_events.load(Ordering::Relaxed)
}

async fn health(log: &Log, want: fn(&Health) -> bool) {
    let mut changes = log.health.changes();
    let reached = changes.wait_for(|rows| rows.get("audit_postgres").is_some_and(want));
    tokio::time::timeout(Duration::from_secs(30), reached).await.expect("the health changes").unwrap();
}

/// Every event of the log is there once, and the same.
async fn complete(log: &Log, audit: &Audit) {
    log.arrived(audit).await;
    let verdict = audit.verify(&anchored(audit)).await.unwrap();
    assert_eq!(verdict.fault(), None);
    assert_eq!(
        verdict.chains.iter().map(|chain| (chain.sink, chain.end)).collect::<Vec<_>>(),
        [("files", audit.head()), ("postgres", audit.head())]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_recorded_arrives_and_both_sinks_say_the_same() {
    let mut log = Log::shared(options(servers::postgres().port));
    let audit = log.open().await;
    write_users(&audit, 0..20).await;
    complete(&log, &audit).await;
    health(&log, |health| *health == Health::Ready).await;
    log.close(audit).await;
    let audit = log.open().await;
    write_users(&audit, 20..30).await;
    complete(&log, &audit).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_pooling_proxy_is_enough() {
    let log = Log::shared(options(servers::pgbouncer()));
    let audit = log.open().await;
    write_users(&audit, 0..20).await;
    complete(&log, &audit).await;
    assert_eq!(indexes(&search(&audit, Query { limit: 3, ..Query::default() }).await).len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_in_files_alone_goes_on_in_postgresql() {
    let mut log = Log::new();
    let audit = log.open().await;
    write_users(&audit, 0..1300).await;
    log.close(audit).await;
    log.settings.shared = Some(Shared::new(options(servers::postgres().port)));
    let audit = log.open().await;
    complete(&log, &audit).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgresql_is_down_nothing_is_lost_and_the_backlog_is_told() {
    let mut server = Pg::start();
    let mut log = Log::shared(options(server.port));
    let audit = log.open().await;
    write_users(&audit, 0..5).await;
    log.arrived(&audit).await;
    server.running.stop(rustix::process::Signal::QUIT);
    write_users(&audit, 5..25).await;
    log.clock.advance(Duration::from_secs(60));
    health(&log, |health| matches!(health, Health::Attention(_) | Health::Ready)).await;
    log.clock.advance(Duration::from_secs(60));
    health(&log, |health| matches!(health, Health::Attention(why) if why.starts_with("20 audit events"))).await;
    assert_eq!(backlog(&log), 20);
    // What is asked meanwhile is answered from the files, and said to be less.
    let (found, lacks) = audit.search(&Query::default()).await.unwrap();
    assert!(found.rows.len() == 25 && lacks.unwrap().starts_with("only the events of this Auth Service"));
    let verdict = audit.verify(&anchored(&audit)).await.unwrap();
    assert!(verdict.chains[0].fault.is_none() && verdict.fault().unwrap().contains("could not be verified"));
    // A start while it is down.
    log.close(audit).await;
    let audit = log.open().await;
    write_users(&audit, 25..30).await;
    server.restart();
    complete(&log, &audit).await;
    health(&log, |health| *health == Health::Ready).await;
    assert_eq!(backlog(&log), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_the_bound_nothing_more_is_taken_until_postgresql_is_back() {
    let proxy = Proxy::start(servers::postgres().port).await;
    let mut log = Log::shared(options(proxy.port));
    log.settings.shared.as_mut().unwrap().max_backlog = 10;
    let audit = log.open().await;
    write_users(&audit, 0..3).await;
    log.arrived(&audit).await;
    proxy.set(Weather::Down);
    write_users(&audit, 3..13).await;
    let refused = audit.record(audit.event(EventKind::Login)).await;
    assert!(matches!(refused, Err(AuditError::Backlog(10))), "{refused:?}");
    health(&log, |health| matches!(health, Health::Degraded(why) if why.contains("nothing more is taken"))).await;
    assert_eq!(log.metrics.audit_refused.load(Ordering::Relaxed), 1);
    proxy.set(Weather::Fair);
    log.arrived(&audit).await;
    write_users(&audit, 13..14).await;
    complete(&log, &audit).await;
    assert_eq!(audit.head().events, 14);
}

/// A connection that is being cut may still bring its weather: until everything has arrived.
async fn clears_up(proxy: &Proxy, log: &Log, audit: &Audit) {
    let arrived = log.arrived(audit);
    tokio::pin!(arrived);
    while tokio::time::timeout(Duration::from_millis(300), &mut arrived).await.is_err() {
        proxy.set(Weather::Fair);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_at_every_point_lose_nothing_and_double_nothing() {
    let proxy = Proxy::start(servers::postgres().port).await;
    let log = Log::shared(options(proxy.port));
    let audit = log.open().await;
    let statements: [&[u8]; 4] = [b"INSERT INTO", b"SELECT index, hash FROM", b"SELECT c.instance", b"current_setting"];
    for round in 0..24u32 {
        let bytes = statements[round as usize % statements.len()].to_vec();
        match round % 5 {
            0 => proxy.cut(),
            1 => proxy.set(Weather::NoAnswers { then_down: false }),
            _ => proxy.set(Weather::CutAt { bytes, pass: round % 2 == 0, then_down: round % 3 == 0 }),
        }
        write_users(&audit, round * 7..round * 7 + 7).await;
        if round % 2 == 0 {
            clears_up(&proxy, &log, &audit).await;
        }
    }
    clears_up(&proxy, &log, &audit).await;
    complete(&log, &audit).await;
    assert!(proxy.cuts() > 3, "{}", proxy.cuts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_under_load_has_everything_once() {
    let mut server = Pg::start();
    let log = Log::shared(options(server.port));
    let audit = log.open().await;
    for (round, signal) in
        [rustix::process::Signal::QUIT, rustix::process::Signal::INT, rustix::process::Signal::QUIT].into_iter().enumerate()
    {
        let writing = {
            let audit = audit.clone();
            let first = u32::try_from(round).unwrap() * 300;
            tokio::spawn(async move { write_users(&audit, first..first + 300).await })
        };
        while audit.head().events < 100 + 300 * u64::try_from(round).unwrap() {
            tokio::task::yield_now().await;
        }
        server.running.stop(signal);
        server.restart();
        writing.await.unwrap();
    }
    complete(&log, &audit).await;
    assert_eq!(audit.head().events, 900);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_auth_service_killed_between_file_and_postgresql_goes_on_where_it_was() {
    let proxy = Proxy::start(servers::postgres().port).await;
    let mut log = Log::shared(options(proxy.port));
    for round in 0..6u32 {
        let audit = log.open().await;
        match round % 3 {
            0 => proxy.set(Weather::Down),
            // It reached PostgreSQL, and nobody knows.
            1 => proxy.set(Weather::CutAt { bytes: b"INSERT INTO".to_vec(), pass: true, then_down: true }),
            _ => {}
        }
        write_users(&audit, round * 10..round * 10 + 10).await;
        log.kill(audit).await;
        proxy.set(Weather::Fair);
    }
    let audit = log.open().await;
    clears_up(&proxy, &log, &audit).await;
    complete(&log, &audit).await;
    assert_eq!(audit.head().events, 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_fell_back_to_an_older_state_is_filled_again_without_a_hole() {
    let options = options(servers::postgres().port);
    let log = Log::shared(options.clone());
    let audit = log.open().await;
    write_users(&audit, 0..10).await;
    log.arrived(&audit).await;
    // A standby took over that had not received the last ones; a proxy in between kept the connection.
    sql(&options, "DELETE FROM @event WHERE index >= 6");
    write_users(&audit, 10..12).await;
    let back = async { while audit.verify(&AllKnown::new()).await.unwrap().chains[1].end != audit.head() {} };
    tokio::time::timeout(Duration::from_secs(20), back).await.unwrap();
    complete(&log, &audit).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_back_from_an_older_image_gets_its_events_back_and_never_forks() {
    let proxy = Proxy::start(servers::postgres().port).await;
    let mut log = Log::shared(options(proxy.port));
    let audit = log.open().await;
    write_users(&audit, 0..4).await;
    let path = audit.files().paths().pop().unwrap();
    let image = fs::read(&path).unwrap();
    write_users(&audit, 4..9).await;
    complete(&log, &audit).await;
    let (known, head) = (anchored(&audit), audit.head());
    log.close(audit).await;
    fs::write(&path, &image).unwrap();
    // Without PostgreSQL the start is refused: it would write other events in the same places.
    proxy.set(Weather::Down);
    let opened = Audit::open(log.opening(known[&host(1)].clone()), &log.group).await;
    assert!(matches!(opened.err(), Some(AuditError::Short { missing: 5, .. })));
    proxy.set(Weather::Fair);
    let audit = log.open_knowing(known[&host(1)].clone()).await;
    assert_eq!(audit.head(), head);
    write_users(&audit, 9..10).await;
    complete(&log, &audit).await;
    assert_eq!(fault(&audit, &known).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_row_32_a_row_missing_changed_moved_or_added_is_named() {
    let hash = "decode(repeat('00', 32), 'hex')";
    let check = async |change: &str, expected: &str| {
        let options = options(servers::postgres().port);
        let log = Log::shared(options.clone());
        let audit = log.open().await;
        write_users(&audit, 0..6).await;
        complete(&log, &audit).await;
        let known = anchored(&audit);
        sql(&options, change);
        let fault = fault(&audit, &known).await.unwrap_or_else(|| panic!("unnoticed: {change}"));
        assert!(fault.starts_with(expected), "{change}: {fault}");
    };
    check("DELETE FROM @event WHERE index = 3", "event 3 is missing (the log of auth1 in postgres)").await;
    check("DELETE FROM @event WHERE index = 0", "event 0 is missing").await;
    check("DELETE FROM @event WHERE index = 5", "events that were acknowledged are gone").await;
    check("DELETE FROM @event", "events that were acknowledged are gone").await;
    check("UPDATE @event SET event = replace(event::text, 'u2', 'u9')::json WHERE index = 2", "event 2 was changed").await;
    check(
        "UPDATE @event a SET event = b.event, hash = b.hash FROM @event b WHERE (a.index, b.index) IN ((1, 2), (2, 1))",
        "event 1 was changed",
    )
    .await;
    check("UPDATE @event SET index = -1 WHERE index = 4", "event 4 is missing").await;
    check(&format!("UPDATE @event SET hash = {hash} WHERE index = 5"), "event 5 was changed").await;
    check("DELETE FROM @event; DELETE FROM @checkpoint", "the log of 00000000-0000-0000-0000-000000000001 is gone").await;
    // A beginning that nobody removed, hidden behind a checkpoint.
    let cut = "INSERT INTO @checkpoint SELECT instance, index + 1, hash, 'auth1', now(), 3 FROM @event WHERE index = 2; DELETE FROM @event WHERE index < 3";
    check(cut, "the events before 3 are gone, and no event tells of a removal").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_row_32_a_whole_chain_forged_in_one_sink_differs_from_the_other() {
    let options = options(servers::postgres().port);
    let log = Log::shared(options.clone());
    let audit = log.open().await;
    write_users(&audit, 0..6).await;
    complete(&log, &audit).await;
    // Whoever can write the table can make a chain that holds in itself.
    let mut head = Head::genesis(&cluster());
    let mut lines = audit.files().read(host(1), 0).next().await.unwrap();
    for line in &mut lines {
        let event = String::from_utf8(line.event.to_vec()).unwrap().replace("\"u3\"", "\"x3\"");
        *line = wire::audit::Line::chained(&mut head, event.clone().into());
        let hash = line.hash.to_string();
        sql(&options, &format!("UPDATE @event SET event = '{event}', hash = decode('{hash}', 'hex') WHERE index = {}", line.index));
    }
    assert_eq!(fault(&audit, &AllKnown::new()).await.unwrap(), "event 3 is not the one in the files (the log of auth1 in postgres)");
    assert_eq!(
        fault(&audit, &anchored(&audit)).await.unwrap(),
        "events that were acknowledged are gone, or were replaced (the log of auth1 in postgres)"
    );
    // Nothing goes on behind it.
    write_users(&audit, 6..7).await;
    health(
        &log,
        |health| matches!(health, Health::Attention(why) if why.contains("not one chain") || why.contains("not the one in the files")),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_changed_is_not_sent_on() {
    let proxy = Proxy::start(servers::postgres().port).await;
    let log = Log::shared(options(proxy.port));
    let audit = log.open().await;
    write_users(&audit, 0..2).await;
    log.arrived(&audit).await;
    proxy.set(Weather::Down);
    write_users(&audit, 2..5).await;
    let path = audit.files().paths().pop().unwrap();
    let text = fs::read_to_string(&path).unwrap().replace("\"u3\"", "\"x3\"");
    fs::write(&path, text).unwrap();
    proxy.set(Weather::Fair);
    health(&log, |health| matches!(health, Health::Attention(why) if why.contains("event 3 was changed"))).await;
    assert!(fault(&audit, &AllKnown::new()).await.unwrap().starts_with("event 3 was changed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_events_of_several_auth_services_are_one_list_by_time() {
    let options = options(servers::postgres().port);
    let (one, two) = (Log::shared(options.clone()), Log { host: host(2), ..Log::shared(options) });
    let (first, second) = (one.open().await, two.open().await);
    for round in 0..3 {
        for (log, audit) in [(&one, &first), (&two, &second)] {
            one.clock.advance(Duration::from_secs(1));
            log.clock.set(net::clock::Clock::now(&one.clock));
            write_users(audit, round..round + 1).await;
        }
    }
    one.arrived(&first).await;
    two.arrived(&second).await;
    let all = [(2, 2), (1, 2), (2, 1), (1, 1), (2, 0), (1, 0)];
    for audit in [&first, &second] {
        assert_eq!(places(&search(audit, Query::default()).await), all);
        assert_eq!(places(&search(audit, Query { user: "u1".into(), ..Query::default() }).await), all[2..4]);
        let (mut query, mut got) = (Query { limit: 4, ..Query::default() }, Vec::new());
        for _ in 0..2 {
            let found = search(audit, query.clone()).await;
            got.extend(places(&found));
            query.page = found.next;
        }
        assert_eq!(got, all);
    }
    let verdict = first.verify(&[anchored(&first), anchored(&second)].into_iter().flatten().collect()).await.unwrap();
    let seen: Vec<_> =
        verdict.chains.iter().map(|chain| (chain.sink, chain.name.as_str(), chain.end.events, chain.fault.clone())).collect();
    assert_eq!(seen, [("files", "auth1", 3, None), ("postgres", "auth1", 3, None), ("postgres", "auth2", 3, None)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_found_and_exported_too() {
    let proxy = Proxy::start(servers::postgres().port).await;
    let log = Log::shared(options(proxy.port));
    let audit = log.open().await;
    write_users(&audit, 0..2).await;
    log.arrived(&audit).await;
    // Reading passes, adding does not.
    proxy.set(Weather::CutAt { bytes: b"INSERT INTO".to_vec(), pass: false, then_down: false });
    write_users(&audit, 2..4).await;
    assert_eq!(indexes(&search(&audit, Query::default()).await), [3, 2, 1, 0]);
}

async fn exported(audit: &Audit, from: Option<i64>, to: Option<i64>) -> (Vec<String>, wire::audit::Runs) {
    let (sender, mut lines) = mpsc::channel(1);
    let at = |second: i64| Time::from_unix(START + second);
    let (from, to) = (from.map(at), to.map(at));
    let making = async move { audit.export(from, to, &sender).await.unwrap() };
    let taking = async {
        let mut text = String::new();
        while let Some(piece) = lines.recv().await {
            text.push_str(std::str::from_utf8(&piece).unwrap());
        }
        text
    };
    let (done, text) = tokio::join!(making, taking);
    let mut runs = wire::audit::Runs::default();
    text.lines().for_each(|line| runs.take(line.as_bytes()).unwrap());
    for made in done {
        let run = runs.runs()[&made.instance];
        assert_eq!((run.begin.events, run.end.events, run.end.hash), (made.first, made.last + 1, made.hash));
    }
    (text.lines().map(str::to_owned).collect(), runs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_proves_itself_whoever_makes_it() {
    let options = options(servers::postgres().port);
    let (one, two) = (Log::shared(options.clone()), Log { host: host(2), ..Log::shared(options) });
    let (first, second) = (one.open().await, two.open().await);
    for log in [&one, &two] {
        log.clock.advance(Duration::from_secs(1));
    }
    write_users(&first, 0..1200).await;
    write_users(&second, 0..3).await;
    one.clock.advance(Duration::from_secs(10));
    write_users(&first, 1200..1210).await;
    one.arrived(&first).await;
    two.arrived(&second).await;
    let (lines, runs) = exported(&first, None, None).await;
    assert_eq!((lines.len(), runs.runs().len()), (1213, 2));
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    assert_eq!(sorted(exported(&second, None, None).await.0), sorted(lines));
    let (lines, runs) = exported(&second, Some(5), None).await;
    assert_eq!((lines.len(), runs.runs()[&host(1)].begin.events), (10, 1200));
    assert_eq!(exported(&first, Some(60), None).await.0.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_only_add_and_read_is_enough() {
    let mut options = options(servers::postgres().port);
    let role = format!("auditor{}", unique());
    sql(&options, &postgres::tables(&options.schema).replace('@', ""));
    let grants = format!(
        "CREATE ROLE {role} LOGIN PASSWORD '{}'; GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA {schema} TO {role}",
        servers::PASSWORD,
        schema = options.schema
    );
    sql(&options, &grants);
    options.user = role;
    let mut log = Log::shared(options);
    log.settings.retention = Some(Duration::from_secs(86_400));
    let audit = log.open().await;
    write_users(&audit, 0..5).await;
    complete(&log, &audit).await;
    // What needs more says so, and records nothing that is not done.
    let head = audit.head();
    let refused = audit.shorten().await.unwrap_err().to_string();
    assert!(refused.contains("the right to DELETE") && audit.head() == head, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_waiting_mends_refuses_the_start() {
    let good = options(servers::postgres().port);
    let log = Log::shared(good.clone());
    drop(log.open().await);
    let refused = async |log: &Log| match Audit::open(log.opening(Known::default()), &log.group).await {
        Ok(_) => panic!("it must not open"),
        Err(error) => error.to_string(),
    };
    let mut other = log.opening(Known::default());
    other.cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(8));
    let error = Audit::open(other, &log.group).await.err().unwrap().to_string();
    assert!(error.contains("audit log of another cluster"), "{error}");
    let wrong = Options { user: "nobody".into(), ..good.clone() };
    assert!(refused(&Log::shared(wrong)).await.contains("refuses the login"));
    let elsewhere = Options { hosts: vec!["db.example.com".into()], ..good.clone() };
    assert!(refused(&Log::shared(elsewhere)).await.contains("another machine"));
    sql(&good, "UPDATE @log SET layout = 2");
    assert!(refused(&log).await.contains("newer release"));
}
