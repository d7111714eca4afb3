//! The files alone: torn ends, flipped bytes, missing lines and files, repeated events, searches.

use super::*;

impl Log {
    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
        files.sort();
        files
    }
}

#[tokio::test]
async fn the_chain_runs_on_over_days_and_restarts() {
    let log = Log::new();
    let audit = log.open().await;
    write_users(&audit, 0..3).await;
    log.clock.advance(Duration::from_secs(86_400));
    write_users(&audit, 3..5).await;
    drop(audit);
    let audit = log.open().await;
    write_users(&audit, 5..6).await;
    assert_eq!(log.files().len(), 2);
    let verdict = audit.verify(&AllKnown::new()).await.unwrap();
    assert_eq!((verdict.chains[0].end, verdict.fault(), verdict.note()), (audit.head(), None, String::new()));
    assert_eq!(audit.head().events, 6);
}

#[tokio::test]
async fn attack_row_32_any_changed_byte_is_named_by_verification() {
    let log = Log::new();
    let audit = log.open().await;
    write_users(&audit, 0..4).await;
    let path = log.files().pop().unwrap();
    let good = fs::read(&path).unwrap();
    let line_of = |at: usize| good[..at].iter().filter(|byte| **byte == b'\n').count();
    for at in (0..good.len()).step_by(7).filter(|at| good[*at] != b'\n') {
        let mut bad = good.clone();
        bad[at] ^= 0x04;
        fs::write(&path, &bad).unwrap();
        let fault = fault(&audit, &AllKnown::new()).await.unwrap_or_else(|| panic!("byte {at} unnoticed"));
        assert!(fault.starts_with(&format!("event {} ", line_of(at))) || bad[at] == b'\n', "byte {at}: {fault}");
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(fault(&audit, &AllKnown::new()).await, None);
}

#[tokio::test]
async fn attack_row_32_a_missing_end_middle_or_file_is_noticed() {
    let log = Log::new();
    let audit = log.open().await;
    write_users(&audit, 0..3).await;
    log.clock.advance(Duration::from_secs(86_400));
    write_users(&audit, 3..6).await;
    let known = anchored(&audit);
    let (first, second) = (log.files()[0].clone(), log.files()[1].clone());
    let text = fs::read_to_string(&second).unwrap();
    let lines: Vec<&str> = text.lines().collect();

    fs::write(&second, format!("{}\n{}\n", lines[0], lines[2])).unwrap();
    let name = second.file_name().unwrap().to_str().unwrap();
    assert_eq!(fault(&audit, &known).await.unwrap(), format!("event 4 is missing ({name})"));

    // Cut the end off and restart: the chain holds in itself, the anchor in the store does not.
    drop(audit);
    fs::write(&second, format!("{}\n", lines[0])).unwrap();
    let audit = log.open_knowing(known[&host(1)].clone()).await;
    assert!(audit.anchor().is_none(), "what the store saw is evidence and stays");
    assert_eq!(fault(&audit, &known).await.unwrap(), "events that were acknowledged are gone, or were replaced");
    write_users(&audit, 10..13).await;
    assert_eq!(fault(&audit, &known).await.unwrap(), "events that were acknowledged are gone, or were replaced");

    fs::remove_file(first).unwrap();
    assert!(fault(&audit, &known).await.unwrap().starts_with("event 0 is missing"));
}

#[tokio::test]
async fn a_torn_last_line_is_mended_on_start() {
    let log = Log::new();
    let audit = log.open().await;
    write_users(&audit, 0..2).await;
    drop(audit);
    let path = log.files().pop().unwrap();
    let mut torn = fs::read(&path).unwrap();
    torn.extend_from_slice(b"{\"ei\":2,\"hash\":\"00");
    fs::write(&path, &torn).unwrap();
    let audit = log.open().await;
    write_users(&audit, 2..3).await;
    assert_eq!((audit.head().events, fault(&audit, &AllKnown::new()).await), (3, None));
}

#[tokio::test]
async fn a_repeated_event_is_written_once_even_after_a_restart() {
    let log = Log::new();
    let audit = log.open().await;
    let event = audit.event(EventKind::Exec);
    audit.record_all(vec![event.clone(), event.clone()]).await.unwrap();
    drop(audit);
    let audit = log.open().await;
    audit.record(event).await.unwrap();
    assert_eq!(audit.head().events, 1);
}

#[tokio::test]
async fn an_id_used_up_by_one_reporter_silences_nobody_else() {
    let log = Log::new();
    let audit = log.open().await;
    let told = |kind, by: &str| Event { uid: uuid::Uuid::from_u128(5), ..audit.event(kind).with("server_id", by) };
    let events = [
        told(EventKind::Exec, "mallory"),
        told(EventKind::SessionUpload, "mallory"),
        told(EventKind::SessionEnd, "mallory"),
        told(EventKind::SessionEnd, "web-1"),
    ];
    for event in &events {
        audit.record(event.clone()).await.unwrap();
    }
    // Also when the first of them were told to a process that is no more.
    drop(audit);
    let audit = log.open().await;
    audit.record_all(events.to_vec()).await.unwrap();
    assert_eq!(audit.head().events, 4);
    let late = Event { event: "exec.late".into(), ..events[0].clone() };
    audit.record(late).await.unwrap();
    assert_eq!(audit.head().events, 5);
}

#[tokio::test]
async fn a_repeat_is_recognised_after_a_restart_although_its_fields_were_given_up() {
    let log = Log::new();
    let audit = log.open().await;
    let many = (0..20_000).fold(audit.event(EventKind::Exec).with("server_id", "web-1"), |event, at| event.with(&format!("x{at}"), at));
    audit.record(many.clone()).await.unwrap();
    drop(audit);
    let audit = log.open().await;
    audit.record(many).await.unwrap();
    assert_eq!(audit.head().events, 1);
}

#[tokio::test]
async fn a_disk_that_takes_nothing_refuses_what_it_was_about_and_loses_nothing() {
    let log = Log::new();
    let audit = log.open().await;
    write_users(&audit, 0..1).await;
    // A new day begins a new file, and its directory is away.
    let away = log.dir.path().with_extension("away");
    fs::rename(log.dir.path(), &away).unwrap();
    log.clock.advance(Duration::from_secs(86_400));
    let mut changes = log.health.changes();
    let waiting = tokio::spawn({
        let audit = audit.clone();
        async move { audit.record(audit.event(EventKind::Login)).await }
    });
    changes.wait_for(|rows| matches!(rows.get("audit"), Some(Health::Degraded(_)))).await.unwrap();
    assert!(!waiting.is_finished(), "nothing is acknowledged");
    fs::rename(&away, log.dir.path()).unwrap();
    waiting.await.unwrap().unwrap();
    write_users(&audit, 1..2).await;
    assert_eq!((audit.head().events, fault(&audit, &AllKnown::new()).await), (3, None));
    assert!(log.metrics.audit_write_errors.load(Ordering::Relaxed) > 0);
    // Closed, it counts what it does not take.
    audit.close();
    while audit.record(audit.event(EventKind::Login)).await.is_ok() {}
    assert_eq!(log.metrics.audit_refused.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn searches_open_only_files_whose_times_fit() {
    let log = Log::new();
    let audit = log.open().await;
    for _ in 0..5 {
        write_users(&audit, 0..3).await;
        log.clock.advance(Duration::from_secs(86_400));
    }
    // A file that cannot be read fails every search that opens it. The times of closed files stand beside them.
    let first = log.files()[0].clone();
    search(&audit, Query::default()).await;
    fs::remove_file(&first).unwrap();
    fs::create_dir(&first).unwrap();
    let late = Query { from: Some(Time::from_unix(START + 86_400)), ..Query::default() };
    assert_eq!(indexes(&search(&audit, late).await).len(), 12);
    assert!(audit.search(&Query::default()).await.is_err());
}

#[tokio::test]
async fn events_that_come_late_stand_where_they_happened() {
    let log = Log::new();
    let audit = log.open().await;
    write_users(&audit, 0..2).await;
    log.clock.advance(Duration::from_secs(3 * 86_400));
    write_users(&audit, 2..4).await;
    // Of an agent that was offline.
    let mut late = audit.event(EventKind::Exec);
    late.time = Time::from_unix(START + 10);
    audit.record(late).await.unwrap();
    assert_eq!(indexes(&search(&audit, Query::default()).await), [3, 2, 4, 1, 0]);
    let day = Query { to: Some(Time::from_unix(START + 86_400)), oldest_first: true, ..Query::default() };
    assert_eq!(indexes(&search(&audit, day).await), [0, 1, 4]);
}

#[tokio::test]
async fn an_event_that_is_too_long_is_shortened_and_says_so() {
    let log = Log::new();
    let audit = log.open().await;
    audit.record(audit.event(EventKind::Exec).with("command", "x".repeat(200_000)).with("user", "alice")).await.unwrap();
    let event = search(&audit, Query::default()).await.rows[0].shown().unwrap();
    assert_eq!((event.text("user"), event.text("command").len(), &event.fields["truncated"]), ("alice", 512, &true.into()));
    assert_eq!(fault(&audit, &AllKnown::new()).await, None);
}

#[tokio::test]
async fn a_page_has_room_in_one_message() {
    let log = Log::new();
    let audit = log.open().await;
    for _ in 0..10 {
        let long = |_| audit.event(EventKind::Exec).with("command", "x".repeat(60_000));
        audit.record_all((0..20).map(long).collect()).await.unwrap();
    }
    let (mut query, mut all) = (Query { limit: 1000, ..Query::default() }, 0);
    loop {
        let found = search(&audit, query.clone()).await;
        assert!(found.rows.iter().map(|row| row.event.len()).sum::<usize>() <= query::MAX_PAGE_BYTES);
        all += found.rows.len();
        query.page = found.next;
        if query.page.is_none() {
            break;
        }
    }
    assert_eq!(all, 200);
}
