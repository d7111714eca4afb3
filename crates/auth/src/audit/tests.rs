//! The audit log against a hostile disk: torn ends, flipped bytes, missing lines and files, repeated events.

use super::*;
use net::clock::ManualClock;
use std::fs;
use types::Time;

struct Log {
    dir: tempfile::TempDir,
    clock: ManualClock,
    group: Group,
}

fn cluster() -> ClusterId {
    ClusterId::from_uuid(uuid::Uuid::from_u128(7))
}

impl Log {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), clock: ManualClock::new(Time::from_unix(1_800_000_000)), group: Group::new("test") }
    }
    async fn open(&self, anchor: Option<Head>) -> Audit {
        let known = Known { anchor, origin: None };
        Audit::open(self.dir.path(), cluster(), known, self.clock.shared(), &self.group, Arc::default(), Board::default()).await.unwrap()
    }
    fn files(&self) -> Vec<PathBuf> {
        file::parts(self.dir.path()).unwrap().into_iter().map(|part| part.path).collect()
    }
}

async fn write_users(audit: &Audit, users: std::ops::Range<u32>) {
    for user in users {
        audit.record(audit.event(EventKind::Login).with("user", format!("u{user}"))).await.unwrap();
    }
}

fn indexes(found: &Found) -> Vec<u64> {
    found.events.iter().map(|event| event.fields["ei"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn the_chain_runs_on_over_days_and_restarts() {
    let log = Log::new();
    let audit = log.open(None).await;
    write_users(&audit, 0..3).await;
    log.clock.advance(Duration::from_secs(86_400));
    write_users(&audit, 3..5).await;
    drop(audit);
    let audit = log.open(None).await;
    write_users(&audit, 5..6).await;
    assert_eq!(log.files().len(), 2);
    let verdict = audit.verify().await.unwrap();
    assert_eq!((verdict.events, verdict.fault), (6, None));
}

#[tokio::test]
async fn attack_row_32_any_changed_byte_is_named_by_verification() {
    let log = Log::new();
    let audit = log.open(None).await;
    write_users(&audit, 0..4).await;
    let path = log.files().pop().unwrap();
    let good = fs::read(&path).unwrap();
    let line_of = |at: usize| good[..at].iter().filter(|byte| **byte == b'\n').count();
    for at in (0..good.len()).step_by(7).filter(|at| good[*at] != b'\n') {
        let mut bad = good.clone();
        bad[at] ^= 0x04;
        fs::write(&path, &bad).unwrap();
        let fault = audit.verify().await.unwrap().fault.unwrap_or_else(|| panic!("byte {at} unnoticed"));
        assert!(fault.starts_with(&format!("event {} ", line_of(at))) || bad[at] == b'\n', "byte {at}: {fault}");
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(audit.verify().await.unwrap().fault, None);
}

#[tokio::test]
async fn attack_row_32_a_missing_end_middle_or_file_is_noticed() {
    let log = Log::new();
    let audit = log.open(None).await;
    write_users(&audit, 0..3).await;
    log.clock.advance(Duration::from_secs(86_400));
    write_users(&audit, 3..6).await;
    let anchor = audit.head();
    let (first, second) = (log.files()[0].clone(), log.files()[1].clone());
    let text = fs::read_to_string(&second).unwrap();
    let lines: Vec<&str> = text.lines().collect();

    fs::write(&second, format!("{}\n{}\n", lines[0], lines[2])).unwrap();
    assert_eq!(
        audit.verify().await.unwrap().fault.unwrap(),
        format!("event 4 is out of order (line 2 of {})", second.file_name().unwrap().to_str().unwrap())
    );

    // Cut the end off and restart: the chain holds in itself, the anchor in the store does not.
    drop(audit);
    fs::write(&second, format!("{}\n", lines[0])).unwrap();
    let audit = log.open(Some(anchor.clone())).await;
    assert!(!audit.anchor_holds());
    write_users(&audit, 10..13).await;
    assert_eq!(audit.verify().await.unwrap().fault.unwrap(), "events that were acknowledged are gone, or were replaced");

    fs::remove_file(first).unwrap();
    assert!(audit.verify().await.unwrap().fault.unwrap().contains("begins with event 3, but event 0 is missing"));
}

#[tokio::test]
async fn a_torn_last_line_is_mended_on_start() {
    let log = Log::new();
    let audit = log.open(None).await;
    write_users(&audit, 0..2).await;
    drop(audit);
    let path = log.files().pop().unwrap();
    let mut torn = fs::read(&path).unwrap();
    torn.extend_from_slice(b"{\"ei\":2,\"hash\":\"00");
    fs::write(&path, &torn).unwrap();
    let audit = log.open(None).await;
    write_users(&audit, 2..3).await;
    let verdict = audit.verify().await.unwrap();
    assert_eq!((verdict.events, verdict.fault), (3, None));
}

#[tokio::test]
async fn a_repeated_event_is_written_once_even_after_a_restart() {
    let log = Log::new();
    let audit = log.open(None).await;
    let event = audit.event(EventKind::Exec);
    audit.record_all(vec![event.clone(), event.clone()]).await.unwrap();
    drop(audit);
    let audit = log.open(None).await;
    audit.record(event).await.unwrap();
    assert_eq!(audit.head().events, 1);
}

#[tokio::test]
async fn searches_filter_and_page_both_ways() {
    let log = Log::new();
    let audit = log.open(None).await;
    write_users(&audit, 0..4).await;
    log.clock.advance(Duration::from_secs(86_400));
    write_users(&audit, 0..4).await;
    audit.record(audit.event(EventKind::Join)).await.unwrap();

    let all = audit.search(Query::default()).await.unwrap();
    assert_eq!(indexes(&all), [8, 7, 6, 5, 4, 3, 2, 1, 0]);
    let one = audit.search(Query { limit: 4, ..Query::default() }).await.unwrap();
    assert_eq!((indexes(&one), one.next), (vec![8, 7, 6, 5], Some(5)));
    let two = audit.search(Query { limit: 5, page: one.next, ..Query::default() }).await.unwrap();
    assert_eq!((indexes(&two), two.next), (vec![4, 3, 2, 1, 0], None));
    let old = audit.search(Query { limit: 3, oldest_first: true, page: Some(2), ..Query::default() }).await.unwrap();
    assert_eq!((indexes(&old), old.next), (vec![3, 4, 5], Some(5)));
    let user = audit.search(Query { user: "u1".into(), ..Query::default() }).await.unwrap();
    assert_eq!(indexes(&user), [5, 1]);
    let named = audit.search(Query { names: ["instance.join".to_owned()].into(), ..Query::default() }).await.unwrap();
    assert_eq!(indexes(&named), [8]);
    let early = audit.search(Query { to: Some(Time::from_unix(1_800_000_001)), ..Query::default() }).await.unwrap();
    assert_eq!(indexes(&early), [3, 2, 1, 0]);
}

#[tokio::test]
async fn an_event_that_is_too_long_is_shortened_and_says_so() {
    let log = Log::new();
    let audit = log.open(None).await;
    audit.record(audit.event(EventKind::Exec).with("command", "x".repeat(200_000)).with("user", "alice")).await.unwrap();
    let found = audit.search(Query::default()).await.unwrap();
    let event = &found.events[0];
    assert_eq!((event.text("user"), event.text("command").len(), &event.fields["truncated"]), ("alice", 512, &true.into()));
    assert_eq!(audit.verify().await.unwrap().fault, None);
}
