//! Retention in both sinks, with a given clock: what goes, what stays, and that the rest proves itself.

use super::*;

const DAY: u64 = 86_400;

impl Log {
    fn keeping(mut self, days: u64) -> Self {
        self.settings.retention = Some(Duration::from_secs(days * DAY));
        self
    }
    fn tomorrow(&self) {
        self.clock.advance(Duration::from_secs(DAY));
    }
}

async fn removals(audit: &Audit) -> Vec<(String, u64)> {
    let query = Query { kinds: ["audit.trim".into()].into(), oldest_first: true, ..Query::default() };
    let shown = search(audit, query).await.rows.into_iter().map(|row| row.shown().unwrap());
    shown.map(|event| (event.text("sink").to_owned(), event.fields["removed"].as_u64().unwrap())).collect()
}

#[tokio::test]
async fn without_a_retention_nothing_ever_goes() {
    let log = Log::new();
    let audit = log.open().await;
    write_users(&audit, 0..2).await;
    log.clock.advance(Duration::from_secs(9000 * DAY));
    audit.shorten().await.unwrap();
    assert_eq!(indexes(&search(&audit, Query::default()).await), [1, 0]);
}

#[tokio::test]
async fn files_keep_whole_days_and_what_is_left_proves_itself() {
    let mut log = Log::new().keeping(3);
    let audit = log.open().await;
    for day in 0..6u32 {
        write_users(&audit, day * 2..day * 2 + 2).await;
        log.tomorrow();
        audit.shorten().await.unwrap();
    }
    // The last shortening was on day 6: days 3 to 5 are left, and the events that tell of removals.
    let users = |found: Found| {
        found.rows.iter().filter_map(|row| Some(row.shown()?.text("user").to_owned())).filter(|user| !user.is_empty()).collect::<Vec<_>>()
    };
    let all = search(&audit, Query { oldest_first: true, ..Query::default() }).await;
    assert_eq!(users(all), ["u6", "u7", "u8", "u9", "u10", "u11"]);
    let verdict = audit.verify(&anchored(&audit)).await.unwrap();
    assert_eq!(verdict.fault(), None);
    assert!(verdict.note().starts_with("the events before 6 were removed by retention"), "{}", verdict.note());
    // Again nothing, and after a restart the same.
    let head = audit.head();
    audit.shorten().await.unwrap();
    let known = anchored(&audit);
    log.close(audit).await;
    let audit = log.open_knowing(known[&host(1)].clone()).await;
    audit.shorten().await.unwrap();
    assert_eq!((audit.head(), fault(&audit, &known).await), (head, None));
}

#[tokio::test]
async fn attack_row_32_a_beginning_cut_off_behind_a_forged_checkpoint_is_noticed() {
    let mut log = Log::new();
    let audit = log.open().await;
    write_users(&audit, 0..2).await;
    log.tomorrow();
    write_users(&audit, 2..4).await;
    let known = anchored(&audit);
    let second = audit.files().hash_before(2).await.unwrap().unwrap();
    log.close(audit).await;
    let first = fs::read_dir(log.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().unwrap() == "jsonl")
        .min()
        .unwrap();
    fs::remove_file(first).unwrap();
    let forged = Checkpoint { head: second, time: Time::from_unix(START), removed: 2 };
    fs::write(log.dir.path().join("checkpoint.json"), serde_json::to_vec(&forged).unwrap()).unwrap();
    let audit = log.open_knowing(known[&host(1)].clone()).await;
    assert_eq!(fault(&audit, &known).await.unwrap(), "the events before 2 are gone, and no event tells of a removal");
}

#[tokio::test]
async fn a_removal_that_broke_off_is_finished_by_the_next() {
    let mut log = Log::new().keeping(1);
    let audit = log.open().await;
    for day in 0..4u32 {
        write_users(&audit, day..day + 1).await;
        log.tomorrow();
    }
    let old = audit.files().paths()[0].clone();
    let kept = fs::read(&old).unwrap();
    audit.shorten().await.unwrap();
    assert_eq!(audit.files().paths().len(), 2, "day 3 and the event that tells of the removal");
    let known = anchored(&audit);
    log.close(audit).await;
    // As if the process had died before the first file was gone.
    fs::write(&old, kept).unwrap();
    let audit = log.open_knowing(known[&host(1)].clone()).await;
    assert_eq!((fault(&audit, &known).await, indexes(&search(&audit, Query::default()).await).contains(&0)), (None, false));
    audit.shorten().await.unwrap();
    assert!(!old.exists() && fault(&audit, &known).await.is_none());
    assert_eq!(removals(&audit).await, [("files".to_owned(), 3)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_keep_what_has_not_arrived_and_postgresql_keeps_longer() {
    let proxy = proxy::Proxy::start(servers::postgres().port).await;
    let mut log = Log::shared(options(proxy.port)).keeping(30);
    log.settings.shared.as_mut().unwrap().local_retention = Some(Duration::from_secs(DAY));
    let audit = log.open().await;
    write_users(&audit, 0..3).await;
    log.arrived(&audit).await;
    proxy.set(proxy::Weather::Down);
    log.tomorrow();
    write_users(&audit, 3..5).await;
    log.clock.advance(Duration::from_secs(3 * DAY));
    write_users(&audit, 5..6).await;
    audit.shorten().await.unwrap_err();
    assert_eq!(audit.files().begin().head.events, 0, "what has not arrived stays");
    proxy.set(proxy::Weather::Fair);
    log.arrived(&audit).await;
    audit.shorten().await.unwrap();
    assert_eq!(audit.files().begin().head.events, 5);
    log.arrived(&audit).await;
    let known = anchored(&audit);
    assert_eq!(fault(&audit, &known).await, None);
    // The whole past is still found, exported and proven, in PostgreSQL.
    assert_eq!(indexes(&search(&audit, Query { user: "u0".into(), ..Query::default() }).await), [0]);
    let (sender, mut lines) = mpsc::channel(64);
    let done = audit.export(None, None, &sender).await.unwrap();
    drop(sender);
    assert_eq!((done[0].first, done[0].last), (0, audit.head().events - 1));
    let mut runs = wire::audit::Runs::default();
    while let Some(piece) = lines.recv().await {
        piece.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).for_each(|line| runs.take(line).unwrap());
    }
    assert_eq!(runs.runs()[&host(1)].end, audit.head());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_is_shortened_by_each_for_itself_and_by_anyone_for_who_is_gone() {
    let options = options(servers::postgres().port);
    let gone = Log { host: host(2), ..Log::shared(options.clone()) };
    let other = gone.open().await;
    write_users(&other, 0..3).await;
    gone.arrived(&other).await;
    other.close();
    let log = Log::shared(options).keeping(7);
    let audit = log.open().await;
    for day in 0..10u32 {
        write_users(&audit, day..day + 1).await;
        log.tomorrow();
    }
    log.arrived(&audit).await;
    audit.shorten().await.unwrap();
    log.arrived(&audit).await;
    let known: AllKnown = [anchored(&audit), anchored(&other)].into_iter().flatten().collect();
    let verdict = audit.verify(&known).await.unwrap();
    assert_eq!(verdict.fault(), None, "{verdict:?}");
    let seen: Vec<_> = verdict.chains.iter().map(|chain| (chain.sink, chain.name.as_str(), chain.begin)).collect();
    assert_eq!(seen, [("files", "auth1", 3), ("postgres", "auth1", 3), ("postgres", "auth2", 3)]);
    assert_eq!(removals(&audit).await, [("files".to_owned(), 3), ("postgres".to_owned(), 3), ("postgres".to_owned(), 3)]);
    let query = Query { user: "u0".into(), ..Query::default() };
    assert_eq!(places(&search(&audit, query).await), []);
}
